"""Random sparse weights for tests and benchmarks: no training, real work.

They are what the benchmarks run: a fixed share of all parameters is zero, every pruned
convolution equally sparse, positions at random, fixed seed. With `lively`, the predictors are
rescaled on a picture so that detections of many classes appear; an empty result proves nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .errors import InputError
from .model.c4 import build_network
from .model.config import ModelConfig
from .pruning.schedule import prunable_layers, uniform_zeros


def random_tensors(
    config: ModelConfig,
    sparsity: float,
    seed: int = 0,
    pattern: Literal["unstructured", "1x4"] = "unstructured",
) -> dict[str, NDArray[Any]]:
    """Folded weights of a whole network.

    Args:
        sparsity: zeros among ALL parameters, 0 <= sparsity < 1.
        pattern: "1x4" makes four neighbouring input channels at one filter tap zero together, as
            `pruning.patterns` does.

    Returns:
        `NAME.weight` and `NAME.bias`, float32. Deviations keep activations of every depth near
        1; nonzero weights are scaled up for the zeros among them.
    """
    network = build_network(config)
    prunable = [network.by_name[name] for name in prunable_layers(network)]
    if pattern == "1x4" and any(layer.in_channels % 4 for layer in prunable):
        raise InputError("pattern 1x4 needs input channels in fours")
    zeros = uniform_zeros(network, prunable_layers(network), sparsity) if sparsity else {}
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for layer in network.weighted:
        weight = rng.standard_normal(layer.weights, dtype=np.float32)
        dead = zeros.get(layer.name, 0)
        # Exactly that many zeros (or whole blocks): the smallest of random keys.
        if dead and pattern == "1x4":
            blocks = weight.reshape(layer.out_channels, -1, 4, layer.kernel**2)
            dead = -(-dead // 4) * 4
            chosen = np.argpartition(rng.random(weight.size // 4, dtype=np.float32), dead // 4 - 1)
            alive = np.ones(weight.size // 4, np.float32)
            alive[chosen[: dead // 4]] = 0
            blocks *= alive.reshape(layer.out_channels, -1, 1, layer.kernel**2)
        elif dead:
            weight[np.argpartition(rng.random(weight.size, dtype=np.float32), dead)[:dead]] = 0
        fan_in = layer.in_channels * layer.kernel**2 * (1 - dead / weight.size)
        gain = 0.3 if layer.residual else 1.4  # a residual branch adds little to its trunk
        weight *= np.float32(gain / np.sqrt(max(fan_in, 1.0)))
        tensors[f"{layer.name}.weight"] = weight.reshape(layer.weight_shape)
        tensors[f"{layer.name}.bias"] = rng.standard_normal(layer.out_channels).astype(
            np.float32
        ) * np.float32(0.05)
    return tensors


def calibrated_random_tensors(
    config: ModelConfig,
    sparsity: float,
    network_input: NDArray[np.uint8],
    seed: int = 0,
    regions: int = 64,
    pattern: Literal["unstructured", "1x4"] = "unstructured",
) -> dict[str, NDArray[Any]]:
    """`random_tensors`, rescaled layer by layer on a picture so that many classes are detected.

    Raw random features hardly differ from place to place. Here every channel's output before
    residual and ReLU is shifted and scaled to a fixed mean and deviation over the picture, as
    a batch norm would, so that its differences survive to the predictors.

    Args:
        network_input: (H, W, 3) uint8 BGR.
        regions: how many regions res5 and the predictors are scaled on.
        pattern: as `random_tensors` takes it.
    """
    tensors = random_tensors(config, sparsity, seed, pattern)
    network = build_network(config, (network_input.shape[0], network_input.shape[1]))
    # Every layer alone and linear: residual and ReLU are added here.
    linear = Engine(config, tensors, hoist=False, linear=True).native
    linear.plan_memory(*network_input.shape[:2])
    mean = np.asarray(config.pixel_mean, dtype=np.float32)
    std = np.asarray(config.pixel_std, dtype=np.float32)
    picture = ((network_input.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
    outputs: dict[str, NDArray[np.float32]] = {"input": np.ascontiguousarray(picture)}
    for layer in network.layers:
        if layer.source == "rois" and "rois" not in outputs:
            features = outputs[network.features][0]
            raw = linear.proposals(*_rpn_outputs(outputs))[:regions]
            outputs["rois"] = linear.roi_features(features, raw)
        if layer.source == "pooled" and "pooled" not in outputs:
            last = outputs[f"res5.{config.blocks[3] - 1}.conv3"]
            outputs["pooled"] = last.mean(axis=(2, 3), keepdims=True)
        x = outputs[layer.source]
        if not layer.weights:
            outputs[layer.name] = linear.run_op(layer.name, x)
            continue
        weight, bias = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
        y = linear.run_op(layer.name, x)
        deviation = _DEVIATIONS.get(layer.name, 0.3 if layer.residual else 1.0)
        factor = (deviation / np.maximum(y.std(axis=(0, 2, 3)), 1e-6)).astype(np.float32)
        shift = -y.mean(axis=(0, 2, 3)) * factor + bias
        tensors[f"{layer.name}.weight"] = weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
        tensors[f"{layer.name}.bias"] = (bias * factor + shift).astype(np.float32)
        y = y * factor[:, None, None] + shift[:, None, None]
        if layer.residual:
            y = y + outputs[layer.residual]
        outputs[layer.name] = np.maximum(y, 0) if layer.relu else y
    return tensors


_DEVIATIONS = {"rpn.objectness": 1.0, "rpn.deltas": 0.2, "box.logits": 1.5, "box.deltas": 0.5}


def _rpn_outputs(
    outputs: dict[str, NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Objectness logits (N,) and deltas (N, 4) in the engine's order."""
    logits = outputs["rpn.objectness"][0].transpose(1, 2, 0).reshape(-1)
    deltas = outputs["rpn.deltas"][0].transpose(1, 2, 0).reshape(-1, 4)
    return np.ascontiguousarray(logits), np.ascontiguousarray(deltas)
