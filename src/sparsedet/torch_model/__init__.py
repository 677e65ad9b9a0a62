"""The torch model: trained, exported, and the reference in parity tests.

`GraphModule` runs the graph of any detector; `FasterRCNN` adds what training needs of a Faster
R-CNN C4.

Shapes: B images, A anchors at each cell, Hf x Wf the feature map that RoIAlign reads, R RoIs, K
classes without background. Boxes are xyxy pixels of the network input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.c4 import build_graph
from ..model.config import ModelConfig
from ..model.graph import IMAGE, DetectionOutput, Normalise, Proposals, RoiAlign
from .anchors import flat_outputs, level_anchors
from .boxes import clip, decode, encode
from .detections import detect
from .graph_module import ConvModule, FrozenBatchNorm, GraphModule
from .operations import (
    TorchInterpreter,
    level_proposals,
    normalise,
    roi_align,
)
from .roi_align import roi_align_matmul

__all__ = [
    "ConvModule",
    "FasterRCNN",
    "FrozenBatchNorm",
    "GraphModule",
    "TorchInterpreter",
    "clip",
    "decode",
    "encode",
    "flat_outputs",
    "roi_align_matmul",
]


class FasterRCNN(GraphModule):
    """Faster R-CNN C4 in torch, and its parts.

    Args:
        config: the model.
        norm: batch norms are separate (training form) instead of folded.
    """

    def __init__(self, config: ModelConfig, norm: bool = False) -> None:
        super().__init__(config.name, build_graph(config), norm)
        self.config = config
        self._normalise = self.graph.only(Normalise)[1]
        operation, self._proposals = self.graph.only(Proposals)
        self.objectness, self.deltas = operation.inputs[:2]
        operation, self._align = self.graph.only(RoiAlign)
        self.rois, (self.feature_map, self.boxes) = operation.name, operation.inputs
        operation, self._detections = self.graph.only(DetectionOutput)
        self.class_logits, self.box_deltas = operation.inputs[:2]
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

    # ---------------------------------------------------------------- stages

    def normalise(self, network_input: Tensor) -> Tensor:
        """BGR [B, 3, H, W], values 0..255 -> the stem's input, float32."""
        return normalise(self._normalise, network_input)

    def features(self, network_input: Tensor) -> Tensor:
        """Network input [B, 3, H, W] -> the feature map that RoIAlign reads [B, C, Hf, Wf]."""
        features: Tensor = self.run({IMAGE: network_input}, [self.feature_map])[0]
        return features

    def rpn_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits [B, Hf*Wf*A] and deltas [B, Hf*Wf*A, 4]."""
        return flat_outputs(*self.run({self.feature_map: features}, [self.objectness, self.deltas]))

    def anchors(self, features: Tensor) -> Tensor:
        """All anchors [Hf*Wf*A, 4] of a map [B, C, Hf, Wf]."""
        return level_anchors(self._proposals, 0, features)

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
        """One image's proposals, best first, [<= post_nms, 4]; see `level_proposals`."""
        return level_proposals(
            self._proposals, logits, deltas, anchors, height, width, pre_nms, post_nms
        )[0]

    def roi_features(self, features: Tensor, rois: list[Tensor]) -> Tensor:
        """RoIAlign of the bins that the RoI head reads; see `operations.roi_align`."""
        return roi_align(self._align, [features], rois)

    def head(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K (+ 1), 4] of `roi_features`."""
        logits, deltas = self.run({self.rois: roi_features}, [self.class_logits, self.box_deltas])
        return logits.float(), deltas.float().view(len(deltas), deltas.shape[1] // 4, 4)

    def regions(self, features: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`roi_features` and `head` together."""
        return self.head(self.roi_features(features, rois))

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The detections of one image, best first; see `operations.detect`."""
        return detect(self._detections, logits, deltas, proposals, height, width)
