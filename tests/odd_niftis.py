"""Odd and damaged NIfTI files, plain and compressed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
from odd_files import Case, cuts, packed

WHOLE = "must be whole"
MM = 2  # of xyzt_units
DIMENSIONS, DATA_TYPE, VOXEL_OFFSET, SLOPE, UNITS = 40, 70, 108, 112, 123  # byte offsets in NIfTI-1


def volume(shape: tuple[int, ...] = (7, 9, 11), dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def nifti_bytes(
    data: np.ndarray,
    affine: Any = "usual",
    *,
    sform: int = 1,
    qform: int = 0,
    version: int = 1,
    endianness: str = "<",
    **fields: Any,
) -> bytes:
    """A .nii file; `fields` replace header fields as they are, after nibabel's own."""
    if isinstance(affine, str):
        affine = np.diag([1.5, 2.0, 2.5, 1.0])
    kind = nib.Nifti2Image if version == 2 else nib.Nifti1Image
    header = kind.header_class(endianness=endianness)
    image = kind(data, np.eye(4), header=header, dtype=data.dtype)
    content = bytearray(_to_bytes(image))
    header = kind.header_class(bytes(content[: len(header.binaryblock)]), check=False)
    header.set_xyzt_units("mm")
    header.set_sform(affine, sform)
    header["qform_code"] = qform
    for name, value in fields.items():
        header[name] = value
    content[: len(header.binaryblock)] = header.binaryblock
    return bytes(content)


def _to_bytes(image: nib.Nifti1Image) -> bytes:
    stream = io.BytesIO()
    image.to_file_map({"image": nib.FileHolder(fileobj=stream), "header": nib.FileHolder(fileobj=stream)})
    return stream.getvalue()


def patched(data: bytes, offset: int, form: str, *values: float) -> bytes:
    new = struct.pack(form, *values)
    return data[:offset] + new + data[offset + len(new) :]


