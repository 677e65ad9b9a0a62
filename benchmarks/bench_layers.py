"""Every layer shape of the network, sparsedet against OpenVINO, from runs of the whole network.

    python benchmarks/bench_layers.py --json docs/results/bench_layers.json

A layer timed alone finds its input and weights in the cache; in the network it does not. So both
sides run whole, in turn, and say where their time went: OpenVINO by its profile, ours by the
engine's timers. Layers of one shape are one row, with the mean of their times; the median over all
runs counts. Work beside convolutions and products (proposals, RoIAlign, pooling, NMS) is summed up
in `other`. OpenVINO is held to the CPU's peak as in bench_model.py.

Glossary: `gflop` is dense work, 2 a multiply-add, which is what OpenVINO does; `work_gflop` what
our engine does: nonzero weights alone, and res5's hoisted layers once for the map instead of once
for each region. Neither counts the taps of a window that lie in the padding (18 % of a 3x3 on 7x7).
The share of the peak is the rate of either by the measured f32 peak. `megabytes` is what our engine
has to read and write at least, once each: maps or regions in and out, residuals, packed weights.
Together with the measured bandwidth of the memory it gives the roofline (plots.py); what stays in a
cache between two layers can lie above it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from lib import machine, subjects
from lib.openvino_profile import Profile, Profiler, is_void

import sparsedet
from sparsedet.engine import Engine
from sparsedet.engine.lower import MERGED
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.c4 import build_network
from sparsedet.model.file import ModelFile
from sparsedet.model.graph import Layer, Network
from sparsedet.model.sparsity import sparsity_report

PACKED_BYTES = 5
"""Of a packed weight: 4, and its share of a 2-byte index that all rows of a pattern use."""

Times = dict[str, float]


@dataclass(frozen=True)
class Operation:
    """What our engine runs as one: a layer, or several merged ones."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def hoisted(self) -> bool:
        """Run by our engine on the map, before RoIAlign."""
        return self.layers[0].source == "rois"

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for operations that differ in nothing but their place in the network."""
        return tuple(
            (
                y.component,
                y.kind,
                y.in_channels,
                y.out_channels,
                y.kernel,
                y.stride,
                y.in_size,
                y.relu,
                y.residual is not None,
                self.hoisted,
            )
            for y in self.layers
        )

    def runs(self, network: Network, hoisting: bool) -> float:
        """How often an image multiplies by each weight, on average over the window's taps."""
        first = self.layers[0]
        if hoisting and self.hoisted:
            return network.feature_size[0] * network.feature_size[1]
        rows, columns = (
            _taps(n_in, n_out, first)
            for n_in, n_out in zip(first.in_size, first.out_size, strict=True)
        )
        regions = network.config.proposals if first.component == "roi" else 1
        return rows * columns / first.kernel**2 * regions

    def moved(self, network: Network, weights: int) -> int:
        """Bytes in and out, with so many weights that are not zero."""
        first = self.layers[0]
        sizes = first.in_size, first.out_size
        if self.hoisted:
            sizes = network.feature_size, network.feature_size
        several = first.component == "roi" and not self.hoisted
        regions = network.config.proposals if several else 1
        read, written = (rows * columns * regions for rows, columns in sizes)
        out = sum(layer.out_channels for layer in self.layers)
        floats = read * first.in_channels + written * out * (2 if first.residual else 1)
        return 4 * floats + PACKED_BYTES * weights

    def describe(self) -> str:
        """For people: channels, kernel, stride, map."""
        y = self.layers[0]
        out = sum(layer.out_channels for layer in self.layers)
        if y.kind == "linear":
            return f"{y.in_channels}->{out} product, regions"
        where = "regions" if y.component == "roi" else f"{y.out_size[0]}x{y.out_size[1]}"
        text = f"{y.in_channels}->{out} {y.kernel}x{y.kernel}"
        text += f"/{y.stride}" if y.stride > 1 else ""
        text += " + residual" if y.residual else ""
        return f"{text}, {where}" + (" (hoisted)" if self.hoisted else "")


def _taps(size: int, out: int, layer: Layer) -> int:
    """Taps on the map, not in the padding, of all windows along one axis."""
    starts = (i * layer.stride - layer.padding[0] for i in range(out))
    return sum(min(start + layer.kernel, size) - max(start, 0) for start in starts)


def operations(network: Network) -> list[Operation]:
    """All operations with weights, in order."""
    merged = {name: whole for whole, names in MERGED.items() for name in names}
    members: dict[str, list[Layer]] = defaultdict(list)
    for layer in network.weighted:
        members[merged.get(layer.name, layer.name)].append(layer)
    return [Operation(name, tuple(layers)) for name, layers in members.items()]


def ours(engine: Engine, network_input: np.ndarray) -> Times:
    """Seconds by operation of one run."""
    engine.run(network_input)
    seconds: Counter[str] = Counter()
    for name, time in engine.native.timings:  # regions come in several blocks
        seconds[name] += time
    return dict(seconds)


def theirs(profile: Profile, found: list[Operation]) -> Times:
    """Seconds of one run by our operations; what belongs to none under the type's name."""
    left = dict(profile.layers)
    seconds = {op.name: sum(left.pop(y.name, 0.0) for y in op.layers) for op in found}
    return seconds | left | dict(profile.other)


