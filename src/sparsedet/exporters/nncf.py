"""An OpenVINO graph -> the same with INT8 convolutions, by NNCF's post-training quantisation.

Weights and activations of convolutions and fully connected layers become 8-bit; pixel and box
arithmetic stays float32, because a box coordinate needs more than 256 steps. Needs the `nncf`
package (`pip install 'sparsedet[quantize]'`). Trains nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.letterbox import to_network_input
from ..images.read import read_image
from ..model.config import ModelConfig

PHOTOGRAPHS = {".jpg", ".jpeg", ".png"}
PREDICTORS = ("rpn.objectness", "rpn.deltas", "box.logits", "box.deltas")


def require_nncf() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import nncf
    except ImportError:
        raise InputError("INT8 needs: pip install 'sparsedet[quantize]'") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def calibration_photographs(folder: Path, count: int | None, seed: int = 0) -> list[Path]:
    """`count` photographs, JPEG or PNG, of a folder at any depth; which follows from the names.

    Args:
        count: default: 128, or all if there are fewer.

    Raises:
        InputError: no folder, or fewer photographs.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder of photographs")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTOGRAPHS)
    if count is None:
        count = max(1, min(128, len(found)))
    if not 1 <= count <= len(found):
        raise InputError(f"{folder}: {len(found)} photographs, {count} are asked for")
    return random.Random(seed).sample(found, count)


def blobs(paths: Iterable[Path], config: ModelConfig, layout: str) -> Iterable[NDArray[np.float32]]:
    """Photographs as the exported graph takes them."""
    for path in paths:
        network_input, _ = to_network_input(
            read_image(path), config.input_height, config.input_width, config.resize
        )
        blob = network_input[None].astype(np.float32)
        yield blob if layout == "NHWC" else np.ascontiguousarray(blob.transpose(0, 3, 1, 2))


def quantize(model: Any, paths: Sequence[Path], config: ModelConfig, layout: str) -> Any:
    """The quantised `openvino.Model`.

    Args:
        model: of `to_openvino`, without `image_info`.
        paths: calibration photographs.
        layout: the model's.

    Raises:
        InputError: NNCF is not installed, or a photograph cannot be read.
    """
    nncf = require_nncf()
    read_image(paths[0])  # a clear error before the long work
    result = nncf.quantize(
        model,
        nncf.Dataset(list(paths), lambda path: next(iter(blobs([path], config, layout)))),
        subset_size=len(paths),
        ignored_scope=nncf.IgnoredScope(names=_arithmetic(model), validate=False),
    )
    for key in ("model_info", "sparsedet"):  # NNCF keeps rt_info today; it promises nothing
        if key in model.rt_info and key not in result.rt_info:
            result.set_rt_info(model.rt_info[key].value, [key])
    return result


def _arithmetic(model: Any) -> list[str]:
    """Names of the operations on pixels and boxes: before the stem, and after the predictors."""
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
