"""One picture in every container: the pixels must not depend on the file's format.

Lossless files are compared with the PNG form, lossy ones with Pillow's decoding of the same file.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sparsedet.errors import InputError
from sparsedet.images.read import decode_image

U8 = NDArray[np.uint8]
HEIGHT, WIDTH = 46, 70


def colours() -> U8:
    """RGB gradients with a block in two corners, so that every turn is seen."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), (x + 2 * y) % 256], -1)
    rgb[:16, :24] = (250, 20, 20)
    rgb[-12:, -16:] = (20, 20, 250)
    return rgb.astype(np.uint8)


def alphas() -> U8:
    """Opaque above, half transparent below, clear at the left."""
    alpha = np.where(np.arange(HEIGHT)[:, None] < 20, 255, 90) * np.ones(WIDTH, int)
    alpha[:, :9] = 0
    return alpha.astype(np.uint8)


RGB = Image.fromarray(colours())
RGBA = Image.merge("RGBA", (*RGB.split(), Image.fromarray(alphas())))
GREY = RGB.convert("L")
PALETTE = RGB.quantize(40)
DEEP = colours().astype(np.uint16) * 257 - (colours() > 0) * np.uint16(100)  # rounds to the same


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **how)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind} in this way")
    return buffer.getvalue()


def by_opencv(suffix: str, bgr: NDArray[Any], *how: int) -> bytes:
    return cv2.imencode(suffix, bgr, list(how))[1].tobytes()


def by_pillow(data: bytes) -> U8:
    """BGR, upright, alpha dropped."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image)[..., 2::-1] if image.mode == "RGBA" else rgb_of(image)[..., ::-1]


def rgb_of(image: Image.Image) -> U8:
    return np.asarray(image.convert("RGB"))


def tiff(
    samples: NDArray[Any],
    colour: int,
    *,
    order: str = "<",
    big: bool = False,
    tile: int = 0,
    separate: bool = False,
    compression: int = 1,
    strip_rows: int = 0,
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A TIFF of (H, W, n) samples, with what Pillow does not write: tiles, planes, any tag."""
    height, width, n = samples.shape
    planes = np.moveaxis(samples, 2, 0)[..., None] if separate else samples[None]
    rows, columns = (tile, tile) if tile else (strip_rows or height, width)
    parts = []
    for plane in planes:
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                block = plane[y : y + rows, x : x + columns]
                if tile:
                    missing = ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0))
                    block = np.pad(block, missing)
                raw = block.astype(block.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(raw) if compression == 8 else raw)
    head, entry, long = (16, "HHQ8s", "Q") if big else (8, "HHI4s", "I")
    start, places = head, []
    for part in parts:
        places.append(start)
        start += len(part)
    numbers: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (samples.dtype.itemsize * 8,) * n,
        259: (compression,),
        262: (colour,),
        277: (n,),
        284: (2 if separate else 1,),
    }
    sizes = tuple(len(part) for part in parts)
    if tile:
        numbers |= {322: (tile,), 323: (tile,), 324: tuple(places), 325: sizes}
    else:
        numbers |= {273: tuple(places), 278: (rows,), 279: sizes}
    numbers |= tags or {}
    wide = {256, 257, 273, 279, 324, 325}
    outside, entries = b"", b""
    page = start + start % 2
    after = page + (8 if big else 2) + len(numbers) * (20 if big else 12) + (8 if big else 4)
    for tag, values in sorted(numbers.items()):
        code = long if tag in wide else "H"
        value = struct.pack(f"{order}{len(values)}{code}", *values)
        room = 8 if big else 4
        if len(value) > room:
            value, outside = (
                struct.pack(order + long, after + len(outside)),
                outside + value + bytes(len(value) % 2),
            )
        kind = {"H": 3, "I": 4, "Q": 16}[code]
        entries += struct.pack(order + entry, tag, kind, len(values), value.ljust(room, b"\0"))
    mark = b"II" if order == "<" else b"MM"
    header = (
        struct.pack(order + "HHHQ", 43, 8, 0, page) if big else struct.pack(order + "HI", 42, page)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(numbers))
    body = b"".join(parts) + bytes(start % 2)
    return mark + header + body + count + entries + bytes(8 if big else 4) + outside


