"""Reads an ONNX file into a `Program`, and trusts none of its bytes.

The size of the file is bounded before it is parsed, the size of each tensor before it is made.
Files of external data are read where they lie inside the folder of the file, and nowhere else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .program import Array, OnnxNode, Program, unique_names
from .quantised import ADVICE

MOST_BYTES = 2**31
"""Of the file: a protobuf cannot be larger."""
MOST_EXTERNAL_BYTES = 2**34
MOST_NODES = 50_000
OLDEST_OPSET = 11
_STANDARD = ("", "ai.onnx")


def import_onnx() -> Any:
    """The package onnx.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise InputError(
            f"reading an ONNX file needs: pip install 'sparsedet[onnx]' ({error})"
        ) from None
    return onnx


def read(
    path: str | os.PathLike[str], shape: Sequence[int] | None = None, known: Collection[str] = ()
) -> Program:
    """The graph of an ONNX file.

    Args:
        path: the file.
        shape: of its input, where the file leaves it open.
        known: kinds of nodes, in lower case; if others occur, onnx infers shapes.

    Raises:
        InputError: the file cannot be read or parsed, or its graph is none that can run here.
    """
    onnx = import_onnx()
    path = Path(path)
    model = _parse(onnx, path)
    opset = _check_opsets(onnx, path, model)
    _check_texts(path, model)
    if model.functions:
        model = _inline(onnx, path, model)
    graph = model.graph
    if len(graph.node) > MOST_NODES:
        raise InputError(f"{path}: has {len(graph.node):,} nodes, expected at most {MOST_NODES:,}")
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            raise InputError(f"{path}: has two initialisers {tensor.name!r}")
        constants[tensor.name] = _array(onnx, path, tensor)
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise InputError(f"{path}: initialiser {name!r} is stored sparse, which is not read here")
    name, sizes = _input(path, graph, constants, shape)
    nodes = _in_order(path, _nodes(onnx, path, graph), {name, *constants})
    made = {out for node in nodes for out in node.outputs} | {name, *constants}
    outputs = [output.name for output in graph.output]
    for output in outputs:
        if output not in made:
            raise InputError(f"{path}: output {output!r} is made by no node")
    if not outputs or len(set(outputs)) != len(outputs):
        raise InputError(f"{path}: has no outputs of names of their own")
    hints = {}
    if any(node.op.lower() not in known for node in nodes):
        hints = _inferred(onnx, model, name, sizes)
    metadata = {entry.key: entry.value for entry in model.metadata_props[:1000]}
    shapes = {name: sizes}
    return Program(str(path), nodes, constants, shapes, name, outputs, metadata, opset, hints)


