"""Detections in torch: scores, boxes, and non-maximum suppression by class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torchvision.ops as ops
from torch import Tensor

from ..model.graph import CellOutput, Detecting, DetectionOutput, FcosOutput, RetinaNetOutput
from .anchors import cells, level_anchors
from .boxes import clip, decode

Found = tuple[Tensor, Tensor, Tensor]
"""Boxes [N, 4], scores [N] and labels [N] of an image, best first; labels from 1."""


def suppress(attributes: Detecting, boxes: Tensor, scores: Tensor, label: Tensor) -> Found:
    """What non-maximum suppression by class leaves, best first.

    Args:
        boxes, scores, label: [N, 4], [N] and [N], labels from 0.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = []
    for k in range(attributes.num_classes):
        candidates = order[label[order] == k]
        keep = ops.nms(boxes[candidates], scores[candidates], attributes.nms_threshold)
        kept.append(candidates[keep])
    survivors = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    survivors[torch.cat(kept)] = True
    order = order[survivors[order]][: attributes.max_detections]
    return boxes[order], scores[order], label[order] + 1


def to_rows(found: Sequence[Found], count: int, image: Tensor) -> Tensor:
    """Rows [B, count, 7] of the detections of B images; unused rows are -1, 0, 0 ...

    Args:
        image: the network input [B, 3, H, W].
    """
    rows = torch.zeros(len(found), count, 7, device=image.device)
    rows[:, :, 0] = -1
    height, width = image.shape[2:]
    scale = rows.new_tensor([width, height, width, height])
    for i, (boxes, scores, labels) in enumerate(found):
        n = len(boxes)
        rows[i, :n, 0] = i
        rows[i, :n, 1] = labels.float()
        rows[i, :n, 2] = scores
        rows[i, :n, 3:] = boxes / scale
    return rows


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
    return suppress(attributes, decoded, scores, label)


def _best(
    scores: Tensor, attributes: RetinaNetOutput | FcosOutput | CellOutput
) -> Iterator[tuple[Tensor, ...]]:
    """Of each image's scores [N, K]: those of the best candidates, their rows and their labels."""
    for of_image in scores:
        flat = of_image.flatten()
        chosen = (flat > attributes.score_threshold).nonzero().flatten()
        order = flat[chosen].argsort(descending=True, stable=True)[: attributes.pre_nms]
        best = chosen[order]
        classes = attributes.num_classes
        yield flat[best], best // classes, best % classes


def _collect(
    levels: Sequence[Sequence[Found]], attributes: RetinaNetOutput | FcosOutput | CellOutput
) -> list[Found]:
    """The detections of each image, from the candidates of each level and image."""
    of_images = zip(*levels, strict=True)
    return [
        suppress(attributes, *(torch.cat(part) for part in zip(*parts, strict=True)))
        for parts in of_images
    ]


def retinanet_detections(
    attributes: RetinaNetOutput,
    maps: Sequence[Tensor],
    image: tuple[int, int],
    end: tuple[int, int],
) -> list[Found]:
    """The detections of each image.

    Args:
        maps: the inputs of the operation, without the image.
        image: height and width of the network input.
        end: boxes are clipped to this height and width.
    """
    count = len(attributes.strides)
    levels = []
    for i, (logits, deltas) in enumerate(zip(maps[:count], maps[count:], strict=True)):
        anchors = level_anchors(attributes, i, logits, image)
        of_boxes = cells(deltas, 4)
        found = []
        best = _best(cells(logits, attributes.num_classes).sigmoid(), attributes)
        for of_image, (scores, rows, labels) in zip(of_boxes, best, strict=True):
            boxes = decode(
                of_image[rows], anchors[rows], attributes.box_weights, attributes.delta_clamp
            )
            found.append((clip(boxes, *end) if attributes.clip_first else boxes, scores, labels))
        levels.append(found)
    collected = _collect(levels, attributes)
    return [(clip(boxes, *end), scores, labels) for boxes, scores, labels in collected]


