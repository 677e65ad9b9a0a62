"""Sensitivity of the detector's outputs to a change of each layer's outputs, without labels.

Images run through the network. For each anchor and RoI an outcome is drawn from the network's own
prediction, and the gradients of its log-likelihood tell how far the predictions move (Fisher
information). The mean is taken over anchors and over RoIs, as in training. A box is predicted with
standard deviation 1 in units of its deltas, where there is an object. Nothing is trained; the
caller chooses the weights to prune.

Source: Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation",
arXiv 1905.12558 (outcomes must be drawn, not taken from labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.graph import IMAGE, Conv, DetectionOutput, Normalise, Proposals
from ..model.interpreter import walk
from ..torch_model import GraphModule, flat_outputs
from .calibration import some_proposals

ANCHORS = 256
"""Best anchors of an image that are used, as many as training samples."""
REGIONS = 32
"""Proposals of an image that are used."""


def output_importance(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    *,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """Curvature of the predictions' divergence along each output channel of each layer.

    Args:
        model: without separate batch norms.
        network_inputs: one for each image, from `calibration.calibration_input`.
        seed: of the drawn outcomes.
        note: called with a description of each step.

    Returns:
        for each weighted layer [out]: the mean over images of the sum over positions of squared
        gradients, before ReLU, residual added. Times the mean squared change of that output it is
        twice the divergence.

    Raises:
        InputError: the RPN proposes nothing.
    """
    importance: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    with torch.enable_grad():
        for number, network_input in enumerate(network_inputs):
            if note is not None:
                note(f"gradients of image {number + 1}")
            squares = _squared_gradients(model, network_input, generator)
            for name, value in squares.items():
                importance[name] = importance.get(name, 0.0) + value / len(network_inputs)
    for parameter, flag in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(flag)
    return importance


def _run(model: GraphModule, tensors: dict[str, Any], wanted: list[str]) -> None:
    """Run the graph from the tensors that are there to the wanted ones, and keep all."""
    interpreter = model.interpreter()
    for operation, _ in walk(model.graph, tuple(tensors), wanted):
        tensors[operation.name] = interpreter.execute(
            operation, [tensors[name] for name in operation.inputs]
        )
        if operation.kind == Normalise.kind:
            tensors[operation.name].requires_grad_()


def _squared_gradients(
    model: GraphModule, network_input: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """By layer [out]: squared gradients of one image, summed over positions."""
    graph = model.graph
    proposed, proposals = graph.only(Proposals)
    detected, detections = graph.only(DetectionOutput)
    levels = len(proposals.strides)
    tensors: dict[str, Any] = {IMAGE: network_input}
    _run(model, tensors, list(proposed.inputs[:-1]))
    of_levels = [
        flat_outputs(tensors[objectness], tensors[offsets])
        for objectness, offsets in zip(
            proposed.inputs[:levels], proposed.inputs[levels:-1], strict=True
        )
    ]
    logits, deltas = (torch.cat([x[0] for x in part]) for part in zip(*of_levels, strict=True))
    with torch.no_grad():
        inputs = [tensors[name].detach() for name in proposed.inputs]
        boxes = model.interpreter().execute(proposed, inputs)[0]
    rois = some_proposals(boxes, REGIONS)
    tensors[proposed.name] = [rois]
    _run(model, tensors, list(detected.inputs[:2]))

    best = logits.detach().topk(min(ANCHORS, len(logits))).indices
    probability = logits[best].detach().sigmoid()
    drawn = torch.bernoulli(probability, generator=generator)
    loss = F.binary_cross_entropy_with_logits(logits[best], drawn, reduction="sum")
    noise = torch.randn(len(best), 4, generator=generator) * drawn[:, None]
    loss = (loss + (deltas[best] * noise).sum()) / len(best) ** 0.5

    class_logits, class_deltas = (tensors[name] for name in detected.inputs[:2])
    probabilities = class_logits.detach().softmax(dim=1)
    column = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    first = 1 if detections.background == "first" else 0
    is_object = (column >= first) & (column < first + detections.num_classes)
    delta_column = column if detections.background_deltas else column - first
    own = class_deltas.view(len(class_deltas), -1, 4)
    own = own[torch.arange(len(own)), delta_column.clamp(0, own.shape[1] - 1)]
    noise = torch.randn(own.shape, generator=generator) * is_object[:, None]
    roi_loss = F.cross_entropy(class_logits, column, reduction="sum") + (own * noise).sum()
    loss = loss + roi_loss / len(rois) ** 0.5

    convs = [(operation, conv) for operation, conv in graph.of_kind(Conv)]
    gradients = torch.autograd.grad(loss, [tensors[operation.name] for operation, _ in convs])
    squares: dict[str, Tensor] = {}
    for (operation, conv), gradient in zip(convs, gradients, strict=True):
        if conv.activation == "relu":
            gradient = gradient * (tensors[operation.name] > 0)
        dims = [d for d in range(gradient.dim()) if d != 1]
        (name,) = conv.layers
        squares[name] = squares.get(name, 0.0) + gradient.detach().square().sum(dim=dims)
    return squares
