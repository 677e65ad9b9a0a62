"""The house: who may import whom, what the map says, how long a file may be, unique names.

CONTRIBUTING.md draws the chain of the packages and maps every module; this file holds both to the
code, so that neither can drift.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sparsedet"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

TORCH = {
    "torch_model",
    "training",
    "backends.torch",
    "testing.lively",
    "testing.torchvision",
    "testing.yolo",
    "pruning.calibration",
    "pruning.gradual",
    "pruning.masks",
    "pruning.network_module",
    "pruning.one_shot",
    "pruning.patterns",
    "pruning.positions",
    "pruning.predictions",
    "pruning.progress",
    "pruning.reading",
    "pruning.reconstruct",
    "pruning.regions",
    "pruning.selection",
    "pruning.sensitivity",
    "pruning.squared_gradients",
}
"""Packages and modules that import torch; all others must run without it."""

TORCH_FREE = {
    "training",
    "training.plots",
    "training.recipe",
    "training.run",
    "training.tune_config",
    "training.tune_run",
}
"""Modules of those packages that do not."""

RUNTIMES = {
    "backends.openvino",
    "backends.onnxruntime",
    "serve.app",
    "serve.context",
    "serve.detection",
    "serve.kserve",
    "serve.metrics",
    "serve.page",
    "serve.server",
}
"""Imported by their packages when asked for, with the runtime or the web server each is for."""


def block_after(heading: str) -> list[str]:
    """Lines of the first fenced block below a heading of CONTRIBUTING.md."""
    text = CONTRIBUTING[CONTRIBUTING.index(heading) :]
    return text.split("```")[1].splitlines()[1:]


def chain() -> list[list[str]]:
    """Levels of packages as CONTRIBUTING draws them, the lowest first."""
    text = " ".join(block_after("## The chain"))
    return [re.split(r",\s*", level.strip()) for level in reversed(text.split("->"))]


def mapped(root: str = "src/sparsedet") -> list[str]:
    """Files of a folder in the order of CONTRIBUTING's map."""
    found, folder = [], ""
    for line in block_after(f"## The map of {root}"):
        name = line.split()[0] if line.strip() else ""
        if name.endswith("/"):
            folder = name
        elif name:
            found.append((folder if line.startswith(" ") else "") + name)
    return found


def without_types(tree: ast.Module) -> ast.Module:
    """What runs: a module without what only a type checker reads."""

    def runs(node: ast.AST) -> bool:
        return not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")

    return ast.Module([node for node in tree.body if runs(node)], [])


