"""Times of several things that run in turn: a machine that slows down slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PAUSE = 0.03
"""Seconds between two runs: idle threads of the last runtime may spin for that long."""


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; the first round does not count.

    Every round starts with another runtime, so that none is always the first.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for _ in range(repeats + 1):
        for name in names:
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        names.append(names.pop(0))
    return {name: t[1:] for name, t in times.items()}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Their time divided by ours, round by round: median and range."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def at_once(run: Callable[[], Any], workers: int, count: int) -> None:
    """Run something `count` times, in so many threads."""
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(run) for _ in range(count)]:
            future.result()
