"""A model as an ONNX graph: a canvas in, the contract's rows out, all inside.

Built from the layer table with ONNX's standard operations, float32, static shapes, batch 1. Needs
the `onnx` package (`pip install 'sparsedet[export]'`); nothing is run here.

Glossary: N anchors of the image, R regions (always `proposals`, padded with empty boxes),
K classes without background, D `max_detections`, M a number that depends on the picture. A value
of the graph is known by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import boxes as np_boxes
from ..config import ModelConfig
from ..errors import InputError
from ..files import write_atomic
from ..network import Layer, build_network

OPSET, IR_VERSION = 21, 10
"""What onnx 1.16 and ONNX Runtime 1.18 know, the oldest versions that the package asks for."""


def to_onnx(
    config: ModelConfig, tensors: Mapping[str, NDArray[Any]], *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
) -> Any:  # fmt: skip
    """Build the graph.

    Args:
        config: the model.
        tensors: folded weights by name.
        layout: input `input` [1, 3, H, W], or `image` [1, H, W, 3]; BGR, 0..255, float32.

    Returns:
        `onnx.ModelProto` with one output `detections` [1, 1, max_detections, 7].

    Raises:
        InputError: the onnx package is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("export needs: pip install 'sparsedet[export]'") from None
    return _Builder(config, tensors, onnx).build(layout)


def save_onnx(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    **options: Any,
) -> None:
    """Write `path` (.onnx), weights inside; options as for `to_onnx`.

    Raises:
        InputError: the name does not end in .onnx, or the file exists or cannot be written.
    """
    target = Path(path)
    if target.suffix != ".onnx":
        raise InputError(f"{target}: an ONNX model's name ends in .onnx")
    if target.exists():  # before the work, not after
        raise InputError(f"{target}: exists already and is not overwritten")
    write_atomic(target, to_onnx(config, tensors, **options).SerializeToString())


