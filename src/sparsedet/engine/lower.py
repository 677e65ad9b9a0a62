"""Lowering: a graph and its tensors become the operations of the native engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.graph import (
    Affine,
    Conv,
    Graph,
    GroupNorm,
    MaskOutput,
    MaxPool,
    Normalise,
    Operation,
    RoiAlign,
    Slice,
)
from ..model.rewrite import hoist, merge_equal, merge_predictors, skip_bins
from ..model.tensors import LazyTensors, StoredTensor
from .elements import is_depthwise
from .formats import Planned
from .quantization import negative_values

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


@dataclass(frozen=True, slots=True, eq=False)
class NativeOperation:
    """An operation for the native engine.

    Attributes:
        fields: its kind, name, inputs and attributes.
        weight: float32 [out, in / groups, k, k], of a group norm [channels], or None. A sparse
            weight of a model file that is neither merged nor cut into groups is in its stored form,
            [out, in, k, k] or [out, in], and valid until the next operation.
        bias: float32 [out], or None.
        weights_of: an earlier operation with the same weights in the same formats, or "".
    """

    fields: dict[str, Any]
    weight: F32 | StoredTensor | None = None
    bias: F32 | None = None
    weights_of: str = ""


def operations(
    graph: Graph,
    planned: Sequence[Planned],
    tensors: Mapping[str, NDArray[Any]],
    *,
    int8_biases: Mapping[str, F32] | None = None,
    weights: bool = True,
) -> Iterator[NativeOperation]:
    """Yield the operations of a lowered graph for the native engine, and conversions between them.

    Args:
        graph: from `lowered`.
        planned: its operations and the conversions between them, from `formats.plan_formats`.
        tensors: folded weights and biases, `NAME.weight` and `NAME.bias` of each layer.
        int8_biases: by layer, of those that run on bytes; default: those of `tensors`.
        weights: whether to yield weights; False: None instead of each.
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
        if conv.groups == 1 or is_depthwise(graph, operation):
            return weight
        dense = weight.dense() if isinstance(weight, StoredTensor) else weight
        return _block_diagonal(dense, conv.groups)

    owners = weight_owners(planned)
    for plan in planned:
        fields = _fields(graph, plan)
        if plan.conversion:
            yield NativeOperation(fields)
            continue
        operation = graph.by_name[plan.operation.name]
        attributes = operation.attributes
        if isinstance(attributes, Conv):
            others = int8_biases or {} if plan.reads == "int8" else {}
            bias = [
                others[layer] if layer in others else array(f"{layer}.bias")
                for layer in attributes.layers
                if attributes.bias
            ]
            owner = owners[operation.name]
            shared = owner if owner != operation.name else ""
            yield NativeOperation(
                fields,
                grouped(operation, attributes) if weights and not shared else None,
                np.concatenate(bias) if bias else None,
                shared,
            )
        elif isinstance(attributes, GroupNorm | Affine):
            scale, offset = (array(f"{attributes.layer}.{leaf}") for leaf in ("weight", "bias"))
            yield NativeOperation(fields, scale, offset)
        elif isinstance(attributes, RoiAlign) and attributes.bias_of:
            yield NativeOperation(fields, None, array(f"{attributes.bias_of}.bias"))
        else:
            yield NativeOperation(fields)


def weight_owners(planned: Sequence[Planned]) -> dict[str, str]:
    """By convolution, the first one that has the same layers in the same formats."""
    made = {plan.operation.name: (plan.type, plan.quantization) for plan in planned}
    first: dict[object, str] = {}
    owners = {}
    for plan in planned:
        operation = plan.operation
        if isinstance(operation.attributes, Conv) and not plan.conversion:
            formats = [made[name] for name in (*operation.inputs, operation.name)]
            key = operation.attributes.layers, tuple(formats)
            owners[operation.name] = first.setdefault(key, operation.name)
    return owners


def _block_diagonal(weight: F32, groups: int) -> F32:
    """[out, in / groups, k, k] -> [out, in, k, k], zero where an output channel does not read."""
    out, channels, *kernel = weight.shape
    whole = np.zeros((groups, out // groups, groups, channels, *kernel), np.float32)
    for i, part in enumerate(weight.reshape(groups, out // groups, channels, *kernel)):
        whole[i, :, i] = part
    return whole.reshape(out, groups * channels, *kernel)


def _fields(graph: Graph, plan: Planned) -> dict[str, Any]:
    """The fields of an operation for the native engine, without its tensors."""
    operation, attributes = plan.operation, plan.operation.attributes
    fields: dict[str, Any] = {"name": operation.name, "inputs": list(operation.inputs)}
    if plan.quantization is not None:
        quantization = plan.quantization.scale, plan.quantization.zero_point
        fields["quantization"] = quantization
    if plan.conversion:
        fields |= {"kind": "convert", "type": plan.type}
        if isinstance(attributes, Slice) and operation.name in graph.by_name:
            fields |= attributes.named_values()
        return fields
    fields["kind"] = operation.kind
    fields |= attributes.named_values()
    typed_kinds = (Normalise, MaxPool, Conv, RoiAlign)
    if isinstance(attributes, typed_kinds):
        fields["type"] = plan.type
    else:
        fields.pop("quantization", None)  # as that of its inputs
    own = graph.by_name[operation.name]  # with the names of the graph
    source = own.inputs[0]
    if isinstance(attributes, MaxPool):
        fields["negative"] = source in negative_values(graph)
    elif isinstance(attributes, Conv):
        for name in ("layers", "bias", "linear", "norm", "eps", "prunable"):
            del fields[name]
        fields["groups"] = attributes.groups if is_depthwise(graph, own) else 1
        fields["in_channels"] = graph.shapes[source].channels
    elif isinstance(attributes, GroupNorm | Affine):
        del fields["layer"]
    elif isinstance(attributes, MaskOutput):
        del fields["pasting"]  # it is done outside of the network
    elif isinstance(attributes, RoiAlign):
        del fields["bias_of"]
    return fields
