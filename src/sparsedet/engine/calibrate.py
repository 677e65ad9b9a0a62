"""Calibration for int8: what bytes hold of each value, from calibration images.

An int8 activation is a byte; the step between two bytes is fixed for each tensor beforehand. The
graph runs in float32 on each calibration image, operation by operation, with a histogram of the
values of each tensor. The range is the one with the least squared error: a larger one rounds all
values more coarsely, a smaller one clips the largest values. The engine rounds weights when it
packs them; what that adds to a layer's output on average is taken off its bias (`rounding`).

A tensor without negative values has a clipping threshold t and is rounded to multiples of t / 255.
Another one has a range [low, high], of which a byte is a 255th part. In files of a Faster R-CNN C4,
which older programs read, it has a threshold t, too, and is rounded to multiples of t / 127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from ..model.int8_ranges import ClippingThreshold, int8_layers
from ..model.network import AnyConfig, NetworkConfig, graph_of
from ..sources.folder import sample_images
from . import Engine
from .histogram import Histogram
from .interpreter import NativeInterpreter
from .lower import lowered
from .rounding import RunningMean, corrected_biases, means_for

F32 = NDArray[np.float32]
ROIS = 64
"""RoIs of each image, evenly spread from its best proposal to its last."""


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

    found = measure(
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
        clipping_thresholds=found.clipping_thresholds,
        int8_biases=found.int8_biases,
    )
    return used


def network_input_of(image: NDArray[np.uint8], config: AnyConfig) -> NDArray[np.uint8]:
    """The network input (H, W, 3) of an image, both BGR."""
    if isinstance(config, NetworkConfig):
        return fitted(image, config)
    return prepare(image, config)[0]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What int8 needs beside the weights; fields as of `ModelFile`."""

    clipping_thresholds: dict[str, ClippingThreshold]
    int8_biases: dict[str, F32] | None


def calibrate(
    config: AnyConfig,
    tensors: Mapping[str, NDArray[Any]],
    network_inputs: Iterable[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, ClippingThreshold]:
    """The clipping thresholds of `measure`, in the graph's order; arguments and errors as there."""
    found = measure(config, tensors, network_inputs, threads=threads, progress=progress)
    return found.clipping_thresholds


def measure(
    config: AnyConfig,
    tensors: Mapping[str, NDArray[Any]],
    network_inputs: Iterable[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Measure what bytes should hold of each value, and what rounding the weights adds.

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
    histograms = {name: Histogram() for name in int8_layers(config)}
    # In a file of a Faster R-CNN C4 there is no place for biases.
    means = {} if isinstance(config, ModelConfig) else means_for(graph)
    done = 0
    for network_input in network_inputs:
        _observe(engine, network_input, histograms, means)
        done += 1
        if progress:
            progress(done)
    if not done:
        raise InputError("there is no image to calibrate on")
    if not all(histogram.counts.any() for histogram in histograms.values()):
        raise InputError("the RPN proposes nothing on the calibration images")
    symmetric = isinstance(config, ModelConfig)
    thresholds = {name: histogram.threshold(symmetric) for name, histogram in histograms.items()}
    return Calibration(thresholds, corrected_biases(graph, tensors, means) or None)


def _observe(
    engine: Engine,
    network_input: NDArray[Any],
    histograms: dict[str, Histogram],
    means: dict[str, RunningMean],
) -> None:
    """Run the graph on one image and add its values."""
    interpreter = NativeInterpreter(engine, network_input)
    for name, value in interpreter.values([*dict.fromkeys([*histograms, *means])], ROIS):
        if name in histograms:
            if not np.isfinite(value).all():
                raise InputError(f"{name} is NaN or infinite on a calibration image")
            histograms[name].add(value)
        if name in means:
            means[name].add(value)
