"""How each operation is run here: the engine's algorithms, shown, measured, and kept in a file.

The engine's cost model plans by shapes and zeros alone, so that results are the same to the bit on
every machine with the same instruction set. `autotune` measures instead; what it finds holds for
one model on one machine, and is kept in a JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import peak_gflops, peak_gflops_bf16, peak_gflops_int8
from ..errors import InputError
from ..files import write_atomic
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.graph import Layer
from . import Engine, Precision
from .lower import MERGED

RUNS = 3
"""Runs of which the fastest counts."""


@dataclass(frozen=True, slots=True)
class PlannedOp:
    """One operation.

    Attributes:
        sparsity: zeros among its weights, 0..1.
        words: share of its weight words (one weight, or two of bf16, or four of int8) that hold a
            weight; what is not zero as a whole is multiplied as a whole.
        gflop: 10^9 floating-point operations that are done for an image, zeros left out where the
            method leaves them out.
        expected: GFLOP/s that the cost model expects, from the CPU's measured peak.
        seconds: measured, the fastest of some runs; RoIAlign of hoisted operations not included.
    """

    name: str
    method: str
    sparsity: float
    words: float
    gflop: float
    expected: float
    seconds: float


def measure(engine: Engine, network_input: NDArray[Any] | None = None) -> list[PlannedOp]:
    """Run the engine a few times and set what it did against what was expected.

    Args:
        network_input: (H, W, 3); default: noise of the model's network input size, on which random proposals
            come out, as many as there are at most.
    """
    config = engine.config
    network_input = _noise(config) if network_input is None else network_input
    network = build_network(config, network_input.shape[:2])
    best = _fastest(engine, network_input)
    probes = {"f32": peak_gflops, "bf16": peak_gflops_bf16, "int8": peak_gflops_int8}
    peak = probes[engine.precision](engine.isa, engine.threads, 0.3)
    by_name: dict[str, list[Layer]] = {}
    for layer in network.weighted:
        merged = next((m for m, names in MERGED.items() if layer.name in names), layer.name)
        by_name.setdefault(merged, []).append(layer)
    rows = []
    for name, method, share, nonzero, words, hoisted, _ in engine.native.planned:
        layers = by_name[name]
        layer, weights = layers[0], sum(layer.weights for layer in layers)
        cells = layer.out_size[0] * layer.out_size[1] * _inside(layer)
        if hoisted:
            cells = network.feature_size[0] * network.feature_size[1]
        elif layer.component == "roi":
            cells *= config.proposals
        held = words * weights if engine.precision == "int8" else nonzero
        kept = {"sparse": held, "dense": weights, "winograd": weights / 4}[method]
        rows.append(
            PlannedOp(
                name,
                method,
                1 - nonzero / weights,
                words,
                2e-9 * kept * cells,
                share * peak,
                best.get(name, 0.0),
            )
        )
    return rows


def _noise(config: ModelConfig) -> NDArray[np.uint8]:
    shape = (config.input_height, config.input_width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _inside(layer: Layer) -> float:
    """Share of a layer's taps that lie inside its input, where regions leave out the others."""
    if layer.component != "roi" or layer.kernel == 1:
        return 1.0
    share = 1.0
    for size, out in zip(layer.in_size, layer.out_size, strict=True):
        first = [i * layer.stride - layer.padding[0] for i in range(out)]
        taps = sum(0 <= start + k < size for start in first for k in range(layer.kernel))
        share *= taps / (out * layer.kernel)
    return share


def _fastest(engine: Engine, network_input: NDArray[Any]) -> dict[str, float]:
    """Seconds of each operation."""
    best: dict[str, float] = {}
    for _ in range(RUNS):
        engine.run(network_input)
        seconds: dict[str, float] = {}
        for name, value in engine.native.timings:
            seconds[name] = seconds.get(name, 0.0) + value
        best = {name: min(value, best.get(name, value)) for name, value in seconds.items()}
    return best


def table(rows: list[PlannedOp]) -> str:
    """As text, one line an operation."""
    lines = [
        f"{'operation':20} {'method':8} {'zeros':>6} {'words':>6} {'GFLOP':>8} {'expected':>9} "
        f"{'measured':>9} GFLOP/s {'ms':>8}"
    ]
    for r in rows:
        rate = f"{r.gflop / r.seconds:9.0f}" if r.seconds else f"{'-':>9}"
        lines.append(
            f"{r.name:20} {r.method:8} {100 * r.sparsity:5.1f}% {100 * r.words:5.1f}% "
            f"{r.gflop:8.3f} {r.expected:9.0f} "
            f"{rate} {'':7} {1000 * r.seconds:8.2f}"
        )
    return "\n".join(lines)


def autotune(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
    isa: str = "",
    precision: Precision = "f32",
    clipping_thresholds: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The fastest method of each operation, measured here on noise.

    Args:
        config, tensors: the model, folded.
        threads, isa, precision, clipping_thresholds: as `Engine` takes them.
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
        )

    planned = build(None).native.planned
    for method in ("sparse", "dense", "winograd"):
        wanted = {
            name: method
            for name, *_, can_winograd in planned
            if method != "winograd" or can_winograd
        }
        for name, seconds in _fastest(build(wanted), network_input).items():
            if name in wanted and seconds < fastest.get(name, np.inf):
                algorithms[name], fastest[name] = method, seconds
    return algorithms


def save_tuning(path: str | os.PathLike[str], algorithms: Mapping[str, str]) -> None:
    """Write a algorithms.

    Raises:
        InputError: the file exists.
    """
    if Path(path).exists():
        raise InputError(f"{os.fspath(path)}: exists already and is not overwritten")
    write_atomic(Path(path), (json.dumps({"plan": dict(algorithms)}, indent=1) + "\n").encode())


def load_tuning(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a algorithms.

    Raises:
        InputError: it cannot be read or is no algorithms.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(path)}: cannot be read as a algorithms ({error})") from None
    algorithms = content.get("plan") if isinstance(content, dict) else None
    if not isinstance(algorithms, dict) or not all(isinstance(v, str) for v in algorithms.values()):
        raise InputError(f"{os.fspath(path)}: is no algorithms file")
    return algorithms
