"""Images to bytes: what is lossy, how large a format may be, and what is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.small import picture
from numpy.typing import NDArray

from sparsedet.errors import InputError
from sparsedet.images.read import decode_image
from sparsedet.images.write import QUALITY, SUFFIXES, can_write, encode_image

LOSSY = [s for s in SUFFIXES if s != ".png" and can_write(s[1:] + s)]


def smooth(height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    """Something like a photograph: soft shapes with a little noise."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((30, 50), (60, 20), (45, 45))]
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if can_write(f"x{s}")])
def test_what_is_written_is_read(suffix: str) -> None:
    image = smooth()
    for name in (f"a{suffix}", f"a{suffix.upper()}"):
        back = decode_image(encode_image(image, name), name)
        assert back.shape == image.shape
        difference = np.abs(back.astype(int) - image)
        assert difference.max() == 0 if suffix == ".png" else difference.mean() < 4


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_are_lossy_at_the_quality(suffix: str) -> None:
    image, sizes = smooth(), []
    for quality in (1, 30, QUALITY, 100):
        sizes.append(len(encode_image(image, f"a{suffix}", quality=quality)))
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert len(encode_image(image, f"a{suffix}")) == sizes[2]
    assert sizes[2] < len(encode_image(image, "a.png")) / 2


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("a.jpg", (2, 65501), "65501x2 pixels are too many for JPEG (65500 a side), use .png"),
        ("a.JPEG", (65501, 1), "1x65501 pixels are too many for JPEG"),
        ("a.webp", (2, 16384), "16384x2 pixels are too many for WebP (16383 a side), use .png"),
        ("a.png", (1, 1_000_001), "too many for PNG (1000000 a side), resize the image"),
        ("a.gif", (1, 65536), "too many for GIF"),
    ],
)
def test_limits_of_formats(
    name: str, size: tuple[int, int], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if not can_write(name):
        pytest.skip("this OpenCV does not write it")
    with pytest.raises(InputError) as refusal:
        encode_image(np.zeros((*size, 3), np.uint8), name)
    assert words in str(refusal.value) and str(refusal.value).startswith(f"{name}: ")
    assert capfd.readouterr() == ("", "")  # nothing of OpenCV's


@pytest.mark.parametrize(
    ("name", "size"), [("a.jpg", (1, 65500)), ("a.webp", (16383, 1)), ("a.png", (1, 1_000_000))]
)
def test_the_largest_image_is_written(name: str, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert decode_image(encode_image(image, name), name).shape == image.shape


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.png.txt", ".png", "a.pñg", "a.\udce9"])
def test_unknown_suffixes_are_refused(name: str) -> None:
    assert not can_write(name)
    with pytest.raises(InputError, match=r"use one of \.jpg, \.jpeg, \.png, \.webp, \.avif"):
        encode_image(picture(), name)


def test_an_encoder_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for outcome in (lambda *_: (False, None), lambda *_: cv2.imencode(".xyz", picture())):
        with monkeypatch.context() as patch:
            original = cv2.imencode
            patch.setattr(
                cv2,
                "imencode",
                lambda *a, o=outcome, f=original: o(*a) if a[0] != ".xyz" else f(*a),
            )
            with pytest.raises(InputError, match=r"^a\.webp: OpenCV .* use \.png$"):
                encode_image(picture(), "a.webp")
    assert capfd.readouterr().err == ""
