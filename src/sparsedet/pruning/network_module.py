"""Trained networks of all kinds as torch modules, and back to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.batch_norm import fold_batch_norm
from ..model.file import AnyFile, NetworkFile
from ..model.network import graph_of
from ..torch_model import GraphModule


def as_module(file: AnyFile) -> GraphModule:
    """A network as a torch module in evaluation mode, without separate batch norms.

    Raises:
        InputError: a tensor is missing or does not fit.
    """
    model = GraphModule(file.config.name, graph_of(file.config))
    if isinstance(file, NetworkFile):
        constants = file.config.constants
        model.load_tensors({n: t for n, t in file.tensors.items() if n not in constants})
    else:
        model.load_tensors(fold_batch_norm(file.tensors, file.config))
    return model.eval()


def tensors_of(file: AnyFile, model: GraphModule) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file of the module's network; `file` gives those outside the graph."""
    tensors = model.folded_tensors()
    if isinstance(file, NetworkFile):
        tensors |= {name: np.asarray(file.tensors[name]) for name in file.config.constants}
    return tensors


def with_tensors(
    file: AnyFile, tensors: Mapping[str, NDArray[np.float32]], provenance: Mapping[str, Any]
) -> AnyFile:
    """The same network with other weights; its int8 ranges do not fit them."""
    return replace(
        file,
        tensors=tensors,
        provenance=dict(provenance),
        clipping_thresholds=None,
        int8_biases=None,
    )
