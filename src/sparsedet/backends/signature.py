"""Inputs and outputs of a detector's graph, read from the graph itself.

Names, layout, element type and number of rows differ between the published network's forms and
ours. No runtime is imported here.

Glossary: a port is an input or output of a graph; D is the largest number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..detections import not_padding
from ..errors import InputError
from ..model.config import COCO_NAMES
from ..model.detector_config import Config, config_from_json, with_form
from ..model.presets import preset

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output.

    Attributes:
        key: name or position, whichever the runtime uses.
        shape: -1 for a length that the graph leaves open.
        dtype: numpy's name of the element type.
    """

    key: Any
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a detector.

    Attributes:
        image: input of the network input, [1, 3, H, W] or [1, H, W, 3].
        info: optional input `image_info`, [1, 3] or [1, 6].
        rows: position of the output [D, 7] or [1, 1, D, 7].
        count: D, -1 where the graph leaves it open.
        masks: position of the output [D, h, w], if there is one.
    """

    image: Port
    info: Port | None
    rows: int
    count: int
    masks: int | None

    @classmethod
    def find(cls, inputs: Sequence[Port], outputs: Sequence[Port]) -> Signature:
        """Recognise the ports of a graph by their shapes.

        Raises:
            InputError: the graph is not a detector's.
        """
        images = [p for p in inputs if len(p.shape) == 4 and 3 in (p.shape[1], p.shape[3])]
        infos = [p for p in inputs if len(p.shape) == 2]
        if len(images) != 1 or len(images) + len(infos) != len(inputs) or len(infos) > 1:
            raise InputError(
                f"has inputs {_shapes(inputs)}, expected one [1, 3, H, W] or [1, H, W, 3] and at "
                "most an image_info [1, 3]"
            )
        rows = [k for k, p in enumerate(outputs) if p.shape[-1:] == (7,) and len(p.shape) in (2, 4)]
        if len(rows) != 1:
            raise InputError(
                f"has outputs {_shapes(outputs)}, expected one of rows of seven, [D, 7] or "
                "[1, 1, D, 7]"
            )
        count = outputs[rows[0]].shape[-2]
        masks = [k for k, p in enumerate(outputs) if len(p.shape) == 3 and p.shape[0] == count]
        signature = cls(
            images[0],
            infos[0] if infos else None,
            rows[0],
            count,
            masks[0] if len(masks) == 1 else None,
        )
        if min(signature.size) < 1 or images[0].shape[0] not in (1, -1):
            raise InputError(
                f"has input {_shapes(images)}, expected a fixed size and a batch of one image"
            )
        return signature

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        shape = self.image.shape
        return (shape[1], shape[2]) if is_nhwc(self.image) else (shape[2], shape[3])

    def feed(self, network_input: NDArray[Any]) -> dict[Any, NDArray[Any]]:
        """Values of the inputs, by their keys.

        Args:
            network_input: (H, W, 3) of the signature's size.

        Raises:
            InputError: the network input has another size.
        """
        check_size(network_input, self.size)
        return feed((self.image, *([self.info] if self.info else [])), network_input)

    def config(self, name: str, metadata: Mapping[str, str]) -> Config:
        """The model's configuration, as far as input and output need it.

        Args:
            name: name of the network.
            metadata: of the graph: `config`, a whole configuration as JSON (our exports);
                `labels` and `resize_type` as OpenVINO's Model API writes them.

        Raises:
            InputError: the metadata cannot be read.
        """
        count = self.count if self.count > 0 else None
        if "config" in metadata:
            try:
                config = config_from_json(metadata["config"])
                return with_form(config, input_size=self.size, max_detections=count)
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"its metadata holds no valid configuration: {error}") from None
        base: Config = replace(preset("r101-c4"), name=name or "graph")
        base = with_form(base, input_size=self.size, max_detections=count)
        if metadata.get("resize_type") == "standard":
            base = replace(base, resize="stretch")
        labels = metadata.get("labels", "").split()
        if labels and labels[0].strip("_").lower() == "background":
            del labels[0]
        if labels and labels != [label.replace(" ", "_") for label in COCO_NAMES]:
            base = replace(
                base, class_names=tuple(labels), category_ids=tuple(range(1, len(labels) + 1))
            )
        return base


def refuse_content(content: tuple[int, int] | None) -> None:
    """Raise InputError if boxes shall end inside the network input: a graph does not know."""
    if content is not None:
        raise InputError("an exported graph does not know where an image ends")


def is_nhwc(image: Port) -> bool:
    """Whether an image input is [1, H, W, 3], not [1, 3, H, W]."""
    return image.shape[1] != 3


def feed(inputs: Iterable[Port], network_input: NDArray[Any]) -> dict[Any, NDArray[Any]]:
    """Values for the inputs of any graph of this family, chosen by their shapes.

    Args:
        inputs: four axes: an image; others: image_info [1, n], filled with height, width and ones.
        network_input: (H, W, 3) BGR, 0..255.

    Returns:
        Key of each input -> its value, contiguous and of its element type.
    """
    values = {}
    for port in inputs:
        if len(port.shape) == 4:
            blob = network_input[None]
            value = blob if is_nhwc(port) else blob.transpose(0, 3, 1, 2)
            values[port.key] = np.ascontiguousarray(value, dtype=port.dtype)
        else:
            length = port.shape[-1] if port.shape[-1] > 0 else 3
            info = np.ones((1, length), dtype=port.dtype)
            info[0, :2] = network_input.shape[:2]
            values[port.key] = info
    return values


def check_size(network_input: NDArray[Any], size: tuple[int, int]) -> None:
    """Raise InputError unless a network input has this height and width."""
    if network_input.shape[:2] != size:
        height, width = network_input.shape[:2]
        raise InputError(
            f"the network input has {width}x{height} pixels, this backend takes "
            f"{size[1]}x{size[0]} alone"
        )


def plain_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """A graph's rows in our form.

    Args:
        rows: [D, 7] or [1, 1, D, 7], in any order, with padding.

    Returns:
        (N, 7) float32, best first, without padding.
    """
    return _sorted(rows)[0]


def rows_and_masks(rows: NDArray[Any], masks: NDArray[Any]) -> tuple[F32, F32]:
    """`plain_rows`, and the masks [D, h, w] of the rows: (N, h, w) float32."""
    plain, order = _sorted(rows)
    return plain, np.asarray(masks, dtype=np.float32)[order]


def _sorted(rows: NDArray[Any]) -> tuple[F32, NDArray[np.intp]]:
    """`plain_rows`, and which row each was."""
    rows = np.asarray(rows, dtype=np.float32).reshape(-1, 7)
    order = np.argsort(-rows[:, 2], kind="stable")
    order = order[not_padding(rows[order])]
    return rows[order], order


def _shapes(ports: Sequence[Port]) -> str:
    shapes = (str([n if n >= 0 else "?" for n in port.shape]).replace("'", "") for port in ports)
    return ", ".join(shapes) or "none"
