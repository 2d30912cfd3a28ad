"""`ibisagent data check PATH`: what is wrong with a data set, file by file, and what reading does about it.

Found: files that are missing, unreadable or of another size; empty masks and odd label values;
names of targets that look like typing errors; pictures that stand twice, also nearly and across
splits; patients and volumes that stand in two splits. The report names files, since a person has to
find them; nothing else of ibisagent does.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ibisagent.datasets.reading import Reading
from ibisagent.errors import IbisError, writing_to

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ibisagent.datasets.cases import Case, DataSet, Fault
    from ibisagent.types import Picture

HASH_SIDE = 16  # of the grid of the perceptual hash: 256 bits of differences
NEAR = 6  # bits of 256 in which near-duplicates differ at most
_FLAT = 4.0  # grey levels: pictures of less contrast have no hash that means anything
_TYPO = 0.8  # ratio of likeness from which a rare name is taken for a typing error of a common one
_RARE = 0.05  # of the common one's count

KNOWN_TYPOS = {"public symphysis": "pubic symphysis", "panreas": "pancreas"}
"""Names that published data sets misspell."""


@dataclass(frozen=True)
class Check(Reading):
    """Say what is wrong with a data set, and what reading it would do about that."""

    data: Annotated[Path, tyro.conf.Positional]
    """a data set: its folder or its index file"""
    json: Path | None = None
    """also write the report to this file"""


@dataclass(frozen=True)
class Report:
    """What a check found."""

    format: str
    pictures: dict[str, int]  # by split
    targets: dict[str, int]  # samples by target
    absent: int  # targets listed as absent
    patients: int  # that are told apart
    alone: int  # pictures of which no patient is known
    faults: tuple[Fault, ...]

    def counts(self) -> dict[str, int]:
        """Faults by kind."""
        return dict(sorted(Counter(str(fault.kind) for fault in self.faults).items()))


@dataclass(frozen=True)
class _Seen:
    """What is kept of a picture after it was read."""

    where: str
    split: str
    content: str  # SHA-256 of the pixels
    bits: NDArray[np.uint64] | None  # perceptual hash; None where it has too little contrast


def run(command: Check) -> int:
    """Check a data set and print the report; exit code 0 without faults, else 1. Raises InputError."""
    from ibisagent.datasets.detect import open_dataset

    if command.json is not None:
        with writing_to("--json is a file"):
            command.json.parent.mkdir(parents=True, exist_ok=True)
            command.json.touch()
    report = check(open_dataset(command.data, command.format, command.read_options()))
    print(f"format: {report.format}")
    for split, count in report.pictures.items():
        print(f"{split}: {count} pictures")
    masks = sum(report.targets.values())
    print(f"{masks} masks of {len(report.targets)} targets, {report.absent} listed absent")
    print(f"{report.patients} patients are told apart")
    if report.alone:
        print(
            f"{report.alone} pictures have no known patient: they are held out one by one; "
            "--patient says whose they are"
        )
    for fault in report.faults:
        print(f"{fault.kind}: {fault.where}: {fault.value} -> {fault.done}")
    print("no faults" if not report.faults else f"{len(report.faults)} faults: {report.counts()}")
    if command.json is not None:
        record = asdict(report) | {"counts": report.counts()}
        command.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report.faults else 0


def check(dataset: DataSet) -> Report:
    """Read every picture and mask of a data set once and report what is wrong."""
    faults = list(dataset.faults)
    pictures: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    seen: list[_Seen] = []
    for case in dataset.cases:
        pictures[case.split] += 1
        picture = _check_case(case, dataset, targets, faults)
        if picture is not None:
            seen.append(_Seen(case.where, case.split, picture.content_id, perceptual_hash(picture)))
    faults += _typos(targets)
    faults += _duplicates(seen)
    faults += _patients(dataset.cases)
    absent = sum(len(case.absent) for case in dataset.cases)
    patients = Counter(case.patient for case in dataset.cases)
    alone = patients.pop(None, 0)
    return Report(
        dataset.format,
        dict(sorted(pictures.items())),
        dict(targets.most_common()),
        absent,
        len(patients),
        alone,
        tuple(faults),
    )


def _check_case(case: Case, dataset: DataSet, targets: Counter[str], faults: list[Fault]) -> Picture | None:
    from ibisagent.datasets.cases import Fault

    try:
        picture = case.picture.read()
    except IbisError as error:
        faults.append(Fault("unreadable", case.where, str(error), "left out"))
        return None
    shape = (picture.height, picture.width)
    whole_index = dataset.format in ("nnunet", "npz") or bool(dataset.options.labels)
    for target in case.targets:
        name = target.name or "(in words)"
        where = f"{case.where}, {name}"
        try:
            mask = target.mask.read(shape)
        except IbisError as error:
            faults.append(Fault("unreadable", where, str(error), "left out"))
            continue
        if mask.shape != shape:
            value = f"mask {mask.shape[0]} x {mask.shape[1]}, picture {shape[0]} x {shape[1]}"
            faults.append(Fault("size mismatch", where, value, "left out"))
        elif not mask.any():
            if not whole_index:  # in label maps a target that does not occur is no fault
                faults.append(Fault("empty mask", where, "no foreground", "read as: not in the picture"))
        else:
            targets[name] += 1
    faults += _odd_labels(case, dataset)
    return picture


def _odd_labels(case: Case, dataset: DataSet) -> Iterator[Fault]:
    """Values of mask files that say nothing: unnamed labels, or several values in a plain mask."""
    from ibisagent.datasets.cases import Fault
    from ibisagent.datasets.mask_sources import MaskFiles, is_color, label_names, label_values

    named = {target.mask.label for target in case.targets if isinstance(target.mask, MaskFiles)}
    paths = {
        path for target in case.targets if isinstance(target.mask, MaskFiles) for path in target.mask.paths
    }
    for path in sorted(paths):
        try:
            found = label_names(label_values(path, colors=any(map(is_color, named))))
        except IbisError:
            continue  # named already
        odd = [value for value in found if value not in named] if None not in named else found[1:]
        if odd:
            done = "read as foreground" if None in named else "read as background"
            values = ", ".join((found if None in named else odd)[:6]) + (" ..." if len(found) > 6 else "")
            yield Fault("odd label value", f"{case.where}, {path.name}", values, done)


# --- between pictures -------------------------------------------------------------------------


def perceptual_hash(picture: Picture) -> NDArray[np.uint64] | None:
    """256 bits (4 x uint64): which of two neighbours on a 16 x 17 grid of means is brighter.

    Small changes of size, compression and brightness leave it nearly as it is. None for pictures
    with too little contrast to say anything.
    """
    import cv2
    import numpy as np

    grey = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if grey.std() < _FLAT:
        return None
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return np.frombuffer(bits.tobytes(), np.uint64)


def _duplicates(seen: Sequence[_Seen]) -> Iterator[Fault]:
    """Equal pictures anywhere, and nearly equal ones in different splits."""
    from ibisagent.datasets.cases import Fault

    groups: dict[str, list[_Seen]] = defaultdict(list)
    for one in seen:
        groups[one.content].append(one)
    for group in groups.values():
        for other in group[1:]:
            across = other.split != group[0].split
            value = f"the pixels of {group[0].where}" + (f" ({group[0].split})" if across else "")
            yield Fault("duplicate", other.where, value, "kept: leave one out" if across else "kept")
    firsts = [group[0] for group in groups.values() if group[0].bits is not None]
    for one, other, distance in _near_pairs(firsts):
        value = f"like {one.where} ({one.split}), {distance} of 256 bits differ"
        yield Fault("near-duplicate", other.where, value, "kept: leave one out")


def _near_pairs(seen: Sequence[_Seen]) -> Iterator[tuple[_Seen, _Seen, int]]:
    """Pairs across splits whose hashes differ in at most NEAR bits."""
    import numpy as np

    splits = sorted({one.split for one in seen})
    for first, second in ((a, b) for place, a in enumerate(splits) for b in splits[place + 1 :]):
        left, right = [[one for one in seen if one.split == split] for split in (first, second)]
        if not left or not right:
            continue
        table = np.stack([one.bits for one in right if one.bits is not None])
        for one in left:
            assert one.bits is not None, "pictures without a hash were left out"
            distances = np.bitwise_count(table ^ one.bits).sum(axis=1)
            for place in np.flatnonzero(distances <= NEAR):
                yield one, right[int(place)], int(distances[place])


def _patients(cases: Iterable[Case]) -> Iterator[Fault]:
    from ibisagent.datasets.cases import Fault

    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        if case.patient is not None and case.patient_known:
            splits[case.patient].setdefault(case.split, case.where)
    for found in splits.values():
        for one, other in pairwise(sorted(found.items())):
            value = f"also in {one[0]}, as {one[1]}"
            yield Fault("patient in two splits", other[1], value, "kept: move it to one split")


def _typos(targets: Counter[str]) -> Iterator[Fault]:
    """Names known as misspelt, and rare names that nearly are common ones."""
    from ibisagent.datasets.cases import Fault

    for name, count in targets.items():
        right = KNOWN_TYPOS.get(name.lower())
        if right is None:
            common = [other for other, many in targets.items() if other != name and count <= _RARE * many]
            likely = difflib.get_close_matches(name, common, n=1, cutoff=_TYPO)
            right = likely[0] if likely and not _meant(name, likely[0]) else None
        if right is not None:
            yield Fault("label typo", name, f"in {count} masks; perhaps {right}", "read as it is written")


def _meant(name: str, other: str) -> bool:
    """Whether two names differ in a way that changes the meaning: sides, directions, plurals, numbers."""
    words = set(name.lower().split()) ^ set(other.lower().split())
    opposites = {"left", "right", "anterior", "posterior", "superior", "inferior", "upper", "lower", "and"}
    plural = {name, other} == {min(name, other, key=len), min(name, other, key=len) + "s"}
    return plural or bool(words & opposites) or any(any(map(str.isdigit, word)) for word in words)
