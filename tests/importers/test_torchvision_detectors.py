"""torchvision's own detectors against the imported ones, on random weights that find much."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.detections import Detections
from sparsedet.detector import Detector
from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.images.letterbox import fit_shorter, prepare, resize_bilinear
from sparsedet.images.masks import paste
from sparsedet.images.read import read_image
from sparsedet.importers import load_foreign
from sparsedet.model.detector_config import DetectorConfig, build_graph
from sparsedet.model.file import ModelFile, load_model, save_model

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models.detection")

from sparsedet.testing.torchvision import (  # noqa: E402
    SETTINGS,
    as_input,
    confident,
    matched,
    save_state,
)
from sparsedet.torch_model import GraphModule  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = {"min_size": 192, "max_size": 300}
PLAIN = "fasterrcnn_resnet50_fpn"
U8 = NDArray[np.uint8]


def pictures() -> list[U8]:
    """Photographs of odd sizes."""
    beach, frisbee = (read_image(EXAMPLES / name) for name in ("beach.jpg", "frisbee.jpg"))
    return [beach, frisbee[:331, :207], beach[17:200, 5:640]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_detections_are_those_of_torchvision(kind: str, tmp_path: Path) -> None:
    images = pictures()
    # The border of smaller pictures in a batch changes the means of squeeze and excitation.
    model = confident(kind, images[:1] if "mobilenet" in kind else images, **SIZE)
    settings = {**SETTINGS[kind], **SIZE}
    imported = load_foreign(save_state(model, tmp_path / "state.pth"), torchvision=settings)
    path = tmp_path / "model.safetensors"
    save_model(path, imported.config, imported.tensors, imported.provenance, dtype="float32")
    detector = Detector.load(path, threads=1, cache=False)
    network = GraphModule("x", build_graph(imported.config)).eval()
    network.load_tensors(imported.tensors)
    for image in images:
        with torch.no_grad():
            theirs = model([as_input(image)])[0]
        assert (theirs["scores"] > 0.5).sum() >= 10 and len(set(theirs["labels"].tolist())) >= 5
        ours = detector(image)
        box, score, missing = matched(ours, theirs)
        assert len(ours.boxes) == len(theirs["boxes"])
        # Squeeze and excitation of random weights, on maps of few cells, makes rounding larger.
        most = 1e-3 if "mobilenet" in kind else 1e-4
        assert box < 0.01 and score < most and missing <= 1, (box, score, missing)

        assert_same_masks(ours, theirs)
        network_input, at = prepare(image, imported.config)
        batch = torch.from_numpy(network_input).permute(2, 0, 1)[None]
        rows = network(batch, (at.resized_height, at.resized_width))[0].numpy()
        rows = rows[rows[:, 0] >= 0]
        assert abs(np.sort(rows[:, 2]) - np.sort(ours.scores)).max() < 1e-3


def assert_same_masks(ours: Detections, theirs: dict[str, Any]) -> None:
    """Of each pasted probability before the threshold; where there are none, none here either."""
    probabilities = ours.mask_probabilities
    assert (probabilities is not None) == ("masks" in theirs)
    if probabilities is None:
        return
    size = ours.letterbox.height, ours.letterbox.width
    boxes, masks = theirs["boxes"].numpy(), theirs["masks"].numpy()[:, 0]
    patches = list(paste(probabilities, ours.unclipped, *size))
    covered = close = 0
    for box, mask in zip(boxes, masks, strict=True):
        found = np.flatnonzero(abs(ours.boxes - box).max(axis=1) < 0.02)
        differences = [1.0]
        for patch in (patches[i] for i in found):
            pasted = np.zeros(size, np.float32)
            pasted[patch.place] = patch.probabilities
            differences.append(float(abs(pasted - mask).max()))
        close += min(differences) < 1e-3
        covered += int((mask >= 0.5).sum())
    # A box that ends at a whole pixel up to rounding is one pixel larger or smaller.
    assert close >= len(boxes) - 1 and covered > 1000, (close, len(boxes), covered)
    assert ours.masks is not None and abs(int(ours.masks.sum()) - covered) < 0.001 * covered


def first_release(name: str) -> str:
    """The name that a tensor had in torchvision's first releases."""
    name = re.sub(r"(fpn\.(inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    tower = re.fullmatch(r"(head\.\w+_head\.conv\.)(\d)\.0\.(\w+)", name)
    if tower:
        name = f"{tower[1]}{2 * int(tower[2])}.{tower[3]}"
    mask = re.fullmatch(r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", name)
    return f"roi_heads.mask_head.mask_fcn{int(mask[1]) + 1}.{mask[2]}" if mask else name


@pytest.mark.parametrize(
    "kind", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn"]
)
def test_names_of_the_first_releases(kind: str, tmp_path: Path) -> None:
    model = getattr(models, kind)(weights=None, weights_backbone=None, num_classes=4)
    state = model.state_dict()
    expected = load_foreign(save_state(model, tmp_path / "now.pth"))
    old = {first_release(name): tensor for name, tensor in state.items()}
    assert len(set(old) - set(state)) > 8
    torch.save(old, tmp_path / "then.pth")
    imported = load_foreign(tmp_path / "then.pth")
    assert imported.config == expected.config
    for name, tensor in expected.tensors.items():
        assert np.array_equal(imported.tensors[name], tensor), name
    torch.save({**state, **old}, tmp_path / "both.pth")
    with pytest.raises(InputError, match="two releases"):
        load_foreign(tmp_path / "both.pth")


def test_what_a_state_dict_does_not_say_is_a_setting(tmp_path: Path) -> None:
    image = pictures()[0]
    model = confident(PLAIN, [image], **SIZE)
    path = save_state(model, tmp_path / "state.pth")
    imported = load_foreign(path, torchvision={**SIZE, "eps": 0.0})
    other = load_foreign(path, torchvision={**SIZE, "eps": 1e-3})
    assert isinstance(imported.config, DetectorConfig)
    assert imported.config.min_size == 192 and imported.config.max_size == 300
    name = "res2.0.conv1.weight"
    assert not np.array_equal(imported.tensors[name], other.tensors[name])
    assert "eps 0" in imported.notes[0] and "192 to 300" in imported.notes[0]
    assert imported.config.class_names[:2] == ("person", "bicycle")
    assert imported.config.class_names[11] == "unused 12"
    with pytest.raises(InputError, match=r"eps is 2, expected 0\.\.1"):
        load_foreign(path, torchvision={"eps": 2})
    for key, value in (("min_size", 1), ("max_size", 10**6)):
        with pytest.raises(InputError, match=f"{key} is {value}"):
            load_foreign(path, torchvision={key: value})


def test_a_file_that_is_no_such_detector_is_refused_in_one_line(tmp_path: Path) -> None:
    state = confident(PLAIN, pictures(), **SIZE).state_dict()

    def refused(changed: dict[str, Any], text: str) -> None:
        path = tmp_path / "changed.pth"
        torch.save(changed, path)
        with pytest.raises(InputError) as error:
            load_foreign(path)
        assert text in str(error.value) and "\n" not in str(error.value)

    fc7 = "roi_heads.box_head.fc7.weight"
    refused({k: v for k, v in state.items() if k != fc7}, f"tensor '{fc7}' is missing")
    refused({**state, fc7: torch.zeros(1024, 1000)}, "has shape")
    refused({**state, fc7: torch.full_like(state[fc7], torch.nan)}, "NaN")
    refused({**state, "roi_heads.mask_head.x.weight": torch.zeros(3)}, "mask_head")


def test_a_model_file_keeps_everything(tmp_path: Path) -> None:
    image = pictures()[1]
    imported = load_foreign(
        save_state(confident(PLAIN, [image], num_classes=6, **SIZE), tmp_path / "state.pth"),
        torchvision=SIZE,
    )
    assert imported.config.class_names == tuple(f"class {i}" for i in range(1, 6))
    path = tmp_path / "model.safetensors"
    save_model(path, imported.config, imported.tensors, {}, dtype="float32")
    model = load_model(path)
    assert model.config == imported.config
    network_input, at = prepare(image, model.config)
    content = at.resized_height, at.resized_width
    before = Engine(imported.config, imported.tensors, threads=1)
    after = Detector(ModelFile(model.config, model.tensors, {}, "float32"), before)
    assert np.array_equal(
        before.run(network_input, content),
        Engine(model.config, model.tensors, threads=2).run(network_input, content),
    )
    assert len(after(image).boxes) > 0


@pytest.mark.parametrize("size", [(331, 207), (183, 635), (640, 621), (7, 900)])
def test_images_are_resized_as_torchvision_does(size: tuple[int, int]) -> None:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    at = fit_shorter(*size, 192, 300, 32)
    transform = GeneralizedRCNNTransform(192, 300, [0.0] * 3, [1.0] * 3)
    images, _ = transform([as_input(image)])
    assert images.image_sizes[0] == (at.resized_height, at.resized_width)
    assert tuple(images.tensors.shape[2:]) == (at.input_height, at.input_width)
    expected = images.tensors[0, :, : at.resized_height, : at.resized_width] * 255
    got = resize_bilinear(image, at.resized_height, at.resized_width)[:, :, ::-1]
    assert abs(got.transpose(2, 0, 1) - expected.numpy()).max() < 1e-3


def test_sizes_are_torchvisions_for_all_images() -> None:
    from torchvision.models.detection import transform

    numbers = np.random.default_rng(1).integers(20, 3000, (60, 2)).tolist()
    # The shorter side of the first two is 799 pixels, in float32 it would be 800.
    for height, width in [(369, 494), (494, 369), *numbers]:
        image = torch.empty(3, height, width, device="meta")  # sizes alone, no pixels
        resized, _ = transform._resize_image_and_masks(image, 800, 1333)
        at = fit_shorter(height, width, 800, 1333, 32)
        assert (at.resized_height, at.resized_width) == tuple(resized.shape[1:])
