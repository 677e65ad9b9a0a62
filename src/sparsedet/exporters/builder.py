"""The exported graph, built once for all file formats: the model's graph in plain operations.

`GraphBuilder` knows the order of the operations; a subclass for each file format (`onnx`,
`openvino`) knows how to write one operation. Shapes are static, one image at a time. Nothing is
run here.

Glossary: N anchors of the image, R RoIs (always `proposals`, padded with empty boxes), K classes
without background, D `max_detections`, M a number that depends on the image. A value is whatever
the subclass uses: a name, or an output of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model import boxes as np_boxes
from ..model.detector_config import Config, build_graph
from ..model.graph import (
    IMAGE,
    Conv,
    DetectionOutput,
    Layer,
    MaxPool,
    Normalise,
    Operation,
    Proposals,
    RoiAlign,
    typed,
)
from ..model.interpreter import Interpreter
from ..model.rewrite import hoist
from .form import Form

Array = NDArray[Any]


class GraphBuilder(Interpreter[Any], ABC):
    """Builds the graph out of operations that a subclass writes.

    Args:
        config: the model.
        tensors: folded weights by name.
        form: form of the graph.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Array], form: Form) -> None:
        self.config, self.tensors, self.form = config, tensors, form
        graph = build_graph(config)
        self.graph = hoist(graph) if form.hoist else graph

    def rows(self, network_input: Any) -> Any:
        """The whole network: input of the form's layout -> output `detections`."""
        if self.form.layout == "NHWC":
            network_input = self.transpose(network_input, 0, 3, 1, 2)
        rows = self.run(self.graph, {IMAGE: network_input}, [self.graph.output])[0]
        return self.reshape(rows, *self.form.output_shape(self.config), name="detections")

    # ------------------------------------------------------------ operations

    @abstractmethod
    def constant(self, value: Array, name: str = "") -> Any: ...

    @abstractmethod
    def to_float32(self, value: Any) -> Any:
        """float16 -> float32."""

    @abstractmethod
    def unary(self, operation: Literal["Exp", "Relu"], x: Any) -> Any: ...

    @abstractmethod
    def binary(
        self,
        operation: Literal["Add", "Sub", "Mul", "Div", "Min", "Max", "Greater"],
        a: Any,
        b: Any,
    ) -> Any: ...

    @abstractmethod
    def transpose(self, x: Any, *order: int) -> Any: ...

    @abstractmethod
    def reshape(self, x: Any, *shape: int, name: str = "") -> Any: ...

    @abstractmethod
    def part(self, x: Any, start: int, stop: int, axis: int) -> Any:
        """x[..., start:stop, ...] along one axis."""

    @abstractmethod
    def crop(self, x: Any, rows: int, columns: int, step: int = 1) -> Any:
        """x[:, :, :rows:step, :columns:step]."""

    @abstractmethod
    def concat(self, *values: Any, axis: int) -> Any: ...

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
    def top_k(self, x: Any, count: int, ordered: bool) -> tuple[Any, Any]:
        """The `count` largest values of x [L] and their indices; `ordered`: largest first."""

    @abstractmethod
    def nms(self, boxes: Any, scores: Any, count: int, iou: float, score: float) -> Any:
        """boxes [B, L, 4], scores [B, 1, L] -> kept [M, 3]: batch, class, box.

        At most `count` boxes of each batch are kept.
        """

    @abstractmethod
    def sample(self, align: RoiAlign, x: Any, boxes: Any) -> Any:
        """All bins of RoIAlign: [1, C, Hf, Wf] and [R, 4] pixels -> [R, C, size, size]."""

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
    def largest(
        self, x: Any, kernel: int, stride: int, padding: tuple[int, int], name: str
    ) -> Any: ...

    def scalar(self, value: float) -> Any:
        """A float32 constant."""
        return self.constant(np.array(value, dtype=np.float32))

    def integer(self, value: int) -> Any:
        """An int64 constant."""
        return self.constant(np.array(value, dtype=np.int64))

    # -------------------------------------- operations of the model's graph

    def normalise(self, operation: Operation, image: Any) -> Any:
        attributes = typed(operation, Normalise)
        mean, std = (
            self.constant(np.asarray(numbers, dtype=np.float32).reshape(1, 3, 1, 1))
            for numbers in (attributes.mean, attributes.std)
        )
        return self.binary("Div", self.binary("Sub", image, mean), std)

    def conv(self, operation: Operation, x: Any, residual: Any = None) -> Any:
        conv = typed(operation, Conv)
        layer = self.graph.layer[conv.layers[0]]
        weight, bias = self.weight(layer), self.bias(layer.name) if conv.bias else None
        if conv.linear:
            assert bias is not None
            x = self.linear(x, weight, bias, operation.name)
        else:
            if layer.crop:
                height, width = layer.in_size
                x = self.crop(x, height - layer.crop, width - layer.crop)
            padding = (layer.padding[0], max(layer.padding[1], 0))
            x = self.convolution(x, weight, bias, conv.stride, padding, operation.name)
        if residual is not None:
            x = self.binary("Add", x, residual)
        return self.unary("Relu", x) if conv.activation == "relu" else x

    def max_pool(self, operation: Operation, x: Any) -> Any:
        pool = typed(operation, MaxPool)
        return self.largest(x, pool.kernel, pool.stride, pool.padding[1:3], operation.name)

    def mean(self, operation: Operation, x: Any) -> Any:
        return self.spatial_mean(x)

    def roi_align(self, operation: Operation, x: Any, proposals: tuple[Any, Any, Any]) -> Any:
        """RoIAlign of all bins, then those that are read, bias and activation."""
        align = typed(operation, RoiAlign)
        x = self.sample(align, x, proposals[2])
        if align.step > 1:
            rows, columns = (
                align.step * (length - 1) + 1 for length in self.graph.shapes[operation.name].size
            )
            x = self.crop(x, rows, columns, align.step)
        if align.bias_of:
            bias = self.bias(align.bias_of).reshape(1, -1, 1, 1)
            x = self.binary("Add", x, self.constant(bias, f"{align.bias_of}.bias"))
        return self.unary("Relu", x) if align.activation == "relu" else x

    def weight(self, layer: Layer) -> Any:
        name = f"{layer.name}.weight"
        value = np.asarray(self.tensors[name], dtype=np.float32)
        if self.form.dtype == "float32":
            return self.constant(value, name)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            peak = np.abs(value).max()
            raise InputError(
                f"tensor {name!r} holds {peak:.6g}, beyond the range of float16: use float32"
            )
        return self.to_float32(self.constant(half, name))

    def bias(self, layer: str) -> Array:
        return np.asarray(self.tensors[f"{layer}.bias"], dtype=np.float32)

    # ----------------------------------------------------------------- boxes

    def decode(
        self,
        deltas: Any,
        boxes: Any,
        weights: tuple[float, ...],
        delta_clamp: float,
        inside: float = 0.0,
    ) -> Any:
        """Decode deltas [..., 4] of boxes (broadcast to them) -> xyxy boxes, clipped.

        Args:
            weights: the deltas are divided by these.
            delta_clamp: largest dw and dh.
            inside: distance of the clipped boxes from the right and lower edge, pixels.
        """
        scaled = self.binary("Div", deltas, self.constant(np.asarray(weights, dtype=np.float32)))
        low, high = self.part(boxes, 0, 2, -1), self.part(boxes, 2, 4, -1)
        half = self.scalar(0.5)
        size = self.binary("Sub", high, low)
        centre = self.binary("Add", low, self.binary("Mul", size, half))
        centre = self.binary("Add", self.binary("Mul", self.part(scaled, 0, 2, -1), size), centre)
        clamp = self.scalar(delta_clamp)
        growth = self.unary("Exp", self.binary("Min", self.part(scaled, 2, 4, -1), clamp))
        reach = self.binary("Mul", self.binary("Mul", growth, size), half)
        out = self.concat(
            self.binary("Sub", centre, reach), self.binary("Add", centre, reach), axis=-1
        )
        out = self.binary("Max", out, self.scalar(0.0))
        return self.binary("Min", out, self.constant(self.extent - np.float32(inside)))

    @property
    def rois(self) -> int:
        """R."""
        return next(self.graph.of_kind(Proposals))[1].count

    @property
    def extent(self) -> NDArray[np.float32]:
        """Width, height, width, height of the network input."""
        height, width = self.graph.image.size
        return np.array((width, height) * 2, dtype=np.float32)

    def sampling_boxes(self, boxes: Any) -> Any:
        """Boxes [R, 4] for RoIAlign, moved where the model samples from corner to corner."""
        operation, align = next(self.graph.of_kind(RoiAlign))
        if align.sampling == "aligned":
            return boxes
        size = self.graph.shapes[operation.inputs[0]].size
        samples = align.size * align.sampling_ratio
        a, b, c = np_boxes.corner_sampling(size, round(1 / align.scales[0]), samples)
        other = self.concat(self.part(boxes, 2, 4, 1), self.part(boxes, 0, 2, 1), axis=1)
        products = [
            self.binary("Mul", x, self.constant(np.array(factors, dtype=np.float32)))
            for x, factors in ((boxes, a), (other, b))
        ]
        return self.binary("Add", self.binary("Add", *products), self.scalar(c))

    def proposals(
        self, operation: Operation, objectness: Any, deltas: Any, image: Any
    ) -> tuple[Any, Any, Any]:
        """Boxes [R, 4], padded with zeros; whether each is a proposal [R, 1] (1.0 or 0.0); and the
        boxes that RoIAlign samples."""
        attributes = typed(operation, Proposals)
        anchors = np_boxes.grid_anchors(
            np.array(attributes.cell_anchors[0], dtype=np.float32),
            self.graph.shapes[operation.inputs[0]].size,
            attributes.strides[0],
        )
        count, most = min(attributes.pre_nms, len(anchors)), attributes.count
        logits = self.reshape(self.transpose(objectness, 0, 2, 3, 1), len(anchors))
        deltas = self.reshape(self.transpose(deltas, 0, 2, 3, 1), len(anchors), 4)
        scores, order = self.top_k(logits, count, ordered=False)  # NMS sorts anyway
        best = self.gather(self.constant(anchors.astype(np.float32)), order)
        last = float(attributes.inclusive)
        boxes = self.decode(
            self.gather(deltas, order), best, attributes.box_weights, attributes.delta_clamp, last
        )
        if attributes.remove_empty:
            size = self.binary("Sub", self.part(boxes, 2, 4, 1), self.part(boxes, 0, 2, 1))
            least = self.binary("Min", self.part(size, 0, 1, 1), self.part(size, 1, 2, 1))
            full = self.binary("Greater", self.reshape(least, count), self.scalar(0.0))
            scores = self.select(full, scores, self.scalar(-np.inf))
        covered = boxes
        if attributes.inclusive:
            beyond = self.constant(np.array([0, 0, 1, 1], dtype=np.float32))
            covered = self.binary("Add", boxes, beyond)
        kept = self.nms(
            self.reshape(covered, 1, count, 4),
            self.reshape(scores, 1, 1, count),
            most,
            attributes.nms_threshold,
            -1e30,
        )
        index = self.reshape(self.part(kept, 2, 3, 1), -1)  # [M]
        # The last row, of zeros, stands in for missing proposals.
        flagged = self.concat(boxes, self.constant(np.ones((count, 1), dtype=np.float32)), axis=1)
        table = self.concat(flagged, self.constant(np.zeros((1, 5), dtype=np.float32)), axis=0)
        filler = self.constant(np.full(most, count, dtype=np.int64))
        index = self.part(self.concat(index, filler, axis=0), 0, most, 0)
        index = self.reshape(index, most)  # states the static shape
        chosen = self.gather(table, index)
        boxes, valid = self.part(chosen, 0, 4, 1), self.part(chosen, 4, 5, 1)
        return boxes, valid, self.sampling_boxes(boxes)

    def detections(
        self,
        operation: Operation,
        logits: Any,
        deltas: Any,
        proposals: tuple[Any, Any, Any],
        image: Any,
    ) -> Any:
        """The best D rows [D, 7] of the contract, padded."""
        attributes, (boxes, valid, _) = typed(operation, DetectionOutput), proposals
        classes, limit = attributes.num_classes, attributes.max_detections
        rois = self.graph.shapes[operation.inputs[0]].count
        first = 1 if attributes.background == "first" else 0
        scores = self.part(self.softmax(logits), first, first + classes, 1)
        scores = self.transpose(self.binary("Mul", scores, valid), 1, 0)  # [K, R]
        deltas = self.reshape(deltas, rois, classes + attributes.background_deltas, 4)
        if attributes.background_deltas:
            deltas = self.part(deltas, first, first + classes, 1)
        boxes = self.decode(
            deltas,
            self.reshape(boxes, rois, 1, 4),
            attributes.box_weights,
            attributes.delta_clamp,
        )
        boxes = self.transpose(boxes, 1, 0, 2)  # [K, R, 4]
        # The operation has one set of boxes for each image of a batch, and here each class has its
        # own: classes are given as a batch of images.
        kept = self.nms(
            boxes,
            self.reshape(scores, classes, 1, rois),
            rois,
            attributes.nms_threshold,
            attributes.score_threshold,
        )
        label, box = self.part(kept, 0, 1, 1), self.part(kept, 2, 3, 1)
        index = self.binary("Add", self.binary("Mul", label, self.integer(rois)), box)
        index = self.reshape(index, -1)  # [M]
        # One row for each class and RoI, and a last one that is padding.
        names = np.repeat(np.arange(1, classes + 1, dtype=np.float32), rois)
        fixed = self.constant(np.stack([np.zeros_like(names), names], axis=1))
        flat_scores = self.reshape(scores, classes * rois, 1)
        flat_boxes = self.reshape(boxes, classes * rois, 4)
        fractions = self.binary("Div", flat_boxes, self.constant(self.extent))
        padding = self.constant(np.array([[-1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
        table = self.concat(self.concat(fixed, flat_scores, fractions, axis=1), padding, axis=0)
        filler = self.constant(np.full(limit, classes * rois, dtype=np.int64))
        index = self.concat(index, filler, axis=0)
        confidence = self.reshape(self.part(self.gather(table, index), 2, 3, 1), -1)
        _, best = self.top_k(confidence, limit, ordered=True)
        return self.gather(table, self.gather(index, best))
