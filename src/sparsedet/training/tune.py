"""Tuning a pruned network on the outputs of its dense one: photographs, no labels; zeros stay.

Each step compares both networks on some photographs, flipped and cropped at random. The loss is the
Kullback-Leibler divergence of the pruned network's predictions from the dense one's
(`pruning.predictions`), plus the mean relative squared error of all layers' outputs. What a step
sees depends on the seed and its number alone, so a stopped run continues to the same bits.

Source: Hinton et al., arXiv 1503.02531 (a network's outputs as targets); Romero et al., FitNets,
arXiv 1412.6550 (outputs of layers inside).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..images.check import BadImages, read_usable
from ..model.file import AnyFile
from ..model.graph import Conv, Detecting
from ..pruning.calibration import calibration_input
from ..pruning.masks import FixedMasks
from ..pruning.network_module import as_module
from ..pruning.predictions import divergence
from ..pruning.reading import PredictionReading, read_outputs, read_predictions
from ..torch_model import GraphModule
from ..torch_model.checkpoint import Checkpoint, write_checkpoint
from .balanced_adam import BalancedAdam
from .run_folder import restore_tensors, run_tensors
from .tune_config import TuneConfig

REGIONS = 64
"""Proposals of an image on which the RoI heads of both networks are compared."""
LEAST_CROP = 0.6
"""Shortest side of a crop, as a fraction of the photograph's."""


