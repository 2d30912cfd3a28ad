"""Writes the odd and damaged files that reading must survive, each with what is expected of it.

Deterministic: the same bytes every time. `python tests/odd_files.py FOLDER` writes them for a look.
"""

from __future__ import annotations

import gzip
import io
import os
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class OddFile:
    """One file. `says` is part of an assumption if it is readable, else of the error."""

    path: Path
    readable: bool
    says: str = ""
    shape: tuple[int, int] | None = None  # of the picture, where it is the point of the case


@dataclass(frozen=True)
class Case:
    """A file yet to be written: its bytes, or what makes it at a path."""

    name: str
    content: bytes | Callable[[Path], object]
    readable: bool
    says: str = ""
    shape: tuple[int, int] | None = None


def write_odd_files(folder: Path) -> list[OddFile]:
    """Write all of them into `folder`, which must exist and be empty."""
    from odd_dicoms import dicom_cases
    from odd_niftis import nifti_cases
    from odd_rasters import raster_cases

    files = []
    for case in (*raster_cases(), *dicom_cases(), *nifti_cases(), *suffix_cases(), *other_cases()):
        path = folder / f"{len(files):03d}-{case.name}"
        if isinstance(case.content, bytes):
            path.write_bytes(case.content)
        else:
            case.content(path)
        files.append(OddFile(path, case.readable, case.says, case.shape))
    return files


def grey(height: int = 24, width: int = 32, top: int = 255) -> np.ndarray:
    """A ramp with noise, so that no row or column equals another."""
    noise = np.random.default_rng(7).integers(0, top // 8 + 1, (height, width))
    ramp = np.linspace(0, top * 7 / 8 - 1, height * width).reshape(height, width)
    return (ramp + noise).astype(np.uint8 if top == 255 else np.uint16)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def cuts(data: bytes, count: int, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """The file cut off at `count` places, evenly from `first` bytes to shortly before its end."""
    for offset in np.linspace(first, len(data) * 0.97, count).astype(int):
        yield int(offset), data[:offset]


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def peak_kilobytes() -> int:
    """The peak memory of this process; ru_maxrss would also hold that of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def suffix_cases() -> Iterator[Case]:
    """Good files whose suffix says something else, or nothing."""
    from odd_dicoms import dicom_bytes
    from odd_niftis import nifti_bytes

    image = Image.fromarray(grey())
    good = {
        "png": encoded(image, "PNG"),
        "jpg": encoded(image, "JPEG"),
        "tif": encoded(image, "TIFF"),
        "bmp": encoded(image, "BMP"),
        "dcm": dicom_bytes(),
        "nii": nifti_bytes(np.arange(60, dtype=np.int16).reshape(3, 4, 5)),
    }
    good["nii.gz"] = packed(good["nii"])
    for true, data in good.items():
        for false in good:
            if false != true:
                yield Case(f"{true}-called.{false}", data, True, "as its first bytes say")
        yield Case(f"{true}-without-suffix", data, True, "its name has no known suffix")
        yield Case(f"{true}-upper.{true.upper()}", data, True)


def other_cases() -> Iterator[Case]:
    """What is no picture, no file, or not there."""
    image = Image.fromarray(grey())
    for suffix in ("png", "jpg", "tif", "bmp", "dcm", "nii", "nii.gz"):
        yield Case(f"empty.{suffix}", b"", False, "must not be empty")
        yield Case(f"one-byte.{suffix}", b"\x89", False, "A picture file is")
        yield Case(f"text.{suffix}", b"Dear colleague, please find attached.\n" * 20, False, "none of these")
        noise = np.random.default_rng(len(suffix)).bytes(5000)
        yield Case(f"noise.{suffix}", b"\x01\x23" + noise, False, "A picture file is")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("picture.png", encoded(image, "PNG"))
    yield Case("archive.zip", archive.getvalue(), False, "a zip archive")
    yield Case("archive.png", archive.getvalue(), False, "a zip archive")
    yield Case("paper.pdf", b"%PDF-1.7\n" + b"1 0 obj\n" * 90, False, "a PDF file")
    yield Case("page.html", b"<!doctype html><html><body>404</body></html>" * 20, False, "none of these")
    yield Case("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 20, False, "none of these")
    frames = [Image.fromarray(grey()), Image.fromarray(255 - grey())]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Case("animated.gif", animated, False, "a GIF file")
    yield Case("still.gif", encoded(image, "GIF"), False, "a GIF file")
    yield Case("web.webp", encoded(image, "WEBP"), False, "a WebP file")
    yield Case("wavelet.jp2", encoded(image, "JPEG2000"), False, "a JPEG 2000 file")
    array = io.BytesIO()
    np.save(array, grey())
    yield Case("array.npy", array.getvalue(), False, "a NumPy file")
    yield Case("pickle.png", b"\x80\x04\x95" + bytes(400), False, "none of these")
    yield Case("nearly.nrrd", b"NRRD0004\ntype: uint8\n" + bytes(400), False, "an NRRD file")
    yield Case("meta.mha", b"ObjectType = Image\nNDims = 3\n" + bytes(400), False, "a MetaImage header")
    yield Case("folder.png", Path.mkdir, False, "a folder")
    yield Case("folder.dcm", Path.mkdir, False, "a folder")
    yield Case("missing.png", lambda path: None, False, "no such file")
    yield Case("missing.nii.gz", lambda path: None, False, "no such file")
    yield Case("pipe.png", os.mkfifo, False, "not a regular file")
    yield Case("pipe.dcm", os.mkfifo, False, "not a regular file")
    yield Case("loop.png", lambda path: path.symlink_to(path), False, "symbolic links")
    yield Case("dangling.png", lambda path: path.symlink_to("nowhere.png"), False, "no such file")
    yield Case("device.png", lambda path: path.symlink_to("/dev/zero"), False, "not a regular file")
    yield Case("linked.png", _linked, True, "", (24, 32))
    yield Case("Ünï cödé 'quoted' name.png", encoded(image, "PNG"), True, "", (24, 32))
    yield Case("new\nline.png", encoded(image, "PNG"), True, "", (24, 32))
    if os.geteuid() != 0:  # root may read everything
        yield Case("locked.png", _locked, False, "permission denied")
    yield Case("too-large.png", lambda path: _sparse(path, 600), False, "at most 512 MB")
    yield Case("too-large.dcm", lambda path: _sparse(path, 600), False, "A DICOM file may have at most")


def _linked(path: Path) -> None:
    target = path.with_name("target-of-the-link.png")
    target.write_bytes(encoded(Image.fromarray(grey()), "PNG"))
    path.symlink_to(target)


def _locked(path: Path) -> None:
    path.write_bytes(encoded(Image.fromarray(grey()), "PNG"))
    path.chmod(0)


def _sparse(path: Path, megabytes: int) -> None:
    """A file with a signature and a hole: large without taking room on the disk."""
    head = b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else bytes(128) + b"DICM"
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(megabytes * 1024**2)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True)
    print(f"{len(write_odd_files(where))} files in {where}")
