"""Yahoo's open_nsfw classifier (ONNX) -> initial weights of the `r50half-c4` backbone.

The graph is a ResNet-50 of half bottleneck width. Each convolution is followed by an Add (its
bias), Sub (mean), Mul (scale) and Add (offset), a batch norm in parts. The classifier at the end
is not used. Needs the `onnx` package.
"""

from __future__ import annotations

import os

import numpy as np

from ..errors import InputError
from ..model.detector_config import Config, build_graph


def load_open_nsfw(path: str | os.PathLike[str], config: Config) -> dict[str, np.ndarray]:
    """Backbone and res5 tensors in training form.

    The running variance becomes 1 - eps, so that the norm's weight is the graph's scale.

    Args:
        path: the .onnx file.
        config: a model whose convolutions have the graph's shapes.

    Returns:
        `NAME.weight` and `NAME.norm.*` for stem, res2 ... res5.

    Raises:
        InputError: the file is not ONNX, or its convolutions do not fit `config`.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError(f"{path}: reading it needs: pip install 'sparsedet[train]'") from None

    try:
        graph = onnx.load(os.fspath(path)).graph
    except Exception as error:
        raise InputError(f"{path}: not a readable ONNX file ({type(error).__name__})") from None
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    renamed: dict[str, str] = {}  # outputs of operations that only forward a value
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        if node.op_type in ("Cast", "Transpose"):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
    for node in graph.node:
        if node.op_type not in ("Cast", "Transpose"):
            for name in node.input:
                consumers.setdefault(renamed.get(name, name), []).append(node)

    def follow(node: onnx.NodeProto, op_type: str) -> tuple[onnx.NodeProto, np.ndarray]:
        """The only consumer of `node`, and its constant operand with one value a channel."""
        after = consumers.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type != op_type:
            raise InputError(f"{path}: after {node.name!r} expected one {op_type}")
        for name in after[0].input:
            if name in constants and constants[name].size == layer.out_channels:
                return after[0], constants[name].reshape(-1)
        raise InputError(f"{path}: {after[0].name!r} has no constant for {layer.name}'s channels")

    layers = [x for x in build_graph(config).layers if x.name.startswith(("stem.", "res"))]
    # Within a block the graph runs conv1, conv2, shortcut, conv3: the table's own order.
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    if len(convolutions) != len(layers):
        raise InputError(
            f"{path}: has {len(convolutions)} convolutions, {config.name} has {len(layers)}"
        )
    tensors: dict[str, np.ndarray] = {}
    for layer, conv in zip(layers, convolutions, strict=True):
        weight = constants.get(conv.input[1], np.empty(0))
        if weight.shape != layer.weight_shape:
            raise InputError(
                f"{path}: {conv.name!r} has shape {weight.shape}, {layer.name} needs "
                f"{layer.weight_shape}"
            )
        node, conv_bias = follow(conv, "Add")
        node, mean = follow(node, "Sub")
        node, scale = follow(node, "Mul")
        node, offset = follow(node, "Add")
        tensors[f"{layer.name}.weight"] = weight.astype(np.float32)
        tensors[f"{layer.name}.norm.weight"] = scale.astype(np.float32)
        tensors[f"{layer.name}.norm.bias"] = offset.astype(np.float32)
        tensors[f"{layer.name}.norm.running_mean"] = (mean - conv_bias).astype(np.float32)
        tensors[f"{layer.name}.norm.running_var"] = np.full(
            layer.out_channels, 1.0 - layer.attributes.eps, dtype=np.float32
        )
    return tensors
