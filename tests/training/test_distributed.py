"""Several processes, or one with several micro-batches, learn the same as one process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")
pytest.importorskip("pycocotools")

from helpers.tiny_training import FAST, TINY, make_data  # noqa: E402

from sparsedet import InputError, load_model, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset, load_coco  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint  # noqa: E402
from sparsedet.training.data import MicroBatch, MicroBatches, epoch_batches  # noqa: E402
from sparsedet.training.distributed import Ranks, session  # noqa: E402
from sparsedet.training.recipe import Recipe  # noqa: E402
from sparsedet.training.trainer import Trainer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

# All images and network inputs have one size, so that the uncut batch can be compared, too.
RECIPE = replace(
    FAST,
    steps=20,
    batch=4,
    accumulate=2,
    scale_low=1.0,
    log_every=1,
    clip_gradient=1.0,
    ema=0.9,
    sparsity=0.4,
    prune_begin=2,
    prune_end=18,
    prune_every=4,
    val_fraction=0.3,
    val_every=10,
    allocation="sensitivity",
)


def test_two_processes_learn_the_same_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make_data(tmp_path / "data", 12)
    begin = Trainer(
        FasterRCNN(TINY, norm=True), load_coco(*files), replace(FAST, steps=1), tmp_path
    )
    begin.checkpoint()
    teacher = FasterRCNN(TINY, norm=True)
    save_model(tmp_path / "teacher.safetensors", TINY, teacher.folded_tensors(), {})
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE.to_dict()))

    def arguments(output: str, *more: str) -> list[str]:
        return [
            "train",
            "--annotations",
            str(files[0]),
            "--images",
            str(files[1]),
            "--init",
            str(tmp_path),
            "--recipe",
            str(tmp_path / "recipe.json"),
            "--threads",
            "1",
            "--teacher",
            str(tmp_path / "teacher.safetensors"),
            "--output",
            str(tmp_path / output),
            *more,
        ]

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "sparsedet",
            *arguments("two"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("-> ") == 1 and done.stdout.count("step 20/20") == 1  # rank 0 alone
    assert main(arguments("one")) == 0
    assert main(arguments("uncut", "--accumulate", "1")) == 0

    def lines(name: str, file: str) -> list[dict[str, float]]:
        return [json.loads(x) for x in (tmp_path / name / file).read_text().splitlines()]

    two = newest_checkpoint(tmp_path / "two")
    first = lines("one", "metrics.jsonl")
    assert len(first) == 20 and first[-1]["sparsity"] >= 0.4
    for name in ("one", "uncut"):
        for ours, theirs in zip(
            lines("two", "metrics.jsonl"), lines(name, "metrics.jsonl"), strict=True
        ):
            for key in theirs.keys() - {"seconds"}:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (name, key)
        other = newest_checkpoint(tmp_path / name)
        for key, value in other.weights.items():
            assert torch.allclose(two.weights[key], value, rtol=0, atol=1e-5), (name, key)
        assert all(
            torch.equal(two.with_prefix("mask/")[k], v)
            for k, v in other.with_prefix("mask/").items()
        )
        # Sharded evaluation: the same figures.
        for ours, theirs in zip(
            lines("two", "validation.jsonl"), lines(name, "validation.jsonl"), strict=True
        ):
            assert ours == pytest.approx(theirs, abs=1e-3)
    moved = newest_checkpoint(tmp_path).with_prefix("model/")["rpn.conv.weight"]
    assert (two.with_prefix("model/")["rpn.conv.weight"] - moved).abs().max() > 1e-3
    assert load_model(tmp_path / "two" / "model.safetensors").provenance["step"] in (10, 20)


def test_processes_share_the_micro_batches_without_gap_or_overlap(dataset: CocoDataset) -> None:
    recipe = replace(FAST, batch=4, accumulate=4)

    def take(rank: int, world: int, count: int) -> list[MicroBatch]:
        stream = iter(MicroBatches(dataset, TINY, recipe, 3, rank, world))
        return [next(stream) for _ in range(count)]

    alone = take(0, 1, 8)
    pairs = [x for both in zip(take(0, 2, 4), take(1, 2, 4), strict=True) for x in both]
    for one, other in zip(alone, pairs, strict=True):
        assert (
            torch.equal(one.network_input, other.network_input)
            and one.loss_weight == other.loss_weight == 0.25
        )
        assert one.targets[0].seed == other.targets[0].seed
    batch = epoch_batches(dataset, recipe, 3)[0]
    assert alone[0].image_ids == [dataset.images[i].id for i in batch]


def test_workers_keep_the_order(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        def __init__(self, number: int) -> None:
            self.id, self.num_workers = number, 3

    streams = []
    for number in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(torch.utils.data, "get_worker_info", lambda number=number: Info(number))
            stream = iter(MicroBatches(dataset, TINY, FAST, 1))
            streams.append([next(stream) for _ in range(2)])
    alone = iter(MicroBatches(dataset, TINY, FAST, 1))
    for turn in range(2):
        for of_worker in streams:
            assert torch.equal(of_worker[turn].network_input, next(alone).network_input)


def test_a_batch_that_does_not_fill_its_micro_batches(tmp_path: Path) -> None:
    """Three images for a batch of eight in two micro-batches: each image counts a third."""
    dataset = load_coco(*make_data(tmp_path / "data", 3))
    recipe = replace(FAST, batch=8, accumulate=2)
    stream = iter(MicroBatches(dataset, TINY, recipe, 0))
    micro_batches = [next(stream), next(stream)]
    assert [len(x.targets) for x in micro_batches] == [1, 2]
    assert [x.loss_weight for x in micro_batches] == pytest.approx([1 / 3, 2 / 3])


def test_impossible_layouts(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(recipe: Recipe, world: int = 1) -> None:
        monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda m, **_: m)
        Trainer(FasterRCNN(TINY), dataset, recipe, tmp_path, Ranks(0, world))

    with pytest.raises(InputError, match="accumulate is 1, expected a multiple of the 2 processes"):
        build(FAST, 2)
    with pytest.raises(InputError, match="accumulate is 8, but only 4 images"):
        build(replace(FAST, batch=16, accumulate=8))
    with pytest.raises(InputError, match="val_fraction holds out 0 images"):
        build(replace(FAST, val_fraction=1e-9))
    with session() as ranks:
        assert (ranks.rank, ranks.world, ranks.writes) == (0, 1, True)
        assert ranks.gather([1]) == [1] and ranks.from_first("a") == "a" and not ranks.any(False)
