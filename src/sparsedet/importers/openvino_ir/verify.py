"""An imported network beside its source: OpenVINO runs the IR, our engine the import.

Tells on one picture whether the import answers as the source does, and by how much it differs.
Needs OpenVINO.

Glossary: rows are the contract's (image_id, class_id, confidence, x0, y0, x1, y1), fractions of the
network input.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...engine import Engine
from ...errors import InputError
from ...images.letterbox import to_network_input
from ...model.boxes import iou
from ...model.config import ModelConfig
from ..tensor_source import Imported

Rows = NDArray[np.float32]

SCORE_LIMIT, CORNER_LIMIT, LONELY_LIMIT = 0.005, 0.005, 0.04
"""Largest accepted differences: of a confidence, of a corner as a share of the network input, and share of
all detections without a partner (where two boxes overlap by just the threshold of NMS, rounding
decides; random weights have such pairs, trained ones hardly). Rounding in another order gives 1e-4
and less; a wrong convention (colour order, half a pixel, a weight of deltas) gives far more."""

TRIES = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """Detections of the source and ours on one picture.

    Attributes:
        source, ours: how many.
        unmatched: of either, with no detection of the same class at IoU > 0.5 in the other, and so
            far above the score threshold that rounding does not explain it.
        score, corner: largest differences of those that match.
    """

    source: int
    ours: int
    unmatched: int
    score: float
    corner: float

    @property
    def agrees(self) -> bool:
        few = self.unmatched <= LONELY_LIMIT * (self.source + self.ours)
        return few and self.score <= SCORE_LIMIT and self.corner <= CORNER_LIMIT

    def __str__(self) -> str:
        return (
            f"{self.source} detections of the source, {self.ours} ours, {self.unmatched} without "
            f"a partner (limit {LONELY_LIMIT:.0%}); largest difference of a score {self.score:.2g} "
            f"(limit {SCORE_LIMIT}), of a corner {self.corner:.2g} of the network input (limit "
            f"{CORNER_LIMIT})"
        )


def have_openvino() -> bool:
    return find_spec("openvino") is not None


def compare_with_openvino(
    path: str | os.PathLike[str], imported: Imported, photo: NDArray[np.uint8] | None = None
) -> Comparison:
    """Run both.

    Args:
        path: the IR that `imported` was read from.
        photo: BGR; default: synthetic pictures, until one gives detections.

    Raises:
        InputError: OpenVINO cannot run the source.
    """
    config = imported.config
    engine = Engine(config, imported.tensors)
    run = _openvino(path, config)
    size = (config.input_height, config.input_width)
    for attempt in range(TRIES):
        if photo is None:
            network_input = picture(*size, seed=attempt)
        else:
            network_input, _ = to_network_input(photo, *size, config.resize)
        result = compare(
            run(network_input),
            engine.run(network_input),
            config.score_threshold,
            config.max_detections,
        )
        if result.source or result.ours or photo is not None:
            break
    return result


def compare(source: Rows, ours: Rows, threshold: float, limit: int) -> Comparison:
    """Pair detections of one class, best first.

    Args:
        source, ours: [N, 7]; rows of image_id -1 and below are padding.
        threshold, limit: of the scores, and of their number; detections that are close to the
            least that is kept may come or go by rounding.
    """
    a, b = (rows[rows[:, 0] >= 0] for rows in (source, ours))
    overlap = iou(a[:, 3:], b[:, 3:]) * (a[:, None, 1] == b[None, :, 1])
    free = np.ones(len(b), dtype=bool)
    score = corner = 0.0
    unmatched = 0
    least = [threshold, *(float(r[:, 2].min()) for r in (a, b) if len(r) >= limit)]
    edge = max(least) + 2 * SCORE_LIMIT
    for row in np.argsort(-a[:, 2]):
        options = np.where(free, overlap[row], 0)
        best = int(options.argmax()) if len(b) else -1
        if best < 0 or options[best] <= 0.5:
            unmatched += bool(a[row, 2] > edge)
            continue
        free[best] = False
        score = max(score, float(abs(a[row, 2] - b[best, 2])))
        corner = max(corner, float(abs(a[row, 3:] - b[best, 3:]).max()))
    unmatched += int((free & (b[:, 2] > edge)).sum())
    return Comparison(len(a), len(b), unmatched, score, corner)


def _openvino(path: str | os.PathLike[str], config: ModelConfig) -> Any:
    """Canvas -> rows [N, 7], by OpenVINO in float32."""
    import openvino as ov

    try:
        compiled = ov.Core().compile_model(
            ov.Core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1][:200]
        raise InputError(f"{path}: OpenVINO cannot load it ({first})") from None
    size = (config.input_height, config.input_width)

    def run(network_input: NDArray[np.uint8]) -> Rows:
        given = []
        for port in compiled.inputs:
            shape = tuple(port.get_partial_shape().get_max_shape())
            if len(shape) == 4:
                blob = (
                    network_input[None] if shape[3] == 3 else network_input.transpose(2, 0, 1)[None]
                )
                given.append(np.ascontiguousarray(blob).astype(port.get_element_type().to_dtype()))
            else:  # image_info: height, width, scales
                given.append(np.array([[*size, 1, 1][: shape[-1]]], dtype=np.float32))
        try:
            rows = np.array(compiled(given)[0], dtype=np.float32)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1][:200]
            raise InputError(f"{path}: OpenVINO cannot run it ({first})") from None
        rows = rows.reshape(-1, 7)
        ends = np.flatnonzero(rows[:, 0] < 0)  # what follows the first -1 may be anything
        return rows[: ends[0]] if len(ends) else rows

    return run


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours under sharp shapes: something for edges and for areas."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), dtype=np.uint8)
    network_input = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        x, y = (int(rng.integers(0, n)) for n in (width, height))
        w, h = (int(rng.integers(max(2, n // 20), max(3, n // 3))) for n in (width, height))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.rectangle(network_input, (x, y), (x + w, y + h), colour, -1)
        else:
            cv2.ellipse(network_input, (x, y), (w // 2, h // 2), 0, 0, 360, colour, -1)
    return np.asarray(network_input, dtype=np.uint8)
