"""The torch model: trained, exported, and the reference in parity tests.

It interprets the layer table of `model.graph`, so that a layer is described in one place only. The
weights are `NAME.weight`, with either `NAME.bias` (folded form) or a batch norm with frozen
statistics `NAME.norm.{weight,bias,running_mean,running_var}` (training form). The batch norm is
folded into the convolution when that runs: exact, and cheaper than normalising the activations.

Shapes: B images, A anchors at each cell, Hf x Wf the stride-16 feature map, R RoIs, K classes
without background. Boxes are xyxy pixels of the network input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import boxes as np_boxes
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.graph import Layer, Network
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
    """One weighted layer of the layer table, with or without its batch norm."""

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

    def forward(
        self, x: Tensor, residual: Tensor | None = None, stride: int | None = None
    ) -> Tensor:
        layer = self.layer
        weight, bias = self.folded()
        if layer.kind == "linear":
            return F.linear(x, weight, bias)
        stride = stride or layer.stride
        before, after = layer.padding if stride == layer.stride else (0, 0)
        if before == after:
            x = F.conv2d(x, weight, bias, stride, before)
        else:
            x = F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride)
        if residual is not None:
            x = x + residual
        return F.relu(x) if layer.relu else x


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
        self.network: Network = build_network(config)
        self.layers: dict[str, Conv] = {}
        for layer in self.network.weighted:
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

    def run_component(
        self, component: str, tensors: dict[str, Tensor], subsampled: bool = False
    ) -> None:
        """Run a component's layers in table order.

        Args:
            component: "backbone", "rpn" or "roi".
            tensors: outputs by layer name; those of the component are added.
            subsampled: the RoI features hold only every second bin.
        """
        for layer in self.network.layers:
            if layer.component != component:
                continue
            if layer.source == "pooled" and "pooled" not in tensors:
                last = f"res5.{self.config.blocks[3] - 1}.conv3"
                tensors["pooled"] = tensors[last].mean(dim=(2, 3))
            tensors[layer.name] = self.run_layer(layer, tensors, subsampled)

    def run_layer(
        self, layer: Layer, tensors: Mapping[str, Tensor], subsampled: bool = False
    ) -> Tensor:
        """The output of one layer; `tensors` holds its inputs by name."""
        x = tensors[layer.source]
        if layer.kind == "maxpool":
            before, after = layer.padding  # zeros equal -inf: the input is never negative
            x = F.pad(x, (before, after, before, after))
            return F.max_pool2d(x, layer.kernel, layer.stride)
        residual = tensors[layer.residual] if layer.residual else None
        stride = 1 if subsampled and layer.source == "rois" else None
        out: Tensor = self.layers[layer.name](x, residual, stride)
        return out

    def features(self, network_input: Tensor) -> Tensor:
        """Network input [B, 3, H, W] -> the stride-16 feature map [B, C, Hf, Wf]."""
        tensors = {
            "input": self.normalise(network_input).contiguous(memory_format=torch.channels_last)
        }
        self.run_component("backbone", tensors)
        return tensors[self.network.features]

    def rpn_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits [B, Hf*Wf*A] and deltas [B, Hf*Wf*A, 4]."""
        tensors = {self.network.features: features}
        self.run_component("rpn", tensors)
        batch = len(features)
        logits = tensors["rpn.objectness"].permute(0, 2, 3, 1).reshape(batch, -1)
        deltas = tensors["rpn.deltas"].permute(0, 2, 3, 1).reshape(batch, -1, 4)
        return logits.float(), deltas.float()

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

    def roi_features(self, features: Tensor, rois: list[Tensor], step: int = 1) -> Tensor:
        """RoIAlign; every step-th bin along each axis.

        Args:
            features: [B, C, Hf, Wf].
            rois: B tensors [R_i, 4].

        Returns:
            [R, C, roi_size / step, roi_size / step].
        """
        size, ratio = self.config.roi_size, self.config.roi_sampling_ratio
        if self.config.roi_sampling == "corners":
            cells = (features.shape[2], features.shape[3])
            a, b, c = np_boxes.corner_sampling(cells, self.config.anchor_stride, size * ratio)
            rois = [r * r.new_tensor(a) + r[:, [2, 3, 0, 1]] * r.new_tensor(b) + c for r in rois]
        scale = 1.0 / self.config.anchor_stride
        if features.device.type == "cpu" and features[0, 0].numel() <= 2048 and ratio > 0:
            return roi_align_matmul(features, rois, size, scale, ratio, step)
        # In float32: bfloat16 would round corners to multiples of 4 pixels and more.
        rois = [r.float() for r in rois]
        out: Tensor = ops.roi_align(features.float(), rois, size, scale, ratio, True)
        return out[:, :, ::step, ::step].to(features.dtype)

    def head(self, roi_features: Tensor, subsampled: bool = False) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K (+ 1), 4] of RoI features [R, C, n, n]."""
        tensors = {"rois": roi_features}
        self.run_component("roi", tensors, subsampled)
        deltas = tensors["box.deltas"].float()
        return tensors["box.logits"].float(), deltas.view(len(deltas), deltas.shape[1] // 4, 4)

    @property
    def roi_step(self) -> int:
        """2 where res5 reads only every second RoI bin, else 1."""
        skips = self.config.stride_in == "conv1" and self.config.stride_conv1_padding[0] == 0
        return 2 if skips else 1

    def regions(self, features: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`roi_features` and `head` together, without the bins that are never read."""
        step = self.roi_step
        return self.head(self.roi_features(features, rois, step), subsampled=step > 1)

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
        height, width = network_input.shape[2:]
        features = self.features(network_input)
        logits, deltas = self.rpn_outputs(features)
        anchors = self.anchors(features)
        rows = torch.zeros(
            len(network_input), self.config.max_detections, 7, device=network_input.device
        )
        rows[:, :, 0] = -1
        scale = torch.tensor([width, height, width, height], device=network_input.device).float()
        for i in range(len(network_input)):
            proposals = self.proposals(logits[i], deltas[i], anchors, height, width)
            if not len(proposals):
                continue
            outputs = self.regions(features[i : i + 1], [proposals])
            boxes, scores, labels = self.detect(*outputs, proposals, height, width)
            n = len(boxes)
            rows[i, :n, 0] = i
            rows[i, :n, 1] = labels.float()
            rows[i, :n, 2] = scores
            rows[i, :n, 3:] = boxes / scale
        return rows
