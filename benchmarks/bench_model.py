"""Time of a whole detection: sparsedet against other runtimes on the same network.

    python benchmarks/bench_model.py --json docs/results/bench_model.json

Prints the times for each sparsity, and writes the JSON file if --json is given. The last line has
the median ratios: how many times faster sparsedet is at each sparsity.

Every runtime starts with the image in memory and ends with boxes in its pixels, with the same pre-
and postprocessing and the same number of threads. First their detections are compared
(lib/agreement.py). Then all runtimes run in turn, round after round, and the ratio of two runtimes
is computed within each round. OpenVINO's dense work is compared with the CPU's arithmetic peak,
measured in the same minutes (lib/openvino_profile.py): a run in which OpenVINO is too slow is void.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from lib import records, subjects
from lib.openvino_profile import health
from lib.peers import PEERS, Rows
from lib.subjects import calibration_inputs
from lib.throughput import images_per_second, openvino_requests, our_requests
from numpy.typing import NDArray

import sparsedet
from sparsedet.benchmark import machine
from sparsedet.benchmark.timing import interleaved, ratio
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
from sparsedet.images.letterbox import prepare
from sparsedet.model.detector_config import build_graph
from sparsedet.model.file import ModelFile
from sparsedet.model.graph import IMAGE, RoiAlign
from sparsedet.model.sparsity import sparsity_report

Run = Callable[[], Detections]

RESTRICTED = {"avx2": "AVX2", "avxvnni": "AVX2_VNNI"}
"""Our instruction set -> what oneDNN, and with it OpenVINO, may use beside it."""

AVX512_LIMIT = 0.05
"""With a restricted instruction set: the fraction of its time that OpenVINO may spend in AVX-512
instructions; it is printed. OpenVINO can be told to run its convolutions without AVX-512, but not
its RoIAlign, pooling and elementwise operations: 1 % of the time of r101-c4, to its advantage.
Above the limit the convolutions were not restricted, and the comparison is void."""


def detection(model: ModelFile, image: np.ndarray, rows: Rows) -> Run:
    """A whole detection: image -> network input -> rows -> Detections."""
    config = model.config

    def run() -> Detections:
        network_input, letterbox = prepare(image, config)
        return from_rows(rows(network_input), letterbox, config.class_names, config.category_ids)

    return run


class RuntimeComparison:
    """The runtimes of one model."""

    def __init__(self, model: ModelFile, image: np.ndarray, arguments: argparse.Namespace) -> None:
        self.model, self.image, self.arguments = model, image, arguments
        self.clipping_thresholds = model.clipping_thresholds
        if arguments.precision == "int8" and self.clipping_thresholds is None:
            self.clipping_thresholds = calibrate(
                model.config,
                model.tensors,
                calibration_inputs(model.config),
                threads=arguments.threads,
            )
        self.engine = self.build_engine()
        self.runs = {"sparsedet": detection(model, image, self.engine.run)}
        self.precisions = {"sparsedet": arguments.precision}
        self.features_error = self.compare_features()
        for name in arguments.peer:
            self.add_peer(name)

    def build_engine(self, **changes: Any) -> Engine:
        """Our engine with the options of the command line, except for the changes."""
        options = {"threads": self.arguments.threads, "isa": self.arguments.isa, **changes}
        if self.arguments.precision != "f32":
            options |= {
                "precision": self.arguments.precision,
                "clipping_thresholds": self.clipping_thresholds,
            }
        return Engine(self.model.config, self.model.tensors, **options)

    def add_peer(self, name: str) -> Run:
        """Add a key of `PEERS` to the runs."""
        rows = PEERS[name](self.model, self.arguments.threads)
        if name == "openvino-default":
            self.precisions[name] = getattr(rows, "__self__").precision  # noqa: B009
        self.runs[name] = detection(self.model, self.image, rows)
        suffix = name.removeprefix("openvino-")
        self.precisions.setdefault(name, suffix if suffix in ("bf16", "int8") else "f32")
        return self.runs[name]

    def compare_features(self) -> float | None:
        """Error of our int8 features on random weights (lib/agreement.py); otherwise None."""
        has_random_weights = str(self.model.provenance.get("weights", "")).startswith("random")
        if self.arguments.precision != "int8" or not has_random_weights:
            return None
        config = self.model.config
        network_input = prepare(self.image, config)[0].astype(np.float32)
        reference = Engine(config, self.model.tensors, threads=self.arguments.threads)
        name = build_graph(config).only(RoiAlign)[0].inputs[0]

        def features(engine: Engine) -> NDArray[np.float32]:
            engine.native.plan(config.input_height, config.input_width)
            return engine.native.run_between({IMAGE: network_input}, [name])[0]

        return features_error(features(reference), features(self.engine))

    def check(self) -> dict[str, Agreement]:
        """Agreement of each runtime with OpenVINO in f32.

        Raises:
            SystemExit: the detections disagree.
        """
        timed = set(self.runs)
        needed = {f"openvino-{precision}" for precision in ("f32", *self.precisions.values())}
        for name in sorted(needed - timed):
            self.add_peer(name)
        detections = {name: run() for name, run in self.runs.items()}
        expected = detections.pop("openvino-f32")
        rules = {"f32": exact, "bf16": loose, "int8": loose}
        agreements = {
            name: rules[self.precisions[name]](expected, actual)
            for name, actual in detections.items()
        }
        floor = LOW_FLOOR if self.features_error is None else 0.0
        if problem := refuse_to_time(agreements, self.precisions, floor):
            raise SystemExit(problem)
        if self.features_error is not None and self.features_error > FEATURES_LIMIT:
            raise SystemExit(
                f"sparsedet's int8 features differ by {self.features_error:.2f} standard "
                f"deviations, expected at most {FEATURES_LIMIT}; nothing is timed"
            )
        self.runs = {name: run for name, run in self.runs.items() if name in timed}
        return agreements

    def add_variants(self) -> None:
        """Add our engine without some of its methods, or on one thread (--ablate, --scaling)."""
        variants: dict[str, dict[str, Any]] = {}
        if self.arguments.ablate:
            variants["without hoisting"] = {"hoist": False}
            # Winograd is chosen at low sparsity only.
            planned = self.engine.native.convolutions
            if winograd := {name: "dense" for name, method, *_ in planned if method == "winograd"}:
                variants["without Winograd"] = {"algorithms": winograd}
        if self.arguments.scaling:
            variants["one thread"] = {"threads": 1}
        for name, changes in variants.items():
            engine = self.build_engine(**changes)
            self.runs[name] = detection(self.model, self.image, engine.run)
            self.runs[name]()

    def throughput(self) -> dict[str, list[float]]:
        """Images per second of ours and of OpenVINO, with several in flight, in turn."""
        threads = self.arguments.threads
        network_input, _ = prepare(self.image, self.model.config)
        requests = {"sparsedet": our_requests(self.engine)}
        for name in self.runs:
            if name.startswith("openvino-"):
                precision = name.removeprefix("openvino-").replace("default", "dynamic")
                requests[name] = openvino_requests(self.model, threads, precision)
        rates: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(self.arguments.repeats):
            for name, flight in requests.items():
                rates[name].append(images_per_second(flight, network_input, 2))
        return rates

    def result(self, others: dict[str, Callable[[], Any]] | None = None) -> dict[str, Any]:
        """Compare detections, compare OpenVINO with the peak, time all runtimes in turn.

        Args:
            others: more that is timed, without a comparison.
        """
        arguments, config = self.arguments, self.model.config
        agreements = self.check()
        gc.collect()
        self.add_variants()
        report = sparsity_report(config, self.model.tensors)
        network_input, _ = prepare(self.image, config)
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
        times = interleaved({**self.runs, **(others or {})}, arguments.repeats)
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
            or (arguments.isa in RESTRICTED and healths[0]["avx512_time_share"] > AVX512_LIMIT),
            "seconds": times,
            "ratios": {
                n: ratio(times["sparsedet"], t) for n, t in times.items() if n != "sparsedet"
            },
            # Fraction of the f32 peak in whole detections. The time has pre- and postprocessing,
            # the work has not. Work: dense for the peers, of nonzero weights for ours.
            "share_of_peak": {
                name: (report.sparse_gflops if name not in PEERS else report.gflops) / s / peak
                for name, s in medians.items()
            },
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if arguments.throughput:
            result["images_per_second"] = self.throughput()
        if arguments.scaling:
            one = machine.peak_gflops(arguments.isa, 1)
            several = machine.peak_gflops(arguments.isa, arguments.threads)
            result["peak_scaling"] = several / one
        return result


def show(name: str, result: dict[str, Any], restricted: bool) -> None:
    """Print the result of one model; `restricted`: see `RESTRICTED`."""
    print(f"\n{name}, {100 * result['sparsity']:.1f} % zeros")
    for runtime, times in result["seconds"].items():
        line = f"  {runtime:20} {statistics.median(times):8.4f} s"
        if runtime in result["ratios"]:
            r = result["ratios"][runtime]
            line += f"   {r['median']:.2f} ({r['least']:.2f}..{r['most']:.2f}) times ours"
        print(line)
    for runtime, rates in result.get("images_per_second", {}).items():
        print(f"  {runtime:20} {statistics.median(rates):8.3f} images/s, several in flight")
    if "peak_scaling" in result:
        print(f"  all threads have {result['peak_scaling']:.2f} times the peak of one thread")
    for entry in result["openvino_health"]:
        fraction = entry["share_of_peak"]
        print(
            f"  OpenVINO's dense work, {entry['precision']}: "
            + (f"{100 * fraction:.0f} % of the measured peak" if fraction else "no peak is known")
        )
        if restricted:
            percent = 100 * entry["avx512_time_share"]
            print(f"  OpenVINO still spent {percent:.1f} % of its time in AVX-512")
    if result["void"]:
        print("  VOID VOID VOID: OpenVINO is slower than it can be (see above), ignore the ratios")
    print("", end="", flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    parser.add_argument(
        "--peer", nargs="+", choices=PEERS, default=["openvino-f32"], help="other runtimes"
    )
    parser.add_argument(
        "--precision", choices=["f32", "bf16", "int8"], default="f32", help="of ours"
    )
    parser.add_argument(
        "--ablate", action="store_true", help="also time ours without hoisting and without Winograd"
    )
    parser.add_argument("--scaling", action="store_true", help="also time ours on one thread")
    parser.add_argument(
        "--throughput", action="store_true", help="also with several images in flight"
    )
    arguments = parser.parse_args(argv)
    if arguments.isa in RESTRICTED:
        # Restricts oneDNN, and with it OpenVINO's convolutions and products; the result has the
        # fraction of time in AVX-512 that remains. Other runtimes cannot be restricted.
        os.environ["ONEDNN_MAX_CPU_ISA"] = RESTRICTED[arguments.isa]
    if arguments.isa in RESTRICTED and set(arguments.peer) - {"openvino-f32", "openvino-int8"}:
        parser.error(
            f"--isa {arguments.isa} can restrict openvino-f32 and openvino-int8 only: leave out "
            "the other peers"
        )
    return arguments


def with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    """Another script's arguments, and the defaults of those that only this one has."""
    return argparse.Namespace(**{**vars(parse_arguments([])), **vars(arguments)})


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    image = sparsedet.read_image(arguments.image)
    conditions = records.describe(arguments.isa, arguments.threads)
    results: list[dict[str, Any]] = []
    for model in subjects.models(arguments, image):
        results.append(RuntimeComparison(model, image, arguments).result())
        show(model.config.name, results[-1], arguments.isa in RESTRICTED)
        if arguments.json:  # after each, because a run takes minutes
            content = {
                "machine": conditions,
                "model": model.config.name,
                "weights": model.provenance.get("weights", "trained"),
                "precision": arguments.precision,
                "void": any(r["void"] for r in results),
                "results": results,
            }
            records.save(arguments.json, content)
        del model
        gc.collect()
    for peer in arguments.peer[1:] + arguments.peer[:1]:  # the last line is the first peer's
        ratios = (
            f"{r['sparsity']:.2f}:"
            + ("void" if r["void"] else f"{r['ratios'][peer]['median']:.2f}")
            for r in results
        )
        print(f"ratios {peer}", *ratios)


if __name__ == "__main__":
    main()
