"""Runtimes behind one interface: a network input in, the contract's rows out.

`native` is our engine; `openvino`, `onnxruntime` and `torch` run the same network densely, by the
graph that our exporters write (torch: the reference model), so that a user can compare. The first
two also run a graph file as it is, ours or the published one. Each needs its package, which is
imported when it is asked for.

Glossary: a network input is (H, W, 3) BGR, 0..255; rows are (N, 7), best first, without padding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ..engine import check_threads, choose_precision
from ..errors import InputError
from ..model.config import ModelConfig
from ..model.file import ModelFile

Name = Literal["native", "openvino", "onnxruntime", "torch"]
NAMES: tuple[str, ...] = get_args(Name)
GRAPHS = {".xml": ("openvino",), ".onnx": ("openvino", "onnxruntime")}
"""Suffix of a graph file -> the backends that run it."""

_EXTRAS = {"openvino": "export", "onnxruntime": "export", "torch": "train"}


class Backend(Protocol):
    """A network ready to run. `engine.Engine` is one."""

    config: ModelConfig
    """What it does. Of a graph file: its network input, classes and number of rows; the fields that only
    say how the network is built are then no more than those of the published one."""

    @property
    def precision(self) -> str:
        """ "f32" or "bf16"."""
        ...

    @property
    def threads(self) -> int:
        """Of one photograph."""
        ...

    def run(self, network_input: NDArray[Any]) -> NDArray[np.float32]:
        """Rows of one network input; one call at a time."""
        ...

    def fork(self, threads: int) -> Backend:
        """Another one with the same weights, to run beside this one, on as many threads."""
        ...


def build_backend(
    name: str, model: ModelFile, *, threads: int, streams: int = 1, precision: str = "f32"
) -> Backend:
    """A model's network in another runtime.

    Args:
        name: one of `NAMES` but native.
        threads: of each of the streams.
        streams: photographs at once, by `fork`.
        precision: "f32" or "auto"; openvino also "bf16", which auto is where the CPU has it.

    Raises:
        InputError: an unknown name, a package that is not there, a precision that it has not.
    """
    check_threads(threads)
    precision = _precision(name, precision)
    module = _module(name)
    return module.from_model(model, threads, streams, precision)  # type: ignore[no-any-return]


def load_graph(
    name: str,
    path: str | os.PathLike[str],
    *,
    threads: int,
    streams: int = 1,
    precision: str = "f32",
) -> Backend:
    """A graph file (`is_graph`) as it is; arguments as for `build_backend`.

    Raises:
        InputError: as `build_backend`; or a file that this backend does not run, that cannot be
            read, or whose inputs and outputs are not those of a detector.
    """
    able = GRAPHS[Path(path).suffix.lower()]
    if name not in able:
        raise InputError(
            f"{path}: is a graph, which the backend {name!r} does not run; run it with the backend "
            f"{' or '.join(map(repr, able))}, or convert it to a model file (sparsedet convert)"
        )
    if not Path(path).is_file():
        raise InputError(f"{path}: No such file")
    check_threads(threads)
    precision = _precision(name, precision)
    module = _module(name)
    return module.from_graph(path, threads, streams, precision)  # type: ignore[no-any-return]


def is_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a graph, by its suffix."""
    return Path(path).suffix.lower() in GRAPHS


def check_name(name: str) -> None:
    """Raises InputError unless there is a backend of that name."""
    if name not in NAMES:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(NAMES)}")


def _module(name: str) -> Any:
    check_name(name)
    module: Any
    try:
        if name == "openvino":
            from . import openvino as module
        elif name == "onnxruntime":
            from . import onnxruntime as module
        else:
            from . import torch as module
    except ImportError as error:
        raise InputError(
            f"the backend {name!r} needs: pip install 'sparsedet[{_EXTRAS[name]}]' ({error})"
        ) from None
    return module


def _precision(name: str, precision: str) -> str:
    if precision == "auto" and name != "openvino":
        return "f32"
    precision = choose_precision(precision)
    if precision == "bf16" and name != "openvino":
        raise InputError(f"the backend {name!r} runs in precision 'f32' alone, not in 'bf16'")
    return precision
