"""Who may import whom."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sparsedet

SOURCE = Path(sparsedet.__file__).parent

LAYERS = (
    ("errors", "_native", "version"),
    ("files",),
    ("model",),
    ("images", "detections"),
    ("sources",),
    ("engine", "torch_model", "exporters"),
    ("backends",),
    ("detector",),
    ("importers", "pruning", "evaluation"),
    ("training", "hub", "testing"),
    ("",),  # the package's own __init__
    ("cli", "__main__"),
)
"""From bottom to top; a module may import from its own layer and those below."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH = {"torch_model", "torch_model.boxes", "torch_model.roi_align", "backends.torch"} | {
    f"training.{name}"
    for name in (
        "ema",
        "run_folder",
        "data",
        "distill",
        "distributed",
        "log",
        "trainer",
        "losses",
        "optimizer",
        "start",
        "validation",
    )
}
TORCH |= {
    f"pruning.{name}"
    for name in (
        "calibration",
        "sensitivity",
        "masks",
        "one_shot",
        "patterns",
        "positions",
        "reconstruct",
        "selection",
    )
}

RUNTIMES = {"backends.openvino", "backends.onnxruntime"}
"""Imported by `backends` when asked for, with the runtime that each is for."""


def imports_of(path: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything that a module imports, also inside functions."""
    package = ["sparsedet", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import boxes` imports a module
                name = f"{base}.{alias.name}"
                file = SOURCE.parent / name.replace(".", "/")
                yield name if file.is_dir() or file.with_suffix(".py").exists() else base


def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Name without "sparsedet." -> file and syntax tree."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        name = name.removesuffix("__init__").removesuffix(".")
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_imports_point_down_only() -> None:
    graph: dict[str, set[str]] = {}
    for name, (path, code) in modules().items():
        graph[name] = set()
        for target in imports_of(path, code):
            if target.split(".")[0] != "sparsedet":
                continue
            target = target.removeprefix("sparsedet").removeprefix(".")
            assert LEVEL[target.split(".")[0]] <= LEVEL[name.split(".")[0]], (name, target)
            if target != name:
                graph[name].add(target)
    assert {"engine", "cli", "training.trainer"} <= set(graph)
    assert "model.c4" in graph["engine"] and "model.graph" in graph["model.c4"]  # it sees them
    assert "torch_model" not in graph["engine"] and "engine" not in graph["torch_model"]
    list(TopologicalSorter(graph).static_order())  # raises where modules import each other


def test_torch_is_imported_where_it_belongs() -> None:
    users = {
        name
        for name, (path, code) in modules().items()
        if {target.split(".")[0] for target in imports_of(path, code)} & {"torch", "torchvision"}
    }
    assert users == TORCH


def test_inference_needs_numpy_and_opencv_alone() -> None:
    allowed = {"numpy", "cv2", "safetensors", "sparsedet"} | set(sys.stdlib_module_names)
    for name, (path, code) in modules().items():
        if name in TORCH | RUNTIMES or name.startswith("training."):
            continue
        at_import = ast.Module([node for node in code.body if not isinstance(node, ast.If)], [])
        for node in ast.walk(at_import):
            if isinstance(node, ast.FunctionDef):
                node.body = []  # imports in functions are lazy
        used = {target.split(".")[0] for target in imports_of(path, at_import)}
        assert used <= allowed, (name, used - allowed)
