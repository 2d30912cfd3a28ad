"""What a file is, before anything is decoded: regular, not too large, known by its first bytes."""

from __future__ import annotations

import contextlib
import logging
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ibisagent.errors import InputError
from ibisagent.types import MAX_SIDE

MAX_FILE_BYTES = 512 * 1024**2  # of a picture that is decoded in memory
MAX_FRAME_BYTES = 256 * 1024**2  # of one decoded frame, or one plane of a volume
MAX_VOLUME_FILE_BYTES = 4 * 1024**3  # of a volume, which is read slice by slice

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "DICOM": (".dcm", ".dicom", ".ima", ".dic"),
    "NIfTI": (".nii",),
    "gzip": (".nii.gz", ".gz"),
}
_KNOWN = "PNG, JPEG, TIFF, BMP, one DICOM file, or NIfTI (.nii, .nii.gz)"
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF file"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"NRRD", "an NRRD file"),
    (b"ObjectType", "a MetaImage header"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"II+\x00", "a BigTIFF file"),
    (b"MM\x00+", "a BigTIFF file"),
)

_FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0014, 0x0016)  # of a bare data set

_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class PictureFile:
    """A regular file of a known format, by its signature."""

    path: Path
    format: str  # a key of SUFFIXES
    size: int  # bytes
    noun: str  # picture or mask
    given: str  # how errors name it, such as "the picture given (.png)"
    assumptions: tuple[str, ...]
    bare: bool = False  # a DICOM data set without preamble and meta information

    def fail(self, rule: str, value: str, fix: str) -> InputError:
        """An error about this file; neither its name nor its path is in it."""
        return InputError(rule, f"{self.given}: {value}", fix)

    def damaged(self, how: str) -> InputError:
        """The error for a file that starts well and cannot be decoded whole."""
        return self.fail(
            f"A {self.format} file must be whole", how, "copy or export it again from its source"
        )


def open_picture(source: str | Path, noun: str = "picture") -> PictureFile:
    """Look at a file without decoding it. `noun` is the word that errors use for it.

    Raises InputError for what is missing, not a regular file, unreadable, empty, too large or of
    no known format.
    """
    path = Path(source)
    suffix = _suffix(path)
    given = f"the {noun} given ({suffix or 'no known suffix'})"
    size = _size(path, noun, given)
    head = _head(path, noun, given)
    name = _format(head, given)
    limit = MAX_VOLUME_FILE_BYTES if name in ("NIfTI", "gzip") else MAX_FILE_BYTES
    if size > limit:
        raise InputError(
            f"A {name} file may have at most {limit // 1024**2} MB",
            f"{given}: {size // 1024**2} MB",
            "save a single frame, or a smaller picture",
        )
    assumptions: tuple[str, ...] = ()
    if suffix not in SUFFIXES[name]:
        said = f"the suffix {suffix} says otherwise" if suffix else "its name has no known suffix"
        assumptions = (f"Read as {name}, as its first bytes say; {said}.",)
    bare = name == "DICOM" and head[128:132] != b"DICM"
    return PictureFile(path, name, size, noun, given, assumptions, bare)


def check_sides(width: int, height: int, given: str) -> None:
    """Raises InputError unless both sides are between 1 and MAX_SIDE."""
    if width < 1 or height < 1:
        raise InputError(
            "A picture has at least one pixel", f"{given}: {width} x {height}", "export it again"
        )
    if max(width, height) > MAX_SIDE:
        factor = -(-max(width, height) // MAX_SIDE)
        raise InputError(
            f"A picture may have at most {MAX_SIDE} pixels a side",
            f"{given}: {width} x {height}",
            f"downscale it by {factor} or more, or cut out the part that matters",
        )


def frame_number(frame: int | None, count: int, word: str, file: PictureFile, notes: list[str]) -> int:
    """The number of the frame (page) asked for, from 0; the first of several is noted as assumed.

    A mask of one page fits every frame of its picture. Raises InputError for a number that is
    not there.
    """
    if frame is None or (count == 1 and file.noun == "mask"):
        if count > 1:
            notes.append(f"The file has {count} {word}s and none was named: {word} 0 is read.")
        return 0
    if not 0 <= frame < count:
        raise file.fail(
            f"A {word} number lies within the file",
            f"{word} {frame} of {count}",
            f"name one from 0 to {count - 1}" if count > 1 else f"the file has one {word}; name none",
        )
    return frame


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep decoders' warnings and log lines, which may quote patient data, off the terminal.

    Filters and levels belong to the whole process, so one thread at a time is let in.
    """
    with _ONE_AT_A_TIME:
        yield from _silence()


def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("PIL", "pydicom", "nibabel.global")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _suffix(path: Path) -> str:
    """The suffix if it is a known one; any other might be part of a name."""
    name = path.name.lower()
    known = [suffix for group in SUFFIXES.values() for suffix in group]
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")


def _size(path: Path, noun: str, given: str) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"The {noun} must exist", f"{given}: no such file", "check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"The {noun} must be readable", f"{given}: {_reason(error)}", "check the path and its links"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"The {noun} must be one file", f"{given}: {kind}", "name a single file")
    if status.st_size == 0:
        raise InputError(f"A {noun} file must not be empty", f"{given}: 0 bytes", "copy or export it again")
    return status.st_size


def _head(path: Path, noun: str, given: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(400)
    except OSError as error:
        raise InputError(
            f"The {noun} must be readable", f"{given}: {_reason(error)}", "check its permissions"
        ) from None


def _reason(error: OSError | ValueError) -> str:
    """The system's words without the path."""
    return (getattr(error, "strerror", None) or "not a valid path").lower()


def _format(head: bytes, given: str) -> str:
    if head[128:132] == b"DICM" or _is_bare_dicom(head):  # a DICOM preamble may look like a TIFF
        return "DICOM"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    if head[:2] == b"BM":
        return "BMP"
    if head[344:348] == b"n+1\x00" or head[4:12] == b"n+2\x00\r\n\x1a\n":
        return "NIfTI"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    value = next((name for start, name in _FOREIGN if head.startswith(start)), "none of these")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        value = "a WebP file"
    if head[344:348] == b"ni1\x00":
        value = "a NIfTI header without its .img"
    raise InputError(f"A picture file is {_KNOWN}", f"{given}: {value}", "save it as PNG, or .nii.gz")


def _is_bare_dicom(head: bytes) -> bool:
    """A little-endian data set without preamble and meta information starts in group 8."""
    element = int.from_bytes(head[2:4], "little")
    return head[:2] == b"\x08\x00" and element in _FIRST_ELEMENTS and len(head) >= 132
