import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibisagent.actions import (
    coordinate_from_pixel,
    format_action,
    format_text,
    parse,
    pixel_from_coordinate,
)
from ibisagent.errors import InputError
from ibisagent.types import BASE_VERBS, Box, Click, FormatFault, ParseFailure, Terminate, Undo, Verb

ALL = frozenset(Verb)
GOOD = "<think> a </think> <action> Positive Point (0.5000, 0.2500) </action>"
STOP = "<think> a </think> <action> Terminate </action> <answer> b </answer>"


def test_canonical_texts_of_the_specification_parse() -> None:
    parsed = parse(GOOD)
    assert parsed.action == Click(0.5, 0.25, True)
    assert (parsed.think, parsed.answer, parsed.failure, parsed.format_ok) == ("a", None, None, True)
    parsed = parse(STOP)
    assert parsed.action == Terminate() and parsed.answer == "b" and parsed.format_ok


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nThe liver is on the left.\n</think>\n<action>\nPositive Point (0.4873046875, 0.25)\n</action>",
        "<think>x</think><action>Negative Point (0.1,0.9)</action>",
        "<think> x </think>\n\n<action>Positive  Point\n( 0.5 , 0.5 )</action>\n",
        "< think > x </ think > <action > Positive Point (.5, 1.) </action>",
    ],
)
def test_published_style_and_white_space(text: str) -> None:
    parsed = parse(text)
    assert isinstance(parsed.action, Click) and parsed.format_ok


def test_termination_is_read_and_terminate_is_written() -> None:
    text = "<think>\nx\n</think>\n<action>\nTermination\n</action>\n<answer>\nfound\n</answer>"
    assert parse(text).action == Terminate() and parse(text).format_ok
    assert format_action(Terminate()) == "Terminate"


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        ("Positive Point (512, 300)", ParseFailure.OUT_OF_RANGE),
        ("Positive Point (-0.1, 0.5)", ParseFailure.OUT_OF_RANGE),
        ("Positive Point (1.0001, 0.5)", ParseFailure.OUT_OF_RANGE),
        ("Positive Point (1.2.3, 0.5)", ParseFailure.BAD_COORDINATES),
        ("Positive Point (0.5)", ParseFailure.BAD_COORDINATES),
        ("Positive Point (0.5, 0.5, 0.5)", ParseFailure.BAD_COORDINATES),
        ("Positive Point (nan, 0.5)", ParseFailure.BAD_COORDINATES),
        ("Positive Point (1e-1, 0.5)", ParseFailure.BAD_COORDINATES),
        ("Positive Point (٠.٥, 0.5)", ParseFailure.BAD_COORDINATES),
        ("Do not Terminate; Negative Point (0.5, 0.5)", ParseFailure.UNKNOWN_VERB),
        ("Negative Point (0.5, 0.5) not Positive Point", ParseFailure.UNKNOWN_VERB),
        ("positive point (0.5, 0.5)", ParseFailure.UNKNOWN_VERB),
        ("", ParseFailure.UNKNOWN_VERB),
        ("Undo", ParseFailure.VERB_NOT_ENABLED),
        ("Box (0.1, 0.1, 0.2, 0.2)", ParseFailure.VERB_NOT_ENABLED),
    ],
)
def test_what_cannot_be_executed_is_named(action: str, failure: ParseFailure) -> None:
    parsed = parse(f"<think> a </think> <action> {action} </action>")
    assert parsed.failure is failure and parsed.action is None
    assert parsed.format_fault is FormatFault.NOT_EXECUTABLE and parsed.detail


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", ParseFailure.NO_ACTION),
        ("Positive Point (0.5, 0.5)", ParseFailure.NO_ACTION),
        ("<think> <action> Terminate </action> </think>", ParseFailure.NO_ACTION),
        (GOOD + GOOD, ParseFailure.SEVERAL_ACTIONS),
        ("<think> a </think> <action> Positive Point (0.5, 0.5)", ParseFailure.UNCLOSED_ACTION),
    ],
)
def test_texts_without_exactly_one_action(text: str, failure: ParseFailure) -> None:
    assert parse(text).failure is failure


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<action> Positive Point (0.5, 0.5) </action>", FormatFault.MISSING_THINK),
        ("<think> a </think>" + GOOD, FormatFault.SEVERAL_THINKS),
        ("<action> Positive Point (0.5, 0.5) </action> <think> a </think>", FormatFault.MISPLACED_THINK),
        ("<think> a </think> <action> Terminate </action>", FormatFault.MISSING_ANSWER),
        (GOOD + " <answer> early </answer>", FormatFault.MISPLACED_ANSWER),
        (
            "<think> a </think> <answer> b </answer> <action> Terminate </action>",
            FormatFault.MISPLACED_ANSWER,
        ),
        (STOP + "<answer> c </answer>", FormatFault.SEVERAL_ANSWERS),
        ("Sure! " + GOOD, FormatFault.TEXT_OUTSIDE_TAGS),
        (GOOD + " done", FormatFault.TEXT_OUTSIDE_TAGS),
        ("<think> a <action> Positive Point (0.5, 0.5) </action>", FormatFault.MISSING_THINK),
        (STOP.replace("</answer>", ""), FormatFault.MISSING_ANSWER),
        (GOOD + " </think>", FormatFault.TEXT_OUTSIDE_TAGS),
    ],
)
def test_format_faults_leave_the_action_executable(text: str, fault: FormatFault) -> None:
    parsed = parse(text)
    assert parsed.action is not None and parsed.format_fault is fault and not parsed.format_ok


