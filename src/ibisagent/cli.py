"""The command line: one dataclass of options and one function for each command.

Exit codes of `segment`: 0 segmented or absent, 2 bad input, 3 no outcome, 4 a mask was kept but
the episode did not terminate. Of commands that run many cases (`evaluate`, `baselines`, `robustness`,
`tool-swap`, `clicks`, `vqa`): 0, 2, and 3 where some case got no answer; the same command asks it again.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from ibisagent.datasets import check
from ibisagent.errors import IbisError, InputError, writing_to
from ibisagent.evaluation import (
    baselines_table,
    clicks_run,
    compare,
    evaluate,
    human_clicks,
    robustness,
    tool_swap,
    vqa_run,
)
from ibisagent.files import out_folder
from ibisagent.pair import STARTS, PairOptions, load_pair
from ibisagent.progress import open_screen
from ibisagent.synthesis import export, gallery, importers, synthesize
from ibisagent.training import audit, grpo, plan, qwen_folder, sft

if TYPE_CHECKING:
    from ibisagent.agent import Agent
    from ibisagent.rollout import Start
    from ibisagent.types import Episode, Mask, Sample, Tool, Turn

# what the screen shows goes to stderr; stdout holds only paths, for scripts
screen = open_screen()


@dataclass(frozen=True)
class Segment:
    """Find one thing in one picture and write mask, overlay, episode and report."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """PNG, JPEG, TIFF, BMP, one DICOM file, or a NIfTI volume with --axis and --index"""
    instruction: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INSTRUCTION")]
    """what to find, such as "Find the liver" """
    out: Path = Path("ibisagent-out")
    """folder for the results"""
    overwrite: bool = False
    """replace the results of an earlier run in that folder"""
    window: str | None = None
    """grey values shown, as LO,HI or auto; by default what the file says"""
    frame: int | None = None
    """frame of a multi-frame file, from 0"""
    axis: Literal["axial", "coronal", "sagittal"] | None = None
    """through which a volume is sliced"""
    index: int | None = None
    """of the slice, from 0"""
    truth: Path | None = None
    """the true mask: for scripted rules that need it, and to keep it in the episode log"""
    pair: Annotated[PairOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PairOptions)


@dataclass(frozen=True)
class Demo:
    """Segment the liver in the abdominal MR that ships with pydicom."""

    out: Path = Path("ibisagent-out")
    """folder for the results"""
    overwrite: bool = False
    """replace the results of an earlier run in that folder"""


@dataclass(frozen=True)
class Replay:
    """Rebuild every picture of recorded episodes and verify every mask."""

    episode: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EPISODE")]
    """an episode.jsonl, or the folder that holds it"""
    tool: str = "recorded"
    """the tool to make the masks with; by default the recorded one, where it ships with ibisagent"""
    out: Path | None = None
    """folder for the pictures as the policy saw them"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16"""


@dataclass(frozen=True)
class Doctor:
    """Say what runs on this machine and, where something does not, why."""


