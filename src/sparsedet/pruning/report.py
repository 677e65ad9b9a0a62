"""The report of one-shot pruning, layer by layer: as text, JSON and a plot. No torch."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .cost import PruningCost


@dataclass(frozen=True, slots=True)
class LayerPruning:
    """One pruned layer.

    Attributes:
        weights, zeros: of the weight; biases are not counted.
        had: zeros before pruning. If they are enough, nothing is pruned, and both errors are
            rounding errors.
        error: relative difference of the layer's output (residual added, before ReLU) from the
            unpruned network's on held-out images, all layers before it pruned: norm of the
            difference over the norm of the unpruned layer's own contribution, its mean over
            positions removed.
        magnitude_error: the same with as many zeros of this layer by magnitude and a corrected
            bias.
    """

    name: str
    weights: int
    zeros: int
    had: int
    error: float
    magnitude_error: float

    @property
    def sparsity(self) -> float:
        """Zeros among the layer's weights, 0..1."""
        return self.zeros / self.weights


@dataclass(frozen=True, slots=True)
class PruningReport:
    """All pruned layers in the network's order.

    Attributes:
        parameters, zeros: of the whole network, weights and biases.
        cost: the network beside its dense one; None: not measured.
    """

    method: str
    pattern: str
    layers: tuple[LayerPruning, ...]
    parameters: int
    zeros: int
    cost: PruningCost | None = None

    @property
    def sparsity(self) -> float:
        """Zeros among ALL parameters, 0..1."""
        return self.zeros / self.parameters

    def table(self) -> str:
        """A line for each layer, one for the whole network, and what it cost."""
        width = max(18, *(len(row.name) + 1 for row in self.layers))
        lines = [f"{'layer':<{width}}{'weights':>12}{'sparsity':>10}{'error':>8}{'magnitude':>11}"]
        lines += [
            f"{row.name:<{width}}{row.weights:>12,}{100 * row.sparsity:>8.1f} %{row.error:>8.3f}"
            f"{row.magnitude_error:>11.3f}"
            for row in self.layers
        ]
        lines.append(
            f"{self.zeros:,} of {self.parameters:,} parameters are zero "
            f"({100 * self.sparsity:.2f} %): {self.method}, {self.pattern}"
        )
        if self.cost is not None:
            lines.append(self.cost.text())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        rows = [{**asdict(row), "sparsity": row.sparsity} for row in self.layers]
        values = {**asdict(self), "sparsity": self.sparsity, "layers": rows}
        if self.cost is None:
            del values["cost"]
        return values

    def plot(self) -> bytes:
        """A PNG with the sparsity and the error of each layer.

        Raises:
            InputError: matplotlib is missing.
        """
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = [row.name for row in self.layers]
        figure = Figure(figsize=(max(6.0, 0.22 * len(names)), 6.0), layout="constrained")
        FigureCanvasAgg(figure)  # draws without a display
        above, below = figure.subplots(2, 1, sharex=True)
        above.bar(names, [row.sparsity for row in self.layers])
        above.set_ylabel("zeros of the layer's weights")
        above.set_ylim(0, 1)
        above.set_title(f"{self.method}, {self.pattern}: {100 * self.sparsity:.1f} % of all zero")
        below.plot(names, [row.magnitude_error for row in self.layers], ".--", label="magnitude")
        if self.method != "magnitude":
            below.plot(names, [row.error for row in self.layers], ".-", label=self.method)
        below.set_ylabel("relative error of the output")
        below.set_ylim(bottom=0)
        below.legend()
        below.tick_params(axis="x", labelrotation=90, labelsize=7)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("the plot needs: pip install matplotlib") from None
