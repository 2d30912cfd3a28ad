"""What reinforcement learning plays on, where data are not as their index says."""

import json
from collections import Counter

import pytest
from PIL import Image
from synthesis.made_data import make_set
from training.made_training import PICTURES, empty_masks, listing_nothing_absent, rl

from ibisagent.errors import InputError
from ibisagent.policies.embedded import EmbeddedPolicy
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training import grpo
from ibisagent.training.samples import Drawer
from ibisagent.training.verl_rows import VerlRows, read_sample, run


@pytest.fixture(scope="module")
def policy():
    return EmbeddedPolicy.load()


@pytest.fixture
def data(tmp_path):
    """24 pictures; the liver of 18 of them has an empty mask, and nothing is listed as absent."""
    root = listing_nothing_absent(make_set(tmp_path / "data", 24))
    empty_masks(root, "liver", 18)
    return root


def drawn(drawer, rounds=12, places=10):
    return [drawer.draw(number, place) for number in range(rounds) for place in range(places)]


def told(samples):
    return [(s.sample_id, s.target, s.truth.tobytes(), s.picture.pixels.tobytes()) for s in samples]


def test_without_absent_questions_no_mask_is_empty(data, policy) -> None:
    drawer = Drawer(data, 0.0, True, policy, 0)
    assert all(sample.truth.any() for sample in drawn(drawer))
    found = list(drawer.validation(None))
    assert found and all(sample.truth.any() for sample in found)
    assert all(episode.truth.any() for episode in drawer.oracle_episodes(ClassicalTool(), per_set=4))


def test_empty_masks_serve_where_absent_ones_are_wanted_and_none_is_listed(data, policy) -> None:
    shares = {}
    for absent in (0.0, 0.5, 0.9):
        samples = drawn(Drawer(data, absent, False, policy, 0))
        shares[absent] = sum(not sample.truth.any() for sample in samples) / len(samples)
    assert shares[0.0] == 0
    assert 0.35 < shares[0.5] < 0.55 and 0.7 < shares[0.9] < 0.95  # at most what is asked for


def test_listed_absent_ones_keep_their_share_beside_empty_masks(tmp_path, policy) -> None:
    data = make_set(tmp_path / "data", 24)
    empty_masks(data, "liver", 18)
    samples = drawn(Drawer(data, 0.3, False, policy, 0))
    absent = [sample.target for sample in samples if not sample.truth.any()]
    assert set(absent) == {"left kidney"} and 0.2 < len(absent) / len(samples) < 0.4


def test_a_draw_depends_on_seed_round_and_place_alone(data, policy) -> None:
    whole = drawn(Drawer(data, 0.2, True, policy, 0), 4, 6)
    late = Drawer(data, 0.2, True, policy, 0)
    list(late.validation(None))
    again = [late.draw(number, place) for number in reversed(range(4)) for place in reversed(range(6))]
    assert told(again[::-1]) == told(whole)
    assert told(drawn(Drawer(data, 0.2, True, policy, 1), 4, 6)) != told(whole)


def test_processes_share_the_validation_that_one_has(tmp_path, policy) -> None:
    data = make_set(tmp_path / "data", 80)
    empty_masks(data, "liver", 40)
    for per_set in (None, 3):
        alone = Drawer(data, 0.0, False, policy, 0)
        whole = told(alone.validation(per_set))
        assert told(alone.validation(per_set)) == whole
        assert len(whole) == 3 if per_set else len(whole) > 3
        drawers = [Drawer(data, 0.0, False, policy, 0) for _ in range(2)]
        for _ in range(2):  # the second time most is known and not read again
            shares = [told(drawer.validation(per_set, rank, 2)) for rank, drawer in enumerate(drawers)]
            assert shares[0] == whole[::2] and shares[1] == whole[1::2]


def test_data_without_any_target_are_refused(tmp_path, policy) -> None:
    data = make_set(tmp_path / "data", 6)
    for target in ("liver", "spleen"):
        empty_masks(data, target, 6)
    with pytest.raises(InputError, match=r"show targets; got none among 1000"):
        Drawer(data, 0.0, False, policy, 0, validate=False).draw(0, 0)


