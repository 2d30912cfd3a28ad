import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import disc

from ibisagent.datasets.cases import ReadOptions
from ibisagent.errors import InputError
from ibisagent.evaluation.cases import plan
from ibisagent.policies.scripted import RULES, ScriptedPolicy
from ibisagent.rewards import PAPER, SHAPED, Profile
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training import audit
from ibisagent.training.audit import Estimate, Played, Row, TrainAudit, cheats_that_win, draw_cases, estimate
from ibisagent.types import BASE_VERBS, Sample, ToolReply, ToolRequest, Verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of easy discs, 40 pictures each; the second says what is absent."""
    root = tmp_path_factory.mktemp("sets")
    noise = np.random.default_rng(3)
    for dataset in ("Discs", "Rings"):
        entries = []
        for part in ("train", "train_mask"):
            (root / dataset / part).mkdir(parents=True)
        for index in range(40):
            truth = disc(48, 48, 12 + index % 20, 14 + index % 17, 6 + index % 5)
            grey = np.clip(60 + 120 * truth + noise.normal(0, 3, (48, 48)), 0, 255).astype(np.uint8)
            name = f"p{index}_MRI_test"
            cv2.imwrite(str(root / dataset / "train" / f"{name}.png"), grey)
            cv2.imwrite(str(root / dataset / "train_mask" / f"{name}_disc.png"), truth.astype(np.uint8) * 255)
            entries.append(
                {
                    "file_name": f"{name}.png",
                    "targets": [{"target": "disc", "mask_file": f"{name}_disc.png"}],
                    "absent": ["ring", "box"] if dataset == "Rings" else [],
                }
            )
        (root / dataset / "train.json").write_text(json.dumps({"images": entries}))
    return root


def test_cases_are_drawn_evenly_and_the_same_way_again(folder: Path) -> None:
    found = plan(folder, "train", absent="hard")
    tasks, options = found.tasks, found.options
    cases = draw_cases(tasks, options, 20, 0.25, seed=1)
    assert len(cases) == len({(task.entry.key, target) for task, target in cases}) == 20
    absent = [task.entry.dataset for task, target in cases if target in ("ring", "box")]
    assert absent == ["Rings"] * 5
    present = [task.entry.dataset for task, target in cases if target == "disc"]
    assert present.count("Discs") == 8 and len(present) == 15
    assert (
        draw_cases(tasks, options, 20, 0.25, seed=1) == cases != draw_cases(tasks, options, 20, 0.25, seed=2)
    )
    assert draw_cases(tasks[::-1], options, 20, 0.25, seed=1) == cases, "the order of files says nothing"
    assert draw_cases(tasks, options, 8, 0.25, seed=1)[:6] == cases[:6], "fewer samples are a part of more"
    with pytest.raises(InputError, match="enough"):
        draw_cases(tasks, options, 1000, 0.1, seed=1)


def test_no_patient_held_out_for_validation_is_played(folder: Path) -> None:
    played = {task.entry.key for task in plan(folder, "train", absent="hard").tasks}
    held = {task.entry.key for task in plan(folder, "val").tasks}
    assert held and not held & played and len(held | played) == 80


def test_an_empty_mask_is_no_present_target(tmp_path: Path) -> None:
    """As in label maps, where most slices hold only some of the targets; a cut file is passed over."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index in range(60):
        truth = disc(40, 40, 20, 20, 9) & (index % 3 == 0)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.full((40, 40), 60 + index, np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), truth.astype(np.uint8) * 255)
    (tmp_path / "masks" / "0.png").write_bytes(b"cut")
    found = plan(tmp_path, "train", absent="hard", options=ReadOptions(target="disc"))
    cases = draw_cases(found.tasks, found.options, 12, 0.0, seed=0)
    assert len(cases) == 12 and all(sample.truth.any() for sample in audit._read(cases, found.options))
    with pytest.raises(InputError, match="enough"):
        draw_cases(found.tasks, found.options, 20, 0.0, seed=0)


