"""Algorithms of the operations: show, measure and choose them, and keep the choice in a file.

The engine's cost model chooses by shapes and zeros only, so that results are bit-identical on every
machine with the same instruction set. `autotune` measures instead; its choice holds for one model
on one machine and is kept in a tuning file (JSON).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import peak_gflops, peak_gflops_bf16, peak_gflops_int8, peak_gflops_matrix
from ..errors import InputError
from ..files import write_atomic
from ..model.detector_config import Config
from ..model.graph import Conv, Shape, typed
from ..model.int8_ranges import ClippingThreshold
from . import Engine, Precision

RUNS = 3
"""Number of runs; the fastest counts."""


@dataclass(frozen=True, slots=True)
class PlannedOp:
    """How one operation runs.

    Attributes:
        name: of the operation.
        algorithm: "sparse", "dense", "rowwise", "depthwise", "matrix" or "winograd".
        sparsity: fraction of zeros among its weights, 0..1.
        element_density: fraction of its weight elements (1 weight, 2 of bf16 or 4 of int8) that are
            not zero, 0..1; the kernels skip only elements that are zero as a whole.
        gflop: 10^9 floating-point operations for one image, without the zeros that the algorithm
            skips.
        expected: rate that the cost model expects, in GFLOP/s, from the measured peak of the
            unit that computes it; 0: nobody has measured what this algorithm reaches.
        seconds: measured time of the fastest run, without RoIAlign of hoisted operations.
    """

    name: str
    algorithm: str
    sparsity: float
    element_density: float
    gflop: float
    expected: float
    seconds: float


def measure(engine: Engine, network_input: NDArray[Any] | None = None) -> list[PlannedOp]:
    """Run the engine a few times and compare measured with expected rates.

    Args:
        engine: the engine to measure.
        network_input: (H, W, 3) BGR; default: noise of the model's network input size, on which the
            RPN gives the full number of random proposals.

    Returns:
        One entry for each operation with weights, in order of execution.
    """
    config = engine.config
    network_input = _noise(config) if network_input is None else network_input
    graph = engine.graph.resized(*network_input.shape[:2])
    best = _fastest(engine, network_input)
    probes = {"f32": peak_gflops, "bf16": peak_gflops_bf16, "int8": peak_gflops_int8}
    convolutions = engine.native.convolutions
    peak = probes[engine.precision](engine.isa, engine.threads, 0.3)
    matrix_peak = 0.0
    if any(fraction for _, algorithm, fraction, *_ in convolutions if algorithm == "matrix"):
        matrix_peak = peak_gflops_matrix(engine.isa, engine.precision, engine.threads, 0.3)
    rows = []
    for name, algorithm, fraction, nonzero, density, _ in convolutions:
        conv = typed(graph.by_name[name], Conv)
        source, out = graph.shapes[graph.by_name[name].inputs[0]], graph.shapes[name]
        read = source.channels // conv.groups if algorithm == "depthwise" else source.channels
        weights = math.prod((read, conv.out_channels, *conv.kernel))
        cells = out.height * out.width * out.count * _inside_fraction(conv, source, out)
        stored = density * weights if engine.precision == "int8" else nonzero
        multiplied = {"sparse": stored, "rowwise": stored, "winograd": weights / 4}.get(
            algorithm, weights
        )
        rows.append(
            PlannedOp(
                name,
                algorithm,
                1 - nonzero / weights,
                density,
                2e-9 * multiplied * cells,
                fraction * (matrix_peak if algorithm == "matrix" else peak),
                best.get(name, 0.0),
            )
        )
    return rows


def _noise(config: Config) -> NDArray[np.uint8]:
    shape = (config.input_height, config.input_width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _inside_fraction(conv: Conv, source: Shape, out: Shape) -> float:
    """Fraction of the filter's taps inside the input; RoIs skip the taps in the padding."""
    if out.domain == "map":
        return 1.0
    fraction = 1.0
    for size, length, kernel, before in zip(
        source.size, out.size, conv.kernel, conv.padding[:2], strict=True
    ):
        first = [i * conv.stride - before for i in range(length)]
        taps = sum(0 <= start + k < size for start in first for k in range(kernel))
        fraction *= taps / (length * kernel)
    return fraction


