"""One-shot pruning: exact counts, patterns, held-out errors, repeatability, refusals."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from helpers.small import SMALL, picture  # noqa: E402
from torch import Tensor  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.images.letterbox import to_network_input  # noqa: E402
from sparsedet.model.c4 import build_graph  # noqa: E402
from sparsedet.model.file import load_model, save_model  # noqa: E402
from sparsedet.model.graph import IMAGE  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.pruning.allocation import LEAST_DENSITY, Allocation, erk_zeros, prunable_layers  # noqa: E402
from sparsedet.pruning.calibration import calibration_input  # noqa: E402
from sparsedet.pruning.one_shot import (  # noqa: E402
    Method,
    OneShotConfig,
    plan_zeros,
    prune_once,
)
from sparsedet.pruning.positions import patches, random_positions  # noqa: E402
from sparsedet.pruning.selection import to_matrix  # noqa: E402
from sparsedet.testing import calibrated_random_tensors  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

CONFIG = replace(
    SMALL,
    name="oneshot",
    bottleneck_channels=(8, 12, 16, 20),
    stage_channels=(16, 24, 32, 40),
    rpn_channels=24,
)


@pytest.fixture(scope="module")
def dense() -> FasterRCNN:
    network_input, _ = to_network_input(picture(), CONFIG.input_height, CONFIG.input_width)
    made = FasterRCNN(CONFIG)
    made.load_tensors(calibrated_random_tensors(CONFIG, 0.0, network_input))
    return made


@pytest.fixture(scope="module")
def network_inputs(dense: FasterRCNN) -> list[Tensor]:
    return [calibration_input(picture(seed=seed), dense.config) for seed in range(6)]


def pruned(dense: FasterRCNN, network_inputs: list[Tensor], **settings: Any) -> tuple[Any, Any]:
    made = copy.deepcopy(dense)
    # deepcopy copies modules and the name table alike, sharing what they share.
    return made, prune_once(made, network_inputs, OneShotConfig(**settings), held_out=2)


@pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
def test_reconstruction_beats_magnitude_in_every_layer(
    dense: FasterRCNN, allocation: Allocation
) -> None:
    # 28 small images give 672 positions for the widest layer's 216 columns. With fewer positions
    # than columns reconstruction overfits the images, and loses to magnitude.
    many = [calibration_input(picture(seed=seed), dense.config) for seed in range(30)]
    _, report = pruned(dense, many, sparsity=0.6, allocation=allocation)
    assert {row.name for row in report.layers} == set(prunable_layers(dense.graph))
    assert all(0 < row.error < row.magnitude_error for row in report.layers)


@pytest.mark.parametrize("method", ["magnitude", "reconstruct"])
@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "2:4"])
def test_counts_and_patterns_are_exact(
    dense: FasterRCNN, network_inputs: list[Tensor], method: Method, pattern: str
) -> None:
    sparsity = None if pattern == "2:4" else 0.5
    made, report = pruned(dense, network_inputs, method=method, pattern=pattern, sparsity=sparsity)
    for row in report.layers:
        dead = to_matrix(made.layers[row.name].weight) == 0
        assert int(dead.sum()) == row.zeros
        zeros = dead.view(len(dead), -1, 4).sum(dim=2)
        if pattern == "1x4":
            assert ((zeros == 0) | (zeros == 4)).all()
        if pattern == "2:4":
            assert (zeros == 2).all()
    if sparsity is not None:
        assert sparsity <= report.sparsity < sparsity + 0.01


def test_channel_means_are_kept(dense: FasterRCNN, network_inputs: list[Tensor]) -> None:
    # The first pruned layer reads the same as before; all of its positions are sampled.
    made, _ = pruned(dense, network_inputs, method="magnitude", sparsity=0.6)
    layer = dense.graph.layer["res2.0.conv1"]
    generator, inputs = torch.Generator(), []
    for network_input in network_inputs[:4]:
        (pool,) = dense.run({IMAGE: network_input}, [layer.source])
        inputs.append(patches(layer, pool, random_positions(layer, pool, 10**6, generator)))
    x = torch.cat(inputs)
    means = [
        (x @ to_matrix(m.layers[layer.name].weight).T + m.layers[layer.name].bias).mean(0)
        for m in (dense, made)
    ]
    assert torch.allclose(*means, atol=1e-3)
    assert not torch.equal(dense.layers[layer.name].bias, made.layers[layer.name].bias)


def test_patches_are_what_the_convolution_reads(dense: FasterRCNN) -> None:
    for name in ("res3.0.conv1", "res3.0.conv2", "res4.0.shortcut"):
        conv = dense.layers[name]
        assert conv.bias is not None
        x = torch.randn(2, conv.layer.in_channels, 12, 10)
        positions = random_positions(conv.layer, x, 10**6, torch.Generator())
        outputs = patches(conv.layer, x, positions) @ to_matrix(conv.weight).T
        linear = replace(conv.layer.attributes, activation="none")
        plain = replace(conv.layer, attributes=linear)
        expected = conv.forward(x) if not conv.layer.relu else None
        if expected is None:
            twin = copy.deepcopy(conv)
            twin.layer = plain
            expected = twin(x)
        flat = (expected - conv.bias.view(-1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2)
        assert outputs.shape == flat.shape  # the same rows in another order
        assert torch.allclose(outputs.sort(dim=0).values, flat.sort(dim=0).values, atol=1e-5)


def test_repeatable(dense: FasterRCNN, network_inputs: list[Tensor]) -> None:
    first, a = pruned(dense, network_inputs, sparsity=0.7, allocation="erk")
    second, b = pruned(dense, network_inputs, sparsity=0.7, allocation="erk")
    assert a == b
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_the_target_counts_all_parameters_without_excluded_layers(
    dense: FasterRCNN, allocation: Allocation
) -> None:
    settings = OneShotConfig(sparsity=0.4, allocation=allocation, exclude=("rpn.conv",))
    weights = {name: conv.weight for name, conv in dense.layers.items()}
    zeros = plan_zeros(dense.graph, weights, settings)
    assert "rpn.conv" not in zeros
    excess = sum(zeros.values()) - 0.4 * dense.graph.parameters
    assert 0 <= excess < len(zeros) + 1


def test_erk_follows_its_formula(dense: FasterRCNN) -> None:
    layers = prunable_layers(dense.graph)
    shapes = dense.graph.layer
    kept = {n: shapes[n].weights - z for n, z in erk_zeros(dense.graph, layers, 0.6).items()}
    free = [n for n in layers if kept[n] < shapes[n].weights]
    factors = [
        kept[n] / (shapes[n].in_channels + shapes[n].out_channels + 2 * shapes[n].kernel)
        for n in free
    ]
    assert len(free) < len(layers)  # some would pass 1 and are dense
    assert max(factors) - min(factors) < 0.1


@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_the_cheapest_weights_are_pruned_wherever_they_are(dense: FasterRCNN, pattern: str) -> None:
    names = prunable_layers(dense.graph)
    generator = torch.Generator().manual_seed(0)
    weights = {name: dense.layers[name].weight.detach() for name in names}
    matrices = {name: to_matrix(weight) for name, weight in weights.items()}
    importance = {n: torch.rand(len(m), generator=generator) for n, m in matrices.items()}
    variances = {n: torch.rand(m.shape[1], generator=generator) for n, m in matrices.items()}
    importance["res3.0.conv2"] *= 100
    importance["res4.0.conv2"] *= 1e-6
    size = 4 if pattern == "1x4" else 1
    settings = OneShotConfig(sparsity=0.5, pattern=pattern)
    assert settings.allocation == "sensitivity"  # the default
    zeros = plan_zeros(dense.graph, weights, settings, importance, variances)
    assert 0 <= sum(zeros.values()) - 0.5 * dense.graph.parameters < size
    costs = {
        name: (matrix.square() * importance[name][:, None] * variances[name])
        .reshape(-1, size)
        .sum(dim=1)
        .sort()
        .values
        for name, matrix in matrices.items()
    }
    sparsities = {name: zeros[name] / matrix.numel() for name, matrix in matrices.items()}
    density = 1 - sum(zeros.values()) / sum(m.numel() for m in matrices.values())
    most = 1 - LEAST_DENSITY * density  # only the layer that hardly matters is that sparse
    assert [n for n in names if sparsities[n] > most - 0.01] == ["res4.0.conv2"]
    assert min(sparsities, key=lambda name: sparsities[name]) == "res3.0.conv2"
    free = [name for name in names if name != "res4.0.conv2"]
    dearest = max(costs[n][zeros[n] // size - 1] for n in free if zeros[n])
    assert all(costs[n][zeros[n] // size] >= dearest for n in free)


@pytest.mark.parametrize("method", ["magnitude", "reconstruct"])
def test_progress_counts_every_step_from_the_first(
    dense: FasterRCNN, network_inputs: list[Tensor], method: Method
) -> None:
    reported: list[tuple[int, int, str]] = []
    prune_once(
        copy.deepcopy(dense),
        network_inputs,
        OneShotConfig(method=method, sparsity=0.3),
        held_out=2,
        progress=lambda *step: reported.append(step),
    )
    layers = list(prunable_layers(dense.graph))
    steps = [f"measuring {name}" for name in layers] + [f"pruning {name}" for name in layers]
    if method == "reconstruct":  # by sensitivity, on the images that are not held out
        steps = [f"gradients of image {n + 1}" for n in range(len(network_inputs) - 2)] + steps
    assert reported == [(number, len(steps), step) for number, step in enumerate(steps)]


def test_sensitivity_keeps_the_predictions_better_than_pruning_all_layers_alike(
    dense: FasterRCNN,
) -> None:
    many = [calibration_input(picture(seed=seed), dense.config) for seed in range(30)]
    unseen = [calibration_input(picture(seed=seed), dense.config) for seed in range(30, 40)]

    def divergence(made: FasterRCNN) -> float:
        """Divergence of the class scores of the same RoIs from the unpruned network's."""
        total = 0.0
        for network_input in unseen:
            features = dense.features(network_input)
            logits, deltas = dense.rpn_outputs(features)
            anchors = dense.anchors(features)
            boxes = dense.proposals(logits[0], deltas[0], anchors, *network_input.shape[2:])
            before = dense.regions(features, [boxes])[0].log_softmax(1)
            after = made.regions(made.features(network_input), [boxes])[0].log_softmax(1)
            total += float((before.exp() * (before - after)).sum(1).mean())
        return total

    uniform, _ = pruned(dense, many, sparsity=0.6, allocation="uniform")
    by_sensitivity, _ = pruned(dense, many, sparsity=0.6)
    with torch.no_grad():
        assert divergence(by_sensitivity) < divergence(uniform)


