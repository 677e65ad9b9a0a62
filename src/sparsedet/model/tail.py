"""The tail of a network: steps on arrays that bring the values of a graph into its outputs.

A graph of another project ends in reshapes, transposes, joins and a few element-wise steps. They
run in numpy after the graph. In a file they are JSON; whoever reads it trusts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .record import Record

F32 = NDArray[np.float32]
Sizes = tuple[int, ...]

MOST_STEPS = 10_000
MOST_NUMBERS = 2**27
"""Elements of one array: 512 MB."""


def _sigmoid(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _softmax(x: F32, axis: int) -> F32:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)


UNARY: dict[str, Callable[[F32], F32]] = {
    "sigmoid": _sigmoid,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "negative": np.negative,
    "absolute": np.absolute,
    "tanh": np.tanh,
    "cos": np.cos,
    "sin": np.sin,
    "relu": lambda x: np.maximum(x, 0),
}
BINARY: dict[str, Callable[[F32, F32], F32]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
REDUCING: dict[str, Callable[..., F32]] = {"mean": np.mean, "sum": np.sum, "max": np.max}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TailStep(Record):
    """One step; it makes one array, which has its name.

    Attributes:
        kind: "constant" (a tensor of the model, of the name), "reshape", "transpose", "concat",
            "slice", "softmax", "matmul", or a key of `UNARY`, `BINARY` and `REDUCING`.
        inputs: values of the graph, maps [1, C, H, W], or arrays of earlier steps.
        numbers: of "constant" and "reshape" the shape; of "transpose" the order of the axes; of
            "concat" and "softmax" the axis; of "slice" axis, start, stop, step; of `REDUCING`
            whether axes are kept as 1, then the axes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    numbers: tuple[int, ...] = ()


def _expect(ok: bool, otherwise: str) -> None:
    if not ok:
        raise InputError(otherwise)


def _axis(axis: int, shape: Sizes) -> int:
    _expect(0 <= axis < len(shape), f"has axis {axis} of an array of {len(shape)} axes")
    return axis


def _joined(shapes: Sequence[Sizes], axis: int) -> Sizes:
    first = shapes[0]
    _axis(axis, first)
    for other in shapes[1:]:
        alike = len(other) == len(first) and all(
            a == b for i, (a, b) in enumerate(zip(first, other, strict=True)) if i != axis
        )
        _expect(alike, "joins arrays that do not fit each other")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _product(a: Sizes, b: Sizes) -> Sizes:
    _expect(len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2], "multiplies matrices that do not fit")
    return (*_spread(a[:-2], b[:-2]), a[-2], b[-1])


def _spread(*shapes: Sizes) -> Sizes:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise InputError("has arrays that do not fit each other") from None


def step_shape(step: TailStep, shapes: Sequence[Sizes]) -> Sizes:
    """The shape of what a step makes.

    Raises:
        InputError: the step does not fit its inputs.
    """
    counts = {"constant": 0, "matmul": 2, **dict.fromkeys(BINARY, 2)}
    if step.kind != "concat":
        _expect(len(shapes) == counts.get(step.kind, 1), f"has {len(shapes)} inputs")
    numbers = step.numbers
    if step.kind in ("constant", "reshape"):
        _expect(all(n >= 1 for n in numbers), "has an empty shape")
        same = step.kind == "constant" or math.prod(numbers) == math.prod(shapes[0])
        _expect(same, "has a shape of another number of elements")
        return numbers
    if step.kind in BINARY:
        return _spread(*shapes)
    if step.kind == "matmul":
        return _product(*shapes)
    _expect(len(shapes) >= 1, "has no inputs")
    shape = shapes[0]
    if step.kind == "transpose":
        _expect(sorted(numbers) == list(range(len(shape))), "has an order that its axes do not fit")
        return tuple(shape[i] for i in numbers)
    if step.kind == "concat":
        _expect(len(numbers) == 1, "has not one axis")
        return _joined(shapes, numbers[0])
    if step.kind == "softmax":
        _expect(len(numbers) == 1, "has not one axis")
        _axis(numbers[0], shape)
        return shape
    if step.kind == "slice":
        _expect(len(numbers) == 4, "has not four numbers")
        axis, start, stop, stride = numbers
        length = shape[_axis(axis, shape)]
        _expect(0 <= start < stop <= length and stride >= 1, "reaches beyond its input")
        return (*shape[:axis], len(range(start, stop, stride)), *shape[axis + 1 :])
    if step.kind in REDUCING:
        _expect(len(numbers) >= 2 and numbers[0] in (0, 1), "has no axes")
        axes = {_axis(axis, shape) for axis in numbers[1:]}
        kept = (1 if i in axes else n for i, n in enumerate(shape) if numbers[0] or i not in axes)
        return tuple(kept)
    _expect(step.kind in UNARY and not numbers, f"has unknown kind {step.kind!r}")
    return shape


