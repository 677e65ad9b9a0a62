"""Detectron2's `config.yaml` -> fields of the configuration.

The file is what its `default_setup` writes into OUTPUT_DIR: all settings of a run. Each setting
that a model of a family uses at test is either taken or must have the one value that this project
runs (see `keys`); any other value is refused by name. Settings of training, data and other heads do
not change detections. What is none of these is not Detectron2's own, and is named in a note. A
setting that the file lacks has Detectron2's default.
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_json
from ...model.config import ModelConfig
from ...model.presets import preset
from ..containers.yaml import read_yaml
from ..tensor_source import printable
from .keys import DEPTHS, FAMILIES, FamilyName, known
from .pyramid_settings import PyramidSettings

_ANCHORS = ("anchor_sizes", "anchor_ratios")


@dataclass(frozen=True, slots=True)
class Detectron2Config:
    """A `config.yaml`.

    Attributes:
        path: the file, for messages.
        values: its settings by their whole name, as "MODEL.RPN.NMS_THRESH".
    """

    path: Path
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Detectron2Settings:
    """What a `config.yaml` says about a model.

    Attributes:
        path: the file, for messages.
        fields: fields of `ModelConfig` or `PyramidSettings`; colours are in the model's own order.
        rgb: whether the model reads RGB.
        classes: number of classes; None: not stated.
        blocks: blocks of each stage; None: not stated.
        agnostic: whether all classes share one set of box deltas; None: not stated.
        masks: whether it has a mask head; None: not stated.
        sizes: short side and longest side at test.
        notes: lines for the user.
    """

    path: Path
    fields: dict[str, Any]
    rgb: bool
    classes: int | None
    blocks: tuple[int, ...] | None
    agnostic: bool | None
    masks: bool | None
    sizes: tuple[int, int]
    notes: tuple[str, ...]


def read_config_file(path: Path) -> dict[str, Any] | Detectron2Config:
    """Fields of our configuration (JSON or YAML), or a `config.yaml` of Detectron2.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    content: Any
    if path.suffix.lower() in (".yaml", ".yml") or not _begins_like_json(path):
        content = read_yaml(path)
    else:
        content = read_json(path)
    if is_detectron2_config(content):
        return _detectron2_config(content, path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            f"{path}: expected a JSON object of configuration fields, or Detectron2's config.yaml"
        )
    return content


