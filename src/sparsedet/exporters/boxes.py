"""Box arithmetic in an exported graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import boxes as np_boxes
from ..model.graph import Proposals, RetinaNetOutput
from .primitives import Primitives


class BoxBuilder(Primitives):
    """Arithmetic that proposals and detections share."""

    @property
    def extent(self) -> NDArray[np.float32]:
        """Width, height, width, height of the network input."""
        height, width = self.graph.image.size
        return np.array((width, height) * 2, dtype=np.float32)

    def steps(self, stride: int, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels between two rows and two columns of cells of a map; `stride` as of `Proposals`."""
        image = self.graph.image
        return (stride, stride) if stride else (image.height // size[0], image.width // size[1])

    def anchors(
        self, attributes: Proposals | RetinaNetOutput, level: int, size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The anchors of a map of that size, [H * W * A, 4]."""
        cells = np.array(attributes.cell_anchors[level], dtype=np.float32)
        return np_boxes.grid_anchors(cells, size, self.steps(attributes.strides[level], size))

    def decode(
        self,
        deltas: Any,
        boxes: Any,
        weights: tuple[float, ...],
        delta_clamp: float,
        inside: float | None = 0.0,
    ) -> Any:
        """Decode deltas [..., 4] of boxes (broadcast to them) -> xyxy boxes, clipped.

        Args:
            weights: the deltas are divided by these.
            delta_clamp: largest dw and dh.
            inside: distance of the clipped boxes from the right and lower edge, pixels; None: they
                are not clipped.
        """
        scaled = self.binary("Div", deltas, self.constant(np.asarray(weights, dtype=np.float32)))
        low, high = self.part(boxes, 0, 2, -1), self.part(boxes, 2, 4, -1)
        half = self.scalar(0.5)
        size = self.binary("Sub", high, low)
        centre = self.binary("Add", low, self.binary("Mul", size, half))
        centre = self.binary("Add", self.binary("Mul", self.part(scaled, 0, 2, -1), size), centre)
        clamp = self.scalar(delta_clamp)
        growth = self.unary("Exp", self.binary("Min", self.part(scaled, 2, 4, -1), clamp))
        reach = self.binary("Mul", self.binary("Mul", growth, size), half)
        out = self.concat(
            self.binary("Sub", centre, reach), self.binary("Add", centre, reach), axis=-1
        )
        return out if inside is None else self.clip(out, inside)

    def clip(self, boxes: Any, inside: float = 0.0) -> Any:
        """Boxes inside of the network input; `inside` as of `decode`."""
        out = self.binary("Max", boxes, self.scalar(0.0))
        return self.binary("Min", out, self.constant(self.extent - np.float32(inside)))

    def sides(self, boxes: Any) -> tuple[Any, Any]:
        """Width and height [..., 1] of boxes [..., 4]."""
        size = self.binary("Sub", self.part(boxes, 2, 4, -1), self.part(boxes, 0, 2, -1))
        return self.part(size, 0, 1, -1), self.part(size, 1, 2, -1)

    def without_small(
        self, boxes: Any, scores: Any, shape: tuple[int, ...], least: float, instead: float
    ) -> Any:
        """Scores; those of boxes with a side below `least` become `instead`.

        Args:
            shape: of the scores; boxes have one axis more.
            least: pixels; 0: below or at zero.
        """
        shorter = self.reshape(self.binary("Min", *self.sides(boxes)), *shape)
        keep = self.binary("GreaterOrEqual" if least else "Greater", shorter, self.scalar(least))
        return self.select(keep, scores, self.scalar(instead))
