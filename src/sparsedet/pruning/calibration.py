"""What each layer reads on calibration photographs, when its predecessors are pruned already.

The network's table is walked twice: once before anything is pruned, to note what each layer gives
at some places, and once while its layers are pruned. Every photograph's live activations are kept
(float16: for 128 photographs on r101-c4's network input 4 GB at the widest place, and 2 GB of notes): a
layer's inputs are sampled and handed out, the caller prunes the layer, then it runs on all
photographs and its output feeds the next.

Glossary: columns as in `patterns`; a sample is what one output position reads, [columns]. Some
photographs are held out: nothing is fitted to their samples.
"""

from __future__ import annotations

import ctypes
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..images.letterbox import to_network_input
from ..model.graph import Layer
from ..torch_model import FasterRCNN
from .patterns import to_matrix

SAMPLES_A_COLUMN = 4
LEAST_SAMPLES = 16384
HELD_OUT_SAMPLES = 2048
REGIONS = 16
"""Of each photograph's proposals, evenly spread from the best to the last."""


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What one layer reads.

    What is *missing* is the output of the unpruned network, less what this layer gives on its
    present inputs with its own weights: before ReLU, residual added.

    Attributes:
        name: the layer.
        mean: [columns], over the samples of photographs that are not held out.
        missing: [out], the mean of what is missing.
        hessian: [columns, columns], the samples' covariance times their number; None if not asked
            for. Without the mean, because the bias takes care of it.
        pull: [columns, out], covariance of samples and what is missing, times their number.
        held_out: [<= HELD_OUT_SAMPLES, columns], of held-out photographs.
        held_out_missing: [<= HELD_OUT_SAMPLES, out].
        held_out_size: norm of what the unpruned layer gives there, its mean removed, without the
            residual.
    """

    name: str
    mean: Tensor
    missing: Tensor
    hessian: Tensor | None
    pull: Tensor | None
    held_out: Tensor
    held_out_missing: Tensor
    held_out_size: float


@dataclass(frozen=True, slots=True)
class DenseOutputs:
    """What the unpruned network gives.

    Attributes:
        outputs: of each layer, taken out as it is used: for each photograph what it gives at the
            sampled places, before ReLU, residual added, float16 [samples, out].
        sizes: as `LayerInputs.held_out_size`.
        variances: of each layer's columns [columns], over the photographs that are not held out.
        regions: of each photograph, the boxes that both walks look at.
    """

    outputs: dict[str, list[Tensor]]
    sizes: dict[str, float]
    variances: dict[str, Tensor]
    regions: list[Tensor]


def calibration_input(photo: NDArray[np.uint8], model: FasterRCNN) -> Tensor:
    """A photograph as the network sees it, uint8 [1, 3, h, w], without the empty rest."""
    config = model.config
    network_input, at = to_network_input(
        photo, config.input_height, config.input_width, config.resize
    )
    height = min(math.ceil(at.resized_height / 16) * 16, config.input_height)
    width = min(math.ceil(at.resized_width / 16) * 16, config.input_width)
    return torch.from_numpy(network_input[:height, :width].copy()).permute(2, 0, 1)[None]


@torch.no_grad()
def dense_outputs(
    model: FasterRCNN,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    *,
    held_out: int,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> DenseOutputs:
    """The first walk; arguments as `layer_inputs` takes them, and:

    Args:
        note: told which layer is looked at.

    Raises:
        InputError: activations leave float16's range, or the RPN proposes nothing.
    """
    found = DenseOutputs({}, {}, {}, [])
    # One block of memory: many small ones, each between activations that come and go, would keep
    # the allocator from using or returning what is free there.
    sizes = [
        sum(_counts(model.network.by_name[name], len(network_inputs), held_out))
        * model.network.by_name[name].out_channels
        for name in layers
    ]
    notes, used = torch.empty(sum(sizes), dtype=torch.float16), 0
    for layer, states in _walk(model, network_inputs, layers, found.regions):
        if note is not None:
            note(f"looking at {layer.name}")
        matrix = to_matrix(model.layers[layer.name].weight)
        own, whole = [], []
        count, sums = 0, torch.zeros(2, matrix.shape[1], dtype=torch.float64)
        all_places = _places(layer, states, held_out, seed)
        for number, (place, state) in enumerate(zip(all_places, states, strict=True)):
            samples = patches(layer, state[layer.source], place)
            own.append(samples @ matrix.T)
            if number < len(states) - held_out:
                count += len(samples)
                sums[0] += samples.sum(dim=0, dtype=torch.float64)
                sums[1] += samples.square_().sum(dim=0, dtype=torch.float64)
            rest = _residual(layer, state, place)
            value = _store(layer.name, own[-1] if rest is None else own[-1] + rest)
            whole.append(notes[used : used + value.numel()].view(value.shape).copy_(value))
            used += value.numel()
        unseen = torch.cat(own[len(own) - held_out :])
        found.outputs[layer.name] = whole
        mean, square = sums / count
        found.variances[layer.name] = (square - mean.square()).clamp(min=0).float()
        found.sizes[layer.name] = float((unseen - unseen.mean(dim=0)).norm())
    return found


@torch.no_grad()
def layer_inputs(
    model: FasterRCNN,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    dense: DenseOutputs,
    *,
    held_out: int,
    hessians: bool = True,
    seed: int = 0,
) -> Iterator[LayerInputs]:
    """Inputs of each layer of `layers`, in the order of the network.

    Args:
        model: without separate batch norms. A layer's weights may be changed while its inputs
            are in hand; what follows sees the change.
        network inputs: one for each photograph, as `calibration_input` makes them.
        dense: of the same model, network inputs, layers, held-out photographs and seed.
        held_out: how many of them, the last ones, are held out; at least 1, and 1 is left.
        hessians: gather them and the pull, too.

    Raises:
        InputError: activations leave float16's range.
    """
    for layer, states in _walk(model, network_inputs, layers, dense.regions):
        conv = model.layers[layer.name]
        yield _gather(
            layer,
            to_matrix(conv.weight),
            states,
            dense.outputs.pop(layer.name),
            dense.sizes[layer.name],
            held_out,
            hessians,
            seed,
        )


def _walk(
    model: FasterRCNN,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    regions: list[Tensor],
) -> Iterator[tuple[Layer, list[dict[str, Tensor]]]]:
    """Each layer of `layers` with all photographs' live activations, before it runs on them.

    Args:
        regions: boxes of each photograph; filled if it is empty.
    """
    table = model.network.layers
    last = max(i for i, layer in enumerate(table) if layer.name in layers)
    needs_regions = any(layer.component == "roi" for layer in table[: last + 1])
    states = [
        {"input": _store("input", model.normalise(network_input))}
        for network_input in network_inputs
    ]
    for index, layer in enumerate(table[: last + 1]):
        if layer.source == "rois" and "rois" not in states[0]:
            if not regions:
                regions += [
                    _regions(model, state, network_input)
                    for state, network_input in zip(states, network_inputs, strict=True)
                ]
            for state, boxes in zip(states, regions, strict=True):
                features = state[model.network.features].float()
                state["rois"] = _store("rois", model.roi_features(features, [boxes]))
        if layer.name in layers:
            yield layer, states
        later = table[index + 1 :] if index < last else ()
        live = {name for after in later for name in (after.source, after.residual)}
        if needs_regions and layer.component != "roi":
            live |= {model.network.features, "rpn.objectness", "rpn.deltas"}
        if index == last:
            return
        for state in states:
            names = [n for n in (layer.source, layer.residual) if n]
            read = {name: state[name].float() for name in names}
            state[layer.name] = _store(layer.name, model.run_layer(layer, read))
            for name in set(state) - live:
                del state[name]
        _give_back()


def _give_back() -> None:
    """Have glibc return freed memory, which it keeps wherever something above it is in use: of
    r101-c4's 13 GB a third."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _store(name: str, value: Tensor) -> Tensor:
    form = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    half = value.to(torch.float16, memory_format=form)
    if not torch.isfinite(half).all():
        raise InputError(
            f"activations of {name} leave float16's range: this model cannot be calibrated"
        )
    return half


