"""What a NIfTI header says: how the voxels lie in the file and in the patient.

nibabel reads the fields; whether they can be used is checked here, for its own checks print.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ibisagent.errors import InputError
from ibisagent.images.picture_files import MAX_FRAME_BYTES, PictureFile

MAX_VOLUME_BYTES = 2 * 1024**3  # of one volume, unpacked
MAX_OFFSET = 16 * 1024**2  # bytes before the first voxel
SPACING_TOLERANCE = 0.01  # share by which the spacings of a mask and its picture may differ: rounding
_GZIP_RATIO = 1040  # deflate cannot pack better than 1032 to 1
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the low three bits of xyzt_units


@dataclass(frozen=True)
class Layout:
    """What a header says about the voxels, and how they lie in the patient."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int  # bytes before the first voxel
    volumes: int  # how many volumes follow each other
    slope: float
    intercept: float
    stored_axis: tuple[int, int, int]  # of canonical x, y, z: which stored axis it is
    flipped: tuple[bool, bool, bool]  # of canonical x, y, z: whether it is stored backwards
    spacing: tuple[float, float, float] | None  # mm along canonical x, y, z
    corner: tuple[float, float, float] | None  # mm: where canonical voxel 0, 0, 0 lies in the patient
    known: bool  # whether the header has a usable orientation
    notes: tuple[str, ...]

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        x, y, z = (self.shape[axis] for axis in self.stored_axis)
        return x, y, z

    @property
    def volume_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def grid(self) -> str:
        """Size, orientation and spacing for people, by stored axes: "5 x 6 x 7 voxels, LPS, 1 x 1 x 2 mm"."""
        canonical = [self.stored_axis.index(axis) for axis in range(3)]
        letters = "".join(("LPI" if self.flipped[axis] else "RAS")[axis] for axis in canonical)
        sizes = " x ".join(f"{self.spacing[axis]:g}" for axis in canonical) if self.spacing else "unknown"
        return (
            f"{' x '.join(str(size) for size in self.shape)} voxels,"
            f" {letters if self.known else 'no orientation'}, {sizes} mm"
        )


def mask_layout(mask: Layout, picture: Layout) -> Layout:
    """How a mask volume is read that belongs to a picture volume: both have one grid in the patient.

    A mask whose header states no orientation, but whose stored shape is the picture's, lies as the
    picture does; one that lies elsewhere, but is stored alike, is read voxel by voxel. Both say so in
    `notes`. Raises InputError for another size, orientation or spacing.
    """
    if mask.shape == picture.shape and not mask.known:
        return replace(
            mask,
            stored_axis=picture.stored_axis,
            flipped=picture.flipped,
            spacing=picture.spacing,
            known=picture.known,
            notes=("The mask's orientation is not stated: it is read as lying like its picture.",),
        )
    alike = (mask.shape, mask.stored_axis, mask.flipped) == (
        picture.shape,
        picture.stored_axis,
        picture.flipped,
    )
    place = _lies_like(mask, picture)
    fits = mask.spacing is None or picture.spacing is None or _close(mask.spacing, picture.spacing)
    if alike and fits and place is False:
        return replace(mask, notes=("The mask's origin is not the picture's: it is read voxel by voxel.",))
    if not fits or not (alike or (place and mask.canonical_shape == picture.canonical_shape)):
        raise InputError(
            "a mask volume has the size, orientation and spacing of its picture",
            f"{mask.grid()} for {picture.grid()}",
            "resample it to the picture's grid and write it with the picture's affine",
        )
    return mask


def _close(mask: tuple[float, ...], picture: tuple[float, ...]) -> bool:
    return bool(np.allclose(mask, picture, rtol=SPACING_TOLERANCE, atol=0))


def _lies_like(mask: Layout, picture: Layout) -> bool | None:
    """Whether both begin within half a voxel of each other; None where that is not known."""
    if mask.corner is None or picture.corner is None or picture.spacing is None:
        return None
    away = np.abs(np.subtract(mask.corner, picture.corner))
    return bool((away <= 0.5 * np.array(picture.spacing)).all())


def read_layout(head: bytes, file: PictureFile) -> Layout:
    """Parse and check the header at the start of `head` (540 bytes, or what there is).

    Raises InputError for sizes, types and offsets that cannot be read, or claim too much memory;
    nibabel's HeaderDataError or ValueError for fields that nothing sensible fits in.
    """
    header = _header(head, file)
    shape, volumes = _shape(header, file)
    notes: list[str] = []
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):  # a code that stands for nothing here
        dtype = np.dtype("V1")
    if not (dtype.names or (dtype.kind in "iuf" and dtype.itemsize <= 8)):
        raise file.fail(
            "A NIfTI volume holds real numbers or RGB colours",
            f"data type code {int(header['datatype'])}",
            "save it as float32 or int16, complex numbers as their magnitude",
        )
    slope, intercept = header.get_slope_inter()
    affine, known = _affine(header, notes)
    orientation = nib.io_orientation(affine)
    stored = [int(np.flatnonzero(orientation[:, 0] == canonical)[0]) for canonical in range(3)]
    layout = Layout(
        shape=shape,
        dtype=dtype,
        offset=int(header["vox_offset"]) or len(header.binaryblock) + 4,
        volumes=volumes,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        stored_axis=(stored[0], stored[1], stored[2]),
        flipped=cast(Any, tuple(bool(orientation[axis, 1] < 0) for axis in stored)),
        spacing=_spacing(header, affine, known, stored, notes),
        corner=_corner(header, affine, orientation, shape) if known else None,
        known=known,
        notes=tuple(notes),
    )
    _check_bytes(layout, file)
    return layout


