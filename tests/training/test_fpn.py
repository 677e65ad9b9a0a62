"""Training of a Faster R-CNN with a Feature Pyramid Network.

Its losses are torchvision's on the same weights and images; a tiny one learns, is pruned and
stopped on the way, and runs in the engine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models.detection")
pytest.importorskip("rich")

from helpers.tiny_fpn import tiny_fpn  # noqa: E402
from helpers.tiny_training import FAST, NAMES, TINY, make_data  # noqa: E402

from sparsedet import Detector, InputError, load_model, read_image  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset, load_coco  # noqa: E402
from sparsedet.importers import load_foreign  # noqa: E402
from sparsedet.model.config import COCO_NAMES  # noqa: E402
from sparsedet.model.detector_config import (  # noqa: E402
    DetectorConfig,
    as_detector_config,
    build_graph,
    with_classes,
)
from sparsedet.model.file import save_model  # noqa: E402
from sparsedet.model.one_stage import OneStage, build_one_stage  # noqa: E402
from sparsedet.model.presets import FPN_PRESETS, PRESETS, detector_preset  # noqa: E402
from sparsedet.model.sparsity import sparsity_report  # noqa: E402
from sparsedet.pruning.allocation import Allocation  # noqa: E402
from sparsedet.testing.torchvision import as_input, confident, save_state  # noqa: E402
from sparsedet.torch_model import FasterRCNN, GraphModule, TwoStageDetector  # noqa: E402
from sparsedet.training.data import load_micro_batch  # noqa: E402
from sparsedet.training.distill import LOSSES, Teacher  # noqa: E402
from sparsedet.training.initial import initial_tensors  # noqa: E402
from sparsedet.training.losses import losses  # noqa: E402
from sparsedet.training.start import build_model, open_start  # noqa: E402
from sparsedet.training.trainer import Trainer  # noqa: E402
from sparsedet.training.validation import detect  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

ALL = replace(
    FAST,
    flip=0.0,
    scale_low=1.0,
    rpn_batch=10**6,
    roi_batch=10**6,
    rpn_pre_nms=300,
    rpn_post_nms=200,
    rpn_beta=1 / 9,
    roi_beta=1 / 9,
)
"""All anchors and RoIs are drawn: no random number matters."""

SIZE = {"min_size": 192, "max_size": 300}


# ------------------------------------------------------------------------ the losses


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Of two sizes, so that one of a batch is padded."""
    annotations, images = make_data(tmp_path_factory.mktemp("photographs"))
    content = json.loads(annotations.read_text())
    content["images"][1]["height"] = 90
    annotations.write_text(json.dumps(content))
    path = images / content["images"][1]["file_name"]
    image = read_image(path)
    cv2.imwrite(str(path), np.concatenate([image, image[:26]]))
    return load_coco(annotations, images)


def theirs(model: Any, dataset: CocoDataset, indices: list[int]) -> tuple[dict[str, float], int]:
    """torchvision's losses of a batch, and how many anchors they are a mean of."""
    images, targets = [], []
    for i in indices:
        annotated = dataset.images[i]
        images.append(as_input(read_image(dataset.image_path(annotated))))
        boxes, labels = torch.from_numpy(annotated.boxes), torch.from_numpy(annotated.labels)
        targets.append({"boxes": boxes, "labels": labels})
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # frozen statistics, as ours
    model.rpn._pre_nms_top_n = {"training": 300, "testing": 300}
    model.rpn._post_nms_top_n = {"training": 200, "testing": 200}
    drawn = []

    def every(labels: list[Any]) -> Any:
        drawn.append(sum(int((label >= 0).sum()) for label in labels))
        return [label >= 1 for label in labels], [label == 0 for label in labels]

    model.rpn.fg_bg_sampler = model.roi_heads.fg_bg_sampler = every
    with torch.no_grad():
        values = {name: float(value) for name, value in model(images, targets).items()}
    return values, drawn[0]


