"""Files that torch writes, read without it: checkpoints of all ages, and our own training runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.tiny_training import FAST, TINY  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.importers import detect_format, load_foreign  # noqa: E402
from sparsedet.importers.containers import open_source  # noqa: E402
from sparsedet.model.file import load_model  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402
from sparsedet.training.trainer import Trainer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

DETECTRON2 = Path(__file__).parents[1] / "data" / "parity" / "detectron2.pth"


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return dict(torch.load(DETECTRON2, weights_only=True)["model"])


def test_our_reader_reads_what_torch_reads(state: dict[str, Any], tmp_path: Path) -> None:
    source = open_source(DETECTRON2)[1]
    assert set(source.left) == set(state)
    for name, value in state.items():
        assert np.array_equal(source.left[name].read(), value.numpy())
    tensors = {
        "shared": torch.arange(12.0).view(3, 4),
        "strided": torch.arange(12.0).view(3, 4).T[1:],
        "expanded": torch.ones(1).expand(4, 5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(5).half(),
        "int": torch.arange(5),
        "bfloat16": torch.randn(7).bfloat16(),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "double": torch.randn(3).double(),
    }
    tensors["view"] = tensors["shared"][1]
    for new in (True, False):
        torch.save({"model": tensors}, tmp_path / "t.pth", _use_new_zipfile_serialization=new)
        source = open_source(tmp_path / "t.pth")[1]
        for name, value in tensors.items():
            expected = value.detach()
            expected = expected.float() if name == "bfloat16" else expected
            got = source.left[name].read()
            assert got.shape == expected.shape and np.array_equal(got, expected.numpy()), name


def test_a_training_checkpoint_of_detectron2(state: dict[str, Any], tmp_path: Path) -> None:
    parameters = [torch.nn.Parameter(v.clone()) for v in state.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {
        "model": OrderedDict((f"module.{k}", v) for k, v in state.items()),
        "iteration": 269_999,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"milestones": Counter([1, 2])},
    }
    expected = load_foreign(DETECTRON2).tensors
    for new in (True, False):
        path = tmp_path / "model_0269999.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        imported = load_foreign(path)
        assert all(np.array_equal(imported.tensors[n], v) for n, v in expected.items())
        assert len(imported.ignored) == len(state)
        assert all(name.startswith("optimizer.state.") for name in imported.ignored)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 1000])
        with pytest.raises(InputError, match=r"truncated|not a zip file"):
            load_foreign(path)
    half = {k: v.half() for k, v in state.items()}
    torch.save(half, tmp_path / "half.pth")
    logits = load_foreign(tmp_path / "half.pth").tensors["box.logits.weight"]
    assert np.array_equal(logits, expected["box.logits.weight"].astype(np.float16))


def test_convert_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from sparsedet.cli import main;"
        f"sys.exit(main(['convert', {str(DETECTRON2)!r}, '-o', {str(tmp_path / 'm')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert load_model(tmp_path / "m").config.num_classes == 20


@pytest.mark.parametrize(
    ("ema", "pruning"),
    [(0.0, {}), (0.9, {}), (0.9, {"sparsity": 0.5, "prune_end": 1, "allocation": "sensitivity"})],
)
def test_a_training_run_becomes_the_model_it_would_save(
    dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], ema: float, pruning: Any
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = Trainer(
        FasterRCNN(TINY, norm=True), dataset, replace(FAST, steps=2, ema=ema, **pruning), folder
    )
    run.run()
    run.checkpoint()
    saved = load_model(run.save_model({})).tensors
    assert detect_format(folder) == "checkpoint"
    newest = sorted(folder.glob("checkpoint-*.safetensors"))[-1]
    output = tmp_path / "model.safetensors"
    for source in (folder, newest):
        imported = load_foreign(source)
        assert imported.config == TINY
        for name, value in saved.items():  # saved as float16, and folded in float32
            assert np.allclose(imported.tensors[name], value, rtol=2e-3, atol=1e-6), name
        assert any(name.startswith("optimizer/") for name in imported.ignored)
        assert ("averaged" in imported.notes[0]) == (ema > 0)
        assert main(["convert", str(source), "-o", str(output), "--overwrite"]) == 0
        assert load_model(output).provenance["step"] == 2
    # The newest is damaged: the one before is read, with a note. A damaged file alone is refused.
    (folder / "checkpoint-0000009.safetensors").write_bytes(newest.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="trying the one before"):
        assert load_foreign(folder).provenance["step"] == 2
    data = bytearray(newest.read_bytes())
    data[-5] ^= 64
    newest.write_bytes(data)
    with pytest.raises(InputError, match="wrong checksum"):
        load_foreign(newest)


def test_a_classifier_is_a_start_and_no_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision
    from safetensors.torch import save_file

    net = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "resnet.pth")
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    for name in ("resnet.pth", "resnet.safetensors"):
        assert detect_format(tmp_path / name) == "torchvision"
        assert main(["convert", str(tmp_path / name), "-o", str(tmp_path / "x")]) == 1
        assert f"sparsedet train --init {tmp_path / name}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
