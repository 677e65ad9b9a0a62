"""Targets: model files of both versions, and packed weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsedet.detector import Detector
from sparsedet.engine import Engine, packed_cache
from sparsedet.errors import InputError
from sparsedet.model.detector_config import as_detector_config
from sparsedet.model.file import ModelFile, load_file, load_model, save_model
from sparsedet.model.presets import preset
from sparsedet.model.tensors import LazyTensors
from sparsedet.testing import random_tensors

from .target import FOLDER, place

DATA = Path(__file__).parents[1] / "data"
MOST_GFLOP = 0.02
"""Of a model that is also run: more would be slow, not wrong."""

TINY = replace(
    preset("r50half-c4"),
    name="tiny",
    input_height=32,
    input_width=48,
    blocks=(1, 1, 1, 1),
    stem_channels=3,
    bottleneck_channels=(2, 3, 3, 5),
    stage_channels=(5, 6, 7, 9),
    rpn_channels=3,
    proposals=9,
    class_names=("cat", "dog"),
    category_ids=(17, 18),
)


# ------------------------------------------------------------------------------------ model files


def run_model(data: bytes) -> None:
    """Read a model file, and run a detector that is small enough."""
    model = load_file(place("m.safetensors", data))
    if not isinstance(model, ModelFile):
        return
    config = model.config
    if config.resize == "shorter" or not 0 < config.input_height * config.input_width <= 1 << 14:
        return
    if sum(tensor.size for tensor in model.tensors.values()) > 1 << 22:
        return
    engine = Engine(config, model.tensors, threads=1, precision="f32", isa="avx2")
    if Detector(model, engine).gflop <= MOST_GFLOP:
        image = np.full((config.input_height, config.input_width, 3), 90, np.uint8)
        image[::3, 5:20] = 200
        rows = engine.run(image)
        assert np.isfinite(rows).all() and rows.shape[1] == 7


def v1_files() -> Iterator[bytes]:
    for dtype in ("float16", "float32"):
        path = place("seed", b"")
        save_model(path, TINY, random_tensors(TINY, 0.4), {}, dtype=dtype, overwrite=True)
        yield path.read_bytes()
    yield (DATA / "model_v1" / "r101-c4-float16-ranges.safetensors").read_bytes()


def v2_files() -> Iterator[bytes]:
    from helpers.exports import CLASSES, FAMILIES, family_graph

    from sparsedet.model.detector_config import DetectorConfig

    config = as_detector_config(TINY)
    path = place("seed", b"")
    save_model(path, config, random_tensors(config, 0.4), {}, overwrite=True)
    yield path.read_bytes()
    for family in FAMILIES:
        config = DetectorConfig(
            name=family,
            graph=family_graph(family, (64, 64)),
            class_names=tuple(f"c{n}" for n in range(CLASSES)),
            category_ids=tuple(range(1, CLASSES + 1)),
        )
        save_model(path, config, random_tensors(config, 0.05), {}, overwrite=True)
        yield path.read_bytes()


# -------------------------------------------------------------------------------- packed weights

_models: list[ModelFile] = []


def run_packed(data: bytes) -> None:
    """The table of packed weights, and its weights in the core where the table is good."""
    if not _models:
        _models.append(tiny_model())
    model, path = _models[0], place("x.packed", data)
    assert isinstance(model.tensors, LazyTensors)
    try:
        found = packed_cache._open(path, "attack", model.tensors)
        if found is not None:
            Engine(
                model.config, model.tensors, threads=1, precision="f32", isa="scalar", packed=found
            )
    except ValueError as error:
        raise InputError(str(error)) from None


def tiny_model() -> ModelFile:
    return load_model(place("tiny.safetensors", next(v1_files())))


def packed_files() -> Iterator[bytes]:
    model = tiny_model()
    assert isinstance(model.tensors, LazyTensors)
    engine = Engine(model.config, model.tensors, threads=1, precision="f32", isa="scalar")
    path = FOLDER / "seed.packed"
    packed_cache._save(path, "attack", model.tensors, engine)
    yield path.read_bytes()