def _header(head: bytes, file: PictureFile) -> nib.Nifti1Header:
    if head[4:12] == b"n+2\x00\r\n\x1a\n" and len(head) == 540:
        return nib.Nifti2Header(head, check=False)
    if head[344:348] == b"n+1\x00":
        return nib.Nifti1Header(head[:348], check=False)
    if file.format == "gzip" and len(head) >= 348:
        raise file.fail(
            "A gzip file is read where it holds one NIfTI volume", "something else", "unpack it first"
        )
    raise file.damaged("it ends within its header")


def _shape(header: nib.Nifti1Header, file: PictureFile) -> tuple[tuple[int, int, int], int]:
    """Three sizes and the number of volumes."""
    dimensions = [int(size) for size in header["dim"]]
    sizes = dimensions[1 : 1 + dimensions[0]]
    if not 2 <= dimensions[0] <= 7 or min(sizes) < 1:
        raise file.fail(
            "A NIfTI volume has 2 to 7 dimensions, each of at least 1",
            " x ".join(str(size) for size in sizes[:7]) or "none",
            "export it again from its source",
        )
    sizes += [1] * (3 - len(sizes))
    return (sizes[0], sizes[1], sizes[2]), int(np.prod(sizes[3:], dtype=object))


def _check_bytes(layout: Layout, file: PictureFile) -> None:
    plane = layout.shape[0] * layout.shape[1] * layout.dtype.itemsize
    if layout.volume_bytes > MAX_VOLUME_BYTES or plane > MAX_FRAME_BYTES:
        raise file.fail(
            f"A volume may have at most {MAX_VOLUME_BYTES // 1024**2} MB unpacked,"
            f" a plane {MAX_FRAME_BYTES // 1024**2} MB",
            f"{' x '.join(str(size) for size in layout.shape)} voxels of {layout.dtype.itemsize} bytes",
            "crop or downsample it",
        )
    if not 352 <= layout.offset <= MAX_OFFSET:
        raise file.damaged("its voxels do not start where its header says")
    needed = layout.offset + layout.volume_bytes * (1 if file.format == "gzip" else layout.volumes)
    if needed > file.size * (_GZIP_RATIO if file.format == "gzip" else 1):
        raise file.damaged("its header claims more voxels than it holds")


def _affine(header: nib.Nifti1Header, notes: list[str]) -> tuple[NDArray[np.float64], bool]:
    """Voxel to patient (right, anterior, superior) in the file's unit, and whether it is known."""
    candidates = []
    if header["sform_code"] > 0:
        candidates.append(header.get_sform())
    if header["qform_code"] > 0:
        header["pixdim"][0] = header["pixdim"][0] or 1  # the standard reads 0 as 1
        try:
            candidates.append(header.get_qform())
        except (ValueError, HeaderDataError):  # no rotation, or negative voxel sizes
            candidates.append(np.full((4, 4), np.nan))
    usable = [affine for affine in candidates if _is_usable(affine)]
    if not usable:
        said = "cannot be used" if candidates else "is not stated"
        notes.append(
            f"The volume's orientation {said}: its axes are taken as running to the patient's right,"
            " to the front and to the head."
        )
        return np.eye(4), False
    if len(usable) < len(candidates):
        notes.append("One of the volume's two orientations cannot be used: the other one counts.")
    elif len({nib.aff2axcodes(affine) for affine in usable}) > 1:
        notes.append("The volume's two orientations disagree: its sform counts.")
    matrix = usable[0][:3, :3] / np.linalg.norm(usable[0][:3, :3], axis=0)
    if np.abs(matrix).max(axis=0).min() < 0.9:
        notes.append("The volume is oblique: slices follow its grid, sides are the nearest ones.")
    return usable[0], True


def _is_usable(affine: NDArray[np.float64]) -> bool:
    """Finite, and three axes that are long enough and clearly apart."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 1e-6 or lengths.max() > 1e6:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 0.1)


def _corner(
    header: nib.Nifti1Header,
    affine: NDArray[np.float64],
    orientation: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> tuple[float, float, float] | None:
    """Millimetres right, anterior, superior of the voxel that is first along all canonical axes."""
    first = [size - 1 if flip < 0 else 0 for size, (_, flip) in zip(shape, orientation, strict=True)]
    corner = (affine @ [*first, 1])[:3] * _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    return (float(corner[0]), float(corner[1]), float(corner[2])) if np.isfinite(corner).all() else None


def _spacing(
    header: nib.Nifti1Header, affine: NDArray[np.float64], known: bool, stored: list[int], notes: list[str]
) -> tuple[float, float, float] | None:
    """Millimetres along canonical x, y, z: from the affine, else from the header's zooms."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0) if known else np.abs(header["pixdim"][1:4].astype(float))
    unit = int(header["xyzt_units"]) & 7
    if unit == 0:
        notes.append("The volume's unit of length is not stated: millimetres are assumed.")
    zooms = zooms * _MILLIMETRES.get(unit, 1.0)
    if not np.isfinite(zooms).all() or zooms.min() <= 0:
        notes.append("The volume's spacing cannot be used: voxels are taken as cubes.")
        return None
    return float(zooms[stored[0]]), float(zooms[stored[1]]), float(zooms[stored[2]])
