"""The torch model: trained, exported, and the reference in parity tests.

`GraphModule` runs the graph of any detector; `TwoStageDetector` adds what training needs of a
Faster R-CNN, `FasterRCNN` the parts of a C4, which has one feature map.

Shapes: B images, A anchors at each cell, Hf x Wf the feature map that RoIAlign reads, R RoIs, K
classes without background. Boxes are xyxy pixels of the network input.
"""

from __future__ import annotations

from torch import Tensor

from ..model.config import ModelConfig
from ..model.graph import IMAGE, Normalise
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
from .two_stage import FirstStage, TwoStageDetector

__all__ = [
    "ConvModule",
    "FasterRCNN",
    "FirstStage",
    "FrozenBatchNorm",
    "GraphModule",
    "TorchInterpreter",
    "TwoStageDetector",
    "clip",
    "decode",
    "encode",
    "flat_outputs",
    "roi_align_matmul",
]


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN C4 in torch, and its parts.

    Args:
        config: the model.
        norm: batch norms are separate (training form) instead of folded.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig, norm: bool = False) -> None:
        super().__init__(config, norm)
        self._normalise = self.graph.only(Normalise)[1]
        (self.objectness,), (self.deltas,) = self.of_levels
        (self.feature_map,) = self.maps
        self.boxes = self.graph.by_name[self.rois].inputs[-1]

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
        return level_anchors(self.proposing, 0, features)

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
            self.proposing, logits, deltas, anchors, height, width, pre_nms, post_nms
        )[0]

    def roi_features(self, features: Tensor, rois: list[Tensor]) -> Tensor:
        """RoIAlign of the bins that the RoI head reads; see `operations.roi_align`."""
        return roi_align(self.aligning, [features], rois)

    def regions(self, features: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`roi_features` and `head` together."""
        return self.second_stage([features], rois)

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The detections of one image, best first; see `operations.detect`."""
        return detect(self.detecting, logits, deltas, proposals, height, width)
