"""Losses towards a teacher: a trained, dense model that sees the same images.

Teacher and student get the same network inputs and the same RoIs, those that the student samples.
Three outputs are compared. Each loss is exactly 0 where they are equal, and is a mean over images.

- `distill_class`: Kullback-Leibler divergence of the RoIs' class scores, both softened by a
  temperature T and times T^2 (Hinton et al., arXiv 1503.02531, section 2; for Faster R-CNN's
  head Chen et al., "Learning efficient object detection models with knowledge distillation",
  NeurIPS 2017, section 3.2, without their weight for the background).
- `distill_rpn`: the same divergence of objectness, on the anchors with the teacher's highest
  logits, as many as the recipe samples; most of the others are background to both.
- `distill_features`: squared error of the feature maps that RoIAlign reads under the image,
  relative to their mean square, mean over levels (hint learning: Romero et al., arXiv 1412.6550;
  for detectors Chen et al., section 3.4). No adaptation layer: both have the same channels.

Boxes are learnt from the ground truth alone. The teacher costs a forward pass and is not trained.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..torch_model import TwoStageDetector
from .recipe import Recipe


def shared(model: TwoStageDetector) -> dict[str, Any]:
    """That in which teacher and student must agree, so that their outputs mean the same."""
    return {
        "class_names": model.config.class_names,
        "background": model.detecting.background,
        "strides": model.proposing.strides,
        "cell_anchors": model.proposing.cell_anchors,
        "roi_size": model.aligning.size,
        "levels of RoIs": model.aligning.scales,
        "channels of feature maps": model.graph.shapes[model.maps[0]].channels,
    }


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A model to learn from.

    Attributes:
        model: in evaluation mode, without gradients.
        name, sha256: of its file.
    """

    model: TwoStageDetector
    name: str
    sha256: str

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    def check(self, student: TwoStageDetector) -> None:
        """Refuse a student whose outputs mean something else.

        Raises:
            InputError: names that in which they differ.
        """
        others = shared(student)
        for field, value in shared(self.model).items():
            if value != others[field]:
                mine, theirs = reprlib.repr(value), reprlib.repr(others[field])
                raise InputError(f"teacher {self.name}: {field} is {mine}, the student's {theirs}")


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
    maps: list[Tensor],
    objectness: Tensor,
    rois: list[Tensor],
    class_logits: Tensor,
) -> dict[str, Tensor]:
    """The losses of `weights`, weighted.

    Args:
        network_input: [B, 3, H, W].
        extents: height and width of each image on it, pixels.
        maps, objectness: the student's, of each level [B, C, H_l, W_l], and logits [B, A].
        rois: [R_i, 4] for each image.
        class_logits: the student's [R, K + 1].
    """
    factors = weights(recipe)
    with torch.no_grad():
        stage = teacher.model.first_stage(network_input)
        teacher_objectness = torch.cat(stage.logits, dim=1)
        teacher_logits = None
        if "distill_class" in factors:
            teacher_logits = teacher.model.second_stage(stage.maps, rois)[0]
    losses = {}
    if teacher_logits is not None:
        losses["distill_class"] = class_loss(
            class_logits, teacher_logits, [len(r) for r in rois], recipe.distill_temperature
        )
    if "distill_rpn" in factors:
        losses["distill_rpn"] = objectness_loss(objectness, teacher_objectness, recipe.rpn_batch)
    if "distill_features" in factors:
        total = maps[0].new_zeros((), dtype=torch.float32)
        for scale, mine, theirs in zip(
            teacher.model.aligning.scales, maps, stage.maps, strict=True
        ):
            stride = round(1 / scale)
            sizes = [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in extents]
            total = total + feature_loss(mine, theirs, sizes)
        losses["distill_features"] = total / len(maps)
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
