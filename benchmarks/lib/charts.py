"""matplotlib as all charts of the documents use it: style and colours."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "sparsedet",  # the same bytes from the same results
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)
from matplotlib import pyplot as plt  # noqa: E402  (after the backend is chosen)

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PINK", "plt"]

# Source: the colour-blind safe palette of Okabe and Ito
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888"
