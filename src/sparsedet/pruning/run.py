"""One-shot pruning from files to a run folder: the work of `sparsedet prune --method`.

Reads a trained model and a few images without labels; writes `model.safetensors`, `report.json`
and `report.png`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ..errors import InputError, UsageError
from ..files import check_output, make_folder, sha256_of, weights_file, write_atomic
from ..images.check import BadImages, read_images
from ..model.batch_norm import fold_batch_norm
from ..model.detector_config import build_graph
from ..model.file import ModelFile, load_model, save_model
from ..model.sparsity import sparsity_report
from ..sources.folder import sample_images
from ..torch_model import GraphModule
from .calibration import calibration_input
from .one_shot import OneShotConfig, prune_once, pruned_layers
from .report import PruningReport, require_matplotlib

OUTPUTS = ("model.safetensors", "report.json", "report.png")
_HISTORY = ("recipe", "pruned", "source", "init", "teacher", "step", "held_out_ap")
"""Provenance keys that tell how a model was made; they move to the new file's `source`."""


def prune_files(
    model: Path,
    images: Path,
    output: Path,
    settings: OneShotConfig,
    *,
    calibration_images: int = 128,
    progress: Callable[[int, int, str], None] | None = None,
    load: Callable[[Path], ModelFile] = load_model,
    bad_images: BadImages = "stop",
) -> PruningReport:
    """Prune a model file and write the result.

    Args:
        model: file to prune.
        images: folder of images, searched with its subfolders.
        output: folder to create; must not hold results yet.
        calibration_images: number of images that are used, at least 2; chosen by the settings'
            seed and the file names. An eighth of them only measures the error.
        progress: as in `prune_once`.
        load: reads `model`, for files of other forms.
        bad_images: what an image that cannot be read does.

    Raises:
        InputError: the model, an image or a folder cannot be used, or the target cannot be
            reached.
    """
    require_matplotlib()
    if calibration_images < 2:
        raise UsageError(f"--calibration-images is {calibration_images}, expected at least 2")
    if output.is_dir():
        for name in OUTPUTS:
            check_output(output / name, flag="")
    paths = sample_images(images, calibration_images, seed=settings.seed, exact=False)
    if len(paths) < calibration_images:
        raise InputError(
            f"{images}: holds {len(paths)} images, but --calibration-images is "
            f"{calibration_images}; give fewer"
        )
    file = load(model)
    network = GraphModule(file.config.name, build_graph(file.config))
    pruned_layers(network.graph, settings)  # refuses the impossible now
    make_folder(output)
    network.load_tensors(fold_batch_norm(file.tensors, file.config))
    network.eval()
    network_inputs = [
        calibration_input(image, file.config) for _, image in read_images(paths, bad_images)
    ]
    count = len(network_inputs)
    if count < 2:
        raise InputError(f"{images}: 1 of {len(paths)} images can be read, expected at least 2")
    report = prune_once(
        network, network_inputs, settings, held_out=max(1, count // 8), progress=progress
    )
    weights = weights_file(model)
    history = {key: value for key, value in file.provenance.items() if key in _HISTORY}
    provenance = {
        **{key: value for key, value in file.provenance.items() if key not in _HISTORY},
        "pruned": {**asdict(settings), "photographs": count},
        "source": {"name": weights.name, "sha256": sha256_of(weights), **history},
    }
    save_model(output / OUTPUTS[0], file.config, network.folded_tensors(), provenance)
    # As stored: float16 has no weights below 3e-8, so a few more are zero than were pruned.
    stored = load_model(output / OUTPUTS[0])
    report = replace(report, zeros=sparsity_report(stored.config, stored.tensors).zeros)
    write_atomic(output / OUTPUTS[1], (json.dumps(report.to_json(), indent=1) + "\n").encode())
    write_atomic(output / OUTPUTS[2], report.plot())
    return report
