"""Importers of weights of other projects, one file for each format.

`load_foreign` recognises a file's format and calls its importer, which returns an `Imported` (a
complete configuration and folded tensors) or raises an InputError. Each importer verifies that
it read every tensor (see `tensor_source`). No code inside a file is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..model.config import ModelConfig
from ..model.file import ModelFile, NetworkFile, load_file, load_model
from .tensor_source import Imported

if TYPE_CHECKING:
    from .detectron2 import Detectron2Config
    from .onnx.detectors import Preprocessing

FORMATS: dict[str, str] = {
    "detectron2": "Detectron2's Faster and Mask R-CNN (C4, FPN) and RetinaNet (.pkl, .pth)",
    "tensorpack": "TensorPack's C4 models (.npz)",
    "openvino": "OpenVINO IR of a C4 model (.xml beside its .bin)",
    "checkpoint": "a training run's folder or checkpoint of this project",
    "torchvision-detector": "torchvision's Faster and Mask R-CNN FPN, RetinaNet, FCOS (.pth)",
    "onnx": "an ONNX file of a convolutional network: YOLOv5 to 11, YOLOX, PicoDet, or any with "
    "its outputs as they are",
    "torchvision": "a ResNet classifier of torchvision or timm (.pth, .safetensors)",
}
"""Name of a format, as `--from` takes it -> description."""


def detect_format(path: str | os.PathLike[str], weights: str | None = None) -> str:
    """Recognise a format by a file's first bytes and tensor names, not by its suffix.

    Args:
        path: the file, or the folder of a run.
        weights: which of several models in the file, as `load_foreign` takes it.

    Returns:
        A key of `FORMATS`; "model" for a model file of this project.

    Raises:
        InputError: the file cannot be read, or has another format; the message says which it
            seems to have.
    """
    from .containers import sniff

    return sniff(Path(path), weights)


def load_foreign(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
    rgb: bool = False,
    config: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    weights: str | None = None,
    torchvision: Mapping[str, Any] | None = None,
) -> Imported:
    """Read a model of another project, or a training run of this one.

    Args:
        path: the file; for a run also its folder.
        format: a key of `FORMATS`; default: recognised by content.
        base: configuration of all that the source does not state; default: the conventions of
            its project.
        fields: single values of the configuration, which override all others.
        rgb: True for a Detectron2 model that reads RGB; its file does not state this.
        config: files of settings: fields of the configuration (JSON, YAML), of which later ones
            override earlier ones and `fields` override all, and Detectron2's own config.yaml.
        weights: the name of one of several models in a PyTorch checkpoint, or a part of it, as
            "ema"; default: the one that its project's own loader takes.
        torchvision: fields of `torchvision_detectors.TorchvisionSettings`: what a detector of
            torchvision does not state.

    Raises:
        InputError: the file cannot be read, or is not a model that this project runs.
    """
    path = Path(path)
    files = [config] if isinstance(config, str | os.PathLike) else config
    settings, stated = _read_config(files)
    fields = {**stated, **(fields or {})}
    if format not in (None, "model", *FORMATS):
        raise InputError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    format = format or detect_format(path, weights)
    if rgb and format != "detectron2":
        raise InputError(f"{path}: --rgb applies to Detectron2 models only")
    if settings is not None and format != "detectron2":
        raise InputError(
            f"{settings.path}: is a configuration of Detectron2, {path} is no model of it"
        )
    if weights is not None and format not in ("detectron2", "torchvision"):
        raise InputError(f"{path}: --weights applies to PyTorch checkpoints of several models")
    if torchvision and format != "torchvision-detector":
        raise InputError(f"{path}: --{min(torchvision)} applies to detectors of torchvision only")
    match format:
        case "model":
            raise InputError(f"{path}: is a sparsedet model file already")
        case "detectron2":
            from .detectron2 import load_detectron2

            return load_detectron2(path, base, fields, rgb, settings, weights)
        case "tensorpack":
            from .tensorpack import load_tensorpack

            return load_tensorpack(path, base, fields)
        case "checkpoint":
            from .checkpoint import load_checkpoint

            return load_checkpoint(path, fields)
        case "torchvision-detector":
            from .torchvision_detectors import TorchvisionSettings, load_torchvision_detector

            return load_torchvision_detector(path, TorchvisionSettings(**(torchvision or {})))
        case "onnx":
            from .onnx import load_onnx_detector

            return load_onnx_detector(path)
        case "torchvision":
            raise InputError(
                f"{path}: is a ResNet classifier, not a detector: start a detector's training "
                f"from it with `sparsedet train --init {path}`"
            )
        case _:
            from .openvino_ir import load_openvino

            return load_openvino(path, base, fields)


def _read_config(
    files: Sequence[str | os.PathLike[str]],
) -> tuple[Detectron2Config | None, dict[str, Any]]:
    """Detectron2's settings, if one of the files has them, and the fields of all others."""
    from .detectron2 import Detectron2Config, read_config_file

    settings, fields = None, dict[str, Any]()
    for file in files:
        content = read_config_file(Path(file))
        if not isinstance(content, Detectron2Config):
            fields |= content
        elif settings is not None:
            raise InputError(f"{file}: is the second configuration of Detectron2, expected one")
        else:
            settings = content
    return settings, fields


def load_any(
    path: str | os.PathLike[str], format: str | None = None
) -> tuple[ModelFile, tuple[str, ...]]:
    """Read a detector of any format: a model file, or one that `load_foreign` reads.

    Args:
        path: the file; for a run also its folder.
        format: result of `detect_format`, if it is known; default: recognised by content.

    Returns:
        The model, and notes for the user: conventions that a foreign file did not state.

    Raises:
        InputError: the file cannot be read, or is not a detector that this project runs.
    """
    format = format or detect_format(path)
    if format == "model":
        return load_model(path), ()
    imported = load_foreign(path, format)
    return imported.as_model(), imported.notes


def load_trained(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    stated: Preprocessing | None = None,
    raw: bool = False,
) -> tuple[ModelFile | NetworkFile, tuple[str, ...]]:
    """Read any trained network: as `load_any`, and networks without detections.

    Args:
        path: the file; for a run also its folder.
        shape, stated: of an ONNX file, as `onnx.load_onnx` takes them.
        raw: an ONNX file keeps its outputs, also that of a detector.

    Raises:
        InputError: the file cannot be read, or is not a network that this project runs.
    """
    if Path(path).suffix.lower() == ".onnx":
        from .onnx import load_onnx, load_onnx_network

        loaded = (load_onnx_network if raw else load_onnx)(path, shape=shape, stated=stated)
        if isinstance(loaded, NetworkFile):
            return loaded, ()
        model = loaded.as_model()
        return model, loaded.notes
    format = detect_format(path)
    return (load_file(path), ()) if format == "model" else load_any(path, format)


__all__ = ["FORMATS", "Imported", "detect_format", "load_any", "load_foreign", "load_trained"]
