"""A graph as JSON, in version 2 of the model file; `docs/format.md` describes it.

The reader does not trust its input: kinds and attributes are known, typed and in range, and every
size is bounded, before a graph is made of them.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, get_args, get_type_hints

from ..errors import InputError
from .config import coerce
from .graph import IMAGE, KINDS, Activation, Attributes, Graph, Operation, Pasting, Shape

MOST_OPERATIONS = 10_000
MOST_ELEMENTS = 2**31
"""Elements of one value: 8 GB in float32."""

_RANGES: dict[str, tuple[float, float]] = {
    "mean": (-1000, 1000), "std": (1e-3, 1000),
    "out_channels": (1, 65536), "kernel": (1, 64), "stride": (1, 2), "padding": (-64, 64),
    "dilation": (1, 64), "groups": (1, 65536), "block": (2, 8), "eps": (0, 1),
    "first": (0, 65536), "channels": (1, 65536),
    "cell_anchors": (-1e5, 1e5), "strides": (0, 1024), "box_weights": (1e-3, 1e3),
    "delta_clamp": (0, 20), "pre_nms": (1, 1e6), "count": (1, 1e6), "nms_threshold": (0, 1),
    "scales": (1e-4, 1), "sizes": (1, 1e5), "size": (1, 64), "sampling_ratio": (0, 16),
    "step": (1, 64),
    "canonical_size": (1, 1e5), "canonical_level": (0, 16), "first_level": (0, 16),
    "factor": (0, 64), "bins": (1, 256), "offset": (0, 1),
    "heads": (1, 256), "key": (1, 4096), "score_scale": (1e-6, 1e3),
    "num_classes": (1, 65535), "score_threshold": (0, 1), "max_detections": (1, 1e6),
    "min_size": (0, 1e4), "anchors": (1e-2, 1e5),
}  # fmt: skip
"""Range of each attribute, and of each number in it (inclusive)."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": get_args(Activation),
    "boxes": ("distances", "centre", "anchor"),
    "sampling": ("aligned", "legacy", "corners"),
    "background": ("first", "last"),
    "pasting": get_args(Pasting),
}


def to_json(graph: Graph) -> dict[str, Any]:
    """JSON-ready values; attributes that have their default are left out."""
    operations = []
    for operation in graph.operations:
        attributes = {}
        for field in dataclasses.fields(operation.attributes):
            value = getattr(operation.attributes, field.name)
            if value != field.default:
                attributes[field.name] = value
        operations.append([operation.kind, operation.name, list(operation.inputs), attributes])
    image = graph.image
    return {
        "inputs": [[IMAGE, image.channels, image.height, image.width]],
        "operations": operations,
        "outputs": [graph.output],
    }


def from_json(values: Any) -> Graph:
    """The graph of `to_json`'s values.

    Raises:
        InputError: an unknown kind or attribute, a value of the wrong type or range, a name that
            is used before it is defined, a shape that does not fit, or a value that would have
            more than `MOST_ELEMENTS` elements.
    """
    _expect(isinstance(values, dict), "the graph is no JSON object")
    if unknown := sorted(set(values) ^ {"inputs", "operations", "outputs"}):
        raise InputError(f"the graph has an unknown or no key {unknown[0]!r}")
    inputs, listed = values["inputs"], values["operations"]
    single = isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], list)
    _expect(single and len(inputs[0]) == 4, "the graph has not one input [name, 3, height, width]")
    name, channels, height, width = inputs[0]
    sizes = [type(n) is int and 16 <= n <= 8192 for n in (height, width)]
    _expect(name == IMAGE and channels == 3 and all(sizes), "the graph's input is no image")
    _expect(isinstance(listed, list) and listed != [], "the graph has no operations")
    _expect(len(listed) <= MOST_OPERATIONS, f"the graph has more than {MOST_OPERATIONS} operations")
    graph = Graph(Shape("image", 3, height, width), tuple(_operation(entry) for entry in listed))
    _expect(values["outputs"] == [graph.output], "the graph's output is not its last operation")
    for name, shape in graph.shapes.items():
        elements = shape.channels * shape.height * shape.width * shape.count
        if elements > MOST_ELEMENTS:
            raise InputError(f"value {name!r} of the graph would have {elements:,} elements")
    return graph


def _expect(ok: bool, otherwise: str) -> None:
    if not ok:
        raise InputError(otherwise)


def _operation(entry: Any) -> Operation:
    shaped = isinstance(entry, list) and len(entry) == 4
    _expect(shaped, "an operation of the graph is not [kind, name, inputs, attributes]")
    kind, name, inputs, attributes = entry
    _expect(isinstance(name, str) and name.isprintable() and name != "", "an operation has no name")
    try:
        _expect(isinstance(kind, str) and kind in KINDS, f"unknown kind {kind!r}")
        texts = isinstance(inputs, list) and all(isinstance(i, str) for i in inputs)
        _expect(texts and inputs != [], "its inputs are not a list of names")
        _expect(isinstance(attributes, dict), "its attributes are no JSON object")
        return Operation(name, tuple(inputs), _attributes(kind, attributes))
    except InputError as error:
        raise InputError(f"operation {name!r} of the graph: {error}") from None


@cache  # evaluating hints takes most of the time in which a graph is read
def _hints(kind: str) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(KINDS[kind])}
    return {name: hint for name, hint in get_type_hints(KINDS[kind]).items() if name in names}


def _attributes(name: str, values: dict[str, Any]) -> Attributes:
    kind, hints = KINDS[name], _hints(name)
    if unknown := sorted(set(values) - set(hints)):
        raise InputError(f"unknown attribute {unknown[0]!r}")
    known = {}
    for key, value in values.items():
        known[key] = coerce(key, value, hints[key])
        if hints[key] is not bool:
            _check(key, known[key])
    try:
        return kind(**known)
    except TypeError:
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        raise InputError(f"attribute {min(needed - set(known))!r} is missing") from None


def _numbers(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [value]


def _check(key: str, value: Any) -> None:
    if key in _CHOICES:
        choices = ", ".join(_CHOICES[key])
        _expect(value in _CHOICES[key], f"{key} is {value!r}, expected one of {choices}")
    if key in _RANGES:
        low, high = _RANGES[key]
        numbers = _numbers(value)
        inside = numbers != [] and all(low <= number <= high for number in numbers)
        _expect(inside, f"{key} is {value!r}, expected {low:g}..{high:g}")
    if key in ("layer", "layers"):
        names = (value,) if key == "layer" else value
        ok = len(names) == 1 and all(name.isprintable() and name for name in names)
        _expect(ok, f"{key} is {value!r}, expected one name")
