"""Scores that mean something: a score of 0.7 is right in seven of ten detections.

A detector's scores are often too high or too low, and differently so from class to class. Platt's
method maps the logit of each score by a line that is fitted to annotated images which the detector
was not trained on: one slope for all classes, one offset for each. An offset of a class with few
detections stays near the mean of all (a normal prior), because rare classes would be fitted to
chance otherwise.

Where a score is the sigmoid of one class logit, the line is folded into the layer that makes the
logits: the calibrated model is a model like any other, as fast, and keeps its calibration in every
export. Within a class no detection changes its rank.

Source: J. Platt, Probabilistic outputs for support vector machines, 1999.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.detector_config import DetectorConfig, build_graph
from ..model.file import ModelFile
from ..model.graph import CellOutput, Conv, Graph, Operation, Slice
from .average_precision import Matches

IOU = 0.5
"""A detection is right if its box meets that of an object of its class at least so well."""
SPREAD = 0.7
"""Standard deviation of the offsets between classes, in logits: how different they may be."""
SLOPE_SPREAD = 2.0
"""The same of the slope around 1: scores that happen to part right from wrong fit any slope."""
LEAST_DETECTIONS = 200
"""A fit of fewer right or fewer wrong detections would be chance."""
_STEPS = 200
_SMALLEST = 1e-6


@dataclass(frozen=True)
class ScoreCalibration:
    """Lines from the logit of a score to that of the share of right detections.

    Attributes:
        slope: of all classes, more than 0.
        offsets: (C,) of each class, float64.
    """

    slope: float
    offsets: NDArray[np.float64]

    def __call__(
        self, scores: NDArray[np.float64], classes: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Calibrated scores (N,), of scores (N,) and the indices (N,) of their classes."""
        return _sigmoid(self.slope * _logit(scores) + self.offsets[classes])


@dataclass(frozen=True)
class Reliability:
    """Detections in bins of their scores: the rows of a reliability diagram.

    Attributes:
        edges: (B + 1,) from 0 to 1.
        count: (B,) detections of a bin.
        score: (B,) their mean score, NaN in an empty bin.
        right: (B,) the share of them that is right, NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of score and share, by detections."""
        full = self.count > 0
        distance = np.abs(self.score - self.right)[full]
        return float((self.count[full] * distance).sum() / self.count.sum())


def fit_scores(matches: Matches, class_names: Sequence[str]) -> ScoreCalibration:
    """The calibration that makes the matches likeliest.

    Args:
        matches: of images that the detector was not trained on (`coco_matches`).
        class_names: of the detector, in its order; a class without a detection gets the mean
            offset.

    Raises:
        InputError: there are too few right or wrong detections to learn from.
    """
    scores, entries, right = _pooled(matches)
    if min(right.sum(), (~right).sum()) < LEAST_DETECTIONS:
        raise InputError(
            f"{len(right)} detections, of which {right.sum()} are right: scores need at least "
            f"{LEAST_DETECTIONS} right and as many wrong ones to be calibrated on"
        )
    place = {name: index for index, name in enumerate(class_names)}
    classes = np.array([place[entry.name] for entry in matches.classes])[entries]
    return _most_likely(_logit(scores), classes, right, len(class_names))


