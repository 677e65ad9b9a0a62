"""Ranges of activations for int8: what each layer gives on photographs, and where to cut it off.

In int8 an activation is a byte; what one step is worth is fixed for each tensor beforehand. The
layer table is walked in float32 on every photograph, layer by layer, and a histogram kept of the
magnitudes of each tensor. The range is the one that costs the least squared error: a larger one
rounds all values more coarsely, a smaller one cuts off the largest. Weights need no photographs,
the engine rounds them when it packs them.

Glossary: a range is the largest magnitude that is kept apart; a tensor of range r is rounded to
multiples of r / 255 if it left a ReLU, else of r / 127.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.letterbox import to_network_input
from ..images.read import read_image
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.file import int8_layers, load_model, save_model
from . import Engine

REGIONS = 64
"""Of each photograph's proposals, evenly spread from the best to the last."""

PHOTOGRAPHS = {".jpg", ".jpeg", ".png"}

_SHIFT = 18
"""Of a float32's bits: 5 of the mantissa are left, 32 bins an octave."""
_BINS = 1 << (31 - _SHIFT)
_OCTAVES = 6  # below the largest value: no range is sought further down


def quantize_file(
    model: Path,
    images: Path,
    output: Path,
    *,
    photographs: int = 16,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a model file with ranges for int8; its weights stay as they are.

    Args:
        images: folder of the calibration photographs, JPEG or PNG, at any depth.
        photographs: how many are taken at most, at random, the same each time.
        progress: called with the number of photographs done and of all.

    Returns:
        How many photographs were taken.

    Raises:
        InputError: the model or a photograph cannot be used, there is none, or the output exists
            or cannot be written.
    """
    if output.exists():
        raise InputError(f"{output}: exists already and is not overwritten")
    if not output.parent.is_dir():
        raise InputError(f"{output}: cannot be written ({output.parent} is no folder)")
    if photographs < 1:
        raise InputError(f"{photographs} photographs asked for, expected at least 1")
    file = load_model(model)
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in PHOTOGRAPHS)
    if not found:
        raise InputError(f"{images}: holds no photographs (JPEG or PNG)")
    paths = random.Random(0).sample(found, min(photographs, len(found)))
    config = file.config
    network_inputs = (
        to_network_input(read_image(p), config.input_height, config.input_width, config.resize)[0]
        for p in paths
    )
    clipping_thresholds = calibrate(
        config,
        file.tensors,
        network_inputs,
        threads=threads,
        progress=progress and (lambda done: progress(done, len(paths))),
    )
    provenance = {**file.provenance, "int8": {"photographs": len(paths)}}
    save_model(
        output,
        config,
        file.tensors,
        provenance,
        dtype=file.storage_dtype,
        clipping_thresholds=clipping_thresholds,
    )
    return len(paths)


def calibrate(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    network_inputs: Iterable[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The range of every layer that gives bytes in int8, in the layer table's order.

    Args:
        tensors: folded weights by name.
        network inputs: photographs on network inputs, (H, W, 3) BGR; at least one.
        progress: called with the number of photographs done, after each.

    Raises:
        InputError: there is no photograph, or the RPN proposes nothing on any of them.
    """
    engine = Engine(config, tensors, threads=threads, hoist=False)
    histograms = {name: np.zeros(_BINS, np.int64) for name in int8_layers(config)}
    done = 0
    for network_input in network_inputs:
        _observe(engine, network_input, histograms)
        done += 1
        if progress:
            progress(done)
    if not done:
        raise InputError("there is no photograph to calibrate by")
    if not all(histogram.any() for histogram in histograms.values()):
        raise InputError("the RPN proposes nothing on the calibration photographs")
    relu = {layer.name: layer.relu or not layer.weights for layer in build_network(config).layers}
    return {name: _cheapest(h, 255 if relu[name] else 127) for name, h in histograms.items()}


def _observe(
    engine: Engine, network_input: NDArray[np.uint8], histograms: dict[str, NDArray[np.int64]]
) -> None:
    """Walk the layer table on one photograph and count."""
    config, native = engine.config, engine.native
    network = build_network(config, (network_input.shape[0], network_input.shape[1]))
    native.plan(*network_input.shape[:2])
    mean = np.asarray(config.pixel_mean, dtype=np.float32)
    std = np.asarray(config.pixel_std, dtype=np.float32)
    picture = ((network_input.astype(np.float32) - mean) / std).transpose(2, 0, 1)[None]
    live: dict[str, NDArray[np.float32]] = {"input": np.ascontiguousarray(picture)}
    table = [
        layer for layer in network.layers if layer.source == "input" or layer.name in histograms
    ]
    for index, layer in enumerate(table):
        if layer.source == "rois" and "rois" not in live:
            features = live[network.features][0]
            boxes = native.proposals(*native.rpn(features))
            if not len(boxes):
                return
            spread = np.linspace(0, len(boxes) - 1, min(REGIONS, len(boxes))).astype(int)
            live["rois"] = native.roi_features(features, np.ascontiguousarray(boxes[spread]))
        residual = live[layer.residual] if layer.residual else None
        y = live[layer.name] = native.run_op(layer.name, live[layer.source], residual)
        if layer.name in histograms:
            bits = np.abs(y).reshape(-1).view(np.int32) >> _SHIFT
            histograms[layer.name] += np.bincount(bits, minlength=_BINS)
        later = {n for after in table[index + 1 :] for n in (after.source, after.residual)}
        later |= {network.features} if layer.component != "roi" else set()
        for name in set(live) - later:
            del live[name]


def _cheapest(histogram: NDArray[np.int64], steps: int) -> float:
    """The range of least squared error, to one bin; 0 if all values are 0.

    Args:
        histogram: of magnitudes, by the upper bits of a float32.
        steps: how many steps a range is cut into.
    """
    filled = np.flatnonzero(histogram)
    if not filled.any():  # bin 0: zeros alone, but for numbers too small to matter
        return 0.0
    edges = (np.arange(filled[-1] + 2) << _SHIFT).astype(np.int32).view(np.float32)
    edges = edges.astype(np.float64)
    middle, count = (edges[filled] + edges[filled + 1]) / 2, histogram[filled]
    tops, errors = edges[-_OCTAVES * 32 :], []
    for top in tops:
        step = top / steps
        rounded = np.where(middle < step / 2, middle**2, step**2 / 12)
        errors.append(float(np.sum(count * np.where(middle < top, rounded, (middle - top) ** 2))))
    return float(f"{tops[int(np.argmin(errors))]:.6g}")
