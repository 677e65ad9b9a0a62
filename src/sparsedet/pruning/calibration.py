"""Inputs of each layer on calibration images, measured while its predecessors are already pruned.

The graph is walked twice: once before anything is pruned, to record the outputs of each layer
at some positions, and once while its layers are pruned. The live activations of every image are
kept (float16: for 128 images at r101-c4's network input up to 4 GB, and 2 GB of recorded outputs).
A layer's inputs are sampled and yielded, the caller prunes the layer, then the layer runs on all
images and its output feeds the next layer.

Columns are those of `patterns`. A sample is what one output position reads: [columns]. Some images
are held out: nothing is fitted to their samples.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..images.crop import fitted
from ..images.letterbox import prepare
from ..model.detector_config import build_graph
from ..model.graph import IMAGE, Attention, CellOutput, Layer, Operation, Proposals, Resize
from ..model.interpreter import walk
from ..model.network import AnyConfig, NetworkConfig
from ..torch_model import GraphModule
from .positions import Positions, patches, positions_of_images, sample_counts
from .regions import rows_of_regions, some_proposals
from .selection import to_matrix

REGIONS = 16
"""Proposals of each image that the RoI head runs on, evenly spaced from the best to the last."""


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Samples of one layer's inputs.

    The *gap* is the output of the unpruned network minus the output that this layer gives on its
    present inputs with its own weights; before the activation, residual added.

    Attributes:
        name: the layer.
        mean: [columns], over the samples of images that are not held out.
        gap: [out], its mean over the same samples.
        hessian: [columns, columns], the samples' covariance times their number; None if not asked
            for. The mean is removed because the bias corrects it.
        cross_covariance: [columns, out], covariance of samples and gap, times their number.
        held_out: [held-out samples, columns], samples of held-out images.
        held_out_gap: [held-out samples, out], of the same samples.
        held_out_norm: norm of the unpruned layer's outputs there, without their mean and without
            the residual.
    """

    name: str
    mean: Tensor
    gap: Tensor
    hessian: Tensor | None
    cross_covariance: Tensor | None
    held_out: Tensor
    held_out_gap: Tensor
    held_out_norm: float


@dataclass(frozen=True, slots=True)
class DenseOutputs:
    """Outputs of the unpruned network.

    Attributes:
        outputs: by layer, removed as they are used: for each image the outputs at the sampled
            positions, before the activation, residual added, float16 [samples, out].
        norms: by layer, as `LayerInputs.held_out_norm`.
        variances: by layer, of its columns [columns], over the images that are not held out.
        regions: for each image the RoIs [<= REGIONS, 4] that both walks use.
    """

    outputs: dict[str, list[Tensor]]
    norms: dict[str, float]
    variances: dict[str, Tensor]
    regions: list[Tensor]


def calibration_input(image: NDArray[np.uint8], config: AnyConfig) -> Tensor:
    """The network input of an image, without the empty margin of the letterbox.

    Args:
        image: (H, W, 3) uint8 BGR.

    Returns:
        [1, 3, h, w], h and w multiples of 16, unless the network input is none. The margin stays
        where the network cannot do without: it has one size, or sees the whole image at once.
    """
    if isinstance(config, NetworkConfig):
        return _as_tensor(fitted(image, config))
    network_input, letterbox = prepare(image, config)
    height, width = network_input.shape[:2]
    if config.resize != "shorter" and not any(map(_needs_all, build_graph(config).operations)):
        height = min(math.ceil(letterbox.resized_height / 16) * 16, height)
        width = min(math.ceil(letterbox.resized_width / 16) * 16, width)
    return _as_tensor(network_input[:height, :width])


def _as_tensor(network_input: NDArray[Any]) -> Tensor:
    return torch.from_numpy(network_input.copy()).permute(2, 0, 1)[None]


def _needs_all(operation: Operation) -> bool:
    """Whether an operation fits one size of network input, or reads the whole image at once."""
    attributes = operation.attributes
    if isinstance(attributes, Resize):
        return attributes.factor > 0
    return isinstance(attributes, Attention | CellOutput)


