"""Images and ground truth -> micro-batches, repeatable from (seed, epoch, image, repetition).

Each image is augmented as the recipe says, resized as the configuration says, mirrored at random,
and placed in the upper left corner on raw zeros ("shorter": on the mean), as in inference. The
batch of a step is cut into micro-batches, each with a network input of its own, and the processes
share them. A micro-batch does not depend on the process that computes it, so the number of
processes changes nothing.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..evaluation.coco import CocoDataset, CocoImage
from ..evaluation.images import shape_differs
from ..images.check import BadImages
from ..images.letterbox import fit_shorter, resize_bilinear, to_network_input
from ..images.read import read_image
from ..model.detector_config import Config, DetectorConfig
from ..pruning.signals import leave_group
from .augment import View, after_resizing, areas_of, before_resizing, mirrored
from .distributed import Ranks
from .losses import Target
from .rare_classes import repeated
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some images of a step's batch, run through the network together.

    Attributes:
        network_input: [B, 3, H, W], uint8, or float32 with "shorter".
        targets: one for each image.
        loss_weight: B / images of the whole batch.
        image_ids: of the whole batch.
        warnings: one line for each bad image that was left out or damaged.
    """

    network_input: Tensor
    targets: list[Target]
    loss_weight: float
    image_ids: list[int | str]
    warnings: tuple[str, ...] = ()

    def pin_memory(self) -> MicroBatch:
        """The same in memory that a GPU copies from while it computes; called by DataLoader."""
        return replace(self, network_input=self.network_input.pin_memory())


def held_out(dataset: CocoDataset, fraction: float) -> tuple[CocoDataset, CocoDataset]:
    """The images to train on, and about `fraction` of all images to validate on.

    An image's id alone decides, so that every run over the same data holds out the same images:
    a model that another run starts from has not seen them either.
    """
    ids = {i.id for i in dataset.images if random.Random(f"val/{i.id}").random() < fraction}
    train, val = (
        replace(dataset, images=tuple(i for i in dataset.images if (i.id in ids) == validated))
        for validated in (False, True)
    )
    return train, val


def check_images(dataset: CocoDataset, config: Config, recipe: Recipe, processes: int) -> None:
    """Check that the images fill the micro-batches, and the micro-batches the processes.

    Raises:
        InputError: too few images have a box, `accumulate` does not fit the processes, or `crop`
            not the model.
    """
    usable = sum(not image.crowd.all() for image in dataset.images)
    if not usable:
        raise InputError(f"{dataset.path}: no image has a box to train on")
    if usable < recipe.accumulate:
        raise InputError(
            f"accumulate is {recipe.accumulate}, but only {usable} images have a box to train on"
        )
    if recipe.crop and config.resize == "shorter":
        raise InputError(
            f"crop cuts to the size of the network input, and {config.name} has none: its images "
            "are resized to a shorter side"
        )
    if recipe.accumulate % processes:
        raise InputError(
            f"accumulate is {recipe.accumulate}, expected a multiple of the {processes} processes"
        )


def epoch_batches(dataset: CocoDataset, recipe: Recipe, epoch: int) -> list[list[int]]:
    """Indices of each batch of an epoch: shuffled, landscape and portrait images apart.

    Images without boxes are left out, as in TensorPack and Detectron2. The rest of both
    orientations at the end of the epoch is mixed; images that then do not fill a batch are dropped,
    unless the epoch has no full batch. With `repeat_threshold`, images with rare classes appear
    several times.
    """
    rng = random.Random(f"{recipe.seed}/{epoch}")
    order = [i for i, image in enumerate(dataset.images) if (~image.crowd).any()]
    order = repeated(order, dataset.images, recipe.repeat_threshold, rng)
    rng.shuffle(order)
    landscape: list[int] = []
    portrait: list[int] = []
    batches = []
    for index in order:
        image = dataset.images[index]
        waiting = landscape if image.width >= image.height else portrait
        waiting.append(index)
        if len(waiting) == recipe.batch:
            batches.append(list(waiting))
            waiting.clear()
    rest = landscape + portrait
    rng.shuffle(rest)
    if len(rest) >= recipe.batch or not batches:
        batches.append(rest[: recipe.batch])
    return batches


