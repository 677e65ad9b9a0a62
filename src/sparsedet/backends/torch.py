"""The torch model: slow, and the reference of the parity tests."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..model.detector_config import Config, build_graph
from ..model.file import ModelFile
from ..torch_model import GraphModule
from .signature import check_size, plain_rows


class TorchBackend:
    """The torch model. torch has one number of threads for the whole process."""

    name, precision, isa = "torch", "f32", ""

    def __init__(self, network: GraphModule, config: Config, threads: int) -> None:
        self.network, self.config, self.threads = network, config, threads
        self._process = os.getpid()

    def run(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        if self.threads > 1 and self._process != os.getpid():
            raise InputError(
                "the backend 'torch' was loaded in another process, and its threads do not survive "
                "a fork: load the detector in this process, or with threads=1"
            )
        if content is None:
            check_size(network_input, (self.config.input_height, self.config.input_width))
        blob = torch.from_numpy(np.ascontiguousarray(network_input)).permute(2, 0, 1)[None]
        with torch.no_grad():
            return plain_rows(self.network(blob, content)[0].numpy())

    def fork(self, threads: int) -> TorchBackend:
        return TorchBackend(self.network, self.config, threads)


def from_model(model: ModelFile, threads: int, streams: int, precision: str) -> TorchBackend:
    """See `backends.build_backend`."""
    torch.set_num_threads(threads)
    network = GraphModule(model.config.name, build_graph(model.config)).eval()
    network.load_tensors(model.tensors)
    network.to(memory_format=torch.channels_last)
    return TorchBackend(network, model.config, threads)
