"""torch networks with random weights that tell images apart, and their ONNX files.

Random weights alone make all images look alike after some layers: outputs that are equal for every
image would prove nothing. For tests and benchmarks; needs torch, for classifiers torchvision, and
`export` onnx.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class RepVggBlock(nn.Module):
    """RepVGG's block before it becomes one convolution: 3x3, 1x1 and the input, each normalised."""

    def __init__(self, ins: int, out: int, stride: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(ins, out, 3, stride, 1, bias=False)
        self.point = nn.Conv2d(ins, out, 1, stride, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        self.straight = nn.BatchNorm2d(out) if ins == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norms[0](self.wide(x)) + self.norms[1](self.point(x))
        return torch.relu(y if self.straight is None else y + self.straight(x))


class RepVggShaped(nn.Module):
    """A network shaped as RepVGG-A0, written from the paper's tables (arXiv 2101.03697).

    Args:
        fused: each block is one convolution, as for inference; else as in training.
    """

    def __init__(self, fused: bool, classes: int = 1000) -> None:
        super().__init__()
        layers, ins = list[nn.Module](), 3
        for out, count in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
            for i in range(count):
                stride = 2 if i == 0 else 1
                if fused:
                    layers += [nn.Conv2d(ins, out, 3, stride, 1), nn.ReLU()]
                else:
                    layers.append(RepVggBlock(ins, out, stride))
                ins = out
        self.stages = nn.Sequential(*layers)
        self.linear = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.stages(x).mean((2, 3)))
        return out


def classifier(name: str) -> nn.Module:
    """A classifier of torchvision by its name, or "repvgg" or "repvgg_fused"."""
    if name.startswith("repvgg"):
        return RepVggShaped(name.endswith("fused"))
    from torchvision import models

    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    module: nn.Module = getattr(models, name)(weights=None, **options)
    return module


def enlivened(model: nn.Module, gain: float = 2.0, seed: int = 0) -> nn.Module:
    """Random weights and batch norms with which two inputs give different outputs.

    Args:
        gain: of the variance from layer to layer.
    """
    numbers = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=numbers)
            module.running_var.uniform_(0.5, 1.5, generator=numbers)
            module.weight.data.uniform_(0.7, 1.3, generator=numbers)
            module.bias.data.normal_(0, 0.2, generator=numbers)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            spread = math.sqrt(gain / module.weight[0].numel())
            module.weight.data.normal_(0, spread, generator=numbers)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.2, generator=numbers)
    return model.eval()


def settled(model: nn.Module, images: Tensor, shift: float = 0.0) -> nn.Module:
    """The model with batch norms whose statistics are those of some images.

    A convolution with a bias has no batch norm behind it: its channels get the mean 0 and the
    deviation 1 on these images. So at any depth each channel differs between places and images.

    Args:
        images: [B, 3, H, W].
        shift: added to the biases of batch norms. Activations work near their straight part then:
            images differ less, and deep networks make less of rounding, as trained ones do.
    """
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
            module.bias.data += shift
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            hooks.append(module.register_forward_hook(_normalise))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return model.eval()


def _normalise(module: nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
    """A hook: a convolution's outputs get the mean 0 and the deviation 1, if there are enough."""
    assert isinstance(module, nn.Conv2d) and module.bias is not None
    if out.numel() // out.shape[1] < 32:
        return None
    mean, deviation = out.mean((0, 2, 3)), out.std((0, 2, 3)).clamp_min(1e-3)
    module.weight.data /= deviation[:, None, None, None]
    module.bias.data = (module.bias.data - mean) / deviation
    return (out - mean[:, None, None]) / deviation[:, None, None]


def export(model: nn.Module, path: Path, size: tuple[int, int], **options: Any) -> Path:
    """The model as an ONNX file, by torch's exporter.

    Args:
        options: of `torch.onnx.export`.
    """
    options = {"dynamo": False, "opset_version": 20, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, *size),), str(path), **options)
    return path
