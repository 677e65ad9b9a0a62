"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import InputError
from ..exporters.onnx import to_onnx
from ..model.config import ModelConfig
from ..model.file import ModelFile
from .signature import Port, Ports, plain_rows

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxruntimeBackend:
    """A session; forks share it, as it may be run by several threads at once."""

    name, precision = "onnxruntime", "f32"

    def __init__(self, session: Any, ports: Ports, config: ModelConfig, threads: int) -> None:
        self.session, self.ports, self.config, self.threads = session, ports, config, threads

    def run(self, network_input: NDArray[Any]) -> NDArray[np.float32]:
        return plain_rows(self.session.run(None, self.ports.feed(network_input))[self.ports.rows])

    def fork(self, threads: int) -> OnnxruntimeBackend:
        return OnnxruntimeBackend(self.session, self.ports, self.config, threads)


def from_model(model: ModelFile, threads: int, streams: int, precision: str) -> OnnxruntimeBackend:
    """See `backends.build_backend`."""
    graph = to_onnx(model.config, model.tensors, layout="NHWC").SerializeToString()
    session = _session(graph, threads, streams)
    return OnnxruntimeBackend(session, _ports(session), model.config, threads)


def from_graph(
    path: str | os.PathLike[str], threads: int, streams: int, precision: str
) -> OnnxruntimeBackend:
    """See `backends.load_graph`."""
    try:
        session = _session(os.fspath(path), threads, streams)
    except Exception as error:  # its own kinds of error are not public
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"{path}: ONNX Runtime cannot read it: {reason}") from None
    try:
        ports = _ports(session)
        about = session.get_modelmeta()
        # ONNX's metadata is flat: Model API writes a path with spaces, and so do our graphs.
        keys = {
            "labels": "model_info labels",
            "resize_type": "model_info resize_type",
            "config": "sparsedet config",
        }
        meta = about.custom_metadata_map
        config = ports.config(about.graph_name, {k: meta[v] for k, v in keys.items() if v in meta})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return OnnxruntimeBackend(session, ports, config, threads)


def _session(graph: bytes | str, threads: int, streams: int) -> Any:
    settings = ort.SessionOptions()
    # The calling threads work too: with those of the pool as many as were asked for.
    settings.intra_op_num_threads = threads * streams - streams + 1
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def _ports(session: Any) -> Ports:
    def ports(nodes: Any) -> list[Port]:
        return [
            Port(
                node.name,
                tuple(n if isinstance(n, int) else -1 for n in node.shape),
                _DTYPES.get(node.type, "float32"),
            )
            for node in nodes
        ]

    return Ports.find(ports(session.get_inputs()), ports(session.get_outputs()))
