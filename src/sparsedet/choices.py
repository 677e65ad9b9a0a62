"""Names that people choose among: backends and precisions; the command line needs no more."""

from __future__ import annotations

from typing import Literal, get_args

Name = Literal["native", "openvino", "onnxruntime", "torch"]
"""A backend, see `backends.base.BACKENDS`."""

NAMES: tuple[Name, ...] = get_args(Name)

Precision = Literal["f32", "bf16", "int8", "full", "close", "fastest", "auto"]
"""A format, or a promise: "full" gives results of float32's accuracy, "close" takes bf16 too,
"fastest" int8 too where the model has clipping thresholds. "auto" is another name of "close". See
`engine.precision`."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
