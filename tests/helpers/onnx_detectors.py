"""Small detectors in ONNX files, node by node, and what is left after non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.onnx_files import F32, conv_node, conv_tensors, onnx

node = onnx.helper.make_node
CLASSES = 3


def levels(tmp: dict[str, Any], size: int, predictors: dict[str, int]) -> list[Any]:
    """Three maps of strides 8, 16 and 32, and their predictors NAME0, NAME1, ..."""
    nodes, source = [], "x"
    for i in range(5):
        name, ins = f"s{i}", 3 if i == 0 else 8
        tmp |= conv_tensors(name, 8, ins, 3, seed=i)
        nodes.append(conv_node(name, source, f"p{i}", strides=[2, 2], pads=[1] * 4))
        nodes.append(node("Relu", [f"p{i}"], [f"m{i}"]))
        source = f"m{i}"
    tmp["s0.weight"] /= 64  # it reads pixels
    for level in range(3):
        for name, channels in predictors.items():
            title = f"{name}{level}"
            tmp |= conv_tensors(title, channels, 8, seed=len(title) + level)
            tmp[f"{title}.bias"] -= 1.0 if name == "cls" else 0.0
            nodes.append(conv_node(title, f"m{level + 2}", title))
    return nodes


def numbers(tmp: dict[str, Any], name: str, values: Any) -> str:
    tmp[name] = np.asarray(values, np.int64 if isinstance(values, list) else np.float32)
    return name


def kept(boxes: F32, scores: F32, threshold: float, iou: float) -> list[tuple[int, float, F32]]:
    """Label, score and box after non-maximum suppression by class, best first."""
    found = []
    for label in range(scores.shape[1]):
        of_class = scores[:, label]
        order = np.argsort(-of_class, kind="stable")
        order = order[of_class[order] > threshold]
        while len(order):
            best, order = order[0], order[1:]
            found.append((label + 1, float(of_class[best]), boxes[best]))
            order = order[overlaps(boxes[best], boxes[order]) <= iou]
    return sorted(found, key=lambda d: -d[1])


def overlaps(box: F32, others: F32) -> F32:
    """IoU of a box [4] and others [N, 4]."""
    first, last = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inside = np.prod(np.clip(last - first, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    whole: F32 = inside / (np.prod(box[2:] - box[:2]) + areas - inside)
    return whole
