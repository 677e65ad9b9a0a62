"""What weights of Detectron2's models with a feature pyramid do not say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

from ...errors import InputError
from ...model.config import coerce

Quad = tuple[float, float, float, float]
Lists = tuple[tuple[float, ...], ...]


_RANGES: dict[str, tuple[float, float]] = {
    "pixel_mean": (-1000, 1000), "pixel_std": (1e-3, 1000), "anchor_sizes": (1e-3, 1e4),
    "anchor_ratios": (1e-3, 1e3), "anchor_offset": (-1, 1), "rpn_box_weights": (1e-3, 1e3),
    "rpn_pre_nms": (1, 1e6), "proposals": (1, 1e6), "rpn_nms_threshold": (0, 1),
    "roi_size": (1, 64), "roi_sampling_ratio": (0, 16), "mask_roi_size": (1, 64),
    "mask_roi_sampling_ratio": (0, 16), "box_weights": (1e-3, 1e3), "pre_nms": (1, 1e6),
    "score_threshold": (0, 1), "nms_threshold": (0, 1), "max_detections": (1, 1e6),
    "min_size": (32, 8192), "max_size": (32, 8192),
}  # fmt: skip


def _numbers(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [] if value is None else [value]


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidSettings:
    """Settings of a Faster R-CNN, Mask R-CNN or RetinaNet; the defaults are the model zoo's.

    Attributes:
        stride_in: of `ResNet`.
        pixel_mean, pixel_std: BGR, 0..255.
        anchor_sizes, anchor_ratios: a list for each level, or one for all.
        anchor_offset: of the anchors' centre, in cells.
        roi_size: None: read from the weights.
        roi_sampling_ratio and other names of `FasterRCNNFPN`, `OneStage` and `ModelConfig`: as
            there; `pre_nms` is RetinaNet's.
        min_size, max_size: of the resized image's shorter and longer side, pixels.
        class_names: None: COCO's for 80 classes, else numbers.
    """

    stride_in: Literal["conv1", "conv2"] = "conv1"
    pixel_mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    anchor_sizes: Lists = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    anchor_ratios: Lists = ((0.5, 1.0, 2.0),)
    anchor_offset: float = 0.0
    rpn_box_weights: Quad = (1.0, 1.0, 1.0, 1.0)
    rpn_pre_nms: int = 1000
    proposals: int = 1000
    rpn_nms_threshold: float = 0.7
    roi_size: int | None = None
    roi_sampling_ratio: int = 0
    mask_roi_size: int = 14
    mask_roi_sampling_ratio: int = 0
    box_weights: Quad = (10.0, 10.0, 5.0, 5.0)
    pre_nms: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: int = 800
    max_size: int = 1333
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.stride_in not in ("conv1", "conv2"):
            raise InputError(f"stride_in is {self.stride_in!r}, expected 'conv1' or 'conv2'")
        for name, (low, high) in _RANGES.items():
            numbers = _numbers(getattr(self, name))
            if not all(low <= number <= high for number in numbers):  # NaN never is
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {low:g}..{high:g}")
        for name in ("anchor_sizes", "anchor_ratios"):
            lists = getattr(self, name)
            if not lists or not all(1 <= len(values) <= 100 for values in lists):
                raise InputError(f"{name} is {lists!r}, expected lists of 1..100 numbers")
        if self.min_size > self.max_size:
            raise InputError(f"min_size is {self.min_size}, above max_size, {self.max_size}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PyramidSettings:
        """Settings from JSON values; lists are accepted for tuples.

        Raises:
            InputError: an unknown key, or a value of the wrong type or range.
        """
        hints = get_type_hints(cls)
        if unknown := sorted(set(values) - set(hints)):
            names = ", ".join(field.name for field in fields(cls))
            raise InputError(f"{unknown[0]!r} is no setting of a model with a pyramid: {names}")
        return cls(**{key: coerce(key, value, hints[key]) for key, value in values.items()})


RETINANET = PyramidSettings(
    anchor_sizes=tuple(
        tuple(side * 2 ** (part / 3) for part in range(3)) for side in (32, 64, 128, 256, 512)
    ),
    box_weights=(1.0, 1.0, 1.0, 1.0),
)
"""The settings of the model zoo's RetinaNet."""
