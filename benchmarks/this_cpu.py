"""Everything that this CPU can do, measured by one command, in one JSON file.

    python benchmarks/this_cpu.py

writes docs/results/cpu/VENDOR-FAMILY-MODEL-SETS.json (with --isa ...-by-SET.json): CPUs of clouds
call themselves by generic names, so the file is named by numbers and instruction sets. Measured are

- peaks of each instruction set, format and unit (vector or matrix), on one thread and on all, and
  the memory bandwidth;
- ours in each format that runs here: whole detections at several sparsities, and each layer's rate
  as a share of the peak of the unit that computes it;
- images in flight: as many streams as threads, beside the time of one image;
- where OpenVINO is installed, bench_model.py against it: the latency of one image, and throughput
  with OpenVINO's hint for it. Its default precision is among the rows: that is what a user gets
  today. Each comparison is a process of its own. With --isa avx2 or avxvnni OpenVINO's convolutions
  are restricted likewise, as far as they can be.

What one core loads and multiplies in a cycle is recorded at the beginning and at the end: on a
shared core these change, and with them every figure. benchmarks/cpu_page.py makes
docs/benchmarks.md of all such files.

With --formats, what the file already has of other formats stays; each says its commit.

A figure that cannot be measured here is absent; nothing is estimated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_model import RESTRICTED
from lib import records, subjects
from lib.subjects import calibration_inputs
from lib.throughput import images_per_second, our_requests

import sparsedet
from sparsedet import _native
from sparsedet.benchmark import machine
from sparsedet.engine import Engine, default_threads, explain_precision
from sparsedet.engine.autotune import measure
from sparsedet.engine.calibrate import calibrate
from sparsedet.engine.precision import Format
from sparsedet.images.letterbox import prepare
from sparsedet.model.file import ModelFile
from sparsedet.model.sparsity import sparsity_report

FORMATS: tuple[Format, ...] = ("f32", "bf16", "int8")
PEERS: dict[Format, list[str]] = {
    "f32": ["openvino-f32", "openvino-default"],
    "bf16": ["openvino-bf16", "openvino-default"],
    "int8": ["openvino-int8", "openvino-default"],
}


def formats(isa: str) -> list[Format]:
    """The formats that an instruction set has here."""
    has = {"bf16": _native.has_bfloat16(isa), "int8": _native.has_int8(isa)}
    return [name for name in FORMATS if has.get(name, True)]


def peaks(isas: list[str], threads: int) -> dict[str, Any]:
    """GFLOP/s by instruction set, format, unit and number of threads."""
    found: dict[str, Any] = {}
    for isa in isas:
        for name in formats(isa):
            for n in sorted({1, threads}):
                for unit, rate in machine.unit_peaks(isa, n, name).items():
                    found.setdefault(isa, {}).setdefault(name, {}).setdefault(unit, {})[n] = rate
                    print(f"peak {isa} {name} {unit}, {n} threads: {rate:.0f} GFLOP/s", flush=True)
    return found


def layers(engine: Engine, network_input: np.ndarray, rates: dict[str, float]) -> list[Any]:
    """Rate of each operation, as a share of the peak of its unit (null: no peak is known)."""
    listed = []
    for row in measure(engine, network_input):
        rate = rates.get("matrix" if row.algorithm == "matrix" else "vector")
        listed.append(
            {
                "name": row.name,
                "algorithm": row.algorithm,
                "zeros": row.sparsity,
                "gflop": row.gflop,
                "seconds": row.seconds,
                "share_of_peak": row.gflop / row.seconds / rate if rate and row.seconds else None,
            }
        )
    return listed


def seconds(engine: Engine, network_input: np.ndarray, repeats: int) -> list[float]:
    """Seconds of each run; the first one does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        engine.run(network_input)
        times.append(time.perf_counter() - start)
    return times[1:]


