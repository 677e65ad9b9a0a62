"""The four losses of Faster R-CNN and the sampling of anchors and regions behind them.

With a teacher, the losses of `distill` come on top.

Box arithmetic is float32 throughout, also under autocast. Sampling draws from a generator
that the caller seeds for each image, so that a step is repeatable wherever it runs.

Glossary: A all anchors of one image, G its ground-truth boxes, R sampled regions, K classes.
Matching codes: 1 positive, 0 negative, -1 ignored.
Source: Faster R-CNN (arXiv 1506.01497) with the settings tabled in docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..torch_model import FasterRCNN, encode
from .distill import Teacher, distillation, weights
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Target:
    """Ground truth of one image of a batch.

    Attributes:
        boxes: [G, 4] xyxy network input pixels; labels: [G], 1..K.
        height, width: the photograph's extent on the network input, pixels.
        seed: of this image's sampling.
    """

    boxes: Tensor
    labels: Tensor
    height: int
    width: int
    seed: int

    def to(self, device: torch.device) -> Target:
        """The same with its tensors on `device`."""
        return replace(self, boxes=self.boxes.to(device), labels=self.labels.to(device))


def match(
    boxes: Tensor, truth: Tensor, positive: float, negative: float, low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Assign each of N boxes to the ground truth it overlaps most.

    Args:
        boxes, truth: [N, 4] and [G, 4].
        positive, negative: IoU of at least / below which a box is positive / negative.
        low_quality: also make positive every box that is some truth's best (ties included).

    Returns:
        index of the matched truth [N] (0 where there is none) and the code [N].
    """
    if not len(truth):
        zeros = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return zeros, zeros.clone()
    overlap = ops.box_iou(truth, boxes)  # [G, N]
    best, index = overlap.max(dim=0)
    code = torch.full_like(index, -1)
    code[best < negative] = 0
    code[best >= positive] = 1
    if low_quality:
        best_of_truth = overlap.max(dim=1, keepdim=True).values
        code[((overlap == best_of_truth) & (best_of_truth > 0)).any(dim=0)] = 1
    return index, code


def sample(code: Tensor, count: int, positive_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw at most `count` boxes, at most `positive_share` of them positive.

    Returns:
        indices of the drawn positives and negatives.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(candidates: Tensor, limit: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator)[:limit]
        return candidates[order.to(candidates.device)]

    positives = draw((code == 1).nonzero().flatten(), int(count * positive_share))
    negatives = draw((code == 0).nonzero().flatten(), count - len(positives))
    return positives, negatives


def box_loss(found: Tensor, wanted: Tensor, beta: float, weight: Tensor | float = 1.0) -> Tensor:
    """Sum of smooth L1 with transition `beta` (0: plain L1).

    Args:
        found, wanted: [N, 4]; weight: of all, or of each [N, 1].
    """
    if beta == 0.0:
        return (weight * F.l1_loss(found, wanted, reduction="none")).sum()
    return (weight * F.smooth_l1_loss(found, wanted, beta=beta, reduction="none")).sum()


def rpn_losses(
    model: FasterRCNN,
    recipe: Recipe,
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: list[Target],
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the proposal network, mean over images.

    Args:
        logits, deltas: [B, A] and [B, A, 4]; anchors: [A, 4].
    """
    objectness = logits.new_zeros(())
    regression = logits.new_zeros(())
    for logit, delta, target in zip(logits, deltas, targets, strict=True):
        index, code = match(anchors, target.boxes, 0.7, 0.3, low_quality=True)
        if recipe.rpn_anchors_inside:
            limit = anchors.new_tensor([target.width, target.height])
            inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= limit).all(1)
            code = torch.where(inside, code, -1)
        positives, negatives = sample(code, recipe.rpn_batch, 0.5, target.seed)
        drawn = torch.cat([positives, negatives])
        objectness = objectness + F.binary_cross_entropy_with_logits(
            logit[drawn], (code[drawn] == 1).float(), reduction="sum"
        )
        # Also without a positive: several processes need a gradient for every parameter.
        truth = target.boxes[index[positives]] if len(positives) else anchors[:0]
        wanted = encode(anchors[positives], truth, model.config.rpn_box_weights)
        regression = regression + box_loss(delta[positives], wanted, recipe.rpn_beta)
    scale = 1.0 / (recipe.rpn_batch * len(targets))
    return objectness * scale, regression * scale


@torch.no_grad()
def sample_regions(
    recipe: Recipe, proposals: Tensor, target: Target, box_weights: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Regions to train the head on, ground truth among the candidates.

    Returns:
        boxes [R, 4], labels [R] (0 background, positives first) and deltas [positives, 4].
    """
    boxes = torch.cat([proposals, target.boxes])
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)]
    index, code = match(boxes, target.boxes, 0.5, 0.5, low_quality=False)
    positives, negatives = sample(code, recipe.roi_batch, recipe.roi_positive, target.seed + 1)
    labels = torch.zeros(len(positives) + len(negatives), dtype=torch.long, device=boxes.device)
    labels[: len(positives)] = target.labels[index[positives]] if len(positives) else 0
    truth = target.boxes[index[positives]] if len(positives) else boxes[:0]
    wanted = encode(boxes[positives], truth, box_weights)  # type: ignore[arg-type]
    return boxes[torch.cat([positives, negatives])], labels, wanted


