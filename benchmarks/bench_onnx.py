"""Time of YOLO-shaped detectors and classifiers from ONNX files, against OpenVINO on the same file.

    python benchmarks/bench_onnx.py --json docs/results/bench_onnx.json

The networks have the published sizes (sparsedet.testing.yolo), random weights by a seed, and the
named share of zeros in each prunable layer; the share of all parameters is printed. These are
times, not accuracies. Both runtimes start with the network input. Ours ends with detections: the
threshold lets about 1,000 candidates pass, and 100 stay. OpenVINO ends with the raw tensors. Of a
classifier both end with the logits. Nothing is timed unless the raw outputs agree first.

OpenVINO runs in f32, and beside it in its default precision and as INT8, which nncf makes, where it
is installed. Rounds run in turn (sparsedet.benchmark.timing). The health of the run is that of
dense r101-c4, profiled at the start, and before and after each network (lib/openvino_profile.py):
outside its bounds the run is void, at the start it ends. r101-c4 is also timed at the same shares:
the last lines have each ratio as a fraction of r101-c4's. The share of the peak that the runtimes
reach on a network is printed, and not judged.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench_model
import numpy as np
from lib import records
from lib.onnx_models import (
    F32,
    ROWS,
    SUBJECTS,
    OnnxSubject,
    lively_module,
    photographs,
    write_onnx,
)
from lib.openvino_profile import health
from lib.reference import REFERENCE, add_options, after_share, random_model

import sparsedet
from sparsedet import Model
from sparsedet.benchmark.machine import peak_gflops
from sparsedet.benchmark.timing import interleaved, ratio
from sparsedet.engine import Engine, choose_isa
from sparsedet.images.letterbox import prepare
from sparsedet.importers.onnx import load_onnx
from sparsedet.importers.onnx.detectors import Preprocessing
from sparsedet.importers.tensor_source import Imported
from sparsedet.model.file import ModelFile
from sparsedet.model.network import graph_of
from sparsedet.model.sparsity import sparsity_report

KINDS = ("yolov8n", "yolov8s", "yolov8m", "yolo11s", "resnet50")
CANDIDATES, KEPT = 1000, 100
AGREEMENT = 1e-3
"""Largest difference of raw outputs, as a share of the largest value."""
PEERS = ("openvino-f32", "openvino-default", "openvino-int8")


def openvino_run(path: Path, batch: F32, threads: int, peer: str) -> Callable[[], list[F32]]:
    """A file in OpenVINO: a function to the raw tensors of the first photograph."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if peer == "openvino-f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if peer == "openvino-int8":
        import nncf

        model = nncf.quantize(model, nncf.Dataset([one[None] for one in batch]), subset_size=2)
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    image = np.ascontiguousarray(batch[:1])

    def run() -> list[F32]:
        return list(request.infer([image], share_outputs=True).values())

    return run


def threshold_of(scores: F32, rows: bool) -> float:
    """The score that `CANDIDATES` of a detector's pass.

    Args:
        scores: those of an output [1, C, N], or [1, N, 1 + C] behind the objectness (`rows`).
    """
    flat = (scores[..., :1] * scores[..., 1:] if rows else scores).reshape(-1)
    return float(np.partition(flat, -CANDIDATES - 1)[-CANDIDATES - 1])


def our_run(
    path: Path, subject: OnnxSubject, batch: F32, outputs: F32, threads: int
) -> tuple[Callable[[], Any], Engine, Any]:
    """The file in our engine: a function to detections or logits; the engine; what was loaded."""
    if "scores" not in subject.parts:
        model = Model.load(path, threads=threads)
        return (lambda: model(batch[:1])), model.engine, model.network
    threshold = threshold_of(outputs[subject.parts["scores"]], subject.parts is ROWS)
    stated = Preprocessing(score_threshold=threshold, max_detections=KEPT)
    imported = load_onnx(path, stated=stated)
    if not isinstance(imported, Imported):
        raise SystemExit(f"{path.name} is not recognised as a detector")
    engine = Engine(imported.config, imported.tensors, threads=threads)
    pixels = (batch[0].transpose(1, 2, 0)[:, :, ::-1] * 255 / subject.pixels).round()
    network_input = np.ascontiguousarray(pixels, np.uint8)
    loaded = ModelFile(imported.config, imported.tensors, {}, "float32")
    return (lambda: engine.run(network_input)), engine, loaded


