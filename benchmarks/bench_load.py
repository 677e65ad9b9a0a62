"""From files to the first detection as a whole process: time and memory, against OpenVINO.

    python benchmarks/bench_load.py --json docs/results/bench_load.json

Both start Python, read a model from disk (float32 both, in the file system's cache), make it ready
for this CPU, read a photograph, detect and end. Both read and place the photograph by the same
functions. In turn; the peak of memory is that of the whole process as Linux counts it (VmHWM, which
each prints last: its maximum in getrusage never starts under that of the process that started it).
"cached" is ours with packed weights from a file (`Detector.load(cache=)`), which the first of its
runs has written. The last lines give the medians of OpenVINO's figures by ours.
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
from lib import machine, subjects

import sparsedet
from sparsedet.detections import Detections, from_rows
from sparsedet.evaluation.agreement import exact
from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import to_network_input
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
model, photo, rows, threads, isa, cache = sys.argv[1:]
detector = sparsedet.Detector.load(model, threads=int(threads), isa=isa, cache=cache or False)
found = detector(sparsedet.read_image(photo)).rows()
import numpy
numpy.save(rows, found)
"""

OPENVINO = """
import sys
import numpy
import openvino
from sparsedet.images.letterbox import to_network_input
from sparsedet.images.read import read_image
model, photo, rows, threads, height, width, resize = sys.argv[1:]
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {
    "INFERENCE_NUM_THREADS": int(threads), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
})
network_input, _ = to_network_input(read_image(photo), int(height), int(width), resize)
found = compiled.create_infer_request().infer({0: network_input[None].astype(numpy.float32)})[0]
numpy.save(rows, found)
"""


def whole_process(program: str, *arguments: str) -> tuple[float, float]:
    """Run a Python program; seconds from start to end, and its peak of memory in MB.

    Raises:
        SystemExit: it fails.
    """
    command = [sys.executable, "-c", program + PEAK_KB, *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise SystemExit(f"a process that was to be timed failed: {done.returncode}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def measure(model: ModelFile, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write both files, compare the detections, then run both in turn."""
    config = model.config
    ours, theirs = folder / "model.safetensors", folder / "model.xml"
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    sparsedet.save_model(ours, config, model.tensors, model.provenance, dtype="float32")
    save_openvino(theirs, config, model.tensors, layout="NHWC")
    photo, threads = str(arguments.photo), str(arguments.threads)
    size = [str(config.input_height), str(config.input_width), config.resize]
    rows = {name: folder / f"{name}.npy" for name in RUNTIMES}
    commands = {
        "sparsedet": [OURS, str(ours), photo, str(rows["sparsedet"]), threads, arguments.isa, ""],
        "cached": [
            OURS,
            str(ours),
            photo,
            str(rows["cached"]),
            threads,
            arguments.isa,
            str(folder / "packed"),
        ],
        "openvino": [OPENVINO, str(theirs), photo, str(rows["openvino"]), threads, *size],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # fills the file system's cache
        whole_process(*command)
    _, letterbox = to_network_input(
        sparsedet.read_image(arguments.photo),
        config.input_height,
        config.input_width,
        config.resize,
    )
    whole_process(*commands["cached"])  # from the file that the first one wrote
    found = {
        name: from_rows(np.load(path), letterbox, config.class_names, config.category_ids)
        for name, path in rows.items()
    }
    for name in ("sparsedet", "cached"):
        refuse_unless_equal(found[name], found["openvino"])
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
    found = exact(theirs, ours)
    if not len(theirs) or found.matched_fraction < 0.98:
        raise SystemExit(f"the two disagree, nothing is timed: {found}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    parser.set_defaults(sparsity=[0.6], repeats=5)
    arguments = parser.parse_args(argv)
    circumstances = machine.describe(arguments.isa, arguments.threads)
    photo = sparsedet.read_image(arguments.photo)
    results, name = [], ""
    with tempfile.TemporaryDirectory() as folder:
        for model in subjects.models(arguments, photo):
            name = model.config.name
            result = measure(model, arguments, Path(folder))
            results.append(result)
            for runtime in RUNTIMES:
                print(
                    f"{name}, {100 * result['sparsity']:.1f} % zeros, {runtime:9}: "
                    f"{statistics.median(result['seconds'][runtime]):.2f} s, peak of memory "
                    f"{statistics.median(result['peak_memory_mb'][runtime]):.0f} MB",
                    flush=True,
                )
    if arguments.json:
        content = {"machine": circumstances, "model": name, "results": results}
        machine.save(arguments.json, content)
    for r in results:
        print(
            f"ratios {r['sparsity']:.2f}: time {r['ratio_of_time']:.2f}, memory "
            f"{r['ratio_of_memory']:.2f}; cached {r['ratio_of_time_cached']:.2f}, "
            f"{r['ratio_of_memory_cached']:.2f}"
        )


if __name__ == "__main__":
    main()
