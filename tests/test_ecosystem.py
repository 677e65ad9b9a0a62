"""Exported models in OpenVINO's own tools, unchanged: Model API and benchmark_app.

Each in a process of its own, see test_export_openvino.py. docs/ecosystem.md has what was measured
with many photographs, and the tools that no package index has.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparsedet.exporters.openvino import save_openvino
from sparsedet.weights import load_model

ROOT = Path(__file__).parent.parent
PHOTOS = [ROOT / "examples" / "beach.jpg", ROOT / "examples" / "frisbee.jpg"]


def test_model_api_finds_what_we_find() -> None:
    pytest.importorskip("openvino")
    if importlib.util.find_spec("model_api") is None:
        pytest.skip("openvino-model-api is not installed")
    script = ROOT / "benchmarks" / "ecosystem.py"
    command = [sys.executable, script, *PHOTOS, "--threads", 1, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    # On the same canvas all is equal; Model API gives corners in whole pixels.
    same = result["same canvas"]
    assert same["pairs"] >= 10 and same["alone"] == 0
    assert same["score_most"] < 1e-3 and same["pixels_most"] <= 0.51
    # Its own resizing moves pixels by one grey level, and the canvas by up to one pixel.
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
        [sys.executable, "-c", program, "-m", str(graph), "-i", str(photo), "-d", "CPU", "-niter",
         "2", "-hint", "none", "-nthreads", "1", "-nstreams", "1", "-nireq", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shape = "[1,64,96,3]" if layout == "NHWC" else "[1,3,64,96]"
    assert shape in done.stdout and f"[1,1,{model.config.max_detections},7]" in done.stdout
    # It takes the input for a picture, fills it with the photograph and not with noise.
    assert "Prepare image" in done.stdout and "Throughput" in done.stdout
