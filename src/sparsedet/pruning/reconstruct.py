"""Prunes one layer and solves for its remaining weights, so that its outputs change least.

With the layer's inputs x (one value for each column of its weight matrix), a change D of the matrix
costs trace(D H D^T), where the Hessian H is the sum of x x^T. If the layer should give outputs y
that differ from its own, as it should when layers before it are pruned already, the matrix that
gives them best is pruned instead: W + C^T H^-1, with the cross covariance C = sum of x (y - W x)^T.

The optimal brain surgeon removes weight c of a row at the cost w_c^2 / [H^-1]_cc and adds
-w_c / [H^-1]_cc * H^-1[c] to the rest of the row. As in SparseGPT, columns are visited from left to
right in all rows at once, and a visited column does not change again: so one factorisation serves
all rows. Afterwards the remaining weights of all columns are refitted by conjugate gradients.

The module knows a weight and a Hessian; the caller decides where the inputs come from. It computes
in float64: the largest layer of r101-c4 has 9216 columns, 0.7 GB for each matrix.

U is the upper triangular factor with H^-1 = U^T U. The inverse of H without its first c rows and
columns is U[c:, c:]^T U[c:, c:]; its first diagonal element is U[c, c]^2. Blocks are those of
`patterns`; a chunk is a run of columns whose weights are chosen together.

Source: Frantar & Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1; Frantar, Singh & Alistarh,
Optimal Brain Compression, arXiv 2208.11580. Outputs of the unpruned network as the target:
Li et al., GPTAQ, arXiv 2504.02692. Refitting by conjugate gradients: Meng et al., ALPS,
arXiv 2406.07831.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .patterns import UNSTRUCTURED, Pattern
from .selection import keep_largest

CHUNK = 128
"""Columns whose masks are chosen together and whose effect on later columns is added at once."""
REFITS = 20
"""Steps of conjugate gradients; more hardly change the error on held-out images."""


def reconstruct(
    weight: Tensor,
    hessian: Tensor,
    zeros: int,
    pattern: Pattern = UNSTRUCTURED,
    *,
    cross_covariance: Tensor | None = None,
    importance: Tensor | None = None,
    damping: float = 0.01,
    chunk: int = CHUNK,
    refits: int = REFITS,
) -> Tensor:
    """Prune a weight matrix and adapt its remaining weights.

    Args:
        weight: [out, columns].
        hessian: [columns, columns], symmetric, positive semidefinite; any scale.
        zeros: number of zeros; a multiple of `pattern.zeros`, and all that the pattern allows
            where it fixes the sparsity.
        cross_covariance: [columns, out], of the inputs and the wanted change of the outputs, in
            the Hessian's scale; None: the outputs should stay.
        importance: [out], of a squared change of each output, any scale; None: all equal.
        damping: added to the diagonal, as a fraction of its mean. A column without input then
            costs next to nothing and is pruned first.
        chunk: columns; a multiple of the block's columns.
        refits: steps of conjugate gradients after the zeros are chosen; 0: SparseGPT's result.

    Returns:
        [out, columns] like `weight`, with exactly `zeros` zeros.

    Raises:
        InputError: the Hessian holds NaN or infinity, or cannot be factorised.
    """
    w = weight.detach().to(torch.float64, copy=True)
    upper, step = _inverse_factor(hessian, damping)
    if cross_covariance is not None:
        w += cross_covariance.T.to(torch.float64) @ upper.T @ upper
    target = w.to(weight.dtype, copy=True)
    columns = w.shape[1]
    rows = torch.ones(len(w), 1) if importance is None else importance[:, None]
    rows = rows.to(w.dtype)
    pruned_blocks = _pruned_blocks_of_chunks(w, rows, upper, zeros, pattern, chunk)
    for index, start in enumerate(range(0, columns, chunk)):
        stop = min(start + chunk, columns)
        w_chunk, u_chunk = w[:, start:stop], upper[start:stop, start:stop]
        if pattern.live:  # chosen block by block below
            keep_mask = torch.ones_like(w_chunk, dtype=torch.bool)
        else:
            costs = _block_costs(w_chunk, u_chunk, rows, pattern)
            keep_blocks = keep_largest(costs, pruned_blocks[index]).flatten()
            keep_mask = pattern.keep_mask(keep_blocks, w_chunk)
        # Column by column in numpy, transposed: contiguous, and on one thread. torch would share
        # out these small steps, and wait for its other threads longer than it computes.
        rest, keep, factor = w_chunk.T.numpy().copy(), keep_mask.T.numpy(), u_chunk.numpy()
        errors = np.zeros_like(rest)
        for c in range(stop - start):
            if pattern.live and c % pattern.columns == 0:
                # As late as possible: earlier columns no longer change these weights.
                block = slice(c, c + pattern.columns)
                block_costs = torch.from_numpy((rest[block].T / factor.diagonal()[block]) ** 2)
                keep[block] = pattern.keep_within(block_costs).T.numpy()
            np.divide(rest[c], factor[c, c], out=errors[c], where=~keep[c])
            rest[c + 1 :] -= factor[c, c + 1 :, None] * errors[c]
        w_chunk.copy_(torch.from_numpy(np.where(keep, rest, 0.0)).T)
        w[:, stop:].addmm_(torch.from_numpy(errors).T, upper[start:stop, stop:], alpha=-1)
    del upper
    pruned = w.to(weight.dtype)
    return _refit(pruned, target, hessian.to(weight.dtype), step, refits) if zeros else pruned


def _refit(pruned: Tensor, target: Tensor, hessian: Tensor, step: float, refits: int) -> Tensor:
    """Least squares over the remaining weights of V: reduces trace((V - target) (H + step I)
    (V - target)^T).

    Conjugate gradients on every row at once, preconditioned by the diagonal.
    """
    live = (pruned != 0).to(pruned.dtype)
    preconditioner = 1 / (hessian.diagonal() + step)

    def gradient(change: Tensor) -> Tensor:
        return (change @ hessian + step * change) * live

    solution, residual = pruned.clone(), gradient(target - pruned)
    direction = residual * preconditioner
    size = (residual * direction).sum(dim=1, keepdim=True)
    for _ in range(refits):
        bend = gradient(direction)
        curvature = (direction * bend).sum(dim=1, keepdim=True)
        length = torch.where(curvature > 0, size / curvature, 0.0)  # 0: the row has converged
        solution += length * direction
        residual -= length * bend
        scaled = residual * preconditioner
        before, size = size, (residual * scaled).sum(dim=1, keepdim=True)
        direction = scaled + torch.where(before > 0, size / before, 0.0) * direction
    return solution


def _inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """U of the damped Hessian, and the value added to the Hessian's diagonal."""
    h = hessian.to(torch.float64, copy=True)
    mean = float(h.diagonal().mean())
    if not torch.isfinite(h).all():
        raise InputError("the Hessian holds NaN or infinity: the layer's inputs overflow")
    # Without any input all weights are equally good: magnitudes decide.
    step = damping * mean if mean > 0 else 1.0
    added = 0.0
    for _ in range(4):
        h.diagonal().add_(step)
        added += step
        # Flipped, the lower Cholesky factor becomes R upper with H = R R^T: U is R^-1.
        lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
        if not failed:
            del h  # the largest layer's matrices take most of the memory
            eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
            return upper, added
        step *= 10
    raise InputError("the Hessian is not positive semidefinite")


