"""Calibration for int8: what bytes hold of each value, from calibration images.

An int8 activation is a byte; the step between two bytes is fixed for each tensor beforehand. The
graph runs in float32 on each calibration image, operation by operation, with a histogram of the
values of each tensor. The range is the one with the least squared error: a larger one rounds all
values more coarsely, a smaller one clips the largest values. Weights need no images: the engine
rounds them when it packs them.

A tensor without negative values has a clipping threshold t and is rounded to multiples of t / 255.
Another one has a range [low, high], of which a byte is a 255th part. In files of a Faster R-CNN C4,
which older programs read, it has a threshold t, too, and is rounded to multiples of t / 127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import check_output
from ..images.check import BadImages, read_images
from ..images.crop import fitted
from ..images.letterbox import prepare
from ..model.config import ModelConfig
from ..model.detector_config import Config
from ..model.file import AnyFile, load_file, save_model
from ..model.int8_ranges import ClippingThreshold, Range, int8_layers
from ..model.network import AnyConfig, NetworkConfig, graph_of
from ..sources.folder import sample_images
from . import Engine
from .interpreter import NativeInterpreter
from .lower import lowered

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
    load: Callable[[Path], AnyFile] = load_file,
) -> int:
    """Write a model file with clipping thresholds for int8; its weights do not change.

    Args:
        model: the file of a detector or another network.
        images: folder of images, searched with its subfolders.
        output: the file to write; must not exist.
        calibration_images: number of images to draw at random, at least 1; the same draw each
            time, and all images if there are fewer.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called after each image with the number of images done and in all.
        bad_images: what an image that cannot be read does.
        load: reads `model`, for files of other forms.

    Returns:
        Number of images used.

    Raises:
        InputError: the model or an image cannot be used, the folder holds no image, or the output
            exists or cannot be written.
    """
    check_output(output, flag="")
    file = load(model)
    paths = sample_images(images, calibration_images, exact=False)
    used = 0

    def network_inputs() -> Iterator[NDArray[np.uint8]]:
        nonlocal used
        for _, image in read_images(paths, bad_images):
            used += 1
            yield network_input_of(image, file.config)

    clipping_thresholds = calibrate(
        file.config,
        file.tensors,
        network_inputs(),
        threads=threads,
        progress=progress and (lambda done: progress(done, len(paths))),
    )
    provenance = {**file.provenance, "int8": {"photographs": used}}
    save_model(
        output,
        file.config,
        file.tensors,
        provenance,
        dtype=file.storage_dtype,
        clipping_thresholds=clipping_thresholds,
    )
    return used


def network_input_of(image: NDArray[np.uint8], config: AnyConfig) -> NDArray[np.uint8]:
    """The network input (H, W, 3) of an image, both BGR."""
    if isinstance(config, NetworkConfig):
        return fitted(image, config)
    return prepare(image, config)[0]


def calibrate(
    config: AnyConfig,
    tensors: Mapping[str, NDArray[Any]],
    network_inputs: Iterable[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, ClippingThreshold]:
    """Measure what bytes should hold of each value, in the graph's order.

    Args:
        config: configuration of the model.
        tensors: folded weights and biases by name.
        network_inputs: calibration images as network inputs, (H, W, 3) BGR; at least one.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called after each image with the number of images done.

    Raises:
        InputError: there is no image, a value is NaN or infinite, or the RPN proposes nothing on
            any image.
    """
    graph = lowered(graph_of(config), hoisted=False)
    engine = Engine(cast(Config, config), tensors, threads=threads, graph=graph)
    histograms = {name: _Histogram() for name in int8_layers(config)}
    done = 0
    for network_input in network_inputs:
        _observe(engine, network_input, histograms)
        done += 1
        if progress:
            progress(done)
    if not done:
        raise InputError("there is no image to calibrate on")
    if not all(histogram.counts.any() for histogram in histograms.values()):
        raise InputError("the RPN proposes nothing on the calibration images")
    symmetric = isinstance(config, ModelConfig)
    return {name: histogram.threshold(symmetric) for name, histogram in histograms.items()}


class _Histogram:
    """How many values of a tensor have which magnitude, by sign and the upper bits of a float32."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * _BINS, np.int64)

    def add(self, value: NDArray[np.float32]) -> None:
        bits = np.ascontiguousarray(value).reshape(-1).view(np.uint32) >> _SHIFT
        self.counts += np.bincount(bits, minlength=2 * _BINS)

    def threshold(self, symmetric: bool) -> ClippingThreshold:
        """What bytes should hold: a range, or one number as older programs read it."""
        positive, negative = self.counts[:_BINS], self.counts[_BINS:]
        if not negative[1:].any():
            top = _clipping_threshold(positive, 255)
            return top if symmetric else (0.0, top)
        if symmetric:
            return _clipping_threshold(positive + negative, 127)
        return _range(negative, positive)


def _observe(
    engine: Engine, network_input: NDArray[Any], histograms: dict[str, _Histogram]
) -> None:
    """Run the graph on one image and add the values to the histograms."""
    interpreter = NativeInterpreter(engine, network_input)
    for name, value in interpreter.values(list(histograms), ROIS):
        if name in histograms:
            if not np.isfinite(value).all():
                raise InputError(f"{name} is NaN or infinite on a calibration image")
            histograms[name].add(value)


class _Side:
    """The values of one sign: how much is lost by clipping and by rounding them."""

    def __init__(self, histogram: NDArray[np.int64]) -> None:
        filled = np.flatnonzero(histogram)
        last = int(filled[-1]) if filled.size else 0
        edges = (np.arange(last + 2) << _SHIFT).astype(np.int32).view(np.float32)
        edges = edges.astype(np.float64)
        self.middle, self.count = (edges[filled] + edges[filled + 1]) / 2, histogram[filled]
        self.tops = edges[-_OCTAVES * 32 :]
        """Thresholds to try: all edges of the upper octaves."""

    def error(self, top: float, step: float) -> float:
        """The squared error of rounding to multiples of `step` up to `top`."""
        rounded = np.where(self.middle < step / 2, self.middle**2, step**2 / 12)
        clipped = np.where(self.middle < top, rounded, (self.middle - top) ** 2)
        return float(np.sum(self.count * clipped))


def _clipping_threshold(histogram: NDArray[np.int64], steps: int) -> float:
    """The clipping threshold with the least squared error, to one bin; 0 if all values are 0.

    Args:
        histogram: number of values by the upper bits of their magnitude as a float32, (_BINS,).
        steps: number of steps between 0 and the threshold.
    """
    if not np.flatnonzero(histogram).any():  # bin 0 holds zeros, and values too small to matter
        return 0.0
    side = _Side(histogram)
    errors = [side.error(top, top / steps) for top in side.tops]
    return float(f"{side.tops[int(np.argmin(errors))]:.6g}")


def _range(negative: NDArray[np.int64], positive: NDArray[np.int64]) -> Range:
    """The range with the least squared error, to one bin on either side; 255 steps.

    Each side is searched while the other one stays, twice: the error has one valley.
    """
    below, above = _Side(negative), _Side(positive)
    low, high = float(below.tops[-1]), float(above.tops[-1])

    def error(low: float, high: float) -> float:
        step = (low + high) / 255
        return below.error(low, step) + above.error(high, step)

    for _ in range(2):
        low = min(map(float, below.tops), key=lambda top: error(top, high))
        high = min(map(float, above.tops), key=lambda top: error(low, top))
    return float(f"{-low:.6g}"), float(f"{high:.6g}")
