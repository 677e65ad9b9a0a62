"""A model as an OpenVINO graph: one network input -> rows, the whole network inside.

Writes each of the `primitives` with OpenVINO's own operations. Operations with weights have
their layers' names, so that a profile can be compared with the graph. Needs the `openvino`
package (`pip install 'sparsedet[export]'`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomic
from ..model.detector_config import Config, config_to_json
from ..model.graph import Conv, Padding, RoiAlign
from .builder import GraphBuilder
from .form import Form, model_info, output_path, require_package
from .primitives import Array


def to_openvino(config: Config, tensors: Mapping[str, Array], **form: Any) -> Any:
    """Build the graph.

    Args:
        config: the model.
        tensors: folded weights by name.
        form: fields of `Form`.

    Returns:
        `openvino.Model` with the output `detections`, and `masks` if it has any; its rt_info holds
        `model_info` for Model API and `sparsedet`, the whole configuration as JSON.

    Raises:
        InputError: OpenVINO is not installed, or an option is unknown.
    """
    ov, op = require_package("openvino"), require_package("openvino.opset13")
    return OpenvinoBuilder(config, tensors, Form(**form), op).build(ov)


def save_openvino(
    path: str | os.PathLike[str],
    config: Config,
    tensors: Mapping[str, Array],
    *,
    overwrite: bool = False,
    **form: Any,
) -> None:
    """Write `path` (.xml) and its .bin; `form` as for `to_openvino`.

    Raises:
        InputError: the name does not end in .xml, or a file exists or cannot be written.
    """
    target = output_path(path, ".xml", overwrite)
    write_ir(to_openvino(config, tensors, **form), target, overwrite)


def write_ir(model: Any, target: Path, overwrite: bool) -> None:
    """Write both files of an `openvino.Model`, each atomically and the .xml last."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
        ov.save_model(model, draft, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            data = draft.with_suffix(suffix).read_bytes()
            write_atomic(target.with_suffix(suffix), data, overwrite=overwrite)


class OpenvinoBuilder(GraphBuilder):
    """Values are nodes or their outputs."""

    def __init__(self, config: Config, tensors: Mapping[str, Array], form: Form, op: Any) -> None:
        super().__init__(config, tensors, form)
        self.op = op
        self.binaries = {
            "Add": op.add,
            "Sub": op.subtract,
            "Mul": op.multiply,
            "Div": op.divide,
            "Min": op.minimum,
            "Max": op.maximum,
            "Greater": op.greater,
            "GreaterOrEqual": op.greater_equal,
            "Less": op.less,
            "Equal": op.equal,
            "And": op.logical_and,
        }
        self.unaries = {
            "Exp": op.exp,
            "Erf": op.erf,
            "Relu": op.relu,
            "Sigmoid": op.sigmoid,
            "Sqrt": op.sqrt,
            "HardSwish": op.hswish,
            "HardSigmoid": op.hsigmoid,
        }

    def build(self, ov: Any) -> Any:
        config, form, op = self.config, self.form, self.op
        network_input = op.parameter(form.input_shape(config), np.float32, name=form.input_name)
        network_input.set_layout(ov.Layout(form.layout))
        parameters = [network_input]
        if form.image_info:
            parameters.append(op.parameter([1, 3], np.float32, name="image_info"))
        outputs = self.outputs(network_input)
        results = [op.result(value, name=f"{name}/result") for name, value in outputs.items()]
        model = ov.Model(results, parameters, config.name)
        for port, parameter in zip(model.inputs, parameters, strict=True):
            port.tensor.set_names({parameter.get_friendly_name()})
        for port, name in zip(model.outputs, outputs, strict=True):
            port.tensor.set_names({name})
        for key, value in model_info(config).items():
            model.set_rt_info(value, ["model_info", key])
        model.set_rt_info(config_to_json(config), ["sparsedet", "config"])
        return model

    def ints(self, *values: int) -> Any:
        return self.op.constant(np.array(values, dtype=np.int64))

    def constant(self, value: Array, name: str = "") -> Any:
        return self.op.constant(value, name=name)

    def to_float32(self, value: Any) -> Any:
        return self.op.convert(value, "f32")

    def to_int64(self, value: Any) -> Any:
        return self.op.convert(value, "i64")

    def unary(self, operation: str, x: Any) -> Any:
        return self.unaries[operation](x)

    def binary(self, operation: str, a: Any, b: Any) -> Any:
        return self.binaries[operation](a, b)

    def transpose(self, x: Any, *order: int) -> Any:
        return self.op.transpose(x, self.ints(*order))

    def reshape(self, x: Any, *shape: int, name: str = "") -> Any:
        return self.op.reshape(x, self.ints(*shape), False, name=name)

    def part(self, x: Any, start: int, stop: int, axis: int) -> Any:
        return self.op.slice(x, *(self.ints(n) for n in (start, stop, 1, axis)))

    def crop(self, x: Any, rows: int, columns: int, step: int = 1) -> Any:
        limits = ((0, 0), (rows, columns), (step, step), (2, 3))
        return self.op.slice(x, *(self.ints(*pair) for pair in limits))

    def concat(self, *values: Any, axis: int) -> Any:
        return self.op.concat(list(values), axis)

    def gather(self, x: Any, index: Any) -> Any:
        return self.op.gather(x, index, self.integer(0))

    def scatter(self, index: Any, values: Any, length: int) -> Any:
        start = self.constant(np.zeros(length, dtype=np.int64))
        return self.op.scatter_elements_update(start, index, values, self.integer(0))

    def nonzero(self, x: Any) -> Any:
        return self.reshape(self.op.non_zero(x, "i64"), -1)

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        return self.op.select(condition, a, b)

    def spatial_mean(self, x: Any, keep: bool) -> Any:
        return self.op.reduce_mean(x, self.ints(2, 3), keep_dims=keep)

    def max_over(self, x: Any, axis: int) -> Any:
        return self.op.reduce_max(x, self.ints(axis), keep_dims=False)

    def softmax(self, x: Any, axis: int = 1) -> Any:
        return self.op.softmax(x, axis)

    def matmul(self, a: Any, b: Any) -> Any:
        return self.op.matmul(a, b, False, False)

    def top_k(self, x: Any, count: int, ordered: bool) -> tuple[Any, Any]:
        # OpenVINO takes 1.5 s for a stable sort of all anchors by value; by index it is fast.
        top = self.op.topk(
            x,
            self.integer(count),
            0,
            "max",
            "value" if ordered else "index",
            stable=not ordered,
            index_element_type="i64",
        )
        return top.output(0), top.output(1)

    def nms(self, boxes: Any, scores: Any, count: int, iou: float, score: float) -> Any:
        return self.op.non_max_suppression(
            boxes,
            scores,
            self.integer(count),
            self.scalar(iou),
            self.scalar(score),
            box_encoding="corner",
            sort_result_descending=False,
            output_type="i64",
        ).output(0)

    def sample(self, align: RoiAlign, level: int, x: Any, boxes: Any, zeros: Any) -> Any:
        return self.op.roi_align(
            x,
            boxes,
            zeros,
            align.size,
            align.size,
            align.sampling_ratio,
            align.scales[level],
            "avg",
            # "half_pixel" samples elsewhere; "half_pixel_for_nn" is RoIAlign's.
            aligned_mode="asymmetric" if align.sampling == "legacy" else "half_pixel_for_nn",
        )

    # OpenVINO's profile names fused operations after the convolution, or after a product's bias.

    def convolution(
        self,
        x: Any,
        weight: Any,
        bias: Array | None,
        conv: Conv,
        padding: Padding,
        name: str,
    ) -> Any:
        before, after = list(padding[:2]), list(padding[2:])
        settings = ([conv.stride] * 2, before, after, [conv.dilation] * 2)
        if conv.groups == 1:
            x = self.op.convolution(x, weight, *settings, name=name)
        else:
            out, *rest = weight.shape
            weight = self.reshape(weight, conv.groups, out // conv.groups, *rest)
            x = self.op.group_convolution(x, weight, *settings, name=name)
        if bias is None:
            return x
        return self.op.add(x, self.constant(bias.reshape(1, -1, 1, 1)))

    def linear(self, x: Any, weight: Any, bias: Array, name: str) -> Any:
        product = self.op.matmul(x, weight, False, True)
        return self.op.add(product, self.constant(bias[None]), name=name)

    def largest(self, x: Any, kernel: int, stride: int, padding: Padding, name: str) -> Any:
        before, after = list(padding[:2]), list(padding[2:])
        return self.op.max_pool(
            x, [stride] * 2, [1, 1], before, after, [kernel] * 2, name=name
        ).output(0)

    def average(
        self, x: Any, kernel: int, stride: int, padding: Padding, counted: bool, name: str
    ) -> Any:
        before, after = list(padding[:2]), list(padding[2:])
        settings = ([stride] * 2, before, after, [kernel] * 2, not counted)
        return self.op.avg_pool(x, *settings, name=name)

    def normalise_groups(
        self, x: Any, groups: int, eps: float, shape: tuple[int, ...], scale: Array, offset: Array
    ) -> Any:
        factors, terms = self.constant(scale), self.constant(offset)
        return self.op.group_normalization(x, factors, terms, groups, eps)

    def nearest(self, x: Any, size: tuple[int, int], name: str) -> Any:
        return self.op.interpolate(
            x,
            self.ints(*size),
            "nearest",
            "sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=self.ints(2, 3),
            name=name,
        )

    def channels_to_cells(self, x: Any, block: int) -> Any:
        return self.op.depth_to_space(x, "blocks_first", block)
