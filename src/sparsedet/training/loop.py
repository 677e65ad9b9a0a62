"""The training loop: steps, gradual pruning, checkpoints, resume.

A run folder holds `run.json` (what was asked), `metrics.jsonl` (a line every few steps), two
newest checkpoints, and at the end `model.safetensors`. A checkpoint is one safetensors file
with everything a bit-identical continuation on the CPU needs; data order and sampling follow
from the seed and the step, so no random state has to be kept.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from ..coco import CocoDataset
from ..config import ModelConfig
from ..errors import InputError
from ..files import write_atomic
from ..importers.open_nsfw import load_open_nsfw
from ..pruning.masks import MagnitudePruner
from ..pruning.schedule import CubicSchedule
from ..reference import FasterRCNN
from ..weights import load_model, save_model
from .data import Batches
from .losses import losses
from .recipe import Recipe

KEEP_CHECKPOINTS = 2


def set_threads(count: int) -> None:
    """Let torch use that many CPU threads."""
    if not 1 <= count <= 1024:
        raise InputError(f"threads is {count}, expected 1..1024")
    torch.set_num_threads(count)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run folder that can be read; says which ones cannot.

    Raises:
        InputError: there is none.
    """
    for path in sorted(folder.glob("checkpoint-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="numpy") as file:
                int((file.metadata() or {})["step"])
            return path
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            print(f"{path}: cannot be read ({error}), trying the one before", file=sys.stderr)
    raise InputError(f"{folder}: holds no readable checkpoint")


def initial_tensors(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors to start from: a checkpoint, a model file or open_nsfw's ONNX file.

    Checkpoints give the training form (batch norms separate where the run had them so), model
    files the folded one.

    Raises:
        InputError: none of these, or an ONNX file of another network than `config`.
    """
    if path.suffix == ".onnx":
        return load_open_nsfw(path, config)
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith("model/")]  # noqa: SIM118
            if names:
                return {name[len("model/") :]: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        pass  # load_model says what is wrong with it
    return dict(load_model(path).tensors)


def initial_config(path: Path) -> ModelConfig | None:
    """The configuration inside a checkpoint or model file; None for an ONNX file."""
    if path.suffix == ".onnx":
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
        if "recipe" in metadata:
            return ModelConfig.from_dict(json.loads(metadata["config"]))
    except (SafetensorError, OSError, KeyError, ValueError):
        pass
    return load_model(path).config


def build_model(config: ModelConfig, initial: Mapping[str, np.ndarray]) -> FasterRCNN:
    """A model to train, batch norms separate where `initial` has them.

    Args:
        initial: tensors by name; layers that it does not name keep their random start.

    Raises:
        InputError: a tensor has no place in the model or the wrong shape.
    """
    norm = not initial or any(".norm." in name for name in initial)
    model = FasterRCNN(config, norm=norm)
    own = model.state_dict()
    for name, value in initial.items():
        if name not in own or tuple(own[name].shape) != value.shape:
            raise InputError(f"initial tensor {name!r} {value.shape} does not fit {config.name}")
        own[name] = torch.from_numpy(np.array(value))
    model.load_state_dict(own)
    return model


def freeze(model: FasterRCNN, freeze_at: int) -> None:
    """Stop gradients of the stem (1), res2 (2), ... up to stage `freeze_at`."""
    frozen = ["stem.", *(f"res{n}." for n in range(2, freeze_at + 1))][: freeze_at or None]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(freeze_at == 0 or not name.startswith(tuple(frozen)))


def build_optimizer(model: FasterRCNN, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on batch norms and biases; a rate factor for the backbone.

    Each group keeps that factor as `factor`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = recipe.backbone_rate if name.startswith(("stem.", "res")) else 1.0
        decay = 0.0 if name.endswith("bias") or ".norm." in name else recipe.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    lists: list[dict[str, Any]] = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(lists, lr=recipe.learning_rate)
    return torch.optim.SGD(lists, lr=recipe.learning_rate, momentum=recipe.momentum)


class Trainer:
    """One run: model, optimizer, masks and the step counter.

    Args:
        model: trained in place.
        dataset: checked ground truth with its photographs.
        recipe: all settings.
        folder: the run folder; `prepare_folder` creates it before anything is written.

    Raises:
        InputError: no photograph has a box, or the pruning asked for is impossible.
    """

    def __init__(
        self, model: FasterRCNN, dataset: CocoDataset, recipe: Recipe, folder: Path
    ) -> None:
        self.model, self.dataset, self.recipe, self.folder = model, dataset, recipe, folder
        self.step = 0
        if all(image.crowd.all() for image in dataset.images):
            raise InputError(f"{dataset.path}: no photograph has a box to train on")
        freeze(model, recipe.freeze_at)
        self.optimizer = build_optimizer(model, recipe)
        self.pruner: MagnitudePruner | None = None
        if recipe.sparsity:
            schedule = CubicSchedule(final=recipe.sparsity, begin=recipe.prune_begin,
                                     end=recipe.prune_end, every=recipe.prune_every)  # fmt: skip
            self.pruner = MagnitudePruner(model, schedule, recipe.allocation, recipe.exclude)
        self._stop = False

    def describe(self, command: Sequence[str]) -> None:
        """Write `run.json`: the command, configuration, recipe, data and versions."""
        content = {
            "command": list(command),
            "config": self.model.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "annotations": str(self.dataset.path),
            "images": len(self.dataset.images),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        text = json.dumps(content, indent=1)
        write_atomic(self.folder / "run.json", text.encode(), overwrite=True)

    # ------------------------------------------------------------ checkpoints

    def checkpoint(self) -> Path:
        """Write the newest checkpoint and drop old ones; returns its path."""
        tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
        if self.pruner:
            tensors |= {f"mask/{k}": v for k, v in self.pruner.masks.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        metadata = {
            "step": str(self.step),
            "config": json.dumps(self.model.config.to_dict()),
            "recipe": json.dumps(self.recipe.to_dict()),
        }
        path = self.folder / f"checkpoint-{self.step:07d}.safetensors"
        write_atomic(path, safetensors_bytes(tensors, metadata), overwrite=True)
        for old in sorted(self.folder.glob("checkpoint-*.safetensors"))[:-KEEP_CHECKPOINTS]:
            old.unlink()
        return path

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            InputError: it belongs to another model or recipe.
        """
        try:
            self._restore(path)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: of another model or recipe ({reason})") from None

    def _restore(self, path: Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        before, now = json.loads(metadata["recipe"]), self.recipe.to_dict()
        if any(key.startswith("mask/") for key in tensors) and not self.pruner:
            raise InputError(f"{path}: is of a pruning run, but the recipe's sparsity is 0")
        for key in sorted(now):
            if json.dumps(now[key]) != json.dumps(before.get(key)):
                print(f"{path}: changed setting {key}: {before.get(key)} -> {now[key]}")
        prefix = "model/"
        self.model.load_state_dict(
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        )
        parameters = dict(self.model.named_parameters())
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "mask" and self.pruner:
                self.pruner.masks[rest].copy_(value)
            elif kind == "optimizer":
                slot, _, name = rest.partition("/")
                self.optimizer.state[parameters[name]][slot] = value
        self.step = int(metadata["step"])

    # ------------------------------------------------------------ the loop

    def run(self) -> bool:
        """Train to the recipe's last step, or until SIGTERM or SIGINT; then checkpoint.

        Returns:
            whether the last step was reached.

        Raises:
            InputError: a loss is not finite; the batch's image ids are in `nan_batch.json`.
        """
        self.model.train()
        data = Batches(self.dataset, self.model.config, self.recipe, self.step)
        batches = iter(torch.utils.data.DataLoader(data, batch_size=None))
        saved = time.monotonic()
        log = _Log(self.folder / "metrics.jsonl", self.recipe, self.step)
        with closing(log), _stop_signals(self):
            while self.step < self.recipe.steps and not self._stop:
                canvas, targets, ids = next(batches)
                values = self.train_step(canvas, targets)
                if not np.isfinite(sum(values.values())):
                    write_atomic(self.folder / "nan_batch.json",
                                 json.dumps({"step": self.step, "image_ids": ids}).encode(),
                                 overwrite=True)  # fmt: skip
                    raise InputError(
                        f"the loss is not finite at step {self.step} ({values}); image ids are in "
                        f"{self.folder / 'nan_batch.json'}, the last checkpoint is untouched"
                    )
                log.add(self.step, values, self.recipe.rate(self.step - 1), self.pruner)
                if time.monotonic() - saved > 60 * self.recipe.checkpoint_minutes:
                    self.checkpoint()
                    saved = time.monotonic()
        self.checkpoint()
        return self.step >= self.recipe.steps

    def train_step(self, canvas: Tensor, targets: list[Any]) -> dict[str, float]:
        """One optimizer step; returns the losses before it."""
        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.pruner and self.pruner.update(self.step):
            self.pruner.apply(self.optimizer)
        parts = losses(self.model, self.recipe, canvas, targets)
        total = torch.stack(list(parts.values())).sum()
        values = {name: float(value.detach()) for name, value in parts.items()}
        if np.isfinite(sum(values.values())):
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            if self.recipe.clip_gradient:
                nn.utils.clip_grad_norm_(
                    [p for p in self.model.parameters() if p.grad is not None],
                    self.recipe.clip_gradient,
                )
            self.optimizer.step()
            if self.pruner:
                self.pruner.apply(self.optimizer)
            self.step += 1
        return values

    def save_model(self, provenance: dict[str, Any]) -> Path:
        """Write `model.safetensors` of the run folder, batch norm folded; returns its path."""
        path = self.folder / "model.safetensors"
        save_model(path, self.model.config, self.model.folded_tensors(), provenance, overwrite=True)
        return path


@contextmanager
def _stop_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT end the loop after the current step instead of losing work."""

    def stop(*_: object) -> None:
        trainer._stop = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """Means of the losses every few steps: to metrics.jsonl, and to a progress bar or, where
    there is no terminal, to lines of text.
    """

    def __init__(self, path: Path, recipe: Recipe, first: int) -> None:
        self.recipe, self.first, self.began = recipe, first, time.monotonic()
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.pending: list[dict[str, float]] = []
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
            disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self.task = self.bar.add_task("", total=recipe.steps, completed=first)
        self.bar.start()

    def add(
        self, step: int, values: dict[str, float], rate: float, pruner: MagnitudePruner | None
    ) -> None:
        self.pending.append(values)
        self.bar.update(self.task, completed=step)
        if step % self.recipe.log_every and step != self.recipe.steps:
            return
        means = {k: float(np.mean([v[k] for v in self.pending])) for k in values}
        self.pending.clear()
        seconds = (time.monotonic() - self.began) / max(step - self.first, 1)
        line = {"step": step, "loss": sum(means.values()), **means, "rate": rate,
                "sparsity": pruner.sparsity() if pruner else 0.0, "seconds": seconds}  # fmt: skip
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        text = f"loss {line['loss']:.3f}  sparsity {line['sparsity']:.3f}  {seconds:.2f} s/step"
        self.bar.update(self.task, description=text)
        if self.bar.disable:
            parts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
            minutes = seconds * (self.recipe.steps - step) / 60
            print(f"step {step}/{self.recipe.steps}  {text}  {parts}  rate {rate:.2e}  "
                  f"{minutes:.0f} min left", flush=True)  # fmt: skip

    def close(self) -> None:
        self.bar.stop()
        self.file.close()


def prepare_folder(folder: Path, resume: bool) -> None:
    """Create the run folder.

    Raises:
        InputError: it cannot be written, or holds another run and `resume` is not asked for.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written")
    if not resume and any(folder.glob("checkpoint-*.safetensors")):
        raise InputError(f"{folder}: holds a run already; resume it or choose another folder")
