"""Best of n sampled episodes: for each case one of n results, chosen by a named rule.

By the tool's own score: what a user can do. By agreement: the result most like the others, so the
policy's own choice without the tool. The oracle's choice: the highest IoU with the true mask, an
upper bound that nobody can reach without it. Seconds and tokens are those of all n episodes.

The agreement of a result with the others (mean IoU) is also the only estimate of its own that a
policy that writes text gives without being asked; its calibration error is reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ibisagent import metrics
from ibisagent.evaluation.collector import Policies
from ibisagent.evaluation.intervals import mean, mean_columns
from ibisagent.evaluation.samples import RUN, SAMPLES, read_lines, read_run
from ibisagent.evaluation.scoring import CaseScore, from_record
from ibisagent.evaluation.summary import SCHEMA, resampler_of, summarize
from ibisagent.files import write_json
from ibisagent.masks import decode_rle

COSTS = ("tokens", "seconds", "policy_seconds", "tool_seconds")  # summed over the n episodes


@dataclass(frozen=True)
class Candidate:
    """One of the n results of a case."""

    score: CaseScore
    agreement: float  # mean IoU with the other results; 1 where there is none

    def by_tool(self) -> float:
        """The tool's own score; a result without one comes last."""
        value = self.score.tool_score
        return -math.inf if value is None else value

    def by_agreement(self) -> float:
        """How much it is like the others."""
        return self.agreement

    def by_oracle(self) -> float:
        """IoU with the true mask."""
        return self.score.iou()


RULES: dict[str, Callable[[Candidate], float]] = {
    "by the tool's own score": Candidate.by_tool,
    "by agreement": Candidate.by_agreement,
    "by the oracle (upper bound)": Candidate.by_oracle,
}


def read_candidates(folders: Sequence[Path]) -> dict[str, list[Candidate]]:
    """Per case the results of all runs, in the order of `folders`; only whole cases."""
    found: dict[str, list[tuple[CaseScore, Any]]] = {}
    for folder in folders:
        for line in read_lines(folder):
            mask = line["episode"] and line["episode"]["result"]["mask"]
            found.setdefault(line["case"], []).append((from_record(line), mask))
    return {
        case: [
            Candidate(score, agreement)
            for (score, _), agreement in zip(results, _agreements([m for _, m in results]), strict=True)
        ]
        for case, results in sorted(found.items())
        if len(results) == len(folders)
    }


def _agreements(codes: Sequence[Any]) -> list[float]:
    """Mean IoU of each mask with the others; a missing one agrees with nothing."""
    masks = [None if code is None else decode_rle(code) for code in codes]
    if len(masks) < 2:
        return [1.0] * len(masks)
    table = [[0.0] * len(masks) for _ in masks]
    for one in range(len(masks)):
        for other in range(one):
            first, second = masks[one], masks[other]
            if first is not None and second is not None:
                table[one][other] = table[other][one] = metrics.iou(first, second) or 0.0
    return [sum(row) / (len(masks) - 1) for row in table]


def chosen(candidates: Sequence[Candidate], rule: str) -> int:
    """Which one a rule takes; of equal ones the first."""
    values = [RULES[rule](candidate) for candidate in candidates]
    return values.index(max(values))


def write_best(folders: Sequence[Path], out: Path, rule: str, policies: Policies) -> dict[str, Any]:
    """Write the result folder of one rule over the runs in `folders` (n seeds); its summary."""
    found = read_candidates(folders)
    picks = {case: chosen(candidates, rule) for case, candidates in found.items()}
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{SAMPLES}.part"
    scores = []
    with temporary.open("w", encoding="utf-8") as lines:
        for number, folder in enumerate(folders):
            for line in read_lines(folder):
                if picks.get(line["case"]) != number:
                    continue
                for key in COSTS:
                    line[key] = round(sum(getattr(c.score, key) for c in found[line["case"]]), 6)
                scores.append(from_record(line))
                lines.write(json.dumps({**line, "chosen": number}, separators=(",", ":")) + "\n")
    temporary.replace(out / SAMPLES)
    run = read_run(folders[0]) or {}
    name = f"best of {len(folders)} {rule} ({run['pair']['policy']})"
    run = {**run, "pair": {**run["pair"], "policy": name}}
    write_json(out / RUN, run)
    summary = {"schema": SCHEMA, "run": run, **summarize(scores, policies)}
    write_json(out / "summary.json", summary)
    return summary


def agreement_facts(folders: Sequence[Path]) -> dict[str, Any]:
    """How well agreement tells quality, as plain JSON values.

    Over all n results of the cases whose target is present: mean agreement, mean IoU, and the
    calibration error of the one as an estimate of the other, with intervals.
    """
    pairs = [
        candidate
        for candidates in read_candidates(folders).values()
        for candidate in candidates
        if candidate.score.present and not candidate.score.unreadable
    ]
    resampler = resampler_of([candidate.score for candidate in pairs])
    agreements = [candidate.agreement for candidate in pairs]
    ious = [candidate.score.iou() for candidate in pairs]
    columns = metrics.calibration_columns(agreements, ious)
    figures = {
        "mean agreement": resampler.interval(mean_columns(agreements), mean),
        "mean IoU": resampler.interval(mean_columns(ious), mean),
        "ECE of the agreement": resampler.interval(columns, metrics.calibration_error),
    }
    return {name: {**asdict(interval), "n": len(pairs), "unit": ""} for name, interval in figures.items()}
