"""OpenVINO, on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager

from ..errors import InputError
from ..exporters.openvino import to_openvino
from ..model.config import ModelConfig
from ..model.file import ModelFile
from .signature import Port, Ports, plain_rows


def options(threads: int, streams: int, precision: str) -> dict[str, Any]:
    """The plugin's settings for that many threads in all of the streams.

    Without a precision of its own it takes bf16 where the CPU has it, with other scores.
    """
    return {
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": precision,
    }


class OpenvinoBackend:
    """A compiled graph; forks are further requests of it."""

    name = "openvino"

    def __init__(
        self, compiled: Any, ports: Ports, config: ModelConfig, threads: int, precision: str
    ) -> None:
        self.compiled, self.ports, self.config = compiled, ports, config
        self.threads, self.precision = threads, precision
        self.request = compiled.create_infer_request()

    def run(self, network_input: NDArray[Any]) -> NDArray[np.float32]:
        return plain_rows(self.request.infer(self.ports.feed(network_input))[self.ports.rows])

    def fork(self, threads: int) -> OpenvinoBackend:
        return OpenvinoBackend(self.compiled, self.ports, self.config, threads, self.precision)


def from_model(
    model: ModelFile, threads: int, streams: int, precision: str, **settings: Any
) -> OpenvinoBackend:
    """See `backends.build_backend`; `settings` of the plugin beside `options`."""
    graph = to_openvino(model.config, model.tensors, layout="NHWC")
    settings = options(threads, streams, precision) | settings
    return _compiled(graph, _ports(graph), model.config, threads, settings)


def from_graph(
    path: str | os.PathLike[str], threads: int, streams: int, precision: str
) -> OpenvinoBackend:
    """See `backends.load_graph`."""
    # The reader by the suffix: `Core.read_model` lets each of its readers try, and some complain on
    # stderr.
    framework = "ir" if os.fspath(path).lower().endswith(".xml") else "onnx"
    reader = FrontEndManager().load_by_framework(framework)
    try:
        graph = reader.convert(reader.load(os.fspath(path)))
    except RuntimeError as error:  # some lines, of which the last one says what
        raise InputError(f"{path}: OpenVINO cannot read it: {_reason(error)}") from None
    try:
        ports = _ports(graph)
        said = _said(graph)
        for node in graph.get_ops():
            classes = node.get_attributes().get("num_classes", 81)
            if node.get_type_name() == "DetectionOutput" and classes != 81 and "labels" not in said:
                raise InputError(f"has {classes - 1} classes and names none of them")
        config = ports.config(graph.get_friendly_name(), said)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return _compiled(graph, ports, config, threads, options(threads, streams, precision))


def _compiled(
    graph: Any, ports: Ports, config: ModelConfig, threads: int, settings: dict[str, Any]
) -> OpenvinoBackend:
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    return OpenvinoBackend(compiled, ports, config, threads, settings["INFERENCE_PRECISION_HINT"])


def _ports(graph: Any) -> Ports:
    def ports(nodes: Any) -> list[Port]:
        return [
            Port(
                key,
                tuple(-1 if n.is_dynamic else n.get_length() for n in node.get_partial_shape()),
                node.get_element_type().to_dtype().name,
            )
            for key, node in enumerate(nodes)
        ]

    return Ports.find(ports(graph.inputs), ports(graph.outputs))


def _said(graph: Any) -> dict[str, str]:
    """For `Ports.config`."""
    places = {
        "config": ["sparsedet", "config"],
        "labels": ["model_info", "labels"],
        "resize_type": ["model_info", "resize_type"],
    }
    found = {}
    for key, place in places.items():
        # Of an ONNX graph all metadata lies below `framework`, by the flat names that it has there.
        for path in (place, ["framework", " ".join(place)]):
            if graph.has_rt_info(path):
                found[key] = str(graph.get_rt_info(path).astype(str))
    return found


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
