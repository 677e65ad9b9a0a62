"""Which weights of one layer become zero, given how much each one matters.

A layer's weight is seen as a matrix [out, columns] whose columns run over kernel rows, kernel
columns and, fastest, input channels: four neighbouring columns that start at a multiple of four
are four neighbouring input channels at one kernel position, a *group*.

Patterns: "unstructured" chooses weight by weight, "1x4" whole groups, "2:4" two of each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..model.graph import Layer
from .schedule import Pattern

GROUP = 4
"""Columns of a group."""
ZEROS_A_UNIT: dict[Pattern, int] = {"unstructured": 1, "1x4": GROUP, "2:4": GROUP // 2}
"""Zeros of what a pattern chooses at once: a weight, or in a group."""


def to_matrix(weight: Tensor) -> Tensor:
    """[out, in, k, k] or [out, in] -> [out, k * k * in]."""
    if weight.dim() == 2:
        return weight
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_matrix` for a weight of that shape."""
    if len(shape) == 2:
        return matrix
    out, channels, height, width = shape
    return matrix.view(out, height, width, channels).permute(0, 3, 1, 2)


def check_pattern(layer: Layer, pattern: Pattern) -> None:
    """Refuse a layer whose input channels do not divide into groups.

    Raises:
        InputError: names the layer.
    """
    if pattern != "unstructured" and layer.in_channels % GROUP:
        raise InputError(
            f"pattern {pattern} needs input channels in fours, but {layer.name} has "
            f"{layer.in_channels}: exclude it"
        )


def smallest(scores: Tensor, count: int) -> Tensor:
    """True at exactly `count` places with the smallest scores; of equals the first ones."""
    flat = scores.flatten()
    if not 0 < count < len(flat):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    # Selection, not sorting: a tenth of the time for millions of weights.
    limit = flat.kthvalue(count).values
    chosen = flat < limit
    equal = (flat == limit).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def cheapest(parts: Sequence[Tensor], count: int, least: float = 0.0) -> tuple[Tensor, ...]:
    """A choice of `count` of several layers' units together, by their costs.

    Args:
        parts: costs of each layer's units [units].
        least: density that each layer keeps, as a fraction of what all keep on average.

    Returns:
        for each layer, True at the chosen units.
    """
    lengths = [len(part) for part in parts]
    costs = torch.cat(list(parts))
    if least:
        density = least * (1 - count / len(costs))
        for part in torch.split(costs, lengths):
            part[part.topk(math.ceil(density * len(part))).indices] = torch.inf
    return torch.split(smallest(costs, count), lengths)


def two_of_four(scores: Tensor) -> Tensor:
    """True at the two smallest scores of each group of [rows, columns]."""
    groups = scores.reshape(len(scores), -1, GROUP)
    order = groups.argsort(dim=2, stable=True)
    chosen = torch.zeros_like(groups, dtype=torch.bool)
    return chosen.scatter_(2, order[:, :, : GROUP // 2], True).view(scores.shape)


def spread(groups: Tensor) -> Tensor:
    """A choice of groups [rows, columns / 4] -> the same choice of weights [rows, columns]."""
    return groups.repeat_interleave(GROUP, dim=1)


def pruned_by_size(matrix: Tensor, zeros: int, pattern: Pattern) -> Tensor:
    """True at the weights that matter least by their squares.

    Args:
        matrix: [out, columns].
        zeros: how many; a multiple of 4 for "1x4", half of all for "2:4".
    """
    squares = matrix.square()
    if pattern == "2:4":
        return two_of_four(squares)
    if pattern == "1x4":
        groups = squares.view(len(matrix), -1, GROUP).sum(dim=2)
        return spread(smallest(groups, zeros // GROUP))
    return smallest(squares, zeros)
