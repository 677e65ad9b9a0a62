"""The table of targets, and their seeds.

A target's `run` takes any bytes. It returns, or raises InputError with one line; all else, a hang
and much memory are findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import NAMES, foreign_models, inputs, model_files, mutate
from .target import FuzzTarget

HERE = Path(__file__).parent

_CONTAINERS = "importers/containers/__init__.py:open_source _entry storage load _arrays"
_PICKLE = (f"{_CONTAINERS} _open_pickle", "importers/containers/pickle.py")
_ZIP = (f"{_CONTAINERS} _open_zip _open_torch _persistent", "importers/containers/pickle.py")
_NPZ = ("importers/containers/__init__.py:open_source _open_zip _entry _open_npy read",)
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
        model_files.run_model,
        model_files.v1_files,
        mutate.safetensors,
        3_000,
        (*_MODEL, "model/config.py"),
    ),
    "model_v2": FuzzTarget(
        model_files.run_model,
        model_files.v2_files,
        mutate.safetensors,
        1_200,
        (*_MODEL, "model/graph_json.py"),
    ),
    "packed": FuzzTarget(
        model_files.run_packed,
        model_files.packed_files,
        mutate.packed,
        15_000,
        ("engine/packed_cache.py:_open",),
    ),
    "openvino_ir": FuzzTarget(
        foreign_models.run_ir,
        foreign_models.ir_files,
        mutate.xml,
        150,
        ("importers/openvino_ir/graph.py",),
    ),
    "onnx": FuzzTarget(
        foreign_models.run_onnx, foreign_models.onnx_files, mutate.protobuf, 2_000, _ONNX
    ),
    "pickle": FuzzTarget(
        foreign_models.run_weights, foreign_models.pickle_files, mutate.pickle, 5_000, _PICKLE
    ),
    "zip": FuzzTarget(
        foreign_models.run_weights,
        foreign_models.zip_files,
        mutate.archive,
        1_000,
        _ZIP,
        "pickle",
    ),
    "npz": FuzzTarget(
        foreign_models.run_weights,
        foreign_models.npz_files,
        mutate.archive,
        1_500,
        _NPZ,
        "npz",
    ),
    "images": FuzzTarget(inputs.run_image, inputs.image_files, mutate.picture, 10_000, _IMAGES),
    "coco": FuzzTarget(inputs.run_coco, inputs.coco_files, mutate.json_text, 10_000, (_COCO,)),
    "kserve": FuzzTarget(
        inputs.run_kserve,
        inputs.kserve_files,
        mutate.request,
        10_000,
        (f"serve/tensors.py:{_REQUEST}",),
    ),
    "settings": FuzzTarget(
        inputs.run_settings,
        inputs.settings_files,
        mutate.settings,
        5_000,
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
