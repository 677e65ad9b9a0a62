"""One-shot pruning from files to a run folder: what `sparsedet prune --method` does.

Reads a trained model and a few photographs without labels; writes `model.safetensors`,
`report.json` and `report.png`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError
from ..files import make_folder, sha256_of, weights_file, write_atomic
from ..images.read import read_image
from ..model.batch_norm import fold_batch_norm
from ..model.file import ModelFile, load_model, save_model
from ..torch_model import FasterRCNN
from .calibration import calibration_input
from .one_shot import OneShotConfig, prune_once, pruned_layers
from .report import PruningReport, require_matplotlib

OUTPUTS = ("model.safetensors", "report.json", "report.png")
PHOTOGRAPHS = {".jpg", ".jpeg", ".png"}
_MAKING = ("recipe", "pruned", "source", "init", "teacher", "step", "held_out_ap")
"""What a model's provenance says of how it was made: of the source, not of what comes out."""


def prune_files(
    model: Path,
    images: Path,
    output: Path,
    settings: OneShotConfig,
    *,
    photographs: int = 128,
    progress: Callable[[int, int, str], None] | None = None,
    load: Callable[[Path], ModelFile] = load_model,
) -> PruningReport:
    """Prune a model file and write what came of it.

    Args:
        images: folder of the calibration photographs, JPEG or PNG, at any depth; which of them
            are taken follows from the settings' seed and their names.
        output: folder, created; must not hold results yet.
        photographs: how many are taken, at least 2; an eighth of them only measures the error.
        progress: as `prune_once` takes it.
        load: reads `model`, for files of other forms.

    Raises:
        InputError: the model, a photograph or the folder cannot be used, or the target cannot be
            reached.
    """
    require_matplotlib()
    if photographs < 2:
        raise InputError(f"--calibration-photos is {photographs}, expected at least 2")
    for name in OUTPUTS:
        if (output / name).exists():
            raise InputError(f"{output / name}: exists already and is not overwritten")
    if not images.is_dir():
        raise InputError(f"{images}: is no folder of photographs")
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in PHOTOGRAPHS)
    if len(found) < photographs:
        raise InputError(
            f"{images}: {len(found)} photographs, {photographs} are needed (--calibration-photos)"
        )
    paths = random.Random(settings.seed).sample(found, photographs)
    file = load(model)
    network = FasterRCNN(file.config)
    pruned_layers(network.network, settings)  # refuses the impossible now
    make_folder(output)
    network.load_tensors(fold_batch_norm(file.tensors, file.config))
    network.eval()
    network_inputs = [calibration_input(read_image(path), network) for path in paths]
    report = prune_once(
        network, network_inputs, settings, held_out=max(1, len(paths) // 8), progress=progress
    )
    origin = weights_file(model)
    earlier = {key: value for key, value in file.provenance.items() if key in _MAKING}
    provenance = {
        **{key: value for key, value in file.provenance.items() if key not in _MAKING},
        "pruned": {**asdict(settings), "photographs": len(paths)},
        "source": {"name": origin.name, "sha256": sha256_of(origin), **earlier},
    }
    save_model(output / OUTPUTS[0], file.config, network.folded_tensors(), provenance)
    write_atomic(output / OUTPUTS[1], (json.dumps(report.to_json(), indent=1) + "\n").encode())
    write_atomic(output / OUTPUTS[2], report.plot())
    return report
