"""The models that the benchmarks measure: random weights of given sparsities, or a model file.

The sparsity of random weights counts all parameters. Each pruned convolution has the same sparsity,
with zeros at random positions and a fixed seed. The weights are scaled on the image, so that many
objects are detected.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import sparsedet
from sparsedet.images.letterbox import prepare
from sparsedet.model.detector_config import Config
from sparsedet.model.file import ModelFile
from sparsedet.pruning.patterns import PATTERNS, UNSTRUCTURED
from sparsedet.testing import calibrated_random_tensors

IMAGE = Path(__file__).resolve().parents[2] / "examples" / "beach.jpg"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks of speed share."""
    parser.add_argument(
        "--preset", default="r101-c4", help="network with random weights; default: r101-c4"
    )
    parser.add_argument("--model", type=Path, help="model file; default: random weights")
    parser.add_argument("--image", type=Path, default=IMAGE, help="default: examples/beach.jpg")
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=[0.0, 0.6, 0.8, 0.9],
        help="of random weights: fractions of all parameters, 0..0.9",
    )
    parser.add_argument(
        "--pattern",
        choices=[name for name, pattern in PATTERNS.items() if not pattern.live],
        default=UNSTRUCTURED.name,
        help="pruning pattern of random weights",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; default: 2")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--isa", default="", help="instruction set; default: the CPU's best")
    parser.add_argument("--json", type=Path, help="result file; an older one is replaced")


def models(arguments: argparse.Namespace, image: np.ndarray) -> Iterator[ModelFile]:
    """The models to measure, one at a time: each needs a few gigabytes with its peers."""
    if arguments.model:
        yield sparsedet.load_model(arguments.model)
        return
    config = sparsedet.preset(arguments.preset)
    network_input, _ = prepare(image, config)
    for sparsity in arguments.sparsity:
        tensors = calibrated_random_tensors(
            config, sparsity, network_input, pattern=arguments.pattern
        )
        zeros = "" if arguments.pattern == UNSTRUCTURED.name else f", {arguments.pattern} zeros"
        yield ModelFile(config, tensors, {"weights": f"random{zeros}"}, "float32")


def calibration_inputs(config: Config) -> list[np.ndarray]:
    """Network inputs that calibrate int8 of both sides: each example image, and a crop of it."""
    network_inputs = []
    for path in sorted(IMAGE.parent.glob("*.jpg")):
        image = sparsedet.read_image(path)
        height, width = image.shape[:2]
        crop = np.ascontiguousarray(image[height // 4 :, width // 4 :])
        for array in (image, crop):
            network_inputs.append(prepare(array, config)[0])
    return network_inputs
