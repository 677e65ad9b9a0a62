"""`sparsedet info`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run, refused

import sparsedet
from sparsedet.choices import DEFAULT_MODEL
from sparsedet.cli.forecast import forecast_lines
from sparsedet.detector import embedded_model
from sparsedet.model.file import save_model, tensor_shapes
from sparsedet.model.graph import IMAGE, Conv, Graph, Normalise, Operation, Shape
from sparsedet.model.presets import preset

PUBLISHED = ("52,792,416", "847.46", "363.04", "849.91", "364.21")


def test_info_of_the_published_preset(run: Run) -> None:
    outcome = run("info", "--preset", "r101-c4")
    assert outcome.code == 0 and outcome.err == ""
    for figure in PUBLISHED:
        assert figure in outcome.out
    rows = [line for line in outcome.out.splitlines() if re.match(r"(stem|res|rpn|box)\S*\.", line)]
    assert len(rows) == 104 + 3 + 2  # convolutions, RPN, predictors
    assert sum(int(line.split()[2].replace(",", "")) for line in rows) == 52_792_416
    one = run("info", "--preset", "r101-c4", "--rois", 1).out
    assert "363.04 GFLOPs by convolutions and fully connected layers with 1 regions" in one


@pytest.mark.parametrize("name", ["picodet-s", "r50half-c4"])
def test_models_of_the_package_have_names(run: Run, name: str) -> None:
    first, *_ = run("info", name).out.splitlines()
    assert first.startswith(str(embedded_model(name))), first
    refused(run("info", "picodet-m"), "picodet-m: No such file or directory")


def test_info_of_a_file_of_the_published_network(run: Run, tmp_path: Path) -> None:
    config = preset("r101-c4")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    tensors["rpn.conv.bias"][:] = 1
    path = tmp_path / "r101.safetensors"
    save_model(path, config, tensors, {"recipe": "zeros", "data": {"images": 0}})
    outcome = run("info", path)
    assert outcome.code == 0
    for text in (
        *PUBLISHED,
        "52,791,392 of 52,792,416 parameters are zero",
        "recipe: zeros",
        'data: {"images": 0}',
        f"{path.stat().st_size / 1e6:.2f} MB",
        "After pruning 0.00 of 847.46 GFLOPs remain",
    ):
        assert text in outcome.out


def test_info_counts_zeros_a_layer(run: Run, small_model: Path) -> None:
    out = run("info", small_model).out
    tensors = sparsedet.load_model(small_model).tensors
    total = sum(t.size for t in tensors.values())
    zeros = sum(int((t == 0).sum()) for t in tensors.values())
    assert f"{zeros:,} of {total:,} parameters are zero" in out
    assert f"sparsity {100 * zeros / total:.2f} % of all weights and biases" in out
    weight, bias = tensors["res3.0.conv2.weight"], tensors["res3.0.conv2.bias"]
    share = ((weight == 0).sum() + (bias == 0).sum()) / (weight.size + bias.size)
    (line,) = (line for line in out.splitlines() if line.startswith("res3.0.conv2 "))
    assert f"{weight.size + bias.size:,}" in line and f"{100 * share:.1f} %" in line
    assert "849.91" not in out  # those are another network's
    assert any(f"instruction set here: {isa}" in out for isa in sparsedet.available_isas())


def test_bad_info(run: Run, small_model: Path) -> None:
    refused(run("info", "--preset", "r102"), "'r102'", "r101-c4", code=2)
    refused(run("info", small_model, "--rois", 0), "--rois is 0", code=2)
    refused(run("info", small_model, "--preset", "r101-c4"), "not both", code=2)
    refused(run("info", "--preset", "r101-c4", "--operations"), "a preset has no weights", code=2)


@pytest.mark.parametrize(("named", "zeros"), [((), 40.0), (("r50half-c4",), 60.0)])
def test_embedded_models(run: Run, named: tuple[str, ...], zeros: float) -> None:
    out = run("info", *named).out
    found = re.search(r"sparsity (\d+\.\d+) % of all weights and biases", out)
    assert found and float(found[1]) >= zeros
    assert str(embedded_model(*(named or (DEFAULT_MODEL,)))) in out


def test_without_a_name_the_default_model_runs(run: Run) -> None:
    beach = Path(__file__).parents[2] / "examples" / "beach.jpg"
    plain = run("detect", beach, "--no-save", "--format", "json")
    named = run("detect", beach, "--no-save", "--format", "json", "--model", DEFAULT_MODEL)
    assert plain.code == 0 and '"person"' in plain.out
    assert plain.out == named.out


def test_info_forecasts_what_zeros_would_give(run: Run, small_model: Path) -> None:
    lines = run("info", small_model).out.splitlines()
    (share,) = (line for line in lines if line.startswith("prunable layers: "))
    assert re.search(r"\d+\.\d% of the parameters, \d+\.\d% of the multiplications; ", share)
    at = next(i for i, line in enumerate(lines) if line.startswith("forecast of one detection"))
    row = re.compile(r"  with(?:out)? .*? +(\d+\.\d+) s(?:   (\d+\.\d+)x)?")
    found = [match for line in lines[at + 1 :] if (match := row.fullmatch(line))]
    gains = [float(match[2] or 1) for match in found]
    assert len(gains) == 5 and gains[0] < gains[2] <= gains[3] <= gains[4]
    preset_lines = run("info", "--preset", "r101-c4").out
    assert "with 80% zeros" in preset_lines and "zeros of now" not in preset_lines


def test_info_of_a_foreign_checkpoint(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models.detection")
    model = models.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    path = tmp_path / "mobile.pth"
    torch.save(model.state_dict(), path)
    outcome = run("info", path)
    assert outcome.code == 0 and "torchvision-faster-rcnn-fpn" in outcome.out
    assert "batch norm eps 1e-05" in outcome.err
    assert "with 90% zeros" in outcome.out


def test_info_says_where_pruning_is_not_worth_it() -> None:
    image = Shape("image", 3, 64, 64)
    mean = Operation("n", (IMAGE,), Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    stem = Operation("a", ("n",), Conv(32, (3, 3), ("a",)))
    small = Operation("b", ("a",), Conv(2, (1, 1), ("b",), prunable=True))

    class Config:
        graph = Graph(image, (mean, stem, small))

    lines = forecast_lines(Config(), 0, None, "f32")  # type: ignore[arg-type]
    assert lines[-1].startswith("pruning is not worth it here")