def test_refusals(dense: FasterRCNN, network_inputs: list[Tensor]) -> None:
    for settings, word in (
        ({"sparsity": 0.999}, "needs"),
        ({"sparsity": 0.0}, "sparsity"),
        ({}, "sparsity"),
        ({"sparsity": 0.5, "exclude": ("res9",)}, "res9"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "2:4"),
        ({"pattern": "2:4", "allocation": "erk"}, "erk"),
        ({"pattern": "2:4", "allocation": "sensitivity"}, "sensitivity"),
        ({"sparsity": 0.5, "pattern": "none"}, "pattern is .none."),
    ):
        with pytest.raises(InputError, match=word):
            pruned(dense, network_inputs, **settings)
    odd = FasterRCNN(replace(CONFIG, rpn_channels=24, bottleneck_channels=(8, 10, 16, 20)))
    with pytest.raises(InputError, match=r"res3.0.conv2"):
        prune_once(odd, network_inputs, OneShotConfig(pattern="2:4"), held_out=1)
    with pytest.raises(InputError, match="held out"):
        prune_once(dense, network_inputs[:1], OneShotConfig(sparsity=0.5), held_out=1)


# ------------------------------------------------------------------------ from files to a folder


def test_the_command_prunes_a_file(
    dense: FasterRCNN, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images, out = tmp_path / "dense.safetensors", tmp_path / "images", tmp_path / "out"
    tensors = dense.folded_tensors()
    tensors["stem.conv.weight"] = np.array(tensors["stem.conv.weight"])
    tensors["stem.conv.weight"][0, 0, :2] = 1e-9  # not pruned, but zero in a float16 file
    save_model(model, CONFIG, tensors, {"recipe": "none", "licence": "mine"}, dtype="float32")
    images.mkdir()
    for seed in range(8):
        cv2.imwrite(str(images / f"{seed}.png"), picture(seed=seed))
    command = [
        "prune",
        "--method",
        "reconstruct",
        "--init",
        str(model),
        "--images",
        str(images),
        "--output",
        str(out),
        "--sparsity",
        "0.5",
        "--calibration-images",
        "8",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "res5.0.conv2" in printed
    saved = load_model(out / "model.safetensors")
    assert sparsity_report(saved.config, saved.tensors).sparsity >= 0.5
    assert saved.provenance["pruned"]["method"] == "reconstruct"
    source = {
        "name": model.name,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "recipe": "none",
    }
    assert saved.provenance["source"] == source and saved.provenance["licence"] == "mine"
    assert "recipe" not in saved.provenance  # it was the source's
    report = json.loads((out / "report.json").read_text())
    zeros = sum(int((tensor == 0).sum()) for tensor in saved.tensors.values())
    assert (saved.tensors["stem.conv.weight"][0, 0, :2] == 0).all()
    assert report["zeros"] == sparsity_report(saved.config, saved.tensors).zeros == zeros
    assert f"{zeros:,} of " in printed  # prune says what info will say
    assert report["sparsity"] >= 0.5 and len(report["layers"]) == len(
        prunable_layers(build_graph(CONFIG))
    )
    assert cv2.imread(str(out / "report.png")) is not None
    assert main(command) == 1  # never over what is there
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sparsity", "0.5"], "holds 1 images, but --calibration-images is 128"),
        (["--sparsity", "0.5", "--steps", "9"], "--steps is for --method gradual"),
        ([], "sparsity is None"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "give no sparsity"),
    ],
)
def test_what_the_command_refuses(
    dense: FasterRCNN,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    model = tmp_path / "dense.safetensors"
    save_model(model, CONFIG, dense.folded_tensors(), {})
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "one.png"), picture())
    code = main(
        [
            "prune",
            "--method",
            "magnitude",
            "--init",
            str(model),
            "--images",
            str(tmp_path / "images"),
            "--output",
            str(tmp_path / "out"),
            *more,
        ]
    )
    assert code == (1 if message.startswith("holds") else 2)  # a folder, or a flag
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
