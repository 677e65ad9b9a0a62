"""Pruning patterns: which weights of a layer are pruned together.

A layer's weight is seen as a matrix [out_channels, columns]. A column is one input channel at one
tap of the filter; input channels run fastest, so neighbouring columns are neighbouring input
channels at one tap. A pattern cuts that matrix into blocks. `docs/contributing/pattern.md` tells
how to add one.

torch is imported for types alone: the command line reads the names here without torch. The methods
call methods of the tensors that they are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..model.graph import Layer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Which weights are pruned together.

    Attributes:
        name: as in recipes, model files and `--pattern`.
        help: what becomes zero, for the command line's help.
        rows: neighbouring output channels of a block; must divide a layer's output channels.
        columns: neighbouring input channels of a block, at one filter tap; must divide a layer's
            input channels.
        live: weights of a pruned block that stay, 0..rows * columns - 1. If it is not 0, every
            block is pruned in the end (N:M sparsity), so the pattern fixes the sparsity.
    """

    name: str
    help: str
    rows: int = 1
    columns: int = 1
    live: int = 0

    @property
    def size(self) -> int:
        """Weights of a block."""
        return self.rows * self.columns

    @property
    def zeros(self) -> int:
        """Zeros of a pruned block."""
        return self.size - self.live

    @property
    def fixed_sparsity(self) -> float | None:
        """Sparsity of every pruned layer, 0..1; None: it is free."""
        return self.zeros / self.size if self.live else None

    def most_zeros(self, weights: int) -> int:
        """Zeros of a layer with `weights` weights when all of its blocks are pruned."""
        return weights // self.size * self.zeros

    def check_layer(self, layer: Layer) -> None:
        """Refuse a layer that cannot be cut into blocks.

        Raises:
            InputError: names the layer.
        """
        for side, channels, length in (
            ("input", layer.in_channels, self.columns),
            ("output", layer.out_channels, self.rows),
        ):
            if channels % length:
                raise InputError(
                    f"pattern {self.name} needs a multiple of {length} {side} channels, but "
                    f"{layer.name} has {channels}: exclude it"
                )

    def blocks(self, matrix: Tensor) -> Tensor:
        """[out, columns] -> [blocks, size]; blocks run along a row first."""
        if self.rows == 1:
            return matrix.reshape(-1, self.columns)
        out, columns = matrix.shape
        tiles = matrix.reshape(out // self.rows, self.rows, columns // self.columns, self.columns)
        return tiles.transpose(1, 2).reshape(-1, self.size)

    def matrix(self, blocks: Tensor, rows: int) -> Tensor:
        """The inverse of `blocks`, for a matrix of `rows` rows."""
        if self.rows == 1:
            return blocks.reshape(rows, -1)
        tiles = blocks.reshape(rows // self.rows, -1, self.rows, self.columns)
        return tiles.transpose(1, 2).reshape(rows, -1)

    def block_costs(self, costs: Tensor) -> Tensor:
        """Cost of pruning each block: the sum over the weights that become zero.

        Args:
            costs: of each weight alone [out, columns].

        Returns:
            [blocks].
        """
        if self.size == 1:
            return costs.flatten()
        blocks = self.blocks(costs)
        if self.live:
            blocks = blocks.topk(self.zeros, dim=1, largest=False).values
        return blocks.sum(dim=1)

    def keep_mask(self, keep_blocks: Tensor, costs: Tensor) -> Tensor:
        """The keep mask of a matrix, given which of its blocks stay whole.

        Args:
            keep_blocks: bool [blocks]; False: the block is pruned.
            costs: of each weight [out, columns]; decides which weights of a pruned block stay.

        Returns:
            bool [out, columns].
        """
        rows = len(costs)
        keep = keep_blocks.view(rows // self.rows, -1)
        if self.columns > 1:
            keep = keep.repeat_interleave(self.columns, dim=1)
        if self.rows > 1:
            keep = keep.repeat_interleave(self.rows, dim=0)
        return keep | self.keep_within(costs) if self.live else keep

    def keep_within(self, costs: Tensor) -> Tensor:
        """The keep mask of a matrix [out, columns] when all of its blocks are pruned.

        Of equal costs in a block, the first weights are pruned.
        """
        order = self.blocks(costs).argsort(dim=1, stable=True)
        keep = order.new_ones(order.shape).bool()
        return self.matrix(keep.scatter_(1, order[:, : self.zeros], False), len(costs))

    def fits(self, keep_mask: Tensor) -> bool:
        """Whether each block of a keep mask [out, columns] is whole or pruned as the pattern
        says."""
        zeros = (~self.blocks(keep_mask)).sum(dim=1)
        return bool(((zeros == 0) | (zeros == self.zeros)).all())


UNSTRUCTURED = Pattern(name="unstructured", help="any weight")

PATTERNS: dict[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        UNSTRUCTURED,
        Pattern(name="1x4", help="four neighbouring input channels at once", columns=4),
        Pattern(name="2:4", help="two of four neighbouring input channels", columns=4, live=2),
    )
}
"""All patterns by name: the only list of them."""
