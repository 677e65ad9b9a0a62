"""Losses towards a teacher: a trained, dense model that sees the same images.

Teacher and student get the same network inputs and the same RoIs, those that the student samples.
Three outputs are compared. Each loss is exactly 0 where they are equal, and is a mean over images.

- `distill_class`: Kullback-Leibler divergence of the RoIs' class scores, both softened by a
  temperature T and times T^2 (Hinton et al., arXiv 1503.02531, section 2; for Faster R-CNN's
  head Chen et al., "Learning efficient object detection models with knowledge distillation",
  NeurIPS 2017, section 3.2, without their weight for the background).
- `distill_rpn`: the same divergence of objectness, on the anchors with the teacher's highest
  logits, as many as the recipe samples; most of the others are background to both.
- `distill_features`: squared error of the stride-16 feature map under the image, relative to its
  mean square (hint learning: Romero et al., arXiv 1412.6550; for detectors Chen et al.,
  section 3.4). No adaptation layer: both feature maps have the same channels.

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

SHARED_FIELDS = (
    "class_names",
    "background",
    "anchor_sizes",
    "anchor_ratios",
    "anchor_stride",
    "anchor_offset",
    "cell_anchors",
    "roi_size",
)
"""Fields of the configuration in which teacher and student must agree, so that their outputs mean
the same; so must the channels of the stride-16 feature map."""


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
            InputError: names the field in which they differ.
        """
        own = self.model.config
        for field in SHARED_FIELDS:
            mine, theirs = getattr(own, field), getattr(student, field)
            if mine != theirs:
                raise InputError(f"teacher {self.name}: {field} is {mine}, the student's {theirs}")
        mine, theirs = own.stage_channels[2], student.stage_channels[2]
        if mine != theirs:
            raise InputError(
                f"teacher {self.name}: its stride-16 feature map has {mine} channels, the "
                f"student's {theirs}"
            )


LOSSES = ("distill_class", "distill_rpn", "distill_features")
"""Names of the losses, and of their weights in the recipe."""


def check_recipe(recipe: Recipe, has_teacher: bool) -> None:
    """Refuse settings without effect.

    Raises:
        InputError: there is a teacher but no loss, or a changed setting but no teacher.
    """
    if has_teacher:
        if not weights(recipe):
            raise InputError(f"a teacher needs one of {', '.join(LOSSES)} above 0")
        return
    default = Recipe()
    for key in (*LOSSES, "distill_temperature"):
        if getattr(recipe, key) != getattr(default, key):
            raise InputError(f"{key} is {getattr(recipe, key)}, but there is no teacher")


def check_resumed(path: Path, before: str, now: Teacher | None) -> None:
    """Refuse to continue a run with a different teacher.

    Args:
        path: the checkpoint.
        before: SHA-256 of the teacher that it was trained with; "": none.
        now: the teacher that is given now.

    Raises:
        InputError: one of the two is missing, or they differ.
    """
    if before == (now.sha256 if now else ""):
        return
    if now and before:
        raise InputError(f"{path}: its run has another teacher than {now.name}")
    raise InputError(
        f"{path}: its run has no teacher"
        if now
        else f"{path}: its run has a teacher; give it again with --teacher"
    )


def weights(recipe: Recipe) -> dict[str, float]:
    """Weights of the losses that are not 0, by name."""
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
        network_input: [B, 3, H, W].
        extents: height and width of each image on it, pixels.
        features, objectness: the student's, [B, C, Hf, Wf] and logits [B, A].
        rois: [R_i, 4] for each image.
        class_logits: the student's [R, K + 1].
    """
    factors = weights(recipe)
    with torch.no_grad():
        teacher_features = teacher.model.features(network_input)
        teacher_objectness, _ = teacher.model.rpn_outputs(teacher_features)
        teacher_logits = None
        if "distill_class" in factors:
            teacher_logits = teacher.model.regions(teacher_features, rois)[0]
    losses = {}
    if teacher_logits is not None:
        losses["distill_class"] = class_loss(
            class_logits, teacher_logits, [len(r) for r in rois], recipe.distill_temperature
        )
    if "distill_rpn" in factors:
        losses["distill_rpn"] = objectness_loss(objectness, teacher_objectness, recipe.rpn_batch)
    if "distill_features" in factors:
        stride = teacher.model.config.anchor_stride
        sizes = [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in extents]
        losses["distill_features"] = feature_loss(features, teacher_features, sizes)
    return {name: factors[name] * loss for name, loss in losses.items()}


def class_loss(student: Tensor, teacher: Tensor, counts: list[int], temperature: float) -> Tensor:
    """T^2 KL(teacher || student), mean over an image's RoIs, then over images.

    Args:
        student, teacher: logits [R, K + 1].
        counts: number of RoIs of each image.
        temperature: T, above 0.
    """
    log_student, log_teacher = (
        (logits / temperature).log_softmax(dim=1) for logits in (student, teacher)
    )
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    weight = torch.cat([student.new_full((n,), 1 / (max(n, 1) * len(counts))) for n in counts])
    return (weight * divergence).sum() * temperature**2


def objectness_loss(student: Tensor, teacher: Tensor, count: int) -> Tensor:
    """KL(teacher || student) of the `count` anchors of each image with the teacher's highest
    logits.

    Args:
        student, teacher: logits [B, A].
    """
    teacher, index = teacher.topk(min(count, teacher.shape[1]), dim=1)
    student = student.gather(1, index)
    score = teacher.sigmoid()
    object_term = score * (F.logsigmoid(teacher) - F.logsigmoid(student))
    background_term = (1 - score) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (object_term + background_term).mean()


def feature_loss(student: Tensor, teacher: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Squared error over the teacher's mean square, mean over images.

    Args:
        student, teacher: feature maps [B, C, Hf, Wf].
        sizes: cells (rows, columns) under each image.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for of_student, of_teacher, (rows, columns) in zip(student, teacher, sizes, strict=True):
        target = of_teacher[:, :rows, :columns].float()
        error = (of_student[:, :rows, :columns].float() - target).square().mean()
        total = total + error / target.square().mean().clamp(min=1e-12)
    return total / len(sizes)