@torch.no_grad()
def dense_outputs(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    *,
    held_out: int,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> DenseOutputs:
    """The first walk: outputs of the unpruned network; arguments as in `layer_inputs`.

    Args:
        note: called with a description of each step.

    Raises:
        InputError: activations exceed float16's range, or the RPN proposes nothing.
    """
    dense = DenseOutputs({}, {}, {}, [])
    # One block of memory: many small ones, allocated between activations that come and go, would
    # keep the allocator from reusing or returning the memory around them.
    sizes = [
        sum(sample_counts(model.graph.layer[name], len(network_inputs), held_out))
        * model.graph.layer[name].out_channels
        for name in layers
    ]
    memory, used = torch.empty(sum(sizes), dtype=torch.float16), 0
    for layer, activations in _walk(model, network_inputs, layers, dense.regions):
        if note is not None:
            note(f"measuring {layer.name}")
        matrix = to_matrix(model.layers[layer.name].weight)
        without_residual, outputs = [], []
        count, sums = 0, torch.zeros(2, matrix.shape[1], dtype=torch.float64)
        sampled = positions_of_images(layer, activations, held_out, seed)
        for number, (positions, image) in enumerate(zip(sampled, activations, strict=True)):
            samples = patches(layer, image[layer.source], positions)
            without_residual.append(samples @ matrix.T)
            if number < len(activations) - held_out:
                count += len(samples)
                sums[0] += samples.sum(dim=0, dtype=torch.float64)
                sums[1] += samples.square_().sum(dim=0, dtype=torch.float64)
            output, residual = without_residual[-1], _residual(layer, image, positions)
            value = to_half(layer.name, output if residual is None else output + residual)
            outputs.append(memory[used : used + value.numel()].view(value.shape).copy_(value))
            used += value.numel()
        held_out_outputs = torch.cat(without_residual[len(without_residual) - held_out :])
        dense.outputs[layer.name] = outputs
        mean, square = sums / count
        dense.variances[layer.name] = (square - mean.square()).clamp(min=0).float()
        centred = held_out_outputs - held_out_outputs.mean(dim=0)
        dense.norms[layer.name] = float(centred.norm())
    return dense


@torch.no_grad()
def layer_inputs(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    dense: DenseOutputs,
    *,
    held_out: int,
    hessians: bool = True,
    seed: int = 0,
) -> Iterator[LayerInputs]:
    """The second walk: inputs of each layer of `layers`, in the order of the network.

    Args:
        model: without separate batch norms. The caller may change a layer's weights before it
            asks for the next layer; later layers see the change.
        network_inputs: one for each calibration image, from `calibration_input`.
        layers: names.
        dense: outputs of the unpruned model; for the same network inputs, layers, held-out images
            and seed.
        held_out: number of held-out images, the last ones; at least 1, and fewer than all.
        hessians: compute Hessians and cross covariances, too.
        seed: of the sampled positions.

    Raises:
        InputError: activations exceed float16's range.
    """
    for layer, activations in _walk(model, network_inputs, layers, dense.regions):
        conv = model.layers[layer.name]
        yield _gather(
            layer,
            to_matrix(conv.weight),
            activations,
            dense.outputs.pop(layer.name),
            dense.norms[layer.name],
            held_out,
            hessians,
            seed,
        )


def _walk(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    layers: Sequence[str],
    regions: list[Tensor],
) -> Iterator[tuple[Layer, list[dict[str, Tensor]]]]:
    """Each layer of `layers` with every image's live activations, before the layer runs on them.

    Args:
        regions: RoIs of each image; filled if the list is empty.
    """
    activations: list[dict[str, Any]] = [{IMAGE: image} for image in network_inputs]
    shapes = model.graph.shapes
    for operation, _ in model.graph.of_kind(Proposals):
        for image, boxes in zip(activations, regions, strict=False):
            image[operation.name] = [boxes]
    interpreters = [model.interpreter() for _ in network_inputs]
    # Layers that several operations share are calibrated on the first one.
    first = {layer.operation.name: layer for layer in model.graph.layers if layer.name in layers}
    for operation, dead in walk(model.graph, tuple(activations[0]), tuple(first), keep=()):
        if operation.name in first:
            yield first[operation.name], activations
        for number, (image, interpreter) in enumerate(zip(activations, interpreters, strict=True)):
            if shapes[operation.name].domain == "rows":  # masks are calibrated on the same regions
                image[operation.name] = rows_of_regions(regions[number], image[IMAGE])
            else:
                inputs = [to_float(image[name]) for name in operation.inputs]
                value = interpreter.execute(operation, inputs)
                if shapes[operation.name].domain == "boxes":
                    regions.append(some_proposals(value[0], REGIONS))
                    image[operation.name] = [regions[-1]]
                else:
                    image[operation.name] = to_half(operation.name, value)
            for name in dead:
                del image[name]
        _return_freed_memory()


def to_float(value: Any) -> Any:
    """Activations in float32; the image and boxes as they are."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _return_freed_memory() -> None:
    """Have glibc return freed memory to the system, also below memory that is in use: a third of
    r101-c4's 13 GB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def to_half(name: str, value: Tensor) -> Tensor:
    """Activations in float16, feature maps channels last."""
    form = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    half = value.to(torch.float16, memory_format=form)
    if not torch.isfinite(half).all():
        raise InputError(
            f"activations of {name} are no numbers, or exceed float16's range: this model cannot "
            "be calibrated"
        )
    return half


def _gather(
    layer: Layer,
    matrix: Tensor,
    activations: list[dict[str, Tensor]],
    dense_outputs_of_images: list[Tensor],
    held_out_norm: float,
    held_out: int,
    hessian: bool,
    seed: int,
) -> LayerInputs:
    """Sample a layer's inputs on all images, and the gap of its outputs.

    Args:
        matrix: the layer's weight, from `to_matrix`.
    """
    out, columns = matrix.shape
    sampled = positions_of_images(layer, activations, held_out, seed)
    fitted = len(activations) - held_out
    # Sums are taken around the first image's mean: float32 would lose a small covariance beside
    # a large mean.
    centre: Tensor | None = None
    count, sums, moments = 0, torch.zeros(columns), torch.zeros(0, 0)
    gap_sums, cross_moments = torch.zeros(out), torch.zeros(0, 0)
    held_out_samples, held_out_gaps = [], []
    for number, (image, positions, dense) in enumerate(
        zip(activations, sampled, dense_outputs_of_images, strict=True)
    ):
        samples = patches(layer, image[layer.source], positions)
        gap = dense.float() - samples @ matrix.T
        residual = _residual(layer, image, positions)
        if residual is not None:
            gap -= residual
        if number >= fitted:
            held_out_samples.append(samples)
            held_out_gaps.append(gap)
            continue
        if centre is None:
            centre = samples.mean(dim=0)
            if hessian:
                moments = torch.zeros(columns, columns)
                cross_moments = torch.zeros(columns, out)
        samples -= centre
        count += len(samples)
        sums += samples.sum(dim=0)
        gap_sums += gap.sum(dim=0)
        if hessian:
            moments.addmm_(samples.T, samples)
            cross_moments.addmm_(samples.T, gap)
    assert centre is not None
    shift, mean_gap = sums / count, gap_sums / count
    if hessian:
        moments.addr_(sums, shift, alpha=-1)
        cross_moments.addr_(sums, mean_gap, alpha=-1)
    return LayerInputs(
        layer.name,
        centre + shift,
        mean_gap,
        moments if hessian else None,
        cross_moments if hessian else None,
        torch.cat(held_out_samples),
        torch.cat(held_out_gaps),
        held_out_norm,
    )


def _residual(layer: Layer, activations: dict[str, Tensor], positions: Positions) -> Tensor | None:
    """The residual that is added before the layer's activation there, float32 [count, out]."""
    if layer.residual is None or layer.attributes.residual_last:
        return None
    image, row, column = positions
    return activations[layer.residual].permute(0, 2, 3, 1)[image, row, column].float()