def step_value(step: TailStep, inputs: Sequence[F32]) -> F32:
    """What a step makes of its inputs; it fits them."""
    kind, numbers = step.kind, step.numbers
    if kind in UNARY:
        value = UNARY[kind](inputs[0])
    elif kind in BINARY:
        value = BINARY[kind](inputs[0], inputs[1])
    elif kind in REDUCING:
        value = REDUCING[kind](inputs[0], axis=numbers[1:], keepdims=bool(numbers[0]))
    elif kind == "matmul":
        value = np.matmul(inputs[0], inputs[1])
    elif kind == "reshape":
        value = inputs[0].reshape(numbers)
    elif kind == "transpose":
        value = inputs[0].transpose(numbers)
    elif kind == "concat":
        value = np.concatenate(inputs, axis=numbers[0])
    elif kind == "softmax":
        value = _softmax(inputs[0], numbers[0])
    else:
        axis, start, stop, stride = numbers
        value = inputs[0][(slice(None),) * axis + (slice(start, stop, stride),)]
    return np.asarray(value, np.float32)


def tail_shapes(steps: Sequence[TailStep], values: Mapping[str, Sizes]) -> dict[str, Sizes]:
    """The shape of every array, values of the graph included.

    Raises:
        InputError: a name occurs twice or is used before it is defined, a step does not fit its
            inputs, or an array would have more than `MOST_NUMBERS` elements.
    """
    _expect(len(steps) <= MOST_STEPS, f"the tail has more than {MOST_STEPS} steps")
    shapes = dict(values)
    for step in steps:
        _expect(step.name not in shapes, f"the network has two values {step.name!r}")
        for source in step.inputs:
            known = source in shapes
            _expect(known, f"step {step.name!r} reads {source!r}, which no earlier makes")
        try:
            shape = step_shape(step, [shapes[name] for name in step.inputs])
        except InputError as error:
            raise InputError(f"step {step.name!r} {error}") from None
        if math.prod(shape) > MOST_NUMBERS:
            raise InputError(f"value {step.name!r} would have {math.prod(shape):,} elements")
        shapes[step.name] = shape
    return shapes


def run_tail(
    steps: Sequence[TailStep],
    values: Mapping[str, F32],
    constants: Mapping[str, F32],
    wanted: Sequence[str],
) -> list[F32]:
    """The wanted arrays.

    Args:
        steps: they fit the values (`tail_shapes`).
        values: of the graph.
        constants: tensors of the steps of kind "constant", by name.
        wanted: values of the graph or steps.
    """
    found = dict(values)
    for step in steps:
        if step.kind == "constant":
            found[step.name] = np.asarray(constants[step.name], np.float32)
        else:
            found[step.name] = step_value(step, [found[name] for name in step.inputs])
    return [found[name] for name in wanted]


def steps_to_json(steps: Sequence[TailStep]) -> list[list[Any]]:
    """JSON-ready values."""
    return [[s.kind, s.name, list(s.inputs), list(s.numbers)] for s in steps]


def steps_from_json(values: Any) -> tuple[TailStep, ...]:
    """The steps of `steps_to_json`'s values; `tail_shapes` checks how they fit.

    Raises:
        InputError: the values are no list of steps.
    """
    _expect(isinstance(values, list) and len(values) <= MOST_STEPS, "the tail is no list of steps")
    steps = []
    for entry in values:
        four = isinstance(entry, list) and len(entry) == 4
        _expect(four, "a step of the tail is not [kind, name, inputs, numbers]")
        kind, name, inputs, numbers = entry
        texts = (
            isinstance(kind, str) and isinstance(name, str) and name.isprintable() and name != ""
        )
        texts = texts and isinstance(inputs, list) and all(isinstance(i, str) for i in inputs)
        _expect(texts, "a step of the tail has no name, kind or inputs")
        whole = isinstance(numbers, list) and all(type(n) is int for n in numbers)
        small = whole and len(numbers) <= 32 and all(0 <= n <= MOST_NUMBERS for n in numbers)
        _expect(small, f"step {name!r} has numbers that are out of range")
        steps.append(TailStep(kind, name, tuple(inputs), tuple(numbers)))
    return tuple(steps)