def _regions(model: FasterRCNN, state: dict[str, Tensor], network_input: Tensor) -> Tensor:
    """One photograph's spread proposals, [<= REGIONS, 4]."""
    features = state[model.network.features].float()
    logits = state["rpn.objectness"].float().permute(0, 2, 3, 1).reshape(-1)
    deltas = state["rpn.deltas"].float().permute(0, 2, 3, 1).reshape(-1, 4)
    height, width = network_input.shape[2:]
    proposals = model.proposals(logits, deltas, model.anchors(features), height, width)
    if not len(proposals):
        raise InputError("the RPN proposes nothing on a calibration photograph")
    chosen = torch.linspace(0, len(proposals) - 1, min(REGIONS, len(proposals))).long()
    return proposals[chosen]


def _gather(
    layer: Layer,
    matrix: Tensor,
    states: list[dict[str, Tensor]],
    dense: list[Tensor],
    size: float,
    held_out: int,
    hessian: bool,
    seed: int,
) -> LayerInputs:
    """Sample a layer's inputs on all photographs, and what is missing in its outputs.

    Args:
        matrix: the layer's weight as `patterns.to_matrix` has it.
    """
    out, columns = matrix.shape
    places = _places(layer, states, held_out, seed)
    fitted = len(states) - held_out
    # Sums are taken round the first photograph's mean: float32 would lose a small covariance
    # beside a large mean.
    centre: Tensor | None = None
    count, sums, moments = 0, torch.zeros(columns), torch.zeros(0, 0)
    lacks, pull = torch.zeros(out), torch.zeros(0, 0)
    unseen, unseen_lack = [], []
    for number, (state, place, wanted) in enumerate(zip(states, places, dense, strict=True)):
        samples = patches(layer, state[layer.source], place)
        lack = wanted.float() - samples @ matrix.T
        rest = _residual(layer, state, place)
        if rest is not None:
            lack -= rest
        if number >= fitted:
            unseen.append(samples)
            unseen_lack.append(lack)
            continue
        if centre is None:
            centre = samples.mean(dim=0)
            if hessian:
                moments, pull = torch.zeros(columns, columns), torch.zeros(columns, out)
        samples -= centre
        count += len(samples)
        sums += samples.sum(dim=0)
        lacks += lack.sum(dim=0)
        if hessian:
            moments.addmm_(samples.T, samples)
            pull.addmm_(samples.T, lack)
    assert centre is not None
    shift, missing = sums / count, lacks / count
    if hessian:
        moments.addr_(sums, shift, alpha=-1)
        pull.addr_(sums, missing, alpha=-1)
    return LayerInputs(
        layer.name,
        centre + shift,
        missing,
        moments if hessian else None,
        pull if hessian else None,
        torch.cat(unseen),
        torch.cat(unseen_lack),
        size,
    )


