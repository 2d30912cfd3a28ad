"""Whether what the embedded policy's thoughts and answers state about the picture is true.

    python benchmarks/thoughts.py FOLDER [FOLDER ...] [--json FILE]

FOLDER is a result of `ibisagent evaluate`: samples.jsonl holds the texts, the true masks and the mask
before every turn. Texts are read by the templates of `synthesis.reasoning` in reverse; everything
else is measured here anew from the masks. Each text counts each of its statements once. A statement
agrees (strict; what else the tolerant figure takes in is behind the semicolon) where

- size: the target's share of the picture lies in the stated class (limits 0.5, 3 and 12 %; or it
  passes a limit by a factor of at most 1.25, about 12 % in diameter). None where it is absent;
- error size: the same for the region that the verdict speaks of, missed or wrongly included, as a
  share of the target (limits 10 and 40 %). Wrong where there is no such region;
- place: the centre of the target's largest part lies in the stated ninth of the picture (; or within
  5 % of the picture's sides of that ninth);
- fit: the mask's IoU is at least 0.80 where it is said to fit (; 0.70), below 0.50 where it is said to
  fit badly (; 0.80);
- error type. "missed", "included": of the two error regions it is the one with the larger inscribed
  circle, by which METHOD section 5 chooses clicks (; or it has 5 % of the target's area). "absent":
  the target is not there. "phantom": the same, and a mask stands.

These are the definitions that the templates are filled by, so a teacher's true thoughts score 1 (the
test of this file). One more row is shown and not judged: "decision", that no mask stands (which is
trivially known), that no click would help much, or that a fresh start is better.

The bar (strict, thoughts alone): of all statements >= 90 % agree, and >= 60 % of the thoughts state
at least one. Exit code 1 where it does not hold. Intervals: 95 %, over patients within sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import ndimage

from ibisagent.errors import InputError
from ibisagent.evaluation.intervals import Resampler, mean
from ibisagent.evaluation.samples import read_lines, write_json
from ibisagent.masks import decode_rle
from ibisagent.metrics import Floats
from ibisagent.synthesis import reasoning
from ibisagent.types import Mask

JUDGED = ("place", "size", "fit", "error size", "error type")
AGREEMENT, STATING = 0.90, 0.60  # the bar

_CLASSES = {
    "size": {"tiny": (0.0, 0.005), "small": (0.005, 0.03), "medium-sized": (0.03, 0.12), "large": (0.12, 1)},
    "error size": {"small": (0.0, 0.1), "moderate": (0.1, 0.4), "large": (0.4, np.inf)},
}  # share above the first number, up to the second
_FACTOR, _BORDER, _MATERIAL = 1.25, 0.05, 0.05  # of the tolerant figures
_FITS, _FITS_TOLERANT, _POOR = 0.80, 0.70, 0.50  # IoU


@dataclass(frozen=True)
class Config:
    """Check the statements of the embedded policy's thoughts against the masks."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """results of `ibisagent evaluate`"""
    json: Path | None = None
    """write all figures here too"""
    seed: int = 0
    """of the intervals"""


@dataclass(frozen=True)
class Statement:
    """Something that a text says."""

    kind: str  # one of JUDGED, or "decision"
    word: str  # such as "upper left"; of an error type, the situation
    about: str  # the situation of the sentence that says it


@dataclass(frozen=True)
class Verdict:
    """A statement held against the masks."""

    said: Statement
    strict: bool
    tolerant: bool
    measured: str  # what would have been right, in a word or two


# --- reading ----------------------------------------------------------------------------------


_DECISIONS = ("bare", "good", "elsewhere")
_KINDS = {"place": "place", "size": "size", "error": "error size", "fit": "fit"}
_STATED = {
    wording: (_KINDS[kind], value)
    for kind, values in reasoning.STATEMENTS.items()
    for value, wordings in values.items()
    for wording in wordings
}
_ANY = "|".join(map(re.escape, sorted(_STATED, key=len, reverse=True)))


