"""`sparsedet prune` of networks of all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from helpers.any_network import file_of, photograph
from helpers.commands import Run, refused

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
