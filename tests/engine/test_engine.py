"""The engine against the torch reference: operations, stages, the end result, and repeatability.

Weights are random and sparse, rescaled so that images yield many detections of many classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.detector import embedded_model
from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.evaluation.agreement import pair
from sparsedet.images.letterbox import to_network_input
from sparsedet.images.read import read_image
from sparsedet.model import boxes as np_boxes
from sparsedet.model.config import ModelConfig
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import load_model
from sparsedet.model.graph import Conv, Shape
from sparsedet.model.presets import preset
from sparsedet.testing import calibrated_random_tensors, random_tensors

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")

from helpers.engine import (  # noqa: E402
    ISAS,
    Tensors,
    as_batch,
    by_torch,
    check_stages,
    deviation,
    families,
    lively,
    own_size,
    small,
    synthetic_image,
    torch_reference,
    unhoisted,
    windows,
)
from helpers.parts import F32, EngineParts  # noqa: E402

from sparsedet.torch_model import FasterRCNN  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def torch_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """On small networks torch's threads spend ten times as long waiting as working."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------- single operations


def check_operations(
    config: ModelConfig, tensors: Tensors, isa: str, sizes: Callable[[Shape], list[tuple[int, ...]]]
) -> None:
    """Every operation on random inputs (batch, rows, columns) against torch's own functions."""
    graph = unhoisted(config)
    engine = Engine(config, tensors, threads=1, isa=isa, graph=graph).native
    rng = np.random.default_rng(1)
    for operation, attributes in windows(graph):
        name, shape = operation.name, graph.shapes[operation.inputs[0]]
        for batch, height, width in sizes(shape):
            x = rng.standard_normal((batch, shape.channels, height, width), dtype=np.float32)
            if not isinstance(attributes, Conv):  # pooling reads what left a ReLU
                x = np.maximum(x, 0)
                expected = by_torch(operation, tensors, torch.from_numpy(x))
                assert np.array_equal(engine.run_operation(name, [x]), expected), name
                continue
            expected = by_torch(operation, tensors, torch.from_numpy(x))
            assert deviation(engine.run_operation(name, [x]), expected) < 1e-5, (name, x.shape)
            if operation.inputs[1:]:
                y = rng.standard_normal(expected.shape, dtype=np.float32)
                expected = by_torch(operation, tensors, torch.from_numpy(x), torch.from_numpy(y))
                got = engine.run_operation(name, [x, y])
                assert deviation(got, expected) < 1e-5, (name, "with a residual", x.shape)


@pytest.mark.parametrize("isa", ISAS)
@families
def test_operations(family: str, isa: str) -> None:
    check_operations(small(family), lively(family), isa, own_size)


@pytest.mark.parametrize("isa", ISAS)
def test_operations_with_several_blocks_of_columns_and_chunks_of_rows(isa: str) -> None:
    """More columns than a panel holds and more rows than a chunk has, in feature maps and RoIs."""
    config = small(
        "r101-c4",
        blocks=(1, 1, 1, 1),
        bottleneck_channels=(150, 20, 20, 150),
        stage_channels=(421, 20, 600, 421),
    )
    tensors = random_tensors(config, 0.6)

    def size(shape: Shape) -> list[tuple[int, ...]]:
        if shape.size == (1, 1):
            return [(3, 1, 1)]
        return [(3 if shape.domain == "rois" else 1, 7, 9)]

    check_operations(config, tensors, isa, size)


# ------------------------------------------------------------------------------------ stages


# ------------------------------------------------------------------------------- end to end


@dataclass
class Boxes:
    """Boxes (N, 4) with scores (N,), best first, and labels (N,), from one side."""

    boxes: F32
    scores: F32
    labels: NDArray[Any]


