"""Masks pasted into images, and their run lengths, against torch and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsedet.images.masks import Patch, paste
from sparsedet.images.run_lengths import decode_mask, encode_mask, read_counts

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def whole(patch: Patch, height: int, width: int) -> NDArray[np.float32]:
    """The probabilities of all pixels."""
    out = np.zeros((height, width), np.float32)
    out[patch.place] = patch.probabilities
    return out


# -------------------------------------------------------------------- pasting


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 14])
def test_masks_are_pasted_as_torchvision_does(size: int) -> None:
    torch = pytest.importorskip("torch")
    heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    rng = np.random.default_rng(size)
    height, width = 131, 77
    probabilities = rng.uniform(0, 1, (200, size, size)).astype(np.float32)
    # Inside, over the edges, outside, larger than the image, and without area.
    corners = rng.uniform(-60, 190, (200, 2, 2)) * rng.choice([0.1, 1, 3], (200, 1, 1))
    boxes = np.sort(corners, axis=1).reshape(200, 4).astype(np.float32)
    boxes[:5, 2:] = boxes[:5, :2]
    x0, y0, x1, y1 = boxes.T
    # torchvision, whose boxes end at the image, fails where a box does not touch it.
    grown = 1.2 * (x1 - x0) + 2, 1.2 * (y1 - y0) + 2
    touching = (x0 < width - 1) & (y0 < height - 1) & (x0 + grown[0] / 2 > 1) & (x1 > 0) & (y1 > 0)
    boxes, probabilities = boxes[touching], probabilities[touching]
    assert len(boxes) > 60
    given = torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes)
    expected = heads.paste_masks_in_image(*given, (height, width))[:, 0].numpy()
    for patch, theirs in zip(paste(probabilities, boxes, height, width), expected, strict=True):
        assert abs(whole(patch, height, width) - theirs).max() < 1e-5


def sampled(probabilities: Any, boxes: Any, height: int, width: int) -> NDArray[np.float32]:
    """Detectron2's formula by torch: each pixel's centre between the centres of cells."""
    torch = pytest.importorskip("torch")
    x0, y0, x1, y1 = torch.from_numpy(boxes)[:, :, None].unbind(1)
    across = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    down = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(
        [
            across[:, None].expand(-1, height, -1),
            down[:, :, None].expand(-1, -1, width),
        ],
        dim=3,
    )
    masks = torch.from_numpy(probabilities)[:, None]
    out: NDArray[np.float32] = torch.nn.functional.grid_sample(masks, grid, align_corners=False)[
        :, 0
    ].numpy()
    return out


@pytest.mark.parametrize("shape", [(28, 28), (14, 9), (1, 1)])
def test_masks_in_continuous_coordinates_are_sampled_as_torch_does(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[1])
    height, width = 131, 77
    probabilities = rng.uniform(0, 1, (100, *shape)).astype(np.float32)
    corners = rng.uniform(-60, 190, (100, 2, 2)) * rng.choice([0.1, 1, 3], (100, 1, 1))
    boxes = np.sort(corners, axis=1).reshape(100, 4).astype(np.float32)
    expected = sampled(probabilities, boxes, height, width)
    covered = 0
    for patch, theirs, box in zip(
        paste(probabilities, boxes, height, width, "continuous"), expected, boxes, strict=True
    ):
        assert abs(patch.probabilities - theirs[patch.place]).max(initial=0) < 1e-4
        left = theirs.copy()
        left[patch.place] = 0
        assert (left < 0.5).all()  # no pixel of the mask is outside of the patch
        near = box + np.array([-2, -2, 2, 2])
        rows, columns = patch.place
        if patch.probabilities.size:
            assert near[1] <= rows.start and rows.stop <= near[3]
            assert near[0] <= columns.start and columns.stop <= near[2]
        covered += int(patch.inside.sum())
    assert covered > 1000


def test_boxes_without_area_have_no_mask_in_continuous_coordinates() -> None:
    boxes = np.array([[5, 5, 5, 9], [9, 5, 3, 9], [np.nan] * 4, [np.inf, 0, -np.inf, 3]])
    for patch in paste(np.ones((4, 3, 3), np.float32), boxes, 20, 30, "continuous"):
        assert not patch.inside.any()


@pytest.mark.parametrize("pasting", ["whole", "continuous"])
def test_a_box_far_larger_than_the_image_fills_it(pasting: Any) -> None:
    boxes = np.array([[-1e30, -1e30, 1e30, 1e30], [-1e5, -1e6, 1e5, 1e6]])
    for patch in paste(np.ones((2, 28, 28), np.float32), boxes, 20, 30, pasting):
        assert patch.inside.all() and patch.probabilities.shape == (20, 30)


@pytest.mark.parametrize(
    "box",
    [
        (-90, -90, -50, -50),
        (50, 60, 1e4, 1e4),
        (10, 300, 20, 400),
        (-1e30, -1e30, 1e30, 1e30),
        (3e38, 0, 3e38, 10),
        (-1e9, 5, 1e9, 6),
        (30, 20, 30, 20),
        (40, 20, 10, 5),
    ],
)
def test_a_patch_never_leaves_the_image(box: tuple[float, ...]) -> None:
    probabilities = np.full((1, 28, 28), 0.75, np.float32)
    (patch,) = paste(probabilities, np.array([box]), 40, 50)
    rows, columns = patch.place
    assert 0 <= rows.start <= rows.stop <= 40 and 0 <= columns.start <= columns.stop <= 50
    assert np.isfinite(patch.probabilities).all() and patch.probabilities.max(initial=0) <= 0.75


def test_a_mask_of_one_probability_covers_its_box() -> None:
    (patch,) = paste(np.ones((1, 28, 28), np.float32), np.array([[10, 20, 39, 47]]), 60, 60)
    inside = whole(patch, 60, 60) >= 0.5
    assert inside[20:47, 10:39].all()
    assert inside.sum() <= 31 * 29  # the last pixel counts, as in torchvision
    assert list(paste(np.ones((0, 28, 28), np.float32), np.zeros((0, 4)), 9, 9)) == []


# -------------------------------------------------------------------- run lengths


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(
    height: int, width: int, seed: int, share: float
) -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    top, left = rng.integers(height), rng.integers(width)
    bottom, right = rng.integers(top, height + 1), rng.integers(left, width + 1)
    part = rng.random((bottom - top, right - left)) < share
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = part
    expected = theirs.encode(np.asfortranarray(mask, dtype=np.uint8))
    rle = encode_mask(part, height, width, int(top), int(left))
    assert rle == {"size": [height, width], "counts": expected["counts"].decode()}
    assert encode_mask(mask, height, width) == rle
    assert np.array_equal(decode_mask(rle), mask)


def test_long_runs_are_those_of_pycocotools() -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((3000, 4000), bool)
    mask[5:2900, 7:3500] = True
    mask[:, 2000:2100] = True
    mask[1000:1010] = False
    expected = theirs.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert encode_mask(mask, 3000, 4000)["counts"] == expected["counts"].decode()


@pytest.mark.parametrize("text", ["P", "~~", "0 1", "é", "oooooooo0", "0O", "5"])
def test_broken_run_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^they "):
        decode_mask({"size": [4, 5], "counts": text})


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_text_gives_lengths_or_an_error(text: str) -> None:
    counts: Any
    try:
        counts = read_counts(text)
    except ValueError:
        return
    assert (counts >= 0).all() and len(counts) <= len(text)
