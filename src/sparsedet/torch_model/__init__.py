"""The torch model: trained, exported, and the reference in parity tests.

It interprets the model's graph, so that a layer is described in one place only. The
weights are `NAME.weight`, with either `NAME.bias` (folded form) or a batch norm with frozen
statistics `NAME.norm.{weight,bias,running_mean,running_var}` (training form). The batch norm is
folded into the convolution when that runs: exact, and cheaper than normalising the activations.

Shapes: B images, A anchors at each cell, Hf x Wf the feature map that RoIAlign reads, R RoIs, K
classes without background. Boxes are xyxy pixels of the network input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import boxes as np_boxes
from ..model.c4 import build_graph
from ..model.config import ModelConfig
from ..model.graph import (
    IMAGE,
    Detections,
    Graph,
    Layer,
    MaxPool,
    Operation,
    Proposals,
    RoiAlign,
    typed,
)
from ..model.interpreter import Interpreter
from ..model.rewrite import skip_bins
from .boxes import clip, decode, encode
from .roi_align import roi_align_matmul

__all__ = ["Conv", "FasterRCNN", "FrozenBatchNorm", "clip", "decode", "encode", "roi_align_matmul"]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose scale and offset are trained and whose statistics are constants."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


class Conv(nn.Module):
    """One layer of the graph, with or without its batch norm."""

    def __init__(self, layer: Layer, norm: bool, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.weight = nn.Parameter(torch.empty(layer.weight_shape))
        has_norm = norm and layer.norm
        self.norm = FrozenBatchNorm(layer.out_channels) if has_norm else None
        self.bias = None if has_norm else nn.Parameter(torch.zeros(layer.out_channels))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, batch norm folded."""
        if self.norm is None:
            assert self.bias is not None
            return self.weight, self.bias
        scale = self.norm.weight * (self.norm.running_var + self.eps).rsqrt()
        bias = self.norm.bias - self.norm.running_mean * scale
        return self.weight * scale.view(-1, 1, 1, 1), bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        layer = self.layer
        weight, bias = self.folded()
        if layer.kind == "linear":
            return F.linear(x, weight, bias)
        before, after = layer.padding
        if before == after:
            x = F.conv2d(x, weight, bias, layer.stride, before)
        else:
            x = F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, layer.stride)
        if residual is not None:
            x = x + residual
        return F.relu(x) if layer.relu else x


class TorchInterpreter(Interpreter[Any]):
    """What each operation does, in torch.

    Maps are [B, C, H, W]; RoIs [R, C, h, w], or [R, C] after the mean; boxes a list of B tensors
    [R_i, 4]; rows [B, N, 7].
    """

    def __init__(self, model: FasterRCNN) -> None:
        self.model = model

    def normalise(self, operation: Operation, image: Tensor) -> Tensor:
        return self.model.normalise(image).contiguous(memory_format=torch.channels_last)

    def conv(self, operation: Operation, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = self.model.layers[operation.name](x, residual)
        return out

    def max_pool(self, operation: Operation, x: Tensor) -> Tensor:
        pool = typed(operation, MaxPool)
        top, left, bottom, right = pool.padding  # zeros equal -inf: the input is never negative
        return F.max_pool2d(F.pad(x, (left, right, top, bottom)), pool.kernel, pool.stride)

    def mean(self, operation: Operation, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))

    def proposals(
        self, operation: Operation, objectness: Tensor, deltas: Tensor, image: Tensor
    ) -> list[Tensor]:
        logits, offsets = flat_outputs(objectness, deltas)
        anchors = self.model.anchors(objectness)
        height, width = image.shape[2:]
        return [
            self.model.proposals(logits[i], offsets[i], anchors, height, width)
            for i in range(len(logits))
        ]

    def roi_align(self, operation: Operation, features: Tensor, boxes: list[Tensor]) -> Tensor:
        return self.model.roi_features(features, boxes)

    def detections(
        self,
        operation: Operation,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        image: Tensor,
    ) -> Tensor:
        limit = typed(operation, Detections).max_detections
        rows = torch.zeros(len(boxes), limit, 7, device=image.device)
        rows[:, :, 0] = -1
        height, width = image.shape[2:]
        scale = rows.new_tensor([width, height, width, height])
        counts = [len(b) for b in boxes]
        of_images = (torch.split(x.float(), counts) for x in (logits, deltas))
        outputs = zip(*of_images, strict=True)
        for i, (of_class, of_box) in enumerate(outputs):
            if not counts[i]:
                continue
            found, scores, labels = self.model.detect(
                of_class, of_box.view(counts[i], -1, 4), boxes[i], height, width
            )
            n = len(found)
            rows[i, :n, 0] = i
            rows[i, :n, 1] = labels.float()
            rows[i, :n, 2] = scores
            rows[i, :n, 3:] = found / scale
        return rows


