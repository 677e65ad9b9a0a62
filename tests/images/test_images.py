"""Photographs: reading them, refusing bad ones, and their way to the network input and back."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sparsedet.errors import InputError
from sparsedet.images.letterbox import (
    Letterbox,
    as_blob,
    check_image,
    fit_letterbox,
    to_network_input,
)
from sparsedet.images.read import MAX_FILE_BYTES, MAX_PIXELS, decode_image, read_image

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

lengths = st.one_of(st.integers(1, 40), st.integers(1, 5000))


def photograph(height: int = 37, width: int = 53, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth coloured picture (BGR) that lossy formats keep recognisable."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    stretched = cv2.normalize(smooth, np.empty_like(smooth), 0, 255, cv2.NORM_MINMAX)
    return np.asarray(stretched, dtype=np.uint8)


def encode(kind: str, mode: str = "RGB", bgr: NDArray[np.uint8] | None = None, **how: Any) -> bytes:
    """A file's content, written by Pillow and not by the library under test."""
    image = Image.fromarray((photograph() if bgr is None else bgr)[..., ::-1].copy())
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **how)
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode("JPEG"),
    "jpeg-progressive": lambda: encode("JPEG", progressive=True),
    "jpeg-restart": lambda: encode("JPEG", restart_marker_blocks=1),
    "png": lambda: encode("PNG"),
    "webp-lossy": lambda: encode("WEBP"),
    "webp-lossless": lambda: encode("WEBP", lossless=True),
    "webp-extended": lambda: encode("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "bmp": lambda: encode("BMP"),
    "gif": lambda: encode("GIF"),
    "tiff": lambda: encode("TIFF"),
    "tiff-lzw": lambda: encode("TIFF", compression="tiff_lzw"),
    "tiff-big": lambda: encode("TIFF", big_tiff=True),
    "avif": lambda: encode("AVIF"),
}


def file_of(kind: str) -> bytes:
    try:
        data = FILES[kind]()
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    if kind in ("gif", "avif") and cv2.imdecode(np.frombuffer(data, np.uint8), 1) is None:
        pytest.skip(f"this OpenCV cannot read {kind}")
    return data


def refused(data: bytes, name: str = "x.jpg", **limit: Any) -> str:
    """The one-line error for these bytes."""
    with pytest.raises(InputError) as caught:
        decode_image(data, name, **limit)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    return message


# -------------------------------------------------------------------- pixels


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_read(kind: str) -> None:
    image = decode_image(file_of(kind), kind)
    assert image.shape == (37, 53, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - photograph()).mean() < 12  # GIF has 256 colours


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "tiff-big", "webp-lossless"])
def test_lossless_formats_keep_every_pixel_in_bgr_order(kind: str) -> None:
    assert np.array_equal(decode_image(file_of(kind), kind), photograph())


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (7, 5)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    image = photograph(*size)
    assert np.array_equal(decode_image(encode("PNG", bgr=image), "x"), image)


def test_grey_becomes_three_equal_channels() -> None:
    grey = photograph()[..., 0]
    for mode in ("L", "LA"):
        data = encode("PNG", mode, np.dstack([grey] * 3))
        assert np.array_equal(decode_image(data, "x"), np.dstack([grey] * 3))


def test_alpha_is_dropped_not_composited() -> None:
    bgra = np.dstack([photograph(), np.zeros((37, 53), np.uint8)])  # fully transparent
    assert np.array_equal(decode_image(cv2.imencode(".png", bgra)[1].tobytes(), "x"), bgra[..., :3])


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for image in (deep, np.dstack([deep, deep[::-1], deep.T])):
        got = decode_image(cv2.imencode(".png", image)[1].tobytes(), "x")
        expected = image / 257 if image.ndim == 3 else np.dstack([image / 257] * 3)
        assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 1.0


def test_palette_and_black_and_white() -> None:
    buffer = io.BytesIO()
    palette = Image.fromarray(photograph()[..., ::-1].copy()).quantize(16)
    palette.save(buffer, "PNG")
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    assert np.array_equal(decode_image(buffer.getvalue(), "x"), expected)
    assert set(np.unique(decode_image(encode("PNG", "1"), "x"))) == {0, 255}


