"""Whole processes of Python, from their start to their end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path


def installed_environment(folder: Path) -> dict[str, str]:
    """The environment of a process whose modules are compiled, as those of an installed package
    are: in `folder`, from its second start on."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def whole_process(words: list[str], env: Mapping[str, str]) -> float:
    """Seconds from the start of Python to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, env=env, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
