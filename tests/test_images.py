"""Reading: values against nibabel, pydicom, numpy and numbers worked out by hand."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from odd_dicoms import compressed, dicom_bytes, dicom_set, saved
from odd_files import encoded, grey, packed
from odd_niftis import nifti_bytes
from odd_rasters import png_rgb16, tiff
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import JPEG2000Lossless, RLELossless

from ibisagent.errors import InputError
from ibisagent.images import load_mask, load_picture, parse_window

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
ASSUMED = "image left is taken as the patient's right"


def grey_of(source: object, **options: object) -> np.ndarray:
    """The one channel of a grey picture."""
    pixels = load_picture(source, **options).pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def saved_as(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


# --- windows ----------------------------------------------------------------------------------


def test_parse_window() -> None:
    assert parse_window("-160,240") == (-160.0, 240.0)
    assert parse_window(" 1e3 , 2e3 ") == (1000.0, 2000.0)
    assert parse_window("auto") is None
    for text in ("", "5", "1,2,3", "a,b", "5,5", "6,5", "nan,1", "0,inf"):
        with pytest.raises(InputError, match="window") as caught:
            parse_window(text)
        assert caught.value.fix


def test_window_by_hand() -> None:
    values = np.array([[0, 100, 101, 227, 355, 356, 60_000]], np.uint16)
    assert grey_of(values, window=(100, 355)).tolist() == [[0, 0, 1, 127, 255, 255, 255]]
    assert grey_of(values, window="100,355").tolist() == [[0, 0, 1, 127, 255, 255, 255]]
    eight = np.array([[10, 20, 30]], np.uint8)
    assert grey_of(eight, window=(10, 30)).tolist() == [[0, 128, 255]]
    assert grey_of(eight).tolist() == [[10, 20, 30]]


def test_robust_window_by_hand(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.uint16).reshape(20, 50) + 3000
    low, high = 3000 + 0.005 * 999, 3000 + 0.995 * 999
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    path = saved_as(tmp_path, "deep.png", encoded(Image.fromarray(values), "PNG"))
    for source in (path, values, values.astype(np.float64), values.astype(np.int32)):
        assert (grey_of(source) == expected).all()
    note = "No window was given: 3004.99 to 3994.01 is shown (percentiles 0.5 to 99.5 of the picture)."
    assert note in load_picture(path).assumptions
    assert not any("window" in note for note in load_picture(path, window=(0, 3500)).assumptions)


def test_a_few_bright_pixels_are_shown_although_percentiles_miss_them() -> None:
    values = np.zeros((100, 100), np.uint16)
    values[3, 4] = 5000
    assert grey_of(values)[3, 4] == 255 and grey_of(values).sum() == 255


def test_flat_pictures_are_black() -> None:
    picture = load_picture(np.full((4, 5), 900, np.uint16))
    assert picture.pixels.max() == 0
    assert "One colour throughout: nothing can be seen in this picture." in picture.assumptions


# --- arrays and Pillow images -----------------------------------------------------------------


def test_arrays_of_every_kind() -> None:
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    assert (grey_of(ramp) == expected).all()
    assert (grey_of(ramp.astype(np.float32)) == expected).all()
    assert grey_of(ramp > 0.5).tolist() == ((ramp > 0.5) * 255).tolist()
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    assert (load_picture(colour).pixels == colour).all()
    assert (load_picture(colour / 255).pixels == colour).all()
    assert (load_picture(colour.astype(np.uint16) * 257).pixels == colour).all()
    clear = np.dstack([colour, np.full((5, 6), 128, np.uint8)])
    assert (load_picture(clear).pixels == np.rint(colour.astype(int) * 128 / 255)).all()
    opaque = np.dstack([colour, np.full((5, 6), 255, np.uint8)])
    assert (load_picture(opaque).pixels == colour).all()
    assert load_picture(opaque).assumptions == load_picture(colour).assumptions


def test_a_picture_does_not_share_memory_with_its_array() -> None:
    for array in (grey(), np.dstack([grey()] * 3)):
        picture = load_picture(array)
        before = picture.pixels.copy()
        array[:] = 0
        assert (picture.pixels == before).all()


def test_values_that_are_not_numbers_are_black_and_counted() -> None:
    values = np.array([[0.0, np.nan, 0.5], [np.inf, 1.0, -np.inf]])
    picture = load_picture(values)
    assert picture.pixels[..., 0].tolist() == [[0, 0, 128], [0, 255, 0]]
    assert "3 of 6 values are NaN or infinite and shown black." in picture.assumptions
    with pytest.raises(InputError, match="only NaN or infinite"):
        load_picture(values * np.nan)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.zeros((4, 5, 6), np.uint8), r"shape \(4, 5, 6\)"),
        (np.zeros((4, 5, 1), np.uint8), r"shape \(4, 5, 1\)"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 5), np.uint8), "5 x 0"),
        (np.zeros((8193, 1), np.uint8), "1 x 8193"),
        (np.zeros((4, 5), complex), "complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.full((4, 5, 3), 1.5), "1.5"),
        (np.full((4, 5, 3), 300), "300"),
        (np.full((4, 5, 3), np.nan), "float64"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray, value: str) -> None:
    with pytest.raises(InputError, match=value) as caught:
        load_picture(array)
    assert caught.value.fix


def test_pillow_images_are_read_and_left_alone() -> None:
    image = Image.fromarray(grey())
    image.getexif()[0x0112] = 6
    assert (grey_of(image) == np.rot90(grey(), -1)).all()
    assert (np.asarray(image) == grey()).all()
    deep = grey(top=60_000)
    assert (grey_of(Image.fromarray(deep), window=(0, 65_535)) == np.rint(deep / 257)).all()
    with pytest.raises(InputError, match="must be whole"):
        load_picture(Image.open(io.BytesIO(encoded(image, "PNG")[:200])))


def test_other_sources_are_refused() -> None:
    for source in (None, b"bytes", 5, [[1, 2]]):
        with pytest.raises(InputError, match="a path, a Pillow image or an array"):
            load_picture(source)


# --- PNG, JPEG, TIFF, BMP ---------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("suffix", "format"), [("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF")])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(grey()), format, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(grey()), format))))
    assert (grey_of(saved_as(tmp_path, f"turned.{suffix}", data)) == TURNS[orientation](stored)).all()


def test_colours_palettes_and_transparency(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(colour)
    for suffix, format in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        path = saved_as(tmp_path, f"colour.{suffix}", encoded(image, format))
        assert (load_picture(path).pixels == colour).all()
    palette = image.quantize(7)
    path = saved_as(tmp_path, "palette.png", encoded(palette, "PNG"))
    table = np.array(palette.getpalette()).reshape(-1, 3)
    assert (load_picture(path).pixels == table[np.asarray(palette)]).all()
    path = saved_as(tmp_path, "hole.png", encoded(palette, "PNG", transparency=2))
    hole = np.asarray(palette) == 2
    picture = load_picture(path)
    assert (picture.pixels[hole] == 0).all()
    assert (picture.pixels[~hole] == table[np.asarray(palette)[~hole]]).all()
    assert "Transparent parts are shown over black." in picture.assumptions
    pair = np.dstack([grey(), np.full((24, 32), 51, np.uint8)])
    path = saved_as(tmp_path, "pair.png", encoded(Image.fromarray(pair, "LA"), "PNG"))
    assert (grey_of(path) == np.rint(grey() / 5)).all()


def test_cmyk_by_hand(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 255, 255, 0]]], np.uint8)
    path = saved_as(tmp_path, "inks.tif", encoded(Image.fromarray(inks, "CMYK"), "TIFF"))
    picture = load_picture(path)
    assert picture.pixels.tolist() == [[[255, 255, 255], [0, 255, 255], [0, 0, 0], [255, 0, 0]]]
    assert "CMYK colours are converted to RGB without a colour profile." in picture.assumptions


def test_sixteen_bit_colours_lose_their_low_byte(tmp_path: Path) -> None:
    picture = load_picture(saved_as(tmp_path, "deep.png", png_rgb16()))
    assert picture.pixels.shape == (2, 4, 3) and (picture.pixels == 0x12).all()
    assert "Colours of 16 bits are reduced to 8 by dropping the lowest 8." in picture.assumptions


def test_tiff_where_white_is_zero(tmp_path: Path) -> None:
    deep = grey(top=60_000)
    light = saved_as(tmp_path, "light.tif", tiff(deep, 1, 16))
    dark = saved_as(tmp_path, "dark.tif", tiff(deep, 0, 16))
    assert (grey_of(light, window=(0, 65_535)) == np.rint(deep / 257)).all()
    assert (grey_of(dark, window=(0, 65_535)) == np.rint(255 - deep / 257)).all()
    assert (grey_of(saved_as(tmp_path, "eight.tif", tiff(grey(), 0, 8))) == 255 - grey()).all()


def test_pages(tmp_path: Path) -> None:
    pages = [grey(), grey() // 2, grey(30, 7)]
    first, *others = map(Image.fromarray, pages)
    data = encoded(first, "TIFF", save_all=True, append_images=others)
    path = saved_as(tmp_path, "pages.tif", data)
    for number, page in enumerate(pages):
        assert (grey_of(path, frame=number) == page).all()
        assert load_picture(path, frame=number).assumptions == load_picture(grey()).assumptions
    assert (grey_of(path) == pages[0]).all()
    assert "The file has 3 pages and none was named: page 0 is read." in load_picture(path).assumptions
    for number in (-1, 3):
        with pytest.raises(InputError, match=f"page {number} of 3; name one from 0 to 2"):
            load_picture(path, frame=number)


def test_formats_without_orientation_are_assumed_and_have_no_spacing(tmp_path: Path) -> None:
    picture = load_picture(saved_as(tmp_path, "plain.png", encoded(Image.fromarray(grey()), "PNG")))
    assert picture.laterality == "assumed" and picture.spacing is None and picture.modality is None
    assert [note for note in picture.assumptions if ASSUMED in note]


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    png = saved_as(tmp_path, "plain.png", encoded(Image.fromarray(grey()), "PNG"))
    nifti = saved_as(tmp_path, "plain.nii", nifti_bytes(np.zeros((3, 4, 5), np.int16)))
    colour = saved_as(tmp_path, "colour.png", encoded(Image.new("RGB", (3, 3)), "PNG"))
    for source, options in (
        (png, {"axis": "axial"}),
        (png, {"index": 0}),
        (png, {"frame": 1}),
        (nifti, {"frame": 0}),
        (grey(), {"index": 0}),
        (colour, {"window": (0, 9)}),
        (nifti, {"axis": "oblique"}),
        (nifti, {"axis": "axial", "index": 5}),
        (nifti, {"axis": "axial", "index": -1}),
    ):
        with pytest.raises(InputError) as caught:
            load_picture(source, **options)
        assert caught.value.fix


# --- DICOM ------------------------------------------------------------------------------------


def test_the_demo_picture() -> None:
    picture = load_picture(pydicom.examples.get_path("overlay"))
    assert picture.pixels.shape == (300, 484, 3)
    assert picture.spacing == pytest.approx((0.7231405, 0.7231405))
    assert (picture.laterality, picture.modality) == ("known", "MR")
    assert picture.assumptions == ("The file has 2 windows: the first is shown.",)


def by_pydicom(data_set: Dataset, pixels: np.ndarray | None = None) -> np.ndarray:
    """Grey values through pydicom's own modality and window functions."""
    numbers = apply_modality_lut(data_set.pixel_array if pixels is None else pixels, data_set)
    with np.errstate(over="ignore"):  # in pydicom's sigmoid
        shown = apply_voi_lut(numbers, data_set)
        low, high = apply_voi_lut(np.array([-1e9, 1e9]), data_set)
    return np.rint((shown - low) / (high - low) * 255)


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm"]
)
def test_windows_of_real_files(name: str) -> None:
    path = PYDICOM_FILES / name
    assert np.abs(grey_of(path) - by_pydicom(pydicom.dcmread(path))).max() <= 0