def read_annotated_image(
    dataset: CocoDataset, annotated: CocoImage, bad_images: BadImages = "stop"
) -> NDArray[np.uint8]:
    """An image of the data set (H, W, 3) uint8 BGR; its size may differ from the annotated one.

    Raises:
        InputError: it cannot be read, or its aspect ratio differs from the annotated one.
    """
    image = read_image(dataset.image_path(annotated), keep_damaged=bad_images == "keep")
    if problem := shape_differs(dataset, annotated, *image.shape[:2]):
        raise InputError(problem)
    return image


def read_view(dataset: CocoDataset, annotated: CocoImage, bad_images: BadImages = "stop") -> View:
    """An image of the data set with its objects and crowds, in pixels of the image.

    Raises:
        InputError: as `read_annotated_image`.
    """
    image = read_annotated_image(dataset, annotated, bad_images)
    boxes = annotated.boxes
    view = View(image, boxes, annotated.labels, annotated.crowd, areas_of(boxes))
    return view.scaled(image, annotated.height, annotated.width)


def load_sample(
    dataset: CocoDataset,
    annotated: CocoImage,
    config: Config,
    recipe: Recipe,
    epoch: int,
    bad_images: BadImages = "stop",
    repetition: int = 0,
) -> tuple[NDArray[Any], Target]:
    """One augmented image (H, W, 3) BGR and its target.

    Args:
        repetition: how often the epoch has drawn the image before.
    """
    key = f"{recipe.seed}/{epoch}/{annotated.id}" + (f"/{repetition}" if repetition else "")
    rng, for_augmentation = random.Random(key), random.Random(f"augment/{key}")

    view = whole = read_view(dataset, annotated, bad_images)

    def other(rng: random.Random) -> View:
        for image in (rng.choice(dataset.images) for _ in range(100)):
            if image.crowd.all():
                continue
            try:
                return read_view(dataset, image, bad_images)
            except InputError as error:
                if bad_images == "stop":
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
        return whole  # hardly any other can be used

    view = before_resizing(view, recipe, for_augmentation, config.fill, other)
    view = view.scaled(_resized(view, config, recipe, rng), view.height, view.width)
    size = config.input_height, config.input_width
    view = after_resizing(view, recipe, for_augmentation, *size)
    if rng.random() < recipe.flip:
        view = mirrored(view)
    single = ~view.ignored
    target = Target(
        torch.from_numpy(view.boxes[single]),
        torch.from_numpy(view.labels[single]),
        view.height,
        view.width,
        rng.getrandbits(48),
        torch.from_numpy(view.boxes[view.ignored]),
    )
    return view.image, target


def _resized(view: View, config: Config, recipe: Recipe, rng: random.Random) -> NDArray[Any]:
    """The image of a view in its size on the network input, by the configuration's own resizing."""
    if recipe.short_sides:
        short, long = sorted((view.height, view.width))
        scale = min(rng.choice(recipe.short_sides) / short, recipe.long_side / long)
        window = (max(1, round(view.height * scale)), max(1, round(view.width * scale)))
    else:
        scale = rng.uniform(recipe.scale_low, recipe.scale_high)
        window = (round(config.input_height * scale), round(config.input_width * scale))
    if isinstance(config, DetectorConfig) and config.resize == "shorter":
        if not recipe.short_sides:
            sides = config.min_size * scale, config.max_size * scale
            fit = fit_shorter(view.height, view.width, *sides, 1)
            window = fit.resized_height, fit.resized_width
        return resize_bilinear(view.image, *window)
    stretch = config.resize == "stretch" and not recipe.short_sides
    resized, at = to_network_input(view.image, *window, "stretch" if stretch else "letterbox")
    return resized[: at.resized_height, : at.resized_width]


def load_or_replace(
    dataset: CocoDataset,
    index: int,
    config: Config,
    recipe: Recipe,
    epoch: int,
    bad_images: BadImages,
    repetition: int = 0,
) -> tuple[tuple[NDArray[Any], Target], list[str]]:
    """`load_sample`, of the next good image instead of a bad one that does not stop the run.

    Headers are checked before the run (`evaluation.images`): bad are images damaged inside.

    Returns:
        The sample, and a line for each image that was left out or is damaged.

    Raises:
        InputError: the image is bad and `bad_images` is "stop", or there is no good one.
    """
    told: list[str] = []
    count = len(dataset.images)
    for annotated in (dataset.images[(index + n) % count] for n in range(count)):
        if annotated.crowd.all():
            continue
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                sample = load_sample(
                    dataset, annotated, config, recipe, epoch, bad_images, repetition
                )
        except InputError as error:
            if bad_images == "stop":
                raise
            told.append(f"left out: {error}")
        else:
            return sample, told + [str(warning.message) for warning in caught]
    raise InputError(f"{dataset.root}: none of the images can be read")


