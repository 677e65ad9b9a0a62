"""Detectors with anchors in ONNX files: YOLOv5, whose one predictor of a level has all its anchors.

Each anchor of a level becomes a level of its own: four channels of the box, one of the objectness
and the class logits are slices of the predictor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .decoding import YOLOV5, Level, yolov5, yolov5_sides
from .predictors import Found, Levels, Predictor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Anchors = tuple[tuple[float, float], ...]
_MOST_ANCHORS = 9
_MOST_CLASSES = 1000


def _split(levels: Levels, count: int) -> list[tuple[Predictor, Predictor, Predictor]]:
    """Of each anchor of each level the predictors of logits, box and objectness."""
    each = levels.parts[0][0].channels // count
    found = []
    for (whole,) in levels.parts:
        for i in range(count):
            part = whole.part(i * each, each)
            found.append((part.part(5, each - 5), part.part(0, 4), part.part(4, 1)))
    return found


def _alike(expected: Sequence[F64], outputs: Sequence[F32]) -> bool:
    return len(expected) == len(outputs) and all(
        e.shape == o.shape and np.allclose(e, o, rtol=1e-4, atol=1e-3)
        for e, o in zip(expected, outputs, strict=True)
    )


def _are_maps(levels: Levels, count: int, outputs: Sequence[F32], flat: bool) -> bool:
    """Whether outputs are the predictors' of all levels, in any order: [1, anchors, H, W, 5 + C],
    or as they are; before the sigmoid or after it."""
    for scores in (False, True):
        expected = []
        for (part,) in levels.parts:
            raw = levels.raw[part.name]
            x = 1 / (1 + np.exp(-raw)) if scores else raw
            cells = x.reshape(count, -1, *part.size).transpose(0, 2, 3, 1)
            expected.append(x[None] if flat else cells[None])
        by_size = sorted(outputs, key=lambda o: -o.size)
        if _alike(expected, by_size):
            return True
    return False


def _anchors_in(levels: Sequence[Level], decoded: F32) -> Anchors:
    """The anchors with which outputs [1, N, 5 + C] were decoded."""
    anchors, first = [], 0
    for level in levels:
        sides = yolov5_sides(level)
        part = decoded[0, first : first + sides.shape[1], 2:4].T.astype(np.float64)
        # Six digits: what is left of a whole number after float32 is a whole number.
        width, height = (float(f"{n:.6g}") for n in np.median(part / sides, axis=1))
        anchors.append((width, height))
        first += sides.shape[1]
    return tuple(anchors)


def _counts(levels: Levels, stated: Anchors | None) -> Iterator[int]:
    """How many anchors a level may have."""
    channels = {part.channels for (part,) in levels.parts}
    if len(channels) != 1:
        return
    (whole,) = channels
    for count in range(1, _MOST_ANCHORS + 1):
        fits = stated is None or len(stated) == count * len(levels.parts)
        if fits and whole % count == 0 and 1 <= whole // count - 5 <= _MOST_CLASSES:
            yield count


def find_anchors(
    path: str, levels: Levels, outputs: Sequence[F32], stated: Anchors | None
) -> Found | None:
    """The detector whose outputs these are; None: it is none with anchors.

    Args:
        path: the file, for messages.
        levels: with one predictor each.
        outputs: of the file for `levels.raw`.
        stated: width and height of all anchors, level after level; None: those in the file.

    Raises:
        InputError: anchors are neither in the file nor stated, or both and disagree.
    """
    for count in _counts(levels, stated):
        split = _split(levels, count)
        strides = tuple(stride for stride in levels.strides for _ in range(count))
        given = [levels.level(part, stride) for part, stride in zip(split, strides, strict=True)]
        cells = sum(level.points.shape[1] for level in given)
        shape = (1, cells, 5 + split[0][0].channels)
        if outputs[0].shape == shape:
            anchors = _anchors_in(given, outputs[0])
            decoded = min(map(min, anchors)) > 0 and _alike([yolov5(given, anchors)], outputs[:1])
            more = outputs[1:]
            if decoded and (not more or _are_maps(levels, count, more, False)):
                if stated is not None and not np.allclose(stated, anchors, rtol=1e-3):
                    raise InputError(
                        f"{path}: --anchors are others than those in the file "
                        f"({anchors_text(anchors)}): leave them away"
                    )
                return Found(YOLOV5, tuple(split), strides, anchors)
        if _are_maps(levels, count, outputs, False) or (
            stated is not None and _are_maps(levels, count, outputs, True)
        ):
            if stated is None:
                raise InputError(
                    f"{path}: its outputs are YOLOv5's before decoding, {count} anchors of each of "
                    f"{len(levels.parts)} levels, which are not in the file: state them, as "
                    "--anchors 10x13,16x30,33x23,30x61,62x45,..., or take the outputs as they are "
                    "by --raw"
                )
            return Found(YOLOV5, tuple(split), strides, stated)
    return None


def anchors_text(anchors: Anchors) -> str:
    """As `--anchors` takes them."""
    return ",".join(f"{width:g}x{height:g}" for width, height in anchors)
