"""`sparsedet export`: files, forms and refusals; the graphs themselves are tested elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest
from helpers.small import picture

from sparsedet.cli import main
from sparsedet.importers import load_foreign
from sparsedet.model.file import load_model, save_model

pytest.importorskip("onnx")


def test_onnx_is_written(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    target = tmp_path / "model.onnx"
    flags = ["--layout", "NHWC", "--rows", "2d", "--max-detections", "7", "--image-info"]
    assert main(["export", str(small_model), "-o", str(target), *flags]) == 0
    graph = onnx.load(target).graph
    assert [i.name for i in graph.input] == ["image", "image_info"]
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == [7, 7]
    out = capsys.readouterr().out
    assert "input image [1, 64, 96, 3] and image_info [1, 3]" in out
    assert "output detections [7, 7]" in out
    assert "parameters are zero (40.1" in out


def test_openvino_is_written_and_read_back(small_model: Path, tmp_path: Path) -> None:
    """In a process of its own: see test_export_openvino.py."""
    import subprocess

    pytest.importorskip("openvino")
    target = tmp_path / "model.xml"
    command = [
        sys.executable,
        "-m",
        "sparsedet",
        "export",
        str(small_model),
        "-o",
        str(target),
        "--dtype",
        "float16",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    # The model file is half-float too: nothing is lost on the way.
    back, model = load_foreign(target), load_model(small_model)
    assert back.config == model.config
    assert all((back.tensors[k] == v).all() for k, v in model.tensors.items())
    before = target.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "exists already" in done.stderr
    assert target.read_bytes() == before
    target.unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "model.bin: exists already" in done.stderr
    assert subprocess.run([*command, "--overwrite"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-o", "m.bin"], "neither .xml nor .onnx"),
        (["-o", "m.onnx", "--to", "openvino"], "ends in .xml"),
        (["-o", "m.xml", "--to", "onnx"], "ends in .onnx"),
        (["-o", "m.xml", "--dynamic-batch"], "--to onnx"),
        (["-o", "m.xml", "--int8"], "needs --images"),
        (["-o", "m.onnx", "--int8", "--images", "."], "--to openvino"),
        (
            ["-o", "m.xml", "--int8", "--images", ".", "--dtype", "float16"],
            "cannot be combined with --dtype",
        ),
        (["-o", "m.onnx", "--images", "."], "are for --int8"),
        (["-o", "m.onnx", "--max-detections", "0"], "max_detections is 0"),
        (["nothing.safetensors", "-o", "m.onnx"], "nothing.safetensors"),
        (["-o", "missing/m.onnx"], "missing/m.onnx"),
    ],
)
def test_refusals(
    flags: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = says in ("nothing.safetensors", "missing/m.onnx")  # a file, not the flags
    assert main(["export", *flags]) == (1 if named else 2)
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_int8_needs_nncf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    command = ["export", "-o", str(tmp_path / "m.xml"), "--int8", "--images", str(tmp_path)]
    assert main(command) == 1
    assert "sparsedet[quantize]" in capsys.readouterr().err


def test_calibration_images_are_chosen_by_name(tmp_path: Path) -> None:
    from sparsedet.errors import InputError
    from sparsedet.exporters.nncf import blobs, calibration_images

    for name in ("a.png", "b.png", "c.txt"):
        cv2.imwrite(str(tmp_path / name.replace("txt", "png")), picture())
    (tmp_path / "c.txt").write_text("")
    chosen = calibration_images(tmp_path, 2)
    assert chosen == calibration_images(tmp_path, 2) and len(set(chosen)) == 2
    assert len(calibration_images(tmp_path, None)) == 3
    with pytest.raises(InputError, match="holds 3 images, but 4 are asked for"):
        calibration_images(tmp_path, 4)
    with pytest.raises(InputError, match="not a folder"):
        calibration_images(tmp_path / "a.png", 1)
    from helpers.small import SMALL

    (first,) = blobs(chosen[:1], SMALL, "NCHW")
    assert first.shape == (1, 3, 64, 96) and first.dtype == "float32"
    (second,) = blobs(chosen[:1], SMALL, "NHWC")
    assert (second.transpose(0, 3, 1, 2) == first).all()


@pytest.fixture
def pyramid_model(tmp_path: Path) -> Path:
    """A model file of a small Mask R-CNN FPN, whose images are resized by their shorter side."""
    from dataclasses import replace

    from helpers.exports import small_network

    small = small_network("mask-rcnn")
    config = replace(small.config, resize="shorter", min_size=160, max_size=224)
    save_model(tmp_path / "fpn.safetensors", config, small.tensors, {}, dtype="float32")
    return tmp_path / "fpn.safetensors"


def test_a_pyramid_with_masks(
    pyramid_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(pyramid_model), "-o", str(tmp_path / "fpn.onnx")]) == 0
    out = capsys.readouterr().out
    assert "all images have one network input: they are letterboxed" in out
    assert "output detections [1, 1, 100, 7]" in out and "output masks [100, 28, 28]" in out


@pytest.mark.slow
@pytest.mark.parametrize("file", ["small_model", "pyramid_model"])
def test_int8_with_nncf(file: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Where the package is: a graph that OpenVINO runs, smaller, with INT8 weights inside."""
    import subprocess

    pytest.importorskip("nncf")
    small_model = request.getfixturevalue(file)
    for seed in range(4):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), picture(seed=seed))
    target = tmp_path / "m.xml"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "sparsedet",
        "export",
        str(small_model),
        "-o",
        str(target),
        "--int8",
        "--images",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = target.read_text()
    assert 'type="FakeQuantize"' in text and 'element_type="i8"' in text
    assert "model_type" in text
