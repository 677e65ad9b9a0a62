"""A model in training form for the tests of gradual pruning, and what they do to it."""

from __future__ import annotations

from dataclasses import replace

import torch

from helpers.small import SMALL
from sparsedet.pruning.masks import GradualPruner
from sparsedet.torch_model import FasterRCNN, TwoStageDetector

# Large enough that rounding up a layer is far below a thousandth of all parameters.
CONFIG = replace(
    SMALL,
    name="masks",
    bottleneck_channels=(16, 24, 32, 40),
    stage_channels=(32, 48, 64, 80),
    rpn_channels=48,
)


def model(seed: int = 0) -> FasterRCNN:
    """In training form, with batch norms whose scales differ by orders of magnitude."""
    made = FasterRCNN(CONFIG, norm=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for conv in made.layers.values():
            conv.weight.normal_(0, 1, generator=generator)
            if conv.norm is not None:
                conv.norm.weight.copy_(
                    torch.empty(len(conv.weight)).exponential_(generator=generator)
                )
                conv.norm.bias.normal_(0, 1, generator=generator)
                conv.norm.running_mean.normal_(0, 1, generator=generator)
                conv.norm.running_var.uniform_(0.01, 4, generator=generator)
    return made


def jitter(made: FasterRCNN, seed: int) -> None:
    """Change all live weights, as training would: their order changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for conv in made.layers.values():
            noise = torch.empty_like(conv.weight).normal_(0, 0.5, generator=generator)
            conv.weight.add_(noise * (conv.weight != 0))


def observe_gradients(made: FasterRCNN, pruner: GradualPruner, seed: int) -> None:
    """Show the pruner gradients whose sizes differ between layers, rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    for conv in made.layers.values():
        shape = conv.weight.shape
        sizes = [torch.rand(size, generator=generator) for size in (1, *shape[:2])]
        gradient = torch.empty(shape).normal_(0, 1, generator=generator)
        scale = sizes[0] * sizes[1][:, None] * sizes[2]
        conv.weight.grad = gradient * scale.view(*scale.shape, *[1] * (len(shape) - 2))
    pruner.observe()


def zero_weights(made: TwoStageDetector) -> dict[str, int]:
    return {name: int((conv.weight == 0).sum()) for name, conv in made.layers.items()}
