"""Anchors, IoU and box deltas in numpy.

Boxes are xyxy float pixels without a +1; deltas are (dx, dy, dw, dh). The torch model and the
engine have implementations of their own, for speed; tests compare them with these.

Glossary: A anchors per cell; Hf, Wf rows and columns of the feature map; N, M boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig

F32 = NDArray[np.float32]


def cell_anchors(config: ModelConfig) -> F32:
    """The anchors of the feature map's first cell, in pixels of the network input.

    Sizes are the outer loop and ratios (height / width) the inner one, as in TensorPack
    (since 2019-05-21) and Detectron2; `config.cell_anchors` overrides them.

    Returns:
        (A, 4) float32 xyxy.
    """
    if config.cell_anchors is not None:
        return np.asarray(config.cell_anchors, dtype=np.float32).reshape(-1, 4)
    offset = config.anchor_offset * config.anchor_stride
    return anchors_around(offset, config.anchor_sizes, config.anchor_ratios)


def anchors_around(centre: float, sizes: Sequence[float], ratios: Sequence[float]) -> F32:
    """Anchors around the point (centre, centre), pixels; sizes are the outer loop.

    Args:
        sizes: side lengths of squares with the anchors' areas.
        ratios: heights over widths.

    Returns:
        (sizes * ratios, 4) float32 xyxy.
    """
    rows = []
    for size in sizes:
        for ratio in ratios:
            width = np.sqrt(size * size / ratio)
            height = width * ratio
            rows.append((-width / 2, -height / 2, width / 2, height / 2))
    return (np.asarray(rows) + centre).astype(np.float32)


def legacy_cell_anchors(
    sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    stride: int = 16,
) -> F32:
    """TensorPack's anchors before 2019-05-21: rounded, ratio-major, centred in the cell.

    The original py-faster-rcnn arithmetic on a stride x stride base box with inclusive pixels;
    then +1 makes x2 and y2 exclusive.

    Returns:
        (A, 4) float32 xyxy, for `ModelConfig.cell_anchors`.
    """
    rows = []
    centre = (stride - 1) / 2
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        for size in sizes:
            w, h = width * size / stride, height * size / stride
            rows.append(
                (
                    centre - (w - 1) / 2,
                    centre - (h - 1) / 2,
                    centre + (w - 1) / 2 + 1,
                    centre + (h - 1) / 2 + 1,
                )
            )
    return np.asarray(rows, dtype=np.float32)


def grid_anchors(cells: F32, feature_size: tuple[int, int], stride: int | tuple[int, int]) -> F32:
    """All anchors of a feature map.

    Args:
        cells: (A, 4) anchors of the first cell.
        feature_size: (Hf, Wf).
        stride: pixels of the network input per cell, or those of (rows, columns).

    Returns:
        (Hf * Wf * A, 4) float32; A is the fastest index, then columns, then rows.
    """
    down, right = stride if isinstance(stride, tuple) else (stride, stride)
    ys, xs = np.meshgrid(
        np.arange(feature_size[0], dtype=np.float32) * down,
        np.arange(feature_size[1], dtype=np.float32) * right,
        indexing="ij",
    )
    shifts = np.stack([xs, ys, xs, ys], axis=-1)[:, :, None]  # [Hf, Wf, 1, 4]
    return (shifts + cells).reshape(-1, 4)


def decode(
    deltas: F32, boxes: F32, weights: tuple[float, float, float, float], clamp: float
) -> F32:
    """Apply deltas to boxes.

    Args:
        deltas: (N, 4) or (N, K, 4).
        boxes: (N, 4) xyxy.
        weights: divisors of the deltas.
        clamp: upper limit of dw and dh after the division.

    Returns:
        xyxy boxes of the shape of `deltas`.

    Source: R-CNN's parametrisation, Detectron2 `box_regression.py`, TensorPack `model_box.py`.
    """
    if deltas.ndim == 3:
        boxes = boxes[:, None]
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + np.float32(0.5) * size
    d = deltas / np.asarray(weights, dtype=np.float32)
    new_centre = d[..., :2] * size + centre
    new_size = np.exp(np.minimum(d[..., 2:], np.float32(clamp))) * size
    half = np.float32(0.5) * new_size
    return np.concatenate([new_centre - half, new_centre + half], axis=-1)


def encode(boxes: F32, targets: F32, weights: tuple[float, float, float, float]) -> F32:
    """The deltas that turn `boxes` into `targets`: the inverse of `decode` without its clamp.

    Args:
        boxes, targets: (N, 4) xyxy of positive size.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    target_size = targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + 0.5 * target_size) - (boxes[:, :2] + 0.5 * size)
    deltas = np.concatenate([shift / size, np.log(target_size / size)], axis=1)
    return (deltas * np.asarray(weights, dtype=np.float32)).astype(np.float32)


def clip(boxes: F32, height: float, width: float) -> F32:
    """Boxes (..., 4) with every corner moved into [0, width] x [0, height]."""
    limit = np.asarray([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, np.float32(0), limit)


def corner_sampling(
    feature_size: tuple[int, int], stride: int, samples: int
) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float], float]:
    """How to change boxes so that an aligned RoIAlign samples them from corner to corner.

    Args:
        feature_size: (Hf, Wf) of the map.
        stride: pixels of the network input per cell.
        samples: samples per axis (bins times sampling ratio), at least 2.

    Returns:
        Factors a and b, four numbers each, and an offset c: RoIAlign gets the box
        a * box + b * box[2, 3, 0, 1] + c. Each side moves outwards by half the distance of two
        samples, and the box half a cell to the right.
    """
    shrink = [(cells - 1) / cells for cells in feature_size[::-1]] * 2  # x, y, x, y
    outwards = 0.5 / (samples - 1)
    a = tuple(s * (1 + outwards) for s in shrink)
    b = tuple(-s * outwards for s in shrink)
    return (a[0], a[1], a[2], a[3]), (b[0], b[1], b[2], b[3]), 0.5 * stride


def area(boxes: F32) -> F32:
    """Areas (...,) of boxes (..., 4); 0 where a box is inverted."""
    size = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    product: F32 = size[..., 0] * size[..., 1]
    return product


def iou(a: F32, b: F32) -> F32:
    """Pairwise intersection over union (N, M) of boxes (N, 4) and (M, 4); 0 for empty boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    union = area(a)[:, None] + area(b)[None] - overlap
    return np.where(union > 0, overlap / np.maximum(union, np.float32(1e-30)), np.float32(0))