def test_cmyk_jpeg() -> None:
    patches = np.zeros((32, 96, 3), np.uint8)
    patches[:, :32], patches[:, 32:64], patches[:, 64:] = (200, 40, 90), (30, 180, 220), 128
    got = decode_image(encode("JPEG", "CMYK", patches, quality=100), "x")
    assert got.shape == patches.shape
    for column in (16, 48, 80):
        assert np.abs(got[16, column].astype(int) - patches[16, column]).max() <= 6


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """A JPEG with an APP1 segment that holds an orientation, and a thumbnail after it."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4) + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    jpeg = encode("JPEG")
    stored = decode_image(jpeg, "x")
    # The EXIF standard says where the stored picture's row 0 and column 0 are to be seen.
    upright = {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.transpose(1, 0, 2),  # left, top
        6: stored[::-1].transpose(1, 0, 2),  # right, top
        7: stored[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: stored[:, ::-1].transpose(1, 0, 2),  # left, bottom
    }[orientation]
    got = decode_image(with_exif(jpeg, orientation), "x")
    assert got.flags.c_contiguous and np.array_equal(got, upright)


# -------------------------------------------------------------------- bad files


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_are_refused(kind: str) -> None:
    data = file_of(kind)
    cuts = {1, 2, 3, 4, 10, 20, 30, len(data) - 2, len(data) - 1}
    for cut in sorted(cuts | {len(data) * i // 12 for i in range(1, 12)}):
        if kind in ("jpeg", "jpeg-restart") and cut >= len(data) - 2:  # all pixels are there
            assert np.array_equal(decode_image(data[:cut], "x"), decode_image(data, "x"))
        else:
            refused(data[:cut])


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "jpeg-restart"])
def test_a_cut_jpeg_is_noticed_by_our_own_walk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every OpenCV notices; neither zeros after the cut nor a thumbnail's end may deceive."""
    data = file_of(kind)
    thumbnail = with_exif(data, 1, encode("JPEG", bgr=photograph(8, 8)))
    assert np.array_equal(decode_image(thumbnail, "x"), decode_image(data, "x"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("a cut file was decoded"))
    for whole in (data, thumbnail):
        for size in (int(len(whole) * 0.75), int(len(whole) * 0.99), len(whole) - 3):
            cut = whole[:size]
            assert "truncated" in refused(cut)
            assert "truncated" in refused(cut + bytes(5000))


@pytest.mark.parametrize("tail", [b"garbage" * 50, b"\0" * 999, b"\xff\xd8\xff\xc0\0\x11", b"\xff"])
@pytest.mark.parametrize("kind", ["jpeg", "jpeg-progressive", "png"])
def test_bytes_after_the_end_do_no_harm(kind: str, tail: bytes) -> None:
    data = file_of(kind)
    assert np.array_equal(decode_image(data + tail, "x"), decode_image(data, "x"))


def test_jpeg_filling_between_segments_does_no_harm() -> None:
    data = file_of("jpeg")
    filled = data[:2] + b"\xff" * 20 + data[2:-2] + b"\xff" * 20 + data[-2:]
    assert np.array_equal(decode_image(filled, "x"), decode_image(data, "x"))


def test_a_long_run_of_filling_costs_linear_time() -> None:
    refused(b"\xff\xd8" + b"\xff" * 3_000_000 + b"\0")  # quadratic time would take hours


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is no image\n",
        b"BM",
        b"BMW builds no bitmaps, whatever you say",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"II*\0",
        b"MM\0+" + bytes(3),
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04" + bytes(99),
        bytes(4096),
        b"\0\0\0\x18ftypavif\0\0\0\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    refused(data)


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(1)
    for kind in ("png", "bmp", "gif", "tiff", "webp-lossy"):
        data = np.frombuffer(file_of(kind), np.uint8)
        for _ in range(20):
            bad = data.copy()
            bad[rng.integers(0, min(len(bad), 200), 4)] = rng.integers(0, 256, 4)
            try:
                image = decode_image(bad.tobytes(), "x", max_pixels=1_000_000)
            except InputError:
                continue
            check_image(image)


def test_truncated_pngs_and_jpegs_leave_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("png", "jpeg"):
        data = file_of(kind)
        for cut in range(1, len(data), 97):
            refused(data[:cut])
    assert capfd.readouterr().err == ""


def test_opencvs_log_is_silent_while_any_thread_decodes_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: Any = getattr(cv2.utils, "logging", cv2)
    before, data, imdecode = log.getLogLevel(), file_of("png"), cv2.imdecode
    both, one_left = threading.Barrier(2), threading.Event()
    levels: list[int] = []

    def slow(*arguments: Any) -> Any:
        both.wait(10)
        if threading.current_thread() is not late:
            return imdecode(*arguments)
        assert one_left.wait(10)
        levels.append(log.getLogLevel())
        raise cv2.error("damaged")

    monkeypatch.setattr(cv2, "imdecode", slow)
    early = threading.Thread(target=decode_image, args=(data, "x"))
    late = threading.Thread(target=lambda: refused(data))
    log.setLogLevel(3)
    try:
        for thread in (early, late):
            thread.start()
        early.join(10)
        one_left.set()
        late.join(10)
        assert levels == [0] and log.getLogLevel() == 3
    finally:
        log.setLogLevel(before)


# -------------------------------------------------------------------- the pixel limit


@pytest.mark.parametrize("kind", FILES)
def test_the_limit_counts_the_pixels_that_the_file_declares(kind: str) -> None:
    data = file_of(kind)
    decode_image(data, "x", max_pixels=37 * 53)
    assert "53x37 = 1961 pixels" in refused(data, max_pixels=37 * 53 - 1)


BOMBS = sorted((Path(__file__).parents[1] / "attacks" / "images").glob("bomb_*"))


@pytest.mark.parametrize("path", BOMBS, ids=lambda path: path.stem)
def test_bombs_are_refused_before_anything_is_decoded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the bomb was decoded"))
    assert str(MAX_PIXELS) in refused(path.read_bytes())


# -------------------------------------------------------------------- files


def test_read_image_reads_files_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "fenêtre 窓.png"
    path.write_bytes(encode("PNG"))
    assert np.array_equal(read_image(path), photograph())
    assert np.array_equal(read_image(str(path), max_pixels=37 * 53), photograph())
    with pytest.raises(InputError, match=r"窓\.png: the image has 53x37"):
        read_image(path, max_pixels=100)


def test_read_image_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    with open(tmp_path / "huge.png", "wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    reasons = {
        "missing.jpg": "No such file",
        "empty.jpg": "empty",
        "text.jpg": "not a JPEG",
        "huge.png": "expected at most",
        "pipe.jpg": "not a file",
        ".": "not a file",
        "null\0.jpg": "null",
    }
    for name, reason in reasons.items():
        path = os.path.join(tmp_path, name)
        with pytest.raises(InputError) as caught:
            read_image(path)
        message = str(caught.value)
        assert message.startswith(path) and reason in message and "\n" not in message


# -------------------------------------------------------------------- placing


def test_fit_truncates() -> None:
    assert fit_letterbox(480, 640, 800, 1280) == Letterbox(480, 640, 800, 1066, 800, 1280)
    assert fit_letterbox(427, 640, 800, 1280) == Letterbox(427, 640, 800, 1199, 800, 1280)
    assert fit_letterbox(1, 5000, 800, 1280) == Letterbox(1, 5000, 1, 1280, 800, 1280)
    assert fit_letterbox(480, 640, 320, 480, "stretch") == Letterbox(480, 640, 320, 480, 320, 480)


def test_fit_keeps_the_contracts_rounding_errors() -> None:
    heights = [h for h in range(1, 3000) if int((800 / h) * h) == 799]
    widths = [w for w in range(1, 3000) if int((1280 / w) * w) == 1279]
    assert heights and widths
    assert all(fit_letterbox(h, 1, 800, 1280).resized_height == 799 for h in heights)
    assert all(fit_letterbox(1, w, 800, 1280).resized_width == 1279 for w in widths)


@given(lengths, lengths, st.integers(16, 1300), st.integers(16, 1300))
def test_fit_stays_on_the_canvas_and_keeps_the_shape(h: int, w: int, ch: int, cw: int) -> None:
    at = fit_letterbox(h, w, ch, cw)
    assert 1 <= at.resized_height <= ch and 1 <= at.resized_width <= cw
    assert at.resized_height >= ch - 1 or at.resized_width >= cw - 1
    scale = min(cw / w, ch / h)
    assert -1 < at.resized_height - scale * h <= max(0, 1 - scale * h)
    assert -1 < at.resized_width - scale * w <= max(0, 1 - scale * w)


@given(lengths, lengths, st.sampled_from(["letterbox", "stretch"]), st.data())
def test_boxes_make_the_round_trip(h: int, w: int, resize: Any, data: st.DataObject) -> None:
    at = fit_letterbox(h, w, 320, 480, resize)
    fractions = data.draw(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4))
    low_high = np.sort(np.reshape(np.array(fractions, dtype=np.float64), (-1, 2, 2)), axis=1)
    boxes = low_high.reshape(-1, 4) * [w, h, w, h]
    to_input_scale = [at.resized_width / w / 480, at.resized_height / h / 320] * 2
    got = at.to_image((boxes * to_input_scale).astype(np.float32))
    assert got.shape == boxes.shape and got.dtype == np.float32
    # Fraction and result are rounded to float32, each by at most 2^-24 of its value; the input's
    # sides are so many photograph pixels:
    sides = np.array([480 * w / at.resized_width, 320 * h / at.resized_height] * 2)
    assert (np.abs(got - boxes) <= 2**-23 * sides).all()
    assert (got >= 0).all() and (got <= [w, h, w, h]).all()


