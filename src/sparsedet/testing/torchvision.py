"""torchvision's own detectors with random weights that find much, and what they detect.

Weights are set layer by layer on a picture, statistics and biases of batch norms too, so that each
picture has many confident detections: equal empty results would prove nothing. For tests and
benchmarks; needs torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import detection as models

from ..detections import Detections

SETTINGS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {},
    "fasterrcnn_resnet50_fpn_v2": {},
    "fasterrcnn_mobilenet_v3_large_fpn": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": 320, "max_size": 640, "proposals": 150},
    "retinanet_resnet50_fpn": {},
    "retinanet_resnet50_fpn_v2": {},
    "fcos_resnet50_fpn": {},
    "maskrcnn_resnet50_fpn": {},
    "maskrcnn_resnet50_fpn_v2": {},
}
"""torchvision's detectors, and the settings of the importer that their state dicts need."""

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_DEVIATIONS = {
    "cls_score": 3.0,
    "cls_logits": 0.5,
    "rpn.head.bbox": 0.1,
    "bbox": 0.3,
    "mask_fcn_logits": 3.0,
}
"""Deviation of the outputs of layers with these names, else 1.

Another picture than that on which they are set may have a few times as much: `cls_logits`, of which
millions compete, must not reach where float32's sigmoid is 1 and all scores are equal.
"""


class Deviation(NamedTuple):
    """Of two lists of detections.

    Attributes:
        box, score: the largest differences; pixels, 0..1.
        missing: how many of theirs we lack.
    """

    box: float
    score: float
    missing: int


def as_input(image: NDArray[np.uint8]) -> Tensor:
    """An image, (H, W, 3) BGR, as torchvision takes it: [3, H, W] RGB, 0..1."""
    return torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255


def _ends_of_branches(model: nn.Module) -> set[nn.Module]:
    """The last batch norms of residual branches, of ResNets and MobileNetV3."""
    ends = {m for name, m in model.named_modules() if name.endswith("bn3")}
    for module in model.modules():
        if getattr(module, "use_res_connect", False):
            ends.add([m for m in module.modules() if hasattr(m, "running_mean")][-1])
    return ends


def _set_norm(norm: Any, x: Tensor, is_end: bool) -> None:
    """Statistics of the input. A residual branch adds little to its trunk: rounding stays small."""
    norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(x.var(dim=(0, 2, 3)).clamp(min=1e-6))
    norm.weight.fill_(0.2 if is_end else 1.0)
    norm.weight += 0.05 * torch.randn(len(norm.weight))
    norm.bias.copy_(0.1 * torch.randn(len(norm.bias)))


def _set_layer(name: str, layer: Any, out: Tensor) -> Tensor:
    """A random bias, and weights that give outputs of a fixed deviation; returns the new output.

    A layer that runs on several levels is set on the first. Of a single cell nothing is known.
    """
    if hasattr(layer, "is_set") or out.numel() == out.shape[1]:
        return out
    layer.is_set = True
    deviation = next((d for part, d in _DEVIATIONS.items() if part in name), 1.0)
    rare = -1.5 if "classification_head.cls_logits" in name else 0.0
    dims = [d for d in range(out.dim()) if d != 1]
    shape = [1, -1] + [1] * (out.dim() - 2)
    factor = deviation / out.std(dim=dims).clamp(min=1e-6)
    mean, bias = out.mean(dim=dims), rare + 0.1 * deviation * torch.randn(out.shape[1])
    side = [1, -1] if isinstance(layer, nn.ConvTranspose2d) else [-1, 1]
    layer.weight *= factor.view(*side, *[1] * (layer.weight.dim() - 2))
    layer.bias.copy_((layer.bias - mean) * factor + bias)
    return (out - mean.view(shape)) * factor.view(shape) + bias.view(shape)


@torch.no_grad()
def confident(kind: str, images: Sequence[NDArray[np.uint8]], **settings: Any) -> nn.Module:
    """A detector of torchvision that finds much on the pictures.

    Args:
        kind: a key of `SETTINGS`.
        images: (H, W, 3) BGR; it may find little, or too much, on others.
        settings: arguments of torchvision's function; weights are random.
    """
    torch.manual_seed(0)
    make = getattr(models, kind)
    model: nn.Module = make(weights=None, weights_backbone=None, **settings).eval()
    ends = _ends_of_branches(model)
    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda norm, inputs: _set_norm(norm, inputs[0], norm in ends)
                )
            )
        elif isinstance(module, _LAYERS) and module.bias is not None:
            hooks.append(
                module.register_forward_hook(
                    lambda layer, _, out, name=name: _set_layer(name, layer, out)
                )
            )
    model([as_input(image) for image in images])
    for hook in hooks:
        hook.remove()
    return model


def save_state(model: nn.Module, path: Path) -> Path:
    """Write its state dict; returns the path."""
    torch.save(model.state_dict(), path)
    return path


def matched(ours: Detections | dict[str, Tensor], theirs: dict[str, Tensor]) -> Deviation:
    """How far two lists of detections are apart.

    A detection at the end of the list may change places with one of the same score. Labels are
    compared by category_id, which torchvision's are.

    Args:
        ours: of this project, or of torchvision too.
        theirs: of torchvision.
    """
    if isinstance(ours, Detections):
        ids = np.asarray(ours.category_ids)[ours.labels - 1]
        corners, confidences = ours.boxes, ours.scores
    else:
        ids, corners, confidences = (ours[k].numpy() for k in ("labels", "boxes", "scores"))
    boxes, scores, labels = (theirs[key].numpy() for key in ("boxes", "scores", "labels"))
    box = score = 0.0
    missing = 0
    for b, s, label in zip(boxes, scores, labels, strict=True):
        found = np.flatnonzero((ids == label) & (abs(confidences - s) < 1e-2))
        distance = abs(corners[found] - b).max(axis=1, initial=0)
        if not len(found) or distance.min() > 1:
            missing += 1
            continue
        best = found[distance.argmin()]
        box = max(box, float(distance.min()))
        score = max(score, float(abs(confidences[best] - s)))
    return Deviation(box, score, missing)
