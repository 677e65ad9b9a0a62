"""OpenVINO IR of a Faster R-CNN C4 -> our model: the published network, our own exports, converted
torch and ONNX graphs.

`ir` reads the files, `ir_layers` finds the layers by following the graph, `ir_boxes` reads anchors,
thresholds and counts. OpenVINO is not needed; where it is installed, `probe` runs the source beside
the import.

A graph does not state everything: class names, COCO's ids and how a photograph goes on the network input
are taken from rt_info where our exporter wrote them, else COCO's 80 classes and `fit`. Colour order
is BGR, as the published network has it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import InputError
from ...model.c4 import build_network
from ...model.config import ModelConfig
from ...model.file import Tensors, check_tensors
from ...model.presets import preset
from ..tensor_source import Imported, Source, settle
from .boxes import BoxReader
from .graph import IR
from .layers import Body, find_layers
from .steps import Linear


def load_openvino(
    path: str | os.PathLike[str],
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Imported:
    """Read an IR.

    Args:
        path: the .xml; its .bin lies beside it.
        base: what the graph does not state; default: what our exporter wrote into it, else
            `r101-c4`'s.
        fields: of the configuration, over all else.

    Raises:
        InputError: unreadable or hostile files, another kind of network, or a node that does not
            fit, which is named.
    """
    try:
        return _load(IR(path), base, fields)
    except InputError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A node without the inputs or attributes that its kind has, numbers beyond reason.
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{path}: its graph cannot be followed ({reason})") from None


def _load(ir: IR, base: ModelConfig | None, fields: Mapping[str, Any] | None) -> Imported:
    ours = _own_config(ir)
    known = base or ours or preset("r101-c4")
    body = find_layers(ir)
    read: dict[str, Any] = _shapes(body)
    if ours is None:
        read["name"] = f"r{3 * sum(body.blocks) + 2}-c4"
    read |= _paddings(ir, body, known)
    boxes = BoxReader(ir, body, known)
    boxes.read()
    for field, values in (("pixel_mean", body.mean), ("pixel_std", body.std)):
        boxes.put(field, tuple(values.tolist()))
    read |= boxes.fields
    if "cell_anchors" not in read and known.cell_anchors is None:
        read["cell_anchors"] = None
    classes = len(body.layers["box.logits"].weight) - 1
    given = dict(fields or {})
    if "class_names" not in given and ours is None and base is None:
        given |= _labels(ir, classes)
    config = settle(Source(ir.path, {}), known, read, classes, given)
    tensors = _tensors(ir, config, body)
    notes = list(boxes.notes)
    if ours is None and "class_names" not in given:
        notes.append("class names are not in the graph: taken as COCO's in COCO's order")
    if body.mean[0] > body.mean[2] and ours is None:
        notes.append(
            f"pixel means {tuple(round(m, 3) for m in body.mean.tolist())} look like RGB "
            "order; this program feeds BGR"
        )
    provenance = {"source": f"OpenVINO IR {ir.path.name}", "input_form": body.layout}
    return Imported(config, tensors, provenance, (), tuple(notes))


def _own_config(ir: IR) -> ModelConfig | None:
    """The configuration that our exporter wrote beside the graph."""
    text = ir.info("sparsedet", "config")
    if text is None:
        return None
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise InputError("it is no JSON object")
        return ModelConfig.from_dict(values)
    except (ValueError, RecursionError) as error:
        raise ir.error(f"the configuration in its rt_info cannot be used: {error}") from None


def _labels(ir: IR, classes: int) -> dict[str, Any]:
    """Class names of Model API's rt_info, which may have one more for the background."""
    labels = (ir.info("model_info", "labels") or "").split()
    names = labels[1:] if len(labels) == classes + 1 else labels
    if len(names) != classes or len(set(names)) != classes:
        return {}
    return {"class_names": [name.replace("_", " ") for name in names]}


