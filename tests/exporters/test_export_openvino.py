"""The exported graph, run by OpenVINO, against the engine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import SMALL, assert_same_rows, edges_image
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.exporters.openvino import save_openvino
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import Tensors
from sparsedet.model.presets import PRESETS
from sparsedet.testing import calibrated_random_tensors

ov = pytest.importorskip("openvino")

# A process of its own: once OpenVINO's CPU plugin is loaded, a signal that Python handles can end
# the process by a segmentation fault, and other tests send themselves signals.
RUN = """
import sys, numpy, openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.savez(sys.argv[3], name=compiled.input(0).any_name, rows=compiled(numpy.load(sys.argv[2]))[0])
"""


def run_openvino(
    folder: Path, config: ModelConfig, tensors: Tensors, blob: NDArray[Any], layout: str = "NCHW"
) -> tuple[str, NDArray[Any]]:
    """Name of the input and the rows."""
    model, given, got = (folder / f"{layout}{ending}" for ending in (".xml", ".npy", ".npz"))
    save_openvino(model, config, tensors, layout=layout)
    np.save(given, blob)
    subprocess.run([sys.executable, "-c", RUN, str(model), str(given), str(got)], check=True)
    with np.load(got) as content:
        return str(content["name"]), content["rows"]


@pytest.mark.parametrize("family", ["r101-c4", "r101-c4-detectron2", "r50half-c4"])
@pytest.mark.parametrize("input_size", [(160, 224), (113, 151)])
def test_equals_engine(family: str, input_size: tuple[int, int], tmp_path: Path) -> None:
    config = replace(
        PRESETS[family], input_height=input_size[0], input_width=input_size[1], **SMALL
    )
    image = edges_image(*input_size)
    tensors = calibrated_random_tensors(config, 0.4, image)
    ours = Engine(config, tensors).run(image)
    blob = image.transpose(2, 0, 1)[None].astype(np.float32)
    _, rows = run_openvino(tmp_path, config, tensors, blob)
    assert rows.shape == (1, 1, config.max_detections, 7)
    theirs = rows[0, 0][rows[0, 0, :, 0] >= 0]
    assert (rows[0, 0, len(theirs) :] == [-1, 0, 0, 0, 0, 0, 0]).all()
    assert_same_rows(ours, theirs)


def test_nhwc_form(tmp_path: Path) -> None:
    config = replace(PRESETS["r50half-c4"], input_height=96, input_width=128, **SMALL)
    image = edges_image(96, 128)
    tensors = calibrated_random_tensors(config, 0.4, image)
    nhwc = image[None].astype(np.float32)
    nchw = np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2))
    name, first = run_openvino(tmp_path, config, tensors, nchw)
    other_name, second = run_openvino(tmp_path, config, tensors, nhwc, "NHWC")
    assert (name, other_name) == ("input", "image")
    np.testing.assert_array_equal(first, second)


def test_nothing_detected_is_all_padding(tmp_path: Path) -> None:
    config = replace(
        PRESETS["r50half-c4"], input_height=96, input_width=128, score_threshold=1.0, **SMALL
    )
    image = edges_image(96, 128)
    blob = image.transpose(2, 0, 1)[None].astype(np.float32)
    _, rows = run_openvino(tmp_path, config, calibrated_random_tensors(config, 0.4, image), blob)
    assert (rows[0, 0] == [-1, 0, 0, 0, 0, 0, 0]).all()


def test_save_refuses_to_overwrite(tmp_path: Path) -> None:
    config = replace(PRESETS["r50half-c4"], input_height=96, input_width=128, **SMALL)
    tensors = calibrated_random_tensors(config, 0.4, edges_image(96, 128))
    path = tmp_path / "model.xml"
    save_openvino(path, config, tensors)
    assert ov.Core().read_model(path).output(0).shape == ov.Shape([1, 1, 100, 7])
    with pytest.raises(InputError, match=r"model\.xml: exists already"):
        save_openvino(path, config, tensors)
    with pytest.raises(InputError, match=r"ends in \.xml"):
        save_openvino(tmp_path / "model.onnx", config, tensors)
