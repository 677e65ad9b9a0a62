"""The other runtimes, each with the whole detector: a canvas in, the contract's rows out.

All run the graph that our exporters write (torch: the reference model) with static shapes, tuned
for the latency of one picture, on a given number of threads. Nothing is timed here.

Glossary: a canvas is (H, W, 3) uint8 BGR; rows are [1, 1, D, 7] or [D, 7], padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.weights import ModelFile

Rows = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def openvino_model(model: ModelFile, threads: int, precision: str, profile: bool = False) -> Any:
    """The exported network compiled by OpenVINO.

    Args:
        precision: f32 or bf16, of convolutions and matrix products.
        profile: keep the time of each operation.
    """
    import openvino as ov

    from sparsedet.exporters.openvino import to_openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "PERF_COUNT": profile,
    }
    graph = to_openvino(model.config, model.tensors, layout="NHWC")
    return ov.Core().compile_model(graph, "CPU", options)


def openvino_blob(canvas: NDArray[np.uint8]) -> dict[int, NDArray[np.float32]]:
    """A canvas as the exported network's input."""
    return {0: canvas[None].astype(np.float32)}


def _openvino(precision: str) -> Callable[[ModelFile, int], Rows]:
    def build(model: ModelFile, threads: int) -> Rows:
        request = openvino_model(model, threads, precision).create_infer_request()
        return lambda canvas: np.array(request.infer(openvino_blob(canvas))[0])

    return build


def _onnxruntime(model: ModelFile, threads: int) -> Rows:
    import onnxruntime as ort

    from sparsedet.exporters.onnx import to_onnx

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    graph = to_onnx(model.config, model.tensors, layout="NHWC").SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda canvas: session.run(None, {"image": canvas[None].astype(np.float32)})[0]


def _torch(model: ModelFile, threads: int) -> Rows:
    import torch

    from sparsedet.reference import FasterRCNN

    torch.set_num_threads(threads)
    network = FasterRCNN(model.config).eval()
    network.load_tensors(model.tensors)
    network.to(memory_format=torch.channels_last)

    def run(canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return network(torch.from_numpy(canvas).permute(2, 0, 1)[None])[0].numpy()

    return run


PEERS: dict[str, Callable[[ModelFile, int], Rows]] = {
    "openvino-f32": _openvino("f32"),
    "openvino-bf16": _openvino("bf16"),
    "onnxruntime": _onnxruntime,
    "torch": _torch,
}
"""Name -> a function of the model and the number of threads that gives one ready to run."""
