"""The sparse engine as a backend: it reads model files and has options of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..engine import Engine, Precision
from ..model.file import ModelFile, load_model


def from_model(
    model: ModelFile,
    threads: int,
    streams: int,
    precision: Precision,
    isa: str = "",
    algorithms: Mapping[str, str] | None = None,
) -> Engine:
    """See `backends.build_backend`; `isa` and `algorithms` as for `Engine`."""
    return Engine(
        model.config,
        model.tensors,
        threads=threads,
        isa=isa,
        precision=precision,
        algorithms=algorithms,
        clipping_thresholds=model.clipping_thresholds,
        int8_biases=model.int8_biases,
    )


def from_graph(
    path: str | os.PathLike[str],
    *,
    threads: int,
    precision: Precision = "f32",
    isa: str = "",
    tuning: str | os.PathLike[str] | None = None,
) -> tuple[ModelFile, Engine]:
    """The detector of an ONNX file, converted in memory, and its engine; arguments as `from_file`.

    Raises:
        InputError: as `importers.onnx.load_onnx_detector`, or as `Engine`.
    """
    from ..importers.onnx import load_onnx_detector  # most models are no ONNX files

    imported = load_onnx_detector(path)
    model = imported.as_model()
    return model, from_model(model, threads, 1, precision, isa, _algorithms(tuning))


def from_file(
    path: str | os.PathLike[str],
    *,
    threads: int,
    precision: Precision = "full",
    isa: str = "",
    tuning: str | os.PathLike[str] | None = None,
    cache: bool | str | os.PathLike[str] = False,
) -> tuple[ModelFile, Engine]:
    """A model file and its engine.

    Args:
        path: the model file.
        threads, precision, isa: as for `Engine`.
        tuning: tuning file; default: the cost model chooses the algorithms.
        cache: folder of packed weights, True: the default folder, False: none; ignored for int8.

    Raises:
        InputError: a file cannot be read, or as `Engine`.
    """
    algorithms = _algorithms(tuning)
    if cache is not False and precision != "int8":
        from ..engine.packed_cache import load_engine, packed_folder  # most processes have no cache

        return load_engine(
            path,
            packed_folder(cache),
            threads=threads,
            isa=isa,
            precision=precision,
            algorithms=algorithms,
        )
    model = load_model(path, check=False)  # the engine asks for every tensor
    return model, from_model(model, threads, 1, precision, isa, algorithms)


def _algorithms(tuning: str | os.PathLike[str] | None) -> dict[str, str] | None:
    """What a tuning file says; None: the cost model chooses."""
    if tuning is None:
        return None
    from ..engine.autotune import load_tuning

    return load_tuning(tuning)
