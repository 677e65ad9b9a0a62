"""Exported graphs of all families, by ONNX Runtime and OpenVINO, against the engine and torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exports import (
    FAMILIES,
    Network,
    assert_same_rows,
    family_graph,
    network_of,
    small_network,
)
from numpy.typing import NDArray

from sparsedet.exporters.onnx import to_onnx
from sparsedet.exporters.openvino import save_openvino
from sparsedet.model.detector_config import rows_of
from sparsedet.model.graph import Activate, Conv, Graph, MaxPool, Operation, Resize, RoiAlign

# A process of its own, as in test_export_openvino.py.
RUN = """
import sys, numpy, openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
outputs = compiled(numpy.load(sys.argv[2]))
numpy.savez(sys.argv[3], **{port.any_name: outputs[port] for port in compiled.outputs})
"""
Outputs = dict[str, NDArray[Any]]


@cache
def network(family: str) -> Network:
    return small_network(family)


def by_onnxruntime(network: Network, **form: Any) -> Outputs:
    """The outputs by name."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = to_onnx(network.config, network.tensors, **form)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": network.blob}), strict=True))


def by_openvino(network: Network, folder: Path, **form: Any) -> Outputs:
    """The outputs by name."""
    pytest.importorskip("openvino")
    model, given, got = (folder / f"graph{ending}" for ending in (".xml", ".npy", ".npz"))
    save_openvino(model, network.config, network.tensors, **form)
    np.save(given, network.blob)
    subprocess.run([sys.executable, "-c", RUN, str(model), str(given), str(got)], check=True)
    with np.load(got) as content:
        return dict(content)


def check(network: Network, outputs: Outputs) -> None:
    """Rows and masks are the engine's, and padding follows them."""
    rows, masks = network.outputs()
    assert len(set(rows[:, 1])) >= 4  # classes
    count, theirs = network.config.max_detections, outputs["detections"]
    assert theirs.shape == (1, 1, count, 7) and ("masks" in outputs) == (masks is not None)
    found = theirs[0, 0][theirs[0, 0, :, 0] >= 0]
    assert (np.diff(found[:, 2]) <= 0).all()
    assert (theirs[0, 0, len(found) :] == [-1, 0, 0, 0, 0, 0, 0]).all()
    assert_same_rows(rows, found)
    if masks is not None:
        assert outputs["masks"].shape == (count, *masks.shape[1:])
        assert not outputs["masks"][len(found) :].any()
        assert_same_masks((rows, masks), (found, outputs["masks"][: len(found)]))