def _pattern(before: Sequence[str], after: Sequence[str]) -> re.Pattern[str]:
    """What comes before the statements, the statements, and what comes after them."""

    def one_of(templates: Sequence[str]) -> str:
        texts = [
            re.escape(text).replace(r"\{target\}", ".+?").replace(r"\{is\}", "(?:is|are)")
            for text in templates
        ]
        return f"(?:{'|'.join(texts)})"

    end = f" {one_of(after)}" if after else ""
    return re.compile(rf"{one_of(before)}(?P<said>(?: (?:{_ANY}))*){end}")


_THOUGHTS = {key: _pattern(before, after) for key, (before, after) in reasoning._THOUGHTS.items()}
_ANSWERS = {key: _pattern(templates, ()) for key, templates in reasoning._ANSWERS.items()}


def statements(text: str, is_answer: bool = False) -> list[Statement] | None:
    """What a thought or answer states, each once; None where no template gives such a text."""
    body, about = text.strip(), ""
    if not is_answer:
        found = [key for key, verdict in reasoning.VERDICTS.items() if body.startswith(verdict + " ")]
        if not found:
            return None
        about = str(found[0])
        body = body.removeprefix(reasoning.VERDICTS[found[0]] + " ")
    patterns = _ANSWERS if is_answer else _THOUGHTS
    matches = ((str(key), pattern.fullmatch(body)) for key, pattern in patterns.items())
    situation, match = next(((key, match) for key, match in matches if match), ("", None))
    if match is None:
        return None
    about = about or situation
    said = [] if is_answer and about == "good" else [about]
    result = [Statement("decision" if one in _DECISIONS else "error type", one, one) for one in said]
    for wording in re.findall(_ANY, match["said"]):
        kind, value = _STATED[wording]
        result.append(Statement(kind, value, about))
    return result


# --- measuring --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What one text is held against."""

    truth: Mask  # HxW
    mask: Mask  # before the turn; empty where none stands

    @cached_property
    def iou(self) -> float:
        union = (self.truth | self.mask).sum()
        return float((self.truth & self.mask).sum() / union) if union else 1.0

    @cached_property
    def deeper(self) -> str:
        """The error with the larger inscribed circle; "" without any error."""
        errors = (self.region("missed"), self.region("included"))
        depths = [ndimage.distance_transform_edt(np.pad(error, 1)).max() for error in errors]
        return "" if max(depths) == 0 else "missed" if depths[0] >= depths[1] - 1e-6 else "included"

    def region(self, about: str) -> Mask:
        """What a sentence of a situation speaks of."""
        if about == "missed":
            return self.truth & ~self.mask
        return self.mask & ~self.truth if about == "included" else self.truth

    def share(self, about: str) -> float:
        """Area of a region over the target's (at least a pixel)."""
        return float(self.region(about).sum() / max(self.truth.sum(), 1))

    def state(self) -> str:
        """The error type that would have been right."""
        if not self.truth.any():
            return "phantom" if self.mask.any() else "absent"
        if not self.mask.any():
            return "bare"
        return "good" if self.iou >= _FITS else "elsewhere" if self.iou < _POOR else self.deeper


def judge(said: Statement, scene: Scene) -> Verdict:
    """Hold one statement against the masks."""
    if said.kind in _CLASSES:
        return _judge_class(said, scene)
    if said.kind == "place":
        return _judge_point(said, centre(scene.truth))
    if said.kind == "fit":
        return _judge_fit(said, scene)
    return _judge_type(said, scene)


def _judge_class(said: Statement, scene: Scene) -> Verdict:
    of_target = said.kind == "size"
    region = scene.truth if of_target else scene.region(said.about)
    if not region.any():
        return Verdict(said, False, False, "nothing there")
    share = float(region.mean()) if of_target else scene.share(said.about)
    classes = _CLASSES[said.kind]
    right = next(word for word, (low, high) in classes.items() if low < share <= high)
    low, high = classes[said.word]
    return Verdict(said, right == said.word, low / _FACTOR < share <= high * _FACTOR, right)


def _judge_fit(said: Statement, scene: Scene) -> Verdict:
    right = "well" if scene.iou >= _FITS else "badly" if scene.iou < _POOR else "neither"
    tolerant = scene.iou >= _FITS_TOLERANT if said.word == "well" else scene.iou < _FITS
    stands = bool(scene.truth.any()) and bool(scene.mask.any())
    return Verdict(said, stands and right == said.word, stands and tolerant, right)


