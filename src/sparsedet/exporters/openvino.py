"""A model as an OpenVINO graph: a network input in, the contract's rows out, all inside.

`graph` describes it; here is how each operation is written with OpenVINO's own operations.
Operations with weights carry their layers' names, so that a profile can be read against the table.
Needs the `openvino` package (`pip install 'sparsedet[export]'`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import write_atomic
from ..model.config import ModelConfig
from .builder import Array, Form, Graph, model_info


def to_openvino(config: ModelConfig, tensors: Mapping[str, Array], **form: Any) -> Any:
    """Build the graph.

    Args:
        config: the model.
        tensors: folded weights by name.
        form: see `Form`.

    Returns:
        `openvino.Model` with one output `detections`; its rt_info holds `model_info` for Model API
        and `sparsedet`, the whole configuration as JSON.

    Raises:
        InputError: OpenVINO is not installed, or an option is unknown.
    """
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError:
        raise InputError("export needs: pip install 'sparsedet[export]'") from None
    return _OpenvinoGraph(config, tensors, Form(**form), op).build(ov)


def save_openvino(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, Array],
    *,
    overwrite: bool = False,
    **form: Any,
) -> None:
    """Write `path` (.xml) and its .bin; options as for `to_openvino`.

    Raises:
        InputError: the name does not end in .xml, or a file exists or cannot be written.
    """
    target = check_ir_path(path, overwrite)
    write_ir(to_openvino(config, tensors, **form), target, overwrite)


def check_ir_path(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """`path`, if an IR can be written there; before the work, not after."""
    target = Path(path)
    if target.suffix != ".xml":
        raise InputError(f"{target}: an OpenVINO model's name ends in .xml")
    for file in (target, target.with_suffix(".bin")):
        if file.exists() and not overwrite:
            raise InputError(f"{file}: exists already and is not overwritten")
    return target


def write_ir(model: Any, target: Path, overwrite: bool) -> None:
    """Both files of an `openvino.Model`, each complete or not at all; the .xml comes last."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / target.name
        ov.save_model(model, draft, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            data = draft.with_suffix(suffix).read_bytes()
            write_atomic(target.with_suffix(suffix), data, overwrite=overwrite)


class _OpenvinoGraph(Graph):
    """Values are nodes or their outputs."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Array], form: Form, op: Any
    ) -> None:
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
        }

    def build(self, ov: Any) -> Any:
        config, form, op = self.config, self.form, self.op
        network_input = op.parameter(form.input_shape(config), np.float32, name=form.input_name)
        network_input.set_layout(ov.Layout(form.layout))
        parameters = [network_input]
        if form.image_info:
            parameters.append(op.parameter([1, 3], np.float32, name="image_info"))
        result = op.result(self.rows(network_input), name="detections/result")
        model = ov.Model([result], parameters, config.name)
        for port, parameter in zip(model.inputs, parameters, strict=True):
            port.tensor.set_names({parameter.get_friendly_name()})
        model.outputs[0].tensor.set_names({"detections"})
        for key, value in model_info(config).items():
            model.set_rt_info(value, ["model_info", key])
        model.set_rt_info(json.dumps(config.to_stored()), ["sparsedet", "config"])
        return model

    def ints(self, *values: int) -> Any:
        return self.op.constant(np.array(values, dtype=np.int64))

    def constant(self, value: Array, name: str = "") -> Any:
        return self.op.constant(value, name=name)

    def widened(self, value: Any) -> Any:
        return self.op.convert(value, "f32")

    def unary(self, kind: str, x: Any) -> Any:
        return self.op.exp(x) if kind == "Exp" else self.op.relu(x)

    def binary(self, kind: str, a: Any, b: Any) -> Any:
        return self.binaries[kind](a, b)

    def transpose(self, x: Any, *order: int) -> Any:
        return self.op.transpose(x, self.ints(*order))

    def reshape(self, x: Any, *shape: int, name: str = "") -> Any:
        return self.op.reshape(x, self.ints(*shape), False, name=name)

    def cut(self, x: Any, start: int, stop: int, axis: int) -> Any:
        return self.op.slice(x, *(self.ints(n) for n in (start, stop, 1, axis)))

    def corner(self, x: Any, rows: int, columns: int, step: int = 1) -> Any:
        limits = ((0, 0), (rows, columns), (step, step), (2, 3))
        return self.op.slice(x, *(self.ints(*pair) for pair in limits))

    def concat(self, *parts: Any, axis: int) -> Any:
        return self.op.concat(list(parts), axis)

    def gather(self, x: Any, index: Any) -> Any:
        return self.op.gather(x, index, self.whole(0))

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        return self.op.select(condition, a, b)

    def spatial_mean(self, x: Any) -> Any:
        return self.op.reduce_mean(x, self.ints(2, 3), keep_dims=False)

    def softmax(self, x: Any) -> Any:
        return self.op.softmax(x, 1)

    def top(self, x: Any, count: int, ordered: bool) -> tuple[Any, Any]:
        # A stable sort of all anchors by value takes OpenVINO 1.5 s; by place it does not.
        top = self.op.topk(
            x,
            self.whole(count),
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
            self.whole(count),
            self.number(iou),
            self.number(score),
            box_encoding="corner",
            sort_result_descending=False,
            output_type="i64",
        ).output(0)

    def roi_align(self, x: Any, boxes: Any) -> Any:
        config = self.config
        return self.op.roi_align(
            x,
            boxes,
            self.constant(np.zeros(config.proposals, dtype=np.int64)),
            config.roi_size,
            config.roi_size,
            config.roi_sampling_ratio,
            1.0 / config.anchor_stride,
            "avg",
            aligned_mode="half_pixel_for_nn",  # "half_pixel" samples elsewhere; this is RoIAlign's
        )

    # OpenVINO's profile calls a fused group by its convolution, or by the bias of a product.

    def convolution(
        self,
        x: Any,
        weight: Any,
        bias: Array | None,
        stride: int,
        padding: tuple[int, int],
        name: str,
    ) -> Any:
        before, after = padding
        x = self.op.convolution(
            x, weight, [stride] * 2, [before] * 2, [after] * 2, [1, 1], name=name
        )
        if bias is None:
            return x
        return self.op.add(x, self.constant(bias.reshape(1, -1, 1, 1)))

    def linear(self, x: Any, weight: Any, bias: Array, name: str) -> Any:
        product = self.op.matmul(x, weight, False, True)
        return self.op.add(product, self.constant(bias[None]), name=name)

    def max_pool(
        self, x: Any, kernel: int, stride: int, padding: tuple[int, int], name: str
    ) -> Any:
        before, after = padding
        return self.op.max_pool(
            x, [stride] * 2, [1, 1], [before] * 2, [after] * 2, [kernel] * 2, name=name
        ).output(0)
