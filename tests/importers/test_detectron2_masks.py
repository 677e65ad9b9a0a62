"""Detectron2's own Mask R-CNN C4, and its masks in images, against the imported model.

A small network with random weights ran in its code; data/parity/README.md describes how.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.parity import (
    DATA,
    DETECTRON2,
    MASK_C4,
    MASK_C4_SETTINGS,
    PASTED_SIZE,
    PYRAMIDS,
    SETTINGS,
    config_yaml,
    pasted_cases,
    state_of,
    zoo,
)
from importers.test_detectron2_pyramids import Arrays, difference, in_torch
from numpy.typing import NDArray

from sparsedet import Detector, InputError
from sparsedet._native import has_bfloat16
from sparsedet.cli import main
from sparsedet.detections import Detections
from sparsedet.engine import Engine
from sparsedet.images.letterbox import fit_letterbox
from sparsedet.images.masks import Patch, paste
from sparsedet.images.read import read_image
from sparsedet.importers import Imported, load_foreign
from sparsedet.model.config import ModelConfig
from sparsedet.model.detector_config import DetectorConfig, build_graph, mask_pasting
from sparsedet.model.file import load_model
from sparsedet.model.graph import Conv, Graph, Normalise, typed
from sparsedet.model.sparsity import sparsity_report

IMAGE_SIZE = (150, 211)
"""Height and width of the image of which the network inputs are said to be."""

HEAD = "roi_heads.mask_head."
OUTPUTS = DATA / "detectron2_mask_c4_outputs.npz"


def in_engine(imported: Imported, network_input: NDArray[np.uint8]) -> Arrays:
    """What the imported model finds, run by the engine."""
    height, width = network_input.shape[:2]
    engine = Engine(imported.config, imported.tensors)
    rows, masks = engine.run_with_masks(network_input, (height, width))
    return {
        "boxes": rows[:, 3:] * np.array([width, height, width, height], np.float32),
        "scores": rows[:, 2],
        "labels": rows[:, 1].astype(int),
        "masks": masks,
    }


def in_both(imported: Imported, network_input: NDArray[np.uint8]) -> dict[str, Arrays]:
    """What the imported model finds, run by torch and by the engine."""
    height, width = network_input.shape[:2]
    by_torch = in_torch(imported, network_input.astype(np.float32), (height, width))
    return {"torch": by_torch, "engine": in_engine(imported, network_input)}


def pasted_apart(
    ours: Arrays,
    theirs: Arrays,
    size: tuple[int, int],
    image_size: tuple[int, int],
    pasted: NDArray[np.bool_],
) -> tuple[int, int]:
    """Pixels in which masks in the image differ, and the pixels of theirs.

    Args:
        pasted: every n-th of theirs, [N, H, W].
    """
    step = -(-len(theirs["boxes"]) // len(pasted))
    letterbox = fit_letterbox(*image_size, *size, "stretch")
    height, width = size
    scale = np.array([width, height, width, height])
    normalised = (ours["boxes"] / scale).astype(np.float32)
    detections = Detections(
        normalised,
        ours["scores"],
        ours["labels"],
        (),
        (),
        letterbox,
        ours["masks"],
        "continuous",
    )
    apart = 0
    masks = detections.masks
    assert masks is not None
    for i, mask in enumerate(pasted):
        box, label = theirs["boxes"][i * step], theirs["labels"][i * step]
        distance = abs(ours["boxes"] - box).max(axis=1) + 1e9 * (ours["labels"] != label)
        apart += int((masks[distance.argmin()] != mask).sum())
    return apart, int(pasted.sum())


def checkpoint(variant: str, folder: Path) -> Path:
    """The weights of a variant; that of "convs" has the mask head among the outputs."""
    if variant != "convs":
        return MASK_C4
    head = {
        name.removeprefix("convs/"): value
        for name, value in np.load(OUTPUTS).items()
        if name.startswith(f"convs/{HEAD}")
    }
    state = {name: value for name, value in state_of(MASK_C4).items() if not name.startswith(HEAD)}
    return zoo(folder, {**state, **head})


def golden(variant: str, folder: Path) -> Imported:
    """An imported model; the published settings need no config.yaml."""
    changes = MASK_C4_SETTINGS[variant]
    (folder / "config.yaml").write_text(config_yaml(changes, "mask_c4"))
    path = checkpoint(variant, folder)
    return load_foreign(path, config=folder / "config.yaml" if changes else ())


def cases(variant: str) -> Iterator[tuple[str, NDArray[np.uint8], Arrays]]:
    """Of each network input: its name, itself, and what Detectron2 found on it."""
    outputs = dict(np.load(OUTPUTS))
    for key, network_input in np.load(DATA / "canvases.npz").items():
        prefix = f"{variant}/{key}/"
        names = ("boxes", "scores", "labels", "masks")
        theirs = {name: outputs[prefix + name] for name in names}
        assert len(theirs["boxes"]) >= 50 and len(set(theirs["labels"].tolist())) >= 5
        yield key, network_input, theirs


@pytest.mark.parametrize("variant", MASK_C4_SETTINGS)
def test_detections_and_masks_are_those_of_detectron2(variant: str, tmp_path: Path) -> None:
    imported = golden(variant, tmp_path)
    assert imported.ignored == ()
    for _, network_input, theirs in cases(variant):
        assert theirs["masks"].std() > 0.1
        for by, ours in in_both(imported, network_input).items():
            found = difference(ours, theirs)
            assert found.boxes < 0.01 and found.scores < 1e-4 and found.masks < 1e-3, (by, found)
            assert found.missing == 0, (by, found)


def test_masks_in_the_image_are_those_of_detectron2(tmp_path: Path) -> None:
    imported = golden("published", tmp_path)
    outputs = np.load(OUTPUTS)
    for key, network_input, theirs in cases("published"):
        size, height, width = network_input.shape[:2], *IMAGE_SIZE
        count = -(-len(theirs["boxes"]) // 25)
        bits = np.unpackbits(outputs[f"pasted/{key}"], count=count * height * width)
        masks = bits.reshape(count, height, width).astype(bool)
        ours = in_engine(imported, network_input)
        apart, covered = pasted_apart(ours, theirs, size, IMAGE_SIZE, masks)
        assert covered > 1000 and apart <= covered * 1e-3, (key, apart, covered)


def test_pasting_is_that_of_detectron2_to_the_pixel() -> None:
    """Its own `paste_masks_in_image`; pixels whose probability rounds to a half may differ."""
    probabilities, boxes = pasted_cases()
    height, width = PASTED_SIZE
    shape = (len(boxes), height, width)
    expected = np.unpackbits(np.load(OUTPUTS)["pasted"], count=int(np.prod(shape))).reshape(shape)
    assert expected.any(axis=(1, 2)).sum() >= 20
    differing = 0
    for theirs, ours, other in zip(
        expected.astype(bool),
        paste(probabilities, boxes, height, width, "continuous"),
        paste(probabilities, boxes, height, width, "whole"),
        strict=True,
    ):
        certain = abs(whole(ours, height, width) - 0.5) > 1e-5
        assert certain.mean() > 0.99
        assert np.array_equal(theirs[certain], (whole(ours, height, width) >= 0.5)[certain])
        differing += int(((whole(other, height, width) >= 0.5) != theirs).sum())
    assert differing > 100  # torchvision's pasting would be told from it


def whole(patch: Patch, height: int, width: int) -> NDArray[np.float32]:
    """The probabilities of all pixels."""
    out = np.zeros((height, width), np.float32)
    out[patch.place] = patch.probabilities
    return out


# ------------------------------------------------------------------------ other forms of a file


def graph_of(imported: Imported) -> Graph:
    assert isinstance(imported.config, DetectorConfig)
    return imported.config.graph


def test_all_models_with_masks_of_detectron2_are_pasted_as_it_does() -> None:
    for path in (MASK_C4, PYRAMIDS["fpn"]):
        config = load_foreign(path).config
        assert mask_pasting(config) == "continuous"
    assert mask_pasting(load_foreign(DETECTRON2).config) == "whole"  # has no masks


def test_everything_but_the_masks_is_that_of_a_faster_rcnn(tmp_path: Path) -> None:
    """With the field `masks` false, and without a mask head in the file."""
    masks = load_foreign(MASK_C4)
    state = {name: value for name, value in state_of(MASK_C4).items() if not name.startswith(HEAD)}
    alone = load_foreign(zoo(tmp_path, state))
    asked = load_foreign(MASK_C4, fields={"masks": False})
    assert isinstance(alone.config, ModelConfig) and asked.config == alone.config
    assert asked.tensors.keys() == alone.tensors.keys()
    assert any("masks are left out, as asked for" in note for note in asked.notes)
    assert any('{"masks": false}' in note for note in masks.notes)
    assert asked.ignored == tuple(sorted(n for n in state_of(MASK_C4) if n.startswith(HEAD)))
    graph, boxes = graph_of(masks), build_graph(alone.config)
    assert graph.operations[: len(boxes.operations)] == boxes.operations
    assert {layer.name for layer in graph.layers} - boxes.layer.keys() == {
        "mask.upsample",
        "mask.logits",
    }
    for name, tensor in alone.tensors.items():
        assert np.array_equal(masks.tensors[name], tensor)
    assert masks.config.name == "r50-mask-rcnn-c4-detectron2"
    for field in ("class_names", "category_ids", "resize", "input_height", "input_width"):
        assert getattr(masks.config, field) == getattr(alone.config, field)
    with pytest.raises(InputError, match="masks is 0, expected true or false"):
        load_foreign(MASK_C4, fields={"masks": 0})


def test_a_layer_used_twice_counts_once_as_parameters_and_twice_as_cost() -> None:
    imported, alone = load_foreign(MASK_C4), load_foreign(MASK_C4, fields={"masks": False})
    report, boxes = (sparsity_report(one.config, one.tensors) for one in (imported, alone))
    head = [layer for layer in report.layers if layer.name.startswith("mask.")]
    assert [layer.name for layer in head] == ["mask.upsample", "mask.logits"]
    assert report.parameters == boxes.parameters + sum(layer.parameters for layer in head)
    costs = {layer.name: layer.macs for layer in report.layers}
    rows, rois = imported.config.max_detections, report.rois
    for layer in boxes.layers:
        again = layer.macs * rows // rois if layer.name.startswith("res5.") else 0
        assert costs[layer.name] == layer.macs + again
    assert (rows, rois) == (100, 1000)


def test_colours_and_network_input_are_those_of_the_settings(tmp_path: Path) -> None:
    changes = {**SETTINGS["rgb"], "INPUT.MIN_SIZE_TEST": 320}
    (tmp_path / "config.yaml").write_text(config_yaml(changes, "mask_c4"))
    config = load_foreign(MASK_C4, config=tmp_path / "config.yaml").config
    assert isinstance(config, DetectorConfig)
    assert (config.input_height, config.input_width) == (320, 512)
    assert config.graph.only(Normalise)[1] == Normalise((100.0, 110.0, 120.0), (1.3, 1.2, 1.1))
    assert typed(config.graph.by_name["mask.res5.0.conv2"], Conv).stride == 2


def test_what_all_classes_share_is_repeated(tmp_path: Path) -> None:
    state = state_of(MASK_C4)
    for leaf in ("weight", "bias"):
        state[f"{HEAD}predictor.{leaf}"] = state[f"{HEAD}predictor.{leaf}"][1:2]
    imported = load_foreign(zoo(tmp_path, state))
    assert graph_of(imported) == graph_of(load_foreign(MASK_C4))
    assert "has one mask for all classes: repeated for each of them" in imported.notes
    bias = imported.tensors["mask.logits.bias"]
    assert len(bias) == 20 and (bias == bias[0]).all()
    for path in (MASK_C4, zoo(tmp_path, state)):
        plain = load_foreign(path, fields={"masks": False})
        assert not any("one mask" in note for note in plain.notes)


W = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({f"{HEAD}deconv.weight": None}, r"deconv\.weight' is missing"),
        ({f"{HEAD}deconv.weight": W}, r"shape \(2, 2\), expected \(in, out, 2, 2\)"),
        ({f"{HEAD}deconv.weight": np.zeros((64, 0, 2, 2), np.float32)}, r"\(64, 0, 2, 2\), exp"),
        ({f"{HEAD}deconv.weight": np.zeros((64, 7, 2, 2), np.float32)}, "has shape"),
        ({f"{HEAD}deconv.weight": np.zeros((32, 8, 2, 2), np.float32)}, "has shape"),
        ({f"{HEAD}predictor.bias": None}, r"predictor\.bias' is missing"),
        ({f"{HEAD}extra.weight": W}, r"mask_head\.extra.* belongs to no layer"),
        ({f"{HEAD}point_head.fc1.weight": W}, "is a PointRend"),
        ({f"{HEAD}mask_fcn1.norm.weight": W}, r"GroupNorm.*ROI_MASK_HEAD\.NORM"),
        ({f"{HEAD}mask_fcn1.weight": W}, r"mask_fcn1\.weight' has shape \(2, 2\)"),
    ],
)
def test_other_mask_heads_are_refused_in_one_line(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    state = {n: v for n, v in state_of(MASK_C4).items() if n not in changes}
    path = zoo(tmp_path, {**state, **{n: v for n, v in changes.items() if v is not None}})
    with pytest.raises(InputError, match=match) as error:
        load_foreign(path)
    if "PointRend" not in match:  # whose boxes may be other ones, too
        assert load_foreign(path, fields={"masks": False}).config.name == "r50-c4-detectron2"
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
        ("MODEL.ROI_MASK_HEAD.NORM", "GN"),
        ("MODEL.MASK_ON", False),
    ],
)
def test_settings_of_other_mask_heads_are_refused_by_name(
    key: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml({key: value}, "mask_c4"))
    with pytest.raises(InputError, match=key.rpartition(".")[2]):
        load_foreign(MASK_C4, config=path)
    if key != "MODEL.MASK_ON":  # without its masks they do not matter
        load_foreign(MASK_C4, config=path, fields={"masks": False})
    path.write_text(config_yaml({"MODEL.MASK_ON": True}))
    with pytest.raises(InputError, match="MASK_ON is True, the weights have no mask head"):
        load_foreign(DETECTRON2, config=path)


def test_a_model_file_and_the_commands_take_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, photo = tmp_path / "mask.safetensors", tmp_path / "photo.png"
    assert main(["convert", str(MASK_C4), "-o", str(output)]) == 0
    imported, model = load_foreign(MASK_C4), load_model(output)
    assert model.config == imported.config
    assert all(np.array_equal(model.tensors[n], v) for n, v in imported.tensors.items())
    assert "r50-mask-rcnn-c4-detectron2" in capsys.readouterr().out
    assert main(["info", str(output)]) == 0
    assert "mask.upsample" in capsys.readouterr().out
    cv2.imwrite(str(photo), np.load(DATA / "canvases.npz")["c0"])
    detected = Detector.load(output, threads=1, resize="stretch")(read_image(photo))
    assert detected.pasting == "continuous" and detected.masks is not None
    assert len(detected) > 20 and detected.masks.any()


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no kernels of bfloat16")
def test_bfloat16_gives_nearly_the_same_masks() -> None:
    imported = load_foreign(MASK_C4)
    exact, half = (
        Engine(imported.config, imported.tensors, precision=precision)
        for precision in ("f32", "bf16")
    )
    network_input = np.load(DATA / "canvases.npz")["c0"]
    rows, expected = exact.run_with_masks(network_input)
    given = {"detections": rows, "image": network_input.astype(np.float32)}
    half.native.plan(*network_input.shape[:2])
    (masks,) = half.native.run_between(given, ["masks"])
    assert masks.shape == expected.shape and expected.std() > 0.1
    assert abs(masks - expected).mean() < 0.02
