"""A graph as a torch module: its convolutions are modules with parameters.

The weights are `NAME.weight`, with either `NAME.bias` (folded form) or a batch norm with frozen
statistics `NAME.norm.{weight,bias,running_mean,running_var}` (training form). The batch norm is
folded into the convolution when that runs: exact, and cheaper than normalising the activations.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.detector_config import rows_of
from ..model.graph import IMAGE, Graph, Layer, RoiAlign
from ..model.rewrite import skip_bins
from .operations import TorchInterpreter, activate


class FrozenBatchNorm(nn.Module):
    """Batch norm whose scale and offset are trained and whose statistics are constants."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


class ConvModule(nn.Module):
    """One layer of the graph, with or without its batch norm."""

    def __init__(self, layer: Layer, norm: bool) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.empty(layer.weight_shape))
        has_norm = norm and layer.norm
        self.norm = FrozenBatchNorm(layer.out_channels) if has_norm else None
        self.bias = None if has_norm else nn.Parameter(torch.zeros(layer.out_channels))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, batch norm folded."""
        if self.norm is None:
            assert self.bias is not None
            return self.weight, self.bias
        scale = self.norm.weight * (self.norm.running_var + self.layer.attributes.eps).rsqrt()
        bias = self.norm.bias - self.norm.running_mean * scale
        return self.weight * scale.view(-1, *[1] * (self.weight.dim() - 1)), bias

    def before_activation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """What the activation reads: with bias, and with the residual that is added before it."""
        layer = self.layer
        weight, bias = self.folded()
        attributes = layer.attributes
        if layer.kind == "linear":
            return F.linear(x.flatten(1), weight, bias)
        (top, left, bottom, right), padding = attributes.padding, 0
        if top == left == bottom == right:
            padding = top
        else:
            x = F.pad(x, (left, right, top, bottom))
        x = F.conv2d(x, weight, bias, layer.stride, padding, attributes.dilation, attributes.groups)
        return x + residual if residual is not None and not attributes.residual_last else x

    def activated(self, before: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer's output, of the result of `before_activation`."""
        attributes = self.layer.attributes
        x = activate(before, attributes.activation)
        return x + residual if residual is not None and attributes.residual_last else x

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.activated(self.before_activation(x, residual), residual)


class GroupNormModule(nn.Module):
    """Scale and offset of a group norm, or of a batch norm that no convolution took."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class GraphModule(nn.Module):
    """A detector in torch.

    Args:
        name: of the detector, for messages.
        graph: its graph.
        norm: batch norms are separate (training form) instead of folded.

    A call with a BGR network input [B, 3, H, W], values 0..255, returns rows [B, N, 7].
    """

    def __init__(self, name: str, graph: Graph, norm: bool = False) -> None:
        super().__init__()
        self.name = name
        self.graph = skip_bins(graph)
        self.layers: dict[str, ConvModule] = {}
        self.norms: dict[str, GroupNormModule] = {}
        for layer in self.graph.layers:
            self.layers[layer.name] = ConvModule(layer, norm)
        for name, channels in self.graph.norms.items():
            self.norms[name] = GroupNormModule(channels)
        for name, module in (*self.layers.items(), *self.norms.items()):
            parent: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, module)

    def load_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Copy arrays into the parameters of the same names.

        Raises:
            ValueError: a tensor is missing, unknown or of the wrong shape.
        """
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        own = self.state_dict()
        for name, value in own.items():
            if name not in state:
                raise ValueError(f"tensor {name!r} is missing")
            if state[name].shape != value.shape:
                raise ValueError(
                    f"tensor {name!r} has shape {tuple(state[name].shape)}, "
                    f"expected {tuple(value.shape)}"
                )
        if extra := sorted(set(state) - set(own)):
            raise ValueError(f"tensor {extra[0]!r} belongs to no layer of {self.name}")
        self.load_state_dict(state)

    def folded_tensors(self) -> dict[str, np.ndarray]:
        """The model's tensors, batch norm folded, float32."""
        out = {}
        with torch.no_grad():
            for name, conv in self.layers.items():
                weight, bias = conv.folded()
                out[f"{name}.weight"] = weight.float().contiguous().cpu().numpy()
                out[f"{name}.bias"] = bias.float().cpu().numpy()
            for name, norm in self.norms.items():
                out[f"{name}.weight"] = norm.weight.float().cpu().numpy()
                out[f"{name}.bias"] = norm.bias.float().cpu().numpy()
        return out

    def interpreter(self, content: tuple[int, int] | None = None) -> TorchInterpreter:
        """Runs the graph with this module's layers."""
        return TorchInterpreter(self.layers, content, self.norms)

    def run(
        self,
        values: MutableMapping[str, Any],
        wanted: Sequence[str],
        content: tuple[int, int] | None = None,
    ) -> list[Any]:
        """The wanted values of the graph; see `Interpreter.run` and `TorchInterpreter`."""
        return self.interpreter(content).run(self.graph, values, wanted)

    @torch.no_grad()
    def forward(self, network_input: Tensor, content: tuple[int, int] | None = None) -> Tensor:
        """BGR network input [B, 3, H, W] -> rows [B, max_detections, 7]; image_id -1 ends an
        image's rows. content: as of `TorchInterpreter`."""
        # What RoIAlign reads is made of the whole batch, the rest image by image.
        shared = {name for o, _ in self.graph.of_kind(RoiAlign) for name in o.inputs}
        values: dict[str, Any] = {IMAGE: network_input}
        wanted = [name for name in self.graph.shapes if name in shared]
        outputs = dict(zip(wanted, self.run(values, wanted, content), strict=True))
        found = []
        for i in range(len(network_input)):
            of_image = {name: value[i : i + 1] for name, value in outputs.items()}
            of_image[IMAGE] = network_input[i : i + 1]
            rows = self.run(of_image, [rows_of(self.graph).name], content)[0]
            rows[:, :, 0] += i * (rows[:, :, 0] >= 0)
            found.append(rows)
        return torch.cat(found)