def _fastest(engine: Engine, network_input: NDArray[Any]) -> dict[str, float]:
    """Seconds of each operation in its fastest run."""
    best: dict[str, float] = {}
    for _ in range(RUNS):
        engine.run(network_input)
        seconds: dict[str, float] = {}
        for name, value in engine.native.timings:
            seconds[name] = seconds.get(name, 0.0) + value
        best = {name: min(value, best.get(name, value)) for name, value in seconds.items()}
    return best


def table(rows: list[PlannedOp]) -> str:
    """Text table, one line for each operation."""
    lines = [
        f"{'operation':20} {'algorithm':9} {'zeros':>6} {'elements':>8} {'GFLOP':>8} "
        f"{'expected':>9} {'measured':>9} GFLOP/s {'ms':>8}"
    ]
    for r in rows:
        rate = f"{r.gflop / r.seconds:9.0f}" if r.seconds else f"{'-':>9}"
        expected = f"{r.expected:9.0f}" if r.expected else f"{'-':>9}"
        lines.append(
            f"{r.name:20} {r.algorithm:9} {100 * r.sparsity:5.1f}% {100 * r.element_density:7.1f}% "
            f"{r.gflop:8.3f} {expected} "
            f"{rate} {'':7} {1000 * r.seconds:8.2f}"
        )
    return "\n".join(lines)


def autotune(
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
    isa: str = "",
    precision: Precision = "full",
    clipping_thresholds: Mapping[str, ClippingThreshold] | None = None,
    int8_biases: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, str]:
    """Measure the fastest algorithm of each operation, on noise.

    Args:
        config: configuration of the model.
        tensors: folded weights and biases by name.
        threads, isa, precision, clipping_thresholds, int8_biases: as for `Engine`.

    Returns:
        "sparse", "dense", "rowwise", "matrix" or "winograd" by operation.
    """
    network_input = _noise(config)
    algorithms: dict[str, str] = {}
    fastest: dict[str, float] = {}

    def build(algorithms: Mapping[str, str] | None) -> Engine:
        return Engine(
            config,
            tensors,
            threads=threads,
            isa=isa,
            precision=precision,
            algorithms=algorithms,
            clipping_thresholds=clipping_thresholds,
            int8_biases=int8_biases,
        )

    convolutions = build(None).native.convolutions
    for algorithm in ("sparse", "dense", "rowwise", "matrix", "winograd"):
        candidates = {
            name: algorithm for name, *_, eligible in convolutions if algorithm in eligible
        }
        for name, seconds in _fastest(build(candidates), network_input).items():
            if name in candidates and seconds < fastest.get(name, np.inf):
                algorithms[name], fastest[name] = algorithm, seconds
    return algorithms


def save_tuning(path: str | os.PathLike[str], algorithms: Mapping[str, str]) -> None:
    """Write a tuning file.

    Args:
        path: the file; must not exist.
        algorithms: "sparse", "dense", "rowwise", "matrix" or "winograd" by operation.

    Raises:
        InputError: the file exists already or cannot be written.
    """
    write_atomic(Path(path), (json.dumps({"plan": dict(algorithms)}, indent=1) + "\n").encode())


def load_tuning(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a tuning file: algorithms by operation.

    Raises:
        InputError: the file cannot be read, or is not a tuning file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{os.fspath(path)}: cannot be read as a tuning file ({error})") from None
    algorithms = content.get("plan") if isinstance(content, dict) else None
    if not isinstance(algorithms, dict) or not all(isinstance(v, str) for v in algorithms.values()):
        raise InputError(
            f"{os.fspath(path)}: not a tuning file; make one with 'sparsedet info --autotune FILE'"
        )
    return algorithms