class _Builder:
    """The graph so far, and what every step needs: configuration, weights, the onnx package."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, NDArray[Any]], onnx: Any) -> None:
        self.config, self.tensors, self.onnx = config, tensors, onnx
        self.network = build_network(config)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def build(self, layout: str) -> Any:
        config, helper = self.config, self.onnx.helper
        size = (config.canvas_height, config.canvas_width)
        name, shape = ("input", [1, 3, *size]) if layout == "NCHW" else ("image", [1, *size, 3])
        canvas = name if layout == "NCHW" else self.add("Transpose", name, perm=[0, 3, 1, 2])
        mean = np.asarray(config.pixel_mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(config.pixel_std, dtype=np.float32).reshape(1, 3, 1, 1)
        centred = self.add("Sub", canvas, self.constant(mean))
        values = {"canvas": self.add("Div", centred, self.constant(std))}
        self.run_part("backbone", values)
        self.run_part("rpn", values)
        boxes, valid = self.proposals(values["rpn.objectness"], values["rpn.deltas"])
        values["rois"] = self.add(
            "RoiAlign", values[self.network.features], boxes,
            self.constant(np.zeros(config.proposals, dtype=np.int64)),
            coordinate_transformation_mode="half_pixel", mode="avg",
            output_height=config.roi_size, output_width=config.roi_size,
            sampling_ratio=config.roi_sampling_ratio, spatial_scale=1.0 / config.anchor_stride,
        )  # fmt: skip
        self.run_part("roi", values)
        rows = self.detections(values["box.logits"], values["box.deltas"], boxes, valid)
        out_shape = [1, 1, config.max_detections, 7]
        self.add("Reshape", rows, self.ints(*out_shape), name="detections")
        number = self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes, config.name,
            [helper.make_tensor_value_info(name, number, shape)],
            [helper.make_tensor_value_info("detections", number, out_shape)],
            list(self.constants.values()),
        )  # fmt: skip
        return helper.make_model(
            graph, producer_name="sparsedet", ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )  # fmt: skip

    # ------------------------------------------------------------ operations

    def add(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **settings: Any
    ) -> str:
        """Append an operation; returns the name of its first output."""
        name = name or f"{kind}_{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, name, **settings))
        return name

    def constant(self, value: NDArray[Any], name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        return name if name in self.constants else self.constant(np.array(values, np.int64), name)

    def number(self, value: float) -> str:
        return self.constant(np.array(value, dtype=np.float32))

    def cut(self, x: str, start: int, stop: int, axis: int) -> str:
        """x[..., start:stop, ...] along one axis."""
        return self.add("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def concat(self, *parts: str, axis: int) -> str:
        return self.add("Concat", *parts, axis=axis)

    # ---------------------------------------------------------------- layers

    def run_part(self, part: str, values: dict[str, str]) -> None:
        for layer in self.network.layers:
            if layer.part != part:
                continue
            if layer.source == "pooled" and "pooled" not in values:
                last = values[f"res5.{self.config.blocks[3] - 1}.conv3"]
                values["pooled"] = self.add("ReduceMean", last, self.ints(2, 3), keepdims=0)
            x = values[layer.source]
            if layer.kind == "maxpool":
                before, after = layer.padding
                x = self.add(
                    "MaxPool", x, name=layer.name, kernel_shape=[layer.kernel] * 2,
                    strides=[layer.stride] * 2, pads=[before, before, after, after],
                )  # fmt: skip
            else:
                x = self.layer(layer, x)
                if layer.residual:
                    x = self.add("Add", x, values[layer.residual])
                if layer.relu:
                    x = self.add("Relu", x)
            values[layer.name] = x

    def layer(self, layer: Layer, x: str) -> str:
        weight, bias = (
            self.constant(np.asarray(self.tensors[name], dtype=np.float32), name)
            for name in (f"{layer.name}.weight", f"{layer.name}.bias")
        )
        if layer.kind == "linear":
            return self.add("Gemm", x, weight, bias, name=layer.name, transB=1)
        if layer.crop:
            x = self.add(
                "Slice", x, self.ints(0, 0), self.ints(-layer.crop, -layer.crop), self.ints(2, 3)
            )
        before, after = layer.padding[0], max(layer.padding[1], 0)
        return self.add(
            "Conv", x, weight, bias, name=layer.name, kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2, pads=[before, before, after, after],
        )  # fmt: skip

    # ----------------------------------------------------------------- boxes

    def decode(self, deltas: str, boxes: str, weights: tuple[float, ...]) -> str:
        """deltas [..., 4] and boxes broadcastable to it -> clipped xyxy boxes."""
        config = self.config
        scaled = self.add("Div", deltas, self.constant(np.asarray(weights, dtype=np.float32)))
        low, high = self.cut(boxes, 0, 2, -1), self.cut(boxes, 2, 4, -1)
        half = self.number(0.5)
        size = self.add("Sub", high, low)
        centre = self.add("Add", low, self.add("Mul", size, half))
        shift = self.add("Mul", self.cut(scaled, 0, 2, -1), size)
        centre = self.add("Add", shift, centre)
        growth = self.add("Min", self.cut(scaled, 2, 4, -1), self.number(config.delta_clamp))
        size = self.add("Mul", self.add("Exp", growth), size)
        reach = self.add("Mul", size, half)
        out = self.concat(
            self.add("Sub", centre, reach), self.add("Add", centre, reach), axis=-1
        )  # fmt: skip
        return self.add("Min", self.add("Max", out, self.number(0.0)), self.constant(self.extent))

    @property
    def extent(self) -> NDArray[np.float32]:
        """Width, height, width, height of the canvas."""
        size = (self.config.canvas_width, self.config.canvas_height)
        return np.array(size * 2, dtype=np.float32)

    def proposals(self, objectness: str, deltas: str) -> tuple[str, str]:
        """Boxes [R, 4], padded with zeros, and whether each is a proposal [R, 1] (1.0 or 0.0)."""
        config = self.config
        anchors = np_boxes.grid_anchors(
            np_boxes.cell_anchors(config), self.network.feature_size, config.anchor_stride
        )
        count = min(config.rpn_pre_nms, len(anchors))
        objectness = self.add("Transpose", objectness, perm=[0, 2, 3, 1])
        logits = self.add("Reshape", objectness, self.ints(-1))
        deltas = self.add("Transpose", deltas, perm=[0, 2, 3, 1])
        deltas = self.add("Reshape", deltas, self.ints(-1, 4))
        scores = self.add("TopK", logits, self.ints(count), outputs=2, axis=0)
        order = f"{scores}.1"
        boxes = self.decode(
            self.add("Gather", deltas, order),
            self.add("Gather", self.constant(anchors.astype(np.float32)), order),
            config.rpn_box_weights,
        )
        if config.rpn_remove_empty:
            size = self.add("Sub", self.cut(boxes, 2, 4, 1), self.cut(boxes, 0, 2, 1))
            full = self.add("ReduceMin", size, self.ints(1), keepdims=0)
            full = self.add("Greater", full, self.number(0.0))
            scores = self.add("Where", full, scores, self.number(-np.inf))
        kept = self.add(
            "NonMaxSuppression", self.add("Unsqueeze", boxes, self.ints(0)),
            self.add("Unsqueeze", scores, self.ints(0, 1)), self.ints(config.proposals),
            self.number(config.rpn_nms_threshold), self.number(-1e30),
        )  # fmt: skip
        index = self.add("Squeeze", self.cut(kept, 2, 3, 1), self.ints(1))  # [M]
        # Missing proposals are read from one more row, of zeros.
        flagged = self.concat(boxes, self.constant(np.ones((count, 1), dtype=np.float32)), axis=1)
        table = self.concat(flagged, self.constant(np.zeros((1, 5), dtype=np.float32)), axis=0)
        filler = self.constant(np.full(config.proposals, count, dtype=np.int64))
        index = self.cut(self.concat(index, filler, axis=0), 0, config.proposals, 0)
        index = self.add("Reshape", index, self.ints(config.proposals))  # states the static shape
        chosen = self.add("Gather", table, index)
        return self.cut(chosen, 0, 4, 1), self.cut(chosen, 4, 5, 1)

    def detections(self, logits: str, deltas: str, boxes: str, valid: str) -> str:
        """The best D rows [D, 7] of the contract, padded."""
        config = self.config
        classes, rois, limit = config.num_classes, config.proposals, config.max_detections
        first = 1 if config.background == "first" else 0
        scores = self.cut(self.add("Softmax", logits, axis=1), first, first + classes, 1)
        scores = self.add("Transpose", self.add("Mul", scores, valid), perm=[1, 0])  # [K, R]
        deltas = self.add("Reshape", deltas, self.ints(rois, -1, 4))
        if config.background_deltas:
            deltas = self.cut(deltas, first, first + classes, 1)
        boxes = self.decode(deltas, self.add("Unsqueeze", boxes, self.ints(1)), config.box_weights)
        boxes = self.add("Transpose", boxes, perm=[1, 0, 2])  # [K, R, 4]
        # Each class has boxes of its own, which the operation allows only to images: classes
        # take the place of images.
        kept = self.add(
            "NonMaxSuppression", boxes, self.add("Unsqueeze", scores, self.ints(1)),
            self.ints(rois), self.number(config.nms_threshold), self.number(config.score_threshold),
        )  # fmt: skip
        stride = self.constant(np.array([[rois], [0], [1]], dtype=np.int64))
        index = self.add("Reshape", self.add("MatMul", kept, stride), self.ints(-1))  # [M]
        # One row for each class and region, and one more that is padding.
        names = np.repeat(np.arange(1, classes + 1, dtype=np.float32), rois)
        fixed = self.constant(np.stack([np.zeros_like(names), names], axis=1))
        flat_scores = self.add("Reshape", scores, self.ints(-1, 1))
        flat_boxes = self.add("Reshape", boxes, self.ints(-1, 4))
        fractions = self.add("Div", flat_boxes, self.constant(self.extent))
        padding = self.constant(np.array([[-1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
        table = self.concat(self.concat(fixed, flat_scores, fractions, axis=1), padding, axis=0)
        filler = self.constant(np.full(limit, classes * rois, dtype=np.int64))
        index = self.concat(index, filler, axis=0)
        confidence = self.cut(self.add("Gather", table, index), 2, 3, 1)
        confidence = self.add("Reshape", confidence, self.ints(-1))
        best = self.add("TopK", confidence, self.ints(limit), outputs=2, axis=0)
        return self.add("Gather", table, self.add("Gather", index, f"{best}.1"))
