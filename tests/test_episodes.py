import copy
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from make_golden import TEXTS, golden_episode

from ibisagent.cli import main
from ibisagent.episodes import check_actions, from_record, read_episodes, to_record, write_episodes
from ibisagent.errors import EpisodeFormatError
from ibisagent.policies.scripted import fixed
from ibisagent.replay import observed_pictures, replay
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import Click, Episode, EpisodeStatus, Outcome, ParseFailure, Sample, Terminate, Undo

GOLDEN = Path(__file__).parent / "golden" / "episode-v1.jsonl"
NOT_COMPARED = {"seconds", "start_seconds", "host", "tool_seconds"}


def same(a: object, b: object) -> bool:
    """Equal in all fields but times and host."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        names = [field.name for field in fields(a) if field.name not in NOT_COMPARED]
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def golden() -> Episode:
    [episode] = read_episodes(GOLDEN)
    return episode


def test_the_golden_file_reads_as_what_was_recorded(golden: Episode) -> None:
    assert [turn.action for turn in golden.turns] == [
        Click(0.4, 0.4, True), Click(0.9, 0.9, False), Undo(), Terminate(),
    ]  # fmt: skip
    assert [attempt.text for turn in golden.turns for attempt in turn.attempts] == TEXTS
    assert golden.turns[0].attempts[0].failure is ParseFailure.NO_ACTION
    assert golden.answer == "One bright disc “left” of the centre."
    assert golden.picture.spacing == (1.0, 0.5) and golden.picture.laterality == "known"
    assert golden.status is EpisodeStatus.TERMINATED and golden.selected_turn == 4
    assert np.array_equal(golden.mask, golden.turns[0].mask)
    check_actions(golden)


def test_todays_code_makes_the_golden_episode_again(golden: Episode) -> None:
    assert same(golden_episode(), golden)


def test_replay_verifies_the_golden_masks(golden: Episode) -> None:
    result = replay(golden, ClassicalTool())
    assert [mask.turn for mask in result.masks] == [0, 1, 2, 3, 4, -1]
    assert all(mask.iou >= 0.999 for mask in result.masks) and not result.tool_differences
    damaged = replace(golden.turns[1], mask=~golden.turns[1].mask)
    changed = replace(golden, turns=(golden.turns[0], damaged, *golden.turns[2:]))
    result = replay(changed, ClassicalTool())
    assert not result.verified and [mask.turn for mask in result.masks if mask.iou < 0.9] == [2]


def test_pictures_are_rendered_again_as_the_policy_saw_them(golden: Episode) -> None:
    pictures = observed_pictures(golden)
    assert len(pictures) == 5 and pictures[0].shape == (80, 50, 3)  # rows are twice as far apart
    assert np.array_equal(pictures[1], pictures[3]) and not np.array_equal(pictures[1], pictures[0])


@pytest.mark.parametrize("pictures", ["embed", "folder"])
def test_writing_and_reading_gives_the_same_episode(golden: Episode, tmp_path: Path, pictures: str) -> None:
    path = tmp_path / "log.jsonl"
    assert write_episodes(str(path), [golden, golden], pictures) == 2
    again = list(read_episodes(str(path)))
    assert len(again) == 2 and all(same(episode, golden) for episode in again)
    if pictures == "folder":
        assert [file.name for file in (tmp_path / "pictures").iterdir()] == [
            f"{golden.picture.content_id}.png"
        ]


def test_a_log_without_pictures_asks_for_them_by_hash(golden: Episode, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_episodes(path, [golden], "none")
    with pytest.raises(EpisodeFormatError, match="beside it"):
        list(read_episodes(path))
    [again] = read_episodes(path, lambda digest: golden.picture)
    assert same(again, golden)


BROKEN = {
    "another version": lambda r: r.update(schema="ibisagent.episode/0"),
    "no turns": lambda r: r.pop("turns"),
    "status unknown": lambda r: r["result"].update(status="finished"),
    "mask of another size": lambda r: r["result"].update(mask={"size": [1, 2], "counts": "2"}),
    "other pixels": lambda r: r["picture"].update(sha256="0" * 64),
    "a path for a hash": lambda r: r["picture"].update(sha256="../../x", png=None),
    "cut picture": lambda r: r["picture"].update(png=r["picture"]["png"][:200]),
    "no base64": lambda r: r["picture"].update(png="%%%"),
    "huge side": lambda r: r["picture"].update(height=10**9),
    "coordinates in pixels": lambda r: r["turns"][0]["action"].update(at=[30, 40]),
    "three coordinates": lambda r: r["turns"][0]["action"].update(at=[0.1, 0.2, 0.3]),
    "text for a number": lambda r: r.update(seed="3"),
    "score is text": lambda r: r["turns"][0].update(score="high"),
    "turns is a number": lambda r: r.update(turns=4),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_does_not_hold_is_a_named_error(golden: Episode, fault: str, tmp_path: Path) -> None:
    record = json.loads(GOLDEN.read_text(encoding="utf-8"))
    BROKEN[fault](record)
    with pytest.raises(EpisodeFormatError) as caught:
        from_record(copy.deepcopy(record), tmp_path)
    assert "\n" not in str(caught.value) and caught.value.rule


@pytest.mark.parametrize("content", [b"{", b"[]\n", b"\xff\xfe\n", b'{"schema": 1}\n', b"null\n"])
def test_damaged_files_name_the_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(EpisodeFormatError):
        list(read_episodes(path))
    with pytest.raises(EpisodeFormatError, match="readable"):
        list(read_episodes(tmp_path / "missing.jsonl"))


def test_records_hold_no_numbers_that_json_lacks(golden: Episode) -> None:
    text = json.dumps(to_record(golden), allow_nan=False)
    assert "NaN" not in text and len(text) < 20_000


TAMPERED = {
    "result mask": lambda e: replace(e, mask=np.ones_like(e.mask)),
    "status": lambda e: replace(e, status=EpisodeStatus.TURN_LIMIT),
    "outcome": lambda e: replace(e, outcome=Outcome.ABSENT),
    "selected turn": lambda e: replace(e, selected_turn=1),
    "a turn more": lambda e: replace(e, turns=(*e.turns, replace(e.turns[0], number=5, mask=None))),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_replay_notices_whatever_was_changed(golden: Episode, what: str) -> None:
    assert not replay(TAMPERED[what](golden), ClassicalTool()).verified


def test_replay_refuses_actions_that_the_texts_do_not_say(golden: Episode) -> None:
    other = replace(golden.turns[0], action=Click(0.1, 0.1, True))
    with pytest.raises(EpisodeFormatError, match="what its text says"):
        replay(replace(golden, turns=(other, *golden.turns[1:])), ClassicalTool())


@pytest.mark.parametrize(
    "part",
    [
        {"settings": {"verbs": ["Fly"]}},
        {"settings": {"retries": None}},
        {"settings": {"max_turns": "a"}},
        {"settings": {"history": 3}},
        {"settings": {"history": "last-" + "9" * 5000}},
        {"settings": {"system": [1]}},
        {"settings": {"style": [1]}},
        {"settings": {"unheard": 1}},
        {"fingerprint": {"view": {"max_side": 0}}},
        {"fingerprint": {"view": {"multiple": 10**7}}},
        {"fingerprint": {"view": [1]}},
        {"fingerprint": {"tool": "x"}},
        {"picture": {"spacing": [0, 0]}},
        {"picture": {"spacing": [-1, 1]}},
        {"seconds": 10**400},
        {"truth": {"size": [float("inf"), 1], "counts": "1"}},
        {"sample_id": "\ud83d"},
        {"truth": {"size": [4, 4], "counts": "o" * 300_000}},
    ],
)
def test_logs_made_to_break_replay_are_named_errors(
    golden: Episode, part: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    record = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for key, change in part.items():
        record[key] = (
            record[key] | change if isinstance(record[key], dict) and isinstance(change, dict) else change
        )
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record))
    assert main(["replay", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_deep_or_empty_logs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for content in ("[" * 100_000, "", "\n\n"):
        path.write_text(content)
        assert main(["replay", str(path)]) == 2
    assert main(["replay", str(GOLDEN), "--out", str(path)]) == 2


def test_half_characters_from_a_server_do_not_lose_the_episode(golden: Episode, tmp_path: Path) -> None:
    sample = Sample("half", golden.picture, "Find it")
    text = "<think> \ud83d </think> <action> Terminate </action> <answer> \udcff </answer>"
    [episode] = collect(rollout([sample], fixed([text]), ClassicalTool(), Settings()))
    assert write_episodes(tmp_path / "log.jsonl", [episode]) == 1
    [again] = read_episodes(tmp_path / "log.jsonl")
    assert again.answer == "?" and again.status is EpisodeStatus.TERMINATED
