"""An OpenVINO graph with INT8 convolutions, by NNCF's post-training quantisation.

Weights and activations of convolutions and fully connected layers become 8-bit; pixel and box
arithmetic stays float32, because a box coordinate needs more than 256 steps. Needs the `nncf`
package (`pip install 'sparsedet[quantize]'`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.check import BadImages, read_images
from ..images.letterbox import prepare
from ..images.read import read_image
from ..model.detector_config import Config, build_graph, with_fixed_input
from ..model.graph import Conv
from ..model.rewrite import is_predictor
from ..sources.folder import sample_images

DEFAULT_IMAGES = 128


def require_nncf() -> Any:
    """The nncf package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import nncf
    except ImportError:
        raise InputError("INT8 needs: pip install 'sparsedet[quantize]'") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def calibration_images(
    folder: Path, count: int | None, bad_images: BadImages = "stop"
) -> list[Path]:
    """A fixed sample of a folder's images.

    Args:
        folder: searched with its subfolders.
        count: number of images; default: 128, or all if there are fewer.
        bad_images: what an image that cannot be read does; each is read here, because NNCF goes on
            for long.

    Raises:
        InputError: as `sample_images`; or an image is bad and `bad_images` is "stop".
    """
    paths = sample_images(
        folder, DEFAULT_IMAGES if count is None else count, exact=count is not None
    )
    return [path for path, _ in read_images(paths, bad_images)]


def blobs(paths: Iterable[Path], config: Config, layout: str) -> Iterable[NDArray[np.float32]]:
    """Network inputs of images as the exported graph reads them: [1, 3, H, W] or [1, H, W, 3]."""
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `calibration_images` has said what is damaged
            image = read_image(path, keep_damaged=True)
        network_input, _ = prepare(image, config)
        blob = network_input[None].astype(np.float32)
        yield blob if layout == "NHWC" else np.ascontiguousarray(blob.transpose(0, 3, 1, 2))


def quantize(model: Any, paths: Sequence[Path], config: Config, layout: str) -> Any:
    """Quantise a graph.

    Args:
        model: result of `to_openvino`, without `image_info`.
        paths: calibration images, from `calibration_images`.
        config: the model's configuration.
        layout: the graph's layout, "NCHW" or "NHWC".

    Returns:
        The quantised `openvino.Model`.

    Raises:
        InputError: NNCF is not installed, or an image cannot be read.
    """
    nncf = require_nncf()
    config, graph = with_fixed_input(config), build_graph(config)
    predictors = [o.name for o, _ in graph.of_kind(Conv) if is_predictor(graph, o.name)]
    result = nncf.quantize(
        model,
        nncf.Dataset(list(paths), lambda path: next(iter(blobs([path], config, layout)))),
        subset_size=len(paths),
        ignored_scope=nncf.IgnoredScope(names=_arithmetic(model, predictors), validate=False),
    )
    for key in ("model_info", "sparsedet"):  # today NNCF keeps rt_info, undocumented
        if key in model.rt_info and key not in result.rt_info:
            result.set_rt_info(model.rt_info[key].value, [key])
    return result


def _arithmetic(model: Any, predictors: Sequence[str]) -> list[str]:
    """Names of the operations on pixels (before the stem) and boxes (after the predictors)."""
    names: list[str] = []
    nodes = model.get_ordered_ops()
    by_name = {node.get_friendly_name(): node for node in nodes}
    pixels = [p.get_node() for p in model.inputs]
    while pixels:
        node = pixels.pop()
        if node.get_type_name() != "Convolution":
            names.append(node.get_friendly_name())
            pixels += _consumers(node)
    aligned = [node for node in nodes if node.get_type_name() == "ROIAlign"]
    heads = {node.get_friendly_name() for node in [*aligned, *_after(aligned, set(predictors))]}
    ends = [by_name[name] for name in predictors]
    # The bias of a convolution belongs to the predictor.
    biases = {
        after.get_friendly_name()
        for node in ends
        if node.get_type_name() == "Convolution"
        for after in _consumers(node)
    }
    for node in _after(ends, heads):
        name = node.get_friendly_name()
        if name not in heads and name not in biases and name not in predictors:
            names.append(name)
    return names


def _after(nodes: Sequence[Any], stop: set[str]) -> list[Any]:
    """All that reads the nodes, directly or not, but nothing that lies behind those to stop at."""
    pending, found = list(nodes), {}
    while pending:
        for node in _consumers(pending.pop()):
            name = node.get_friendly_name()
            if name not in found:
                found[name] = node
                pending += [] if name in stop else [node]
    return list(found.values())


def _consumers(node: Any) -> list[Any]:
    return [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]
