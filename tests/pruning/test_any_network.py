"""Pruning at once of what comes from ONNX: detectors without anchors, classifiers, raw outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from helpers.any_network import KINDS, file_of, photograph  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sparsedet.importers import load_trained  # noqa: E402
from sparsedet.model.file import AnyFile  # noqa: E402
from sparsedet.model.graph import Conv  # noqa: E402
from sparsedet.pruning.calibration import calibration_input  # noqa: E402
from sparsedet.pruning.network_module import as_module  # noqa: E402
from sparsedet.pruning.one_shot import OneShotConfig, prune_once  # noqa: E402
from sparsedet.pruning.positions import patches, random_positions  # noqa: E402
from sparsedet.pruning.predictions import divergence  # noqa: E402
from sparsedet.pruning.reading import read_outputs, read_predictions  # noqa: E402
from sparsedet.pruning.selection import to_matrix  # noqa: E402
from sparsedet.pruning.sensitivity import ANCHORS, REGIONS, output_importance  # noqa: E402


@pytest.fixture(scope="module", params=KINDS)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AnyFile:
    path = file_of(request.param, tmp_path_factory.mktemp(request.param))
    from sparsedet.importers.onnx.detectors import Preprocessing

    # Pixels of mean 0, as the network's weights expect them; what a detector has, it has.
    stated = None
    if request.param in ("classifier", "sigmoids", "raw"):
        stated = Preprocessing(order="rgb", mean=(128.0,) * 3, std=(64.0,) * 3)
    return load_trained(path, stated=stated)[0]


def inputs_of(file: AnyFile, count: int, first: int = 0) -> list[Tensor]:
    return [calibration_input(photograph(first + i), file.config).float() for i in range(count)]


def test_reconstruction_beats_magnitude(dense: AnyFile) -> None:
    model = as_module(dense)
    names = [layer.name for layer in model.graph.layers if layer.prunable]
    assert len(names) >= 3
    settings = OneShotConfig(sparsity=0.3, allocation="uniform")
    outputs = read_outputs(dense.config)
    report = prune_once(model, inputs_of(dense, 30), settings, held_out=6, outputs=outputs)
    assert [layer.name for layer in report.layers] == names
    assert report.zeros >= 0.3 * report.parameters
    assert all(0 < layer.error < layer.magnitude_error for layer in report.layers)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.slow
def test_importance_predicts_how_far_noise_moves_the_predictions(dense: AnyFile) -> None:
    """Half of the noise's variance times the importance is the divergence, to second order."""
    model, outputs = as_module(dense), read_outputs(dense.config)
    (image,) = inputs_of(dense, 1)
    draws = [output_importance(model, [image], outputs, seed=s) for s in range(150)]
    layer = [layer for layer in model.graph.layers if layer.prunable][-2]
    importance = torch.stack([draw[layer.name] for draw in draws]).mean(dim=0)
    with torch.no_grad():
        plain = read_predictions(model, image, outputs, best=ANCHORS, regions=REGIONS)
        size = 0.02 * float(plain.before_activation[layer.operation.name].std())
        conv, generator = model.layers[layer.name], torch.Generator().manual_seed(0)
        exact = conv.before_activation

        def noisy(x: Tensor, residual: Tensor | None = None) -> Tensor:
            out = exact(x, residual)
            noise: Tensor = size * torch.randn(out.shape, generator=generator)
            return noise.add_(out)

        conv.before_activation = noisy  # type: ignore[method-assign]
        moved = []
        for _ in range(80):
            after = read_predictions(
                model, image, outputs, best=ANCHORS, regions=REGIONS, choices=plain.choices
            )
            # `divergence` takes the mean over objects where most rows are background.
            rows = 1.0
            first = plain.predictions[0]
            if first.objects:
                objects = max(1.0, float(first.values.sigmoid().amax(dim=1).sum()))
                rows = objects / first.rows
            moved.append(rows * float(divergence(plain.predictions, after.predictions)))
    measured = sum(moved) / len(moved)
    assert float(0.5 * size**2 * importance.sum()) == pytest.approx(measured, rel=0.2)


def test_networks_that_agree_do_not_diverge(dense: AnyFile) -> None:
    model, outputs = as_module(dense), read_outputs(dense.config)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for conv in other.layers.values():
            conv.weight.mul_(1.05)
        for image in inputs_of(dense, 2):
            target = read_predictions(model, image, outputs, best=None, regions=REGIONS)
            pair = [
                read_predictions(
                    m, image, outputs, best=None, regions=REGIONS, choices=target.choices
                ).predictions
                for m in (model, other)
            ]
            assert abs(float(divergence(target.predictions, pair[0]))) < 1e-6
            assert float(divergence(target.predictions, pair[1])) > 1e-5


def test_the_forms_of_outputs(tmp_path: Path) -> None:
    forms = {
        kind: [form for _, form in read_outputs(load_trained(file_of(kind, tmp_path))[0].config)]
        for kind in KINDS
    }
    assert forms == {
        "yolox": [],
        "picodet": [],
        "classifier": ["categorical"],
        "sigmoids": ["binary"],
        "raw": ["real"],
    }


def test_patches_are_what_any_convolution_reads() -> None:
    """Against torch's own unfolding, with dilation, uneven padding and oblong kernels."""
    from sparsedet.model.graph import Layer, Operation, Shape

    for kernel, stride, padding, dilation in (
        ((3, 3), 1, (2, 2, 2, 2), 2),
        ((1, 5), 2, (0, 1, 0, 3), 1),
        ((3, 2), 2, (1, 0, 0, 1), 1),
    ):
        conv = Conv(4, kernel, ("x",), stride, padding, dilation)
        shape = Shape("map", 3, 9, 11)
        layer = Layer("x", Operation("x", ("y",), conv), conv, shape, conv.output([shape]))
        x = torch.randn(2, 3, 9, 11)
        top, left, bottom, right = padding
        padded = F.pad(x, (left, right, top, bottom))
        unfolded = F.unfold(padded, kernel, dilation, 0, stride)  # [2, 3 * taps, positions]
        weight = torch.randn(4, 3, *kernel)
        expected = (weight.view(4, -1) @ unfolded).permute(0, 2, 1).reshape(-1, 4)
        assert expected.shape[0] == 2 * layer.output.height * layer.output.width
        positions = random_positions(layer, x, 10**6, torch.Generator())
        found = patches(layer, x, positions) @ to_matrix(weight).T
        place = positions[0] * layer.output.height + positions[1]
        place = place * layer.output.width + positions[2]
        assert torch.allclose(found, expected[place], atol=1e-5)
