"""Scores made up by seed, as a run writes them, for tests that need many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ibisagent.evaluation.samples import RUN_SCHEMA, write_json
from ibisagent.evaluation.scoring import CaseScore, Surface, to_record


def made_up(seed: int = 0, cases: int = 60, shift: float = 0.0) -> list[CaseScore]:
    """Cases of three sets, two to a patient; every seventh target is absent, every tenth fails.

    `shift` moves the IoU of the present ones; truth and names depend on `cases` alone.
    """
    rng = np.random.default_rng(seed)
    made = []
    for index in range(cases):
        present, failed = index % 7 != 3, index % 10 == 4
        iou = float(np.clip(rng.beta(5, 2) + shift, 0.01, 0.99)) if present else 0.0
        truth = 1000 + 7 * index if present else 0
        inside = round(2 * truth * iou / (1 + iou))  # prediction as large as truth
        verbs = tuple(rng.choice(["Positive Point", "Negative Point"], int(rng.integers(1, 5))))
        steps = np.linspace(0.0, iou, len(verbs) + 2) if present else np.ones(len(verbs) + 2)
        made.append(
            CaseScore(
                case=f"S{index % 3}/{index:012x}/t{index % 4}",
                dataset=f"S{index % 3}",
                split="test",
                target=f"t{index % 4}",
                modality="CT" if index % 3 else None,
                site=None,
                patient=f"{index // 6:012x}",
                present=present,
                status="tool_error" if failed else "terminated",
                outcome="none" if failed else "segmented" if present else "absent",
                truth_pixels=truth,
                predicted_pixels=None if failed else truth,
                intersection=0 if failed else inside,
                surface=Surface("px", iou, 5 * (1 - iou), 2 * (1 - iou)) if present and not failed else None,
                objects=(0, 0, int(present))
                if failed
                else (int(iou >= 0.5), int(iou < 0.5), int(present and iou < 0.5)),
                ious=tuple(float(step) for step in steps),
                turn_verbs=(*(str(verb) for verb in verbs), "Terminate"),
                clicks_in_error=tuple(bool(value) for value in rng.random(len(verbs)) < 0.8),
                first_click_inside=bool(rng.random() < 0.9) if verbs[0].startswith("Pos") else None,
                tool_score=float(rng.random()),
                tokens=int(rng.integers(10, 60)),
                seconds=float(rng.random()),
                policy_seconds=float(rng.random()),
                tool_seconds=0.125,
            )
        )
    return made


def write_run(folder: Path, scores: Sequence[CaseScore], policy: str = "made-up") -> Path:
    """A result folder without episodes."""
    folder.mkdir(parents=True)
    lines = [json.dumps({**to_record(score), "episode": None}) + "\n" for score in scores]
    (folder / "samples.jsonl").write_text("".join(lines))
    pair = {
        "policy": policy,
        "tool": "none",
        "settings": {"start": "none", "max_turns": 20},
        "fingerprint": {},
    }
    data = {"split": "test", "cases": len(scores), "case_list": "0", "instruction": "Find the {target}."}
    write_json(folder / "run.json", {"schema": RUN_SCHEMA, "data": data, "pair": pair})
    return folder


def unreadable(score: CaseScore, reason: str) -> CaseScore:
    """The case as if its picture could not be read."""
    names = ("case", "dataset", "split", "target", "modality", "site", "patient")
    return CaseScore(**{name: getattr(score, name) for name in names}, unreadable=reason)


def renamed(score: CaseScore, **changes: object) -> CaseScore:
    return replace(score, **changes)  # type: ignore[arg-type]
