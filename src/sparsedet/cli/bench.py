"""`sparsedet bench`: latency and throughput of a model here, beside other runtimes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .messages import complain
from .options import (
    MODEL_OR_NAME,
    OUTPUT,
    RUNNING,
    Command,
    add,
    add_running,
    check_outputs,
    group,
    load_detector,
    output_file,
)

DETAILS = """\
Detects in one image with this engine and with the runtimes that are installed (OpenVINO, ONNX
Runtime, torch), which run the same network from the same file. First their detections are compared,
then they run in turn: latency on all threads, throughput with one image a thread. `x` is how many
times faster this engine is, in latency and in throughput. MODEL is a model file, an ONNX file of a
detector, or nothing: the default model. Runs for a minute or two; close other programs."""


def register(command: Command) -> None:
    """Add the parser."""
    bench = command(
        "bench",
        run_bench,
        "Measure latency and throughput here, beside other runtimes.",
        usage="[MODEL] [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet bench mine.safetensors",
            "sparsedet bench mine.safetensors --peer openvino-f32 --plot mine.png --json mine.json",
        ),
    )
    bench.add_argument("model", nargs="?", type=Path, metavar="MODEL", help=MODEL_OR_NAME)
    bench.add_argument(
        "--image", type=Path, metavar="FILE", help="photograph to detect in (default: one inside)"
    )
    running = group(bench, RUNNING)
    running.add_argument(
        "--peer",
        action="append",
        metavar="NAME",
        help="openvino-f32, openvino-bf16, openvino-default, onnxruntime, torch or none; may be "
        "given several times (default: those that are installed)",
    )
    running.add_argument(
        "--repeats", type=int, metavar="N", default=10, help="rounds that count, at least 2"
    )
    add_running(bench, model=False)
    add(bench, "--json", "--overwrite")
    group(bench, OUTPUT).add_argument(
        "--plot", type=output_file, metavar="FILE", help="write the figures as a picture, as .png"
    )
    add(bench, "--quiet")


def run_bench(arguments: argparse.Namespace) -> int:
    from ..benchmark import machine
    from ..benchmark.plot import require_matplotlib, save_plot
    from ..benchmark.runtimes import compare_runtimes, table
    from ..engine import default_threads
    from ..files import write_atomic
    from ..images.read import read_image
    from ..model.sparsity import sparsity_report

    if arguments.repeats < 2:
        raise UsageError(f"--repeats is {arguments.repeats}, expected at least 2")
    if arguments.backend != "native":
        raise UsageError("bench measures the native engine; --peer names the others")
    if arguments.plot is not None:
        require_matplotlib()
    check_outputs(arguments.overwrite, arguments.json, arguments.plot)
    peers = _peers(arguments.peer)
    threads = default_threads() if arguments.threads is None else arguments.threads
    image_file = arguments.image or Path(__file__).parents[1] / "serve" / "web" / "beach.jpg"
    image = read_image(image_file)

    def load(**settings: Any) -> Any:
        return load_detector(arguments, **settings)

    tell = (lambda text: None) if arguments.quiet else (lambda text: complain(f"{text} ..."))
    figures = compare_runtimes(
        load, image, peers, threads=threads, repeats=arguments.repeats, tell=tell
    )
    model = load(threads=1)
    report = sparsity_report(model.config, model.model.tensors)
    conditions = machine.conditions(arguments.isa, threads)
    title = (
        f"{model.config.name}: {100 * report.sparsity:.1f} % of its weights are zero; "
        f"{conditions['cpu']}, {conditions['isa']}, threads: {threads}"
    )
    print(title)
    print("\n".join(table(figures)))
    different = [one.name for one in figures if not one.agrees]
    if different:
        complain(f"{', '.join(different)}: other detections than ours in f32, so no ratio is told")
    if arguments.json is not None:
        content = {
            "machine": conditions,
            "model": model.config.name,
            "image": image_file.name,
            "sparsity": report.sparsity,
            "gflops": report.gflops,
            "sparse_gflops": report.sparse_gflops,
            "runtimes": [one.to_dict(figures[0]) for one in figures],
        }
        text = json.dumps(content, indent=1) + "\n"
        write_atomic(arguments.json, text.encode(), overwrite=arguments.overwrite)
    if arguments.plot is not None:
        save_plot(arguments.plot, figures, title, arguments.overwrite)
    return 0


def _peers(given: list[str] | None) -> list[str]:
    """The peers to measure; those that are asked for must be installed."""
    from ..benchmark.peers import PEERS, installed, package_of, usual_peers

    if given is None:
        peers = usual_peers()
        if not peers:
            complain("no other runtime is installed: pip install 'sparsedet[export]'")
        return peers
    if given == ["none"]:
        return []
    for name in given:
        if name not in PEERS:
            raise UsageError(f"--peer is {name!r}, expected {', '.join(PEERS)} or none")
        if not installed(name):
            module, extra = package_of(name)
            raise InputError(f"--peer {name} needs {module}: pip install 'sparsedet[{extra}]'")
    return list(dict.fromkeys(given))
