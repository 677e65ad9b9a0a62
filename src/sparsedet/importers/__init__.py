"""Weights of other projects -> our models, one file for each foreign form.

`load_foreign` finds out what a file is and gives it to its importer, which returns an
`Imported`: a complete configuration and folded tensors, or raises an InputError. Each importer
verifies itself (see `source`). Nothing here runs code that a file holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..model.config import ModelConfig
from ..model.file import ModelFile, load_model
from .tensor_source import Imported

FORMATS: dict[str, str] = {
    "detectron2": "Detectron2's C4 models (.pkl, .pth)",
    "tensorpack": "TensorPack's C4 models (.npz)",
    "openvino": "OpenVINO IR of a C4 model (.xml beside its .bin)",
    "checkpoint": "a training run's folder or checkpoint of this project",
    "torchvision": "a ResNet classifier of torchvision or timm (.pth, .safetensors)",
}
"""The forms that are read, by the name that `--from` takes."""


def detect_format(path: str | os.PathLike[str]) -> str:
    """The key of `FORMATS` by a file's first bytes and the names inside it, not by its suffix.

    A model file of this project is "model".

    Raises:
        InputError: it cannot be read, or is of none of the forms; says what it seems to be.
    """
    from .containers import sniff

    return sniff(Path(path))


def load_foreign(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
    rgb: bool = False,
) -> Imported:
    """Read a model of another project, or a training run of our own.

    Args:
        path: the file, for a run also its folder.
        format: a key of `FORMATS`; default: found by content.
        base: conventions that the source does not state; default: those that its project uses.
        fields: single values of the configuration that override all else.
        rgb: a Detectron2 model reads RGB, which its file does not say.

    Raises:
        InputError: it cannot be read or is no model that this project runs.
    """
    path, fields = Path(path), fields or {}
    if format not in (None, "model", *FORMATS):
        raise InputError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    kind = format or detect_format(path)
    if rgb and kind != "detectron2":
        raise InputError(f"{path}: only a Detectron2 model can be said to read RGB")
    match kind:
        case "model":
            raise InputError(f"{path}: is a sparsedet model file already")
        case "detectron2":
            from .detectron2 import load_detectron2

            return load_detectron2(path, base, fields, rgb)
        case "tensorpack":
            from .tensorpack import load_tensorpack

            return load_tensorpack(path, base, fields)
        case "checkpoint":
            from .checkpoint import load_checkpoint

            return load_checkpoint(path, fields)
        case "torchvision":
            raise InputError(
                f"{path}: is a ResNet classifier, the start of a detector's training and no "
                f"detector: use it as `sparsedet train --init {path}`"
            )
        case _:
            from .openvino_ir import load_openvino

            return load_openvino(path, base, fields)


def load_any(
    path: str | os.PathLike[str], format: str | None = None
) -> tuple[ModelFile, tuple[str, ...]]:
    """A detector in any form: a model file, or what `load_foreign` reads with its conventions.

    Args:
        format: as `detect_format` gives it, where the caller has asked; default: found by content.

    Returns:
        The model, and lines for the user: what a foreign form did not state.

    Raises:
        InputError: it cannot be read or is no detector that this project runs.
    """
    kind = format or detect_format(path)
    if kind == "model":
        return load_model(path), ()
    found = load_foreign(path, kind)
    return ModelFile(found.config, found.tensors, found.provenance, "float32"), found.notes


__all__ = ["FORMATS", "Imported", "detect_format", "load_any", "load_foreign"]
