"""Time of every layer shape: sparsedet against OpenVINO.

    python benchmarks/bench_layers.py --json docs/results/bench_layers.json

Prints one table for each sparsity, and writes the JSON file if --json is given.

A layer timed alone finds its input and weights in the cache; in the network it does not. So both
sides run the whole network, in turn, and report the time of each layer: OpenVINO by its profile,
ours by the engine's timers. Layers of the same shape are one row, with the mean of their times.
Each time is the median over all runs. `other` has the remaining work: proposals, RoIAlign, pooling,
NMS. As in bench_model.py, the run is void if OpenVINO does not reach its usual fraction of the
CPU's peak.

Glossary: `gflop` is the dense work that OpenVINO does, 2 FLOPs for each multiply-add. `work_gflop`
is the work that our engine does: only nonzero weights, and res5's hoisted layers once for the
feature map instead of once for each region. Neither counts the taps of a window in the padding (18
% of a 3x3 on 7x7). `share_of_peak` is FLOPs per second divided by the measured f32 peak.
`megabytes` is the minimum that our engine reads and writes: feature maps or regions in and out,
residuals, packed weights. With the measured memory bandwidth this gives the roofline (plots.py); a
layer that reads its input from a cache can be above that line.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from lib import records, subjects
from lib.openvino_profile import Profile, Profiler, is_void

import sparsedet
from sparsedet.benchmark import machine
from sparsedet.engine import Engine
from sparsedet.engine.lower import lowered
from sparsedet.images.letterbox import prepare
from sparsedet.model.detector_config import build_graph
from sparsedet.model.file import ModelFile
from sparsedet.model.graph import Conv, Graph, Layer, Shape
from sparsedet.model.sparsity import sparsity_report

PACKED_BYTES = 5
"""Bytes of a packed weight: 4, and about 1 of the 2-byte column index that tile rows share."""

Times = dict[str, float]


@dataclass(frozen=True)
class TimedOperation:
    """A layer that our engine runs, or several merged ones.

    Attributes:
        output: shape of its output in our engine.
    """

    name: str
    layers: tuple[Layer, ...]
    output: Shape

    @property
    def hoisted(self) -> bool:
        """Whether our engine runs it on the feature map, before RoIAlign."""
        return self.layers[0].per_roi and self.output.domain == "map"

    @property
    def shape(self) -> tuple[Any, ...]:
        """All that the time depends on; equal for operations of the same shape."""
        return tuple(
            (
                layer.output.domain,
                layer.name.startswith("rpn."),
                layer.kind,
                layer.in_channels,
                layer.out_channels,
                layer.kernel,
                layer.stride,
                layer.in_size,
                layer.relu,
                layer.residual is not None,
                self.hoisted,
            )
            for layer in self.layers
        )

    def uses_of_a_weight(self, hoisting: bool) -> float:
        """Multiplications by each weight for one image, on average over the window's taps."""
        first = self.layers[0]
        if hoisting and self.hoisted:
            return self.output.height * self.output.width
        rows, columns = (
            _taps(size, out_size, first)
            for size, out_size in zip(first.in_size, first.out_size, strict=True)
        )
        return rows * columns / first.kernel**2 * first.output.count

    def moved_bytes(self, nonzero: int) -> int:
        """Minimum of bytes read and written, with that number of nonzero weights."""
        first = self.layers[0]
        sizes = first.in_size, first.out_size
        if self.hoisted:
            sizes = self.output.size, self.output.size
        read, written = (rows * columns * self.output.count for rows, columns in sizes)
        out = sum(layer.out_channels for layer in self.layers)
        floats = read * first.in_channels + written * out * (2 if first.residual else 1)
        return 4 * floats + PACKED_BYTES * nonzero

    def describe(self) -> str:
        """A short description: channels, kernel, stride, feature map."""
        first = self.layers[0]
        out = sum(layer.out_channels for layer in self.layers)
        if first.kind == "linear":
            return f"{first.in_channels}->{out} product, regions"
        rows, columns = first.out_size
        domain = "regions" if first.per_roi else f"{rows}x{columns}"
        text = f"{first.in_channels}->{out} {first.kernel}x{first.kernel}"
        text += f"/{first.stride}" if first.stride > 1 else ""
        text += " + residual" if first.residual else ""
        return f"{text}, {domain}" + (" (hoisted)" if self.hoisted else "")


def _taps(size: int, out: int, layer: Layer) -> int:
    """Taps inside the feature map, not in the padding, of all windows along one axis."""
    starts = (i * layer.stride - layer.padding[0] for i in range(out))
    return sum(min(start + layer.kernel, size) - max(start, 0) for start in starts)


def operations(graph: Graph) -> list[TimedOperation]:
    """All operations with weights, in order of execution."""
    ours = lowered(graph)
    return [
        TimedOperation(
            operation.name,
            tuple(graph.layer[name] for name in conv.layers),
            ours.shapes[operation.name],
        )
        for operation, conv in ours.of_kind(Conv)
    ]


def run_engine(engine: Engine, network_input: np.ndarray) -> Times:
    """Seconds of each operation in one run of our engine."""
    engine.run(network_input)
    seconds: Times = defaultdict(float)
    for name, time in engine.native.timings:  # regions run in several batches
        seconds[name] += time
    return dict(seconds)


