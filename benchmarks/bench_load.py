"""Time and memory of a whole process, from files to the first detection, against OpenVINO.

    python benchmarks/bench_load.py --json docs/results/bench_load.json

Prints medians and ratios for each sparsity, and writes the JSON file if --json is given.

Each process starts Python, reads a float32 model from disk (from the file system's cache), prepares
it for this CPU, reads an image, detects and ends. Both sides read and resize the image with the
same functions. The processes run in turn. Peak memory is that of the whole process as Linux counts
it: VmHWM, because the maximum of getrusage starts at the value of the parent process. `cached` is
sparsedet with packed weights from a file (`Detector.load(cache=)`), which a first run has written.
The last lines are medians of OpenVINO's figure divided by ours: above 1, sparsedet is better.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lib import records, subjects

import sparsedet
from sparsedet.detections import Detections, from_rows
from sparsedet.evaluation.agreement import exact
from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import prepare
from sparsedet.model.file import ModelFile
from sparsedet.model.sparsity import sparsity_report

RUNTIMES = ("sparsedet", "cached", "openvino")

PEAK_KB = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""

OURS = """
import sys
import sparsedet
model, image, rows, threads, isa, cache = sys.argv[1:]
detector = sparsedet.Detector.load(model, threads=int(threads), isa=isa, cache=cache or False)
detections = detector(sparsedet.read_image(image)).rows()
import numpy
numpy.save(rows, detections)
"""

OPENVINO = """
import sys
import numpy
import openvino
from sparsedet.images.letterbox import to_network_input
from sparsedet.images.read import read_image
model, image, rows, threads, height, width, resize = sys.argv[1:]
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {
    "INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
})
network_input, _ = to_network_input(read_image(image), int(height), int(width), resize)
blob = network_input[None].astype(numpy.float32)
numpy.save(rows, compiled.create_infer_request().infer({0: blob})[0])
"""


def whole_process(program: str, *arguments: str) -> tuple[float, float]:
    """Run a Python program; seconds from start to end, and peak memory in MB.

    Raises:
        SystemExit: the program fails.
    """
    command = [sys.executable, "-c", program + PEAK_KB, *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"a timed process failed with exit code {done.returncode}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def measure(model: ModelFile, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write both model files, compare the detections, then time the processes in turn."""
    config = model.config
    ours, theirs = folder / "model.safetensors", folder / "model.xml"
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    sparsedet.save_model(ours, config, model.tensors, model.provenance, dtype="float32")
    save_openvino(theirs, config, model.tensors, layout="NHWC")
    image, threads = str(arguments.image), str(arguments.threads)
    size = [str(config.input_height), str(config.input_width), config.resize]
    rows = {name: folder / f"{name}.npy" for name in RUNTIMES}
    commands = {
        "sparsedet": [OURS, str(ours), image, str(rows["sparsedet"]), threads, arguments.isa, ""],
        "cached": [
            OURS,
            str(ours),
            image,
            str(rows["cached"]),
            threads,
            arguments.isa,
            str(folder / "packed"),
        ],
        "openvino": [OPENVINO, str(theirs), image, str(rows["openvino"]), threads, *size],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # fills the file system's cache
        whole_process(*command)
    _, letterbox = prepare(sparsedet.read_image(arguments.image), config)
    whole_process(*commands["cached"])  # reads the file that the first one wrote
    detections = {
        name: from_rows(np.load(path), letterbox, config.class_names, config.category_ids)
        for name, path in rows.items()
    }
    for name in ("sparsedet", "cached"):
        refuse_unless_equal(detections[name], detections["openvino"])
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            s, megabytes = whole_process(*command)
            seconds[name].append(s)
            memory[name].append(megabytes)
    return {
        "sparsity": sparsity_report(config, model.tensors).sparsity,
        "file_mb": {
            "sparsedet": ours.stat().st_size / 1e6,
            "openvino": sum(p.stat().st_size for p in (theirs, theirs.with_suffix(".bin"))) / 1e6,
        },
        "seconds": seconds,
        "peak_memory_mb": memory,
        **{
            f"ratio_of_{what}{suffix}": statistics.median(
                b / a for a, b in zip(values[name], values["openvino"], strict=True)
            )
            for what, values in (("time", seconds), ("memory", memory))
            for name, suffix in (("sparsedet", ""), ("cached", "_cached"))
        },
    }


def refuse_unless_equal(ours: Detections, theirs: Detections) -> None:
    """Exit with a message unless 98 % of the detections agree, as in bench_model.py."""
    agreement = exact(theirs, ours)
    if not len(theirs) or agreement.matched_fraction < 0.98:
        raise SystemExit(f"the detections differ, nothing is timed: {agreement}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    parser.set_defaults(sparsity=[0.6], repeats=5)
    arguments = parser.parse_args(argv)
    conditions = records.describe(arguments.isa, arguments.threads)
    image = sparsedet.read_image(arguments.image)
    results, name = [], ""
    with tempfile.TemporaryDirectory() as folder:
        for model in subjects.models(arguments, image):
            name = model.config.name
            result = measure(model, arguments, Path(folder))
            results.append(result)
            for runtime in RUNTIMES:
                print(
                    f"{name}, {100 * result['sparsity']:.1f} % zeros, {runtime:9}: "
                    f"{statistics.median(result['seconds'][runtime]):.2f} s, peak memory "
                    f"{statistics.median(result['peak_memory_mb'][runtime]):.0f} MB",
                    flush=True,
                )
    if arguments.json:
        content = {"machine": conditions, "model": name, "results": results}
        records.save(arguments.json, content)
    for r in results:
        print(
            f"ratios {r['sparsity']:.2f}: time {r['ratio_of_time']:.2f}, memory "
            f"{r['ratio_of_memory']:.2f}; cached {r['ratio_of_time_cached']:.2f}, "
            f"{r['ratio_of_memory_cached']:.2f}"
        )


if __name__ == "__main__":
    main()
