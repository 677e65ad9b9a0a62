"""What each operation of a graph does in torch.

Maps are [B, C, H, W]; RoIs [R, C, h, w], or [R, C] after the mean; boxes a list of B tensors
[R_i, 4], xyxy pixels of the network input; rows [B, N, 7].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import boxes as np_boxes
from ..model.graph import (
    Conv,
    DetectionOutput,
    MaxPool,
    Normalise,
    Operation,
    Proposals,
    RoiAlign,
    Slice,
    typed,
)
from ..model.interpreter import Interpreter
from .boxes import clip, decode
from .roi_align import roi_align_matmul


def normalise(attributes: Normalise, image: Tensor) -> Tensor:
    """BGR [B, 3, H, W], values 0..255 -> the stem's input, float32."""
    mean = torch.tensor(attributes.mean, device=image.device).view(3, 1, 1)
    std = torch.tensor(attributes.std, device=image.device).view(3, 1, 1)
    return (image.float() - mean) / std


def flat_outputs(objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, A, H, W] and [B, 4 A, H, W] -> logits [B, H*W*A] and deltas [B, H*W*A, 4]."""
    batch = len(objectness)
    logits = objectness.permute(0, 2, 3, 1).reshape(batch, -1)
    return logits.float(), deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4).float()


def level_anchors(
    attributes: Proposals, level: int, objectness: Tensor, image: tuple[int, int] = (0, 0)
) -> Tensor:
    """All anchors of one level, [H*W*A, 4], for its map of logits [B, A, H, W].

    Args:
        image: height and width of the network input; read where a stride is 0.
    """
    cells = torch.tensor(attributes.cell_anchors[level], dtype=torch.float32).numpy()
    size = (objectness.shape[2], objectness.shape[3])
    stride = attributes.strides[level]
    steps = (stride, stride) if stride else (image[0] // size[0], image[1] // size[1])
    grid = np_boxes.grid_anchors(cells, size, steps)
    return torch.from_numpy(grid).to(objectness.device)


@torch.no_grad()
def level_proposals(
    attributes: Proposals,
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    height: float,
    width: float,
    pre_nms: int | None = None,
    count: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The boxes of one image and level that survive NMS, best first, and their logits.

    Args:
        logits, deltas: [H*W*A] and [H*W*A, 4] of one image.
        height, width: boxes are clipped to these.
        pre_nms, count: boxes kept before and after NMS; default: the attributes'.

    Returns:
        [<= count, 4] and [<= count].
    """
    order = logits.argsort(descending=True, stable=True)[: pre_nms or attributes.pre_nms]
    decoded = decode(deltas[order], anchors[order], attributes.box_weights, attributes.delta_clamp)
    last = float(attributes.inclusive)
    decoded = clip(decoded, height - last, width - last)
    scores = logits[order]
    if attributes.remove_empty:
        keep = ((decoded[:, 2:] - decoded[:, :2]) > 0).all(dim=1)
        decoded, scores = decoded[keep], scores[keep]
    if attributes.min_size:
        keep = ops.remove_small_boxes(decoded, attributes.min_size)
        decoded, scores = decoded[keep], scores[keep]
    covered = decoded + decoded.new_tensor([0.0, 0.0, last, last])
    keep = ops.nms(covered, scores, attributes.nms_threshold)[: count or attributes.count]
    return decoded[keep], scores[keep]


def level_of(attributes: RoiAlign, rois: Tensor) -> Tensor:
    """Level of each RoI [R, 4], counted from the first map."""
    sides = rois[:, 2:] - rois[:, :2]
    size = (sides[:, 0] * sides[:, 1]).sqrt() / attributes.canonical_size
    level = (attributes.canonical_level + torch.log2(size) + 1e-6).floor()
    last = len(attributes.scales) - 1
    return (level - attributes.first_level).clamp(0, last).long()


