"""The log of a run: files in its folder, a progress bar, TensorBoard.

`metrics.jsonl` has a line every few steps (means since the last line), `validation.jsonl` one for
each validation, `log.txt` the printed messages; `tensorboard/` has the same figures if the
`tensorboard` package is installed. A resumed run deletes the lines after the step that it resumes
from.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import InputError
from ..files import write_atomic
from .pulse import Pulse
from .recipe import Recipe

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


class Log:
    """The log of one run.

    Args:
        folder: the run folder.
        recipe: its settings.
        first: step at which the run begins or resumes.
        pulse: learns what was printed and which step was done.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, first: int, pulse: Pulse | None = None
    ) -> None:
        self.folder, self.recipe, self.first = folder, recipe, first
        self.pulse = pulse or Pulse()
        self.began = time.monotonic()
        for name in (METRICS, VALIDATION):
            _drop_lines_after(folder / name, first)
        self.pending: list[dict[str, float]] = []
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("", total=recipe.steps, completed=first)
        self.board = self._tensorboard()
        self.bar.start()
        self.pulse.silent = not self.bar.disable
        self.pulse.doing = f"step {first}/{recipe.steps}"

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("no TensorBoard files: the tensorboard package is not installed")
            return None
        return SummaryWriter(self.folder / "tensorboard", purge_step=self.first)

    def say(self, text: str) -> None:
        """Print a line and keep it in `log.txt`."""
        self.pulse.spoke()
        if self.bar.disable:
            print(text, flush=True)
        else:
            self.bar.console.print(text, markup=False, highlight=False)
        _append(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def due(self, step: int) -> bool:
        """Whether a line of metrics is written after this step."""
        return step % self.recipe.log_every == 0 or step == self.recipe.steps

    def add(self, step: int, values: dict[str, float], rate: float, sparsity: float) -> None:
        """Log a step.

        Args:
            step: optimizer steps done.
            values: losses by name.
            rate: learning rate.
            sparsity: zeros among all parameters, 0..1.
        """
        self.pending.append(values)
        self.bar.update(self.task, completed=step)
        self.pulse.doing = f"step {step}/{self.recipe.steps}"
        if not self.due(step):
            return
        means = {k: float(np.mean([v[k] for v in self.pending])) for k in values}
        self.pending.clear()
        seconds = (time.monotonic() - self.began) / max(step - self.first, 1)
        line = {
            "step": step,
            "loss": sum(means.values()),
            **means,
            "rate": rate,
            "sparsity": sparsity,
            "seconds": seconds,
        }
        _append(self.folder / METRICS, json.dumps(line))
        self._scalars(step, line)
        text = f"loss {line['loss']:.3f}  sparsity {sparsity:.3f}  {seconds:.2f} s/step"
        self.bar.update(self.task, description=text)
        if self.bar.disable:
            losses = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
            self.pulse.spoke()
            minutes = seconds * (self.recipe.steps - step) / 60
            print(
                f"step {step}/{self.recipe.steps}  {text}  {losses}  rate {rate:.2e}  "
                f"{minutes:.0f} min left",
                flush=True,
            )

    def add_validation(self, step: int, stats: dict[str, float]) -> None:
        """Log the COCO figures of a validation."""
        line = {"step": step, **stats}
        _append(self.folder / VALIDATION, json.dumps(line))
        self._scalars(step, line)
        self.say(f"step {step}: AP {stats['AP']:.4f}, AP50 {stats['AP50']:.4f} of the split")

    def _scalars(self, step: int, line: dict[str, Any]) -> None:
        if self.board is not None:
            for name in line.keys() - {"step"}:
                self.board.add_scalar(name, line[name], step)

    def close(self) -> None:
        """End the progress bar and TensorBoard's file."""
        self.bar.stop()
        if self.board is not None:
            self.board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, without a broken last one; [] if there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the process was killed while it wrote the line
            continue
    return lines


def _drop_lines_after(path: Path, first: int) -> None:
    """Delete the lines after step `first`, which the run will write again."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= first]
        write_atomic(path, "".join(kept).encode(), overwrite=True)


def _append(path: Path, text: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
