"""Imported models against the outputs of Detectron2 and TensorPack themselves.

Small networks with random weights ran in their own code; data/parity/README.md describes how. The
same scripts compare networks of full size on photographs, if those projects are installed.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import SETTINGS, config_yaml
from helpers.parts import EngineParts
from numpy.typing import NDArray

from sparsedet.engine import Engine, available_isas
from sparsedet.evaluation.agreement import pair
from sparsedet.importers import Imported, load_foreign
from sparsedet.importers.containers import open_source
from sparsedet.model import boxes as np_boxes
from sparsedet.model.detector_config import require_c4
from sparsedet.model.presets import preset

DATA = Path(__file__).parents[1] / "data" / "parity"
FILES = {"detectron2": "detectron2.pth", "tensorpack": "tensorpack.npz"}
BASES = {"detectron2": None, "tensorpack": preset("r101-c4")}  # ran with 300 proposals
peers = pytest.mark.parametrize("peer", FILES)

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """Outputs of a peer."""

    imported: Imported
    outputs: dict[str, NDArray[Any]]
    network_inputs: dict[str, NDArray[np.uint8]]


def golden(peer: str, **fields: Any) -> Golden:
    imported = load_foreign(DATA / FILES[peer], base=BASES[peer], fields=fields)
    outputs = dict(np.load(DATA / f"{peer}_outputs.npz"))
    return Golden(imported, outputs, dict(np.load(DATA / "canvases.npz")))


def deviation(ours: F32, theirs: F32) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.1
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def same_detections(
    boxes: F32, scores: F32, labels: NDArray[Any], outputs: dict[str, NDArray[Any]], key: str
) -> None:
    """One to one: the same class, IoU above 0.99 (empty boxes: the same place), scores to 1e-3."""
    theirs = outputs[f"{key}/boxes"]
    assert len(theirs) >= 50 and len(set(outputs[f"{key}/labels"].tolist())) >= 5
    assert len(boxes) == len(theirs)
    iou = np_boxes.iou(boxes, theirs)
    near = np.abs(boxes[:, None] - theirs[None]).max(axis=2) < 0.05
    fits = (iou > 0.99) | (near & (np_boxes.area(theirs) < 1))
    fits &= np.abs(scores[:, None] - outputs[f"{key}/scores"]) < 1e-3
    fits &= labels[:, None] == outputs[f"{key}/labels"]
    alone = np.flatnonzero(pair(fits.T) < 0)
    assert not len(alone), (key, alone, theirs[alone])


def run(engine: Engine, network_input: NDArray[np.uint8]) -> tuple[F32, F32, NDArray[Any]]:
    rows = engine.run(network_input)
    height, width = network_input.shape[:2]
    size = np.array([width, height, width, height], np.float32)
    return rows[:, 3:] * size, rows[:, 2], rows[:, 1].astype(int)


def rgb_agnostic(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Detectron2's small network as one of RGB images with one set of box deltas.

    Its first layer reads pixels that are divided by a standard deviation, too.
    """
    stem, deltas = "backbone.stem.conv1.weight", "roi_heads.box_predictor.bbox_pred"
    std = np.array([58.395, 57.12, 57.375], np.float32).reshape(3, 1, 1)
    return {
        **state,
        stem: np.ascontiguousarray(state[stem][:, ::-1] * std),
        **{f"{deltas}.{leaf}": state[f"{deltas}.{leaf}"][8:12] for leaf in ("weight", "bias")},
    }


@peers
def test_every_tensor_has_its_place(peer: str) -> None:
    imported = golden(peer).imported
    assert imported.ignored == ()
    assert imported.config.name == {"detectron2": "r50-c4-detectron2", "tensorpack": "r20-c4"}[peer]
    assert imported.config.class_names[:2] == ("class 1", "class 2")
    assert imported.config.num_classes == 20


