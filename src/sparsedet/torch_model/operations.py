"""What each operation of a graph does in torch.

Maps are [B, C, H, W]; RoIs [R, C, h, w], or [R, C] after a linear layer; boxes a list of B tensors
[R_i, 4], xyxy pixels of the network input; rows [B, N, 7], whose image is -1 beyond the last;
masks [R, h, w].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import boxes as np_boxes
from ..model.graph import (
    Activate,
    Activation,
    Add,
    Affine,
    Attention,
    AveragePool,
    CellOutput,
    Conv,
    DepthToSpace,
    DetectionOutput,
    FcosOutput,
    GroupNorm,
    MaskOutput,
    MaxPool,
    Normalise,
    Operation,
    Proposals,
    Resize,
    RetinaNetOutput,
    RoiAlign,
    Shuffle,
    Slice,
    typed,
)
from ..model.interpreter import Interpreter
from .anchors import flat_outputs, level_anchors
from .boxes import clip, decode
from .detections import cell_detections, detect, fcos_detections, retinanet_detections, to_rows
from .roi_align import roi_align_matmul


def normalise(attributes: Normalise, image: Tensor) -> Tensor:
    """BGR [B, 3, H, W], values 0..255 -> the stem's input, float32."""
    mean = torch.tensor(attributes.mean, device=image.device).view(3, 1, 1)
    std = torch.tensor(attributes.std, device=image.device).view(3, 1, 1)
    normalised = (image.float() - mean) / std
    return normalised.flip(1) if attributes.rgb else normalised


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of a tensor."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "gelu": F.gelu,
    }
    return x if activation == "none" else functions[activation](x)


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
    if attributes.score_threshold:
        keep = scores.sigmoid() >= attributes.score_threshold
        decoded, scores = decoded[keep], scores[keep]
    covered = decoded + decoded.new_tensor([0.0, 0.0, last, last])
    keep = ops.nms(covered, scores, attributes.nms_threshold)[: count or attributes.count]
    return decoded[keep], scores[keep]


@torch.no_grad()
def image_proposals(
    attributes: Proposals,
    levels: Sequence[tuple[Tensor, Tensor, Tensor]],
    height: float,
    width: float,
    pre_nms: int | None = None,
    count: int | None = None,
) -> Tensor:
    """The proposals of one image, best first, [<= count, 4].

    Args:
        levels: of each level logits, deltas and anchors, as of `level_proposals`.
        height, width, pre_nms, count: as of `level_proposals`.
    """
    parts = [level_proposals(attributes, *level, height, width, pre_nms, count) for level in levels]
    boxes, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    if len(levels) > 1:
        best = scores.argsort(descending=True, stable=True)[: count or attributes.count]
        boxes = boxes[best]
    return boxes


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


