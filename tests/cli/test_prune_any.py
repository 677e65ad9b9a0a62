"""`sparsedet prune` of networks of all kinds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from helpers.any_network import file_of, photograph
from helpers.commands import Run, refused, tree

from sparsedet.model.checkpoint import checkpoints
from sparsedet.model.file import load_file
from sparsedet.model.network import NetworkConfig, graph_of


@pytest.mark.parametrize("kind", ["yolox", "classifier"])
def test_the_command_prunes_an_onnx_file(kind: str, tmp_path: Path, run: Run) -> None:
    source = file_of(kind, tmp_path)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(12):
        cv2.imwrite(str(folder / f"{seed}.png"), photograph(seed))
    out = tmp_path / "out"
    words = ["prune", source, "--images", folder, "--sparsity", "0.4", "--output", out]
    words += ["--calibration-images", "12", "--threads", "1"]
    said = run(*words).out
    assert "photographs that nothing was fitted to" in said and "ms dense" in said
    saved, report = (
        load_file(out / "model.safetensors"),
        json.loads((out / "report.json").read_text()),
    )
    layers = graph_of(saved.config).layers
    zeros = sum(int((saved.tensors[f"{layer.name}.weight"] == 0).sum()) for layer in layers)
    assert zeros >= 0.4 * report["parameters"] and report["zeros"] >= zeros
    cost = report["cost"]
    compared = "classes" if isinstance(saved.config, NetworkConfig) else "detections"
    assert cost["compared"] == compared and cost["images"] == 1 and 0 <= cost["agreement"] <= 1
    assert set(cost["milliseconds"]) >= {"dense", "pruned"}
    assert saved.provenance["source"]["name"] == source.name
    refused(run(*words), "exists already")


def test_what_the_command_refuses(tmp_path: Path, run: Run) -> None:
    source = file_of("classifier", tmp_path)
    words = ["prune", source, "--images", tmp_path, "--output", tmp_path / "out"]
    refused(run(*words, "--sparsity", "0.5"), "holds no images")
    cv2.imwrite(str(tmp_path / "0.png"), photograph(0))
    refused(run(*words, "--sparsity", "0.5"), "holds 1 images")
    cv2.imwrite(str(tmp_path / "1.png"), photograph(1))
    few = ["--calibration-images", "2"]
    refused(run(*words, *few, "--sparsity", "0.99"), "needs")
    refused(run(*words, *few, "--sparsity", "0.3", "--exclude", "zzz"), "no such layer")
    refused(
        run(*words, *few, "--sparsity", "0.3", "--annotations", "a.json"),
        "--annotations is for detectors",
        code=2,
    )
    refused(run(*words, "--init", source), "two models", code=2)
    refused(run("prune", "--images", tmp_path, "--output", tmp_path / "out"), "MODEL", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_torch_thread")
def test_a_run_that_was_killed_goes_on(tmp_path: Path, run: Run) -> None:
    """A real process, killed by the system while it prunes."""
    source, folder = file_of("yolox", tmp_path), tmp_path / "photographs"
    folder.mkdir()
    for seed in range(16):
        cv2.imwrite(str(folder / f"{seed}.png"), photograph(seed))

    def words(output: str, *more: str) -> list[str]:
        flags = ["--images", str(folder), "--sparsity", "0.4", "--calibration-images", "16"]
        flags += ["--threads", "1", "--no-compare", "--output", str(tmp_path / output)]
        return ["prune", str(source), *flags, *more]

    assert run(*words("whole")).code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsedet", *words("parts", "--checkpoint-minutes", "0")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not checkpoints(tmp_path / "parts"):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    refused(run(*words("parts")), "holds a run already; resume it")
    assert run(*words("parts", "--resume")).code == 0
    whole, parts = tree(tmp_path / "whole"), tree(tmp_path / "parts")
    assert parts == whole and set(whole) == {"model.safetensors", "report.json", "report.png"}


def test_a_pruning_goes_on_with_a_model_alone(run: Run, tmp_path: Path) -> None:
    words = ["--method", "reconstruct", "--images", tmp_path, "--sparsity", 0.5, "--resume"]
    assert "MODEL is needed: the network to prune" in run("prune", *words).err
