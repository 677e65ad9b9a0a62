"""Writes the hostile files and the README of each folder: python tests/attacks/make.py

They are kept in the repository, because pickles and ONNX files depend on what writes them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]


def kinds() -> dict[str, tuple[Callable[[Path], dict[str, tuple[bytes, str]]], str]]:
    """Folder -> what makes its files, and what they attack."""
    from attacks import make_graphs, make_images, make_model_files, make_texts, make_weights

    return {
        "model_v1": (make_model_files.files, "The model file, version 1, and its container."),
        "model_v2": (make_graphs.files, "The graph in a model file of version 2."),
        "packed": (make_texts.packed, "The table in a cache of packed weights."),
        "openvino_ir": (make_texts.ir, "The XML of an OpenVINO IR."),
        "onnx": (make_texts.onnx, "ONNX files."),
        "pickle": (make_weights.files, "Pickles, plain and in the ZIP files of PyTorch."),
        "npz": (make_weights.arrays, "Arrays in .npz files."),
        "images": (make_images.files, "The headers of images."),
        "coco": (make_texts.coco, "COCO annotations."),
        "kserve": (make_texts.kserve, "Requests of tensors, as `POST /v2/.../infer` has them."),
        "settings": (make_texts.settings, "Recipes, tuning files and YAML."),
    }


def main() -> None:
    for kind, (make, text) in kinds().items():
        folder = HERE / kind
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        with tempfile.TemporaryDirectory() as work:
            made = make(Path(work))
        lines = [f"# {kind}", "", text, "", "| file | the refusal matches |", "|---|---|"]
        for case, (data, message) in made.items():
            stem, _, suffix = case.rpartition(".")
            name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") + f".{suffix}"
            assert not (folder / name).exists(), name
            (folder / name).write_bytes(data)
            shown = message.replace("|", "\\|")
            lines.append(f"| {name} | `{shown}` |")
        (folder / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
