"""A model as an ONNX graph: one network input -> rows, the whole network inside.

Writes each of the `primitives` with ONNX's standard operations; a value is the name of an
output. Needs the `onnx` package (`pip install 'sparsedet[export]'`); nothing is run here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..files import write_atomic
from ..model.detector_config import Config, config_to_json
from ..model.graph import Conv, Padding, RoiAlign
from .builder import GraphBuilder
from .form import Form, model_info, output_path, require_package
from .primitives import Array

OPSET, IR_VERSION = 21, 10
"""Supported by onnx 1.16 and ONNX Runtime 1.18, the oldest versions that the package accepts."""


def to_onnx(
    config: Config, tensors: Mapping[str, Array], *, dynamic_batch: bool = False, **form: Any
) -> Any:
    """Build the graph.

    Args:
        config: the model.
        tensors: folded weights by name.
        dynamic_batch: leave the input's first axis open, for programs that need this; a run still
            takes one image, and the graph refuses more.
        form: fields of `Form`.

    Returns:
        `onnx.ModelProto` with the output `detections`, and `masks` if it has any; its metadata
        holds `model_info ...` for Model API and `sparsedet config`, the whole configuration as
        JSON.

    Raises:
        InputError: the onnx package is not installed, or an option is unknown.
    """
    onnx = require_package("onnx")
    return OnnxBuilder(config, tensors, Form(**form), onnx).build(dynamic_batch)


def save_onnx(
    path: str | os.PathLike[str],
    config: Config,
    tensors: Mapping[str, Array],
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Write `path` (.onnx), weights inside; `options` as for `to_onnx`.

    Raises:
        InputError: the name does not end in .onnx, or the file exists or cannot be written.
    """
    target = output_path(path, ".onnx", overwrite)
    model = to_onnx(config, tensors, **options)
    write_atomic(target, model.SerializeToString(), overwrite=overwrite)