def load_micro_batch(
    dataset: CocoDataset,
    indices: list[int],
    config: Config,
    recipe: Recipe,
    epoch: int,
    bad_images: BadImages = "stop",
    told: list[str] | None = None,
    repetitions: Sequence[int] = (),
) -> tuple[Tensor, list[Target]]:
    """A network input [B, 3, H, W] with the images' targets, uint8, or float32 with "shorter".

    It is the smallest that holds the images, with multiples of 16, or of the configuration's
    `divisor`.

    Args:
        told: gets a line for each bad image.
        repetitions: how often the epoch has drawn each image before; default: not yet.
    """
    samples = []
    for i, repetition in zip(indices, repetitions or [0] * len(indices), strict=True):
        sample, lines = load_or_replace(dataset, i, config, recipe, epoch, bad_images, repetition)
        samples.append(sample)
        if told is not None:
            told += lines
    divisor = config.divisor if isinstance(config, DetectorConfig) else 16
    height = math.ceil(max(t.height for _, t in samples) / divisor) * divisor
    width = math.ceil(max(t.width for _, t in samples) / divisor) * divisor
    if config.resize == "shorter":
        network_input = torch.tensor(config.fill).repeat(len(samples), height, width, 1)
    else:
        network_input = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    for i, (image, target) in enumerate(samples):
        network_input[i, : target.height, : target.width] = torch.from_numpy(
            np.ascontiguousarray(image)
        )
    return network_input.permute(0, 3, 1, 2), [t for _, t in samples]


class MicroBatches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """The micro-batches of one process from a given step on, without end, for a DataLoader.

    A step has `recipe.accumulate` micro-batches; process `rank` of `world` gets every world-th of
    them. The DataLoader's workers load micro-batches in turn, which is the order that it returns
    them in.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        config: Config,
        recipe: Recipe,
        start: int,
        rank: int = 0,
        world: int = 1,
        bad_images: BadImages = "stop",
    ) -> None:
        self.dataset, self.config, self.recipe, self.start = dataset, config, recipe, start
        self.rank, self.world, self.bad_images = rank, world, bad_images

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, (epoch, batch, part, repetitions) in enumerate(self._indices()):
            if number % stride == first:
                told: list[str] = []
                indices = batch[part]
                network_input, targets = load_micro_batch(
                    self.dataset,
                    indices,
                    self.config,
                    self.recipe,
                    epoch,
                    self.bad_images,
                    told,
                    repetitions[part],
                )
                ids = [self.dataset.images[i].id for i in batch]
                weight = len(indices) / len(batch)
                yield MicroBatch(network_input, targets, weight, ids, tuple(told))

    def _indices(self) -> Iterator[tuple[int, list[int], slice, list[int]]]:
        """The epoch, the whole batch, this process's micro-batch as a part of it, and how often the
        epoch has drawn each image of the batch before."""
        step, epoch, count = 0, 0, self.recipe.accumulate
        while True:
            drawn: Counter[int] = Counter()
            for batch in epoch_batches(self.dataset, self.recipe, epoch):
                repetitions = []
                for index in batch:
                    repetitions.append(drawn[index])
                    drawn[index] += 1
                if step >= self.start:
                    for number in range(self.rank, count, self.world):
                        low, high = (len(batch) * n // count for n in (number, number + 1))
                        yield epoch, batch, slice(low, high), repetitions
                step += 1
            epoch += 1


def micro_batches(
    dataset: CocoDataset,
    config: Config,
    recipe: Recipe,
    start: int,
    ranks: Ranks,
    bad_images: BadImages = "stop",
) -> Iterator[MicroBatch]:
    """This process's micro-batches from step `start` on, loaded by the recipe's workers.

    Warns once of each bad image, however often it is drawn.
    """
    loader = torch.utils.data.DataLoader(
        MicroBatches(dataset, config, recipe, start, ranks.rank, ranks.world, bad_images),
        batch_size=None,
        num_workers=recipe.workers,
        pin_memory=ranks.device.type == "cuda",
        worker_init_fn=leave_group,
    )
    return _warning_once(iter(loader))  # starts the workers now


def _warning_once(batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
    told: set[str] = set()
    for micro_batch in batches:
        for line in micro_batch.warnings:
            if line not in told:
                told.add(line)
                warnings.warn(line, stacklevel=2)
        yield micro_batch