def _judge_point(said: Statement, point: tuple[float, float] | None) -> Verdict:
    if point is None:
        return Verdict(said, False, False, "nothing there")
    left, top = _corner(said.word)
    off = max(max(start - at, at - start - 1 / 3) for start, at in zip((left, top), point, strict=True))
    named = next(word for row in reasoning.PLACES for word in row if _holds(word, point))
    return Verdict(said, named == said.word, off <= _BORDER, named)


def _corner(place: str) -> tuple[float, float]:
    """Left and top side, in [0, 1], of the ninth of the picture that a place names."""
    words = place.split()
    left = 0.0 if "left" in words else 2 / 3 if "right" in words else 1 / 3
    return left, 0.0 if "upper" in words else 2 / 3 if "lower" in words else 1 / 3


def _holds(place: str, point: tuple[float, float]) -> bool:
    """Whether a ninth holds a point; of two neighbours, the right or lower one has their border."""
    return all(
        start <= at + 1e-12 and (at + 1e-12 < start + 1 / 3 or start == 2 / 3)
        for start, at in zip(_corner(place), point, strict=True)
    )


def centre(region: Mask) -> tuple[float, float] | None:
    """x and y in [0, 1] of the centre of the largest 8-connected part; None without a pixel."""
    labels, count = ndimage.label(region, np.ones((3, 3)))
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    y, x = ndimage.center_of_mass(labels == largest)
    return (float(x) + 0.5) / region.shape[1], (float(y) + 0.5) / region.shape[0]


def _judge_type(said: Statement, scene: Scene) -> Verdict:
    present, stands = bool(scene.truth.any()), bool(scene.mask.any())
    if said.word in ("missed", "included"):
        strict = scene.deeper == said.word
        tolerant = scene.region(said.word).any() and scene.share(said.word) >= _MATERIAL
    else:
        usual = {"bare": not stands, "good": stands, "elsewhere": stands}  # of the decisions
        strict = (usual | {"absent": not present, "phantom": stands and not present})[said.word]
        tolerant = strict
    return Verdict(said, bool(strict), bool(strict or tolerant), scene.state())


# --- a run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """One thought or answer with what became of its statements."""

    dataset: str
    patient: str
    present: bool  # the true mask is not empty
    is_answer: bool
    verdicts: tuple[Verdict, ...] | None  # None: no template gives this text

    @property
    def states(self) -> bool:
        return any(one.said.kind in JUDGED for one in self.verdicts or ())


def texts(record: Mapping[str, Any]) -> Iterator[Text]:
    """All thoughts and answers of one line of samples.jsonl.

    Raises InputError where the episode has no true mask.
    """
    episode = record["episode"]
    if episode is None:  # a case that could not be read
        return
    if episode["truth"] is None:
        raise InputError("episodes hold their true masks", record["case"], "run `ibisagent evaluate`")
    truth = decode_rle(episode["truth"])
    before = episode["start"]["mask"]
    for turn in episode["turns"]:
        mask = np.zeros_like(truth) if before is None else decode_rle(before)
        scene = Scene(truth, mask)
        for is_answer, text in ((False, turn["think"]), (True, turn["answer"])):
            if text is not None:
                yield _held(record, scene, text, is_answer)
        before = turn["mask"]


def _held(record: Mapping[str, Any], scene: Scene, text: str, is_answer: bool) -> Text:
    said = statements(text, is_answer)
    verdicts = None if said is None else tuple(judge(one, scene) for one in said)
    present = bool(scene.truth.any())
    return Text(record["dataset"], record["patient"], present, is_answer, verdicts)


