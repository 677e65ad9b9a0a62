"""Keep masks by cost: which weights or blocks stay when a number of them is pruned.

A layer's matrix and its blocks are those of `patterns`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .patterns import Pattern


def to_matrix(weight: Tensor) -> Tensor:
    """[out, in, k, k] or [out, in] -> [out, k * k * in], the matrix of `patterns`."""
    if weight.dim() == 2:
        return weight
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_matrix` for a weight of that shape."""
    if len(shape) == 2:
        return matrix
    out, channels, height, width = shape
    return matrix.view(out, height, width, channels).permute(0, 3, 1, 2)


def keep_largest(costs: Tensor, pruned: int) -> Tensor:
    """Keep mask without the `pruned` smallest costs; of equal costs the first are pruned.

    Args:
        costs: any shape.

    Returns:
        bool, in the shape of `costs`; exactly `pruned` are False.
    """
    flat = costs.flatten()
    if not 0 < pruned < len(flat):
        return torch.full_like(costs, pruned <= 0, dtype=torch.bool)
    # Selection instead of sorting: a tenth of the time for millions of weights.
    limit = flat.kthvalue(pruned).values
    below = flat < limit
    keep = ~below
    at_limit = (flat == limit).nonzero().flatten()
    keep[at_limit[: pruned - int(below.sum())]] = False
    return keep.view(costs.shape)


def keep_largest_of_layers(
    costs: Sequence[Tensor], pruned: int, least_density: float = 0.0
) -> tuple[Tensor, ...]:
    """Keep masks of several layers' blocks, ranked together.

    Args:
        costs: of each layer's blocks [blocks].
        pruned: blocks to prune, over all layers.
        least_density: density that each layer keeps, as a fraction of the average density.

    Returns:
        for each layer bool [blocks].
    """
    lengths = [len(layer) for layer in costs]
    together = torch.cat(list(costs))
    if least_density:
        density = least_density * (1 - pruned / len(together))
        for layer in torch.split(together, lengths):
            layer[layer.topk(math.ceil(density * len(layer))).indices] = torch.inf
    return torch.split(keep_largest(together, pruned), lengths)


def keep_by_magnitude(matrix: Tensor, zeros: int, pattern: Pattern) -> Tensor:
    """Keep mask of a weight matrix: the weights with the smallest squares are pruned.

    Args:
        matrix: [out, columns].
        zeros: number of zeros; a multiple of `pattern.zeros`. Ignored where the pattern fixes it.

    Returns:
        bool [out, columns].
    """
    squares = matrix.square()
    if pattern.live:
        return pattern.keep_within(squares)
    keep_blocks = keep_largest(pattern.block_costs(squares), zeros // pattern.zeros)
    return pattern.keep_mask(keep_blocks, squares)
