"""What a node makes of constants: shape arithmetic, and whatever else an exporter left to be done.

Every size is bounded before an array is made, and whole numbers that leave int64 are an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .program import Array, OnnxNode
from .quantised import dequantized, quantized

MOST_ELEMENTS = 2**26
"""Of an array that is computed: larger ones are in the file, if at all."""
_INT64 = np.iinfo(np.int64)


def _bounded(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if len(sizes) > 16 or min(sizes, default=0) < 0 or math.prod(sizes) > MOST_ELEMENTS:
        raise ValueError(f"would make an array of shape {list(sizes)[:16]}")
    return sizes


def _as_int64(exact: Array) -> Array:
    """Python's whole numbers as int64."""
    numbers = exact.reshape(-1)
    if numbers.size and not _INT64.min <= min(numbers) <= max(numbers) <= _INT64.max:
        raise ValueError("makes a whole number that int64 cannot hold")
    return exact.astype(np.int64)


def _binary(
    on_floats: Callable[..., Any], on_integers: Callable[[Any, Any], Any] | None = None
) -> Callable[..., Array]:
    def run(node: OnnxNode, a: Array, b: Array) -> Array:
        _bounded(np.broadcast_shapes(a.shape, b.shape))
        if a.dtype.kind in "iu" and b.dtype.kind in "iu":
            exact = np.asarray((on_integers or on_floats)(a.astype(object), b.astype(object)))
            return _as_int64(exact).astype(np.result_type(a, b))
        return np.asarray(on_floats(a, b)).astype(np.result_type(a, b), copy=False)

    return run


def _divided(a: Any, b: Any) -> Any:
    """Whole numbers, rounded towards zero."""
    if (np.asarray(b) == 0).any():
        raise ValueError("divides by zero")
    quotient = abs(a) // abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _compared(function: Callable[[Array, Array], Any]) -> Callable[..., Array]:
    return lambda node, a, b: np.asarray(function(a, b))


def _unary(function: Callable[[Array], Any]) -> Callable[..., Array]:
    return lambda node, x: np.asarray(function(x)).astype(x.dtype, copy=False)


def _axes(node: OnnxNode, given: Array | None, dims: int) -> tuple[int, ...]:
    """The axes that a node names, from an input or an attribute; default: all."""
    named = given.reshape(-1).tolist() if given is not None else node.attributes.get("axes")
    axes = range(dims) if named is None else named
    return tuple(axis_of(int(axis), dims) for axis in axes)


def axis_of(axis: int, dims: int) -> int:
    """An axis, counted from the first one.

    Raises:
        ValueError: there is no such axis.
    """
    if not -dims <= axis < dims:
        raise ValueError(f"has axis {axis} of {dims}")
    return axis % dims


