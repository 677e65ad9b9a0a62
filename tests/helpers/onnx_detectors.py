"""Small detectors in ONNX files, node by node, and what is left after non-maximum suppression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.onnx_files import F32, conv_node, conv_tensors, onnx, save_onnx

node = onnx.helper.make_node
CLASSES = 3
SIZE, EACH = 64, 5 + CLASSES
ANCHORS = tuple((4.0 + 3 * i, 31.5 - 2.25 * i) for i in range(9))
"""Three of each level, the finest level first; all differ, and some are no whole numbers."""
DECODED, BOTH, CELLS, MAPS = "decoded", "decoded and cells", "cells", "maps"


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


def yolov5(path: Path, form: str, scale: float = 1.0) -> Path:
    """A file whose outputs are decoded boxes, [1, 3, H, W, 5 + C] before it, or plain maps.

    Args:
        scale: of the boxes' centres; other than 1: they are not YOLOv5's.
    """
    tmp: dict[str, Any] = {}
    nodes = levels(tmp, SIZE, {"head": 3 * EACH})
    outputs, joined = [], []
    numbers(tmp, "flat", [1, -1, EACH])
    for name, value in (("two", 2.0 * scale), ("square", 2.0), ("both", 2.0)):
        numbers(tmp, name, np.float32(value))
    cuts = {"xy": (0, 2), "wh": (2, 4), "rest": (4, EACH)}
    for i, stride in enumerate((8, 16, 32)):
        tmp[f"head{i}.bias"][4::EACH] += 2.0  # objects in many cells
        if form == MAPS:
            outputs.append(f"head{i}")
            continue
        side = SIZE // stride
        cells = numbers(tmp, f"cells{i}", [1, 3, EACH, side, side])
        nodes.append(node("Reshape", [f"head{i}", cells], [f"five{i}"]))
        nodes.append(node("Transpose", [f"five{i}"], [f"raw{i}"], perm=[0, 1, 3, 4, 2]))
        if form != DECODED:
            outputs.append(f"raw{i}")
        if form == CELLS:
            continue
        rows, columns = np.mgrid[:side, :side]
        grid = np.stack([columns, rows], 2)[None, None] - np.float32(0.5)
        numbers(tmp, f"grid{i}", grid.astype(np.float32))
        numbers(tmp, f"step{i}", np.float32(stride))
        of_level = np.asarray(ANCHORS[3 * i : 3 * i + 3], np.float32).reshape(1, 3, 1, 1, 2)
        numbers(tmp, f"anchor{i}", of_level)
        nodes.append(node("Sigmoid", [f"raw{i}"], [f"s{i}"]))
        for name, (first, last) in cuts.items():
            cut = [numbers(tmp, f"{name}.{k}", [v]) for k, v in enumerate((first, last, 4))]
            nodes.append(node("Slice", [f"s{i}", *cut], [f"{name}{i}"]))
        nodes += [
            node("Mul", [f"xy{i}", "two"], [f"a{i}"]),
            node("Add", [f"a{i}", f"grid{i}"], [f"b{i}"]),
            node("Mul", [f"b{i}", f"step{i}"], [f"centre{i}"]),
            node("Mul", [f"wh{i}", "both"], [f"c{i}"]),
            node("Pow", [f"c{i}", "square"], [f"d{i}"]),
            node("Mul", [f"d{i}", f"anchor{i}"], [f"sides{i}"]),
            node("Concat", [f"centre{i}", f"sides{i}", f"rest{i}"], [f"all{i}"], axis=4),
            node("Reshape", [f"all{i}", "flat"], [f"flat{i}"]),
        ]
        joined.append(f"flat{i}")
    if joined:
        nodes.append(node("Concat", joined, ["y"], axis=1))
        outputs.insert(0, "y")
    return save_onnx(path, nodes, outputs, tmp, (SIZE, SIZE))


def yolox(path: Path, decoded: bool, size: int = 64) -> Path:
    tmp: dict[str, Any] = {}
    nodes = levels(tmp, size, {"box": 4, "obj": 1, "cls": CLASSES})
    numbers(tmp, "flat", [1, 5 + CLASSES, -1])
    for i in range(3):
        for name in ("obj", "cls"):
            nodes.append(node("Sigmoid", [f"{name}{i}"], [f"{name}{i}s"]))
        nodes.append(node("Concat", [f"box{i}", f"obj{i}s", f"cls{i}s"], [f"all{i}"], axis=1))
        nodes.append(node("Reshape", [f"all{i}", "flat"], [f"flat{i}"]))
    nodes.append(node("Concat", ["flat0", "flat1", "flat2"], ["joined"], axis=2))
    nodes.append(node("Transpose", ["joined"], ["raw" if decoded else "y"], perm=[0, 2, 1]))
    if decoded:
        grids, steps = [], []
        for stride in (8, 16, 32):
            rows, columns = np.mgrid[: size // stride, : size // stride]
            grids.append(np.stack([columns.ravel(), rows.ravel()], 1))
            steps.append(np.full((rows.size, 1), stride))
        numbers(tmp, "grid", np.concatenate(grids)[None])
        numbers(tmp, "step", np.concatenate(steps)[None])
        for name, first, last in (("xy", 0, 2), ("wh", 2, 4), ("rest", 4, 5 + CLASSES)):
            cut = [numbers(tmp, f"{name}{k}", [v]) for k, v in enumerate((first, last, 2))]
            nodes.append(node("Slice", ["raw", *cut], [name]))
        nodes += [
            node("Add", ["xy", "grid"], ["xyg"]),
            node("Mul", ["xyg", "step"], ["centre"]),
            node("Exp", ["wh"], ["whe"]),
            node("Mul", ["whe", "step"], ["sides"]),
            node("Concat", ["centre", "sides", "rest"], ["y"], axis=2),
        ]
    return save_onnx(path, nodes, ["y"], tmp, (size, size))


def picking(path: Path, kind: str) -> Path:
    """A detector that picks its detections itself: by NonMaxSuppression, or, as YOLO26, by TopK."""
    model = onnx.load(str(yolox(path, True)))
    graph, raw = model.graph, model.graph.output[0]
    tensors = {"k": [10], "iou": 0.5, "first": [0], "fourth": [4], "fifth": [5], "two": [2]}
    tensors |= {"end": [2**31]}
    for name, value in tensors.items():
        dtype = np.int64 if isinstance(value, list) else np.float32
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
    graph.node.append(node("Slice", ["y", "first", "fourth", "two"], ["boxes"]))
    graph.node.append(node("Slice", ["y", "fifth", "end", "two"], ["scores"]))
    if kind == "TopK":
        graph.node.append(node("ReduceMax", ["scores"], ["best"], axes=[2], keepdims=0))
        graph.node.append(node("TopK", ["best", "k"], ["values", "places"], name="choice"))
        graph.node.append(node("Gather", ["boxes", "places"], ["out"], axis=1))
    else:
        graph.node.append(node("Transpose", ["scores"], ["of_class"], perm=[0, 2, 1]))
        inputs = ["boxes", "of_class", "k", "iou"]
        graph.node.append(node("NonMaxSuppression", inputs, ["kept"], name="choice"))
        graph.node.append(node("Cast", ["kept"], ["out"], to=1))
    raw.name = "out"
    path.write_bytes(model.SerializeToString())
    return path


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


def picodet(path: Path, size: int = 72) -> Path:
    """72 is not divisible by 16: the last cells of a level reach beyond the image."""
    tmp: dict[str, Any] = {}
    nodes, outputs = levels(tmp, size, {"cls": CLASSES, "box": 4 * 8}), []
    for name, channels in (("cls", CLASSES), ("box", 32)):
        numbers(tmp, f"shape.{name}", [1, channels, -1])
        for i in range(3):
            source = f"{name}{i}"
            if name == "cls":
                nodes.append(node("Sigmoid", [source], [f"{source}s"]))
                source = f"{source}s"
            nodes.append(node("Reshape", [source, f"shape.{name}"], [f"{source}f"]))
            nodes.append(node("Transpose", [f"{source}f"], [f"out.{name}{i}"], perm=[0, 2, 1]))
            outputs.append(f"out.{name}{i}")
    return save_onnx(path, nodes, outputs, tmp, (size, size))
