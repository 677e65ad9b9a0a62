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

from ..model.graph import (
    IMAGE,
    Activation,
    Conv,
    Detecting,
    DetectionOutput,
    FcosOutput,
    MaskOutput,
    Normalise,
    Proposals,
    RetinaNetOutput,
)
from ..model.interpreter import walk
from ..torch_model import GraphModule, flat_outputs
from ..torch_model.anchors import cells
from .calibration import rows_of_regions, some_proposals

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


class _Image:
    """The values of one image, and outcomes that are drawn from its predictions."""

    def __init__(self, model: GraphModule, image: Tensor, generator: torch.Generator) -> None:
        self.graph, self.generator = model.graph, generator
        self.interpreter = model.interpreter()
        self.values: dict[str, Any] = {IMAGE: image}

    def run(self, wanted: Sequence[str]) -> list[Tensor]:
        """The wanted values, from those that are there; all are kept."""
        for operation, _ in walk(self.graph, tuple(self.values), wanted):
            value = self.interpreter.execute(operation, [self.values[n] for n in operation.inputs])
            self.values[operation.name] = value
            if operation.kind == Normalise.kind:
                value.requires_grad_()
        return [self.values[name] for name in wanted]

    def binary(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of outcomes drawn from the sigmoids, and the outcomes."""
        drawn = torch.bernoulli(logits.detach().sigmoid(), generator=self.generator)
        return F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum"), drawn

    def boxes(self, deltas: Tensor, is_object: Tensor) -> Tensor:
        """The same of boxes [N, 4] where there is an object [N]."""
        noise = torch.randn(deltas.shape, generator=self.generator) * is_object[:, None]
        return (deltas * noise).sum()


def _squared_gradients(
    model: GraphModule, network_input: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """By layer [out]: squared gradients of one image, summed over positions."""
    graph, image = model.graph, _Image(model, network_input, generator)
    two_stages = list(graph.of_kind(Proposals))
    loss = _two_stages(image, model) if two_stages else _one_stage(image)
    for operation, _ in graph.of_kind(MaskOutput):
        (logits,) = image.run(operation.inputs[:1])
        loss = loss + image.binary(logits)[0] / logits[:, 0].numel() ** 0.5
    convs = [(operation, conv) for operation, conv in graph.of_kind(Conv)]
    values = image.values
    gradients = torch.autograd.grad(loss, [values[operation.name] for operation, _ in convs])
    squares: dict[str, Tensor] = {}
    for (operation, conv), gradient in zip(convs, gradients, strict=True):
        gradient = gradient * slope(conv.activation, values[operation.name])
        dims = [d for d in range(gradient.dim()) if d != 1]
        (name,) = conv.layers
        squares[name] = squares.get(name, 0.0) + gradient.detach().square().sum(dim=dims)
    return squares


def slope(activation: Activation, value: Tensor) -> Tensor:
    """Magnitude of an activation's derivative, where its value is known."""
    if activation == "relu":
        return (value > 0).to(value.dtype)
    if activation == "hardsigmoid":
        return ((value > 0) & (value < 1)).to(value.dtype) / 6
    if activation == "hardswish":  # x (x + 3) / 6 between -3 and 3: two x of opposite slopes
        between = (9 + 24 * value).clamp(min=0).sqrt() / 6
        return torch.where(value == 0, 0.0, torch.where(value >= 3, 1.0, between))
    return torch.ones_like(value)


def _two_stages(image: _Image, model: GraphModule) -> Tensor:
    """The loss of the best anchors and of some regions."""
    graph = image.graph
    proposed, proposals = graph.only(Proposals)
    detected, detections = graph.only(DetectionOutput)
    levels = len(proposals.strides)
    maps = image.run(proposed.inputs[:-1])
    of_levels = [flat_outputs(*pair) for pair in zip(maps[:levels], maps[levels:], strict=True)]
    logits, deltas = (torch.cat([x[0] for x in part]) for part in zip(*of_levels, strict=True))
    with torch.no_grad():
        inputs = [image.values[name].detach() for name in proposed.inputs]
        boxes = model.interpreter().execute(proposed, inputs)[0]
    rois = some_proposals(boxes, REGIONS)
    image.values[proposed.name] = [rois]
    image.values[detected.name] = rows_of_regions(rois, image.values[IMAGE])
    class_logits, class_deltas = image.run(detected.inputs[:2])

    best = logits.detach().topk(min(ANCHORS, len(logits))).indices
    loss, drawn = image.binary(logits[best])
    loss = (loss + image.boxes(deltas[best], drawn)) / len(best) ** 0.5

    probabilities = class_logits.detach().softmax(dim=1)
    column = torch.multinomial(probabilities, 1, generator=image.generator)[:, 0]
    first = 1 if detections.background == "first" else 0
    is_object = (column >= first) & (column < first + detections.num_classes)
    delta_column = column if detections.background_deltas else column - first
    own = class_deltas.view(len(class_deltas), -1, 4)
    own = own[torch.arange(len(own)), delta_column.clamp(0, own.shape[1] - 1)]
    roi_loss = F.cross_entropy(class_logits, column, reduction="sum") + image.boxes(own, is_object)
    total: Tensor = loss + roi_loss / len(rois) ** 0.5
    return total


def _one_stage(image: _Image) -> Tensor:
    """The loss of the best anchors or cells."""
    graph = image.graph
    (operation,) = (o for o in graph.operations if isinstance(o.attributes, Detecting))
    attributes = operation.attributes
    assert isinstance(attributes, RetinaNetOutput | FcosOutput)
    levels = len(attributes.strides)
    maps = image.run(operation.inputs[:-1])

    def flat(kind: int, values: int) -> Tensor:
        """The maps of a kind, [cells * anchors, values]."""
        of_kind = maps[kind * levels : (kind + 1) * levels]
        return torch.cat([cells(m, values)[0] for m in of_kind])

    logits, deltas = flat(0, attributes.num_classes), flat(1, 4)
    best = logits.detach().amax(dim=1).topk(min(ANCHORS, len(logits))).indices
    loss, drawn = image.binary(logits[best])
    loss = loss + image.boxes(deltas[best], drawn.amax(dim=1))
    if isinstance(attributes, FcosOutput):
        loss = loss + image.binary(flat(2, 1)[best])[0]
    mean: Tensor = loss / len(best) ** 0.5
    return mean
