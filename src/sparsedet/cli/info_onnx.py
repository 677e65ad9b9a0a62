"""`sparsedet info` of an ONNX file: what of it runs here, and what zeros would give, before anybody
converts or prunes it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..errors import InputError
from .convert_onnx import parse_shape
from .forecast import forecast_lines


def show_onnx(path: Path, arguments: argparse.Namespace) -> int:
    """Print what an ONNX file is; returns the exit code, 1 if it does not run here."""
    from ..importers.onnx import load_onnx, load_program
    from ..importers.onnx.coverage import PICKING, find_picking, refused
    from ..importers.tensor_source import Imported
    from ..model.network import graph_of
    from ..model.sparsity import sparsity_report

    shape = parse_shape(arguments.shape)
    program = load_program(path, shape)
    print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB, opset {program.opset})")
    nodes, share = refused(program)
    if nodes:
        print(
            f"{len(nodes)} of {len(program.nodes)} nodes cannot run here; {share:.0%} of the "
            "multiplications that could be counted come before the first of them"
        )
        first = {node.op: node.name for node in reversed(nodes)}
        for kind, count in Counter(node.op for node in nodes).most_common():
            print(f"  {kind.strip('*'):<24}{count:>4}   first: {first[kind]}")
        if (picking := find_picking(program)) is not None:
            print(f"node {picking.name!r} ({picking.op}) {PICKING}")
        return 1
    try:
        loaded = load_onnx(path, shape=shape)
    except InputError as error:
        print(error)
        return 1
    graph = graph_of(loaded.config)
    print(f"all {len(program.nodes)} nodes run here, {len(graph.operations)} operations")
    if isinstance(loaded, Imported):
        print(f"{loaded.config.num_classes} classes; {loaded.notes[0]}")
    else:
        for name, sizes in loaded.config.output_shapes.items():
            print(f"output {name}: {'x'.join(map(str, sizes))}")
    report = sparsity_report(loaded.config, loaded.tensors)
    print(
        f"{report.parameters:,} parameters, {report.sparsity:.2%} of them zero; network input "
        f"{graph.image.width}x{graph.image.height}, {report.gflops:.2f} GFLOPs, "
        f"{report.sparse_gflops:.2f} without the zeros"
    )
    print("\n".join(forecast_lines(loaded.config, report.rois, report, arguments.precision)))
    return 0
