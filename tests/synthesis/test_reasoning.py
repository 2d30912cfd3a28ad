"""Thoughts say what is true of the masks."""

import numpy as np
import pytest

from ibisagent.actions import click_at, format_text, parse
from ibisagent.synthesis.reasoning import (
    PLACES,
    STATED,
    STATEMENTS,
    VERDICTS,
    Facts,
    answer,
    error_word,
    facts,
    largest_part,
    place_of,
    sentences,
    size_word,
    thought,
)
from ibisagent.targets import TARGETS
from ibisagent.types import Mask, Terminate, Undo


def box(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((90, 120), bool)
    mask[top : top + height, left : left + width] = True
    return mask


EMPTY = np.zeros((90, 120), bool)


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (0.0, 0.0, "upper left"),
        (0.34, 0.3, "upper middle"),
        (1.0, 0.1, "upper right"),
        (0.1, 0.5, "left"),
        (0.5, 0.5, "centre"),
        (0.9, 0.6, "right"),
        (0.3, 0.7, "lower left"),
        (0.5, 1.0, "lower middle"),
        (1.0, 1.0, "lower right"),
    ],
)
def test_places_are_thirds_of_the_picture(x: float, y: float, place: str) -> None:
    assert place_of(x, y) == place


def test_size_and_error_words_have_their_published_limits() -> None:
    assert [size_word(share) for share in (0.005, 0.0051, 0.03, 0.031, 0.12, 0.121, 1.0)] == [
        "tiny",
        "small",
        "small",
        "medium-sized",
        "medium-sized",
        "large",
        "large",
    ]
    assert [error_word(share) for share in (0.1, 0.11, 0.4, 0.41, 7.0)] == [
        "small",
        "moderate",
        "moderate",
        "large",
        "large",
    ]


def test_largest_part_keeps_one_component() -> None:
    small, large = box(0, 0, 4, 4), box(40, 40, 20, 20)
    assert (largest_part(small | large) == large).all()
    assert (largest_part(small) == small).all()


def test_facts_of_every_situation() -> None:
    truth = box(0, 0, 30, 40)  # the upper left ninth of the picture: a share of 1/9
    inside = click_at(10, 10, 90, 120, positive=True)
    outside = click_at(80, 110, 90, 120, positive=False)
    where = ("upper left", "medium-sized")
    far, half = box(60, 60, 9, 9), box(0, 0, 30, 20)
    assert facts("liver", truth, None, inside) == Facts("liver", "bare", *where)
    assert facts("liver", truth, EMPTY, inside) == Facts("liver", "bare", *where)
    # a quarter is missing; 100 of 1,200 pixels too many; half of it
    assert facts("liver", truth, box(0, 0, 30, 30), inside) == Facts("liver", "missed", *where, "moderate")
    wide = truth | box(80, 110, 10, 10)
    assert facts("liver", truth, wide, outside) == Facts("liver", "included", *where, "small", "well")
    assert facts("liver", truth, half, inside).fit == "", "an IoU of 0.50 is neither good nor bad"
    assert facts("liver", truth, truth, Terminate()) == Facts("liver", "good", *where, fit="well")
    assert facts("liver", truth, half, Terminate()) == Facts("liver", "good", *where)
    assert facts("liver", truth, far, Undo()) == Facts("liver", "elsewhere", *where, fit="badly")
    assert facts("liver", EMPTY, None, Terminate()) == Facts("liver", "absent")
    assert facts("liver", EMPTY, far, Undo()) == Facts("liver", "phantom")
    assert facts("liver", EMPTY, None, inside) == Facts("liver", "bare")


def test_statements_are_left_out_at_times_and_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    known = Facts("liver", "missed", "left", "small", "moderate", "badly")
    wordings = [STATEMENTS[kind][getattr(known, kind)][0] for kind in STATEMENTS]
    said = [thought(known, rng) for _ in range(2000)]
    for wording in wordings:
        assert np.mean([wording in text for text in said]) == pytest.approx(STATED, abs=0.03)
    every = next(text for text in said if all(wording in text for wording in wordings))
    assert [every.index(wording) for wording in wordings] == sorted(every.index(w) for w in wordings)
    assert wordings == [
        "The mask fits badly.",
        "It lies at the left of the picture.",
        "It is small.",
        "The error is moderate.",
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_every_thought_begins_with_its_verdict_and_fits_the_grammar(target: str) -> None:
    truth = box(0, 0, 30, 40)
    rng = np.random.default_rng(0)
    for _ in range(20):
        for mask, action in (
            (None, click_at(10, 10, 90, 120, positive=True)),
            (box(0, 0, 9, 9), click_at(20, 20, 90, 120, positive=True)),
            (box(0, 0, 60, 60), click_at(50, 50, 90, 120, positive=False)),
            (truth, Terminate()),
            (box(60, 60, 9, 9), Undo()),
        ):
            known = facts(target, truth, mask, action)
            said = thought(known, rng)
            assert said.startswith(VERDICTS[known.situation] + " ")
            assert "{" not in said
            finding = answer(known, rng) if isinstance(action, Terminate) else None
            text = format_text(said, action, finding)
            assert parse(text, {"Undo", "Positive Point", "Negative Point", "Terminate"}).format_ok  # type: ignore[arg-type]
            if finding is not None:
                assert target in finding


def test_plural_targets_take_plural_verbs() -> None:
    rng = np.random.default_rng(1)
    truth = box(0, 0, 30, 40)
    for _ in range(30):
        said = thought(facts("lungs", truth, None, click_at(5, 5, 90, 120, positive=True)), rng)
        finding = answer(facts("lungs", truth, truth, Terminate()), rng)
        for text in (said, finding):
            assert "lungs is" not in text
            assert "It " not in text


def test_sentences_cover_every_place() -> None:
    joined = " ".join(sentences())
    assert all(place in joined for row in PLACES for place in row)
