"""convert, info, detect and classify of ONNX files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from helpers.commands import Run, refused
from helpers.onnx_detectors import ANCHORS, CELLS, picking, yolov5
from helpers.onnx_files import conv_node, conv_tensors, onnx, save_onnx

node = onnx.helper.make_node


def classifier(path: Path, size: tuple[object, object] = (32, 32)) -> Path:
    constants = {**conv_tensors("c", 8, 3, 3), **conv_tensors("d", 6, 8)}
    nodes = [
        conv_node("c", "x", "a", strides=[2, 2], pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("GlobalAveragePool", ["r"], ["m"]),
        conv_node("d", "m", "l"),
        node("Flatten", ["l"], ["y"]),
    ]
    names = str([f"class {i}" for i in range(6)])
    return save_onnx(path, nodes, ["y"], constants, size, metadata={"names": names})


def photo(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_a_classifier_is_described_converted_and_run(tmp_path: Path, run: Run) -> None:
    source, image = classifier(tmp_path / "net.onnx"), photo(tmp_path / "a.png")
    described = run("info", source).out
    assert "all 5 nodes run here" in described and "output y: 1x6" in described
    assert "with 80% zeros" in described and not list(tmp_path.glob("*.safetensors"))
    target = tmp_path / "net.safetensors"
    said = run("convert", source, "-o", target).out
    assert "output y: 1x6" in said and target.exists()
    first = run("classify", target, image, "--top", "2").out
    assert first == run("classify", source, image, "--top", "2").out
    assert first.count("%  class ") == 2 and str(image) in first


def test_open_shapes_are_stated(tmp_path: Path, run: Run) -> None:
    source = classifier(tmp_path / "net.onnx", ("h", "w"))
    target = tmp_path / "net.safetensors"
    refused(run("convert", source, "-o", target), "state it, as --shape 1x3x640x640")
    refused(run("convert", source, "-o", target, "--shape", "64"), "expected four numbers", code=2)
    assert "network input 48x32" in run("convert", source, "-o", target, "--shape", "1x3x32x48").out


def test_what_does_not_run_is_named_before_anything_is_written(tmp_path: Path, run: Run) -> None:
    nodes = [conv_node("c", "x", "a"), node("Celu", ["a"], ["y"], name="odd")]
    source = save_onnx(tmp_path / "net.onnx", nodes, ["y"], conv_tensors("c", 4, 3))
    refused(run("convert", source, "-o", tmp_path / "m.safetensors"), r"node 'odd' (Celu)")
    assert not (tmp_path / "m.safetensors").exists()


def test_flags_of_onnx_files_are_for_onnx_files(tmp_path: Path, run: Run) -> None:
    other = tmp_path / "a.npz"
    other.write_bytes(b"")
    command = ["convert", other, "-o", tmp_path / "m.safetensors", "--raw"]
    refused(run(*command), "--raw is for ONNX files", code=2)


def test_anchors_that_the_file_does_not_have_are_stated(tmp_path: Path, run: Run) -> None:
    source, target = yolov5(tmp_path / "net.onnx", CELLS), tmp_path / "net.safetensors"
    refused(run("convert", source, "-o", target), "state them, as --anchors 10x13,16x30")
    for text in ("10", "10x13,16", "10x13x1", "axb", "0x3"):
        refused(run("convert", source, "-o", target, "--anchors", text), "width and height", code=2)
    text = ",".join(f"{width:g}x{height:g}" for width, height in ANCHORS)
    said = run("convert", source, "-o", target, "--anchors", text).out
    assert f"a detector as YOLOv5: strides 8, 16, 32, anchors {text};" in said
    run("detect", "--model", target, photo(tmp_path / "a.png"), "--no-save")
    raw = run("convert", source, "-o", tmp_path / "raw.safetensors", "--raw").out
    assert "its outputs are as they were" in raw


def test_files_that_pick_detections_are_described(tmp_path: Path, run: Run) -> None:
    source = picking(tmp_path / "net.onnx", "TopK")
    done = run("info", source)
    assert done.code == 1 and "node 'choice' (TopK) picks detections" in done.out
    refused(run("convert", source, "-o", tmp_path / "m.safetensors"), "(nms=False, end2end=False)")
