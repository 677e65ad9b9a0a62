"""`Gradual`: pruning in anybody's own loop, with what people do to their models on the way."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import prune as torch_prune  # noqa: E402
from torch.optim import Optimizer  # noqa: E402

import sparsedet  # noqa: E402
from sparsedet import InputError  # noqa: E402
from sparsedet.errors import UsageError  # noqa: E402
from sparsedet.pruning import Gradual, export  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


PRUNED = ("3.weight", "6.weight", "10.weight")
"""Neither first nor last, nor depthwise."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 16, 16, generator=numbers)
    return images, torch.randint(0, 5, (4,), generator=numbers)


def optimizer_of(net: nn.Module) -> Optimizer:
    optimizer: Optimizer = torch.optim.SGD(
        net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
    )
    return optimizer


def train(net: nn.Module, optimizer: Optimizer, pruner: Gradual, first: int, last: int) -> None:
    for step in range(first, last):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        pruner.step(optimizer)


def zeros(net: nn.Module) -> dict[str, Tensor]:
    parameters = dict(net.named_parameters())
    return {name: parameters[name] == 0 for name in PRUNED}


@pytest.mark.parametrize("allocation", ["sensitivity", "global", "uniform"])
def test_it_reaches_the_target_along_the_schedule_and_zeros_stay(allocation: Any) -> None:
    net = model()
    optimizer = optimizer_of(net)
    pruner = Gradual(net, sparsity=0.5, steps=30, allocation=allocation)
    assert set(pruner.keep_masks) == set(PRUNED)
    counts, before = [], zeros(net)
    for step in range(30):
        train(net, optimizer, pruner, step, step + 1)
        now = zeros(net)
        assert all((now[n] | ~before[n]).all() for n in PRUNED)  # a zero stays zero
        before = now
        counts.append(sum(int(mask.sum()) for mask in now.values()))
    total = sum(p.numel() for p in net.parameters())
    assert counts == sorted(counts) and counts[19] == counts[-1]  # two thirds, then recovery
    assert 0 <= counts[-1] - 0.5 * total <= len(PRUNED)
    assert pruner.sparsity == pytest.approx(counts[-1] / total)
    for name, parameter in net.named_parameters():
        if name not in PRUNED:
            assert (parameter != 0).all()
        else:
            momentum = optimizer.state[parameter]["momentum_buffer"]
            assert (momentum[before[name]] == 0).all() and momentum.any()


def test_uniform_gives_each_layer_its_smallest_weights() -> None:
    net = model()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    pruner = Gradual(net, sparsity=0.4, steps=2, end=1, allocation="uniform")
    pruner.step()
    shares = {name: float(mask.float().mean()) for name, mask in zeros(net).items()}
    assert max(shares.values()) - min(shares.values()) < 0.01
    for name, mask in zeros(net).items():
        magnitudes = weights[name].abs()
        assert magnitudes[mask].max() <= magnitudes[~mask].min()


@pytest.mark.parametrize("pattern", ["1x4", "2:4"])
def test_patterns(pattern: str) -> None:
    net = model()
    target: dict[str, Any] = {"sparsity": 0.5} if pattern == "1x4" else {}
    pruner = Gradual(net, steps=12, pattern=pattern, **target)
    train(net, optimizer_of(net), pruner, 0, 12)
    for weight in (p for n, p in net.named_parameters() if n in PRUNED):
        dead = (weight == 0).movedim(1, -1).reshape(-1, 4).sum(dim=1)
        allowed = (dead == 2) if pattern == "2:4" else (dead == 0) | (dead == 4)
        assert allowed.all()


def test_copies_and_averages_of_the_model_are_only_models() -> None:
    net = model()
    optimizer, pruner = optimizer_of(net), Gradual(net, sparsity=0.5, steps=20)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    for step in range(20):
        train(net, optimizer, pruner, step, step + 1)
        average.update_parameters(net)
    assert not torch.equal(zeros(average.module)["3.weight"], zeros(net)["3.weight"])
    pruner.mask(average)
    assert all((zeros(average.module)[n] == zeros(net)[n]).all() for n in PRUNED)
    copied = copy.deepcopy(net)
    assert copied.state_dict().keys() == model().state_dict().keys()
    both = copy.deepcopy((net, optimizer, pruner))
    train(*both, 20, 22)
    assert all((zeros(both[0])[n] == zeros(net)[n]).all() for n in PRUNED)
    assert not torch.equal(both[0][6].weight, net[6].weight)  # the copy was trained, not this
    with pytest.raises(InputError, match=r"no weight '10\.weight'"):
        pruner.mask(net[:8])


def test_a_resumed_training_gives_the_same_bits(tmp_path: Path) -> None:
    whole = model()
    optimizer, pruner = optimizer_of(whole), Gradual(whole, sparsity=0.5, steps=20)
    train(whole, optimizer, pruner, 0, 8)
    parts = (whole, optimizer, pruner)
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    train(whole, optimizer, pruner, 8, 20)
    again = model(seed=1)
    optimizer, pruner = optimizer_of(again), Gradual(again, sparsity=0.5, steps=20)
    restored: tuple[Any, ...] = (again, optimizer, pruner)
    for part, state in zip(restored, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(again, optimizer, pruner, 8, 20)
    first, second = whole.state_dict(), again.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="another model or allocation"):
        Gradual(again, sparsity=0.5, steps=20, allocation="global").load_state_dict(
            pruner.state_dict()
        )


