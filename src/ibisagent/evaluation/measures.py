"""The metrics of a run, each as columns per case and a statistic of their sums.

Policies. `empty` says what IoU and Dice are where both masks are empty. `missing` says what a case
without a prediction (outcome none) counts: "zero", or "skip" (left out, with the episode's status
as reason). Metrics of overlap, surfaces, objects and clicks are over cases whose target is
present; where absent targets were asked for, "IoU with absent targets" is over all cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ibisagent import metrics
from ibisagent.evaluation.by_turn import GOOD, verdict_columns
from ibisagent.evaluation.collector import Collector, Measure, Policies
from ibisagent.evaluation.intervals import mean, mean_columns
from ibisagent.evaluation.scoring import TOLERANCE, CaseScore
from ibisagent.metrics import CLICK_LIMIT, OBJECT_IOU

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of precision
GOALS = (0.80, 0.85, 0.90)  # of NoC


def measures(cases: Sequence[CaseScore], policies: Policies) -> list[Measure]:
    """Every metric over `cases`, in the order in which tables show them."""
    found = Builder(cases, policies)
    ious, dices = found.overlaps("iou"), found.overlaps("dice")
    found.means("mean IoU", ious)
    found.grouped("set-macro IoU", ious, [case.dataset for case in cases])
    found.grouped("class-macro IoU", ious, [case.target for case in cases])
    found.pooled("cIoU", lambda case: (case.intersection, _union(case)))
    found.means("mean Dice", dices)
    found.grouped("set-macro Dice", dices, [case.dataset for case in cases])
    found.grouped("class-macro Dice", dices, [case.target for case in cases])
    found.pooled("cDice", lambda case: (2 * case.intersection, case.truth_pixels + _predicted(case)))
    for threshold in THRESHOLDS:
        reached = [None if value is None else float(value >= threshold) for value in ious]
        found.means(f"precision@{threshold:g}", reached)
    found.surfaces()
    found.objects()
    for goal in GOALS:
        clicks = [metrics.number_of_clicks(case.ious_by_click() or (0.0,), goal) for case in cases]
        found.means(f"NoC@{100 * goal:.0f}", [float(n) for n, _ in clicks], "clicks", "lower")
        failed = [float(not reached) for _, reached in clicks]
        found.means(f"failures of NoC@{100 * goal:.0f}", failed, better="lower")
    found.means(f"area under IoU to {CLICK_LIMIT} clicks", [_area(case) for case in cases])
    found.clicks()
    found.calibration()
    found.verdicts()
    found.presence()
    found.means("turns", [float(case.turns) for case in cases], "turns", "lower")
    found.means("tokens", [float(case.tokens) for case in cases], "tokens", "lower")
    found.means(
        "seconds of policy and tool",
        [case.policy_seconds + case.tool_seconds for case in cases],
        "s",
        "lower",
    )
    return found.measures


class Builder(Collector):
    """The metrics, by topic."""

    def surfaces(self) -> None:
        """NSD, HD95 and ASSD in millimetres and in pixels, wherever there are some."""
        units = {case.surface.unit for case in self.cases if case.surface} or {"px"}
        for unit in sorted(units):
            found = [
                case.surface if case.surface and case.surface.unit == unit else None for case in self.cases
            ]
            why = f"a mask is empty, or distances are not in {unit}"
            self.means(
                f"NSD at {TOLERANCE:g} {unit}", [None if s is None else s.nsd for s in found], otherwise=why
            )
            self.means(f"HD95 ({unit})", [None if s is None else s.hd95 for s in found], unit, "lower", why)
            self.means(f"ASSD ({unit})", [None if s is None else s.assd for s in found], unit, "lower", why)

    def objects(self) -> None:
        """F1 over the objects of all cases."""
        rows = [case.objects if case.objects else (0, 0, 0) for case in self.cases]
        counts = [None if case.objects is None or self.missing(case) else 1.0 for case in self.cases]
        reasons = self.why(counts, "no prediction")
        self.add(
            f"detection F1 at IoU {OBJECT_IOU:g}, objects pooled",
            np.array(rows, float).reshape(-1, 3),
            lambda sums: metrics.f1_score(sums[..., 0], sums[..., 1], sums[..., 2]),
            reasons,
        )

    def clicks(self) -> None:
        """Where the policy clicks, and what a click brings."""
        inside = [None if c.first_click_inside is None else float(c.first_click_inside) for c in self.cases]
        self.means("first click inside", inside, otherwise="no click, or a negative one first")
        shares = [(sum(case.clicks_in_error), len(case.clicks_in_error)) for case in self.cases]
        columns = np.array(shares, float).reshape(-1, 2)
        self.add("clicks in the error, clicks pooled", columns, mean, self.reasons)
        gains = [_gain(case) for case in self.cases]
        self.means("IoU gained a turn", gains, otherwise="no turn changed a mask")

    def calibration(self) -> None:
        """ECE of the tool's own score of the result."""
        scores = [case.tool_score for case in self.cases]
        reasons = self.why(scores, "no score of the tool's own")
        qualities = [case.iou() for case in self.cases]
        columns = metrics.calibration_columns([score or 0.0 for score in scores], qualities)
        self.add("ECE of the tool's score", columns, metrics.calibration_error, reasons, better="lower")

    def verdicts(self) -> None:
        """What the policy's own estimate is worth: its Terminate, and a confidence that it states.

        Terminate claims that what stands is good enough; an episode that was cut off claims that it
        is not. As an estimate that is 1 or 0, and its quality whether the IoU reaches `GOOD`.
        """
        stopped = [case.status == "terminated" for case in self.cases]
        pairs = list(zip(self.cases, stopped, strict=True))
        ious = [case.iou() if stop else None for case, stop in pairs]
        why = "did not terminate"
        self.means("mean IoU where it terminated", ious, otherwise=why)
        reached = [None if value is None else float(value >= GOOD) for value in ious]
        self.means(f"IoU >= {GOOD:.2f} where it terminated", reached, otherwise=why)
        good, poor = verdict_columns(self.cases)
        for name, columns in ((f"IoU >= {GOOD:.2f}", good), (f"IoU < {GOOD:.2f}", poor)):
            self.add(f"stops, of turns that see a mask with {name}", columns, mean, self.reasons, better="")
        qualities = [float(case.iou() >= GOOD) for case in self.cases]
        columns = metrics.calibration_columns([float(stop) for stop in stopped], qualities)
        name = f"ECE of the verdict (terminated: IoU >= {GOOD:.2f})"
        self.add(name, columns, metrics.calibration_error, self.reasons, better="lower")
        stated = [case.stated_confidence for case in self.cases]
        if any(value is not None for value in stated):
            columns = metrics.calibration_columns(
                [value or 0.0 for value in stated], [case.iou() for case in self.cases]
            )
            reasons = self.why(stated, "no confidence stated")
            name = "ECE of the policy's stated confidence"
            self.add(name, columns, metrics.calibration_error, reasons, better="lower")

    def presence(self) -> None:
        """Is the target there at all? Positive means present; a failed case is left out.

        Hard and easy absent targets (see `cases`) are also reported apart, and so are contradictory
        words, to which a refusal is as good an answer as an empty mask.
        """
        rows, reasons = [], []
        for case in self.cases:
            said = bool(case.predicted_pixels)
            rows.append([said and case.present, said and not case.present,
                         not said and case.present, not said and not case.present])  # fmt: skip
            none = f"no prediction: {case.status}" if case.predicted_pixels is None else ""
            reasons.append(case.unreadable or none)
        columns = np.array(rows, float).reshape(-1, 4)
        self.add(
            "sensitivity (presence)",
            columns,
            lambda s: metrics.sensitivity(s[..., 0], s[..., 2]),
            [
                why or ("" if case.present else "target absent")
                for why, case in zip(reasons, self.cases, strict=True)
            ],
        )
        if all(case.present for case in self.cases):
            return
        kinds = [case.absence for case in self.cases]
        asked = [kind for kind in ("hard", "easy") if kind in kinds]
        for kind in ("", *asked):
            label = f", {kind} absent" if kind else ""
            why = [
                reason or (f"{own} absent" if kind and own not in ("", kind) else "")
                for reason, own in zip(reasons, kinds, strict=True)
            ]
            self.add(
                f"specificity (presence{label})",
                columns,
                lambda s: metrics.specificity(s[..., 3], s[..., 1]),
                [
                    reason or ("target present" if case.present else "")
                    for reason, case in zip(why, self.cases, strict=True)
                ],
            )
            self.add(
                f"MCC (presence{label})",
                columns,
                lambda s: metrics.mcc(s[..., 0], s[..., 1], s[..., 2], s[..., 3]),
                why,
            )
        if "contradictory" in kinds:
            nothing = [_nothing(case) for case in self.cases]
            why = [
                case.unreadable or ("" if value is not None else f"{case.absence or 'present'} or failed")
                for case, value in zip(self.cases, nothing, strict=True)
            ]
            self.add("contradictory words: refused or empty", mean_columns(nothing), mean, why)
        values = self.overlaps("iou")
        why = [
            case.unreadable or ("" if value is not None else self.missing(case) or "both masks empty")
            for case, value in zip(self.cases, values, strict=True)
        ]
        self.add("IoU with absent targets", mean_columns(values), mean, why)


def _nothing(case: CaseScore) -> float | None:
    """Whether contradictory words got nothing; None for other cases and for failures."""
    if case.absence != "contradictory":
        return None
    if case.predicted_pixels is None:
        return 1.0 if case.status == "unsupported_target" else None
    return float(case.predicted_pixels == 0)


def _predicted(case: CaseScore) -> int:
    return case.predicted_pixels or 0


def _union(case: CaseScore) -> int:
    return case.truth_pixels + _predicted(case) - case.intersection


def _area(case: CaseScore) -> float:
    return metrics.click_area(case.ious_by_click() or (0.0,))


def _gain(case: CaseScore) -> float | None:
    """IoU gained per turn that may change the mask."""
    changing = sum(verb not in ("", "Terminate") for verb in case.turn_verbs)
    return (case.ious[-1] - case.ious[0]) / changing if changing else None
