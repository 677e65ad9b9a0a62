"""The training loop: steps, growing or fixed zeros, validation, stopping and continuing.

A run folder holds `run.json` (command, settings and environment), the files of `log`, the two
newest checkpoints (`run_folder`), `samples/` with drawn detections, `val.json` and
`best.safetensors` if there is a held-out split, and at the end `model.safetensors` and plots. Data
order and sampling depend on the seed, the step and the image alone, so that a checkpoint needs no
random state to continue to the same bits on the CPU.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.coco import CocoDataset
from ..files import write_atomic
from ..images.check import BadImages
from ..model.detector_config import config_to_json
from ..model.file import load_model, save_model
from ..pruning.signals import stop_on_signals
from ..torch_model import TwoStageDetector
from ..torch_model.checkpoint import Checkpoint, write_checkpoint
from .data import MicroBatch, check_images, held_out, micro_batches
from .distill import Teacher, check_recipe, check_resumed
from .distributed import Ranks
from .ema import WeightAverage
from .log import Log
from .losses import LossModule
from .optimizer import build_optimizer, freeze
from .plots import plot_run
from .pulse import Pulse
from .recipe import Recipe
from .recipe_masks import build_masks
from .run_folder import describe_run, restore_tensors, run_tensors
from .validation import (
    GROUND_TRUTH,
    check_validation,
    draw_samples,
    validate,
    write_ground_truth,
)

BEST = "best.safetensors"


class Trainer:
    """One run: model, optimizer, masks, averages and the step counter.

    Args:
        model: trained in place, on the device of `ranks`.
        dataset: checked ground truth with its images.
        recipe: all settings.
        folder: the run folder; `prepare_run_folder` creates it before anything is written.
        ranks: this process among those that train together.
        teacher: a model whose outputs are further targets.
        origin: provenance of the start, in types that JSON has; kept in checkpoints and in the
            saved model.
        bad_images: what an image does that cannot be decoded.
        pulse: learns what the run does at present.

    Raises:
        InputError: too few images have a box, or the recipe does not fit the model, the teacher or
            the number of processes.
    """

    def __init__(
        self,
        model: TwoStageDetector,
        dataset: CocoDataset,
        recipe: Recipe,
        folder: Path,
        ranks: Ranks | None = None,
        teacher: Teacher | None = None,
        origin: dict[str, Any] | None = None,
        bad_images: BadImages = "stop",
        pulse: Pulse | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.teacher, self.origin = teacher, origin or {}
        self.bad_images, self.pulse = bad_images, pulse or Pulse()
        self.model, self.recipe, self.folder = model.to(self.ranks.device), recipe, folder
        self.step = 0
        self.dataset, self.val = held_out(dataset, recipe.val_fraction)
        check_images(self.dataset, model.config, recipe, self.ranks.world)
        if recipe.val_fraction:
            check_validation(self.val)
        freeze(model, recipe.freeze_at)
        self.optimizer = build_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=recipe.amp == "fp16")
        self.pruner = build_masks(model, recipe)
        self.average = WeightAverage(model, recipe.ema) if recipe.ema else None
        check_recipe(recipe, teacher is not None)
        if teacher is not None:
            teacher.check(model)
            teacher.model.to(self.ranks.device)
        module = LossModule(model, recipe, teacher)
        self.loss_names = module.names
        self.losses: nn.Module = module
        if self.ranks.world > 1:
            # The batch norms' buffers never change: only gradients need to be exchanged.
            self.losses = nn.parallel.DistributedDataParallel(self.losses, broadcast_buffers=False)
        self.best_ap, self.best_step, self.validations_without_gain = -math.inf, -1, 0
        self._stop = False

    def describe(self, command: Sequence[str]) -> None:
        """Write `run.json`: the command, configuration, recipe, data and environment."""
        if not self.ranks.writes:
            return
        settings = {
            "config": json.loads(config_to_json(self.model.config)),
            "recipe": self.recipe.to_dict(),
            "annotations": str(self.dataset.path),
            "photographs": str(self.dataset.root),
            **self.origin,
            "images": len(self.dataset.images),
            "held_out_images": len(self.val.images),
        }
        describe_run(self.folder, command, settings, self.ranks.device, self.ranks.world)

    # ------------------------------------------------------------ checkpoints

    def checkpoint(self) -> None:
        """Write the newest checkpoint and delete old ones."""
        if not self.ranks.writes:
            return
        state = {
            "best_ap": self.best_ap,
            "best_step": self.best_step,
            "stale": self.validations_without_gain,
            "scaler": self.scaler.state_dict(),
            "origin": self.origin,
            "teacher": self.teacher.sha256 if self.teacher else "",
        }
        write_checkpoint(
            self.folder,
            self.step,
            run_tensors(self.model, self.optimizer, self.pruner, self.average),
            {
                "config": config_to_json(self.model.config),
                "recipe": json.dumps(self.recipe.to_dict()),
                "state": json.dumps(state),
            },
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            InputError: it belongs to another model or recipe.
        """
        try:
            self._restore(checkpoint)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{checkpoint.path}: of another model or recipe ({reason})") from None

    def _restore(self, checkpoint: Checkpoint) -> None:
        path, metadata = checkpoint.path, checkpoint.metadata
        before, now = json.loads(metadata["recipe"]), self.recipe.to_dict()
        if checkpoint.with_prefix("mask/") and not self.pruner:
            raise InputError(
                f"{path}: belongs to a pruning run, but the recipe neither prunes nor keeps zeros"
            )
        if before.get("optimizer", now["optimizer"]) != now["optimizer"]:
            raise InputError(
                f"{path}: its optimizer is {before['optimizer']}, not "
                f"{now['optimizer']}; start a new run with --init"
            )
        state = json.loads(metadata.get("state", "{}"))
        check_resumed(path, state.get("teacher", ""), self.teacher)
        self.origin = state.get("origin", self.origin)
        for key in sorted(now):
            if self.ranks.writes and json.dumps(now[key]) != json.dumps(before.get(key)):
                print(f"{path}: changed setting {key}: {before.get(key)} -> {now[key]}")
        restore_tensors(checkpoint, self.model, self.optimizer, self.pruner, self.average)
        if state and before.get("val_fraction") == now["val_fraction"]:
            self.best_ap, self.best_step = state["best_ap"], state["best_step"]
            self.validations_without_gain = state["stale"]
        if state and state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(metadata["step"])

    # ------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Train to the recipe's last step, or until SIGTERM or SIGINT; then checkpoint.

        Returns:
            whether training is finished, by the last step or by the recipe's patience.

        Raises:
            InputError: a loss is not finite (`nan_batch.json` has the image ids of the batch), or
                the folder cannot be written.
        """
        self.model.train()
        recipe, ranks = self.recipe, self.ranks
        batches = micro_batches(
            self.dataset, self.model.config, recipe, self.step, ranks, self.bad_images
        )
        saved = time.monotonic()
        log = Log(self.folder, recipe, self.step, self.pulse) if ranks.writes else None
        if self.val.images and ranks.writes:
            write_ground_truth(self.val, self.folder / GROUND_TRUTH)
        with closing(log) if log else nullcontext(), stop_on_signals(self._ask_to_stop):
            while not self.finished and not ranks.any(self._stop):
                of_this_step = self._next(batches)
                if not of_this_step:
                    break
                values = self.train_step(of_this_step)
                if not math.isfinite(sum(values.values())):
                    self._stop_at_bad_loss(of_this_step[0], values)
                if log:
                    sparsity = self.pruner.sparsity() if self.pruner and log.due(self.step) else 0.0
                    log.add(self.step, values, recipe.rate(self.step - 1), sparsity)
                if self.step % recipe.val_every == 0 or self.step == recipe.steps:
                    self._validate_and_draw(log)
                if time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                    self.checkpoint()
                    saved = time.monotonic()
            self.checkpoint()
            if log:
                if self.finished and self.step < recipe.steps:
                    log.say(f"stopped early: AP is best at step {self.best_step}")
                if note := plot_run(self.folder):
                    log.say(note)
        return self.finished

    def _ask_to_stop(self) -> None:
        self._stop = True

    def _next(self, batches: Iterator[MicroBatch]) -> list[MicroBatch]:
        """This process's micro-batches of the next step; none if a signal that stops the run has
        ended the workers, too.

        Raises:
            InputError: an image cannot be used; a checkpoint is written first.
        """
        try:
            return [next(batches) for _ in range(self.recipe.accumulate // self.ranks.world)]
        except InputError as error:
            self.checkpoint()
            # A worker's error comes with its traceback before it.
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
        except RuntimeError:  # a worker is gone
            if not self._stop:
                raise
            return []

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or AP has not improved for the recipe's patience."""
        patience = self.recipe.patience
        return self.step >= self.recipe.steps or (
            patience > 0 and self.validations_without_gain >= patience
        )

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        """One optimizer step.

        Args:
            micro_batches: this process's micro-batches of the step.

        Returns:
            the losses of the whole batch before the step. If they are not finite, the weights stay
            as they are and the step does not count.
        """
        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.pruner and self.pruner.update(self.step):
            self.pruner.apply(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.loss_names), device=self.ranks.device)
        for number, micro_batch in enumerate(micro_batches):
            # Processes exchange gradients in the backward pass of their last micro-batch.
            last = number == len(micro_batches) - 1
            with nullcontext() if last or self.ranks.world == 1 else self._without_exchange():
                losses = self._losses(micro_batch)
                self.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
        values = dict(zip(self.loss_names, self.ranks.mean(total).tolist(), strict=True))
        if math.isfinite(sum(values.values())):
            self._update()
        return values

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Within, each process adds up gradients of its own."""
        assert isinstance(self.losses, nn.parallel.DistributedDataParallel)
        return self.losses.no_sync()

    def _losses(self, micro_batch: MicroBatch) -> Tensor:
        """The micro-batch's contribution to the batch's losses, [len(loss_names)].

        It is multiplied by the number of processes, because their mean is taken afterwards.
        """
        device = self.ranks.device
        network_input = micro_batch.network_input.to(device, non_blocking=True)
        targets = [target.to(device) for target in micro_batch.targets]
        dtype = torch.float16 if self.recipe.amp == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=self.recipe.amp != "off"):
            losses: Tensor = self.losses(network_input, targets)
        return losses * (micro_batch.loss_weight * self.ranks.world)

    def _update(self) -> None:
        """Apply one optimizer step."""
        if self.pruner:
            self.pruner.observe()
            self.pruner.mask_gradients()
        if self.recipe.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(
                [p for p in self.model.parameters() if p.grad is not None],
                self.recipe.clip_gradient,
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.step, self.pruner.factors if self.pruner else {})
        self.step += 1

    def _stop_at_bad_loss(self, micro_batch: MicroBatch, values: dict[str, float]) -> None:
        """Write the batch's image ids and stop: a loss is not finite.

        Raises:
            InputError: always.
        """
        path = self.folder / "nan_batch.json"
        if self.ranks.writes:
            content = {"step": self.step, "image_ids": micro_batch.image_ids}
            write_atomic(path, json.dumps(content).encode(), overwrite=True)
        raise InputError(
            f"the loss is not finite at step {self.step} ({values}); {path} has the image ids, "
            "and the last checkpoint is untouched"
        )

    # ------------------------------------------------------------ validation and the result

    def _validate_and_draw(self, log: Log | None) -> None:
        """Validate, keep the best model, draw samples."""
        drawn = self.val if self.val.images else self.dataset
        with self.average.in_place() if self.average else nullcontext():
            if self.val.images:
                truth, bad_images = self.folder / GROUND_TRUTH, self.bad_images
                stats = validate(self.model, self.val, truth, self.ranks, bad_images, self.pulse)
                if log:
                    log.add_validation(self.step, stats)
                self._keep_if_best(stats["AP"])
            if log and self.step % self.recipe.val_every == 0:
                images, folder = drawn.images[: self.recipe.samples], self.folder / "samples"
                at = self.step, self.ranks.device, self.bad_images
                draw_samples(self.model, drawn, images, folder, *at)

    def _keep_if_best(self, ap: float) -> None:
        """Save the model if it is the best so far, not counting any before pruning is complete."""
        # The last zeros appear at the start of the step after `prune_end` steps.
        if self.pruner and self.step <= self.recipe.prune_end:
            return
        if ap <= self.best_ap:
            self.validations_without_gain += 1
            return
        self.best_ap, self.best_step, self.validations_without_gain = ap, self.step, 0
        if self.ranks.writes:
            path, tensors = self.folder / BEST, self.model.folded_tensors()
            origin = {"step": self.step, "held_out_ap": ap}
            save_model(path, self.model.config, tensors, origin, overwrite=True)

    def save_model(self, provenance: dict[str, Any]) -> Path:
        """Write `model.safetensors`, batch norm folded: the best model with a held-out split, else
        the last.

        Args:
            provenance: in types that JSON has; the run's origin is added.

        Returns:
            the file's path.
        """
        provenance = provenance | self.origin
        path = self.folder / "model.safetensors"
        if self.best_step >= 0:
            best = load_model(self.folder / BEST)
            save_model(
                path, best.config, best.tensors, provenance | best.provenance, overwrite=True
            )
            return path
        with self.average.in_place() if self.average else nullcontext():
            tensors = self.model.folded_tensors()
        save_model(path, self.model.config, tensors, provenance, overwrite=True)
        return path
