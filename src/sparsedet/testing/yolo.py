"""Networks shaped as YOLOv5u, YOLOv8, YOLO11 and YOLOX, with random weights, written for these
tests from the published shapes of their layers. No code of theirs was read.

The decoding at their end is that of an export: boxes and scores of all cells in one array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class ConvUnit(nn.Module):
    """A convolution, batch norm and SiLU."""

    def __init__(
        self,
        ins: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class TwoConvs(nn.Module):
    """Two convolutions, and the input that is added after the second activation."""

    def __init__(
        self, ins: int, out: int, add: bool, kernels: tuple[int, int], inner: float
    ) -> None:
        super().__init__()
        middle = int(out * inner)
        self.cv1 = ConvUnit(ins, middle, kernels[0])
        self.cv2 = ConvUnit(middle, out, kernels[1])
        self.add = add and ins == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class SplitStage(nn.Module):
    """YOLOv8's and 11's stage: one half of the channels goes through blocks, all results are
    joined."""

    def __init__(self, ins: int, out: int, blocks: Sequence[nn.Module], half: int) -> None:
        super().__init__()
        self.channels = half
        self.cv1 = ConvUnit(ins, 2 * half)
        self.cv2 = ConvUnit((2 + len(blocks)) * half, out)
        self.m = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).split((self.channels, self.channels), 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        out: Tensor = self.cv2(torch.cat(parts, 1))
        return out


class CrossStage(nn.Module):
    """YOLOv5's stage: two branches, one of them with blocks, are joined."""

    def __init__(self, ins: int, out: int, count: int, add: bool, kernels: tuple[int, int]) -> None:
        super().__init__()
        half = out // 2
        self.cv1, self.cv2 = ConvUnit(ins, half), ConvUnit(ins, half)
        self.cv3 = ConvUnit(2 * half, out)
        self.m = nn.Sequential(*(TwoConvs(half, half, add, kernels, 1.0) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class PyramidPool(nn.Module):
    """Three maximum pools of 5x5, one after the other, joined (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvUnit(channels, channels // 2)
        self.cv2 = ConvUnit(channels * 2, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        parts += [self.m(parts[-1])]
        parts += [self.m(parts[-1])]
        parts += [self.m(parts[-1])]
        out: Tensor = self.cv2(torch.cat(parts, 1))
        return out


class SelfAttention(nn.Module):
    """Attention among the cells of a map, with a depthwise convolution of the values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, channels // heads
        self.key = self.each // 2
        self.qkv = ConvUnit(channels, channels + 2 * heads * self.key, act=False)
        self.proj = ConvUnit(channels, channels, act=False)
        self.pe = ConvUnit(channels, channels, 3, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.heads, 2 * self.key + self.each, height * width)
        q, k, v = qkv.split([self.key, self.key, self.each], dim=2)
        shares = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(dim=-1)
        mixed = (v @ shares.transpose(-2, -1)).view(batch, channels, height, width)
        out: Tensor = self.proj(mixed + self.pe(v.reshape(batch, channels, height, width)))
        return out


class AttentionBlock(nn.Module):
    """Attention and two convolutions, each added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(channels, heads)
        self.ffn = nn.Sequential(
            ConvUnit(channels, 2 * channels), ConvUnit(2 * channels, channels, act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        out: Tensor = x + self.ffn(x)
        return out


class AttentionStage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels // 2
        self.cv1, self.cv2 = ConvUnit(channels, channels), ConvUnit(channels, channels)
        self.m = AttentionBlock(self.channels, max(self.channels // 64, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.channels, self.channels), 1)
        out: Tensor = self.cv2(torch.cat((a, self.m(b)), 1))
        return out


class CellHead(nn.Module):
    """Predictors of three levels and the decoding of all cells: 16 bins for each side of a box."""

    def __init__(self, channels: Sequence[int], classes: int, light: bool) -> None:
        super().__init__()
        self.classes = classes
        c2, c3 = max(16, channels[0] // 4, 64), max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(ConvUnit(x, c2, 3), ConvUnit(c2, c2, 3), nn.Conv2d(c2, 64, 1))
            for x in channels
        )

        def scores(x: int) -> nn.Module:
            if not light:
                return nn.Sequential(
                    ConvUnit(x, c3, 3), ConvUnit(c3, c3, 3), nn.Conv2d(c3, classes, 1)
                )
            return nn.Sequential(
                nn.Sequential(ConvUnit(x, x, 3, groups=x), ConvUnit(x, c3)),
                nn.Sequential(ConvUnit(c3, c3, 3, groups=c3), ConvUnit(c3, c3)),
                nn.Conv2d(c3, classes, 1),
            )

        self.cv3 = nn.ModuleList(scores(x) for x in channels)
        self.dfl = nn.Conv2d(16, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        joined = [
            torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, maps, strict=True)
        ]
        points, strides = [], []
        for i, x in enumerate(joined):
            height, width = x.shape[2:]
            y, x_ = torch.meshgrid(
                torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
            )
            points.append(torch.stack((x_, y), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), 8.0 * 2**i))
        anchors, steps = torch.cat(points).T[None], torch.cat(strides).T
        flat = torch.cat([x.view(1, 64 + self.classes, -1) for x in joined], 2)
        box, scores = torch.split(flat, [64, self.classes], 1)
        count = box.shape[2]
        sides = self.dfl(box.view(1, 4, 16, count).transpose(2, 1).softmax(1)).view(1, 4, count)
        before, after = sides.chunk(2, 1)
        first, last = anchors - before, anchors + after
        boxes = torch.cat(((first + last) / 2, last - first), 1) * steps
        return torch.cat((boxes, scores.sigmoid()), 1)


class YoloShaped(nn.Module):
    """A whole network.

    Args:
        kind: "v5u", "v8" or "11".
        width: channels of the first convolution: 16 in the sizes n, 32 in s.
        depth: blocks of a stage, at least 1.
        classes: number of classes.
    """

    def __init__(self, kind: str, width: int = 8, depth: int = 1, classes: int = 5) -> None:
        super().__init__()
        w, self.kind = width, kind

        def stage(ins: int, out: int, count: int, add: bool) -> nn.Module:
            if kind == "v5u":
                return CrossStage(ins, out, count, add, (1, 3))
            half = out // 2 if kind == "v8" else max(out // 4, 4)
            if kind == "v8":
                blocks: list[nn.Module] = [
                    TwoConvs(half, half, add, (3, 3), 1.0) for _ in range(count)
                ]
            else:
                blocks = [TwoConvs(half, half, True, (3, 3), 0.5) for _ in range(count)]
            return SplitStage(ins, out, blocks, half)

        first = 6 if kind == "v5u" else 3
        stem = nn.Conv2d(3, w, first, 2, 2 if first == 6 else 1, bias=False)
        self.stem = ConvUnit(3, w, 3, 2)
        self.stem.conv = stem
        self.down = nn.ModuleList(ConvUnit(w * 2**i, w * 2 ** (i + 1), 3, 2) for i in range(4))
        self.stages = nn.ModuleList(
            stage(w * 2**i, w * 2**i, depth * n, True) for i, n in ((1, 1), (2, 2), (3, 2), (4, 1))
        )
        self.pool = PyramidPool(w * 16)
        self.attention: nn.Module = AttentionStage(w * 16) if kind == "11" else nn.Identity()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top = nn.ModuleList(
            (stage(w * 24, w * 8, depth, False), stage(w * 12, w * 4, depth, False))
        )
        self.back = nn.ModuleList((ConvUnit(w * 4, w * 4, 3, 2), ConvUnit(w * 8, w * 8, 3, 2)))
        self.bottom = nn.ModuleList(
            (stage(w * 12, w * 8, depth, False), stage(w * 24, w * 16, depth, False))
        )
        self.head = CellHead((w * 4, w * 8, w * 16), classes, kind == "11")

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        x = self.stem(x)
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        p5 = self.attention(self.pool(x))
        p4 = self.top[0](torch.cat((self.up(p5), maps[2]), 1))
        p3 = self.top[1](torch.cat((self.up(p4), maps[1]), 1))
        n4 = self.bottom[0](torch.cat((self.back[0](p3), p4), 1))
        n5 = self.bottom[1](torch.cat((self.back[1](n4), p5), 1))
        out: Tensor = self.head((p3, n4, n5))
        return out


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


def export(model: nn.Module, path: Path, size: tuple[int, int], **options: Any) -> Path:
    """The model as an ONNX file, by torch's exporter.

    Args:
        options: of `torch.onnx.export`.
    """
    import warnings

    options = {"dynamo": False, "opset_version": 20, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, *size),), str(path), **options)
    return path
