"""The configuration of a model: one frozen dataclass.

Every number on which the two families of existing weights differ (TensorPack, which made the
published network, and Detectron2) is a field here, never a branch elsewhere. This module computes
nothing: `model.c4` makes the graph, `model.boxes` anchors and deltas.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InputError, warn_renamed
from .record import Record

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 detection classes in COCO's category order; label = index + 1."""

# COCO's category_id is 1..90; ten numbers are unused.
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED_IDS)
"""COCO's category_id of the labels 1, 2, ... 80."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ModelConfig(Record):
    """A complete description of a Faster R-CNN with a ResNet C4 backbone.

    Lengths are in pixels of the network input; colours are BGR, 0..255. Paddings are (before,
    after) on both axes; a negative `after` drops the last row and column.
    """

    name: str

    # --- input
    input_height: int = 800
    input_width: int = 1280
    resize: Literal["letterbox", "stretch"] = "letterbox"
    pixel_mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    pixel_std: tuple[float, float, float] = (57.375, 57.12, 58.395)

    # --- backbone (res2, res3, res4) and head (res5)
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    stem_channels: int = 64
    bottleneck_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    stage_channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    stride_in: Literal["conv1", "conv2"] = "conv2"
    stem_padding: tuple[int, int] = (3, 2)
    pool_padding: tuple[int, int] = (1, 0)
    stride_conv1_padding: tuple[int, int] = (0, -1)
    stride_conv2_padding: tuple[int, int] = (1, 0)
    batch_norm_eps: float = 1e-5

    # --- region proposal network
    rpn_channels: int = 1024
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_stride: int = 16
    anchor_offset: float = 0.0
    cell_anchors: tuple[tuple[float, float, float, float], ...] | None = None
    rpn_box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    rpn_pre_nms: int = 6000
    proposals: int = 300
    rpn_nms_threshold: float = 0.7
    rpn_remove_empty: bool = False
    # Caffe's convention, as in OpenVINO's Proposal: a proposal includes its last pixel. Proposals
    # are clipped to the last row and column of the network input, not to its borders, and NMS adds
    # one pixel to both of their sides. Detections are not affected.
    rpn_inclusive: bool = False
    delta_clamp: float = math.log(1333 / 16)

    # --- regions of interest
    roi_size: int = 14
    roi_sampling_ratio: int = 2
    # Positions of a box's samples. "aligned": half a step inside its borders, as RoIAlign of
    # TensorPack and Detectron2. "corners": from corner to corner, where the centres of the feature
    # map's first and last cells are the borders of the network input, as TensorFlow's plain
    # crop_and_resize and OpenVINO's bilinear ROIPooling.
    roi_sampling: Literal["aligned", "corners"] = "aligned"
    class_names: tuple[str, ...] = COCO_NAMES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS
    background: Literal["first", "last"] = "first"
    background_deltas: bool = True
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    # --- output
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    @property
    def border(self) -> int:
        """Value of the pixels beside an image in its network input."""
        return 0

    @property
    def centred(self) -> bool:
        """Whether an image is in the middle of its network input, not in the upper left corner."""
        return False

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, expected: str) -> None:
            if not ok:
                got = reprlib.repr(getattr(self, field))
                raise InputError(f"{field} is {got}, expected {expected}")

        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            numbers = value if isinstance(value, tuple) else (value,)
            if field == "cell_anchors":
                numbers = (0.0,) if value is None else sum(value, ())
            ok = len(numbers) > 0 and all(low <= n <= high for n in numbers)  # NaN never is
            require(ok, field, f"{low:g}..{high:g}")
        require(self.resize in ("letterbox", "stretch"), "resize", "'letterbox' or 'stretch'")
        require(self.stride_in in ("conv1", "conv2"), "stride_in", "'conv1' or 'conv2'")
        require(self.background in ("first", "last"), "background", "'first' or 'last'")
        corners = self.roi_sampling == "corners"
        require(corners or self.roi_sampling == "aligned", "roi_sampling", "'aligned' or 'corners'")
        require(
            not corners or self.roi_sampling_ratio > 0,
            "roi_sampling_ratio",
            "at least 1 with roi_sampling 'corners'",
        )
        require(self.anchors_per_cell <= 1000, "anchor_sizes", "at most 1000 anchors a cell")
        for box in self.cell_anchors or ():
            require(box[0] < box[2] and box[1] < box[3], "cell_anchors", "x0 < x1 and y0 < y1")
        require(self.roi_size % 2 == 0, "roi_size", "an even number")
        # A 1x1 window needs no padding. Its output is added to that of the 3x3, so both must have
        # the same size for every input.
        require(self.stride_conv1_padding[0] == 0, "stride_conv1_padding", "(0, 0) or (0, -1)")
        total = sum(self.stride_conv1_padding) + 2
        require(
            sum(self.stride_conv2_padding) == total,
            "stride_conv2_padding",
            f"two numbers of sum {total} beside that stride_conv1_padding",
        )
        check_names(self.name, self.class_names, self.category_ids)

    @property
    def canvas_height(self) -> int:
        """Deprecated: `input_height`."""
        warn_renamed("canvas_height", "input_height")
        return self.input_height

    @property
    def canvas_width(self) -> int:
        """Deprecated: `input_width`."""
        warn_renamed("canvas_width", "input_width")
        return self.input_width

    @property
    def fill(self) -> tuple[float, float, float]:
        """The pixel, BGR, that normalisation makes zero."""
        return self.pixel_mean

    @property
    def num_classes(self) -> int:
        """Number of object classes, without the background."""
        return len(self.class_names)

    @property
    def anchors_per_cell(self) -> int:
        if self.cell_anchors is not None:
            return len(self.cell_anchors)
        return len(self.anchor_sizes) * len(self.anchor_ratios)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, one per field."""
        return dataclasses.asdict(self)

    def to_stored(self) -> dict[str, Any]:
        """`to_dict` by the names of version 1 of the model file; `from_dict` reads both."""
        values = {_STORED_NAMES.get(key, key): value for key, value in self.to_dict().items()}
        values["resize"] = _STORED_RESIZE.get(self.resize, self.resize)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a configuration from the values of `to_dict` or `to_stored`.

        Lists are accepted for tuples.

        Raises:
            InputError: an unknown key, a missing name, a value of the wrong type or range.
        """
        values = current_names(values)
        hints = get_type_hints(cls)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise InputError(f"unknown configuration key {unknown[0]!r}")
        if "name" not in values:
            raise InputError("the configuration has no 'name'")
        return cls(**{key: coerce(key, value, hints[key]) for key, value in values.items()})


def check_names(name: str, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
    """Check a detector's name and those of its classes: they go to terminals.

    Raises:
        InputError: one has control characters or occurs twice, or ids and names differ in number.
    """

    def require(ok: bool, field: str, got: Any, expected: str) -> None:
        if not ok:
            raise InputError(f"{field} is {reprlib.repr(got)}, expected {expected}")

    names, ids = class_names, category_ids
    require(name.isprintable() and name != "", "name", name, "printable text")
    printable = all(n.isprintable() and n for n in names)
    require(printable, "class_names", names, "printable names")
    once = len(set(names)) == len(names) > 0
    require(once, "class_names", names, "one name or more, none twice")
    require(
        len(set(ids)) == len(ids) == len(names),
        "category_ids",
        ids,
        f"{len(names)} ids, one for each class name, none twice",
    )


_STORED_NAMES = {"input_height": "canvas_height", "input_width": "canvas_width"}
"""Field -> its name in version 1 of the model file and in release 0.1."""

_STORED_RESIZE = {"letterbox": "fit"}


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by the names of its fields, from either set of names.

    Raises:
        InputError: a value is given under both of its names.
    """
    current = {stored: field for field, stored in _STORED_NAMES.items()}
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        field = current.get(key, key)
        if field in renamed:
            raise InputError(f"{key} and {field} are two names of one field, give one of them")
        renamed[field] = value
    for field, stored in _STORED_RESIZE.items():
        if renamed.get("resize") == stored:
            renamed["resize"] = field
    return renamed


