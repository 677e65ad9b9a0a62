"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import InputError
from ..exporters.onnx import to_onnx
from ..model.detector_config import Config, with_fixed_input
from ..model.file import ModelFile
from .signature import Port, Signature, plain_rows, refuse_content, rows_and_masks

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxruntimeBackend:
    """A session; forks share it, because several threads may run one session at once."""

    name, precision, isa = "onnxruntime", "f32", ""

    def __init__(self, session: Any, signature: Signature, config: Config, threads: int) -> None:
        self.session, self.signature = session, signature
        self.config, self.threads = config, threads

    def run(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        refuse_content(content)
        outputs = self.session.run(None, self.signature.feed(network_input))
        return plain_rows(outputs[self.signature.rows])

    @property
    def masks(self) -> bool:
        return self.signature.masks is not None

    def run_with_masks(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        refuse_content(content)
        outputs = self.session.run(None, self.signature.feed(network_input))
        return rows_and_masks(outputs[self.signature.rows], outputs[self.signature.masks])

    def fork(self, threads: int) -> OnnxruntimeBackend:
        return OnnxruntimeBackend(self.session, self.signature, self.config, threads)


def from_model(model: ModelFile, threads: int, streams: int, precision: str) -> OnnxruntimeBackend:
    """See `backends.build_backend`."""
    graph = to_onnx(model.config, model.tensors, layout="NHWC").SerializeToString()
    session = _session(graph, threads, streams)
    config = with_fixed_input(model.config)
    return OnnxruntimeBackend(session, _signature(session), config, threads)


def from_graph(
    path: str | os.PathLike[str], threads: int, streams: int, precision: str
) -> OnnxruntimeBackend:
    """See `backends.load_graph`."""
    try:
        session = _session(os.fspath(path), threads, streams)
    except Exception as error:  # its exception classes are not public
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"{path}: ONNX Runtime cannot read it: {reason}") from None
    try:
        signature = _signature(session)
        model_meta = session.get_modelmeta()
        # ONNX's metadata is flat: Model API writes a path with spaces, and so do our exporters.
        keys = {
            "labels": "model_info labels",
            "resize_type": "model_info resize_type",
            "config": "sparsedet config",
        }
        properties = model_meta.custom_metadata_map
        metadata = {key: properties[name] for key, name in keys.items() if name in properties}
        config = signature.config(model_meta.graph_name, metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return OnnxruntimeBackend(session, signature, config, threads)


def _session(graph: bytes | str, threads: int, streams: int) -> Any:
    settings = ort.SessionOptions()
    # The calling threads, one a stream, work too: with the pool's they add up to threads * streams.
    settings.intra_op_num_threads = threads * streams - streams + 1
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def _signature(session: Any) -> Signature:
    def ports(nodes: Any) -> list[Port]:
        return [
            Port(
                node.name,
                tuple(n if isinstance(n, int) else -1 for n in node.shape),
                _DTYPES.get(node.type, "float32"),
            )
            for node in nodes
        ]

    return Signature.find(ports(session.get_inputs()), ports(session.get_outputs()))
