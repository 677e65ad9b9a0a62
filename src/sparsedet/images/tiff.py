"""TIFF: its first page, in strips or tiles, classic TIFF or BigTIFF.

Strips are unpacked here: libtiff inside OpenCV fills up what is damaged without a word, and
multiplies colours by alpha. JPEG strips are checked here, then OpenCV decodes them, as it does fax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .._native import unpack
from . import jpeg
from .opencv import (
    U8,
    DamagedImage,
    UnsupportedImage,
    decode_with_opencv,
    to_eight_bits,
    unpack_bits,
    upright,
)
from .png import inflate
from .tags import ORIENTATION, FirstPage

# Tags
WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANES, PREDICTOR = 273, 277, 278, 279, 284, 317
PALETTE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 320, 322, 323, 324, 325
EXTRA_SAMPLES, NUMBERS, JPEG_TABLES, SUBSAMPLING = 338, 339, 347, 530

# Values of COLOURS, and the samples of a pixel that make its colour
WHITE_IS_0, BLACK_IS_0, RGB, INDEX, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
CHANNELS = {WHITE_IS_0: 1, BLACK_IS_0: 1, RGB: 3, INDEX: 1, CMYK: 4, YCBCR: 3}

FAX, JPEG = (2, 3, 4), 7  # of COMPRESSION
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
SPARE_PIXELS = 1 << 22
"""Strips and tiles may be so much larger than the image: more would cost what a bomb does."""

Samples = NDArray[np.unsignedinteger[Any]]


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of the first page."""
    page = FirstPage(data)
    return page.number(HEIGHT, 0), page.number(WIDTH, 0)


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The upright image, and what is wrong with it; see `read.decode_image`."""
    page = FirstPage(data)
    layout = Layout.of(page)
    compression = page.number(COMPRESSION, 1)
    read = _decode_by_opencv if compression == JPEG or compression in FAX else _decode_here
    image, damage = read(data, page, layout, keep)
    if image.shape != (layout.height, layout.width, 3):
        raise DamagedImage("its size is not what it declares")
    return upright(image, page.number(ORIENTATION, 1)), damage


@dataclass(frozen=True)
class Layout:
    """How the samples of a page lie in the file: in a grid of blocks, strips or tiles."""

    height: int
    width: int
    rows: int  # of a block
    columns: int
    planes: int  # 1, or one for each sample
    samples: int  # of a pixel in one plane
    bits: int
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, page: FirstPage) -> Layout:
        height, width = page.number(HEIGHT, 0), page.number(WIDTH, 0)
        samples, bits = page.number(SAMPLES, 1), page.numbers(BITS, 64, (1,))
        if not 1 <= samples <= 64:
            raise DamagedImage(f"it declares {samples} samples a pixel")
        if len(set(bits)) != 1 or bits[0] not in (1, 2, 4, 8, 16):
            raise UnsupportedImage(f"TIFF of {'/'.join(map(str, bits[:4]))} bits a sample")
        if not {1, 4}.issuperset(page.numbers(NUMBERS, 64, (1,))):  # 4: undefined
            raise UnsupportedImage("TIFF of signed or floating-point numbers")
        planes = samples if page.number(PLANES, 1) == 2 else 1
        tiled = TILE_OFFSETS in page
        rows = (
            page.number(TILE_HEIGHT, 0) if tiled else min(page.number(STRIP_ROWS, height), height)
        )
        columns = page.number(TILE_WIDTH, 0) if tiled else width
        if rows < 1 or columns < 1 or rows * columns > height * width * 4 + SPARE_PIXELS:
            raise DamagedImage("its strips or tiles have an impossible size")
        blocks = -(-height // rows) * -(-width // columns) * planes
        offsets = page.numbers(TILE_OFFSETS if tiled else STRIP_OFFSETS, blocks)
        counts = page.numbers(TILE_BYTES if tiled else STRIP_BYTES, blocks)
        if not counts and page.number(COMPRESSION, 1) == 1:  # some writers leave them out
            counts = tuple(max(0, len(page) - offset) for offset in offsets)
        if len(offsets) < blocks or len(counts) < blocks:
            raise DamagedImage("strips or tiles are missing")
        return cls(
            height, width, rows, columns, planes, samples // planes, bits[0], tiled, offsets, counts
        )

    def block(self, data: bytes, index: int) -> tuple[bytes, bool]:
        """The bytes of a block, and whether the file holds them all."""
        end = self.offsets[index] + self.counts[index]
        return data[self.offsets[index] : end], self.offsets[index] < len(data) and end <= len(data)

    def samples_of(self, raw: bytes, order: str) -> Samples:
        """Unpacked bytes as (rows, columns, samples).

        Args:
            raw: whole rows.
            order: "<" or ">", of 16 bits.
        """
        shape = (-1, self.columns, self.samples)
        if self.bits == 16:
            return np.frombuffer(raw, f"{order}u2").astype(np.uint16).reshape(shape)
        rows = np.frombuffer(raw, np.uint8).reshape(-1, self.row_bytes)
        return unpack_bits(rows, self.bits)[:, : self.columns * self.samples].reshape(shape)

    @property
    def row_bytes(self) -> int:
        return (self.columns * self.samples * self.bits + 7) // 8


# -------------------------------------------------------------------- unpacked here


def _copy(data: bytes, expected: int) -> bytes:
    return data[:expected]


def _inflate(data: bytes, expected: int) -> bytes:
    out, whole = inflate(data, expected, spare=1 << 20)
    return out if whole else out[: expected - 1]


def _lzw(data: bytes, expected: int) -> bytes:
    if data[:1] == b"\0" and data[1:2] == b"\1":
        raise UnsupportedImage("TIFF with LZW in the order of before 1992")
    return unpack("lzw", data, expected)


def _packbits(data: bytes, expected: int) -> bytes:
    return unpack("packbits", data, expected)


UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    1: _copy,
    5: _lzw,
    8: _inflate,
    32946: _inflate,
    32773: _packbits,
}
"""By COMPRESSION: data, expected bytes -> that many bytes, or fewer of damaged data."""


def _decode_here(data: bytes, page: FirstPage, layout: Layout, keep: bool) -> tuple[U8, str]:
    method = UNPACK.get(page.number(COMPRESSION, 1))
    if method is None:
        raise UnsupportedImage(f"TIFF with compression {page.number(COMPRESSION, 1)}")
    predictor = page.number(PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and layout.bits < 8):
        raise UnsupportedImage(f"TIFF with predictor {predictor}")
    colours = Colours.of(page, layout)
    reverse = page.number(FILL_ORDER, 1) == 2
    image = np.zeros((layout.height, layout.width, 3), np.uint8)
    damage, any_bytes, across = "", False, -(-layout.width // layout.columns)
    down = -(-layout.height // layout.rows)
    for index in range(across * down):
        y, x = index // across * layout.rows, index % across * layout.columns
        rows = layout.rows if layout.tiled else min(layout.rows, layout.height - y)
        planes = []
        for plane in range(min(layout.planes, colours.samples)):
            packed, whole = layout.block(data, index + plane * across * down)
            raw = method(packed.translate(REVERSED) if reverse else packed, rows * layout.row_bytes)
            any_bytes |= len(raw) > 0
            if not whole or len(raw) < rows * layout.row_bytes:
                damage = damage or f"the pixels end early or are damaged, from row {y} on"
                if not keep:
                    raise DamagedImage(damage)
            raw = raw.ljust(rows * layout.row_bytes, b"\0")
            planes.append(layout.samples_of(raw, page.order))
        block = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if predictor == 2:
            block = np.cumsum(block, axis=1, dtype=block.dtype)
        part = block[: layout.height - y, : layout.width - x, : colours.samples]
        image[y : y + layout.rows, x : x + layout.columns] = colours.to_bgr(part)
    if not any_bytes:
        raise DamagedImage(damage)
    return image, damage


@dataclass(frozen=True)
class Colours:
    """From the samples of a page to BGR."""

    kind: int
    bits: int
    associated_alpha: bool  # colours are multiplied by alpha, which is undone
    palette: U8

    @classmethod
    def of(cls, page: FirstPage, layout: Layout) -> Colours:
        kind, samples = page.number(COLOURS, BLACK_IS_0), layout.samples * layout.planes
        bits = layout.bits
        if kind not in CHANNELS or (bits != 8 and kind == YCBCR):
            raise UnsupportedImage(f"TIFF with colours of kind {kind} in {bits} bits")
        if kind == YCBCR and page.numbers(SUBSAMPLING, 2, (2, 2)) != (1, 1):
            raise UnsupportedImage("TIFF with uncompressed, subsampled YCbCr")
        if samples < CHANNELS[kind]:
            raise DamagedImage(f"it has {samples} samples a pixel, too few for its colours")
        palette = np.zeros((0, 3), np.uint8)
        if kind == INDEX:
            numbers = np.array(page.numbers(PALETTE, 3 << bits), np.uint32)
            if len(numbers) < 3 << bits:
                raise DamagedImage("its palette is missing or short")
            if numbers.max() > 255:  # some writers fill it with 8-bit values
                numbers >>= 8  # right for writers that multiply by 257 and for those by 256
            palette = np.asarray(numbers.reshape(3, -1)[::-1].T, np.uint8)
        extra = page.number(EXTRA_SAMPLES, 0) if samples > CHANNELS[kind] else 0
        return cls(kind, bits, extra == 1 and kind != INDEX, palette)

    @property
    def samples(self) -> int:
        """How many samples of a pixel `to_bgr` reads."""
        return CHANNELS[self.kind] + self.associated_alpha

    def to_bgr(self, block: Samples) -> U8:
        """(H, W, samples) -> (H, W, 3)."""
        if self.kind == INDEX:
            return self.palette[block[..., 0]]
        most = (1 << self.bits) - 1
        if self.associated_alpha:
            alpha = np.maximum(block[..., -1:].astype(np.uint32), 1)
            colour = (block[..., :-1].astype(np.uint32) * most + alpha // 2) // alpha
            block = np.minimum(colour, most).astype(block.dtype)
        if self.kind == WHITE_IS_0:
            block = most - block
        if self.bits < 8:
            block = block * np.uint8(255 // most)
        pixels = to_eight_bits(np.ascontiguousarray(block)).reshape(block.shape)
        if self.kind == RGB:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
        if self.kind == CMYK:
            ink, light = (
                pixels[..., 2::-1].astype(np.uint16),
                255 - pixels[..., 3:].astype(np.uint16),
            )
            return np.asarray(light - (ink * light + 127) // 255, np.uint8)
        if self.kind == YCBCR:
            ycrcb = np.ascontiguousarray(pixels[..., (0, 2, 1)])
            return np.asarray(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2BGR), np.uint8)
        return np.repeat(pixels, 3, axis=2)


# -------------------------------------------------------------------- decoded by OpenCV


def _decode_by_opencv(data: bytes, page: FirstPage, layout: Layout, keep: bool) -> tuple[U8, str]:
    """JPEG and fax. Damage inside of fax data is not noticed: it has no checksums."""
    is_jpeg = page.number(COMPRESSION, 1) == JPEG
    if layout.bits != (8 if is_jpeg else 1):
        raise UnsupportedImage(f"TIFF of {layout.bits} bits with this compression")
    if page.number(COLOURS, BLACK_IS_0) not in CHANNELS:
        raise UnsupportedImage(f"TIFF with colours of kind {page.number(COLOURS, 1)}")
    tables = page.content(JPEG_TABLES)
    damage = ""
    for index in range(-(-layout.height // layout.rows) * -(-layout.width // layout.columns)):
        packed, whole = layout.block(data, index)
        problem = "" if whole else "it ends early"
        if is_jpeg and not problem:
            stream = tables[:-2] + packed[2:] if tables else packed
            pixels = (layout.rows + 64) * (layout.columns + 64)
            problem, _, _ = jpeg.check(stream, pixels, keep)
        damage = damage or problem
        if damage and not keep:
            raise DamagedImage(damage)
    return decode_with_opencv(page.with_orientation_1()), damage
