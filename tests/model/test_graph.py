"""The layer table: the published figures, and torch's own counts for many other shapes."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from sparsedet.model.c4 import build_graph
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES, ModelConfig
from sparsedet.model.graph import Component, Network, output_length
from sparsedet.model.presets import PRESETS, preset

R101 = PRESETS["r101-c4"]


# ------------------------------------------------------------------ published figures


def parameters(network: Network, *prefixes: str) -> tuple[int, int]:
    """(weights, biases) of the layers whose names start so."""
    mine = [layer for layer in network.weighted if layer.name.startswith(prefixes)]
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
        part: sum(layer.macs for layer in network.of_component(part))
        for part in ("backbone", "rpn")
    }
    assert round(macs["backbone"] / 1e9, 3) == 142.655
    assert round(macs["rpn"] / 1e9, 3) == 38.056
    region = {
        name: sum(
            layer.macs for layer in network.of_component("roi") if layer.name.startswith(name)
        )
        for name in ("res5", "box")
    }
    assert round(region["res5"] / 1e9, 5) == 0.80924
    assert round(region["box"] / 1e9, 5) == 0.00083
    assert round(sum(region.values()) / 1e9, 5) == 0.81007
    assert network.macs(0) == macs["backbone"] + macs["rpn"]
    assert network.feature_size == (50, 80)


def test_detectron2_form() -> None:
    network = build_graph(PRESETS["r101-c4-detectron2"])
    assert network.parameters == 52_784_220
    assert network.by_name["box.deltas"].out_channels == 320
    assert network.by_name["res3.0.conv1"].stride == 2
    assert network.by_name["res3.0.conv2"].stride == 1


# --------------------------------------------------------------------- the table's form


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_the_table_is_a_runnable_order(config: ModelConfig) -> None:
    network = build_graph(config)
    assert len(network.by_name) == len(network.layers)
    shapes: dict[str, tuple[int, tuple[int, int]]] = {
        "input": (3, (config.input_height, config.input_width)),
        "rois": (config.stage_channels[2], (config.roi_size, config.roi_size)),
        "pooled": (config.stage_channels[3], (1, 1)),
    }
    for layer in network.layers:
        assert shapes[layer.source] == (layer.in_channels, layer.in_size)
        if layer.residual is not None:
            assert shapes[layer.residual] == (layer.out_channels, layer.out_size)
        shapes[layer.name] = (layer.out_channels, layer.out_size)
    assert shapes[network.features] == (config.stage_channels[2], network.feature_size)
    assert network.layers == sum((network.of_component(p) for p in ("backbone", "rpn", "roi")), ())


def test_the_canvas_changes_sizes_and_nothing_else() -> None:
    small, large = build_graph(R101, (320, 480)), build_graph(R101, (640, 960))
    assert small.parameters == large.parameters == 52_792_416
    # RoI cost does not depend on the network input; the rest grows with its area.
    assert sum(x.macs for x in small.of_component("roi")) == sum(
        x.macs for x in large.of_component("roi")
    )
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
        regions = torch.empty(3, config.stage_channels[2], config.roi_size, config.roi_size)
        tensors = {"input": torch.empty(1, 3, *input_size), "rois": regions}
    assert sum(p.numel() for p in model.parameters()) == network.parameters

    components: dict[Component, int] = {"backbone": 1, "rpn": 1, "roi": len(regions)}
    for part, times in components.items():
        with FlopCounterMode(display=False) as counter:
            model.run_component(part, tensors)
        macs = sum(layer.macs for layer in network.of_component(part))
        assert dense_macs(counter) == times * macs
    for layer in network.layers:
        size = () if layer.kind == "linear" else layer.out_size
        assert tuple(tensors[layer.name].shape[1:]) == (layer.out_channels, *size), layer.name
    anchors = network.feature_size[0] * network.feature_size[1] * config.anchors_per_cell
    logits, deltas = model.rpn_outputs(tensors[network.features])
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
    assert tuple(features.shape) == (1, 1024, *network.feature_size)
    assert dense_macs(counter) == sum(layer.macs for layer in network.of_component("backbone"))
    with FlopCounterMode(display=False) as counter:
        theirs.layer4(region)
    res5 = [layer for layer in network.of_component("roi") if layer.name.startswith("res5")]
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