Place = tuple[Tensor, Tensor, Tensor]
"""Output positions: image, row, column."""


def _places(
    layer: Layer, states: list[dict[str, Tensor]], held_out: int, seed: int
) -> Iterator[Place]:
    """Random output positions of a layer on each photograph, the same in both walks."""
    counts = _counts(layer, len(states), held_out)
    for number, (count, state) in enumerate(zip(counts, states, strict=True)):
        generator = torch.Generator().manual_seed(
            random.Random(f"{seed}/{layer.name}/{number}").getrandbits(48)
        )
        yield places(layer, state[layer.source], count, generator)


def _counts(layer: Layer, photographs: int, held_out: int) -> list[int]:
    """How many positions are sampled on each photograph, if it has so many."""
    columns = layer.weights // layer.out_channels
    total, fitted = max(LEAST_SAMPLES, SAMPLES_A_COLUMN * columns), photographs - held_out
    return fitted * [-(-total // fitted)] + held_out * [-(-HELD_OUT_SAMPLES // held_out)]


def places(layer: Layer, x: Tensor, count: int, generator: torch.Generator) -> Place:
    """`count` random output positions of a layer (all, if it has fewer) on input [B, C, H, W]."""
    rows, columns = (
        (n + sum(layer.padding) - layer.kernel) // layer.stride + 1 for n in x.shape[2:]
    )
    chosen = torch.randperm(len(x) * rows * columns, generator=generator)[:count]
    image, place = chosen // (rows * columns), chosen % (rows * columns)
    return image, place // columns, place % columns


def patches(layer: Layer, x: Tensor, place: Place) -> Tensor:
    """What a layer reads for those output positions.

    Args:
        x: the layer's input [B, C, H, W].

    Returns:
        float32 [count, columns].
    """
    before, after = layer.padding
    x = F.pad(x, (before, after, before, after))
    image, row, column = place
    top, left = row * layer.stride, column * layer.stride
    nhwc = x.permute(0, 2, 3, 1)
    size = layer.kernel
    taps = [nhwc[image, top + i, left + j] for i in range(size) for j in range(size)]
    return torch.stack(taps, dim=1).flatten(1).float()


def _residual(layer: Layer, state: dict[str, Tensor], place: Place) -> Tensor | None:
    """What is added to the layer's output at those positions, float32 [count, out]."""
    if layer.residual is None:
        return None
    image, row, column = place
    return state[layer.residual].permute(0, 2, 3, 1)[image, row, column].float()
