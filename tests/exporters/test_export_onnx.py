"""The exported ONNX graph: valid by onnx's checker, and run by ONNX Runtime against the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import SMALL, assert_same_rows, edges_image
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.exporters.onnx import save_onnx, to_onnx
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import Tensors
from sparsedet.model.presets import PRESETS
from sparsedet.testing import calibrated_random_tensors

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def run(model: bytes, blob: NDArray[Any]) -> NDArray[Any]:
    """The rows of ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    (rows,) = session.run(["detections"], {port.name: blob})
    return np.asarray(rows)


def tiny(**changes: Any) -> tuple[ModelConfig, NDArray[np.uint8], Tensors]:
    config = replace(
        PRESETS["r50half-c4"], input_height=96, input_width=128, **{**SMALL, **changes}
    )
    image = edges_image(96, 128)
    return config, image, calibrated_random_tensors(config, 0.4, image)


@pytest.mark.parametrize("family", ["r101-c4", "r101-c4-detectron2", "r50half-c4"])
@pytest.mark.parametrize("input_size", [(160, 224), (113, 151)])
def test_equals_engine(family: str, input_size: tuple[int, int]) -> None:
    config = replace(
        PRESETS[family], input_height=input_size[0], input_width=input_size[1], **SMALL
    )
    image = edges_image(*input_size)
    tensors = calibrated_random_tensors(config, 0.4, image)
    ours = Engine(config, tensors).run(image)
    model = to_onnx(config, tensors)
    onnx.checker.check_model(model, full_check=True)
    rows = run(model.SerializeToString(), image.transpose(2, 0, 1)[None].astype(np.float32))
    assert rows.shape == (1, 1, config.max_detections, 7)
    theirs = rows[0, 0][rows[0, 0, :, 0] >= 0]
    assert (rows[0, 0, len(theirs) :] == [-1, 0, 0, 0, 0, 0, 0]).all()
    assert (np.diff(theirs[:, 2]) <= 0).all()
    assert_same_rows(ours, theirs)


def test_nhwc_form() -> None:
    config, image, tensors = tiny()
    nhwc = image[None].astype(np.float32)
    model = to_onnx(config, tensors, layout="NHWC")
    assert [i.name for i in model.graph.input] == ["image"]
    first = run(model.SerializeToString(), nhwc)
    second = run(
        to_onnx(config, tensors).SerializeToString(),
        np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2)),
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "options",
    [
        {"hoist": True},
        {"dtype": "float16"},
        {"rows": "2d"},
        {"image_info": True},
        {"dynamic_batch": True},
        {"layout": "NHWC", "hoist": True, "dtype": "float16", "rows": "2d", "dynamic_batch": True},
    ],
)
def test_forms(options: dict[str, Any]) -> None:
    config, image, tensors = tiny()
    tensors = {
        k: v.astype(np.float16).astype(np.float32) if k.endswith("weight") else v
        for k, v in tensors.items()
    }
    nhwc = options.get("layout") == "NHWC"
    blob = image[None].astype(np.float32)
    given = {"image" if nhwc else "input": blob if nhwc else blob.transpose(0, 3, 1, 2)}
    if options.get("image_info"):
        given["image_info"] = np.array([[96, 128, 1]], dtype=np.float32)
    model = to_onnx(config, tensors, **options)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(given)
    (rows,) = session.run(["detections"], given)
    assert rows.shape == ((100, 7) if options.get("rows") == "2d" else (1, 1, 100, 7))
    ours = Engine(config, tensors).run(image)
    theirs = rows.reshape(-1, 7)[rows.reshape(-1, 7)[:, 0] >= 0]
    assert len(ours) == len(theirs) >= 20
    order = [np.lexsort((r[:, 3].round(3), r[:, 1], -r[:, 2].round(4))) for r in (ours, theirs)]
    np.testing.assert_allclose(theirs[order[1]], ours[order[0]], atol=2e-4)
    if options.get("dynamic_batch"):
        two = {name: np.concatenate([value, value]) for name, value in given.items()}
        with pytest.raises(Exception, match="reshape"):
            session.run(["detections"], two)
    if options.get("dtype") == "float16":
        full = to_onnx(config, tensors).SerializeToString()
        assert len(data) < 0.62 * len(full)


def test_metadata() -> None:
    config, _, tensors = tiny()
    info = {p.key: p.value for p in to_onnx(config, tensors).metadata_props}
    labels = info["model_info labels"].split()
    assert labels[:4] == ["background", "person", "bicycle", "car"] and len(labels) == 81
    assert "traffic_light" in labels
    assert info["model_info model_type"] == "SSD"
    assert info["model_info resize_type"] == "fit_to_window"
    assert ModelConfig.from_dict(json.loads(info["sparsedet config"])) == config


def test_nothing_detected_is_all_padding() -> None:
    config, image, tensors = tiny(score_threshold=1.0)
    blob = image.transpose(2, 0, 1)[None].astype(np.float32)
    rows = run(to_onnx(config, tensors).SerializeToString(), blob)
    assert (rows[0, 0] == [-1, 0, 0, 0, 0, 0, 0]).all()


def test_save_refuses_to_overwrite(tmp_path: Path) -> None:
    config, _, tensors = tiny()
    path = tmp_path / "model.onnx"
    save_onnx(path, config, tensors)
    (output,) = onnx.load(path).graph.output
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [1, 1, 100, 7]
    with pytest.raises(InputError, match=r"model\.onnx: exists already"):
        save_onnx(path, config, tensors)
    save_onnx(path, config, tensors, overwrite=True)
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        save_onnx(tmp_path / "model.xml", config, tensors)
