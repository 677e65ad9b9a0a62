"""Allocations: how many weights of each layer become zero. No torch.

Source of ERK: Evci et al., "Rigging the lottery", arXiv 1911.11134, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ..errors import InputError
from ..model.graph import Graph
from .patterns import Pattern

Allocation = Literal["uniform", "global", "erk", "sensitivity"]
"""How zeros are distributed over the layers: the same sparsity in each, all weights ranked
together by magnitude, Erdos-Renyi-kernel, or ranked together by sensitivity of the detector's
outputs (one-shot) or of its loss (gradual)."""


LEAST_DENSITY = 0.25
"""Smallest density of a layer with "sensitivity", as a fraction of the average density: no layer
is pruned so far that it passes nothing on."""


def prunable_layers(graph: Graph, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the layers that may be pruned: all but stem, predictors and `exclude`.

    Returns:
        names in the network's order.

    Raises:
        InputError: a name in `exclude` is not a layer, or no layer is left.
    """
    names = {layer.name for layer in graph.layers}
    if unknown := sorted(set(exclude) - names):
        raise InputError(f"cannot exclude {unknown[0]!r}: no such layer")
    layers = tuple(n.name for n in graph.layers if n.prunable and n.name not in exclude)
    if not layers:
        raise InputError("every prunable layer is excluded")
    return layers


def pattern_sparsity(graph: Graph, layers: Sequence[str], pattern: Pattern) -> float:
    """Zeros among ALL parameters when every block of `layers` is pruned, 0..1."""
    zeros = sum(pattern.most_zeros(graph.layer[name].weights) for name in layers)
    return zeros / graph.parameters


def zeros_needed(graph: Graph, layers: Sequence[str], sparsity: float) -> int:
    """Number of zeros that make `sparsity` of ALL parameters of the network.

    Args:
        layers: those that may hold the zeros.
        sparsity: 0..1.

    Raises:
        InputError: the layers have too few weights for the target.
    """
    total = graph.parameters
    available = sum(graph.layer[name].weights for name in layers)
    needed = math.ceil(sparsity * total)
    if needed > available:
        raise InputError(
            f"sparsity {sparsity:.3f} of all {total} parameters needs {needed} zeros, "
            f"but the pruned layers have {available} weights"
        )
    return needed


def uniform_zeros(graph: Graph, layers: Sequence[str], sparsity: float) -> dict[str, int]:
    """Zeros of each layer so that `sparsity` of ALL parameters of the network are zero.

    Every layer of `layers` gets the same sparsity, rounded up to a whole weight.

    Raises:
        InputError: the layers have too few weights for the target.
    """
    weights = {name: graph.layer[name].weights for name in layers}
    layer_sparsity = zeros_needed(graph, layers, sparsity) / sum(weights.values())
    return {name: min(count, math.ceil(layer_sparsity * count)) for name, count in weights.items()}


def erk_zeros(graph: Graph, layers: Sequence[str], sparsity: float) -> dict[str, int]:
    """As `uniform_zeros`, but small layers stay denser (Erdos-Renyi-kernel).

    A layer's density is proportional to (in + out + k + k) / (in * out * k * k). Layers whose
    density would pass 1 stay dense, and the others take over their zeros.

    Raises:
        InputError: the layers have too few weights for the target.
    """
    shapes = {name: graph.layer[name] for name in layers}
    weights = {name: layer.weights for name, layer in shapes.items()}
    # Density times weights: the live weights of a layer, up to a common factor.
    raw = {n: s.in_channels + s.out_channels + 2 * s.kernel for n, s in shapes.items()}
    live = sum(weights.values()) - zeros_needed(graph, layers, sparsity)
    dense: set[str] = set()
    factor = 0.0
    while len(dense) < len(raw):
        rest = live - sum(weights[name] for name in dense)
        factor = rest / sum(raw[name] for name in raw if name not in dense)
        full = {n for n in raw if n not in dense and factor * raw[n] > weights[n]}
        if not full:
            break
        dense |= full
    return {
        name: 0 if name in dense else min(count, math.ceil(count - factor * raw[name]))
        for name, count in weights.items()
    }