@peers
def test_stages(peer: str) -> None:
    """Each stage given the peer's own input to it."""
    one = golden(peer)
    out, network_input = one.outputs, one.network_inputs["c0"]
    config, tensors = one.imported.config, one.imported.tensors
    # Hoisting leaves no RoI features behind.
    parts, plain = (EngineParts(Engine(config, tensors, hoist=hoist)) for hoist in (True, False))
    for ours in (parts, plain):
        assert deviation(ours.features(network_input), out["c0/features"]) < 1e-4
    logits, deltas = parts.rpn(out["c0/features"])
    assert deviation(logits, out["c0/objectness"]) < 1e-4
    assert deviation(deltas, out["c0/deltas"]) < 1e-4
    proposals = parts.proposals(out["c0/objectness"], out["c0/deltas"])
    assert deviation(proposals, out["c0/proposals"]) < 1e-5  # the same ones, in the same order
    rois = plain.roi_features(out["c0/features"], out["c0/proposals"])
    bins = rois.shape[-1]  # every second one, where res5 reads no others
    assert deviation(rois[::60, ::4], out["c0/rois"][:, :, :: 14 // bins, :: 14 // bins]) < 1e-4
    for head in (parts, plain):
        outputs = head.roi_head(out["c0/features"], out["c0/proposals"])
        for values, name in zip(outputs, ("class_logits", "box_deltas"), strict=True):
            theirs = out[f"c0/{name}"]
            assert deviation(values.reshape(len(values), -1)[::8], theirs) < 1e-4


@peers
@pytest.mark.parametrize("isa", available_isas())
def test_detections(peer: str, isa: str) -> None:
    one = golden(peer)
    engine = Engine(one.imported.config, one.imported.tensors, isa=isa)
    for key, network_input in one.network_inputs.items():
        same_detections(*run(engine, network_input), one.outputs, key)


@pytest.mark.parametrize(
    ("setting", "fields"),
    [
        (
            "tf_pad_mode",
            {"stem_padding": [2, 3], "pool_padding": [0, 1], "stride_conv2_padding": [0, 1]},
        ),
        ("stride_1x1", {"stride_in": "conv1"}),
    ],
)
def test_tensorpacks_settings_are_fields(setting: str, fields: dict[str, Any]) -> None:
    """The two settings of its backbone that its files do not state (docs/weights.md)."""
    one = golden("tensorpack", **fields)
    engine = Engine(one.imported.config, one.imported.tensors)
    for key, network_input in one.network_inputs.items():
        same_detections(*run(engine, network_input), one.outputs, f"{setting}/{key}")
        with pytest.raises(AssertionError):
            same_detections(*run(engine, network_input), one.outputs, key)


def test_detectron2s_rgb_and_class_agnostic_models(tmp_path: Path) -> None:
    tensors = {
        n: tensor.read() for n, tensor in open_source(DATA / FILES["detectron2"])[1].left.items()
    }
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": rgb_agnostic(tensors)}))
    outputs = dict(np.load(DATA / "detectron2_rgb_outputs.npz"))
    network_inputs = dict(np.load(DATA / "canvases.npz"))
    imported = load_foreign(path, rgb=True)
    assert any("RGB images" in note for note in imported.notes)
    assert any("one set of box deltas for all classes" in note for note in imported.notes)
    engine = Engine(imported.config, imported.tensors)
    other = load_foreign(path)  # BGR
    for key, network_input in network_inputs.items():
        same_detections(*run(engine, network_input), outputs, key)
        with pytest.raises(AssertionError):
            same_detections(*run(Engine(other.config, other.tensors), network_input), outputs, key)


@pytest.mark.parametrize("variant", SETTINGS)
def test_detectron2s_settings_are_fields(variant: str, tmp_path: Path) -> None:
    """The same weights, with settings that only its config.yaml states."""
    (tmp_path / "config.yaml").write_text(config_yaml(SETTINGS[variant]))
    imported = load_foreign(DATA / FILES["detectron2"], config=tmp_path / "config.yaml")
    outputs = dict(np.load(DATA / "detectron2_config_outputs.npz"))
    engine = Engine(imported.config, imported.tensors)
    plain = load_foreign(DATA / FILES["detectron2"])
    for key, network_input in np.load(DATA / "canvases.npz").items():
        same_detections(*run(engine, network_input), outputs, f"{variant}/{key}")
        with pytest.raises(AssertionError):
            other = run(Engine(plain.config, plain.tensors), network_input)
            same_detections(*other, outputs, f"{variant}/{key}")


@pytest.mark.slow
@peers
def test_the_torch_reference_agrees_too(peer: str, one_torch_thread: None) -> None:
    torch = pytest.importorskip("torch")
    from sparsedet.torch_model import FasterRCNN

    one = golden(peer)
    model = FasterRCNN(require_c4(one.imported.config, "read"))
    model.load_tensors(one.imported.tensors)
    for key, network_input in one.network_inputs.items():
        image = torch.from_numpy(network_input.transpose(2, 0, 1)[None].copy())
        rows = model(image)[0].numpy()
        rows = rows[rows[:, 0] >= 0]
        height, width = network_input.shape[:2]
        boxes = rows[:, 3:] * np.array([width, height, width, height], np.float32)
        same_detections(boxes, rows[:, 2], rows[:, 1].astype(int), one.outputs, key)
