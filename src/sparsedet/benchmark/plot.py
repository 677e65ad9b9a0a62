"""The figures of `sparsedet bench` as a picture."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_atomic
from .runtimes import OURS, RuntimeFigures

# Source: the colour-blind safe palette of Okabe and Ito
BLUE, GREY = "#0072B2", "#888888"


def require_matplotlib() -> Any:
    """The module matplotlib.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install 'sparsedet[bench]'") from None
    return matplotlib


def save_plot(path: Path, figures: Sequence[RuntimeFigures], title: str, overwrite: bool) -> None:
    """Write latency and throughput of each runtime as bars; the suffix says the format.

    Raises:
        InputError: the file cannot be written, or matplotlib does not know the format.
    """
    matplotlib = require_matplotlib()
    picture = matplotlib.figure.Figure(figsize=(8, 1.2 + 0.5 * len(figures)), layout="constrained")
    picture.suptitle(title, fontsize=11)
    left, right = picture.subplots(1, 2, sharey=True)
    names = [f"{one.name}, {one.precision}" for one in figures]
    colours = [BLUE if one.name == OURS else GREY for one in figures]
    for axes, values, label, digits in (
        (left, [1000 * statistics.median(f.seconds) for f in figures], "latency, ms", 1),
        (right, [statistics.median(f.images_per_second) for f in figures], "images a second", 2),
    ):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [f"{value:.{digits}f}" for value in values], padding=3)
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.2 * max(values))
        axes.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    data = io.BytesIO()
    try:
        picture.savefig(data, format=path.suffix.lstrip(".").lower() or "png", dpi=150)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    write_atomic(path, data.getvalue(), overwrite=overwrite)
