"""The conditions of a measurement: CPU, versions, arithmetic peak, memory bandwidth.

Glossary: the peak is the FLOPs per second (f32, bf16 or int8; 2 for each multiply-add) of a loop of
independent multiply-adds in registers, on all threads at once. It is measured, as the median of
short bursts, and not taken from a data sheet.
"""

from __future__ import annotations

import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .._native import (
    choose_isa,
    peak_gflops_bf16,
    peak_gflops_int8,
    peak_gflops_matrix,
)
from .._native import cycle_rates as native_cycle_rates
from .._native import peak_gflops as peak_gflops_f32
from ..engine.cpus import cpu_name

_PACKAGES = ("numpy", "opencv-python-headless", "openvino", "nncf", "onnxruntime", "torch")


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages it is compared with, where installed."""
    installed = {"python": platform.python_version()}
    for package in ("sparsedet", *_PACKAGES):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def conditions(isa: str, threads: int) -> dict[str, Any]:
    """CPU, instruction set, threads, system and versions of a run, JSON-ready."""
    return {
        "cpu": cpu_name(),
        "isa": choose_isa(isa),
        "threads": threads,
        "cycle_rates": cycle_rates(isa),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def peak_gflops(isa: str, threads: int, precision: str = "f32", seconds: float = 0.3) -> float:
    """The present arithmetic peak in GFLOP/s; 0.0 if the CPU has no such precision."""
    probes = {
        "f32": peak_gflops_f32,
        "bf16": peak_gflops_bf16,
        "int8": peak_gflops_int8,
    }
    return float(probes[precision](choose_isa(isa), threads, seconds))


def cycle_rates(isa: str, seconds: float = 0.3) -> dict[str, float]:
    """What one core does in a cycle at present: vectors that it loads from its first-level cache,
    and vectors of multiply-adds. A neighbour on a shared core lowers the loads first, and with them
    the rates of sparse kernels."""
    loads, multiply_adds = native_cycle_rates(choose_isa(isa), seconds)
    return {"vector_loads": loads, "multiply_adds": multiply_adds}


def unit_peaks(isa: str, threads: int, precision: str) -> dict[str, float]:
    """The present peaks in GFLOP/s of the units that compute a precision: "vector", and "matrix"
    where there is one."""
    isa = choose_isa(isa)
    found = {"vector": peak_gflops(isa, threads, precision)}
    if precision != "f32" and (rate := peak_gflops_matrix(isa, precision, threads, 0.3)):
        found["matrix"] = float(rate)
    return found


def identity() -> dict[str, str]:
    """What the CPU says of itself besides its name, which clouds make generic: vendor, family and
    model as decimal numbers (AArch64: implementer and part)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = {
        "vendor": ("vendor_id", "CPU implementer"),
        "family": ("cpu family", "CPU architecture"),
        "model": ("model", "CPU part"),
    }
    found = {}
    for name, keys in fields.items():
        match = re.search(rf"^(?:{'|'.join(keys)})\s*:\s*(\S+)", text, re.MULTILINE)
        found[name] = match[1] if match else "unknown"
    return found


def bandwidth(threads: int) -> float:
    """Memory bandwidth in GB/s, read plus written: each thread copies an array beyond any cache."""
    source = np.ones((threads, 1 << 25), np.float32)  # 128 MB each
    target = np.empty_like(source)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.copyto, target, source))
            best = max(best, 2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return best
