"""Exported models in OpenVINO's own tools: Model API, benchmark_app, the calls of two C++ programs.

Each runs in its own process, see test_export_openvino.py. docs/ecosystem.md has the figures for
many images, and the tools that are not on a package index.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from helpers.small import picture

from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.file import load_model

ROOT = Path(__file__).parents[2]
IMAGES = [ROOT / "examples" / "beach.jpg", ROOT / "examples" / "frisbee.jpg"]


def test_model_api_gives_our_detections() -> None:
    pytest.importorskip("openvino")
    if importlib.util.find_spec("model_api") is None:
        pytest.skip("openvino-model-api is not installed")
    script = ROOT / "benchmarks" / "ecosystem.py"
    command = [sys.executable, script, *IMAGES, "--threads", 1, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    # On the same network input all is equal; Model API gives corners in whole pixels.
    same = result["same network input"]
    assert same["pairs"] >= 10 and same["alone"] == 0
    assert same["score_most"] < 1e-3 and same["pixels_most"] <= 0.51
    # Its own resizing changes values by one grey level, and positions by up to one pixel.
    own = result["own resizing"]
    assert own["pairs"] >= 4 * own["alone"]
    assert own["score_median"] < 0.05 and own["pixels_median"] < 5


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_benchmark_app_runs_it(layout: str, small_model: Path, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = load_model(small_model)
    graph = tmp_path / "model.xml"
    save_openvino(graph, model.config, model.tensors, layout=layout)
    program = "import sys; from openvino.tools.benchmark.main import main; sys.exit(main())"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "-m",
            str(graph),
            "-i",
            str(photo),
            "-d",
            "CPU",
            "-niter",
            "2",
            "-hint",
            "none",
            "-nthreads",
            "1",
            "-nstreams",
            "1",
            "-nireq",
            "1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shape = "[1,64,96,3]" if layout == "NHWC" else "[1,3,64,96]"
    assert shape in done.stdout and f"[1,1,{model.config.max_detections},7]" in done.stdout
    # It knows that the input is an image: it fills it with the file and not with noise.
    assert "Prepare image" in done.stdout and "Throughput" in done.stdout


READERS = """
import sys
import cv2
import numpy as np
import openvino as ov
from openvino import layout_helpers as layouts
from openvino.preprocess import PrePostProcessor

core, image = ov.Core(), cv2.imread(sys.argv[1])


def run(model, network_input):
    arrays = [network_input if len(p.shape) == 4 else np.array([[64, 96, 1]], np.float32)
              for p in model.inputs]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return np.array(core.compile_model(model, "CPU", settings)(arrays)[0])


def demo(model):
    steps = PrePostProcessor(model)
    for port in model.inputs:
        name, layout = port.any_name, layouts.get_layout(port)
        if len(port.shape) == 4:
            assert port.shape[layouts.width_idx(layout)] == 96
            assert port.shape[layouts.height_idx(layout)] == 64
            steps.input(name).tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
            steps.input(name).model().set_layout(layout)
        else:
            assert len(port.shape) == 2
            steps.input(name).tensor().set_element_type(ov.Type.f32)
    model = steps.build()
    steps = PrePostProcessor(model)
    steps.output().tensor().set_element_type(ov.Type.f32).set_layout(ov.Layout("NCHW"))
    model = steps.build()
    ov.set_batch(model, 1)
    return run(model, image[None])


def server(model):
    steps = PrePostProcessor(model)
    for port in model.inputs:
        layout = layouts.get_layout(port)
        layout = ov.Layout("N...") if layout.empty else layout
        steps.input(port.any_name).model().set_layout(layout)
    for port in model.outputs:
        steps.output(port.any_name).model().set_layout(ov.Layout("N..."))
    info = model.get_rt_info("model_info").value
    assert isinstance(info, dict) and int(info["pad_value"]) == 0
    assert info["reverse_input_channels"] in ("YES", "NO")  # else older releases throw
    return run(steps.build(), network_input)


for path in sys.argv[2:]:
    model = core.read_model(path)
    network_input = image[None].astype(np.float32)
    if model.inputs[0].shape[3] != 3:
        network_input = network_input.transpose(0, 3, 1, 2).copy()
    plain = run(model, network_input)
    assert (plain.reshape(-1, 7)[:, 0] == 0).sum() >= 10
    assert np.array_equal(server(core.read_model(path)), plain)
    if len(plain.shape) == 4:
        assert np.array_equal(demo(core.read_model(path)), plain)
"""
"""The calls of OpenVINO's core that Open Model Zoo's C++ demo (`ModelSSD`) and Model Server make
after they have read a model."""


def test_calls_of_the_c_plus_plus_readers(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = load_model(small_model)
    graphs: list[Path] = []
    network_input, _ = to_network_input(picture(), 64, 96)
    cv2.imwrite(str(tmp_path / "network_input.png"), network_input)
    forms: tuple[dict[str, Any], ...] = ({}, {"layout": "NHWC", "image_info": True}, {"rows": "2d"})
    for form in forms:
        graphs.append(tmp_path / f"{len(graphs)}.xml")
        save_openvino(graphs[-1], model.config, model.tensors, **form)
    command = [sys.executable, "-c", READERS, tmp_path / "network_input.png", *graphs]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
