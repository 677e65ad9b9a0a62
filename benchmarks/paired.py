"""Whether detections got faster between two commits: both programs in turn, round after round.

    python benchmarks/paired.py --before FOLDER --precision f32 int8 --sparsity 0.6 0.8 0.9

FOLDER has the other commit's package `sparsedet`, with its native module; this one's is what this
Python imports, or --after. Each program is a process that has loaded the model and waits; who is
first changes from round to round. Prints for each format and sparsity the median and the quartiles
of before / after within a round (above 1: faster than before), and OpenVINO f32's time beside it
with --openvino. int8 has its zeros in 1x4 blocks. Short of memory bandwidth or with a neighbour on
the core, read the cycle rates first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import records, subjects
from lib.subjects import calibration_inputs

import sparsedet
from sparsedet.engine.calibrate import calibrate
from sparsedet.model.file import ModelFile
from sparsedet.model.sparsity import sparsity_report

WORKER = """
import inspect, sys, time
import sparsedet
model, image, threads, precision, isa, backend = sys.argv[1:]
options = {"backend": backend} if backend != "native" else {"isa": isa}
known = inspect.signature(sparsedet.Detector.load).parameters
options["threads" if "threads" in known else "num_threads"] = int(threads)  # as 0.1 calls it
detector = sparsedet.Detector.load(model, precision=precision, **options)
pixels = sparsedet.read_image(image)
for _ in range(2):
    detector(pixels)
print(sparsedet.__file__, flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    detector(pixels)
    print(time.perf_counter() - start, flush=True)
"""


class PairedProgram:
    """One side: a process that detects when it is told to."""

    def __init__(self, package: Path, model: Path, options: argparse.Namespace, *last: str) -> None:
        words = [model, options.image, options.threads, *last]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(package)},
        )
        ready = self._line()
        if package.resolve() not in Path(ready).resolve().parents:
            raise SystemExit(
                f"{package}: expected a folder with the package, got {ready or 'none'}"
            )

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def seconds(self) -> float:
        """Of one detection."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        self.process.communicate()


def prepared(model: ModelFile, precision: str, threads: int, folder: Path) -> Path:
    """The model as a file; for int8 with clipping thresholds."""
    thresholds = model.clipping_thresholds
    if precision == "int8" and thresholds is None:
        inputs = calibration_inputs(model.config)
        thresholds = calibrate(model.config, model.tensors, inputs, threads=threads)
    path = folder / "model.safetensors"
    sparsedet.save_model(
        path,
        model.config,
        model.tensors,
        {},
        clipping_thresholds=thresholds,
        dtype="float32",
        overwrite=True,
    )
    return path


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"lower": low, "median": median, "upper": high}


def compared(path: Path, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both programs, and OpenVINO if asked for, on one model."""
    own = [precision, options.isa, "native"]
    programs = {
        "before": PairedProgram(options.before, path, options, *own),
        "after": PairedProgram(options.after, path, options, *own),
    }
    if options.openvino:
        programs["openvino-f32"] = PairedProgram(
            options.after, path, options, "f32", "", "openvino"
        )
    times: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for _ in range(options.repeats):
        for name in names:
            time.sleep(0.03)  # idle threads of the last runtime may spin for that long
            times[name].append(programs[name].seconds())
        names.append(names.pop(0))
    for program in programs.values():
        program.end()
    ratios = {
        name: quartiles([b / a for a, b in zip(times["after"], seconds, strict=True)])
        for name, seconds in times.items()
        if name != "after"
    }
    return {"seconds": times, "ratios": ratios}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    own = Path(sparsedet.__file__).parents[1]
    parser.add_argument("--before", type=Path, required=True, help="folder of the other package")
    parser.add_argument("--after", type=Path, default=own, help="default: of this Python")
    parser.add_argument(
        "--precision", nargs="+", choices=["f32", "bf16", "int8"], default=["f32"], help="formats"
    )
    parser.add_argument("--openvino", action="store_true", help="OpenVINO f32 beside them")
    parser.set_defaults(repeats=31, sparsity=[0.6, 0.8, 0.9])
    options = parser.parse_args(argv)
    image = sparsedet.read_image(options.image)
    conditions = records.describe(options.isa, options.threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            options.pattern = "1x4" if precision == "int8" else "unstructured"
            for model in subjects.models(options, image):
                zeros = sparsity_report(model.config, model.tensors).sparsity
                path = prepared(model, precision, options.threads, Path(folder))
                name = model.config.name
                del model
                result = compared(path, precision, options)
                results.append({"model": name, "precision": precision, "zeros": zeros, **result})
                for side, r in result["ratios"].items():
                    print(
                        f"{name} {precision}, {zeros:.2f} zeros: {side} / after "
                        f"{r['median']:.3f} ({r['lower']:.3f}..{r['upper']:.3f})",
                        flush=True,
                    )
                if options.json:
                    records.save(options.json, {"machine": conditions, "results": results})


if __name__ == "__main__":
    main()
