"""The commands of `sparsedet`, one file each: `register` adds its parser, `run_...` does the work.

What several of them share is here. A command is thin: it reads its arguments, calls the library and
prints; all that it needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

BACKENDS = ("native", "openvino", "onnxruntime", "torch")
"""As `backends.NAMES`, which would bring numpy and the engine with it."""

PRECISIONS = ("f32", "bf16", "int8", "auto")
Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run, str], argparse.ArgumentParser]
"""command(name, run, text) adds a command and returns its parser."""


def complain(what: object) -> None:
    """One line on stderr."""
    print("sparsedet:", " ".join(str(what).splitlines()), file=sys.stderr)


def running_flags(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Which model runs (unless the command has names of its own for it), and how."""
    if model:
        parser.add_argument(
            "--model",
            type=Path,
            metavar="FILE",
            help="model file; default: the embedded model; with --backend openvino "
            "or onnxruntime also a graph, .xml or .onnx",
        )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="native",
        help="who runs the network: our engine (default), or a dense runtime to compare with",
    )
    parser.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    parser.add_argument("--isa", default="", help="instruction set; default: the best of this CPU")
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="of `info --plan --autotune`; default: by a cost model",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="f32",
        help="bf16 is faster and gives other scores; auto: bf16 where the "
        "CPU has it; int8: for a file of `quantize`",
    )
