"""Gradual pruning in patterns, and training that keeps the zeros of its initial weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.pruning_models import (  # noqa: E402
    CONFIG,
    jitter,
    model,
    observe_gradients,
    zero_weights,
)
from helpers.tiny_training import FAST, TINY  # noqa: E402

from sparsedet import InputError, load_model, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.pruning.allocation import (  # noqa: E402
    Allocation,
    erk_zeros,
    pattern_sparsity,
    prunable_layers,
    uniform_zeros,
)
from sparsedet.pruning.masks import FixedMasks, GradualPruner  # noqa: E402
from sparsedet.pruning.patterns import PATTERNS  # noqa: E402
from sparsedet.pruning.schedule import CubicSchedule  # noqa: E402
from sparsedet.pruning.selection import keep_largest, to_matrix  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint  # noqa: E402
from sparsedet.training.recipe import Recipe  # noqa: E402
from sparsedet.training.trainer import Trainer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

FIT = replace(TINY, bottleneck_channels=(4, 8, 8, 12), rpn_channels=12)  # input channels in fours


def zeros_of_blocks(made: FasterRCNN, name: str) -> Any:
    """Zeros of each block of four, [out, blocks]."""
    dead = to_matrix(made.layers[name].weight) == 0
    return dead.view(len(dead), -1, 4).sum(dim=2)


# ------------------------------------------------------------------------ selection


def test_selection_equals_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 1000):
        scores = torch.randint(-3, 4, (size,), generator=generator).float()  # many ties
        for count in {0, 1, size // 3, size - 1, size}:
            expected = torch.ones(size, dtype=torch.bool)
            expected[scores.argsort(stable=True)[:count]] = False
            assert torch.equal(keep_largest(scores, count), expected)


# ------------------------------------------------------------------------ gradual, in patterns


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "sensitivity"])
def test_blocks_of_four_follow_the_schedule(allocation: Allocation) -> None:
    made = model()
    schedule = CubicSchedule(final=0.6, begin=2, end=20, every=5)
    pruner = GradualPruner(made, schedule, allocation, pattern=PATTERNS["1x4"])
    layers = prunable_layers(made.graph)
    before: dict[str, Any] = {}
    allocate = erk_zeros if allocation == "erk" else uniform_zeros
    for step in range(21):
        jitter(made, step)
        observe_gradients(made, pruner, step)
        if not pruner.update(step):
            continue
        for name in layers:
            dead = zeros_of_blocks(made, name)
            assert ((dead == 0) | (dead == 4)).all()
            assert (dead >= before.get(name, dead)).all()  # pruned blocks stay pruned
            before[name] = dead
        planned = allocate(made.graph, layers, schedule.sparsity(step))
        zeros = zero_weights(made)
        excess = [zeros[name] - planned[name] for name in layers]
        if allocation in ("global", "sensitivity"):
            assert 0 <= sum(excess) < 4
        else:
            assert all(0 <= e < 4 for e in excess)
    assert pruner.sparsity() >= 0.6


def test_the_smallest_blocks_are_pruned() -> None:
    made = model()
    folded = {name: to_matrix(conv.folded()[0].detach()) for name, conv in made.layers.items()}
    GradualPruner(made, CubicSchedule(final=0.5, end=1), pattern=PATTERNS["1x4"]).update(1)
    for name in prunable_layers(made.graph):
        sizes = folded[name].square().view(len(folded[name]), -1, 4).sum(dim=2)
        dead = zeros_of_blocks(made, name) == 4
        assert sizes[dead].max() <= sizes[~dead].min()


def test_two_of_four_grows_to_every_block() -> None:
    made = model()
    layers = prunable_layers(made.graph)
    final = pattern_sparsity(made.graph, layers, PATTERNS["2:4"])
    folded = {name: to_matrix(conv.folded()[0].detach()) for name, conv in made.layers.items()}
    schedule = CubicSchedule(final=final, end=4, every=2)
    pruner = GradualPruner(made, schedule, pattern=PATTERNS["2:4"])
    assert pruner.update(2)
    for name in layers:
        dead = zeros_of_blocks(made, name)
        pruned = float((dead == 2).float().mean())
        assert ((dead == 0) | (dead == 2)).all() and 7 / 8 <= pruned <= 7 / 8 + 4 / dead.numel()
        # A block costs the sum of its two smallest squares; the cheapest blocks are pruned.
        blocks = folded[name].square().view(len(dead), -1, 4)
        cost = blocks.topk(2, dim=2, largest=False).values.sum(dim=2)
        assert cost[dead == 2].max() <= cost[dead == 0].min()
    halfway = {name: mask.clone() for name, mask in pruner.keep_masks.items()}
    jitter(made, 1)
    assert pruner.update(4)
    for name in layers:
        assert (zeros_of_blocks(made, name) == 2).all()
        assert (pruner.keep_masks[name] <= halfway[name]).all()
    assert pruner.sparsity() == final


def test_patterns_that_cannot_be() -> None:
    made = FasterRCNN(replace(CONFIG, bottleneck_channels=(16, 22, 32, 40)))
    for pattern in ("1x4", "2:4"):
        with pytest.raises(InputError, match=r"res3\.0\.conv2 has 22"):
            GradualPruner(made, CubicSchedule(final=0.4, end=1), pattern=PATTERNS[pattern])
    with pytest.raises(InputError, match=r"2:4.*makes 0\.4"):
        GradualPruner(model(), CubicSchedule(final=0.55, end=1), pattern=PATTERNS["2:4"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.5, "prune_end": 3}, "sparsity is 0.5, expected 0 with"),
        ({"pattern": "2:4", "allocation": "erk", "prune_end": 3}, "allocation is 'erk'"),
        ({"pattern": "2:4"}, "prune_end"),
        ({"pattern": "1x4"}, "pattern is '1x4'"),
        ({"pattern": "none", "sparsity": 0.5, "prune_end": 3}, "pattern is 'none'"),
        ({"keep_zeros": True, "sparsity": 0.5, "prune_end": 3}, "keep_zeros is True"),
        ({"keep_zeros": True, "pattern": "2:4", "prune_end": 3}, "keep_zeros is True"),
    ],
)
def test_recipes_that_contradict_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_dict(settings)


@pytest.mark.parametrize("pattern", ["1x4", "2:4"])
def test_a_run_prunes_in_a_pattern(
    dataset: CocoDataset,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pattern: str,
) -> None:
    init = tmp_path / "dense.safetensors"
    save_model(init, FIT, FasterRCNN(FIT).folded_tensors(), {})
    (tmp_path / "r.json").write_text(json.dumps({**FAST.to_dict(), "sparsity": 0.0}))
    more = ["--sparsity", "0.4"] if pattern == "1x4" else []
    assert (
        main(
            [
                "prune",
                "--annotations",
                str(files[0]),
                "--images",
                str(files[1]),
                "--threads",
                "1",
                "--recipe",
                str(tmp_path / "r.json"),
                "--init",
                str(init),
                "--output",
                str(tmp_path / "out"),
                "--pattern",
                pattern,
                "--prune-end",
                "4",
                "--ema",
                "0.5",
                "--prune-every",
                "2",
                *more,
            ]
        )
        == 0
    )
    saved = load_model(tmp_path / "out" / "model.safetensors")
    made = FasterRCNN(FIT)
    made.load_tensors(saved.tensors)
    dead = torch.cat([zeros_of_blocks(made, n).flatten() for n in prunable_layers(made.graph)])
    assert (dead == 2).all() if pattern == "2:4" else ((dead == 0) | (dead == 4)).all()
    layers = prunable_layers(made.graph)
    least = pattern_sparsity(made.graph, layers, PATTERNS["2:4"]) if pattern == "2:4" else 0.4
    assert sparsity_report(FIT, saved.tensors).sparsity >= least


# ------------------------------------------------------------------------ zeros that stay


def sparse_model() -> FasterRCNN:
    made = FasterRCNN(TINY)
    made.reset_parameters(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for conv in made.layers.values():  # also where none are kept: stem and predictors
            conv.weight.mul_(torch.rand(conv.weight.shape, generator=generator) > 0.6)
    return made


def keeping(dataset: CocoDataset, folder: Path, made: FasterRCNN, **changes: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    recipe = replace(
        FAST,
        keep_zeros=True,
        optimizer="adamw",
        learning_rate=1e-3,
        ema=0.8,
        weight_decay=0.1,
        **changes,
    )
    return Trainer(made, dataset, recipe, folder)


def test_zeros_stay_in_weights_averages_and_over_a_resume(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = {name: conv.weight == 0 for name, conv in sparse_model().layers.items()}
    whole = keeping(dataset, tmp_path / "whole", sparse_model())
    kept = set(prunable_layers(whole.model.graph))
    assert whole.run()
    stopped = keeping(dataset, tmp_path / "stopped", sparse_model(), steps=4)
    stopped.run()
    saved = newest_checkpoint(tmp_path / "stopped")
    begin = FasterRCNN(TINY)  # as a resumed run is built: from the averages
    begin.load_state_dict(saved.weights)
    rest = keeping(dataset, tmp_path / "stopped", begin)
    rest.resume(saved)
    assert rest.run()
    path = rest.save_model({})
    for run in (whole, rest):
        for name, conv in run.model.layers.items():
            same = torch.equal(conv.weight == 0, zeros[name])
            assert same == (name in kept), name  # stem and predictors are trained everywhere
            assert run.average is not None
            average = run.average.tensors[f"{name}.weight"]
            assert name not in kept or torch.equal(average == 0, zeros[name])
    a, b = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    tensors = load_model(path).tensors
    assert all((tensors[f"{n}.weight"][zeros[n].numpy()] == 0).all() for n in kept)
    assert rest.pruner is not None and rest.pruner.sparsity() > 0.4


def test_excluded_layers_may_fill_up(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = keeping(dataset, tmp_path / "run", sparse_model(), exclude=("rpn.conv",))
    run.run()
    zeros, before = zero_weights(run.model), zero_weights(sparse_model())
    assert zeros["rpn.conv"] < before["rpn.conv"]  # but where nothing is active
    assert zeros["res4.0.conv2"] == before["res4.0.conv2"]


def test_without_zeros_there_is_nothing_to_keep(dataset: CocoDataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no zero to keep"):
        keeping(dataset, tmp_path / "run", FasterRCNN(TINY))
    with pytest.raises(InputError, match="res9"):
        FixedMasks(sparse_model(), ("res9",))


def test_pruned_at_once_then_trained(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands as docs/pruning.md gives them."""
    model_file = tmp_path / "dense.safetensors"
    save_model(model_file, TINY, FasterRCNN(TINY).folded_tensors(), {"recipe": {"steps": 7}})
    once, more = tmp_path / "once", tmp_path / "more"
    assert (
        main(
            [
                "prune",
                "--method",
                "magnitude",
                "--init",
                str(model_file),
                "--images",
                str(files[1]),
                "--output",
                str(once),
                "--sparsity",
                "0.5",
                "--calibration-images",
                "4",
            ]
        )
        == 0
    )
    (tmp_path / "r.json").write_text(json.dumps(FAST.to_dict()))
    assert (
        main(
            [
                "train",
                "--annotations",
                str(files[0]),
                "--images",
                str(files[1]),
                "--threads",
                "1",
                "--recipe",
                str(tmp_path / "r.json"),
                "--keep-zeros",
                "--init",
                str(once),
                "--output",
                str(more),
            ]
        )
        == 0
    )
    before, after = (load_model(folder / "model.safetensors") for folder in (once, more))
    for name in prunable_layers(FasterRCNN(TINY).graph):
        a, b = (file.tensors[f"{name}.weight"] for file in (before, after))
        assert ((a == 0) <= (b == 0)).all() and (a != b).any(), name
    assert sparsity_report(TINY, after.tensors).sparsity >= 0.5
    source = before.provenance["source"]
    assert source["name"] == "dense.safetensors" and source["recipe"] == {"steps": 7}
