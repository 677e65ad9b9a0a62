"""What each layer reads on calibration photographs, when its predecessors are pruned already.

The network's table is walked once. Every photograph's live activations are kept (float16: for
128 photographs on r101-c4's canvas 4 GB at the widest place), so that nothing is computed twice:
a layer's inputs are sampled and handed out, the caller prunes the layer, then it runs on all
photographs and its output feeds the next.

Glossary: columns as in `patterns`; a sample is what one output position reads, [columns]. Some
photographs are held out: nothing is fitted to their samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..network import Layer
from ..preprocess import to_canvas
from ..reference import FasterRCNN

SAMPLES_A_COLUMN = 4
LEAST_SAMPLES = 16384
HELD_OUT_SAMPLES = 2048
REGIONS = 16
"""Of each photograph's proposals, evenly spread from the best to the last."""


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What one layer reads.

    Attributes:
        name: the layer.
        mean: [columns], over the samples of photographs that are not held out.
        hessian: [columns, columns], their covariance times their number; None if not asked for.
            Without the mean, because the bias takes care of it.
        held_out: [<= HELD_OUT_SAMPLES, columns], of held-out photographs.
    """

    name: str
    mean: Tensor
    hessian: Tensor | None
    held_out: Tensor


def calibration_canvas(photo: NDArray[np.uint8], model: FasterRCNN) -> Tensor:
    """A photograph as the network sees it, uint8 [1, 3, h, w], without the empty rest."""
    config = model.config
    canvas, at = to_canvas(photo, config.canvas_height, config.canvas_width, config.resize)
    height = min(math.ceil(at.dst_height / 16) * 16, config.canvas_height)
    width = min(math.ceil(at.dst_width / 16) * 16, config.canvas_width)
    return torch.from_numpy(canvas[:height, :width].copy()).permute(2, 0, 1)[None]


@torch.no_grad()
def layer_inputs(
    model: FasterRCNN, canvases: Sequence[Tensor], layers: Sequence[str], *,
    held_out: int, hessians: bool = True, seed: int = 0,
) -> Iterator[LayerInputs]:  # fmt: skip
    """Inputs of each layer of `layers`, in the order of the network.

    Args:
        model: without separate batch norms. A layer's weights may be changed while its inputs
            are in hand; what follows sees the change.
        canvases: one for each photograph, as `calibration_canvas` makes them.
        held_out: how many of them, the last ones, are held out; at least 1, and 1 is left.
        hessians: gather them, too.

    Raises:
        InputError: activations leave float16's range, or the RPN proposes nothing.
    """
    table = model.network.layers
    last = max(i for i, layer in enumerate(table) if layer.name in layers)
    needs_regions = any(layer.part == "roi" for layer in table[: last + 1])
    wanted = set(layers)
    states = [{"canvas": _store("canvas", model.normalise(canvas))} for canvas in canvases]
    for index, layer in enumerate(table[: last + 1]):
        if layer.source == "rois" and "rois" not in states[0]:
            for state, canvas in zip(states, canvases, strict=True):
                state["rois"] = _store("rois", _regions(model, state, canvas))
        if layer.name in wanted:
            yield _gather(layer, [s[layer.source] for s in states], held_out, hessians,
                          seed * 1000 + index)  # fmt: skip
        later = table[index + 1 :] if index < last else ()
        live = {name for after in later for name in (after.source, after.residual)}
        if needs_regions and layer.part != "roi":
            live |= {model.network.features, "rpn.objectness", "rpn.deltas"}
        if index == last:
            return
        for state in states:
            names = [n for n in (layer.source, layer.residual) if n]
            read = {name: state[name].float() for name in names}
            state[layer.name] = _store(layer.name, model.run_layer(layer, read))
            for name in set(state) - live:
                del state[name]


def _store(name: str, value: Tensor) -> Tensor:
    half = value.to(torch.float16, memory_format=torch.channels_last)
    if not torch.isfinite(half).all():
        raise InputError(f"activations of {name} leave float16's range: this model cannot be "
                         "calibrated")  # fmt: skip
    return half


def _regions(model: FasterRCNN, state: dict[str, Tensor], canvas: Tensor) -> Tensor:
    """RoI features of one photograph's spread proposals, [<= REGIONS, C, 14, 14]."""
    features = state[model.network.features].float()
    logits = state["rpn.objectness"].float().permute(0, 2, 3, 1).reshape(-1)
    deltas = state["rpn.deltas"].float().permute(0, 2, 3, 1).reshape(-1, 4)
    height, width = canvas.shape[2:]
    proposals = model.proposals(logits, deltas, model.anchors(features), height, width)
    if not len(proposals):
        raise InputError("the RPN proposes nothing on a calibration photograph")
    chosen = torch.linspace(0, len(proposals) - 1, min(REGIONS, len(proposals))).long()
    return model.roi_features(features, [proposals[chosen]])


def _gather(
    layer: Layer, inputs: list[Tensor], held_out: int, hessian: bool, seed: int
) -> LayerInputs:
    """Sample the layer's inputs on all photographs."""
    generator = torch.Generator().manual_seed(seed)
    columns = layer.weights // layer.out_channels
    fitted, rest = inputs[: len(inputs) - held_out], inputs[len(inputs) - held_out :]
    total = max(LEAST_SAMPLES, SAMPLES_A_COLUMN * columns)
    share = math.ceil(total / len(fitted))
    # Sums are taken round the first photograph's mean: float32 would lose a small covariance
    # beside a large mean.
    centre: Tensor | None = None
    count, sums, moments = 0, torch.zeros(columns), torch.zeros(0, 0)
    for x in fitted:
        samples = patches(layer, x, share, generator)
        if centre is None:
            centre = samples.mean(dim=0)
            moments = torch.zeros(columns, columns) if hessian else moments
        samples -= centre
        count += len(samples)
        sums += samples.sum(dim=0)
        if hessian:
            moments.addmm_(samples.T, samples)
    assert centre is not None
    shift = sums / count
    if hessian:
        moments.addr_(sums, shift, alpha=-1)
    share = math.ceil(HELD_OUT_SAMPLES / len(rest))
    unseen = torch.cat([patches(layer, x, share, generator) for x in rest])
    return LayerInputs(layer.name, centre + shift, moments if hessian else None, unseen)


def patches(layer: Layer, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """What `count` random output positions of a layer read (all, if it has fewer).

    Args:
        x: the layer's input [B, C, H, W].

    Returns:
        float32 [count, columns].
    """
    before, after = layer.padding
    x = F.pad(x, (before, after, before, after))
    size, stride = layer.kernel, layer.stride
    rows, columns = ((n - size) // stride + 1 for n in x.shape[2:])
    chosen = torch.randperm(len(x) * rows * columns, generator=generator)[:count]
    image, place = chosen // (rows * columns), chosen % (rows * columns)
    top, left = place // columns * stride, place % columns * stride
    nhwc = x.permute(0, 2, 3, 1)
    taps = [nhwc[image, top + i, left + j] for i in range(size) for j in range(size)]
    return torch.stack(taps, dim=1).flatten(1).float()
