"""The precisions of weights and activations, and the meaning of "auto"."""

from __future__ import annotations

from typing import Literal

from .._native import choose_isa, cpu_vendor, has_bfloat16
from ..errors import InputError, UsageError

Precision = Literal["f32", "bf16", "int8", "auto"]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8", "auto")

_RESOLVED: tuple[Literal["f32", "bf16", "int8"], ...] = ("f32", "bf16", "int8")

_FAST_BF16_VENDORS = {"AuthenticAMD"}
"""CPUs whose bf16 is measured to be faster than f32: Zen 4 and 5. Intel's AVX512_BF16 takes longer
than f32 outside AMX tiles, which the kernels do not use."""


def choose_precision(precision: str, isa: str = "") -> Literal["f32", "bf16", "int8"]:
    """Resolve "auto": bf16 where the CPU multiplies it faster than f32, else f32.

    That is on AMD CPUs with AVX512_BF16. On Intel CPUs "auto" is f32, because their bf16
    instructions without AMX tiles are slower than f32.

    Args:
        precision: one of `PRECISIONS`; all but "auto" are returned as they are.
        isa: instruction set, one of `available_isas()`; default: SPARSEDET_ISA from the
            environment, else the best that the CPU supports.

    Raises:
        InputError: the precision is unknown, or the instruction set unknown or not supported.
    """
    for known in _RESOLVED:
        if precision == known:
            return known
    if precision != "auto":
        raise UsageError(f"precision is {precision!r}, expected 'f32', 'bf16', 'int8' or 'auto'")
    try:
        supported = choose_isa(isa) != "scalar" and has_bfloat16(isa)
    except ValueError as error:
        raise InputError(str(error)) from None
    return "bf16" if supported and cpu_vendor() in _FAST_BF16_VENDORS else "f32"