def test_optional_verbs_where_enabled() -> None:
    assert parse("<think> a </think> <action> Undo </action>", ALL).action == Undo()
    box = "<think> a </think> <action> Box (0.1, 0.2, 0.3, 0.4) </action>"
    assert parse(box, ALL).action == Box(0.1, 0.2, 0.3, 0.4)
    flat = "<think> a </think> <action> Box (0.3, 0.2, 0.3, 0.4) </action>"
    assert parse(flat, ALL).failure is ParseFailure.EMPTY_BOX


def test_format_text_is_canonical_and_guards_itself() -> None:
    assert format_text("a", Click(0.5, 0.25, True)) == GOOD
    assert format_text("a", Terminate(), "b") == STOP
    with pytest.raises(InputError, match="answer goes with Terminate"):
        format_text("a", Undo(), "b")
    with pytest.raises(InputError, match="no tags"):
        format_text("</think>", Undo())


@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_every_click_survives_text_within_half_of_the_last_decimal(
    x: float, y: float, positive: bool
) -> None:
    click = parse(format_text("a", Click(x, y, positive))).action
    assert isinstance(click, Click) and click.positive == positive
    assert abs(click.x - x) <= 0.5e-4 + 1e-12 and abs(click.y - y) <= 0.5e-4 + 1e-12


def test_pixels_round_trip_for_every_side_up_to_8192() -> None:
    for side in range(1, 8193):
        pixels = np.arange(side)
        written = np.round((pixels + 0.5) / side, 4)
        assert np.array_equal(np.minimum(np.floor(written * side).astype(int), side - 1), pixels), side


@pytest.mark.parametrize("side", [1, 2, 3, 255, 256, 320, 511, 512, 1000, 1024, 4097, 8191, 8192])
def test_pixels_round_trip_through_the_written_text(side: int) -> None:
    for pixel in range(side):
        text = format_text("a", Click(coordinate_from_pixel(pixel, side), 0.5, True))
        click = parse(text).action
        assert isinstance(click, Click) and pixel_from_coordinate(click.x, side) == pixel


def test_the_edge_belongs_to_the_last_pixel() -> None:
    assert pixel_from_coordinate(1.0, 512) == 511 and pixel_from_coordinate(0.0, 512) == 0


PIECES = [
    "<think>", "</think>", "<action>", "</action>", "<answer>", "</answer>", "< think >", "<think", "Positive Point",
    "Negative Point", "Terminate", "Termination", "Undo", "Box", "(0.5, 0.5)", "(0.1, 0.2, 0.3, 0.4)", "(", ")", ",",
    "1e309", "nan", "-0", "0.0000", "\x00", "\n", "\u202e", "𝟘.𝟝", "<image>", "<|image_pad|>", "𐍈" * 5, "9" * 400, " ",
]  # fmt: skip


def test_a_hundred_thousand_random_and_mutated_texts_parse_or_fail_by_name() -> None:
    rng = random.Random(0)
    outcomes: dict[str, int] = {}
    for index in range(100_000):
        if index % 3 == 0:
            text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(12)))
        elif index % 3 == 1:
            verb = rng.choice(["Positive Point", "Negative Point", "Box", "Undo", "Go"])
            numbers = ", ".join(
                rng.choice(["0.5", "2", "1e3", "", "0.7"]) for _ in range(rng.randrange(1, 6))
            )
            text = f"<think> a </think> <action> {verb} ({numbers}) </action>" * rng.choice([1, 1, 1, 2])
        else:
            letters = list(rng.choice([GOOD, STOP]))
            for _ in range(rng.randrange(1, 6)):
                place = rng.randrange(len(letters))
                letters[place : place + rng.randrange(3)] = rng.choice([*PIECES, "<", ">", "0", "."])
            text = "".join(letters)
        parsed = parse(text, ALL if index % 5 else BASE_VERBS)
        assert (parsed.action is None) != (parsed.failure is None)
        assert parsed.failure is None or parsed.failure in ParseFailure
        if isinstance(parsed.action, Click):
            assert 0 <= parsed.action.x <= 1 and 0 <= parsed.action.y <= 1
        key = str(parsed.failure or "executed")
        outcomes[key] = outcomes.get(key, 0) + 1
    assert len(outcomes) == len(ParseFailure) + 1 and outcomes["executed"] > 1000, outcomes


@settings(max_examples=300)
@given(st.text())
def test_any_unicode_text_gets_a_verdict(text: str) -> None:
    parsed = parse(text, ALL)
    assert (parsed.action is None) != (parsed.failure is None)


@pytest.mark.parametrize(
    "unit", ["<action>", "(", "<think> ", "Positive Point (" + " " * 50, "< " * 3, "</action>"]
)
def test_reading_time_grows_with_length_only(unit: str) -> None:
    began = time.process_time()
    parse(unit * (200_000 // len(unit)))
    assert time.process_time() - began < 2.0
