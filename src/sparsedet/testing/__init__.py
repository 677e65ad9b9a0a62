"""Random models and images for tests and benchmarks: no training, but real work.

The weights have a given sparsity among all parameters, the same in each pruned layer, zeros at
random places, from a fixed seed. A calibrated model has its layers rescaled on an image so that it
detects objects of many classes: a comparison of empty results proves nothing. The images are named
after what they show; results of tests depend on their exact pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..engine import Engine
from ..engine.interpreter import NativeInterpreter
from ..engine.lower import lowered
from ..errors import InputError
from ..model.detector_config import Config, build_graph
from ..model.graph import IMAGE, Activation, Conv, Graph, Layer, Mean, Normalise, Proposals
from ..model.interpreter import walk
from ..pruning.allocation import prunable_layers, uniform_zeros
from ..pruning.patterns import PATTERNS, UNSTRUCTURED, Pattern

F32 = NDArray[np.float32]


def random_tensors(
    config: Config, sparsity: float, seed: int = 0, pattern: str = UNSTRUCTURED.name
) -> dict[str, NDArray[Any]]:
    """Folded random weights of a whole network.

    Args:
        sparsity: zeros among ALL parameters, 0 <= sparsity < 1.
        seed: of weights and zeros.
        pattern: a name of `PATTERNS`, not of one that fixes the sparsity.

    Returns:
        `NAME.weight` and `NAME.bias`, float32. Their deviations keep activations near 1 at every
        depth; nonzero weights are scaled up for the zeros among them.

    Raises:
        InputError: the pattern is unknown, fixes the sparsity, or does not fit a layer.
    """
    if pattern not in PATTERNS or PATTERNS[pattern].live:
        free = [name for name, other in PATTERNS.items() if not other.live]
        raise InputError(f"pattern is {pattern!r}, expected one of {', '.join(free)}")
    block = PATTERNS[pattern]
    graph = build_graph(config)
    names = prunable_layers(graph)
    for name in names:
        block.check_layer(graph.layer[name])
    zeros = uniform_zeros(graph, names, sparsity) if sparsity else {}
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for layer in graph.layers:
        weight = rng.standard_normal(layer.weights, dtype=np.float32)
        pruned = -(-zeros.get(layer.name, 0) // block.size)  # blocks
        if pruned:
            # Exactly that many: the blocks with the smallest random keys. Keys tie, so which are
            # chosen depends on the element that `argpartition` is asked for.
            keys = rng.random(weight.size // block.size, dtype=np.float32)
            order = np.argpartition(keys, pruned if block.size == 1 else pruned - 1)
            if block.size == 1:
                weight[order[:pruned]] = 0
            else:
                keep = np.ones(len(keys), np.float32)
                keep[order[:pruned]] = 0
                _blocks(weight, layer, block)[...] *= keep.reshape(
                    layer.out_channels // block.rows, 1, -1, 1, layer.kernel**2
                )
        density = 1 - pruned * block.size / weight.size
        fan_in = layer.weights / layer.out_channels * density
        gain = 0.3 if layer.residual else 1.4  # a residual branch adds little to its trunk
        weight *= np.float32(gain / np.sqrt(max(fan_in, 1.0)))
        tensors[f"{layer.name}.weight"] = weight.reshape(layer.weight_shape)
        tensors[f"{layer.name}.bias"] = rng.standard_normal(layer.out_channels).astype(
            np.float32
        ) * np.float32(0.05)
    for name, channels in graph.norms.items():
        noise = rng.standard_normal((2, channels)).astype(np.float32) * np.float32(0.05)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + noise[0], noise[1]
    return tensors


def _blocks(weight: NDArray[np.float32], layer: Layer, block: Pattern) -> NDArray[np.float32]:
    """A view of a flat weight: [block rows, rows, block columns, columns, taps]."""
    rows, columns = layer.out_channels // block.rows, layer.in_channels // block.columns
    return weight.reshape(rows, block.rows, columns, block.columns, layer.kernel**2)


def calibrated_random_tensors(
    config: Config,
    sparsity: float,
    network_input: NDArray[np.uint8],
    seed: int = 0,
    regions: int = 64,
    pattern: str = UNSTRUCTURED.name,
) -> dict[str, NDArray[Any]]:
    """`random_tensors`, rescaled layer by layer on an image so that many classes are detected.

    Random features hardly differ between positions. Here every channel's output before residual
    and ReLU is shifted and scaled to a fixed mean and deviation over the image, as a batch norm
    would do, so that its differences reach the predictors.

    Args:
        network_input: (H, W, 3) uint8 BGR.
        regions: RoIs that the RoI head is scaled on.
        sparsity, seed, pattern: as in `random_tensors`.
    """
    tensors = random_tensors(config, sparsity, seed, pattern)
    size = network_input.shape[0], network_input.shape[1]
    graph = lowered(build_graph(config, size), hoisted=False, merged=False)
    linear = NativeInterpreter(Engine(config, tensors, graph=_linear(graph)), network_input)
    live: dict[str, F32] = {IMAGE: linear.image}
    scaled: dict[str, tuple[F32, F32]] = {}
    wanted = [operation.name for operation, _ in graph.of_kind(Conv)]
    for operation, dead in walk(graph, (IMAGE,), wanted, ()):
        inputs = [live[name] for name in operation.inputs]
        conv = operation.attributes
        if isinstance(conv, Conv):  # residual and activation are added here
            y = linear.value(linear.graph.by_name[operation.name], inputs[:1])
            (layer,) = conv.layers
            if layer not in scaled:  # on the first of its levels
                factor, shift = _scaling(layer, conv, y, len(inputs) > 1)
                scaled[layer] = factor, shift + tensors[f"{layer}.bias"]
                _rescale(tensors, layer, *scaled[layer])
            factor, shift = scaled[layer]
            y = y * factor[:, None, None] + shift[:, None, None]
            for residual in inputs[1:]:
                y = y + residual
            value = _ACTIVATIONS[conv.activation](y)
        elif isinstance(conv, Normalise):
            mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (conv.mean, conv.std))
            value = np.ascontiguousarray(((inputs[0] - mean) / std).transpose(2, 0, 1)[None])
        elif isinstance(conv, Mean):
            value = inputs[0].mean(axis=(2, 3), keepdims=True)
        else:
            value = linear.value(operation, inputs)
            if isinstance(conv, Proposals):
                value = value[:regions]
        live[operation.name] = np.asarray(value, dtype=np.float32)
        for name in dead:
            del live[name]
    return tensors


def _scaling(layer: str, conv: Conv, y: F32, residual: bool) -> tuple[F32, F32]:
    """Factor and shift of each channel of a layer's linear output."""
    if y.shape[0] * y.shape[2] * y.shape[3] == 1:  # one cell has no deviation
        return np.ones(y.shape[1], np.float32), np.zeros(y.shape[1], np.float32)
    deviation = _DEVIATIONS.get(layer, 0.3 if residual else 1.0)
    factor = (deviation / np.maximum(y.std(axis=(0, 2, 3)), 1e-6)).astype(np.float32)
    mean = -5.0 if layer == "class.logits" else 0.0  # of all cells few have an object
    if layer == "box.deltas" and conv.activation == "relu":  # distances
        mean = 2.0
    return factor, (mean - y.mean(axis=(0, 2, 3)) * factor).astype(np.float32)