def _with_old_names(init: Any) -> Any:
    """`ModelConfig.__init__` that also takes the names of release 0.1, with a warning."""

    @functools.wraps(init)
    def __init__(self: ModelConfig, **values: Any) -> None:
        renamed = current_names(values)
        for old, new in [
            *zip(values, renamed, strict=True),
            (values.get("resize"), renamed.get("resize")),
        ]:
            if old != new:
                warn_renamed(old, new)
        init(self, **renamed)

    return __init__


ModelConfig.__init__ = _with_old_names(ModelConfig.__init__)  # type: ignore[method-assign]


def coerce(key: str, value: Any, hint: Any) -> Any:
    """Convert a JSON value to the type `hint` (JSON has no tuples and writes 1.0 as 1).

    Raises:
        InputError: the value has another type; the message names `key`.
    """
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):  # ... | None
        return None if value is None else coerce(key, value, args[0])
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(coerce(key, v, kind) for v, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is hint or get_origin(hint) is Literal:  # its choices: __post_init__
        return value
    expected = str(hint) if args else hint.__name__
    raise InputError(f"{key} is {reprlib.repr(value)}, expected {expected}")


# Allowed range of each field, and of each member of a tuple (inclusive). A model file may come
# from anywhere, and some of these fields set the size of buffers.
_RANGES: dict[str, tuple[float, float]] = {
    "input_height": (16, 8192), "input_width": (16, 8192),
    "pixel_mean": (-1000, 1000), "pixel_std": (1e-3, 1000),
    "blocks": (1, 1000), "stem_channels": (1, 65536), "bottleneck_channels": (1, 65536),
    "stage_channels": (1, 65536), "stem_padding": (0, 6), "pool_padding": (0, 2),
    "stride_conv1_padding": (-1, 0), "stride_conv2_padding": (0, 2), "batch_norm_eps": (0, 1),
    "rpn_channels": (1, 65536), "anchor_sizes": (1e-3, 1e5), "anchor_ratios": (1e-3, 1e3),
    "anchor_stride": (1, 64), "anchor_offset": (-1, 1), "cell_anchors": (-1e5, 1e5),
    "rpn_box_weights": (1e-3, 1e3), "rpn_pre_nms": (1, 1e6), "proposals": (1, 1e6),
    "rpn_nms_threshold": (0, 1), "delta_clamp": (0, 20), "roi_size": (2, 64),
    "roi_sampling_ratio": (0, 16), "category_ids": (0, 2**53), "box_weights": (1e-3, 1e3),
    "score_threshold": (0, 1), "nms_threshold": (0, 1), "max_detections": (1, 1e6),
}  # fmt: skip
