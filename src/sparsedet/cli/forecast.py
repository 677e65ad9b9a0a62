"""What zeros would give on this CPU, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model.network import AnyConfig
    from ..model.sparsity import SparsityReport

_WORTH_IT = 1.3
"""Times faster at 80 % zeros; a network that gains less is not worth pruning for speed."""
_LOADS_SUFFER = 1.25
"""A core by itself loads as many vectors as it multiplies and adds. An Ice Lake whose neighbour
left it 1.1 to 1.4 loads in a cycle of two ran sparse kernels at 66 % of the peak, not 81 %."""


def forecast_lines(
    config: AnyConfig,
    rois: int,
    report: SparsityReport | None,
    precision: str,
    thresholds: bool = False,
) -> list[str]:
    """How much can be pruned, and what zeros would give on this CPU.

    Args:
        report: zeros of the weights; None: there are no weights.
        thresholds: whether the model has clipping thresholds, for the precision "fastest".
    """
    from .._native import (
        cycle_rates,
        peak_gflops,
        peak_gflops_bf16,
        peak_gflops_int8,
        peak_gflops_matrix,
    )
    from ..engine import choose_isa, default_threads, explain_precision
    from ..engine.forecast import forecast, prunable_share
    from ..model.network import graph_of

    graph, threads = graph_of(config), default_threads()
    zeros = {r.name: r.zeros for r in report.layers} if report else None
    share = prunable_share(graph, rois, zeros)
    why = explain_precision(precision, thresholds=thresholds)
    chosen = why.format
    probes = {"f32": peak_gflops, "bf16": peak_gflops_bf16, "int8": peak_gflops_int8}
    isa = choose_isa()
    peak = probes[chosen](isa, threads, 0.3)
    matrix = peak_gflops_matrix(isa, chosen, threads, 0.3) if chosen != "f32" else 0.0
    loads, multiply_adds = cycle_rates(isa, 0.1)
    now = "" if share.zeros is None else f"; {share.zeros:.1%} of these weights are zero now"
    lines = [
        f"prunable layers: {share.parameters:.1%} of the parameters, "
        f"{share.multiplications:.1%} of the multiplications{now}"
    ]

    def seconds(of: Any) -> float:
        return forecast(graph, of, peak=peak, matrix_peak=matrix, precision=chosen, rois=rois)

    dense = seconds(0.0)
    found = {f"with {share:.0%} zeros": seconds(share) for share in (0.6, 0.8, 0.9)}
    pruned = dense / found["with 80% zeros"]
    if report:
        known = {r.name: r.zeros / max(r.parameters, 1) for r in report.layers}
        found = {"with the zeros of now": seconds(known), **found}
    lines.append(
        f"forecast of one detection here ({isa}, {chosen}, {threads} threads that make "
        f"{peak:.0f} GFLOP/s at present):"
    )
    if matrix:
        lines.append(
            f"  and {matrix:.0f} on the matrix unit, of which half is assumed: nobody measured it"
        )
    if loads < multiply_adds / _LOADS_SUFFER:
        lines.append(
            f"  this core loads {loads:.1f} vectors in a cycle, beside {multiply_adds:.1f} "
            "multiply-adds: a neighbour takes the rest, and zeros will give less"
        )
    if why.reason:
        lines.append(f"  precision {chosen}, {why.reason}")
    lines.append(f"  {'without zeros':<24}{dense:>8.3f} s")
    lines += [f"  {what:<24}{s:>8.3f} s   {dense / s:.2f}x" for what, s in found.items()]
    if pruned < _WORTH_IT:
        lines.append("pruning is not worth it here: too little of the time is in prunable layers")
    return lines
