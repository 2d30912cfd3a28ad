"""Odd and damaged DICOM files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from odd_files import Case, cuts, encoded, grey
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import set_pixel_data
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

GIVEN = "picture given (.dcm)"
WHOLE = "must be whole"


def dicom_set(
    pixels: np.ndarray | None = None, photometric: str = "MONOCHROME2", **elements: Any
) -> FileDataset:
    """A small MR picture; `elements` replace or, with None, remove elements by keyword."""
    pixels = grey(top=4000) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data_set.SOPClassUID, data_set.SOPInstanceUID = MRImageStorage, UID("1.2.3.4")
    data_set.PatientName, data_set.PatientID = "Doe^Jane", "0123456789"
    data_set.Modality = "MR"
    set_pixel_data(data_set, pixels, photometric, pixels.dtype.itemsize * 8)
    data_set.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data_set.PixelSpacing = [0.5, 0.75]
    for keyword, value in elements.items():
        if value is None:
            delattr(data_set, keyword)
        else:
            setattr(data_set, keyword, value)
    return data_set


def saved(data_set: FileDataset, syntax: UID | None = None) -> bytes:
    if syntax is not None:
        data_set.file_meta.TransferSyntaxUID = syntax
    uid = data_set.file_meta.TransferSyntaxUID
    stream = io.BytesIO()
    dcmwrite(
        stream,
        data_set,
        implicit_vr=uid == ImplicitVRLittleEndian,
        little_endian=uid != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return stream.getvalue()


def dicom_bytes(pixels: np.ndarray | None = None, photometric: str = "MONOCHROME2", **elements: Any) -> bytes:
    return saved(dicom_set(pixels, photometric, **elements))


def compressed(frames: list[bytes], syntax: UID, data_set: FileDataset) -> bytes:
    data_set.PixelData = encapsulate(frames)
    data_set["PixelData"].is_undefined_length = True
    return saved(data_set, syntax)


def dicom_cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom about values that are odd on purpose
        yield from [*_cases()]


def _cases() -> Iterator[Case]:
    for name, content, readable, says in (*_good(), *_metadata(), *_bad(), *_compressed()):
        yield Case(f"{name}.dcm", content, readable, says)
    whole = dicom_bytes(np.random.default_rng(2).integers(0, 4000, (40, 50), np.uint16))
    for offset, part in cuts(whole, 16, first=140):
        yield Case(f"cut-{offset}.dcm", part, False, GIVEN)
    noise = np.random.default_rng(6)
    for seed in range(3):
        yield Case(f"noise-{seed}.dcm", bytes(128) + b"DICM" + noise.bytes(3000), False, GIVEN)
    for seed in range(8):
        spoilt = bytearray(whole)
        for place in noise.integers(140, len(whole) - 4000, 60):
            spoilt[place] = noise.integers(256)
        yield Case(f"spoilt-{seed}.dcm", bytes(spoilt), False, GIVEN)


def _good() -> Iterator[tuple[str, bytes, bool, str]]:
    window = "No window was given"
    colour = np.stack([grey(), 255 - grey(), grey() // 2], -1)
    yield "plain", dicom_bytes(), True, window
    yield "eight-bits", dicom_bytes(grey()), True, ""
    yield "signed", dicom_bytes(grey(top=4000).astype(np.int16) - 1000), True, window
    deep = dicom_set(BitsAllocated=32, BitsStored=32, HighBit=31)
    deep.PixelData = (grey(top=4000).astype(np.uint32) * 9).tobytes()
    yield "thirty-two-bits", saved(deep), True, window
    yield "one-pixel", dicom_bytes(grey(1, 1, 4000)), True, "One colour throughout"
    yield "one-row", dicom_bytes(grey(1, 40, 4000)), True, window
    yield "8192-wide", dicom_bytes(grey(2, 8192, 4000)), True, window
    yield "inverted", dicom_bytes(photometric="MONOCHROME1"), True, window
    yield "colour", dicom_bytes(colour, "RGB"), True, ""
    planes = dicom_set(colour, "RGB", PlanarConfiguration=1)
    planes.PixelData = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    yield "colour-planes", saved(planes), True, ""
    yield "colour-ybr", dicom_bytes(colour, "YBR_FULL"), True, ""
    yield "colour-16", dicom_bytes(colour.astype(np.uint16) * 256, "RGB"), True, "reduced to 8"
    palette = dicom_set(grey(), "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256, dtype="<u2") * 257).tobytes()
        setattr(palette, f"{name}PaletteColorLookupTableData", table)
    yield "palette", saved(palette), True, "reduced to 8"
    yield "frames", dicom_bytes(np.stack([grey()] * 3)), True, "3 frames and none was named"
    yield "implicit", saved(dicom_set(), ImplicitVRLittleEndian), True, window
    yield "deflated", saved(dicom_set(), DeflatedExplicitVRLittleEndian), True, window
    big = dicom_set()
    big.PixelData = grey(top=4000).astype(">u2").tobytes()
    yield "big-endian", saved(big, ExplicitVRBigEndian), True, window
    bare = dicom_bytes()[132:]
    length = struct.unpack("<L", bare[8:12])[0]
    yield "bare", bare[12 + length :], True, "does not name its transfer syntax"
    padded = dicom_set()
    padded.PixelData += bytes(10)
    yield "padded", saved(padded), True, window
    real = grey(top=4000).astype(np.float32)
    for name, share, readable, says in (("some", 0.2, True, "NaN or infinite"), ("all", 1, False, "numbers")):
        real.ravel()[: int(share * real.size)] = np.nan
        yield f"{name}-nan", saved(_float_set(real)), readable, says


def _float_set(values: np.ndarray) -> FileDataset:
    data_set = dicom_set(BitsAllocated=32, PixelRepresentation=None, BitsStored=None, HighBit=None)
    del data_set.PixelData
    data_set.FloatPixelData = values.tobytes()
    return data_set


def _metadata() -> Iterator[tuple[str, bytes, bool, str]]:
    """Readable pixels with odd facts around them."""
    window, unusable = "No window was given", "spacing cannot be used"
    yield "spacing-zero", dicom_bytes(PixelSpacing=[0, 0]), True, unusable
    yield "spacing-negative", dicom_bytes(PixelSpacing=[-0.5, 0.5]), True, unusable
    yield "spacing-one", dicom_bytes(PixelSpacing="0.5"), True, unusable
    yield "spacing-none", dicom_bytes(PixelSpacing=None), True, ""
    detector = dicom_bytes(PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.2])
    yield "spacing-detector", detector, True, "at the detector"
    left, turned = "image left is the patient's left", "The picture is kept as stored"
    yield "mirrored", dicom_bytes(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), True, left
    yield "upside-down", dicom_bytes(ImageOrientationPatient=[1, 0, 0, 0, -1, 0]), True, turned
    yield "turned", dicom_bytes(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), True, turned
    yield "coronal", dicom_bytes(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), True, ""
    yield "sagittal", dicom_bytes(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), True, ""
    yield "oblique", dicom_bytes(ImageOrientationPatient=[0.8, 0.6, 0, -0.6, 0.8, 0]), True, "oblique"
    bad = "orientation cannot be used"
    yield "orientation-zero", dicom_bytes(ImageOrientationPatient=[0] * 6), True, bad
    yield "orientation-same", dicom_bytes(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), True, bad
    yield "orientation-short", dicom_bytes(ImageOrientationPatient=[1, 0, 0]), True, bad
    assumed = "image left is taken as the patient's right"
    yield "orientation-none", dicom_bytes(ImageOrientationPatient=None), True, assumed
    letters = {"ImageOrientationPatient": None}
    yield "letters", dicom_bytes(**letters, PatientOrientation=["L", "F"]), True, ""
    yield "letters-mirrored", dicom_bytes(**letters, PatientOrientation=["R", "F"]), True, left
    yield "letters-odd", dicom_bytes(**letters, PatientOrientation=["L", "R"]), True, bad
    yield "window", dicom_bytes(WindowCenter=2000, WindowWidth=1000), True, ""
    several = dicom_bytes(WindowCenter=[450, 200], WindowWidth=[790, 443])
    yield "windows", several, True, "2 windows: the first is shown"
    useless = "window cannot be used"
    yield "window-zero", dicom_bytes(WindowCenter=2000, WindowWidth=0), True, useless
    yield "window-negative", dicom_bytes(WindowCenter=2000, WindowWidth=-5), True, useless
    odd = dicom_bytes(WindowCenter=2000, WindowWidth=99, VOILUTFunction="CUBIC")
    yield "window-function", odd, True, useless
    sigmoid = dicom_bytes(WindowCenter=2000, WindowWidth=99, VOILUTFunction="SIGMOID")
    yield "window-sigmoid", sigmoid, True, ""
    yield "rescale", dicom_bytes(RescaleSlope=2, RescaleIntercept=-1024), True, window
    yield "rescale-zero", dicom_bytes(RescaleSlope=0, RescaleIntercept=5), True, "slope is 0"
    yield "modality-odd", dicom_bytes(Modality="jane doe 1970"), True, ""
    yield "stored-12", dicom_bytes(BitsStored=12, HighBit=11), True, window
    yield "stored-odd", dicom_bytes(BitsStored=12, HighBit=40), True, window
    yield "frames-none", dicom_bytes(NumberOfFrames=0), True, window
    nested = Dataset()
    for _ in range(60):
        outer = Dataset()
        outer.ContentSequence = [nested]
        nested = outer
    yield "nested", dicom_bytes(ContentSequence=[nested]), True, window


def _bad() -> Iterator[tuple[str, bytes, bool, str]]:
    none, large = "must hold pixels", "at most 8192 pixels a side"
    yield "no-pixels", dicom_bytes(PixelData=None), False, none
    report = dicom_set(PixelData=None, Rows=None, Columns=None, Modality="SR")
    yield "report", saved(report), False, "no pixel data (modality SR)"
    yield "no-rows", dicom_bytes(Rows=None), False, none
    yield "zero-rows", dicom_bytes(Rows=0), False, GIVEN
    yield "empty-pixels", dicom_bytes(PixelData=b""), False, GIVEN
    yield "short-pixels", dicom_bytes(PixelData=bytes(100)), False, WHOLE
    yield "more-rows", dicom_bytes(Rows=400), False, WHOLE
    yield "million-frames", dicom_bytes(NumberOfFrames=10**6), False, WHOLE
    yield "minus-frames", dicom_bytes(NumberOfFrames=-4), False, WHOLE
    for side in (8193, 20_000, 65_535):
        yield f"{side}-tall", dicom_bytes(Rows=side), False, large
        yield f"{side}-square", dicom_bytes(Rows=side, Columns=side), False, large
    yield "huge-frame", dicom_bytes(Rows=8192, Columns=8192, BitsAllocated=64), False, "at most 256 MB"
    for bits in (0, 7, 12, 24, 128):
        yield f"{bits}-bits", dicom_bytes(BitsAllocated=bits), False, "bits allocated"
    for samples in (0, 2, 4):
        yield f"{samples}-samples", dicom_bytes(SamplesPerPixel=samples), False, "samples per pixel"
    for photometric in ("HSV", "ARGB", "Doe^Jane"):
        odd = dicom_bytes(PhotometricInterpretation=photometric)
        yield f"photometric-{photometric}", odd, False, "another photometric interpretation"
    yield "photometric-none", dicom_bytes(PhotometricInterpretation=None), False, "or none"
    yield "palette-none", dicom_bytes(grey(), "PALETTE COLOR"), False, WHOLE
    unknown = dicom_set()
    unknown.file_meta.TransferSyntaxUID = UID("1.2.3.4.5.6")
    yield "unknown-syntax", saved(unknown), False, GIVEN
    table = dicom_set()
    table.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")
    table.PixelData = encapsulate([b"\x00\x00\x01\xb3" * 50])
    table["PixelData"].is_undefined_length = True
    yield "video", saved(table), False, "transfer syntax"
    head = saved(dicom_set(), DeflatedExplicitVRLittleEndian)
    length = struct.unpack("<L", head[140:144])[0]
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeezer.compress(bytes(300 * 1024**2)) + squeezer.flush()
    yield "deflate-bomb", head[: 144 + length] + bomb, False, "at most 256 MB"


def _compressed() -> Iterator[tuple[str, bytes, bool, str]]:
    eight, image = grey(), Image.fromarray(grey())
    jpeg, wavelet = encoded(image, "JPEG"), encoded(image, "JPEG2000", no_jp2=True)
    yield "jpeg", compressed([jpeg], JPEGBaseline8Bit, dicom_set(eight)), True, ""
    yield "jpeg2000", compressed([wavelet], JPEG2000Lossless, dicom_set(eight)), True, ""
    rle = dicom_set()
    rle.compress(RLELossless, generate_instance_uid=False)
    yield "rle", saved(rle), True, "No window was given"
    frames = dicom_set(np.stack([eight, 255 - eight]))
    yield "jpeg-frames", compressed([jpeg, jpeg], JPEGBaseline8Bit, frames), True, "2 frames"
    missing = "needs a decoder that is not installed"
    yield "jpeg-ls", compressed([jpeg], JPEGLSLossless, dicom_set(eight)), False, missing
    yield "jpeg-lossless", compressed([jpeg], JPEGLossless, dicom_set(eight)), False, missing
    for share in (0.1, 0.4, 0.7, 0.9):
        part = jpeg[: int(share * len(jpeg))]
        yield f"jpeg-cut-{share}", compressed([part], JPEGBaseline8Bit, dicom_set(eight)), False, GIVEN
        part = wavelet[: int(share * len(wavelet))]
        yield f"jpeg2000-cut-{share}", compressed([part], JPEG2000Lossless, dicom_set(eight)), False, GIVEN
        whole = saved(rle)
        yield f"rle-cut-{share}", whole[: -int(share * len(rle.PixelData))], False, GIVEN
    other = encoded(Image.fromarray(grey(60, 60)), "JPEG")
    disagree = "disagree on the size"
    yield "jpeg-other-size", compressed([other], JPEGBaseline8Bit, dicom_set(eight)), False, disagree
    start = jpeg.index(b"\xff\xc0") + 5
    huge = jpeg[:start] + struct.pack(">HH", 65_000, 65_000) + jpeg[start + 4 :]
    yield "jpeg-huge", compressed([huge], JPEGBaseline8Bit, dicom_set(eight)), False, WHOLE
    text = compressed([b"no compressed frame at all"], JPEGBaseline8Bit, dicom_set(eight))
    yield "jpeg-text", text, False, WHOLE
    segment = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 2_000_000
    yield "rle-bomb", compressed([segment], RLELossless, dicom_set(eight)), False, disagree
    yield "no-frames", compressed([bytes(2)], JPEGBaseline8Bit, dicom_set(eight)), False, GIVEN
    claimed = dicom_set(eight, NumberOfFrames=5)
    yield "jpeg-fewer-frames", compressed([jpeg], JPEGBaseline8Bit, claimed), False, GIVEN
    bare = saved(dicom_set(eight)).replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.5\x00", 1)
    yield "rle-in-name", bare, False, GIVEN
