"""Text to tokens and back, and cells to coordinates."""

import numpy as np
import pytest

from ibisagent.actions import click_at, format_text, parse, pixel_from_coordinate
from ibisagent.policies.embedded_words import (
    CELL,
    GRID,
    SIDE,
    Words,
    cell_centre,
    cell_of,
    cells_inside,
    point_text,
)
from ibisagent.synthesis.reasoning import answer, facts, sentences, thought
from ibisagent.targets import TARGETS
from ibisagent.types import Click, Terminate

WORDS = Words.build()


def test_the_vocabulary_is_closed_and_without_repeats() -> None:
    assert len(set(WORDS.entries)) == len(WORDS.entries)
    for sentence in sentences():
        tokens = WORDS.encode(sentence, SIDE, SIDE)
        assert tokens[-1] == 1
        assert max(tokens) < len(WORDS.entries)
        assert WORDS.decode(tokens, SIDE, SIDE) == sentence


def test_a_statement_is_one_token_and_each_kind_has_its_own() -> None:
    kinds = WORDS.statements()
    assert {kind: len(ids) for kind, ids in kinds.items()} == {"fit": 2, "place": 18, "size": 8, "error": 3}
    assert len({token for ids in kinds.values() for token in ids}) == 31
    assert WORDS.encode("They lie at the upper left of the picture.", SIDE, SIDE)[0] in kinds["place"]
    assert len(WORDS.encode("The mask fits badly. It is tiny.", SIDE, SIDE)) == 3


def test_each_of_several_points_keeps_its_place() -> None:
    text = f"liver {point_text(70, SIDE, SIDE)} spleen {point_text(4000, SIDE, SIDE)}"
    tokens = WORDS.encode(text, SIDE, SIDE)
    assert [t - len(WORDS.entries) for t in tokens if t >= len(WORDS.entries)] == [70, 4000]
    assert WORDS.decode(tokens, SIDE, SIDE) == text


def test_a_word_outside_the_vocabulary_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        WORDS.encode("<think> quantum </think>", SIDE, SIDE)
    for text in ("<think> 30% </think>", "<think> liver! </think>"):
        with pytest.raises(KeyError, match="no word"):
            WORDS.encode(text, SIDE, SIDE)


@pytest.mark.parametrize("point", ["(0.5,0.25)", "( 0.5 , 0.25 )", "(0.5000, 0.2500)"])
def test_a_point_keeps_its_coordinates_however_the_grammar_lets_it_be_spaced(point: str) -> None:
    tokens = WORDS.encode(f"<action> Positive Point {point} </action>".replace("<action> ", ""), SIDE, SIDE)
    assert [t - len(WORDS.entries) for t in tokens if t >= len(WORDS.entries)] == [16 * 64 + 32]


@pytest.mark.parametrize("target", TARGETS)
def test_texts_survive_the_way_through_tokens_up_to_the_cell(target: str) -> None:
    rng = np.random.default_rng(3)
    truth = np.zeros((200, 256), bool)
    truth[20:60, 30:90] = True
    click = click_at(40, 33, 200, 256, positive=True)
    for mask, action in ((None, click), (truth, Terminate())):
        known = facts(target, truth, mask, action)
        text = format_text(thought(known, rng), action, answer(known, rng) if mask is not None else None)
        tokens = WORDS.encode(text, 200, 256)
        again = WORDS.decode(tokens, 200, 256)
        if mask is not None:
            assert again == text
            continue
        read = parse(again).action
        assert isinstance(read, Click)
        assert abs(read.x - click.x) <= CELL / 256
        assert abs(read.y - click.y) <= CELL / 200
        assert WORDS.encode(again, 200, 256) == tokens


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (255, 256), (256, 173), (4, 256), (256, 5), (1, 256)]
)
def test_every_cell_is_written_as_a_point_inside_itself(height: int, width: int) -> None:
    rows, columns = cells_inside(height, width)
    assert (rows, columns) == (-(-height // 4), -(-width // 4))
    for row in range(rows):
        for column in range(columns):
            cell = row * GRID + column
            x, y = cell_centre(cell, height, width)
            assert 0 < x < 1
            assert 0 < y < 1
            assert cell_of(x, y, height, width) == cell
            action = parse(
                f"<think> a </think> <action> Positive Point {point_text(cell, height, width)} </action>"
            ).action
            assert isinstance(action, Click)
            assert cell_of(action.x, action.y, height, width) == cell


def test_every_pixel_lies_in_the_cell_that_covers_it() -> None:
    for height, width in ((256, 256), (77, 256)):
        for pixel in range(width):
            x = (pixel + 0.5) / width
            assert cell_of(x, 0.0, height, width) == pixel // CELL
            assert pixel_from_coordinate(x, width) == pixel