def fcos_detections(
    attributes: FcosOutput,
    maps: Sequence[Tensor],
    image: tuple[int, int],
    end: tuple[int, int],
) -> list[Found]:
    """As `retinanet_detections`."""
    count = len(attributes.strides)
    levels = []
    for i in range(count):
        logits, distances, centerness = maps[i::count]
        height, width = logits.shape[2:]
        stride = attributes.strides[i]
        down, right = (stride, stride) if stride else (image[0] // height, image[1] // width)
        ys, xs = (torch.arange(n, device=logits.device) for n in (height, width))
        y, x = torch.meshgrid(ys * down, xs * right, indexing="ij")
        points = torch.stack([x, y, x, y], dim=-1).reshape(-1, 4).float()
        sides = points.new_tensor([-1, -1, 1, 1]) * attributes.sizes[i]
        of_boxes = cells(distances, 4)
        scores = cells(logits, attributes.num_classes).sigmoid() * cells(centerness, 1).sigmoid()
        found = []
        best = _best(scores.sqrt(), attributes)
        for of_image, (of_best, rows, labels) in zip(of_boxes, best, strict=True):
            boxes = points[rows] + of_image[rows] * sides
            found.append((clip(boxes, *end), of_best, labels))
        levels.append(found)
    return _collect(levels, attributes)


def _cell_boxes(attributes: CellOutput, level: int, of_cells: Tensor, points: Tensor) -> Tensor:
    """Boxes [N, 4] in strides, of the outputs [N, 4 * bins] of the cells at points [N, 2]."""
    if attributes.boxes == "centre":
        centre, half = points + of_cells[:, :2], of_cells[:, 2:].exp() / 2
        return torch.cat([centre - half, centre + half], dim=1)
    if attributes.boxes == "anchor":
        twice = of_cells.sigmoid() * 2
        anchor = twice.new_tensor(attributes.anchors[level]) / attributes.strides[level]
        centre, half = points + twice[:, :2] - 1, twice[:, 2:] ** 2 * anchor / 2
        return torch.cat([centre - half, centre + half], dim=1)
    sides = of_cells
    if attributes.bins > 1:
        shares = of_cells.view(-1, 4, attributes.bins).softmax(dim=2)
        sides = shares @ torch.arange(attributes.bins, device=shares.device).float()
    return torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)


def _first_of_each(rows: Tensor) -> Tensor:
    """Whether each number is the first of its kind."""
    numbers: list[int] = rows.tolist()
    first = dict(zip(numbers[::-1], range(len(numbers))[::-1], strict=True))
    return torch.tensor([first[n] == i for i, n in enumerate(numbers)], dtype=torch.bool)


def cell_detections(
    attributes: CellOutput,
    maps: Sequence[Tensor],
    image: tuple[int, int],
    end: tuple[int, int],
) -> list[Found]:
    """As `retinanet_detections`."""
    count = len(attributes.strides)
    levels = []
    for i, stride in enumerate(attributes.strides):
        logits, outputs, *objectness = maps[i::count]
        ys, xs = (torch.arange(n, device=logits.device) for n in logits.shape[2:])
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        points = torch.stack([x, y], dim=-1).reshape(-1, 2) + attributes.offset
        of_boxes = cells(outputs, 4 * attributes.bins)
        scores = cells(logits, attributes.num_classes).sigmoid()
        if objectness:
            scores = scores * cells(objectness[0], 1).sigmoid()
        found = []
        best = _best(scores, attributes)
        for of_image, (of_best, rows, labels) in zip(of_boxes, best, strict=True):
            keep = torch.ones_like(rows, dtype=torch.bool)
            if not attributes.several_labels:
                keep = _first_of_each(rows)
            boxes = _cell_boxes(attributes, i, of_image[rows[keep]], points[rows[keep]]) * stride
            found.append((boxes, of_best[keep], labels[keep]))
        levels.append(found)
    collected = _collect(levels, attributes)
    return [(clip(boxes, *end), scores, labels) for boxes, scores, labels in collected]