def measure(
    path: Path, subject: OnnxSubject, batch: F32, peers: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One file: compare, then time in turn."""
    threads = arguments.threads
    runs: dict[str, Callable[[], Any]] = {
        peer: openvino_run(path, batch, threads, peer) for peer in peers
    }
    (outputs,) = (np.array(x) for x in runs["openvino-f32"]())
    (raw,) = Model.load(path, threads=threads)(batch[:1]).values()
    differences = {
        part: float(
            np.abs(raw[where] - outputs[where]).max() / max(np.abs(outputs[where]).max(), 1e-9)
        )
        for part, where in subject.parts.items()
    }
    if max(differences.values()) > AGREEMENT:
        raise SystemExit(f"{path.name}: outputs differ, nothing is timed: {differences}")
    ours, engine, loaded = our_run(path, subject, batch, outputs, threads)
    found = len(ours())
    report = sparsity_report(loaded.config, loaded.tensors)
    peak = peak_gflops(choose_isa(), threads)
    times = interleaved({"sparsedet": ours, **runs}, arguments.repeats)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "sparsity": report.sparsity,
        "gflops": report.gflops,
        "sparse_gflops": report.sparse_gflops,
        "operations": len(graph_of(loaded.config).operations),
        "differences": differences,
        "rows": found,
        "after_share": after_share(engine),
        "copied_bytes": int(engine.native.copied_bytes),
        "seconds": times,
        "ratios": {n: ratio(times["sparsedet"], t) for n, t in times.items() if n != "sparsedet"},
        "share_of_peak": {
            name: (report.sparse_gflops if name == "sparsedet" else report.gflops) / s / peak
            for name, s in medians.items()
        },
    }


def show(name: str, share: float, result: dict[str, Any]) -> None:
    print(
        f"\n{name}, {share:.0%} of each prunable layer, {result['sparsity']:.1%} of all parameters"
    )
    for runtime, times in result["seconds"].items():
        line = f"  {runtime:20} {1000 * statistics.median(times):8.2f} ms"
        if runtime in result["ratios"]:
            r = result["ratios"][runtime]
            line += f"   {r['median']:.2f} ({r['least']:.2f}..{r['most']:.2f}) times ours"
        print(f"{line}   {result['share_of_peak'][runtime]:.0%} of the peak")
    print(
        f"  {result['rows']} rows; tail {result['after_share']:.1%} of ours; "
        f"{result['copied_bytes']} bytes copied",
        flush=True,
    )


def dense_health(model: ModelFile, image: Any, threads: int) -> dict[str, Any]:
    """Dense r101-c4 in OpenVINO, against the peak."""
    network_input = prepare(image, model.config)[0]
    gflops = sparsity_report(model.config, model.tensors).gflops
    found = health(model, network_input, threads, "f32", "", gflops)
    share = found["share_of_peak"]
    print(f"  {REFERENCE} dense in OpenVINO: {share:.0%} of the peak" if share else "  no peak")
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, SUBJECTS, repeats=11)
    parser.set_defaults(kinds=KINDS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--no-reference", action="store_true", help="no health, no ratios of it")
    return bench_model.with_defaults(parser.parse_args(argv))


def reference_ratios(image: Any, arguments: argparse.Namespace) -> dict[float, float]:
    """How many times faster r101-c4 is than OpenVINO at each share."""
    config, ratios = sparsedet.preset(REFERENCE), {}
    for share in arguments.zeros:
        model = random_model(config, share, image)
        result = bench_model.RuntimeComparison(model, image, arguments).result()
        bench_model.show(f"{REFERENCE}, {share:.0%} of each prunable layer", result, False)
        ratios[share] = result["ratios"]["openvino-f32"]["median"]
        gc.collect()
    return ratios


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    image = sparsedet.read_image(arguments.image)
    content: dict[str, Any] = {
        "machine": records.describe("", arguments.threads),
        "void": False,
        "health": [],
        "reference": {},
        "results": {},
    }
    peers = [name for name in PEERS if name in {*arguments.peers, "openvino-f32"}]
    if "openvino-int8" in peers and find_spec("nncf") is None:
        print("openvino-int8 is left out: it needs nncf")
        peers.remove("openvino-int8")
    dense = None
    if not arguments.no_reference:
        dense = random_model(sparsedet.preset(REFERENCE), 0.0, image)
        content["health"].append(dense_health(dense, image, arguments.threads))
        if content["health"][0]["void"]:
            print("nothing is timed: OpenVINO is slower than it can be")
            return 1
        content["reference"] = reference_ratios(image, arguments)
        content["health"].append(dense_health(dense, image, arguments.threads))
    for name in arguments.kinds:
        subject, results = SUBJECTS[name], []
        with tempfile.TemporaryDirectory() as folder:
            batch, path = photographs(subject), Path(folder, f"{name}.onnx")
            for share in arguments.zeros:
                module = lively_module(subject, zeros=share)
                write_onnx(module, subject, path, opset_version=17)
                result = measure(path, subject, batch, peers, arguments)
                results.append({"share": share, **result})
                show(name, share, results[-1])
                gc.collect()
        content["results"][name] = results
        if dense is not None:
            content["health"].append(dense_health(dense, image, arguments.threads))
        content["void"] = any(entry["void"] for entry in content["health"])
        if arguments.json:
            records.save(arguments.json, content)
    void = ", VOID: OpenVINO is slower than it can be" if content["void"] else ""
    print(f"\nratios to openvino-f32{void}")
    for name, results in content["results"].items():
        line = ""
        for result in results:
            share, found = result["share"], result["ratios"]["openvino-f32"]["median"]
            line += f"  {share:.0%} {found:.2f}"
            if share in content["reference"]:
                line += f" ({found / content['reference'][share]:.2f} of {REFERENCE}'s)"
        print(f"{name:12}{line}")
    return 1 if content["void"] else 0


if __name__ == "__main__":
    sys.exit(main())
