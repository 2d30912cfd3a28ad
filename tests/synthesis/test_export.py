"""Exports hold what the policy would meet, as many pictures as markers, and nothing wrong to learn."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import disc
from PIL import Image

from ibisagent.environment import Settings
from ibisagent.episodes import write_episodes
from ibisagent.errors import InputError
from ibisagent.masks import decode_rle
from ibisagent.replay import observed_pictures
from ibisagent.synthesis.export import (
    DATASET_INFO,
    MARKER,
    Export,
    marked,
    records,
    run,
    verl_row,
    write_records,
)
from ibisagent.synthesis.trajectories import Mix, Teaching, plan, trajectories, wrong_turns
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import BASE_VERBS, Verb

KINDS = ("plain", "self_correction", "wrong_start", "stop", "absent")


@pytest.fixture(scope="module")
def made():
    """One trajectory of every kind, and the plain one that did not reach its IoU."""
    truth, other = disc(48, 64, 20, 22, 9), disc(48, 64, 33, 49, 7)
    noise = np.random.default_rng(7).normal(0, 4, (48, 64))
    grey = np.clip(50 + 110 * truth + 60 * other + noise, 0, 255).astype(np.uint8)
    from ibisagent.types import Picture, Sample

    picture = Picture(np.repeat(grey[..., None], 3, axis=2))
    sample = Sample("SET/1/disc", picture, "Find the disc.", target="disc", truth=truth)
    settings = Settings(verbs=BASE_VERBS | {Verb.UNDO}, max_turns=8)
    episodes = []
    for kind in KINDS:
        shares = dict.fromkeys(KINDS, 0.0) | {kind: 1.0}
        teaching = Teaching(mix=Mix(**shares))
        one = replace(sample, sample_id=f"SET/{kind}/disc")
        one = replace(one, truth=np.zeros_like(truth)) if kind == "absent" else one
        episodes += trajectories([plan(one, [other], teaching, 0)], ClassicalTool(), teaching, settings)
    assert tuple(episode.kind for episode in episodes) == KINDS
    episodes.append(replace(episodes[0], kind="unreached"))
    return episodes


def test_a_record_for_every_turn_but_the_wrong_ones(made):
    found = list(records(made, "turns"))
    expected = sum(len(episode.turns) - len(wrong_turns(episode)) for episode in made[:-1])
    assert len(found) == expected and sum(len(wrong_turns(episode)) for episode in made) > 0
    for record in found:
        assert [message.role for message in record.messages] == ["system", "user", "assistant"]
        assert len(record.images) == 1 and record.kind in KINDS
    assert len({record.key for record in found}) == len(found)
    assert not any(record.kind == "unreached" for record in found)
    assert len(list(records(made, "turns", ["unreached"]))) == len(made[-1].turns)


def test_pictures_are_those_that_the_policy_saw(made):
    plain = made[0]
    shown = observed_pictures(plain)
    for record in records([plain], "turns"):
        np.testing.assert_array_equal(record.images[0], shown[record.turn - 1])
        assert record.messages[-1].text == plain.turns[record.turn - 1].attempts[-1].text
    [whole] = records([plain], "episodes")
    assert len(whole.images) == len(plain.turns)
    for image, seen in zip(whole.images, shown, strict=False):
        np.testing.assert_array_equal(image, seen)
    assert [record.kind for record in records(made, "episodes")] == ["plain", "wrong_start", "stop", "absent"]


@pytest.mark.parametrize("unit", ["turns", "episodes"])
def test_llamafactory(made, tmp_path, unit):
    count = write_records(records(made, unit), "llamafactory", tmp_path, unit)
    rows = json.loads((tmp_path / "data.json").read_text())
    assert len(rows) == count == len(list(records(made, unit)))
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == DATASET_INFO
    for row in rows:
        markers = sum(message["content"].count(MARKER) for message in row["messages"])
        assert markers == len(row["images"]) >= 1
        roles = [message["role"] for message in row["messages"]]
        assert roles[0] == "system" and roles[1:] == ["user", "assistant"] * (len(roles) // 2)
        for path in row["images"]:
            assert Image.open(tmp_path / path).size == (64, 48)
    assert len(list((tmp_path / "images").iterdir())) == len({path for row in rows for path in row["images"]})


@pytest.mark.parametrize("unit", ["turns", "episodes"])
def test_messages(made, tmp_path, unit):
    count = write_records(records(made, unit), "messages", tmp_path, unit)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert len(rows) == count
    for row in rows:
        blocks = [block for message in row["messages"] for block in message["content"]]
        assert sum(block["type"] == "image" for block in blocks) == len(row["images"])
        assert not any(MARKER in (block["text"] or "") for block in blocks)


def test_verl_rows(made):
    for unit in ("turns", "episodes"):
        for index, record in enumerate(records(made, unit)):
            row = verl_row(record, unit, index)
            assert (
                sum(message["content"].count(MARKER) for message in row["prompt"]) == len(row["images"]) == 1
            )
            assert row["prompt"][-1]["role"] == "user"
            assert Image.open(io.BytesIO(row["images"][0]["bytes"])).size == (64, 48)
            truth = decode_rle(json.loads(row["reward_model"]["ground_truth"]))
            assert truth.shape == (48, 64) and truth.any() == (record.kind != "absent")


def test_verl_parquet(made, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra data")
    count = write_records(records(made, "turns"), "verl", tmp_path, "turns")
    rows = parquet.read_table(tmp_path / "data.parquet").to_pylist()
    expected = [verl_row(record, "turns", index) for index, record in enumerate(records(made, "turns"))]
    assert len(rows) == count and rows == expected


def test_huggingface_loads_messages(made, tmp_path):
    pytest.importorskip("datasets.features", reason="needs the extra data")
    from datasets import Image as ImageFeature
    from datasets import List, load_dataset

    write_records(records(made, "turns"), "messages", tmp_path, "turns")
    table = load_dataset(
        "json", data_files=str(tmp_path / "data.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    table = table.map(lambda row: {"images": [str(tmp_path / path) for path in row["images"]]})
    table = table.cast_column("images", List(ImageFeature()))
    assert len(table) == len(list(records(made, "turns")))
    assert all(row["images"][0].size == (64, 48) for row in table)


def test_a_marker_in_a_text_is_refused(made):
    wrong = replace(made[0], instruction="Find the <image> disc.")
    with pytest.raises(InputError, match="marker"):
        list(records([wrong], "turns"))


def test_the_command(made, tmp_path):
    log = tmp_path / "log.jsonl"
    write_episodes(log, made)
    assert run(Export(log, tmp_path / "out", "llamafactory", kinds=("stop", "absent"))) == 0
    assert {row["kind"] for row in json.loads((tmp_path / "out/data.json").read_text())} == {"stop", "absent"}
    with pytest.raises(InputError, match="empty folder"):
        run(Export(log, tmp_path / "out"))
    with pytest.raises(InputError, match="something to export"):
        run(Export(log, tmp_path / "none", kinds=("nothing",)))
    with pytest.raises(InputError, match="folder of logs"):
        run(Export(tmp_path / "none", tmp_path / "other"))


def test_markers_stand_before_the_text(made):
    record = next(iter(records(made, "turns")))
    assert marked(record.messages[1]).startswith(MARKER + "Find the disc.")