RESULT_FILES = ("mask.png", "overlay.png", "episode.jsonl", "report.html")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:
        print(f"ibisagent {metadata.version('ibisagent')}")
        return 0
    problem = _misplaced(words) or _repeated(words)
    if problem is not None:
        screen.print(f"[bold red]error:[/] {escape(str(problem))}")
        return 2
    if " ".join(words[:2]) in COMMANDS:  # tyro takes "train audit" as one word
        words = [" ".join(words[:2]), *words[2:]]
    command = tyro.extras.subcommand_cli_from_dict(
        {name: options for name, (options, _) in COMMANDS.items()},
        args=words,
        prog="ibisagent",
        description="Say what to find in a biomedical image and get a mask, with the reasoning behind it.",
    )
    run = next(run for options, run in COMMANDS.values() if type(command) is options)
    try:
        return run(command)
    except IbisError as error:
        screen.print(f"[bold red]error:[/] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        screen.print("[bold red]stopped[/]")
        return 130


def _misplaced(words: list[str]) -> InputError | None:
    """What the parser would answer with a list of all options: half a command, or words without quotes."""
    groups: dict[str, list[str]] = {}
    for name in COMMANDS:
        group, _, rest = name.partition(" ")
        groups.setdefault(group, []).extend([rest] if rest else [])
    first = words[0] if words else ""
    if groups.get(first) and words[1:2] in (["-h"], ["--help"]):
        print(f"ibisagent {first} has commands of its own: {', '.join(groups[first])}")
        raise SystemExit(0)
    if groups.get(first) and (len(words) < 2 or words[1] not in groups[first]):
        return InputError(
            f"ibisagent {first} has commands of its own",
            words[1] if len(words) > 1 else "none",
            f"choose from: {', '.join(groups[first])}",
        )
    if first == "segment":
        plain = list(itertools.takewhile(lambda word: not word.startswith("-"), words[1:]))
        if len(plain) > 2:
            return InputError(
                "segment takes one picture and one instruction",
                f"{len(plain)} words",
                "put the instruction in quotes; for many pictures see Agent.segment_many",
            )
    return None


def _repeated(words: list[str]) -> InputError | None:
    """An option written twice, or both ways (--x --no-x): the parser would silently drop the first one."""
    earlier: dict[str, str] = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
        if not word.startswith("--"):
            continue
        option = word.partition("=")[0].replace("_", "-")
        name = "--" + option.removeprefix("--").removeprefix("no-")
        if name not in earlier:
            earlier[name] = option
        elif earlier[name] != option:
            return InputError("an option is written once", f"{earlier[name]} and {option}", "leave one out")
        elif "=" not in word and following.startswith("--"):
            return InputError("an option is written once", f"{option} twice", "leave one out")
        else:
            fix = f"leave one out, or write all values of a list behind one: {option} A B"
            return InputError("an option is written once", f"{option} twice", fix)
    return None


# --- segment ----------------------------------------------------------------------------------


def demo(command: Demo) -> int:
    """The main job on a real picture that lies on every machine where ibisagent is installed."""
    from pydicom.examples import get_path

    return segment(Segment(Path(get_path("overlay")), "Find the liver", command.out, command.overwrite))


def segment(command: Segment) -> int:
    """Run one episode with a live view, then write its files. Returns the exit code."""
    _check_out(command.out, command.overwrite)
    from ibisagent.images import load_mask, load_picture
    from ibisagent.types import Outcome

    where: dict[str, Any] = {"frame": command.frame, "axis": command.axis, "index": command.index}
    picture = load_picture(command.image, window=command.window, **where)

    def read_mask(path: Path) -> Mask:
        return load_mask(path, (picture.height, picture.width), picture=command.image, **where)

    start = read_mask(Path(command.pair.start)) if command.pair.start not in STARTS else None
    truth = read_mask(command.truth) if command.truth else None
    from ibisagent.agent import make_sample

    sample = replace(make_sample(picture, command.instruction, start), truth=truth)
    with screen.status("loading policy and tool"):
        agent = load_pair(command.pair, {sample.sample_id: truth} if truth is not None else None)
    screen.print(
        f"[bold]{escape(sample.instruction)}[/]  ({escape(agent.policy.name)} with {escape(agent.tool.name)})"
    )
    for assumption in picture.assumptions:
        screen.print(f"  assumed: {escape(assumption)}", style="dim")
    episode = _run(agent, sample)
    paths = _write(episode, command.out)
    _summary(episode, paths)
    if episode.outcome is Outcome.NONE:
        return 3
    return 0 if episode.status == "terminated" else 4


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("--out is a folder", "a file", "name another folder")
    if not overwrite and any((out / name).exists() for name in RESULT_FILES):
        raise InputError(
            "results of an earlier run are not replaced unasked",
            "a folder that holds some",
            "name another --out or add --overwrite",
        )


def _run(agent: Agent, sample: Sample) -> Episode:
    """Show each turn as it is taken. The first Ctrl-C ends the episode and keeps what stands."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        for event in agent.stream([sample], cancelled=stopped.is_set):
            if event.start is not None:
                _show_start(event.start)
            if event.turn is not None:
                _show_turn(event.turn)
            if event.episode is not None:
                return event.episode
    finally:
        signal.signal(signal.SIGINT, before)
    raise AssertionError("a rollout ends with its episode")


def _show_start(start: Start) -> None:
    kinds = {"none": "the bare picture", "proposal": "the tool's proposal", "file": "the mask given"}
    size = "" if start.mask is None else f": {100 * start.mask.mean():.1f} % of the picture"
    score = "" if start.score is None else f", tool's own score {start.score:.2f}"
    screen.print(f"[bold]start[/]   {kinds[start.kind]}{size}{score}")


def _show_turn(turn: Turn) -> None:
    from ibisagent.actions import format_action

    for attempt in turn.attempts[:-1]:
        screen.print(f"  [yellow]not executed ({attempt.failure}):[/] {escape(attempt.text[:200])}")
    action = format_action(turn.action) if turn.action is not None else "no action"
    size = "no mask" if turn.mask is None else f"mask {100 * turn.mask.mean():.1f} % of the picture"
    score = "" if turn.score is None else f", tool's own score {turn.score:.2f}"
    screen.print(f"[bold]turn {turn.number}[/]  {escape(turn.think or '')}")
    seconds = turn.policy_seconds + turn.tool_seconds
    screen.print(f"        [green]{escape(action)}[/]  ->  {size}{score}  [dim]{seconds:.2f} s[/]")
    if turn.note:
        screen.print(f"        [yellow]{escape(turn.note)}[/]")


def _write(episode: Episode, out: Path) -> dict[str, Path]:
    import numpy as np
    from PIL import Image

    from ibisagent import render
    from ibisagent.episodes import write_episodes
    from ibisagent.report import episode_html

    with writing_to("--out is a folder"):
        out.mkdir(parents=True, exist_ok=True)
        for name in RESULT_FILES:
            (out / name).unlink(missing_ok=True)
        paths = {}
        if episode.mask is not None:
            paths["mask"] = out / "mask.png"
            Image.fromarray(episode.mask.astype(np.uint8) * 255).save(paths["mask"])
            paths["overlay"] = out / "overlay.png"
            Image.fromarray(render.paint(episode.picture.pixels, episode.mask)).save(paths["overlay"])
        paths["episode"] = out / "episode.jsonl"
        write_episodes(paths["episode"], [episode])
        paths["report"] = out / "report.html"
        paths["report"].write_text(episode_html(episode), encoding="utf-8")
    return paths


def _summary(episode: Episode, paths: dict[str, Path]) -> None:
    from ibisagent.report import DISCLAIMER

    color = {"segmented": "green", "absent": "blue", "none": "red"}[episode.outcome]
    screen.print(f"[bold {color}]{episode.outcome}[/] ({episode.status})  {escape(episode.message)}")
    if episode.answer:
        screen.print(f"  {escape(episode.answer)}")
    if episode.truth is not None and episode.mask is not None:
        from ibisagent.masks import iou
        from ibisagent.metrics import dice

        same = dice(episode.truth, episode.mask)
        known = f"IoU {iou(episode.mask, episode.truth):.3f}, Dice {same:.3f}"
        screen.print(f"  with the true mask: {known}")
    if episode.picture.laterality == "assumed":
        screen.print("  Left and right are assumed; see the report.", style="dim")
    for name, path in paths.items():
        print(f"{name}: {path}")
    screen.print(DISCLAIMER, style="dim")


# --- replay -----------------------------------------------------------------------------------


def replay_command(command: Replay) -> int:
    """Replay every episode of a log; exit code 0 where all masks are verified, else 1."""
    from PIL import Image

    from ibisagent.episodes import read_episodes
    from ibisagent.replay import observed_pictures, replay
    from ibisagent.tools import load_tool

    if command.out is not None:
        out_folder(command.out)
    table = Table("episode", "masks", "lowest IoU", "verdict")
    tools: dict[tuple[str, float | None], Tool] = {}
    all_verified = True
    for number, episode in enumerate(read_episodes(_log(command.episode))):
        spec, recorded = command.tool, episode.fingerprint.get("tool", {})
        if spec == "recorded":
            spec = str(recorded.get("name"))
            if spec not in ("classical", "embedded"):
                raise InputError(
                    "only tools that ship with ibisagent are found by their recorded name",
                    spec,
                    "name the weights with --tool",
                )
        percent = recorded.get("point_to_box")
        if (spec, percent) not in tools:
            made = load_tool(spec, device=command.device, dtype=command.dtype, point_to_box=percent)
            tools[spec, percent] = made
        result = replay(episode, tools[spec, percent])
        lowest = f"{min(mask.iou for mask in result.masks):.4f}" if result.masks else "-"
        how = "bit-exact" if all(mask.exact for mask in result.masks) else "IoU >= 0.999"
        how = how if result.masks else "no mask to compare"
        verdict = f"verified ({how})" if result.verified else "NOT THE SAME"
        for difference in result.tool_differences:
            verdict += f"\ntool {difference}"
        table.add_row(
            f"{number} {escape(episode.sample_id)}", str(len(result.masks)), lowest, escape(verdict)
        )
        all_verified &= result.verified
        if command.out is not None:
            for turn, pixels in enumerate(observed_pictures(episode)):
                Image.fromarray(pixels).save(command.out / f"{number}-{turn}.png")
    if not table.row_count:
        raise InputError("an episode log holds at least one episode", "none")
    screen.print(table)
    return 0 if all_verified else 1


def _log(place: Path) -> Path:
    """The one log to replay; of a folder its episode.jsonl. Raises InputError where another is meant."""
    if not place.is_dir():
        return place
    logs = sorted(place.glob("episode.jsonl")) or sorted(place.glob("*.jsonl"))
    if len(logs) == 1:
        return logs[0]
    trajectories = [log for log in logs if log.name.startswith("trajectories-")]
    raise InputError(
        "replay reads one log, which `segment` calls episode.jsonl",
        f"a folder with {len(logs) or 'no'} logs",
        f"name one of its files, such as {trajectories[0].name}" if trajectories else "name the log itself",
    )


def doctor_command(command: Doctor) -> int:
    """What runs here; exit code 0 where the main job does."""
    from ibisagent.doctor import doctor

    return doctor(screen)


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "segment": (Segment, segment),
    "demo": (Demo, demo),
    "replay": (Replay, replay_command),
    "data check": (check.Check, check.run),
    "data view": (gallery.View, gallery.run),
    "synthesize": (synthesize.Synthesize, synthesize.run),
    "export": (export.Export, export.run),
    "import": (importers.Import, importers.run),
    "train audit": (audit.TrainAudit, audit.run),
    "train sft": (sft.TrainSft, sft.run),
    "train rl": (grpo.TrainRl, grpo.run),
    "train merge": (qwen_folder.TrainMerge, qwen_folder.run),
    "train plan": (plan.TrainPlan, plan.run),
    "evaluate": (evaluate.Evaluate, evaluate.run),
    "compare": (compare.Compare, compare.run),
    "baselines": (baselines_table.Baselines, baselines_table.run),
    "clicks": (clicks_run.Clicks, clicks_run.run),
    "human-clicks": (human_clicks.HumanClicks, human_clicks.run),
    "robustness": (robustness.Robustness, robustness.run),
    "tool-swap": (tool_swap.ToolSwap, tool_swap.run),
    "vqa": (vqa_run.Vqa, vqa_run.run),
    "doctor": (Doctor, doctor_command),
}


if __name__ == "__main__":
    sys.exit(main())
