"""The long version of tests/test_odd_files.py: the largest files, and thousands of damaged ones.

    python benchmarks/reading.py --largest     peak memory of each of the largest pictures
    python benchmarks/reading.py --damaged N   N files with bytes changed, cut out or repeated

Every file must give a picture or one InputError, below 1 GB of memory. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from odd_dicoms import dicom_bytes
from odd_files import Case, peak_kilobytes
from odd_niftis import nifti_bytes

from ibisagent.errors import InputError
from ibisagent.images import load_picture

SIDE = 8192
GIGABYTE = 1024**2  # in kilobytes


def largest_cases() -> list[str]:
    return [
        *("L.png", "LA.png", "P.png", "RGB.png", "RGBA.png", "I;16.png", "RGB.jpg", "progressive.jpg"),
        *("F.tif", "CMYK.tif", "lzw.tif", "turned.tif", "turned.jpg", "RGB.bmp"),
        *("16.dcm", "32.dcm", "RGB.dcm", "YBR.dcm", "i2.nii", "f4.nii.gz", "deep.nii.gz"),
    ]


def write_largest(name: str, path: Path) -> None:
    """One file of 8192 x 8192 pixels, or a volume of 2 GB."""
    row = np.arange(SIDE, dtype=np.uint16)
    deep = row[:, None] * np.uint16(3) + row
    eight = (deep >> 7).astype(np.uint8)
    colour = np.dstack([eight, eight[::-1], eight.T])
    kind, suffix = name.split(".", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix == "dcm":
        pixels = {"16": deep, "32": deep.astype(np.uint32), "RGB": colour, "YBR": colour}[kind]
        if kind == "32":
            path.write_bytes(
                dicom_bytes(
                    BitsAllocated=32,
                    BitsStored=32,
                    HighBit=31,
                    Rows=SIDE,
                    Columns=SIDE,
                    PixelData=pixels.tobytes(),
                )
            )
        else:
            photometric = {"16": "MONOCHROME2", "RGB": "RGB", "YBR": "YBR_FULL"}[kind]
            path.write_bytes(dicom_bytes(pixels, photometric))
    elif suffix.startswith("nii"):
        if kind == "deep":
            head = nifti_bytes(np.zeros((512, 512, 1), np.int16), dim=[3, 512, 512, 4000, 1, 1, 1, 1])[:352]
            write_zeros(head, 512 * 512 * 4000 * 2, path)
        else:
            content = nifti_bytes(deep[:, :, None].astype(kind))
            path.write_bytes(gzip.compress(content, 1) if suffix == "nii.gz" else content)
    elif kind == "I;16":
        Image.fromarray(deep).save(path, compress_level=1)
    elif kind == "F":
        Image.fromarray(deep.astype(np.float32)).save(path)
    elif kind == "turned":
        Image.fromarray(colour).save(path, exif=exif)
    else:
        mode = kind if kind in ("L", "LA", "P", "RGBA", "CMYK") else "RGB"
        options: dict[str, dict[str, object]] = {"png": {"compress_level": 1}}
        options |= {"jpg": {"progressive": kind == "progressive"}}
        if kind == "lzw":
            options["tif"] = {"compression": "tiff_lzw"}
        Image.fromarray(colour).convert(mode).save(path, **options.get(suffix, {}))


def write_zeros(head: bytes, count: int, path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head)
        for start in range(0, count, 2**24):
            stream.write(bytes(min(2**24, count - start)))


def read(path: Path) -> dict[str, object]:
    start = time.perf_counter()
    try:
        said = "x".join(str(side) for side in load_picture(path).pixels.shape)
    except InputError as error:
        said = str(error)
    return {"said": said, "seconds": time.perf_counter() - start, "kilobytes": peak_kilobytes()}


def largest() -> bool:
    good = True
    for name in largest_cases():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"largest.{name.split('.', 1)[1]}"
            write_largest(name, path)
            done = subprocess.run(
                [sys.executable, __file__, "--read", str(path)], capture_output=True, text=True, check=False
            )
        said = json.loads(done.stdout) if done.returncode == 0 else {"said": done.stderr, "kilobytes": 0}
        good &= done.returncode == 0 and done.stderr == "" and said["kilobytes"] < GIGABYTE
        print(
            f"{name:18s} {said['kilobytes'] / 1024:6.0f} MB {said.get('seconds', 0):6.1f} s  {said['said']}"
        )
    return good


def damaged(count: int) -> bool:
    """Files of every format with some bytes changed, cut out or repeated, in this process."""
    from odd_dicoms import dicom_cases
    from odd_niftis import nifti_cases
    from odd_rasters import raster_cases

    cases: list[Case] = [
        case
        for case in (*raster_cases(), *dicom_cases(), *nifti_cases())
        if case.readable and isinstance(case.content, bytes) and len(case.content) < 200_000
    ]
    random = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            case = cases[int(random.integers(len(cases)))]
            path = Path(folder) / f"file{''.join(Path(case.name).suffixes[-2:])}"
            path.write_bytes(_damage(case.content, random))
            try:
                said = read(path)
            except Exception as error:
                print(f"file {number} ({case.name}): {type(error).__name__}: {error}")
                outcomes["CRASHED"] += 1
                continue
            slowest = max(slowest, float(said["seconds"]))
            outcomes["read" if str(said["said"])[0].isdigit() else "refused"] += 1
    peak = peak_kilobytes()
    print(f"{count} files: {dict(outcomes)}, slowest {slowest:.1f} s, peak {peak / 1024:.0f} MB")
    return not outcomes["CRASHED"] and peak < GIGABYTE


def _damage(content: bytes | object, random: np.random.Generator) -> bytes:
    data = bytearray(content)  # type: ignore[call-overload]
    for _ in range(int(random.integers(1, 6))):
        reach = len(data) if random.random() < 0.5 else min(len(data), 600)  # headers twice as often
        if reach == 0:
            break
        place = int(random.integers(reach))
        length = int(random.integers(1, 9))
        match int(random.integers(4)):
            case 0:
                data[place : place + length] = random.bytes(length)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place] = int(random.choice([0, 1, 127, 128, 255]))
    return bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--damaged", type=int, default=0, metavar="N")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        sys.exit(0)
    fine = (not options.largest or largest()) and (not options.damaged or damaged(options.damaged))
    sys.exit(0 if fine else 1)