def openvino_times(profile: Profile, ops: list[TimedOperation]) -> Times:
    """Seconds of one run of OpenVINO, by our operations; other work is under its type's name."""
    rest = dict(profile.layers)
    seconds = {op.name: sum(rest.pop(layer.name, 0.0) for layer in op.layers) for op in ops}
    return seconds | rest | dict(profile.other)


def medians(runs: list[Times]) -> Times:
    """Median seconds of each name over the runs."""
    names = {name: None for times in runs for name in times}
    return {name: statistics.median(times.get(name, 0.0) for times in runs) for name in names}


def measure(model: ModelFile, image: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one model: one row for each shape, and the other work."""
    config = model.config
    ops = operations(build_graph(config))
    network_input, _ = prepare(image, config)
    engine = Engine(config, model.tensors, threads=arguments.threads, isa=arguments.isa)
    profiler = Profiler(model, arguments.threads, "f32")
    run_engine(engine, network_input)  # the first run of either does not count
    profiler(network_input)
    peaks, engine_runs, profiles = [], [], []
    for _ in range(arguments.repeats):
        peaks.append(machine.peak_gflops(arguments.isa, arguments.threads))
        engine_runs.append(run_engine(engine, network_input))
        profiles.append(profiler(network_input))
    report = sparsity_report(config, model.tensors)
    peak, ours = statistics.median(peaks), medians(engine_runs)
    theirs = medians([openvino_times(profile, ops) for profile in profiles])
    fraction = statistics.median(
        report.gflops / profile.dense / peak for profile, peak in zip(profiles, peaks, strict=True)
    )
    rows: list[dict[str, Any]] = []
    for shape in dict.fromkeys(op.shape for op in ops):
        same_shape = [op for op in ops if op.shape == shape]
        if all(op.name in ours for op in same_shape):
            rows.append(row(same_shape, model, ours, theirs, peak))
    listed = {op.name for op in ops}
    return {
        "sparsity": report.sparsity,
        "peak_gflops": peak,
        "bandwidth_gb_s": machine.bandwidth(arguments.threads),
        "openvino_share_of_peak": fraction,
        "void": is_void(config, "f32", fraction),
        "layers": rows,
        # Our engine runs these inside other operations and does not time them alone.
        "inside_others": [op.name for op in ops if op.name not in ours],
        "other": {
            "sparsedet": {name: s for name, s in ours.items() if name not in listed and s > 1e-5},
            "openvino": {name: s for name, s in theirs.items() if name not in listed and s > 1e-5},
        },
    }


def row(
    ops: list[TimedOperation],
    model: ModelFile,
    ours: Times,
    theirs: Times,
    peak: float,
) -> dict[str, Any]:
    """The row of one shape: means over its operations."""
    count = len(ops)
    weights = [model.tensors[f"{layer.name}.weight"] for op in ops for layer in op.layers]
    size = sum(w.size for w in weights)
    nonzero = sum(int(np.count_nonzero(w)) for w in weights)
    gflop = 2e-9 * size * ops[0].uses_of_a_weight(False) / count
    work = 2e-9 * nonzero * ops[0].uses_of_a_weight(True) / count
    seconds = sum(ours[op.name] for op in ops) / count
    peer = sum(theirs[op.name] for op in ops) / count
    return {
        "shape": ops[0].describe(),
        "first": ops[0].name,
        "count": count,
        "density": nonzero / size,
        "gflop": gflop,
        "work_gflop": work,
        "megabytes": 1e-6 * ops[0].moved_bytes(nonzero // count),
        "sparsedet_seconds": seconds,
        "openvino_seconds": peer,
        "ratio": peer / seconds,
        "sparsedet_share_of_peak": work / seconds / peak,
        # None: less than one microsecond, the profile's resolution.
        "openvino_share_of_peak": gflop / peer / peak if peer else None,
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print the table of one model."""
    print(
        f"\n{name}, {100 * result['sparsity']:.1f} % zeros; measured peak "
        f"{result['peak_gflops']:.0f} GFLOP/s, OpenVINO's dense work reaches "
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
        print("  not timed alone in sparsedet:", *result["inside_others"])
    for runtime, times in result["other"].items():
        print(f"  other, {runtime}: {1e3 * sum(times.values()):.1f} ms", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    arguments = parser.parse_args(argv)
    image = sparsedet.read_image(arguments.image)
    conditions = records.describe(arguments.isa, arguments.threads)
    results: list[dict[str, Any]] = []
    for model in subjects.models(arguments, image):
        results.append(measure(model, image, arguments))
        show(model.config.name, results[-1])
        if arguments.json:  # after each, because a run takes minutes
            content = {
                "machine": conditions,
                "model": model.config.name,
                "void": any(r["void"] for r in results),
                "results": results,
            }
            records.save(arguments.json, content)
        del model
        gc.collect()
    ratios = (
        f"{r['sparsity']:.2f}:{statistics.median(row['ratio'] for row in r['layers']):.2f}"
        for r in results
    )
    print("median ratio of the shapes", *ratios)


if __name__ == "__main__":
    main()
