"""Photographs and ground truth -> batches, repeatable from (seed, epoch, image).

A batch lies on one canvas: each photograph is resized to fit the model's canvas (times a
random scale), flipped at random, and placed top left on raw zeros, as at inference.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..coco import CocoDataset, CocoImage
from ..config import ModelConfig
from ..preprocess import read_image, to_canvas
from .losses import Target
from .recipe import Recipe


def epoch_batches(dataset: CocoDataset, recipe: Recipe, epoch: int) -> list[list[int]]:
    """Indices of each batch of an epoch: shuffled, landscape and portrait apart.

    Photographs without boxes are left out, as in TensorPack and Detectron2. What does not
    fill a batch at the end of the epoch is dropped, unless there is no full batch at all.
    """
    rng = random.Random(f"{recipe.seed}/{epoch}")
    order = [i for i, image in enumerate(dataset.images) if (~image.crowd).any()]
    rng.shuffle(order)
    groups: dict[bool, list[int]] = {True: [], False: []}
    batches = []
    for index in order:
        image = dataset.images[index]
        group = groups[image.width >= image.height]
        group.append(index)
        if len(group) == recipe.batch:
            batches.append(list(group))
            group.clear()
    return batches or [order[: recipe.batch]]


def load_sample(
    dataset: CocoDataset, image: CocoImage, config: ModelConfig, recipe: Recipe, epoch: int
) -> tuple[np.ndarray, Target]:
    """One augmented photograph (H, W, 3) uint8 BGR with its target."""
    rng = random.Random(f"{recipe.seed}/{epoch}/{image.id}")
    photo = read_image(dataset.image_path(image))
    scale = rng.uniform(recipe.scale_low, recipe.scale_high)
    window = (round(config.canvas_height * scale), round(config.canvas_width * scale))
    resized, at = to_canvas(photo, *window)
    resized = resized[: at.dst_height, : at.dst_width]
    real = ~image.crowd
    factor = np.array([at.dst_width / image.width, at.dst_height / image.height] * 2)
    boxes = (image.boxes[real] * factor).astype(np.float32)
    if rng.random() < recipe.flip:
        resized = resized[:, ::-1]
        boxes[:, [0, 2]] = at.dst_width - boxes[:, [2, 0]]
    target = Target(
        torch.from_numpy(boxes), torch.from_numpy(image.labels[real]),
        at.dst_height, at.dst_width, rng.getrandbits(48),
    )  # fmt: skip
    return resized, target


def load_batch(
    dataset: CocoDataset, indices: list[int], config: ModelConfig, recipe: Recipe, epoch: int
) -> tuple[Tensor, list[Target]]:
    """A canvas uint8 [B, 3, H, W] just large enough, a multiple of 16, and its targets."""
    samples = [load_sample(dataset, dataset.images[i], config, recipe, epoch) for i in indices]
    height = math.ceil(max(t.height for _, t in samples) / 16) * 16
    width = math.ceil(max(t.width for _, t in samples) / 16) * 16
    canvas = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    for i, (photo, target) in enumerate(samples):
        canvas[i, : target.height, : target.width] = torch.from_numpy(np.ascontiguousarray(photo))
    return canvas.permute(0, 3, 1, 2), [t for _, t in samples]


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Batches from a given step on, epoch after epoch, for a DataLoader with 0 or 1 worker."""

    def __init__(
        self, dataset: CocoDataset, config: ModelConfig, recipe: Recipe, start: int
    ) -> None:
        self.dataset, self.config, self.recipe, self.start = dataset, config, recipe, start

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target], list[int]]]:
        step, epoch = 0, 0
        while True:
            for indices in epoch_batches(self.dataset, self.recipe, epoch):
                if step >= self.start:
                    ids = [self.dataset.images[i].id for i in indices]
                    yield *load_batch(self.dataset, indices, self.config, self.recipe, epoch), ids
                step += 1
            epoch += 1