def reshaped(node: OnnxNode, shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The shape that Reshape makes: 0 keeps a length, -1 is what is left.

    Raises:
        ValueError: it has another number of elements.
    """
    keep = not node.attributes.get("allowzero", 0)
    sizes = [
        shape[i] if n == 0 and keep and i < len(shape) else int(n) for i, n in enumerate(wanted)
    ]
    count = math.prod(shape)
    if sizes.count(-1) == 1:
        known = math.prod(n for n in sizes if n != -1)
        if known > 0 and count % known == 0:
            sizes[sizes.index(-1)] = count // known
    if min(sizes, default=0) < 0 or math.prod(sizes) != count:
        raise ValueError(f"makes the shape {list(wanted)[:16]} of {list(shape)}")
    return tuple(sizes)


def sliced(
    node: OnnxNode, shape: Sequence[int], parts: Sequence[Array | None]
) -> list[tuple[int, int, int, int]]:
    """Of each axis that Slice cuts: axis, start, stop, step.

    Raises:
        ValueError: the slice runs backwards, or is none.
    """
    starts, stops, axes, steps = (
        [int(n) for n in p.reshape(-1)] if p is not None else None for p in (*parts, None, None)[:4]
    )
    if starts is None or stops is None:
        raise ValueError("is cut at places that are not constant")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(axes) == len(steps):
        raise ValueError("has numbers that do not fit each other")
    found = []
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        axis = axis_of(axis, len(shape))
        if step < 1:
            raise ValueError(f"has the step {step}")
        first, last, _ = slice(start, stop, step).indices(shape[axis])
        found.append((axis, first, last, step))
    return found


def _slice(node: OnnxNode, x: Array, *parts: Array | None) -> Array:
    for axis, start, stop, step in sliced(node, x.shape, parts):
        x = x[(slice(None),) * axis + (slice(start, stop, step),)]
    return x


def _gather(node: OnnxNode, x: Array, index: Array) -> Array:
    axis = axis_of(node.attributes.get("axis", 0), x.ndim)
    _bounded((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    if index.size and not -x.shape[axis] <= index.min() <= index.max() < x.shape[axis]:
        raise ValueError("reads beyond its input")
    return np.asarray(np.take(x, index.astype(np.int64), axis=axis))


def _squeeze(node: OnnxNode, x: Array, axes: Array | None = None) -> Array:
    named = axes is not None or "axes" in node.attributes
    where = _axes(node, axes, x.ndim) if named else None
    return np.squeeze(x, axis=where)


def _unsqueeze(node: OnnxNode, x: Array, axes: Array | None = None) -> Array:
    named = axes.reshape(-1).tolist() if axes is not None else node.attributes["axes"]
    return np.expand_dims(x, tuple(int(a) for a in named))


def _range(node: OnnxNode, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (x.reshape(-1)[0].item() for x in (start, limit, delta))
    if step == 0:
        raise ValueError("has the step 0")
    _bounded((max(math.ceil((last - first) / step), 0),))
    return np.arange(first, last, step).astype(start.dtype)


def _constant(node: OnnxNode) -> Array:
    for key, value in node.attributes.items():
        if key == "value":
            return np.asarray(value)
        if key.startswith("value_"):
            dtype = np.int64 if "int" in key else np.float32
            return np.asarray(value, dtype)
    raise ValueError("holds no numbers")


def _filled(node: OnnxNode, shape: Array) -> Array:
    value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
    return np.full(_bounded(shape.reshape(-1).tolist()), value[0])


def _cast(node: OnnxNode, x: Array) -> Array:
    types = {1: "f4", 10: "f2", 11: "f8", 6: "i4", 7: "i8", 9: "?", 2: "u1", 3: "i1", 12: "u4"}
    to = node.attributes.get("to")
    if to not in types:
        raise ValueError(f"casts to type {to}")
    return x.astype(types[to])


def _reduced(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(node: OnnxNode, x: Array, axes: Array | None = None) -> Array:
        keep = bool(node.attributes.get("keepdims", 1))
        where = _axes(node, axes, x.ndim)
        if x.dtype.kind in "iu" and function is not np.mean:
            exact = np.asarray(function(x.astype(object), axis=where, keepdims=keep), object)
            return _as_int64(exact).astype(x.dtype)
        return np.asarray(function(x, axis=where, keepdims=keep)).astype(x.dtype, copy=False)

    return run


def _expand(node: OnnxNode, x: Array, shape: Array) -> Array:
    wanted = [int(n) for n in shape.reshape(-1)]
    return np.broadcast_to(x, _bounded(np.broadcast_shapes(x.shape, _bounded(wanted)))).copy()


def _tile(node: OnnxNode, x: Array, repeats: Array) -> Array:
    counts = [int(n) for n in repeats.reshape(-1)]
    if len(counts) != x.ndim:
        raise ValueError("has another number of repeats than axes")
    _bounded([n * count for n, count in zip(x.shape, counts, strict=True)])
    return np.tile(x, counts)


def _concat(node: OnnxNode, *arrays: Array) -> Array:
    axis = axis_of(node.attributes["axis"], arrays[0].ndim)
    _bounded((sum(a.size for a in arrays),))
    return np.concatenate(arrays, axis=axis)


def _clip(node: OnnxNode, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    least = node.attributes.get("min") if low is None else low.reshape(-1)[0]
    most = node.attributes.get("max") if high is None else high.reshape(-1)[0]
    if least is not None:
        x = np.maximum(x, np.asarray(least, x.dtype))
    return x if most is None else np.minimum(x, np.asarray(most, x.dtype))


def _hardsigmoid(node: OnnxNode, x: Array) -> Array:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return np.asarray(np.clip(alpha * x + beta, 0, 1), x.dtype)


def _erf(x: Array) -> Array:
    return np.asarray([math.erf(v) for v in x.reshape(-1).tolist()], np.float64).reshape(x.shape)


def _sigmoid(x: Array) -> Any:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.astype(np.float64)))


def _gelu(node: OnnxNode, x: Array) -> Array:
    if node.attributes.get("approximate", "none") != "none":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)), x.dtype)
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))), x.dtype)


def _matmul(node: OnnxNode, a: Array, b: Array) -> Array:
    if a.ndim < 1 or b.ndim < 1 or a.size * b.shape[-1] > 2**30:
        raise ValueError("multiplies constants that are too large")
    return np.asarray(np.matmul(a, b))


def _where(node: OnnxNode, condition: Array, a: Array, b: Array) -> Array:
    _bounded(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition, a, b)


EVALUATE: dict[str, Callable[..., Array]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(np.divide, _divided),
    "Mod": _binary(np.fmod, lambda a, b: a % b),
    "Pow": lambda node, a, b: np.power(a.astype(np.float64), b).astype(a.dtype),
    "Min": lambda node, *xs: np.asarray(np.minimum.reduce(np.broadcast_arrays(*xs))),
    "Max": lambda node, *xs: np.asarray(np.maximum.reduce(np.broadcast_arrays(*xs))),
    "Equal": _compared(np.equal),
    "Greater": _compared(np.greater),
    "GreaterOrEqual": _compared(np.greater_equal),
    "Less": _compared(np.less),
    "LessOrEqual": _compared(np.less_equal),
    "And": _compared(np.logical_and),
    "Or": _compared(np.logical_or),
    "Not": lambda node, x: np.logical_not(x),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.round),
    "Reciprocal": _unary(lambda x: 1 / x),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Tanh": _unary(np.tanh),
    "Cos": _unary(np.cos),
    "Sin": _unary(np.sin),
    "Erf": _unary(_erf),
    "Sigmoid": _unary(_sigmoid),
    "Softplus": _unary(lambda x: np.logaddexp(x, 0)),
    "HardSigmoid": _hardsigmoid,
    "HardSwish": lambda node, x: np.asarray(x * np.clip(x / 6 + 0.5, 0, 1), x.dtype),
    "Gelu": _gelu,
    "Clip": _clip,
    "Identity": lambda node, x: x,
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _matmul,
    "QuantizeLinear": quantized,
    "DequantizeLinear": dequantized,
    "Range": _range,
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "Reshape": lambda node, x, shape: x.reshape(
        reshaped(node, x.shape, shape.reshape(-1).tolist())
    ),
    "Flatten": lambda node, x: x.reshape(
        math.prod(x.shape[: node.attributes.get("axis", 1)]) if x.size else 0, -1
    ),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": lambda node, x: np.transpose(x, node.attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""Kind of node -> function of the node and its inputs; an input that is left out is None."""


def evaluate(node: OnnxNode, inputs: Sequence[Array | None]) -> Array:
    """What a node makes of constants; not of nodes with several outputs.

    Raises:
        ValueError: the constants do not fit, or the result would be too large.
    """
    try:
        return np.asarray(EVALUATE[node.op](node, *inputs))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError) as error:
        raise ValueError(f"has constants that do not fit ({str(error)[:100]})") from None
