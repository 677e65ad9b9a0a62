"""Targets: images, COCO files, requests, settings."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sparsedet.engine import autotune
from sparsedet.errors import InputError
from sparsedet.evaluation.coco import load_coco
from sparsedet.files import read_json
from sparsedet.images.letterbox import as_blob
from sparsedet.images.read import decode_image
from sparsedet.importers.containers import yaml
from sparsedet.serve.tensors import read_call
from sparsedet.training.recipe import Recipe

from .model_files import TINY
from .target import FOLDER, place


def run_image(data: bytes) -> None:
    image = decode_image(data, "x", max_pixels=1_000_000)
    assert image.ndim == 3 and image.dtype == np.uint8 and image.size <= 3_000_000


_PICTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("AVIF", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (20, 24))]}),
    ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}),
    ("TIFF", {"compression": "raw"}),
    ("GIF", {"interlace": True}),
    ("PPM", {}),
)


def image_files() -> Iterator[bytes]:
    from native.fuzz_files import files

    yield from files().values()
    scene = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    for suffix in (".png", ".bmp", ".webp", ".tiff", ".ppm"):
        yield np.asarray(cv2.imencode(suffix, scene)[1]).tobytes()
    small = Image.fromarray(scene)
    for kind, settings in _PICTURES:
        out = io.BytesIO()
        small.save(out, kind, **settings)
        yield out.getvalue()
    yield np.asarray(cv2.imencode(".png", np.dstack([scene, scene[..., :1]]))[1]).tobytes()
    yield np.asarray(cv2.imencode(".png", scene.astype(np.uint16) * 255)[1]).tobytes()


def run_coco(data: bytes) -> None:
    load_coco(place("coco.json", data), FOLDER)


def coco_files() -> Iterator[bytes]:
    square = [[1, 2, 9, 2, 9, 9, 1, 9]]
    first = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 7], "area": 56}
    annotations = [
        {**first, "iscrowd": 0, "segmentation": square},
        {**first, "id": 2, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": [5, 595]}},
        {**first, "id": "3", "image_id": 2.0, "category_id": "4"},
    ]
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": 30, "height": 20, "license": 1} for n in (1, 2)
    ]
    categories = [{"id": 3, "name": "a", "supercategory": "x"}, {"id": 4, "name": "b"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    yield json.dumps(whole).encode()


def run_kserve(data: bytes) -> None:
    """A line with the header of the JSON's length, or an empty one; the body."""
    line, _, body = data.partition(b"\n")
    call = read_call(body, line.decode("latin-1") if line else None)
    for array in call.inputs.values():
        as_blob(array)


def kserve_files() -> Iterator[bytes]:
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 2, 2]}
    wanted = [{"name": "detection_out", "parameters": {"binary_data": True}}]
    text = json.dumps({"id": "7", "inputs": [{**entry, "data": [9] * 12}], "outputs": wanted})
    yield b"\n" + text.encode()
    binary = {**entry, "parameters": {"binary_data_size": 12}}
    text = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}})
    yield f"{len(text)}\n{text}".encode() + bytes(12)
    real = {**binary, "datatype": "FP32", "parameters": {"binary_data_size": 48}}
    text = json.dumps({"inputs": [real]})
    yield f"{len(text)}\n{text}".encode() + bytes(48)


def run_settings(data: bytes) -> None:
    """As JSON a recipe, a tuning file and a configuration; else YAML."""
    path = place("settings.json", data)
    if data[:1] not in b"{[":
        try:
            yaml.parse_yaml(data.decode("utf-8", "replace"))
        except ValueError as error:
            raise InputError(str(error).splitlines()[0]) from None
        return
    errors = []
    for read in (autotune.load_tuning, _recipe, _config):
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error)
            errors.append(error)
    if errors:
        raise errors[0]


def _recipe(path: Path) -> None:
    values = read_json(path)
    if isinstance(values, dict):
        Recipe.from_dict(values)


def _config(path: Path) -> None:
    values = read_json(path)
    if isinstance(values, dict):
        type(TINY).from_dict(values)


def settings_files() -> Iterator[bytes]:
    yield json.dumps(Recipe().to_dict()).encode()
    yield json.dumps(TINY.to_stored()).encode()
    path = FOLDER / "tuning.json"
    path.unlink(missing_ok=True)
    autotune.save_tuning(path, {"res2.0.conv1": "sparse", "res5.0.conv2": "winograd"})
    yield path.read_bytes()
    from helpers.parity import config_yaml

    yield config_yaml({"MODEL.RPN.NMS_THRESH": 0.5}).encode()
    yield b"a: 1\nb:\n  - [1, 2.5, 'x']\n  - {c: ~, d: true}\ne: |\n  text\n  more\nf: !!python/x\n"
