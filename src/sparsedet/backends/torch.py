"""The torch model: slow, and the reference of the parity tests."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..model.detector_config import Config, build_graph, makes_masks, rows_of
from ..model.file import ModelFile
from ..model.graph import IMAGE
from ..torch_model import GraphModule
from .signature import check_size, plain_rows, rows_and_masks


class TorchBackend:
    """The torch model. torch has one number of threads for the whole process."""

    name, precision, isa = "torch", "f32", ""

    def __init__(self, network: GraphModule, config: Config, threads: int) -> None:
        self.network, self.config, self.threads = network, config, threads
        self._process = os.getpid()

    @property
    def masks(self) -> bool:
        return makes_masks(self.network.graph)

    def run(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        blob = self._blob(network_input, content)
        with torch.no_grad():
            return plain_rows(self.network(blob, content)[0].numpy())

    def run_with_masks(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        values = {IMAGE: self._blob(network_input, content)}
        graph = self.network.graph
        with torch.no_grad():
            rows, masks = self.network.run(values, [rows_of(graph).name, graph.output], content)
        return rows_and_masks(rows[0, : len(masks)].numpy(), masks.numpy())

    def _blob(self, network_input: NDArray[Any], content: tuple[int, int] | None) -> torch.Tensor:
        if self.threads > 1 and self._process != os.getpid():
            raise InputError(
                "the backend 'torch' was loaded in another process, and its threads do not survive "
                "a fork: load the detector in this process, or with threads=1"
            )
        if content is None:
            check_size(network_input, (self.config.input_height, self.config.input_width))
        return torch.from_numpy(np.ascontiguousarray(network_input)).permute(2, 0, 1)[None]

    def fork(self, threads: int) -> TorchBackend:
        return TorchBackend(self.network, self.config, threads)


def from_model(model: ModelFile, threads: int, streams: int, precision: str) -> TorchBackend:
    """See `backends.build_backend`."""
    torch.set_num_threads(threads)
    network = GraphModule(model.config.name, build_graph(model.config)).eval()
    network.load_tensors(model.tensors)
    network.to(memory_format=torch.channels_last)
    return TorchBackend(network, model.config, threads)
