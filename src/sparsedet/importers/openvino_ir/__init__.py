"""Import an OpenVINO IR of a Faster R-CNN C4: the published network, exports, converted graphs.

`graph` reads the files, `layers` finds the layers by following the graph, `boxes` reads anchors,
thresholds and counts. OpenVINO is not needed; where it is installed,
`evaluation.imported` runs the source beside the imported network.

A graph does not state everything: class names, COCO's ids and the resizing of images are read from
rt_info where our exporter wrote them, else they are COCO's 80 classes and `letterbox`. The colour
order is BGR, as in the published network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import InputError
from ...model.c4 import build_graph
from ...model.config import ModelConfig
from ...model.file import Tensors, check_tensors
from ...model.graph import Layer
from ...model.presets import preset
from ..tensor_source import Imported, Source, resolve_config
from .boxes import BoxReader
from .graph import IR
from .layers import ImportedNetwork, find_layers
from .steps import AffineOp


def load_openvino(
    path: str | os.PathLike[str],
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Imported:
    """Read an IR.

    Args:
        path: the .xml; its .bin is beside it.
        base: configuration of all that the graph does not state; default: the one that our
            exporter wrote into the file, else `r101-c4`.
        fields: fields of the configuration, which override all others.

    Raises:
        InputError: the files are unreadable or hostile, or the graph is another kind of network;
            the message names the node that does not fit.
    """
    try:
        return _load(IR(path), base, fields)
    except InputError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A node lacks inputs or attributes of its type, or a number is absurd.
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{path}: its graph cannot be followed ({reason})") from None


def _load(ir: IR, base: ModelConfig | None, fields: Mapping[str, Any] | None) -> Imported:
    exported = _exported_config(ir)
    base_config = base or exported or preset("r101-c4")
    network = find_layers(ir)
    read: dict[str, Any] = _shapes(network)
    if exported is None:
        read["name"] = f"r{3 * sum(network.blocks) + 2}-c4"
    read |= _paddings(network, base_config)
    boxes = BoxReader(ir, network, base_config)
    boxes.read()
    for field, values in (("pixel_mean", network.mean), ("pixel_std", network.std)):
        boxes.put(field, tuple(values.tolist()))
    read |= boxes.fields
    if "cell_anchors" not in read and base_config.cell_anchors is None:
        read["cell_anchors"] = None
    classes = len(network.layers["box.logits"].weight) - 1
    chosen = dict(fields or {})
    if "class_names" not in chosen and exported is None and base is None:
        chosen |= _labels(ir, classes)
    config = resolve_config(Source(ir.path, {}), base_config, read, classes, chosen)
    tensors = _tensors(ir, config, network)
    notes = list(boxes.notes)
    if exported is None and "class_names" not in chosen:
        notes.append("class names are not in the graph: assumed to be COCO's, in COCO's order")
    if network.mean[0] > network.mean[2] and exported is None:
        notes.append(
            f"pixel means {tuple(round(m, 3) for m in network.mean.tolist())} look like RGB "
            "order; this program feeds BGR"
        )
    provenance = {"source": f"OpenVINO IR {ir.path.name}", "input_form": network.layout}
    return Imported(config, tensors, provenance, (), tuple(notes))


def _exported_config(ir: IR) -> ModelConfig | None:
    """The configuration that our exporter wrote into rt_info; None in other graphs."""
    text = ir.info("sparsedet", "config")
    if text is None:
        return None
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise InputError("it is not a JSON object")
        return ModelConfig.from_dict(values)
    except (ValueError, RecursionError) as error:
        raise ir.error(f"the configuration in its rt_info cannot be used: {error}") from None


def _labels(ir: IR, classes: int) -> dict[str, Any]:
    """`class_names` of Model API's rt_info, which may also name the background; {} without them."""
    labels = (ir.info("model_info", "labels") or "").split()
    names = labels[1:] if len(labels) == classes + 1 else labels
    if len(names) != classes or len(set(names)) != classes:
        return {}
    return {"class_names": [name.replace("_", " ") for name in names]}


