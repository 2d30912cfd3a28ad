import numpy as np
import pytest

from ibisagent.errors import InputError
from ibisagent.prompts import Exchange, History, conversation, system_prompt, turn_text
from ibisagent.types import BASE_VERBS, Verb

IMAGES = [np.full((2, 2, 3), value, np.uint8) for value in range(4)]


def turns(failed: bool) -> list[list[Exchange]]:
    """Three finished turns (the second with a failed attempt where asked for), then the current one."""
    second = [Exchange("q1", IMAGES[1], "bad"), Exchange("again", None, "a1")] if failed else [
        Exchange("q1", IMAGES[1], "a1")
    ]  # fmt: skip
    return [
        [Exchange("q0", IMAGES[0], "a0")],
        second,
        [Exchange("q2", IMAGES[2], "a2")],
        [Exchange("q3", IMAGES[3], None)],
    ]


def shown(mode: str, failed: bool = False) -> list[tuple[str, str, list[int]]]:
    messages = conversation("sys", turns(failed), History(mode))
    return [(m.role[0], m.text, [int(image[0, 0, 0]) for image in m.images]) for m in messages]


def test_none_shows_the_current_picture_alone() -> None:
    assert shown("none") == [("s", "sys", []), ("u", "q3", [3])]


def test_last_k_keeps_all_texts_but_only_the_last_pictures() -> None:
    assert shown("last-2") == [
        ("s", "sys", []), ("u", "q0", []), ("a", "a0", []), ("u", "q1", []), ("a", "a1", []),
        ("u", "q2", [2]), ("a", "a2", []), ("u", "q3", [3]),
    ]  # fmt: skip
    pictures = [images for role, _, images in shown("first+last-1") if role == "u"]
    assert pictures == [[0], [], [], [3]]


def test_all_appends_only_failed_attempts_included() -> None:
    assert shown("all", failed=True) == [
        ("s", "sys", []), ("u", "q0", [0]), ("a", "a0", []), ("u", "q1", [1]), ("a", "bad", []),
        ("u", "again", []), ("a", "a1", []), ("u", "q2", [2]), ("a", "a2", []), ("u", "q3", [3]),
    ]  # fmt: skip
    assert [entry for entry in shown("last-9", failed=True) if entry[1] in ("bad", "again")] == []


def test_the_current_turns_failed_attempt_is_shown_in_every_mode() -> None:
    current = [Exchange("q0", IMAGES[0], "bad"), Exchange("again", None, None)]
    for mode in ("none", "last-1", "first+last-1", "all"):
        messages = conversation("sys", [current], History(mode))
        assert [m.text for m in messages] == ["sys", "q0", "bad", "again"], mode
        assert len(messages[1].images) == 1 and not messages[3].images


@pytest.mark.parametrize("mode", ["", "last", "last-0", "first", "first+last", "ALL", "last--1"])
def test_unknown_history_is_refused(mode: str) -> None:
    with pytest.raises(InputError, match="history is none"):
        History(mode)


def test_system_prompt_tells_only_enabled_verbs() -> None:
    assert "Undo" not in system_prompt(BASE_VERBS) and "Box" not in system_prompt(BASE_VERBS)
    both = system_prompt(frozenset(Verb))
    assert "Undo takes back" in both and "Box (x1, y1, x2, y2)" in both
    assert "Find it" in turn_text("Find it", False) and "terminate" in turn_text("Find it", True)
