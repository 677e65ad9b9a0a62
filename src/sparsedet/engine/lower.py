"""Lowering: a graph and its tensors become the operations of the native engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.graph import (
    Activate,
    Add,
    Affine,
    Conv,
    Graph,
    GroupNorm,
    MaskOutput,
    MaxPool,
    Normalise,
    Operation,
    RoiAlign,
    typed,
)
from ..model.rewrite import hoist, is_predictor, merge_equal, merge_predictors, skip_bins
from ..model.tensors import LazyTensors, StoredTensor

F32 = NDArray[np.float32]


def lowered(graph: Graph, *, hoisted: bool = True, merged: bool = True) -> Graph:
    """The graph as the engine runs it.

    Args:
        graph: as a family builds it.
        hoisted, merged: whether `rewrite.hoist` (and `rewrite.merge_equal` after it) and
            `rewrite.merge_predictors` are applied.
    """
    graph = skip_bins(graph)
    if merged:
        graph = merge_predictors(graph)
    return merge_equal(hoist(graph)) if hoisted else graph


def negative_values(graph: Graph) -> set[str]:
    """The values that may be negative; boxes and rows are none of them."""
    negative: set[str] = set()
    for operation in graph.operations:
        attributes = operation.attributes
        activation = getattr(attributes, "activation", "none")
        made = isinstance(attributes, Normalise | Conv | GroupNorm | Activate | Affine | Add)
        late = isinstance(attributes, Conv) and attributes.residual_last
        if activation in ("relu", "relu6", "hardsigmoid", "sigmoid") and not late:
            continue
        counted = graph.shapes[operation.name].domain not in ("boxes", "rows")
        if counted and (made or any(name in negative for name in operation.inputs)):
            negative.add(operation.name)
    return negative


def check_int8(graph: Graph) -> None:
    """Refuse a graph that int8 cannot run: bytes are activations that are not negative.

    Raises:
        InputError: a convolution reads values that may be negative, or is depthwise or has an
            activation that is none of bytes.
    """
    negative = negative_values(graph)
    for operation in graph.operations:
        attributes = operation.attributes
        source = operation.inputs[0]
        first = isinstance(attributes, Conv) and source in graph.by_name
        if first and graph.by_name[source].kind != Normalise.kind and source in negative:
            raise InputError(
                f"precision 'int8' cannot run this network: {operation.name} reads values that "
                "may be negative"
            )


def operations(
    graph: Graph,
    tensors: Mapping[str, NDArray[Any]],
    *,
    precision: str,
    clipping_thresholds: Mapping[str, float],
    weights: bool = True,
) -> Iterator[tuple[dict[str, Any], F32 | StoredTensor | None, F32 | None, str]]:
    """Yield the operations of a lowered graph for the native engine.

    Args:
        graph: from `lowered`.
        tensors: folded weights and biases, `NAME.weight` and `NAME.bias` of each layer.
        precision: "f32", "bf16" or "int8".
        clipping_thresholds: for int8, by layer or pooling.
        weights: whether to yield weights; False: None instead of each.

    Yields:
        Fields of the operation, weight float32 [out, in / groups, k, k], of a group norm
        [channels], bias float32 [out], and the earlier operation that has the same layers and whose
        weights it shares, or "". A sparse weight of a model file that is neither merged nor cut
        into groups is yielded in its stored form, [out, in, k, k] or
        [out, in], and is valid until the next operation.
    """
    size = tensors.largest if isinstance(tensors, LazyTensors) and weights else 0
    buffer = np.empty(size, np.uint8)

    def stored(name: str, into: NDArray[np.uint8] | None = None) -> StoredTensor | None:
        return tensors.stored(name, into) if isinstance(tensors, LazyTensors) else None

    def array(name: str) -> F32:
        """As float32; `tensors` does not keep the array."""
        sparse = stored(name)
        return np.asarray(tensors[name], dtype=np.float32) if sparse is None else sparse.dense()

    def weight_of(conv: Conv) -> F32 | StoredTensor:
        if len(conv.layers) == 1:
            sparse = stored(f"{conv.layers[0]}.weight", buffer)
            if sparse is not None and sparse.mask is not None:
                return sparse
        # Fully connected layers are convolutions of one output cell here.
        parts = [array(f"{layer}.weight") for layer in conv.layers]
        return np.concatenate([p.reshape(len(p), -1, *conv.kernel) for p in parts])

    def grouped(operation: Operation, conv: Conv) -> F32 | StoredTensor:
        """The weights of a convolution, with zeros where the core knows no groups."""
        weight = weight_of(conv)
        if conv.groups == 1 or _depthwise(graph, operation):
            return weight
        dense = weight.dense() if isinstance(weight, StoredTensor) else weight
        return _block_diagonal(dense, conv.groups)

    owners: dict[tuple[str, ...], str] = {}  # of weights, by layers
    for operation in graph.operations:
        attributes = operation.attributes
        fields = _fields(graph, operation, precision, clipping_thresholds)
        if isinstance(attributes, Conv):
            bias = [array(f"{layer}.bias") for layer in attributes.layers if attributes.bias]
            owner = owners.setdefault(attributes.layers, operation.name)
            shared = owner if owner != operation.name else ""
            yield (
                fields,
                grouped(operation, attributes) if weights and not shared else None,
                np.concatenate(bias) if bias else None,
                shared,
            )
        elif isinstance(attributes, GroupNorm | Affine):
            scale, offset = (array(f"{attributes.layer}.{leaf}") for leaf in ("weight", "bias"))
            yield fields, scale, offset, ""
        elif isinstance(attributes, RoiAlign) and attributes.bias_of:
            yield fields, None, array(f"{attributes.bias_of}.bias"), ""
        else:
            yield fields, None, None, ""


def _depthwise(graph: Graph, operation: Operation) -> bool:
    """Whether the core runs a convolution channel by channel: on maps, within one type."""
    conv, x = typed(operation, Conv), graph.shapes[operation.inputs[0]]
    every = 1 < conv.groups == x.channels == conv.out_channels
    return every and x.domain == "map" and not is_predictor(graph, operation.name)


def _block_diagonal(weight: F32, groups: int) -> F32:
    """[out, in / groups, k, k] -> [out, in, k, k], zero where an output channel does not read."""
    out, channels, *kernel = weight.shape
    whole = np.zeros((groups, out // groups, groups, channels, *kernel), np.float32)
    for i, part in enumerate(weight.reshape(groups, out // groups, channels, *kernel)):
        whole[i, :, i] = part
    return whole.reshape(out, groups * channels, *kernel)


def _fields(
    graph: Graph, operation: Operation, precision: str, clipping_thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """The fields of an operation for the native engine, without its tensors."""
    attributes = operation.attributes
    fields: dict[str, Any] = {"name": operation.name, "inputs": list(operation.inputs)}
    fields["kind"] = operation.kind
    fields |= asdict(attributes)
    if isinstance(attributes, Normalise):
        fields["type"] = "bf16" if precision == "bf16" else "f32"
    elif isinstance(attributes, MaxPool):
        fields["type"] = precision
        fields["negative"] = operation.inputs[0] in negative_values(graph)
        fields["clipping_threshold"] = clipping_thresholds.get(operation.name, 0.0)
    elif isinstance(attributes, Conv):
        for name in ("layers", "bias", "linear", "norm", "eps", "prunable"):
            del fields[name]
        fields["groups"] = attributes.groups if _depthwise(graph, operation) else 1
        fields["in_channels"] = graph.shapes[operation.inputs[0]].channels
        # The RoIAlign after a hoisted layer makes int8 of its float32 output.
        exact = is_predictor(graph, operation.name) or (precision == "int8" and not attributes.bias)
        fields["type"] = "f32" if exact else precision
        threshold = clipping_thresholds.get(attributes.layers[0], 0.0)
        fields["clipping_threshold"] = threshold if precision == "int8" else 0.0
    elif isinstance(attributes, GroupNorm | Affine):
        del fields["layer"]
    elif isinstance(attributes, MaskOutput):
        del fields["pasting"]  # it is done outside of the network
    elif isinstance(attributes, RoiAlign):
        layer = fields.pop("bias_of")
        fields["type"] = precision
        fields["clipping_threshold"] = clipping_thresholds.get(layer, 0.0) if layer else None
    return fields
