"""Tuning on the dense network's outputs: it learns, zeros stay, and a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from helpers.any_network import file_of, photograph, write_photographs  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.errors import UsageError  # noqa: E402
from sparsedet.importers import load_trained  # noqa: E402
from sparsedet.model.file import AnyFile, load_file  # noqa: E402
from sparsedet.model.network import graph_of  # noqa: E402
from sparsedet.pruning.one_shot import OneShotConfig  # noqa: E402
from sparsedet.pruning.run import Comparing, prune_files  # noqa: E402
from sparsedet.training.tune import Tuner, changed  # noqa: E402
from sparsedet.training.tune_config import TuneConfig  # noqa: E402
from sparsedet.training.tune_run import tune_files  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and `classifier` and `yolox`, pruned."""
    made = tmp_path_factory.mktemp("tune")
    write_photographs(made, range(24))
    for kind in ("classifier", "yolox"):
        prune_files(
            file_of(kind, made),
            made / "photographs",
            made / kind,
            OneShotConfig(method="magnitude", sparsity=0.4),
            calibration_images=16,
            load=lambda path: load_trained(path)[0],
        )
    return made


def networks(folder: Path, kind: str) -> tuple[AnyFile, AnyFile, tuple[Path, Path]]:
    names = folder / kind / "model.safetensors", folder / f"{kind}.onnx"
    return load_file(names[0]), load_trained(names[1])[0], names


def zeros(file: AnyFile) -> dict[str, Any]:
    layers = [layer.name for layer in graph_of(file.config).layers if layer.prunable]
    return {name: np.asarray(file.tensors[f"{name}.weight"]) == 0 for name in layers}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "yolox"])
def test_it_learns_and_zeros_stay(folder: Path, kind: str, tmp_path: Path) -> None:
    pruned, dense, names = networks(folder, kind)
    report = tune_files(
        pruned,
        dense,
        folder / "photographs",
        tmp_path,
        TuneConfig(steps=40, batch=4, step_size=0.002, checkpoint_every=20),
        names=names,
        comparing=Comparing(threads=1),
    )
    assert report is not None and report.cost is not None
    before, after = (np.mean([getattr(r, n) for r in report.layers]) for n in ("before", "after"))
    assert after < before
    tuned = load_file(tmp_path / "model.safetensors")
    old, new = zeros(pruned), zeros(tuned)
    assert all((new[name] >= old[name]).all() and old[name].any() for name in old)
    moved = [(pruned.tensors[n] != tuned.tensors[n]).any() for n in tuned.tensors]
    assert np.mean(moved) > 0.9
    assert tuned.provenance["teacher"]["name"] == names[1].name
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 40
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-10:]) < np.mean(losses[:5])


def test_a_stopped_run_goes_on_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    pruned, dense, names = networks(folder, "yolox")
    settings = TuneConfig(steps=6, batch=2, checkpoint_every=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    place = folder / "photographs"
    tune_files(pruned, dense, place, whole, settings, names=names)

    class Killed(Exception):
        pass

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 3:  # after the checkpoint of step 2
            raise Killed

    with pytest.raises(Killed):
        tune_files(pruned, dense, place, parts, settings, names=names, progress=kill)
    with pytest.raises(InputError, match="holds a run already"):
        tune_files(pruned, dense, place, parts, settings, names=names)
    tune_files(pruned, dense, place, parts, settings, names=names, resume=True)
    first, second = (load_file(p / "model.safetensors") for p in (whole, parts))
    assert all((first.tensors[n] == second.tensors[n]).all() for n in first.tensors)
    assert first.provenance == second.provenance
    with pytest.raises(InputError, match="exists already"):
        tune_files(pruned, dense, place, parts, settings, names=names, resume=True)


def test_a_disk_that_is_full_at_the_end(folder: Path, tmp_path: Path) -> None:
    pruned, dense, names = networks(folder, "yolox")
    settings = TuneConfig(steps=2, batch=1)
    (tmp_path / "report.json").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"report\.json: cannot be written \(No space left"):
        tune_files(pruned, dense, folder / "photographs", tmp_path, settings, names=names)
    (tmp_path / "report.json").unlink()
    model = (tmp_path / "model.safetensors").read_bytes()
    tune_files(pruned, dense, folder / "photographs", tmp_path, settings, names=names, resume=True)
    assert (tmp_path / "report.json").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == model


def test_a_resumed_run_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    pruned, dense, _ = networks(folder, "yolox")
    photographs = sorted((folder / "photographs").iterdir())
    tuner = Tuner(pruned, dense, photographs, TuneConfig(steps=4, batch=1))
    tuner.run_step()
    from sparsedet.torch_model.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(tuner.write(tmp_path, {"seed": 0, "teacher": "a"}))
    with pytest.raises(InputError, match="teacher 'a', now it is 'b'"):
        tuner.resume(checkpoint, {"seed": 0, "teacher": "b"})


def test_what_is_refused(folder: Path) -> None:
    photographs = sorted((folder / "photographs").iterdir())
    pruned, dense, _ = networks(folder, "yolox")
    other = networks(folder, "classifier")[1]
    with pytest.raises(InputError, match="are different networks"):
        Tuner(pruned, other, photographs, TuneConfig())
    with pytest.raises(InputError, match="no zero"):
        Tuner(dense, dense, photographs, TuneConfig())
    with pytest.raises(UsageError, match="steps is 0"):
        TuneConfig(steps=0)
    wild = Tuner(pruned, dense, photographs, TuneConfig(steps=4, batch=1))
    with torch.no_grad():
        next(iter(wild.student.layers.values())).weight.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss of step 1 is nan"):
        wild.run_step()


def test_photographs_are_changed_the_same_way_each_time() -> None:
    import random

    image = photograph(0)
    pairs = [[changed(image, random.Random(seed)) for _ in range(2)] for seed in range(20)]
    assert all((a == b).all() for a, b in pairs)
    assert len({a.shape for a, _ in pairs}) > 5
    assert any((a == image[:, ::-1]).all() for a, _ in pairs if a.shape == image.shape)
