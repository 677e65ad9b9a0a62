"""Whether the start got slower between two commits: both programs in turn, round after round.

    python benchmarks/paired_start.py --before FOLDER --json docs/results/paired_start.json

FOLDER has the other commit's package `sparsedet`, with its native module; this one's is what this
Python imports, or --after. Each run is a process of its own: it imports, loads the model (default:
r50half-c4), reads an image, detects and ends. Who is first changes from round to round.
Printed are medians and quartiles of after / before within a round, below 1: better than before.

first    seconds from the start of Python to the first detection
load     seconds of `Detector.load` alone
memory   peak memory of the process in MB (VmHWM of Linux)

Both packages are copied and compiled first, as an installed one is; files are in the file system's
cache.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import records
from paired import quartiles

import sparsedet
from sparsedet.detector import embedded_model

WORKER = """
import inspect, sys, time
import sparsedet
model, image, threads = sys.argv[1:]
load = sparsedet.Detector.load
known = inspect.signature(load).parameters
start = time.perf_counter()
detector = load(model or None, **{"threads" if "threads" in known else "num_threads": int(threads)})
loaded = time.perf_counter() - start
detector(sparsedet.read_image(image))
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
print(loaded, int(peak) / 1024, sparsedet.__file__, flush=True)
"""

MEASURES = ("first", "load", "memory")


def compiled(package: Path, folder: Path) -> Path:
    """A copy of a folder's package `sparsedet`, with compiled modules.

    Raises:
        SystemExit: there is none.
    """
    source = package / "sparsedet"
    if not (source / "__init__.py").exists():
        raise SystemExit(f"{package}: expected a folder with the package sparsedet")
    shutil.copytree(source, folder / "sparsedet", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=2)
    return folder


def run(package: Path, words: list[str]) -> dict[str, float]:
    """One process: what it measured."""
    command = [sys.executable, "-c", WORKER, *words]
    env = {**os.environ, "PYTHONPATH": str(package)}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        line = process.stdout.readline().split()
        first = time.perf_counter() - start
    if process.returncode != 0 or Path(line[2]).parents[1].resolve() != package.resolve():
        raise SystemExit(f"{package}: a timed process failed, or imported another package")
    return {"first": first, "load": float(line[0]), "memory": float(line[1])}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    own = Path(sparsedet.__file__).parents[1]
    parser.add_argument("--before", type=Path, required=True, help="folder of the other package")
    parser.add_argument("--after", type=Path, default=own, help="default: of this Python")
    parser.add_argument("--model", type=Path, help="default: r50half-c4")
    parser.add_argument("--image", type=Path, default=records.ROOT / "examples" / "beach.jpg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=31, help="rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    words = [
        str(options.model or embedded_model("r50half-c4")),
        str(options.image),
        str(options.threads),
    ]
    conditions = records.describe("", options.threads)
    found: dict[str, dict[str, list[float]]] = {
        side: {measure: [] for measure in MEASURES} for side in ("before", "after")
    }
    with tempfile.TemporaryDirectory() as folder:
        packages = {side: compiled(getattr(options, side), Path(folder) / side) for side in found}
        for package in packages.values():  # fills the file system's cache
            run(package, words)
        order = list(packages)
        for _ in range(options.repeats):
            for side in order:
                for measure, value in run(packages[side], words).items():
                    found[side][measure].append(value)
            order.reverse()
    ratios: dict[str, Any] = {}
    for measure in MEASURES:
        before, after = (found[side][measure] for side in ("before", "after"))
        ratio = ratios[measure] = quartiles([a / b for a, b in zip(after, before, strict=True)])
        print(
            f"{measure:6} before {statistics.median(before):.3f}, after "
            f"{statistics.median(after):.3f}; after / before {ratio['median']:.3f} "
            f"({ratio['lower']:.3f}..{ratio['upper']:.3f})"
        )
    if options.json:
        records.save(options.json, {"machine": conditions, "values": found, "ratios": ratios})


if __name__ == "__main__":
    main()
