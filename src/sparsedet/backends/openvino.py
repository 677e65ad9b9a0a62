"""OpenVINO on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager

from ..errors import InputError
from ..exporters.openvino import to_openvino
from ..model.detector_config import Config, with_fixed_input
from ..model.file import ModelFile
from .signature import Port, Signature, plain_rows, refuse_content, rows_and_masks


def plugin_settings(threads: int, streams: int, precision: str) -> dict[str, Any]:
    """Settings of the CPU plugin.

    Args:
        threads: CPU threads of each stream.
        streams: images that run at once.
        precision: "f32" or "bf16". Without it OpenVINO takes bf16 where the CPU has it, which
            changes the scores.
    """
    return {
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": precision,
    }


class OpenvinoBackend:
    """A compiled graph; a fork is another inference request of the same graph."""

    name, isa = "openvino", ""

    def __init__(
        self,
        compiled: Any,
        signature: Signature,
        config: Config,
        threads: int,
        precision: str,
    ) -> None:
        self.compiled, self.signature, self.config = compiled, signature, config
        self.threads, self.precision = threads, precision
        self.request = compiled.create_infer_request()

    def run(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        refuse_content(content)
        outputs = self.request.infer(self.signature.feed(network_input))
        return plain_rows(outputs[self.signature.rows])

    @property
    def masks(self) -> bool:
        return self.signature.masks is not None

    def run_with_masks(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        refuse_content(content)
        outputs = self.request.infer(self.signature.feed(network_input))
        return rows_and_masks(outputs[self.signature.rows], outputs[self.signature.masks])

    def fork(self, threads: int) -> OpenvinoBackend:
        return OpenvinoBackend(self.compiled, self.signature, self.config, threads, self.precision)


def from_model(
    model: ModelFile, threads: int, streams: int, precision: str, **settings: Any
) -> OpenvinoBackend:
    """See `backends.build_backend`; `settings` override those of `plugin_settings`."""
    graph = to_openvino(model.config, model.tensors, layout="NHWC")
    settings = plugin_settings(threads, streams, precision) | settings
    config = with_fixed_input(model.config)
    return compile_graph(graph, graph_signature(graph), config, threads, settings)


def from_graph(
    path: str | os.PathLike[str], threads: int, streams: int, precision: str
) -> OpenvinoBackend:
    """See `backends.load_graph`."""
    graph = read_graph(path)
    try:
        signature = graph_signature(graph)
        metadata = _metadata(graph)
        for node in graph.get_ops():
            classes = node.get_attributes().get("num_classes", 81)
            if (
                node.get_type_name() == "DetectionOutput"
                and classes != 81
                and "labels" not in metadata
            ):
                raise InputError(f"has {classes - 1} classes and names none of them")
        config = signature.config(graph.get_friendly_name(), metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    settings = plugin_settings(threads, streams, precision)
    return compile_graph(graph, signature, config, threads, settings)


def read_graph(path: str | os.PathLike[str]) -> Any:
    """The `openvino.Model` of a graph file, .xml or .onnx.

    Raises:
        InputError: OpenVINO cannot read it.
    """
    # The suffix chooses the reader: `Core.read_model` tries each of its readers, and some complain
    # on stderr.
    framework = "ir" if os.fspath(path).lower().endswith(".xml") else "onnx"
    reader = FrontEndManager().load_by_framework(framework)
    try:
        return reader.convert(reader.load(os.fspath(path)))
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot read it: {reason_of(error)}") from None


def graph_ports(nodes: Any) -> list[Port]:
    """The inputs, or outputs, of a graph; a port's key is its position."""
    return [
        Port(
            key,
            tuple(-1 if n.is_dynamic else n.get_length() for n in node.get_partial_shape()),
            node.get_element_type().to_dtype().name,
        )
        for key, node in enumerate(nodes)
    ]


def graph_signature(graph: Any) -> Signature:
    """Inputs and outputs of a detector's `openvino.Model`.

    Raises:
        InputError: the graph is not a detector's.
    """
    return Signature.find(graph_ports(graph.inputs), graph_ports(graph.outputs))


def compile_graph(
    graph: Any, signature: Signature, config: Config, threads: int, settings: dict[str, Any]
) -> OpenvinoBackend:
    """A detector's `openvino.Model`, ready to run.

    Args:
        settings: of the CPU plugin, see `plugin_settings`.
    """
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    precision = settings["INFERENCE_PRECISION_HINT"]
    return OpenvinoBackend(compiled, signature, config, threads, precision)


def _metadata(graph: Any) -> dict[str, str]:
    """Metadata for `Signature.config`."""
    paths = {
        "config": ["sparsedet", "config"],
        "labels": ["model_info", "labels"],
        "resize_type": ["model_info", "resize_type"],
    }
    metadata = {}
    for key, path in paths.items():
        # OpenVINO keeps an ONNX graph's metadata below `framework`, under its flat names.
        for candidate in (path, ["framework", " ".join(path)]):
            if graph.has_rt_info(candidate):
                metadata[key] = str(graph.get_rt_info(candidate).astype(str))
    return metadata


def reason_of(error: RuntimeError) -> str:
    """The last line of an OpenVINO error: earlier lines name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
