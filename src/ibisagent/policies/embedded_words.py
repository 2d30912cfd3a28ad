"""The words of the embedded policy: text in the grammar to tokens and back.

One token is a tag, a verb, the name of a target, a verdict, a statement, a word or a point. All
points share one token in the sequence; which point is meant is an index into a grid of cells over
the 256 x 256 square that holds the observation, and its text is the centre of that cell in the
picture frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ibisagent.actions import DECIMALS
from ibisagent.synthesis.reasoning import STATEMENTS, VERDICTS, sentences, statement_sentences
from ibisagent.targets import TARGETS, in_the_mirror

SIDE = 256  # pixels of the square that the network sees
CELL = 4  # pixels per side of one cell
GRID = SIDE // CELL

_PAD, _END, POINT = "<pad>", "<end>", "<point>"
_FIXED = (
    _PAD,
    _END,
    POINT,
    "<think>",
    "</think> <action>",
    "</action>",
    "</action> <answer>",
    "</answer>",
    "Positive Point",
    "Negative Point",
    "Undo",
    "Terminate",
    "of the picture",
    "in this picture",
    *VERDICTS.values(),
    *statement_sentences(),
)
POINT_ENTRY = _FIXED.index(POINT)
_COORDINATES = re.compile(r"\(\s*([0-9.]+)\s*,\s*([0-9.]+)\s*\)")


@dataclass(frozen=True)
class Words:
    """A closed vocabulary. Token ids are indices into `entries` (0 pads, 1 ends), then one a cell."""

    entries: tuple[str, ...]

    @classmethod
    def build(cls) -> Words:
        """Every word that the templates of `synthesis.reasoning` can write."""
        words: set[str] = set()
        for sentence in sentences():
            words |= set(_split(sentence))
        loose = sorted(words - set(TARGETS) - set(_FIXED))
        return cls(_FIXED + TARGETS + tuple(loose))

    def id(self, entry: str) -> int:
        """Token id of an entry. Raises KeyError for a word outside the vocabulary."""
        return self._ids()[entry]

    def _ids(self) -> dict[str, int]:
        return {entry: index for index, entry in enumerate(self.entries)}

    def statements(self) -> dict[str, tuple[int, ...]]:
        """Token ids of the statements, by kind: of each kind one is true, or none."""
        ids = self._ids()
        return {
            kind: tuple(ids[wording] for wordings in values.values() for wording in wordings)
            for kind, values in STATEMENTS.items()
        }

    def mirrored(self, tokens: Sequence[int]) -> list[int]:
        """The tokens with left and right exchanged in the names of targets."""
        ids = self._ids()
        other = {ids[target]: ids[in_the_mirror(target)] for target in TARGETS}
        return [other.get(token, token) for token in tokens]

    def point_id(self, cell: int) -> int:
        """Token id of the point in a cell; the decoder reads all points as the entry `<point>`."""
        return len(self.entries) + cell

    def encode(self, text: str, height: int, width: int) -> list[int]:
        """Token ids, ending with `<end>`.

        `height` and `width` are the observation's, in pixels of the square. Raises KeyError for
        words outside the vocabulary.
        """
        ids = self._ids()
        points = iter(_COORDINATES.findall(text))
        tokens = []
        plain = _COORDINATES.sub(POINT, text)
        pieces = _split(plain)
        if "".join(pieces).replace(" ", "") != "".join(plain.split()):
            raise KeyError("a sign that is no word")
        for piece in pieces:
            if piece == POINT:
                x, y = next(points)
                tokens.append(self.point_id(cell_of(float(x), float(y), height, width)))
            else:
                tokens.append(ids[piece])
        return [*tokens, 1]

    def decode(self, tokens: Sequence[int], height: int, width: int) -> str:
        """The text of token ids up to `<end>`."""
        pieces = []
        for token in tokens:
            if token == 1:
                break
            cell = token - len(self.entries)
            pieces.append(self.entries[token] if cell < 0 else point_text(cell, height, width))
        return re.sub(r" ([.,])", r"\1", " ".join(pieces))


_UNITS = re.compile(
    "|".join(re.escape(entry) for entry in sorted(_FIXED + TARGETS, key=len, reverse=True))
    + r"|[A-Za-z-]+|[.,]"
)


def _split(text: str) -> list[str]:
    return _UNITS.findall(text)


def cell_of(x: float, y: float, height: int, width: int) -> int:
    """Row-major index of the cell that holds a point (x, y in [0, 1] of the observation)."""
    column = min(int(x * width / CELL), _cells(width) - 1)
    row = min(int(y * height / CELL), _cells(height) - 1)
    return row * GRID + column


def cell_centre(cell: int, height: int, width: int) -> tuple[float, float]:
    """x and y in [0, 1] of the middle of that part of a cell that the observation covers."""
    row, column = divmod(cell, GRID)
    x = (column * CELL + min((column + 1) * CELL, width)) / (2 * width)
    y = (row * CELL + min((row + 1) * CELL, height)) / (2 * height)
    return x, y


def point_text(cell: int, height: int, width: int) -> str:
    """A cell's centre as the grammar writes it, such as `(0.5000, 0.2500)`."""
    x, y = cell_centre(cell, height, width)
    return f"({x:.{DECIMALS}f}, {y:.{DECIMALS}f})"


def cells_inside(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells that the observation covers."""
    return _cells(height), _cells(width)


def _cells(pixels: int) -> int:
    return -(-pixels // CELL)
