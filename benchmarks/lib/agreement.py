"""Whether two runtimes gave the same detections: asked before anything is timed.

f32 against f32: sums differ in their order only. A partner has the same class, a score within
1e-3 and corners within a ten-thousandth of the network input (an IoU would not do: boxes clipped to the
network input's edge have no area); 98 % of the longer list must have one.

bf16 and int8: weights and activations have 8 bits, and over a hundred layers that moves random
weights' detections visibly, with suppression turning small differences into other boxes. There is
no exact answer, so OpenVINO's own bf16 (or int8) is the measure: a partner has the same class, a
score within 0.1 and an IoU of 0.5 and more; both are counted against the detections in f32, ours
must find no fewer than OpenVINO's less a tenth of them all, and either at least 30 %, far over
chance.

int8 on random weights: a hundred random layers make an error some forty times larger, and neither
side finds its detections again (OpenVINO's int8 5 of 100, ours 16, `r101-c4` at 60 % zeros). There
the 30 % are not asked for; instead the features that proposals and regions read must be within half
their deviation of float32's, root mean square. A wrong sum or scale anywhere gives 1 and more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sparsedet.detections import Detections

LOW_SLACK, LOW_FLOOR = 0.1, 0.3
FEATURES_LIMIT = 0.5


@dataclass(frozen=True)
class Agreement:
    """How many of each list there are, and how many of the first have a partner in the second."""

    expected: int
    got: int
    matched: int
    classes: int

    @property
    def share(self) -> float:
        return self.matched / max(self.expected, self.got, 1)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def exact(expected: Detections, got: Detections) -> Agreement:
    """By the rule for f32."""
    apart = abs(expected.normalised[:, None] - got.normalised).max(axis=2, initial=0.0)
    return _count(expected, got, (apart < 1e-4) & _close(expected, got, 1e-3))


def loose(expected: Detections, got: Detections) -> Agreement:
    """By the rule for bf16 and int8."""
    near = _iou(expected.normalised, got.normalised) >= 0.5
    return _count(expected, got, near & _close(expected, got, 0.1))


def features_error(exact: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Root mean square of the difference, by the deviation of the exact ones."""
    return float(np.sqrt(np.mean((got - exact) ** 2)) / exact.std())


def refuse_to_time(
    agreements: dict[str, Agreement], precisions: dict[str, str], floor: float = LOW_FLOOR
) -> str:
    """Why these results may not be timed against each other; "" if they may.

    Args:
        agreements: by runtime, with the detections in f32.
        precisions: of each of them; OpenVINO in the same one is among them.
        floor: least share of all in a low precision.
    """
    for name, found in agreements.items():
        if precisions[name] == "f32":
            least = 0.98
        elif name.startswith("openvino"):
            least = floor
        else:
            peer = agreements[f"openvino-{precisions[name]}"]
            least = max(floor, peer.share - LOW_SLACK)
        if found.expected == 0 or found.share < least:
            return f"{name} disagrees, nothing is timed: {found}, expected {least:.2f} of them"
    return ""


def _close(a: Detections, b: Detections, score: float) -> NDArray[np.bool_]:
    same = a.labels[:, None] == b.labels
    return np.asarray(same & (abs(a.scores[:, None] - b.scores) < score))


def _count(a: Detections, b: Detections, partners: NDArray[np.bool_]) -> Agreement:
    matched = int(partners.any(axis=1).sum())
    return Agreement(len(a), len(b), matched, len(set(a.labels.tolist())))


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of xyxy boxes [N, 4] and [M, 4]: [N, M], 0 for boxes without area."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - common
    return np.asarray(common / np.maximum(union, 1e-12))
