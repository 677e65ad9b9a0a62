"""Damaged images: one line that names the file, nothing of a library's own, what can be kept."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sparsedet import _native
from sparsedet.errors import InputError
from sparsedet.images.read import decode_image, read_image

U8 = NDArray[np.uint8]


def scene(height: int = 120, width: int = 200, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    full = cv2.normalize(smooth, np.empty_like(smooth), 0, 255, cv2.NORM_MINMAX)
    return Image.fromarray(np.asarray(full, np.uint8))


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def jpeg(**how: Any) -> bytes:
    return saved(scene(), "JPEG", **({"quality": 90} | how))


def refused(data: bytes, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(data, "street.jpg", **how)
    message = str(caught.value)
    assert message.startswith("street.jpg: ") and "\n" not in message
    return message


def kept(data: bytes) -> U8:
    """What `keep_damaged` gives, with a warning that names the file; without it an error."""
    assert "truncated or damaged" in refused(data)
    with pytest.warns(UserWarning, match=r"^street\.jpg: the image is truncated or damaged \("):
        return decode_image(data, "street.jpg", keep_damaged=True)


def flipped(data: bytes, at: int, mask: int = 0xFF) -> bytes:
    return data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :]


JPEGS: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "444": lambda: jpeg(subsampling=0),
    "optimised": lambda: jpeg(optimize=True),
    "restarts": lambda: jpeg(restart_marker_blocks=5),
    "progressive": lambda: jpeg(progressive=True),
    "progressive restarts": lambda: jpeg(progressive=True, restart_marker_rows=1),
    "grey": lambda: saved(scene().convert("L"), "JPEG"),
    "cmyk": lambda: saved(scene().convert("CMYK"), "JPEG"),
}


# -------------------------------------------------------------------- JPEG: damage


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_inside_that_ends_with_a_marker_is_refused_or_kept(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = JPEGS[kind]()
    whole = decode_image(data, "x")
    for part in (0.4, 0.6, 0.8, 0.95):
        image = kept(data[: int(len(data) * part)] + b"\xff\xd9")
        assert image.shape == whole.shape
        rows = 0 if "progressive" in kind else int(part * 120) // 16 * 16 - 32
        assert np.array_equal(image[:rows], whole[:rows])
    assert capfd.readouterr().err == ""


def test_a_progressive_jpeg_keeps_its_first_scans() -> None:
    data = jpeg(progressive=True)
    whole = decode_image(data, "x").astype(int)
    errors = [np.abs(kept(data[: len(data) * n // 10]) - whole).mean() for n in (4, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] < 12


def test_a_damaged_interval_leaves_the_others_whole() -> None:
    data = jpeg(restart_marker_rows=1)  # of 16 rows each
    start = data.index(b"\xff\xd2") + 2
    whole = decode_image(data, "x")
    hole = data[: start + 100] + data[start + 200 :]
    image = kept(hole)
    assert np.array_equal(image[: 3 * 16 - 1], whole[: 3 * 16 - 1])
    assert np.array_equal(image[4 * 16 + 1 :], whole[4 * 16 + 1 :])
    gone = data[: data.index(b"\xff\xd2")] + data[data.index(b"\xff\xd4") :]  # two intervals
    image = kept(gone)
    assert np.array_equal(image[: 3 * 16 - 1], whole[: 3 * 16 - 1])
    assert np.array_equal(image[5 * 16 + 1 :], whole[5 * 16 + 1 :])


@pytest.mark.parametrize("kind", JPEGS)
def test_what_the_check_accepts_or_keeps_leaves_the_terminal_alone(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, rng = JPEGS[kind](), np.random.default_rng(3)
    outcomes = set()
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            zone = len(bad) if rng.integers(2) else 700
            bad[int(rng.integers(2, zone))] = int(rng.integers(256))
        for keep in (False, True):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    decode_image(bytes(bad), "x", keep_damaged=keep, max_pixels=10**6)
                outcomes.add(("decoded", keep))
            except InputError:
                outcomes.add(("refused", keep))
    assert capfd.readouterr().err == ""
    assert len(outcomes) >= 3


def test_a_jpeg_of_which_nothing_is_left_is_refused_even_when_kept() -> None:
    data = jpeg()
    start = data.index(b"\xff\xda") + 14
    for cut in (20, 200, start, start + 2):
        refused(data[:cut] + b"\xff\xd9", keep_damaged=True)


@pytest.mark.parametrize(
    "at",
    ["second frame", "bad table", "progressive order", "missing table", "second image", "unknown"],
)
def test_headers_that_libjpeg_would_stumble_over(
    at: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = jpeg(progressive=at == "progressive order")
    frame, table, scan = (
        (data.index(bytes((255, code))) for code in (0xC0, 0xC4, 0xDA))
        if (at != "progressive order")
        else (0, 0, 0)
    )
    if at == "second frame":
        bad = data[:table] + data[frame : frame + 19] + data[table:]
    elif at == "bad table":
        bad = data[: table + 5] + b"\xff" + data[table + 6 :]
    elif at == "progressive order":  # the first scan of all once more
        first = data.index(b"\xff\xda")
        second = data.index(b"\xff\xc4", first)
        bad = data[:second] + data[first:]
    elif at == "missing table":
        bad = flipped(data, scan + 6, 0x33)
    elif at == "second image":
        bad = data[:scan] + b"\xff\xd8" + data[scan:]
    else:
        bad = data[:scan] + b"\xff\x05\0\2" + data[scan:]
    assert "truncated or damaged" in refused(bad)
    assert capfd.readouterr().err == ""


def test_quantisation_tables_are_whole_and_there() -> None:
    """libjpeg gives nothing of a file with a bad one, not even what came before."""
    data = jpeg(progressive=True)
    table = data.index(b"\xff\xdb")
    for bad in (b"\xff\xdb\0\x13\0" + bytes(16), b"\xff\xdb\0\x43\x09" + bytes(64)):
        assert "a bad quantisation table" in refused(data[:table] + bad + data[table:])
        late = data.rindex(b"\xff\xda")
        with pytest.warns(UserWarning, match="a bad quantisation table"):
            kept = decode_image(data[:late] + bad + data[late:], "x", keep_damaged=True)
        assert np.abs(kept.astype(int) - decode_image(data, "x")).mean() < 8
    without = data.replace(b"\xff\xdb", b"\xff\xfe")
    assert "a quantisation table is missing" in refused(without)


def test_progressive_jpegs_have_no_standard_tables() -> None:
    data = jpeg(progressive=True)
    first = data[: data.index(b"\xff\xc4")] + data[data.index(b"\xff\xda") :]
    assert "a Huffman table is missing" in refused(first)


def test_a_short_jpeg_asks_for_no_work_of_a_hundred_scans() -> None:
    """Further scans of a channel that is whole, and tables that no scan uses."""
    data = jpeg(subsampling=0, restart_marker_blocks=1)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    large = data[: frame + 5] + struct.pack(">HH", 10_000, 10_000) + data[frame + 9 : scan]
    one = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    repeated = large + one + data[scan + 14 : scan + 40] + (one + b"\0\0") * 250 + b"\xff\xd9"
    table = b"\xff\xc4" + struct.pack(">H", 2 + 18 * 3600) + (b"\x10\1" + bytes(16)) * 3600
    progressive = jpeg(progressive=True)
    first = progressive.index(b"\xff\xda")
    start = progressive.index(b"\xff\xc4", first)
    twice = progressive[:-2] + progressive[first:start] + b"\xff\xd9"
    begin = time.process_time()
    assert _native.check_jpeg(repeated, 10**8, False)[0].startswith("stray bytes")
    assert _native.check_jpeg(data[:2] + table * 64 + data[2:], 10**8, False)[0] == ""
    assert _native.check_jpeg(twice, 10**8, False)[0] == "scans in a wrong order"
    assert time.process_time() - begin < 3  # it was half a minute


# -------------------------------------------------------------------- JPEG: harmless oddities


def test_what_libjpeg_only_warns_of_is_taken_out(capfd: pytest.CaptureFixture[str]) -> None:
    data = jpeg()
    expected = decode_image(data, "x")
    scan, table = data.index(b"\xff\xda"), data.index(b"\xff\xdb")
    odd = {
        "stray bytes at the end": data[:-2] + b"\x12\x34\0\0\xff\0\x56" * 30 + data[-2:],
        "zeros at the end": data[:-2] + bytes(99) + data[-2:],
        "stray bytes between segments": data[:table] + b"stray" + data[table:],
        "restart markers outside": data[:table] + b"\xff\xd3\xff\x01" + data[table:],
        "unknown JFIF version": data[:11] + b"\x09" + data[12:],
        "scan fields": data[: scan + 11] + b"\0\0\0" + data[scan + 14 :],
        "arithmetic conditioning": data[:table] + b"\xff\xcc\0\4\x77\x77" + data[table:],
        "filling before the end": data[:-2] + b"\xff" * 9 + data[-2:],
        "unknown Adobe transform": data[:2]
        + data[20:table]
        + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7"
        + data[table:],
    }
    for name, changed in odd.items():
        assert changed != data
        assert np.array_equal(decode_image(changed, "x"), expected), name
    assert capfd.readouterr().err == ""


TRAILER = b"\0\0\x01\x0aImage_UTC_Data" + bytes(range(256)) * 20 + b"\xff\xd8\xff\xe1\xff\xff"


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_needs_no_end_marker(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = JPEGS[kind]()
    expected = decode_image(data, "x")
    # Nothing; a camera's own data (libjpeg fails there); a second image; a damaged segment.
    for end in (b"", b"\xff", bytes(64), TRAILER, data, b"\xff\xe1\xff\xff", b"\xff\xda\0\3\0"):
        if "progressive" in kind:  # a scan may be missing
            assert "end-of-image" in refused(data[:-2])
        else:
            assert np.array_equal(decode_image(data[:-2] + end, "x"), expected), end[:8]
    assert capfd.readouterr().err == ""


def test_a_jpeg_in_several_scans_is_whole_after_the_last() -> None:
    first, second = (saved(scene(seed=n).convert("L"), "JPEG") for n in (0, 1))
    scan = second[second.index(b"\xff\xda") : -2].replace(
        b"\xff\xda\0\x08\1\1", b"\xff\xda\0\x08\1\2"
    )
    frame = first.index(b"\xff\xc0")
    three = first[:frame] + b"\xff\xc0\0\x11" + first[frame + 4 : frame + 9] + b"\3"
    three += b"".join(bytes((n, 0x11, 0)) for n in (1, 2, 3)) + first[frame + 13 : -2]
    third = scan.replace(b"\xff\xda\0\x08\1\2", b"\xff\xda\0\x08\1\3")
    whole = decode_image(three + scan + third + b"\xff\xd9", "x")
    assert np.array_equal(decode_image(three + scan + third + TRAILER, "x"), whole)
    assert "truncated or damaged" in refused(three + scan)


def test_zeros_that_fill_up_an_interval_are_no_damage() -> None:
    data = jpeg(restart_marker_blocks=4)
    at = data.index(b"\xff\xd1")
    filled = data[:at] + bytes(6) + data[at:]
    assert np.array_equal(decode_image(filled, "x"), decode_image(data, "x"))
    assert "stray bytes" in refused(data[:at] + b"\x5a\x5a" + data[at:])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_motion_jpeg_leaves_out_the_standard_tables(mode: str) -> None:
    data = saved(scene().convert(mode), "JPEG", quality=80)
    without = data
    while (at := without.find(b"\xff\xc4")) >= 0:
        (length,) = struct.unpack_from(">H", without, at + 2)
        without = without[:at] + without[at + 2 + length :]
    assert len(without) < len(data) - 200
    assert np.array_equal(decode_image(without, "x"), decode_image(data, "x"))


def test_jpegs_of_separate_scans_are_read() -> None:
    """Baseline with one scan for each channel, rebuilt from grey images."""
    planes = [saved(scene(seed=n).convert("L"), "JPEG", quality=85) for n in range(3)]
    head = planes[0]
    frame, scan = head.index(b"\xff\xc0"), head.index(b"\xff\xda")
    size = head[frame + 4 : frame + 9]
    joined = head[:frame] + b"\xff\xc0\0\x11" + size + b"\3\1\x11\0\2\x11\0\3\x11\0"
    joined += head[frame + 13 : scan]
    for number, plane in enumerate(planes, start=1):
        at = plane.index(b"\xff\xda")
        joined += b"\xff\xda\0\x08\1" + bytes((number,)) + plane[at + 6 : -2]
    joined += b"\xff\xd9"
    expected = np.asarray(Image.open(io.BytesIO(joined)).convert("RGB"))[..., ::-1]
    assert np.abs(decode_image(joined, "x").astype(int) - expected).max() <= 2
    assert "a further scan" in refused(joined[:-2] + joined[joined.rindex(b"\xff\xda") :])
    missing = joined[: joined.rindex(b"\xff\xda")] + b"\xff\xd9"
    assert "a colour channel is missing" in refused(missing)


def test_the_check_needs_no_memory_for_more_pixels_than_allowed() -> None:
    damage = _native.check_jpeg(jpeg(progressive=True), 120 * 200 - 1, False)[0]
    assert damage == "a bad frame header"


# -------------------------------------------------------------------- PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_pngs_that_libpng_warns_of_are_read_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(scene(), "PNG")
    expected = decode_image(data, "x")
    behind = 8 + 25  # the header chunk
    for extra in (
        chunk(b"iCCP", b"bad\0\0" + zlib.compress(b"x" * 10)),
        chunk(b"sRGB", b"\x09"),
        chunk(b"gAMA", b"\0\0\0\0"),
        chunk(b"cHRM", b"short"),
        chunk(b"tRNS", b"\0" * 7),
        chunk(b"PLTE", b"\0" * 3),
        chunk(b"tEXt", b"no separator")[:-1] + b"\0",  # a wrong checksum, too
        chunk(b"acTL", b"\0\0\0\1\0\0\0\0"),
    ):
        changed = data[:behind] + extra + data[behind:]
        assert np.array_equal(decode_image(changed, "x"), expected)
    assert np.array_equal(decode_image(data + b"after the end", "x"), expected)
    assert capfd.readouterr().err == ""


def png_of(raw: bytes, height: int, width: int, kind: int = 2, palette: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    colours = chunk(b"PLTE", palette) if palette else b""
    data = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + colours + data + chunk(b"IEND", b"")


def test_damaged_pngs_say_what_is_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(scene(), "PNG")
    at = data.index(b"IDAT")
    row = bytes(1 + 3 * 4)
    assert "checksum of a chunk 'IDAT'" in refused(flipped(data, at + 60))
    assert "ends before its last chunk" in refused(data[:-4])
    assert "unknown filter" in refused(png_of(row + b"\5" + row[1:], 2, 4))
    assert "end early" in refused(png_of(row, 2, 4))
    assert "no palette" in refused(png_of(bytes(10), 2, 4, kind=3))
    assert "impossible fields" in refused(png_of(bytes(10), 2, 4, kind=5))
    assert "unknown kind" in refused(data[:33] + chunk(b"ABCD", b"") + data[33:])
    assert "header chunk" in refused(data[:8] + data[33:])
    assert "Apple" in refused(data[:33] + chunk(b"CgBI", b"") + data[33:])
    assert capfd.readouterr().err == ""


def test_rows_above_the_damage_of_a_png_are_kept() -> None:
    data = saved(scene(), "PNG")
    whole = decode_image(data, "x")
    image = kept(data[: len(data) // 2])
    black = np.flatnonzero((image == 0).all(axis=(1, 2)))
    assert 20 < black[0] < 100 and np.array_equal(black, np.arange(black[0], 120))
    assert np.array_equal(image[: black[0] - 1], whole[: black[0] - 1])
    raw = np.hstack([np.zeros((120, 1), np.uint8), np.asarray(scene()).reshape(120, -1)])
    raw[70, 0] = 9
    image = kept(png_of(raw.tobytes(), 120, 200))
    assert np.array_equal(image[:70], whole[:70]) and not image[70:].any()


def test_indices_past_a_palette_are_black(capfd: pytest.CaptureFixture[str]) -> None:
    image = decode_image(png_of(b"\0\0\1\2\xff", 1, 4, kind=3, palette=b"\1\2\3\4\5\6"), "x")
    assert image.tolist() == [[[3, 2, 1], [6, 5, 4], [0, 0, 0], [0, 0, 0]]]
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------------- the other formats


CUT: dict[str, Callable[[], bytes]] = {
    "bmp": lambda: saved(scene(), "BMP"),
    "bmp palette": lambda: saved(scene().quantize(50), "BMP"),
    "gif": lambda: saved(scene().quantize(50), "GIF", interlace=False),
    "tiff strips": lambda: saved(scene(400, 300), "TIFF", compression="tiff_lzw"),
    "tiff raw": lambda: saved(scene(), "TIFF"),
    "tiff deflate": lambda: saved(scene(400, 300), "TIFF", compression="tiff_adobe_deflate"),
    "tiff packbits": lambda: saved(scene(400, 300), "TIFF", compression="packbits"),
}


def last_strip(data: bytes) -> tuple[int, int]:
    """Its place and bytes."""
    page = Image.open(io.BytesIO(data))
    tags: Any = getattr(page, "tag_v2")  # noqa: B009
    return tags[273][-1], tags[279][-1]


@pytest.mark.parametrize("kind", CUT)
def test_what_is_whole_of_other_formats_is_kept(kind: str) -> None:
    data = CUT[kind]()
    whole = decode_image(data, "x")
    if kind == "tiff raw":  # its directory comes first
        image = kept(data[: len(data) * 2 // 3])
    elif kind.startswith("tiff"):
        start, count = last_strip(data)
        noise = b"\x80" if kind == "tiff packbits" else b"\xff"  # 80 stands for nothing
        half = start + count // 2
        image = kept(data[:half] + noise * (start + count - half) + data[start + count :])
    else:
        image = kept(data[: len(data) * 2 // 3])
    assert image.shape == whole.shape
    same = (image == whole).all(axis=(1, 2))
    assert 0.3 < same.mean() < 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_damage_inside_a_strip_is_noticed(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """libtiff inside OpenCV fills the strip up and says nothing."""
    data = saved(scene(400, 300), "TIFF", compression=compression)
    start, _ = last_strip(data)
    noticed = 0
    for at in range(start + 40, start + 140, 5):
        bad = data[:at] + b"\xff\xd9\xff\xff" + data[at + 4 :]
        try:
            decode_image(bad, "x")
        except InputError:
            noticed += 1
    assert noticed >= 15
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_of_webp_and_avif_nothing_is_kept(kind: str) -> None:
    try:
        data = saved(scene(), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    for cut in (len(data) // 2, len(data) - 1):
        refused(data[:cut], keep_damaged=True)


def test_a_whole_image_is_kept_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (jpeg(), saved(scene(), "PNG"), saved(scene(), "TIFF")):
            assert np.array_equal(
                decode_image(data, "x", keep_damaged=True), decode_image(data, "x")
            )


def test_read_image_keeps_damaged_files_and_names_them(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(jpeg()[:6000])
    with pytest.raises(InputError, match=r"half\.jpg: the image is truncated or damaged \("):
        read_image(path)
    with pytest.warns(UserWarning, match=r"half\.jpg: .*what could be decoded is used") as caught:
        assert read_image(path, keep_damaged=True).shape == (120, 200, 3)
    assert caught[0].filename == __file__


# -------------------------------------------------------------------- lengths and offsets


def test_a_chunk_that_ends_past_the_file_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    data = bytearray(saved(scene(), "PNG"))
    at = data.index(b"IDAT") - 4
    for length in (0xFFFFFFF0, 0x7FFFFFFF, len(data), 0x80000000):
        data[at : at + 4] = struct.pack(">I", length)
        tracemalloc.start()
        assert f"a chunk of {length} bytes ends past the file" in refused(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("place", [1 << 63, (1 << 64) - 1, 1 << 40, 81])
def test_a_page_past_the_end_of_a_bigtiff_is_refused(order: str, place: int) -> None:
    mark = b"II" if order == "<" else b"MM"
    data = mark + struct.pack(order + "HHHQ", 43, 8, 0, place) + bytes(64)
    assert "past the file's end" in refused(data)


LENGTHS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(scene(24, 24), "JPEG"),
    "png": lambda: saved(scene(24, 24), "PNG"),
    "webp": lambda: saved(scene(24, 24), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "webp lossless": lambda: saved(scene(24, 24), "WEBP", lossless=True),
    "bmp": lambda: saved(scene(24, 24), "BMP"),
    "gif": lambda: saved(scene(24, 24).quantize(16), "GIF"),
    "tiff": lambda: saved(scene(24, 24), "TIFF", compression="tiff_lzw"),
    "bigtiff": lambda: saved(scene(24, 24), "TIFF", big_tiff=True),
    "avif": lambda: saved(scene(24, 24), "AVIF"),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_no_length_or_offset_of_a_header_is_trusted(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every field is overwritten by the numbers on which arithmetic breaks."""
    try:
        data = LENGTHS[kind]()
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    step = 2 if "tiff" in kind else 1  # its fields are even
    tails = [len(data) - 220] if "tiff" in kind else []  # a directory behind the pixels
    numbers = [b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\xff" * 3 + b"\x7f", b"\x80\0\0\0", bytes(4)]
    numbers += [b"\x80" + bytes(7), bytes(7) + b"\x80"]
    tracemalloc.start()
    for start in [0, *tails]:
        for at in range(max(0, start), min(len(data), max(0, start) + 220), step):
            for number in numbers:
                bad = data[:at] + number + data[at + len(number) :]
                for keep in (False, True):
                    try:
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            decode_image(bad, "x", max_pixels=100_000, keep_damaged=keep)
                    except InputError:
                        continue
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------------- the native helpers


def test_unpacking_gives_no_more_than_expected_and_less_of_damaged_data() -> None:
    rng = np.random.default_rng(0)
    for packing in ("lzw", "gif", "packbits"):
        for _ in range(200):
            data = rng.integers(0, 256, int(rng.integers(0, 60)), dtype=np.uint8).tobytes()
            expected = int(rng.integers(0, 400))
            assert len(_native.unpack(packing, data, expected)) <= expected
    assert _native.unpack("packbits", b"\xfe\x07\x01\x08\x09\x80", 9) == b"\7\7\7\x08\x09"
    with pytest.raises(ValueError, match="zip"):
        _native.unpack("zip", b"", 1)
