"""The exported graph, once for all forms: the layer table walked from network input to rows.

`Graph` says which operations follow which; a subclass for each runtime says how one operation is
written there (`onnx`, `openvino`). Shapes are static, one picture at a time. Nothing is run here.

Glossary: N anchors of the image, R regions (always `proposals`, padded with empty boxes),
K classes without background, D `max_detections`, M a number that depends on the picture. A value
is whatever the subclass calls one: a name, or an output of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model import boxes as np_boxes
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.graph import Layer

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an exported graph looks like from outside, and how it keeps its weights.

    Attributes:
        layout: input `input` [1, 3, H, W], or `image` [1, H, W, 3]; BGR, 0..255, float32.
        rows: output `detections` [1, 1, D, 7], or [D, 7].
        dtype: of the stored weights; biases and all other numbers are float32, and so is the
            arithmetic. float16 rounds weights to 11 bits.
        image_info: a second input `image_info` [1, 3] that nothing reads: Open Model Zoo's accuracy
            checker feeds (height, width, 1) and stops if there is no such input.
        hoist: run res5's first linear layers once on the map instead of once for each region, and
            RoIAlign on what they give: the same up to rounding, because both are linear.

    Raises:
        InputError: a word that is none of these.
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    rows: Literal["4d", "2d"] = "4d"
    dtype: Literal["float32", "float16"] = "float32"
    image_info: bool = False
    hoist: bool = False

    def __post_init__(self) -> None:
        for field, words in (
            ("layout", ("NCHW", "NHWC")),
            ("rows", ("4d", "2d")),
            ("dtype", ("float32", "float16")),
        ):
            if getattr(self, field) not in words:
                got = getattr(self, field)
                raise InputError(f"{field} is {got!r}, expected {' or '.join(map(repr, words))}")

    @property
    def input_name(self) -> str:
        return "input" if self.layout == "NCHW" else "image"

    def input_shape(self, config: ModelConfig) -> list[int]:
        size = (config.input_height, config.input_width)
        return [1, 3, *size] if self.layout == "NCHW" else [1, *size, 3]

    def output_shape(self, config: ModelConfig) -> list[int]:
        shape = [config.max_detections, 7]
        return [1, 1, *shape] if self.rows == "4d" else shape


def model_info(config: ModelConfig) -> dict[str, str]:
    """What OpenVINO's Model API wants to know, as it spells it: strings, labels by their ids.

    The first label stands for the background (no row has its id); a label holds no space there.
    """
    labels = ("background", *(name.replace(" ", "_") for name in config.class_names))
    return {
        "model_type": "SSD",
        "resize_type": "fit_to_window" if config.resize == "letterbox" else "standard",
        "pad_value": "0",
        "reverse_input_channels": "NO",  # OpenVINO's spelling; some releases read no other
        "labels": " ".join(labels),
    }


class Graph(ABC):
    """The description; operations are the subclass's.

    Args:
        tensors: folded weights by name.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Array], form: Form) -> None:
        self.config, self.tensors, self.form = config, tensors, form
        self.network = build_network(config)

    def rows(self, network_input: Any) -> Any:
        """The input -> the output, all between."""
        config = self.config
        if self.form.layout == "NHWC":
            network_input = self.transpose(network_input, 0, 3, 1, 2)
        mean, std = (
            self.constant(np.asarray(numbers, dtype=np.float32).reshape(1, 3, 1, 1))
            for numbers in (config.pixel_mean, config.pixel_std)
        )
        values = {"input": self.binary("Div", self.binary("Sub", network_input, mean), std)}
        self.run_part("backbone", values)
        self.run_part("rpn", values)
        boxes, valid = self.proposals(values["rpn.objectness"], values["rpn.deltas"])
        values["boxes"] = self.sampled(boxes)
        if not self.form.hoist:
            values["rois"] = self.roi_align(values[self.network.features], values["boxes"])
        self.run_part("roi", values)
        rows = self.detections(values["box.logits"], values["box.deltas"], boxes, valid)
        return self.reshape(rows, *self.form.output_shape(config), name="detections")

    # ------------------------------------------------------------ operations

    @abstractmethod
    def constant(self, value: Array, name: str = "") -> Any: ...

    @abstractmethod
    def widened(self, value: Any) -> Any:
        """float16 -> float32."""

    @abstractmethod
    def unary(self, kind: Literal["Exp", "Relu"], x: Any) -> Any: ...

    @abstractmethod
    def binary(
        self, kind: Literal["Add", "Sub", "Mul", "Div", "Min", "Max", "Greater"], a: Any, b: Any
    ) -> Any: ...

    @abstractmethod
    def transpose(self, x: Any, *order: int) -> Any: ...

    @abstractmethod
    def reshape(self, x: Any, *shape: int, name: str = "") -> Any: ...

    @abstractmethod
    def cut(self, x: Any, start: int, stop: int, axis: int) -> Any:
        """x[..., start:stop, ...] along one axis."""

    @abstractmethod
    def corner(self, x: Any, rows: int, columns: int, step: int = 1) -> Any:
        """x[:, :, :rows:step, :columns:step]."""

    @abstractmethod
    def concat(self, *parts: Any, axis: int) -> Any: ...

    @abstractmethod
    def gather(self, x: Any, index: Any) -> Any:
        """x[index] along the first axis."""

    @abstractmethod
    def select(self, condition: Any, a: Any, b: Any) -> Any: ...

    @abstractmethod
    def spatial_mean(self, x: Any) -> Any:
        """[R, C, H, W] -> [R, C]."""

    @abstractmethod
    def softmax(self, x: Any) -> Any:
        """Along the second axis."""

    @abstractmethod
    def top(self, x: Any, count: int, ordered: bool) -> tuple[Any, Any]:
        """The greatest numbers of x [L] and where they are; `ordered`: best first."""

    @abstractmethod
    def nms(self, boxes: Any, scores: Any, count: int, iou: float, score: float) -> Any:
        """boxes [B, L, 4], scores [B, 1, L] -> kept [M, 3]: batch, class, box; `count` a batch."""

    @abstractmethod
    def roi_align(self, x: Any, boxes: Any) -> Any:
        """[1, C, Hf, Wf] and [R, 4] network input pixels -> [R, C, roi_size, roi_size]."""

    @abstractmethod
    def convolution(
        self,
        x: Any,
        weight: Any,
        bias: Array | None,
        stride: int,
        padding: tuple[int, int],
        name: str,
    ) -> Any: ...

    @abstractmethod
    def linear(self, x: Any, weight: Any, bias: Array, name: str) -> Any: ...

    @abstractmethod
    def max_pool(
        self, x: Any, kernel: int, stride: int, padding: tuple[int, int], name: str
    ) -> Any: ...

    def number(self, value: float) -> Any:
        return self.constant(np.array(value, dtype=np.float32))

    def whole(self, value: int) -> Any:
        return self.constant(np.array(value, dtype=np.int64))

    # ---------------------------------------------------------------- layers

    def run_part(self, part: str, values: dict[str, Any]) -> None:
        for layer in self.network.of_component(part):  # type: ignore[arg-type]
            if layer.source == "pooled" and "pooled" not in values:
                last = values[f"res5.{self.config.blocks[3] - 1}.conv3"]
                values["pooled"] = self.spatial_mean(last)
            if layer.kind == "maxpool":
                x = self.max_pool(
                    values[layer.source], layer.kernel, layer.stride, layer.padding, layer.name
                )
            else:
                if layer.source == "rois" and self.form.hoist:
                    x = self.hoisted(layer, values)
                else:
                    x = self.layer(layer, values[layer.source])
                if layer.residual:
                    x = self.binary("Add", x, values[layer.residual])
                if layer.relu:
                    x = self.unary("Relu", x)
            values[layer.name] = x

    def weight(self, layer: Layer) -> Any:
        name = f"{layer.name}.weight"
        value = np.asarray(self.tensors[name], dtype=np.float32)
        if self.form.dtype == "float32":
            return self.constant(value, name)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            peak = np.abs(value).max()
            raise InputError(f"tensor {name!r} holds {peak:.6g}, too much for float16: use float32")
        return self.widened(self.constant(half, name))

    def bias(self, layer: Layer) -> Array:
        return np.asarray(self.tensors[f"{layer.name}.bias"], dtype=np.float32)

    def layer(self, layer: Layer, x: Any) -> Any:
        weight, bias = self.weight(layer), self.bias(layer)
        if layer.kind == "linear":
            return self.linear(x, weight, bias, layer.name)
        if layer.crop:
            height, width = layer.in_size
            x = self.corner(x, height - layer.crop, width - layer.crop)
        padding = (layer.padding[0], max(layer.padding[1], 0))
        return self.convolution(x, weight, bias, layer.stride, padding, layer.name)

    def hoisted(self, layer: Layer, values: dict[str, Any]) -> Any:
        """A 1x1 layer of regions, run on the map; its bias follows RoIAlign, whose samples outside
        of the map are zeros."""
        features = values[self.network.features]
        x = self.convolution(features, self.weight(layer), None, 1, (0, 0), layer.name)
        x = self.roi_align(x, values["boxes"])
        if layer.stride > 1:
            rows, columns = (layer.stride * (length - 1) + 1 for length in layer.out_size)
            x = self.corner(x, rows, columns, layer.stride)
        bias = self.bias(layer).reshape(1, -1, 1, 1)
        return self.binary("Add", x, self.constant(bias, f"{layer.name}.bias"))

    # ----------------------------------------------------------------- boxes

    def decode(
        self, deltas: Any, boxes: Any, weights: tuple[float, ...], inside: float = 0.0
    ) -> Any:
        """deltas [..., 4] and boxes broadcastable to it -> xyxy boxes, clipped.

        inside: how far from the network input's right and lower border boxes end, pixels.
        """
        scaled = self.binary("Div", deltas, self.constant(np.asarray(weights, dtype=np.float32)))
        low, high = self.cut(boxes, 0, 2, -1), self.cut(boxes, 2, 4, -1)
        half = self.number(0.5)
        size = self.binary("Sub", high, low)
        centre = self.binary("Add", low, self.binary("Mul", size, half))
        centre = self.binary("Add", self.binary("Mul", self.cut(scaled, 0, 2, -1), size), centre)
        clamp = self.number(self.config.delta_clamp)
        growth = self.unary("Exp", self.binary("Min", self.cut(scaled, 2, 4, -1), clamp))
        reach = self.binary("Mul", self.binary("Mul", growth, size), half)
        out = self.concat(
            self.binary("Sub", centre, reach), self.binary("Add", centre, reach), axis=-1
        )
        out = self.binary("Max", out, self.number(0.0))
        return self.binary("Min", out, self.constant(self.extent - np.float32(inside)))

    @property
    def extent(self) -> NDArray[np.float32]:
        """Width, height, width, height of the network input."""
        size = (self.config.input_width, self.config.input_height)
        return np.array(size * 2, dtype=np.float32)

    def sampled(self, boxes: Any) -> Any:
        """The boxes [R, 4] that RoIAlign is given."""
        config = self.config
        if config.roi_sampling == "aligned":
            return boxes
        samples = config.roi_size * config.roi_sampling_ratio
        a, b, c = np_boxes.corner_sampling(self.network.feature_size, config.anchor_stride, samples)
        other = self.concat(self.cut(boxes, 2, 4, 1), self.cut(boxes, 0, 2, 1), axis=1)
        parts = [
            self.binary("Mul", x, self.constant(np.array(factors, dtype=np.float32)))
            for x, factors in ((boxes, a), (other, b))
        ]
        return self.binary("Add", self.binary("Add", *parts), self.number(c))

    def proposals(self, objectness: Any, deltas: Any) -> tuple[Any, Any]:
        """Boxes [R, 4], padded with zeros, and whether each is a proposal [R, 1] (1.0 or 0.0)."""
        config = self.config
        anchors = np_boxes.grid_anchors(
            np_boxes.cell_anchors(config), self.network.feature_size, config.anchor_stride
        )
        count = min(config.rpn_pre_nms, len(anchors))
        logits = self.reshape(self.transpose(objectness, 0, 2, 3, 1), len(anchors))
        deltas = self.reshape(self.transpose(deltas, 0, 2, 3, 1), len(anchors), 4)
        scores, order = self.top(logits, count, ordered=False)  # NMS sorts anyway
        best = self.gather(self.constant(anchors.astype(np.float32)), order)
        last = float(config.rpn_inclusive)
        boxes = self.decode(self.gather(deltas, order), best, config.rpn_box_weights, last)
        if config.rpn_remove_empty:
            size = self.binary("Sub", self.cut(boxes, 2, 4, 1), self.cut(boxes, 0, 2, 1))
            least = self.binary("Min", self.cut(size, 0, 1, 1), self.cut(size, 1, 2, 1))
            full = self.binary("Greater", self.reshape(least, count), self.number(0.0))
            scores = self.select(full, scores, self.number(-np.inf))
        covered = boxes
        if config.rpn_inclusive:
            beyond = self.constant(np.array([0, 0, 1, 1], dtype=np.float32))
            covered = self.binary("Add", boxes, beyond)
        kept = self.nms(
            self.reshape(covered, 1, count, 4),
            self.reshape(scores, 1, 1, count),
            config.proposals,
            config.rpn_nms_threshold,
            -1e30,
        )
        index = self.reshape(self.cut(kept, 2, 3, 1), -1)  # [M]
        # Missing proposals are read from one more row, of zeros.
        flagged = self.concat(boxes, self.constant(np.ones((count, 1), dtype=np.float32)), axis=1)
        table = self.concat(flagged, self.constant(np.zeros((1, 5), dtype=np.float32)), axis=0)
        filler = self.constant(np.full(config.proposals, count, dtype=np.int64))
        index = self.cut(self.concat(index, filler, axis=0), 0, config.proposals, 0)
        index = self.reshape(index, config.proposals)  # states the static shape
        chosen = self.gather(table, index)
        return self.cut(chosen, 0, 4, 1), self.cut(chosen, 4, 5, 1)

    def detections(self, logits: Any, deltas: Any, boxes: Any, valid: Any) -> Any:
        """The best D rows [D, 7] of the contract, padded."""
        config = self.config
        classes, rois, limit = config.num_classes, config.proposals, config.max_detections
        first = 1 if config.background == "first" else 0
        scores = self.cut(self.softmax(logits), first, first + classes, 1)
        scores = self.transpose(self.binary("Mul", scores, valid), 1, 0)  # [K, R]
        deltas = self.reshape(deltas, rois, classes + config.background_deltas, 4)
        if config.background_deltas:
            deltas = self.cut(deltas, first, first + classes, 1)
        boxes = self.decode(deltas, self.reshape(boxes, rois, 1, 4), config.box_weights)
        boxes = self.transpose(boxes, 1, 0, 2)  # [K, R, 4]
        # Each class has boxes of its own, which the operation allows only to images: classes
        # take the place of images.
        kept = self.nms(
            boxes,
            self.reshape(scores, classes, 1, rois),
            rois,
            config.nms_threshold,
            config.score_threshold,
        )
        label, box = self.cut(kept, 0, 1, 1), self.cut(kept, 2, 3, 1)
        index = self.binary("Add", self.binary("Mul", label, self.whole(rois)), box)
        index = self.reshape(index, -1)  # [M]
        # One row for each class and region, and one more that is padding.
        names = np.repeat(np.arange(1, classes + 1, dtype=np.float32), rois)
        fixed = self.constant(np.stack([np.zeros_like(names), names], axis=1))
        flat_scores = self.reshape(scores, classes * rois, 1)
        flat_boxes = self.reshape(boxes, classes * rois, 4)
        fractions = self.binary("Div", flat_boxes, self.constant(self.extent))
        padding = self.constant(np.array([[-1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
        table = self.concat(self.concat(fixed, flat_scores, fractions, axis=1), padding, axis=0)
        filler = self.constant(np.full(limit, classes * rois, dtype=np.int64))
        index = self.concat(index, filler, axis=0)
        confidence = self.reshape(self.cut(self.gather(table, index), 2, 3, 1), -1)
        _, best = self.top(confidence, limit, ordered=True)
        return self.gather(table, self.gather(index, best))
