"""The outputs of a run: validation, best model, samples, plots, TensorBoard; and a small real data
set of three classes, from training to detection.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")
pytest.importorskip("pycocotools")

from helpers.tiny_training import FAST, TINY, make_data, trainer  # noqa: E402

from sparsedet import Detector, InputError, load_model, read_image  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset, load_coco  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import read_checkpoint  # noqa: E402
from sparsedet.training import trainer as training_loop  # noqa: E402
from sparsedet.training.data import MicroBatch, held_out, load_micro_batch, load_sample  # noqa: E402
from sparsedet.training.ema import WeightAverage  # noqa: E402
from sparsedet.training.losses import losses  # noqa: E402
from sparsedet.training.recipe import Recipe  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Twelve images; their ids alone decide which are held out."""
    return load_coco(*make_data(tmp_path_factory.mktemp("many"), 12))


def scripted(monkeypatch: pytest.MonkeyPatch, aps: list[float]) -> None:
    """Replace the validations: they return these APs, one after the other."""
    left = iter(aps)
    monkeypatch.setattr(training_loop, "validate", lambda *_: {"AP": next(left), "AP50": 0.5})


def test_the_split_follows_from_the_ids(many: CocoDataset) -> None:
    train, val = held_out(many, 0.3)
    ids = {image.id for image in val.images}
    assert 0 < len(ids) < 12 and len(train.images) + len(val.images) == 12
    assert ids.isdisjoint(image.id for image in train.images)
    fewer = replace(many, images=many.images[3:])  # the other images stay where they were
    assert {i.id for i in held_out(fewer, 0.3)[1].images} == ids & {i.id for i in fewer.images}
    assert ids <= {image.id for image in held_out(many, 0.6)[1].images}
    assert held_out(many, 0.0)[0].images == many.images