@pytest.mark.parametrize("kind", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_losses_equal_torchvision(kind: str, photographs: CocoDataset, tmp_path: Path) -> None:
    """From the image files on, so that resizing and padding are torchvision's, too."""
    first = read_image(photographs.image_path(photographs.images[0]))
    model = confident(kind, [first], num_classes=4, **SIZE)
    imported = load_foreign(save_state(model, tmp_path / "state.pth"), torchvision=SIZE)
    ours = build_model(imported.config, imported.tensors)
    for indices in ([0], [1], [0, 1, 2]):
        expected, drawn = theirs(model, photographs, indices)
        network_input, targets = load_micro_batch(photographs, indices, imported.config, ALL, 0)
        with torch.no_grad():
            got = {k: float(v) for k, v in losses(ours, ALL, network_input, targets).items()}
        # torchvision divides by the anchors drawn, we by those asked for.
        scale = ALL.rpn_batch * len(indices) / drawn
        assert got["rpn_objectness"] * scale == pytest.approx(expected["loss_objectness"], rel=1e-4)
        assert got["rpn_box"] * scale == pytest.approx(expected["loss_rpn_box_reg"], rel=1e-4)
        assert min(expected.values()) > 0
        if len(indices) == 1:  # of several images we take the mean of means
            assert got["roi_class"] == pytest.approx(expected["loss_classifier"], rel=1e-4)
            assert got["roi_box"] == pytest.approx(expected["loss_box_reg"], rel=1e-4)


def test_a_c4_described_by_its_graph_has_the_same_losses(dataset: CocoDataset) -> None:
    model = FasterRCNN(TINY, norm=True)
    same = TwoStageDetector(as_detector_config(TINY), norm=True)
    same.load_state_dict(model.state_dict())
    network_input, targets = load_micro_batch(dataset, [0, 1], TINY, FAST, 0)
    a, b = (losses(m, FAST, network_input, targets) for m in (model, same))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_teacher_that_is_the_student_adds_nothing(dataset: CocoDataset) -> None:
    config = tiny_fpn()
    made, other = TwoStageDetector(config), TwoStageDetector(config)
    network_input, targets = load_micro_batch(dataset, [0, 1], config, FAST, 0)
    values = losses(made, FAST, network_input, targets, Teacher(other, "x", ""))
    assert all(values[name].item() == 0.0 for name in LOSSES)
    other.reset_parameters(1)
    values = losses(made, FAST, network_input, targets, Teacher(other, "x", ""))
    assert all(values[name].item() > 0.0 for name in LOSSES)
    levels = TwoStageDetector(tiny_fpn(strides=(4, 8, 16, 32, 64)))
    with pytest.raises(InputError, match="teacher x: strides"):
        Teacher(levels, "x", "").check(made)


# ------------------------------------------------------------------------ images


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "shorter"])
def test_training_sees_what_the_detector_sees(resize: str, dataset: CocoDataset) -> None:
    from sparsedet.images.letterbox import prepare

    config = replace(tiny_fpn(resize), min_size=50, max_size=70)
    config = replace(config, graph=config.graph.resized(96, 96))
    recipe = replace(ALL, steps=1)
    network_input, (target,) = load_micro_batch(dataset, [1], config, recipe, 0)
    image = read_image(dataset.image_path(dataset.images[1]))
    expected, at = prepare(image, config)
    assert (target.height, target.width) == (at.resized_height, at.resized_width)
    height, width = network_input.shape[2:]
    assert height % 32 == width % 32 == 0
    got = network_input[0].permute(1, 2, 0).numpy()
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected[:height, :width])
    assert not expected[height:].any() and not expected[:, width:].any()
    scale = np.array([at.resized_width / at.width, at.resized_height / at.height] * 2)
    assert np.allclose(target.boxes.numpy(), dataset.images[1].boxes * scale, atol=1e-3)


