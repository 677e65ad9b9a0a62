"""Every hostile file is refused in one line, at once, with little memory, and runs no code."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.make_model_files import PROVENANCE, TINY, random_tensors
from attacks.make_weights import MARKER

from sparsedet.engine import packed_cache
from sparsedet.engine.autotune import load_tuning
from sparsedet.errors import InputError
from sparsedet.evaluation.coco import load_coco
from sparsedet.files import read_json
from sparsedet.images.read import read_image
from sparsedet.importers import load_foreign
from sparsedet.importers.containers.yaml import read_yaml
from sparsedet.model.file import load_file, save_model
from sparsedet.model.tensors import LazyTensors
from sparsedet.training.recipe import Recipe

HERE = Path(__file__).parent
SECONDS, BYTES = 5.0, 100_000_000


def read_packed(path: Path) -> None:
    model = Path(path.name).with_suffix(".model")
    save_model(model, TINY, random_tensors(TINY, 0.4), PROVENANCE, overwrite=True)
    tensors = load_file(model).tensors
    assert isinstance(tensors, LazyTensors)

    class Same(LazyTensors):
        """The file says that it is of this model."""

        def digest(self) -> str:
            return "?"

    tensors.__class__ = Same
    try:
        packed_cache._open(path, "attack", tensors)
    except ValueError as error:
        raise InputError(str(error)) from None


def read_request(path: Path) -> None:
    pytest.importorskip("starlette")
    from sparsedet.serve.tensors import read_call

    line, _, body = path.read_bytes().partition(b"\n")
    read_call(body, line.decode() if line else None)


def read_onnx(path: Path) -> None:
    pytest.importorskip("onnx")
    from sparsedet.importers.onnx import load_onnx_network

    load_onnx_network(path)


def read_settings(path: Path) -> None:
    if path.suffix == ".yaml":
        read_yaml(path)
    elif path.name.startswith("tuning"):
        load_tuning(path)
    else:
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError("not a table")  # as its only reader says, of a run folder
        Recipe.from_dict(values)


READERS: dict[str, Callable[[Path], object]] = {
    "model_v1": load_file,
    "model_v2": load_file,
    "packed": read_packed,
    "openvino_ir": load_foreign,
    "onnx": read_onnx,
    "pickle": load_foreign,
    "npz": load_foreign,
    "images": read_image,
    "coco": lambda path: load_coco(path, path.parent),
    "kserve": read_request,
    "settings": read_settings,
}


def listed(kind: str) -> dict[str, str]:
    """File -> what its refusal matches, from the README of a folder."""
    lines = (HERE / kind / "README.md").read_text().splitlines()[6:]
    rows = [re.fullmatch(r"\| (\S+) \| `(.*)` \|", line) for line in lines]
    return {row[1]: row[2].replace("\\|", "|") for row in rows if row}


@pytest.mark.parametrize("kind", READERS)
def test_every_hostile_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = listed(kind)
    assert set(files) == {path.name for path in (HERE / kind).iterdir()} - {"README.md"}
    wrong = []
    for name, message in files.items():
        tracemalloc.start()
        start = time.monotonic()
        try:
            READERS[kind](HERE / kind / name)
            said = "nothing"
        except InputError as error:
            said = str(error)
        took, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if said == "nothing" or not re.search(message, said) or "\n" in said:
            wrong.append(f"{name}: said {said[:200]!r}, expected {message!r}")
        if took > SECONDS or peak > BYTES:
            wrong.append(f"{name}: took {took:.1f} s and {peak:,} bytes")
    assert not wrong
    assert not Path(MARKER).exists()


def test_every_folder_is_read() -> None:
    assert {path.name for path in HERE.iterdir() if (path / "README.md").exists()} == set(READERS)
