"""Whole detections, sparsedet against OpenVINO on the same network, interleaved.

    python benchmarks/bench_model.py --photo examples/beach.jpg --json docs/results/bench_model.json

Random weights at each sparsity (zeros of all parameters, equally in each pruned convolution, fixed
seed), scaled so that many objects are detected; or a model file. Both sides start from the
photograph in memory and end with boxes on it. Their detections are compared before anything is
timed. The last line gives the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from embedded import cpu_name

import sparsedet
from sparsedet.detections import Detections, from_rows
from sparsedet.engine import Engine
from sparsedet.exporters.openvino import to_openvino
from sparsedet.preprocess import to_canvas
from sparsedet.pruning.synthetic import lively_tensors
from sparsedet.weights import ModelFile, sparsity_report

Run = Callable[[], Detections]


def openvino_peer(model: ModelFile, photo: np.ndarray, threads: int) -> Run:
    """The exported network in OpenVINO, float32, tuned for latency, with the same pre- and
    postprocessing as ours."""
    import openvino as ov

    config = model.config
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = ov.Core().compile_model(
        to_openvino(config, model.tensors, layout="NHWC"), "CPU", options
    )
    request = compiled.create_infer_request()

    def run() -> Detections:
        canvas, placement = to_canvas(
            photo, config.canvas_height, config.canvas_width, config.resize
        )
        rows = request.infer({0: canvas[None].astype(np.float32)})[0]
        return from_rows(rows, placement, config.class_names, config.category_ids)

    return run


def agreement(ours: Detections, theirs: Detections) -> dict[str, Any]:
    """How many of ours have a partner of the same class, score within 1e-3 and near corners.

    Corners within a ten-thousandth of the canvas instead of an IoU: boxes clipped to the canvas's
    edge have no area.
    """
    apart = abs(ours.normalised[:, None] - theirs.normalised).max(axis=2)
    same = (
        (apart < 1e-4)
        & (ours.labels[:, None] == theirs.labels)
        & (abs(ours.scores[:, None] - theirs.scores) < 1e-3)
    )
    return {
        "ours": len(ours),
        "theirs": len(theirs),
        "matched": int(same.any(axis=1).sum()),
        "classes": len(set(ours.labels.tolist())),
    }


def compare(
    model: ModelFile, photo: np.ndarray, threads: int, repeats: int, isa: str
) -> dict[str, Any]:
    """Check, warm up, then time both in turn."""
    detector = sparsedet.Detector(
        model, Engine(model.config, model.tensors, threads=threads, isa=isa)
    )
    theirs = openvino_peer(model, photo, threads)
    found = agreement(detector(photo), theirs())
    if found["matched"] < 0.98 * max(found["ours"], found["theirs"]):
        raise SystemExit(f"the two disagree, nothing is timed: {found}")
    times: dict[str, list[float]] = {"sparsedet": [], "openvino": []}
    for _ in range(repeats):
        for name, run in (("sparsedet", lambda: detector(photo)), ("openvino", theirs)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times["sparsedet"], times["openvino"], strict=True)]
    report = sparsity_report(model.config, model.tensors)
    return {
        "sparsity": report.sparsity,
        "isa": detector.isa,
        "agreement": found,
        "seconds": times,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "openvino_gflops_per_second": report.gflops / statistics.median(times["openvino"]),
        "sparsedet_gflops_per_second": report.sparse_gflops / statistics.median(times["sparsedet"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="r101-c4")
    parser.add_argument("--model", type=Path, help="a model file instead of random weights")
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.6, 0.8, 0.9])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--isa", default="")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    photo = sparsedet.read_image(arguments.photo)

    models: list[ModelFile] = []
    if arguments.model:
        models.append(sparsedet.load_model(arguments.model))
    else:
        config = sparsedet.preset(arguments.preset)
        canvas, _ = to_canvas(photo, config.canvas_height, config.canvas_width)
        for sparsity in arguments.sparsity:
            tensors = lively_tensors(config, sparsity, canvas)
            models.append(ModelFile(config, tensors, {"weights": "random"}, "float32"))
    results = []
    for model in models:
        result = compare(model, photo, arguments.threads, arguments.repeats, arguments.isa)
        results.append(result)
        median = {name: statistics.median(t) for name, t in result["seconds"].items()}
        print(
            f"{model.config.name} {100 * result['sparsity']:.1f} % zeros, "
            f"{arguments.threads} threads, {result['isa']}: "
            f"OpenVINO {median['openvino']:.3f} s, sparsedet {median['sparsedet']:.3f} s, "
            f"ratio {result['ratio']:.2f} "
            f"({result['ratio_range'][0]:.2f}..{result['ratio_range'][1]:.2f}), detections "
            f"{result['agreement']}",
            flush=True,
        )
    if arguments.json:
        content = {"cpu": cpu_name(), "threads": arguments.threads, "model": models[0].config.name,
                   "results": results}  # fmt: skip
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    print("ratios", " ".join(f"{r['sparsity']:.2f}:{r['ratio']:.2f}" for r in results))


if __name__ == "__main__":
    main()