def table(found: Sequence[Text], seed: int = 0) -> dict[str, Any]:
    """All figures as plain values: rows of kinds and of sets, the share of stating thoughts, the bar."""
    if not any(not one.is_answer for one in found):
        raise InputError("a result folder holds thoughts", "none", "name the --out of `ibisagent evaluate`")
    resampler = Resampler([one.dataset for one in found], [one.patient for one in found], seed=seed)

    def share(columns: Floats) -> dict[str, Any]:
        return {"n": int(columns[:, 1].sum()), **asdict(resampler.interval(columns, mean))}

    def row(held: Sequence[tuple[int, Verdict]]) -> dict[str, Any]:
        counts = np.zeros((len(found), 3))
        for index, one in held:
            counts[index] += one.strict, one.tolerant, 1
        return {"strict": share(counts[:, [0, 2]]), "tolerant": share(counts[:, [1, 2]])}

    def part(is_answer: bool) -> dict[str, Any]:
        own = [(i, text) for i, text in enumerate(found) if text.is_answer == is_answer]
        held = [(index, one) for index, text in own for one in text.verdicts or ()]
        judged = [(index, one) for index, one in held if one.said.kind in JUDGED]
        rows = {"all": row(judged)}
        for kind in (*JUDGED, "decision"):
            alike = [(index, one) for index, one in held if one.said.kind == kind]
            rows[kind] = row(alike)
            abouts = sorted({one.said.about for _, one in alike})
            for about in abouts if len(abouts) > 1 else ():
                rows[f"{kind}, {about}"] = row([pair for pair in alike if pair[1].said.about == about])
        wrong = Counter((v.said.kind, v.said.word, v.measured) for _, v in judged if not v.strict)
        sets = {}
        for name in sorted({text.dataset for _, text in own}):
            of_set = [pair for pair in judged if found[pair[0]].dataset == name]
            sets[name] = row(of_set) | {
                kind: row([pair for pair in of_set if pair[1].said.kind == kind]) for kind in JUDGED
            }
        targets = {
            name: row([pair for pair in judged if found[pair[0]].present == present])
            for name, present in (("target present", True), ("target absent", False))
        }
        listed = [
            {"kind": kind, "said": said, "measured": measured, "n": n}
            for (kind, said, measured), n in wrong.most_common()
        ]
        return {"kinds": rows, "targets": targets, "sets": sets, "wrong": listed}

    thoughts = part(is_answer=False)
    said = np.array([not one.is_answer for one in found])
    stating = share(np.stack([said & [one.states for one in found], said], axis=1).astype(float))
    agreeing = thoughts["kinds"]["all"]["strict"]
    return {
        "texts": len(found),
        "outside the templates": sum(one.verdicts is None for one in found),
        "patients": resampler.patients,
        "thoughts": thoughts,
        "answers": part(is_answer=True),
        "thoughts that state one": stating,
        "bar": {
            f"agreement >= {AGREEMENT}": agreeing["value"] is not None and agreeing["value"] >= AGREEMENT,
            f"stating >= {STATING}": stating["value"] >= STATING,
        },
    }


def _figure(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "-"
    interval = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['value']:.3f}{interval}"


def show(facts: Mapping[str, Any]) -> None:
    """Print the tables."""
    print(
        f"{facts['texts']} thoughts and answers of {facts['patients']} patients; "
        f"{facts['outside the templates']} are not written by the templates and count as stating nothing"
    )
    for name in ("thoughts", "answers"):
        print(f"\n{name:<28}{'n':>6}  {'strict [95 %]':<24}{'tolerant [95 %]':<24}")
        for part in ("kinds", "targets", "sets"):
            for label, row in facts[name][part].items():
                shown = f"  {label}" if ", " in label else label
                print(
                    f"{shown:<28}{row['strict']['n']:>6}  "
                    f"{_figure(row['strict']):<24}{_figure(row['tolerant']):<24}"
                )
            print()
        for one in facts[name]["wrong"][:12]:
            print(f"{one['n']:>6} wrong: {one['kind']} {one['said']!r}, measured {one['measured']!r}")
    print(f"\nthoughts that state at least one: {_figure(facts['thoughts that state one'])}")
    for bar, holds in facts["bar"].items():
        print(f"bar, {bar}: {'yes' if holds else 'NO'}")


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    found: list[Text] = []
    for folder in config.folders:
        if not any(folder.glob("samples*.jsonl")):
            raise InputError("a result folder holds samples.jsonl", "none there", "name the --out of a run")
        found += [text for record in read_lines(folder) for text in texts(record)]
    facts = table(found, config.seed)
    show(facts)
    if config.json is not None:
        write_json(config.json, facts)
    return 0 if all(facts["bar"].values()) else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
