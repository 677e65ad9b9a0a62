"""Reconstruction against the optimal brain surgeon's own formulas, and hostile Hessians."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.pruning import patterns  # noqa: E402
from sparsedet.pruning.patterns import Pattern  # noqa: E402
from sparsedet.pruning.reconstruct import reconstruct  # noqa: E402
from sparsedet.pruning.selection import keep_by_magnitude  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

PATTERNS = [patterns.PATTERNS[name] for name in ("unstructured", "1x4", "2:4")]
by_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)


def problem(rows: int, columns: int, samples: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Weight [rows, columns], correlated inputs [samples, columns] and their Hessian."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * (rng.random((columns, columns)) < 0.3)
    inputs = rng.standard_normal((samples, columns)) @ (mixing + np.eye(columns))
    inputs *= rng.uniform(0.2, 3, columns)
    weight = rng.standard_normal((rows, columns))
    return torch.tensor(weight), torch.tensor(inputs), torch.tensor(inputs.T @ inputs)


def change(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """trace(D H D^T): the sum of squared changes of the outputs."""
    d = (after - before).double()
    return float(((d @ hessian.double()) * d).sum())


def lowest(costs: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(costs.size, bool)
    chosen[np.argsort(costs, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(costs.shape)


def naive(
    weight: Tensor, hessian: Tensor, zeros: int, pattern: Pattern, chunk: int, importance: Any = 1.0
) -> np.ndarray:
    """One column at a time; a dense inverse of the remaining columns' Hessian for each."""
    w, h = weight.numpy().copy(), hessian.numpy().copy()
    rows, columns = w.shape
    h += 0.01 * np.mean(np.diag(h)) * np.eye(columns)

    step = 4 if pattern.name == "1x4" else 1

    def inverse(first: int) -> np.ndarray:
        return np.linalg.inv(h[first:, first:])

    def costs(of: np.ndarray, first: int, last: int) -> np.ndarray:
        """Cost of each weight (or block of four) as it is removed in turn, in `of`'s columns."""
        out = []
        for c in range(first, last, step):
            small = np.linalg.inv(inverse(c)[:step, :step])
            out.append(np.einsum("ri,ij,rj->r", of[:, c : c + step], small, of[:, c : c + step]))
        return np.array(out).T * np.reshape(importance, (-1, 1))

    first_choice = lowest(costs(w, 0, columns), zeros // step)
    chosen = np.zeros((rows, columns), bool)
    for c in range(columns):
        if pattern.name == "2:4":
            if c % 4 == 0:
                order = np.argsort(costs(w, c, c + 4), axis=1, kind="stable")[:, :2]
                np.put_along_axis(chosen[:, c : c + 4], order, True, axis=1)
        elif c % chunk == 0:
            last = min(c + chunk, columns)
            count = int(first_choice[:, c // step : last // step].sum())
            of_chunk = lowest(costs(w, c, last), count)
            chosen[:, c:last] = np.repeat(of_chunk, step, axis=1)
        # OBC, equation 3, for every row whose weight c is removed.
        inv = inverse(c)
        for row in np.flatnonzero(chosen[:, c]):
            w[row, c:] -= w[row, c] / inv[0, 0] * inv[0]
            w[row, c] = 0
    return w


@by_pattern
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_dense_inverses(pattern: Pattern, dtype: str) -> None:
    weight, _, hessian = problem(12, 40, 300)
    zeros = 240
    pruned = reconstruct(
        weight.to(getattr(torch, dtype)), hessian, zeros, pattern, chunk=16, refits=0
    )
    expected = naive(weight, hessian, zeros, pattern, 16)
    assert pruned.dtype == getattr(torch, dtype)
    assert np.abs(pruned.numpy() - expected).max() < (1e-5 if dtype == "float32" else 1e-9)
    assert ((pruned == 0).numpy() == (expected == 0)).all()


@by_pattern
def test_important_outputs_keep_more_weights(pattern: Pattern) -> None:
    weight, _, hessian = problem(12, 40, 300)
    importance = torch.tensor(np.random.default_rng(2).uniform(0.01, 1, 12))
    pruned = reconstruct(weight, hessian, 240, pattern, importance=importance, chunk=16, refits=0)
    expected = naive(weight, hessian, 240, pattern, 16, importance.numpy())
    assert np.abs(pruned.numpy() - expected).max() < 1e-9
    # Any scale is the same, and equal importances are the same as none.
    same = reconstruct(weight, hessian, 240, pattern, importance=8 * importance, chunk=16, refits=0)
    assert torch.equal(same, pruned)
    equal = reconstruct(weight, hessian, 240, pattern, importance=torch.full((12,), 4.0))
    assert torch.equal(equal, reconstruct(weight, hessian, 240, pattern))
    if pattern.name != "2:4":  # which fixes every row
        kept = (pruned != 0).sum(dim=1).double()
        assert torch.corrcoef(torch.stack([kept, importance.log()]))[0, 1] > 0.7


def test_what_stays_is_optimal_in_the_last_columns() -> None:
    # Where all zeros lie before a column, that column and all after are least-squares optimal.
    weight, _, hessian = problem(6, 24, 200)
    weight[:, :8] *= 1e-3  # all zeros go here
    pruned = reconstruct(weight, hessian, 48, chunk=8, damping=0.0, refits=0)
    assert (pruned[:, :8] == 0).all() and (pruned[:, 8:] != 0).all()
    best = weight[:, 8:] + weight[:, :8] @ hessian[:8, 8:] @ torch.linalg.inv(hessian[8:, 8:])
    assert torch.allclose(pruned[:, 8:], best, atol=1e-9)


@by_pattern
def test_what_stays_is_refitted_to_least_squares(pattern: Pattern) -> None:
    """Against a dense solve of each row's normal equations, with outputs other than its own."""
    weight, inputs, hessian = problem(6, 24, 300)
    noise = torch.tensor(np.random.default_rng(1).standard_normal((6, 24)))
    outputs = inputs @ (weight + 0.3 * noise).T  # as if inputs had been others
    cross = inputs.T @ (outputs - inputs @ weight.T)
    pruned = reconstruct(weight, hessian, 72, pattern, cross_covariance=cross, refits=200)
    rough = reconstruct(weight, hessian, 72, pattern, cross_covariance=cross, refits=0)
    assert torch.equal(pruned == 0, rough == 0) and int((pruned == 0).sum()) == 72
    step = 0.01 * float(hessian.diagonal().mean())
    for row in range(6):
        live = pruned[row] != 0
        live_inputs = inputs[:, live]
        # Damping pulls towards the original weight; zeros are a change, too.
        damped = hessian + step * torch.eye(24)
        right_side = damped[live] @ weight[row] + cross[live, row]
        left_side = live_inputs.T @ live_inputs + step * torch.eye(live_inputs.shape[1])
        best = torch.linalg.solve(left_side, right_side)
        assert torch.allclose(pruned[row, live], best, atol=1e-7)

    def error(of: Tensor) -> float:
        return float((inputs @ of.T - outputs).square().sum())

    plain = reconstruct(weight, hessian, 72, pattern)
    assert error(pruned) < error(rough) and error(pruned) < error(plain)


@by_pattern
@pytest.mark.parametrize("seed", range(5))
def test_counts_are_exact_and_the_output_changes_less(pattern: Pattern, seed: int) -> None:
    weight, _, hessian = problem(16, 64, 500, seed)
    for zeros in (512,) if pattern.name == "2:4" else (0, 4, 512, 900, 1024):
        pruned = reconstruct(weight, hessian, zeros, pattern, chunk=32)
        dead = pruned == 0
        assert int(dead.sum()) == zeros
        by_magnitude = weight.masked_fill(~keep_by_magnitude(weight, zeros, pattern), 0.0)
        in_blocks = dead.view(16, 16, 4).sum(dim=2)
        if pattern.name == "1x4":
            assert ((in_blocks == 0) | (in_blocks == 4)).all()
        elif pattern.name == "2:4":
            assert (in_blocks == 2).all()
        if zeros == 0:
            assert torch.equal(pruned, weight)
        elif zeros <= 512:  # greedy in one direction: no promise where hardly a weight is left
            assert change(weight, pruned, hessian) < change(weight, by_magnitude, hessian)
        assert torch.equal(pruned, reconstruct(weight, hessian, zeros, pattern, chunk=32))


def test_a_channel_without_input_disturbs_nothing() -> None:
    weight, inputs, _ = problem(8, 32, 200)
    inputs[:, 5] = 0
    whole = reconstruct(weight, inputs.T @ inputs, 100, chunk=32)
    dead = int((whole[:, 5] == 0).sum())
    assert dead >= 7 and int((whole == 0).sum()) == 100  # damping alone values its weights
    keep = [c for c in range(32) if c != 5]
    without = inputs[:, keep]
    # The same damping: it is a fraction of the mean over 32 columns there, over 31 here.
    fewer = reconstruct(
        weight[:, keep], without.T @ without, 100 - dead, chunk=32, damping=0.01 * 31 / 32
    )
    assert torch.allclose(whole[:, keep], fewer, atol=1e-9)


@pytest.mark.parametrize("samples", [1, 7])
def test_singular_hessians(samples: int) -> None:
    weight, inputs, hessian = problem(8, 32, samples)
    pruned = reconstruct(weight, hessian, 128)
    assert torch.isfinite(pruned).all() and int((pruned == 0).sum()) == 128
    assert change(weight, pruned, hessian) < float((inputs @ weight.T).square().sum())


def test_no_input_at_all_leaves_magnitudes_to_decide() -> None:
    weight, _, _ = problem(8, 32, 1)
    pruned = reconstruct(weight, torch.zeros(32, 32), 128)
    keep = keep_by_magnitude(weight, 128, patterns.UNSTRUCTURED)
    assert torch.equal(pruned, weight.masked_fill(~keep, 0.0))


def test_unusable_hessians_are_refused() -> None:
    weight, _, hessian = problem(4, 8, 20)
    broken = hessian.clone()
    broken[2, 3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        reconstruct(weight, broken, 8)
    with pytest.raises(InputError, match="semidefinite"):
        reconstruct(weight, hessian - 1e6 * torch.eye(8), 8)
