"""ResNet classifiers of torchvision and timm -> initial weights of the backbone.

The file is a state_dict (`.pth`, read without torch and without running its code) or the same
tensors as safetensors; timm's plain ResNets have torchvision's names. The classifier at the end is
not used.

Convention, as in the presets `r101-c4` and `r50-c4`: strides in the 3x3 convolution; pixels are
RGB, divided by 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225). Our pixels are
BGR, 0..255: the statistics are multiplied by 255 and reversed, and the first convolution's input
channels are reversed.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.detector_config import Config, build_graph
from ..model.graph import Graph, Layer, Normalise
from ..model.presets import preset
from .containers import open_source
from .tensor_source import Source, count_blocks

MEAN = (0.406 * 255, 0.456 * 255, 0.485 * 255)
STD = (0.225 * 255, 0.224 * 255, 0.229 * 255)

Arrays = dict[str, NDArray[np.float32]]

_NORM = ("weight", "bias", "running_mean", "running_var")
_STAGES = tuple(rf"layer{n}\.(\d+)\." for n in (1, 2, 3, 4))


def load_torchvision_resnet(path: str | os.PathLike[str], config: Config) -> Arrays:
    """Backbone and res5 tensors in training form.

    Args:
        path: state_dict as .pth or .pt, or as safetensors.
        config: model of the same depth and width, with torchvision's strides and pixel statistics.

    Returns:
        `NAME.weight` and `NAME.norm.*` for stem, res2 ... res5, float32.

    Raises:
        InputError: the file is unreadable, not a state_dict, of another kind, depth or width than
            `config`, or has values that are not finite; or `config` has other conventions.
    """
    graph = build_graph(config)
    _check_conventions(path, config.name, graph)
    _, source = open_source(Path(path))
    _check_kind(source, config.name, graph)
    tensors: Arrays = {}
    for layer in graph.layers:
        if not layer.name.startswith(("stem.", "res")):
            continue
        convolution, norm = _names(layer)
        tensors[f"{layer.name}.weight"] = source.take(f"{convolution}.weight", layer.weight_shape)
        for leaf in _NORM:
            tensors[f"{layer.name}.norm.{leaf}"] = source.take(
                f"{norm}.{leaf}", (layer.out_channels,)
            )
    source.ignore(r"fc\..*", r".*num_batches_tracked", r"n_averaged")
    source.finish(config.name)
    stem = tensors["stem.conv.weight"]
    tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])  # RGB -> BGR
    return tensors


def fitting_preset(path: str | os.PathLike[str]) -> tuple[str | None, tuple[str, ...]]:
    """Name of the preset with the blocks of a classifier, None if there is none; and notes."""
    _, source = open_source(Path(path))
    blocks = count_blocks(source.left, _STAGES)
    name = next((n for n in ("r50-c4", "r101-c4") if preset(n).blocks == blocks), None)
    return name, tuple(source.notes)


def _check_conventions(path: str | os.PathLike[str], name: str, graph: Graph) -> None:
    first = graph.layer.get("res3.0.conv1")
    if first is None:
        raise InputError(f"{path}: is a ResNet, {name} has another backbone")
    if first.stride > 1:
        raise InputError(
            f"{path}: torchvision's ResNet strides in the 3x3 convolution, {name} in the "
            "first 1x1; use r101-c4, r50-c4 or r50-fpn"
        )
    pixels = graph.only(Normalise)[1]
    for field, ours, theirs in (
        ("pixel_mean", pixels.mean, MEAN),
        ("pixel_std", pixels.std, STD),
    ):
        if not np.allclose(ours, theirs, atol=1e-2):
            raise InputError(
                f"{path}: torchvision's ResNet needs {field} "
                f"({', '.join(f'{x:.3f}' for x in theirs)}) BGR, {name} has {ours}"
            )


def _check_kind(source: Source, name: str, graph: Graph) -> None:
    """Raise InputError, naming the kind of model, unless it is a classifier of this depth."""
    names = source.left
    if any(name.startswith(("proposal_generator.", "backbone.res")) for name in names):
        raise source.error("is a detector of Detectron2, expected a ResNet classifier")
    if any(name.startswith(("backbone.", "fpn.", "rpn.", "roi_heads.")) for name in names):
        raise source.error("is a detector of torchvision, expected a ResNet classifier")
    if "conv1.0.weight" in source:
        raise source.error("is a ResNet with a stem of three convolutions (timm's 'd' form)")
    if "layer1.0.conv1.weight" not in source:
        raise source.error("is not a ResNet of torchvision or timm (no 'layer1.0.conv1.weight')")
    if "layer1.0.conv3.weight" not in source:
        raise source.error("is a ResNet of two-convolution blocks (18 or 34), expected 50+")
    blocks = count_blocks(names, _STAGES)
    own = count_blocks(graph.layer, tuple(rf"res{n}\.(\d+)\." for n in (2, 3, 4, 5)))
    if blocks != own:
        raise source.error(f"has {blocks} blocks a stage, {name} {own}")


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
