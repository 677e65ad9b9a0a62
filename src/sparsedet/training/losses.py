"""The four losses of Faster R-CNN, and the matching and sampling of anchors and RoIs for them.

With a teacher, the losses of `distill` are added.

Box arithmetic is float32 throughout, also under autocast. Sampling draws from a generator with a
seed for each image, so that a step is repeatable on every machine.

One code serves C4 and Feature Pyramid Networks: anchors, levels and conventions are those of the
graph. With a pyramid it does what torchvision does: the anchors of all levels are matched and
sampled together; of each level `rpn_pre_nms` boxes go into an NMS of their own, and the best
`rpn_post_nms` of all levels are left; RoIs are read from the level of their size. What differs from
torchvision, as for C4: batch norms have frozen statistics and trained scales; the RPN's losses are
divided by the anchors asked for, not by those drawn, which are fewer in tiny images; the RoI
head's losses are means of each image first; box losses are L1 where `rpn_beta` and `roi_beta` are
0 (1/9: torchvision's); a target that overlaps no anchor makes none positive.

Shapes: B images, A anchors of one image, G boxes of its ground truth, R sampled RoIs, K classes.
Matched labels: 1 positive, 0 negative, -1 ignored.

Source: Faster R-CNN (arXiv 1506.01497), with the settings listed in docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torchvision.ops as ops
from torch import Tensor, nn
from torch.nn import functional as F

from ..torch_model import TwoStageDetector, encode
from .crowds import without_regions
from .distill import Teacher, distillation, weights
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Target:
    """The target of one image: its ground truth on the network input.

    Attributes:
        boxes: [G, 4] xyxy pixels of the network input.
        labels: [G], 1..K.
        height, width: size of the resized image on the network input, pixels.
        seed: for this image's sampling.
        ignored: [C, 4] regions that are neither object nor background: crowds, and objects that
            were left out.
    """

    boxes: Tensor
    labels: Tensor
    height: int
    width: int
    seed: int
    ignored: Tensor = field(default_factory=lambda: torch.zeros(0, 4))

    def to(self, device: torch.device) -> Target:
        """The same with its tensors on `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            ignored=self.ignored.to(device),
        )


def match(
    boxes: Tensor, targets: Tensor, positive: float, negative: float, low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Match each of N boxes with the target that it overlaps most.

    Args:
        boxes: anchors or proposals [N, 4].
        targets: boxes of the ground truth [G, 4].
        positive: a box is positive from this IoU on.
        negative: a box is negative below this IoU.
        low_quality: the boxes that overlap a target most are positive at any IoU, ties included.

    Returns:
        index of the matched target [N], 0 where there is none, and matched label [N].
    """
    if not len(targets):
        zeros = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return zeros, zeros.clone()
    iou = ops.box_iou(targets, boxes)  # [G, N]
    best, index = iou.max(dim=0)
    matched_label = torch.full_like(index, -1)
    matched_label[best < negative] = 0
    matched_label[best >= positive] = 1
    if low_quality:
        best_of_target = iou.max(dim=1, keepdim=True).values
        matched_label[((iou == best_of_target) & (best_of_target > 0)).any(dim=0)] = 1
    return index, matched_label


def sample(
    matched_label: Tensor, count: int, positive_fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw at most `count` boxes, of which at most `positive_fraction` are positive.

    Args:
        matched_label: from `match` [N].

    Returns:
        indices of the drawn positive and of the drawn negative boxes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(candidates: Tensor, limit: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator)[:limit]
        return candidates[order.to(candidates.device)]

    positives = draw((matched_label == 1).nonzero().flatten(), int(count * positive_fraction))
    negatives = draw((matched_label == 0).nonzero().flatten(), count - len(positives))
    return positives, negatives


def box_loss(
    predictions: Tensor, targets: Tensor, beta: float, weight: Tensor | float = 1.0
) -> Tensor:
    """Sum of smooth L1.

    Args:
        predictions, targets: deltas [N, 4].
        beta: where the square becomes linear; 0: plain L1.
        weight: of all boxes, or of each [N, 1].
    """
    if beta == 0.0:
        return (weight * F.l1_loss(predictions, targets, reduction="none")).sum()
    return (weight * F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none")).sum()


def rpn_losses(
    model: TwoStageDetector,
    recipe: Recipe,
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: list[Target],
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the RPN, mean over images.

    Args:
        logits: [B, A].
        deltas: [B, A, 4].
        anchors: [A, 4].
    """
    objectness = logits.new_zeros(())
    regression = logits.new_zeros(())
    for logit, delta, target in zip(logits, deltas, targets, strict=True):
        index, matched_label = match(anchors, target.boxes, 0.7, 0.3, low_quality=True)
        matched_label = without_regions(
            matched_label, anchors, target.ignored, recipe.crowd_overlap
        )
        if recipe.rpn_anchors_inside:
            limit = anchors.new_tensor([target.width, target.height])
            inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= limit).all(1)
            matched_label = torch.where(inside, matched_label, -1)
        positives, negatives = sample(matched_label, recipe.rpn_batch, 0.5, target.seed)
        drawn = torch.cat([positives, negatives])
        objectness = objectness + F.binary_cross_entropy_with_logits(
            logit[drawn], (matched_label[drawn] == 1).float(), reduction="sum"
        )
        # Also without a positive: several processes need a gradient for every parameter.
        boxes = target.boxes[index[positives]] if len(positives) else anchors[:0]
        target_deltas = encode(anchors[positives], boxes, model.proposing.box_weights)
        regression = regression + box_loss(delta[positives], target_deltas, recipe.rpn_beta)
    scale = 1.0 / (recipe.rpn_batch * len(targets))
    return objectness * scale, regression * scale


@torch.no_grad()
def sample_rois(
    recipe: Recipe,
    proposals: Tensor,
    target: Target,
    box_weights: tuple[float, float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """RoIs to train the RoI head on; the ground truth is among the candidates.

    Args:
        proposals: of one image [N, 4].

    Returns:
        boxes [R, 4], labels [R] (0 is background; positives first), target deltas [positives, 4].
    """
    boxes = torch.cat([proposals, target.boxes])
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)]
    index, matched_label = match(boxes, target.boxes, 0.5, 0.5, low_quality=False)
    matched_label = without_regions(matched_label, boxes, target.ignored, recipe.crowd_overlap)
    positives, negatives = sample(
        matched_label, recipe.roi_batch, recipe.roi_positive, target.seed + 1
    )
    labels = torch.zeros(len(positives) + len(negatives), dtype=torch.long, device=boxes.device)
    labels[: len(positives)] = target.labels[index[positives]] if len(positives) else 0
    matched = target.boxes[index[positives]] if len(positives) else boxes[:0]
    target_deltas = encode(boxes[positives], matched, box_weights)
    return boxes[torch.cat([positives, negatives])], labels, target_deltas


def roi_losses(
    model: TwoStageDetector,
    recipe: Recipe,
    logits: Tensor,
    deltas: Tensor,
    labels: list[Tensor],
    target_deltas: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of the RoI head: mean over an image's RoIs, then over images.

    Every image counts alike, as in Detectron2 with one image for each process, so that the result
    does not depend on how a batch is cut into micro-batches. If all images have the same number of
    RoIs, it is the mean over all RoIs.

    Args:
        logits, deltas: [R, K + 1] and [R, K (+ 1), 4] over the images in order.
        labels, target_deltas: of each image, from `sample_rois`.
    """
    output = model.detecting
    label = torch.cat(labels)
    weight = torch.cat(
        [logits.new_full((len(x),), 1 / (max(len(x), 1) * len(labels))) for x in labels]
    )
    # Labels are 1..K with 0 for background; columns follow the graph's class order.
    column = label if output.background == "first" else (label - 1) % (output.num_classes + 1)
    classification = (weight * F.cross_entropy(logits, column, reduction="none")).sum()
    positive = label > 0
    offset = 0 if output.background == "first" and output.background_deltas else 1
    predictions = deltas[positive, label[positive] - offset]
    regression = box_loss(
        predictions, torch.cat(target_deltas), recipe.roi_beta, weight[positive, None]
    )
    return classification, regression


def losses(
    model: TwoStageDetector,
    recipe: Recipe,
    network_input: Tensor,
    targets: list[Target],
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """All losses of a micro-batch.

    Args:
        network_input: uint8 or float BGR [B, 3, H, W], raw zeros beside the images.
        targets: one for each image.
        teacher: adds the losses of `distill`.

    Returns:
        `rpn_objectness`, `rpn_box`, `roi_class`, `roi_box`, and those of the teacher: scalars; the
        loss is their sum.
    """
    stage = model.first_stage(network_input)
    logits, deltas = torch.cat(stage.logits, dim=1), torch.cat(stage.deltas, dim=1)
    anchors = torch.cat(stage.anchors)
    rpn_objectness, rpn_box = rpn_losses(model, recipe, logits, deltas, anchors, targets)
    count = recipe.rpn_post_nms or (1000 if len(stage.anchors) == 1 else 2000)
    rois, labels, target_deltas = [], [], []
    for i, target in enumerate(targets):
        proposals = model.proposals_of(
            stage, i, target.height, target.width, recipe.rpn_pre_nms, count
        )
        boxes, label, delta = sample_rois(recipe, proposals, target, model.detecting.box_weights)
        rois.append(boxes)
        labels.append(label)
        target_deltas.append(delta)
    class_logits, class_deltas = model.second_stage(stage.maps, rois)
    roi_class, roi_box = roi_losses(
        model, recipe, class_logits, class_deltas, labels, target_deltas
    )
    values = {
        "rpn_objectness": rpn_objectness,
        "rpn_box": rpn_box,
        "roi_class": roi_class,
        "roi_box": roi_box,
    }
    if teacher is not None:
        extents = [(target.height, target.width) for target in targets]
        values |= distillation(
            teacher, recipe, network_input, extents, stage.maps, logits, rois, class_logits
        )
    return values


class LossModule(nn.Module):
    """`losses` as a module, for DistributedDataParallel to wrap.

    Attributes:
        names: of the losses, in the order of `forward`'s result.
    """

    def __init__(
        self, model: TwoStageDetector, recipe: Recipe, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.teacher = model, recipe, teacher
        self.names: tuple[str, ...] = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")
        if teacher is not None:
            self.names += tuple(weights(recipe))

    def forward(self, network_input: Tensor, targets: list[Target]) -> Tensor:
        """The losses, [len(names)]."""
        values = losses(self.model, self.recipe, network_input, targets, self.teacher)
        return torch.stack([values[name] for name in self.names])