def test_any_layout_is_audited(tmp_path: Path, few_rules: list[str], capsys: pytest.CaptureFixture) -> None:
    """Plain folders of pictures and masks, with the name of the target on the command line."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index in range(20):
        truth = disc(40, 40, 12 + index % 16, 14 + index % 13, 6 + index % 3)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.where(truth, 180, 60).astype(np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), truth.astype(np.uint8) * 255)
    assert audit.run(TrainAudit(data=tmp_path, samples=6, absent=0.0, target="disc")) == 0
    assert "6 training samples of 1 sets, 0 of them absent" in capsys.readouterr().out


def test_intervals_are_those_of_means_over_patients() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1.0, 0.5, 400)
    one_each = [f"p{index}" for index in range(400)]
    found = estimate(values.tolist(), ["set"] * 400, one_each, seed=0)
    assert found.mean == pytest.approx(values.mean())
    expected = 2 * 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(expected, rel=0.1)
    assert (found.low + found.high) / 2 == pytest.approx(found.mean, abs=expected / 10)
    # four cases of one patient that say the same are one witness, not four
    repeated = np.repeat(values[:100], 4).tolist()
    patients = np.repeat(one_each[:100], 4).tolist()
    alike = estimate(repeated, ["set"] * 400, patients, seed=0)
    apart = estimate(repeated, ["set"] * 400, one_each, seed=0)
    assert (alike.high - alike.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.15)


def test_sets_are_strata() -> None:
    values, sets = [0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10
    patients = [str(index) for index in range(20)]
    assert estimate(values, sets, patients, 0) == Estimate(0.5, 0.5, 0.5)


def row(rule: str, mean: float, half: float) -> Row:
    return Row(rule, {"shaped": Estimate(mean, mean - half, mean + half)}, 0.0, 0.0, 0.0, 0)


def test_a_cheat_wins_where_the_intervals_touch() -> None:
    rows = [row("oracle", 0.6, 0.1), row("far", 0.3, 0.1), row("near", 0.45, 0.1), row("above", 0.9, 0.1)]
    assert cheats_that_win(rows, "shaped") == ["near", "above"]


def test_a_remembered_answer_changes_no_episode(sample: Sample) -> None:
    rules = ["oracle", "never-stop", "click-then-undo", "one-good-then-noise"]
    settings = Settings(max_turns=6, verbs=BASE_VERBS | {Verb.UNDO})
    played = audit.play([sample], rules, ClassicalTool(), settings)
    for rule in rules:
        policy = ScriptedPolicy(rule, RULES[rule], {sample.sample_id: sample.truth})
        [episode] = collect(rollout([sample], policy, ClassicalTool(), settings))
        assert played[rule] == [audit._played(sample, episode)]


class _Broken(ClassicalTool):
    def predict(self, requests: list[ToolRequest]) -> list[ToolReply]:
        return [ToolReply(error="The server is gone.") for _ in requests]


def test_tool_errors_are_left_out_and_counted(sample: Sample) -> None:
    played = audit.play([sample], ["image-centre", "stop-at-once"], _Broken(), Settings())
    assert played["image-centre"][0].rewards is None and played["stop-at-once"][0].rewards is not None
    good = Played("set", "p", {"shaped": 0.5, "paper": 0.7}, 0.5, 2, True)
    summed = audit.summarise("image-centre", [good, *played["image-centre"]], seed=0)
    assert summed.excluded == 1 and summed.rewards["shaped"].mean == 0.5 and summed.turns == 2
    with pytest.raises(InputError, match="tool errors"):
        audit.summarise("image-centre", played["image-centre"], seed=0)


@pytest.fixture
def few_rules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Quick ones; the discs here are so easy that a first click anywhere inside is the best one."""
    names = ["oracle", "noisy-oracle", "stop-at-once", "repeated-click", "alternate-signs"]
    monkeypatch.setattr("ibisagent.policies.scripted.RULES", {name: RULES[name] for name in names})
    return names


def test_the_audit_passes_with_the_default_profile(
    folder: Path, few_rules: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.run(TrainAudit(samples=20, absent=0.1, data=folder)) == 0
    shown = capsys.readouterr().out
    assert "20 training samples of 2 sets, 2 of them absent" in shown
    assert "shaped (default): cheats whose interval reaches the oracle's: none" in shown
    assert [name in shown for name in few_rules] == [True, False, True, True, True]


def test_the_audit_fails_where_a_cheat_wins(
    folder: Path, few_rules: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paid_by_the_turn = Profile("shaped", {"turn_cost": -1.0}, "sum")
    monkeypatch.setattr(audit, "PROFILES", {"shaped": paid_by_the_turn, "paper": PAPER})
    assert audit.run(TrainAudit(samples=4, absent=0.0, data=folder)) == 1
    assert "the oracle's: repeated-click, alternate-signs" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"samples": 0}, {"absent": 1.0}, {"max_turns": 0}])
def test_options_that_make_no_sense_are_refused(folder: Path, options: dict) -> None:
    with pytest.raises(InputError, match="at least 1"):
        audit.run(TrainAudit(data=folder, **options))


def test_on_real_pictures_the_oracle_earns_most(data_root: Path) -> None:
    """A sample of what `ibisagent train audit` plays in full."""
    found = plan(data_root, "train", absent="hard")
    cases = draw_cases(found.tasks, found.options, 5, 0.2, seed=0)
    assert sum(target in task.entry.absent for task, target in cases) == 1
    rules = ["oracle", "stop-at-once", "image-centre", "click-then-undo"]
    played = audit.play(
        audit._read(cases, found.options), rules, ClassicalTool(), Settings(verbs=BASE_VERBS | {Verb.UNDO})
    )
    rows = [audit.summarise(rule, played[rule], seed=0) for rule in rules]
    best = rows[0].rewards[SHAPED.name].mean
    assert all(best > one.rewards[SHAPED.name].mean + 0.1 for one in rows[1:])
