"""torchvision's own Faster R-CNN FPN against the imported one, on random weights.

Weights are set layer by layer on a picture, statistics and biases of batch norms too, so that each
picture has many confident detections: equal empty results would prove nothing.
"""

from __future__ import annotations

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
from sparsedet.images.read import read_image
from sparsedet.importers import load_foreign
from sparsedet.model.detector_config import DetectorConfig, build_graph
from sparsedet.model.file import ModelFile, load_model, save_model

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models.detection")

from sparsedet.torch_model import GraphModule  # noqa: E402

LAYERS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = {"min_size": 192, "max_size": 300}
KINDS = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")
DEVIATIONS = {"cls_score": 3.0, "rpn.head.bbox": 0.1, "bbox": 0.3}
"""Deviation of the outputs of layers with these names, else 1."""
U8 = NDArray[np.uint8]


def pictures() -> list[U8]:
    """Photographs of odd sizes."""
    beach, frisbee = (read_image(EXAMPLES / name) for name in ("beach.jpg", "frisbee.jpg"))
    return [beach, frisbee[:331, :207], beach[17:200, 5:640]]


def as_input(image: U8) -> Any:
    return torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255


def set_norm(name: str, norm: Any, x: Any) -> None:
    """Statistics of the input. A residual branch adds little to its trunk: rounding stays small."""
    norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(x.var(dim=(0, 2, 3)).clamp(min=1e-6))
    norm.weight.fill_(0.2 if name.endswith("bn3") else 1.0)
    norm.weight += 0.05 * torch.randn(len(norm.weight))
    norm.bias.copy_(0.1 * torch.randn(len(norm.bias)))


def set_layer(name: str, layer: Any, out: Any) -> Any:
    """A random bias, and weights that give outputs of a fixed deviation; returns the new output.

    A layer that runs on several levels is set on the first. Of a single cell nothing is known.
    """
    if hasattr(layer, "is_set") or out.numel() == out.shape[1]:
        return out
    layer.is_set = True
    deviation = next((d for part, d in DEVIATIONS.items() if part in name), 1.0)
    rare = -4.0 if "classification_head.cls_logits" in name else 0.0
    dims = [d for d in range(out.dim()) if d != 1]
    shape = [1, -1] + [1] * (out.dim() - 2)
    factor = deviation / out.std(dim=dims).clamp(min=1e-6)
    mean, bias = out.mean(dim=dims), rare + 0.1 * deviation * torch.randn(out.shape[1])
    side = [1, -1] if isinstance(layer, torch.nn.ConvTranspose2d) else [-1, 1]
    layer.weight *= factor.view(*side, *[1] * (layer.weight.dim() - 2))
    layer.bias.copy_((layer.bias - mean) * factor + bias)
    return (out - mean.view(shape)) * factor.view(shape) + bias.view(shape)


@torch.no_grad()  # type: ignore[untyped-decorator]
def confident(kind: str, image: U8, **settings: Any) -> Any:
    """A detector of torchvision that finds much on the picture."""
    torch.manual_seed(0)
    model = getattr(models, kind)(weights=None, weights_backbone=None, **SIZE, **settings).eval()
    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda norm, inputs, name=name: set_norm(name, norm, inputs[0])
                )
            )
        elif isinstance(module, LAYERS) and module.bias is not None:
            hooks.append(
                module.register_forward_hook(
                    lambda layer, _, out, name=name: set_layer(name, layer, out)
                )
            )
    model([as_input(image)])
    for hook in hooks:
        hook.remove()
    return model


def state_file(model: Any, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def matched(ours: Detections, theirs: Any) -> tuple[float, float, int]:
    """Largest differences of boxes and scores, and how many of theirs we lack.

    A detection at the end of the list may change places with one of the same score.
    """
    boxes, scores, labels = (theirs[key].numpy() for key in ("boxes", "scores", "labels"))
    box = score = 0.0
    missing = 0
    for b, s, label in zip(boxes, scores, labels, strict=True):
        found = np.flatnonzero((ours.labels == label) & (abs(ours.scores - s) < 1e-2))
        distance = abs(ours.boxes[found] - b).max(axis=1, initial=0)
        if not len(found) or distance.min() > 1:
            missing += 1
            continue
        best = found[distance.argmin()]
        box = max(box, float(distance.min()))
        score = max(score, float(abs(ours.scores[best] - s)))
    return box, score, missing


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_those_of_torchvision(kind: str, tmp_path: Path) -> None:
    images = pictures()
    model = confident(kind, images[0])
    imported = load_foreign(state_file(model, tmp_path / "state.pth"), torchvision=SIZE)
    path = tmp_path / "model.safetensors"
    save_model(path, imported.config, imported.tensors, imported.provenance, dtype="float32")
    detector = Detector.load(path, threads=1, cache=False)
    network = GraphModule("x", build_graph(imported.config)).eval()
    network.load_tensors(imported.tensors)
    for image in images:
        with torch.no_grad():
            theirs = model([as_input(image)])[0]
        assert (theirs["scores"] > 0.5).sum() >= 20 and len(set(theirs["labels"].tolist())) >= 5
        ours = detector(image)
        box, score, missing = matched(ours, theirs)
        assert len(ours.boxes) == len(theirs["boxes"])
        assert box < 0.01 and score < 1e-4 and missing <= 1, (box, score, missing)

        network_input, at = prepare(image, imported.config)
        batch = torch.from_numpy(network_input).permute(2, 0, 1)[None]
        rows = network(batch, (at.resized_height, at.resized_width))[0].numpy()
        scale = [at.input_width / (at.resized_width / at.width)] * 2
        scale[1] = at.input_height / (at.resized_height / at.height)
        assert abs(np.sort(rows[:, 2])[::-1] - np.sort(ours.scores)[::-1]).max() < 1e-3


def test_what_a_state_dict_does_not_say_is_a_setting(tmp_path: Path) -> None:
    image = pictures()[0]
    model = confident(KINDS[0], image)
    path = state_file(model, tmp_path / "state.pth")
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
    state = confident(KINDS[0], pictures()[0]).state_dict()

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
        state_file(confident(KINDS[0], image, num_classes=6), tmp_path / "state.pth"),
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
