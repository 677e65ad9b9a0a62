"""Detectron2's `config.yaml` -> fields of the configuration.

The file is what its `default_setup` writes into OUTPUT_DIR: all settings of a run. Each setting
that a Faster R-CNN C4 uses at test is either taken (`_FIELDS` and below) or must have the one value
that this project runs (`_ONLY`); any other value is refused by name. Settings of training, data and
other heads (`_NO_EFFECT`) do not change detections. What is none of these is not Detectron2's own,
and is named in a note. A setting that the file lacks has Detectron2's default.

Source: detectron2/config/defaults.py and the readers of its settings in detectron2/modeling, at
commit 02b5c4e.
"""

from __future__ import annotations

import ast
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_json
from ...model.config import ModelConfig
from ...model.presets import preset
from ..containers.yaml import read_yaml
from ..tensor_source import printable

# --------------------------------------------------------------------- what is taken

_FIELDS: dict[str, str] = {
    "MODEL.RESNETS.STRIDE_IN_1X1": "stride_in",
    "MODEL.ANCHOR_GENERATOR.SIZES": "anchor_sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "anchor_ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "anchor_offset",
    "MODEL.RPN.BBOX_REG_WEIGHTS": "rpn_box_weights",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "rpn_pre_nms",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "proposals",
    "MODEL.RPN.NMS_THRESH": "rpn_nms_threshold",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "roi_size",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "roi_sampling_ratio",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "box_weights",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "nms_threshold",
    "TEST.DETECTIONS_PER_IMAGE": "max_detections",
    "MODEL.PIXEL_MEAN": "pixel_mean",
    "MODEL.PIXEL_STD": "pixel_std",
}
"""Setting -> field that holds it. Read besides: INPUT.FORMAT and the sizes of INPUT."""

_ANCHORS = ("anchor_sizes", "anchor_ratios")
_CHECKED = {"MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RESNETS.DEPTH", "INPUT.FORMAT"}
_CHECKED |= {
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
}