def roi_losses(
    model: FasterRCNN,
    recipe: Recipe,
    logits: Tensor,
    deltas: Tensor,
    labels: list[Tensor],
    wanted: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of the head: mean over an image's regions, then over images.

    Every image counts alike, as with Detectron2's one image a process, so that a batch gives
    the same however it is cut into parts. Where all images have the same number of regions, it
    is the mean over all regions.

    Args:
        logits, deltas: [R, K + 1] and [R, K (+ 1), 4] over the images in order.
        labels, wanted: of each image, as `sample_regions` returns them.
    """
    config = model.config
    label = torch.cat(labels)
    weight = torch.cat(
        [logits.new_full((len(x),), 1 / (max(len(x), 1) * len(labels))) for x in labels]
    )
    # Labels are 1..K with 0 for background; columns follow the configuration's class order.
    column = label if config.background == "first" else (label - 1) % (config.num_classes + 1)
    classification = (weight * F.cross_entropy(logits, column, reduction="none")).sum()
    positive = label > 0
    offset = 0 if config.background == "first" and config.background_deltas else 1
    chosen = deltas[positive, label[positive] - offset]
    regression = box_loss(chosen, torch.cat(wanted), recipe.roi_beta, weight[positive, None])
    return classification, regression


def losses(
    model: FasterRCNN,
    recipe: Recipe,
    network_input: Tensor,
    targets: list[Target],
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """All losses of a batch.

    Args:
        network_input: uint8 or float BGR [B, 3, H, W], raw zeros where no photograph is.

    Returns:
        `rpn_objectness`, `rpn_box`, `roi_class`, `roi_box`, and those of a teacher: scalars to
        be added up.
    """
    features = model.features(network_input)
    logits, deltas = model.rpn_outputs(features)
    anchors = model.anchors(features)
    rpn_objectness, rpn_box = rpn_losses(model, recipe, logits, deltas, anchors, targets)
    rois, labels, wanted = [], [], []
    for i, target in enumerate(targets):
        proposals = model.proposals(
            logits[i].detach(),
            deltas[i].detach(),
            anchors,
            target.height,
            target.width,
            recipe.rpn_pre_nms,
            recipe.rpn_post_nms,
        )
        boxes, label, delta = sample_regions(recipe, proposals, target, model.config.box_weights)
        rois.append(boxes)
        labels.append(label)
        wanted.append(delta)
    class_logits, class_deltas = model.regions(features, rois)
    roi_class, roi_box = roi_losses(model, recipe, class_logits, class_deltas, labels, wanted)
    found = {
        "rpn_objectness": rpn_objectness,
        "rpn_box": rpn_box,
        "roi_class": roi_class,
        "roi_box": roi_box,
    }
    if teacher is not None:
        extents = [(target.height, target.width) for target in targets]
        found |= distillation(
            teacher, recipe, network_input, extents, features, logits, rois, class_logits
        )
    return found


class LossModule(nn.Module):
    """`losses` as a module, which is what DistributedDataParallel wraps.

    Attributes:
        names: of the losses, in the order in which `forward` returns them.
    """

    def __init__(self, model: FasterRCNN, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model, self.recipe, self.teacher = model, recipe, teacher
        self.names: tuple[str, ...] = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")
        if teacher is not None:
            self.names += tuple(weights(recipe))

    def forward(self, network_input: Tensor, targets: list[Target]) -> Tensor:
        """The losses, [len(names)]."""
        found = losses(self.model, self.recipe, network_input, targets, self.teacher)
        return torch.stack([found[name] for name in self.names])
