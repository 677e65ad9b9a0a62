"""`sparsedet env`: what a bug report should say about this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..choices import EMBEDDED
from ..errors import InputError
from .options import Command

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "pycocotools",
)
"""Those that change what a command does."""


def register(command: Command) -> None:
    """Add the parser."""
    command(
        "env",
        run_env,
        "Print versions, CPU and paths, for a bug report.",
        usage="[OPTIONS]",
        examples=("sparsedet env", "sparsedet env > report.txt"),
    )


def run_env(arguments: argparse.Namespace) -> int:
    import platform  # here, because it takes a while, and all commands import this file

    from ..engine import available_isas, default_threads
    from ..engine.cpus import cpu_name
    from ..files import cache_folder
    from ..version import VERSION

    try:
        cache = str(cache_folder())
    except InputError as error:
        cache = str(error)
    lines = {
        "sparsedet": f"{VERSION} ({Path(__file__).parents[1]})",
        "embedded models": ", ".join(map(_embedded, EMBEDDED)),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "CPU": cpu_name(),
        "instruction sets": ", ".join(available_isas()),
        "in use": _in_use(),
        "threads": f"{default_threads()} of {os.cpu_count()} CPUs",
        "cache": cache,
        "encoding": f"{sys.stdout.encoding} to stdout, {sys.getfilesystemencoding()} in names",
        **{name: os.environ[name] for name in sorted(os.environ) if name.startswith("SPARSEDET_")},
        **{package: _version(package) for package in PACKAGES},
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _embedded(name: str) -> str:
    from ..detector import embedded_model

    return name + ("" if embedded_model(name).is_file() else " (missing)")


def _in_use() -> str:
    """The instruction set that a command would take, and its precisions."""
    from .._native import choose_isa, has_bfloat16, has_int8

    try:
        isa = choose_isa()
    except ValueError as error:  # of SPARSEDET_ISA
        return str(error)
    fast = [name for name, has in (("bf16", has_bfloat16), ("int8", has_int8)) if has(isa)]
    return f"{isa}, with {', '.join(['f32', *fast])}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms

    try:
        return str(version(package))
    except PackageNotFoundError:
        return "not installed"
    except (OSError, LookupError, ValueError):
        return "unknown: its metadata is damaged"
