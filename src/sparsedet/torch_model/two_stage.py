"""What training needs of a Faster R-CNN, C4 or with a Feature Pyramid Network: its two stages.

Shapes: B images, A_l anchors of level l, R RoIs, K classes without background. Boxes are xyxy
pixels of the network input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.detector_config import Config, require_faster_rcnn
from ..model.graph import IMAGE, DetectionOutput, Proposals, RoiAlign
from .anchors import flat_outputs, level_anchors
from .graph_module import ConvModule, GraphModule
from .operations import image_proposals, roi_align


@dataclass(frozen=True, slots=True)
class FirstStage:
    """What a batch of images becomes before RoIs are chosen.

    Attributes:
        maps: those that RoIAlign reads, [B, C, H_l, W_l].
        logits: of objectness, of each level [B, A_l].
        deltas: of each level [B, A_l, 4].
        anchors: of each level [A_l, 4].
    """

    maps: list[Tensor]
    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]

    def of_image(self, index: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Logits, deltas and anchors of one image, without gradients, level by level."""
        levels = zip(self.logits, self.deltas, self.anchors, strict=True)
        return [(a[index].detach(), b[index].detach(), anchors) for a, b, anchors in levels]


class TwoStageDetector(GraphModule):
    """A Faster R-CNN in torch, and its stages.

    Args:
        config: the model.
        norm: batch norms are separate (training form) instead of folded.

    Attributes:
        proposing, aligning, detecting: the attributes of its operations.

    Raises:
        InputError: it is no Faster R-CNN.
    """

    def __init__(self, config: Config, norm: bool = False) -> None:
        super().__init__(config.name, require_faster_rcnn(config), norm)
        self.config = config
        operation, self.proposing = self.graph.only(Proposals)
        levels = len(self.proposing.strides)
        self.of_levels = operation.inputs[:levels], operation.inputs[levels : 2 * levels]
        operation, self.aligning = self.graph.only(RoiAlign)
        self.rois, self.maps = operation.name, operation.inputs[:-1]
        operation, self.detecting = self.graph.only(DetectionOutput)
        self.class_logits, self.box_deltas = operation.inputs[:2]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Random weights: He initialisation for the backbone, torchvision's for a pyramid and its
        heads, Detectron2's standard deviations for the RPN and predictors of a C4."""
        generator = torch.Generator().manual_seed(seed)
        for name, conv in self.layers.items():
            if len(self.proposing.strides) > 1 and self._as_torchvision(name, conv, generator):
                continue
            fan_out = conv.layer.out_channels * conv.layer.kernel**2
            std = _DEVIATIONS.get(name, math.sqrt(2.0 / fan_out))
            conv.weight.normal_(0.0, std, generator=generator)
            if conv.bias is not None:
                conv.bias.zero_()

    def _as_torchvision(self, name: str, conv: ConvModule, generator: torch.Generator) -> bool:
        """Initialise a layer after the backbone; False: it is to be initialised as a backbone's.

        Source: torchvision, `FeaturePyramidNetwork` (uniform, a = 1), `RPNHead` (normal, 0.01), and
        for fully connected layers torch's own default (uniform, also the bias).
        """
        fan_in = conv.weight[0].numel()
        if name.startswith("rpn."):
            conv.weight.normal_(0.0, 0.01, generator=generator)
        elif name.startswith("fpn."):
            limit = math.sqrt(3.0 / fan_in)
            conv.weight.uniform_(-limit, limit, generator=generator)
        elif conv.layer.kind == "linear":
            limit = 1.0 / math.sqrt(fan_in)
            conv.weight.uniform_(-limit, limit, generator=generator)
            assert conv.bias is not None
            conv.bias.uniform_(-limit, limit, generator=generator)
            return True
        else:
            return False
        if conv.bias is not None:
            conv.bias.zero_()
        return True

    def first_stage(self, network_input: Tensor) -> FirstStage:
        """BGR [B, 3, H, W], values 0..255 -> all before RoIs are chosen."""
        names = list(dict.fromkeys((*self.maps, *self.of_levels[0], *self.of_levels[1])))
        values = dict(zip(names, self.run({IMAGE: network_input}, names), strict=True))
        size = network_input.shape[2], network_input.shape[3]
        pairs = list(zip(*self.of_levels, strict=True))
        flat = [flat_outputs(values[logits], values[deltas]) for logits, deltas in pairs]
        anchors = [
            level_anchors(self.proposing, level, values[logits], size)
            for level, (logits, _) in enumerate(pairs)
        ]
        maps = [values[name] for name in self.maps]
        return FirstStage(maps, [a for a, _ in flat], [b for _, b in flat], anchors)

    def proposals_of(
        self, stage: FirstStage, index: int, height: float, width: float, pre_nms: int, count: int
    ) -> Tensor:
        """The proposals of one image, best first, [<= count, 4]; see `image_proposals`."""
        return image_proposals(self.proposing, stage.of_image(index), height, width, pre_nms, count)

    def head(self, roi_features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and deltas [R, K (+ 1), 4] of RoIAlign's bins."""
        logits, deltas = self.run({self.rois: roi_features}, [self.class_logits, self.box_deltas])
        return logits.float(), deltas.float().view(len(deltas), deltas.shape[1] // 4, 4)

    def second_stage(self, maps: list[Tensor], rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`head` of RoIs [R_i, 4] of each image."""
        return self.head(roi_align(self.aligning, maps, rois))


_DEVIATIONS = {
    "rpn.conv": 0.01,
    "rpn.objectness": 0.01,
    "rpn.deltas": 0.01,
    "box.logits": 0.01,
    "box.deltas": 0.001,
}
"""Of a C4's layers after the backbone."""
