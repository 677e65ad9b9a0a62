"""r101-c4, the reference of benchmarks of other detectors: its ratio is known on several CPUs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lib import subjects
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.images.letterbox import prepare
from sparsedet.model.detector_config import Config, build_graph
from sparsedet.model.file import ModelFile
from sparsedet.pruning.allocation import prunable_layers
from sparsedet.testing import calibrated_random_tensors

REFERENCE = "r101-c4"
_AFTER = {
    "proposals",
    "detections",
    "retinanet_detections",
    "fcos_detections",
    "cell_detections",
    "masks",
}
"""Kinds of operations that are post-processing."""


def add_options(parser: argparse.ArgumentParser, kinds: Iterable[str], repeats: int) -> None:
    """Add the options of the benchmarks that measure others beside it.

    Args:
        kinds: what can be measured.
        repeats: default of --repeats.
    """
    parser.add_argument("--kinds", nargs="+", choices=list(kinds))
    parser.add_argument(
        "--zeros", type=float, nargs="+", default=[0.0, 0.6, 0.8, 0.9], help="shares, 0..0.95"
    )
    parser.add_argument("--image", type=Path, default=subjects.IMAGE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds that count")
    parser.add_argument("--json", type=Path, help="result file; an older one is replaced")


def random_model(config: Config, share: float, image: NDArray[np.uint8]) -> ModelFile:
    """Random weights, with that share of zeros in each prunable layer."""
    graph = build_graph(config)
    prunable = sum(graph.layer[name].weights for name in prunable_layers(graph))
    sparsity = share * prunable / graph.parameters
    tensors = calibrated_random_tensors(config, sparsity, prepare(image, config)[0])
    return ModelFile(config, tensors, {"weights": "random"}, "float32")


def after_share(engine: Engine) -> float:
    """Fraction of the last run's time that post-processing took."""
    kinds = {operation.name: operation.kind for operation in engine.graph.operations}
    seconds: dict[bool, float] = {True: 0.0, False: 0.0}
    for name, value in engine.native.timings:
        seconds[kinds.get(name) in _AFTER] += value
    return seconds[True] / (seconds[True] + seconds[False])
