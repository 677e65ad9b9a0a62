"""Detectors in ONNX files: their tails are recognised, and give what the raw outputs say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnxruntime")
from helpers.onnx_detectors import CLASSES, kept, node, picking, picodet, yolox
from helpers.onnx_files import (
    conv_node,
    conv_tensors,
    images,
    onnx,
    run_onnx,
    save_onnx,
)

from sparsedet import Detector, InputError, Model, save_model
from sparsedet.importers.onnx import load_onnx, load_onnx_detector
from sparsedet.importers.onnx.detectors import Preprocessing, class_names
from sparsedet.importers.tensor_source import Imported
from sparsedet.model.graph import CellOutput

F32 = NDArray[np.float32]


def decoded_yolox(raw: F32, size: int) -> tuple[F32, F32]:
    """Boxes [N, 4] and scores [N, C] of the raw output [N, 5 + C], as its authors decode it."""
    points, strides = [], []
    for stride in (8, 16, 32):
        rows, columns = np.mgrid[: size // stride, : size // stride]
        points.append(np.stack([columns.ravel(), rows.ravel()], 1))
        strides.append(np.full((rows.size, 1), stride))
    point, step = np.concatenate(points), np.concatenate(strides)
    centre, sides = (raw[:, :2] + point) * step, np.exp(raw[:, 2:4]) * step
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], 1)
    return boxes.astype(np.float32), raw[:, 4:5] * raw[:, 5:]


@pytest.mark.parametrize("decoded", [False, True])
def test_yolox(tmp_path: Path, decoded: bool) -> None:
    path = yolox(tmp_path / "a.onnx", decoded)
    imported = load_onnx_detector(path, stated=Preprocessing(score_threshold=0.05))
    output = imported.config.graph.only(CellOutput)[1]  # type: ignore[union-attr]
    assert (output.strides, output.boxes, output.objectness) == ((8, 16, 32), "centre", True)
    assert output.num_classes == CLASSES
    save_model(tmp_path / "m.safetensors", imported.config, imported.tensors, {}, dtype="float32")
    detector = Detector.load(tmp_path / "m.safetensors", threads=1)
    batch = (images((64, 64), 1) * 40 + 128).clip(0, 255).round()
    raw = run_onnx(yolox(tmp_path / "b.onnx", False), batch)["y"][0]
    expected = kept(*decoded_yolox(raw, 64), 0.05, 0.65)
    rows = detector.engine.run(np.ascontiguousarray(batch[0].transpose(1, 2, 0)).astype(np.uint8))
    assert len(rows) == min(len(expected), 100) > 5
    for row, (label, score, box) in zip(rows, expected, strict=False):
        assert row[1] == label and abs(row[2] - score) < 1e-4
        assert np.abs(row[3:] * 64 - box.clip(0, 64)).max() < 0.01


def test_picodet(tmp_path: Path) -> None:
    imported = load_onnx_detector(picodet(tmp_path / "a.onnx"))
    config = imported.config
    output = config.graph.only(CellOutput)[1]  # type: ignore[union-attr]
    assert (output.strides, output.bins, output.boxes) == ((8, 16, 32), 8, "distances")
    assert config.resize == "stretch" and "PicoDet" in imported.notes[0]
    assert config.class_names == ("class 1", "class 2", "class 3")


def test_yolov8_and_torch_agree(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from sparsedet.backends.torch import from_model as torch_backend
    from sparsedet.model.file import ModelFile
    from sparsedet.testing.lively import enlivened, export
    from sparsedet.testing.yolo import YoloShaped

    path = export(enlivened(YoloShaped("v8"), 2.3), tmp_path / "a.onnx", (64, 64))
    imported = load_onnx_detector(path)
    config = imported.config
    assert (config.border, config.centred) == (114, True)
    model = ModelFile(config, imported.tensors, {}, "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ours = Detector.load(path, threads=1).engine.run(pixels)
    theirs = torch_backend(model, 1, 1, "f32").run(pixels)
    assert len(ours) == len(theirs) > 10
    assert np.abs(ours[:, 1] - theirs[:, 1]).max() == 0
    assert np.abs(ours[:, 2:] - theirs[:, 2:]).max() < 1e-4


@pytest.mark.parametrize("bins", [1, 16])
def test_sides_with_and_without_bins(tmp_path: Path, bins: int) -> None:
    """One bin: as YOLO26 without its choice of boxes."""
    pytest.importorskip("torch")
    from sparsedet.testing.lively import enlivened, export
    from sparsedet.testing.yolo import YoloShaped

    path = export(enlivened(YoloShaped("11", bins=bins)), tmp_path / "a.onnx", (64, 64))
    output = load_onnx_detector(path).config.graph.only(CellOutput)[1]  # type: ignore[union-attr]
    assert (output.bins, output.boxes, output.offset) == (bins, "distances", 0.5)


@pytest.mark.slow
def test_a_yolo11_shaped_network_in_all_backends(tmp_path: Path) -> None:
    """All give the same rows, unless scores are 1 in float32: those are ties.

    This network has logits above 17. Non-maximum suppression takes equal scores in the order of
    their places, but a runtime whose sigmoid rounds one of them to 1 - 6e-8 takes it later: then
    other boxes are suppressed, and in turn their neighbours are not. Nothing else is different:
    with a quarter of the logits all rows are the same.
    """
    torch = pytest.importorskip("torch")
    from sparsedet.backends import build_backend
    from sparsedet.model.file import ModelFile
    from sparsedet.testing.lively import enlivened, export
    from sparsedet.testing.yolo import YoloShaped

    network: Any = enlivened(YoloShaped("11"), seed=1)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    image = np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)[None] / np.float32(255))
    with torch.no_grad():
        exact = network.double()(torch.from_numpy(image).double())[0, 4:].numpy()
    network.float()
    saturated = exact.astype(np.float32) == 1
    of_class = int(saturated.sum(1).argmax())
    ties = exact[of_class][saturated[of_class]]
    assert len(ties) > 3 and len(set(ties)) == len(ties)  # equal in float32 alone

    def rows(name: str) -> dict[str, F32]:
        path = export(network, tmp_path / f"{name}.onnx", (128, 128))
        imported = load_onnx_detector(path)
        model = ModelFile(imported.config, imported.tensors, {}, "float32")
        names = ("native", "torch", "onnxruntime", "openvino")
        return {
            other: build_backend(other, model, threads=1, precision="f32").run(pixels)
            for other in names
        }

    def agree(ours: F32, theirs: F32) -> bool:
        same = ours.shape == theirs.shape and bool((ours[:, 1] == theirs[:, 1]).all())
        return same and float(np.abs(ours[:, 2:] - theirs[:, 2:]).max()) < 1e-4

    tied = rows("tied")
    assert agree(tied["native"], tied["torch"])  # of equal scores both take the first place
    for predictor in network.head.cv3:
        for tensor in predictor[-1].parameters():
            tensor.data /= 4
    found = rows("apart")
    assert len(found["native"]) > 100 and np.diff(found["native"][:, 2]).max() < 0
    for name, theirs in found.items():
        assert agree(found["native"], theirs), name


def test_one_label_of_a_box(tmp_path: Path) -> None:
    path = yolox(tmp_path / "a.onnx", False)
    for several in (True, False):
        stated = Preprocessing(several_labels=several, score_threshold=0.01, nms_threshold=1.0)
        imported = load_onnx_detector(path, stated=stated)
        save_model(tmp_path / f"{several}.safetensors", imported.config, imported.tensors, {})
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    many, few = (
        Detector.load(tmp_path / f"{s}.safetensors").engine.run(pixels) for s in (True, False)
    )
    boxes = [tuple(row[3:]) for row in few]
    assert len(set(boxes)) == len(boxes) < len({tuple(r[3:]) for r in many}) * CLASSES


def with_metadata(path: Path, **metadata: str) -> Path:
    model = onnx.load(str(path))
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return path


def test_metadata_are_literals(tmp_path: Path) -> None:
    names = str({0: "cat", 1: "dog", 2: "it's"})
    path = with_metadata(yolox(tmp_path / "a.onnx", False), names=names, task="detect")
    assert load_onnx_detector(path).config.class_names == ("cat", "dog", "it's")
    for text in (
        "__import__('os').getcwd()",
        "{0: 1}",
        "[" * 5000,
        "{1: 'a'}",
        "'abc' 'd' * 9**9",
        "x" * 200_000,
        "['\\x1b[2J', 'b', 'c']",
    ):
        with pytest.raises(InputError, match="metadata 'names' is no plain list of names") as error:
            class_names("a.onnx", 3, {"names": text})
        assert "\n" not in str(error.value)
    two = with_metadata(yolox(tmp_path / "b.onnx", False), names="['a', 'b']")
    with pytest.raises(InputError, match="name 2 classes, its graph has 3; --raw"):
        load_onnx(two)


@pytest.mark.parametrize("names", ["['a', 'b']", "__import__('os').getcwd()"])
def test_names_of_other_classes_are_refused_or_left_out_of_raw_outputs(
    tmp_path: Path, names: str
) -> None:
    constants = conv_tensors("c", 4, 3)
    nodes = [
        conv_node("c", "x", "a"),
        node("GlobalAveragePool", ["a"], ["m"]),
        node("Flatten", ["m"], ["y"]),
    ]
    path = save_onnx(tmp_path / "c.onnx", nodes, ["y"], constants, metadata={"names": names})
    with pytest.raises(InputError, match=r"name 2 classes, its graph has 4; --raw|no plain list"):
        load_onnx(path)
    model = Model.load(path)
    assert (model.config.class_count, model.config.class_names) == (4, ())


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_other_tasks_are_refused_by_name_or_run_raw(tmp_path: Path, task: str) -> None:
    path = with_metadata(yolox(tmp_path / "a.onnx", False), task=task)
    with pytest.raises(InputError, match=rf"its task is '{task}'.*--raw") as error:
        load_onnx(path)
    assert "\n" not in str(error.value)
    assert Model.load(path).config.output_shapes == {"y": (1, 84, 8)}


def test_unknown_outputs_stay_as_they_are(tmp_path: Path) -> None:
    plain = save_onnx(
        tmp_path / "p.onnx", [conv_node("c", "x", "y")], ["y"], conv_tensors("c", 4, 3)
    )
    assert not isinstance(load_onnx(plain), Imported)
    with pytest.raises(InputError, match=r"its outputs \(y \[1, 4, 16, 16\]\) are those of no"):
        Detector.load(plain)


@pytest.mark.parametrize("kind", ["NonMaxSuppression", "TopK"])
def test_files_that_pick_detections_themselves(tmp_path: Path, kind: str) -> None:
    path = picking(tmp_path / "a.onnx", kind)
    assert run_onnx(path, images((64, 64), 1))["out"].ndim > 1  # it is a whole file
    for load in (load_onnx, Model.load, Detector.load):
        with pytest.raises(InputError, match=rf"a.onnx: node 'choice' \({kind}\) picks") as error:
            load(path)
        assert "(nms=False, end2end=False)" in str(error.value) and "\n" not in str(error.value)


TRAINED = os.environ.get("SPARSEDET_TRAINED_MODELS", "")
"""A folder with yolox_nano_416.onnx, picodet_s_416.onnx and picodet_s_320.onnx."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolox_nano_416", "picodet_s_416", "picodet_s_320"])
def test_trained_detectors(name: str) -> None:
    path = Path(TRAINED) / f"{name}.onnx"
    if not TRAINED or not path.exists():
        pytest.skip("SPARSEDET_TRAINED_MODELS names no folder with the trained detectors")
    size = int(name.rsplit("_", 1)[1])
    batch = images((size, size))
    if "yolox" in name:
        batch = batch * 40 + 128
    got, want = Model.load(path)(batch), run_onnx(path, batch)
    for output, expected in want.items():
        assert np.abs(got[output] - expected).max() < 1e-4 * np.abs(expected).max()
    assert isinstance(load_onnx(path), Imported)
