"""ONNX files for tests: of single nodes, and what ONNX Runtime makes of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

F32 = NDArray[np.float32]


def save_onnx(
    path: Path,
    nodes: Sequence[Any],
    outputs: Sequence[str],
    constants: Mapping[str, NDArray[Any]] | None = None,
    size: tuple[Any, Any] = (16, 16),
    opset: int = 17,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file whose input is "x", [1, 3, height, width]."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


def conv_node(name: str, source: str, out: str, **attributes: Any) -> Any:
    """A convolution with the weights NAME.weight, and the bias NAME.bias."""
    return helper.make_node(
        "Conv", [source, f"{name}.weight", f"{name}.bias"], [out], name=name, **attributes
    )


def conv_tensors(name: str, out: int, ins: int, kernel: int = 1, seed: int = 0) -> dict[str, F32]:
    """Random weights of a convolution."""
    numbers = np.random.default_rng(seed)
    weight = numbers.normal(0, (2 / (ins * kernel**2)) ** 0.5, (out, ins, kernel, kernel))
    bias = numbers.normal(0, 0.3, out)
    return {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}


def images(size: tuple[int, int], count: int = 2, seed: int = 0) -> F32:
    """Random inputs [count, 3, height, width] with large and small structure."""
    numbers = np.random.default_rng(seed)
    rows, columns = (-(-n // 8) for n in size)
    coarse = numbers.normal(0, 1, (count, 3, rows, columns))
    whole = np.kron(coarse, np.ones((8, 8)))[:, :, : size[0], : size[1]]
    return (whole + 0.1 * numbers.normal(0, 1, whole.shape)).astype(np.float32)


def run_onnx(path: Path, batch: F32) -> dict[str, F32]:
    """The outputs of ONNX Runtime, image after image, joined."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: batch[i : i + 1]}) for i in range(len(batch))]
    names = [output.name for output in session.get_outputs()]
    return {n: np.concatenate([run[i] for run in runs]) for i, n in enumerate(names)}


def difference(got: F32, want: F32) -> float:
    """Largest difference, as a share of the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


__all__ = ["conv_node", "conv_tensors", "difference", "images", "onnx", "run_onnx", "save_onnx"]
