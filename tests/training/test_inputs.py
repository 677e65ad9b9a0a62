"""Data and commands as users have them: other ids, rotated images, signals to a whole group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")
pytest.importorskip("pycocotools")

from helpers.tiny_training import FAST, TINY, make_data, trainer  # noqa: E402
from torchvision import ops  # noqa: E402

from sparsedet import InputError, load_model, preset, read_image, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset, load_coco  # noqa: E402
from sparsedet.model.checkpoint import checkpoints  # noqa: E402
from sparsedet.model.config import COCO_NAMES  # noqa: E402
from sparsedet.model.graph import RoiAlign  # noqa: E402
from sparsedet.pruning import run as pruning_run  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.torch_model.checkpoint import newest_checkpoint  # noqa: E402
from sparsedet.training.data import epoch_batches, load_sample  # noqa: E402
from sparsedet.training.run import train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_data(tmp_path / "data", 8)


def as_coco(files: Files, first: int) -> Files:
    """The same data with COCO's 80 names under the ids first, first + 1, ..."""
    data = json.loads(files[0].read_text())
    data["categories"] = [{"id": first + i, "name": name} for i, name in enumerate(COCO_NAMES)]
    for annotation in data["annotations"]:
        annotation["category_id"] = first + {3: 0, 5: 40, 8: 79}[annotation["category_id"]]
    path = files[0].with_name("coco.json")
    path.write_text(json.dumps(data))
    return path, files[1]


@pytest.mark.parametrize("first", [0, 1])
def test_coco_classes_under_other_ids(
    files: Files, tmp_path: Path, first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "three", TINY, FasterRCNN(TINY).folded_tensors(), {})
    # From a model of three classes: the predictors have to follow the data, too.
    assert train(
        replace(FAST, steps=2), *as_coco(files, first), tmp_path / "run", init=tmp_path / "three"
    )
    assert "other classes: the box predictors are initialised randomly" in capsys.readouterr().out
    config = load_model(tmp_path / "run" / "model.safetensors").config
    assert config.class_names == COCO_NAMES
    assert config.category_ids == tuple(range(first, first + 80))


def test_cocos_own_ids_stay(files: Files, tmp_path: Path) -> None:
    path, images = as_coco(files, 0)
    own = preset("r50half-c4").category_ids
    data = json.loads(path.read_text())
    for entry in data["categories"]:
        entry["id"] = own[entry["id"]]
    for entry in data["annotations"]:
        entry["category_id"] = own[entry["category_id"]]
    path.write_text(json.dumps(data))
    wide = replace(TINY, class_names=COCO_NAMES, category_ids=own)
    save_model(tmp_path / "start", wide, FasterRCNN(wide).folded_tensors(), {})
    assert train(replace(FAST, steps=1), path, images, tmp_path / "run", init=tmp_path / "start")
    assert load_model(tmp_path / "run" / "model.safetensors").config == wide


def test_the_rarer_orientation_is_trained_on(files: Files) -> None:
    dataset = load_coco(*files)
    images = tuple(
        replace(image, width=64, height=96) if number < 3 else image
        for number, image in enumerate(dataset.images)
    )
    mixed, recipe = replace(dataset, images=images), replace(FAST, batch=4)
    seen, alike = set(), 0
    for epoch in range(10):
        batches = epoch_batches(mixed, recipe, epoch)
        assert len(batches) == 2 and {i for b in batches for i in b} == set(range(8))
        assert batches == epoch_batches(mixed, recipe, epoch)
        seen |= {index for batch in batches for index in batch}
        alike += len({images[i].width for i in batches[0]}) == 1
    assert seen == set(range(8)) and alike == 10  # only the rest is mixed


def rotate_first_image(dataset: CocoDataset) -> Path:
    """Rotate the first image file by 90 degrees."""
    path = dataset.image_path(dataset.images[0])
    cv2.imwrite(str(path), np.rot90(read_image(path)))
    return path


def test_an_image_of_another_shape_than_annotated(files: Files, tmp_path: Path) -> None:
    dataset = load_coco(*files)
    image = dataset.images[0]
    path = dataset.image_path(image)
    half = cv2.resize(read_image(path), (49, 32))  # the same shape, to rounding
    cv2.imwrite(str(path), half)
    load_sample(dataset, image, TINY, FAST, 0)
    cv2.imwrite(str(path), cv2.resize(half, (96, 64)))
    rotate_first_image(dataset)
    message = r"1\.png: is 64x96, but annotated as 96x64"
    with pytest.raises(InputError, match=message):
        load_sample(dataset, image, TINY, FAST, 0)
    run = trainer(dataset, replace(FAST, steps=40, samples=0), tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run.run()
    assert (
        newest_checkpoint(tmp_path / "run").path.stem[-7:] == f"{run.step:07d}"
    )  # nothing is lost


def command(files: Files, folder: Path, recipe: Any) -> list[str]:
    """The command of a training run from a start in `folder` to the folder `run` in it."""
    save_model(folder / "start", TINY, FasterRCNN(TINY).folded_tensors(), {})
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    flags = {
        "annotations": files[0],
        "images": files[1],
        "init": folder / "start",
        "recipe": folder / "recipe.json",
        "threads": 1,
        "output": folder / "run",
    }
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "sparsedet", "train", *given]


