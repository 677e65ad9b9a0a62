"""The targets: what reads a stranger's bytes, from which seeds, and how they are changed.

A target's `run` takes any bytes. It returns, or raises InputError with one line; all else, a hang
and much memory are findings.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sparsedet.detector import Detector
from sparsedet.engine import Engine, autotune, packed_cache
from sparsedet.errors import InputError
from sparsedet.evaluation.coco import load_coco
from sparsedet.files import read_json
from sparsedet.images.letterbox import as_blob
from sparsedet.images.read import decode_image
from sparsedet.importers import load_foreign
from sparsedet.importers.containers import yaml
from sparsedet.importers.onnx import load_onnx_network
from sparsedet.model.detector_config import as_detector_config
from sparsedet.model.file import ModelFile, load_file, load_model, save_model
from sparsedet.model.presets import preset
from sparsedet.model.tensors import LazyTensors
from sparsedet.serve.tensors import read_call
from sparsedet.testing import random_tensors
from sparsedet.training.recipe import Recipe

from . import NAMES, mutate
from .mutate import Mutator

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
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


@dataclass(frozen=True)
class FuzzTarget:
    """Attributes:
    run: reads bytes, as the program reads a file of them.
    seeds: files to start from.
    mutate: makes other files of them.
    check_runs: executions in the check of the repository, some seconds of them.
    reader: the source files that `run` is for, below src/sparsedet, as FILE or FILE:FUNCTIONS.
    attacks: the folder below tests/attacks with further seeds.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    mutate: Mutator
    check_runs: int
    reader: tuple[str, ...]
    attacks: str = ""


_folder = tempfile.TemporaryDirectory(prefix="sparsedet-fuzz-")


def place(name: str, data: bytes) -> Path:
    path = Path(_folder.name) / name
    path.write_bytes(data)
    return path


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
    path = Path(_folder.name) / "seed.packed"
    packed_cache._save(path, "attack", model.tensors, engine)
    yield path.read_bytes()


# ---------------------------------------------------------------------------- foreign weights, IR


def run_weights(data: bytes) -> None:
    load_foreign(place("weights", data))


def pickle_files() -> Iterator[bytes]:
    import pickle

    from helpers.parity import DETECTRON2

    from sparsedet.importers.containers import open_source

    state = {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}
    few = dict(list(state.items())[:6])
    yield pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 4)
    for protocol in (2, 4, 5):
        yield pickle.dumps({"model": few, "__author__": "Detectron2 Model Zoo"}, protocol)


def zip_files() -> Iterator[bytes]:
    from helpers.parity import DETECTRON2

    yield DETECTRON2.read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(DETECTRON2) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist()[:12]:
            new.writestr(info, old.read(info))
    yield out.getvalue()


def npz_files() -> Iterator[bytes]:
    from helpers.parity import TENSORPACK

    arrays = dict(np.load(TENSORPACK))
    for count in (5, len(arrays)):
        out = io.BytesIO()
        np.savez_compressed(out, **dict(list(arrays.items())[:count]))
        yield out.getvalue()


def run_ir(data: bytes) -> None:
    """A line with the length of the XML, the XML, the weights."""
    line, _, rest = data.partition(b"\n")
    length = int(line) if line.isdigit() and len(line) < 10 else len(rest)
    place("ir.bin", rest[length:])
    load_foreign(place("ir.xml", rest[:length]), "openvino")


def ir_files() -> Iterator[bytes]:
    from sparsedet.exporters.openvino import save_openvino

    path = Path(_folder.name) / "export.xml"
    model = tiny_model()
    save_openvino(path, model.config, model.tensors, overwrite=True)
    text, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    yield f"{len(text)}\n".encode() + text + weights