def test_a_run_folder_explains_itself(
    many: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(
        FAST,
        steps=8,
        val_fraction=0.3,
        val_every=4,
        samples=2,
        ema=0.5,
        sparsity=0.3,
        prune_end=4,
        prune_every=2,
    )
    run = trainer(many, recipe, tmp_path / "run")
    run.describe(["train", "..."])
    assert run.run()
    path = run.save_model({"recipe": "r"})
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= {
        "run.json",
        "metrics.jsonl",
        "validation.jsonl",
        "log.txt",
        "val.json",
        "samples",
        "best.safetensors",
        "model.safetensors",
        "losses.png",
        "sparsity.png",
    }
    noted = json.loads((folder / "run.json").read_text())
    assert noted["recipe"] == json.loads(json.dumps(recipe.to_dict()))
    assert noted["held_out_images"] == len(run.val.images) > 0
    assert noted["environment"]["processes"] == 1 and "torch" in noted["environment"]["versions"]
    steps = [json.loads(x)["step"] for x in (folder / "validation.jsonl").read_text().splitlines()]
    assert steps == [4, 8]
    held = json.loads((folder / "val.json").read_text())
    assert {e["id"] for e in held["images"]} == {image.id for image in run.val.images}
    samples = sorted((folder / "samples").iterdir())
    assert len(samples) == 2 * min(2, len(run.val.images))
    assert read_image(samples[0]).shape == (64, 96, 3)
    for name in ("losses.png", "sparsity.png"):
        assert min(read_image(folder / name).shape[:2]) > 300
    assert load_model(path).provenance["step"] in (4, 8)
    assert sparsity_report(TINY, load_model(path).tensors).sparsity >= 0.3


def test_the_best_is_kept_and_patience_ends_a_run(
    many: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    recipe = replace(FAST, steps=100, val_fraction=0.3, val_every=2, patience=2, samples=0)
    run = trainer(many, recipe, tmp_path / "run")
    assert run.run() and run.step == 8 and run.best_step == 4
    assert "stopped early: AP is best at step 4" in capsys.readouterr().out
    best = load_model(run.save_model({}))
    assert best.provenance["step"] == 4 and best.provenance["held_out_ap"] == 0.3
    again = trainer(many, recipe, tmp_path / "run")  # finished stays finished
    again.resume(read_checkpoint(tmp_path / "run" / "checkpoint-0000008.safetensors"))
    assert again.finished and (again.best_ap, again.validations_without_gain) == (0.3, 2)


def test_no_model_is_best_before_pruning_is_complete(
    many: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted(monkeypatch, [0.9, 0.8, 0.1, 0.2])
    recipe = replace(
        FAST,
        steps=8,
        val_fraction=0.3,
        val_every=2,
        patience=1,
        samples=0,
        sparsity=0.3,
        prune_end=6,
        prune_every=2,
    )
    run = trainer(many, recipe, tmp_path / "run")
    assert run.run() and (run.best_step, run.best_ap) == (8, 0.2)


def test_averaged_weights(dataset: CocoDataset, tmp_path: Path) -> None:
    """The moving average by its definition, masked, and in the model only within `in_place`."""
    recipe = replace(FAST, ema=0.8, sparsity=0.4, prune_end=3, prune_every=1)
    run = trainer(dataset, recipe, tmp_path / "run")
    name = "res4.0.conv2.weight"
    expected = dict(run.model.named_parameters())[name].detach().clone()
    assert run.pruner is not None
    for step in range(4):
        run.train_step(
            [MicroBatch(*load_micro_batch(dataset, [0, 1], TINY, recipe, step), 1.0, [])]
        )
        weight = dict(run.model.named_parameters())[name].detach().clone()
        decay = min(0.8, (1 + step) / (10 + step))
        expected = (decay * expected + (1 - decay) * weight) * run.pruner.keep_masks["res4.0.conv2"]
    assert run.average is not None
    assert torch.allclose(run.average.tensors[name], expected, atol=1e-7)
    assert (expected == 0).float().mean() > 0.3 and not torch.equal(expected, weight)
    saved = load_model(run.save_model({})).tensors[name]
    with run.average.in_place():
        folded, _ = run.model.layers["res4.0.conv2"].folded()
        assert torch.allclose(folded, torch.from_numpy(saved), rtol=1e-3, atol=1e-6)
    assert torch.equal(dict(run.model.named_parameters())[name], weight)


def test_averages_leave_frozen_parameters_alone() -> None:
    model = FasterRCNN(TINY)
    model.get_parameter("stem.conv.weight").requires_grad_(False)
    assert "stem.conv.weight" not in WeightAverage(model, 0.9).tensors


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns_alike(dataset: CocoDataset, tmp_path: Path, amp: Any) -> None:
    recipe = replace(FAST, amp=amp, clip_gradient=1.0)
    run = trainer(dataset, recipe, tmp_path / "run")
    run.scaler.load_state_dict(
        run.scaler.state_dict() | ({"scale": 256.0} if amp == "fp16" else {})
    )
    plain = trainer(dataset, replace(recipe, amp="off"), tmp_path / "plain")
    network_input, aims = load_micro_batch(dataset, [0, 1], TINY, recipe, 0)
    before = run.model.get_parameter("rpn.conv.weight").detach().clone()
    for model in (run, plain):
        model.train_step([MicroBatch(network_input, aims, 1.0, [])])
    moved, expected = (
        model.model.get_parameter("rpn.conv.weight").detach() - before for model in (run, plain)
    )
    assert moved.abs().max() > 0
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), 0) > 0.98
    assert moved.dtype == torch.float32


def test_micro_batches_add_up_to_the_batch(dataset: CocoDataset, tmp_path: Path) -> None:
    """Accumulated gradients are those of the uncut batch."""
    recipe = replace(FAST, scale_low=1.0)
    network_input, aims = load_micro_batch(dataset, [0, 1, 2, 3], TINY, recipe, 0)
    whole = trainer(dataset, recipe, tmp_path / "whole")
    cut = trainer(dataset, recipe, tmp_path / "cut")
    one = whole.train_step([MicroBatch(network_input, aims, 1.0, [])])
    micro_batches = [
        MicroBatch(network_input[i : i + 1], aims[i : i + 1], 0.25, []) for i in range(4)
    ]
    assert cut.train_step(micro_batches) == pytest.approx(one, rel=1e-5)
    for name, value in whole.model.named_parameters():
        assert torch.allclose(cut.model.get_parameter(name), value, rtol=0, atol=1e-6), name
    assert one == pytest.approx(
        {
            k: v.item()
            for k, v in losses(FasterRCNN(TINY, norm=True), recipe, network_input, aims).items()
        },
        rel=1e-5,
    )


def test_short_sides(dataset: CocoDataset) -> None:
    """The shorter side (64 of 96 x 64) is drawn from the list, the longer one limited."""
    recipe = replace(FAST, scale_low=1.0, short_sides=(32, 48, 128), long_side=150)
    sizes = set()
    for epoch in range(20):
        pixels, aim = load_sample(dataset, dataset.images[0], TINY, recipe, epoch)
        assert pixels.shape[:2] == (aim.height, aim.width)
        assert (aim.boxes[:, 2] <= aim.width + 1e-3).all()
        sizes.add((aim.height, aim.width))
    assert sizes == {(32, 48), (48, 72), (100, 150)}


def test_the_linear_rule() -> None:
    recipe = Recipe(batch=4, learning_rate=0.02, reference_batch=16, warmup_steps=0)
    assert recipe.rate(0) == pytest.approx(0.005)
    assert replace(recipe, batch=32).rate(0) == pytest.approx(0.04)
    assert replace(recipe, reference_batch=0).rate(0) == 0.02


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"accumulate": 3}, "accumulate is 3, expected a divisor of batch 4"),
        ({"milestones": [5, 3], "decay": "step"}, "milestones"),
        ({"milestones": [5]}, "milestones is (5,), expected none with decay 'cosine'"),
        ({"short_sides": [64], "scale_low": 0.5}, "short_sides"),
        ({"short_sides": [2000]}, "long_side"),
        ({"ema": 1.0}, "ema"),
        ({"amp": "int8"}, "amp"),
        ({"patience": 3}, "patience is 3, expected 0 without val_fraction"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"sparsity": 0.5}, "prune_end"),
        ({"learning_rat": 0.1}, "'learning_rat'"),
    ],
)
def test_impossible_recipes(
    settings: dict[str, Any], word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        Recipe.from_dict(settings)
    assert word in str(error.value)
    (tmp_path / "r.json").write_text(json.dumps(settings))
    assert (
        main(
            [
                "train",
                "--annotations",
                "x",
                "--images",
                "x",
                "--output",
                str(tmp_path / "out"),
                "--recipe",
                str(tmp_path / "r.json"),
            ]
        )
        == 1
    )
    assert word in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_recipes_of_the_project() -> None:
    files = sorted((ROOT / "recipes").glob("*/*.json"))
    recipes = {path.stem: Recipe.from_dict(json.loads(path.read_text())) for path in files}
    assert {"dense_1x", "dense_3x", "prune_60", "prune_70", "prune_80", "prune_90"} <= set(recipes)
    assert recipes["dense_3x"].rate(100_000) == 0.02 and recipes["prune_90"].sparsity == 0.9


def test_tensorboard_is_written_where_there_is_one(
    dataset: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: Path, purge_step: int) -> None:
            assert folder == tmp_path / "run" / "tensorboard" and purge_step == 0

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trainer(dataset, FAST, tmp_path / "run").run()
    assert {n for n, _, step in written if step == 3} == {
        "loss",
        "rpn_objectness",
        "rpn_box",
        "roi_class",
        "roi_box",
        "rate",
        "sparsity",
        "seconds",
    }
    assert written[-1][0] == "closed"
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer(dataset, FAST, tmp_path / "other").run()
    assert capsys.readouterr().out.count("tensorboard package is not installed") == 1


# --------------------------------------------------------- a user's own three classes


def test_real_photographs_of_three_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, prune, detect and evaluate on the example photographs, with hand-drawn boxes."""
    import sparsedet

    boxes = json.loads((ROOT / "tests" / "data" / "three_classes.json").read_text())
    assert len(boxes["categories"]) == 3
    monkeypatch.setitem(sparsedet.PRESETS, "r50half-c4", TINY)
    common = [
        "--annotations",
        str(ROOT / "tests" / "data" / "three_classes.json"),
        "--images",
        str(ROOT / "examples"),
        "--threads",
        "1",
        "--steps",
        "8",
        "--batch",
        "2",
        "--roi-batch",
        "32",
        "--rpn-pre-nms",
        "200",
        "--rpn-post-nms",
        "50",
    ]
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    assert main(["train", *common, "--freeze-at", "0", "--output", str(dense)]) == 0
    assert main(["prune", *common, "--init", str(dense), "--output", str(sparse)]) == 0
    detector = Detector.load(sparse / "model.safetensors", threads=1)
    names = tuple(entry["name"] for entry in boxes["categories"])
    assert detector.config.class_names == names and detector.sparsity >= 0.6
    detections = detector(read_image(ROOT / "examples" / "beach.jpg"), 0.0)
    assert set(detections.names) <= set(names)
    capsys.readouterr()
    assert main(["eval", "--model", str(sparse / "model.safetensors"), *common[:4]]) == 0
    assert "2 images" in capsys.readouterr().out
