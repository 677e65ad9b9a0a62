"""The precisions of weights and activations: formats, and promises that become one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._native import choose_isa, cpu_vendor, has_bfloat16, has_int8
from ..choices import PRECISIONS, Precision
from ..errors import InputError, UsageError
from ..model.record import Record

__all__ = [
    "PRECISIONS",
    "ChosenPrecision",
    "Format",
    "Precision",
    "choose_precision",
    "explain_precision",
]

Format = Literal["f32", "bf16", "int8"]
"""How weights and activations are held."""

_FORMATS: tuple[Format, ...] = ("f32", "bf16", "int8")
_PROMISES: dict[str, tuple[Format, ...]] = {
    "full": ("f32",),
    "close": ("f32", "bf16"),
    "fastest": ("f32", "bf16", "int8"),
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FormatRates(Record):
    """How fast the formats are on one family of CPUs.

    Attributes:
        bf16, int8: speed relative to f32; None: it is not known, or there is none, and no promise
            becomes it.
        source: "measured", or where the figures come from.
    """

    bf16: float | None
    int8: float | None
    source: str = "measured"


_RATES = {
    ("AuthenticAMD", "avx512"): FormatRates(1.4, 3.2),
    ("GenuineIntel", "avx512"): FormatRates(0.56, 3.2),
    ("GenuineIntel", "amx"): FormatRates(5.0, 10.0, "computed, not measured"),
    ("GenuineIntel", "avxvnni"): FormatRates(None, 2.6),
    ("GenuineIntel", "avx2"): FormatRates(None, 2.0),
    ("AuthenticAMD", "avx2"): FormatRates(None, 1.2, "assumed, not measured"),
    ("", "neon_i8mm"): FormatRates(None, 2.0, "assumed, not measured"),
    ("", "neon_dotprod"): FormatRates(None, 2.0, "assumed, not measured"),
}
"""By vendor ("" on AArch64) and instruction set. Source: detections of `r101-c4` with 60 % zeros,
for int8 in 1x4 blocks, on two threads of a Zen 5 and an Emerald Rapids without its matrix unit,
whose vdpbf16ps is slow; without AVX-512 detections of `r50half-c4` on one thread of that Emerald
Rapids; for "amx" half of the unit's peak, against its float32. Assumed: Zen 2 multiplies bytes at
half the rate of later CPUs; NEON's dot products have four times the products of its float32
instructions, of which half is expected (docs/engine.md)."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChosenPrecision(Record):
    """What runs, and why.

    Attributes:
        format: "f32", "bf16" or "int8".
        reason: one line; "" where a format was asked for.
    """

    format: Format
    reason: str = ""


def explain_precision(
    precision: str, isa: str = "", *, thresholds: bool = False
) -> ChosenPrecision:
    """Resolve a promise. The CPU's vendor and instruction set alone decide, from a table of rates,
    so that results repeat from run to run.

    Args:
        precision: one of `PRECISIONS`; a format stays as it is.
        isa: instruction set, one of `available_isas()`; default: SPARSEDET_ISA from the
            environment, else the best that the CPU supports.
        thresholds: whether the model has clipping thresholds, which int8 needs.

    Raises:
        InputError: the precision is unknown, or the instruction set unknown or not supported.
    """
    for known in _FORMATS:
        if precision == known:
            return ChosenPrecision(known)
    promise = "close" if precision == "auto" else precision
    if promise not in _PROMISES:
        raise UsageError(
            f"precision is {precision!r}, expected 'f32', 'bf16', 'int8', 'full', 'close' or "
            "'fastest'"
        )
    try:
        isa = choose_isa(isa)
        has = {"bf16": has_bfloat16(isa), "int8": has_int8(isa) and thresholds}
    except ValueError as error:
        raise InputError(str(error)) from None
    if promise == "full":
        return ChosenPrecision("f32", "full: the only format of float32's accuracy")
    cpu = f"{cpu_vendor() or 'this CPU'} with {isa}"
    rates = _RATES.get((cpu_vendor(), isa))
    if rates is None:
        return ChosenPrecision("f32", f"{promise}: no other format was measured on {cpu}")
    speed: dict[Format, float] = {"f32": 1.0, "bf16": rates.bf16 or 0.0, "int8": rates.int8 or 0.0}
    able: list[Format] = [f for f in _PROMISES[promise] if f == "f32" or has[f]]
    best = max(able, key=lambda f: speed[f])
    missing = promise == "fastest" and not thresholds
    note = "; the model has no clipping thresholds for int8" if missing else ""
    if best == "f32":
        judged = "slower" if rates.bf16 else "of unknown speed"
        slower = f"bf16 is {judged}" if has["bf16"] else "there is no bf16"
        return ChosenPrecision("f32", f"{promise}: {slower} on {cpu} ({rates.source}){note}")
    return ChosenPrecision(
        best, f"{promise}: {speed[best]:g} times f32's speed on {cpu} ({rates.source}){note}"
    )


def choose_precision(precision: str, isa: str = "", *, thresholds: bool = False) -> Format:
    """The format that `explain_precision` chooses.

    Raises:
        InputError: as `explain_precision`.
    """
    return explain_precision(precision, isa, thresholds=thresholds).format
