"""Where OpenVINO's time goes, and whether it runs as well as it can.

A profiled request of its own, never one that is timed. The exporter gives the graph's operations
their layers' names, so the profile can be read against the layer table.

Health: our sparse engine may only be called faster than a peer that does its dense work about as
fast as the CPU can. On a two-core Zen 5, OpenVINO reached 93 to 99 % of the measured f32 peak on
the dense part of r101-c4: everything but pre- and postprocessing, proposals and RoIAlign. A run in
which it stays more than 5 % under the lower figure is void: a busy machine, a bad build, a graph
that it cannot optimise. So is one in which it exceeds the peak by more than 5 %: then the peak was
disturbed. Peak and profile are measured in turn and compared pairwise, because a shared machine's
clock and load change within a minute; the peak is the median of a third of a second's bursts on
both cores at once, as the time is one of whole runs (the best burst is some 3 % higher, and the
figure above is not of it: one core's best was 225 to 240 GFLOP/s where both together made 426).
Work is counted as in that figure, with the taps in the padding, which OpenVINO may skip: the share
is nominal (bench_layers.py does without). A comparison is judged by the precision that OpenVINO is
timed in. The figure is of f32; bf16, where OpenVINO comes as near to its own peak, is held to the
same, for int8 there is none. The rule is for r101-c4 on its own network input; elsewhere the share is
recorded and not judged.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lib.machine import peak_gflops
from lib.peers import openvino_backend
from numpy.typing import NDArray

from sparsedet.model.c4 import build_network
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import ModelFile
from sparsedet.model.presets import preset

FLOOR, CEILING = 0.93 * 0.95, 1.05
"""Shares of the measured peak in the dense part between which a run counts, see above."""

_DENSE = {"Convolution", "FullyConnected", "MatMul", "MaxPool", "ReduceMean", "Reorder"}


@dataclass
class Profile:
    """Seconds of one run.

    Attributes:
        layers: of the operation that has this layer's name (bias, residual and ReLU are in it).
        other: of all other operations, by their type.
        dense: of convolutions, products, pooling and the conversions between their layouts.
        primitives: seconds by implementation, such as brgconv_avx512_f32.
    """

    layers: dict[str, float] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    primitives: Counter[str] = field(default_factory=Counter)
    dense: float = 0.0

    def share_of(self, instruction_set: str) -> float:
        """Share of the time in implementations with that instruction set, 0..1."""
        named = sum(s for name, s in self.primitives.items() if instruction_set in name)
        return named / sum(self.primitives.values())


class Profiler:
    """The exported network in OpenVINO, profiled; calling it with a network input runs it once."""

    def __init__(self, model: ModelFile, threads: int, precision: str) -> None:
        self.layers = {layer.name for layer in build_network(model.config).layers}
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
            # OpenVINO's CPU plugin gives the mean over all runs so far.
            total = entry.real_time.total_seconds() * self.runs
            seconds = max(0.0, total - self.before[entry.node_name])
            self.before[entry.node_name] = total
            if entry.node_name in self.layers:
                profile.layers[entry.node_name] = seconds
            else:
                profile.other[entry.node_type] += seconds
            if entry.node_type in _DENSE:
                profile.dense += seconds
            profile.primitives[entry.exec_type] += seconds
        return profile


def is_void(config: ModelConfig, precision: str, share: float | None) -> bool:
    """Whether a run with that share of the peak says nothing; False where no rule applies."""
    if (
        precision not in ("f32", "bf16")
        or build_network(config).layers != build_network(preset("r101-c4")).layers
    ):
        return False
    return share is None or not FLOOR <= share <= CEILING


def health(
    model: ModelFile,
    network_input: NDArray[np.uint8],
    threads: int,
    precision: str,
    isa: str,
    gflops: float,
    runs: int = 3,
) -> dict[str, Any]:
    """OpenVINO's dense part against the CPU's peak in the same minutes.

    Args:
        isa: instruction set whose peak OpenVINO is held to.
        gflops: of one picture, dense.

    Returns:
        JSON-ready: peaks in GFLOP/s and seconds by run, `share` (median of their ratios; None where
        the CPU has no peak in this precision) and `void`.
    """
    profiler = Profiler(model, threads, precision)
    profiler(network_input)
    peaks, profiles = [], []
    for _ in range(runs):
        before = peak_gflops(isa, threads, precision)
        profiles.append(profiler(network_input))
        peaks.append((before + peak_gflops(isa, threads, precision)) / 2)
    dense = [profile.dense for profile in profiles]
    shares = [gflops / s / peak if peak else None for s, peak in zip(dense, peaks, strict=True)]
    share = None if None in shares else statistics.median(shares)
    return {
        "precision": precision,
        "peak_gflops": peaks,
        "dense_seconds": dense,
        "share_of_peak": share,
        "void": is_void(model.config, precision, share),
        "avx512_time_share": profiles[-1].share_of("avx512"),
        "seconds_by_primitive": dict(profiles[-1].primitives.most_common(6)),
    }
