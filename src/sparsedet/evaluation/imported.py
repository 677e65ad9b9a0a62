"""Run an imported network beside its source: OpenVINO runs the IR, our engine the import.

Measures on one image whether both give the same detections. Needs OpenVINO.

Glossary: rows are the contract's (image_id, class_id, confidence, x0, y0, x1, y1), corners in
fractions of the network input.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import cv2
import numpy as np
from numpy.typing import NDArray

from ..backends.signature import feed
from ..engine import Engine
from ..errors import InputError
from ..images.letterbox import prepare
from ..importers.tensor_source import Imported
from .agreement import RowDifferences, compare_rows

Rows = NDArray[np.float32]

TRIES = 4
"""Synthetic images that are tried until one of them gives detections."""


def have_openvino() -> bool:
    return find_spec("openvino") is not None


def compare_with_openvino(
    path: str | os.PathLike[str], imported: Imported, image: NDArray[np.uint8] | None = None
) -> RowDifferences:
    """Run source and import on one image and compare their rows.

    Args:
        path: the IR that `imported` was read from.
        imported: the imported network.
        image: (H, W, 3) uint8 BGR; default: synthetic images, until one gives detections.

    Raises:
        InputError: OpenVINO cannot run the source.
    """
    config = imported.config
    engine = Engine(config, imported.tensors)
    run_source = _load_source(path)
    size = (config.input_height, config.input_width)
    for attempt in range(TRIES):
        if image is None:
            network_input = synthetic_image(*size, seed=attempt)
        else:
            network_input, _ = prepare(image, config)
        result = compare_rows(
            run_source(network_input),
            engine.run(network_input),
            config.score_threshold,
            config.max_detections,
        )
        if result.source or result.ours or image is not None:
            break
    return result


def _load_source(path: str | os.PathLike[str]) -> Callable[[NDArray[np.uint8]], Rows]:
    """The source in float32: network input -> rows [N, 7].

    Not `backends.load_graph`, which also asks for class names and more that only detecting needs.
    """
    import openvino as ov

    from ..backends import openvino

    graph = openvino.read_graph(path)
    try:
        compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        reason = openvino.reason_of(error)[:200]
        raise InputError(f"{path}: OpenVINO cannot load it ({reason})") from None
    inputs = openvino.graph_ports(graph.inputs)

    def run(network_input: NDArray[np.uint8]) -> Rows:
        try:
            output = compiled(feed(inputs, network_input))[0]
        except RuntimeError as error:
            reason = openvino.reason_of(error)[:200]
            raise InputError(f"{path}: OpenVINO cannot run it ({reason})") from None
        rows = np.array(output, dtype=np.float32).reshape(-1, 7)
        ends = np.flatnonzero(rows[:, 0] < 0)  # rows after the first -1 are undefined
        return rows[: ends[0]] if len(ends) else rows

    return run


def synthetic_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Sharp shapes on smooth random colours: edges and areas to detect.

    Returns:
        (height, width, 3) uint8 BGR.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        x, y = (int(rng.integers(0, n)) for n in (width, height))
        w, h = (int(rng.integers(max(2, n // 20), max(3, n // 3))) for n in (width, height))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.rectangle(image, (x, y), (x + w, y + h), colour, -1)
        else:
            cv2.ellipse(image, (x, y), (w // 2, h // 2), 0, 0, 360, colour, -1)
    return np.asarray(image, dtype=np.uint8)