def test_rescale_of_a_real_file() -> None:
    path = PYDICOM_FILES / "CT_small.dcm"
    data_set = pydicom.dcmread(path)
    hounsfield = apply_modality_lut(data_set.pixel_array, data_set)
    expected = np.rint(np.clip((hounsfield + 160) / 400, 0, 1) * 255)
    assert (grey_of(path, window=(-160, 240)) == expected).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(900, 1), (900.5, 2), (900, 333), (-50, 4000), (990, 50)])
@pytest.mark.parametrize("slope", [1, 0.25])
def test_window_functions(tmp_path: Path, function: str, centre: float, width: float, slope: float) -> None:
    elements = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    data_set = dicom_set(grey(40, 50, 4000), RescaleSlope=slope, RescaleIntercept=-7, **elements)
    shown = grey_of(saved_as(tmp_path, "a.dcm", saved(data_set)))
    assert np.abs(shown - by_pydicom(data_set)).max() <= 1e-9


def test_a_window_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    """Else a wrong window becomes a finding: "No liver can be seen"."""
    path = saved_as(tmp_path, "a.dcm", dicom_bytes(grey(), WindowCenter=90000, WindowWidth=50))
    low, high = int(grey().min()), int(grey().max())
    with pytest.raises(InputError, match=f"by the window in the file; the values run from {low} to {high};"):
        load_picture(path)
    with pytest.raises(InputError, match=f"by the window asked for.*give --window {low},{high}"):
        load_picture(path, window=(50000, 60000))
    assert load_picture(np.linspace(0, 0.001, 64).reshape(8, 8)).pixels.max() == 0, "no window at all"
    shown = load_picture(path, window=(low, high))
    assert shown.pixels.min() == 0 and shown.source == f"window {low} to {high}"
    for blank in (
        np.zeros((9, 9), np.uint8),
        np.full((9, 9), 700, np.uint16),
        np.full((1, 1, 3), 9, np.uint8),
    ):
        notes = load_picture(blank, window=(0, 100) if blank.ndim == 2 else None).assumptions
        assert "One colour throughout: nothing can be seen in this picture." in notes


