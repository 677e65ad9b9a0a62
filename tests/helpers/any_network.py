"""Small networks of all kinds that come from ONNX, and photographs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers.onnx_detectors import picodet, yolox
from helpers.onnx_files import conv_node, conv_tensors, onnx, save_onnx

node = onnx.helper.make_node
KINDS = ("yolox", "picodet", "classifier", "sigmoids", "raw")


def activated(name: str, kind: str, source: str, out: str) -> list[Any]:
    """SiLU written out, HardSwish, or another activation."""
    if kind != "SiLU":
        return [node(kind, [source], [out])]
    return [node("Sigmoid", [source], [f"{name}.s"]), node("Mul", [source, f"{name}.s"], [out])]


def network(path: Path, end: str, size: int = 24) -> Path:
    """A classifier, one of several labels, or a network of a map; with SiLU and a late sum."""
    constants = conv_tensors("a", 12, 3, 3)
    constants["a.weight"] /= 2
    constants |= conv_tensors("b", 12, 12, 3, seed=1) | conv_tensors("c", 12, 12, seed=2)
    constants |= conv_tensors("d", 16, 12, 3, seed=3) | conv_tensors("e", 5, 16, seed=4)
    nodes = [
        conv_node("a", "x", "a", strides=[2, 2], pads=[1] * 4),
        *activated("a", "SiLU", "a", "a1"),
        conv_node("b", "a1", "b", pads=[2, 2, 2, 2], dilations=[2, 2]),
        *activated("b", "SiLU", "b", "b1"),
        node("Add", ["a1", "b1"], ["sum"]),
        conv_node("c", "sum", "c"),
        *activated("c", "HardSwish", "c", "c1"),
        conv_node("d", "c1", "d", strides=[2, 2], pads=[1] * 4),
        *activated("d", "Relu", "d", "d1"),
    ]
    if end == "raw":
        nodes.append(conv_node("e", "d1", "y"))
    else:
        nodes += [
            node("GlobalAveragePool", ["d1"], ["m"]),
            conv_node("e", "m", "l"),
            node("Flatten", ["l"], ["f" if end == "sigmoids" else "y"]),
        ]
        if end == "sigmoids":
            nodes.append(node("Sigmoid", ["f"], ["y"]))
    return save_onnx(path, nodes, ["y"], constants, (size, size))


def file_of(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.onnx"
    if kind == "yolox":
        return yolox(path, False)
    return picodet(path) if kind == "picodet" else network(path, kind)


def photograph(seed: int, size: tuple[int, int] = (60, 80)) -> Any:
    numbers = np.random.default_rng(seed)
    small = numbers.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def write_photographs(place: Path, seeds: range) -> None:
    """The folder `photographs` in `place`, with one for each seed."""
    (place / "photographs").mkdir()
    for number, seed in enumerate(seeds):
        cv2.imwrite(str(place / "photographs" / f"{number}.png"), photograph(seed))
