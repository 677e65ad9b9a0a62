"""Graphs in a model file: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.make_graphs import operation
from helpers.exports import FAMILIES, family_graph

from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.detector_config import as_detector_config, config_from_json, config_to_json
from sparsedet.model.faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from sparsedet.model.file import load_model, save_model
from sparsedet.model.fpn import rounded_cell_anchors
from sparsedet.model.graph import MaskOutput
from sparsedet.model.graph_json import from_json, to_json
from sparsedet.model.presets import PRESETS
from sparsedet.testing import random_tensors

FOLDER = Path(__file__).parents[1] / "data" / "model_v1"
FPN = FasterRCNNFPN(
    mean=(1.0, 2.0, 3.0),
    std=(4.0, 5.0, 6.0),
    cell_anchors=rounded_cell_anchors([[size] for size in (32, 64, 128, 256, 512)]),
)


def small() -> dict[str, Any]:
    """The graph of a small file, as JSON has it."""
    config = load_model(FOLDER / "r101-c4-float32-sparse.safetensors").config
    values: dict[str, Any] = json.loads(json.dumps(to_json(as_detector_config(config).graph)))
    return values


def test_every_graph_is_read_as_it_was_written() -> None:
    graphs = [build_graph(config) for config in PRESETS.values()]
    graphs.append(build_faster_rcnn_fpn(FPN, (800, 1344)))
    graphs += [family_graph(family, (160, 224)) for family in FAMILIES]  # of all kinds
    for graph in graphs:
        text = json.dumps(to_json(graph))
        assert from_json(json.loads(text)) == graph
        assert len(text) < 120_000


def test_pasting_is_read_and_older_files_have_none() -> None:
    values = to_json(family_graph("mask-rcnn-c4", (160, 224)))
    attributes = operation(values, "masks")[3]
    assert attributes == {"background": False, "pasting": "continuous"}
    for pasting in ("whole", "continuous"):
        attributes["pasting"] = pasting
        assert from_json(values).only(MaskOutput)[1].pasting == pasting
    del attributes["pasting"]
    assert from_json(values).only(MaskOutput)[1].pasting == "whole"
    attributes["pasting"] = "elsewhere"
    with pytest.raises(InputError, match="pasting is 'elsewhere', expected one of whole, contin"):
        from_json(values)


def test_too_many_operations_and_too_large_values() -> None:
    values = small()
    values["operations"] *= 1000
    with pytest.raises(InputError, match="more than 10000 operations"):
        from_json(values)
    values = small()
    values["inputs"] = [["image", 3, 8192, 8192]]
    operation(values, "stem.conv")[3]["out_channels"] = 65536
    with pytest.raises(InputError, match=r"'stem\.conv' of the graph would have"):
        from_json(values)
    others: list[Any] = [None, [], "x", 3, {"operations": []}]
    for wrong in others:
        with pytest.raises(InputError):
            from_json(wrong)


def test_a_file_of_version_2_gives_the_same_detector(tmp_path: Path) -> None:
    model = load_model(FOLDER / "r101-c4-float16-ranges.safetensors")
    config = as_detector_config(model.config)
    path = tmp_path / "model.safetensors"
    save_model(path, config, model.tensors, {}, clipping_thresholds=model.clipping_thresholds)
    again = load_model(path)
    assert again.config == config and again.clipping_thresholds == model.clipping_thresholds
    assert all(np.array_equal(again.tensors[name], model.tensors[name]) for name in model.tensors)
    assert config_from_json(config_to_json(config)) == config
    assert config_from_json(config_to_json(model.config)) == model.config


def test_a_file_whose_graph_asks_for_other_tensors_is_refused(tmp_path: Path) -> None:
    model = load_model(FOLDER / "r101-c4-float32-dense.safetensors")
    path = tmp_path / "model.safetensors"
    save_model(path, as_detector_config(model.config), model.tensors, {}, dtype="float32")
    data = path.read_bytes()
    for before, after in (
        (b'[\\"rpn.conv\\"]', b'[\\"rpn.conx\\"]'),
        (b'\\"out_channels\\":16', b'\\"out_channels\\":17'),
    ):
        assert before in data
        path.write_bytes(data.replace(before, after, 1))
        with pytest.raises(InputError) as error:
            load_model(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_random_tensors_of_a_graph() -> None:
    config = as_detector_config(load_model(FOLDER / "r101-c4-float32-dense.safetensors").config)
    tensors = random_tensors(config, 0.5)
    assert set(tensors) == {
        f"{layer.name}.{leaf}" for layer in config.graph.layers for leaf in ("weight", "bias")
    }
