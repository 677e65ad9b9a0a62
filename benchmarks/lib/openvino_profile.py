"""Where OpenVINO spends its time, and whether it runs as fast as it can.

The profile comes from a request of its own, which is never timed. The exporter names the graph's
operations after our layers, so the profile can be compared with the graph.

Health: a comparison is only fair if OpenVINO does its dense work about as fast as the CPU can. On a
two-core Zen 5, OpenVINO reached 93 to 99 % of the measured f32 peak in the dense part of r101-c4:
all but pre- and postprocessing, proposals and RoIAlign. A run more than 5 % below the lower figure
is void: a busy machine, a bad build, or a graph that OpenVINO cannot optimise. A run more than 5 %
above the peak is void too, because then the peak was disturbed.

Peak and profile are measured in turn and compared pairwise: clock and load of a shared machine
change within a minute. The peak is the median of bursts during a third of a second on all cores,
because the time is also that of whole runs. (The best burst is some 3 % higher; one core alone made
225 to 240 GFLOP/s where both together made 426.) The work includes the taps in the padding, which
OpenVINO may skip, so the fraction is nominal; bench_layers.py leaves them out.

OpenVINO's work is judged by the unit that does it: its implementations with "amx" in their names
run on the matrix unit, whose peak is 16 times the vector unit's. What fraction of that it can reach
is not known well enough for a limit (about a third was seen): it is recorded and not judged.

A comparison is judged in the precision in which OpenVINO is timed. The limits were measured in f32;
bf16, where OpenVINO comes as near to its own peak, has the same limits, and int8 has none. They
hold for r101-c4 at its own network input; for other models the fraction is recorded and not judged.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lib.peers import openvino_backend
from numpy.typing import NDArray

from sparsedet.benchmark.machine import peak_gflops, unit_peaks
from sparsedet.model.detector_config import Config, build_graph
from sparsedet.model.file import ModelFile
from sparsedet.model.presets import preset

FLOOR, CEILING = 0.93 * 0.95, 1.05
"""Accepted fractions of the measured peak in the dense part, see above."""

PRODUCTS = {"Convolution", "FullyConnected", "MatMul"}
"""Types of the operations that multiply."""

_DENSE = PRODUCTS | {"MaxPool", "ReduceMean", "Reorder"}


@dataclass
class Profile:
    """Seconds of one run.

    Attributes:
        layers: by layer name; bias, residual and ReLU included.
        other: of all other operations, by type.
        types: of all operations, by type. A layer that runs on several maps is one operation each,
            and not all of them have the layer's name.
        dense: of convolutions, products, pooling and the conversions between their layouts.
        primitives: by implementation, such as brgconv_avx512_f32.
    """

    layers: dict[str, float] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    primitives: Counter[str] = field(default_factory=Counter)
    dense: float = 0.0

    def fraction_of_time(self, instruction_set: str) -> float:
        """Fraction of the time in implementations with that instruction set, 0..1."""
        seconds = sum(s for name, s in self.primitives.items() if instruction_set in name)
        return seconds / sum(self.primitives.values())


class Profiler:
    """The exported network in OpenVINO; a call runs it once and returns the profile."""

    def __init__(self, model: ModelFile, threads: int, precision: str) -> None:
        self.layers = {layer.name for layer in build_graph(model.config).layers}
        self.backend = openvino_backend(model, threads, precision, PERF_COUNT=True)
        self.runs = 0
        self.before: dict[str, float] = defaultdict(float)

    def __call__(self, network_input: NDArray[np.uint8]) -> Profile:
        self.backend.run(network_input)
        self.runs += 1
        profile = Profile()
        for entry in self.backend.request.profiling_info:
            if entry.status != entry.Status.EXECUTED:
                continue
            # OpenVINO's CPU plugin reports the mean over all runs so far.
            total = entry.real_time.total_seconds() * self.runs
            seconds = max(0.0, total - self.before[entry.node_name])
            self.before[entry.node_name] = total
            if entry.node_name in self.layers:
                profile.layers[entry.node_name] = seconds
            else:
                profile.other[entry.node_type] += seconds
            profile.types[entry.node_type] += seconds
            if entry.node_type in _DENSE:
                profile.dense += seconds
            profile.primitives[entry.exec_type] += seconds
        return profile


def is_void(config: Config, precision: str, fraction: float | None) -> bool:
    """Whether a run with this fraction of the peak is void; False where no rule applies."""
    if (
        precision not in ("f32", "bf16")
        or build_graph(config).layers != build_graph(preset("r101-c4")).layers
    ):
        return False
    return fraction is None or not FLOOR <= fraction <= CEILING


def health(
    model: ModelFile,
    network_input: NDArray[np.uint8],
    threads: int,
    precision: str,
    isa: str,
    gflops: float,
    runs: int = 3,
) -> dict[str, Any]:
    """OpenVINO's dense part compared with the CPU's peak in the same minutes.

    Args:
        isa: instruction set of the peak.
        gflops: dense work of one image.
        runs: number of measurements.

    Returns:
        JSON-ready: peaks in GFLOP/s and dense seconds of each run, `share_of_peak` (median
        fraction; None where the CPU has no peak in this precision) and `void`.
    """
    profiler = Profiler(model, threads, precision)
    on_matrix = profiler(network_input).fraction_of_time("amx") > 0.5

    def peak() -> float:
        if on_matrix:
            return unit_peaks(isa, threads, precision).get("matrix", 0.0)
        return peak_gflops(isa, threads, precision)

    peaks, profiles = [], []
    for _ in range(runs):
        before = peak()
        profiles.append(profiler(network_input))
        peaks.append((before + peak()) / 2)
    dense = [profile.dense for profile in profiles]
    fraction = None
    if all(peaks):
        ratios = (gflops / s / peak for s, peak in zip(dense, peaks, strict=True))
        fraction = statistics.median(ratios)
    return {
        "precision": precision,
        "peak_gflops": peaks,
        "dense_seconds": dense,
        "share_of_peak": fraction,
        "unit": "matrix" if on_matrix else "vector",
        "void": not on_matrix and is_void(model.config, precision, fraction),
        "avx512_time_share": profiles[-1].fraction_of_time("avx512"),
        "seconds_by_primitive": dict(profiles[-1].primitives.most_common(6)),
    }
