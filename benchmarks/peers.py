"""The other runtimes, each with the whole detector: a canvas in, the contract's rows out.

They are the package's own backends (`sparsedet.backends`): static shapes, tuned for the latency of
one picture, on a given number of threads. Nothing is timed here.

Glossary: a canvas is (H, W, 3) uint8 BGR; rows are (N, 7), best first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparsedet.backends import build_backend
from sparsedet.weights import ModelFile

Rows = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def _peer(backend: str, precision: str = "f32") -> Callable[[ModelFile, int], Rows]:
    return lambda model, threads: (
        build_backend(backend, model, threads=threads, precision=precision).run
    )


PEERS: dict[str, Callable[[ModelFile, int], Rows]] = {
    "openvino-f32": _peer("openvino"),
    "openvino-bf16": _peer("openvino", "bf16"),
    "onnxruntime": _peer("onnxruntime"),
    "torch": _peer("torch"),
}
"""Name -> a function of the model and the number of threads that gives one ready to run."""
