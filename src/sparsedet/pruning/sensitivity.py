"""Sensitivity of a network's outputs to a change of each layer's outputs, without labels.

Images run through the network. For what it predicts (`predictions`) outcomes are drawn from the
network's own probabilities, and the gradients of their log-likelihood tell how far the predictions
move (Fisher information). Nothing is trained; the caller chooses the weights to prune.

Source: Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation",
arXiv 1905.12558 (outcomes must be drawn, not taken from labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..model.graph import Conv
from ..torch_model import GraphModule
from .predictions import Form, drawn_loss
from .reading import read_predictions

ANCHORS = 256
"""Best anchors or cells of an image that are used, as many as training samples."""
REGIONS = 32
"""Proposals of an image that are used."""


def output_importance(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    outputs: Sequence[tuple[str, Form]] = (),
    *,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """Curvature of the predictions' divergence along each output channel of each layer.

    Args:
        model: without separate batch norms.
        network_inputs: one for each image, from `calibration.calibration_input`.
        outputs: of a network without detections, from `reading.read_outputs`.
        seed: of the drawn outcomes.
        note: called with a description of each step.

    Returns:
        for each weighted layer [out]: the mean over images of the sum over positions of squared
        gradients, before the activation, residual added. Times the mean squared change of that
        output it is twice the divergence.

    Raises:
        InputError: the RPN proposes nothing.
    """
    importance = {layer.name: torch.zeros(layer.out_channels) for layer in model.graph.layers}
    generator = torch.Generator().manual_seed(seed)
    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    with torch.enable_grad():
        for number, network_input in enumerate(network_inputs):
            if note is not None:
                note(f"gradients of image {number + 1}")
            squares = _squared_gradients(model, network_input, outputs, generator)
            for name, value in squares.items():
                importance[name] = importance[name] + value / len(network_inputs)
    for parameter, flag in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(flag)
    return importance


def _squared_gradients(
    model: GraphModule,
    network_input: Tensor,
    outputs: Sequence[tuple[str, Form]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """By layer [out]: squared gradients of one image, summed over positions."""
    reading = read_predictions(model, network_input, outputs, best=ANCHORS, regions=REGIONS)
    loss = drawn_loss(reading.predictions, generator)
    before = reading.before_activation
    gradients = torch.autograd.grad(loss, list(before.values()), allow_unused=True)
    squares: dict[str, Tensor] = {}
    layers = {operation.name: conv.layers for operation, conv in model.graph.of_kind(Conv)}
    for operation, gradient in zip(before, gradients, strict=True):
        if gradient is None:  # no prediction depends on it
            continue
        dims = [d for d in range(gradient.dim()) if d != 1]
        (name,) = layers[operation]
        squares[name] = squares.get(name, 0.0) + gradient.detach().square().sum(dim=dims)
    return squares
