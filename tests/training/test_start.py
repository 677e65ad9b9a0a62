"""The starts of `train --init`, `prune --init` and `--teacher`: detectors of other projects."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.parity import DETECTRON2, TENSORPACK  # noqa: E402
from helpers.small import picture  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.importers import load_foreign  # noqa: E402
from sparsedet.importers.containers import open_source  # noqa: E402
from sparsedet.model.detector_config import require_c4  # noqa: E402
from sparsedet.model.file import load_model  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.training.start import build_model, load_teacher, open_start  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture
def ir(small_model: Path, tmp_path: Path) -> Path:
    """The small model as OpenVINO IR."""
    pytest.importorskip("openvino")
    from sparsedet.exporters.openvino import save_openvino

    model, path = load_model(small_model), tmp_path / "small.xml"
    save_openvino(path, model.config, model.tensors)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "calibration"
    folder.mkdir()
    for seed in range(2):
        cv2.imwrite(str(folder / f"{seed}.png"), picture(seed=seed))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_start_is_what_the_importer_reads(ir: Path, small_model: Path, tmp_path: Path) -> None:
    """By content: the suffix may be another one."""
    renamed = tmp_path / "model.safetensors"
    shutil.copy(DETECTRON2, renamed)
    for path in (DETECTRON2, TENSORPACK, ir, renamed):
        start, expected = open_start(path), load_foreign(path)
        assert start.config == expected.config and start.notes == expected.notes
        network = build_model(expected.config, start.tensors(expected.config))
        for name, value in network.state_dict().items():
            assert np.array_equal(value.numpy(), expected.tensors[name]), name
    teacher = load_teacher(ir)
    assert teacher.sha256 == sha256(ir.with_suffix(".bin"))
    assert open_start(small_model).config == open_start(ir).config


def test_train_begins_with_a_foreign_detector(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "--annotations",
        str(files[0]),
        "--images",
        str(files[1]),
        "--threads",
        "1",
        "--output",
        str(tmp_path / "run"),
        "--init",
        str(TENSORPACK),
        "--steps",
        "1",
        "--batch",
        "1",
        "--learning-rate",
        "1e-30",
        "--rpn-batch",
        "16",
        "--roi-batch",
        "8",
        "--rpn-post-nms",
        "20",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "states no settings; assumed: strides in conv2" in printed
    assert "has other classes: the box predictors are initialised randomly" in printed
    expected, saved = load_foreign(TENSORPACK), load_model(tmp_path / "run" / "model.safetensors")
    blocks = [require_c4(m.config, "compared").blocks for m in (saved, expected)]
    assert blocks[0] == blocks[1]
    for name, value in expected.tensors.items():
        if not name.startswith("box."):  # saved as float16 after a step with a rate of almost 0
            np.testing.assert_allclose(saved.tensors[name], value, rtol=1e-3, atol=1e-6)
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["init"] == {"name": TENSORPACK.name, "sha256": sha256(TENSORPACK)}


@pytest.mark.parametrize("form", ["detectron2", "openvino"])
def test_prune_once_begins_with_a_foreign_detector(
    form: str, ir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = {"detectron2": DETECTRON2, "openvino": ir}[form], tmp_path / "out"
    assert (
        main(
            [
                "prune",
                "--method",
                "magnitude",
                "--init",
                str(source),
                "--images",
                str(images),
                "--output",
                str(out),
                "--sparsity",
                "0.5",
                "--calibration-images",
                "2",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    assert ("itself resizes to short side" in capsys.readouterr().out) == (form == "detectron2")
    saved = load_model(out / "model.safetensors")
    assert sparsity_report(saved.config, saved.tensors).sparsity >= 0.5
    assert saved.config == load_foreign(source).config
    weights = source if form == "detectron2" else source.with_suffix(".bin")
    assert saved.provenance["source"]["name"] == weights.name
    assert saved.provenance["source"]["sha256"] == sha256(weights)
    assert source.name in saved.provenance["source"]["source"]


def test_what_is_no_start(
    files: tuple[Path, Path],
    ir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}
    w = np.zeros((2, 2), np.float32)
    del state["proposal_generator.rpn_head.conv.bias"]
    cases: list[tuple[str, Any, str]] = [
        ("missing.pth", state, "tensor 'proposal_generator.rpn_head.conv.bias' is missing"),
        ("fpn.pth", {"backbone.fpn_lateral2.weight": w}, "is a detector with a feature pyramid"),
        ("yolo.pth", {"model.0.conv.weight": w}, "unknown model format"),
    ]
    made = []
    for name, content, words in cases:
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in content.items()}
        torch.save(tensors, tmp_path / name)
        made.append((tmp_path / name, words))
    ir.with_suffix(".bin").write_bytes(ir.with_suffix(".bin").read_bytes()[:-5000])
    made += [
        (ir, "it is truncated"),
        (files[0], "is JSON, not weights"),
        (tmp_path / "none.npz", "No such file"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for path, words in made:
        with pytest.raises(InputError):
            open_start(path)
        for flags in (
            ["train"],
            ["prune"],
            ["prune", "--method", "magnitude", "--sparsity", "0.5", "--calibration-images", "2"],
        ):
            folder = images if "--method" in flags else files[1]
            given = [
                *flags,
                "--annotations",
                str(files[0]),
                "--images",
                str(folder),
                "--threads",
                "1",
                "--init",
                str(path),
                "--output",
                str(tmp_path / "run"),
            ]
            capsys.readouterr()
            assert main(given) == 1
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and words in lines[0] and path.stem in lines[0], lines
    assert sorted(tmp_path.rglob("*")) == before
