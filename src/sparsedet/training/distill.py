"""Losses towards a teacher: what a trained, dense model makes of the same photographs.

Teacher and student see the same network inputs, and the same regions: those that the student samples.
Three outputs are compared. Each loss is exactly 0 where they are equal, and is a mean over images.

- `distill_class`: Kullback-Leibler divergence of the regions' class scores, both softened by a
  temperature T and times T^2 (Hinton et al., arXiv 1503.02531, section 2; for Faster R-CNN's
  head Chen et al., "Learning efficient object detection models with knowledge distillation",
  NeurIPS 2017, section 3.2, without their weight for the background).
- `distill_rpn`: the same divergence of objectness, on the anchors that the teacher rates highest,
  as many as the recipe samples; by far most of the others are background to both.
- `distill_features`: squared error of the stride-16 map, in proportion to its mean square, under
  the photograph (hint learning: Romero et al., arXiv 1412.6550; for detectors Chen et al.,
  section 3.4). No adapting layer: both maps have the same channels.

Boxes are learnt from the ground truth alone. The teacher costs a forward pass and is not trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..model.config import ModelConfig
from ..torch_model import FasterRCNN
from .recipe import Recipe

SAME = (
    "class_names",
    "background",
    "anchor_sizes",
    "anchor_ratios",
    "anchor_stride",
    "anchor_offset",
    "cell_anchors",
    "roi_size",
)
"""What outputs mean the same by; the channels of the stride-16 map come on top."""


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A model to learn from.

    Attributes:
        model: in evaluation mode, without gradients.
        name, sha256: of its file.
    """

    model: FasterRCNN
    name: str
    sha256: str

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    def check(self, student: ModelConfig) -> None:
        """Refuse a student whose outputs mean something else.

        Raises:
            InputError: names the setting in which they differ.
        """
        own = self.model.config
        for field in SAME:
            mine, theirs = getattr(own, field), getattr(student, field)
            if mine != theirs:
                raise InputError(f"teacher {self.name}: {field} is {mine}, the student's {theirs}")
        mine, theirs = own.stage_channels[2], student.stage_channels[2]
        if mine != theirs:
            raise InputError(
                f"teacher {self.name}: its stride-16 map has {mine} channels, the "
                f"student's {theirs}"
            )


LOSSES = ("distill_class", "distill_rpn", "distill_features")
"""Names, which are those of their weights in the recipe."""


def check_recipe(recipe: Recipe, taught: bool) -> None:
    """Refuse settings that would do nothing.

    Raises:
        InputError: there is a teacher and no loss, or a setting and no teacher.
    """
    if taught:
        if not weights(recipe):
            raise InputError(f"a teacher needs one of {', '.join(LOSSES)} above 0")
        return
    usual = Recipe()
    for key in (*LOSSES, "distill_temperature"):
        if getattr(recipe, key) != getattr(usual, key):
            raise InputError(f"{key} is {getattr(recipe, key)}, but there is no teacher")


def check_resumed(path: Path, before: str, now: Teacher | None) -> None:
    """Refuse to continue a run with another teacher than it had.

    Args:
        path: of the checkpoint; before: its teacher's SHA-256, "" for none.

    Raises:
        InputError: says which of the two is missing or another.
    """
    if before == (now.sha256 if now else ""):
        return
    if now and before:
        raise InputError(f"{path}: its run learns from another teacher than {now.name}")
    raise InputError(
        f"{path}: its run has no teacher"
        if now
        else f"{path}: its run learns from a teacher: give it again"
    )


def weights(recipe: Recipe) -> dict[str, float]:
    """Name -> weight of the losses that count."""
    return {name: float(getattr(recipe, name)) for name in LOSSES if getattr(recipe, name)}


def distillation(
    teacher: Teacher,
    recipe: Recipe,
    network_input: Tensor,
    extents: list[tuple[int, int]],
    features: Tensor,
    objectness: Tensor,
    rois: list[Tensor],
    class_logits: Tensor,
) -> dict[str, Tensor]:
    """The losses of `weights`, weighted.

    Args:
        network_input: [B, 3, H, W]; extents: (height, width) of each photograph on it, pixels.
        features, objectness: the student's, [B, C, Hf, Wf] and [B, A].
        rois: the regions [R_i, 4] of each image; class_logits: the student's [R, K + 1].
    """
    factors = weights(recipe)
    with torch.no_grad():
        seen = teacher.model.features(network_input)
        rated, _ = teacher.model.rpn_outputs(seen)
        wanted = None
        if "distill_class" in factors:
            wanted = teacher.model.regions(seen, rois)[0]
    found = {}
    if wanted is not None:
        found["distill_class"] = class_loss(
            class_logits, wanted, [len(r) for r in rois], recipe.distill_temperature
        )
    if "distill_rpn" in factors:
        found["distill_rpn"] = objectness_loss(objectness, rated, recipe.rpn_batch)
    if "distill_features" in factors:
        stride = teacher.model.config.anchor_stride
        sizes = [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in extents]
        found["distill_features"] = feature_loss(features, seen, sizes)
    return {name: factors[name] * loss for name, loss in found.items()}


def class_loss(found: Tensor, wanted: Tensor, counts: list[int], temperature: float) -> Tensor:
    """T^2 KL(teacher || student), mean over an image's regions, then over images.

    Args:
        found, wanted: logits [R, K + 1] of student and teacher.
        counts: regions of each image.
    """
    mine, theirs = ((x / temperature).log_softmax(dim=1) for x in (found, wanted))
    divergence = (theirs.exp() * (theirs - mine)).sum(dim=1)
    weight = torch.cat([found.new_full((n,), 1 / (max(n, 1) * len(counts))) for n in counts])
    return (weight * divergence).sum() * temperature**2


def objectness_loss(found: Tensor, wanted: Tensor, count: int) -> Tensor:
    """KL(teacher || student) of the `count` anchors of each image that the teacher rates highest.

    Args:
        found, wanted: logits [B, A] of student and teacher.
    """
    wanted, index = wanted.topk(min(count, wanted.shape[1]), dim=1)
    found = found.gather(1, index)
    score = wanted.sigmoid()
    yes = score * (F.logsigmoid(wanted) - F.logsigmoid(found))
    no = (1 - score) * (F.logsigmoid(-wanted) - F.logsigmoid(-found))
    return (yes + no).mean()


def feature_loss(found: Tensor, wanted: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Squared error over the teacher's mean square, mean over images.

    Args:
        found, wanted: maps [B, C, Hf, Wf] of student and teacher.
        sizes: cells (rows, columns) under each photograph.
    """
    total = found.new_zeros((), dtype=torch.float32)
    for mine, theirs, (rows, columns) in zip(found, wanted, sizes, strict=True):
        target = theirs[:, :rows, :columns].float()
        error = (mine[:, :rows, :columns].float() - target).square().mean()
        total = total + error / target.square().mean().clamp(min=1e-12)
    return total / len(sizes)
