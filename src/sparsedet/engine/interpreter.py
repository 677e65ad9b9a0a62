"""A graph, operation by operation, in the native engine: for calibration and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.graph import IMAGE, Operation
from ..model.interpreter import walk
from . import Engine

F32 = NDArray[np.float32]


class NativeInterpreter:
    """The values of an engine's graph on one image, as float32 arrays.

    Maps are (1, C, H, W), RoIs (R, C, h, w), boxes (R, 4), rows (N, 7), masks (N, h, w).

    Args:
        engine: its graph is run as it is; build it without hoisting to see the layers' outputs.
        network_input: (H, W, 3) BGR.
    """

    def __init__(self, engine: Engine, network_input: NDArray[Any]) -> None:
        self.engine, self.graph = engine, engine.graph
        self.image = np.ascontiguousarray(network_input, dtype=np.float32)
        engine.plan(*network_input.shape[:2])

    def values(self, wanted: Sequence[str], rois: int | None = None) -> Iterator[tuple[str, F32]]:
        """Each value on the way to the wanted ones; they are freed when nothing needs them.

        Args:
            wanted: names of values.
            rois: RoIs of proposals that are run, evenly spread from the best to the last; default:
                all. RoIs of rows are all run.
        """
        live: dict[str, F32] = {IMAGE: self.image}
        for operation, dead in walk(self.graph, (IMAGE,), wanted, keep=()):
            value = self.value(operation, [live[name] for name in operation.inputs])
            if rois is not None and self.graph.shapes[operation.name].domain == "boxes":
                if not len(value):
                    return
                spread = np.linspace(0, len(value) - 1, min(rois, len(value))).astype(int)
                value = np.ascontiguousarray(value[spread])
            yield operation.name, value
            live[operation.name] = value
            for name in dead:
                del live[name]

    def value(self, operation: Operation, inputs: Sequence[F32]) -> F32:
        """The value of one operation for the values of its inputs."""
        given = {}
        for name, array in zip(operation.inputs, inputs, strict=True):
            is_map = self.graph.shapes[name].domain == "map"
            given[name] = array[0] if is_map else array
        (out,) = self.engine.native.run_between(given, [operation.name])
        array = np.asarray(out)
        return array[None] if self.graph.shapes[operation.name].domain == "map" else array
