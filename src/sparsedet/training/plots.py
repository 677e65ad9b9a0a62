"""Plots of a finished run: `losses.png` and `sparsity.png` in its folder."""

from __future__ import annotations

import io
from pathlib import Path

from ..files import write_atomic
from .log import METRICS, VALIDATION, read_lines

LOSSES = (
    "loss",
    "rpn_objectness",
    "rpn_box",
    "roi_class",
    "roi_box",
    "distill_class",
    "distill_rpn",
    "distill_features",
)


def plot_run(folder: Path) -> str | None:
    """Draw the curves from the run's own log.

    Returns:
        None, or a note that matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plots: the matplotlib package is not installed"
    metrics, validations = read_lines(folder / METRICS), read_lines(folder / VALIDATION)
    steps = [line["step"] for line in metrics]
    for name, keys, label in (
        ("losses.png", LOSSES, "loss, mean since the last point"),
        ("sparsity.png", ("sparsity",), "zeros of all parameters"),
    ):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=label)
        for key in keys:
            if not key.startswith("distill_") or any(key in line for line in metrics):
                axes.plot(steps, [line.get(key, float("nan")) for line in metrics], label=key)
        if validations:
            right = axes.twinx()
            right.set_ylabel("AP of the held-out split")
            right.plot(
                [line["step"] for line in validations],
                [line["AP"] for line in validations],
                "k.--",
                label="AP",
            )
            right.legend(loc="upper right")
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=100)
        write_atomic(folder / name, data.getvalue(), overwrite=True)
    return None
