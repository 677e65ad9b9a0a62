"""Rewrites: the same values before and after, and what does not fit their pattern stays.

The values are those of a plain interpreter in torch, which reads nothing but the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.engine.lower import lowered
from sparsedet.model import boxes as np_boxes
from sparsedet.model.batch_norm import fold_batch_norm
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.graph import (
    IMAGE,
    Attributes,
    Conv,
    DetectionOutput,
    Graph,
    Mean,
    Normalise,
    Operation,
    Proposals,
    RoiAlign,
    Shape,
    Slice,
    typed,
)
from sparsedet.model.interpreter import Interpreter
from sparsedet.model.mask_head import MaskHead
from sparsedet.model.rewrite import (
    HOISTED,
    fold_batch_norms,
    hoist,
    is_predictor,
    merge_equal,
    merge_predictors,
    skip_bins,
)

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")

from helpers.engine import (  # noqa: E402
    FAMILIES,
    Tensors,
    as_batch,
    by_torch,
    deviation,
    lively,
    small,
    synthetic_image,
)
from helpers.parts import EngineParts  # noqa: E402
from torch import Tensor  # noqa: E402

from sparsedet.torch_model import FasterRCNN  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# The families, and what else decides whether a rewrite applies: which bins of RoIAlign are read.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES}
VARIANTS |= {
    "corners": ("r101-c4", {"roi_sampling": "corners", "roi_sampling_ratio": 2}),
    "stride in conv2": ("r101-c4", {"stride_in": "conv2"}),
    "one sample a cell": ("r101-c4-detectron2", {"roi_sampling_ratio": 0}),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def config_of(variant: str) -> ModelConfig:
    family, changes = VARIANTS[variant]
    return small(family, **changes)


def tensors_of(variant: str) -> Tensors:
    return lively(VARIANTS[variant][0])


class Plain(Interpreter[Any]):
    """What the operations between image, boxes and predictors do, by torch's own functions."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.config, self.tensors = config, tensors

    def normalise(self, operation: Operation, image: Tensor) -> Tensor:
        attributes = typed(operation, Normalise)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (attributes.mean, attributes.std))
        normalised: Tensor = (image.float() - mean) / std
        return normalised

    def conv(self, operation: Operation, x: Tensor, residual: Tensor | None = None) -> Tensor:
        conv = typed(operation, Conv)
        layer, norm = conv.layers[0], conv.norm
        assert norm == (f"{layer}.norm.weight" in self.tensors) and not (norm and not conv.bias)
        tensors = self.tensors
        if norm or not conv.bias:  # the bias is the norm's, or comes after RoIAlign
            tensors = {**tensors, f"{layer}.bias": np.zeros(conv.out_channels, np.float32)}
        if not norm:
            return by_torch(operation, tensors, x, residual)
        plain = replace(operation, attributes=replace(conv, activation="none"))
        scale, offset, mean, variance = (
            torch.from_numpy(np.asarray(self.tensors[f"{layer}.norm.{part}"])).view(-1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = by_torch(plain, tensors, x)
        x = (x - mean) / (variance + self.config.batch_norm_eps).sqrt() * scale + offset
        x = x if residual is None else x + residual
        return torch.relu(x) if conv.activation == "relu" else x

    def max_pool(self, operation: Operation, x: Tensor) -> Tensor:
        return by_torch(operation, self.tensors, x)

    def mean(self, operation: Operation, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)

    def slice(self, operation: Operation, x: Tensor) -> Tensor:
        attributes = typed(operation, Slice)
        return x[:, attributes.first : attributes.first + attributes.channels]

    def roi_align(self, operation: Operation, x: Tensor, boxes: Tensor) -> Tensor:
        align = typed(operation, RoiAlign)
        size, ratio, step = align.size, align.sampling_ratio, align.step
        if align.sampling == "corners":
            cells = (x.shape[2], x.shape[3])
            stride = self.config.anchor_stride
            a, b, c = np_boxes.corner_sampling(cells, stride, size * ratio)
            other = boxes[:, [2, 3, 0, 1]]
            boxes = boxes * boxes.new_tensor(a) + other * boxes.new_tensor(b) + c
        aligned = align.sampling != "legacy"
        x = ops.roi_align(x, [boxes], size, align.scales[0], ratio or -1, aligned)
        x = x[:, :, ::step, ::step]
        if align.bias_of:
            x = x + torch.from_numpy(self.tensors[f"{align.bias_of}.bias"]).view(-1, 1, 1)
        return torch.relu(x) if align.activation == "relu" else x


BOXES = torch.tensor(
    [[3.0, 5, 60, 70], [0, 0, 131, 97], [40, 20, 44, 90], [-9, -20, 30, 8], [100, 60, 300, 200]]
)


def outputs(graph: Graph, config: ModelConfig, tensors: Mapping[str, Any]) -> list[Tensor]:
    """What proposals and detections read of an image and fixed boxes."""
    proposals, detections = graph.only(Proposals)[0], graph.only(DetectionOutput)[0]
    given = {IMAGE: as_batch(synthetic_image(97, 131)), proposals.name: BOXES}
    wanted = [*proposals.inputs[:-1], *detections.inputs[:2]]
    return Plain(config, tensors).run(graph, given, wanted)


def check_same(
    before: Graph, after: Graph, config: ModelConfig, tensors: Mapping[str, Any], error: float
) -> None:
    for a, b in zip(*(outputs(g, config, tensors) for g in (before, after)), strict=True):
        assert deviation(b.numpy(), a) <= error
        assert float(a.abs().max()) > 0.1  # no comparison of zeros


def changed(before: Graph, after: Graph) -> set[str]:
    """Names of the operations of the new graph that differ from the old ones."""
    return {o.name for o in after.operations if before.by_name.get(o.name) != o}


# --------------------------------------------------------------------------- the same values


@variants
def test_the_plain_interpreter_is_the_torch_model(variant: str) -> None:
    """So that the rewrites are compared with what the project means by this graph."""
    config, tensors = config_of(variant), tensors_of(variant)
    model = FasterRCNN(config)
    model.load_tensors(tensors)
    with torch.no_grad():
        features = model.features(as_batch(synthetic_image(97, 131)))
        rpn = model.run({model.feature_map: features}, [model.objectness, model.deltas])
        head = model.regions(features, [BOXES])
    ours_of_all = outputs(fold_batch_norms(build_graph(config)), config, tensors)
    for ours, theirs in zip(ours_of_all, [*rpn, *head], strict=True):
        assert deviation(ours.numpy().reshape(theirs.shape), theirs) < 2e-5


@variants
def test_folded_batch_norms_compute_the_same(variant: str) -> None:
    config, rng = config_of(variant), np.random.default_rng(0)
    tensors, before = tensors_of(variant), build_graph(config)
    with_norms = dict(tensors)
    for layer in before.layers:
        if layer.norm:
            out = layer.out_channels
            scale, variance = rng.uniform(0.5, 2, (2, out)).astype(np.float32)
            mean = rng.normal(0, 1, out).astype(np.float32)
            whole = scale / np.sqrt(variance + np.float32(config.batch_norm_eps))
            bias = with_norms.pop(f"{layer.name}.bias")
            with_norms[f"{layer.name}.weight"] = tensors[f"{layer.name}.weight"] / (
                whole.reshape(-1, 1, 1, 1)
            )
            names = ("weight", "bias", "running_mean", "running_var")
            values = (scale, (bias + mean * whole).astype(np.float32), mean, variance)
            with_norms |= {f"{layer.name}.norm.{n}": v for n, v in zip(names, values, strict=True)}
    after = fold_batch_norms(before)
    assert changed(before, after) == {layer.name for layer in before.layers if layer.norm}
    assert not any(layer.norm for layer in after.layers)
    folded = fold_batch_norm(with_norms, config)
    for a, b in zip(
        outputs(before, config, with_norms), outputs(after, config, folded), strict=True
    ):
        assert deviation(b.numpy(), a) < 2e-4
    assert fold_batch_norms(after) == after


@variants
def test_merged_predictors_compute_the_same(variant: str) -> None:
    config, tensors = config_of(variant), tensors_of(variant)
    before = fold_batch_norms(build_graph(config))
    after = merge_predictors(before)
    names = {"rpn.objectness", "rpn.deltas", "box.logits", "box.deltas"}
    assert changed(before, after) == {*names, "rpn.predictors", "box.predictors"}
    assert all(isinstance(after.by_name[name].attributes, Slice) for name in names)
    assert typed(after.by_name["box.predictors"], Conv).layers == ("box.logits", "box.deltas")
    assert {name: after.shapes[name] for name in before.shapes} == before.shapes
    # Also where an operation is asked whether it stays float32:
    assert {o.name for o, _ in after.of_kind(Conv) if is_predictor(after, o.name)} == {
        "rpn.predictors",
        "box.predictors",
    }
    check_same(before, after, config, tensors, 1e-5)
    assert merge_predictors(after) == after


@variants
def test_skipped_bins_are_never_read(variant: str) -> None:
    config, tensors = config_of(variant), tensors_of(variant)
    before = fold_batch_norms(build_graph(config))
    after = skip_bins(before)
    skips = config.stride_in == "conv1" and config.stride_conv1_padding[0] == 0
    first = {"res5.0.conv1", "res5.0.shortcut"}
    align = before.only(RoiAlign)[0].name
    assert changed(before, after) == ({align, *first} if skips else set())
    assert after.only(RoiAlign)[1].step == (2 if skips else 1)
    check_same(before, after, config, tensors, 1e-5)
    assert skip_bins(after) == after


@variants
@pytest.mark.parametrize("skipped", [True, False])
def test_hoisted_layers_compute_the_same(variant: str, skipped: bool) -> None:
    config, tensors = config_of(variant), tensors_of(variant)
    before = fold_batch_norms(build_graph(config))
    before = skip_bins(before) if skipped else before
    after = hoist(before)
    first = ("res5.0.conv1", "res5.0.shortcut")
    assert before.only(RoiAlign)[0].name not in after.by_name
    for name in first:
        conv, align = typed(after.by_name[name], Conv), after.by_name[HOISTED + name]
        assert after.shapes[name].domain == "map" and conv.activation == "none" and not conv.bias
        assert after.shapes[align.name] == before.shapes[name]
        assert typed(align, RoiAlign).bias_of == name
    assert {layer.name for layer in after.layers} == {layer.name for layer in before.layers}
    assert after.parameters == before.parameters
    check_same(before, after, config, tensors, 1e-5)
    assert hoist(after) == after


@variants
def test_equal_operations_compute_the_same_once(variant: str) -> None:
    """A Mask R-CNN C4 runs res5 twice; hoisted, both begin with the same work on the map."""
    config, tensors = config_of(variant), tensors_of(variant)
    whole = build_graph(config, masks=MaskHead(channels=8))
    before = hoist(skip_bins(fold_batch_norms(whole)))
    after = merge_equal(before)
    first = ("res5.0.conv1", "res5.0.shortcut")
    assert before.by_name.keys() - after.by_name.keys() == {f"mask.{name}" for name in first}
    assert changed(before, after) == {f"{HOISTED}mask.{name}" for name in first}
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    saved = sum(before.layer[name].macs for name in first)
    assert before.macs(9) - after.macs(9) == saved > 0

    def run(graph: Graph) -> list[Tensor]:
        given = {IMAGE: as_batch(synthetic_image(97, 131)), "proposals": BOXES}
        given["detections"] = BOXES[1:] + 3
        end = f"res5.{config.blocks[3] - 1}.conv3"
        return Plain(config, tensors).run(graph, given, [end, f"mask.{end}"])

    for a, b in zip(run(before), run(after), strict=True):
        assert torch.equal(a, b) and float(a.abs().max()) > 0.1
    assert merge_equal(after) == after
    assert merge_equal(build_graph(config)) == build_graph(config)


Rewrite = Callable[[Graph], Graph]
ORDERS: dict[str, list[Rewrite]] = {
    "merge": [merge_predictors],
    "skip": [skip_bins],
    "hoist": [hoist],
    "hoist, merge": [hoist, merge_predictors],
    "skip, merge": [skip_bins, merge_predictors],
    "merge, hoist, skip": [merge_predictors, hoist, skip_bins],
    "skip, merge, hoist": [skip_bins, merge_predictors, hoist],
}


@variants
@pytest.mark.parametrize("order", ORDERS)
def test_the_engine_computes_the_same_with_any_of_them(variant: str, order: str) -> None:
    config, tensors = config_of(variant), tensors_of(variant)
    plain = build_graph(config)
    graph = plain
    for rewrite in ORDERS[order]:
        graph = rewrite(graph)
    image = synthetic_image(97, 131)
    results = []
    for each in (plain, graph):
        parts = EngineParts(Engine(config, tensors, graph=each, threads=1))
        features = parts.features(image)
        results.append([*parts.rpn(features), *parts.roi_head(features, BOXES.numpy())])
    for expected, got in zip(*results, strict=True):
        assert deviation(got, expected) < 1e-5
    # Hoisting skips the bins by itself.
    whole = {hoist, merge_predictors} <= set(ORDERS[order])
    assert (graph == lowered(plain)) == whole


# -------------------------------------------------------------------- what does not fit stays

CONV = Conv(4, (1, 1), ("a",))
PROPOSALS = Proposals((((0, 0, 8, 8),) * 4,), (8,), (1, 1, 1, 1), 4.0, 9, 5, 0.5, True, False)
ALIGN = RoiAlign((0.5,), 6, 2, "aligned")
DETECTIONS = DetectionOutput(3, "first", True, (1, 1, 1, 1), 4.0, 0.1, 0.5, 7)
Rows = list[tuple[str, tuple[str, ...], Attributes]]


def layer(name: str, out: int = 4, **changes: Any) -> Conv:
    return replace(CONV, out_channels=out, layers=(name,), **changes)


def graph_of(rows: Rows) -> Graph:
    """A map m of 4 channels, boxes, and then these operations."""
    start: Rows = [
        ("n", (IMAGE,), Normalise((0, 0, 0), (1, 1, 1))),
        ("m", ("n",), layer("m", 4, activation="relu")),
        ("l", ("m",), layer("l", 4)),
        ("d", ("m",), layer("d", 16, kernel=(3, 3), padding=(1, 1, 1, 1))),
        ("boxes", ("l", "d", IMAGE), PROPOSALS),
    ]
    operations = [Operation(*row) for row in [*start, *rows]]
    return Graph(Shape(IMAGE, 3, 20, 24), tuple(operations))


def aligned(*readers: tuple[str, tuple[str, ...], Attributes], align: RoiAlign = ALIGN) -> Graph:
    return graph_of([("r", ("m", "boxes"), align), *readers])


NOT_POINTWISE = {
    "a 3x3": aligned(("x", ("r",), layer("x", kernel=(3, 3), padding=(1, 1, 1, 1)))),
    "a mean": aligned(("x", ("r",), Mean())),
    "a mean beside a 1x1": aligned(("y", ("r",), layer("y")), ("x", ("r",), Mean())),
    "a 3x3 beside a 1x1": aligned(
        ("x", ("r",), layer("x", kernel=(3, 3))), ("y", ("r",), layer("y"))
    ),
    "a 1x1 that adds": aligned(("x", ("r", "r"), layer("x"))),
    "read as a residual": aligned(("y", ("r",), layer("y")), ("x", ("y", "r"), layer("x"))),
    "a 1x3": aligned(("x", ("r",), layer("x", kernel=(1, 3), padding=(0, 1, 0, 1)))),
    "padding before": aligned(("x", ("r",), layer("x", stride=2, padding=(1, 1, 0, 0)))),
    "padding after": aligned(("x", ("r",), layer("x", stride=2, padding=(0, 0, 1, 1)))),
    "a bin less": aligned(("x", ("r",), layer("x", padding=(0, 0, -1, -1)))),
    "a column less": aligned(("x", ("r",), layer("x", padding=(0, 0, 0, -1)))),
    "no reader": aligned(),
}


@pytest.mark.parametrize("case", NOT_POINTWISE)
def test_a_roialign_that_not_only_1x1_convolutions_read_stays(case: str) -> None:
    graph = NOT_POINTWISE[case]
    assert hoist(graph) == graph
    assert skip_bins(graph) == graph


TWO_LEVELS = replace(ALIGN, scales=(0.5, 0.25))
NOT_HOISTED = {
    "two levels": graph_of(
        [("r", ("m", "m", "boxes"), TWO_LEVELS), ("x", ("r",), layer("x", stride=2))]
    ),
    "has a bias": aligned(("x", ("r",), layer("x")), align=replace(ALIGN, bias_of="m")),
    "has a ReLU": aligned(("x", ("r",), layer("x")), align=replace(ALIGN, activation="relu")),
    "two layers in one": aligned(("x", ("r",), replace(CONV, layers=("p", "q")))),
    "without a bias": aligned(("x", ("r",), layer("x", bias=False))),
}


@pytest.mark.parametrize("case", NOT_HOISTED)
def test_what_is_not_hoisted(case: str) -> None:
    graph = NOT_HOISTED[case]
    assert hoist(graph) == graph
    step = 2 if case == "two levels" else 1
    assert skip_bins(graph).only(RoiAlign)[1].step == step  # which cares for no such thing


def test_readers_of_different_strides_skip_no_bins_but_are_hoisted() -> None:
    graph = aligned(("x", ("r",), layer("x", stride=2)), ("y", ("r",), layer("y")))
    assert skip_bins(graph) == graph
    after = hoist(graph)
    steps = {o.name: align.step for o, align in after.of_kind(RoiAlign)}
    assert steps == {"roialign.x": 2, "roialign.y": 1}
    assert after.shapes["roialign.x"].size == (3, 3)


def test_each_roialign_of_a_graph_is_looked_at_alone() -> None:
    graph = graph_of(
        [
            ("r", ("m", "boxes"), ALIGN),
            ("x", ("r",), layer("x", stride=2, activation="relu")),
            ("s", ("m", "boxes"), ALIGN),
            ("y", ("s",), Mean()),
            ("z", ("x",), layer("z")),
        ]
    )
    after = hoist(graph)
    assert [o.name for o in after.operations][5:] == ["x", "roialign.x", "s", "y", "z"]
    assert after.by_name["z"].inputs == ("roialign.x",)
    assert changed(graph, after) == {"x", "roialign.x", "z"}
    assert changed(graph, skip_bins(graph)) == {"r", "x"}


def detected(*rows: tuple[str, tuple[str, ...], Attributes]) -> Graph:
    """RoIs, their mean p, these operations, and detections of `c` and `b`."""
    start: Rows = [("r", ("m", "boxes"), ALIGN), ("p", ("r",), Mean())]
    end: Rows = [("rows", ("c", "b", "boxes", IMAGE), DETECTIONS)]
    return graph_of([*start, *rows, *end])


NOT_MERGED = {
    "other inputs": detected(
        ("q", ("p",), layer("q")), ("c", ("p",), layer("c")), ("b", ("q",), layer("b", 16))
    ),
    "one ReLU": detected(
        ("c", ("p",), layer("c")), ("b", ("p",), layer("b", 16, activation="relu"))
    ),
    "another reader": detected(
        ("c", ("p",), layer("c")), ("b", ("p",), layer("b", 16)), ("x", ("c",), layer("x"))
    ),
}


@pytest.mark.parametrize("case", NOT_MERGED)
def test_what_is_not_merged(case: str) -> None:
    """The predictors of the boxes differ in their kernels, so they stay, too."""
    graph = NOT_MERGED[case]
    assert merge_predictors(graph) == graph


def test_a_merged_predictor_comes_before_all_that_read_it() -> None:
    graph = detected(
        ("w", ("p",), layer("w", 6)),
        ("c", ("w",), Slice(1, 4)),  # reads before the other predictor runs
        ("b", ("p",), layer("b", 16)),
    )
    after = merge_predictors(graph)
    assert [o.name for o in after.operations][-5:] == ["predictors", "w", "b", "c", "rows"]
    assert typed(after.by_name["predictors"], Conv).layers == ("w", "b")


def test_a_value_that_nobody_reads_is_no_predictor() -> None:
    graph = detected(
        ("c", ("p",), layer("c")), ("b", ("p",), layer("b", 16)), ("e", ("p",), layer("e", 3))
    )
    assert not is_predictor(graph, "e") and not is_predictor(graph, "rows")
    assert typed(merge_predictors(graph).by_name["predictors"], Conv).layers == ("c", "b")


def test_what_differs_in_an_input_or_attribute_is_not_merged() -> None:
    """And what reads merged operations may be merged, too."""
    pool: Attributes = replace(CONV, layers=("y",), stride=2)
    graph = graph_of(
        [
            ("x", ("m",), layer("x")),
            ("of another map", ("l",), layer("x")),
            ("of other tensors", ("m",), layer("y")),
            ("of another stride", ("m",), pool),
            ("x again", ("m",), layer("x")),
            ("y", ("x",), layer("y")),
            ("y again", ("x again",), layer("y")),
            ("both", ("y", "y again"), layer("z")),
            ("the output", ("y", "y"), layer("z")),
        ]
    )
    after = merge_equal(graph)
    assert graph.by_name.keys() - after.by_name.keys() == {"x again", "y again"}
    assert after.by_name["both"].inputs == ("y", "y")
    assert after.output == "the output"
