"""Photographs and ground truth -> batches, repeatable from (seed, epoch, image).

Each photograph is resized, flipped at random, and placed top left on raw zeros, as at inference.
The batch of a step is cut into parts, each on a network input of its own; the parts are dealt out to the
processes. A part is the same on whichever process, so that the layout changes nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation.coco import CocoDataset, CocoImage
from ..images.letterbox import to_network_input
from ..images.read import read_image
from ..model.config import ModelConfig
from .losses import Target
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some images of a step's batch.

    Attributes:
        network_input: uint8 [B, 3, H, W], H and W multiples of 16.
        targets: of each image.
        share: B / images of the whole batch.
        image_ids: of the whole batch.
    """

    network_input: Tensor
    targets: list[Target]
    share: float
    image_ids: list[int]

    def pin_memory(self) -> MicroBatch:
        """The same with pixels that are copied to a GPU while it computes; a DataLoader asks."""
        return replace(self, network_input=self.network_input.pin_memory())


def held_out(dataset: CocoDataset, fraction: float) -> tuple[CocoDataset, CocoDataset]:
    """The photographs to train on, and about `fraction` of all to validate on.

    A photograph's id alone decides, so that every run over the same data keeps the same ones
    apart: a model that another starts from has not seen them either.
    """
    apart = {i.id for i in dataset.images if random.Random(f"val/{i.id}").random() < fraction}
    train, val = (
        replace(dataset, images=tuple(i for i in dataset.images if (i.id in apart) == side))
        for side in (False, True)
    )
    return train, val


def epoch_batches(dataset: CocoDataset, recipe: Recipe, epoch: int) -> list[list[int]]:
    """Indices of each batch of an epoch: shuffled, landscape and portrait apart.

    Photographs without boxes are left out, as in TensorPack and Detectron2. What is left of both
    at the end of the epoch is mixed; what does not fill a batch then is dropped, unless there is
    no full batch at all.
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
    rest = groups[True] + groups[False]
    rng.shuffle(rest)
    if len(rest) >= recipe.batch or not batches:
        batches.append(rest[: recipe.batch])
    return batches


def read_photograph(dataset: CocoDataset, image: CocoImage) -> np.ndarray:
    """A photograph of the data set (H, W, 3) uint8 BGR, of any size with the annotated aspect.

    Raises:
        InputError: it cannot be read, or its aspect is not the one that its boxes are for.
    """
    path = dataset.image_path(image)
    photo = read_image(path)
    height, width = photo.shape[:2]
    if abs(width * image.height - height * image.width) > max(image.width, image.height):
        raise InputError(
            f"{path}: is {width}x{height}, but annotated as {image.width}x{image.height}"
        )
    return photo


def load_sample(
    dataset: CocoDataset, image: CocoImage, config: ModelConfig, recipe: Recipe, epoch: int
) -> tuple[np.ndarray, Target]:
    """One augmented photograph (H, W, 3) uint8 BGR with its target."""
    rng = random.Random(f"{recipe.seed}/{epoch}/{image.id}")
    photo = read_photograph(dataset, image)
    if recipe.short_sides:
        short, long = sorted((image.height, image.width))
        scale = min(rng.choice(recipe.short_sides) / short, recipe.long_side / long)
        window = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    else:
        scale = rng.uniform(recipe.scale_low, recipe.scale_high)
        window = (round(config.input_height * scale), round(config.input_width * scale))
    resized, at = to_network_input(photo, *window)
    resized = resized[: at.resized_height, : at.resized_width]
    real = ~image.crowd
    factor = np.array([at.resized_width / image.width, at.resized_height / image.height] * 2)
    boxes = (image.boxes[real] * factor).astype(np.float32)
    if rng.random() < recipe.flip:
        resized = resized[:, ::-1]
        boxes[:, [0, 2]] = at.resized_width - boxes[:, [2, 0]]
    target = Target(
        torch.from_numpy(boxes),
        torch.from_numpy(image.labels[real]),
        at.resized_height,
        at.resized_width,
        rng.getrandbits(48),
    )
    return resized, target


def load_batch(
    dataset: CocoDataset, indices: list[int], config: ModelConfig, recipe: Recipe, epoch: int
) -> tuple[Tensor, list[Target]]:
    """A network input uint8 [B, 3, H, W] just large enough, a multiple of 16, and its targets."""
    samples = [load_sample(dataset, dataset.images[i], config, recipe, epoch) for i in indices]
    height = math.ceil(max(t.height for _, t in samples) / 16) * 16
    width = math.ceil(max(t.width for _, t in samples) / 16) * 16
    network_input = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    for i, (photo, target) in enumerate(samples):
        network_input[i, : target.height, : target.width] = torch.from_numpy(
            np.ascontiguousarray(photo)
        )
    return network_input.permute(0, 3, 1, 2), [t for _, t in samples]


class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """The parts that one process computes, from a given step on, for a DataLoader.

    A step has `recipe.accumulate` parts; process `rank` of `world` gets each world-th of them.
    The DataLoader's workers load parts in turn, which is the order that it hands them out in.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        config: ModelConfig,
        recipe: Recipe,
        start: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.config, self.recipe, self.start = dataset, config, recipe, start
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, (epoch, batch, indices) in enumerate(self._mine()):
            if number % stride == first:
                network_input, targets = load_batch(
                    self.dataset, indices, self.config, self.recipe, epoch
                )
                ids = [self.dataset.images[i].id for i in batch]
                yield MicroBatch(network_input, targets, len(indices) / len(batch), ids)

    def _mine(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """Epoch, the step's whole batch and this process's part of it, without end."""
        step, epoch, parts = 0, 0, self.recipe.accumulate
        while True:
            for batch in epoch_batches(self.dataset, self.recipe, epoch):
                if step >= self.start:
                    for part in range(self.rank, parts, self.world):
                        low, high = (len(batch) * p // parts for p in (part, part + 1))
                        yield epoch, batch, batch[low:high]
                step += 1
            epoch += 1
