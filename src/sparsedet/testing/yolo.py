"""Networks shaped as YOLOv5, YOLOv5u, YOLOv8 and YOLO11, written for tests and benchmarks from the
published shapes of their layers. No code of theirs was read.

The decoding at their end is that of an export: boxes and scores of all cells in one array. Needs
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["v5", "v5u", "v8", "11"]


class YoloSize(NamedTuple):
    """Channels of the first convolution and of the deepest maps, and blocks of a stage."""

    width: int
    deepest: int
    depth: int


SIZES = {"n": YoloSize(16, 256, 1), "s": YoloSize(32, 512, 1), "m": YoloSize(48, 576, 2)}
"""Published sizes: of "m" those of YOLOv8."""
ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
"""Published anchors of YOLOv5: of each level width and height in pixels."""


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
        padding = kernel // 2 if kernel % 2 else kernel // 2 - 1
        self.conv = nn.Conv2d(ins, out, kernel, stride, padding, groups=groups, bias=False)
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
    """Predictors of three levels and the decoding of all cells: some bins for each side of a box.

    With one bin it is the head of YOLO26 without its choice of boxes.
    """

    def __init__(self, channels: Sequence[int], classes: int, light: bool, bins: int) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        c2, c3 = max(16, channels[0] // 4, 4 * bins), max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(ConvUnit(x, c2, 3), ConvUnit(c2, c2, 3), nn.Conv2d(c2, 4 * bins, 1))
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
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(float(bins)).view(1, bins, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        joined = [
            torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, maps, strict=True)
        ]
        points, strides = [], []
        for i, x in enumerate(joined):
            points.append((_grid(x) + 0.5).view(-1, 2))
            strides.append(torch.full((len(points[-1]), 1), 8.0 * 2**i))
        anchors, steps = torch.cat(points).T[None], torch.cat(strides).T
        channels = 4 * self.bins + self.classes
        flat = torch.cat([x.view(len(x), channels, -1) for x in joined], 2)
        box, scores = torch.split(flat, [4 * self.bins, self.classes], 1)
        count = box.shape[2]
        if self.bins > 1:
            box = self.dfl(box.view(len(box), 4, self.bins, count).transpose(2, 1).softmax(1))
            box = box.view(len(box), 4, count)
        before, after = box.chunk(2, 1)
        first, last = anchors - before, anchors + after
        boxes = torch.cat(((first + last) / 2, last - first), 1) * steps
        return torch.cat((boxes, scores.sigmoid()), 1)


class AnchorHead(nn.Module):
    """YOLOv5's predictors, one of each level for all its anchors, and their decoding."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.each = 5 + classes
        self.m = nn.ModuleList(nn.Conv2d(x, 3 * self.each, 1) for x in channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        rows = []
        for i, (predictor, x) in enumerate(zip(self.m, maps, strict=True)):
            height, width = x.shape[2:]
            cells = predictor(x).view(len(x), 3, self.each, height, width)
            cells = cells.permute(0, 1, 3, 4, 2)
            centre, sides, rest = cells.sigmoid().split((2, 2, self.each - 4), 4)
            centre = (centre * 2 + (_grid(x) - 0.5)) * 8.0 * 2**i
            sides = (sides * 2) ** 2 * torch.tensor(ANCHORS[i]).view(1, 3, 1, 1, 2)
            rows.append(torch.cat((centre, sides, rest), 4).view(len(x), -1, self.each))
        return torch.cat(rows, 1)


def _grid(x: Tensor) -> Tensor:
    """Column and row of each cell, [H, W, 2]."""
    rows, columns = (torch.arange(float(n)) for n in x.shape[2:])
    y, x_ = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x_, y), -1)


