"""The graph: its checks, the published figures, and torch's own counts for many other shapes."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES, ModelConfig
from sparsedet.model.graph import (
    IMAGE,
    KINDS,
    Attributes,
    Conv,
    DetectionOutput,
    Graph,
    Layer,
    MaxPool,
    Mean,
    Normalise,
    Operation,
    Proposals,
    RoiAlign,
    Shape,
    Slice,
    output_length,
)
from sparsedet.model.presets import PRESETS, preset

R101 = PRESETS["r101-c4"]


# ------------------------------------------------------------------ published figures


def of_part(graph: Graph, part: str) -> list[Layer]:
    """The layers of the "backbone", of the "rpn", or those that run once per RoI ("roi")."""
    prefixes = {"backbone": ("stem", "res"), "rpn": ("rpn",), "roi": ("res5", "box")}[part]
    found = [layer for layer in graph.layers if layer.name.startswith(prefixes)]
    return [layer for layer in found if layer.per_roi == (part == "roi")]


def feature_size(graph: Graph) -> tuple[int, int]:
    """Rows and columns of the map that RoIAlign reads."""
    return graph.shapes[graph.only(RoiAlign)[0].inputs[0]].size


def parameters(graph: Graph, *prefixes: str) -> tuple[int, int]:
    """(weights, biases) of the layers whose names start so."""
    mine = [layer for layer in graph.layers if layer.name.startswith(prefixes)]
    return sum(layer.weights for layer in mine), sum(layer.out_channels for layer in mine)


def test_parameters_of_the_published_network_by_part() -> None:
    network = build_graph(R101)
    assert network.parameters == 52_792_416
    assert parameters(network, "stem", "res") == (42_394_816, 52_672)
    assert sum(parameters(network, "rpn.conv")) == 9_438_208
    assert sum(parameters(network, "rpn.objectness")) == 15_375
    assert sum(parameters(network, "rpn.deltas")) == 61_500
    assert sum(parameters(network, "box.logits")) == 165_969
    assert sum(parameters(network, "box.deltas")) == 663_876


def test_cost_of_the_published_network() -> None:
    network = build_graph(R101)
    assert round(network.flops(300) / 1e9, 2) == 847.46
    assert round(network.flops(1) / 1e9, 2) == 363.04
    macs = {
        part: sum(layer.macs for layer in of_part(network, part)) for part in ("backbone", "rpn")
    }
    assert round(macs["backbone"] / 1e9, 3) == 142.655
    assert round(macs["rpn"] / 1e9, 3) == 38.056
    region = {
        name: sum(layer.macs for layer in of_part(network, "roi") if layer.name.startswith(name))
        for name in ("res5", "box")
    }
    assert round(region["res5"] / 1e9, 5) == 0.80924
    assert round(region["box"] / 1e9, 5) == 0.00083
    assert round(sum(region.values()) / 1e9, 5) == 0.81007
    assert network.macs(0) == macs["backbone"] + macs["rpn"]
    assert feature_size(network) == (50, 80)


def test_detectron2_form() -> None:
    network = build_graph(PRESETS["r101-c4-detectron2"])
    assert network.parameters == 52_784_220
    assert network.layer["box.deltas"].out_channels == 320
    assert network.layer["res3.0.conv1"].stride == 2
    assert network.layer["res3.0.conv2"].stride == 1


# -------------------------------------------------------------------- the graph's form


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_the_graph_is_a_runnable_order(config: ModelConfig) -> None:
    graph = build_graph(config)
    assert len(graph.by_name) == len(graph.operations) and len(graph.layer) == len(graph.layers)
    known = {IMAGE}
    for operation in graph.operations:
        assert known >= set(operation.inputs)
        known.add(operation.name)
        assert type(operation.attributes) is KINDS[operation.kind]
    for name, readers in graph.readers.items():
        assert readers == tuple(o for o in graph.operations if name in o.inputs)
    assert graph.output == graph.only(DetectionOutput)[0].name and not graph.readers[graph.output]
    for layer in graph.layers:
        source = graph.shapes[layer.source]
        assert (source.channels, source.size) == (layer.in_channels, layer.in_size)
        if layer.residual is not None:
            assert graph.shapes[layer.residual] == layer.output
        assert layer.output.count == (config.proposals if layer.per_roi else 1)
    size = (config.roi_size, config.roi_size)
    aligned = graph.shapes[graph.only(RoiAlign)[0].name]
    assert aligned == Shape("rois", config.stage_channels[2], *size, config.proposals)
    pooled = graph.shapes[graph.only(Mean)[0].name]
    assert pooled == Shape("rois", config.stage_channels[3], count=config.proposals)
    features = graph.shapes[graph.only(RoiAlign)[0].inputs[0]]
    assert features == Shape("map", config.stage_channels[2], *feature_size(graph))
    parts = (of_part(graph, part) for part in ("backbone", "rpn", "roi"))
    assert list(graph.layers) == [layer for part in parts for layer in part]


def test_resized_is_the_graph_of_the_other_size() -> None:
    config = replace(R101, blocks=(1, 2, 1, 1))
    for size in ((16, 16), (33, 90), (801, 640)):
        assert build_graph(config).resized(*size) == build_graph(config, size)
    with pytest.raises(InputError, match=r"^network input 1x90 is too small: .* would be empty$"):
        build_graph(config).resized(1, 90)


# -------------------------------------------------------------------------- what is refused

MAP = Conv(4, (3, 3), ("a",), padding=(1, 1, 1, 1))
START = [Operation("normalise", (IMAGE,), Normalise((0, 0, 0), (1, 1, 1)))]
START += [Operation("a", ("normalise",), MAP)]
PROPOSALS = Proposals((((0, 0, 8, 8),),), (8,), (1, 1, 1, 1), 4.0, 9, 5, 0.5, True, False)
START += [Operation("logits", ("a",), replace(MAP, out_channels=1))]
START += [Operation("boxes", ("logits", "a", IMAGE), PROPOSALS)]
ALIGN = RoiAlign((0.5,), 6, 2, "aligned")
START += [Operation("rois", ("a", "boxes"), ALIGN), Operation("mean", ("rois",), Mean())]
DETECTIONS = DetectionOutput(3, "first", False, (1, 1, 1, 1), 4.0, 0.1, 0.5, 7)


def test_domains_and_sizes_of_a_small_graph() -> None:
    shapes = Graph(Shape(IMAGE, 3, 9, 20), tuple(START)).shapes
    assert shapes["a"] == Shape("map", 4, 9, 20) and shapes["boxes"] == Shape("boxes", 4, count=5)
    assert shapes["rois"] == Shape("rois", 4, 6, 6, 5) and shapes["mean"].size == (1, 1)
    other: list[tuple[Attributes, tuple[str, ...], tuple[int, int]]] = [
        (replace(MAP, kernel=(2, 5), padding=(0, 1, 2, -3), stride=2), ("a",), (5, 7)),
        (replace(MAP, dilation=3), ("a",), (5, 16)),
        (replace(ALIGN, step=4), ("a", "boxes"), (2, 2)),
        (replace(ALIGN, scales=(0.5, 0.25)), ("a", "a", "boxes"), (6, 6)),
        (MaxPool(3, 2, (0, 0, 1, 1)), ("a",), (4, 10)),
    ]
    for attributes, inputs, size in other:
        graph = Graph(Shape(IMAGE, 3, 9, 20), (*START, Operation("x", inputs, attributes)))
        assert graph.shapes["x"].size == size, attributes
        assert graph.output == "x"


REFUSED: list[tuple[Attributes, tuple[str, ...], str]] = [
    (MAP, ("b",), "operation 'x' reads 'b', which no earlier makes"),
    (MAP, ("x",), "operation 'x' reads 'x', which no earlier makes"),
    (MAP, (IMAGE,), "operation 'x' reads a map or RoIs"),
    (MAP, ("boxes",), "operation 'x' reads a map or RoIs"),
    (MAP, ("a", "a", "a"), "operation 'x' reads a map or RoIs"),
    (MAP, (), "operation 'x' reads a map or RoIs"),
    (MAP, ("a", "logits"), "operation 'x' adds a value of another shape than its output"),
    (MAP, ("rois", "a"), "operation 'x' adds a value of another shape than its output"),
    (replace(MAP, kernel=(12, 1)), ("a",), "network input 9x20 is too small: x would be empty"),
    (replace(MAP, padding=(-9, 0, 0, 0)), ("a",), "network input 9x20 is too small: x would be"),
    (Normalise((0, 0, 0), (1, 1, 1)), ("a",), "operation 'x' reads the image"),
    (MaxPool(3, 2, (0, 0, 0, 0)), ("rois",), "operation 'x' reads a map"),
    (MaxPool(3, 2, (0, 0, 0, 0)), ("a", "a"), "operation 'x' reads a map"),
    (Mean(), (IMAGE,), "operation 'x' reads a map or RoIs"),
    (Slice(2, 3), ("a",), "operation 'x' reaches beyond the channels of its input"),
    (Slice(-1, 3), ("a",), "operation 'x' reaches beyond the channels of its input"),
    (Slice(0, 0), ("a",), "operation 'x' reaches beyond the channels of its input"),
    (Slice(0, 2), ("boxes",), "operation 'x' reads a map or RoIs"),
    (PROPOSALS, ("logits", "a"), "operation 'x' reads maps and the image"),
    (PROPOSALS, ("a", "logits", IMAGE), "operation 'x' has maps that do not fit its anchors"),
    (
        replace(PROPOSALS, strides=(8, 16)),
        ("logits", "logits", "a", "a", IMAGE),
        "operation 'x' needs a stride for each set of anchors",
    ),
    (ALIGN, ("a", "rois"), "operation 'x' reads maps and boxes"),
    (ALIGN, ("a", "a", "boxes"), "operation 'x' reads maps and boxes"),
    (
        replace(ALIGN, scales=(0.5, 0.5)),
        ("a", "logits", "boxes"),
        "operation 'x' reads maps that differ in channels",
    ),
    (DETECTIONS, ("mean", "mean", "boxes"), "operation 'x' reads RoIs, boxes and the image"),
    (DETECTIONS, ("rois", "rois", "boxes", IMAGE), "operation 'x' does not fit its logits and"),
    (DETECTIONS, ("mean", "mean", "boxes", IMAGE), "operation 'x' does not fit its logits and"),
]


@pytest.mark.parametrize(("attributes", "inputs", "message"), REFUSED)
def test_what_a_graph_refuses(
    attributes: Attributes, inputs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        Graph(Shape(IMAGE, 3, 9, 20), (*START, Operation("x", inputs, attributes)))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a", "boxes", IMAGE])
def test_a_name_that_is_used_twice(name: str) -> None:
    with pytest.raises(InputError, match=f"^the graph has two values '{name}'$"):
        Graph(Shape(IMAGE, 3, 9, 20), (*START, Operation(name, ("a",), MAP)))


def test_layers_are_those_of_the_first_operation_that_has_them() -> None:
    twice = Operation("b", ("a",), replace(MAP, layers=("a", "other"), out_channels=8))
    graph = Graph(Shape(IMAGE, 3, 9, 20), (*START[:2], twice))
    assert [layer.name for layer in graph.layers] == ["a", "other"]
    assert graph.layer["a"].operation.name == "a" and graph.layer["other"].operation is twice


def test_the_canvas_changes_sizes_and_nothing_else() -> None:
    small, large = build_graph(R101, (320, 480)), build_graph(R101, (640, 960))
    assert small.parameters == large.parameters == 52_792_416
    # RoI cost does not depend on the network input; the rest grows with its area.
    assert sum(x.macs for x in of_part(small, "roi")) == sum(x.macs for x in of_part(large, "roi"))
    assert large.macs(0) == 4 * small.macs(0)


WINDOWS = [(7, 2, (3, 2)), (3, 2, (1, 0)), (1, 2, (0, -1)), (3, 1, (1, 1))]


def test_output_length_counts_windows() -> None:
    for length in range(1, 30):
        for kernel, stride, padding in WINDOWS:
            padded = length + sum(padding)
            windows = len(range(0, padded - kernel + 1, stride))
            assert max(output_length(length, kernel, stride, padding), 0) == windows


@pytest.mark.parametrize("input_size", [(15, 800), (800, 1), (0, 0)])
def test_a_canvas_too_small(input_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="input"):
        build_graph(R101, input_size)


# --------------------------------------------------------------------- against torch


VARIATIONS = [
    (dict(), (800, 1280)),
    (dict(), (801, 1203)),
    (dict(stem_channels=48, rpn_channels=96), (333, 500)),
    (dict(bottleneck_channels=(8, 24, 40, 56), stage_channels=(32, 72, 104, 200)), (161, 97)),
    (dict(blocks=(1, 2, 3, 1), class_names=("cat", "dog"), category_ids=(17, 18)), (224, 225)),
    (dict(anchor_ratios=(1.0,), roi_size=10), (64, 79)),
    (dict(background_deltas=False, class_names=("cat",), category_ids=(17,)), (100, 16)),
]


def dense_macs(counter: Any) -> int:
    """Half of what torch's counter counted; it knows convolutions and matrix products only."""
    return int(counter.get_total_flops()) // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("changes", "input_size"), VARIATIONS)
