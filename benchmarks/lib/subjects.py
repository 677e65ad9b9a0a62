"""What the benchmarks measure: random weights of given sparsities, or a model file.

Random weights have zeros among ALL parameters, the same share in each pruned convolution, at random
places, fixed seed; they are scaled on the photograph so that many objects are detected.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import sparsedet
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import ModelFile
from sparsedet.pruning.patterns import PATTERNS, UNSTRUCTURED
from sparsedet.testing import calibrated_random_tensors

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "beach.jpg"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks share."""
    parser.add_argument("--preset", default="r101-c4", help="shape of the random weights' network")
    parser.add_argument("--model", type=Path, help="a model file instead of random weights")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=[0.0, 0.6, 0.8, 0.9],
        help="zeros among all parameters, 0..0.9, of random weights",
    )
    parser.add_argument(
        "--pattern",
        choices=[name for name, pattern in PATTERNS.items() if not pattern.live],
        default=UNSTRUCTURED.name,
        help="of the zeros of random weights",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--isa", default="", help="instruction set; default: the CPU's best")
    parser.add_argument("--json", type=Path, help="write the result there, replacing an older one")


def models(arguments: argparse.Namespace, photo: np.ndarray) -> Iterator[ModelFile]:
    """The models to measure, one at a time: each takes a few gigabytes with its peers."""
    if arguments.model:
        yield sparsedet.load_model(arguments.model)
        return
    config = sparsedet.preset(arguments.preset)
    network_input, _ = to_network_input(
        photo, config.input_height, config.input_width, config.resize
    )
    for sparsity in arguments.sparsity:
        tensors = calibrated_random_tensors(
            config, sparsity, network_input, pattern=arguments.pattern
        )
        zeros = "" if arguments.pattern == UNSTRUCTURED.name else f", {arguments.pattern} zeros"
        yield ModelFile(config, tensors, {"weights": f"random{zeros}"}, "float32")


def calibration_inputs(config: ModelConfig) -> list[np.ndarray]:
    """What both sides' int8 is calibrated on: each example photograph, and a part of it."""
    network_inputs = []
    for path in sorted(PHOTO.parent.glob("*.jpg")):
        photo = sparsedet.read_image(path)
        height, width = photo.shape[:2]
        part = np.ascontiguousarray(photo[height // 4 :, width // 4 :])
        for crop in (photo, part):
            network_inputs.append(
                to_network_input(crop, config.input_height, config.input_width, config.resize)[0]
            )
    return network_inputs
