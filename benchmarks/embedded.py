"""AP and time of the embedded `r50half-c4` and of its dense origin.

    python benchmarks/embedded.py --annotations VAL.json --images FOLDER --dense DENSE.safetensors

DENSE is the model from which pruning started (recipes/embedded/run.sh makes both). Writes
docs/results/embedded.json, and the table between the marks in docs/embedded.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from lib.documents import insert
from lib.processes import whole_process
from lib.records import RESULTS, ROOT, save

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.engine.cpus import cpu_name
from sparsedet.evaluation import evaluate
from sparsedet.evaluation.coco import load_coco
from sparsedet.model.config import COCO_NAMES

MARK = "<!-- embedded table: benchmarks/embedded.py -->"


def score(detector: sparsedet.Detector, path: Path, dataset: Any) -> dict[str, Any]:
    """Scores on the whole data set, and figures of the file."""
    scores, _ = evaluate(detector, dataset)
    return {
        "sparsity": detector.sparsity,
        "megabytes": path.stat().st_size / 1e6,
        "ap": scores.stats["AP"],
        "ap50": scores.stats["AP50"],
        "person_ap50": scores.per_class["person"]["AP50"],
        "isa": detector.isa,
    }


def time_both(detectors: dict[str, sparsedet.Detector], dataset: Any) -> dict[str, float]:
    """Median milliseconds of one image in memory, the models in turn."""
    images = [sparsedet.read_image(dataset.image_path(i)) for i in dataset.images[:20]]
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for image in images * 3:
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector(image)
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(t) for name, t in times.items()}


def detect_process(image: Path) -> float:
    """Median seconds of `sparsedet detect IMAGE --model r50half-c4` from start to exit."""
    words = ["-m", "sparsedet", "detect", "--no-save", str(image), "--model", "r50half-c4"]
    return statistics.median(whole_process(words, os.environ) for _ in range(5))


def table(result: dict[str, Any]) -> str:
    """The Markdown table, and the conditions of the measurement."""
    lines = [
        "| Model | Zeros of all parameters | AP | AP50 | AP50 of `person` | File | One image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("dense", "sparse"):
        row = result[name]
        lines.append(
            f"| {name} | {100 * row['sparsity']:.1f} % | {row['ap']:.3f} | {row['ap50']:.3f} | "
            f"{row['person_ap50']:.3f} | {row['megabytes']:.1f} MB | {row['milliseconds']:.0f} ms |"
        )
    lines.append("")
    lines.append(
        f"{result['images']} images that were not trained on, each with a person; "
        f"{result['threads']} threads of {result['cpu']}, {result['sparse']['isa']}, in memory; "
        f"`sparsedet detect` as a whole process: {result['whole_process_seconds']:.2f} s."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--dense", type=Path, required=True, help="model file")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    dataset = load_coco(arguments.annotations, arguments.images, COCO_NAMES)
    paths = {"dense": arguments.dense, "sparse": embedded_model("r50half-c4")}
    detectors = {
        name: sparsedet.Detector.load(path, threads=arguments.threads)
        for name, path in paths.items()
    }
    times = time_both(detectors, dataset)
    result: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "images": len(dataset.images),
        "whole_process_seconds": detect_process(dataset.image_path(dataset.images[0])),
    }
    for name, detector in detectors.items():
        scores = score(detector, paths[name], dataset)
        result[name] = {**scores, "milliseconds": times[name]}
    save(RESULTS / "embedded.json", result)
    text = table(result)
    insert(ROOT / "docs" / "embedded.md", MARK, text)
    print(text)


if __name__ == "__main__":
    main()