def differences(
    ours: Boxes, theirs: Boxes, nms: float, limit: int, low: float = -np.inf, tie: float = 1e-4
) -> list[str]:
    """A line for each box without a partner of equal label, IoU > 0.99 and score within `tie`.

    Each must have a reason: it is within `tie` of the threshold `low`, of the cut at `limit`
    boxes or of an NMS tie (an overlap near `nms`, or two overlapping boxes with nearly equal
    scores), or it overlaps another one without a partner, whose absence let it live.
    """
    empty = np_boxes.area(ours.boxes)[:, None] + np_boxes.area(theirs.boxes) == 0
    apart = np.abs(ours.boxes[:, None] - theirs.boxes).max(axis=2, initial=0)
    candidates = (
        np.where(empty, apart < 0.01, np_boxes.iou(ours.boxes, theirs.boxes) > 0.99)
        & (ours.labels[:, None] == theirs.labels)
        & (np.abs(ours.scores[:, None] - theirs.scores) < tie)
    )
    partners = pair(candidates)
    both = Boxes(*(np.concatenate([getattr(f, k) for f in (ours, theirs)]) for k in vars(ours)))
    alone = np.ones(len(both.boxes), np.bool_)
    alone[np.flatnonzero(partners >= 0)] = False
    alone[len(ours.boxes) + partners[partners >= 0]] = False
    ends = [f.scores[-1] for f in (ours, theirs) if len(f.scores) == limit]
    lines = []
    for i in map(int, np.flatnonzero(alone)):
        is_ours = i < len(ours.boxes)
        rank = i if is_ours else i - len(ours.boxes)
        box, score, label = both.boxes[i], both.scores[i], both.labels[i]
        rival = (both.labels == label) & (np.arange(len(alone)) != i)
        overlap = np.where(rival, np_boxes.iou(box[None], both.boxes)[0], 0)
        reasons = {
            "threshold": score - low < tie,
            "overlap near the NMS threshold": (np.abs(overlap - nms) < tie).any(),
            "equal scores": ((overlap > nms) & alone & (np.abs(both.scores - score) < tie)).any(),
            "follows from another": ((overlap > nms) & alone & (both.scores > score)).any(),
            # Of a whole list, as many fall off its end as came in above.
            "top-k cut": any(score - end < tie for end in ends)
            or (bool(ends) and rank >= limit - alone.sum()),
        }
        side = "ours" if is_ours else "theirs"
        line = f"only {side}: label {label:g}, score {score:.5f}, box {box.round(1)}: "
        assert any(reasons.values()), line + "no reason"
        lines.append(line + ", ".join(k for k, holds in reasons.items() if holds))
    return lines


def test_only_ties_may_differ() -> None:
    boxes = np.array([[0, 0, 40, 40], [1, 0, 41, 40], [90, 0, 99, 9], [50, 50, 70, 80]], np.float32)
    scores, labels = np.array([0.9, 0.90005, 0.5, 0.05005], np.float32), np.array([1, 1, 1, 2])

    def check(ours: list[int], theirs: list[int], limit: int = 10, score_error: float = 0) -> int:
        a, b = (Boxes(boxes[i], scores[i], labels[i]) for i in (ours, theirs))
        return len(differences(a, replace(b, scores=b.scores + score_error), 0.5, limit, 0.05))

    assert check([0, 2, 3], [0, 2, 3], score_error=5e-5) == 0
    assert check([0, 2, 3], [0, 2]) == 1  # at the threshold
    assert check([0, 2], [1, 2]) == 2  # nearly equal scores, the one suppresses the other
    assert check([0], [1, 2], limit=2) == 3  # and then the next one finds room or not
    wrong_cases: tuple[Callable[[], int], ...] = (
        lambda: check([0, 2, 3], [0, 3]),
        lambda: check([0, 2, 3], [0, 2, 3], score_error=2e-4),
        lambda: check([0, 1, 2], [0, 2]),
    )
    for wrong in wrong_cases:
        with pytest.raises(AssertionError, match="no reason"):
            wrong()


