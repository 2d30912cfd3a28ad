"""Aggregates against plain loops over the same cases."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scores import made_up, unreadable

from ibisagent.evaluation.collector import Metric, Policies
from ibisagent.evaluation.measures import measures
from ibisagent.evaluation.scoring import CaseScore, from_record, to_record
from ibisagent.evaluation.summary import resampler_of, summarize


def found(cases: list[CaseScore], policies: Policies | None = None) -> dict[str, Metric]:
    resampler = resampler_of(cases)
    return {m.name: m.evaluate(resampler) for m in measures(cases, policies or Policies())}


CASES = made_up()
PRESENT = [case for case in CASES if case.present]
FAILED = [case for case in PRESENT if case.predicted_pixels is None]


def iou(case: CaseScore) -> float:
    if case.predicted_pixels is None:
        return 0.0
    return case.intersection / (case.truth_pixels + case.predicted_pixels - case.intersection)


def test_overlap_aggregates_equal_plain_loops() -> None:
    metrics = found(CASES)
    ious = [iou(case) for case in PRESENT]
    assert metrics["mean IoU"].value == pytest.approx(np.mean(ious), abs=1e-12)
    for name, key in (("set-macro IoU", "dataset"), ("class-macro IoU", "target")):
        groups = sorted({getattr(case, key) for case in PRESENT})
        means = [np.mean([iou(c) for c in PRESENT if getattr(c, key) == group]) for group in groups]
        assert metrics[name].value == pytest.approx(np.mean(means), abs=1e-12)
    unions = [c.truth_pixels + (c.predicted_pixels or 0) - c.intersection for c in PRESENT]
    inside = sum(c.intersection for c in PRESENT)
    assert metrics["cIoU"].value == pytest.approx(inside / sum(unions), abs=1e-12)
    sizes = sum(c.truth_pixels + (c.predicted_pixels or 0) for c in PRESENT)
    assert metrics["cDice"].value == pytest.approx(2 * inside / sizes, abs=1e-12)
    dices = [2 * i / (1 + i) for i in ious]
    assert metrics["mean Dice"].value == pytest.approx(np.mean(dices), abs=1e-12)
    assert metrics["mean Dice"].value < 2 * np.mean(ious) / (1 + np.mean(ious))  # Jensen
    for threshold in (0.5, 0.8):
        assert metrics[f"precision@{threshold}"].value == pytest.approx(
            np.mean([i >= threshold for i in ious])
        )
    assert metrics["mean IoU"].left_out == {"target absent": len(CASES) - len(PRESENT)}
    for metric in metrics.values():
        assert metric.n + sum(metric.left_out.values()) == len(CASES), metric.name


def test_a_missing_prediction_counts_0_or_is_left_out_with_its_status() -> None:
    skipped = found(CASES, Policies(missing="skip"))
    metric = skipped["mean IoU"]
    assert metric.n == len(PRESENT) - len(FAILED)
    assert metric.left_out["no prediction: tool_error"] == len(FAILED)
    assert metric.value == pytest.approx(np.mean([iou(c) for c in PRESENT if c not in FAILED]), abs=1e-12)
    assert skipped["cIoU"].n == metric.n
    assert found(CASES)["mean IoU"].n == len(PRESENT)


def test_surfaces_objects_and_clicks_equal_plain_loops() -> None:
    metrics = found(CASES)
    surfaces = [case.surface for case in PRESENT if case.surface]
    assert metrics["HD95 (px)"].value == pytest.approx(np.mean([s.hd95 for s in surfaces]), abs=1e-12)
    assert metrics["NSD at 2 px"].n == len(surfaces) and metrics["HD95 (px)"].better == "lower"
    f1s = []
    for missing, cases in (("zero", PRESENT), ("skip", [case for case in PRESENT if case not in FAILED])):
        tp, fp, fn = np.sum([case.objects for case in cases], axis=0)
        f1 = found(CASES, Policies(missing=missing))["detection F1 at IoU 0.5, objects pooled"]
        assert f1.value == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12) and f1.n == len(cases)
        f1s.append(f1.value)
    assert f1s[0] < f1s[1], "what an episode without a result has not found is missed"
    inside = [case.first_click_inside for case in PRESENT if case.first_click_inside is not None]
    assert metrics["first click inside"].value == pytest.approx(np.mean(inside), abs=1e-12)
    shares = [flag for case in PRESENT for flag in case.clicks_in_error]
    assert metrics["clicks in the error, clicks pooled"].value == pytest.approx(np.mean(shares), abs=1e-12)
    clicks = []
    for case in PRESENT:
        reached = [step for step, value in enumerate(case.ious_by_click()) if value >= 0.8]
        clicks.append(reached[0] if reached else 20)
    assert metrics["NoC@80"].value == pytest.approx(np.mean(clicks), abs=1e-12)
    assert metrics["failures of NoC@80"].value == pytest.approx(np.mean([n == 20 for n in clicks]), abs=1e-12)


def test_presence_leaves_failures_out_and_counts_positive_as_present() -> None:
    metrics = found(CASES)
    said = [(bool(c.predicted_pixels), c.present) for c in CASES if c.predicted_pixels is not None]
    tp, fn = sum(s and p for s, p in said), sum(p and not s for s, p in said)
    assert metrics["sensitivity (presence)"].value == pytest.approx(tp / (tp + fn))
    assert metrics["specificity (presence)"].value == 1.0
    assert metrics["sensitivity (presence)"].n == sum(p for _, p in said)
    assert metrics["specificity (presence)"].n == sum(not p for _, p in said)
    assert metrics["MCC (presence)"].value == pytest.approx(1.0)
    lied = [replace(c, predicted_pixels=9) if not c.present and c.predicted_pixels == 0 else c for c in CASES]
    assert found(lied)["specificity (presence)"].value == 0.0
    assert found(lied)["IoU with absent targets"].value < metrics["IoU with absent targets"].value
    assert "specificity (presence)" not in found(PRESENT)


@pytest.mark.parametrize(("empty", "counts"), [("one", 1.0), ("zero", 0.0), ("skip", None)])
def test_the_policy_for_empty_masks_is_named_and_kept(empty: str, counts: float | None) -> None:
    policies = Policies(empty=empty)  # type: ignore[arg-type]
    metric = found(CASES, policies)["IoU with absent targets"]
    values = [iou(c) if c.present else 0.0 if c.predicted_pixels is None else counts for c in CASES]
    kept = [value for value in values if value is not None]
    assert metric.value == pytest.approx(np.mean(kept), abs=1e-12) and metric.n == len(kept)
    assert summarize(CASES, policies)["policies"]["empty"] == empty


def test_order_changes_nothing_and_unreadable_cases_are_named() -> None:
    cases = [*CASES[:-1], unreadable(CASES[-1], "the picture is a readable file")]
    mixed = cases.copy()
    random.Random(1).shuffle(mixed)
    summary = summarize(cases)
    assert summarize(mixed) == summary
    assert summary["cases"]["unreadable"] == 1
    for metric in summary["metrics"]:
        assert metric["left_out"]["the picture is a readable file"] == 1
        assert metric["value"] is None or math.isfinite(metric["value"])


def test_tables_by_group_and_curves_are_means_of_their_cases() -> None:
    summary = summarize(CASES)
    assert set(summary["by_set"]) == {"S0", "S1", "S2"} and set(summary["by_modality"]) == {"CT", "unknown"}
    own = [iou(case) for case in PRESENT if case.dataset == "S1"]
    row = summary["by_set"]["S1"]["mean IoU"]
    assert row["value"] == pytest.approx(np.mean(own), abs=1e-12) and row["n"] == len(own)
    assert row["low"] <= row["value"] <= row["high"]
    last = [case.ious[-1] for case in PRESENT]
    assert summary["iou_by_turn"][-1] == pytest.approx(np.mean(last), abs=1e-12)
    assert summary["iou_by_turn"][0] == 0.0


def test_a_score_survives_its_line() -> None:
    for case in [*CASES, unreadable(CASES[0], "why")]:
        kept = from_record(to_record(case))
        assert replace(kept, policy_seconds=0, seconds=0) == replace(case, policy_seconds=0, seconds=0)


def test_undo_counts_with_the_click_before_it() -> None:
    case = replace(
        CASES[0],
        ious=(0.0, 0.5, 0.2, 0.5, 0.9, 0.9),
        turn_verbs=("Positive Point", "Negative Point", "Undo", "Box", "Terminate"),
    )
    assert case.ious_by_click() == (0.0, 0.5, 0.5, 0.9) and case.clicks == 3 and case.turns == 5