def _begins_like_json(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[", b"")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def is_detectron2_config(content: Any) -> bool:
    """Whether a file of settings is one of Detectron2's, and not fields of our configuration."""
    keys = {str(key) for key in content} if isinstance(content, dict) else set()
    return (
        bool(keys & {"MODEL", "INPUT", "SOLVER", "DATASETS", "TEST", "_BASE_", "_target_"})
        or {
            "model",
            "dataloader",
        }
        <= keys
    )


def _detectron2_config(content: Mapping[Any, Any], path: Path) -> Detectron2Config:
    if "_BASE_" in content:
        raise InputError(
            f"{path}: is a part of a configuration (_BASE_ is {_short(content['_BASE_'])}); give "
            "the complete config.yaml that Detectron2 wrote into the run's OUTPUT_DIR"
        )
    if "MODEL" not in content or not isinstance(content["MODEL"], dict):
        what = "a LazyConfig" if "model" in content or "_target_" in content else "not one"
        raise InputError(
            f"{path}: has no MODEL section ({what} of Detectron2's configurations in YAML); state "
            "its settings as JSON fields instead (docs/weights.md)"
        )
    return Detectron2Config(path, _flatten(content, path))


def read_settings(config: Detectron2Config, family: FamilyName, masks: bool) -> Detectron2Settings:
    """What a `config.yaml` says about a model.

    Args:
        family: of the model.
        masks: whether it has a mask head, which is imported.

    Raises:
        InputError: a setting has a value that does not run here, or no possible value.
    """
    path, keys = config.path, FAMILIES[family]
    values = {**keys.defaults, **config.values}
    rules = {**keys.only, **(keys.masks if masks else {})}
    wrong = [
        f"{key} is {_short(values[key])}, expected {expected}"
        for key, (fits, expected) in rules.items()
        if key in values and not fits(values[key])
    ]
    image_format = values.get("INPUT.FORMAT", "BGR")
    if image_format not in ("BGR", "RGB"):
        wrong.append(f"INPUT.FORMAT is {_short(image_format)}, expected BGR or RGB")
    depth = values.get("MODEL.RESNETS.DEPTH")
    if depth is not None and (type(depth) is not int or depth not in DEPTHS):
        wrong.append(f"MODEL.RESNETS.DEPTH is {_short(depth)}, expected 50, 101 or 152")
    if wrong:
        raise InputError(
            f"{path}: {'; '.join(wrong)}. A model with other settings detects something else here: "
            "train it with these, or run it in Detectron2"
        )
    fields: dict[str, Any] = {}
    for key, field in keys.fields.items():
        if key in values:
            fields[field] = _field(path, key, field, values[key], family)
    if family == "c4" and set(fields) & {*_ANCHORS, "anchor_offset"}:
        fields["cell_anchors"] = None  # also where an old checkpoint has others: as Detectron2 does
    notes = []
    if str(values.get("TEST.AUG.ENABLED")) == "True":
        notes.append(f"{path.name}: TEST.AUG, averaging over sizes and flips, is not done here")
    if unknown := _unknown(values):
        notes.append(
            f"{path.name}: not a setting of Detectron2's own, so not read: {', '.join(unknown)}; "
            "check that none changes detections"
        )
    agnostic = values.get("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    return Detectron2Settings(
        path,
        fields,
        image_format == "RGB",
        _number(path, values, keys.classes, 1),
        None if depth is None else DEPTHS[depth],
        None if family == "retinanet" else agnostic,
        None if family == "retinanet" else values.get("MODEL.MASK_ON"),
        (
            _number(path, values, "INPUT.MIN_SIZE_TEST", 0, 800) or 0,
            _number(path, values, "INPUT.MAX_SIZE_TEST", 1, 1333) or 0,
        ),
        tuple(notes),
    )


def check_weights(
    settings: Detectron2Settings,
    weights: Path,
    family: FamilyName,
    classes: int,
    blocks: tuple[int, ...],
    agnostic: bool,
    masks: bool,
) -> None:
    """Raise InputError if the settings are those of another model.

    Args:
        weights: the file with the weights, for messages.
        classes, blocks, agnostic, masks: as of `Detectron2Settings`, read from the weights.
    """
    what = ""
    if settings.classes not in (None, classes):
        what = f"{FAMILIES[family].classes} is {settings.classes}, the weights have {classes}"
    elif settings.blocks not in (None, blocks):
        what = f"MODEL.RESNETS.DEPTH is {sum(settings.blocks or ()) * 3 + 2}, the weights have "
        what += f"{blocks} blocks"
    elif settings.agnostic not in (None, agnostic) and classes > 1:
        what = f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is {settings.agnostic}, the weights have "
        what += "one set of box deltas" if agnostic else "a set for each class"
    elif settings.masks not in (None, masks):
        what = f"MODEL.MASK_ON is {settings.masks}, the weights have {'a' if masks else 'no'} mask "
        what += "head"
    if what:
        raise InputError(f"{settings.path}: {what}: it is of another model than {weights}")


def _flatten(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Settings by their whole name, as "MODEL.RPN.NMS_THRESH"."""
    out: dict[str, Any] = {}
    todo = [(str(key), value) for key, value in content.items()]
    steps = 0
    while todo:
        name, value = todo.pop()
        steps += 1
        if steps > 10_000 or len(name) > 200:  # aliases can hold each other
            raise InputError(f"{path}: has more settings than any configuration of Detectron2")
        if isinstance(value, dict) and value:
            todo += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            out[name] = _literal(value)
    return out


def _literal(value: Any) -> Any:
    """Text that is a Python literal, as "(10, 10, 5, 5)": its value, as Detectron2 reads it."""
    if not isinstance(value, str) or len(value) > 1000:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _field(path: Path, key: str, field: str, value: Any, family: FamilyName) -> Any:
    """The value of a field, checked as the configuration does, in the terms of Detectron2."""
    given = value
    if field == "stride_in":
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} is {_short(given)}, expected True or False")
        return "conv1" if value else "conv2"
    nested = isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in value)
    if field in _ANCHORS and family == "c4" and nested:
        if len(value) > 1:
            raise InputError(f"{path}: {key} has {len(value)} lists, expected one, for res4")
        value = value[0]
    elif field in _ANCHORS and family != "c4" and not nested:
        value = [value]
    try:
        if family != "c4":
            return getattr(PyramidSettings.from_dict({field: value}), field)
        base = preset("r101-c4-detectron2").to_dict()
        config = ModelConfig.from_dict({**base, field: value})
    except InputError as error:
        raise InputError(f"{path}: {key} is {_short(given)}: {error}") from None
    return getattr(config, field)


def _number(
    path: Path, values: Mapping[str, Any], key: str, least: int, default: int | None = None
) -> int | None:
    value = values.get(key, default)
    if value is not None and (type(value) is not int or not least <= value < 100_000):
        raise InputError(f"{path}: {key} is {_short(value)}, expected {least}..99999")
    return value


def _unknown(values: Mapping[str, Any]) -> list[str]:
    """Settings that Detectron2 does not have: of a fork, or misspelt."""
    names = [printable(name) for name in values if not known(name)]
    return sorted(names)[:8] + (["..."] if len(names) > 8 else [])


def _short(value: Any) -> str:
    return printable(reprlib.repr(value))
