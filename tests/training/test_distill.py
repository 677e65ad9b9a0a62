"""Distillation: exact zeros where teacher and student agree, formulas, resuming, refusals."""

from __future__ import annotations

import copy
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.tiny_training import FAST, TINY  # noqa: E402

from sparsedet import InputError, load_model, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint  # noqa: E402
from sparsedet.training.data import load_micro_batch  # noqa: E402
from sparsedet.training.distill import (  # noqa: E402
    LOSSES,
    Teacher,
    class_loss,
    feature_loss,
    objectness_loss,
)
from sparsedet.training.losses import losses  # noqa: E402
from sparsedet.training.trainer import Trainer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


def student(seed: int = 0, **changes: Any) -> FasterRCNN:
    made = FasterRCNN(replace(TINY, **changes), norm=True)
    made.reset_parameters(seed)
    return made


def teacher(seed: int = 1, **changes: Any) -> Teacher:
    return Teacher(student(seed, **changes), "teacher.safetensors", f"sum of {seed}")


def trainer(dataset: CocoDataset, recipe: Any, folder: Path, by: Teacher | None) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(student(), dataset, recipe, folder, teacher=by)


# ------------------------------------------------------------------------ the losses


@pytest.mark.parametrize("norm", [True, False])
def test_a_teacher_that_is_the_student_adds_exactly_nothing(
    dataset: CocoDataset, norm: bool
) -> None:
    model = FasterRCNN(TINY, norm=norm)
    same = Teacher(copy.deepcopy(model), "itself", "")
    network_input, targets = load_micro_batch(dataset, [0, 1], TINY, FAST, 0)
    alone = losses(model, FAST, network_input, targets)
    both = losses(model, FAST, network_input, targets, same)
    assert set(both) - set(alone) == set(LOSSES)
    assert all(both[name].item() == 0.0 for name in LOSSES)
    assert all(torch.equal(both[name], value) for name, value in alone.items())
    other = losses(model, FAST, network_input, targets, teacher())
    assert all(other[name].item() > 0 for name in LOSSES)
    torch.stack(list(other.values())).sum().backward()
    assert all(p.grad is None for p in same.model.parameters())