def ours(model: ModelFile, image: np.ndarray, name: Format, options: argparse.Namespace) -> Any:
    """One model in one format, without anybody else."""
    thresholds = model.clipping_thresholds
    if name == "int8" and thresholds is None:
        inputs = calibration_inputs(model.config)
        thresholds = calibrate(model.config, model.tensors, inputs, threads=options.threads)
    engine = Engine(
        model.config,
        model.tensors,
        threads=options.threads,
        isa=options.isa,
        precision=name,
        clipping_thresholds=thresholds,
    )
    network_input, _ = prepare(image, model.config)
    times = seconds(engine, network_input, options.repeats)
    rates = machine.unit_peaks(options.isa, options.threads, name)
    result = {
        "commit": records.commit(),
        "seconds": times,
        "images_per_second": images_per_second(
            our_requests(engine), network_input, options.repeats
        ),
        "layers": layers(engine, network_input, rates),
    }
    print(
        f"ours {name}: {statistics.median(times):.3f} s, "
        f"{result['images_per_second']:.2f} images/s in flight",
        flush=True,
    )
    return result


def against_openvino(name: Format, options: argparse.Namespace) -> dict[str, Any]:
    """The result of bench_model.py, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name("bench_model.py"))]
        command += ["--precision", name, "--threads", str(options.threads)]
        command += ["--repeats", str(options.repeats), "--isa", options.isa]
        command += ["--image", str(options.image), "--json", str(result)]
        # Its default cannot be restricted.
        command += ["--peer", *PEERS[name][: 1 if options.isa in RESTRICTED else None]]
        command += ["--throughput"]
        if options.model:
            command += ["--model", str(options.model)]
        else:
            command += ["--preset", options.preset, "--pattern", pattern(name)]
            command += ["--sparsity", *map(str, options.sparsity)]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, flush=True)
        if done.returncode or not result.exists():
            return {"failed": (done.stderr or done.stdout).strip().splitlines()[-1:]}
        content: dict[str, Any] = json.loads(result.read_text())
        del content["machine"]["command"]  # its paths are those of this machine
        return content


def pattern(name: Format) -> str:
    """The pruning pattern that a format skips."""
    return "1x4" if name == "int8" else "unstructured"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    subjects.add_options(parser)
    parser.set_defaults(threads=default_threads(), sparsity=[0.0, 0.6, 0.8, 0.9])
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all"
    )
    parser.add_argument("--alone", action="store_true", help="leave OpenVINO out")
    options = parser.parse_args(argv)
    options.isa = _native.choose_isa(options.isa)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    image = sparsedet.read_image(options.image)
    isas = sparsedet.available_isas()
    identity = machine.identity()
    names = [*identity.values(), *isas[:-1]]
    if options.isa != isas[0]:
        names += ["by", options.isa]
    path = options.json or records.RESULTS / "cpu" / f"{'-'.join(names)}.json"
    content: dict[str, Any] = {"ours": {}, "against_openvino": {}}
    if options.formats != FORMATS and path.exists():
        content = json.loads(path.read_text())
        if (before := content["machine"]["threads"]) != options.threads:
            raise SystemExit(f"{path} is of {before} threads, not {options.threads}: name another")
        for name in options.formats:
            content["ours"].pop(name, None)
            content["against_openvino"].pop(name, None)
    content |= {
        "machine": records.describe(options.isa, options.threads),
        "identity": identity,
        "instruction_sets": {isa: formats(isa) for isa in isas},
        "promises": {
            promise: {"format": chosen.format, "reason": chosen.reason}
            for promise in ("full", "close", "fastest")
            for chosen in [explain_precision(promise, options.isa, thresholds=True)]
        },
        "bandwidth_gb_s": machine.bandwidth(options.threads),
        "peak_gflops": peaks([isa for isa in isas if isa != "scalar"], options.threads),
    }
    for name in (name for name in formats(options.isa) if name in options.formats):
        options.pattern = pattern(name)
        for model in subjects.models(options, image):
            zeros = f"{sparsity_report(model.config, model.tensors).sparsity:.2f}"
            result = ours(model, image, name, options)
            content["ours"].setdefault(name, {})[zeros] = result
            records.save(path, content)  # after each, because all of it takes hours
        if not options.alone and importlib.util.find_spec("openvino"):
            content["against_openvino"][name] = against_openvino(name, options)
            records.save(path, content)
    content["cycle_rates_at_the_end"] = machine.cycle_rates(options.isa)
    records.save(path, content)
    print(f"-> {path}")


if __name__ == "__main__":
    main()
