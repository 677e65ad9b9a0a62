"""Detectron2's own Mask R-CNN with a feature pyramid and RetinaNet against the imported ones.

Small networks with random weights ran in its code; data/parity/README.md describes how.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.parity import DATA, PYRAMID_SETTINGS, PYRAMIDS, config_yaml, state_of, zoo
from numpy.typing import NDArray

from sparsedet import InputError
from sparsedet.cli import main
from sparsedet.engine import Engine
from sparsedet.importers import Imported, load_foreign
from sparsedet.model.detector_config import DetectorConfig, rows_of
from sparsedet.model.file import load_model
from sparsedet.model.graph import Graph, Normalise, Proposals

torch = pytest.importorskip("torch")

from sparsedet.torch_model import GraphModule  # noqa: E402

Arrays = dict[str, NDArray[Any]]
CASES = [(family, variant) for family, of_one in PYRAMID_SETTINGS.items() for variant in of_one]


class Deviations(NamedTuple):
    """How far two lists of detections of one image are apart.

    Attributes:
        found, missing: theirs, and those of them that we lack.
        boxes, scores, masks: largest differences; pixels of the network input, 0..1, 0..1.
    """

    found: int
    missing: int
    boxes: float
    scores: float
    masks: float


def padded(network_input: NDArray[Any], imported: Imported) -> NDArray[np.float32]:
    """The network input, filled up to multiples of 32 by what normalisation makes zero."""
    assert isinstance(imported.config, DetectorConfig)
    height, width = network_input.shape[:2]
    out = np.empty((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.float32)
    out[:] = imported.config.fill
    out[:height, :width] = network_input
    return out


def _named(rows: NDArray[Any], network_input: NDArray[Any]) -> Arrays:
    height, width = network_input.shape[:2]
    rows = rows[rows[:, 0] >= 0]
    size = np.array([width, height, width, height], np.float32)
    return {"boxes": rows[:, 3:] * size, "scores": rows[:, 2], "labels": rows[:, 1].astype(int)}


def in_torch(
    imported: Imported, network_input: NDArray[np.float32], content: tuple[int, int]
) -> Arrays:
    """What the imported model finds, run by torch."""
    assert isinstance(imported.config, DetectorConfig)
    graph = imported.config.graph
    network = GraphModule("x", graph).eval()
    network.load_tensors(imported.tensors)
    image = torch.from_numpy(network_input.transpose(2, 0, 1)[None].copy())
    rows = rows_of(graph).name
    wanted = list(dict.fromkeys([rows, graph.output]))
    with torch.no_grad():
        values = network.run({"image": image}, wanted, content)
    out = _named(values[0][0].numpy(), network_input)
    return {**out, "masks": values[1].numpy()} if len(values) > 1 else out


def in_engine(
    imported: Imported, network_input: NDArray[np.float32], content: tuple[int, int]
) -> Arrays:
    """What the imported model finds, run by the engine."""
    engine = Engine(imported.config, imported.tensors, threads=1)
    return _named(engine.run(network_input, content), network_input)


def difference(ours: Arrays, theirs: Arrays) -> Deviations:
    """Detections are paired by label and place; masks are given for every n-th of theirs."""
    assert abs(len(ours["boxes"]) - len(theirs["boxes"])) <= 1
    boxes = scores = masks = 0.0
    missing, count = 0, len(theirs["boxes"])
    step = -(-count // max(len(theirs["masks"]), 1)) if "masks" in theirs else 1
    for i in range(count):
        close = abs(ours["scores"] - theirs["scores"][i]) < 1e-2
        candidates = np.flatnonzero((ours["labels"] == theirs["labels"][i]) & close)
        distance = abs(ours["boxes"][candidates] - theirs["boxes"][i]).max(axis=1, initial=0)
        if not len(candidates) or distance.min() > 1:
            missing += 1
            continue
        best = candidates[distance.argmin()]
        boxes = max(boxes, float(distance.min()))
        scores = max(scores, float(abs(ours["scores"][best] - theirs["scores"][i])))
        if "masks" in theirs and i % step == 0:
            apart = abs(ours["masks"][best] - theirs["masks"][i // step])
            masks = max(masks, float(apart.max()))
    return Deviations(count, missing, boxes, scores, masks)


def boxes_alone(imported: Imported) -> Imported:
    """A Mask R-CNN without its masks."""
    config = imported.config
    assert isinstance(config, DetectorConfig)
    last = rows_of(config.graph).name
    operations = [o for o in config.graph.operations if not o.name.startswith("mask")]
    assert operations[-1].name == last
    graph = Graph(config.graph.image, tuple(operations))
    tensors = {n: v for n, v in imported.tensors.items() if not n.startswith("mask.")}
    return Imported(dataclasses.replace(config, graph=graph), tensors, {})


def golden(family: str, variant: str, folder: Path) -> Imported:
    """An imported model; the published settings need no config.yaml."""
    changes = PYRAMID_SETTINGS[family][variant]
    (folder / "config.yaml").write_text(config_yaml(changes, family))
    return load_foreign(PYRAMIDS[family], config=folder / "config.yaml" if changes else ())


def cases(family: str, variant: str) -> Any:
    """Of each network input: itself, and what Detectron2 found on it."""
    outputs = dict(np.load(DATA / f"detectron2_{family}_outputs.npz"))
    for key, network_input in np.load(DATA / "canvases.npz").items():
        prefix = f"{variant}/{key}/"
        theirs = {
            name.removeprefix(prefix): value
            for name, value in outputs.items()
            if name.startswith(prefix)
        }
        assert len(theirs["boxes"]) >= 50 and len(set(theirs["labels"].tolist())) >= 5
        yield network_input, theirs


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_detections_are_those_of_detectron2(family: str, variant: str, tmp_path: Path) -> None:
    imported = golden(family, variant, tmp_path)
    assert imported.ignored == ()
    for network_input, theirs in cases(family, variant):
        batch = padded(network_input, imported)
        found = difference(in_torch(imported, batch, network_input.shape[:2]), theirs)
        assert found.boxes < 0.01 and found.scores < 1e-4 and found.masks < 1e-3, found
        assert found.missing == 0, found
        assert ("masks" in theirs) == (family == "fpn")


@pytest.mark.parametrize("variant", PYRAMID_SETTINGS["fpn"])
def test_the_engine_finds_the_same_boxes(variant: str, tmp_path: Path) -> None:
    imported = boxes_alone(golden("fpn", variant, tmp_path))
    for network_input, theirs in cases("fpn", variant):
        theirs.pop("masks")
        batch = padded(network_input, imported)
        found = difference(in_engine(imported, batch, network_input.shape[:2]), theirs)
        assert found.boxes < 0.01 and found.scores < 1e-4 and found.missing <= 1, found


# ------------------------------------------------------------------------ other forms of a file


FPN, RETINANET = PYRAMIDS["fpn"], PYRAMIDS["retinanet"]
MASK = "roi_heads.mask_head."


def graph_of(imported: Imported) -> Graph:
    assert isinstance(imported.config, DetectorConfig)
    return imported.config.graph


def same(a: Imported, b: Imported) -> bool:
    return a.config == b.config and all(
        np.array_equal(a.tensors[n], b.tensors[n]) for n in b.tensors
    )


@pytest.mark.parametrize("path", [FPN, RETINANET], ids=list(PYRAMIDS))
def test_a_file_may_have_prefixes_optimizers_and_half_precision(path: Path, tmp_path: Path) -> None:
    state, plain = state_of(path), load_foreign(path)
    assert same(load_foreign(zoo(tmp_path, state)), plain)
    trainer = tmp_path / "trainer.pth"
    tensors = {f"model.module.{n}": torch.from_numpy(v.copy()) for n, v in state.items()}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    counter = {
        "model.module.backbone.bottom_up.stem.conv1.norm.num_batches_tracked": torch.ones(())
    }
    torch.save({"state_dict": {**tensors, **counter}, "optimizer": momentum, "epoch": 3}, trainer)
    wrapped = load_foreign(trainer)
    assert same(wrapped, plain) and wrapped.ignored
    half = load_foreign(zoo(tmp_path, {n: v.astype(np.float16) for n, v in state.items()}))
    assert half.config == plain.config
    for name, value in plain.tensors.items():
        np.testing.assert_allclose(
            half.tensors[name], value, rtol=0.02, atol=0.02 * abs(value).max()
        )


def test_a_mask_rcnn_without_its_mask_head_is_a_faster_rcnn(tmp_path: Path) -> None:
    state = {n: v for n, v in state_of(FPN).items() if not n.startswith(MASK)}
    imported = load_foreign(zoo(tmp_path, state))
    expected = boxes_alone(load_foreign(FPN))
    assert graph_of(imported) == graph_of(expected)
    assert imported.config.name == "r50-faster-rcnn-fpn-detectron2"
    assert set(imported.tensors) == set(expected.tensors)


def test_what_all_classes_share_is_repeated(tmp_path: Path) -> None:
    state = state_of(FPN)
    box, mask = "roi_heads.box_predictor.bbox_pred", f"{MASK}predictor"
    for leaf in ("weight", "bias"):
        state[f"{box}.{leaf}"] = state[f"{box}.{leaf}"][4:8]
        state[f"{mask}.{leaf}"] = state[f"{mask}.{leaf}"][1:2]
    imported = load_foreign(zoo(tmp_path, state))
    assert graph_of(imported) == graph_of(load_foreign(FPN))
    assert any("one set of box deltas for all classes" in note for note in imported.notes)
    assert any("one mask for all classes" in note for note in imported.notes)
    deltas, masks = imported.tensors["box.deltas.bias"], imported.tensors["mask.logits.bias"]
    assert np.array_equal(deltas[:4], deltas[-4:]) and (masks == masks[0]).all()


def test_the_number_of_classes_is_that_of_the_weights(tmp_path: Path) -> None:
    state = state_of(RETINANET)
    for leaf in ("weight", "bias"):
        whole = state[f"head.cls_score.{leaf}"]
        state[f"head.cls_score.{leaf}"] = np.ascontiguousarray(whole[: 9 * 7])
    imported = load_foreign(zoo(tmp_path, state))
    assert imported.config.class_names == tuple(f"class {n}" for n in range(1, 8))
    named = load_foreign(zoo(tmp_path, state), fields={"class_names": list("abcdefg")})
    assert named.config.class_names == tuple("abcdefg")
    with pytest.raises(InputError, match="has 7 classes, class_names gives 2"):
        load_foreign(zoo(tmp_path, state), fields={"class_names": ["a", "b"]})
    for leaf in ("weight", "bias"):
        state[f"head.cls_score.{leaf}"] = np.repeat(state[f"head.cls_score.{leaf}"], 12, 0)[
            : 9 * 80
        ]
    imported = load_foreign(zoo(tmp_path, state))
    assert imported.config.class_names[0] == "person" and imported.config.category_ids[-1] == 90


def test_what_old_checkpoints_state_is_read(tmp_path: Path) -> None:
    state = state_of(FPN)
    usual = graph_of(load_foreign(FPN)).only(Proposals)[1].cell_anchors
    for level, anchors in enumerate(usual):
        name = f"proposal_generator.anchor_generator.cell_anchors.{level}"
        state[name] = np.array(anchors, np.float32)
    state["pixel_mean"] = np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    imported = load_foreign(zoo(tmp_path, state))
    assert graph_of(imported).only(Normalise)[1].mean == (1, 2, 3)
    assert not any("anchors differ" in note for note in imported.notes)
    state[name] = state[name] + np.float32(1)
    imported = load_foreign(zoo(tmp_path, state))
    assert any("anchors differ" in note for note in imported.notes)
    found = graph_of(imported).only(Proposals)[1].cell_anchors
    assert found[:4] == usual[:4] and found[4][0][0] == usual[4][0][0] + 1
    (tmp_path / "config.yaml").write_text(config_yaml({}, "fpn"))
    imported = load_foreign(zoo(tmp_path, state), config=tmp_path / "config.yaml")
    assert graph_of(imported).only(Proposals)[1].cell_anchors == usual  # as Detectron2 does


def test_images_are_resized_as_the_settings_say(tmp_path: Path) -> None:
    changes = {"INPUT.MIN_SIZE_TEST": 400, "INPUT.MAX_SIZE_TEST": 600}
    (tmp_path / "config.yaml").write_text(config_yaml(changes, "fpn"))
    config = load_foreign(FPN, config=tmp_path / "config.yaml").config
    assert isinstance(config, DetectorConfig)
    assert (config.resize, config.min_size, config.max_size) == ("shorter", 400, 600)
    (tmp_path / "fields.json").write_text('{"max_size": 500, "score_threshold": 0.25}')
    files = [tmp_path / "config.yaml", tmp_path / "fields.json"]
    config = load_foreign(FPN, config=files).config
    assert isinstance(config, DetectorConfig)
    assert (config.max_size, config.score_threshold) == (500, 0.25)
    plain = load_foreign(FPN)
    assert any("short side 800, at most 1333" in note for note in plain.notes)
    assert any("pass the model's own config.yaml" in note for note in plain.notes)


def test_a_model_file_keeps_everything(tmp_path: Path) -> None:
    for path in PYRAMIDS.values():
        output = tmp_path / f"{path.stem}.safetensors"
        assert main(["convert", str(path), "-o", str(output)]) == 0
        imported, model = load_foreign(path), load_model(output)
        assert model.config == imported.config
        assert all(np.array_equal(model.tensors[n], v) for n, v in imported.tensors.items())