def _shapes(network: ImportedNetwork) -> dict[str, Any]:
    """Fields of the configuration that follow from shapes."""
    layers, stages = network.layers, (2, 3, 4, 5)
    return {
        "input_height": network.input_size[0],
        "input_width": network.input_size[1],
        "blocks": tuple(network.blocks),
        "stem_channels": len(layers["stem.conv"].weight),
        "bottleneck_channels": tuple(len(layers[f"res{n}.0.conv1"].weight) for n in stages),
        "stage_channels": tuple(len(layers[f"res{n}.0.conv3"].weight) for n in stages),
        "rpn_channels": len(layers["rpn.conv"].weight),
    }


def _paddings(network: ImportedNetwork, base: ModelConfig) -> dict[str, Any]:
    """Fields of the configuration for the position of the strides and the padding."""
    layers = network.layers
    first = layers["res3.0.conv1"].stride > 1
    strided = layers["res3.0.conv2"].padding
    shortcut = layers["res3.0.shortcut"].padding
    crops = {shortcut, *([layers["res3.0.conv1"].padding] if first else [])}
    fields: dict[str, Any] = {
        "stem_padding": layers["stem.conv"].padding,
        "pool_padding": network.pool_padding,
        "stride_in": "conv1" if first else "conv2",
    }
    if not first:
        # A 1x1 window of stride 2 never reads the last row of an even map, so a graph need not crop
        # it; the padding of the shortcut follows because both branches have the same size.
        fields["stride_conv2_padding"] = strided
        fields["stride_conv1_padding"] = (0, sum(strided) - 2)
    elif (0, -1) in crops:
        fields["stride_conv1_padding"] = (0, -1)
        fields["stride_conv2_padding"] = (1, 0)
    elif base.stride_in != "conv1" or _has_odd_map(network):
        fields["stride_conv1_padding"] = (0, 0)
        fields["stride_conv2_padding"] = (1, 1)
    else:  # with even maps all paddings give the same result
        fields["stride_conv1_padding"] = base.stride_conv1_padding
        fields["stride_conv2_padding"] = base.stride_conv2_padding
    return fields


def _has_odd_map(network: ImportedNetwork) -> bool:
    """Whether a strided layer reads a map with an odd side, where a crop would be visible."""
    nodes = [network.layers[f"res{number}.0.conv1"].node for number in (3, 4)]
    sizes = [node.inputs[0][0].shapes[node.inputs[0][1]][2:] for node in nodes]
    return any(length % 2 for size in sizes for length in size)


def _tensors(ir: IR, config: ModelConfig, network: ImportedNetwork) -> Tensors:
    """Our tensors; checks every layer against the graph."""
    tensors: Tensors = {}
    for layer in build_graph(config).layers:
        affine = network.layers.pop(layer.name, None)
        if affine is None:
            raise ir.error(f"has no layer {layer.name}")
        _check_geometry(ir, layer, affine)
        tensors[f"{layer.name}.weight"] = affine.weight
        tensors[f"{layer.name}.bias"] = affine.bias
        if not (np.isfinite(affine.weight).all() and np.isfinite(affine.bias).all()):
            raise ir.error(f"{affine.node.label()}: {layer.name} holds NaN or infinite values")
        if affine.weight.shape != layer.weight_shape:
            raise ir.error(
                f"{affine.node.label()}: {layer.name} has shape {affine.weight.shape}, expected "
                f"{layer.weight_shape}"
            )
    check_tensors(config, tensors)
    return tensors


def _check_geometry(ir: IR, layer: Layer, affine: AffineOp) -> None:
    """Raise InputError unless stride, padding and output size are those of the graph."""
    size = affine.node.shape[2:]
    stride = affine.stride == layer.stride or layer.kind == "linear"
    padding = affine.padding[0] == layer.padding[0] or layer.kind == "linear"
    # A hoisted layer gives the whole map; RoIAlign follows it.
    hoisted = layer.source == "rois" and size != layer.out_size
    fits = hoisted or layer.kind == "linear" or size == layer.out_size
    if not (
        stride and padding and (fits or affine.stride != int(affine.node.number("strides", 1)))
    ):
        raise ir.error(
            f"{affine.node.label()}: {layer.name} has stride {affine.stride}, padding "
            f"{affine.padding} and output {size}, expected stride {layer.stride}, padding "
            f"{layer.padding} and {layer.out_size}"
        )