class OnnxBuilder(GraphBuilder):
    """Collects nodes and constants."""

    def __init__(self, config: Config, tensors: Mapping[str, Array], form: Form, onnx: Any) -> None:
        super().__init__(config, tensors, form)
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def build(self, dynamic_batch: bool) -> Any:
        config, form, helper = self.config, self.form, self.onnx.helper
        number = self.onnx.TensorProto.FLOAT
        shape: list[int | str] = list(form.input_shape(config))
        network_input = form.input_name
        if dynamic_batch:
            network_input = self.reshape(network_input, *form.input_shape(config))
            shape[0] = "batch"
        inputs = [helper.make_tensor_value_info(form.input_name, number, shape)]
        if form.image_info:
            inputs.append(helper.make_tensor_value_info("image_info", number, [1, 3]))
        shapes = form.output_shapes(config)
        outputs = [
            helper.make_tensor_value_info(name, number, shapes[name])
            for name in self.outputs(network_input)
        ]
        graph = helper.make_graph(
            self.nodes, config.name, inputs, outputs, list(self.constants.values())
        )
        model = helper.make_model(
            graph,
            producer_name="sparsedet",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        # Model API's spelling of a path in ONNX's flat metadata.
        metadata = {f"model_info {key}": value for key, value in model_info(config).items()}
        metadata["sparsedet config"] = config_to_json(config)
        helper.set_model_props(model, metadata)
        return model

    def add(
        self, operation: str, *inputs: str, name: str = "", outputs: int = 1, **settings: Any
    ) -> str:
        """Append an operation; returns the name of its first output."""
        name = name or f"{operation}_{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, names, name, **settings))
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        return name if name in self.constants else self.constant(np.array(values, np.int64), name)

    def constant(self, value: Array, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        return name

    def to_float32(self, value: str) -> str:
        return self.add("Cast", value, to=self.onnx.TensorProto.FLOAT)

    def to_int64(self, value: str) -> str:
        return self.add("Cast", value, to=self.onnx.TensorProto.INT64)

    def unary(self, operation: str, x: str) -> str:
        if operation == "HardSigmoid":
            return self.add(operation, x, alpha=1 / 6, beta=0.5)
        return self.add(operation, x)

    def binary(self, operation: str, a: str, b: str) -> str:
        return self.add(operation, a, b)

    def transpose(self, x: str, *order: int) -> str:
        return self.add("Transpose", x, perm=order)

    def reshape(self, x: str, *shape: int, name: str = "") -> str:
        return self.add("Reshape", x, self.ints(*shape), name=name)

    def part(self, x: str, start: int, stop: int, axis: int) -> str:
        return self.add("Slice", x, *(self.ints(n) for n in (start, stop, axis)))

    def crop(self, x: str, rows: int, columns: int, step: int = 1) -> str:
        limits = ((0, 0), (rows, columns), (2, 3), (step, step))
        return self.add("Slice", x, *(self.ints(*pair) for pair in limits))

    def concat(self, *values: str, axis: int) -> str:
        return self.add("Concat", *values, axis=axis)

    def gather(self, x: str, index: str) -> str:
        return self.add("Gather", x, index)

    def scatter(self, index: str, values: str, length: int) -> str:
        start = self.constant(np.zeros(length, dtype=np.int64))
        return self.add("ScatterElements", start, index, values)

    def nonzero(self, x: str) -> str:
        return self.reshape(self.add("NonZero", x), -1)

    def select(self, condition: str, a: str, b: str) -> str:
        return self.add("Where", condition, a, b)

    def spatial_mean(self, x: str, keep: bool) -> str:
        return self.add("ReduceMean", x, self.ints(2, 3), keepdims=int(keep))

    def max_over(self, x: str, axis: int) -> str:
        return self.add("ReduceMax", x, self.ints(axis), keepdims=0)

    def softmax(self, x: str, axis: int = 1) -> str:
        return self.add("Softmax", x, axis=axis)

    def matmul(self, a: str, b: str) -> str:
        return self.add("MatMul", a, b)

    def top_k(self, x: str, count: int, ordered: bool) -> tuple[str, str]:
        scores = self.add("TopK", x, self.ints(count), outputs=2, axis=0)
        return scores, f"{scores}.1"

    def nms(self, boxes: str, scores: str, count: int, iou: float, score: float) -> str:
        return self.add(
            "NonMaxSuppression",
            boxes,
            scores,
            self.ints(count),
            self.scalar(iou),
            self.scalar(score),
        )

    def sample(self, align: RoiAlign, level: int, x: str, boxes: str, zeros: str) -> str:
        shifted = align.sampling != "legacy"
        return self.add(
            "RoiAlign",
            x,
            boxes,
            zeros,
            coordinate_transformation_mode="half_pixel" if shifted else "output_half_pixel",
            mode="avg",
            output_height=align.size,
            output_width=align.size,
            sampling_ratio=align.sampling_ratio,
            spatial_scale=align.scales[level],
        )

    def convolution(
        self,
        x: str,
        weight: str,
        bias: Array | None,
        conv: Conv,
        padding: Padding,
        name: str,
    ) -> str:
        inputs = [x, weight]
        if bias is not None:
            inputs.append(self.constant(bias, f"{name}.bias"))
        settings: dict[str, Any] = {} if conv.groups == 1 else {"group": conv.groups}
        if conv.dilation != 1:
            settings["dilations"] = [conv.dilation] * 2
        return self.add(
            "Conv", *inputs, name=name, strides=[conv.stride] * 2, pads=padding, **settings
        )

    def linear(self, x: str, weight: str, bias: Array, name: str) -> str:
        constant = self.constant(bias, f"{name}.bias")
        return self.add("Gemm", x, weight, constant, name=name, transB=1)

    def largest(self, x: str, kernel: int, stride: int, padding: Padding, name: str) -> str:
        return self.add(
            "MaxPool",
            x,
            name=name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=padding,
        )

    def average(
        self, x: str, kernel: int, stride: int, padding: Padding, counted: bool, name: str
    ) -> str:
        return self.add(
            "AveragePool",
            x,
            name=name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=padding,
            count_include_pad=int(counted),
        )

    def normalise_groups(
        self, x: str, groups: int, eps: float, shape: tuple[int, ...], scale: Array, offset: Array
    ) -> str:
        # GroupNormalization changed its meaning between two versions; this has one meaning.
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        x = self.add(
            "InstanceNormalization",
            self.reshape(x, 1, groups, -1),
            self.constant(ones),
            self.constant(zeros),
            epsilon=eps,
        )
        factors, terms = (self.constant(v.reshape(1, -1, 1, 1)) for v in (scale, offset))
        return self.binary("Add", self.binary("Mul", self.reshape(x, *shape), factors), terms)

    def nearest(self, x: str, size: tuple[int, int], name: str) -> str:
        return self.add(
            "Resize",
            x,
            "",
            "",
            self.ints(*size),
            name=name,
            axes=[2, 3],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )

    def channels_to_cells(self, x: str, block: int) -> str:
        return self.add("DepthToSpace", x, blocksize=block, mode="DCR")