def test_the_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(5, 4, generator=generator) for _ in range(2))
    kl = torch.nn.functional.kl_div
    of_images = [
        kl((mine[r] / 3).log_softmax(1), (theirs[r] / 3).softmax(1), reduction="batchmean")
        for r in (slice(0, 2), slice(2, 5))
    ]
    loss = class_loss(mine, theirs, [2, 3], 3.0)
    assert float(loss) == pytest.approx(9 * float(sum(of_images)) / 2, rel=1e-5)
    # The teacher's two best of four anchors; the divergence is cross-entropy less entropy.
    mine, theirs = torch.tensor([[0.5, -1, 9, 2]]), torch.tensor([[3.0, -4, -5, 1]])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    chosen = [0, 3]
    score = theirs[0, chosen].sigmoid()
    expected = entropy(mine[0, chosen], score) - entropy(theirs[0, chosen], score)
    assert float(objectness_loss(mine, theirs, 2)) == pytest.approx(float(expected), rel=1e-5)
    # Cells beside the image do not count, nor does the scale.
    mine, theirs = torch.rand(1, 3, 4, 5), torch.rand(1, 3, 4, 5)
    a, b = mine[:, :, :2, :3], theirs[:, :, :2, :3]
    expected = (a - b).square().sum() / b.square().sum()
    for factor in (1.0, 100.0):
        loss = feature_loss(factor * mine, factor * theirs, [(2, 3)])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_a_student_comes_nearer_to_its_teacher(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(FAST, steps=20, optimizer="adamw", learning_rate=3e-3, clip_gradient=1.0)
    network_input, targets = load_micro_batch(dataset, [0, 1], TINY, FAST, 0)
    by = teacher()
    left = {}
    for name, shown in (("with", by), ("without", None)):
        run = trainer(dataset, recipe, tmp_path / name, shown)
        assert run.run()
        left[name] = losses(run.model, FAST, network_input, targets, by)
    for name in LOSSES:
        assert left["with"][name].item() < 0.8 * left["without"][name].item(), name
    text = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()[-1]
    assert set(LOSSES) <= set(json.loads(text)) and (tmp_path / "with" / "losses.png").exists()


def test_weights_of_the_losses(dataset: CocoDataset) -> None:
    network_input, targets = load_micro_batch(dataset, [0, 1], TINY, FAST, 0)
    model, by = student(), teacher()
    once = losses(model, FAST, network_input, targets, by)
    recipe = replace(FAST, distill_class=0.0, distill_rpn=2.0, distill_features=0.5)
    weighted = losses(model, recipe, network_input, targets, by)
    assert "distill_class" not in weighted
    assert weighted["distill_rpn"].item() == pytest.approx(2 * once["distill_rpn"].item())
    assert weighted["distill_features"].item() == pytest.approx(
        0.5 * once["distill_features"].item()
    )


# ------------------------------------------------------------------------ runs


def test_resuming_is_exact_and_needs_the_same_teacher(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(FAST, sparsity=0.5, prune_begin=1, prune_end=5, prune_every=2, ema=0.9)
    whole = trainer(dataset, recipe, tmp_path / "whole", teacher())
    whole.run()
    stopped = trainer(dataset, recipe, tmp_path / "stopped", teacher())
    step = stopped.train_step

    def stopping(micro_batches: Any) -> Any:
        if stopped.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(micro_batches)

    stopped.train_step = stopping  # type: ignore[method-assign]
    assert not stopped.run()
    saved = newest_checkpoint(tmp_path / "stopped")
    for by, word in ((None, "give it again"), (teacher(2), "another teacher")):
        with pytest.raises(InputError, match=word):
            trainer(dataset, recipe, tmp_path / "stopped", by).resume(saved)
    rest = trainer(dataset, recipe, tmp_path / "stopped", teacher())
    rest.resume(saved)
    assert rest.run()
    a, b = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    plain = trainer(dataset, FAST, tmp_path / "plain", None)
    plain.run()
    with pytest.raises(InputError, match="has no teacher"):
        trainer(dataset, FAST, tmp_path / "plain", teacher()).resume(
            newest_checkpoint(tmp_path / "plain")
        )


def test_teachers_that_do_not_fit(dataset: CocoDataset, tmp_path: Path) -> None:
    for changes, word in (
        ({"class_names": ("a", "b", "c")}, "teacher.safetensors: class_names"),
        ({"anchor_sizes": (16.0, 32.0, 128.0)}, "cell_anchors"),
        ({"stage_channels": (8, 12, 24, 20)}, "channels of feature maps is 24, the student's 16"),
        ({"background": "last"}, "background"),
    ):
        with pytest.raises(InputError, match=word):
            trainer(dataset, FAST, tmp_path, teacher(**changes))
    # Deeper and wider inside, or of another network input: its outputs mean the same.
    deeper = teacher(blocks=(1, 2, 2, 1), bottleneck_channels=(8, 6, 8, 12), input_height=80)
    trainer(dataset, FAST, tmp_path, deeper)
    nothing = replace(FAST, distill_class=0.0, distill_rpn=0.0, distill_features=0.0)
    with pytest.raises(InputError, match="distill_class"):
        trainer(dataset, nothing, tmp_path, teacher())
    with pytest.raises(InputError, match=r"distill_rpn is 2\.0, but there is no teacher"):
        trainer(dataset, replace(FAST, distill_rpn=2.0), tmp_path, None)


def test_from_the_command_line(
    files: tuple[Path, Path],
    dataset: CocoDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "dense"
    run = trainer(dataset, replace(FAST, steps=2), folder, None)
    run.run()
    (tmp_path / "recipe.json").write_text(json.dumps(replace(FAST, steps=3).to_dict()))
    common = [
        "--annotations",
        str(files[0]),
        "--images",
        str(files[1]),
        "--threads",
        "1",
        "--recipe",
        str(tmp_path / "recipe.json"),
    ]

    def call(name: str, output: str, *more: object) -> int:
        return main([name, *common, "--output", str(tmp_path / output), *map(str, more)])

    assert (
        call(
            "prune",
            "pruned",
            "--init",
            folder,
            "--teacher",
            folder,
            "--sparsity",
            0.5,
            "--prune-end",
            2,
        )
        == 0
    )
    provenance = load_model(tmp_path / "pruned" / "model.safetensors").provenance
    assert provenance["init"]["sha256"] == provenance["teacher"]["sha256"]
    assert len(provenance["init"]["sha256"]) == 64
    assert provenance["init"]["name"] == "dense/checkpoint-0000002.safetensors"
    noted = json.loads((tmp_path / "pruned" / "run.json").read_text())
    assert noted["teacher"] == provenance["teacher"]
    assert call("train", "more", "--init", folder, "--teacher", run.save_model({})) == 0
    capsys.readouterr()
    other = tmp_path / "other.safetensors"
    config = replace(TINY, class_names=("a", "b", "c"))
    save_model(other, config, FasterRCNN(config).folded_tensors(), {})
    assert call("train", "no", "--init", folder, "--teacher", other) == 1
    assert "class_names" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert call("train", "no", "--teacher", tmp_path / "none") == 1
    assert call("prune", "no", "--init", other, "--teacher", other, "--method", "magnitude") == 2
    assert "--teacher is for --method gradual" in capsys.readouterr().err
