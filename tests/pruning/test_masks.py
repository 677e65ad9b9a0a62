"""Keep masks: exactly the scheduled zeros, by folded magnitude or sensitivity; zeros stay zero."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from helpers.pruning_models import (  # noqa: E402
    CONFIG,
    jitter,
    model,
    observe_gradients,
    zero_weights,
)
from torch import Tensor  # noqa: E402

from sparsedet import InputError, load_model, save_model  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.pruning.allocation import Allocation, prunable_layers, uniform_zeros  # noqa: E402
from sparsedet.pruning.masks import GradualPruner  # noqa: E402
from sparsedet.pruning.schedule import CubicSchedule  # noqa: E402
from sparsedet.pruning.selection import to_matrix  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

SCHEDULE = CubicSchedule(final=0.6, begin=2, end=20, every=5)
DENSE = {"stem.conv", "rpn.objectness", "rpn.deltas", "box.logits", "box.deltas"}


def gradient(made: FasterRCNN, name: str) -> Tensor:
    value = made.layers[name].weight.grad
    assert value is not None
    return value


# ------------------------------------------------------------------------ how many


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_every_update_reaches_exactly_the_scheduled_zeros(allocation: Allocation) -> None:
    made = model()
    pruner = GradualPruner(made, SCHEDULE, allocation)
    layers = prunable_layers(made.graph)
    updates, seen = [], []
    for step in range(25):
        jitter(made, step)
        observe_gradients(made, pruner, step)
        if pruner.update(step):
            updates.append(step)
            planned = uniform_zeros(made.graph, layers, SCHEDULE.sparsity(step))
            zeros = zero_weights(made)
            assert sum(zeros.values()) == sum(planned.values())
            if allocation == "uniform":
                assert {name: zeros[name] for name in layers} == planned
            # Over ALL parameters, at most one weight for each layer more than asked for.
            excess = sum(zeros.values()) - SCHEDULE.sparsity(step) * made.graph.parameters
            assert 0 <= excess + 1e-6 < len(layers) + 1
            assert pruner.sparsity() == sum(zeros.values()) / made.graph.parameters
        seen.append(sum(zero_weights(made).values()))
    assert updates == [2, 7, 12, 17, 20]
    assert seen == sorted(seen) and seen[1] == 0 and len(set(seen)) == 5  # the first asks for none
    assert pruner.sparsity() >= 0.6


def test_allocations_differ_as_they_say() -> None:
    sparsities = {}
    for allocation in ("uniform", "global"):
        made = model()
        with torch.no_grad():
            made.layers["rpn.conv"].weight.mul_(0.01)
        GradualPruner(made, CubicSchedule(final=0.5, end=1), allocation).update(1)
        zeros = zero_weights(made)
        of_layers = {n: zeros[n] / made.layers[n].weight.numel() for n in zeros}
        assert {name for name, sparsity in of_layers.items() if sparsity == 0} == DENSE
        sparsities[allocation] = of_layers
    uniform = {sparsity for name, sparsity in sparsities["uniform"].items() if name not in DENSE}
    assert max(uniform) - min(uniform) < 0.01
    assert sparsities["global"]["rpn.conv"] > 0.9 > sparsities["global"]["res5.0.conv2"]


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_masks_only_grow(allocation: Allocation) -> None:
    made = model()
    pruner = GradualPruner(made, SCHEDULE, allocation)
    history = []
    for step in range(21):
        jitter(made, step)
        observe_gradients(made, pruner, step)
        if pruner.update(step):
            history.append({name: mask.clone() for name, mask in pruner.keep_masks.items()})
            with torch.no_grad():  # even if something gave them the largest magnitude
                for name, mask in pruner.keep_masks.items():
                    made.layers[name].weight.add_(1000.0 * ~mask)
    for before, after in pairwise(history):
        assert all((after[name] <= before[name]).all() for name in after)
        assert any((after[name] < before[name]).any() for name in after)


def test_excluded_layers_stay_dense() -> None:
    made = model()
    exclude = ("res2.0.conv1", "res5.0.conv2")
    pruner = GradualPruner(made, CubicSchedule(final=0.6, end=1), "global", exclude)
    pruner.update(1)
    dense = {name for name, count in zero_weights(made).items() if count == 0}
    assert dense == DENSE | set(exclude)
    assert pruner.sparsity() >= 0.6  # the others carry more


def test_impossible_pruning_is_refused_at_once() -> None:
    made = model()
    with pytest.raises(InputError, match="needs"):
        GradualPruner(made, CubicSchedule(final=0.995, end=1))
    with pytest.raises(InputError, match="res9"):
        GradualPruner(made, CubicSchedule(final=0.5, end=1), exclude=("res9",))


# ------------------------------------------------------------------------ which ones


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_folded_magnitudes_are_ranked(allocation: Allocation) -> None:
    made = model()
    folded = made.folded_tensors()
    pruner = GradualPruner(made, CubicSchedule(final=0.5, end=1), allocation)
    pruner.update(1)
    live = {n: np.abs(folded[f"{n}.weight"])[m.numpy()] for n, m in pruner.keep_masks.items()}
    dead = {n: np.abs(folded[f"{n}.weight"])[~m.numpy()] for n, m in pruner.keep_masks.items()}
    if allocation == "global":
        live, dead = ({"all": np.concatenate(list(x.values()))} for x in (live, dead))
    for name in live:
        assert dead[name].max() <= live[name].min()
    # Raw magnitudes would have chosen others: the test can tell them apart.
    conv, mask = made.layers["res4.0.conv2"], pruner.keep_masks["res4.0.conv2"]
    raw = model().layers["res4.0.conv2"].weight.abs()
    assert raw[~mask].max() > raw[mask].min()
    assert (conv.weight[mask] == model().layers["res4.0.conv2"].weight[mask]).all()


def test_sensitivity_of_the_loss_is_ranked() -> None:
    made = model()
    frozen = ("res2.0.conv1", "res2.0.conv2")
    for name in frozen:
        made.layers[name].weight.requires_grad_(False)
    pruner = GradualPruner(made, CubicSchedule(final=0.5, end=1), "sensitivity")
    layers = prunable_layers(made.graph)
    trained = [name for name in layers if name not in frozen]
    means: dict[str, Any] = {name: 0.0 for name in trained}
    for seed in range(3):
        observe_gradients(made, pruner, seed)
        squares = {n: to_matrix(gradient(made, n)).double().square() for n in trained}
        total = sum(square.sum() for square in squares.values())
        means = {n: 0.99 * means[n] + 0.01 * squares[n] / total for n in trained}
    costs = {}
    for name in trained:
        rows, columns = means[name].sum(dim=1), means[name].sum(dim=0)
        factored = torch.outer(rows, columns) / rows.sum()
        costs[name] = to_matrix(made.layers[name].weight.detach()).double().square() * factored
    pruner.update(1)
    planned = uniform_zeros(made.graph, layers, 0.5)
    zeros = zero_weights(made)
    assert {name: zeros[name] for name in frozen} == {name: planned[name] for name in frozen}
    assert sum(zeros[name] for name in trained) == sum(planned[name] for name in trained)
    live = torch.cat([costs[n][to_matrix(pruner.keep_masks[n])] for n in trained])
    dead = {n: costs[n][~to_matrix(pruner.keep_masks[n])] for n in trained}
    # A layer that would lose more than three quarters of the mean density keeps its best.
    kept = sum(made.layers[n].weight.numel() - zeros[n] for n in trained)
    density = kept / sum(made.layers[n].weight.numel() for n in trained)
    densities = {n: 1 - zeros[n] / made.layers[n].weight.numel() for n in trained}
    assert min(densities.values()) >= 0.25 * density
    free = [n for n in trained if densities[n] > 0.26 * density]
    assert len(free) > len(trained) / 2 and max(densities.values()) > 1.2 * density
    limit = max(float(dead[n].max()) for n in free)
    assert float((live < limit * (1 - 1e-5)).float().mean()) < 0.02  # those that had to stay
    for name in trained:
        mask = to_matrix(pruner.keep_masks[name])
        assert costs[name][~mask].max() <= costs[name][mask].min() * (1 + 1e-5)


def test_gradients_that_overflow_are_not_recorded_and_steps_count_alike() -> None:
    made = model()
    pruner = GradualPruner(made, CubicSchedule(final=0.5, end=1), "sensitivity")
    observe_gradients(made, pruner, 0)
    before = {name: value.clone() for name, value in pruner.sensitivity.items()}
    for wrong in (torch.inf, torch.nan, 1e30):  # the square of the last is infinite
        gradient(made, "rpn.conv").fill_(wrong)
        pruner.observe()
    for name in made.layers:
        gradient(made, name).zero_()
    pruner.observe()
    assert before.keys() == pruner.sensitivity.keys()
    assert all(torch.equal(pruner.sensitivity[name], value) for name, value in before.items())
    other = GradualPruner(made, CubicSchedule(final=0.5, end=1), "sensitivity")
    observe_gradients(made, other, 0)
    for name in made.layers:
        gradient(made, name).mul_(64)
    other.observe()
    again = GradualPruner(made, CubicSchedule(final=0.5, end=1), "sensitivity")
    for _ in range(2):
        observe_gradients(made, again, 0)
    for name, value in other.sensitivity.items():
        assert torch.allclose(value, again.sensitivity[name], rtol=1e-5, atol=0)


# ------------------------------------------------------------------------ zeros stay zeros


def optimizers(made: FasterRCNN) -> dict[str, Any]:
    return {
        "sgd": torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
        "nesterov": torch.optim.SGD(
            made.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True
        ),
        "adamw": torch.optim.AdamW(made.parameters(), lr=0.01, weight_decay=0.1),
    }


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_zeros_stay_zero_through_100_steps(name: str) -> None:
    made = model()
    optimizer = optimizers(made)[name]
    pruner = GradualPruner(made, CubicSchedule(final=0.6, end=1))
    generator = torch.Generator().manual_seed(9)

    def step() -> None:
        for parameter in made.parameters():
            parameter.grad = torch.empty_like(parameter).normal_(0, 1, generator=generator)
        optimizer.step()
        pruner.apply(optimizer)

    for _ in range(5):  # momentum is there before the masks come
        step()
    assert sum(zero_weights(made).values()) == 0
    assert pruner.update(1)
    pruner.apply(optimizer)
    zeros, before = zero_weights(made), made.layers["rpn.conv"].weight.detach().clone()
    masks = {layer: mask.clone() for layer, mask in pruner.keep_masks.items()}
    for _ in range(100):
        step()
        for layer, mask in masks.items():
            assert (made.layers[layer].weight[~mask] == 0).all()
    assert zero_weights(made) == zeros and pruner.sparsity() >= 0.6
    live = masks["rpn.conv"]
    assert (made.layers["rpn.conv"].weight[live] != before[live]).float().mean() > 0.99
    for layer, mask in masks.items():
        for value in optimizer.state[made.layers[layer].weight].values():
            if value.shape == mask.shape:
                assert (value[~mask] == 0).all() and (value[mask] != 0).any()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_the_saved_file_counts_at_least_the_target(
    tmp_path: Path, allocation: Allocation, dtype: Literal["float16", "float32"]
) -> None:
    made = model()
    pruner = GradualPruner(made, CubicSchedule(final=0.6, end=1), allocation)
    pruner.update(1)
    save_model(tmp_path / "m", CONFIG, made.folded_tensors(), {}, dtype=dtype)
    report = sparsity_report(CONFIG, load_model(tmp_path / "m").tensors)
    assert report.parameters == made.graph.parameters
    assert report.sparsity >= 0.6
    # Beside the masked weights only the biases that start at zero count.
    biases = sum(int((t == 0).sum()) for n, t in made.folded_tensors().items() if "bias" in n)
    assert report.zeros - biases - sum(zero_weights(made).values()) in range(20)  # float16 rounds