def spoil(data):
    """Another size of one mask, and a picture cut off."""
    Image.new("1", (10, 10), 1).save(data / "SET/train_mask/p3_CT_abdomen_liver.png")
    picture = data / "SET/train/p4_CT_abdomen.png"
    picture.write_bytes(picture.read_bytes()[:200])
    lost = {f"p4_CT_abdomen.png, {target}" for target in ("liver", "spleen", "left kidney")}
    return {"p3_CT_abdomen.png, liver"} | lost


def test_cases_whose_files_cannot_be_used_are_named_once_and_passed_over(tmp_path, policy) -> None:
    data = make_set(tmp_path / "data", 12)
    broken = spoil(data)
    said: list[str] = []
    drawer = Drawer(data, 0.1, False, policy, 0, say=said.append)
    samples = drawn(drawer) + list(drawer.validation(None))
    list(drawer.oracle_episodes(ClassicalTool(), per_set=20))
    assert len(samples) > 120 and len(said) == 4
    named = {line.removeprefix("left out: ").partition(":")[0] for line in said}
    assert {name.rsplit("/", 1)[-1] for name in named} == broken
    assert any("height and width of its picture; got 10 x 10 for 48 x 64" in line for line in said)
    assert drawer.left_out() == {"cases whose files cannot be used": 4}
    # what is whole in a picture is played on: the spleen is no worse for the liver's mask
    Image.new("1", (10, 10), 1).save(data / "SET/train_mask/p0_CT_abdomen_liver.png")
    targets = Counter(s.target for s in drawn(Drawer(data, 0.0, False, policy, 0, say=said.append)))
    assert targets["spleen"] > 20 and targets["liver"] > 20


def test_a_run_goes_on_past_broken_files_and_counts_them(tmp_path, capsys) -> None:
    data = make_set(tmp_path / "data", PICTURES)
    spoil(data)
    index = data / "SET/train.json"
    index.write_text(index.read_text().replace('"spleen"', '"left lung nodule of the test"'))
    command = rl(data, tmp_path / "out", steps=4, groups=6, group=2, max_turns=1, augment=False)
    assert grpo.run(command) == 0
    card = json.loads((tmp_path / "out/training.json").read_text())
    unknown = "cases of targets that the policy does not know: left lung nodule of the test"
    assert card["left_out"] == {unknown: PICTURES // 2, "cases whose files cannot be used": 2}
    said = " ".join(capsys.readouterr().err.split())
    assert f"left out: {PICTURES // 2} {unknown}" in said and said.count("p3_CT_abdomen.png, liver") == 1
    state = json.loads((tmp_path / "out/checkpoints/step-0000004/state.json").read_text())
    assert len(state["unusable"]) == 2 and not any("p3" in name for name in state["unusable"])
    assert grpo.run(command) == 0  # nothing is left to do, and nothing is forgotten
    assert json.loads((tmp_path / "out/training.json").read_text())["left_out"] == card["left_out"]


def test_rows_for_verl_hold_no_empty_masks_and_no_broken_files(data, tmp_path, capsys) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra data")
    picture = data / "SET/train/p4_CT_abdomen.png"
    picture.write_bytes(picture.read_bytes()[:200])
    empty = {}
    for absent in ("none", "hard"):
        out = tmp_path / absent
        assert run(VerlRows(data, out, absent=absent)) == 0
        rows = parquet.read_table(out / "train.parquet").to_pylist()
        empty[absent] = sum(not read_sample(row, out).truth.any() for row in rows)
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
        assert capsys.readouterr().err.count("p4_CT_abdomen.png: ") == 1
    assert empty["none"] == 0 < empty["hard"]


def test_rows_that_cannot_be_written_leave_nothing_behind(tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra data")
    data, out = make_set(tmp_path / "data", 4), tmp_path / "rows"
    assert run(VerlRows(data, out)) == 0
    before = (out / "train.parquet").read_bytes()
    for target in ("liver", "spleen"):
        empty_masks(data, target, 4)
    with pytest.raises(InputError, match="something to write"):
        run(VerlRows(data, out, absent="none"))
    assert (out / "train.parquet").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["images", "train.parquet"]
