import numpy as np
import pytest
from scores import made_up, renamed

from ibisagent.evaluation.by_turn import by_turn, turns_of
from ibisagent.evaluation.collector import Policies
from ibisagent.evaluation.intervals import Resampler
from ibisagent.evaluation.measures import measures
from ibisagent.evaluation.scoring import from_record, stated_confidence, to_record
from ibisagent.evaluation.summary import resampler_of


def case(ious: tuple[float, ...], verbs: tuple[str, ...], hits: tuple[bool, ...], **more: object):
    changes = {"ious": ious, "turn_verbs": verbs, "clicks_in_error": hits, "status": "terminated", **more}
    return renamed(made_up()[0], **changes)


PLUS, MINUS, STOP = "Positive Point", "Negative Point", "Terminate"
CASES = [
    case((0.0, 0.6, 0.9, 0.9), (PLUS, MINUS, STOP), (True, False), case="S0/a"),
    case((0.85, 0.85), (STOP,), (), case="S0/b"),
    case((0.2, 0.1, 0.2, 0.2), (PLUS, "Undo", STOP), (False,), case="S0/c"),
    case((0.3, 0.3), (STOP,), (), case="S0/d", present=False),
]


def test_each_turn_is_counted_by_hand() -> None:
    first, second, third = by_turn(CASES, Resampler(["s"] * 4, ["p", "q", "r", "t"]))
    assert (first["cases"], second["cases"], third["cases"]) == (3, 2, 2)
    assert first["clicks in the error"]["value"] == 0.5 and first["clicks in the error"]["n"] == 2
    assert first["gain"]["value"] == pytest.approx((0.6 - 0.1) / 2)
    assert first["IoU it stops on"]["value"] == 0.85 and first["stops with IoU >= 0.80"]["n"] == 1
    assert second["clicks in the error"]["n"] == 1, "an Undo is no click"
    assert second["gain"]["value"] == pytest.approx((0.3 + 0.1) / 2) and second["IoU rose"]["value"] == 1.0
    assert third["IoU it stops on"]["value"] == pytest.approx((0.9 + 0.2) / 2)
    assert third["stops with IoU >= 0.80"]["value"] == 0.5


def test_gains_add_up_to_what_the_episodes_gained() -> None:
    for item in made_up():
        clicks = [facts for facts in turns_of(item) if facts.gain is not None]
        stop = item.ious[-1] - item.ious[-2]  # made up: the mask changes on Terminate too
        assert sum(f.gain or 0 for f in clicks) == pytest.approx(item.ious[-1] - item.ious[0] - stop)
        assert [bool(f.in_error) for f in clicks] == list(item.clicks_in_error)


def test_the_verdict_is_measured_as_the_claim_that_it_is() -> None:
    """a, b stop on good masks, c on a poor one; e is cut off at a good one."""
    counts = {"truth_pixels": 100, "predicted_pixels": 100}
    cases = [
        renamed(CASES[0], intersection=95, **counts),  # IoU 0.905
        renamed(CASES[1], intersection=92, **counts),  # 0.852
        renamed(CASES[2], intersection=33, **counts),  # 0.198
        case((0.0, 0.9, 0.9), (PLUS, PLUS), (True, True), status="turn_limit", case="S0/e",
             intersection=95, **counts),
    ]  # fmt: skip
    found = {m.name: m.evaluate(resampler_of(cases)) for m in measures(cases, Policies())}
    assert found["IoU >= 0.80 where it terminated"].value == pytest.approx(2 / 3)
    assert found["IoU >= 0.80 where it terminated"].left_out == {"did not terminate": 1}
    # turns that see a good mask: a's third, b's first, e's second; two of them stop
    assert found["stops, of turns that see a mask with IoU >= 0.80"].value == pytest.approx(2 / 3)
    assert found["stops, of turns that see a mask with IoU < 0.80"].value == pytest.approx(1 / 6)
    # terminated: three say 1, two are right; cut off: one says 0 and is good
    ece = found["ECE of the verdict (terminated: IoU >= 0.80)"].value
    assert ece == pytest.approx(3 / 4 * (1 - 2 / 3) + 1 / 4 * 1)
    assert "ECE of the policy's stated confidence" not in found


def test_a_stated_confidence_is_read_and_measured() -> None:
    for text, value in {
        "<answer> A liver. Confidence: 0.8 </answer>": 0.8,
        "I am 75 % sure that it fits.": 0.75,
        "confidence of 90%": 0.9,
        "Confidence level is 85": 0.85,
        "certainty = 1": 1.0,
        "Confidence: 0.2, later 60 percent confident": 0.6,
        "Confidence: 250": None,
        "The liver has 0.8 of the picture.": None,
    }.items():
        assert stated_confidence(text) == value, text
    counts = {"truth_pixels": 100, "predicted_pixels": 100}
    cases = [
        renamed(CASES[0], intersection=100, stated_confidence=0.75, **counts),
        renamed(CASES[1], intersection=100, stated_confidence=None, **counts),
    ]
    found = {m.name: m.evaluate(resampler_of(cases)) for m in measures(cases, Policies())}
    ece = found["ECE of the policy's stated confidence"]
    assert ece.value == pytest.approx(0.25) and ece.left_out == {"no confidence stated": 1}


def test_older_lines_without_the_new_fields_are_read() -> None:
    score = renamed(CASES[0], seconds=0.5, policy_seconds=0.25)
    record = to_record(score)
    del record["absence"], record["stated_confidence"]
    assert from_record(record) == score


def test_absent_targets_are_reported_apart() -> None:
    def absent(kind: str, said: int) -> object:
        return case((1.0, 1.0), (STOP,), (), present=False, absence=kind, truth_pixels=0,
                    predicted_pixels=said, intersection=0)  # fmt: skip

    hard, easy = [absent("hard", 0), absent("hard", 9), absent("hard", 9)], [absent("easy", 0)] * 3
    present = [case((0.5, 0.5), (STOP,), (), truth_pixels=9, predicted_pixels=said, intersection=0)
               for said in (9, 9, 9, 0)]  # fmt: skip
    cases = [renamed(item, case=f"S0/{k}") for k, item in enumerate([*present, *hard, *easy])]
    found = {m.name: m.evaluate(resampler_of(cases)) for m in measures(cases, Policies())}
    assert found["sensitivity (presence)"].value == 0.75
    assert found["specificity (presence, hard absent)"].value == pytest.approx(1 / 3)
    assert found["specificity (presence, hard absent)"].left_out == {
        "easy absent": 3, "target present": 4}  # fmt: skip
    assert found["specificity (presence, easy absent)"].value == 1.0
    assert found["specificity (presence)"].value == pytest.approx(4 / 6)
    tp, fp, fn, tn = 3, 2, 1, 1
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["MCC (presence, hard absent)"].value == pytest.approx(mcc)
