"""Whole detections, sparsedet against other runtimes on the same network, interleaved.

    python benchmarks/bench_model.py --json docs/results/bench_model.json

Every runtime starts from the photograph in memory and ends with boxes on it, with the same pre- and
postprocessing, on as many threads. Their detections are compared first (agreement.py); then all run
in turn, round after round, and the ratio is formed within each round. OpenVINO's dense work is held
to the CPU's arithmetic peak, measured in the same minutes (openvino_profile.py): a run in which it
falls short is void. The last line gives the medians of the ratios: how many times faster sparsedet
is at each sparsity.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lib import machine, subjects
from lib.openvino_profile import health
from lib.peers import PEERS, Rows
from lib.subjects import calibration_inputs

import sparsedet
from sparsedet.detections import Detections, from_rows
from sparsedet.engine import Engine
from sparsedet.engine.calibrate import calibrate
from sparsedet.evaluation.agreement import (
    FEATURES_LIMIT,
    LOW_FLOOR,
    Agreement,
    exact,
    features_error,
    loose,
    refuse_to_time,
)
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.file import ModelFile
from sparsedet.model.sparsity import sparsity_report

Run = Callable[[], Detections]

AVX512_LIMIT = 0.0
"""With `--isa avx2`, the share of its time that OpenVINO may still spend in AVX-512 instructions.
Its convolutions can be kept from them; its RoIAlign, pooling and elementwise operations cannot,
which is in its favour. Above, the comparison is void and ours stands alone."""

PAUSE = 0.03
"""Seconds between two runs: the threads of the last runtime may spin that long for more work."""


def detection(model: ModelFile, photo: np.ndarray, rows: Rows) -> Run:
    """The whole way: photograph -> network input -> rows -> Detections."""
    config = model.config

    def run() -> Detections:
        network_input, letterbox = to_network_input(
            photo, config.input_height, config.input_width, config.resize
        )
        return from_rows(rows(network_input), letterbox, config.class_names, config.category_ids)

    return run


def interleaved(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, all in turn, after a round that does not count; every round starts with
    another one, so that none always comes first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for _ in range(repeats + 1):
        for name in names:
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        names.append(names.pop(0))
    return {name: t[1:] for name, t in times.items()}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times longer theirs takes, by rounds: median and range."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


class Contest:
    """All runtimes of one model."""

    def __init__(self, model: ModelFile, photo: np.ndarray, arguments: argparse.Namespace) -> None:
        self.model, self.photo, self.arguments = model, photo, arguments
        self.clipping_thresholds = model.clipping_thresholds
        if arguments.precision == "int8" and self.clipping_thresholds is None:
            self.clipping_thresholds = calibrate(
                model.config,
                model.tensors,
                calibration_inputs(model.config),
                threads=arguments.threads,
            )
        self.engine = self.build_engine()
        self.runs = {"sparsedet": detection(model, photo, self.engine.run)}
        self.precisions = {"sparsedet": arguments.precision}
        self.features_error = self.compare_features()
        for name in arguments.peer:
            self.add_peer(name)

    def build_engine(self, **changes: Any) -> Engine:
        options = {"threads": self.arguments.threads, "isa": self.arguments.isa, **changes}
        if self.arguments.precision != "f32":
            options |= {
                "precision": self.arguments.precision,
                "clipping_thresholds": self.clipping_thresholds,
            }
        return Engine(self.model.config, self.model.tensors, **options)

    def add_peer(self, name: str) -> Run:
        rows = PEERS[name](self.model, self.arguments.threads)
        self.runs[name] = detection(self.model, self.photo, rows)
        low = name.removeprefix("openvino-")
        self.precisions[name] = low if low in ("bf16", "int8") else "f32"
        return self.runs[name]

    def compare_features(self) -> float | None:
        """Error of our int8 features on random weights, see agreement.py; else None."""
        random = str(self.model.provenance.get("weights", "")).startswith("random")
        if self.arguments.precision != "int8" or not random:
            return None
        config = self.model.config
        size = (config.input_height, config.input_width)
        network_input = to_network_input(self.photo, *size, config.resize)[0].astype(np.float32)
        reference = Engine(config, self.model.tensors, threads=self.arguments.threads)
        return features_error(
            reference.native.features(network_input), self.engine.native.features(network_input)
        )

    def check(self) -> dict[str, Agreement]:
        """Agreement of each with OpenVINO in f32.

        Raises:
            SystemExit: they disagree.
        """
        timed = set(self.runs)
        needed = {f"openvino-{precision}" for precision in ("f32", *self.precisions.values())}
        for name in sorted(needed - timed):
            self.add_peer(name)
        found = {name: run() for name, run in self.runs.items()}
        expected = found.pop("openvino-f32")
        rules = {"f32": exact, "bf16": loose, "int8": loose}
        agreements = {
            name: rules[self.precisions[name]](expected, got) for name, got in found.items()
        }
        floor = LOW_FLOOR if self.features_error is None else 0.0
        if problem := refuse_to_time(agreements, self.precisions, floor):
            raise SystemExit(problem)
        if self.features_error is not None and self.features_error > FEATURES_LIMIT:
            raise SystemExit(
                f"sparsedet's features are off by {self.features_error:.2f} of their "
                f"deviation, nothing is timed: expected {FEATURES_LIMIT}"
            )
        self.runs = {name: run for name, run in self.runs.items() if name in timed}
        return agreements

    def add_variants(self) -> None:
        """Our engine with something left out, or on one thread, as asked for."""
        variants: dict[str, dict[str, Any]] = {}
        if self.arguments.ablate:
            variants["without hoisting"] = {"hoist": False}
            # At few zeros alone the plan has such operations.
            planned = self.engine.native.planned
            if winograd := {name: "dense" for name, method, *_ in planned if method == "winograd"}:
                variants["without Winograd"] = {"algorithms": winograd}
        if self.arguments.scaling:
            variants["one thread"] = {"threads": 1}
        for name, changes in variants.items():
            engine = self.build_engine(**changes)
            self.runs[name] = detection(self.model, self.photo, engine.run)
            self.runs[name]()

    def result(self) -> dict[str, Any]:
        """Check, warm up, hold OpenVINO to the peak, time all in turn."""
        arguments, config = self.arguments, self.model.config
        agreements = self.check()
        gc.collect()
        self.add_variants()
        report = sparsity_report(config, self.model.tensors)
        network_input, _ = to_network_input(
            self.photo, config.input_height, config.input_width, config.resize
        )
        precisions = sorted({"f32", *self.precisions.values()}, reverse=True)
        healths = [
            health(
                self.model,
                network_input,
                arguments.threads,
                precision,
                arguments.isa,
                report.gflops,
            )
            for precision in precisions
        ]
        times = interleaved(self.runs, arguments.repeats)
        medians = {name: statistics.median(t) for name, t in times.items()}
        peak = statistics.median(next(h["peak_gflops"] for h in healths if h["precision"] == "f32"))
        judged = {self.precisions[n] for n in self.runs if n.startswith("openvino")} or {"f32"}
        result = {
            "sparsity": report.sparsity,
            "gflops": report.gflops,
            "sparse_gflops": report.sparse_gflops,
            "agreement_with_openvino_f32": {n: a.to_dict() for n, a in agreements.items()},
            "int8_features_error": self.features_error,
            "openvino_health": healths,
            "void": any(h["void"] for h in healths if h["precision"] in judged)
            or (arguments.isa == "avx2" and healths[0]["avx512_time_share"] > AVX512_LIMIT),
            "seconds": times,
            "ratios": {
                n: ratio(times["sparsedet"], t) for n, t in times.items() if n != "sparsedet"
            },
            # Of the f32 peak, whole detections: pre- and postprocessing in the time, not in the
            # work; dense work for the peers, that by nonzero weights for ours.
            "share_of_peak": {
                name: (report.sparse_gflops if name not in PEERS else report.gflops) / s / peak
                for name, s in medians.items()
            },
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if arguments.scaling:
            one = machine.peak_gflops(arguments.isa, 1)
            several = machine.peak_gflops(arguments.isa, arguments.threads)
            result["peak_scaling"] = several / one
        return result


def show(name: str, result: dict[str, Any], restricted: bool) -> None:
    """One model's result for the terminal; `restricted` to AVX2."""
    print(f"\n{name}, {100 * result['sparsity']:.1f} % zeros")
    for runtime, times in result["seconds"].items():
        line = f"  {runtime:20} {statistics.median(times):8.4f} s"
        if runtime in result["ratios"]:
            r = result["ratios"][runtime]
            line += f"   {r['median']:.2f} ({r['least']:.2f}..{r['most']:.2f}) times ours"
        print(line)
    if "peak_scaling" in result:
        print(f"  one thread to all: the arithmetic peak grows {result['peak_scaling']:.2f} times")
    for entry in result["openvino_health"]:
        share = entry["share_of_peak"]
        print(
            f"  OpenVINO's dense work, {entry['precision']}: "
            + (f"{100 * share:.0f} % of the measured peak" if share else "no peak to hold it to")
        )
        if restricted:
            share = 100 * entry["avx512_time_share"]
            print(f"  OpenVINO spent {share:.1f} % of its time in AVX-512 all the same")
    if result["void"]:
        print("  VOID VOID VOID: OpenVINO is not at its best (see above), the ratios say nothing")
    print("", end="", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=["openvino-f32"])
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="f32", help="ours")
    parser.add_argument(
        "--ablate", action="store_true", help="also ours without hoisting, and without Winograd"
    )
    parser.add_argument("--scaling", action="store_true", help="also ours on one thread")
    arguments = parser.parse_args(argv)
    if arguments.isa == "avx2":
        # Restricts oneDNN, and with it OpenVINO's convolutions and products; the result says in
        # what share of its time it ran AVX-512 all the same. The others cannot be restricted.
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    if arguments.isa == "avx2" and set(arguments.peer) - {"openvino-f32"}:
        parser.error("--isa avx2 restricts openvino-f32 alone: leave out the other peers")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    photo = sparsedet.read_image(arguments.photo)
    circumstances = machine.describe(arguments.isa, arguments.threads)
    results: list[dict[str, Any]] = []
    for model in subjects.models(arguments, photo):
        results.append(Contest(model, photo, arguments).result())
        show(model.config.name, results[-1], arguments.isa == "avx2")
        if arguments.json:  # after each, because a run takes minutes
            content = {
                "machine": circumstances,
                "model": model.config.name,
                "weights": model.provenance.get("weights", "trained"),
                "precision": arguments.precision,
                "void": any(r["void"] for r in results),
                "results": results,
            }
            machine.save(arguments.json, content)
        del model
        gc.collect()
    for peer in arguments.peer[1:] + arguments.peer[:1]:  # the first peer's is the last line
        ratios = (
            f"{r['sparsity']:.2f}:"
            + ("void" if r["void"] else f"{r['ratios'][peer]['median']:.2f}")
            for r in results
        )
        print(f"ratios {peer}", *ratios)


if __name__ == "__main__":
    main()
