"""A forecast of a detection's time from the graph alone, before anybody prunes.

Convolutions cost their multiplications, at the fraction of the CPU's measured peak that an
algorithm reaches; where zeros are skipped, those that are left and a fixed part. All else moves
memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .._native import fraction_of_peak
from ..model.graph import Conv, Graph, Operation, Shape
from .lower import lowered

BYTES_PER_SECOND = 5e9
"""Read and written by operations that are no convolutions, on two threads; measured on R50-FPN."""
SPARSE_FIXED, SPARSE_RATE = 0.17, 0.88
"""A convolution that skips its zeros takes (density + SPARSE_FIXED) / SPARSE_RATE of the time that
all its multiplications take at the peak: loading a column costs the same for one weight and for
five. Fitted to r101-c4, R50-FPN, RetinaNet and MobileNet FPN with 60, 80 and 90 % zeros on two
threads of an Intel Xeon (Emerald Rapids); the engine's choice of algorithms does not depend on
it."""
WINOGRAD_SAVES = 4 / 1.15
"""Multiplications that F(4x4, 3x3) saves, its transforms counted as multiplications."""
MATRIX_FRACTION = 0.5
"""Fraction of the matrix unit's peak that is assumed, as the core's cost model does: nobody has
measured it (native/algorithms/matrix.cpp)."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a network is in its prunable layers, 0..1.

    Attributes:
        parameters, multiplications: in prunable layers, of all.
        zeros: of the prunable weights; None: weights are not known.
    """

    parameters: float
    multiplications: float
    zeros: float | None


def prunable_share(graph: Graph, rois: int, zeros: Mapping[str, int] | None = None) -> Share:
    """The share of the prunable layers.

    Args:
        graph: the graph.
        rois: RoIs of an image.
        zeros: of each layer's weights and biases, by its name.
    """
    layers = [layer for layer in graph.layers if layer.prunable]
    weights = sum(layer.weights for layer in layers)
    cells = graph.cells(rois)
    work = {layer.name: layer.weights * cells[layer.name] for layer in graph.layers}
    found = None
    if zeros is not None:
        found = sum(zeros.get(layer.name, 0) for layer in layers) / max(weights, 1)
    return Share(
        weights / graph.parameters,
        sum(work[layer.name] for layer in layers) / max(sum(work.values()), 1),
        found,
    )


def forecast(
    graph: Graph,
    zeros: float | Mapping[str, float],
    *,
    peak: float,
    matrix_peak: float = 0.0,
    precision: str = "f32",
    rois: int | None = None,
) -> float:
    """Seconds of one detection, without reading and resizing the image.

    Args:
        graph: as a family builds it.
        zeros: fraction of zeros in each prunable layer, or of each layer by name.
        peak: of this CPU in this precision on all threads, GFLOP/s (`_native.peak_gflops`).
        matrix_peak: of the matrix unit in this precision, GFLOP/s; 0: there is none.
        precision: "f32", "bf16" or "int8".
        rois: RoIs of an image; default: as many as there can be.
    """
    graph = lowered(graph)
    seconds = 0.0
    for operation in graph.operations:
        conv = operation.attributes
        if not isinstance(conv, Conv):
            seconds += _moved(graph, operation, rois) / BYTES_PER_SECOND
            continue
        share = (
            (zeros if conv.prunable else 0.0)
            if isinstance(zeros, int | float)
            else zeros.get(conv.layers[0], 0.0)
        )
        peaks = (peak, matrix_peak)
        seconds += min(_seconds(graph, operation, conv, share, peaks, precision, rois))
    return seconds


def _count(shape: Shape, rois: int | None) -> int:
    return min(shape.count, rois) if rois is not None and shape.per_roi else shape.count


def _seconds(
    graph: Graph,
    operation: Operation,
    conv: Conv,
    share: float,
    peaks: tuple[float, float],
    precision: str,
    rois: int | None,
) -> Iterator[float]:
    """Seconds of a convolution by each algorithm that may run it. peaks: of the vector unit and of
    the matrix unit."""
    peak, matrix_peak = peaks
    source, out = graph.shapes[operation.inputs[0]], graph.shapes[operation.name]
    weights = math.prod((source.channels // conv.groups, conv.out_channels, *conv.kernel))
    work = 2e-9 * weights * out.height * out.width * _count(out, rois)
    if conv.groups == source.channels == conv.out_channels:
        yield work / (peak * fraction_of_peak("depthwise", precision, 1.0))
        return
    size = {"f32": 1, "bf16": 2, "int8": 4}[precision]  # weights of an element
    density = 1 - share**size  # of elements that are not zero
    yield work / peak * (density + SPARSE_FIXED) / SPARSE_RATE
    yield work / (peak * fraction_of_peak("dense", precision, 1.0))
    if matrix_peak:
        yield work / (matrix_peak * MATRIX_FRACTION)
    plain = conv.kernel == (3, 3) and conv.stride == conv.dilation == 1 and precision == "f32"
    if out.per_roi and plain and len(operation.inputs) == 1:
        yield work / WINOGRAD_SAVES / (peak * fraction_of_peak("winograd", precision, 1.0))


def _moved(graph: Graph, operation: Operation, rois: int | None) -> float:
    """Bytes that an operation reads and writes."""
    if operation.kind == "slice":
        return 0.0
    shapes = [graph.shapes[name] for name in (*operation.inputs, operation.name)]
    moved = (s for s in shapes if s.domain not in ("image", "boxes", "rows"))
    return 4.0 * sum(s.channels * s.height * s.width * _count(s, rois) for s in moved)
