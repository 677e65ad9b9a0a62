"""torchvision's MobileNetV3-Large runs in the engine, operation by operation, as a graph."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet._native import NativeEngine, available_isas, has_bfloat16

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

KINDS = [
    (isa, precision, size)
    for isa in available_isas()
    for precision in ("f32", "bf16")
    for size in ((64, 96), (33, 17))  # the last maps of the second size have one cell
    if precision == "f32" or has_bfloat16(isa)
]


class Builder:
    """Adds the modules of a network to an engine."""

    def __init__(self, native: NativeEngine, precision: str) -> None:
        self.native, self.precision = native, precision
        self.channels = {"n": 3}
        fields = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": precision}
        native.add({**fields, "mean": (127.0, 127.0, 127.0), "std": (64.0, 64.0, 64.0)})

    def conv(self, x: str, conv: Any, norm: Any, activation: str, residual: str = "") -> str:
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight = weight * factor[:, None, None, None]
            bias = norm.bias - norm.running_mean * factor
        name = f"v{len(self.channels)}"
        fields: dict[str, Any] = {"name": name, "kind": "conv", "type": self.precision}
        fields |= {"inputs": [x, residual] if residual else [x], "activation": activation}
        fields |= {"in_channels": conv.in_channels, "out_channels": conv.out_channels}
        fields |= {"kernel": conv.kernel_size, "padding": conv.padding * 2}
        fields |= {"stride": conv.stride[0], "dilation": conv.dilation[0], "groups": conv.groups}
        self.native.add(fields, weight.detach().numpy(), bias.detach().numpy())
        self.channels[name] = conv.out_channels
        return name

    def plain(self, kind: str, *inputs: str) -> str:
        name = f"v{len(self.channels)}"
        self.native.add({"name": name, "kind": kind, "inputs": list(inputs)})
        self.channels[name] = self.channels[inputs[0]]
        return name

    def block(self, x: str, module: Any) -> str:
        """An inverted residual block, or a convolution with norm and activation."""
        parts = getattr(module, "block", [module])
        residual = x if getattr(module, "use_res_connect", False) else ""
        for i, part in enumerate(parts):
            if hasattr(part, "fc1"):  # squeeze and excitation
                squeezed = self.conv(self.plain("mean", x), part.fc1, None, "relu")
                x = self.plain("multiply", x, self.conv(squeezed, part.fc2, None, "hardsigmoid"))
                continue
            names = {"Hardswish": "hardswish", "ReLU": "relu"}
            activation = names[type(part[2]).__name__] if len(part) > 2 else "none"
            last = residual if i + 1 == len(parts) else ""
            x = self.conv(x, part[0], part[1], activation, last)
        return x


@functools.cache
def network() -> Any:
    """With norms that are no identity."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_large(weights=None).features.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("isa", "precision", "size"), KINDS)
def test_mobilenet_v3_large(isa: str, precision: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.float32)
    model = network()
    results: list[list[NDArray[np.float32]]] = []
    for threads in (1, 3):
        native = NativeEngine(isa, threads, False, precision, size)
        builder, names = Builder(native, precision), ["n"]
        for module in model:
            names.append(builder.block(names[-1], module))
        native.plan(*size)
        results.append(native.run_between({"image": pixels}, names[1:]))
        (alone,) = native.run_between({"image": pixels}, names[-1:])
        assert np.array_equal(alone, results[-1][-1])
    x = torch.from_numpy(((pixels - 127) / 64).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        for module, got, *others in zip(model, *results, strict=True):
            x = module(x)
            assert all(np.array_equal(got, other) for other in others)
            difference = np.abs(got - x[0].numpy()).max() / x.abs().max().item()
            assert difference < (2e-5 if precision == "f32" else 0.05)
