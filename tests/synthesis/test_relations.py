"""Relations pick one structure where it is clear, and nothing where it is not."""

import numpy as np
import pytest
from conftest import disc

from ibisagent.synthesis.relations import REFERENCES, clearly_left, disjoint, one_piece, pick


def at(column, row, radius=8, size=100):
    return disc(size, size, row, column, radius)


FOUR = {"west": at(15, 50), "east": at(85, 50), "north": at(50, 15), "south": at(50, 85)}
MIDDLE = at(50, 50)


@pytest.mark.parametrize(
    ("relation", "name"),
    [("leftmost", "west"), ("rightmost", "east"), ("highest", "north"), ("lowest", "south")],
)
def test_extremes_and_directions(relation, name):
    assert pick(relation, FOUR, []) == name
    direction = {"leftmost": "left", "rightmost": "right", "highest": "above", "lowest": "below"}[relation]
    across = ("west", "east") if direction in ("left", "right") else ("north", "south")
    assert pick(direction, {one: FOUR[one] for one in across}, [MIDDLE]) == name
    assert pick(direction, FOUR, [MIDDLE]) is None, "the other two are neither"


def test_directions_need_more_than_a_different_middle():
    wide = np.zeros((100, 100), bool)
    wide[60:80, 10:90] = True
    assert pick("left", {"a": at(30, 30)}, [wide]) is None, "much of the reference lies further left"
    assert clearly_left(at(30, 30), wide) is None and clearly_left(at(20, 50), at(70, 50)) is True
    assert clearly_left(at(70, 50), at(20, 50)) is False
    assert pick("left", {"a": at(49, 20)}, [MIDDLE]) is None, "a pixel is a tie"
    assert pick("left", {"a": at(20, 20), "b": at(25, 70)}, [MIDDLE]) is None, "two fit"
    assert pick("leftmost", {"a": at(20, 20), "b": at(21, 70)}, []) is None, "nearly tied"
    assert pick("leftmost", {"a": at(20, 20)}, []) is None, "furthest among one says nothing"
    tailed = at(30, 30)
    tailed[30, 30:95] = True
    assert clearly_left(at(30, 70), at(60, 30)) is True
    assert clearly_left(tailed, at(55, 70)) is None, "the middle of its box lies further right"
    assert clearly_left(at(55, 70), tailed) is None
    reaching = at(40, 30) | at(26, 30, 3)
    reaching[30, 8:40] = True
    assert pick("leftmost", {"a": at(28, 70), "b": reaching}, []) is None, "the other one reaches further"


def test_sizes():
    sizes = {"small": at(20, 20, 5), "middle": at(50, 50, 8), "big": at(78, 78, 13)}
    assert pick("largest", sizes, []) == "big" and pick("smallest", sizes, []) == "small"
    rest = {name: sizes[name] for name in ("small", "big")}
    assert pick("larger", rest, [sizes["middle"]]) == "big"
    assert pick("smaller", rest, [sizes["middle"]]) == "small"
    near = {"a": at(20, 20, 8), "b": at(70, 70, 9)}  # 1.27 times as large
    assert pick("largest", near, []) is None and pick("smallest", near, []) is None
    assert pick("larger", {"b": near["b"]}, [near["a"]]) is None


def test_between_inside_and_nearest():
    ends = [FOUR["west"], FOUR["east"]]
    assert pick("between", {"middle": MIDDLE, "north": FOUR["north"]}, ends) == "middle"
    assert pick("between", {"middle": MIDDLE, "half": at(60, 62)}, ends) is None, "half between"
    assert pick("between", {"one": at(40, 50), "two": at(60, 50)}, ends) is None
    inner = {"inner": at(50, 50, 5), "outer": FOUR["west"]}
    assert pick("inside", inner, [at(50, 50, 20)]) == "inner"
    assert pick("inside", {"edge": at(68, 50, 5)}, [at(50, 50, 20)]) is None, "half inside"
    assert pick("inside", {"one": at(42, 50, 5), "two": at(58, 50, 5)}, [at(50, 50, 20)]) is None
    assert pick("nearest", {"near": at(70, 50), "far": FOUR["west"]}, [MIDDLE]) == "near"
    assert pick("nearest", {"near": at(72, 50), "far": at(26, 50)}, [MIDDLE]) is None, "nearly tied"


def test_several_pieces_slivers_and_overlaps_are_not_spoken_of():
    pieces = at(20, 20) | at(20, 60)
    assert one_piece(MIDDLE) and not one_piece(pieces) and not one_piece(at(50, 50, 1))
    assert not one_piece(np.zeros((50, 50), bool))
    speck = at(20, 20)
    speck[90, 90] = True
    assert one_piece(speck), "a speck does not count"
    assert pick("leftmost", {"a": pieces, "b": FOUR["east"]}, []) is None
    assert pick("left", {"a": FOUR["west"]}, [at(60, 20) | at(60, 80)]) is None
    assert disjoint([FOUR["west"], FOUR["east"]]) and not disjoint([MIDDLE, at(54, 50)])
    assert pick("leftmost", {"a": at(40, 50), "b": at(50, 50)}, []) is None
    assert pick("leftmost", {}, []) is None


def test_references_are_counted():
    with pytest.raises(AssertionError):
        pick("between", FOUR, [MIDDLE])
    assert REFERENCES["between"] == 2 and REFERENCES["leftmost"] == 0 and REFERENCES["nearest"] == 1
