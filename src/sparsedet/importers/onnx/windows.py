"""The attributes of convolutions and pools, with everything that ONNX leaves out said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .program import Array, Sizes

Attributes = Mapping[str, Any]


def _two(at: Attributes, key: str, default: int) -> tuple[int, int]:
    values = at.get(key) or [default, default]
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"has {key} {list(values)[:8]}, expected two numbers")
    return int(values[0]), int(values[1])


def _padding(at: Attributes, shape: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Sizes:
    """Top, left, bottom, right."""
    auto = at.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = at.get("pads") or [0, 0, 0, 0]
        if len(pads) != 4:
            raise ValueError(f"has pads {list(pads)[:8]}, expected four numbers")
        return tuple(int(n) for n in pads)
    if auto == "VALID":
        return 0, 0, 0, 0
    sides = []
    for i in range(2):
        out = -(-shape[2 + i] // stride[i])
        total = max((out - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - shape[2 + i], 0)
        less = total // 2
        sides.append((less, total - less) if auto == "SAME_UPPER" else (total - less, less))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _lengths(shape: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    return tuple(
        (shape[2 + i] + padding[i] + padding[2 + i] - (kernel[i] - 1) * dilation[i] - 1)
        // stride[i]
        + 1
        for i in range(2)
    )


def _expect_map(shape: Sizes) -> None:
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(f"reads an array of shape {list(shape)}, expected a map [1, C, H, W]")


def convolution(at: Attributes, x: Sizes, weight: Sizes) -> tuple[dict[str, Any], Sizes]:
    """Attributes and output shape of a convolution with weights [out, in / groups, rows, columns].

    Raises:
        ValueError: they do not fit each other.
    """
    _expect_map(x)
    groups = int(at.get("group", 1))
    if len(weight) != 4 or groups < 1 or weight[1] * groups != x[1] or weight[0] % groups:
        raise ValueError(f"has weights of shape {list(weight)} in {groups} groups for {list(x)}")
    kernel = weight[2], weight[3]
    if at.get("kernel_shape") and tuple(at["kernel_shape"]) != kernel:
        raise ValueError(f"has weights of shape {list(weight)}, not of its kernel_shape")
    stride, dilation = _two(at, "strides", 1), _two(at, "dilations", 1)
    padding = _padding(at, x, kernel, stride, dilation)
    values: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    values |= {"dilation": dilation, "groups": groups}
    return values, (1, weight[0], *_lengths(x, kernel, stride, padding, dilation))


def transposed_convolution(at: Attributes, x: Sizes, weight: Sizes) -> tuple[dict[str, Any], Sizes]:
    """Attributes and output shape of a transposed convolution whose windows do not overlap.

    Args:
        weight: shape of its weights, [in, out, rows, columns].

    Raises:
        ValueError: they do not fit each other, or it is another one, which does not run here.
    """
    _expect_map(x)
    if len(weight) != 4 or weight[0] != x[1]:
        raise ValueError(f"has weights of shape {list(weight)} for {list(x)}")
    block, kernel = _two(at, "strides", 1), weight[2:]
    plain = at.get("group", 1) == 1 and at.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    plain = plain and not any([*(at.get("pads") or []), *(at.get("output_padding") or [])])
    plain = plain and _two(at, "dilations", 1) == (1, 1) and not at.get("output_shape")
    if not plain or kernel != block or block[0] != block[1] or not 2 <= block[0] <= 8:
        raise ValueError(
            f"has the window {kernel[0]}x{kernel[1]} and strides {block[0]}x{block[1]}; of "
            "transposed convolutions those of 2x2 to 8x8 run here whose strides are as large, "
            "without padding and groups"
        )
    return {"block": block[0]}, (1, weight[1], x[2] * block[0], x[3] * block[0])


def pool(at: Attributes, x: Sizes, *, average: bool) -> tuple[dict[str, Any], Sizes]:
    """Attributes and output shape of a pool.

    Windows that ceil_mode adds reach beyond the padding; there the padding grows.

    Raises:
        ValueError: they do not fit each other, or it is none that runs here.
    """
    _expect_map(x)
    kernel, stride = _two(at, "kernel_shape", 1), _two(at, "strides", 1)
    dilation = _two(at, "dilations", 1)
    padding = list(_padding(at, x, kernel, stride, dilation))
    if dilation != (1, 1) or kernel[0] != kernel[1] or stride[0] != stride[1]:
        raise ValueError(
            f"has the window {kernel[0]}x{kernel[1]}, strides {stride} and dilations {dilation}; "
            "only square windows without dilation run here"
        )
    counts = bool(at.get("count_include_pad", 0)) and any(padding)
    if at.get("ceil_mode", 0):
        for i in range(2):
            room = x[2 + i] + padding[i] + padding[2 + i] - kernel[i]
            out = -(-room // stride[i]) + 1
            # A window that begins in the padding behind is none.
            if (out - 1) * stride[i] >= x[2 + i] + padding[i]:
                out -= 1
            more = (out - 1) * stride[i] - room
            if more > 0 and counts:
                raise ValueError("counts padding, and has windows that reach beyond it")
            padding[2 + i] += max(more, 0)
    sizes = _lengths(x, kernel, stride, tuple(padding), dilation)
    values = {"kernel": kernel[0], "stride": stride[0], "padding": tuple(padding)}
    return values | {"count_padding": counts or not any(padding)}, (*x[:2], *sizes)


def resized(
    at: Attributes, x: Sizes, scales: Array | None, sizes: Array | None, old: bool
) -> Sizes:
    """The shape that Resize (or the old Upsample) makes: the nearest cell, by a whole factor.

    Raises:
        ValueError: it resizes otherwise.
    """
    wanted = None
    if sizes is not None and sizes.size:
        wanted = [int(n) for n in sizes]
    elif scales is not None and scales.size:
        wanted = [math.floor(n * float(s)) for n, s in zip(x, scales, strict=True)]
    if wanted is None or len(wanted) != 4 or len(x) != 4:
        raise ValueError("resizes to a size that is not constant")
    factor = wanted[2] // max(x[2], 1)
    whole = wanted == [*x[:2], x[2] * factor, x[3] * factor] and factor >= 1
    place = at.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    # Where cells are copied whole, all these read the cell floor(position / factor).
    mode, rounding = at.get("mode", "nearest"), at.get("nearest_mode", "round_prefer_floor")
    plain = (place == "asymmetric" and (rounding == "floor" or old)) or (
        place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
    )
    runs = mode == "nearest" and whole and (factor == 1 or (plain and factor <= 64))
    if not runs:
        raise ValueError(
            f"resizes by {mode}, {place}, {rounding}, from {x[2]}x{x[3]} to "
            f"{wanted[2]}x{wanted[3]}; only nearest by a whole factor runs here"
        )
    return tuple(wanted)


def zeros_around(
    at: Attributes, axes: int, given: Array | None, value: Array | None
) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the zeros that Pad puts around a map.

    Raises:
        ValueError: it pads otherwise.
    """
    pads = at.get("pads") if given is None else given.reshape(-1).tolist()
    zero = at.get("value", 0.0) == 0 if value is None else not value.any()
    pads = [] if pads is None else pads
    plain = len(pads) == 2 * axes == 8 and min(pads) >= 0
    if not plain or pads[:2] != [0, 0] or pads[4:6] != [0, 0] or not zero:
        raise ValueError("pads by something else than zeros around a map")
    if at.get("mode", "constant") != "constant" or max(pads) > 64:
        raise ValueError("pads by something else than a few zeros")
    return pads[2], pads[3], pads[6], pads[7]