def imports_of(path: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything that a module imports, also inside functions and by name."""
    package = ["sparsedet", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import boxes` imports a module
                name = f"{base}.{alias.name}"
                file = SOURCE.parent / name.replace(".", "/")
                yield name if file.is_dir() or file.with_suffix(".py").exists() else base


def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Name without "sparsedet." -> file and syntax tree; "" is the package's own __init__."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        name = name.removesuffix("__init__").removesuffix(".")
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    graph: dict[str, set[str]] = {}
    for name, (path, code) in modules().items():
        graph[name] = set()
        for target in imports_of(path, code):
            if target.split(".")[0] == "sparsedet":
                inside = target.removeprefix("sparsedet").removeprefix(".")
                if inside != name:
                    graph[name].add(inside)
    return graph


def test_packages_import_down_the_chain() -> None:
    level = {name: number for number, names in enumerate(chain()) for name in names}
    graph = arrows()
    assert "model.graph" in graph["engine"] and "model.graph" in graph["model.c4"]  # the walk sees
    for name, targets in graph.items():
        for target in targets:
            above, below = name.split(".")[0] or "__init__", target.split(".")[0] or "__init__"
            assert above == below or level[below] <= level[above], (name, target)


def test_a_file_imports_only_files_above_it_on_the_map() -> None:
    places = {
        file.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", "."): number
        for number, file in enumerate(mapped())
    }
    for name, targets in arrows().items():
        for target in targets - {"_native"}:
            assert places[target] < places[name], f"{name} imports {target}, mapped below it"


def test_the_map_names_every_file() -> None:
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    assert set(mapped()) == files
    assert len(mapped()) == len(files)


def native_files() -> dict[str, str]:
    """Path below native/ -> text."""
    return {
        path.relative_to(ROOT / "native").as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "native").rglob("*"))
        if path.suffix in (".h", ".cpp")
    }


def test_the_map_names_every_native_file_and_each_includes_only_files_above_it() -> None:
    files, order = native_files(), mapped("native")
    assert set(order) == set(files) and len(order) == len(files)
    includes = 0
    for name, text in files.items():
        for target in re.findall(r'#include "([^"]+)"', text):
            assert order.index(target) < order.index(name), f"{name} includes {target}"
            includes += 1
    assert includes > 60


def test_packages_of_one_level_do_not_import_each_other_in_a_circle() -> None:
    list(TopologicalSorter(arrows()).static_order())  # raises where modules do
    packages: dict[str, set[str]] = defaultdict(set)
    for name, targets in arrows().items():
        packages[name.split(".")[0]] |= {target.split(".")[0] for target in targets}
    for name in packages:
        packages[name].discard(name)
    list(TopologicalSorter(packages).static_order())


def belongs(name: str, group: set[str]) -> bool:
    return any(name == member or name.startswith(f"{member}.") for member in group)


def test_torch_is_imported_where_it_belongs() -> None:
    for name, (path, code) in modules().items():
        roots = {target.split(".")[0] for target in imports_of(path, without_types(code))}
        expected = belongs(name, TORCH) and name not in TORCH_FREE
        if roots & {"torch", "torchvision"}:
            assert expected, name


def test_inference_needs_numpy_and_opencv_alone() -> None:
    allowed = {"numpy", "cv2", "safetensors", "sparsedet"} | set(sys.stdlib_module_names)
    for name, (path, code) in modules().items():
        if belongs(name, TORCH | RUNTIMES):
            continue
        at_import = ast.Module([node for node in code.body if not isinstance(node, ast.If)], [])
        for node in ast.walk(at_import):
            if isinstance(node, ast.FunctionDef):
                node.body = []  # imports in functions are lazy
        used = {target.split(".")[0] for target in imports_of(path, at_import)}
        assert used <= allowed, (name, used - allowed)


def test_importing_the_package_leaves_torch_out() -> None:
    program = "import sys, sparsedet, sparsedet.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_top_level_is_small() -> None:
    own = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert len(own) <= 8, own


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_file_is_longer_than_400_lines(folder: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_no_native_file_is_longer_than_400_lines() -> None:
    long = {
        name: lines
        for name, text in native_files().items()
        if (lines := len(text.splitlines())) > 400
    }
    assert not long


def test_only_models_and_importers_know_the_values_of_a_family() -> None:
    """All else finds values by the kinds of the operations that make or read them."""
    own = re.compile(r"[\"'](?:rois|pooled)[\"']|res5")
    found = [
        f"{path.relative_to(SOURCE).as_posix()}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in ("model", "importers")
        for line in path.read_text(encoding="utf-8").splitlines()
        if own.search(line)
    ]
    assert not found


def test_the_core_knows_no_architecture() -> None:
    texts = {n: t for n, t in native_files().items() if n.startswith(("graph/", "algorithms/"))}
    assert len(texts) > 15
    words = re.compile("rpn|backbone|pooled", re.IGNORECASE)
    assert {name: words.findall(text) for name, text in texts.items() if words.search(text)} == {}


def test_no_class_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for folder in ("src", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(path.relative_to(ROOT).as_posix())
    assert len(places) > 80
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_native_class_is_defined_twice() -> None:
    definition = re.compile(r"^\s*(?:struct|class|enum class|union)\s+(\w+)[^;(]*\{", re.M)
    places: dict[str, list[str]] = defaultdict(list)
    for path, text in native_files().items():
        for name in definition.findall(text):
            places[name].append(path)
    assert len(places) > 20
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_the_formatter_decides() -> None:
    exceptions = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "benchmarks", "tests", "recipes")
        for path in (ROOT / folder).rglob("*.py*")
        if path.suffix in (".py", ".pyi") and path != Path(__file__)
        for _ in re.findall(r"# fmt: (?:skip|off)", path.read_text(encoding="utf-8"))
    ]
    assert len(exceptions) < 10, exceptions


def test_the_guides_name_files_that_exist() -> None:
    guides = sorted((ROOT / "docs" / "contributing").glob("*.md"))
    assert len(guides) >= 6
    for guide in guides:
        for name in re.findall(
            r"`((?:src|native|tests|benchmarks|docs)/[\w./]+)`", guide.read_text()
        ):
            if not re.search("[A-Z]{3}", Path(name).stem):  # NAME and FORM are placeholders
                assert (ROOT / name).exists(), f"{guide.name}: {name}"


def test_the_map_is_read_from_the_bottom_of_the_chain() -> None:
    level = {name: number for number, names in enumerate(chain()) for name in names}
    order = [level[file.split("/")[0].removesuffix(".py")] for file in mapped()]
    assert all(before <= after for before, after in pairwise(order))