def _block_costs(w: Tensor, u: Tensor, rows: Tensor, pattern: Pattern) -> Tensor:
    """Cost of removing each block alone: [out / pattern.rows, columns / pattern.columns].

    For each row of a block B: w_B (H^-1_BB)^-1 w_B^T = |w_B U_B^-1|^2, with U_B the block of U on
    the diagonal; times the row's importance.

    Args:
        w: weights of some columns [out, columns].
        u: the same columns of U [columns, columns].
        rows: importance of each row [out, 1].
    """
    if pattern.columns == 1:
        costs = (w / u.diagonal()).square()
    else:
        count, length = len(u) // pattern.columns, pattern.columns
        diagonal = u.view(count, length, count, length).diagonal(dim1=0, dim2=2)
        inverse = torch.linalg.inv(diagonal.permute(2, 0, 1))  # [count, length, length]
        blocks = w.reshape(len(w), count, length)
        costs = torch.einsum("rgi,gij->rgj", blocks, inverse).square().sum(dim=2)
    costs = costs * rows
    if pattern.rows > 1:
        costs = costs.view(-1, pattern.rows, costs.shape[1]).sum(dim=1)
    return costs


def _pruned_blocks_of_chunks(
    w: Tensor, rows: Tensor, upper: Tensor, zeros: int, pattern: Pattern, chunk: int
) -> list[int]:
    """How many blocks each chunk loses, by the costs before any change.

    The same number in each chunk, as in SparseGPT, would take as much from a 3x3 kernel's centre
    as from its corners.
    """
    if pattern.live:  # every block is pruned
        return []
    costs = torch.cat(
        [
            _block_costs(w[:, s : s + chunk], upper[s : s + chunk, s : s + chunk], rows, pattern)
            for s in range(0, w.shape[1], chunk)
        ],
        dim=1,
    )
    keep_blocks = keep_largest(costs, zeros // pattern.zeros)
    chunks = torch.split(keep_blocks, chunk // pattern.columns, dim=1)
    return [int((~keep).sum()) for keep in chunks]