def test_a_step_that_a_scaler_skips_leaves_no_trace() -> None:
    net = model()
    optimizer, pruner = optimizer_of(net), Gradual(net, sparsity=0.5, steps=20)
    train(net, optimizer, pruner, 0, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    means = {name: mean.clone() for name, mean in pruner.gradients.means.items()}
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad()
    images, labels = batch(10)
    scaler.scale(nn.functional.cross_entropy(net(images), labels)).backward()
    weight = net[3].weight
    assert isinstance(weight, Tensor) and weight.grad is not None
    weight.grad.fill_(torch.inf)
    scaler.step(optimizer)
    scaler.update()
    pruner.step(optimizer)
    assert pruner.steps_done == 11 and scaler.get_scale() == 2.0
    assert all(torch.equal(pruner.gradients.means[name], means[name]) for name in means)
    for name, value in net.named_parameters():
        live = value != 0
        assert torch.equal(value[live], before[name][live]) and torch.isfinite(value).all()
    train(net, optimizer, pruner, 11, 20)
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_masks_of_torch_are_taken_as_they_are() -> None:
    net = model()
    layer: Any = net[6]
    torch_prune.l1_unstructured(layer, "weight", amount=0.3)  # type: ignore[no-untyped-call]
    old = layer.weight_mask == 0
    pruner = Gradual(net, sparsity=0.5, steps=20)
    assert "6.weight_orig" in pruner.keep_masks
    train(net, optimizer_of(net), pruner, 0, 20)
    assert (layer.weight[old] == 0).all() and (layer.weight == 0).sum() > old.sum()
    # The weight has its plain name again.
    torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    pruner.step()
    assert (layer.weight[old] == 0).all()


PROGRAM = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from pruning.test_gradual import batch, model, optimizer_of, zeros
from sparsedet.pruning import Gradual
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]),
                        world_size=2)
net = torch.nn.parallel.DistributedDataParallel(model(int(sys.argv[3])))
optimizer, pruner = optimizer_of(net), Gradual(net, sparsity=0.5, steps=12)
for step in range(12):
    images, labels = batch(2 * step + dist.get_rank())
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
    pruner.step(optimizer)
torch.save(({n: p.data for n, p in net.module.named_parameters()}, pruner.sparsity), sys.argv[4])
dist.destroy_process_group()
"""


def files(folder: Path, rank: int) -> tuple[Any, ...]:
    """Where processes meet, the process's number, and where it leaves its weights."""
    return folder / "meet", rank, folder / f"{rank}.pt"


def test_processes_of_one_training_prune_the_same(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tests, *map(str, files(tmp_path, rank))],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    (first, sparsity), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert sparsity == other >= 0.5
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all((first[name] == 0).any() for name in PRUNED)


def test_the_result_is_a_model_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    net = model()
    torch_prune.random_unstructured(net[6], "weight", amount=0.2)  # type: ignore[no-untyped-call]
    pruner = Gradual(net, sparsity=0.5, steps=10)
    train(net, optimizer_of(net), pruner, 0, 10)
    images = batch(99)[0]
    export(net, images[:1], tmp_path / "net.safetensors", dtype="float32")
    assert net.training  # as it was
    loaded = sparsedet.Model.load(tmp_path / "net.safetensors")
    (found,) = loaded(images.numpy()).values()
    with torch.no_grad():
        expected = net.eval()(images).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max() + 1e-5
    dead = sum(int((np.asarray(t) == 0).sum()) for t in loaded.network.tensors.values())
    assert dead >= sum(int((~keep).sum()) for keep in pruner.keep_masks.values())
    with pytest.raises(InputError, match="exists already"):
        export(net, images[:1], tmp_path / "net.safetensors")


def test_what_is_refused() -> None:
    for settings, kind, words in (
        ({"sparsity": 0.5, "steps": 0}, UsageError, "steps is 0"),
        ({"steps": 5}, UsageError, "sparsity is None"),
        ({"sparsity": 0.99, "steps": 5}, InputError, "cannot be reached"),
        ({"sparsity": 0.5, "steps": 5, "pattern": "x"}, UsageError, "pattern is 'x'"),
        ({"sparsity": 0.5, "steps": 5, "pattern": "2:4"}, UsageError, "give none"),
        ({"sparsity": 0.5, "steps": 5, "exclude": ["7"]}, InputError, "'7': no such"),
        ({"sparsity": 0.5, "steps": 5, "allocation": "x"}, UsageError, "allocation is 'x'"),
    ):
        with pytest.raises(kind, match=words):
            Gradual(model(), **settings)
    with pytest.raises(InputError, match="no layer to prune"):
        Gradual(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), sparsity=0.5, steps=5)
    odd = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"1\.weight has 6: exclude its module"):
        Gradual(odd, sparsity=0.2, steps=5, pattern="1x4")