def flat_outputs(objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, A, H, W] and [B, 4 A, H, W] -> logits [B, H*W*A] and deltas [B, H*W*A, 4]."""
    batch = len(objectness)
    logits = objectness.permute(0, 2, 3, 1).reshape(batch, -1)
    return logits.float(), deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4).float()


class FasterRCNN(nn.Module):
    """Faster R-CNN C4 in torch.

    Args:
        config: the model.
        norm: batch norms are separate (training form) instead of folded.

    A call with a BGR network input [B, 3, H, W], values 0..255, returns rows [B, N, 7].
    """

    def __init__(self, config: ModelConfig, norm: bool = False) -> None:
        super().__init__()
        self.config = config
        self.graph: Graph = skip_bins(build_graph(config))
        proposals, detections = self.graph.only(Proposals)[0], self.graph.only(Detections)[0]
        align = self.graph.only(RoiAlign)[0]
        self.objectness, self.deltas = proposals.inputs[:2]
        self.feature_map, self.boxes = align.inputs
        self.rois = align.name
        self.class_logits, self.box_deltas = detections.inputs[:2]
        self.layers: dict[str, Conv] = {}
        for layer in self.graph.layers:
            self.layers[layer.name] = conv = Conv(layer, norm, config.batch_norm_eps)
            parent: nn.Module = self
            *path, leaf = layer.name.split(".")
            for name in path:
                if name not in parent._modules:
                    parent.add_module(name, nn.Module())
                parent = parent.get_submodule(name)
            parent.add_module(leaf, conv)
        self.reset_parameters()

    def reset_parameters(self, seed: int = 0) -> None:
        """Random weights: He initialisation for the backbone, Detectron2's standard deviations for
        RPN and predictors."""
        generator = torch.Generator().manual_seed(seed)
        deviations = {
            "rpn.conv": 0.01,
            "rpn.objectness": 0.01,
            "rpn.deltas": 0.01,
            "box.logits": 0.01,
            "box.deltas": 0.001,
        }
        for name, conv in self.layers.items():
            fan_out = conv.layer.out_channels * conv.layer.kernel**2
            std = deviations.get(name, math.sqrt(2.0 / fan_out))
            with torch.no_grad():
                conv.weight.normal_(0.0, std, generator=generator)
                if conv.bias is not None:
                    conv.bias.zero_()

    def load_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Copy arrays into the parameters of the same names.

        Raises:
            ValueError: a tensor is missing, unknown or of the wrong shape.
        """
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        own = self.state_dict()
        for name, value in own.items():
            if name not in state:
                raise ValueError(f"tensor {name!r} is missing")
            if state[name].shape != value.shape:
                raise ValueError(
                    f"tensor {name!r} has shape {tuple(state[name].shape)}, "
                    f"expected {tuple(value.shape)}"
                )
        if extra := sorted(set(state) - set(own)):
            raise ValueError(f"tensor {extra[0]!r} belongs to no layer of {self.config.name}")
        self.load_state_dict(state)

    def folded_tensors(self) -> dict[str, np.ndarray]:
        """`NAME.weight` and `NAME.bias` of every layer, batch norm folded, float32."""
        out = {}
        with torch.no_grad():
            for name, conv in self.layers.items():
                weight, bias = conv.folded()
                out[f"{name}.weight"] = weight.float().contiguous().cpu().numpy()
                out[f"{name}.bias"] = bias.float().cpu().numpy()
        return out

    # ---------------------------------------------------------------- stages

    def normalise(self, network_input: Tensor) -> Tensor:
        """BGR [B, 3, H, W], values 0..255 -> the stem's input, float32."""
        mean = torch.tensor(self.config.pixel_mean, device=network_input.device).view(3, 1, 1)
        std = torch.tensor(self.config.pixel_std, device=network_input.device).view(3, 1, 1)
        return (network_input.float() - mean) / std

    def run(self, values: MutableMapping[str, Any], wanted: Sequence[str]) -> list[Any]:
        """The wanted values of the graph; see `Interpreter.run` and `TorchInterpreter`."""
        return TorchInterpreter(self).run(self.graph, values, wanted)

    def features(self, network_input: Tensor) -> Tensor:
        """Network input [B, 3, H, W] -> the feature map that RoIAlign reads [B, C, Hf, Wf]."""
        features: Tensor = self.run({IMAGE: network_input}, [self.feature_map])[0]
        return features

    def rpn_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits [B, Hf*Wf*A] and deltas [B, Hf*Wf*A, 4]."""
        return flat_outputs(*self.run({self.feature_map: features}, [self.objectness, self.deltas]))

    def anchors(self, features: Tensor) -> Tensor:
        """All anchors [Hf*Wf*A, 4]."""
        cells = np_boxes.cell_anchors(self.config)
        size = (features.shape[2], features.shape[3])
        grid = np_boxes.grid_anchors(cells, size, self.config.anchor_stride)
        return torch.from_numpy(grid).to(features.device)

    @torch.no_grad()
    def proposals(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        height: float,
        width: float,
        pre_nms: int | None = None,
        post_nms: int | None = None,
    ) -> Tensor:
        """One image's proposals, best first.

        Args:
            logits, deltas: [Hf*Wf*A] and [Hf*Wf*A, 4] of one image.
            height, width: boxes are clipped to these.
            pre_nms, post_nms: boxes kept before and after NMS; default: the configuration's.

        Returns:
            [<= post_nms, 4].
        """
        config = self.config
        order = logits.argsort(descending=True, stable=True)[: pre_nms or config.rpn_pre_nms]
        decoded = decode(deltas[order], anchors[order], config.rpn_box_weights, config.delta_clamp)
        last = float(config.rpn_inclusive)
        decoded = clip(decoded, height - last, width - last)
        scores = logits[order]
        if config.rpn_remove_empty:
            keep = ((decoded[:, 2:] - decoded[:, :2]) > 0).all(dim=1)
            decoded, scores = decoded[keep], scores[keep]
        covered = decoded + decoded.new_tensor([0.0, 0.0, last, last])
        keep = ops.nms(covered, scores, config.rpn_nms_threshold)
        return decoded[keep[: post_nms or config.proposals]]

    def roi_features(self, features: Tensor, rois: list[Tensor]) -> Tensor:
        """RoIAlign; only the bins that the RoI head reads.

        Args:
            features: [B, C, Hf, Wf].
            rois: B tensors [R_i, 4].

        Returns:
            [R, C, bins, bins].
        """
        align = self.graph.only(RoiAlign)[1]
        size, ratio, step = align.size, align.sampling_ratio, align.step
        if align.sampling == "corners":
            cells = (features.shape[2], features.shape[3])
            a, b, c = np_boxes.corner_sampling(cells, self.config.anchor_stride, size * ratio)
            rois = [r * r.new_tensor(a) + r[:, [2, 3, 0, 1]] * r.new_tensor(b) + c for r in rois]
        scale = align.scales[0]
        if features.device.type == "cpu" and features[0, 0].numel() <= 2048 and ratio > 0:
            return roi_align_matmul(features, rois, size, scale, ratio, step)
        # In float32: bfloat16 would round corners to multiples of 4 pixels and more.
        rois = [r.float() for r in rois]
        out: Tensor = ops.roi_align(features.float(), rois, size, scale, ratio, True)
        return out[:, :, ::step, ::step].to(features.dtype)

    def head(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K (+ 1), 4] of `roi_features`."""
        logits, deltas = self.run({self.rois: roi_features}, [self.class_logits, self.box_deltas])
        return logits.float(), deltas.float().view(len(deltas), -1, 4)

    def regions(self, features: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`roi_features` and `head` together."""
        return self.head(self.roi_features(features, rois))

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The detections of one image, best first.

        Args:
            logits, deltas: from `head` [R, K + 1] and [R, K (+ 1), 4].
            proposals: [R, 4].
            height, width: boxes are clipped to these.

        Returns:
            boxes [N, 4] network input pixels, scores [N], labels [N] in 1..K; N <= max_detections.
        """
        config = self.config
        classes = config.num_classes
        first = 1 if config.background == "first" else 0
        scores = logits.softmax(dim=1)[:, first : first + classes]
        if config.background_deltas:
            deltas = deltas[:, first : first + classes]
        decoded = decode(deltas, proposals[:, None], config.box_weights, config.delta_clamp)
        decoded = clip(decoded, height, width)  # [R, K, 4]
        roi, label = (scores > config.score_threshold).nonzero(as_tuple=True)
        decoded, scores = decoded[roi, label], scores[roi, label]
        order = scores.argsort(descending=True, stable=True)
        kept = []
        for k in range(classes):
            candidates = order[label[order] == k]
            keep = ops.nms(decoded[candidates], scores[candidates], config.nms_threshold)
            kept.append(candidates[keep])
        if kept:
            survivors = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
            survivors[torch.cat(kept)] = True
            order = order[survivors[order]]
        order = order[: config.max_detections]
        return decoded[order], scores[order], label[order] + 1

    @torch.no_grad()
    def forward(self, network_input: Tensor) -> Tensor:
        """BGR network input [B, 3, H, W] -> rows [B, max_detections, 7]; image_id -1 ends an
        image's rows."""
        values: dict[str, Any] = {IMAGE: network_input}
        features, proposals = self.run(values, [self.feature_map, self.boxes])
        found = []
        for i, boxes in enumerate(proposals):
            image, part = network_input[i : i + 1], features[i : i + 1]
            of_image = {IMAGE: image, self.feature_map: part, self.boxes: [boxes]}
            rows = self.run(of_image, [self.graph.output])[0]
            rows[:, :, 0] += i * (rows[:, :, 0] >= 0)
            found.append(rows)
        return torch.cat(found)
