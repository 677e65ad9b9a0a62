"""The networks that the checks and benchmarks of ONNX files run: seeded weights, photographs.

Weights are random by a seed; statistics of batch norms are those of the two example photographs, so
that outputs differ between them. Files are written by torch's exporter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import sparsedet
from sparsedet.importers.onnx import load_onnx_network
from sparsedet.importers.onnx.decoding import IMAGENET
from sparsedet.testing.lively import classifier, enlivened, export, settled
from sparsedet.testing.yolo import yolo_of_size

from .subjects import IMAGE

F32 = NDArray[np.float32]
Parts = dict[str, tuple[slice, ...]]
"""Name of a part of an output -> where it is."""


@dataclass(frozen=True, slots=True)
class OnnxSubject:
    """One network.

    Attributes:
        build: the torch module, with weights of any kind.
        size: of the square network input.
        parts: of its one output.
        pixels: value of white; classifiers are normalised after it.
    """

    build: Callable[[], nn.Module]
    size: int
    parts: Parts
    pixels: float = 1.0


_ALL = slice(None)
_LOGITS: Parts = {"logits": (_ALL,)}
_CELLS: Parts = {"boxes": (_ALL, slice(0, 4)), "scores": (_ALL, slice(4, None))}
ROWS: Parts = {"boxes": (_ALL, _ALL, slice(0, 4)), "scores": (_ALL, _ALL, slice(4, None))}
"""Of an output [1, N, 5 + C]; the first of the scores is the objectness."""


def _yolox() -> nn.Module:
    """YOLOX-s of the package pixeltable-yolox, its outputs before decoding."""
    from yolox.config import YoloxConfig  # type: ignore[import-not-found]

    model: Any = YoloxConfig.get_named_config("yolox_s").get_model()
    model.head.decode_in_inference = False
    module: nn.Module = model
    return module


def _classifier(name: str) -> OnnxSubject:
    return OnnxSubject(lambda: classifier(name), 224, _LOGITS)


def _yolo(kind: Any, size: str) -> OnnxSubject:
    parts = ROWS if kind == "v5" else _CELLS
    return OnnxSubject(lambda: yolo_of_size(kind, size), 640, parts)


SUBJECTS: dict[str, OnnxSubject] = {
    **{
        name: _classifier(name)
        for name in (
            "resnet18",
            "resnet50",
            "resnet101",
            "vgg16",
            "vgg16_bn",
            "repvgg",
            "repvgg_fused",
            "densenet121",
            "regnet_y_1_6gf",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "efficientnet_b0",
        )
    },
    "yolov5n": _yolo("v5", "n"),
    "yolov5s": _yolo("v5", "s"),
    "yolov5nu": _yolo("v5u", "n"),
    "yolov5su": _yolo("v5u", "s"),
    "yolov8n": _yolo("v8", "n"),
    "yolov8s": _yolo("v8", "s"),
    "yolov8m": _yolo("v8", "m"),
    "yolo11n": _yolo("11", "n"),
    "yolo11s": _yolo("11", "s"),
    "yolox_s": OnnxSubject(_yolox, 640, ROWS, 255.0),
}
"""Name -> network. yolox_s needs the package pixeltable-yolox (Apache-2.0), which no extra has."""


def photographs(subject: OnnxSubject) -> F32:
    """The example photographs as network inputs [2, 3, size, size], RGB."""
    inputs = []
    for path in sorted(IMAGE.parent.glob("*.jpg")):
        image = cv2.resize(sparsedet.read_image(path), (subject.size, subject.size))
        pixels = image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
        inputs.append(pixels * np.float32(subject.pixels / 255))
    batch = np.stack(inputs)
    if subject.parts is _LOGITS:
        mean, std = (np.asarray(n, np.float32)[:, None, None] / 255 for n in IMAGENET)
        batch = (batch - mean) / std
    return np.ascontiguousarray(batch, np.float32)


def lively_module(
    subject: OnnxSubject, seed: int = 0, shift: float = 0.5, zeros: float = 0.0
) -> nn.Module:
    """The network with random weights that tell the photographs apart.

    Args:
        shift: as of `settled`.
        zeros: share of zeros in each prunable layer, 0..0.95, at random places.
    """
    module = enlivened(subject.build(), seed=seed)
    if zeros:
        numbers = np.random.default_rng(seed)
        for layer in _prunable_modules(module, subject):
            weight = layer.weight.data
            pruned = numbers.permutation(weight.numel())[: round(zeros * weight.numel())]
            weight.view(-1)[torch.from_numpy(pruned)] = 0.0
            weight /= (1 - zeros) ** 0.5
    return settled(module, torch.from_numpy(photographs(subject)), shift)


def _prunable_modules(module: nn.Module, subject: OnnxSubject) -> list[Any]:
    """The modules whose layers the importer calls prunable."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(module, subject, Path(folder, "dense.onnx"))
        graph = load_onnx_network(path).config.graph
    run: list[Any] = []
    hooks = [
        part.register_forward_hook(lambda layer, inputs, out: run.append(layer))
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and part.weight.requires_grad
    ]
    with torch.no_grad():
        module(torch.zeros(1, 3, subject.size, subject.size))
    for hook in hooks:
        hook.remove()
    # The exporter keeps the order in which modules run, and the importer that of the nodes.
    shapes = [tuple(layer.weight.shape) for layer in run]
    if shapes != [layer.weight_shape for layer in graph.layers]:
        raise RuntimeError("the layers of the file are not those of the module")
    return [layer for layer, known in zip(run, graph.layers, strict=True) if known.prunable]


def write_onnx(module: nn.Module, subject: OnnxSubject, path: Path, **options: Any) -> Path:
    """The file of a network; options as of `export`."""
    return export(module, path, (subject.size, subject.size), **options)