def check_end_to_end(
    engine: Engine,
    model: FasterRCNN,
    network_input: NDArray[np.uint8],
    detections: int,
    classes: int,
) -> list[str]:
    """The whole way, each side on its own; returns a line for each difference that is allowed.

    Where the proposals differ for a reason, the rest of the way is compared on ours.
    """
    config, parts = require_c4(engine.config, "compared"), EngineParts(engine)
    size, batch = network_input.shape[:2], as_batch(network_input)
    scale = np.array([size[1], size[0]] * 2, np.float32)
    ours, theirs = engine.run(network_input), model(batch)[0].numpy()
    theirs = theirs[theirs[:, 0] == 0]
    for rows in (ours, theirs):
        assert len(rows) >= detections and len(set(rows[:, 1])) >= classes
        assert (rows[:, 3:] >= 0).all() and (rows[:, 3:] <= 1).all()
        assert (np.diff(rows[:, 2]) <= 0).all()

    features = model.features(batch)
    anchors = model.anchors(features)

    def proposed(boxes: F32, logits: F32, deltas: F32) -> Boxes:
        """With the logit of the anchor that each box was decoded from."""
        decoded = np_boxes.decode(
            deltas, anchors.numpy(), config.rpn_box_weights, config.delta_clamp
        )
        decoded = np_boxes.clip(decoded, *size)
        index = [int(np.abs(decoded - box).max(axis=1).argmin()) for box in boxes]
        return Boxes(boxes, logits[index], np.zeros(len(boxes)))

    outputs = parts.rpn(parts.features(network_input))
    our_proposals = parts.proposals(*outputs)
    logits, deltas = (t[0] for t in model.rpn_outputs(features))
    their_proposals = model.proposals(logits, deltas, anchors, *size).numpy()
    lines = differences(
        proposed(our_proposals, *outputs),
        proposed(their_proposals, logits.numpy(), deltas.numpy()),
        config.rpn_nms_threshold,
        config.proposals,
    )
    if lines:
        same = torch.from_numpy(our_proposals)
        boxes, scores, labels = model.detect(*model.regions(features, [same]), same, *size)
        theirs = np.column_stack([0 * labels, labels, scores, boxes / scale])
    lines += differences(
        Boxes(ours[:, 3:] * scale, ours[:, 2], ours[:, 1]),
        Boxes(theirs[:, 3:] * scale, theirs[:, 2], theirs[:, 1]),
        config.nms_threshold,
        config.max_detections,
        config.score_threshold,
    )
    print(*lines, f"{len(ours)} detections, {len(lines)} differences", sep="\n")
    assert len(lines) <= len(ours) // 10
    return lines


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("hoist", [True, False])
@families
def test_stages_and_the_end_result(family: str, hoist: bool, isa: str) -> None:
    config, tensors = small(family), lively(family)
    engine, model = (
        Engine(config, tensors, threads=2, isa=isa, hoist=hoist),
        torch_reference(config, tensors),
    )
    for network_input in (synthetic_image(97, 131), synthetic_image(160, 208, seed=1)):
        check_stages(engine, model, network_input, 1e-4)
        check_end_to_end(engine, model, network_input, 50, 10)


def with_layer(family: str, name: str, value: float) -> Tensors:
    tensors = dict(lively(family))
    tensors[f"{name}.weight"] = np.full_like(tensors[f"{name}.weight"], value)
    return tensors


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[str], Tensors]]] = {
    "dense": ({}, lambda family: lively(family, 0.0)),
    "a layer of zeros in the backbone": ({}, lambda f: with_layer(f, "res3.0.conv2", 0.0)),
    "layers of zeros in the head": ({}, lambda f: with_layer(f, "res5.0.conv1", 0.0)),
    "a dense layer": ({}, lambda f: with_layer(f, "res4.1.conv2", 0.01)),
    "one proposal": ({"proposals": 1}, lively),
    # Without suppression: the full number, in many blocks of RoIs.
    "1000 proposals": (
        {"proposals": 1000, "rpn_pre_nms": 6000, "rpn_nms_threshold": 1.0},
        lively,
    ),
    "the box below the threshold": ({"score_threshold": 0.3, "max_detections": 7}, lively),
}


