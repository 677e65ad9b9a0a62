"""The engine against the torch reference: operations, stages, the end result, and repeatability.

Weights are random and sparse, rescaled so that pictures yield many detections of many classes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet import boxes as np_boxes
from sparsedet.config import COCO_NAMES, ModelConfig, preset
from sparsedet.engine import MERGED, Engine, available_isas, lower
from sparsedet.errors import InputError
from sparsedet.network import Layer, build_network
from sparsedet.preprocess import read_image, to_canvas
from sparsedet.pruning.synthetic import lively_tensors, random_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

import torchvision.ops as ops  # noqa: E402

from sparsedet import reference  # noqa: E402
from sparsedet.reference import FasterRCNN  # noqa: E402

F32 = NDArray[np.float32]
ISAS = available_isas()

# Odd channel counts everywhere, a canvas that 16 does not divide.
SMALL: dict[str, Any] = dict(
    canvas_height=97, canvas_width=131, blocks=(1, 2, 2, 2), stem_channels=13,
    bottleneck_channels=(7, 13, 18, 21), stage_channels=(20, 35, 52, 61), rpn_channels=33,
    class_names=COCO_NAMES[:20], category_ids=tuple(range(1, 21)),
    anchor_sizes=(16.0, 32.0, 64.0), proposals=80, rpn_pre_nms=400,
)  # fmt: skip
# The two families of weights, and the small default: stride in the first 1x1 or in the 3x3,
# padding on both sides or mostly before, background first or last, with deltas or without,
# adaptive RoI sampling or not, empty proposals removed or not.
FAMILIES = ("r101-c4", "r101-c4-detectron2", "r50half-c4")
families = pytest.mark.parametrize("family", FAMILIES)


def small(family: str, **changes: Any) -> ModelConfig:
    return replace(preset(family), **{**SMALL, **changes})


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs and sharp edges, BGR."""
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width, 3), np.float32)
    for scale in (3, 9, 27):
        noise = cv2.GaussianBlur(rng.standard_normal(out.shape).astype(np.float32), (0, 0), scale)
        out += noise / noise.std()
    for _ in range(20):
        corners = rng.integers(0, (width, height), (2, 2)).tolist()
        cv2.rectangle(out, *corners, rng.standard_normal(3).tolist(), int(rng.integers(1, 4)))
    return np.clip(128 + 50 * out, 0, 255).astype(np.uint8)


Tensors = dict[str, NDArray[Any]]


@functools.cache
def lively(family: str, sparsity: float = 0.5) -> Tensors:
    config = small(family)
    return lively_tensors(config, sparsity, picture(config.canvas_height, config.canvas_width))


def truth(config: ModelConfig, tensors: Tensors) -> FasterRCNN:
    model = FasterRCNN(config)
    model.load_tensors(tensors)
    return model.requires_grad_(False)


def as_batch(canvas: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)[None]))