class Tuner:
    """A pruned network that learns from its dense one.

    Args:
        pruned, dense: files of networks of the same graph.
        photographs: files to learn from.
        settings: see `TuneConfig`.
        bad_images: what a photograph that cannot be read does.

    Attributes:
        step: steps done.

    Raises:
        InputError: the networks differ in more than their weights, or the pruned one has no zero.
    """

    def __init__(
        self,
        pruned: AnyFile,
        dense: AnyFile,
        photographs: Sequence[Path],
        settings: TuneConfig,
        bad_images: BadImages = "stop",
    ) -> None:
        self.settings, self.photographs, self.bad_images = settings, photographs, bad_images
        self.config = pruned.config
        self.student, self.teacher = as_module(pruned), as_module(dense)
        check_same_network(self.student, self.teacher)
        self.teacher.requires_grad_(False)
        self.masks = FixedMasks(self.student)
        self.outputs = read_outputs(self.config)
        self.optimizer = BalancedAdam(self.student.parameters())
        self.step = 0

    # -------------------------------------------------------------------- one step

    def network_input(self, number: int) -> Tensor | None:
        """Photograph `number` of the whole run, changed at random; None: it cannot be read."""
        chance = random.Random(f"{self.settings.seed}/{number}")
        epoch, place = divmod(number, len(self.photographs))
        order = list(range(len(self.photographs)))
        random.Random(f"{self.settings.seed}/epoch/{epoch}").shuffle(order)
        image = read_usable(self.photographs[order[place]], self.bad_images)
        return None if image is None else calibration_input(changed(image, chance), self.config)

    def read(self, image: Tensor) -> tuple[PredictionReading, PredictionReading]:
        """What teacher and student say of one image."""
        with torch.no_grad():
            target = read_predictions(self.teacher, image, self.outputs, best=None, regions=REGIONS)
        mine = read_predictions(
            self.student,
            image,
            self.outputs,
            best=None,
            regions=REGIONS,
            choices=target.choices,
        )
        return target, mine

    def run_step(self) -> float:
        """One step of the optimizer; returns the mean loss of its photographs.

        Raises:
            InputError: the loss is no number, or none of the step's photographs can be read.
        """
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        first = self.step * settings.batch
        images = [self.network_input(first + i) for i in range(settings.batch)]
        usable = [image for image in images if image is not None]
        if not usable:
            raise InputError(f"none of the {settings.batch} photographs of a step can be read")
        total = 0.0
        for image in usable:
            target, mine = self.read(image)
            loss = divergence(target.predictions, mine.predictions)
            if settings.features:
                loss = loss + settings.features * features_error(target, mine)
            loss = loss / len(usable)
            total += float(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(total):
            raise InputError(
                f"the loss of step {self.step + 1} is {total}: a lower --step-size may help"
            )
        self.masks.mask_gradients()
        self.optimizer.step()
        self.step += 1
        return total

    @torch.no_grad()
    def layer_errors(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
        """Relative error of each prunable layer's output on photographs as they are.

        That of `features_error`, square root of the mean over photographs.
        """
        layers = {o.name: conv.layers[0] for o, conv in self.student.graph.of_kind(Conv)}
        sums: dict[str, float] = {}
        for image in images:
            target, mine = self.read(calibration_input(image, self.config))
            for operation, error in _errors(target, mine).items():
                name = layers[operation]
                sums.setdefault(name, 0.0)
                sums[name] += float(error) / len(images)
        return {name: math.sqrt(sums[name]) for name in self.masks.layers if name in sums}

    # -------------------------------------------------------------------- checkpoints

    def write(self, folder: Path, identity: Mapping[str, Any]) -> Path:
        """Write a checkpoint; `identity` says what the run is, in types that JSON has."""
        tensors = run_tensors(self.student, self.optimizer, self.masks, None)
        return write_checkpoint(folder, self.step, tensors, {"tune": json.dumps(identity)})

    def resume(self, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it is of another run.
        """
        try:
            before = json.loads(checkpoint.metadata["tune"])
        except (KeyError, ValueError):
            raise InputError(f"{checkpoint.path}: is of no tuning") from None
        for key, value in identity.items():
            if before.get(key) != value:
                raise InputError(
                    f"{checkpoint.path}: its run has {key} {before.get(key)!r}, now it is "
                    f"{value!r}: --resume needs the same"
                )
        try:
            restore_tensors(checkpoint, self.student, self.optimizer, self.masks, None)
        except (KeyError, RuntimeError):
            raise InputError(f"{checkpoint.path}: is of another network") from None
        self.step = int(checkpoint.metadata["step"])

    def run(self, note: Callable[[int, float], None], stopped: Callable[[], bool]) -> bool:
        """Steps until all are done or `stopped` says so; whether all are done.

        Args:
            note: called after each step with its number and loss; it writes checkpoints.
        """
        while self.step < self.settings.steps and not stopped():
            loss = self.run_step()
            note(self.step, loss)
        return self.step >= self.settings.steps


def check_same_network(student: GraphModule, teacher: GraphModule) -> None:
    """Raise InputError unless both have the same operations; their weights, and what makes a
    detection of a prediction, may differ."""
    of_student, of_teacher = (
        [
            (o.name, o.inputs, None if isinstance(o.attributes, Detecting) else o.attributes)
            for o in model.graph.operations
        ]
        for model in (student, teacher)
    )
    if of_student != of_teacher:
        different = [a[0] for a, b in zip(of_student, of_teacher, strict=False) if a != b]
        raise InputError(
            f"{student.name} and {teacher.name} are different networks, first at operation "
            f"{[*different, 'the last'][0]!r}: the teacher is the dense network that was pruned"
        )


def changed(image: NDArray[np.uint8], chance: random.Random) -> NDArray[np.uint8]:
    """A photograph, mirrored in one half of all cases, and cropped in one half."""
    if chance.random() < 0.5:
        image = image[:, ::-1]
    if chance.random() < 0.5:
        height, width = image.shape[:2]
        rows, columns = (
            max(1, round(length * chance.uniform(LEAST_CROP, 1))) for length in (height, width)
        )
        top, left = chance.randint(0, height - rows), chance.randint(0, width - columns)
        image = image[top : top + rows, left : left + columns]
    return np.ascontiguousarray(image)


def _errors(target: PredictionReading, mine: PredictionReading) -> dict[str, Tensor]:
    """Squared error of each convolution's output over its variance, by operation."""
    found = {}
    for name, value in target.before_activation.items():
        dims = [d for d in range(value.dim()) if d != 1]
        spread = (value - value.mean(dim=dims, keepdim=True)).square().sum()
        if (value.dim() == 4 and value.shape[2:] == (1, 1)) or value.dim() == 2:
            spread = value.square().sum()
        difference = (mine.before_activation[name] - value).square().sum()
        found[name] = difference / spread.clamp(min=1e-9)
    return found


def features_error(target: PredictionReading, mine: PredictionReading) -> Tensor:
    """Mean over convolutions of the squared error of their outputs, over the target's variance."""
    return torch.stack(list(_errors(target, mine).values())).mean()
