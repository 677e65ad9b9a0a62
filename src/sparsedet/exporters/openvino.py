"""A model as an OpenVINO graph: a canvas in, the contract's rows out, all inside.

Built from the layer table with OpenVINO's own operations, float32, static shapes; operations with
weights carry their layers' names, so that a profile can be read against the table. Needs the
`openvino` package (`pip install 'sparsedet[export]'`).

Glossary: N anchors of the image, R regions (always `proposals`, padded with empty boxes),
K classes without background.
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
from ..network import Layer, build_network


def to_openvino(
    config: ModelConfig, tensors: Mapping[str, NDArray[Any]], *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
) -> Any:  # fmt: skip
    """Build the graph.

    Args:
        config: the model.
        tensors: folded weights by name.
        layout: input `input` [1, 3, H, W], or `image` [1, H, W, 3]; BGR, 0..255, float32.

    Returns:
        `openvino.Model` with one output [1, 1, max_detections, 7].

    Raises:
        InputError: OpenVINO is not installed.
    """
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError:
        raise InputError("export needs: pip install 'sparsedet[export]'") from None
    return _Builder(config, tensors, op).build(ov, layout)


def save_openvino(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    **options: Any,
) -> None:
    """Write `path` (.xml) and its .bin; options as for `to_openvino`.

    Raises:
        InputError: the name does not end in .xml, or a file exists.
    """
    target = Path(path)
    if target.suffix != ".xml":
        raise InputError(f"{target}: an OpenVINO model's name ends in .xml")
    for file in (target, target.with_suffix(".bin")):
        if file.exists():
            raise InputError(f"{file}: exists already and is not overwritten")
    model = to_openvino(config, tensors, **options)
    import openvino as ov

    ov.save_model(model, target, compress_to_fp16=False)


class _Builder:
    """Holds what every step needs: configuration, weights, the operation set."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, NDArray[Any]], op: Any) -> None:
        self.config, self.tensors, self.op = config, tensors, op
        self.network = build_network(config)

    def build(self, ov: Any, layout: str) -> Any:
        config, op = self.config, self.op
        height, width = config.canvas_height, config.canvas_width
        shape, name = (
            ([1, 3, height, width], "input")
            if layout == "NCHW"
            else ([1, height, width, 3], "image")
        )
        parameter = op.parameter(shape, np.float32, name=name)
        canvas = parameter if layout == "NCHW" else op.transpose(parameter, self.ints(0, 3, 1, 2))
        mean = np.asarray(config.pixel_mean, dtype=np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(config.pixel_std, dtype=np.float32).reshape(1, 3, 1, 1)
        nodes = {"canvas": op.divide(op.subtract(canvas, mean), std)}
        self.run_part("backbone", nodes)
        self.run_part("rpn", nodes)
        boxes, valid = self.proposals(nodes["rpn.objectness"], nodes["rpn.deltas"])
        nodes["rois"] = op.roi_align(
            nodes[self.network.features], boxes,
            op.constant(np.zeros(config.proposals, dtype=np.int64)), config.roi_size,
            config.roi_size, config.roi_sampling_ratio, 1.0 / config.anchor_stride, "avg",
            aligned_mode="half_pixel_for_nn",  # "half_pixel" samples elsewhere; this is RoIAlign's
        )  # fmt: skip
        self.run_part("roi", nodes)
        rows = self.detections(nodes["box.logits"], nodes["box.deltas"], boxes, valid)
        result = op.result(rows, name="detections")
        model = ov.Model([result], [parameter], config.name)
        model.inputs[0].tensor.set_names({name})
        model.outputs[0].tensor.set_names({"detections"})
        return model

    # ---------------------------------------------------------------- layers

    def ints(self, *values: int) -> Any:
        return self.op.constant(np.array(values, dtype=np.int64))

    def cut(self, x: Any, start: int, stop: int, axis: int) -> Any:
        """x[..., start:stop, ...] along one axis."""
        return self.op.slice(x, *(self.ints(v) for v in (start, stop, 1, axis)))

    def number(self, value: float) -> Any:
        return self.op.constant(np.array(value, dtype=np.float32))

    def run_part(self, part: str, nodes: dict[str, Any]) -> None:
        op = self.op
        for layer in self.network.layers:
            if layer.part != part:
                continue
            if layer.source == "pooled" and "pooled" not in nodes:
                last = nodes[f"res5.{self.config.blocks[3] - 1}.conv3"]
                nodes["pooled"] = op.reduce_mean(last, self.ints(2, 3), keep_dims=False)
            x = nodes[layer.source]
            if layer.kind == "maxpool":
                before, after = layer.padding
                x = op.max_pool(x, [layer.stride] * 2, [1, 1], [before] * 2, [after] * 2,
                                [layer.kernel] * 2, name=layer.name).output(0)  # fmt: skip
            else:
                x = self.layer(layer, x)
                if layer.residual:
                    x = op.add(x, nodes[layer.residual])
                if layer.relu:
                    x = op.relu(x)
            nodes[layer.name] = x

    def layer(self, layer: Layer, x: Any) -> Any:
        op = self.op
        weight = np.asarray(self.tensors[f"{layer.name}.weight"], dtype=np.float32)
        bias = np.asarray(self.tensors[f"{layer.name}.bias"], dtype=np.float32)
        # OpenVINO's profile calls a fused group by its convolution, or by the bias of a product.
        if layer.kind == "linear":
            product = op.matmul(x, op.constant(weight), False, True)
            return op.add(product, op.constant(bias[None]), name=layer.name)
        if layer.crop:
            x = op.slice(
                x, self.ints(0, 0), self.ints(-layer.crop, -layer.crop), self.ints(1, 1),
                self.ints(2, 3),
            )  # fmt: skip
        before, after = layer.padding
        x = op.convolution(
            x, op.constant(weight), [layer.stride] * 2, [before] * 2, [max(after, 0)] * 2, [1, 1],
            name=layer.name,
        )  # fmt: skip
        return op.add(x, op.constant(bias.reshape(1, -1, 1, 1)))

    # ----------------------------------------------------------------- boxes

    def decode(self, deltas: Any, boxes: Any, weights: tuple[float, ...]) -> Any:
        """deltas [..., 4] and boxes broadcastable to it -> clipped xyxy boxes."""
        op, config = self.op, self.config

        def part(x: Any, start: int) -> Any:
            return self.cut(x, start, start + 2, -1)

        scaled = op.divide(deltas, op.constant(np.asarray(weights, dtype=np.float32)))
        low, high = part(boxes, 0), part(boxes, 2)
        size = op.subtract(high, low)
        centre = op.add(low, op.multiply(size, self.number(0.5)))
        new_centre = op.add(op.multiply(part(scaled, 0), size), centre)
        growth = op.exp(op.minimum(part(scaled, 2), self.number(config.delta_clamp)))
        half = op.multiply(op.multiply(growth, size), self.number(0.5))
        out = op.concat([op.subtract(new_centre, half), op.add(new_centre, half)], -1)
        w, h = float(config.canvas_width), float(config.canvas_height)
        limit = op.constant(np.array([w, h, w, h], dtype=np.float32))
        return op.minimum(op.maximum(out, self.number(0.0)), limit)

    def first_rows(self, x: Any, filler: NDArray[Any], count: int) -> Any:
        """x [M, C] of unknown M, padded with rows of `filler` and cut to [count, C]."""
        op = self.op
        tail = op.constant(np.tile(filler, (count, 1)))
        both = op.concat([x, tail], 0)
        cut = self.cut(both, 0, count, 0)
        return op.reshape(cut, self.ints(count, len(filler)), False)

    def proposals(self, objectness: Any, deltas: Any) -> tuple[Any, Any]:
        """Boxes [R, 4], padded with zeros, and whether each is a proposal [R, 1] (1.0 or 0.0)."""
        op, config = self.op, self.config
        anchors = np_boxes.grid_anchors(
            np_boxes.cell_anchors(config), self.network.feature_size, config.anchor_stride
        )
        count = min(config.rpn_pre_nms, len(anchors))
        nhwc = self.ints(0, 2, 3, 1)
        logits = op.reshape(op.transpose(objectness, nhwc), self.ints(-1), False)
        deltas = op.reshape(op.transpose(deltas, nhwc), self.ints(-1, 4), False)
        # In the anchors' order, NMS sorts anyway: a stable sort by value takes OpenVINO 1.5 s here.
        top = op.topk(
            logits, op.constant(np.array(count, dtype=np.int64)), 0, "max", "index", stable=True
        )
        scores, order = top.output(0), top.output(1)
        zero = op.constant(np.array(0, dtype=np.int64))
        deltas = op.gather(deltas, order, zero)
        best = op.gather(op.constant(anchors), order, zero)
        boxes = self.decode(deltas, best, config.rpn_box_weights)
        if config.rpn_remove_empty:
            low = self.cut(boxes, 0, 2, -1)
            high = self.cut(boxes, 2, 4, -1)
            full = op.reduce_min(op.subtract(high, low), self.ints(1), keep_dims=False)
            scores = op.select(op.greater(full, self.number(0.0)), scores, self.number(-np.inf))
        kept = op.non_max_suppression(
            op.unsqueeze(boxes, self.ints(0)), op.reshape(scores, self.ints(1, 1, -1), False),
            op.constant(np.array(config.proposals, dtype=np.int64)),
            self.number(config.rpn_nms_threshold), self.number(-1e30),
            box_encoding="corner", sort_result_descending=False, output_type="i64",
        ).output(0)  # fmt: skip
        index = op.squeeze(self.cut(kept, 2, 3, 1), self.ints(1))
        chosen = op.gather(boxes, index, zero)  # [M, 4]
        flags = op.broadcast(self.number(1.0), op.concat([op.shape_of(index), self.ints(1)], 0))
        padded = self.first_rows(
            op.concat([chosen, flags], 1), np.zeros(5, dtype=np.float32), config.proposals
        )
        return self.cut(padded, 0, 4, 1), self.cut(padded, 4, 5, 1)

    def detections(self, logits: Any, deltas: Any, boxes: Any, valid: Any) -> Any:
        """Rows of the contract [1, 1, max_detections, 7]."""
        op, config = self.op, self.config
        classes, rois = config.num_classes, config.proposals
        first = 1 if config.background == "first" else 0
        scores = self.cut(op.softmax(logits, 1), first, first + classes, 1)
        scores = op.transpose(op.multiply(scores, valid), self.ints(1, 0))  # [K, R]
        deltas = op.reshape(deltas, self.ints(rois, -1, 4), False)
        if config.background_deltas:
            deltas = self.cut(deltas, first, first + classes, 1)
        decoded = self.decode(deltas, op.unsqueeze(boxes, self.ints(1)), config.box_weights)
        decoded = op.transpose(decoded, self.ints(1, 0, 2))  # [K, R, 4]
        kept = op.multiclass_nms(
            decoded, scores, op.constant(np.array([config.proposals], dtype=np.int64)),
            sort_result_type="score", output_type="i64", iou_threshold=config.nms_threshold,
            score_threshold=config.score_threshold, nms_top_k=-1,
            keep_top_k=config.max_detections, background_class=-1, normalized=True,
        ).output(0)  # fmt: skip
        # (class from 0, score, box in canvas pixels) -> (0, class from 1, score, fractions)
        w, h = float(config.canvas_width), float(config.canvas_height)
        scale = op.constant(np.array([1, 1, 1 / w, 1 / h, 1 / w, 1 / h], dtype=np.float32))
        shift = op.constant(np.array([1, 0, 0, 0, 0, 0], dtype=np.float32))
        rows = op.add(op.multiply(kept, scale), shift)
        rows = op.pad(rows, self.ints(0, 1), self.ints(0, 0), "constant", self.number(0.0))
        filler = np.array([-1, 0, 0, 0, 0, 0, 0], dtype=np.float32)
        fixed = self.first_rows(rows, filler, config.max_detections)
        return op.reshape(fixed, self.ints(1, 1, config.max_detections, 7), False)
