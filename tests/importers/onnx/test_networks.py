"""Whole networks from ONNX files, with random weights, equal ONNX Runtime's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("onnxruntime")

from helpers.onnx_files import difference, images, run_onnx  # noqa: E402

from sparsedet import Model  # noqa: E402
from sparsedet.importers.onnx import load_onnx  # noqa: E402
from sparsedet.importers.tensor_source import Imported  # noqa: E402
from sparsedet.testing.lively import classifier, enlivened, export, settled  # noqa: E402
from sparsedet.testing.yolo import Kind, YoloShaped  # noqa: E402

CLASSIFIERS: list[tuple[str, int, bool]] = [
    ("resnet18", 64, False),
    ("repvgg", 64, False),
    ("repvgg_fused", 64, False),
    ("mobilenet_v2", 64, False),
    ("mobilenet_v3_small", 64, False),
    ("shufflenet_v2_x0_5", 64, False),
    ("squeezenet1_1", 64, False),
    ("regnet_y_400mf", 64, False),
]
LARGE = [
    ("resnet50", 96, False),
    ("resnet101", 224, False),
    ("vgg11", 224, False),
    ("vgg11_bn", 224, False),
    ("densenet121", 64, False),
    ("densenet121", 64, True),
    ("efficientnet_b0", 96, False),
    ("efficientnet_b0", 96, True),
    ("mobilenet_v3_large", 96, True),
    ("googlenet", 96, False),
    ("resnet18", 64, True),
]
GAINS: dict[Kind, float] = {"v5": 2.0, "v5u": 2.0, "v8": 2.3, "11": 2.0}
"""With which both boxes and scores differ between images."""


PARTS: list[dict[str, Any]] = [
    {"boxes": slice(0, 4), "scores": slice(4, None)},
    {"boxes": (..., slice(0, 4)), "scores": (..., slice(4, None))},
]
"""Of outputs [1, 4 + K, N], and of YOLOv5's [1, N, 5 + K]."""


def check(path: Path, size: int, parts: dict[str, Any]) -> Model:
    """All parts of the one output are right, and differ between images."""
    batch = images((size, size))
    model = Model.load(path, threads=2)
    (got,), (want,) = model(batch).values(), run_onnx(path, batch).values()
    for name, part in parts.items():
        where = (slice(None), *(part if isinstance(part, tuple) else (part,)))
        assert difference(got[:1][where], want[1:][where]) > 0.1, f"{name}: void"
        assert difference(got[where], want[where]) < 1e-4, name
    return model


def check_classifier(tmp_path: Path, name: str, size: int, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    module = settled(enlivened(classifier(name)), torch.from_numpy(images((size, size))))
    form = {"opset_version": 20 if dynamo else 17, "dynamo": dynamo}
    path = export(module, tmp_path / "net.onnx", (size, size), **form)
    check(path, size, {"logits": slice(None)})


@pytest.mark.parametrize(("name", "size", "dynamo"), CLASSIFIERS)
def test_classifiers(tmp_path: Path, name: str, size: int, dynamo: bool) -> None:
    check_classifier(tmp_path, name, size, dynamo)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "dynamo"), LARGE)
def test_large_classifiers(tmp_path: Path, name: str, size: int, dynamo: bool) -> None:
    check_classifier(tmp_path, name, size, dynamo)


@pytest.mark.parametrize("kind", GAINS)
def test_yolo_shaped_networks_give_their_raw_outputs(tmp_path: Path, kind: Kind) -> None:
    module = enlivened(YoloShaped(kind), GAINS[kind])
    path = export(module, tmp_path / "net.onnx", (64, 64))
    model = check(path, 64, PARTS[kind == "v5"])
    convs = [o for o in model.config.graph.operations if o.kind == "conv"]
    assert any(getattr(o.attributes, "residual_last", False) for o in convs)
    assert isinstance(load_onnx(path), Imported)
    if kind == "v8":
        assert model.engine.native.copied_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 12, 20])
def test_other_opsets(tmp_path: Path, opset: int) -> None:
    module = enlivened(YoloShaped("v8"), GAINS["v8"])
    path = export(module, tmp_path / "net.onnx", (64, 64), opset_version=opset)
    check(path, 64, {"boxes": slice(0, 4), "scores": slice(4, None)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", GAINS)
def test_the_other_exporter(tmp_path: Path, kind: Kind) -> None:
    pytest.importorskip("onnxscript")
    module = enlivened(YoloShaped(kind), GAINS[kind])
    path = export(module, tmp_path / "net.onnx", (64, 64), dynamo=True, opset_version=20)
    check(path, 64, PARTS[kind == "v5"])
    assert isinstance(load_onnx(path), Imported)


def test_results_do_not_depend_on_threads_or_batches(tmp_path: Path) -> None:
    module = enlivened(YoloShaped("11"))
    path = export(module, tmp_path / "net.onnx", (64, 96))
    batch = images((64, 96), 3)
    one, three = (Model.load(path, threads=n) for n in (1, 3))
    (whole,) = one(batch).values()
    assert (whole == next(iter(three(batch).values()))).all()
    assert (whole[1:2] == next(iter(one(batch[1:2]).values()))).all()