def _inferred(onnx: Any, model: Any, name: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Shapes that onnx infers, without weights; none where it cannot."""
    for value in model.graph.input:
        if value.name == name:
            for dim, length in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
                dim.dim_value = length
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # its own, of several kinds
        return {}
    shapes = {}
    for value in inferred.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if dims and min(dims) > 0 and math.prod(dims) <= MOST_BYTES:
            shapes[value.name] = tuple(dims)
    return shapes


def _parse(onnx: Any, path: Path) -> Any:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not path.is_file():
        raise InputError(f"{path}: is no file")
    if not 0 < size < MOST_BYTES:
        raise InputError(f"{path}: has {size:,} bytes, expected an ONNX file of less than 2 GiB")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # protobuf's own, of several packages
        raise InputError(
            f"{path}: is no ONNX file, or a damaged one ({str(error)[:100]})"
        ) from None
    if not model.graph.node:
        raise InputError(f"{path}: is no ONNX file, or has no nodes")
    return model


def _check_texts(path: Path, model: Any) -> None:
    """All names are text: protobuf's readers give bytes for what is none."""
    parts = [model.graph, *model.functions]
    texts = [entry.key for entry in model.metadata_props]
    texts += [entry.value for entry in model.metadata_props]
    texts += [tensor.name for tensor in model.graph.initializer]
    texts += [value.name for value in (*model.graph.input, *model.graph.output)]
    for node in (node for part in parts for node in part.node):
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
        if isinstance(node.op_type, str) and not node.op_type.isidentifier():
            raise InputError(f"{path}: has a node of kind {node.op_type[:40]!r}, which is none")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{path}: has the name {text[:40]!r}, which is no text")


def _check_opsets(onnx: Any, path: Path, model: Any) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = next((versions[domain] for domain in _STANDARD if domain in versions), None)
    newest = onnx.defs.onnx_opset_version()
    if version is None or not OLDEST_OPSET <= version <= newest:
        raise InputError(
            f"{path}: has opset {version}, expected {OLDEST_OPSET}..{newest}, which the installed "
            "onnx knows; export it again, or update onnx"
        )
    return int(version)


def _inline(onnx: Any, path: Path, model: Any) -> Any:
    """The model without functions of its own; their calls may not multiply beyond all bounds."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Any, open_calls: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
                continue
            if key in open_calls or len(open_calls) > 100:
                raise InputError(f"{path}: function {node.op_type!r} calls itself")
            if key not in sizes:
                sizes[key] = size(functions[key].node, (*open_calls, key))
            total += sizes[key]
            if total > MOST_NODES:
                break
        return total

    total = size(model.graph.node, ())
    if total > MOST_NODES:
        raise InputError(f"{path}: its functions have more than {MOST_NODES:,} nodes")
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise InputError(f"{path}: its functions cannot be read ({str(error)[:100]})") from None


def _input(
    path: Path, graph: Any, constants: dict[str, Array], shape: Sequence[int] | None
) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the one input; old files list initialisers among the inputs."""
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs[:5])
        raise InputError(f"{path}: has {len(inputs)} inputs ({names}), expected one image")
    (value,) = inputs
    tensor = value.type.tensor_type
    if tensor.elem_type != 1:
        raise InputError(f"{path}: input {value.name!r} is not float32, which is not run here")
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if len(dims) != 4:
        raise InputError(
            f"{path}: input {value.name!r} has {len(dims)} axes, expected [1, 3, height, width]"
        )
    given = list(shape) if shape is not None else dims
    if len(given) != 4 or any(d > 0 and d != g for d, g in zip(dims[1:], given[1:], strict=True)):
        raise InputError(
            f"{path}: input {value.name!r} is {dims} (0: open), --shape says "
            f"{'x'.join(map(str, given))}"
        )
    if min(given[1:]) < 1:
        raise InputError(
            f"{path}: input {value.name!r} leaves its size open; state it, as --shape 1x3x640x640"
        )
    if max(dims[0], given[0], 1) != 1:
        raise InputError(
            f"{path}: input {value.name!r} is a batch of {max(dims[0], given[0])}, expected 1 or "
            "an open one: export the network for one image"
        )
    _, channels, height, width = given
    if channels != 3 or not all(16 <= n <= 8192 for n in (height, width)):
        raise InputError(
            f"{path}: input {value.name!r} is {channels}x{height}x{width}, expected 3 channels and "
            "16..8192 rows and columns"
        )
    return value.name, (1, 3, height, width)


