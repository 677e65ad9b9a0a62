"""How much the detector's outputs feel a change of each layer's: without labels.

Photographs run through the network; of each anchor and region an answer is drawn from what the
network itself predicts there, and the gradients of its log-likelihood tell how far the
predictions move (Fisher information). Anchors and regions count alike in the mean over their own
kind, as in training; a box is predicted with deviation 1 in units of its deltas, where there is
an object. Nothing is trained, and which weights go is the caller's business.

Glossary: anchors, regions, deltas as in `reference`.

Source: Kunstner, Balles & Hennig, "Limitations of the empirical Fisher approximation",
arXiv 1905.12558 (answers must be drawn, not taken from labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..torch_model import FasterRCNN

ANCHORS = 256
"""Best ones of a photograph, as many as a training samples."""
REGIONS = 32


def output_importance(
    model: FasterRCNN,
    network_inputs: Sequence[Tensor],
    *,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """Curvature of the predictions' divergence along each output channel of each layer.

    Args:
        model: without separate batch norms.
        network inputs: photographs as `calibration.calibration_input` makes them.
        note: told which photograph is looked at.

    Returns:
        For each weighted layer [out]: the mean over photographs of the sum over positions of
        squared gradients, before ReLU, residual added. Times the mean squared change of that
        output, it is twice the divergence.

    Raises:
        InputError: the RPN proposes nothing.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    with torch.enable_grad():
        for number, network_input in enumerate(network_inputs):
            if note is not None:
                note(f"gradients of photograph {number + 1}")
            for name, value in _squared_gradients(model, network_input, generator).items():
                found[name] = found.get(name, 0.0) + value / len(network_inputs)
    for parameter, flag in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(flag)
    return found


def _squared_gradients(
    model: FasterRCNN, network_input: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    tensors = {
        "input": model.normalise(network_input).contiguous(memory_format=torch.channels_last)
    }
    tensors["input"].requires_grad_()
    model.run_part("backbone", tensors)
    features = tensors[model.network.features]
    model.run_part("rpn", tensors)
    logits = tensors["rpn.objectness"].permute(0, 2, 3, 1).reshape(-1)
    deltas = tensors["rpn.deltas"].permute(0, 2, 3, 1).reshape(-1, 4)
    height, width = network_input.shape[2:]
    boxes = model.proposals(
        logits.detach(), deltas.detach(), model.anchors(features), height, width
    )
    if not len(boxes):
        raise InputError("the RPN proposes nothing on a calibration photograph")
    chosen = torch.linspace(0, len(boxes) - 1, min(REGIONS, len(boxes))).long()
    regions = dict(rois=model.roi_features(features, [boxes[chosen]]))
    model.run_part("roi", regions)
    tensors |= regions

    best = logits.detach().topk(min(ANCHORS, len(logits))).indices
    likely = logits[best].detach().sigmoid()
    drawn = torch.bernoulli(likely, generator=generator)
    loss = F.binary_cross_entropy_with_logits(logits[best], drawn, reduction="sum")
    noise = torch.randn(len(best), 4, generator=generator) * drawn[:, None]
    loss = (loss + (deltas[best] * noise).sum()) / len(best) ** 0.5

    scores, offsets = tensors["box.logits"], tensors["box.deltas"]
    label = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=generator)[:, 0]
    config = model.config
    first = 1 if config.background == "first" else 0
    is_object = (label >= first) & (label < first + config.num_classes)
    place = label if config.background_deltas else label - first
    own = offsets.view(len(offsets), -1, 4)
    own = own[torch.arange(len(own)), place.clamp(0, own.shape[1] - 1)]
    noise = torch.randn(own.shape, generator=generator) * is_object[:, None]
    part = F.cross_entropy(scores, label, reduction="sum") + (own * noise).sum()
    loss = loss + part / len(chosen) ** 0.5

    names = [name for name in model.layers if name in tensors]
    gradients = torch.autograd.grad(loss, [tensors[name] for name in names])
    out = {}
    for name, gradient in zip(names, gradients, strict=True):
        if model.layers[name].layer.relu:
            gradient = gradient * (tensors[name] > 0)
        dims = [d for d in range(gradient.dim()) if d != 1]
        out[name] = gradient.detach().square().sum(dim=dims)
    return out
