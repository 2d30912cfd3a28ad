"""Draws docs/images/demo.png from the episode of `make demo`: python docs/make_demo_picture.py out/demo."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ibisagent import render
from ibisagent.episodes import read_episodes
from ibisagent.replay import observed_pictures
from ibisagent.report import draw_action


def main(folder: Path) -> None:
    """Picture, the first two turns and the outline, side by side."""
    [episode] = read_episodes(folder / "episode.jsonl")
    seen = observed_pictures(episode)
    panels = [episode.picture.pixels]
    panels += [draw_action(pixels, turn.action) for pixels, turn in zip(seen, episode.turns, strict=False)][
        :2
    ]
    panels.append(render.paint(episode.picture.pixels, episode.mask, "contour"))
    height = 260
    shown = [render.resize_pixels(p, height, round(height * p.shape[1] / p.shape[0])) for p in panels]
    gap = np.full((height, 6, 3), 255, np.uint8)
    strip = np.concatenate([part for panel in shown for part in (panel, gap)][:-1], axis=1)
    Image.fromarray(strip).save(Path(__file__).parent / "images" / "demo.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