def assert_same_masks(ours: Any, theirs: Any) -> None:
    """Equal masks of equal rows, which may come in another order."""
    for row, mask in zip(*ours, strict=True):
        near = abs(theirs[0][:, 3:] - row[3:]).max(axis=1) < 1e-4
        same = np.flatnonzero((theirs[0][:, 1] == row[1]) & near)
        assert abs(theirs[1][same] - mask).max(axis=(1, 2)).min() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_equals_the_engine(family: str) -> None:
    check(network(family), by_onnxruntime(network(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_equals_the_engine(family: str, tmp_path: Path) -> None:
    check(network(family), by_openvino(network(family), tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_equals_the_engine(family: str) -> None:
    """So the exported rows are torch's, too."""
    pytest.importorskip("torch")
    ours, theirs = network(family).outputs(), network(family).outputs_of_torch()
    assert_same_rows(ours[0], theirs[0])
    if ours[1] is not None:
        assert_same_masks(ours, theirs)


def test_hoisted_layers_of_two_branches_are_written_once(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    c4 = network("mask-rcnn-c4")
    check(c4, by_onnxruntime(c4, hoist=True))
    check(c4, by_openvino(c4, tmp_path, hoist=True))
    plain, hoisted = (
        sum(node.op_type == "Conv" for node in to_onnx(c4.config, c4.tensors, hoist=h).graph.node)
        for h in (False, True)
    )
    assert onnx and plain - hoisted == 2  # res5.0.conv1 and res5.0.shortcut


def test_odd_sizes(tmp_path: Path) -> None:
    """Maps of a pyramid whose sizes are not the double of the next."""
    odd = small_network("mask-rcnn", (113, 151))
    check(odd, by_onnxruntime(odd))
    check(odd, by_openvino(odd, tmp_path))


def test_resizing_by_other_factors_than_two(tmp_path: Path) -> None:
    """From 2 to 94 columns, where runtimes and torch round to other cells, column 47 among them."""
    graph = family_graph("retinanet", (128, 188))
    assert graph.shapes["fpn.output7"].width == 2 and graph.shapes["stem.conv"].width == 94
    extra = (
        Operation("up.relu", ("fpn.output7",), Activate("relu")),
        Operation("up", ("up.relu", "stem.conv"), Resize()),
        Operation("up.pool", ("up",), MaxPool(4, 4, (0, 0, 2, 2))),
        Operation("mix", ("up.pool", "fpn.output3"), Conv(16, (1, 1), ("mix",))),
    )
    first = graph.operations.index(graph.by_name["class.conv0.p3"])
    rest = [
        replace(o, inputs=tuple("mix" if name == "fpn.output3" else name for name in o.inputs))
        for o in graph.operations[first:]
    ]
    changed = Graph(graph.image, (*graph.operations[:first], *extra, *rest))
    mixed = network_of(changed, "mixed")
    check(mixed, by_onnxruntime(mixed))
    check(mixed, by_openvino(mixed, tmp_path))


def test_a_level_without_rois(tmp_path: Path) -> None:
    """All boxes are small: most levels have none."""
    small = network("faster-rcnn")
    graph = small.config.graph
    align, attributes = graph.only(RoiAlign)
    far = replace(align, attributes=replace(attributes, canonical_size=1e4))
    changed = tuple(far if o is align else o for o in graph.operations)
    config = replace(small.config, graph=Graph(graph.image, changed))
    first = Network(config, small.tensors, small.image)
    check(first, by_onnxruntime(first))
    check(first, by_openvino(first, tmp_path))


def test_nothing_detected_is_all_padding(tmp_path: Path) -> None:
    for family in ("mask-rcnn", "retinanet"):
        small = network(family)
        graph = small.config.graph
        last = rows_of(graph)
        attributes: Any = last.attributes
        none = replace(last, attributes=replace(attributes, score_threshold=1.0))
        operations = tuple(none if o is last else o for o in graph.operations)
        config = replace(small.config, graph=Graph(graph.image, operations))
        silent = Network(config, small.tensors, small.image)
        folder = tmp_path / family
        folder.mkdir()
        for outputs in (by_onnxruntime(silent), by_openvino(silent, folder)):
            assert (outputs["detections"][0, 0] == [-1, 0, 0, 0, 0, 0, 0]).all()
            assert not outputs.get("masks", np.zeros(1)).any()


@pytest.mark.parametrize("family", ["faster-rcnn", "fcos"])
def test_half_float_storage_halves_the_file(family: str, tmp_path: Path) -> None:
    small = network(family)
    halved = {
        name: value.astype(np.float16).astype(np.float32) if name.endswith("weight") else value
        for name, value in small.tensors.items()
    }
    rounded = Network(small.config, halved, small.image)
    check(rounded, by_onnxruntime(rounded, dtype="float16"))
    check(rounded, by_openvino(rounded, tmp_path, dtype="float16"))


@pytest.mark.parametrize("family", ["faster-rcnn", "retinanet"])
def test_openvino_reads_the_onnx_file(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from sparsedet.exporters.onnx import save_onnx

    small = network(family)
    model, given, got = (tmp_path / f"graph{ending}" for ending in (".onnx", ".npy", ".npz"))
    save_onnx(model, small.config, small.tensors)
    np.save(given, small.blob)
    subprocess.run([sys.executable, "-c", RUN, str(model), str(given), str(got)], check=True)
    with np.load(got) as content:
        check(small, dict(content))


def test_boxes_that_end_at_the_edge_after_suppression(tmp_path: Path) -> None:
    """Detectron2's RetinaNet: boxes that reach beyond the image overlap less than clipped ones."""
    small = network("retinanet")
    graph = small.config.graph
    last = rows_of(graph)
    attributes: Any = last.attributes
    wide = replace(attributes, clip_first=False, box_weights=(0.3, 0.3, 0.5, 0.5))
    later = replace(last, attributes=wide)
    config = replace(small.config, graph=Graph(graph.image, (*graph.operations[:-1], later)))
    changed = Network(config, small.tensors, small.image)
    first = replace(last, attributes=replace(wide, clip_first=True))
    other = replace(small.config, graph=Graph(graph.image, (*graph.operations[:-1], first)))
    rows = [Network(c, small.tensors, small.image).outputs()[0] for c in (config, other)]
    assert rows[0].shape != rows[1].shape or abs(rows[0] - rows[1]).max() > 1e-3
    check(changed, by_onnxruntime(changed))
    check(changed, by_openvino(changed, tmp_path))