def deviation(got: NDArray[Any], want: NDArray[Any] | torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    want = np.asarray(want)
    assert got.shape == want.shape
    if not want.size:
        return 0.0
    assert np.isfinite(got).all()
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


# ------------------------------------------------------------------------- single operations


def check_operations(
    config: ModelConfig, tensors: Tensors, isa: str, sizes: Callable[[Layer], list[tuple[int, ...]]]
) -> None:
    """Every operation on random inputs (batch, rows, columns) against the torch layer."""
    engine = Engine(config, tensors, threads=2, isa=isa, hoist=False).native
    model = truth(config, tensors)
    rng = np.random.default_rng(1)
    for layer, _, _ in lower(config, tensors):
        for batch, height, width in sizes(layer):
            x = rng.standard_normal((batch, layer.in_channels, height, width), dtype=np.float32)
            if not layer.weights:  # pooling reads what left a ReLU
                x = np.maximum(x, 0)
                padding = (layer.padding * 2)  # fmt: skip
                padded = torch.nn.functional.pad(torch.from_numpy(x), padding)
                want = torch.nn.functional.max_pool2d(padded, layer.kernel, layer.stride)
                assert np.array_equal(engine.run_op(layer.name, x), want), layer.name
                continue
            members = [model.layers[name] for name in MERGED.get(layer.name, (layer.name,))]
            shaped = torch.from_numpy(x)
            shaped = shaped.flatten(1) if layer.kind == "linear" else shaped
            want = torch.cat([member(shaped) for member in members], dim=1)
            want = want[..., None, None] if layer.kind == "linear" else want
            assert deviation(engine.run_op(layer.name, x), want) < 1e-5, (layer.name, x.shape)
            if layer.residual:
                y = rng.standard_normal(want.shape, dtype=np.float32)
                want = members[0](shaped, torch.from_numpy(y))
                got = engine.run_op(layer.name, x, y)
                assert deviation(got, want) < 1e-5, (layer.name, "with a residual", x.shape)


def own_size(layer: Layer) -> list[tuple[int, ...]]:
    """Maps: the layer's own size and small ones; regions: less and more than a block of lanes."""
    if layer.part == "roi":
        return [(batch, *layer.in_size) for batch in (1, 3, 64, 67)]
    return [(1, *size) for size in (layer.in_size, (2, 2), (5, 16), (16, 5), (9, 33))]


@pytest.mark.parametrize("isa", ISAS)
@families
def test_operations(family: str, isa: str) -> None:
    check_operations(small(family), lively(family), isa, own_size)


@pytest.mark.parametrize("isa", ISAS)
def test_operations_with_several_blocks_of_columns_and_chunks_of_rows(isa: str) -> None:
    """More columns than a panel holds and more rows than a chunk has, in maps and regions."""
    config = small(
        "r101-c4", blocks=(1, 1, 1, 1), bottleneck_channels=(150, 20, 20, 150),
        stage_channels=(421, 20, 600, 421),
    )  # fmt: skip
    tensors = random_tensors(config, 0.6)
    check_operations(config, tensors, isa, lambda layer: [(3 if layer.part == "roi" else 1, 7, 9)])


# ------------------------------------------------------------------------------------ stages


def check_stages(engine: Engine, model: FasterRCNN, canvas: NDArray[np.uint8], tolerance: float) -> None:
    """Each stage on the torch reference's input of that stage."""
    native, (height, width) = engine.native, canvas.shape[:2]
    native.plan(height, width)
    features = model.features(as_batch(canvas))
    assert deviation(native.features(canvas), features[0]) < tolerance
    flat = np.ascontiguousarray(features[0])

    logits, deltas = (t[0] for t in model.rpn_outputs(features))
    got = native.rpn(flat)
    assert deviation(got[0], logits) < tolerance and deviation(got[1], deltas) < tolerance

    proposals = model.proposals(logits, deltas, model.anchors(features), height, width)
    got = native.proposals(logits.numpy(), deltas.numpy())
    assert got.shape == proposals.shape and len(got) > 0
    assert np.abs(got - proposals.numpy()).max() < 1e-3

    aligned = model.roi_features(features, [proposals])
    rois = proposals.numpy()
    assert deviation(native.roi_features(flat, rois), aligned) < tolerance

    class_logits, box_deltas = model.head(aligned)
    got = native.regions(flat, rois)
    assert deviation(got[0], class_logits) < tolerance
    assert deviation(got[1], box_deltas) < tolerance

    scale = np.array([width, height] * 2, np.float32)
    found, scores, labels = model.detect(class_logits, box_deltas, proposals, height, width)
    rows = native.detect(class_logits.numpy(), box_deltas.numpy(), rois)
    assert np.array_equal(rows[:, 1], labels) and (rows[:, 0] == 0).all()
    assert np.abs(rows[:, 2] - scores.numpy()).max(initial=0) < 1e-6
    assert np.abs(rows[:, 3:] * scale - found.numpy()).max(initial=0) < 1e-3


# ------------------------------------------------------------------------------- end to end


@dataclass
class Found:
    """Boxes (N, 4) with scores (N,), best first, and labels (N,), as one side found them.

    `excused` (N,) are those that follow from an earlier difference that is allowed.
    """

    boxes: F32
    scores: F32
    labels: NDArray[Any]
    excused: NDArray[np.bool_]


def unmatched(
    a: Found, b: Found, nms: float, limit: int, low: float = -np.inf, tie: float = 1e-4
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[str]]:
    """Which of `a` and of `b` have no partner: of equal label, IoU > 0.99, score within `tie`.

    Each of them must be explained: within `tie` of the threshold `low`, of the cut at `limit`
    boxes or of an NMS tie (an overlap near `nms`, or nearly equal scores of two overlapping
    boxes), or follow from another unmatched one, which it replaces.

    Returns:
        mask of `a`, mask of `b`, a line for each of them.
    """
    partners = (
        (np_boxes.iou(a.boxes, b.boxes) > 0.99) & (a.labels[:, None] == b.labels)
        & (np.abs(a.scores[:, None] - b.scores) < tie)
    )  # fmt: skip
    free = partners.copy()
    for i in range(len(a.boxes)):  # one to one
        for j in np.flatnonzero(free[i])[:1]:
            free[i], free[:, j], free[i, j] = False, False, True
    alone = (~free.any(axis=1), ~free.any(axis=0))
    lines = []
    sides = [(a, b, alone[0], alone[1], "only ours"), (b, a, alone[1], alone[0], "only theirs")]
    for mine, other, my_alone, other_alone, side in sides:
        for i in np.flatnonzero(my_alone):
            score, reason = mine.scores[i], None
            both = [mine, other]
            rivals = [f.labels == mine.labels[i] for f in both]
            overlap = np.concatenate(
                [np_boxes.iou(mine.boxes[i : i + 1], f.boxes[m])[0] for f, m in zip(both, rivals, strict=True)]
            )  # fmt: skip
            gap = np.concatenate([f.scores[m] - score for f, m in zip(both, rivals, strict=True)])
            lost = np.concatenate([my_alone[rivals[0]], other_alone[rivals[1]]])
            lost[np.flatnonzero(rivals[0]) .searchsorted(i)] = False  # itself
            if mine.excused[i]:
                reason = "from a region that only one side has"
            elif score - low < tie:
                reason = "at the threshold"
            elif (np.abs(overlap - nms) < tie).any():
                reason = "NMS tie: overlap"
            elif ((overlap > nms - tie) & (np.abs(gap) < tie) & lost).any():
                reason = "NMS tie: score"
            elif ((overlap > nms - tie) & lost).any():
                reason = "follows from another one's NMS"
            elif any(len(f.scores) == limit and score - f.scores[-1] < tie for f in both):
                reason = "at the cut"
            assert reason, f"{side}: label {mine.labels[i]} score {score} {mine.boxes[i]}"
            lines.append(f"{side}: label {mine.labels[i]} score {score:.5f}: {reason}")
    return *alone, lines


def regions_of(rows: F32, outputs: tuple[F32, F32], proposals: F32, config: ModelConfig,
               size: tuple[int, int]) -> NDArray[np.intp]:  # fmt: skip
    """The region (N,) that each detection of a side was made from."""
    logits, deltas = outputs
    first = int(config.background == "first")
    decoded = np_boxes.decode(deltas, proposals, config.box_weights, config.delta_clamp)
    decoded = np_boxes.clip(decoded, *size)[:, first if config.background_deltas else 0 :]
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (scores / scores.sum(axis=1, keepdims=True))[:, first:]
    labels = rows[:, 1].astype(int) - 1
    scale = np.array([size[1], size[0]] * 2, np.float32)
    distance = np.abs(decoded[:, labels] - rows[:, 3:] * scale).max(axis=2)
    distance += np.abs(scores[:, labels] - rows[:, 2])
    assert len(rows) == 0 or distance.min(axis=0).max() < 0.01
    return distance.argmin(axis=0)


def check_end_to_end(engine: Engine, model: FasterRCNN, canvas: NDArray[np.uint8],
                     detections: int, classes: int) -> list[str]:  # fmt: skip
    """The whole way, each side on its own; returns a line for each difference that is allowed."""
    config, native, size = engine.config, engine.native, canvas.shape[:2]
    rows = engine.run(canvas)
    theirs = model(as_batch(canvas))[0].numpy()
    theirs = theirs[theirs[:, 0] == 0]
    for r in (rows, theirs):
        assert len(r) >= detections and len(set(r[:, 1])) >= classes
        assert (r[:, 3:] >= 0).all() and (r[:, 3:] <= 1).all() and (np.diff(r[:, 2]) <= 0).all()

    # Proposals first: what only one side proposes, only one side can detect.
    def proposals(features: F32, find: Callable[..., F32], rpn: Callable[..., Any]) -> Found:
        logits, deltas = rpn(features)
        boxes = find(logits, deltas)
        anchors = np_boxes.grid_anchors(
            np_boxes.cell_anchors(config), features.shape[-2:], config.anchor_stride
        )
        decoded = np_boxes.decode(deltas, anchors, config.rpn_box_weights, config.delta_clamp)
        decoded = np_boxes.clip(decoded, *size)
        nearest = [np.abs(decoded - box).max(axis=1).argmin() for box in boxes]
        return Found(boxes, logits[nearest], np.zeros(len(boxes)), np.zeros(len(boxes), bool))

    features = [native.features(canvas), model.features(as_batch(canvas))[0].numpy()]

    def torch_rpn(x: F32) -> tuple[F32, F32]:
        logits, deltas = model.rpn_outputs(torch.from_numpy(x)[None])
        return logits[0].numpy(), deltas[0].numpy()

    def torch_find(logits: F32, deltas: F32) -> F32:
        anchors = model.anchors(torch.from_numpy(features[1])[None])
        return model.proposals(torch.from_numpy(logits), torch.from_numpy(deltas), anchors, *size).numpy()

    a = proposals(features[0], native.proposals, native.rpn)
    b = proposals(features[1], torch_find, torch_rpn)
    alone_a, alone_b, lines = unmatched(a, b, config.rpn_nms_threshold, config.proposals)
    outputs = [
        native.regions(features[0], a.boxes),
        tuple(t.numpy() for t in model.regions(torch.from_numpy(features[1])[None], [torch.from_numpy(b.boxes)])),
    ]
    scale = np.array([size[1], size[0]] * 2, np.float32)
    found = []
    for r, out, proposed, alone in zip((rows, theirs), outputs, (a, b), (alone_a, alone_b), strict=True):
        source = regions_of(r, out, proposed.boxes, config, size)
        found.append(Found(r[:, 3:] * scale, r[:, 2], r[:, 1], alone[source]))
    *_, more = unmatched(*found, config.nms_threshold, config.max_detections, config.score_threshold)
    print(*lines, *more, f"{len(rows)} detections, {len(more)} unmatched", sep="\n")
    assert len(more) <= len(rows) // 10
    return lines + more
