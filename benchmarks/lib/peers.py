"""The other runtimes, each as a function from a network input to rows.

They are the package's own backends (`sparsedet.backends`): static shapes, settings for the latency
of one image, a given number of threads. Nothing is timed here.

Glossary: a network input is (H, W, 3) uint8 BGR; rows are (N, 7), best first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from lib.subjects import calibration_inputs
from numpy.typing import NDArray

from sparsedet.backends import build_backend
from sparsedet.model.file import ModelFile

Rows = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def openvino_backend(model: ModelFile, threads: int, precision: str, **settings: Any) -> Any:
    """The exported network in OpenVINO.

    Args:
        precision: "f32" or "bf16" of convolutions and matrix products; "dynamic": what OpenVINO
            takes by itself. "int8": quantised by NNCF, the rest in bf16, which is OpenVINO's
            default and faster than f32 here.
        settings: of OpenVINO's CPU plugin.
    """
    from sparsedet.backends import openvino

    if precision != "int8":
        backend = openvino.from_model(model, threads, 1, precision, **settings)
        hint = backend.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        backend.precision = "bf16" if hint == "bf16" else "f32"
        return backend
    graph = _quantised(model)
    signature = openvino.graph_signature(graph)
    settings = openvino.plugin_settings(threads, 1, "bf16") | settings
    return openvino.compile_graph(graph, signature, model.config, threads, settings)


@functools.lru_cache(maxsize=1)  # minutes, and 8 GB for r101-c4
def _quantised(model: ModelFile) -> Any:
    """The exported network after NNCF's post-training quantisation with default options."""
    import nncf

    from sparsedet.exporters.openvino import to_openvino

    graph = to_openvino(model.config, model.tensors, layout="NHWC")
    inputs = [
        network_input[None].astype(np.float32) for network_input in calibration_inputs(model.config)
    ]
    return nncf.quantize(graph, nncf.Dataset(inputs), subset_size=len(inputs))


def _openvino(precision: str) -> Callable[[ModelFile, int], Rows]:
    return lambda model, threads: openvino_backend(model, threads, precision).run


def _peer(backend: str) -> Callable[[ModelFile, int], Rows]:
    return lambda model, threads: build_backend(backend, model, threads=threads).run


PEERS: dict[str, Callable[[ModelFile, int], Rows]] = {
    "openvino-f32": _openvino("f32"),
    "openvino-bf16": _openvino("bf16"),
    "openvino-int8": _openvino("int8"),
    "openvino-default": _openvino("dynamic"),
    "onnxruntime": _peer("onnxruntime"),
    "torch": _peer("torch"),
}
"""Name -> a function that takes the model and the number of threads and returns the runtime."""
