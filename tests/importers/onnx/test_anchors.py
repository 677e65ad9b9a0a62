"""Detectors with anchors in ONNX files, shaped as YOLOv5: decoded or not, or as plain maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from helpers.onnx_detectors import (
    ANCHORS,
    BOTH,
    CELLS,
    CLASSES,
    DECODED,
    EACH,
    MAPS,
    SIZE,
    kept,
    yolov5,
)
from helpers.onnx_files import F32, images, run_onnx

from sparsedet import Detector, InputError, Model, save_model
from sparsedet.engine import Engine, Precision
from sparsedet.importers.onnx import load_onnx, load_onnx_detector
from sparsedet.importers.onnx.detectors import Preprocessing
from sparsedet.importers.tensor_source import Imported
from sparsedet.model.graph import CellOutput, Slice


def stated(**values: Any) -> Preprocessing:
    return Preprocessing(order="bgr", std=(1.0, 1.0, 1.0), score_threshold=0.05, **values)


def corners(decoded: F32) -> tuple[F32, F32]:
    """Boxes [N, 4] and scores [N, C] of decoded outputs [N, 5 + C]."""
    centre, half = decoded[:, :2], decoded[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], 1)
    return boxes, decoded[:, 4:5] * decoded[:, 5:]


def pixels_of(batch: F32) -> Any:
    return np.ascontiguousarray(batch[0].transpose(1, 2, 0)).astype(np.uint8)


@pytest.mark.parametrize("form", [DECODED, BOTH, CELLS, MAPS])
def test_each_form_gives_what_the_decoded_outputs_say(tmp_path: Path, form: str) -> None:
    anchors = ANCHORS if form in (CELLS, MAPS) else None
    path = yolov5(tmp_path / "a.onnx", form)
    imported = load_onnx_detector(path, stated=stated(anchors=anchors))
    output = imported.config.graph.only(CellOutput)[1]  # type: ignore[union-attr]
    assert (output.boxes, output.objectness, output.num_classes) == ("anchor", True, CLASSES)
    assert output.strides == (8,) * 3 + (16,) * 3 + (32,) * 3
    assert output.anchors == ANCHORS  # of a decoded file, too, they are found exactly
    save_model(tmp_path / "m.safetensors", imported.config, imported.tensors, {}, dtype="float32")
    detector = Detector.load(tmp_path / "m.safetensors", threads=1)
    batch = (images((SIZE, SIZE), 1) * 40 + 128).clip(0, 255).round()
    decoded = run_onnx(yolov5(tmp_path / "b.onnx", DECODED), batch)["y"][0]
    expected = kept(*corners(decoded), 0.05, 0.65)
    rows = detector.engine.run(pixels_of(batch))
    assert len(rows) == min(len(expected), 300) > 20
    assert len({label for label, _, _ in expected}) == CLASSES
    for row, (label, score, box) in zip(rows, expected, strict=False):
        assert row[1] == label and abs(row[2] - score) < 1e-5
        assert np.abs(row[3:] * SIZE - box.clip(0, SIZE)).max() < 1e-3


def test_slices_of_the_predictors_cost_no_time(tmp_path: Path) -> None:
    imported = load_onnx_detector(yolov5(tmp_path / "a.onnx", DECODED))
    graph = imported.config.graph  # type: ignore[union-attr]
    assert len(list(graph.of_kind(Slice))) == 27
    precisions: tuple[Precision, ...] = ("f32", "bf16")
    for precision in precisions:
        detector = Detector.load(tmp_path / "a.onnx", threads=1, precision=precision)
        engine = detector.engine
        assert isinstance(engine, Engine)
        engine.run(np.zeros((SIZE, SIZE, 3), np.uint8))
        assert engine.native.copied_bytes == 0


def test_torch_and_the_exported_graphs_agree(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from sparsedet.backends import build_backend
    from sparsedet.model.file import ModelFile

    path = yolov5(tmp_path / "a.onnx", DECODED)
    imported = load_onnx_detector(path, stated=stated())
    model = ModelFile(imported.config, imported.tensors, {}, "float32")
    pixels = pixels_of((images((SIZE, SIZE), 1) * 40 + 128).clip(0, 255))
    ours = build_backend("native", model, threads=1, precision="f32").run(pixels)
    assert len(ours) > 20
    for name in ("torch", "onnxruntime", "openvino"):
        pytest.importorskip(name)
        theirs = build_backend(name, model, threads=1, precision="f32").run(pixels)
        assert (ours[:, 1] == theirs[:, 1]).all(), name
        assert np.abs(ours[:, 2:] - theirs[:, 2:]).max() < 1e-5, name


def test_anchors_that_are_not_in_the_file_are_asked_for(tmp_path: Path) -> None:
    cells = yolov5(tmp_path / "cells.onnx", CELLS)
    with pytest.raises(InputError, match=r"state them, as --anchors .* or .* by --raw") as error:
        load_onnx(cells)
    assert "3 anchors of each of 3 levels" in str(error.value) and "\n" not in str(error.value)
    assert next(iter(Model.load(cells).config.output_shapes.values())) == (1, 3, 8, 8, EACH)
    with pytest.raises(InputError, match="--anchors are for YOLOv5"):
        load_onnx(cells, stated=stated(anchors=ANCHORS[:6]))
    # Plain maps may be anything: without anchors they stay what they are.
    assert not isinstance(load_onnx(yolov5(tmp_path / "maps.onnx", MAPS)), Imported)


def test_anchors_that_contradict_the_file(tmp_path: Path) -> None:
    path = yolov5(tmp_path / "a.onnx", DECODED)
    assert isinstance(load_onnx(path, stated=stated(anchors=ANCHORS)), Imported)
    with pytest.raises(InputError, match=r"are others than those in the file \(4x31.5,7x29.25,"):
        load_onnx(path, stated=stated(anchors=ANCHORS[::-1]))


def test_other_decodings_are_not_taken_for_yolov5(tmp_path: Path) -> None:
    path = yolov5(tmp_path / "a.onnx", DECODED, scale=1.05)
    assert not isinstance(load_onnx(path), Imported)
