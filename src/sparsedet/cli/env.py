"""`sparsedet env`: what a bug report should say about this machine."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

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
    "pycocotools",
    "safetensors",
)


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
    from ..detector import embedded_model
    from ..engine import available_isas, choose_isa, default_threads
    from ..files import cache_folder
    from ..version import VERSION

    try:
        chosen = choose_isa()
    except ValueError as error:  # SPARSEDET_ISA
        chosen = str(error)
    variables = sorted(name for name in os.environ if name.startswith("SPARSEDET_"))
    lines = {
        "sparsedet": f"{VERSION} ({os.path.dirname(embedded_model().parent)})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "CPU": _cpu(),
        "instruction sets": f"{', '.join(available_isas())}; in use: {chosen}",
        "threads": f"{default_threads()} of {os.cpu_count()} CPUs",
        "cache": str(cache_folder()),
        **{name: os.environ[name] for name in variables},
    }
    for package in PACKAGES:
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            if importlib.util.find_spec(package.replace("-", "_")):
                lines[package] = "installed without its metadata"
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _cpu() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
