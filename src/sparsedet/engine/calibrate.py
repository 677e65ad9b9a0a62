"""Calibration for int8: the clipping threshold of each layer's output, from calibration images.

An int8 activation is a byte; the step between two bytes is fixed for each tensor beforehand. The
graph runs in float32 on each calibration image, operation by operation, with a histogram of the
magnitudes of each tensor. The clipping threshold is the value with the least squared error: a
larger one rounds all values more coarsely, a smaller one clips the largest values. Weights need no
images: the engine rounds them when it packs them.

A tensor with clipping threshold t is rounded to multiples of t / 255 after a ReLU, else of t / 127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import check_output
from ..images.check import BadImages, read_images
from ..images.letterbox import prepare
from ..model.detector_config import Config, build_graph
from ..model.file import int8_layers, load_model, save_model
from ..model.graph import Conv
from ..sources.folder import sample_images
from . import Engine
from .interpreter import NativeInterpreter
from .lower import check_int8

ROIS = 64
"""RoIs of each image, evenly spread from its best proposal to its last."""

_SHIFT = 18
"""Bits of a float32 that a histogram drops: 5 bits of the mantissa stay, 32 bins an octave."""
_BINS = 1 << (31 - _SHIFT)
_OCTAVES = 6  # below the largest value; the threshold is searched in this range


def quantize_file(
    model: Path,
    images: Path,
    output: Path,
    *,
    calibration_images: int = 16,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    bad_images: BadImages = "stop",
) -> int:
    """Write a copy of a model file with clipping thresholds for int8; its weights do not change.

    Args:
        model: the model file.
        images: folder of images, searched with its subfolders.
        output: the file to write; must not exist.
        calibration_images: number of images to draw at random, at least 1; the same draw each
            time, and all images if there are fewer.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called after each image with the number of images done and in all.
        bad_images: what an image that cannot be read does.

    Returns:
        Number of images used.

    Raises:
        InputError: the model or an image cannot be used, the folder holds no image, or the output
            exists or cannot be written.
    """
    check_output(output, flag="")
    file = load_model(model)
    config = file.config
    check_int8(build_graph(config))  # before the work
    paths = sample_images(images, calibration_images, exact=False)
    used = 0

    def network_inputs() -> Iterator[NDArray[np.uint8]]:
        nonlocal used
        for _, image in read_images(paths, bad_images):
            used += 1
            yield prepare(image, config)[0]

    clipping_thresholds = calibrate(
        config,
        file.tensors,
        network_inputs(),
        threads=threads,
        progress=progress and (lambda done: progress(done, len(paths))),
    )
    provenance = {**file.provenance, "int8": {"photographs": used}}
    save_model(
        output,
        config,
        file.tensors,
        provenance,
        dtype=file.storage_dtype,
        clipping_thresholds=clipping_thresholds,
    )
    return used


def calibrate(
    config: Config,
    tensors: Mapping[str, NDArray[Any]],
    network_inputs: Iterable[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Measure the clipping threshold of each layer with int8 output, in the graph's order.

    Args:
        config: configuration of the model.
        tensors: folded weights and biases by name.
        network_inputs: calibration images as network inputs, (H, W, 3) BGR; at least one.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called after each image with the number of images done.

    Raises:
        InputError: there is no image, or the RPN proposes nothing on any of them.
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
        raise InputError("there is no image to calibrate on")
    if not all(histogram.any() for histogram in histograms.values()):
        raise InputError("the RPN proposes nothing on the calibration images")
    negative = {
        operation.name
        for operation, conv in engine.graph.of_kind(Conv)
        if conv.activation == "none"
    }
    return {
        name: _clipping_threshold(h, 127 if name in negative else 255)
        for name, h in histograms.items()
    }


def _observe(
    engine: Engine, network_input: NDArray[np.uint8], histograms: dict[str, NDArray[np.int64]]
) -> None:
    """Run the graph on one image and add the values' magnitudes to the histograms."""
    interpreter = NativeInterpreter(engine, network_input)
    for name, value in interpreter.values(list(histograms), ROIS):
        if name in histograms:
            bits = np.abs(value).reshape(-1).view(np.int32) >> _SHIFT
            histograms[name] += np.bincount(bits, minlength=_BINS)


def _clipping_threshold(histogram: NDArray[np.int64], steps: int) -> float:
    """The clipping threshold with the least squared error, to one bin; 0 if all values are 0.

    Args:
        histogram: number of values by the upper bits of their magnitude as a float32, (_BINS,).
        steps: number of steps between 0 and the threshold.
    """
    filled = np.flatnonzero(histogram)
    if not filled.any():  # bin 0 holds zeros, and values too small to matter
        return 0.0
    edges = (np.arange(filled[-1] + 2) << _SHIFT).astype(np.int32).view(np.float32)
    edges = edges.astype(np.float64)
    middle, count = (edges[filled] + edges[filled + 1]) / 2, histogram[filled]
    thresholds, errors = edges[-_OCTAVES * 32 :], []
    for top in thresholds:
        step = top / steps
        rounded = np.where(middle < step / 2, middle**2, step**2 / 12)
        errors.append(float(np.sum(count * np.where(middle < top, rounded, (middle - top) ** 2))))
    return float(f"{thresholds[int(np.argmin(errors))]:.6g}")
