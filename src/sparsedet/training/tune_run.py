"""Tuning from files to a run folder: the work of `sparsedet tune`.

Writes checkpoints, `log.jsonl`, and at the end `model.safetensors` and `report.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import check_output, sha256_of, write_atomic
from ..images.check import BadImages, read_images
from ..model.checkpoint import checkpoints, prepare_run_folder
from ..model.file import AnyFile, save_model
from ..model.sparsity import sparsity_report
from ..pruning.cost import PruningCost
from ..pruning.network_module import tensors_of, with_tensors
from ..pruning.run import Comparing, compare_files, unlabelled_images
from ..pruning.signals import stop_on_signals
from ..sources.folder import find_images
from ..torch_model.checkpoint import newest_checkpoint
from .tune import Tuner
from .tune_config import TuneConfig

HELD_OUT = 16
"""Photographs that are not learnt from, for the comparison at the end; fewer of few ones."""
OUTPUTS = ("model.safetensors", "report.json")


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """One prunable layer.

    Attributes:
        weights, zeros: of the weight.
        before, after: relative error of its output on held-out photographs, all layers together,
            before and after tuning.
    """

    name: str
    weights: int
    zeros: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What tuning did.

    Attributes:
        steps: of the optimizer.
        layers: in the network's order.
        parameters, zeros: of the whole network.
        cost: the network beside its dense one; None: not measured.
    """

    steps: int
    layers: tuple[TunedLayer, ...]
    parameters: int
    zeros: int
    cost: PruningCost | None

    def table(self) -> str:
        """A line for each layer, one for the whole network, and what it cost."""
        width = max(18, *(len(row.name) + 1 for row in self.layers))
        lines = [f"{'layer':<{width}}{'weights':>12}{'sparsity':>10}{'before':>9}{'after':>9}"]
        lines += [
            f"{row.name:<{width}}{row.weights:>12,}{100 * row.zeros / row.weights:>8.1f} %"
            f"{row.before:>9.3f}{row.after:>9.3f}"
            for row in self.layers
        ]
        lines.append(
            f"{self.zeros:,} of {self.parameters:,} parameters are zero "
            f"({100 * self.zeros / self.parameters:.2f} %): {self.steps} steps"
        )
        return "\n".join([*lines, *([self.cost.text()] if self.cost else [])])


def tune_files(
    pruned: AnyFile,
    dense: AnyFile,
    images: Path,
    output: Path,
    settings: TuneConfig,
    *,
    names: tuple[Path, Path],
    resume: bool = False,
    comparing: Comparing | None = None,
    bad_images: BadImages = "stop",
    progress: Callable[[int, int, float], None] | None = None,
) -> TuningReport | None:
    """Tune a pruned network and write the result.

    Args:
        pruned, dense: the networks.
        images: folder of photographs, searched with its subfolders.
        output: the run folder.
        settings: see `TuneConfig`.
        names: files of the two networks.
        resume: go on with the run in `output`.
        comparing: how the result is compared with the dense network; None: not at all.
        bad_images: what a photograph that cannot be read does.
        progress: called after each step with its number, all steps, and its loss.

    Returns:
        the report; None: the run was stopped, and can be resumed.

    Raises:
        InputError: an input cannot be used, or the output cannot be written.
    """
    goes_on = resume and bool(checkpoints(output))
    if output.is_dir():
        for name in OUTPUTS[1:] if goes_on else OUTPUTS:  # a model without a report is unfinished
            check_output(output / name, flag="")
    dataset = comparing.dataset if comparing else None
    scored = {Path(image.file_name).name for image in dataset.images} if dataset else set[str]()
    count = sum(path.name not in scored for path in find_images(images))
    if count < 2:
        raise InputError(f"{images}: holds {count} photographs to learn from, expected at least 2")
    paths = unlabelled_images(images, count, dataset, settings.seed)
    held_out = min(HELD_OUT, max(1, count // 8))
    tuner = Tuner(pruned, dense, paths[held_out:], settings, bad_images)
    identity = {
        **settings.described(len(paths)),
        "pruned": sha256_of(names[0]),
        "teacher": sha256_of(names[1]),
    }
    prepare_run_folder(output, resume)
    if goes_on:
        tuner.resume(newest_checkpoint(output), identity)
    unseen: list[NDArray[np.uint8]] = [i for _, i in read_images(paths[:held_out], bad_images)]
    before = Tuner(pruned, dense, paths, settings).layer_errors(unseen)
    if not _run(tuner, output, identity, progress):
        return None
    provenance = {
        **pruned.provenance,
        "tuned": settings.described(len(tuner.photographs)),
        "teacher": {"name": names[1].name, "sha256": sha256_of(names[1])},
    }
    tensors = tensors_of(pruned, tuner.student)
    file = with_tensors(pruned, tensors, provenance)
    save_model(
        output / OUTPUTS[0],
        file.config,
        tensors,
        provenance,
        dtype=pruned.storage_dtype,
        overwrite=goes_on,
    )
    after = tuner.layer_errors(unseen)
    zeros = {n: int((~keep).sum()) for n, keep in tuner.masks.keep_masks.items()}
    whole = sparsity_report(file.config, tensors)
    report = TuningReport(
        settings.steps,
        tuple(
            TunedLayer(n, tuner.student.graph.layer[n].weights, zeros[n], before[n], after[n])
            for n in before
        ),
        whole.parameters,
        whole.zeros,
        compare_files(dense, file, unseen, comparing, names[1]) if comparing else None,
    )
    text = json.dumps(asdict(report), indent=1) + "\n"
    write_atomic(output / OUTPUTS[1], text.encode())
    return report


def _run(
    tuner: Tuner,
    folder: Path,
    identity: dict[str, Any],
    progress: Callable[[int, int, float], None] | None,
) -> bool:
    """All steps, with checkpoints; whether they are done."""
    stop = False

    def ask_to_stop() -> None:
        nonlocal stop
        stop = True

    def note(step: int, loss: float) -> None:
        with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, "loss": loss}) + "\n")
        if step % tuner.settings.checkpoint_every == 0 or step == tuner.settings.steps or stop:
            tuner.write(folder, identity)
        if progress is not None:
            progress(step, tuner.settings.steps, loss)

    with stop_on_signals(ask_to_stop):
        return tuner.run(note, lambda: stop)