@pytest.mark.parametrize("hoist", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@families
def test_variants(family: str, variant: str, hoist: bool) -> None:
    changes, make = VARIANTS[variant]
    config, tensors = small(family, **changes), make(family)
    engine, model = (
        Engine(config, tensors, threads=1, hoist=hoist),
        torch_reference(config, tensors),
    )
    network_input = synthetic_image(160, 208, seed=2)
    check_stages(engine, model, network_input, 1e-4)
    check_end_to_end(engine, model, network_input, 1, 1)
    if variant == "1000 proposals":
        features = model.features(as_batch(network_input))
        logits, deltas = (t[0].numpy() for t in model.rpn_outputs(features))
        assert len(EngineParts(engine, (160, 208)).proposals(logits, deltas)) == 1000


SIZES = [(97, 131), (16, 16), (160, 208), (82, 128), (17, 400), (50, 96), (18, 32), (333, 16)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("hoist", [True, False])
@families
def test_one_engine_serves_inputs_of_any_size_in_any_order(
    family: str, hoist: bool, isa: str
) -> None:
    """As an engine of its own for each size: nothing is left over from earlier memory contents."""
    config, tensors = small(family), lively(family)
    engine, model = (
        Engine(config, tensors, threads=1, isa=isa, hoist=hoist),
        torch_reference(config, tensors),
    )
    own = {}
    for i, size in enumerate(SIZES + SIZES[::-1] + SIZES[::2]):
        network_input = synthetic_image(*size, seed=sum(size))
        if size not in own:
            fresh = Engine(config, tensors, threads=1, isa=isa, hoist=hoist)
            own[size] = EngineParts(fresh).features(network_input), fresh.run(network_input)
            features = model.features(as_batch(network_input))[0]
            assert deviation(own[size][0], features) < 1e-4, size
            assert np.array_equal(fresh.run(network_input), own[size][1]), size
        assert np.array_equal(engine.run(network_input), own[size][1]), (i, size)
        assert np.array_equal(EngineParts(engine).features(network_input), own[size][0]), (i, size)


# ------------------------------------------------------------------------- the same every time


@families
def test_hoisting_changes_nothing_but_rounding(family: str) -> None:
    config, tensors = small(family, proposals=150), lively(family)
    network_input = synthetic_image(160, 208)
    hoisted, plain = (
        EngineParts(Engine(config, tensors, threads=2, hoist=hoist), (160, 208))
        for hoist in (True, False)
    )
    features = plain.features(network_input)
    rois = plain.proposals(*plain.rpn(features))
    # With boxes outside the map and without any area.
    odd = [
        [0, 0, 208, 160],
        [0, 0, 0, 0],
        [208, 160, 208, 160],
        [-90, -70, 5, 4],
        [200, 150, 400, 300],
        [500, 500, 600, 600],
    ]
    rois = np.vstack([rois, odd]).astype(np.float32)
    for a, b in zip(hoisted.roi_head(features, rois), plain.roi_head(features, rois), strict=True):
        assert deviation(a, b) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("hoist", [True, False])
def test_threads_and_runs_change_nothing_at_all(isa: str, hoist: bool) -> None:
    config, tensors = small("r101-c4", proposals=150), lively("r101-c4")
    network_input = synthetic_image(160, 208)
    expected = None
    for threads, pin in [(1, False), (2, False), (2, True), (3, False), (7, False), (7, True)]:
        engine = Engine(config, tensors, threads=threads, isa=isa, pin=pin, hoist=hoist)
        assert engine.threads == threads
        for _ in range(2):
            rows = engine.run(network_input)
            expected = rows if expected is None else expected
            assert len(rows) == 100 and np.array_equal(rows, expected)


def test_a_run_is_its_stages_one_after_the_other() -> None:
    engine, network_input = (
        Engine(small("r101-c4"), lively("r101-c4"), threads=2),
        synthetic_image(97, 131),
    )
    parts = EngineParts(engine)
    rows = engine.run(network_input)
    features = parts.features(network_input)
    proposals = parts.proposals(*parts.rpn(features))
    assert np.array_equal(parts.detect(*parts.roi_head(features, proposals), proposals), rows)


def test_inputs_as_floats_or_in_another_order_of_memory() -> None:
    engine, network_input = (
        Engine(small("r101-c4"), lively("r101-c4"), threads=2),
        synthetic_image(97, 131),
    )
    rows = engine.run(network_input)
    for same in (
        network_input.astype(np.float32),
        network_input.astype(np.float64),
        np.asfortranarray(network_input),
    ):
        assert np.array_equal(engine.run(same), rows)


def test_python_threads_take_turns() -> None:
    engine = Engine(small("r101-c4"), lively("r101-c4"), threads=2)
    images = [synthetic_image(97, 131), synthetic_image(64, 80)]
    expected = [engine.run(p) for p in images]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not np.array_equal(engine.run(images[i]), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
@pytest.mark.parametrize("name", ["stem.conv.bias", "rpn.deltas.bias", "rpn.objectness.bias"])
@families
def test_absurd_weights_are_no_way_out_of_memory(family: str, name: str, value: float) -> None:
    """Boxes and logits that are not numbers once made RoIAlign read outside the map."""
    bias = lively(family)[name].copy()
    bias[::3] = value
    for hoist in (True, False):
        engine = Engine(small(family), lively(family) | {name: bias}, threads=1, hoist=hoist)
        try:
            assert engine.run(synthetic_image(97, 131)).shape[1] == 7
        except InputError as error:  # nothing is found, and it says why
            assert "computes NaN or infinity" in str(error)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_bad_numbers_of_threads(threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}"):
        Engine(small("r101-c4"), lively("r101-c4"), threads=threads)


# --------------------------------------------------------------------------------------- boxes


def box_engine(**changes: Any) -> tuple[ModelConfig, EngineParts]:
    """An engine for boxes only: one 48-pixel anchor a cell, 160x208 network input."""
    config = small(
        "r101-c4",
        cell_anchors=((-24.0, -24.0, 24.0, 24.0),),
        score_threshold=0.0,
        **{"max_detections": 10_000, **changes},
    )
    return config, EngineParts(Engine(config, random_tensors(config, 0.0), threads=1), (160, 208))


def crowd(kind: str, count: int, seed: int = 0) -> F32:
    """Boxes on a 160x208 network input: random, many equal, many empty, or in steps of a third."""
    rng = np.random.default_rng(seed)
    low: NDArray[Any] = rng.uniform(0, (200, 150), (count, 2))
    boxes: NDArray[Any] = np.concatenate([low, low + rng.uniform(1, 60, (count, 2))], axis=1)
    if kind == "equal":
        boxes = boxes[rng.integers(0, count // 5, count)]
    elif kind == "empty":
        boxes[::3, 2:] = boxes[::3, :2]
        boxes[1::9, 2] = boxes[1::9, 0]
    elif kind == "steps":  # of 48 pixels, moved by 16: many overlap by exactly a half
        low = rng.integers(0, 7, (count, 2)) * 16.0
        boxes = np.concatenate([low, low + 48], axis=1)
    return np_boxes.clip(boxes.astype(np.float32), 160, 208)


KINDS = ("any", "equal", "empty", "steps")


@pytest.mark.parametrize("remove_empty", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_proposals_are_those_of_torchvisions_nms(
    kind: str, threshold: float, inclusive: bool, remove_empty: bool
) -> None:
    config, parts = box_engine(
        rpn_nms_threshold=threshold,
        proposals=70,
        rpn_pre_nms=110,
        rpn_remove_empty=remove_empty,
        rpn_inclusive=inclusive,
    )
    cells = np_boxes.cell_anchors(config)
    anchors = np_boxes.grid_anchors(cells, (10, 13), 16)
    boxes = crowd(kind, len(anchors))
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-30)  # the logarithm of an empty box
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    deltas = np.concatenate([shift / 48, np.log(size / 48)], axis=1, dtype=np.float32)
    logits = np.random.default_rng(1).integers(-3, 4, len(anchors)).astype(np.float32)  # many ties
    decoded = np_boxes.decode(deltas, anchors, config.rpn_box_weights, config.delta_clamp)
    decoded = np_boxes.clip(decoded, 160 - inclusive, 208 - inclusive)
    order = np.argsort(-logits, kind="stable")[:110]
    if remove_empty:
        order = order[(decoded[order, 2:] > decoded[order, :2]).all(axis=1)]
    assert (len(order) < 110) == (remove_empty and kind == "empty")
    covered = decoded + np.array([0, 0, inclusive, inclusive], np.float32)
    kept = ops.nms(*(torch.from_numpy(v[order]) for v in (covered, logits)), threshold)
    got = parts.proposals(logits, deltas)
    expected = decoded[order][kept.numpy()[:70]]
    assert (
        len(expected) > 15 and got.shape == expected.shape and np.abs(got - expected).max() < 1e-3
    )


def test_no_proposals_and_no_detections() -> None:
    tensors = lively("r101-c4-detectron2") | {
        "rpn.deltas.bias": np.full_like(lively("r101-c4-detectron2")["rpn.deltas.bias"], -1e4)
    }
    engine = Engine(small("r101-c4-detectron2"), tensors, threads=2)
    assert engine.run(synthetic_image(97, 131)).shape == (0, 7)  # every box is empty and removed
    engine = Engine(small("r101-c4", score_threshold=1.0), lively("r101-c4"), threads=2)
    assert engine.run(synthetic_image(97, 131)).shape == (0, 7)


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize("background_deltas", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_those_of_torchvisions_nms(
    kind: str, background_deltas: bool, background: str
) -> None:
    config, parts = box_engine(background=background, background_deltas=background_deltas)
    rng, count, classes = np.random.default_rng(2), 90, config.num_classes
    rois = crowd(kind, count)
    logits = rng.standard_normal((count, classes + 1)).astype(np.float32)
    logits[::2] = logits[0]  # equal scores
    deltas = np.zeros((count, classes + background_deltas, 4), np.float32)
    rows = parts.detect(logits, deltas, rois)
    first = int(background == "first")
    scores = torch.from_numpy(logits).softmax(dim=1)[:, first : first + classes].T.reshape(-1)
    boxes, labels = torch.from_numpy(rois).repeat(classes, 1), torch.arange(classes)
    labels = labels.repeat_interleave(count)
    kept = torch.cat(
        [
            mine[ops.nms(boxes[mine], scores[mine], config.nms_threshold)]
            for mine in (torch.nonzero(labels == k)[:, 0] for k in range(classes))
        ]
    )
    expected = np.column_stack([labels[kept] + 1, scores[kept], boxes[kept]])
    got = np.column_stack([rows[:, 1:3], rows[:, 3:] * (208, 160, 208, 160)])
    assert (np.diff(rows[:, 2]) <= 0).all()
    assert got.shape == expected.shape and len(expected) > 10 * classes
    order = [np.lexsort((*v[:, 2:].round(2).T, v[:, 1].round(5), v[:, 0])) for v in (got, expected)]
    assert np.abs(got[order[0]] - expected[order[1]]).max() < 1e-3


# ---------------------------------------------------------------------------------- full size


@pytest.mark.slow
def test_the_published_network_at_full_size() -> None:
    config = preset("r101-c4")
    photo = read_image(EXAMPLES / "frisbee.jpg")
    network_input, _ = to_network_input(photo, config.input_height, config.input_width)
    tensors = calibrated_random_tensors(config, 0.6, network_input)
    assert sum(int((t == 0).sum()) for t in tensors.values()) >= 0.6 * 52_792_416
    engine, model = Engine(config, tensors), torch_reference(config, tensors)
    check_stages(engine, model, network_input, 1e-4)
    check_end_to_end(engine, model, network_input, 50, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beach.jpg", "frisbee.jpg"])
def test_the_c4_model_on_photographs(name: str) -> None:
    file = load_model(embedded_model("r50half-c4"))
    config = require_c4(file.config, "compared")
    network_input, _ = to_network_input(
        read_image(EXAMPLES / name), config.input_height, config.input_width
    )
    engine, model = Engine(config, file.tensors), torch_reference(config, file.tensors)
    check_stages(engine, model, network_input, 1e-4)
    check_end_to_end(engine, model, network_input, 5, 1)
