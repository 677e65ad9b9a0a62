"""Sensitivity of the detector's outputs, against divergences measured by moving them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from helpers.small import SMALL, picture  # noqa: E402
from torch import Tensor  # noqa: E402

from sparsedet.images.letterbox import to_network_input  # noqa: E402
from sparsedet.pruning.calibration import calibration_input  # noqa: E402
from sparsedet.pruning.sensitivity import ANCHORS, REGIONS, output_importance  # noqa: E402
from sparsedet.testing import calibrated_random_tensors  # noqa: E402
from sparsedet.torch_model import FasterRCNN  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

CONFIGS = {
    "background first": replace(SMALL, background="first", background_deltas=True),
    "background last": replace(SMALL, background="last", background_deltas=False),
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def dense(request: pytest.FixtureRequest) -> FasterRCNN:
    config = CONFIGS[request.param]
    network_input, _ = to_network_input(picture(), config.input_height, config.input_width)
    made = FasterRCNN(config)
    made.load_tensors(calibrated_random_tensors(config, 0.0, network_input))
    return made.eval()


def second_stage(model: FasterRCNN, network_input: Tensor) -> tuple[Any, Any]:
    """Features of the RoIs that are used, and objectness logits of the best anchors."""
    size = network_input.shape[2:]
    with torch.no_grad():
        features = model.features(network_input)
        logits, deltas = model.rpn_outputs(features)
        boxes = model.proposals(logits[0], deltas[0], model.anchors(features), *size)
        chosen = torch.linspace(0, len(boxes) - 1, min(REGIONS, len(boxes))).long()
        best = logits[0].topk(min(ANCHORS, logits.shape[1])).values
        return model.roi_features(features, [boxes[chosen]]), best


def divergence(
    model: FasterRCNN, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> float:
    """Divergence of two predictions (logits [R, K + 1], deltas [R, K (+ 1), 4]), mean over RoIs: of
    the class, and of a box with standard deviation 1 unless it is background."""
    (logits, deltas), (new_logits, new_deltas) = before, after
    old, new = logits.log_softmax(1), new_logits.log_softmax(1)
    classes = model.config.num_classes
    first = 1 if model.config.background == "first" else 0
    objects = old.exp()[:, first : first + classes]
    if model.config.background_deltas:
        deltas, new_deltas = (d[:, first : first + classes] for d in (deltas, new_deltas))
    boxes = 0.5 * (objects * (deltas - new_deltas).square().sum(2)).sum(1)
    return float(((old.exp() * (old - new)).sum(1) + boxes).mean())


def test_predicts_how_far_noise_moves_the_predictions(
    dense: FasterRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    network_input = calibration_input(picture(), dense.config)
    name, size = "res5.1.conv2" if "res5.1.conv2" in dense.layers else "res5.0.conv2", 0.02
    draws = [output_importance(dense, [network_input], seed=s)[name] for s in range(60)]
    importance = torch.stack(draws).mean(dim=0)
    regions, _ = second_stage(dense, network_input)
    generator = torch.Generator().manual_seed(0)
    conv, plain = dense.layers[name], dense.head(regions)

    def noisy(x: Tensor, residual: Tensor | None = None) -> Any:
        out = torch.nn.functional.conv2d(
            x, conv.weight, conv.bias, conv.layer.stride, conv.layer.padding[0]
        )
        return torch.relu(out + size * torch.randn(out.shape, generator=generator))

    with torch.no_grad():
        monkeypatch.setattr(conv, "forward", noisy)
        moved = [divergence(dense, plain, dense.head(regions)) for _ in range(60)]
    measured = sum(moved) / len(moved)
    assert float(0.5 * size**2 * importance.sum()) == pytest.approx(measured, rel=0.15)


def test_importance_of_the_predictors_follows_from_their_scores(dense: FasterRCNN) -> None:
    network_input = calibration_input(picture(), dense.config)
    draws = [output_importance(dense, [network_input], seed=s) for s in range(200)]
    regions, best = second_stage(dense, network_input)
    with torch.no_grad():
        scores = dense.head(regions)[0].softmax(dim=1)
    expected = (scores * (1 - scores)).mean(dim=0)
    mean = sum(draw["box.logits"] for draw in draws) / len(draws)
    assert torch.allclose(mean, expected, rtol=0.3, atol=0.003)
    scores = best.sigmoid()
    mean = sum(float(draw["rpn.objectness"].sum()) for draw in draws) / len(draws)
    assert mean == pytest.approx(float((scores * (1 - scores)).mean()), rel=0.1)


def test_a_channel_that_is_never_active_does_not_matter_and_the_model_is_unchanged(
    dense: FasterRCNN,
) -> None:
    network_inputs = [calibration_input(picture(seed=s), dense.config) for s in range(2)]
    bias = dense.layers["res3.0.conv1"].bias
    assert bias is not None
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[3] = -1e4
    importance = output_importance(dense, network_inputs)
    again = output_importance(dense, network_inputs)
    with torch.no_grad():
        bias.copy_(kept)
    assert importance.keys() == dense.layers.keys()
    assert all(torch.equal(importance[name], again[name]) for name in importance)
    assert importance["res3.0.conv1"][3] == 0 and (importance["res3.0.conv1"] > 0).sum() > 1
    assert all(p.requires_grad and p.grad is None for p in dense.parameters())
