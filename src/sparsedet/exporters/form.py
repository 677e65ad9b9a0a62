"""What an exported graph looks like from outside, and where its file may be written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, UsageError
from ..files import check_output, is_stream, weights_file
from ..model.detector_config import Config, build_graph
from ..model.graph import MaskOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Inputs, outputs and stored weights of an exported graph. D is `max_detections`.

    Attributes:
        layout: input `input` [1, 3, H, W], or `image` [1, H, W, 3]; BGR, 0..255, float32.
        rows: output `detections` [1, 1, D, 7], or [D, 7].
        dtype: type of the stored weights; biases, all other numbers and the arithmetic are
            float32. float16 rounds weights to 11 bits.
        image_info: add an input `image_info` [1, 3] that nothing reads: Open Model Zoo's accuracy
            checker feeds (height, width, 1) and stops if there is no such input.
        hoist: run the RoI head's first linear layers once on the feature map, before RoIAlign, not
            once for each RoI: the same up to rounding, because both are linear.

    Raises:
        InputError: layout, rows or dtype is none of these.
    """

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    rows: Literal["4d", "2d"] = "4d"
    dtype: Literal["float32", "float16"] = "float32"
    image_info: bool = False
    hoist: bool = False

    def __post_init__(self) -> None:
        for field, values in (
            ("layout", ("NCHW", "NHWC")),
            ("rows", ("4d", "2d")),
            ("dtype", ("float32", "float16")),
        ):
            if getattr(self, field) not in values:
                got = getattr(self, field)
                raise InputError(f"{field} is {got!r}, expected {' or '.join(map(repr, values))}")

    @property
    def input_name(self) -> str:
        return "input" if self.layout == "NCHW" else "image"

    def input_shape(self, config: Config) -> list[int]:
        size = (config.input_height, config.input_width)
        return [1, 3, *size] if self.layout == "NCHW" else [1, *size, 3]

    def output_shapes(self, config: Config) -> dict[str, list[int]]:
        """Of `detections`, and of `masks` [D, h, w] if the model has any."""
        rows = [config.max_detections, 7]
        shapes = {"detections": [1, 1, *rows] if self.rows == "4d" else rows}
        graph = build_graph(config)
        for operation, _ in graph.of_kind(MaskOutput):
            shape = graph.shapes[operation.name]
            shapes["masks"] = [shape.count, *shape.size]
        return shapes


def model_info(config: Config) -> dict[str, str]:
    """Metadata that OpenVINO's Model API reads, all of it strings.

    The first label is the background, whose id no row has; a label's spaces become "_".
    """
    labels = ("background", *(name.replace(" ", "_") for name in config.class_names))
    return {
        "model_type": "SSD",
        "resize_type": "fit_to_window" if config.resize == "letterbox" else "standard",
        "pad_value": "0",
        "reverse_input_channels": "NO",  # OpenVINO's spelling; some releases read no other
        "labels": " ".join(labels),
    }


def require_package(name: str) -> Any:
    """Import the package that a form needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError("export needs: pip install 'sparsedet[export]'") from None


def output_path(path: str | os.PathLike[str], suffix: str, overwrite: bool) -> Path:
    """`path`, checked before the graph is built.

    Raises:
        InputError: the name has another suffix, or the file exists or cannot be written; of an
            .xml also the .bin beside it.
    """
    target = Path(path)
    if suffix == ".onnx" and is_stream(target):  # an OpenVINO model is two files
        return target
    if target.suffix != suffix:
        raise UsageError(f"{target}: the name of {_NAMES[suffix]} ends in {suffix}")
    for file in dict.fromkeys((target, weights_file(target))):
        check_output(file, overwrite=overwrite)
    return target


_NAMES = {".onnx": "an ONNX model", ".xml": "an OpenVINO model"}