def rgba_tiff(alpha_kind: int, **how: Any) -> bytes:
    return tiff(np.dstack([colours(), alphas()]), 2, tags={338: (alpha_kind,)}, **how)


def cmyk(deep: bool = False) -> NDArray[Any]:
    inks = np.dstack([255 - colours(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    return inks.astype(np.uint16) * 257 if deep else inks


def bmp(bits: int, pixels: NDArray[Any], masks: tuple[int, ...]) -> bytes:
    """Bit fields, which Pillow does not write."""
    row = np.zeros((HEIGHT, (WIDTH * bits + 31) // 32 * 4), np.uint8)
    row[:, : WIDTH * bits // 8] = pixels.astype(f"<u{bits // 8}").view(np.uint8)
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, -HEIGHT, 1, bits, 3, row.size, 0, 0, 0, 0)
    head = b"BM" + struct.pack("<IHHI", 66 + row.size, 0, 0, 66)
    return head + info + struct.pack("<3I", *masks) + row.tobytes()


R, G, B = (colours()[..., i].astype(np.uint32) for i in range(3))
DEEP_BGR = DEEP[..., ::-1]

LOSSLESS: dict[str, tuple[str, Callable[[], bytes]]] = {
    # the PNG form: RGB, RGBA and 16 bits are all one picture
    "png": ("rgb", lambda: saved(RGB, "PNG")),
    "png-alpha": ("rgb", lambda: saved(RGBA, "PNG")),
    "png-16": ("rgb", lambda: by_opencv(".png", DEEP_BGR)),
    "png-16-alpha": ("rgb", lambda: by_opencv(".png", np.dstack([DEEP_BGR, DEEP[..., 0]]))),
    "png-one-colour-clear": ("rgb", lambda: saved(RGB, "PNG", transparency=(250, 20, 20))),
    "png-gamma": ("rgb", lambda: with_chunk(saved(RGB, "PNG"), b"gAMA", b"\0\1\x11\x70")),
    "png-interlaced": ("rgb", lambda: interlaced(colours())),
    "png-grey": ("grey", lambda: saved(GREY, "PNG")),
    "png-grey-alpha": ("grey", lambda: saved(RGBA.convert("LA"), "PNG")),
    "png-grey-16": ("grey", lambda: by_opencv(".png", np.asarray(GREY).astype(np.uint16) * 257)),
    "png-palette": ("palette", lambda: saved(PALETTE, "PNG")),
    "png-palette-clear": ("palette", lambda: saved(PALETTE, "PNG", transparency=bytes(range(40)))),
    "png-bilevel": ("bilevel", lambda: saved(RGB.convert("1"), "PNG")),
    # WebP
    "webp": ("rgb", lambda: saved(RGB, "WEBP", lossless=True)),
    "webp-alpha": ("rgb", lambda: saved(RGBA, "WEBP", lossless=True, exact=True)),
    "webp-animated": (
        "rgb",
        lambda: saved(RGB, "WEBP", lossless=True, save_all=True, append_images=[RGB.rotate(180)]),
    ),
    # BMP
    "bmp": ("rgb", lambda: saved(RGB, "BMP")),
    "bmp-alpha": ("rgb", lambda: saved(RGBA, "BMP")),
    "bmp-fields": ("rgb", lambda: bmp(32, B << 16 | G << 8 | R, (255, 255 << 8, 255 << 16))),
    "bmp-fields-high": (
        "rgb",
        lambda: bmp(32, R << 24 | G << 16 | B << 8, (255 << 24, 255 << 16, 255 << 8)),
    ),
    "bmp-grey": ("grey", lambda: saved(GREY, "BMP")),
    "bmp-palette": ("palette", lambda: saved(PALETTE, "BMP")),
    "bmp-bilevel": ("bilevel", lambda: saved(RGB.convert("1"), "BMP")),
    # GIF
    "gif-grey": ("grey", lambda: saved(GREY, "GIF")),
    "gif-palette": ("palette", lambda: saved(PALETTE, "GIF", interlace=False)),
    "gif-interlaced": ("palette", lambda: saved(PALETTE, "GIF", interlace=True)),
    "gif-one-colour-clear": ("palette", lambda: saved(PALETTE, "GIF", transparency=5)),
    "gif-animated": (
        "palette",
        lambda: saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
    ),
    "gif-bilevel": ("bilevel", lambda: saved(RGB.convert("1"), "GIF")),
    # TIFF by Pillow
    "tiff": ("rgb", lambda: saved(RGB, "TIFF")),
    "tiff-lzw": ("rgb", lambda: saved(RGB, "TIFF", compression="tiff_lzw")),
    "tiff-lzw-predictor": (
        "rgb",
        lambda: saved(RGB, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    ),
    "tiff-deflate": ("rgb", lambda: saved(RGB, "TIFF", compression="tiff_adobe_deflate")),
    "tiff-packbits": ("rgb", lambda: saved(RGB, "TIFF", compression="packbits")),
    "tiff-alpha": ("rgb", lambda: saved(RGBA, "TIFF")),
    "tiff-alpha-lzw": ("rgb", lambda: saved(RGBA, "TIFF", compression="tiff_lzw")),
    "tiff-x": ("rgb", lambda: saved(RGB.convert("RGBX"), "TIFF")),
    "bigtiff": ("rgb", lambda: saved(RGB, "TIFF", big_tiff=True)),
    "bigtiff-alpha": ("rgb", lambda: saved(RGBA, "TIFF", big_tiff=True)),
    "tiff-grey": ("grey", lambda: saved(GREY, "TIFF")),
    "tiff-grey-alpha": ("grey", lambda: saved(RGBA.convert("LA"), "TIFF")),
    "tiff-palette": ("palette", lambda: saved(PALETTE, "TIFF")),
    "tiff-bilevel": ("bilevel", lambda: saved(RGB.convert("1"), "TIFF")),
    "tiff-fax": ("bilevel", lambda: saved(RGB.convert("1"), "TIFF", compression="group4")),
    "tiff-cmyk": ("rgb", lambda: tiff(cmyk(), 5)),
    "tiff-cmyk-lzw": (
        "rgb",
        lambda: saved(
            Image.frombytes("CMYK", RGB.size, cmyk().tobytes()), "TIFF", compression="tiff_lzw"
        ),
    ),
    # TIFF by OpenCV
    "tiff-16": ("rgb", lambda: by_opencv(".tif", DEEP_BGR)),
    "tiff-16-deflate": (
        "rgb",
        lambda: by_opencv(".tif", DEEP_BGR, cv2.IMWRITE_TIFF_COMPRESSION, 8),
    ),
    "tiff-16-alpha": ("rgb", lambda: by_opencv(".tif", np.dstack([DEEP_BGR, DEEP[..., 0]]))),
    # TIFF of other kinds
    "tiff-16-unassociated": (
        "rgb",
        lambda: tiff(np.dstack([DEEP, alphas().astype(np.uint16) * 257]), 2, tags={338: (2,)}),
    ),
    "tiff-16-big-endian": ("rgb", lambda: tiff(DEEP, 2, order=">")),
    "tiff-16-planes": ("rgb", lambda: tiff(DEEP, 2, separate=True)),
    "tiff-16-cmyk": ("rgb", lambda: tiff(cmyk(deep=True), 5)),
    "tiff-tiles": ("rgb", lambda: tiff(colours(), 2, tile=32)),
    "tiff-tiles-alpha": ("rgb", lambda: rgba_tiff(2, tile=32, compression=8)),
    "tiff-planes": ("rgb", lambda: tiff(colours(), 2, separate=True, strip_rows=7)),
    "tiff-planes-tiles-alpha": ("rgb", lambda: rgba_tiff(2, separate=True, tile=16)),
    "tiff-strips-alpha": ("rgb", lambda: rgba_tiff(2, strip_rows=9, order=">")),
    "tiff-alpha-unspecified": ("rgb", lambda: rgba_tiff(0)),
    "tiff-five-samples": (
        "rgb",
        lambda: tiff(np.dstack([colours(), alphas(), alphas()]), 2, tags={338: (0, 2)}),
    ),
    "bigtiff-tiles-alpha": ("rgb", lambda: rgba_tiff(2, big=True, tile=32, order=">")),
    "tiff-white-is-0": ("grey", lambda: tiff(255 - np.asarray(GREY)[..., None], 0)),
    "tiff-16-white-is-0": (
        "grey",
        lambda: tiff(65535 - np.asarray(GREY)[..., None].astype(np.uint16) * 257, 0),
    ),
}
"""Name -> which picture it holds, and its file."""


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A chunk behind the header chunk."""
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + struct.pack(">I", len(body)) + kind + body + checksum + png[33:]


def interlaced(rgb: U8) -> bytes:
    """A PNG in seven passes, which Pillow does not write."""
    height, width = rgb.shape[:2]
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    raw = b""
    for x, y, step_x, step_y in passes:
        for row in rgb[y::step_y, x::step_x]:
            raw += b"\0" + row.tobytes() if row.size else b""
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ):
        png += struct.pack(">I", len(body)) + kind + body
        png += struct.pack(">I", zlib.crc32(kind + body))
    return png


EXPECTED: dict[str, U8] = {
    "rgb": colours()[..., ::-1],
    "grey": np.dstack([np.asarray(GREY)] * 3),
    "palette": rgb_of(PALETTE)[..., ::-1],
    "bilevel": rgb_of(RGB.convert("1"))[..., ::-1],
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_picture_has_the_same_pixels_in_every_container(name: str) -> None:
    picture, make = LOSSLESS[name]
    assert np.array_equal(decode_image(make(), name), EXPECTED[picture])


LOSSY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(RGB, "JPEG"),
    "jpeg-444": lambda: saved(RGB, "JPEG", subsampling=0, quality=95),
    "jpeg-422": lambda: saved(RGB, "JPEG", subsampling=1),
    "jpeg-progressive": lambda: saved(RGB, "JPEG", progressive=True),
    "jpeg-restarts": lambda: saved(RGB, "JPEG", restart_marker_blocks=3),
    "jpeg-progressive-restarts": lambda: saved(
        RGB, "JPEG", progressive=True, restart_marker_rows=1
    ),
    "jpeg-optimised": lambda: saved(RGB, "JPEG", optimize=True),
    "jpeg-rgb": lambda: saved(RGB, "JPEG", keep_rgb=True),
    "jpeg-grey": lambda: saved(GREY, "JPEG"),
    "jpeg-grey-progressive": lambda: saved(GREY, "JPEG", progressive=True),
    "jpeg-cmyk": lambda: saved(RGB.convert("CMYK"), "JPEG"),
    "jpeg-cmyk-progressive": lambda: saved(RGB.convert("CMYK"), "JPEG", progressive=True),
    "webp": lambda: saved(RGB, "WEBP", quality=90),
    "webp-alpha": lambda: saved(RGBA, "WEBP", quality=90, exact=True),
    "tiff-jpeg": lambda: saved(RGB, "TIFF", compression="jpeg"),
    "tiff-jpeg-grey": lambda: saved(GREY, "TIFF", compression="jpeg"),
    "tiff-jpeg-cmyk": lambda: saved(RGB.convert("CMYK"), "TIFF", compression="jpeg"),
    "tiff-ycbcr": lambda: saved(RGB.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
    "tiff-cmyk-with-black": lambda: tiff(np.dstack([cmyk()[..., :3], alphas() // 3]), 5),
    "bmp-555": lambda: bmp(16, (R >> 3) << 10 | (G >> 3) << 5 | B >> 3, (0x7C00, 0x3E0, 0x1F)),
    "bmp-565": lambda: bmp(16, (R >> 3) << 11 | (G >> 2) << 5 | B >> 3, (0xF800, 0x7E0, 0x1F)),
    "avif": lambda: saved(RGB, "AVIF", quality=90),
    "avif-444": lambda: saved(RGB, "AVIF", quality=95, subsampling="4:4:4"),
    "avif-alpha": lambda: saved(RGBA, "AVIF", quality=90),
    "avif-grey": lambda: saved(GREY, "AVIF", quality=90, subsampling="4:0:0"),
    "avif-animated": lambda: saved(RGB, "AVIF", save_all=True, append_images=[RGB.rotate(180)]),
    "heif": lambda: heif(RGB),
    "heif-alpha": lambda: heif(RGBA),
    "heif-grey": lambda: heif(GREY),
}


def heif(image: Image.Image, **how: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    return saved(image, "HEIF", quality=90, **how)


def decoded(data: bytes, name: str) -> U8:
    if data[4:10] == b"ftypav" and cv2.imdecode(np.frombuffer(data, np.uint8), 1) is None:
        pytest.skip("this OpenCV does not read AVIF")
    return decode_image(data, name)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_picture_is_what_pillow_decodes(name: str) -> None:
    data = LOSSY[name]()
    got = decoded(data, name)
    expected = by_pillow(data)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 2


def test_alpha_that_is_multiplied_in_is_taken_out_again() -> None:
    alpha = np.maximum(alphas(), 40)
    for dtype, most in ((np.uint8, 255), (np.uint16, 65535)):
        full, part = colours() / 255, alpha[..., None] / 255
        samples = np.round(np.dstack([full * part, part]) * most).astype(dtype)
        got = decode_image(tiff(samples, 2, tags={338: (1,)}), "x")
        steps = 255 / alpha.min() / 2 if most == 255 else 0
        assert np.abs(got.astype(int) - colours()[..., ::-1]).max() <= steps + 1


def test_sixteen_bits_are_divided_by_257_and_rounded() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.dstack([np.floor(deep / 257 + 0.5).astype(np.uint8)] * 3)
    for data in (
        by_opencv(".png", deep),
        by_opencv(".png", np.dstack([deep] * 3)),
        by_opencv(".tif", deep),
        tiff(deep[..., None], 1, order=">"),
        tiff(np.dstack([deep] * 3), 2, big=True),
    ):
        assert np.array_equal(decode_image(data, "x"), expected)


# -------------------------------------------------------------------- orientation


def turned(stored: U8, orientation: int) -> U8:
    """As the EXIF standard says where the stored picture's row 0 and column 0 are to be seen."""
    columns = stored.transpose(1, 0, 2)
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: columns,
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]


def exif(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    value = struct.pack(
        order + ("HH" if kind == 3 else "I"), orientation, *((0,) if kind == 3 else ())
    )
    mark = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def raw_profile(orientation: int) -> bytes:
    """As ImageMagick wrote EXIF before PNG had a chunk for it."""
    block = b"Exif\0\0" + exif(orientation)
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    body = b"Raw profile type exif\0\0" + zlib.compress(text)
    return with_chunk(saved(RGB, "PNG"), b"zTXt", body)


ORIENTED: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda o: saved(RGB, "JPEG", exif=b"Exif\0\0" + exif(o)),
    "jpeg-little-endian": lambda o: saved(RGB, "JPEG", exif=b"Exif\0\0" + exif(o, "<")),
    "jpeg-long": lambda o: saved(RGB, "JPEG", exif=b"Exif\0\0" + exif(o, "<", 4)),
    "jpeg-progressive": lambda o: saved(RGB, "JPEG", progressive=True, exif=b"Exif\0\0" + exif(o)),
    "png": lambda o: saved(RGB, "PNG", exif=exif(o)),
    "png-alpha": lambda o: saved(RGBA, "PNG", exif=exif(o)),
    "png-16": lambda o: with_chunk(by_opencv(".png", DEEP_BGR), b"eXIf", exif(o)),
    "png-text": raw_profile,
    "webp": lambda o: saved(RGB, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(o)),
    "tiff": lambda o: tiff(colours(), 2, tags={274: (o,)}),
    "tiff-16": lambda o: tiff(DEEP, 2, order=">", tags={274: (o,)}),
    "tiff-alpha": lambda o: tiff(np.dstack([colours(), alphas()]), 2, tags={274: (o,), 338: (2,)}),
    "tiff-fax": lambda o: saved(RGB.convert("1"), "TIFF", compression="group4", tiffinfo={274: o}),
    "tiff-jpeg": lambda o: saved(RGB, "TIFF", compression="jpeg", tiffinfo={274: o}),
    "bigtiff": lambda o: tiff(colours(), 2, big=True, tags={274: (o,)}),
    "avif": lambda o: saved(RGB, "AVIF", quality=90, exif=exif(o)),
    "heif": lambda o: heif(RGB, exif=exif(o)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ORIENTED)
def test_every_container_is_turned_upright(name: str, orientation: int) -> None:
    stored = decoded(ORIENTED[name](1), name)
    got = decoded(ORIENTED[name](orientation), name)
    assert got.flags.c_contiguous
    assert got.shape == turned(stored, orientation).shape
    assert np.abs(got.astype(int) - turned(stored, orientation)).max() <= 2


@pytest.mark.parametrize("name", ["avif", "heif"])
@pytest.mark.parametrize("orientation", [2, 4, 5, 6, 7, 8])
def test_avif_and_heif_are_turned_as_pillow_turns_them(name: str, orientation: int) -> None:
    data = ORIENTED[name](orientation)
    assert np.abs(decoded(data, name).astype(int) - by_pillow(data)).max() <= 2


def test_the_exif_tag_alone_does_not_turn_avif() -> None:
    other = exif(6).replace(b"\1\x12", b"\1\x13")  # Pillow would write the orientation as irot
    data = saved(RGB, "AVIF", quality=90, exif=other)
    assert data.count(other[10:20]) == 1 and b"irot" not in data
    tagged = data.replace(other[10:20], exif(6)[10:20])
    assert np.array_equal(decoded(tagged, "x"), decoded(data, "x"))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_turns_nothing(value: int) -> None:
    for name in ("png", "tiff", "bigtiff"):
        assert np.array_equal(decode_image(ORIENTED[name](value), "x"), EXPECTED["rgb"])


def test_damaged_exif_turns_nothing_and_is_no_damage() -> None:
    for block in (b"", b"MM", b"MM\0*\xff\xff\xff\xff", b"II\x2b\0" + b"\xff" * 20, b"garbage" * 5):
        png = with_chunk(saved(RGB, "PNG"), b"eXIf", block)
        assert np.array_equal(decode_image(png, "x"), EXPECTED["rgb"])


# -------------------------------------------------------------------- what is refused by name


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(colours(), 8), "colours of kind 8"),
        (tiff(colours().astype(np.uint32), 2), "32/32/32 bits a sample"),
        (tiff(DEEP, 2, tags={339: (2, 2, 2)}), "signed or floating-point"),
        (tiff(colours(), 2, compression=50000), "compression 50000"),
        (tiff(colours(), 6), "subsampled YCbCr"),
        (tiff(colours(), 2, tags={317: (3,)}), "predictor 3"),
        (b"\xff\xd8\xff\xc9\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xd9", "arithmetic coding"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xd9", "lossless JPEG"),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x08\0\x08\1\1\x11\0\xff\xd9", "other than 8 bits"),
    ],
)
def test_kinds_that_are_not_read_are_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"x.tif: .*{said}.* is not read here; save it as PNG"):
        decode_image(data, "x.tif")


def test_heif_without_a_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    head = b"\0\0\0\x18ftypheic" + bytes(4) + b"mif1heic"
    data = head + b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 64, 48)
    with pytest.raises(
        InputError, match=r"a\.heic: HEIF is not read here; pip install pillow-heif"
    ):
        decode_image(data, "a.heic")


@pytest.mark.parametrize("screen", [(0, 0), (1, 1), (33, 7), (500, 1)])
def test_the_first_frame_of_a_gif_enlarges_a_screen_that_is_too_small(
    screen: tuple[int, int],
) -> None:
    """As in Pillow and in browsers."""
    data = saved(PALETTE, "GIF")
    changed = data[:6] + struct.pack("<HH", *screen) + data[10:]
    expected = np.asarray(PALETTE.convert("RGB"))[..., ::-1]
    height, width = expected.shape[:2]
    image = decode_image(changed, "x")
    assert image.shape == (max(height, screen[1]), max(width, screen[0]), 3)
    assert np.array_equal(image[:height, :width], expected)
    at = changed.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    wide = changed[: at + 1] + b"\xff" * 8 + changed[at + 9 :]
    with pytest.raises(InputError, match="131070x131070"):
        decode_image(wide, "x")