def _shapes(body: Body) -> dict[str, Any]:
    layers, stages = body.layers, (2, 3, 4, 5)
    return {
        "input_height": body.input_size[0],
        "input_width": body.input_size[1],
        "blocks": tuple(body.blocks),
        "stem_channels": len(layers["stem.conv"].weight),
        "bottleneck_channels": tuple(len(layers[f"res{n}.0.conv1"].weight) for n in stages),
        "stage_channels": tuple(len(layers[f"res{n}.0.conv3"].weight) for n in stages),
        "rpn_channels": len(layers["rpn.conv"].weight),
    }


def _paddings(ir: IR, body: Body, known: ModelConfig) -> dict[str, Any]:
    """Where the strides are, and what surrounds the maps."""
    layers = body.layers
    first = layers["res3.0.conv1"].stride > 1
    strided = layers["res3.0.conv2"].padding
    shortcut = layers["res3.0.shortcut"].padding
    crops = {shortcut, *([layers["res3.0.conv1"].padding] if first else [])}
    found: dict[str, Any] = {
        "stem_padding": layers["stem.conv"].padding,
        "pool_padding": body.pool_padding,
        "stride_in": "conv1" if first else "conv2",
    }
    if not first:
        # A 1x1 window of stride 2 never reads the last row of an even map, so that a graph need
        # not cut it off; that the two branches have one size settles it.
        found["stride_conv2_padding"] = strided
        found["stride_conv1_padding"] = (0, sum(strided) - 2)
    elif (0, -1) in crops:
        found["stride_conv1_padding"] = (0, -1)
        found["stride_conv2_padding"] = (1, 0)
    elif known.stride_in != "conv1" or _odd(body):
        found["stride_conv1_padding"] = (0, 0)
        found["stride_conv2_padding"] = (1, 1)
    else:  # an even map does not tell
        found["stride_conv1_padding"] = known.stride_conv1_padding
        found["stride_conv2_padding"] = known.stride_conv2_padding
    return found


def _odd(body: Body) -> bool:
    """Whether a map that is strided over has an odd side, so that a crop would be seen."""
    nodes = [body.layers[f"res{number}.0.conv1"].node for number in (3, 4)]
    sizes = [node.inputs[0][0].shapes[node.inputs[0][1]][2:] for node in nodes]
    return any(length % 2 for size in sizes for length in size)


def _tensors(ir: IR, config: ModelConfig, body: Body) -> Tensors:
    """Our tensors; every layer must have the place and size that the table gives it."""
    tensors: Tensors = {}
    for layer in build_network(config).weighted:
        linear = body.layers.pop(layer.name, None)
        if linear is None:
            raise ir.error(f"has no layer {layer.name}")
        _check_geometry(ir, layer, linear)
        tensors[f"{layer.name}.weight"] = linear.weight
        tensors[f"{layer.name}.bias"] = linear.bias
        if not (np.isfinite(linear.weight).all() and np.isfinite(linear.bias).all()):
            raise ir.error(f"{linear.node.says()}: {layer.name} holds NaN or infinite values")
        if linear.weight.shape != layer.weight_shape:
            raise ir.error(
                f"{linear.node.says()}: {layer.name} has shape {linear.weight.shape}, expected "
                f"{layer.weight_shape}"
            )
    check_tensors(config, tensors)
    return tensors


def _check_geometry(ir: IR, layer: Any, linear: Linear) -> None:
    size = linear.node.shape[2:]
    stride = linear.stride == layer.stride or layer.kind == "linear"
    padding = linear.padding[0] == layer.padding[0] or layer.kind == "linear"
    # Behind RoIAlign a hoisted layer's own output is the whole map.
    hoisted = layer.source == "rois" and size != layer.out_size
    fits = hoisted or layer.kind == "linear" or size == layer.out_size
    if not (
        stride and padding and (fits or linear.stride != int(linear.node.number("strides", 1)))
    ):
        raise ir.error(
            f"{linear.node.says()}: {layer.name} has stride {linear.stride}, padding "
            f"{linear.padding} and gives {size}, expected stride {layer.stride}, padding "
            f"{layer.padding} and {layer.out_size}"
        )
