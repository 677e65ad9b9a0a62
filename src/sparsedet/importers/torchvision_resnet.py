"""torchvision's ResNet classifiers (50, 101, 152) -> initial weights of backbone and res5.

The file is the state_dict that torchvision publishes (`.pth`, read without running any code in
it) or the same tensors as safetensors; the classifier at its end is not used.

torchvision's convention, met by the presets `r101-c4` and `r50-c4`: strides in the 3x3
convolution, and pixels RGB, divided by 255, less (0.485, 0.456, 0.406), divided by (0.229, 0.224,
0.225). Our pixels are BGR of 0..255: the statistics are the same times 255 in the other order,
and so are the first convolution's input channels.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import InputError
from ..network import Layer, build_network

MEAN = (0.406 * 255, 0.456 * 255, 0.485 * 255)
STD = (0.225 * 255, 0.224 * 255, 0.229 * 255)

Arrays = dict[str, NDArray[np.float32]]

_NORM = ("weight", "bias", "running_mean", "running_var")


def is_torchvision_resnet(path: str | os.PathLike[str]) -> bool:
    """Whether a file should be read by `load_torchvision_resnet`.

    A .pth or .pt file is always meant to be one; a safetensors file is, if it has its names.
    """
    suffix = Path(path).suffix
    if suffix in (".pth", ".pt"):
        return True
    if suffix != ".safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return "layer1.0.conv1.weight" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def load_torchvision_resnet(path: str | os.PathLike[str], config: ModelConfig) -> Arrays:
    """Backbone and res5 tensors in training form.

    Args:
        path: a state_dict as .pth or .pt, or as safetensors.
        config: a model of that depth and width, with torchvision's strides and pixel statistics.

    Returns:
        `NAME.weight` and `NAME.norm.*` for stem, res2 ... res5, float32.

    Raises:
        InputError: unreadable, no state_dict, of another kind, depth or width than `config`, or
            with values that are not finite; or `config` has other conventions.
    """
    _check_conventions(path, config)
    source = _read(path)
    network = build_network(config)
    _check_kind(path, source, config)
    tensors: Arrays = {}
    for layer in network.weighted:
        if not layer.norm:
            continue
        convolution, norm = _names(layer)
        tensors[f"{layer.name}.weight"] = _take(
            path, source, f"{convolution}.weight", layer.weight_shape
        )
        for leaf in _NORM:
            tensors[f"{layer.name}.norm.{leaf}"] = _take(
                path, source, f"{norm}.{leaf}", (layer.out_channels,)
            )
    stem = tensors["stem.conv.weight"]
    tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])  # RGB -> BGR
    return tensors


def _check_conventions(path: str | os.PathLike[str], config: ModelConfig) -> None:
    if config.stride_in != "conv2":
        raise InputError(
            f"{path}: torchvision's ResNet strides in the 3x3 convolution, {config.name} in the "
            "first 1x1; use r101-c4 or r50-c4"
        )
    for field, ours, theirs in (
        ("pixel_mean", config.pixel_mean, MEAN), ("pixel_std", config.pixel_std, STD),
    ):  # fmt: skip
        if not np.allclose(ours, theirs, atol=1e-2):
            raise InputError(
                f"{path}: torchvision's ResNet needs {field} "
                f"({', '.join(f'{x:.3f}' for x in theirs)}) BGR, {config.name} has {ours}"
            )


def _read(path: str | os.PathLike[str]) -> dict[str, NDArray[np.generic]]:
    import torch

    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(os.fspath(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise InputError(
            f"{path}: not a file of tensors alone (a state_dict is needed, no whole model)"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        raise InputError(f"{path}: holds {type(content).__name__}, expected a state_dict")
    return {k: v.numpy() for k, v in content.items() if isinstance(v, torch.Tensor)}


def _check_kind(
    path: str | os.PathLike[str], source: dict[str, NDArray[np.generic]], config: ModelConfig
) -> None:
    """Refuse what is no classifier of `config`'s depth, saying what it is."""
    if any(name.startswith(("backbone.", "fpn.", "rpn.", "roi_heads.")) for name in source):
        raise InputError(f"{path}: is a detector of torchvision's, expected a ResNet classifier")
    if "layer1.0.conv1.weight" not in source:
        raise InputError(f"{path}: is no torchvision ResNet (no 'layer1.0.conv1.weight')")
    if "layer1.0.conv3.weight" not in source:
        raise InputError(f"{path}: is a ResNet of two-convolution blocks (18 or 34), expected 50+")
    blocks = tuple(
        len({name.split(".")[1] for name in source if name.startswith(f"layer{n}.")})
        for n in (1, 2, 3, 4)
    )
    if blocks != config.blocks:
        raise InputError(f"{path}: has {blocks} blocks a stage, {config.name} {config.blocks}")


def _names(layer: Layer) -> tuple[str, str]:
    """torchvision's names of a layer's convolution and its batch norm."""
    stage, _, rest = layer.name.partition(".")
    if stage == "stem":
        return "conv1", "bn1"
    block, _, leaf = rest.partition(".")
    prefix = f"layer{int(stage.removeprefix('res')) - 1}.{block}"
    if leaf == "shortcut":
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    return f"{prefix}.{leaf}", f"{prefix}.{leaf.replace('conv', 'bn')}"


def _take(
    path: str | os.PathLike[str], source: dict[str, NDArray[np.generic]], name: str,
    shape: tuple[int, ...],
) -> NDArray[np.float32]:  # fmt: skip
    if name not in source:
        raise InputError(f"{path}: tensor {name!r} is missing")
    value = np.asarray(source[name], dtype=np.float32)
    if value.shape != shape:
        raise InputError(f"{path}: tensor {name!r} has shape {value.shape}, expected {shape}")
    if not np.isfinite(value).all():
        raise InputError(f"{path}: tensor {name!r} holds NaN or infinite values")
    return value