def _most_likely(
    logits: NDArray[np.float64],
    classes: NDArray[np.int64],
    right: NDArray[np.bool_],
    count: int,
) -> ScoreCalibration:
    """Newton's method: the likelihood and its priors have one maximum."""

    def by_class(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(classes, weights=values, minlength=count).astype(np.float64)

    # Unknowns: the slope, the mean offset, and what each class adds to it.
    prior = np.array([SLOPE_SPREAD**-2, 1e-6, *[SPREAD**-2] * count])
    start = np.array([1.0, *[0.0] * (1 + count)])
    unknown = start.copy()
    hessian = np.zeros((2 + count, 2 + count))
    each = np.arange(2, 2 + count)
    for _ in range(_STEPS):
        expected = _sigmoid(unknown[0] * logits + unknown[1] + unknown[2 + classes])
        weight, missing = expected * (1 - expected), right - expected
        gradient = np.array([missing @ logits, missing.sum(), *by_class(missing)])
        gradient -= prior * (unknown - start)
        hessian[0, 0] = weight @ logits**2
        hessian[0, 1:] = weight @ logits, *by_class(weight * logits)
        hessian[1, 1:] = weight.sum(), *by_class(weight)
        hessian[each, each] = by_class(weight)
        whole = np.triu(hessian) + np.triu(hessian, 1).T + np.diag(prior)
        step = np.linalg.solve(whole, gradient)
        unknown += step / max(1.0, np.abs(step).max())  # far away, whole steps lead further away
        if np.abs(step).max() < 1e-9:
            break
    if unknown[0] <= 0:
        raise InputError("detections with higher scores are not right more often: nothing to fit")
    return ScoreCalibration(float(unknown[0]), unknown[1] + unknown[2:])


def reliability(matches: Matches, bins: int = 10) -> Reliability:
    """How often detections are right, by score."""
    scores, _, right = _pooled(matches)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(which, scores, bins) / count
        share = np.bincount(which, right.astype(np.float64), bins) / count
    return Reliability(edges, count, mean, share)


def at_score(matches: Matches, score: float) -> tuple[float, float]:
    """Precision and recall of the detections with at least that score, all classes together."""
    scores, _, right = _pooled(matches)
    kept = right[scores >= score]
    objects = sum(int(entry.objects.sum()) for entry in matches.classes)
    return float(kept.mean()) if len(kept) else 0.0, float(kept.sum() / max(objects, 1))


def with_calibrated_scores(model: ModelFile, calibration: ScoreCalibration) -> ModelFile:
    """The model with the calibration folded into the layers of its class logits.

    Args:
        model: a detector whose scores are sigmoids of class logits: YOLOv5u, v8, 11, PicoDet.

    Raises:
        InputError: its scores are made in another way, it has another number of classes, or it is
            calibrated for int8, whose thresholds depend on the layers.
    """
    if model.clipping_thresholds is not None:
        raise InputError(
            f"{model.config.name}: calibrate the scores of the model that `quantize` was given, "
            "then quantize the result"
        )
    config = model.config
    found = list(build_graph(config).of_kind(CellOutput))
    if not isinstance(config, DetectorConfig) or not found or found[0][1].objectness:
        raise InputError(
            f"{config.name}: its scores are not sigmoids of one class logit each; this calibration "
            "is for detectors such as YOLOv8 and PicoDet"
        )
    (rows, attributes), graph = found[0], config.graph
    if attributes.num_classes != len(calibration.offsets):
        raise InputError(
            f"{config.name} has {attributes.num_classes} classes, expected "
            f"{len(calibration.offsets)}, as the calibration"
        )
    tensors = dict(model.tensors)
    for layer, chosen in _class_channels(graph, rows, attributes, config.name).items():
        weight = np.array(tensors[f"{layer}.weight"], np.float32)
        bias = np.array(tensors[f"{layer}.bias"], np.float32)
        weight[chosen] *= calibration.slope
        bias[chosen] = calibration.slope * bias[chosen] + calibration.offsets
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = weight, bias
    # What the detector dropped for its low score before, and no more.
    least = np.full(attributes.num_classes, attributes.score_threshold)
    threshold = float(calibration(least, np.arange(attributes.num_classes)).min())
    if not attributes.score_threshold:
        threshold = 0.0
    last = replace(rows, attributes=replace(attributes, score_threshold=threshold))
    operations = tuple(last if o is rows else o for o in graph.operations)
    changed = replace(config, graph=replace(graph, operations=operations))
    return replace(model, config=changed, tensors=tensors)


def _class_channels(
    graph: Graph, operation: Operation, attributes: CellOutput, name: str
) -> dict[str, slice]:
    """Output channels that are class logits, by layer."""
    made = {o.name: o for o in graph.operations}
    channels = {}
    for value in operation.inputs[: len(attributes.strides)]:
        first, source = 0, made[value]
        while isinstance(source.attributes, Slice):
            first, source = first + source.attributes.first, made[source.inputs[0]]
        conv = source.attributes
        if (
            not isinstance(conv, Conv)
            or len(conv.layers) != 1
            or conv.activation != "none"
            or conv.norm
            or not conv.bias
            or len(source.inputs) != 1
            or conv.layers[0] in channels
        ):
            raise InputError(f"{name}: {value!r} is not made by one layer of its own")
        channels[conv.layers[0]] = slice(first, first + attributes.num_classes)
    return channels


def _pooled(
    matches: Matches,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Scores, indices into `matches.classes`, and what is right, of all detections that count."""
    (t,) = np.flatnonzero(np.isclose(matches.thresholds, IOU))
    scores, classes, right = [], [], []
    for index, entry in enumerate(matches.classes):
        counted = ~entry.ignored[t]
        scores.append(entry.scores[counted])
        right.append(entry.true_positive[t][counted])
        classes.append(np.full(counted.sum(), index))
    return np.concatenate(scores), np.concatenate(classes), np.concatenate(right)


def _logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
    return np.log(clipped / (1 - clipped))


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 + np.tanh(logits / 2)) / 2
