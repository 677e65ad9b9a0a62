"""The benchmark of pruning methods on a tiny model: from files to JSON, tables and chart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")

import bench_pruning
import cv2
from helpers.small import picture
from helpers.tiny_training import TINY

from sparsedet.files import sha256_of
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.file import save_model
from sparsedet.testing import calibrated_random_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


def test_from_files_to_documents(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network_input, _ = to_network_input(picture(), TINY.input_height, TINY.input_width)
    for seed, name in enumerate(("dense", "on", "sparse")):
        tensors = calibrated_random_tensors(TINY, 0.4 * (name == "sparse"), network_input, seed)
        (tmp_path / name).mkdir()
        save_model(tmp_path / name / "model.safetensors", TINY, tensors, {})
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    for seed in range(6):
        cv2.imwrite(str(calibration / f"{seed}.png"), picture(seed=seed))
    document = tmp_path / "pruning.md"
    empty = "\n<!-- end -->\n".join([*map(bench_pruning.mark, ("pruning", "layer")), ""])
    document.write_text(empty)
    command = [
        "--annotations",
        files[0],
        "--images",
        files[1],
        "--calibration",
        calibration,
        "--dense",
        tmp_path / "dense",
        "--sparsities",
        0.5,
        "--calibration-images",
        6,
        "--resamples",
        20,
        "--gradual",
        f"0.4={tmp_path / 'sparse'}",
        "--tuned",
        f"0.4={tmp_path / 'sparse'}",
        "--dense-continued",
        tmp_path / "on",
        "--work",
        tmp_path / "work",
        "--json",
        tmp_path / "b.json",
        "--document",
        document,
        "--chart",
        tmp_path / "b.svg",
        "--threads",
        1,
    ]
    bench_pruning.main(list(map(str, command)))
    assert capsys.readouterr().out.count("pruning to 0.5") == 2
    result = json.loads((tmp_path / "b.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {"magnitude", "reconstruct", "tuned", "gradual"}
    for method, row in rows.items():
        base, difference = result["baselines"][method], row["difference"]["AP"]
        folder = "on" if method in ("tuned", "gradual") else "dense"
        assert base["sha256"] == sha256_of(tmp_path / folder / "model.safetensors")
        # The bootstrap and pycocotools give the same AP.
        assert difference["a"] == pytest.approx(base["ap"], abs=1e-9)
        assert difference["b"] == pytest.approx(row["ap"], abs=1e-9)
        assert difference["low"] <= difference["high"]
    assert rows["reconstruct"]["sparsity"] >= 0.5 > rows["gradual"]["sparsity"]
    (check,) = result["layers"]
    errors = check["errors"].values()
    assert check["better"] == sum(a < b for a, b in errors) and check["layers"] == len(errors)
    text = document.read_text()
    assert text.count("one-shot, ") == 3 and f"{check['better']} of {check['layers']}" in text
    assert "gradual, fine-tuned" in text and "dense, trained further" in text
    assert (tmp_path / "b.svg").read_text().lstrip().startswith("<?xml")

    # Nothing is done twice; other calibration images make other models.
    bench_pruning.main(list(map(str, command)))
    printed = capsys.readouterr().out
    assert "pruning to" not in printed and "scoring" not in printed
    cv2.imwrite(str(calibration / "new.png"), picture(seed=9))
    bench_pruning.main(list(map(str, command)))
    assert "pruning to 0.5 by magnitude" in capsys.readouterr().out


def test_gradual_needs_its_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_pruning.main(
            ["--annotations", "a", "--images", "b", "--calibration", "c", "--gradual", "0.6=x"]
        )
    assert "--dense-continued" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_pruning.main(
            ["--annotations", "a", "--images", "b", "--calibration", "c", "--gradual", "0.6"]
        )