def test_boxes_follow_the_contracts_formula_and_are_clipped() -> None:
    at = fit_letterbox(427, 640, 800, 1280)
    got = at.to_image(np.array([[0.5, 0.25, 0.9, 0.75], [-0.5, 0.1, 1.0, 1.5]], np.float32))
    expected = [
        [
            0.5 * 1280 / (1199 / 640),
            0.25 * 800 / (800 / 427),
            0.9 * 1280 / (1199 / 640),
            0.75 * 800 / (800 / 427),
        ],
        [0, 0.1 * 800 / (800 / 427), 640, 427],
    ]
    assert np.allclose(got, expected, rtol=1e-6)
    assert at.to_image(np.zeros((0, 4), np.float32)).shape == (0, 4)


def bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Textbook bilinear resizing with pixel centres at .5, in float64."""

    def weights(out: int, size: int) -> NDArray[np.float64]:
        at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
        return np.asarray(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))), np.float64)

    rows, columns = weights(height, image.shape[0]), weights(width, image.shape[1])
    resized = np.einsum("yi,xj,ijc->yxc", rows, columns, image.astype(np.float64), optimize=True)
    return np.asarray(resized, dtype=np.float64)


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (53, 37), (1, 211), (211, 1), (90, 120)])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_canvas_is_bilinear_in_the_corner_and_zero_elsewhere(
    size: tuple[int, int], resize: Any
) -> None:
    image = np.maximum(photograph(*size), 1)
    network_input, at = to_network_input(image, 60, 90, resize)
    assert at == fit_letterbox(*size, 60, 90, resize)
    assert (
        network_input.shape == (60, 90, 3)
        and network_input.dtype == np.uint8
        and network_input.flags.c_contiguous
    )
    assert (
        not network_input[at.resized_height :].any()
        and not network_input[:, at.resized_width :].any()
    )
    inside = network_input[: at.resized_height, : at.resized_width]
    assert np.abs(inside - bilinear(image, at.resized_height, at.resized_width)).max() <= 1.0


def test_a_photograph_of_the_canvas_size_is_copied() -> None:
    image = photograph(60, 90)
    network_input, _ = to_network_input(image, 60, 90)
    assert np.array_equal(network_input, image) and not np.shares_memory(network_input, image)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (4999, 3)])
def test_very_long_photographs_reach_the_reference_canvas(size: tuple[int, int]) -> None:
    network_input, at = to_network_input(np.full((*size, 3), 200, np.uint8), 800, 1280)
    assert (network_input == 200).all(axis=2).sum() == at.resized_height * at.resized_width


def test_views_are_accepted() -> None:
    image = photograph()
    assert np.array_equal(
        to_network_input(image[::-1, ::2, ::-1], 60, 90)[0],
        to_network_input(image[::-1, ::2, ::-1].copy(), 60, 90)[0],
    )


def test_bad_images_and_canvases_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(4, 5\) and type uint8, expected \(H, W, 3\)"):
        to_network_input(np.zeros((4, 5), np.uint8), 60, 90)
    for bad in (np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(InputError, match="expected"):
            to_network_input(bad, 60, 90)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image is str"):
        to_network_input("photo.jpg", 60, 90)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'crop'"):
        fit_letterbox(4, 5, 60, 90, "crop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1x1"):
        fit_letterbox(4, 0, 60, 90)


# -------------------------------------------------------------------- ready-made network inputs


def test_both_layouts_give_the_same_blob() -> None:
    nhwc = np.stack([photograph(16, 20, seed) for seed in (1, 2)])
    nchw = nhwc.transpose(0, 3, 1, 2)
    assert as_blob(nhwc) is nhwc
    floats, integers = nchw.astype(np.float32), nhwc.astype(np.int64)
    for blob in (nchw, nchw.copy(), np.asfortranarray(nhwc), floats, integers):
        got = as_blob(blob)
        assert np.array_equal(got, nhwc) and got.dtype == np.uint8 and got.flags.c_contiguous


@pytest.mark.parametrize(
    "shape", [(16, 20, 3), (1, 4, 16, 20), (0, 3, 16, 20), (1, 3, 0, 20), (2, 16, 3, 20)]
)
def test_blobs_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        as_blob(np.zeros(shape, np.uint8))
    assert str(list(shape)) in str(caught.value) and "[B, 3, H, W]" in str(caught.value)


def test_blobs_that_fit_both_layouts_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1, 3, 20, 3\], which fits both layouts"):
        as_blob(np.zeros((1, 3, 20, 3), np.uint8))


@pytest.mark.parametrize("value", [0.5, -1, 256, 1e30, np.nan, np.inf])
def test_blobs_with_other_values_are_refused(value: float) -> None:
    blob = np.zeros((1, 3, 16, 20), np.float32)
    blob[0, 1, 2, 3] = value
    with pytest.raises(InputError, match=r"expected whole numbers 0\.\.255"):
        as_blob(blob)
    with pytest.raises(InputError, match="type bool"):
        as_blob(blob > 0)
