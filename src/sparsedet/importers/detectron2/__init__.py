"""Detectron2's trained detectors (.pkl of its model zoo, .pth of its checkpointer).

A family of models is a file (`c4`, `pyramid`); `checks` tells them apart by their tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...model.config import ModelConfig
from ..containers import open_source
from ..tensor_source import Imported
from .c4 import load_c4
from .checks import check_model, family_of
from .config_yaml import Detectron2Config, read_config_file
from .pyramid import load_pyramid

__all__ = ["Detectron2Config", "load_detectron2", "read_config_file"]


def load_detectron2(
    path: str | os.PathLike[str],
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
    rgb: bool = False,
    stated: Detectron2Config | None = None,
    weights: str | None = None,
) -> Imported:
    """Read a checkpoint.

    Args:
        path: the checkpoint.
        base: for C4, configuration of all that the file does not state; default: the preset
            `r101-c4-detectron2`, with `rgb` changed as in Detectron2's recipe for RGB.
        fields: fields of `ModelConfig` (C4) or `PyramidSettings`, which override all others.
            Colours are BGR.
        rgb: True if the model reads RGB: its first layer and stated pixel statistics are reversed.
        stated: the model's own config.yaml; it replaces `base` and `rgb`.
        weights: which of several models in the file, as `containers.open_source` takes it.

    Raises:
        InputError: the file is unreadable, hostile or no such model, its tensors do not fit
            together, or `stated` is of another model.
    """
    _, source = open_source(Path(path), weights)
    family = family_of(source)
    check_model(source, family)
    if stated is not None and rgb and stated.values.get("INPUT.FORMAT", "BGR") == "BGR":
        raise InputError(f"{stated.path}: INPUT.FORMAT is BGR, but --rgb is given")
    if family == "c4":
        return load_c4(source, base, fields or {}, rgb, stated)
    if base is not None:
        raise source.error(f"has a feature pyramid, and {base.name} is a preset for C4 models")
    return load_pyramid(source, family, fields or {}, rgb, stated)