def test_torch_counts_the_same(
    name: str, changes: dict[str, Any], input_size: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from torch.utils.flop_counter import FlopCounterMode

    from sparsedet.torch_model import FasterRCNN

    config = replace(PRESETS[name], **{"blocks": (2, 1, 2, 1), **changes})
    network = build_graph(config, input_size)
    with torch.device("meta"):  # shapes and costs without arithmetic
        model = FasterRCNN(config)
        step = model.graph.only(RoiAlign)[1].step  # only these bins are read
        bins = -(-config.roi_size // step)
        regions = torch.empty(3, config.stage_channels[2], bins, bins)
        image = torch.empty(1, 3, *input_size)
        boxes = [torch.empty(3, 4)]
    assert sum(p.numel() for p in model.parameters()) == network.parameters

    tensors: dict[str, Any] = {}
    for part, times in (("backbone", 1), ("rpn", 1), ("roi", len(regions))):
        names = [layer.name for layer in of_part(network, part)]
        given = {
            "backbone": {IMAGE: image},
            "rpn": {model.feature_map: tensors.get(model.feature_map)},
            "roi": {model.rois: regions, model.boxes: boxes},
        }[part]
        with FlopCounterMode(display=False) as counter:
            tensors |= zip(names, model.run(given, names), strict=True)
        assert dense_macs(counter) == times * sum(layer.macs for layer in of_part(network, part))
    for layer in network.layers:
        size = () if layer.kind == "linear" else layer.out_size
        assert tuple(tensors[layer.name].shape[1:]) == (layer.out_channels, *size), layer.name
    height, width = feature_size(network)
    anchors = height * width * config.anchors_per_cell
    logits, deltas = model.rpn_outputs(tensors[model.feature_map])
    assert (logits.shape, deltas.shape) == ((1, anchors), (1, anchors, 4))
    logits, deltas = model.head(regions)
    assert logits.shape == (3, config.num_classes + 1)
    assert deltas.shape == (3, config.num_classes + config.background_deltas, 4)


@pytest.mark.slow
@pytest.mark.parametrize("input_size", [(800, 1280), (321, 479), (50, 33)])
@pytest.mark.parametrize(("blocks", "width"), [((3, 4, 23, 3), 64), ((3, 4, 6, 3), 32)])
def test_torchvisions_resnet_is_the_same_backbone(
    blocks: tuple[int, int, int, int], width: int, input_size: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models.resnet import Bottleneck, ResNet

    # torchvision strides in the 3x3 like TensorPack, and pads both sides alike.
    config = replace(
        R101,
        blocks=blocks,
        bottleneck_channels=(width, 2 * width, 4 * width, 8 * width),
        stem_padding=(3, 3),
        pool_padding=(1, 1),
        stride_conv1_padding=(0, 0),
        stride_conv2_padding=(1, 1),
    )
    network = build_graph(config, input_size)
    with torch.device("meta"):
        theirs = ResNet(Bottleneck, list(blocks), width_per_group=width)
        image, region = torch.empty(1, 3, *input_size), torch.empty(1, 1024, 14, 14)
    weights, biases = parameters(network, "stem", "res")
    modules = list(theirs.modules())
    assert weights == sum(m.weight.numel() for m in modules if isinstance(m, torch.nn.Conv2d))
    assert biases == sum(m.num_features for m in modules if isinstance(m, torch.nn.BatchNorm2d))
    with FlopCounterMode(display=False) as counter:
        x = theirs.maxpool(theirs.conv1(image))
        features = theirs.layer3(theirs.layer2(theirs.layer1(x)))
    assert tuple(features.shape) == (1, 1024, *feature_size(network))
    assert dense_macs(counter) == sum(layer.macs for layer in of_part(network, "backbone"))
    with FlopCounterMode(display=False) as counter:
        theirs.layer4(region)
    res5 = [layer for layer in of_part(network, "roi") if layer.name.startswith("res5")]
    assert dense_macs(counter) == sum(layer.macs for layer in res5)


# --------------------------------------------------------------------- configuration


def test_coco_category_ids() -> None:
    assert len(COCO_NAMES) == len(set(COCO_NAMES)) == len(COCO_CATEGORY_IDS) == 80
    pairs = dict(zip(COCO_NAMES, COCO_CATEGORY_IDS, strict=True))
    # Ids of either side of each gap in COCO's numbering.
    assert pairs["person"] == 1 and pairs["fire hydrant"] == 11 and pairs["stop sign"] == 13
    assert pairs["cow"] == 21 and pairs["zebra"] == 24 and pairs["backpack"] == 27
    assert pairs["umbrella"] == 28 and pairs["handbag"] == 31
    assert pairs["bottle"] == 44 and pairs["wine glass"] == 46
    assert pairs["potted plant"] == 64 and pairs["bed"] == 65 and pairs["dining table"] == 67
    assert pairs["toilet"] == 70 and pairs["tv"] == 72 and pairs["sink"] == 81
    assert pairs["refrigerator"] == 82 and pairs["book"] == 84 and pairs["toothbrush"] == 90


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_named_and_survive_json(name: str) -> None:
    config = preset(name)
    assert config.name == name
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(config)  # lists left in place of tuples would refuse
    with pytest.raises(FrozenInstanceError):
        config.proposals = 5  # type: ignore[misc]


def test_whole_numbers_and_nested_lists_come_back_as_they_were() -> None:
    config = replace(R101, cell_anchors=((-8.0, -8.0, 8.0, 8.0), (-4.0, -9.0, 4.0, 9.0)))
    values = json.loads(json.dumps(config.to_dict()))
    values["anchor_offset"] = 0  # as a writer without floats puts 0.0
    again = ModelConfig.from_dict(values)
    assert again == config and isinstance(again.anchor_offset, float)
    assert again.anchors_per_cell == 2


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"r102.*r101-c4"):
        preset("r102")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_height", 15),
        ("input_width", 8193),
        ("input_width", "1280"),
        ("input_width", True),
        ("input_width", 1280.0),
        ("resize", "crop"),
        ("stride_in", 2),
        ("background", ["first"]),
        ("pixel_std", [1.0, 0.0, 1.0]),
        ("blocks", [3, 4, 6]),
        ("stage_channels", [256, 512, 0, 2048]),
        ("stem_channels", 0),
        ("rpn_remove_empty", 1),
        ("rpn_inclusive", 1),
        ("proposals", -1),
        ("roi_size", 7),
        ("roi_sampling_ratio", -1),
        ("cell_anchors", []),
        ("class_names", []),
        ("category_ids", [1, 2]),
        ("score_threshold", 1.5),
        ("nms_threshold", float("nan")),
        ("name", 5),
        ("depth", 101),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ModelConfig.from_dict({**R101.to_dict(), field: value})


def test_a_configuration_needs_its_name() -> None:
    with pytest.raises(ValueError, match="name"):
        ModelConfig.from_dict({"blocks": [3, 4, 6, 3]})
