"""torchvision's ResNet as the backbone's start: equal features, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("rich")

from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # noqa: E402

from sparsedet import PRESETS, InputError, preset  # noqa: E402
from sparsedet.importers.torchvision import load_torchvision_resnet  # noqa: E402
from sparsedet.training.start import build_model, open_start  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

# One block a stage; the widths are those of ResNet-50 and 101.
SHALLOW = replace(
    preset("r101-c4"), name="shallow", blocks=(1, 1, 1, 1), input_height=64, input_width=96
)


@pytest.fixture(scope="module")
def resnet() -> Any:
    torch.manual_seed(0)
    net = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
            ):
                torch.nn.init.uniform_(tensor.data, low, high)
    return net


@pytest.fixture(scope="module")
def path(resnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet") / "resnet.pth"
    torch.save(resnet.state_dict(), path)
    return path


def changed(path: Path, folder: Path, **tensors: Any) -> Path:
    """A copy with some tensors replaced, or left out for None."""
    state = torch.load(path, weights_only=True)
    state.update({name.replace("__", "."): value for name, value in tensors.items()})
    torch.save({k: v for k, v in state.items() if v is not None}, folder / "changed.pth")
    return folder / "changed.pth"


def test_features_equal_torchvisions(resnet: Any, path: Path, tmp_path: Path) -> None:
    start = open_start(path)
    model = build_model(SHALLOW, start.tensors(SHALLOW))
    assert start.config is None
    photo = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    region = torch.rand(2, 1024, 14, 14, generator=torch.Generator().manual_seed(2))
    rgb = photo.flip(1).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1((rgb - mean) / std))))
        theirs = resnet.layer3(resnet.layer2(resnet.layer1(x)))
        ours = model.first_stage(photo).maps[0]
        res5 = resnet.layer4(region)
        (own_res5,) = model.run({model.rois: region}, ["res5.0.conv3"])
    for own, other in ((ours, theirs), (own_res5, res5)):
        assert own.shape == other.shape and other.abs().max() > 1
        assert (own - other).abs().max() <= 2e-5 * other.abs().max()
    assert not any(name.startswith(("rpn", "box")) for name in start.tensors(SHALLOW))

    from safetensors.torch import save_file

    save_file(torch.load(path, weights_only=True), tmp_path / "resnet.safetensors")
    again = open_start(tmp_path / "resnet.safetensors")
    loaded = again.tensors(SHALLOW)
    assert all(np.array_equal(loaded[n], value) for n, value in start.tensors(SHALLOW).items())
    assert again.config is None


def test_a_classifier_chooses_its_preset(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_start(path).preset is None  # none has one block a stage
    small = replace(PRESETS["r50-c4"], blocks=(1, 1, 1, 1))
    monkeypatch.setitem(PRESETS, "r50-c4", small)
    start = open_start(path)
    assert start.config is None and start.preset == "r50-c4"
    assert "res5.0.conv3.weight" in start.tensors(small)


def test_every_layer_of_the_reference_has_a_name_in_torchvisions_resnet() -> None:
    with torch.device("meta"):
        names = set(torchvision.models.resnet101().state_dict())
    from sparsedet.importers.torchvision import _names
    from sparsedet.model.c4 import build_graph

    expected = {
        f"{prefix}.weight"
        for layer in build_graph(preset("r101-c4")).layers
        if layer.norm
        for prefix in _names(layer)
    }
    assert expected == {n for n in names if n.endswith(".weight")} - {"fc.weight"}


def test_refusals(path: Path, tmp_path: Path) -> None:
    def refused(match: str, file: Path, config: Any = SHALLOW) -> None:
        with pytest.raises(InputError, match=match):
            load_torchvision_resnet(file, config)

    refused(r"has \(1, 1, 1, 1\) blocks a stage, r101-c4 \(3, 4, 23, 3\)", path, preset("r101-c4"))
    refused("strides in the 3x3 convolution", path, preset("r101-c4-detectron2"))
    refused("needs pixel_std", path, replace(SHALLOW, pixel_std=(1.0, 1.0, 1.0)))
    refused(r"none\.pth: No such file", tmp_path / "none.pth")
    refused(
        "'layer2.0.conv2.weight' is missing", changed(path, tmp_path, layer2__0__conv2__weight=None)
    )
    bad = torch.full((64,), torch.nan)
    refused("bn1.weight' holds NaN", changed(path, tmp_path, bn1__weight=bad))
    wide = torch.zeros(128, 64, 1, 1)
    refused(
        r"shape \(128, 64, 1, 1\), expected \(64, ",
        changed(path, tmp_path, layer1__0__conv1__weight=wide),
    )
    se = torch.zeros(4)  # timm's squeeze and excitation, which the network has no place for
    refused(
        "se.fc1.bias' belongs to no layer", changed(path, tmp_path, layer1__0__se__fc1__bias=se)
    )
    refused(r"timm's 'd' form", changed(path, tmp_path, **{"conv1__0__weight": wide}))
    (tmp_path / "text.pth").write_text("no weights")
    refused("is not a pickle, PyTorch", tmp_path / "text.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # a pickle that would run code
    refused(
        r"refused: this pickle wants torch\.nn\.modules\.linear\.Linear", tmp_path / "module.pth"
    )
    torch.save([1, 2], tmp_path / "list.pth")
    refused("holds list", tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    refused("is not a ResNet of torchvision or timm", tmp_path / "other.pth")
    torch.save({"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "fpn.pth")
    refused("is a detector of torchvision", tmp_path / "fpn.pth")
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]).state_dict(), tmp_path / "basic.pth")
    refused(r"two-convolution blocks \(18 or 34\)", tmp_path / "basic.pth")
