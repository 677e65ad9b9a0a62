"""Runtimes behind one interface: a network input goes in, detections come out as rows.

`native` is the sparse engine. `openvino`, `onnxruntime` and `torch` run the same network densely,
to compare with: the first two run the graph that `exporters` writes, torch runs `torch_model`.
openvino and onnxruntime also run a graph file as it is, an exported or the published one. `base`
has the table of backends; the package of a backend is imported when the backend is asked for.

Glossary: a network input is (H, W, 3) BGR, 0..255; rows are (N, 7), best first, without padding.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from .._native import has_bfloat16
from ..choices import NAMES, PRECISIONS, Name
from ..engine import Precision, check_threads, choose_precision
from ..errors import InputError, UsageError
from ..model.file import ModelFile, load_model
from . import native
from .base import BACKENDS, Backend, BackendInfo

GRAPHS = {
    suffix: tuple(name for name, info in BACKENDS.items() if suffix in info.graph_suffixes)
    for info in BACKENDS.values()
    for suffix in info.graph_suffixes
}
"""Suffix of a graph file -> names of the backends that run it."""


def load(
    name: str,
    path: str | os.PathLike[str],
    *,
    threads: int,
    streams: int = 1,
    precision: Precision = "full",
    isa: str = "",
    tuning: str | os.PathLike[str] | None = None,
    cache: bool | str | os.PathLike[str] = False,
) -> tuple[ModelFile, Backend]:
    """Load a model file or a graph file into a backend.

    Args:
        name: one of `NAMES`.
        path: model file, or graph file for openvino and onnxruntime; native converts an ONNX file
            of a detector in memory.
        threads: CPU threads of each stream.
        streams: images that run at once, by `Backend.fork`.
        precision: one of `PRECISIONS`; "close" and "fastest" of another backend than native: bf16
            where backend and CPU have it, else f32.
        isa, tuning, cache: options of the backend native, see `native.from_file`.

    Returns:
        The model and the backend. The model of a graph file has a configuration and no tensors.

    Raises:
        InputError: a file cannot be read, a package is not installed, or an argument is unknown
            or not supported by this backend.
    """
    check_name(name)
    if name != "native" and (isa or tuning is not None or cache):
        raise UsageError(f"isa, tuning and cache are for the backend 'native', not for {name!r}")
    if name == "native" and Path(path).suffix.lower() == ".onnx":
        if cache:
            raise UsageError(f"{path}: packed weights are kept of model files only: convert it")
        return native.from_graph(path, threads=threads, precision=precision, isa=isa, tuning=tuning)
    if is_graph(path):
        backend = load_graph(name, path, threads=threads, streams=streams, precision=precision)
        return ModelFile(backend.config, {}, {"graph": str(path)}, "float32"), backend
    if name == "native":
        return native.from_file(
            path, threads=threads, precision=precision, isa=isa, tuning=tuning, cache=cache
        )
    choose_backend_precision(name, precision)  # before the file is read
    model = load_model(path)
    backend = build_backend(name, model, threads=threads, streams=streams, precision=precision)
    return replace(model, config=backend.config), backend


def build_backend(
    name: str, model: ModelFile, *, threads: int, streams: int = 1, precision: str = "full"
) -> Backend:
    """A model in memory, ready to run; arguments as for `load`.

    Raises:
        InputError: unknown name, package not installed, or precision not supported.
    """
    check_threads(threads)
    precision = choose_backend_precision(name, precision)
    backend: Backend = _module(name).from_model(model, threads, streams, precision)
    return backend


def load_graph(
    name: str,
    path: str | os.PathLike[str],
    *,
    threads: int,
    streams: int = 1,
    precision: str = "full",
) -> Backend:
    """A graph file (`is_graph`) as it is, ready to run; arguments as for `load`.

    Raises:
        InputError: as `build_backend`; or the backend does not run such a file, the file cannot
            be read, or its inputs and outputs are not those of a detector.
    """
    able = GRAPHS[Path(path).suffix.lower()]
    if name not in able:
        raise InputError(
            f"{path}: is a graph, which the backend {name!r} does not run; run it with the backend "
            f"{_either(able)}, or convert it to a model file (sparsedet convert)"
        )
    if not Path(path).is_file():
        raise InputError(f"{path}: No such file")
    check_threads(threads)
    precision = choose_backend_precision(name, precision)
    backend: Backend = _module(name).from_graph(path, threads, streams, precision)
    return backend


def is_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a graph, by its suffix."""
    return Path(path).suffix.lower() in GRAPHS


def check_name(name: str) -> None:
    """Raise InputError unless there is a backend of this name."""
    if name not in NAMES:
        raise UsageError(f"backend is {name!r}, expected one of {', '.join(NAMES)}")


def choose_backend_precision(name: str, precision: str) -> str:
    """The precision that a backend runs in: a promise becomes a format. "fastest" stays as it is
    for the native one, which knows the model.

    Raises:
        InputError: unknown backend or precision, or the backend does not support it.
    """
    check_name(name)
    supported = BACKENDS[name].precisions
    if precision in ("auto", "close", "fastest") and name != "native":
        # A runtime's own rule: bf16 where the CPU has it.
        return "bf16" if "bf16" in supported and has_bfloat16("") else "f32"
    if precision == "fastest":
        return precision
    chosen = choose_precision(precision)
    if chosen not in supported:
        able = [other for other, info in BACKENDS.items() if chosen in info.precisions]
        raise UsageError(
            f"precision {chosen!r} is for the backend {_either(able)}, not for {name!r}"
        )
    return chosen


def _module(name: str) -> Any:
    """A backend's module.

    Raises:
        InputError: unknown name, or its package is not installed.
    """
    check_name(name)
    info = BACKENDS[name]
    try:
        return import_module(f"{__name__}.{info.module}")
    except ImportError as error:
        raise InputError(
            f"the backend {name!r} needs: pip install 'sparsedet[{info.extra}]' ({error})"
        ) from None


def _either(names: tuple[str, ...] | list[str]) -> str:
    return " or ".join(map(repr, names))


__all__ = [
    "BACKENDS",
    "GRAPHS",
    "NAMES",
    "PRECISIONS",
    "Backend",
    "BackendInfo",
    "Name",
    "build_backend",
    "check_name",
    "is_graph",
    "load",
    "load_graph",
]
