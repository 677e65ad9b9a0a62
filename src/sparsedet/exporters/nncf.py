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
from ..model.detector_config import Config
from ..sources.folder import sample_images

DEFAULT_IMAGES = 128
PREDICTORS = ("rpn.objectness", "rpn.deltas", "box.logits", "box.deltas")


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
    result = nncf.quantize(
        model,
        nncf.Dataset(list(paths), lambda path: next(iter(blobs([path], config, layout)))),
        subset_size=len(paths),
        ignored_scope=nncf.IgnoredScope(names=_arithmetic(model), validate=False),
    )
    for key in ("model_info", "sparsedet"):  # today NNCF keeps rt_info, undocumented
        if key in model.rt_info and key not in result.rt_info:
            result.set_rt_info(model.rt_info[key].value, [key])
    return result


def _arithmetic(model: Any) -> list[str]:
    """Names of the operations on pixels (before the stem) and boxes (after the predictors)."""
    names: list[str] = []
    by_name = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    pending = [by_name[name] for name in PREDICTORS]
    seen = set(PREDICTORS)
    pixels = [p.get_node() for p in model.inputs]
    while pixels:
        node = pixels.pop()
        if node.get_type_name() != "Convolution":
            names.append(node.get_friendly_name())
            pixels += _consumers(node)
    while pending:
        node = pending.pop()
        for after in _consumers(node):
            name = after.get_friendly_name()
            bias = node.get_type_name() == "Convolution"  # belongs to the predictor
            if after.get_type_name() != "ROIAlign" and name not in seen:
                seen.add(name)
                pending.append(after)
                names += [] if bias else [name]
    return names


def _consumers(node: Any) -> list[Any]:
    return [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]
