"""One-shot pruning from files to a run folder: the work of `sparsedet prune --method`.

Reads a trained network and a few images without labels; writes `model.safetensors`, `report.json`
and `report.png`, and while it works checkpoints, which the results replace.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..evaluation.coco import CocoDataset
from ..files import check_output, sha256_of, weights_file, write_atomic
from ..images.check import BadImages, read_images
from ..model.checkpoint import check_run_folder, checkpoints, prepare_run_folder
from ..model.file import AnyFile, load_file, save_model
from ..model.network import graph_of
from ..model.sparsity import sparsity_report
from ..sources.folder import find_images, sample_images
from .calibration import calibration_input
from .cost import PruningCost, measure_cost
from .network_module import as_module, tensors_of
from .one_shot import OneShotConfig, prune_once, pruned_layers
from .progress import (
    CHECKPOINT_MINUTES,
    PruningCheckpoints,
    StoppedPruning,
    digest_of_inputs,
    remove_checkpoints,
    resumed_state,
)
from .reading import read_outputs
from .report import PruningReport, require_matplotlib
from .signals import stop_on_signals

OUTPUTS = ("model.safetensors", "report.json", "report.png")
_HISTORY = ("recipe", "pruned", "source", "init", "teacher", "step", "held_out_ap", "tuned")
"""Provenance keys that tell how a model was made; they move to the new file's `source`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparing:
    """How a pruned network is compared with its dense one.

    Attributes:
        dataset: annotated images for AP, which are not calibrated on; None: no AP.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called with (images done, all).
    """

    dataset: CocoDataset | None = None
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None


def unlabelled_images(
    folder: Path, count: int, dataset: CocoDataset | None, seed: int
) -> list[Path]:
    """A sample of a folder's images without those of a data set, which AP is measured on.

    Raises:
        InputError: the folder holds too few.
    """
    if dataset is None:
        paths = sample_images(folder, count, seed=seed, exact=False)
    else:
        scored = {Path(image.file_name).name for image in dataset.images}
        paths = [path for path in find_images(folder) if path.name not in scored]
        paths = random.Random(seed).sample(paths, min(count, len(paths)))
    if len(paths) < count:
        others = "" if dataset is None else f" that {dataset.path} does not name"
        raise InputError(
            f"{folder}: holds {len(paths)} images{others}, but --calibration-images is {count}; "
            "give fewer"
        )
    return paths


def prune_files(
    model: Path,
    images: Path,
    output: Path,
    settings: OneShotConfig,
    *,
    calibration_images: int = 128,
    comparing: Comparing | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    load: Callable[[Path], AnyFile] = load_file,
    bad_images: BadImages = "stop",
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> PruningReport | None:
    """Prune the network of a file and write the result.

    Args:
        model: file to prune.
        images: folder of images, searched with its subfolders.
        output: folder to create; must not hold results yet.
        calibration_images: number of images that are used, at least 2; chosen by the settings'
            seed and the file names. An eighth of them only measures the error.
        comparing: how the result is compared with the dense network; None: not at all.
        progress: as in `prune_once`.
        load: reads `model`, for files of other forms.
        bad_images: what an image that cannot be read does.
        resume: go on with the run in `output`.
        checkpoint_minutes: least time between two checkpoints.

    Returns:
        the report; None: a signal stopped the run, and it can be resumed.

    Raises:
        InputError: the model, an image or a folder cannot be used, or the target cannot be
            reached.
    """
    require_matplotlib()
    if calibration_images < 2:
        raise UsageError(f"--calibration-images is {calibration_images}, expected at least 2")
    if not 0 <= checkpoint_minutes <= 1e6:
        raise UsageError(f"checkpoint_minutes is {checkpoint_minutes}, expected 0..1e6")
    check_run_folder(output, resume)
    goes_on = resume and bool(checkpoints(output))
    if output.is_dir() and not goes_on:  # results beside checkpoints are unfinished
        for name in OUTPUTS:
            check_output(output / name, flag="")
    dataset = comparing.dataset if comparing else None
    paths = unlabelled_images(images, calibration_images, dataset, settings.seed)
    file = load(model)
    names = pruned_layers(graph_of(file.config), settings)  # refuses the impossible now
    prepare_run_folder(output, resume)
    network = as_module(file)
    last_images: deque[NDArray[np.uint8]] = deque(maxlen=max(1, len(paths) // 8))
    network_inputs = []
    for _, image in read_images(paths, bad_images):
        network_inputs.append(calibration_input(image, file.config))
        last_images.append(image)
    count = len(network_inputs)
    if count < 2:
        raise InputError(f"{images}: 1 of {len(paths)} images can be read, expected at least 2")
    held_out = max(1, count // 8)
    weights = weights_file(model)
    source = sha256_of(weights)
    identity = {
        **asdict(settings),
        "photographs": count,
        "source": source,
        "digest of the images": digest_of_inputs(network_inputs),
    }
    identity = json.loads(json.dumps(identity))  # as a checkpoint says it
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    state = resumed_state(output, identity, names, shapes) if goes_on else None
    kept = PruningCheckpoints(output, identity, checkpoint_minutes)

    def note(done: int, steps: int, what: str) -> None:
        kept.check()
        if progress is not None:
            progress(done, steps, what)

    try:
        with stop_on_signals(kept.stop):
            report = prune_once(
                network,
                network_inputs,
                settings,
                held_out=held_out,
                outputs=read_outputs(file.config),
                progress=note,
                state=state,
                keep=kept.keep,
            )
    except StoppedPruning:
        return None
    kept.write()  # what follows may take long, or find the disk full
    del network_inputs
    history = {key: value for key, value in file.provenance.items() if key in _HISTORY}
    provenance = {
        **{key: value for key, value in file.provenance.items() if key not in _HISTORY},
        "pruned": {**asdict(settings), "photographs": count},
        "source": {"name": weights.name, "sha256": source, **history},
    }
    save_model(
        output / OUTPUTS[0], file.config, tensors_of(file, network), provenance, overwrite=goes_on
    )
    # As stored: float16 has no weights below 3e-8, so a few more are zero than were pruned.
    stored = load_file(output / OUTPUTS[0])
    report = replace(report, zeros=sparsity_report(stored.config, stored.tensors).zeros)
    if comparing is not None:
        report = replace(
            report,
            cost=compare_files(file, stored, [*last_images][-held_out:], comparing, model),
        )
    text = json.dumps(report.to_json(), indent=1) + "\n"
    write_atomic(output / OUTPUTS[1], text.encode(), overwrite=goes_on)
    write_atomic(output / OUTPUTS[2], report.plot(), overwrite=goes_on)
    remove_checkpoints(output)
    return report


def compare_files(
    dense: AnyFile,
    pruned: AnyFile,
    images: Sequence[NDArray[np.uint8]],
    comparing: Comparing,
    source: Path,
) -> PruningCost:
    """`measure_cost` as `comparing` says; `source` is the file of the dense network."""
    return measure_cost(
        dense,
        pruned,
        images,
        dataset=comparing.dataset,
        source=source if source.suffix.lower() == ".onnx" else None,
        threads=comparing.threads,
        progress=comparing.progress,
    )