def test_colours_change_and_crops_are_refused_where_images_have_their_own_size(
    dataset: CocoDataset, tmp_path: Path
) -> None:
    config = tiny_fpn("shorter")
    for recipe in (replace(ALL, colour=1.0, mosaic=1.0), replace(ALL, short_sides=(40, 50))):
        network_input, _ = load_micro_batch(dataset, [0, 1], config, recipe, 0)
        assert network_input.dtype == torch.float32 and float(network_input.max()) <= 255
    with pytest.raises(InputError, match="crop cuts to the size of the network input"):
        Trainer(TwoStageDetector(config), dataset, replace(FAST, crop=True), tmp_path)


# ------------------------------------------------------------------------ runs

LEARN = replace(
    FAST,
    steps=160,
    optimizer="adamw",
    learning_rate=2e-3,
    decay="cosine",
    warmup_steps=10,
    clip_gradient=1.0,
    flip=0.0,
    scale_low=1.0,
    sparsity=0.5,
    prune_begin=60,
    prune_end=110,
    prune_every=10,
    ema=0.9,
)


def total(values: dict[str, Any]) -> float:
    return sum(float(value.detach()) for value in values.values())


def run(dataset: CocoDataset, recipe: Any, folder: Path, config: DetectorConfig) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(TwoStageDetector(config, norm=True), dataset, recipe, folder)


def test_a_tiny_one_learns_while_it_is_pruned(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_fpn()
    network_input, targets = load_micro_batch(dataset, [0, 1, 2, 3], config, LEARN, 0)
    trained = run(dataset, LEARN, tmp_path / "run", config)
    before = total(losses(trained.model, LEARN, network_input, targets))
    assert trained.run()
    after = total(losses(trained.model, LEARN, network_input, targets))
    assert after < 0.4 * before
    path = trained.save_model({})
    saved = load_model(path)
    assert saved.config == config
    assert sparsity_report(saved.config, saved.tensors).sparsity >= 0.5
    detector = Detector.load(path, threads=1)
    found = 0
    for annotated in dataset.images:
        image = read_image(dataset.image_path(annotated))
        detections = detector(image, 0.3)
        with trained.average.in_place():  # type: ignore[union-attr]
            own = detect(trained.model.eval(), image, torch.device("cpu")).above(0.3)
        assert len(own.boxes) == len(detections.boxes)
        assert np.allclose(own.boxes, detections.boxes, atol=0.3)  # float16 in the file
        for box, label in zip(annotated.boxes, annotated.labels, strict=True):
            same = detections.boxes[detections.labels == label]
            found += bool((np.abs(same - box).max(axis=1, initial=0) < 8).any())
    assert found >= 0.7 * sum(len(image.boxes) for image in dataset.images)


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "sensitivity"])
def test_resuming_is_exact(
    allocation: Allocation, dataset: CocoDataset, tmp_path: Path, capsys: Any
) -> None:
    recipe = replace(
        FAST,
        sparsity=0.5,
        allocation=allocation,
        prune_begin=1,
        prune_end=5,
        prune_every=2,
        ema=0.9,
    )
    config = tiny_fpn("shorter")
    whole = run(dataset, recipe, tmp_path / "whole", config)
    whole.run()
    stopped = run(dataset, recipe, tmp_path / "stopped", config)
    step = stopped.train_step

    def stopping(micro_batches: Any) -> Any:
        if stopped.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(micro_batches)

    stopped.train_step = stopping  # type: ignore[method-assign]
    assert not stopped.run()
    start = open_start(tmp_path / "stopped")
    assert start.config == config and start.checkpoint
    rest = run(dataset, recipe, tmp_path / "stopped", config)
    rest.resume(start.checkpoint)
    assert rest.run()
    a, b = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.pruner is not None and whole.pruner.sparsity() >= 0.5
    converted = load_foreign(tmp_path / "whole")  # the averages
    own = load_model(whole.save_model({})).tensors
    assert all(np.allclose(converted.tensors[n], v, rtol=1e-2, atol=1e-4) for n, v in own.items())


# ------------------------------------------------------------------------ the command line