class YoloShaped(nn.Module):
    """A whole network.

    Args:
        kind: of the network.
        width: channels of the first convolution.
        deepest: channels of the deepest maps; default: 16 times `width`.
        depth: blocks of a stage, at least 1.
        classes: number of classes.
        bins: of each side of a box, where there are no anchors.
    """

    def __init__(
        self,
        kind: Kind,
        width: int = 8,
        deepest: int | None = None,
        depth: int = 1,
        classes: int = 5,
        bins: int = 16,
    ) -> None:
        super().__init__()
        w, d, self.kind, light = width, deepest or 16 * width, kind, kind == "11"

        def stage(ins: int, out: int, count: int, deep: bool = False, back: bool = True) -> Any:
            """deep: with blocks in its blocks (11); back: in the backbone, where blocks add their
            input."""
            if kind in ("v5", "v5u"):
                return CrossStage(ins, out, count * depth, back, (1, 3))
            half = out // 4 if light and back and not deep else out // 2
            blocks: list[nn.Module] = []
            for _ in range(count * depth):
                if deep:
                    blocks.append(CrossStage(half, half, 2, True, (3, 3)))
                else:
                    inner = 0.5 if light else 1.0
                    blocks.append(TwoConvs(half, half, back or light, (3, 3), inner))
            return SplitStage(ins, out, blocks, half)

        self.stem = ConvUnit(3, w, 6 if kind in ("v5", "v5u") else 3, 2)
        downs = ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, d))
        outs = (2 * w, 4 * w, 8 * w, d)
        counts = {"v8": (1, 2, 2, 1), "11": (1, 1, 1, 1)}.get(kind, (1, 2, 3, 1))
        if light:  # its stages widen the first two maps
            downs = ((w, 2 * w), (4 * w, 4 * w), (8 * w, 8 * w), (8 * w, d))
            outs = (4 * w, 8 * w, 8 * w, d)
        p3, p4 = outs[1:3]
        self.down = nn.ModuleList(ConvUnit(a, b, 3, 2) for a, b in downs)
        self.stages = nn.ModuleList(
            stage(a, b, count, light and i > 1)
            for i, ((_, a), b, count) in enumerate(zip(downs, outs, counts, strict=True))
        )
        self.pool = PyramidPool(d)
        self.attention: nn.Module = AttentionStage(d) if light else nn.Identity()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        narrow = kind in ("v5", "v5u")  # 1x1 convolutions before maps grow
        n5, n4 = (8 * w, 4 * w) if narrow else (d, 8 * w)
        self.lateral = nn.ModuleList(
            (ConvUnit(d, n5), ConvUnit(8 * w, n4)) if narrow else (nn.Identity(), nn.Identity())
        )
        self.top = nn.ModuleList(
            (stage(n5 + p4, 8 * w, 1, back=False), stage(n4 + p3, 4 * w, 1, back=False))
        )
        self.back = nn.ModuleList((ConvUnit(4 * w, 4 * w, 3, 2), ConvUnit(8 * w, 8 * w, 3, 2)))
        self.bottom = nn.ModuleList(
            (stage(4 * w + n4, 8 * w, 1, back=False), stage(8 * w + n5, d, 1, light, back=False))
        )
        channels = (4 * w, 8 * w, d)
        self.head: nn.Module = (
            AnchorHead(channels, classes)
            if kind == "v5"
            else CellHead(channels, classes, light, bins)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        x = self.stem(x)
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        p5 = self.lateral[0](self.attention(self.pool(x)))
        p4 = self.lateral[1](self.top[0](torch.cat((self.up(p5), maps[2]), 1)))
        p3 = self.top[1](torch.cat((self.up(p4), maps[1]), 1))
        n4 = self.bottom[0](torch.cat((self.back[0](p3), p4), 1))
        n5 = self.bottom[1](torch.cat((self.back[1](n4), p5), 1))
        out: Tensor = self.head((p3, n4, n5))
        return out


def yolo_of_size(kind: Kind, size: str, classes: int = 80) -> YoloShaped:
    """A network of a published size, a key of `SIZES`."""
    return YoloShaped(kind, **SIZES[size]._asdict(), classes=classes)