def nifti_cases() -> Iterator[Case]:
    for name, content, readable, says, shape in (*_good(), *_headers(), *_affines(), *_bad()):
        yield Case(f"{name}.nii", content, readable, says, shape)
        if len(content) < 2**20:
            yield Case(f"{name}.nii.gz", packed(content), readable, says, shape)
    whole = nifti_bytes(volume((20, 20, 20)))
    small = packed(whole)
    for offset, part in cuts(whole, 8, first=16):
        yield Case(f"cut-{offset}.nii", part, False, "picture given (.nii)")
    for offset, part in cuts(small, 10, first=16):
        yield Case(f"cut-{offset}.nii.gz", part, False, WHOLE)
    yield Case("no-checksum.nii.gz", small[:-8], False, WHOLE)
    yield Case("wrong-checksum.nii.gz", small[:-8] + b"\x00" * 4 + small[-4:], False, WHOLE)
    spoilt = bytearray(small)
    spoilt[len(spoilt) // 2] ^= 0x55
    yield Case("flipped-bit.nii.gz", bytes(spoilt), False, WHOLE)
    yield Case("text.nii.gz", packed(b"no volume at all\n" * 60), False, "something else")
    yield Case("short-text.nii.gz", packed(b"no volume"), False, WHOLE)
    yield Case("noise.nii.gz", b"\x1f\x8b\x08\x00" + bytes(range(250)), False, WHOLE)
    yield Case("twice.nii.gz", packed(small), False, "something else")
    yield Case("trailing.nii", whole + bytes(5000), True)
    yield from _bombs(whole)


def _bombs(whole: bytes) -> Iterator[Case]:
    """Headers that claim what no file of their size can hold, or what no memory should."""
    header = whole[:352]
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
    much = zeros.compress(header) + zeros.compress(bytes(100 * 1024**2)) + zeros.flush()
    huge = patched(header, DIMENSIONS, "<8h", 3, 30_000, 30_000, 30_000, 1, 1, 1, 1)
    yield Case("bomb-claims.nii", huge + bytes(1000), False, "at most 2048 MB")
    yield Case("bomb-claims.nii.gz", packed(huge + bytes(1000)), False, "at most 2048 MB")
    wide = patched(header, DIMENSIONS, "<8h", 3, 8000, 8000, 12, 1, 1, 1, 1)
    yield Case("bomb-short.nii.gz", packed(wide + bytes(1000)), False, "claims more voxels")
    plane = patched(header, DIMENSIONS, "<8h", 3, 30_000, 30_000, 1, 1, 1, 1, 1)
    yield Case("bomb-plane.nii.gz", packed(plane), False, "a plane 256 MB")
    yield Case("bomb-behind.nii.gz", much, True, "", (20, 20))
    deep = patched(header, DIMENSIONS, "<8h", 3, 500, 500, 200, 1, 1, 1, 1)
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
    flat = zeros.compress(deep) + zeros.compress(bytes(500 * 500 * 200 * 2)) + zeros.flush()
    yield Case("zeros-100-mb.nii.gz", flat, True, "One colour throughout", (500, 500))
    extension = patched(header[:348] + b"\x01\x00\x00\x00", VOXEL_OFFSET, "<f", 1e9)
    yield Case("far-voxels.nii", extension + bytes(5000), False, "do not start where")


def _good() -> Iterator[tuple[str, bytes, bool, str, tuple[int, int] | None]]:
    window = "No window was given"
    for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        yield f"type-{dtype}", nifti_bytes(volume(dtype=dtype)), True, window, (9, 7)
    yield "big-endian", nifti_bytes(volume(), endianness=">"), True, window, None
    yield "version-2", nifti_bytes(volume(), version=2), True, window, (9, 7)
    colours = np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = 90
    yield "colours", nifti_bytes(colours), True, "axial slice 3 of 7", (6, 5)
    yield "one-voxel", nifti_bytes(volume((1, 1, 1))), True, "One colour throughout", (1, 1)
    yield "flat", nifti_bytes(volume() * 0 + 5), True, "One colour throughout", None
    yield "plane", nifti_bytes(volume((8, 9))), True, window, (9, 8)
    yield "plane-sagittal", nifti_bytes(volume((1, 8, 9))), True, window, (9, 8)
    yield "plane-coronal", nifti_bytes(volume((8, 1, 9))), True, window, (9, 8)
    yield "column", nifti_bytes(volume((1, 1, 9))), True, "No axis was named", (1, 1)
    yield "8192-wide", nifti_bytes(volume((8192, 2, 1))), True, window, (2, 8192)
    yield "four", nifti_bytes(volume((5, 6, 7, 4))), True, "holds 4 volumes", (6, 5)
    yield "four-of-one", nifti_bytes(volume((5, 6, 7, 1))), True, window, (6, 5)
    yield "five", nifti_bytes(volume((5, 6, 7, 1, 3))), True, "holds 3 volumes", (6, 5)
    real = volume(dtype="f4")
    real[:3] = np.nan
    yield "some-nan", nifti_bytes(real), True, "NaN or infinite", None
    real[:3] = np.inf
    yield "some-inf", nifti_bytes(real), True, "NaN or infinite", None
    yield "all-nan", nifti_bytes(real * np.nan), False, "values that are numbers", None
    empty = volume((5, 6, 7), "f4")
    empty[:, :, 3] = np.nan
    yield "slice-of-nan", nifti_bytes(empty), False, "values that are numbers", None
    yield "over-float32", nifti_bytes(volume(dtype="f8") * 1e300), True, window, None


def _headers() -> Iterator[tuple[str, bytes, bool, str, None]]:
    window = "No window was given"
    scaled = nifti_bytes(volume(), scl_slope=2.5, scl_inter=-1000)
    yield "scaled", scaled, True, "-995 to -502.5", None
    yield "slope-zero", nifti_bytes(volume(), scl_slope=0, scl_inter=3), True, window, None
    yield "slope-nan", nifti_bytes(volume(), scl_slope=np.nan, scl_inter=np.nan), True, window, None
    yield "slope-huge", nifti_bytes(volume() + 1, scl_slope=1e38, scl_inter=0), True, "NaN or inf", None
    yield "unit-unknown", nifti_bytes(volume(), xyzt_units=0), True, "millimetres are assumed", None
    yield "unit-metre", nifti_bytes(volume(), xyzt_units=1), True, window, None
    yield "unit-odd", nifti_bytes(volume(), xyzt_units=7), True, window, None
    for name, zooms in (("zero", [1, 0, 0, 0]), ("nan", [1, np.nan, 1, 1])):
        bare = nifti_bytes(volume(), sform=0, pixdim=[*zooms, 1, 1, 1, 1])
        yield f"spacing-{name}", bare, True, "spacing cannot be used", None
    minus = nifti_bytes(volume(), sform=0, pixdim=[1, -1, 2, 3, 1, 1, 1, 1])
    yield "spacing-negative", minus, True, "orientation is not stated", None
    yield (
        "description",
        nifti_bytes(volume(), descrip=b"Doe^Jane 1970", aux_file=b"/home/jane"),
        True,
        window,
        None,
    )
    yield "intent", nifti_bytes(volume(), intent_code=1002), True, window, None


def _affines() -> Iterator[tuple[str, bytes, bool, str, None]]:
    data, unusable, window = volume(), "orientation cannot be used", "No window was given"
    nothing, identity = np.zeros((4, 4)), np.eye(4)
    yield "affine-zero", nifti_bytes(data, nothing), True, unusable, None
    yield "affine-nan", nifti_bytes(data, identity * np.nan), True, unusable, None
    yield "affine-inf", nifti_bytes(data, identity + np.inf), True, unusable, None
    singular = identity.copy()
    singular[:, 1] = singular[:, 0]
    yield "affine-singular", nifti_bytes(data, singular), True, unusable, None
    yield "affine-tiny", nifti_bytes(data, identity * 1e-9), True, unusable, None
    yield "affine-none", nifti_bytes(data, sform=0), True, "orientation is not stated", None
    yield "affine-flipped", nifti_bytes(data, np.diag([-1, 1, -1, 1])), True, window, None
    swapped = identity[[2, 0, 1, 3]]
    yield "affine-swapped", nifti_bytes(data, swapped), True, window, None
    turn = identity.copy()
    turn[:2, :2] = [[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]]
    yield "affine-oblique", nifti_bytes(data, turn), True, "oblique", None
    yield "qform-only", nifti_bytes(data, sform=0, qform=1), True, window, None
    yield (
        "qform-qfac-0",
        nifti_bytes(data, sform=0, qform=1, pixdim=[0, 1, 2, 3, 1, 1, 1, 1]),
        True,
        window,
        None,
    )
    bad = nifti_bytes(data, sform=0, qform=1, quatern_b=5, quatern_c=5)
    yield "qform-no-rotation", bad, True, unusable, None
    both = nifti_bytes(data, np.diag([-1, -1, 1, 1]), qform=1)
    yield "forms-disagree", both, True, "its sform counts", None
    yield "sform-bad-qform-good", nifti_bytes(data, nothing, qform=1), True, "the other one counts", None


def _bad() -> Iterator[tuple[str, bytes, bool, str, None]]:
    plain = nifti_bytes(volume())
    for dtype in ("c8", "c16"):
        yield f"complex-{dtype}", nifti_bytes(volume(dtype=dtype)), False, "real numbers or RGB", None
    for code in (0, 1, 3, 255, 1536, 9999):
        yield f"type-code-{code}", patched(plain, DATA_TYPE, "<h", code), False, "real numbers or RGB", None
    count, dimensions = "2 to 7 dimensions", ((3, 0, 9, 11), (3, 7, -9, 11), (1, 7, 1, 1), (0, 7, 9, 11))
    for sizes in dimensions:
        odd = patched(plain, DIMENSIONS, "<4h", *sizes)
        yield f"sizes{sizes[0]}-{sizes[1]}-{sizes[2]}", odd, False, count, None
    yield "sizes-9", patched(plain, DIMENSIONS, "<h", 9), False, "picture given", None
    more = patched(plain, DIMENSIONS, "<4h", 3, 7, 9, 300)
    yield "more-slices", more, False, WHOLE, None
    wide = nifti_bytes(np.zeros((8193, 1, 1), np.uint8))
    yield "8193-wide", wide, False, "at most 8192 pixels a side", None
    tall = nifti_bytes(np.zeros((1, 9000, 1), np.uint8))
    yield "9000-tall", tall, False, "at most 8192 pixels a side", None
    for value in (-1e9, np.inf, np.nan):
        yield f"offset{value}", patched(plain, VOXEL_OFFSET, "<f", value), False, WHOLE, None
    pair = plain[:344] + b"ni1\x00" + plain[348:]
    yield "pair", pair, False, "picture given", None
    yield "analyze", plain[:344] + bytes(4) + plain[348:], False, "picture given", None
    yield "slope-inf", nifti_bytes(volume(), scl_slope=np.inf, scl_inter=0), True, "No window", None
