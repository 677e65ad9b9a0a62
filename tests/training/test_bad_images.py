"""Long runs over people's files: bad images, ids that are text, other classes, and silence."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")
pytest.importorskip("pycocotools")

from helpers.tiny_training import FAST, TINY, make_data, trainer  # noqa: E402

from sparsedet import InputError, load_model, read_image, save_model  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import load_coco  # noqa: E402
from sparsedet.evaluation.images import without_bad_images  # noqa: E402
from sparsedet.model.checkpoint import checkpoints  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.training import data as training_data  # noqa: E402
from sparsedet.training.data import load_micro_batch, micro_batches  # noqa: E402
from sparsedet.training.distributed import Ranks  # noqa: E402
from sparsedet.training.pulse import Pulse  # noqa: E402
from sparsedet.training.run import train  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_data(tmp_path / "data", 8)


def flags(files: Files, folder: Path, output: str = "run", **recipe: Any) -> list[str]:
    """Flags of `train` from a start in `folder`."""
    start, settings = folder / "start", folder / "recipe.json"
    if not start.exists():
        save_model(start, TINY, FasterRCNN(TINY).folded_tensors(), {})
    settings.write_text(json.dumps(replace(FAST, **{"steps": 2, "samples": 0, **recipe}).to_dict()))
    given = {"annotations": files[0], "images": files[1], "init": start, "recipe": settings}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*words, "--threads", "1", "--output", str(folder / output)]


def damage(image: Path) -> None:
    """Whole by its header and its end, but not to decode."""
    data = bytearray(image.read_bytes())
    start = data.index(b"IDAT") + 4
    data[start : start + 60] = bytes(60)
    image.write_bytes(data)


def changed(files: Files, name: str, **changes: Any) -> Files:
    path = files[0].with_name(name)
    path.write_text(json.dumps({**json.loads(files[0].read_text()), **changes}))
    return path, files[1]


@pytest.mark.parametrize("command", [["train"], ["prune", "--sparsity", "0.5"]])
def test_bad_headers_stop_before_the_first_step(
    files: Files, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (files[1] / "2.png").write_bytes(b"")
    (files[1] / "5.png").write_bytes(b"GIF89a")
    (files[1] / "6.png").write_bytes((files[1] / "6.png").read_bytes()[:300])
    cv2.imwrite(str(files[1] / "7.png"), np.zeros((64, 64, 3), np.uint8))
    given = [*command, *flags(files, tmp_path)]
    if command[0] == "prune":
        given += ["--prune-end", "1", "--prune-every", "1"]
    assert main(given) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "2.png: the file is empty" in err, err
    assert "3 more of 8 images are bad; --bad-images skip" in err
    assert not (tmp_path / "run").exists()
    assert main([*given, "--bad-images", "skip"]) == 0
    err = capsys.readouterr().err
    left_out = [line for line in err.splitlines() if "left out" in line]
    assert [line.startswith("sparsedet: warning: left out: ") for line in left_out] == [True] * 4
    assert all(sum(f"{n}.png" in line for line in left_out) == 1 for n in (2, 5, 6, 7))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["images"] == 4


def test_a_missing_image_is_left_out_as_well(files: Files, tmp_path: Path) -> None:
    (files[1] / "3.png").unlink()
    dataset = load_coco(*files)
    with pytest.raises(InputError, match=r"1 of 8 images are missing, first '3\.png'"):
        without_bad_images(dataset)
    with pytest.warns(UserWarning, match=r"left out: .*3\.png: No such file"):
        assert len(without_bad_images(dataset, "skip").images) == 7
    for image in files[1].iterdir():
        image.write_bytes(b"")
    with pytest.raises(InputError, match="none of the images can be read"), pytest.warns():
        without_bad_images(dataset, "skip")


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_inside_stops_with_a_checkpoint_or_is_left_out(
    files: Files, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(files[1] / "4.png")
    given = ["train", *flags(files, tmp_path, steps=12, workers=workers)]
    assert main(given) == 1
    assert "4.png" in capsys.readouterr().err.splitlines()[-1]
    assert len(checkpoints(tmp_path / "run")) == 1
    given = ["train", *flags(files, tmp_path, "skipped", steps=12, workers=workers)]
    assert main([*given, "--bad-images", "skip"]) == 0  # three epochs, named once
    err = capsys.readouterr().err
    assert err.count("warning: left out") == err.count("4.png") == 1, err


def test_another_image_takes_the_place_of_a_damaged_one(files: Files) -> None:
    dataset = load_coco(*files)
    expected, _ = load_micro_batch(dataset, [0, 4], TINY, FAST, 0)
    damage(dataset.image_path(dataset.images[3]))
    told: list[str] = []
    found, targets = load_micro_batch(dataset, [0, 3], TINY, FAST, 0, "skip", told)
    assert torch.equal(found, expected) and len(targets) == 2
    assert len(told) == 1 and "4.png" in told[0]


def test_what_is_kept_of_a_damaged_image_is_trained_on_and_named_once(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, *, keep_damaged: bool = False) -> NDArray[np.uint8]:
        if path.name == "2.png":
            if not keep_damaged:
                raise InputError(f"{path}: damaged")
            warnings.warn(f"{path}: the lower half is missing", stacklevel=2)
            return np.zeros((64, 96, 3), np.uint8)
        return read_image(path)

    monkeypatch.setattr(training_data, "read_image", half)
    dataset, recipe = load_coco(*files), replace(FAST, batch=4)
    batches = micro_batches(dataset, TINY, recipe, 0, Ranks(), "keep")
    with pytest.warns(UserWarning) as caught:
        drawn = [next(batches) for _ in range(8)]
    assert sum(bool(batch.warnings) for batch in drawn) >= 3
    (only,) = {str(line.message) for line in caught}
    assert len(caught) == 1 and only.endswith("2.png: the lower half is missing")


def test_one_shot_pruning_leaves_bad_images_out(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files[1] / "2.png").write_bytes(b"")
    damage(files[1] / "5.png")
    start = tmp_path / "start"
    save_model(start, TINY, FasterRCNN(TINY).folded_tensors(), {})
    given = ["prune", "--method", "magnitude", "--init", str(start), "--images", str(files[1])]
    given += ["--sparsity", "0.3", "--calibration-images", "8", "--output", str(tmp_path / "run")]
    assert main(given) == 1
    assert "2.png: the file is empty" in capsys.readouterr().err
    assert main([*given, "--bad-images", "skip"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: left out") == 2 and "2.png" in err and "5.png" in err
    pruned = load_model(tmp_path / "run" / "model.safetensors").provenance["pruned"]
    assert pruned["photographs"] == 6


def test_annotations_as_exporters_write_them_are_trained_on(files: Files, tmp_path: Path) -> None:
    """Ids, crowds and boxes that are text, a byte order mark, a split and samples."""
    content = json.loads(files[0].read_text())
    for entry in content["images"]:
        entry["id"] = f"street/{entry['id']}"
    for entry in content["categories"]:
        entry["id"] = f"class {entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"street/{entry['image_id']}"
        entry["category_id"] = f"class {entry['category_id']}"
        entry |= {"iscrowd": "0", "bbox": [str(v) for v in entry["bbox"]]}
    content["annotations"] += [{"id": 99, "image_id": "street/1"}, None]
    text = files[0].with_name("text.json")
    text.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    settings = {"steps": 2, "val_fraction": 0.4, "val_every": 2, "samples": 1}
    save_model(tmp_path / "start", TINY, FasterRCNN(TINY).folded_tensors(), {})
    run = tmp_path / "run"
    recipe = replace(FAST, **settings)  # type: ignore[arg-type]
    with pytest.warns(UserWarning) as caught:
        assert train(recipe, text, files[1], run, init=tmp_path / "start")
    lines = sorted(str(line.message).partition(": ")[2] for line in caught)
    assert [line[:40] for line in lines] == [
        "1 annotations without a usable category_",
        "1 annotations without a usable image_id ",
    ]
    config = load_model(run / "model.safetensors").config
    assert (config.class_names, config.category_ids) == (TINY.class_names, (1, 2, 3))
    (sample,) = (run / "samples").iterdir()
    assert sample.name.startswith("step-0000002-street_")
    held_out = json.loads((run / "val.json").read_text())["images"]
    assert held_out and all(entry["id"].startswith("street/") for entry in held_out)


def test_a_resumed_run_with_other_classes_names_them(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [{"id": 3, "name": "red box"}, {"id": 5, "name": "green box"}, {"id": 8, "name": "a"}]
    assert main(["train", *flags(files, tmp_path)]) == 0
    capsys.readouterr()
    other = changed(files, "other.json", categories=[*names, {"id": 9, "name": "b"}])
    assert main(["train", *flags(other, tmp_path), "--resume"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "its classes are red box, green box, a, b" in err
    assert "are red box, green box, blue b" in err and "--init" in err
    order = json.loads(files[0].read_text())["categories"]
    turned = [{**entry, "id": 20 - entry["id"]} for entry in order]
    ids = {entry["id"]: 20 - entry["id"] for entry in order}
    annotations = json.loads(files[0].read_text())["annotations"]
    moved = [{**entry, "category_id": ids[entry["category_id"]]} for entry in annotations]
    same = changed(files, "same.json", categories=turned, annotations=moved)
    assert main(["train", *flags(same, tmp_path, steps=3), "--resume"]) == 0  # in another order
    config = load_model(tmp_path / "run" / "model.safetensors").config
    assert (config.class_names, config.category_ids) == (TINY.class_names, (17, 15, 12))


def test_many_classes_are_named_by_their_difference(files: Files, tmp_path: Path) -> None:
    many = [{"id": n, "name": f"class {n}"} for n in range(3, 60)]
    wide = changed(files, "wide.json", categories=many)
    assert main(["train", *flags(wide, tmp_path)]) == 0
    with pytest.raises(InputError) as caught:
        train(
            FAST,
            *changed(files, "more.json", categories=[*many, {"id": 99, "name": "new"}]),
            tmp_path / "run",
            resume=True,
        )
    assert "its classes are 58 (1 of them only here: new)" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_finished_run_says_that_nothing_is_left(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", *flags(files, tmp_path)]
    assert main(given) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for steps in (2, 1):
        capsys.readouterr()
        assert main([*given, "--resume", "--steps", str(steps), "--warmup-steps", "0"]) == 0
        out = capsys.readouterr().out
        assert "nothing is left" in out and "continuing" not in out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    (tmp_path / "run" / "model.safetensors").unlink()
    assert main([*given, "--resume"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_silent_run_gives_signs_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    with Pulse(first=0.2, every=0.4) as pulse:
        pulse.doing = "step 3/7"
        time.sleep(1.5)
        lines = capsys.readouterr().out.splitlines()
        pulse.silent = True
        time.sleep(0.6)
    assert 2 <= len(lines) <= 4 and all(line.startswith("step 3/7 (") for line in lines)
    assert capsys.readouterr().out == ""
    with Pulse(first=0.3, every=5) as pulse:
        for _ in range(6):
            pulse.spoke()
            time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_a_slow_run_says_something_early_and_often(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(load_coco(*files), replace(FAST, steps=3, log_every=100), tmp_path / "run")
    run.pulse = Pulse(first=0.2, every=0.2)
    step = run.train_step

    def slow(batches: Any) -> dict[str, float]:
        time.sleep(0.6)
        return step(batches)

    run.train_step = slow  # type: ignore[method-assign, assignment]
    with run.pulse:
        run.run()
    lines = [line for line in capsys.readouterr().out.splitlines() if "s since the start" in line]
    assert len(lines) >= 4 and {"step 0/3", "step 2/3"} <= {line.split(" (")[0] for line in lines}
