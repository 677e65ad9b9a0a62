"""Random output positions of a layer, and the inputs that the layer reads for them.

Columns are those of `patterns`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.graph import Layer, output_length

SAMPLES_PER_COLUMN = 4
LEAST_SAMPLES = 16384
HELD_OUT_SAMPLES = 2048

Positions = tuple[Tensor, Tensor, Tensor]
"""Output positions: image, row, column."""


def positions_of_images(
    layer: Layer, activations: list[dict[str, Tensor]], held_out: int, seed: int
) -> Iterator[Positions]:
    """Random output positions of a layer on each image, the same in both walks."""
    counts = sample_counts(layer, len(activations), held_out)
    for number, (count, image) in enumerate(zip(counts, activations, strict=True)):
        generator = torch.Generator().manual_seed(
            random.Random(f"{seed}/{layer.name}/{number}").getrandbits(48)
        )
        yield random_positions(layer, image[layer.source], count, generator)


def sample_counts(layer: Layer, images: int, held_out: int) -> list[int]:
    """Number of positions to sample on each image; an image may have fewer."""
    columns = layer.weights // layer.out_channels
    total, fitted = max(LEAST_SAMPLES, SAMPLES_PER_COLUMN * columns), images - held_out
    return fitted * [-(-total // fitted)] + held_out * [-(-HELD_OUT_SAMPLES // held_out)]


def random_positions(layer: Layer, x: Tensor, count: int, generator: torch.Generator) -> Positions:
    """Random output positions of a layer.

    Args:
        x: the layer's input [B, C, H, W].
        count: how many; all, if the output has fewer.
    """
    size = tuple(x.shape[2:]) or (1, 1)
    conv = layer.attributes
    top, left, bottom, right = conv.padding
    rows, columns = (
        output_length(length, kernel, conv.stride, around, conv.dilation)
        for length, kernel, around in zip(
            size, conv.kernel, ((top, bottom), (left, right)), strict=True
        )
    )
    chosen = torch.randperm(len(x) * rows * columns, generator=generator)[:count]
    image, pixel = chosen // (rows * columns), chosen % (rows * columns)
    return image, pixel // columns, pixel % columns


def patches(layer: Layer, x: Tensor, positions: Positions) -> Tensor:
    """The inputs that a layer reads for those output positions.

    Args:
        x: the layer's input [B, C, H, W].

    Returns:
        float32 [count, columns].
    """
    if layer.kind == "linear":  # it reads all cells
        return x.flatten(1)[positions[0]].float()
    conv = layer.attributes
    top, left, bottom, right = conv.padding
    nhwc = F.pad(x, (left, right, top, bottom)).permute(0, 2, 3, 1)
    image, row, column = positions
    first, step = (row * conv.stride, column * conv.stride), conv.dilation
    taps = [
        nhwc[image, first[0] + i * step, first[1] + j * step]
        for i in range(conv.kernel[0])
        for j in range(conv.kernel[1])
    ]
    return torch.stack(taps, dim=1).flatten(1).float()
