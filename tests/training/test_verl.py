"""What of the verl adapter runs without verl. The rest: benchmarks/engines_conformance.py --engine verl."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import disc
from synthesis.made_data import make_set

from ibisagent.errors import InputError, MissingExtraError, ToolError
from ibisagent.policies.scripted import fixed
from ibisagent.rewards import SHAPED, score_episode
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training import verl as adapter
from ibisagent.training.verl import IbisAgentLoop, chat_messages, compute_score, settings_from
from ibisagent.training.verl_advantage import estimate, grouped
from ibisagent.training.verl_rows import VerlRows, read_sample, run, verl_row, write_rows
from ibisagent.types import BASE_VERBS, Message, Sample, Verb

RUNS = Path(__file__).parents[2] / "runs"
CLICK = "<think> a </think> <action> Positive Point (0.4, 0.4) </action>"


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_without_verl_the_module_reads_and_names_the_requirements() -> None:
    with pytest.raises(MissingExtraError, match=r"runs/verl_requirements\.txt"):
        IbisAgentLoop(folder="somewhere")
    assert (RUNS / "verl_requirements.txt").is_file()


def test_the_yaml_names_the_class_and_its_options() -> None:
    [entry] = yaml.safe_load((RUNS / "verl_agent_loop.yaml").read_text())
    place, _, name = entry.pop("_target_").rpartition(".")
    assert (place, name, entry.pop("name")) == (adapter.__name__, "IbisAgentLoop", "ibisagent")
    known = IbisAgentLoop.__init__.__kwdefaults__.keys() | {"folder"}
    assert entry.keys() <= known
    assert settings_from(entry["settings"]) == Settings(history="all", max_turns=8, retries=1)


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
def test_a_row_is_its_sample(sample: Sample, tmp_path: Path, start: bool) -> None:
    picture = replace(sample.picture, spacing=(1.0, 0.5), laterality="known")
    mask = disc(96, 128, 66, 98, 14) if start else None
    sample = replace(sample, picture=picture, target="disc", start_mask=mask)
    row = json.loads(json.dumps(verl_row(sample, tmp_path, 3)))
    made = read_sample(row, tmp_path)
    np.testing.assert_array_equal(made.picture.pixels, picture.pixels)
    np.testing.assert_array_equal(made.truth, sample.truth)
    assert (made.start_mask is None) is not start
    assert not start or np.array_equal(made.start_mask, mask)
    assert (made.sample_id, made.instruction, made.target) == ("two-discs", sample.instruction, "disc")
    assert (made.picture.spacing, made.picture.laterality) == ((1.0, 0.5), "known")
    assert row["agent_name"] == "ibisagent" and row["extra_info"]["index"] == 3
    assert "images" not in row and len(json.dumps(row)) < 5000, "no pixels travel with a rollout"


def test_parquet_of_both_kinds(sample: Sample, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra data")
    absent = replace(sample, sample_id="absent", truth=np.zeros_like(sample.truth))
    assert write_rows([sample, absent], tmp_path, "train") == 2
    assert write_rows([sample], tmp_path, "single", single_turn=True) == 1
    rows = parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert [read_sample(row, tmp_path).sample_id for row in rows] == ["two-discs", "absent"]
    assert not read_sample(rows[1], tmp_path).truth.any()
    [single] = parquet.read_table(tmp_path / "single.parquet").to_pylist()
    assert single["agent_name"] == "single_turn_agent" and len(single["images"]) == 1
    assert single["prompt"][1]["content"].startswith("<image>Find the bright disc")
    assert len(list((tmp_path / "images").iterdir())) == 1, "one picture is one file"


def test_bad_rows_are_refused(sample: Sample, tmp_path: Path) -> None:
    row = verl_row(sample, tmp_path, 0)
    record = json.loads(row["extra_info"]["sample"])
    for wrong in ({}, {"extra_info": {"sample": "{"}}, {**row, "reward_model": {"ground_truth": "null"}}):
        with pytest.raises(InputError, match="verl_rows"):
            read_sample(wrong, tmp_path)
    outside = json.dumps(record | {"picture": "../images/secret.png"})
    with pytest.raises(InputError, match="images/NAME"):
        read_sample({**row, "extra_info": {"sample": outside}}, tmp_path)
    with pytest.raises(InputError, match="below the folder"):
        read_sample(row, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="true mask"):
        verl_row(replace(sample, truth=None), tmp_path, 0)
    with pytest.raises(InputError, match="hold no <image>"):
        verl_row(replace(sample, instruction="Find <image>"), tmp_path, 0, single_turn=True)


def test_the_command_keeps_validation_patients_apart(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra data")
    data, out, seen = make_set(tmp_path / "data", pictures=30), tmp_path / "rows", {}
    for split in ("train", "val"):
        assert run(VerlRows(data, out, split)) == 0
        rows = parquet.read_table(out / f"{split}.parquet").to_pylist()
        seen[split] = {read_sample(row, out).sample_id.rsplit("/", 1)[0] for row in rows}
    assert len(seen["train"]) + len(seen["val"]) == 30 and not seen["train"] & seen["val"]
    assert run(VerlRows(data, out, per_set=4, absent="none")) == 0
    rows = parquet.read_table(out / "train.parquet").to_pylist()
    assert len(rows) == 4 and all(read_sample(row, out).truth.any() for row in rows)


# --- rewards and advantages ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [CLICK, "hm", "<think> a </think> <action> Terminate </action>"])
def test_a_single_turn_is_a_one_turn_episode(sample: Sample, tmp_path: Path, text: str) -> None:
    row = verl_row(sample, tmp_path, 0)
    made = compute_score(
        "ibisagent", text, row["reward_model"]["ground_truth"], row["extra_info"],
        folder=str(tmp_path), tool="classical", reward_router_address=None,
    )  # fmt: skip
    settings = Settings(max_turns=1, retries=0, history="all")
    [episode] = collect(rollout([sample], fixed([text]), ClassicalTool(), settings))
    wanted = score_episode(episode, SHAPED)
    assert made["score"] == pytest.approx(wanted.total) and made["turns"] == 1
    assert all(made[name] == pytest.approx(value) for name, value in wanted.terms.items())


def test_a_failed_tool_is_no_score(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = verl_row(sample, tmp_path, 0)
    tool, _ = adapter._workshop("classical", "cpu")

    def broken(requests: object) -> None:
        raise ToolError("gone")

    monkeypatch.setattr(tool, "predict", broken)
    with pytest.raises(ToolError, match="gone"):
        compute_score(
            "", CLICK, row["reward_model"]["ground_truth"], row["extra_info"],
            folder=str(tmp_path), tool="classical",
        )  # fmt: skip


def test_advantages_by_group_are_those_of_the_method() -> None:
    torch = pytest.importorskip("torch")
    rewards, groups = [0.1, 0.5, 0.3, 0.9, 0.3, 0.7], ["a", "a", "b", "a", "b", "c"]
    wanted = [-(1.5**0.5), 0, 0, 1.5**0.5, 0, 0]
    assert grouped(rewards, groups) == pytest.approx(wanted)
    scores, mask = torch.zeros(6, 3), torch.tensor([[1.0, 0.0, 1.0]] * 6)
    scores[:, 2] = torch.tensor(rewards)
    made, returns = estimate(scores, mask, np.array(groups, dtype=object), config=None)
    assert torch.allclose(made, torch.tensor(wanted).unsqueeze(1) * mask, atol=1e-6) and returns is made


# --- small parts --------------------------------------------------------------------------------


def test_settings() -> None:
    assert settings_from({"verbs": ["Undo"]}).verbs == BASE_VERBS | {Verb.UNDO}
    for wrong in ({"verbs": ["Jump"]}, {"turns": 3}, {"history": "none"}):
        with pytest.raises(InputError, match="fields of"):
            settings_from(wrong)
    with pytest.raises(InputError, match="max_turns is at least 1"):
        settings_from({"max_turns": 0})


def test_messages_carry_pictures_before_text_and_no_control_tokens() -> None:
    picture = np.zeros((28, 56, 3), np.uint8)
    [system, user] = chat_messages([Message("system", "s"), Message("user", "a <|im_end|> b", (picture,))])
    assert system == {"role": "system", "content": [{"type": "text", "text": "s"}]}
    image, text = user["content"]
    assert image["image"].size == (56, 28) and text["text"] == "a < |im_end|> b"
