"""A model on this machine, in our engine and in its peers: the same detections, then times in turn.

Every runtime begins with the image in memory and ends with boxes in its pixels, with the same pre-
and postprocessing and the same number of threads.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections
from ..detector import Detector
from ..engine import Engine
from ..evaluation.agreement import LOW_FLOOR, Agreement, exact, loose
from ..model.file import ModelFile
from .peers import open_peer
from .timing import at_once, interleaved, ratio

OURS = "sparsedet"

SAME = 0.98
"""Least share of detections that two runtimes in f32 must have in common."""

WINDOW = 1.0
"""Seconds of one measurement of throughput, about."""


@dataclass
class RuntimeFigures:
    """What one runtime did.

    Attributes:
        precision: "f32", "bf16" or "int8".
        agreement: of its detections with ours in f32.
        seconds: of a detection on all threads, one of each round.
        images_per_second: with one image a thread, one of each round.
    """

    name: str
    precision: str
    agreement: Agreement
    seconds: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether its times say something: the rules are those of `evaluation.agreement`."""
        least = SAME if self.precision == "f32" else LOW_FLOOR
        return self.agreement.expected > 0 and self.agreement.matched_fraction >= least

    def to_dict(self, ours: RuntimeFigures) -> dict[str, Any]:
        """JSON-ready, with how many times faster ours is."""
        told: dict[str, Any] = {**asdict(self), "agrees": self.agrees}
        if self is not ours and self.agrees:
            told["latency_ratio"] = ratio(ours.seconds, self.seconds)
            told["throughput_ratio"] = ratio(self.images_per_second, ours.images_per_second)
        return told


def compare_runtimes(
    load: Callable[..., Detector],
    image: NDArray[np.uint8],
    peers: Sequence[str],
    *,
    threads: int,
    repeats: int = 10,
    tell: Callable[[str], None] = lambda text: None,
) -> list[RuntimeFigures]:
    """Compare detections, then measure latency and throughput, ours first.

    Args:
        load: loads our detector, with `threads` and `streams`.
        image: (H, W, 3) uint8 BGR, on which all run.
        peers: keys of `peers.PEERS`.
        threads: CPU threads of each runtime.
        repeats: rounds that count.
        tell: told what is going on.

    Raises:
        InputError: as `Detector.load`, `open_peer`.
    """
    tell("loading")
    detectors = _open(load, peers, threads, 1)
    ours = detectors[OURS]
    expected = _in_f32(ours, image)
    figures = [_first(name, one, image, expected) for name, one in detectors.items()]
    tell(f"latency, {repeats} rounds")
    runs = {name: partial(one, image) for name, one in detectors.items()}
    for name, seconds in interleaved(runs, repeats).items():
        _find(figures, name).seconds = seconds
    del detectors, runs, ours
    gc.collect()
    tell("loading for throughput")
    detectors = _open(load, peers, threads, threads)
    rounds = max(repeats // 3, 2)
    tell(f"throughput, {rounds} rounds")
    counts = {name: _count(one, image) for name, one in detectors.items()}
    windows: dict[str, Callable[[], None]] = {
        name: partial(at_once, partial(one, image), one.streams, counts[name])
        for name, one in detectors.items()
    }
    for name, seconds in interleaved(windows, rounds).items():
        _find(figures, name).images_per_second = [counts[name] / s for s in seconds]
    return figures


def _open(
    load: Callable[..., Detector], peers: Sequence[str], threads: int, streams: int
) -> dict[str, Detector]:
    ours = load(threads=threads, streams=streams)
    opened = {OURS: ours}
    for name in peers:
        backend = open_peer(name, ours.model, threads // streams, streams)
        model = replace(ours.model, config=backend.config)
        opened[name] = Detector(model, backend, streams)
    return opened


def _in_f32(ours: Detector, image: NDArray[np.uint8]) -> Detections:
    """Our detections in f32, with which all others are compared."""
    if ours.engine.precision == "f32":
        return ours(image)
    model: ModelFile = ours.model
    engine = Engine(model.config, model.tensors, threads=ours.engine.threads)
    return Detector(model, engine)(image)


def _first(
    name: str, detector: Detector, image: NDArray[np.uint8], expected: Detections
) -> RuntimeFigures:
    precision = detector.engine.precision
    rule = exact if precision == "f32" else loose
    return RuntimeFigures(name, precision, rule(expected, detector(image)))


def _find(figures: list[RuntimeFigures], name: str) -> RuntimeFigures:
    return next(one for one in figures if one.name == name)


def _count(detector: Detector, image: NDArray[np.uint8]) -> int:
    """Images that take about `WINDOW`."""
    few = 2 * detector.streams
    start = time.perf_counter()
    at_once(partial(detector, image), detector.streams, few)
    rate = few / (time.perf_counter() - start)
    return max(few, round(rate * WINDOW))


def table(figures: Sequence[RuntimeFigures]) -> list[str]:
    """The figures as lines of text."""
    ours = figures[0]
    lines = [
        f"{'':<18}{'precision':<11}{'latency, ms':<24}{'images/s':>9}  {'ours is faster':<20}"
        "same objects"
    ]
    for one in figures:
        low, middle, high = _spread(one.seconds)
        latency = f"{middle:8.1f} ({low:.1f}..{high:.1f})"
        rate = statistics.median(one.images_per_second)
        times = ""
        if one is not ours and one.agrees:
            told = one.to_dict(ours)
            times = "{:.2f} x, {:.2f} x".format(
                told["latency_ratio"]["median"], told["throughput_ratio"]["median"]
            )
        elif one is not ours:
            times = "not comparable"
        counts = one.agreement
        same = f"{counts.matched} of {max(counts.expected, counts.got)}"
        lines.append(
            f"{one.name:<18}{one.precision:<11}{latency:<24}{rate:>9.2f}  {times:<20}{same}"
        )
    return lines


def _spread(seconds: list[float]) -> tuple[float, float, float]:
    """Milliseconds: the second fastest, the median, the second slowest of many."""
    ordered = sorted(1000 * s for s in seconds)
    cut = 1 if len(ordered) > 4 else 0
    return ordered[cut], statistics.median(ordered), ordered[-1 - cut]