def run_onnx(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_onnx_network(place("net.onnx", data))


def onnx_files() -> Iterator[bytes]:
    import onnx
    from helpers import onnx_files as make

    folder = Path(_folder.name)
    node = onnx.helper.make_node
    nodes = [
        make.conv_node("a", "x", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["a"], ["b"], name="b"),
        node("MaxPool", ["b"], ["c"], name="c", kernel_shape=[2, 2], strides=[2, 2]),
        make.conv_node("d", "c", "d"),
        node("Sigmoid", ["d"], ["e"], name="e"),
        node("Mul", ["d", "e"], ["f"], name="f"),
        node("Shape", ["f"], ["s"], name="s"),
        node("Reshape", ["f", "s"], ["y"], name="y"),
    ]
    constants = make.conv_tensors("a", 4, 3, 3) | make.conv_tensors("d", 4, 4)
    yield make.save_onnx(folder / "seed.onnx", nodes, ["y"], constants).read_bytes()
    numbers: dict[str, Any] = {"two": np.float32(2), "axes": np.array([2, 3], np.int64)}
    numbers |= {"pads": np.zeros(8, np.int64), "axis": np.array([1], np.int64)}
    numbers |= {"starts": np.array([1], np.int64), "ends": np.array([3], np.int64)}
    numbers |= {"scales": np.array([1, 1, 2, 2], np.float32)}
    numbers |= {f"n.{leaf}": np.ones(4, np.float32) for leaf in ("s", "b", "m", "v")}
    more = [
        make.conv_node("a", "x", "a", auto_pad="SAME_UPPER", dilations=[1, 1], group=1),
        node("BatchNormalization", ["a", "n.s", "n.b", "n.m", "n.v"], ["n"], name="n"),
        node("HardSwish", ["n"], ["h"], name="h"),
        node("Pad", ["h", "pads"], ["p"], name="p"),
        node("AveragePool", ["p"], ["q"], name="q", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["q", "", "scales"], ["r"], name="r", mode="nearest"),
        node("Slice", ["r", "starts", "ends", "axis"], ["t"], name="t"),
        node("Concat", ["t", "r"], ["u"], name="u", axis=1),
        node("ReduceMean", ["u", "axes"], ["v"], name="v", keepdims=1),
        node("Mul", ["v", "two"], ["w"], name="w"),
        node("Flatten", ["w"], ["z"], name="z"),
        node("Softmax", ["z"], ["y"], name="y", axis=1),
    ]
    numbers |= make.conv_tensors("a", 4, 3, 3)
    yield make.save_onnx(folder / "seed.onnx", more, ["y"], numbers, opset=18).read_bytes()


# ------------------------------------------------------------------- images, data sets, requests


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
    load_coco(place("coco.json", data), _folder.name)


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
    path = Path(_folder.name) / "tuning.json"
    path.unlink(missing_ok=True)
    autotune.save_tuning(path, {"res2.0.conv1": "sparse", "res5.0.conv2": "winograd"})
    yield path.read_bytes()
    from helpers.parity import config_yaml

    yield config_yaml({"MODEL.RPN.NMS_THRESH": 0.5}).encode()
    yield b"a: 1\nb:\n  - [1, 2.5, 'x']\n  - {c: ~, d: true}\ne: |\n  text\n  more\nf: !!python/x\n"


_IMPORTERS = ("importers/containers/__init__.py", "importers/containers/pickle.py")
_ONNX = tuple(f"importers/onnx/{name}.py" for name in ("reader", "constants", "fold", "windows"))
_IMAGES = tuple(
    f"images/{name}.py"
    for name in ("read", "jpeg", "png", "bmp", "gif", "tiff", "tags", "webp", "heif")
)
_MODEL = (
    "model/file.py:_load _read take _parse_config check_shape",
    "model/safetensors.py:read_header _foreign _parse_entry parse_json unique finite",
    "model/tensors.py:check stored _bytes __getitem__ dense",
)
_COCO = "evaluation/coco.py:load_coco _categories annotation_keys annotated_object _is_crowd _clip"
_RECIPE = "training/recipe.py:from_dict __post_init__ require"
_REQUEST = "read_call _parse _tensor _from_json _object _list _word _parameters _flag"

TARGETS = {
    "model_v1": FuzzTarget(
        run_model, v1_files, mutate.safetensors, 5_000, (*_MODEL, "model/config.py")
    ),
    "model_v2": FuzzTarget(
        run_model, v2_files, mutate.safetensors, 2_000, (*_MODEL, "model/graph_json.py")
    ),
    "packed": FuzzTarget(
        run_packed, packed_files, mutate.packed, 15_000, ("engine/packed_cache.py:_open",)
    ),
    "openvino_ir": FuzzTarget(
        run_ir, ir_files, mutate.xml, 200, ("importers/openvino_ir/graph.py",)
    ),
    "onnx": FuzzTarget(run_onnx, onnx_files, mutate.protobuf, 2_000, _ONNX),
    "pickle": FuzzTarget(run_weights, pickle_files, mutate.pickle, 5_000, _IMPORTERS),
    "zip": FuzzTarget(run_weights, zip_files, mutate.archive, 2_000, _IMPORTERS, "pickle"),
    "npz": FuzzTarget(run_weights, npz_files, mutate.archive, 3_000, _IMPORTERS[:1], "npz"),
    "images": FuzzTarget(run_image, image_files, mutate.picture, 10_000, _IMAGES),
    "coco": FuzzTarget(run_coco, coco_files, mutate.json_text, 10_000, (_COCO,)),
    "kserve": FuzzTarget(
        run_kserve,
        kserve_files,
        mutate.request,
        20_000,
        (f"serve/tensors.py:{_REQUEST}",),
    ),
    "settings": FuzzTarget(
        run_settings,
        settings_files,
        mutate.settings,
        10_000,
        (
            "importers/containers/yaml.py",
            _RECIPE,
            "engine/autotune.py:load_tuning",
        ),
    ),
}

assert set(TARGETS) == set(NAMES)


def seeds(name: str) -> Iterator[bytes]:
    """Seeds of a target: made, from the hostile files, and what earlier runs found."""
    target = TARGETS[name]
    yield from target.seeds()
    attacks = HERE.parent / "attacks" / (target.attacks or name)
    for path in sorted(attacks.glob("*")) if attacks.is_dir() else ():
        if path.suffix not in (".md", ".bin"):
            yield as_seed(name, path)
    for path in sorted((HERE / "corpus" / name).glob("*")):
        yield path.read_bytes()


def as_seed(name: str, path: Path) -> bytes:
    data = path.read_bytes()
    if name == "openvino_ir":
        weights = path.with_suffix(".bin")
        return (
            f"{len(data)}\n".encode() + data + (weights.read_bytes() if weights.exists() else b"")
        )
    return data


__all__ = ["TARGETS", "FuzzTarget", "seeds"]