@pytest.mark.parametrize("keyword", ["BitsStored", "HighBit", "PixelRepresentation"])
def test_a_missing_element_is_named(tmp_path: Path, keyword: str) -> None:
    path = saved_as(tmp_path, "a.dcm", dicom_bytes(**{keyword: None}))
    with pytest.raises(InputError, match=f"{keyword} missing; export it again, or take the element"):
        load_picture(path)


def test_which_part_of_a_file_is_shown_is_told(tmp_path: Path) -> None:
    import nibabel as nib

    volume = np.random.default_rng(0).integers(0, 500, (5, 6, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    read = load_picture(tmp_path / "a.nii.gz", axis="coronal", index=2, window=(0, 400))
    assert read.source == "coronal slice 2 of 0 to 5, window 0 to 400"
    assert load_picture(tmp_path / "a.nii.gz").source == "axial slice 3 of 0 to 6"
    pages = [Image.fromarray(grey(20, 30 + page, 200).astype(np.uint8)) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert load_picture(tmp_path / "a.tif", frame=1).source == "page 1 of 0 to 2"
    assert load_picture(grey(20, 30, 200).astype(np.uint8)).source == ""


def test_lookup_tables(tmp_path: Path) -> None:
    table = (np.linspace(0, 1, 500) ** 2 * 4095).astype(int)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [500, 100, 12], table.astype("<u2").tobytes()
    pixels = grey(20, 30, 800)
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        data_set = dicom_set(pixels, WindowCenter=2000, WindowWidth=3000)
        setattr(data_set, keyword, [item])
        shown = grey_of(saved_as(tmp_path, f"{keyword}.dcm", saved(data_set)))
        numbers = table[np.clip(pixels.astype(int) - 100, 0, 499)]
        if keyword == "VOILUTSequence":
            expected = np.rint(numbers / 4095 * 255)
        else:
            expected = by_pydicom(dicom_set(WindowCenter=2000, WindowWidth=3000), numbers)
        assert (shown == expected).all()


def test_monochrome1_is_inverted_after_its_window(tmp_path: Path) -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    usual = grey_of(saved_as(tmp_path, "2.dcm", dicom_bytes(**window)))
    inverted = grey_of(saved_as(tmp_path, "1.dcm", dicom_bytes(photometric="MONOCHROME1", **window)))
    assert np.abs(usual.astype(int) + inverted - 255).max() <= 1
    eight = saved_as(tmp_path, "8.dcm", dicom_bytes(grey(), "MONOCHROME1"))
    assert (grey_of(eight) == 255 - grey()).all()


def test_colours_of_dicom_files(tmp_path: Path) -> None:
    for name in ("SC_rgb_small_odd.dcm", "SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        reference = pydicom.dcmread(PYDICOM_FILES / name)
        expected = reference.pixel_array
        assert (load_picture(PYDICOM_FILES / name).pixels == expected).all(), name
    colour = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    path = saved_as(tmp_path, "ybr.dcm", dicom_bytes(colour, "YBR_FULL"))
    assert (load_picture(path).pixels == convert_color_space(colour, "YBR_FULL", "RGB")).all()
    reference = pydicom.dcmread(PYDICOM_FILES / "examples_palette.dcm")
    expected = apply_color_lut(reference.pixel_array, reference) >> 8
    assert (load_picture(PYDICOM_FILES / "examples_palette.dcm").pixels == expected).all()


def test_compressed_frames(tmp_path: Path) -> None:
    usual = grey_of(saved_as(tmp_path, "plain.dcm", dicom_bytes()))
    data_set = dicom_set()
    data_set.compress(RLELossless, generate_instance_uid=False)
    assert (grey_of(saved_as(tmp_path, "rle.dcm", saved(data_set))) == usual).all()
    wavelets = [encoded(Image.fromarray(page), "JPEG2000", no_jp2=True) for page in (grey(), grey() // 3)]
    data = compressed(wavelets, JPEG2000Lossless, dicom_set(np.stack([grey(), grey()])))
    path = saved_as(tmp_path, "wavelets.dcm", data)
    assert (grey_of(path, frame=0) == grey()).all() and (grey_of(path, frame=1) == grey() // 3).all()


def test_frames_of_a_dicom_file(tmp_path: Path) -> None:
    frames = np.stack([grey(), grey() // 2, grey() // 4])
    path = saved_as(tmp_path, "frames.dcm", dicom_bytes(frames))
    for number in range(3):
        assert (grey_of(path, frame=number) == frames[number]).all()
    with pytest.raises(InputError, match="frame 3 of 3"):
        load_picture(path, frame=3)


def test_what_an_enhanced_file_says_about_one_frame(tmp_path: Path) -> None:
    def groups(**items: Dataset) -> Dataset:
        group = Dataset()
        for keyword, item in items.items():
            setattr(group, keyword, [item])
        return group

    def of(**elements: object) -> Dataset:
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        return item

    frames = np.stack([grey(top=4000)] * 2)
    data_set = dicom_set(frames, PixelSpacing=None, ImageOrientationPatient=None)
    data_set.SharedFunctionalGroupsSequence = [
        groups(
            PixelMeasuresSequence=of(PixelSpacing=[0.3, 0.4]),
            PlaneOrientationSequence=of(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        )
    ]
    windows = [of(WindowCenter=1000, WindowWidth=500), of(WindowCenter=3000, WindowWidth=100)]
    data_set.PerFrameFunctionalGroupsSequence = [groups(FrameVOILUTSequence=item) for item in windows]
    path = saved_as(tmp_path, "enhanced.dcm", saved(data_set))
    for number, window in enumerate(windows):
        picture = load_picture(path, frame=number)
        assert picture.spacing == (0.3, 0.4) and picture.laterality == "known"
        assert (picture.pixels[..., 0] == by_pydicom(window_only(window), frames[number])).all()


def window_only(window: Dataset) -> Dataset:
    data_set = dicom_set()
    data_set.WindowCenter, data_set.WindowWidth = window.WindowCenter, window.WindowWidth
    return data_set


def test_overlays_in_unused_bits_are_dropped(tmp_path: Path) -> None:
    pixels = grey(top=4000)
    expected = grey_of(saved_as(tmp_path, "plain.dcm", dicom_bytes(pixels)))
    for shift in (0, 4):
        dirty = (pixels << shift) | (0xF000 if shift == 0 else 0x000F)
        data = dicom_bytes(dirty.astype(np.uint16), BitsStored=12, HighBit=11 + shift)
        assert (grey_of(saved_as(tmp_path, "dirty.dcm", data)) == expected).all()
    signed = pixels.astype(np.int16) - 2000
    expected = grey_of(saved_as(tmp_path, "signed.dcm", dicom_bytes(signed)))
    dirty = (signed.view(np.uint16) & 0x0FFF).view(np.int16)  # the sign is in bit 11
    data = dicom_bytes(dirty, BitsStored=12, HighBit=11)
    assert (grey_of(saved_as(tmp_path, "dirty.dcm", data)) == expected).all()


@pytest.mark.parametrize(
    ("cosines", "left", "top"),
    [
        ((1, 0, 0, 0, 1, 0), None, None),
        ((1, 0, 0, 0, 0, -1), None, None),
        ((0, 1, 0, 0, 0, -1), None, None),
        ((-1, 0, 0, 0, 1, 0), "the patient's left", "anterior"),
        ((1, 0, 0, 0, -1, 0), "the patient's right", "posterior"),
        ((-1, 0, 0, 0, -1, 0), "the patient's left", "posterior"),
        ((0, 1, 0, 1, 0, 0), "anterior", "the patient's right"),
        ((0, -1, 0, 0, 0, 1), "posterior", "inferior"),
    ],
)
def test_dicom_sides_are_told_and_never_changed(
    tmp_path: Path, cosines: tuple, left: str | None, top: str | None
) -> None:
    path = saved_as(tmp_path, "turned.dcm", dicom_bytes(grey(), ImageOrientationPatient=list(cosines)))
    picture = load_picture(path)
    assert (picture.pixels[..., 0] == grey()).all()
    sentence = f"The picture is kept as stored: image left is {left}, image top is {top}."
    assert picture.laterality == ("mirrored" if left == "the patient's left" else "known")
    assert picture.assumptions == ((sentence,) if left else ())


def test_spacing_of_dicom_files(tmp_path: Path) -> None:
    assert load_picture(saved_as(tmp_path, "a.dcm", dicom_bytes())).spacing == (0.5, 0.75)
    data = dicom_bytes(PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.3])
    picture = load_picture(saved_as(tmp_path, "b.dcm", data))
    assert picture.spacing == (0.2, 0.3)
    assert "Pixel spacing is that at the detector, not within the patient." in picture.assumptions


# --- NIfTI ------------------------------------------------------------------------------------

REFERENCE_SLICES = {
    "axial": lambda canonical, k: canonical[::-1, ::-1, k].T,
    "coronal": lambda canonical, k: canonical[::-1, k, ::-1].T,
    "sagittal": lambda canonical, k: canonical[k, ::-1, ::-1].T,
}
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_every_orientation_gives_the_same_picture(
    tmp_path: Path, order: tuple, signs: tuple, suffix: str
) -> None:
    """A volume stored in each of the 48 ways, against nibabel's canonical one, and by its corners."""
    zooms, affine = np.array([1.0, 2.0, 4.0]), np.zeros((4, 4))
    for stored, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, stored] = sign * zooms[axis]
    affine[3, 3] = 1
    sizes = np.array([5, 6, 7])[list(order)]
    data = np.random.default_rng(0).integers(50, 200, sizes).astype(np.uint8)
    first = [0 if sign < 0 else -1 for sign in signs]  # stored index of the right, front, top corner
    data[tuple(first)] = 255
    content = nifti_bytes(data, affine)
    path = saved_as(tmp_path, f"volume.{suffix}", content if suffix == "nii" else packed(content))
    canonical = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    assert canonical.shape == (5, 6, 7) and canonical[-1, -1, -1] == 255
    for axis, count, spacing in (
        ("axial", 7, (2, 1)),
        ("coronal", 6, (4, 1)),
        ("sagittal", 5, (4, 2)),
    ):
        for index in (0, 2, count - 1):
            picture = load_picture(path, axis=axis, index=index, window=(0, 255))
            assert (picture.pixels[..., 0] == REFERENCE_SLICES[axis](canonical, index)).all()
            assert picture.spacing == pytest.approx(spacing) and picture.laterality == "known"
            assert picture.assumptions == ()
        assert picture.pixels[0, 0, 0] == 255  # the corner lies at image left and image top


def test_volumes_are_windowed_as_a_whole(tmp_path: Path) -> None:
    data = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)
    path = saved_as(tmp_path, "volume.nii", nifti_bytes(data, scl_slope=2, scl_inter=-100))
    numbers = data * 2 - 100
    low, high = np.percentile(numbers, (0.5, 99.5))
    shown = np.rint(np.clip((numbers - low) / (high - low), 0, 1) * 255)
    assert (grey_of(path) == REFERENCE_SLICES["axial"](shown, 4)).all()
    assert (grey_of(path, axis="coronal", index=1) == REFERENCE_SLICES["coronal"](shown, 1)).all()
    notes = load_picture(path).assumptions
    assert "No axis was named: the slice is axial." in notes
    assert "No slice was named: axial slice 4 of 8 is read." in notes
    assert any("percentiles 0.5 to 99.5 of the volume" in note for note in notes)


def test_large_volumes_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of one plane and a small sample: every 7th value in the order of the file."""
    monkeypatch.setattr("ibisagent.images.nifti._CHUNK", 100)
    monkeypatch.setattr("ibisagent.images.nifti.SAMPLE", 150)
    data = np.random.default_rng(0).integers(0, 30_000, (9, 10, 11)).astype(np.int16)
    path = saved_as(tmp_path, "volume.nii.gz", packed(nifti_bytes(data)))
    low, high = np.percentile(data.ravel(order="F")[::7], (0.5, 99.5))
    for axis, index in (("axial", 3), ("coronal", 4), ("sagittal", 5)):
        expected = np.rint(np.clip((REFERENCE_SLICES[axis](data, index) - low) / (high - low), 0, 1) * 255)
        assert (grey_of(path, axis=axis, index=index) == expected).all()


def test_volumes_of_colours(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for number, channel in enumerate("RGB"):
        data[channel] = np.random.default_rng(number).integers(0, 256, data.shape)
    path = saved_as(tmp_path, "colours.nii", nifti_bytes(data))
    pixels = load_picture(path, axis="axial", index=2).pixels
    for number, channel in enumerate("RGB"):
        assert (pixels[..., number] == REFERENCE_SLICES["axial"](data[channel], 2)).all()


def test_oblique_volumes_follow_their_grid(tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    path = saved_as(tmp_path, "oblique.nii", nifti_bytes(data, turn))
    assert (grey_of(path, axis="axial", index=1, window=(0, 255)) == data[::-1, ::-1, 1].T).all()
    assert any("oblique" in note for note in load_picture(path).assumptions)


def test_lengths_are_in_millimetres(tmp_path: Path) -> None:
    affine = np.diag([0.001, 0.002, 0.003, 1])
    data = np.zeros((4, 5, 6), np.uint8)
    path = saved_as(tmp_path, "metres.nii", nifti_bytes(data, affine, xyzt_units=1))
    assert load_picture(path).spacing == pytest.approx((2, 1))
    path = saved_as(tmp_path, "microns.nii", nifti_bytes(data, affine * 1e6, xyzt_units=3))
    assert load_picture(path).spacing == pytest.approx((2, 1))


def test_real_volumes(data_root: Path) -> None:
    paths = sorted((data_root / "volumes" / "images").glob("*.nii.gz"))
    if not paths:
        pytest.skip("real volumes not found below IBISAGENT_DATA")
    for path in paths:
        canonical = nib.as_closest_canonical(nib.load(path)).get_fdata()
        low, high = np.percentile(canonical, (0.5, 99.5))
        shown = np.rint(np.clip((canonical - low) / (high - low), 0, 1) * 255)
        labels = np.asarray(nib.load(data_root / "volumes" / "labels" / path.name).dataobj)
        for axis, number in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
            index = canonical.shape[number] // 2
            picture = load_picture(path, axis=axis, index=index)
            difference = picture.pixels[..., 0] - REFERENCE_SLICES[axis](shown, index)
            assert np.abs(difference).max() <= 1  # float32 here, float64 there
            assert (picture.laterality, picture.spacing) == ("known", (1.0, 1.0))
            mask = load_mask(
                data_root / "volumes" / "labels" / path.name,
                (picture.height, picture.width),
                axis=axis,
                index=index,
            )
            assert (mask == (REFERENCE_SLICES[axis](labels, index) > 0)).all()


# --- masks ------------------------------------------------------------------------------------


def test_masks_in_every_format(tmp_path: Path) -> None:
    truth = grey() > 120
    labels = truth * np.uint8(3)
    palette = Image.fromarray(labels, "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 0, 128, 0])
    overlay = np.dstack([truth * np.uint8(200)] * 3 + [truth * np.uint8(90)])
    turned = nifti_bytes(labels.T[::-1, ::-1, None].copy())
    files = {
        "bits.png": encoded(Image.fromarray(truth), "PNG"),
        "labels.png": encoded(Image.fromarray(labels), "PNG"),
        "deep.png": encoded(Image.fromarray(labels.astype(np.uint16) * 300), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "overlay.png": encoded(Image.fromarray(overlay), "PNG"),
        "labels.tif": encoded(Image.fromarray(labels), "TIFF"),
        "labels.bmp": encoded(Image.fromarray(labels), "BMP"),
        "labels.dcm": dicom_bytes(labels, "MONOCHROME1", RescaleSlope=1, RescaleIntercept=-1024),
        "labels.nii": turned,
        "labels.nii.gz": packed(turned),
    }
    for name, data in files.items():
        mask = load_mask(saved_as(tmp_path, name, data), (24, 32))
        assert mask.dtype == bool and mask.flags.c_contiguous, name
        assert (mask == truth).all(), name
    for source in (truth, labels, Image.fromarray(labels), labels.astype(float)):
        assert (load_mask(source, (24, 32)) == truth).all()


def test_an_empty_mask_is_allowed(tmp_path: Path) -> None:
    empty = encoded(Image.new("L", (32, 24)), "PNG")
    assert not load_mask(saved_as(tmp_path, "empty.png", empty), (24, 32)).any()
    clear = encoded(Image.new("RGBA", (32, 24)), "PNG")
    assert not load_mask(saved_as(tmp_path, "clear.png", clear), (24, 32)).any()


def test_masks_follow_the_slice_of_their_picture(tmp_path: Path) -> None:
    data = (np.random.default_rng(0).random((4, 5, 6)) > 0.5).astype(np.uint8)
    path = saved_as(tmp_path, "labels.nii.gz", packed(nifti_bytes(data)))
    for axis, shape, index in (("axial", (5, 4), 2), ("coronal", (6, 4), 1), ("sagittal", (6, 5), 3)):
        mask = load_mask(path, shape, axis=axis, index=index)
        assert (mask == REFERENCE_SLICES[axis](data, index).astype(bool)).all()
    flat = saved_as(tmp_path, "flat.png", encoded(Image.fromarray(data[0] * 255), "PNG"))
    assert (load_mask(flat, (5, 6), axis="axial", index=99, frame=7) == (data[0] > 0)).all()


def test_masks_that_are_refused(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(grey()), "PNG")
    with pytest.raises(InputError, match="24 x 32 for a picture of 32 x 24; resample"):
        load_mask(saved_as(tmp_path, "turned.png", whole), (32, 24))
    with pytest.raises(InputError, match="without losses"):
        load_mask(saved_as(tmp_path, "lossy.jpg", encoded(Image.fromarray(grey()), "JPEG")), (24, 32))
    with pytest.raises(InputError, match="NaN"):
        load_mask(np.full((3, 3), np.nan), (3, 3))
    with pytest.raises(InputError, match="The mask must exist"):
        load_mask(tmp_path / "missing.png", (3, 3))


def test_a_palette_mask_counts_by_its_numbers(tmp_path: Path) -> None:
    """Number 0 is nothing, whatever colour the palette shows it in."""
    numbers = np.zeros((12, 16), np.uint8)
    numbers[3:6, 4:9] = 2
    image = Image.fromarray(numbers)
    for colours in ([255, 255, 255] + [0, 0, 0] * 255, [0, 0, 0] * 256):
        image.putpalette(colours)
        path = saved_as(tmp_path, "m.png", encoded(image, "PNG"))
        for source in (path, image):
            assert (load_mask(source, (12, 16)) == (numbers == 2)).all()


def test_a_mask_volume_says_which_slice(tmp_path: Path) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4)), tmp_path / "m.nii")
    with pytest.raises(InputError, match="belongs to a picture volume, or its slice is named"):
        load_mask(tmp_path / "m.nii", (6, 5))
    assert load_mask(tmp_path / "m.nii", (6, 5), axis="axial", index=2).all()


def test_a_blank_slice_is_read_where_the_window_shows_the_volume(tmp_path: Path) -> None:
    import nibabel as nib

    volume = np.full((5, 6, 4), -1000, np.int16)
    volume[1:4, 2:5, 2] = 40
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii")
    blank, shown = (load_picture(tmp_path / "ct.nii", index=k, window=(-150, 250)) for k in (0, 2))
    assert blank.pixels.max() == 0 and shown.pixels.max() > 0
    assert "One colour throughout: nothing can be seen in this picture." in blank.assumptions
    with pytest.raises(InputError, match="the values run from -1000 to 40"):
        load_picture(tmp_path / "ct.nii", index=2, window=(5000, 6000))