def roi_align(attributes: RoiAlign, maps: Sequence[Tensor], rois: list[Tensor]) -> Tensor:
    """RoIAlign; only the bins 0, step, 2 * step ...

    Args:
        maps: of each level [B, C, H, W].
        rois: B tensors [R_i, 4].

    Returns:
        [R, C, bins, bins].
    """
    if len(maps) == 1:
        return _roi_align(attributes, 0, maps[0], rois)
    levels = [level_of(attributes, boxes) for boxes in rois]
    every, bins = torch.cat(levels), -(-attributes.size // attributes.step)
    out = maps[0].new_zeros(len(every), maps[0].shape[1], bins, bins)
    for i, features in enumerate(maps):
        chosen = [boxes[level == i] for boxes, level in zip(rois, levels, strict=True)]
        out[every == i] = _roi_align(attributes, i, features, chosen)
    return out


def _roi_align(attributes: RoiAlign, level: int, features: Tensor, rois: list[Tensor]) -> Tensor:
    size, ratio, step = attributes.size, attributes.sampling_ratio, attributes.step
    scale, aligned = attributes.scales[level], attributes.sampling != "legacy"
    if attributes.sampling == "corners":
        cells = (features.shape[2], features.shape[3])
        a, b, c = np_boxes.corner_sampling(cells, round(1 / scale), size * ratio)
        rois = [r * r.new_tensor(a) + r[:, [2, 3, 0, 1]] * r.new_tensor(b) + c for r in rois]
    small = features.device.type == "cpu" and features[0, 0].numel() <= 2048
    if small and ratio > 0 and aligned:
        return roi_align_matmul(features, rois, size, scale, ratio, step)
    # In float32: bfloat16 would round corners to multiples of 4 pixels and more.
    rois = [r.float() for r in rois]
    out: Tensor = ops.roi_align(features.float(), rois, size, scale, ratio, aligned)
    return out[:, :, ::step, ::step].to(features.dtype)


def detect(
    attributes: DetectionOutput,
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image, best first.

    Args:
        logits, deltas: [R, K + 1] and [R, K (+ 1), 4].
        proposals: [R, 4].
        height, width: boxes are clipped to these.

    Returns:
        boxes [N, 4], scores [N], labels [N] in 1..K; N <= max_detections.
    """
    classes = attributes.num_classes
    first = 1 if attributes.background == "first" else 0
    scores = logits.softmax(dim=1)[:, first : first + classes]
    if attributes.background_deltas:
        deltas = deltas[:, first : first + classes]
    decoded = decode(deltas, proposals[:, None], attributes.box_weights, attributes.delta_clamp)
    decoded = clip(decoded, height, width)  # [R, K, 4]
    roi, label = (scores > attributes.score_threshold).nonzero(as_tuple=True)
    decoded, scores = decoded[roi, label], scores[roi, label]
    if attributes.min_size:
        keep = ops.remove_small_boxes(decoded, attributes.min_size)
        decoded, scores, label = decoded[keep], scores[keep], label[keep]
    order = scores.argsort(descending=True, stable=True)
    kept = []
    for k in range(classes):
        candidates = order[label[order] == k]
        keep = ops.nms(decoded[candidates], scores[candidates], attributes.nms_threshold)
        kept.append(candidates[keep])
    if kept:
        survivors = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        survivors[torch.cat(kept)] = True
        order = order[survivors[order]]
    order = order[: attributes.max_detections]
    return decoded[order], scores[order], label[order] + 1


class TorchInterpreter(Interpreter[Any]):
    """Runs a graph in torch.

    Args:
        layers: the module of each layer by its name.
        content: height and width of what is in the network input's upper left corner, where boxes
            end; default: all of it.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], content: tuple[int, int] | None = None
    ) -> None:
        self.layers, self.content = layers, content

    def normalise(self, operation: Operation, image: Tensor) -> Tensor:
        x = normalise(typed(operation, Normalise), image)
        return x.contiguous(memory_format=torch.channels_last)

    def conv(self, operation: Operation, x: Tensor, residual: Tensor | None = None) -> Tensor:
        (layer,) = typed(operation, Conv).layers
        out: Tensor = self.layers[layer](x, residual)
        return out

    def max_pool(self, operation: Operation, x: Tensor) -> Tensor:
        pool = typed(operation, MaxPool)
        top, left, bottom, right = pool.padding  # zeros equal -inf: the input is never negative
        return F.max_pool2d(F.pad(x, (left, right, top, bottom)), pool.kernel, pool.stride)

    def mean(self, operation: Operation, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))

    def resize(self, operation: Operation, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="nearest")

    def slice(self, operation: Operation, x: Tensor) -> Tensor:
        part = typed(operation, Slice)
        return x[:, part.first : part.first + part.channels]

    def proposals(self, operation: Operation, *inputs: Tensor) -> list[Tensor]:
        attributes = typed(operation, Proposals)
        levels = len(attributes.strides)
        image_size = inputs[-1].shape[2], inputs[-1].shape[3]
        height, width = self.content or image_size
        outputs = [flat_outputs(inputs[i], inputs[levels + i]) for i in range(levels)]
        anchors = [level_anchors(attributes, i, inputs[i], image_size) for i in range(levels)]
        found = []
        for image in range(len(inputs[0])):
            parts = [
                level_proposals(attributes, logits[image], deltas[image], of_level, height, width)
                for (logits, deltas), of_level in zip(outputs, anchors, strict=True)
            ]
            boxes, scores = (torch.cat(part) for part in zip(*parts, strict=True))
            if levels > 1:
                best = scores.argsort(descending=True, stable=True)[: attributes.count]
                boxes = boxes[best]
            found.append(boxes)
        return found

    def roi_align(self, operation: Operation, *inputs: Any) -> Tensor:
        return roi_align(typed(operation, RoiAlign), inputs[:-1], inputs[-1])

    def detections(
        self,
        operation: Operation,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        image: Tensor,
    ) -> Tensor:
        attributes = typed(operation, DetectionOutput)
        rows = torch.zeros(len(boxes), attributes.max_detections, 7, device=image.device)
        rows[:, :, 0] = -1
        height, width = image.shape[2:]
        scale = rows.new_tensor([width, height, width, height])
        counts = [len(b) for b in boxes]
        of_images = (torch.split(x.float(), counts) for x in (logits, deltas))
        for i, (of_class, of_box) in enumerate(zip(*of_images, strict=True)):
            if not counts[i]:
                continue
            of_box = of_box.view(counts[i], of_box.shape[1] // 4, 4)
            end = self.content or (height, width)
            found, scores, labels = detect(attributes, of_class, of_box, boxes[i], *end)
            n = len(found)
            rows[i, :n, 0] = i
            rows[i, :n, 1] = labels.float()
            rows[i, :n, 2] = scores
            rows[i, :n, 3:] = found / scale
        return rows
