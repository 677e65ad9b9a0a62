"""What a detector's graph takes and gives, read from the graph itself.

Names, layout, element type and the number of rows differ between the published network's forms and
ours; the graph says which one it is. No runtime is imported here.

Glossary: a port is an input or output of a graph; D rows at most, of 7 numbers each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.config import COCO_NAMES, ModelConfig
from ..model.presets import preset


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output.

    Attributes:
        key: by which the runtime knows it, a name or a position.
        shape: -1 where the graph leaves it open.
        dtype: as numpy names it.
    """

    key: Any
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Ports:
    """A detector's.

    Attributes:
        image: the network input's input.
        nhwc: its layout is [1, H, W, 3], else [1, 3, H, W].
        info: the extra input `image_info` [1, 3] or [1, 6] of (height, width, 1), if there is one.
        rows: position of the output [D, 7] or [1, 1, D, 7].
        count: D, -1 where the graph leaves it open.
    """

    image: Port
    nhwc: bool
    info: Port | None
    rows: int
    count: int

    @classmethod
    def find(cls, inputs: Sequence[Port], outputs: Sequence[Port]) -> Ports:
        """Which is which, by shape.

        Raises:
            InputError: these are not a detector's.
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
        found = cls(
            images[0],
            images[0].shape[1] != 3,
            infos[0] if infos else None,
            rows[0],
            outputs[rows[0]].shape[-2],
        )
        if min(found.size) < 1 or images[0].shape[0] not in (1, -1):
            raise InputError(f"has input {_shapes(images)}, expected a fixed size and one picture")
        return found

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        shape = self.image.shape
        return (shape[1], shape[2]) if self.nhwc else (shape[2], shape[3])

    def feed(self, network_input: NDArray[Any]) -> dict[Any, NDArray[Any]]:
        """Values of the inputs for a network input (H, W, 3)."""
        check_size(network_input, self.size)
        blob = network_input[None] if self.nhwc else network_input.transpose(2, 0, 1)[None]
        values = {self.image.key: np.ascontiguousarray(blob, dtype=self.image.dtype)}
        if self.info is not None:
            info = np.ones((1, self.info.shape[1]), dtype=self.info.dtype)
            info[0, :2] = self.size
            values[self.info.key] = info
        return values

    def config(self, name: str, said: Mapping[str, str]) -> ModelConfig:
        """What the graph does, as far as a photograph's way in and the rows' way out need it.

        Args:
            name: of the network.
            said: what the graph's metadata says: `config`, all of a model's configuration as JSON
                (our own graphs); `labels` and `resize_type` as OpenVINO's Model API spells them.

        Raises:
            InputError: the metadata cannot be read.
        """
        height, width = self.size
        form = {"input_height": height, "input_width": width}
        if self.count > 0:
            form["max_detections"] = self.count
        if "config" in said:
            try:
                return replace(ModelConfig.from_dict(json.loads(said["config"])), **form)  # type: ignore[arg-type]
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"its metadata holds no valid configuration: {error}") from None
        base = replace(preset("r101-c4"), name=name or "graph", **form)  # type: ignore[arg-type]
        if said.get("resize_type") == "standard":
            base = replace(base, resize="stretch")
        labels = said.get("labels", "").split()
        if labels and labels[0].strip("_").lower() == "background":
            del labels[0]
        if labels and labels != [label.replace(" ", "_") for label in COCO_NAMES]:
            base = replace(
                base, class_names=tuple(labels), category_ids=tuple(range(1, len(labels) + 1))
            )
        return base


def check_size(network_input: NDArray[Any], size: tuple[int, int]) -> None:
    """Raises InputError unless a network input is of that height and width."""
    if network_input.shape[:2] != size:
        raise InputError(
            f"the network input has {network_input.shape[1]}x{network_input.shape[0]} pixels, this backend takes "
            f"{size[1]}x{size[0]} alone"
        )


def plain_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """A graph's rows, [D, 7] or [1, 1, D, 7], in our form: (N, 7), best first, no padding."""
    rows = np.asarray(rows, dtype=np.float32).reshape(-1, 7)
    rows = rows[(rows[:, 0] != -1) & ~(rows[:, 2] <= 0)]
    return rows[np.argsort(-rows[:, 2], kind="stable")]


def _shapes(ports: Sequence[Port]) -> str:
    shapes = (str([n if n >= 0 else "?" for n in port.shape]).replace("'", "") for port in ports)
    return ", ".join(shapes) or "none"
