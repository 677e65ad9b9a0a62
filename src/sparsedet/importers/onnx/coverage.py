"""Which nodes of a program run here, without running or converting any."""

from __future__ import annotations

from ...errors import InputError
from .build import NetworkBuilder
from .program import OnnxNode, Program, multiplications

PICKING = (
    "picks detections inside of the file, which is done here: export the network without it "
    "(nms=False, end2end=False)"
)
"""Why a node that `find_picking` finds cannot run."""


def find_picking(program: Program) -> OnnxNode | None:
    """The first node that sorts or suppresses what a detector found."""
    kinds = ("NonMaxSuppression", "TopK")
    return next((node for node in program.nodes if node.op in kinds), None)


def refused(program: Program) -> tuple[list[OnnxNode], float]:
    """The nodes that cannot run here, but for those that only follow one.

    Args:
        program: folded.

    Returns:
        The nodes in order; the share of all multiplications that could be counted before the first
        of them, 0..1.
    """
    builder = NetworkBuilder(program)
    found: list[OnnxNode] = []
    for node in program.nodes:
        ready = all(
            not name or name in builder.values or name in program.constants for name in node.inputs
        )
        if not ready and found and node.out not in program.shapes:
            continue
        try:
            builder.node(node)
        except InputError:
            if ready:
                found.append(node)
    work = [multiplications(program, node) for node in program.nodes]
    before = sum(work[: program.nodes.index(found[0])]) if found else sum(work)
    return found, before / max(sum(work), 1)