@pytest.fixture
def command(files: tuple[Path, Path], tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "recipe.json").write_text(json.dumps(replace(FAST, steps=3).to_dict()))

    def call(name: str, output: str, *flags: object) -> int:
        data = ["--annotations", str(files[0]), "--images", str(files[1]), "--threads", "1"]
        if name in ("train", "prune"):
            data += ["--output", str(tmp_path / output)]
        if name in ("train", "prune") and "--resume" not in flags:
            data += ["--recipe", str(tmp_path / "recipe.json")]
        return main([name, *data, *map(str, flags)])

    return call


def test_from_a_model_file_to_eval_and_compare(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_fpn("shorter")
    begin = tmp_path / "begin.safetensors"
    save_model(begin, config, TwoStageDetector(config).folded_tensors(), {})
    assert command("train", "dense", "--init", begin, "--val-fraction", 0.6, "--val-every", 2) == 0
    dense = tmp_path / "dense"
    prune = ("--init", dense, "--teacher", begin, "--sparsity", 0.5, "--prune-end", 2)
    assert command("prune", "sparse", *prune) == 0
    assert command("prune", "sparse", "--resume", "--steps", 5) == 1
    assert "its run has a teacher" in capsys.readouterr().err
    assert command("prune", "sparse", "--resume", "--steps", 5, "--teacher", begin) == 0
    a, b = (str(x / "model.safetensors") for x in (dense, tmp_path / "sparse"))
    saved = load_model(b)
    assert isinstance(saved.config, DetectorConfig) and saved.config.resize == "shorter"
    assert sparsity_report(saved.config, saved.tensors).sparsity >= 0.5
    capsys.readouterr()
    assert command("eval", "", "--model", b) == 0
    assert "4 images" in capsys.readouterr().out
    assert command("compare", "", a, b) == 0
    assert "tiny-fpn" in capsys.readouterr().out


def test_the_backbone_of_a_c4_begins_a_pyramid(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(FPN_PRESETS, "r50half-fpn", lambda: tiny_fpn(std=TINY.pixel_std))
    begin = tmp_path / "c4.safetensors"
    made = FasterRCNN(TINY)
    made.reset_parameters(3)
    save_model(begin, TINY, made.folded_tensors(), {})
    flags = ("--init", begin, "--preset", "r50half-fpn", "--learning-rate", 1e-30)
    assert command("train", "run", *flags) == 0
    assert "its backbone alone is taken" in capsys.readouterr().out
    tensors = load_model(tmp_path / "run" / "model.safetensors").tensors
    for name, value in load_model(begin).tensors.items():
        if name.startswith(("stem.", "res")):
            assert np.allclose(tensors[name], value, rtol=1e-3, atol=1e-6), name
    other = tiny_fpn()
    with pytest.raises(InputError, match="which has another normalise"):
        initial_tensors(open_start(begin), other)


def test_a_classifier_begins_a_pyramid(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    state = torchvision.models.resnet50().state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    config = detector_preset("r50-fpn")
    taken, note = initial_tensors(open_start(tmp_path / "resnet.pth"), config)
    model = build_model(config, taken)
    assert not note and model.layers["res5.2.conv3"].norm is not None
    own = model.layers["res5.2.conv3"].weight
    assert torch.equal(own, state["layer4.2.conv3.weight"])
    assert not any(name.startswith(("fpn.", "rpn.", "box.")) for name in taken)
    with pytest.raises(InputError, match="strides in the 3x3 convolution, r50half-fpn in"):
        open_start(tmp_path / "resnet.pth").tensors(detector_preset("r50half-fpn"))


def test_several_processes_and_mixed_precision_learn_the_same(
    command: Callable[..., int], files: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    begin = tmp_path / "begin.safetensors"
    save_model(begin, tiny_fpn(), TwoStageDetector(tiny_fpn()).folded_tensors(), {})
    flags = ("--init", begin, "--accumulate", 2)
    assert command("train", "one", *flags) == 0
    assert command("train", "bf16", *flags, "--amp", "bf16") == 0
    given = ["--annotations", files[0], "--images", files[1], "--threads", 1, *flags]
    given += ["--recipe", tmp_path / "recipe.json", "--output", tmp_path / "two"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "sparsedet", "train", *map(str, given)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    one, two, bf16 = (
        load_model(tmp_path / name / "model.safetensors").tensors for name in ("one", "two", "bf16")
    )
    assert all(np.allclose(two[n], v, rtol=2e-3, atol=1e-5) for n, v in one.items())
    assert all(np.allclose(bf16[n], v, rtol=0.1, atol=1e-2) for n, v in one.items())


def test_predictors_keep_the_rows_of_known_classes(tmp_path: Path) -> None:
    for config in (tiny_fpn(), TINY, replace(TINY, background="last", background_deltas=False)):
        path = tmp_path / "begin.safetensors"
        tensors = TwoStageDetector(config).folded_tensors()
        save_model(path, config, tensors, {}, dtype="float32", overwrite=True)
        fewer = with_classes(config, (NAMES[2], NAMES[0]), (8, 3))
        taken, note = initial_tensors(open_start(path), fewer)
        assert "keep the rows" in note
        model = build_model(fewer, taken)
        logits = model.layers["box.logits"].weight.detach().numpy()
        deltas = model.layers["box.deltas"].weight.detach().numpy()
        last = not isinstance(config, DetectorConfig) and config.background == "last"
        rows = [2, 0, 3] if last else [0, 3, 1]
        assert np.array_equal(logits, tensors["box.logits.weight"][rows])
        blocks = [2, 0] if last else rows
        boxes = tensors["box.deltas.weight"]
        assert np.array_equal(deltas, np.concatenate([boxes[4 * i : 4 * i + 4] for i in blocks]))
        unknown = with_classes(config, (NAMES[2], "new"), (8, 3))
        taken, note = initial_tensors(open_start(path), unknown)
        assert "initialised randomly" in note and "box.logits.weight" not in taken


def test_the_presets() -> None:
    for name in FPN_PRESETS:
        config = detector_preset(name)
        assert isinstance(config, DetectorConfig) and config.class_names == COCO_NAMES
    assert detector_preset("r50-c4") is PRESETS["r50-c4"]
    half, c4 = build_graph(detector_preset("r50half-fpn")), build_graph(PRESETS["r50half-c4"])
    for layer in c4.layers:
        if layer.name.startswith(("stem.", "res")):
            assert half.layer[layer.name].attributes == layer.attributes
            assert half.layer[layer.name].weight_shape == layer.weight_shape
    theirs = models.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81
    ).state_dict()
    own = build_graph(detector_preset("r50-fpn"))
    convolutions = sum(
        v.numel() for k, v in theirs.items() if k.endswith(".weight") and v.dim() > 1
    )
    assert sum(layer.weights for layer in own.layers) == convolutions


def tensors_of(config: DetectorConfig) -> dict[str, Any]:
    state = GraphModule("x", config.graph).folded_tensors()
    return {name: np.zeros_like(value) for name, value in state.items()}


def test_other_detectors_are_refused_in_one_line(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared: dict[str, Any] = {"mean": TINY.pixel_mean, "std": TINY.pixel_std, "num_classes": 3}
    fcos = OneStage(**shared, top="output", sizes=(8.0, 16.0, 32.0, 64.0, 128.0), channels=32)
    config = replace(tiny_fpn(), graph=build_one_stage(fcos, (64, 96)), name="my-fcos")
    for other in (config, tiny_fpn(mask_convs=1)):
        with pytest.raises(InputError, match="is no Faster R-CNN: RetinaNet, FCOS and Mask R-CNN"):
            TwoStageDetector(other)
    path = tmp_path / "fcos.safetensors"
    save_model(path, config, tensors_of(config), {})
    for name in ("train", "prune"):
        capsys.readouterr()
        assert command(name, "no", "--init", path, "--sparsity", 0.5, "--prune-end", 2) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "my-fcos is no Faster R-CNN" in line and "pruned at once here" in line
    assert not (tmp_path / "no").exists()
    assert command("train", "no", "--preset", "r50-fpm") == 2
    assert "r50half-fpn" in capsys.readouterr().err
