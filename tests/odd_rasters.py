"""Odd and damaged PNG, JPEG, TIFF and BMP files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from odd_files import Case, cuts, encoded, grey
from PIL import Image

TOO_LARGE = (8193, 10_000, 20_000, 60_000)


def raster_cases() -> Iterator[Case]:
    yield from _sizes()
    yield from _modes()
    yield from _numbers()
    yield from _exif()
    yield from _too_large()
    yield from _damaged()


def _sizes() -> Iterator[Case]:
    for height, width in ((1, 1), (1, 9), (9, 1), (2, 8192), (8192, 2), (1, 8192), (8192, 1)):
        image = Image.fromarray(grey(height, width))
        for suffix, name in (("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("bmp", "BMP")):
            yield Case(f"{width}x{height}.{suffix}", encoded(image, name), True, "", (height, width))
    square = Image.new("L", (8192, 8192), 90)
    yield Case("8192x8192.png", encoded(square, "PNG", compress_level=1), True, "", (8192, 8192))
    yield Case("black.png", encoded(Image.new("L", (9, 9)), "PNG"), True)


def _modes() -> Iterator[Case]:
    grey_image = Image.fromarray(grey())
    colour = Image.fromarray(np.stack([grey(), 255 - grey(), grey().T.reshape(24, 32)], -1))
    clear = colour.copy()
    clear.putalpha(grey_image)
    palette = colour.quantize(16)
    for suffix, name, modes in (
        ("png", "PNG", ("1", "L", "P", "RGB")),
        ("jpg", "JPEG", ("L", "RGB")),
        ("tif", "TIFF", ("1", "L", "P", "RGB")),
        ("bmp", "BMP", ("1", "L", "P", "RGB")),
    ):
        for mode in modes:
            image = palette if mode == "P" else colour.convert(mode)
            yield Case(f"mode-{mode}.{suffix}", encoded(image, name), True, "", (24, 32))
    over = "shown over black"
    yield Case("alpha.png", encoded(clear, "PNG"), True, over)
    yield Case("alpha-grey.png", encoded(clear.convert("LA"), "PNG"), True, over)
    yield Case("alpha.tif", encoded(clear, "TIFF"), True, over)
    yield Case("alpha-palette.png", encoded(palette, "PNG", transparency=3), True, over)
    yield Case("alpha-list.png", encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))), True, over)
    key = tuple(int(value) for value in np.asarray(colour)[0, 0])
    yield Case("alpha-key.png", encoded(colour, "PNG", transparency=key), True, over)
    clear.putalpha(255)
    yield Case("opaque.png", encoded(clear, "PNG"), True)
    clear.putalpha(0)
    yield Case("invisible.png", encoded(clear, "PNG"), False, "transparent throughout")
    cmyk = colour.convert("CMYK")
    yield Case("cmyk.jpg", encoded(cmyk, "JPEG"), True, "CMYK")
    yield Case("cmyk.tif", encoded(cmyk, "TIFF"), True, "CMYK")
    yield Case("progressive.jpg", encoded(colour, "JPEG", progressive=True), True)
    lab = Image.frombytes("LAB", (32, 24), colour.tobytes())
    yield Case("lab.tif", encoded(lab, "TIFF"), False, "colour mode LAB")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield Case(f"{compression}.tif", encoded(colour, "TIFF", compression=compression), True)
    yield Case("group4.tif", encoded(colour.convert("1"), "TIFF", compression="group4"), True)
    pages = encoded(grey_image, "TIFF", save_all=True, append_images=[grey_image.rotate(180), grey_image])
    yield Case("pages.tif", pages, True, "3 pages and none was named")
    animated = encoded(grey_image, "PNG", save_all=True, append_images=[Image.fromarray(255 - grey())])
    yield Case("animated.png", animated, True, "pages and none was named")


def _numbers() -> Iterator[Case]:
    deep = grey(top=60_000)
    window = "No window was given"
    yield Case("grey16.png", encoded(Image.fromarray(deep), "PNG"), True, window)
    yield Case("grey16.tif", encoded(Image.fromarray(deep), "TIFF"), True, window)
    yield Case("grey16-one.png", encoded(Image.fromarray(deep[:1, :1]), "PNG"), True, "One colour throughout")
    yield Case(
        "grey16-flat.png", encoded(Image.fromarray(deep * 0 + 900), "PNG"), True, "One colour throughout"
    )
    yield Case("grey16-big-endian.tif", tiff(deep.astype(">u2"), 1, 16), True, window)
    yield Case("grey16-white-is-zero.tif", tiff(deep, 0, 16), True, window)
    yield Case("rgb16.png", png_rgb16(), True, "reduced to 8")
    yield Case("int32.tif", encoded(Image.fromarray(deep.astype(np.int32) * -70), "TIFF"), True, window)
    real = deep.astype(np.float32) / 7 - 2000
    yield Case("float.tif", encoded(Image.fromarray(real), "TIFF"), True, window)
    unit = encoded(Image.fromarray(grey() / np.float32(255)), "TIFF")
    yield Case("unit-float.tif", unit, True, "0 is shown black and 1 white")
    for name, value, part in (("nan", np.nan, 0.3), ("inf", np.inf, 0.1), ("minus-inf", -np.inf, 0.9)):
        odd = real.copy()
        odd.ravel()[: int(part * odd.size)] = value
        yield Case(f"some-{name}.tif", encoded(Image.fromarray(odd), "TIFF"), True, "NaN or infinite")
        full = encoded(Image.fromarray(real * 0 + value), "TIFF")
        yield Case(f"all-{name}.tif", full, False, "values that are numbers")


def _exif() -> Iterator[Case]:
    image = Image.fromarray(grey())
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        shape = (32, 24) if orientation > 4 else (24, 32)
        says = f"orientation ({orientation})" if orientation > 1 else ""
        for suffix, name in (("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF")):
            data = encoded(image, name, exif=exif)
            yield Case(f"exif-{orientation}.{suffix}", data, True, says, shape)
    exif[0x0112] = 77
    yield Case("exif-77.jpg", encoded(image, "JPEG", exif=exif), True, "", (24, 32))
    broken = encoded(image, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    yield Case("exif-broken.jpg", broken, True, "", (24, 32))


def _too_large() -> Iterator[Case]:
    """Headers that claim more than 8192 pixels a side, with next to nothing behind them."""
    limit = "at most 8192 pixels a side"
    image = Image.fromarray(grey(16, 16))
    bmp, jpeg = encoded(image, "BMP"), encoded(image, "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    for side in TOO_LARGE:
        yield Case(f"{side}-wide.png", png(side, 4), False, limit)
        yield Case(f"{side}-tall.png", png(4, side), False, limit)
        yield Case(f"{side}-square.png", png(side, side), False, limit)
        sof = struct.pack(">HH", 16, side)
        yield Case(f"{side}-wide.jpg", jpeg[:start] + sof + jpeg[start + 4 :], False, limit)
        sof = struct.pack(">HH", side, side)
        yield Case(f"{side}-square.jpg", jpeg[:start] + sof + jpeg[start + 4 :], False, limit)
        header = struct.pack("<ii", 16, -side)
        yield Case(f"{side}-tall.bmp", bmp[:18] + header + bmp[26:], False, limit)
        yield Case(f"{side}-wide.tif", tiff(grey(2, 2), 1, 8, width=side), False, limit)
    yield Case("2-billion.png", png(2**31 - 1, 2**31 - 1), False, limit)
    really = Image.new("1", (8193, 3))
    yield Case("really-8193.png", encoded(really, "PNG"), False, limit)


def _damaged() -> Iterator[Case]:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8))
    whole = {
        "png": encoded(image, "PNG"),
        "jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "bmp": encoded(image, "BMP"),
    }
    for suffix, data in whole.items():
        for offset, part in cuts(data, 9, first=16):
            yield Case(f"cut-{offset}.{suffix}", part, False, "must be whole")
    noise = np.random.default_rng(5)
    for seed in range(3):
        for suffix, signature in (
            ("png", b"\x89PNG\r\n\x1a\n"),
            ("jpg", b"\xff\xd8\xff\xe0"),
            ("tif", b"II*\x00\x08\x00\x00\x00"),
            ("bmp", b"BM"),
        ):
            yield Case(f"noise-{seed}.{suffix}", signature + noise.bytes(3000), False, "picture given")
    data = bytearray(whole["png"])
    data[len(data) // 2] ^= 0x55
    yield Case("flipped-bit.png", bytes(data), False, "must be whole")
    yield Case("no-end.png", whole["png"][:-12], False, "must be whole")
    yield Case("no-pixels.png", b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", _ihdr(9, 9)), False, "must be whole")
    yield Case("0x0.png", png(0, 0), False, "picture given")
    bomb = zlib.compress(bytes(200 * 1024**2), 9)
    text = _chunk(b"zTXt", b"Comment\x00\x00" + bomb)
    end = encoded(image, "PNG")
    yield Case("text-bomb.png", end[:33] + text + end[33:], False, "must be whole")
    pixels = _chunk(b"IDAT", bomb)
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", _ihdr(16, 16))
    yield Case("pixel-bomb.png", head + pixels + _chunk(b"IEND", b""), True, "", (16, 16))
    yield Case("strip-elsewhere.tif", tiff(grey(), 1, 8, offset=10**9), False, "must be whole")
    yield Case("strip-of-4-gb.tif", tiff(grey(), 1, 8, length=2**32 - 1), True, "", (24, 32))
    yield Case("17-bits.tif", tiff(grey(), 1, 17), False, "picture given")
    yield Case("self-chained.tif", tiff(grey(), 1, 8, following=8), True, "", (24, 32))
    jpeg = whole["jpg"]
    closed = jpeg[: len(jpeg) // 2] + b"\xff\xd9"
    yield Case("cut-and-closed.jpg", closed, False, "damage within the pixels")
    group4 = encoded(image.convert("1"), "TIFF", compression="group4")
    fax = group4[:40] + b"\xff\x00\x55" + group4[43:]
    yield Case("spoilt-group4.tif", fax, False, "damage within the pixels")
    yield Case("padded.jpg", jpeg[:-2] + bytes(7) + jpeg[-2:], True)
    yield Case("trailing.png", whole["png"] + bytes(10_000), True)
    yield Case("trailing.jpg", whole["jpg"] + bytes(10_000), True)


# --- writers of headers that no encoder writes ------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _ihdr(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def png(width: int, height: int) -> bytes:
    """A grey PNG that claims a size and holds ten bytes of pixels."""
    pixels = _chunk(b"IDAT", zlib.compress(bytes(10)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", _ihdr(width, height)) + pixels + _chunk(b"IEND", b"")


def png_rgb16() -> bytes:
    """A PNG of 4 x 2 pixels with 16 bits a channel, 0x1234 everywhere."""
    rows = b"".join(b"\x00" + b"\x12\x34" * 12 for _ in range(2))
    chunks = _chunk(b"IHDR", _ihdr(4, 2, 16, 2)) + _chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + _chunk(b"IEND", b"")


def tiff(
    pixels: np.ndarray,
    photometric: int,
    bits: int,
    *,
    width: int | None = None,
    offset: int | None = None,
    length: int | None = None,
    following: int = 0,
) -> bytes:
    """An uncompressed grey TIFF of one strip whose tags may lie."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    data = pixels.tobytes()
    tags = (
        (256, width or pixels.shape[1]),
        (257, pixels.shape[0]),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, offset or 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, pixels.shape[0]),
        (279, length or len(data)),
    )
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"MM\x00*" if order == ">" else b"II*\x00"
    ifd = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following)
    return magic + struct.pack(f"{order}I", 8) + ifd + data