def _nodes(onnx: Any, path: Path, graph: Any) -> list[OnnxNode]:
    names = unique_names([node.name or f"{node.op_type}_{i}" for i, node in enumerate(graph.node)])
    nodes = []
    for node, name in zip(graph.node, names, strict=True):
        if node.domain not in _STANDARD:
            integers = node.op_type.startswith("QLinear") or "quantize" in node.op_type.lower()
            raise InputError(
                f"{path}: node {name!r} ({node.op_type} of {node.domain!r}) is none of ONNX's "
                f"operators{f': {ADVICE}' if integers else ''}"
            )
        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            kind = attribute.type
            if kind in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise InputError(
                    f"{path}: node {name!r} ({node.op_type}) is control flow, which is not run here"
                )
            if kind == onnx.AttributeProto.TENSOR:
                attributes[attribute.name] = _array(onnx, path, attribute.t)
            elif kind == onnx.AttributeProto.STRING:
                attributes[attribute.name] = attribute.s.decode("utf-8", "replace")
            elif kind == onnx.AttributeProto.FLOAT:
                attributes[attribute.name] = float(attribute.f)
            elif kind == onnx.AttributeProto.INT:
                attributes[attribute.name] = int(attribute.i)
            elif kind == onnx.AttributeProto.FLOATS:
                attributes[attribute.name] = [float(x) for x in attribute.floats]
            elif kind == onnx.AttributeProto.INTS:
                attributes[attribute.name] = [int(x) for x in attribute.ints]
        if not node.output or not node.output[0]:
            raise InputError(f"{path}: node {name!r} ({node.op_type}) makes nothing")
        nodes.append(OnnxNode(node.op_type, name, list(node.input), list(node.output), attributes))
    return nodes


def _in_order(path: Path, nodes: list[OnnxNode], known: set[str]) -> list[OnnxNode]:
    """The nodes, each behind those whose outputs it reads: some converters append nodes.

    Args:
        known: names of the input and the constants.
    """
    makers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for out in node.outputs:
            if out and (out in known or out in makers):
                raise InputError(
                    f"{path}: node {node.name!r} ({node.op}) makes {out!r}, which exists already"
                )
            makers[out] = i
    before: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        sources = [source for source in node.inputs if source and source not in known]
        for source in sources:
            if source not in makers:
                raise InputError(
                    f"{path}: node {node.name!r} ({node.op}) reads {source!r}, which nothing makes"
                )
        before[i] = [makers[source] for source in sources]
    if all(j < i for i, others in before.items() for j in others):
        return nodes
    try:
        return [nodes[i] for i in TopologicalSorter(before).static_order()]
    except CycleError as error:
        node = nodes[error.args[1][0]]
        raise InputError(
            f"{path}: node {node.name!r} ({node.op}) reads what comes of its own output: the graph "
            "has a cycle"
        ) from None


def _array(onnx: Any, path: Path, tensor: Any) -> Array:
    """A tensor as an array; as many elements as its bytes say."""
    label = f"{path}: tensor {tensor.name!r}"
    dims = [int(d) for d in tensor.dims]
    if len(dims) > 16 or any(d < 0 for d in dims) or math.prod(dims) > MOST_BYTES:
        raise InputError(f"{label} has the shape {dims[:16]}, which cannot be")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except Exception:
        raise InputError(f"{label} has unknown type {tensor.data_type}") from None
    if dtype.kind not in "fiub":
        advice = f": {ADVICE}" if dtype.itemsize == 1 else ", expected numbers"  # 4 bits, float8
        raise InputError(f"{label} has type {dtype}{advice}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external(path, label, tensor, dims, dtype)
    try:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:
        raise InputError(f"{label} is damaged ({str(error)[:100]})") from None
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{label} holds NaN")
    return array


def _external(path: Path, label: str, tensor: Any, dims: list[int], dtype: Any) -> Array:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if not isinstance(location, str) or not location.isprintable():  # bytes are what is no text
        raise InputError(f"{label} lies in {location[:40]!r}, which is no name of a file")
    folder = path.resolve().parent
    file = folder / location
    inside = location and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not inside or not file.resolve().is_relative_to(folder):
        raise InputError(f"{label} lies in {location!r}, outside of the file's own folder")
    try:
        offset, size = int(fields.get("offset", 0)), os.stat(file).st_size
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{label} lies in {file}: {why}") from None
    length = math.prod(dims) * dtype.itemsize
    if not 0 <= offset <= size - length or size > MOST_EXTERNAL_BYTES or not file.is_file():
        raise InputError(
            f"{label} needs {length:,} bytes of {file} from {offset:,} on, which has {size:,}"
        )
    data = np.fromfile(file, dtype.newbyteorder("<"), math.prod(dims), offset=offset)
    return np.asarray(data.reshape(dims).astype(dtype, copy=False))