def medians(runs: list[Times]) -> Times:
    names = {name: None for times in runs for name in times}
    return {name: statistics.median(times.get(name, 0.0) for times in runs) for name in names}


def measure(model: ModelFile, photo: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model: rows by shape and what is beside them."""
    config = model.config
    network = build_network(config)
    found = operations(network)
    network_input, _ = to_network_input(
        photo, config.input_height, config.input_width, config.resize
    )
    engine = Engine(config, model.tensors, threads=arguments.threads, isa=arguments.isa)
    profiler = Profiler(model, arguments.threads, "f32")
    ours(engine, network_input), profiler(network_input)
    peaks, mine, profiles = [], [], []
    for _ in range(arguments.repeats):
        peaks.append(machine.peak_gflops(arguments.isa, arguments.threads))
        mine.append(ours(engine, network_input))
        profiles.append(profiler(network_input))
    report = sparsity_report(config, model.tensors)
    peak, our = statistics.median(peaks), medians(mine)
    their = medians([theirs(profile, found) for profile in profiles])
    shares = [report.gflops / p.dense / peak for p, peak in zip(profiles, peaks, strict=True)]
    share = statistics.median(shares)
    rows: list[dict[str, Any]] = []
    for shape in dict.fromkeys(op.shape for op in found):
        group = [op for op in found if op.shape == shape]
        if all(op.name in our for op in group):
            rows.append(row(network, group, model, our, their, peak))
    listed = {op.name for op in found}
    return {
        "sparsity": report.sparsity,
        "peak_gflops": peak,
        "bandwidth_gb_s": machine.bandwidth(arguments.threads),
        "openvino_share_of_peak": share,
        "void": is_void(config, "f32", share),
        "layers": rows,
        # Done by our engine inside other operations, without a time of their own.
        "inside_others": [op.name for op in found if op.name not in our],
        "other": {
            "sparsedet": {name: s for name, s in our.items() if name not in listed},
            "openvino": {name: s for name, s in their.items() if name not in listed and s > 1e-5},
        },
    }


def row(
    network: Network,
    group: list[Operation],
    model: ModelFile,
    our: Times,
    their: Times,
    peak: float,
) -> dict[str, Any]:
    """One shape: means over its operations."""
    count = len(group)
    weights = [model.tensors[f"{y.name}.weight"] for op in group for y in op.layers]
    size = sum(w.size for w in weights)
    kept = sum(int(np.count_nonzero(w)) for w in weights)
    gflop = 2e-9 * size * group[0].runs(network, False) / count
    work = 2e-9 * kept * group[0].runs(network, True) / count
    seconds = sum(our[op.name] for op in group) / count
    peer = sum(their[op.name] for op in group) / count
    return {
        "shape": group[0].describe(),
        "first": group[0].name,
        "count": count,
        "density": kept / size,
        "gflop": gflop,
        "work_gflop": work,
        "megabytes": 1e-6 * group[0].moved(network, kept // count),
        "sparsedet_seconds": seconds,
        "openvino_seconds": peer,
        "ratio": peer / seconds,
        "sparsedet_share_of_peak": work / seconds / peak,
        # None: less than the profile's microseconds can tell.
        "openvino_share_of_peak": gflop / peer / peak if peer else None,
    }


def show(name: str, result: dict[str, Any]) -> None:
    """One model's table for the terminal."""
    print(
        f"\n{name}, {100 * result['sparsity']:.1f} % zeros; measured peak "
        f"{result['peak_gflops']:.0f} GFLOP/s, OpenVINO's dense work at "
        f"{100 * result['openvino_share_of_peak']:.0f} % of it" + ("  VOID" * 3) * result["void"]
    )
    print(f"{'':42} layers  OpenVINO ms (peak)  sparsedet ms (peak)  ratio")
    for r in result["layers"]:
        print(
            f"{r['shape']:42} {r['count']:6} {1e3 * r['openvino_seconds']:9.2f} "
            f"({100 * (r['openvino_share_of_peak'] or 0):3.0f} %) "
            f"{1e3 * r['sparsedet_seconds']:12.2f} "
            f"({100 * r['sparsedet_share_of_peak']:3.0f} %) {r['ratio']:7.2f}"
        )
    if result["inside_others"]:
        print("  without a time of their own in sparsedet:", *result["inside_others"])
    for runtime, times in result["other"].items():
        print(f"  other, {runtime}: {1e3 * sum(times.values()):.1f} ms", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    arguments = parser.parse_args(argv)
    photo = sparsedet.read_image(arguments.photo)
    circumstances = machine.describe(arguments.isa, arguments.threads)
    results: list[dict[str, Any]] = []
    for model in subjects.models(arguments, photo):
        results.append(measure(model, photo, arguments))
        show(model.config.name, results[-1])
        if arguments.json:  # after each, because a run takes minutes
            content = {
                "machine": circumstances,
                "model": model.config.name,
                "void": any(r["void"] for r in results),
                "results": results,
            }
            machine.save(arguments.json, content)
        del model
        gc.collect()
    ratios = (
        f"{r['sparsity']:.2f}:{statistics.median(y['ratio'] for y in r['layers']):.2f}"
        for r in results
    )
    print("median ratio of the shapes", *ratios)


if __name__ == "__main__":
    main()
