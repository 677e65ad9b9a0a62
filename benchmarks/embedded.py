"""Score and time the embedded model: the table of the README and of the model card.

    python benchmarks/embedded.py --annotations VAL.json --images FOLDER --dense DENSE.safetensors

The dense model is the one that pruning started from (recipes/embedded/run.sh makes both). Writes
docs/results/embedded.json, and puts the table between the marks in README.md and docs/embedded.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import sparsedet
from sparsedet.coco import load_coco
from sparsedet.detector import embedded_model
from sparsedet.evaluate import evaluate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "embedded.json"
MARKS = ("<!-- embedded table: benchmarks/embedded.py -->", "<!-- end -->")


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(path: Path, dataset: Any, threads: int) -> dict[str, Any]:
    """Scores over the whole data set and the median time of one photograph, in memory."""
    detector = sparsedet.Detector.load(path, num_threads=threads)
    scores, _ = evaluate(detector, dataset)
    photos = [sparsedet.read_image(dataset.image_path(i)) for i in dataset.images[:20]]
    times = []
    for _ in range(3):
        for photo in photos:
            start = time.perf_counter()
            detector(photo)
            times.append(time.perf_counter() - start)
    return {
        "sparsity": detector.sparsity,
        "megabytes": path.stat().st_size / 1e6,
        "ap": scores.stats["AP"],
        "ap50": scores.stats["AP50"],
        "person_ap50": scores.per_class["person"]["AP50"],
        "milliseconds": 1000 * statistics.median(times),
        "isa": detector.isa,
    }


def whole_process(photo: Path) -> float:
    """Median seconds of `sparsedet detect PHOTO` from start to exit."""
    command = [sys.executable, "-m", "sparsedet.cli", "detect", "--no-picture", str(photo)]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table with its circumstances."""
    lines = [
        "| Model | Zeros of all parameters | AP | AP50 | AP50 of `person` | File | Time a photo |",
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
        f"{result['images']} photographs that were not trained on, each holding a person; "
        f"{result['threads']} threads of {result['cpu']}, {result['sparse']['isa']}, in memory; "
        f"`sparsedet detect` as a whole process: {result['whole_process_seconds']:.2f} s."
    )
    return "\n".join(lines)


def insert(path: Path, text: str) -> None:
    """Replace what stands between the marks."""
    content = path.read_text()
    before, rest = content.split(MARKS[0])
    _, after = rest.split(MARKS[1], 1)
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    dataset = load_coco(arguments.annotations, arguments.images, sparsedet.config.COCO_NAMES)
    result = {
        "cpu": cpu_name(),
        "threads": arguments.threads,
        "images": len(dataset.images),
        "dense": measure(arguments.dense, dataset, arguments.threads),
        "sparse": measure(embedded_model(), dataset, arguments.threads),
        "whole_process_seconds": whole_process(dataset.image_path(dataset.images[0])),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    for document in (ROOT / "README.md", ROOT / "docs" / "embedded.md"):
        insert(document, text)
    print(text)


if __name__ == "__main__":
    main()