class TorchInterpreter(Interpreter[Any]):
    """Runs a graph in torch.

    Args:
        layers: the module of each layer by its name.
        norms: scale and offset of each group norm, `weight` and `bias`, by its name.
        content: height and width of what is in the network input's upper left corner, where boxes
            end; default: all of it.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        content: tuple[int, int] | None = None,
        norms: Mapping[str, Any] | None = None,
    ) -> None:
        self.layers, self.content, self.norms = layers, content, norms or {}
        self.image_size = (0, 0)  # of the network input

    def normalise(self, operation: Operation, image: Tensor) -> Tensor:
        self.image_size = _size(image)
        x = normalise(typed(operation, Normalise), image)
        return x.contiguous(memory_format=torch.channels_last)

    def conv(self, operation: Operation, x: Tensor, residual: Tensor | None = None) -> Tensor:
        (layer,) = typed(operation, Conv).layers
        out: Tensor = self.layers[layer](x, residual)
        return out

    def max_pool(self, operation: Operation, x: Tensor) -> Tensor:
        pool = typed(operation, MaxPool)
        top, left, bottom, right = pool.padding
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, pool.kernel, pool.stride)

    def average_pool(self, operation: Operation, x: Tensor) -> Tensor:
        pool = typed(operation, AveragePool)
        top, left, bottom, right = pool.padding
        counted = torch.ones_like(x[:, :1])
        around = (left, right, top, bottom)
        counted = F.pad(counted, around, value=float(pool.count_padding))
        means = [F.avg_pool2d(v, pool.kernel, pool.stride) for v in (F.pad(x, around), counted)]
        return means[0] / means[1]

    def affine(self, operation: Operation, x: Tensor) -> Tensor:
        affine = typed(operation, Affine)
        module = self.norms[affine.layer]
        x = x * module.weight.view(-1, 1, 1) + module.bias.view(-1, 1, 1)
        return activate(x, affine.activation)

    def add(self, operation: Operation, x: Tensor, other: Tensor) -> Tensor:
        return activate(x + other, typed(operation, Add).activation)

    def concat(self, operation: Operation, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)

    def group_norm(self, operation: Operation, x: Tensor) -> Tensor:
        norm = typed(operation, GroupNorm)
        module = self.norms[norm.layer]
        x = F.group_norm(x, norm.groups, module.weight, module.bias, norm.eps)
        return activate(x, norm.activation)

    def activate(self, operation: Operation, x: Tensor) -> Tensor:
        return activate(x, typed(operation, Activate).activation)

    def multiply(self, operation: Operation, x: Tensor, factors: Tensor) -> Tensor:
        return x * factors

    def depth_to_space(self, operation: Operation, x: Tensor) -> Tensor:
        block = typed(operation, DepthToSpace).block
        count, channels, height, width = x.shape
        x = x.view(count, block, block, channels // block**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(count, -1, height * block, width * block)

    def attention(self, operation: Operation, x: Tensor) -> Tensor:
        attention = typed(operation, Attention)
        count, channels, height, width = x.shape
        parts = x.view(count, attention.heads, channels // attention.heads, height * width)
        value = parts.shape[2] - 2 * attention.key
        q, k, v = torch.split(parts, [attention.key, attention.key, value], dim=2)
        shares = ((q.transpose(2, 3) @ k) * attention.score_scale).softmax(dim=3)
        mixed: Tensor = v @ shares.transpose(2, 3)
        return mixed.reshape(count, -1, height, width)

    def shuffle(self, operation: Operation, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, typed(operation, Shuffle).groups)

    def mean(self, operation: Operation, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)

    def resize(self, operation: Operation, x: Tensor, like: Tensor | None = None) -> Tensor:
        if like is None:
            factor = typed(operation, Resize).factor
            return F.interpolate(x, scale_factor=float(factor), mode="nearest")
        return F.interpolate(x, size=like.shape[2:], mode="nearest")

    def slice(self, operation: Operation, x: Tensor) -> Tensor:
        part = typed(operation, Slice)
        return x[:, part.first : part.first + part.channels]

    def proposals(self, operation: Operation, *inputs: Tensor) -> list[Tensor]:
        attributes = typed(operation, Proposals)
        levels = len(attributes.strides)
        image_size, (height, width) = _size(inputs[-1]), self._end(inputs[-1])
        outputs = [flat_outputs(inputs[i], inputs[levels + i]) for i in range(levels)]
        anchors = [level_anchors(attributes, i, inputs[i], image_size) for i in range(levels)]
        found = []
        for image in range(len(inputs[0])):
            of_image = [
                (logits[image], deltas[image], of_level)
                for (logits, deltas), of_level in zip(outputs, anchors, strict=True)
            ]
            found.append(image_proposals(attributes, of_image, height, width))
        return found

    def roi_align(self, operation: Operation, *inputs: Any) -> Tensor:
        *maps, boxes = inputs
        if isinstance(boxes, Tensor):  # rows
            boxes = [rows[rows[:, 0] >= 0][:, 3:] for rows in boxes]
            height, width = self.image_size
            boxes = [b * b.new_tensor([width, height, width, height]) for b in boxes]
        return roi_align(typed(operation, RoiAlign), maps, boxes)

    def detections(
        self,
        operation: Operation,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        image: Tensor,
    ) -> Tensor:
        attributes = typed(operation, DetectionOutput)
        counts = [len(b) for b in boxes]
        logits, deltas = logits.flatten(1).float(), deltas.flatten(1).float()
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
        end = self._end(image)
        of_images = zip(*(torch.split(x, counts) for x in (logits, deltas)), strict=True)
        found = [
            detect(attributes, of_class, of_box, of_image, *end)
            for (of_class, of_box), of_image in zip(of_images, boxes, strict=True)
        ]
        return to_rows(found, attributes.max_detections, image)

    def retinanet_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes, image = typed(operation, RetinaNetOutput), inputs[-1]
        found = retinanet_detections(attributes, inputs[:-1], _size(image), self._end(image))
        return to_rows(found, attributes.max_detections, image)

    def fcos_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes, image = typed(operation, FcosOutput), inputs[-1]
        found = fcos_detections(attributes, inputs[:-1], _size(image), self._end(image))
        return to_rows(found, attributes.max_detections, image)

    def cell_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes, image = typed(operation, CellOutput), inputs[-1]
        found = cell_detections(attributes, inputs[:-1], _size(image), self._end(image))
        return to_rows(found, attributes.max_detections, image)

    def masks(self, operation: Operation, logits: Tensor, rows: Tensor) -> Tensor:
        labels = rows[rows[:, :, 0] >= 0][:, 1].long()
        channels = labels - int(not typed(operation, MaskOutput).background)
        return logits[torch.arange(len(logits)), channels].float().sigmoid()

    def _end(self, image: Tensor) -> tuple[int, int]:
        return self.content or _size(image)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]