def test_a_workers_error_is_one_line_and_ends_the_run(files: Files, tmp_path: Path) -> None:
    path = rotate_first_image(load_coco(*files))
    recipe = replace(FAST, steps=40, workers=2, samples=0)
    done = subprocess.run(
        command(files, tmp_path, recipe), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert done.stderr == f"sparsedet: {path}: is 64x96, but annotated as 96x64\n"
    assert len(checkpoints(tmp_path / "run")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group(files: Files, tmp_path: Path, number: int) -> None:
    """As torchrun, a terminal and batch systems send it: the workers get it, too."""
    recipe = replace(FAST, steps=100000, log_every=1, workers=2, samples=0)
    process = subprocess.Popen(
        command(files, tmp_path, recipe),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"--resume continues" in out and b"Traceback" not in err
    assert len(checkpoints(tmp_path / "run")) == 1


def test_rois_keep_their_positions_in_mixed_precision() -> None:
    model = FasterRCNN(TINY)
    features = torch.randn(1, 4, 50, 84, generator=torch.Generator().manual_seed(0)).bfloat16()
    rois = torch.tensor([[1003.0, 603.0, 1101.0, 717.0], [517.0, 261.0, 581.0, 325.0]])
    ratio = TINY.roi_sampling_ratio
    exact = ops.roi_align(features.float(), [rois], TINY.roi_size, 1 / 16, ratio, True)
    step = model.graph.only(RoiAlign)[1].step
    pooled = model.roi_features(features, [rois])
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, exact.bfloat16()[:, :, ::step, ::step])


def test_what_a_changed_recipe_means_for_a_resumed_run(files: Files, tmp_path: Path) -> None:
    dataset = load_coco(*files)
    recipe = replace(FAST, steps=4, val_fraction=0.4, val_every=2, samples=0)
    run = trainer(dataset, recipe, tmp_path / "run")
    run.run()
    assert run.best_step >= 0
    saved = newest_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="its optimizer is sgd, not adamw"):
        trainer(dataset, replace(recipe, optimizer="adamw"), tmp_path / "run").resume(saved)
    same = trainer(dataset, replace(recipe, steps=8), tmp_path / "run")
    same.resume(saved)
    assert same.best_step == run.best_step
    whole = trainer(dataset, replace(recipe, steps=8, val_fraction=0.0), tmp_path / "run")
    whole.resume(saved)
    assert whole.best_step < 0 and whole.step == 4  # the old best is of another split


def test_one_shot_pruning_refuses_before_it_works(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "dense"
    save_model(model, TINY, FasterRCNN(TINY).folded_tensors(), {})
    (tmp_path / "file").write_text("something")
    monkeypatch.setattr(pruning_run, "prune_once", lambda *_, **__: pytest.fail("worked"))

    def refused(message: str, *flags: object, method: str = "magnitude", code: int = 1) -> None:
        arguments = [
            "--method",
            method,
            "--init",
            model,
            "--images",
            files[1],
            "--sparsity",
            0.5,
            "--calibration-images",
            4,
            "--output",
            tmp_path / "out",
            *flags,
        ]
        assert main(["prune", *map(str, arguments)]) == code
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()

    refused("File exists", "--output", tmp_path / "file")
    refused("Not a directory", "--output", tmp_path / "file" / "p")
    refused("--recipe is for --method gradual", "--recipe", tmp_path / "file", code=2)
    refused("--calibration-images is -7", "--calibration-images", -7, code=2)
    refused("needs", "--sparsity", 0.99)
    refused(
        "sparsity is 0.0, expected more",
        "--sparsity",
        0,
        "--annotations",
        files[0],
        method="gradual",
        code=2,
    )


def test_gradual_pruning_says_what_happens_to_zeros(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = FasterRCNN(TINY).folded_tensors()
    for name in tensors:
        if name.startswith("res") and name.endswith("weight"):
            tensors[name].reshape(-1)[::2] = 0
    save_model(tmp_path / "sparse", TINY, tensors, {})
    train(
        replace(FAST, sparsity=0.6, prune_end=4), *files, tmp_path / "run", init=tmp_path / "sparse"
    )
    assert "may become nonzero until the schedule prunes them" in capsys.readouterr().out
