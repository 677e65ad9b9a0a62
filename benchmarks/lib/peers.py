"""The other runtimes, each as a function from a network input to rows.

They are the peers of `sparsedet bench`, for the latency of one image, and OpenVINO in int8, which
NNCF quantises. Nothing is timed here.

Glossary: a network input is (H, W, 3) uint8 BGR; rows are (N, 7), best first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from lib.subjects import calibration_inputs
from numpy.typing import NDArray

from sparsedet.benchmark import peers
from sparsedet.benchmark.peers import open_peer
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
    if precision != "int8":
        name = "openvino-default" if precision == "dynamic" else f"openvino-{precision}"
        return open_peer(name, model, threads, **settings)
    from sparsedet.backends import openvino

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


def _peer(name: str) -> Callable[[ModelFile, int], Rows]:
    return lambda model, threads: open_peer(name, model, threads).run


PEERS: dict[str, Callable[[ModelFile, int], Rows]] = {
    **{name: _peer(name) for name in peers.PEERS},
    "openvino-int8": lambda model, threads: openvino_backend(model, threads, "int8").run,
}
"""Name -> a function that takes the model and the number of threads and returns the runtime."""
