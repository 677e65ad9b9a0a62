"""Model files that release 0.1 wrote are read for ever, and give the same detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsedet.engine import Engine, available_isas
from sparsedet.model.file import load_model, save_model

FOLDER = Path(__file__).parents[1] / "data" / "model_v1"
FILES = sorted(FOLDER.glob("*.safetensors"))
EXPECTED = np.load(FOLDER / "expected.npz")
KEYS = sorted(set(EXPECTED) - {"canvas"})


def test_there_is_a_file_of_each_form() -> None:
    assert len(FILES) == 8 and len(KEYS) == 10


@pytest.mark.parametrize("key", KEYS)
def test_detections_are_those_of_release_0_1(key: str) -> None:
    name, _, precision = key.rpartition("-")
    model = load_model(FOLDER / f"{name}.safetensors")
    expected = EXPECTED[key]
    for isa in available_isas():
        if precision == "int8" and isa not in ("scalar", "avx512"):
            continue
        try:
            engine = Engine(
                model.config,
                model.tensors,
                threads=1,
                isa=isa,
                precision="int8" if precision == "int8" else "f32",
                clipping_thresholds=model.clipping_thresholds,
            )
        except ValueError:
            assert precision == "int8" and isa != "scalar"
            continue
        rows = engine.run(EXPECTED["canvas"])
        if isa == "scalar":
            assert np.array_equal(rows, expected)
        else:  # other sums
            assert rows.shape == expected.shape
            assert abs(rows - expected).max() < (0.01 if precision == "int8" else 1e-3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_written_again_to_the_byte(path: Path, tmp_path: Path) -> None:
    model = load_model(path)
    again = tmp_path / path.name
    save_model(
        again,
        model.config,
        model.tensors,
        model.provenance,
        dtype=model.storage_dtype,
        clipping_thresholds=model.clipping_thresholds,
    )
    assert again.read_bytes() == path.read_bytes()
