"""One layer pruned so that its outputs change least: weights that stay make up for the others.

With the layer's inputs x (columns), removing weights costs trace(D H D^T) for D the change of
the weight matrix and H = sum of x x^T. Where outputs y other than the weight's own are wanted, as
they are when layers before are pruned already, the weight that gives them best is pruned instead:
W + P^T H^-1 with the *pull* P = sum of x (y - W x)^T.

The optimal brain surgeon removes weight c of a row at the cost w_c^2 / [H^-1]_cc and adds
-w_c / [H^-1]_cc * H^-1[c] to the rest of its row. As in SparseGPT, columns are visited from left
to right, all rows at once, and a visited column is never changed again, so that one factorisation
serves all rows. What stays is then refitted, in all columns at once, by conjugate gradients.

It sees a weight and a Hessian; where the inputs come from is its caller's business. Computed in
float64: the largest layer of r101-c4 has 9216 columns, 0.7 GB a matrix.

Glossary: U is upper triangular, H^-1 = U^T U. The inverse of H without its first c rows and
columns is U[c:, c:]^T U[c:, c:], hence its first diagonal element U[c, c]^2. Groups and patterns
as in `patterns`.

Source: Frantar & Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1; Frantar, Singh & Alistarh,
Optimal Brain Compression, arXiv 2208.11580. Outputs of the unpruned network as the aim:
Li et al., GPTAQ, arXiv 2504.02692. Refitting by conjugate gradients: Meng et al., ALPS,
arXiv 2406.07831.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .patterns import GROUP, smallest, spread, two_of_four
from .schedule import Pattern

BLOCK = 128
"""Columns whose masks are chosen together and whose effect on later columns is added at once."""
REFITS = 20
"""Steps of conjugate gradients: more hardly change the error on photographs not fitted to."""


def reconstruct(
    weight: Tensor,
    hessian: Tensor,
    zeros: int,
    pattern: Pattern = "unstructured",
    *,
    pull: Tensor | None = None,
    importance: Tensor | None = None,
    damping: float = 0.01,
    block: int = BLOCK,
    refits: int = REFITS,
) -> Tensor:
    """Prune a weight matrix and adapt what is left.

    Args:
        weight: [out, columns].
        hessian: [columns, columns], symmetric, positive semidefinite; any scale.
        zeros: how many; a multiple of 4 for "1x4", half of all for "2:4".
        pull: [columns, out] of the same scale, towards other outputs; None: the weight's own.
        importance: [out], of a squared change of each output, any scale; None: all alike.
        damping: added to the diagonal, as a fraction of its mean. A column that no input
            reaches costs next to nothing and goes first.
        block: a multiple of 4.
        refits: steps after the zeros are chosen; 0: as SparseGPT leaves it.

    Returns:
        [out, columns] like `weight`, with exactly `zeros` zeros at the chosen places.

    Raises:
        InputError: the Hessian holds NaN or infinity, or cannot be factorised.
    """
    w = weight.detach().to(torch.float64, copy=True)
    upper, step = _inverse_factor(hessian, damping)
    if pull is not None:
        w += pull.T.to(torch.float64) @ upper.T @ upper
    aim = w.to(weight.dtype, copy=True)
    columns = w.shape[1]
    rows = torch.ones(len(w), 1) if importance is None else importance[:, None]
    rows = rows.to(w.dtype)
    counts = _zeros_a_block(w, rows, upper, zeros, pattern, block)
    for index, start in enumerate(range(0, columns, block)):
        stop = min(start + block, columns)
        part, u = w[:, start:stop], upper[start:stop, start:stop]
        if pattern == "1x4":
            chosen = spread(smallest(_group_costs(part, u) * rows, counts[index]))
        elif pattern == "unstructured":
            chosen = smallest((part / u.diagonal()).square() * rows, counts[index])
        else:
            chosen = torch.zeros_like(part, dtype=torch.bool)
        # Column by column in numpy, transposed: contiguous, and on one thread. torch would share
        # out these small steps, and wait for its other threads longer than it computes.
        rest, removed, factor = part.T.numpy().copy(), chosen.T.numpy(), u.numpy()
        errors = np.zeros_like(rest)
        for c in range(stop - start):
            if pattern == "2:4" and c % GROUP == 0:  # as late as possible: these values are final
                group = slice(c, c + GROUP)
                costs = torch.from_numpy((rest[group].T / factor.diagonal()[group]) ** 2)
                removed[group] = two_of_four(costs).T.numpy()
            np.divide(rest[c], factor[c, c], out=errors[c], where=removed[c])
            rest[c + 1 :] -= factor[c, c + 1 :, None] * errors[c]
        part.copy_(torch.from_numpy(np.where(removed, 0.0, rest)).T)
        w[:, stop:].addmm_(torch.from_numpy(errors).T, upper[start:stop, stop:], alpha=-1)
    del upper
    pruned = w.to(weight.dtype)
    return _refit(pruned, aim, hessian.to(weight.dtype), step, refits) if zeros else pruned


def _refit(pruned: Tensor, aim: Tensor, hessian: Tensor, step: float, refits: int) -> Tensor:
    """Least squares over the weights that stay: trace((V - aim) (H + step I) (V - aim)^T) falls.

    Conjugate gradients on every row at once, preconditioned by the diagonal.
    """
    stays = (pruned != 0).to(pruned.dtype)
    scale = 1 / (hessian.diagonal() + step)

    def slope(change: Tensor) -> Tensor:
        return (change @ hessian + step * change) * stays

    found, rest = pruned.clone(), slope(aim - pruned)
    way = rest * scale
    size = (rest * way).sum(dim=1, keepdim=True)
    for _ in range(refits):
        bend = slope(way)
        curve = (way * bend).sum(dim=1, keepdim=True)
        far = torch.where(curve > 0, size / curve, 0.0)  # a row that is done stays
        found += far * way
        rest -= far * bend
        scaled = rest * scale
        before, size = size, (rest * scaled).sum(dim=1, keepdim=True)
        way = scaled + torch.where(before > 0, size / before, 0.0) * way
    return found


def _inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """U of the damped Hessian, and what was added to its diagonal."""
    h = hessian.to(torch.float64, copy=True)
    mean = float(h.diagonal().mean())
    if not torch.isfinite(h).all():
        raise InputError("the Hessian holds NaN or infinity: the layer's inputs overflow")
    # Without any input every weight is as good as another: sizes decide.
    step = damping * mean if mean > 0 else 1.0
    added = 0.0
    for _ in range(4):
        h.diagonal().add_(step)
        added += step
        # Turned round, the lower Cholesky factor becomes R upper with H = R R^T: U is R^-1.
        lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
        if not failed:
            del h  # the largest layer's are most of all memory
            eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
            return upper, added
        step *= 10
    raise InputError("the Hessian is not positive semidefinite")


def _group_costs(part: Tensor, u: Tensor) -> Tensor:
    """Cost of removing each group alone: [rows, columns / 4].

    With U_B the group's diagonal block, w_B (H^-1_BB)^-1 w_B^T = |w_B U_B^-1|^2.
    """
    count = len(u) // GROUP
    diagonal = u.view(count, GROUP, count, GROUP).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inverse = torch.linalg.inv(diagonal)  # [columns / 4, 4, 4]
    groups = part.reshape(len(part), count, GROUP)
    return torch.einsum("rgi,gij->rgj", groups, inverse).square().sum(dim=2)


def _zeros_a_block(
    w: Tensor, rows: Tensor, upper: Tensor, zeros: int, pattern: Pattern, block: int
) -> list[int]:
    """How many weights (or groups) each block gives, by the costs before any change.

    The same number in each block, as in SparseGPT, would ask as much of a 3x3 kernel's centre
    as of its corners.
    """
    if pattern == "2:4":
        return []
    if pattern == "1x4":
        costs = torch.cat(
            [
                _group_costs(w[:, s : s + block], upper[s : s + block, s : s + block])
                for s in range(0, w.shape[1], block)
            ],
            dim=1,
        )
        chosen, width = smallest(costs * rows, zeros // GROUP), block // GROUP
    else:
        chosen, width = smallest((w / upper.diagonal()).square() * rows, zeros), block
    return [int(part.sum()) for part in torch.split(chosen, width, dim=1)]