def _rescale(tensors: dict[str, NDArray[Any]], layer: str, factor: F32, shift: F32) -> None:
    weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
    tensors[f"{layer}.weight"] = weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    tensors[f"{layer}.bias"] = (bias * factor + shift).astype(np.float32)


def _hardsigmoid(x: F32) -> F32:
    return np.clip(x / 6 + 0.5, 0, 1)


_ACTIVATIONS: dict[Activation, Callable[[F32], F32]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x),
}


def _linear(graph: Graph) -> Graph:
    """Every convolution without residual and activation."""
    return replace(
        graph,
        operations=tuple(
            replace(o, inputs=o.inputs[:1], attributes=replace(o.attributes, activation="none"))
            if isinstance(o.attributes, Conv)
            else o
            for o in graph.operations
        ),
    )


_DEVIATIONS = {"rpn.objectness": 1.0, "rpn.deltas": 0.2, "box.logits": 1.5, "box.deltas": 0.5}
"""Standard deviations of the predictors' outputs."""


# -------------------------------------------------------------------- images


def rectangles_on_noise(height: int = 90, width: int = 120, seed: int = 0) -> NDArray[np.uint8]:
    """Eight filled coloured rectangles on grey noise, (height, width, 3) uint8 BGR."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
    for _ in range(8):
        x0, y0 = rng.integers(0, width // 2), rng.integers(0, height // 2)
        x1, y1 = x0 + rng.integers(6, width // 2), y0 + rng.integers(6, height // 2)
        cv2.rectangle(
            image,
            (int(x0), int(y0)),
            (int(x1), int(y1)),
            [int(c) for c in rng.integers(0, 256, 3)],
            cv2.FILLED,
        )
    return image


def colour_gradients(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth random colours and one green rectangle, (height, width, 3) uint8 BGR."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 3 : height // 2, width // 4 : width // 2] = (20, 200, 90)
    return np.asarray(image, dtype=np.uint8)


def outlines_on_blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise of three sizes under twenty rectangle outlines, (height, width, 3) uint8 BGR."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for scale in (3, 9, 27):
        noise = rng.standard_normal(image.shape).astype(np.float32)
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), scale), dtype=np.float32)
        image += noise / noise.std()
    for _ in range(20):
        first, second = rng.integers(0, (width, height), (2, 2)).tolist()
        colour, thickness = rng.standard_normal(3).tolist(), int(rng.integers(1, 4))
        cv2.rectangle(image, first, second, colour, thickness)
    return np.clip(128 + 50 * image, 0, 255).astype(np.uint8)
