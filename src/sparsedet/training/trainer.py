"""The training loop: steps, zeros that grow or stay, validation, stopping and continuing.

A run folder holds `run.json` (what was asked, and of what machine), the log's files (`log`), the
two newest checkpoints (`checkpoint`), `samples/` with drawn detections, `val.json` and
`best.safetensors` where there is a held-out split, and at the end `model.safetensors` and plots.
Data order and sampling follow from the seed, the step and the image, so that a checkpoint needs
no random state to continue to the same bits on the CPU.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.coco import CocoDataset
from ..files import write_atomic
from ..model.file import load_model, save_model
from ..torch_model import FasterRCNN
from .data import Batches, MicroBatch, held_out
from .distill import Teacher, check_recipe, check_resumed
from .distributed import Ranks
from .ema import WeightAverage
from .log import Log
from .losses import LossModule
from .optimizer import build_optimizer, freeze, make_masks
from .plots import plot_run
from .recipe import Recipe
from .run_folder import read_checkpoint, write_checkpoint
from .signals import leave_group, stop_on_signals
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
        dataset: checked ground truth with its photographs.
        recipe: all settings.
        folder: the run folder; `start.prepare_folder` creates it before anything is written.
        ranks: this process among those that train together.
        teacher: what the model learns from beside the ground truth.
        origin: JSON-ready, of what the run started from; kept in checkpoints and the saved model.

    Raises:
        InputError: too few photographs have a box, or the recipe does not fit the model, the
            teacher or the number of processes.
    """

    def __init__(
        self,
        model: FasterRCNN,
        dataset: CocoDataset,
        recipe: Recipe,
        folder: Path,
        ranks: Ranks | None = None,
        teacher: Teacher | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.teacher, self.origin = teacher, origin or {}
        self.model, self.recipe, self.folder = model.to(self.ranks.device), recipe, folder
        self.step = 0
        self.dataset, self.val = held_out(dataset, recipe.val_fraction)
        usable = sum(not image.crowd.all() for image in self.dataset.images)
        if not usable:
            raise InputError(f"{dataset.path}: no photograph has a box to train on")
        if usable < recipe.accumulate:
            raise InputError(
                f"accumulate is {recipe.accumulate}, but only {usable} photographs "
                "have a box to train on"
            )
        if recipe.accumulate % self.ranks.world:
            raise InputError(
                f"accumulate is {recipe.accumulate}, expected a multiple of the "
                f"{self.ranks.world} processes"
            )
        if recipe.val_fraction:
            check_validation(self.val)
        freeze(model, recipe.freeze_at)
        self.optimizer = build_optimizer(model, recipe)
        self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=recipe.amp == "fp16")
        self.pruner = make_masks(model, recipe)
        self.average = WeightAverage(model, recipe.ema) if recipe.ema else None
        check_recipe(recipe, teacher is not None)
        if teacher is not None:
            teacher.check(model.config)
            teacher.model.to(self.ranks.device)
        module = LossModule(model, recipe, teacher)
        self.loss_names = module.names
        self.losses: nn.Module = module
        if self.ranks.world > 1:
            # The batch norms' buffers never change: nothing to send but gradients.
            self.losses = nn.parallel.DistributedDataParallel(self.losses, broadcast_buffers=False)
        self.best_ap, self.best_step, self.stale = -math.inf, -1, 0
        self._stop = False

    def describe(self, command: Sequence[str]) -> None:
        """Write `run.json`: the command, configuration, recipe, data and environment."""
        if not self.ranks.writes:
            return
        versions = {}
        for name in ("sparsedet", "torch", "torchvision", "numpy", "opencv-python-headless"):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = "not installed as a package"
        content = {
            "command": list(command),
            "config": self.model.config.to_stored(),
            "recipe": self.recipe.to_dict(),
            "annotations": str(self.dataset.path),
            "photographs": str(self.dataset.root),
            **self.origin,
            "images": len(self.dataset.images),
            "held_out_images": len(self.val.images),
            "environment": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "versions": versions,
                "device": torch.cuda.get_device_name()
                if self.ranks.device.type == "cuda"
                else platform.processor() or platform.machine(),
                "processes": self.ranks.world,
                "threads": torch.get_num_threads(),
            },
        }
        text = json.dumps(content, indent=1)
        write_atomic(self.folder / "run.json", text.encode(), overwrite=True)

    # ------------------------------------------------------------ checkpoints

    def checkpoint(self) -> None:
        """Write the newest checkpoint and drop old ones."""
        if not self.ranks.writes:
            return
        tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
        tensors |= {f"mask/{k}": v for k, v in self.masks.items()}
        tensors |= {f"statistic/{k}": v for k, v in self.statistics.items()}
        if self.average:
            tensors |= {f"ema/{k}": v for k, v in self.average.tensors.items()}
        state = {
            "best_ap": self.best_ap,
            "best_step": self.best_step,
            "stale": self.stale,
            "scaler": self.scaler.state_dict(),
            "origin": self.origin,
            "teacher": self.teacher.sha256 if self.teacher else "",
        }
        write_checkpoint(
            self.folder,
            self.step,
            tensors,
            {
                "config": json.dumps(self.model.config.to_stored()),
                "recipe": json.dumps(self.recipe.to_dict()),
                "state": json.dumps(state),
            },
        )

    @property
    def masks(self) -> dict[str, Tensor]:
        """The pruned layers' masks by name; none without pruning."""
        return self.pruner.masks if self.pruner else {}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """What the choice of later zeros follows from, by name; none without pruning."""
        return self.pruner.statistics if self.pruner else {}

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            InputError: it is damaged, or belongs to another model or recipe.
        """
        try:
            self._restore(path)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: of another model or recipe ({reason})") from None

    def _restore(self, path: Path) -> None:
        saved = read_checkpoint(path)
        before, now = json.loads(saved.metadata["recipe"]), self.recipe.to_dict()
        if saved.part("mask/") and not self.pruner:
            raise InputError(
                f"{path}: is of a pruning run, but the recipe prunes and keeps nothing"
            )
        if before.get("optimizer", now["optimizer"]) != now["optimizer"]:
            raise InputError(
                f"{path}: its optimizer is {before['optimizer']}, not "
                f"{now['optimizer']}; start a new run with --init"
            )
        state = json.loads(saved.metadata.get("state", "{}"))
        check_resumed(path, state.get("teacher", ""), self.teacher)
        self.origin = state.get("origin", self.origin)
        for key in sorted(now):
            if self.ranks.writes and json.dumps(now[key]) != json.dumps(before.get(key)):
                print(f"{path}: changed setting {key}: {before.get(key)} -> {now[key]}")
        self.model.load_state_dict(saved.part("model/"))
        parameters = dict(self.model.named_parameters())
        if self.pruner:
            self.pruner.restore(saved.part("mask/"))
        for name, statistic in self.statistics.items():
            statistic.copy_(saved.tensors[f"statistic/{name}"])
        for key, value in saved.part("optimizer/").items():
            slot, _, name = key.partition("/")
            device = "cpu" if slot == "step" else self.ranks.device  # AdamW counts on the CPU
            self.optimizer.state[parameters[name]][slot] = value.to(device)
        if self.average:  # a run that did not average so far begins with its weights
            averages = saved.part("ema/") or saved.part("model/")
            for name, tensor in self.average.tensors.items():
                tensor.copy_(averages[name])
        if state and before.get("val_fraction") == now["val_fraction"]:
            self.best_ap, self.best_step = state["best_ap"], state["best_step"]
            self.stale = state["stale"]
        if state and state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(saved.metadata["step"])

    # ------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Train to the recipe's last step, or until SIGTERM or SIGINT; then checkpoint.

        Returns:
            whether training is finished: by the last step or by the recipe's patience.

        Raises:
            InputError: a loss is not finite (the batch's image ids are in `nan_batch.json`), or
                the folder cannot be written.
        """
        self.model.train()
        recipe, ranks = self.recipe, self.ranks
        data = Batches(self.dataset, self.model.config, recipe, self.step, ranks.rank, ranks.world)
        batches = iter(
            torch.utils.data.DataLoader(
                data,
                batch_size=None,
                num_workers=recipe.workers,
                pin_memory=ranks.device.type == "cuda",
                worker_init_fn=leave_group,
            )
        )
        saved = time.monotonic()
        log = Log(self.folder, recipe, self.step) if ranks.writes else None
        if self.val.images and ranks.writes:
            write_ground_truth(self.val, self.folder / GROUND_TRUTH)
        with closing(log) if log else nullcontext(), stop_on_signals(self._ask_to_stop):
            while not self.finished and not ranks.any(self._stop):
                parts = self._next(batches)
                if not parts:
                    break
                values = self.train_step(parts)
                if not math.isfinite(sum(values.values())):
                    self._refuse(parts[0], values)
                if log:
                    sparsity = self.pruner.sparsity() if self.pruner and log.due(self.step) else 0.0
                    log.add(self.step, values, recipe.rate(self.step - 1), sparsity)
                if self.step % recipe.val_every == 0 or self.step == recipe.steps:
                    self._look(log)
                if time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                    self.checkpoint()
                    saved = time.monotonic()
            self.checkpoint()
            if log:
                if self.finished and self.step < recipe.steps:
                    log.say(f"stopped early: AP is best at step {self.best_step}")
                if trouble := plot_run(self.folder):
                    log.say(trouble)
        return self.finished

    def _ask_to_stop(self) -> None:
        self._stop = True

    def _next(self, batches: Iterator[MicroBatch]) -> list[MicroBatch]:
        """This process's parts of the next step; none if a signal that stops the run ended the
        workers, too.

        Raises:
            InputError: a photograph cannot be used; what is learnt so far is kept.
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
        """The last step is done, or AP has not improved for as long as the recipe waits."""
        patience = self.recipe.patience
        return self.step >= self.recipe.steps or (patience > 0 and self.stale >= patience)

    def train_step(self, parts: Sequence[MicroBatch]) -> dict[str, float]:
        """One optimizer step.

        Args:
            parts: this process's parts of the step's batch.

        Returns:
            the whole batch's losses before the step. If they are not finite, the weights stay
            as they are and the step does not count.
        """
        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.pruner and self.pruner.update(self.step):
            self.pruner.apply(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(len(self.loss_names), device=self.ranks.device)
        for number, part in enumerate(parts):
            # Processes exchange gradients in the backward pass of their last part.
            last = number == len(parts) - 1
            with nullcontext() if last or self.ranks.world == 1 else self._alone():
                found = self._losses(part)
                self.scaler.scale(found.sum()).backward()  # type: ignore[no-untyped-call]
            total += found.detach()
        values = dict(zip(self.loss_names, self.ranks.mean(total).tolist(), strict=True))
        if math.isfinite(sum(values.values())):
            self._update()
        return values

    def _alone(self) -> AbstractContextManager[None]:
        """Within, gradients add up on each process."""
        assert isinstance(self.losses, nn.parallel.DistributedDataParallel)
        return self.losses.no_sync()

    def _losses(self, part: MicroBatch) -> Tensor:
        """The part's share of the batch's losses, times the number of processes: the mean over
        processes follows."""
        device = self.ranks.device
        network_input = part.network_input.to(device, non_blocking=True)
        targets = [target.to(device) for target in part.targets]
        dtype = torch.float16 if self.recipe.amp == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=self.recipe.amp != "off"):
            found: Tensor = self.losses(network_input, targets)
        return found * (part.share * self.ranks.world)

    def _update(self) -> None:
        """Take the step that the gradients ask for."""
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

    def _refuse(self, part: MicroBatch, values: dict[str, float]) -> None:
        """Stop at a loss that is not finite."""
        path = self.folder / "nan_batch.json"
        if self.ranks.writes:
            content = {"step": self.step, "image_ids": part.image_ids}
            write_atomic(path, json.dumps(content).encode(), overwrite=True)
        raise InputError(
            f"the loss is not finite at step {self.step} ({values}); image ids are in {path}, "
            "the last checkpoint is untouched"
        )

    # ------------------------------------------------------------ watching and saving

    def _look(self, log: Log | None) -> None:
        """Validate, keep the best model, draw samples."""
        watched = self.val if self.val.images else self.dataset
        with self.average.in_place() if self.average else nullcontext():
            if self.val.images:
                ground_truth = self.folder / GROUND_TRUTH
                stats = validate(self.model, self.val, ground_truth, self.ranks)
                if log:
                    log.add_validation(self.step, stats)
                self._judge(stats["AP"])
            if log and self.step % self.recipe.val_every == 0:
                draw_samples(
                    self.model,
                    watched,
                    watched.images[: self.recipe.samples],
                    self.folder / "samples",
                    self.step,
                    self.ranks.device,
                )

    def _judge(self, ap: float) -> None:
        """Keep the model if it is the best so far; none counts before pruning is complete."""
        # The last zeros appear at the start of the step after `prune_end` steps.
        if self.pruner and self.step <= self.recipe.prune_end:
            return
        if ap <= self.best_ap:
            self.stale += 1
            return
        self.best_ap, self.best_step, self.stale = ap, self.step, 0
        if self.ranks.writes:
            tensors = self.model.folded_tensors()
            save_model(
                self.folder / BEST,
                self.model.config,
                tensors,
                {"step": self.step, "held_out_ap": ap},
                overwrite=True,
            )

    def save_model(self, provenance: dict[str, Any]) -> Path:
        """Write `model.safetensors` of the run folder, batch norm folded; returns its path.

        With a held-out split it is the best model, else the last.
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