def _is(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

_ONLY: dict[str, tuple[Callable[[Any], bool], str]] = {
    "VERSION": (_is(2), "2"),
    "MODEL.META_ARCHITECTURE": (_is("GeneralizedRCNN"), "GeneralizedRCNN"),
    "MODEL.LOAD_PROPOSALS": (_is(False), "False: proposals come from the model's own RPN"),
    "MODEL.KEYPOINT_ON": (_is(False), "False: there is no keypoint head"),
    "MODEL.BACKBONE.NAME": (_is("build_resnet_backbone"), "build_resnet_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (
        lambda value: isinstance(value, list | tuple) and "res4" in value,
        "['res4'], a C4 backbone",
    ),
    "MODEL.RESNETS.NUM_GROUPS": (_is(1), "1: a ResNet, not a ResNeXt"),
    "MODEL.RESNETS.NORM": (_is(*_NORMS), f"one of {', '.join(_NORMS)}, which can be folded"),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (
        lambda value: isinstance(value, list | tuple) and not any(value),
        "False in every stage: there are no deformable convolutions",
    ),
    "MODEL.PROPOSAL_GENERATOR.NAME": (_is("RPN"), "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (
        lambda value: type(value) in (int, float) and value == 0,
        "0: proposals of every size are kept",
    ),
    "MODEL.ANCHOR_GENERATOR.NAME": (_is("DefaultAnchorGenerator"), "DefaultAnchorGenerator"),
    "MODEL.RPN.HEAD_NAME": (_is("StandardRPNHead"), "StandardRPNHead"),
    "MODEL.RPN.IN_FEATURES": (_is(["res4"], ("res4",)), "['res4']"),
    "MODEL.RPN.CONV_DIMS": (
        lambda value: isinstance(value, list | tuple) and len(value) == 1,
        "one number: the RPN has one convolution",
    ),
    "MODEL.ROI_HEADS.NAME": (_is("Res5ROIHeads"), "Res5ROIHeads, the head of C4 models"),
    "MODEL.ROI_HEADS.IN_FEATURES": (_is(["res4"], ("res4",)), "['res4']"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (_is("ROIAlignV2"), "ROIAlignV2"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (_is(False), "False: scores are a softmax"),
}
"""Setting -> whether a value is the one that runs here, and that value in words."""

_NO_EFFECT = re.compile(
    # training, data, logs
    r"SOLVER\..*|DATALOADER\..*|DATASETS\..*|GLOBAL\..*|OUTPUT_DIR|SEED|VIS_PERIOD"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|MODEL\.DEVICE|MODEL\.WEIGHTS|MODEL\.BACKBONE\.FREEZE_AT"
    r"|INPUT\.((MIN|MAX)_SIZE_TRAIN(_SAMPLING)?|CROP\..*|RANDOM_FLIP|MASK_FORMAT)"
    r"|TEST\.(EXPECTED_RESULTS|EVAL_PERIOD|KEYPOINT_OKS_SIGMAS|(PRECISE_BN|AUG)\..*)"
    r"|MODEL\.RPN\.(BATCH_SIZE_PER_IMAGE|POSITIVE_FRACTION|BOUNDARY_THRESH|BBOX_REG_LOSS_\w+"
    r"|SMOOTH_L1_BETA|LOSS_WEIGHT|IOU_\w+|(PRE|POST)_NMS_TOPK_TRAIN)"
    r"|MODEL\.ROI_HEADS\.(BATCH_SIZE_PER_IMAGE|POSITIVE_FRACTION|PROPOSAL_APPEND_GT|IOU_\w+)"
    r"|MODEL\.ROI_BOX_HEAD\.(BBOX_REG_LOSS_\w+|SMOOTH_L1_BETA|TRAIN_ON_PRED_BOXES|\w*FED_LOSS\w*)"
    # other heads: not a part of a C4 model, or, of a mask head, not of its boxes
    r"|MODEL\.ROI_BOX_HEAD\.(NAME|NUM_FC|FC_DIM|NUM_CONV|CONV_DIM|NORM)|MODEL\.MASK_ON"
    r"|MODEL\.(FPN|RETINANET|SEM_SEG_HEAD|PANOPTIC_FPN|ROI_BOX_CASCADE_HEAD|ROI_MASK_HEAD"
    r"|ROI_KEYPOINT_HEAD)\..*|MODEL\.ANCHOR_GENERATOR\.ANGLES"
    # read from the shapes of the tensors; res5 is the head's, which is never dilated
    r"|MODEL\.RESNETS\.(WIDTH_PER_GROUP|RES2_OUT_CHANNELS|STEM_OUT_CHANNELS|RES5_DILATION"
    r"|DEFORM_MODULATED|DEFORM_NUM_GROUPS)"
)

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True, slots=True)
class Detectron2Settings:
    """What a `config.yaml` says about a model.

    Attributes:
        path: the file, for messages.
        fields: fields of the configuration; colours are in the model's own order.
        rgb: whether the model reads RGB.
        classes: number of classes; None: not stated.
        blocks: blocks of each stage; None: not stated.
        agnostic: whether all classes share one set of box deltas; None: not stated.
        sizes: short side and longest side at test; None: Detectron2's 800 and 1333.
        notes: lines for the user.
    """

    path: Path
    fields: dict[str, Any]
    rgb: bool
    classes: int | None
    blocks: tuple[int, ...] | None
    agnostic: bool | None
    sizes: tuple[int, int]
    notes: tuple[str, ...]


def read_config_file(path: Path) -> dict[str, Any] | Detectron2Settings:
    """Fields of our configuration (JSON or YAML), or what a `config.yaml` of Detectron2 says.

    Raises:
        InputError: the file cannot be read, is neither, or has settings that do not run here.
    """
    content: Any
    if path.suffix.lower() in (".yaml", ".yml") or not _begins_like_json(path):
        content = read_yaml(path)
    else:
        content = read_json(path)
    if is_detectron2_config(content):
        return read_detectron2_settings(content, path)
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


def read_detectron2_settings(content: Mapping[Any, Any], path: Path) -> Detectron2Settings:
    """Read the settings of a model.

    Args:
        content: the file's content, as `read_yaml` returns it.
        path: the file, for messages.

    Raises:
        InputError: a setting has a value that does not run here, or no possible value.
    """
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
    values = _flatten(content, path)
    wrong = [
        f"{key} is {_short(values[key])}, expected {expected}"
        for key, (fits, expected) in _ONLY.items()
        if key in values and not fits(values[key])
    ]
    image_format = values.get("INPUT.FORMAT", "BGR")
    if image_format not in ("BGR", "RGB"):
        wrong.append(f"INPUT.FORMAT is {_short(image_format)}, expected BGR or RGB")
    depth = values.get("MODEL.RESNETS.DEPTH")
    if depth is not None and (type(depth) is not int or depth not in _BLOCKS):
        wrong.append(f"MODEL.RESNETS.DEPTH is {_short(depth)}, expected 50, 101 or 152")
    if wrong:
        raise InputError(
            f"{path}: {'; '.join(wrong)}. A model with other settings detects something else here: "
            "train it with these, or run it in Detectron2"
        )
    fields: dict[str, Any] = {}
    for key, field in _FIELDS.items():
        if key in values:
            fields[field] = _field(path, key, field, values[key])
    if set(fields) & {*_ANCHORS, "anchor_offset"}:
        fields["cell_anchors"] = None  # also where an old checkpoint has others: as Detectron2 does
    notes = []
    if str(values.get("TEST.AUG.ENABLED")) == "True":
        notes.append(f"{path.name}: TEST.AUG, averaging over sizes and flips, is not done here")
    if unknown := _unknown(values):
        notes.append(
            f"{path.name}: not a setting of Detectron2's own, so not read: {', '.join(unknown)}; "
            "check that none changes detections"
        )
    return Detectron2Settings(
        path,
        fields,
        image_format == "RGB",
        _number(path, values, "MODEL.ROI_HEADS.NUM_CLASSES", 1),
        None if depth is None else _BLOCKS[depth],
        values.get("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        (
            _number(path, values, "INPUT.MIN_SIZE_TEST", 0, 800) or 0,
            _number(path, values, "INPUT.MAX_SIZE_TEST", 1, 1333) or 0,
        ),
        tuple(notes),
    )


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


def _field(path: Path, key: str, field: str, value: Any) -> Any:
    """The value of a field, checked as the configuration does, in the terms of Detectron2."""
    given = value
    if field == "stride_in":
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} is {_short(given)}, expected True or False")
        return "conv1" if value else "conv2"
    nested = isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in value)
    if field in _ANCHORS and nested:
        if len(value) > 1:
            raise InputError(f"{path}: {key} has {len(value)} lists, expected one, for res4")
        value = value[0]
    if isinstance(value, list | tuple):
        value = [float(v) if type(v) is int and abs(v) < 2**53 else v for v in value]
    try:
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
    known = {*_FIELDS, *_ONLY, *_CHECKED}
    names = [printable(k) for k in values if k not in known and not _NO_EFFECT.fullmatch(k)]
    return sorted(names)[:8] + (["..."] if len(names) > 8 else [])


def _short(value: Any) -> str:
    return printable(reprlib.repr(value))
