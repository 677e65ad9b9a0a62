"""Names that people choose among: models, backends, precisions; the command line needs no more."""

from __future__ import annotations

from typing import Literal, get_args

EMBEDDED = {
    "picodet-s": "picodet-s-416-sparse.safetensors",
    "r50half-c4": "r50half-c4-sparse-60.safetensors",
}
"""The embedded models: name -> model file inside the package."""

DEFAULT_MODEL = "picodet-s"
"""The embedded model that runs where none is named."""

Name = Literal["native", "openvino", "onnxruntime", "torch"]
"""A backend, see `backends.base.BACKENDS`."""

NAMES: tuple[Name, ...] = get_args(Name)

Precision = Literal["f32", "bf16", "int8", "full", "close", "fastest", "auto"]
"""A format, or a promise: "full" gives results of float32's accuracy, "close" takes bf16 too,
"fastest" int8 too where the model has clipping thresholds. "auto" is another name of "close". See
`engine.precision`."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
