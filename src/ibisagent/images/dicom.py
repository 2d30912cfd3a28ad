"""One DICOM file, one frame: stored pixels through modality LUT and the file's first window.

Nothing is flipped: the picture frame is the stored one, and where its sides are not the usual
ones a sentence says which they are. Overlay planes are ignored, also those in unused high bits.
Left out: presentation states, supplemental palettes, ICC profiles, padding values.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_color_lut, convert_color_space, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from ibisagent.errors import InputError
from ibisagent.images.complaints import is_damaged_jpeg
from ibisagent.images.dicom_facts import (
    file_window,
    frame_facts,
    modality,
    modality_values,
    patient_sides,
    pixel_spacing,
)
from ibisagent.images.intensity import Decoded, bands
from ibisagent.images.picture_files import MAX_FRAME_BYTES, PictureFile, check_sides, frame_number, quiet

MAX_INFLATED_BYTES = 256 * 1024**2  # of a deflated data set
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TAGS = [  # all that is read; patient data never enters memory
    *_PIXELS,
    *("Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "PatientOrientation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{c}PaletteColorLookupTableDescriptor" for c in ("Red", "Green", "Blue")),
    *(f"{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
_USE_OF_BITS = ("BitsStored", "HighBit", "PixelRepresentation")
# What pydicom and Pillow raise on damaged data sets; elements are parsed when they are accessed.
_DAMAGE = (
    *(AttributeError, EOFError, IndexError, KeyError, OSError, OverflowError, RuntimeError),
    *(TypeError, ValueError, SyntaxError, struct.error, zlib.error),
    *(pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, Image.DecompressionBombError),
)


def read_dicom(file: PictureFile, frame: int | None, *, stored: bool = False) -> Decoded:
    """Decode one frame, numbered from 0; None: the first, which is recorded as an assumption.

    `stored` leaves out rescale, windows and inversion, for masks. Raises InputError for what is
    damaged, too large, without pixels, or compressed in a way that has no decoder here.
    """
    with quiet():
        try:
            return _read(file, frame, stored)
        except InputError:
            raise
        except _DAMAGE as error:
            raise file.damaged(f"it cannot be decoded ({type(error).__name__})") from None


def _read(file: PictureFile, frame: int | None, stored: bool) -> Decoded:
    notes = list(file.assumptions)
    _check_inflated_size(file)
    header = _data_set(file, with_pixels=False)
    _check_header(header, file)
    data_set = _data_set(file, with_pixels=True)
    uid = _transfer_syntax(data_set, notes)
    if not any(keyword in data_set for keyword in _PIXELS):
        raise _no_pixels(data_set, file)
    missing = [keyword for keyword in _USE_OF_BITS if data_set.get(keyword) is None]
    if missing and "PixelData" in data_set:
        raise file.fail(
            "A DICOM picture says how its bits are used",
            f"{' and '.join(missing)} missing",
            "export it again, or take the element from another image of the series",
        )
    count = max(1, int(data_set.get("NumberOfFrames") or 1))
    number = frame_number(frame, count, "frame", file, notes)
    pixels, photometric = _decode(data_set, uid, number, count, file)
    facts = frame_facts(data_set, number)
    sides = patient_sides(facts, notes)
    decoded = Decoded(
        pixels,
        source=f"frame {number} of 0 to {count - 1}" if count > 1 else "",
        spacing=pixel_spacing(facts, notes),
        laterality="assumed" if sides is None else "mirrored" if sides.left == "left" else "known",
        modality=modality(facts),
    )
    if photometric in (*_COLOURS, "PALETTE COLOR"):
        decoded = replace(decoded, values=_colours(pixels, photometric, data_set, notes))
    elif not stored:
        decoded = replace(
            decoded,
            values=modality_values(pixels, facts, notes),
            display=file_window(facts, notes),
            inverted=photometric == "MONOCHROME1",
        )
    return replace(decoded, assumptions=tuple(notes))


# --- the data set -----------------------------------------------------------------------------


def _data_set(file: PictureFile, with_pixels: bool) -> Dataset:
    return pydicom.dcmread(
        file.path, stop_before_pixels=not with_pixels, specific_tags=list(_TAGS), force=True
    )


def _check_inflated_size(file: PictureFile) -> None:
    """A deflated data set is inflated at once by pydicom, so its size is counted before."""
    if file.bare:
        return
    meta = read_file_meta_info(file.path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    with file.path.open("rb") as stream:
        stream.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        while chunk := stream.read(2**16):
            while chunk:
                total += len(inflater.decompress(chunk, 2**22))
                chunk = inflater.unconsumed_tail
                if total > MAX_INFLATED_BYTES:
                    raise file.fail(
                        f"A deflated data set may have at most {MAX_INFLATED_BYTES // 1024**2} MB",
                        "it inflates to more",
                        "save it without deflation",
                    )


def _check_header(header: Dataset, file: PictureFile) -> None:
    """Refuse by the header alone, before any pixel is read."""
    if header.get("Rows") is None or header.get("Columns") is None:
        raise _no_pixels(header, file)
    rows, columns = int(header.Rows), int(header.Columns)
    check_sides(columns, rows, file.given)
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric not in (*_COLOURS, *_GREYS):
        raise file.fail(
            f"A DICOM picture is one of {', '.join((*_GREYS, *_COLOURS))}",
            "another photometric interpretation, or none",
            "export it as RGB or MONOCHROME2",
        )
    bits = int(header.get("BitsAllocated", 0))
    samples = int(header.get("SamplesPerPixel", 1))
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3):
        raise file.fail(
            "A DICOM picture has 1, 8, 16, 32 or 64 bits allocated and 1 or 3 samples per pixel",
            f"{bits} bits and {samples} samples",
            "export it again with 8 or 16 bits",
        )
    if rows * columns * samples * max(1, bits // 8) > MAX_FRAME_BYTES:
        raise file.fail(
            f"A frame may have at most {MAX_FRAME_BYTES // 1024**2} MB",
            f"{columns} x {rows} with {samples} x {bits} bits",
            "downscale it, or export it with fewer bits",
        )


def _no_pixels(data_set: Dataset, file: PictureFile) -> InputError:
    kind = modality(data_set)
    return file.fail(
        "A DICOM file must hold pixels",
        f"no pixel data (modality {kind})" if kind else "no pixel data",
        "name the file of an image, not of a report, structure set or plan",
    )


def _transfer_syntax(data_set: Dataset, notes: list[str]) -> UID:
    uid = data_set.file_meta.get("TransferSyntaxUID") if hasattr(data_set, "file_meta") else None
    if uid:
        return UID(uid)
    implicit = data_set.original_encoding[0]
    notes.append("The file does not name its transfer syntax: little endian without compression is assumed.")
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


# --- pixels -----------------------------------------------------------------------------------


def _decode(
    data_set: Dataset, uid: UID, number: int, count: int, file: PictureFile
) -> tuple[NDArray[Any], str]:
    """The stored pixels of one frame, HxW or HxWx3, and their photometric interpretation."""
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise file.fail(
            "A DICOM picture has a transfer syntax of images",
            "one that is not known",
            "export it as Explicit VR Little Endian",
        ) from None
    twelve_bits = uid == JPEGExtended12Bit and int(data_set.get("BitsStored", 8)) != 8
    if not decoder.is_available or twelve_bits:  # Pillow reads the 8-bit kind alone
        missing = "; ".join(decoder.missing_dependencies)
        raise file.fail(
            f"Compression {uid.name} needs a decoder that is not installed",
            f"pydicom names {missing}",
            "install one of these, or export the file without compression",
        )
    if uid.is_encapsulated:
        _check_encapsulated(data_set, uid, number, count, file)
    options: dict[str, Any] = {
        "view_only": True,
        "allow_excess_frames": False,
        "correct_unused_bits": False,  # pydicom's correction takes the high bit for granted
    }
    try:
        array, said = decoder.as_array(data_set, index=number, raw=True, **options)
    except RuntimeError:  # pydicom's word for: every plugin failed
        raise file.fail(
            "A compressed DICOM frame must be one that Pillow or pydicom can decode",
            f"a frame in {uid.name} that they cannot decode",
            "export the file without compression",
        ) from None
    if data_set.BitsAllocated == 1:
        array = array * np.uint8(255)
    elif array.dtype.kind in "iu" and (not uid.is_encapsulated or uid == RLELossless):
        array = _used_bits(array, data_set)
    return array, str(said["photometric_interpretation"])


def _check_encapsulated(data_set: Dataset, uid: UID, number: int, count: int, file: PictureFile) -> None:
    """As many frames as the data set claims, and this one of the size that it claims."""
    stream = BytesIO(data_set.PixelData)
    parse_basic_offsets(stream)
    if parse_fragments(stream)[0] < count:
        raise file.damaged(f"it claims {count} frames and holds fewer")
    offsets = None
    if "ExtendedOffsetTable" in data_set:
        offsets = (data_set.ExtendedOffsetTable, data_set.ExtendedOffsetTableLengths)
    frame = get_frame(data_set.PixelData, number, number_of_frames=count, extended_offsets=offsets)
    rows, columns = int(data_set.Rows), int(data_set.Columns)
    if uid == RLELossless:
        wrong = _rle_overflows(frame, rows * columns)
    else:
        with Image.open(BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            wrong = image.size != (columns, rows)
        if not wrong and uid in (JPEGBaseline8Bit, JPEGExtended12Bit) and is_damaged_jpeg(frame):
            raise file.damaged("its decoder meets damage within the pixels")
    if wrong:
        raise file.damaged("its compressed frame and its header disagree on the size")


def _rle_overflows(frame: bytes, pixels: int) -> bool:
    """Whether a segment unpacks to more than one plane of the frame (PS3.5 annex G)."""
    count = int.from_bytes(frame[:4], "little")
    if not 1 <= count <= 15:
        return True
    starts = [*struct.unpack(f"<{count}L", frame[4 : 4 + 4 * count]), len(frame)]
    for start, end in pairwise(starts):
        length, position = 0, start
        while position < end and length <= pixels + 1:
            control = frame[position]
            length += 257 - control if control > 128 else (control + 1) % 129
            position += 2 if control > 128 else (control + 1) % 129 + 1
        if length > pixels + 1:
            return True
    return False


def _used_bits(array: NDArray[Any], data_set: Dataset) -> NDArray[Any]:
    """Drop what lies above and below the stored bits, such as old overlays; keeps the sign."""
    allocated = array.dtype.itemsize * 8
    used = int(data_set.get("BitsStored", allocated))
    high = int(data_set.get("HighBit", used - 1))
    if not (0 < used <= high + 1 <= allocated) or used == allocated:
        return array
    return np.right_shift(np.left_shift(array, allocated - 1 - high), allocated - used)


def _colours(
    pixels: NDArray[Any], photometric: str, data_set: Dataset, notes: list[str]
) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    colours = np.empty((height, width, 3), np.uint8)
    shift = 0
    for rows in bands(height, width):
        band = pixels[rows]
        if photometric == "PALETTE COLOR":
            band = apply_color_lut(band, data_set)[..., :3]
            shift = 8 if band.dtype == np.uint16 else 0
        elif photometric in ("YBR_FULL", "YBR_FULL_422"):
            band = convert_color_space(band, photometric, "RGB")
        if band.dtype.itemsize > 1 and photometric != "PALETTE COLOR":
            shift = max(0, int(data_set.BitsStored) - 8)
        colours[rows] = band >> shift
    if shift:
        notes.append(f"Colours of more than 8 bits are reduced to 8 by dropping the lowest {shift}.")
    return colours
