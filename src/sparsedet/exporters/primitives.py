"""The single operations of an exported graph, as every file format has them.

A subclass for each file format (`onnx`, `openvino`) knows how to write one. A value is whatever it
uses: a name, or an output of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..model.graph import Conv, Graph, Padding, RoiAlign

Array = NDArray[Any]
Unary = Literal["Exp", "Erf", "Relu", "Sigmoid", "Sqrt", "HardSwish", "HardSigmoid"]
Binary = Literal[
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Greater", "GreaterOrEqual", "Less", "Equal", "And"
]


class Primitives(ABC):
    """Writes single operations.

    Attributes:
        graph: the model's graph.
    """

    graph: Graph

    @abstractmethod
    def constant(self, value: Array, name: str = "") -> Any: ...

    @abstractmethod
    def to_float32(self, value: Any) -> Any:
        """float16 or int64 -> float32."""

    @abstractmethod
    def to_int64(self, value: Any) -> Any:
        """float32 -> int64."""

    @abstractmethod
    def unary(self, operation: Unary, x: Any) -> Any: ...

    @abstractmethod
    def binary(self, operation: Binary, a: Any, b: Any) -> Any:
        """Of numbers of one type; Div of integers rounds down."""

    @abstractmethod
    def transpose(self, x: Any, *order: int) -> Any: ...

    @abstractmethod
    def reshape(self, x: Any, *shape: int, name: str = "") -> Any: ...

    @abstractmethod
    def part(self, x: Any, start: int, stop: int, axis: int) -> Any:
        """x[..., start:stop, ...] along one axis."""

    @abstractmethod
    def crop(self, x: Any, rows: int, columns: int, step: int = 1) -> Any:
        """x[:, :, :rows:step, :columns:step]."""

    @abstractmethod
    def concat(self, *values: Any, axis: int) -> Any: ...

    @abstractmethod
    def gather(self, x: Any, index: Any) -> Any:
        """x[index] along the first axis."""

    @abstractmethod
    def scatter(self, index: Any, values: Any, length: int) -> Any:
        """Integers [length] that are values[i] at index[i]."""

    @abstractmethod
    def nonzero(self, x: Any) -> Any:
        """Where x [L] is true: [M]."""

    @abstractmethod
    def select(self, condition: Any, a: Any, b: Any) -> Any: ...

    @abstractmethod
    def spatial_mean(self, x: Any, keep: bool) -> Any:
        """[R, C, H, W] -> [R, C], or [R, C, 1, 1] to keep the axes."""

    @abstractmethod
    def max_over(self, x: Any, axis: int) -> Any:
        """The largest value along an axis, which is dropped."""

    @abstractmethod
    def softmax(self, x: Any, axis: int = 1) -> Any: ...

    @abstractmethod
    def matmul(self, a: Any, b: Any) -> Any:
        """Products of the last two axes."""

    @abstractmethod
    def top_k(self, x: Any, count: int, ordered: bool) -> tuple[Any, Any]:
        """The `count` largest values of x [L] and their indices; `ordered`: largest first."""

    @abstractmethod
    def nms(self, boxes: Any, scores: Any, count: int, iou: float, score: float) -> Any:
        """boxes [B, L, 4], scores [B, K, L] -> kept [M, 3]: batch, class, box.

        At most `count` boxes of each batch and class are kept.
        """

    @abstractmethod
    def sample(self, align: RoiAlign, level: int, x: Any, boxes: Any, zeros: Any) -> Any:
        """All bins of RoIAlign: [1, C, Hf, Wf] and [R, 4] pixels -> [R, C, size, size].

        Args:
            zeros: an integer zero for each box.
        """

    @abstractmethod
    def convolution(
        self,
        x: Any,
        weight: Any,
        bias: Array | None,
        conv: Conv,
        padding: Padding,
        name: str,
    ) -> Any: ...

    @abstractmethod
    def linear(self, x: Any, weight: Any, bias: Array, name: str) -> Any: ...

    @abstractmethod
    def largest(self, x: Any, kernel: int, stride: int, padding: Padding, name: str) -> Any: ...

    @abstractmethod
    def average(
        self, x: Any, kernel: int, stride: int, padding: Padding, counted: bool, name: str
    ) -> Any:
        """The mean of each window; counted: with the zeros of the padding."""

    @abstractmethod
    def normalise_groups(
        self, x: Any, groups: int, eps: float, shape: tuple[int, ...], scale: Array, offset: Array
    ) -> Any:
        """Group norm of x, of that shape [1, C, H, W]; scale and offset [C]."""

    @abstractmethod
    def nearest(self, x: Any, size: tuple[int, int], name: str) -> Any:
        """x [1, C, H, W] at another size; cell y reads floor(y * H / size)."""

    @abstractmethod
    def channels_to_cells(self, x: Any, block: int) -> Any:
        """`DepthToSpace` of the model's graph."""

    def scalar(self, value: float) -> Any:
        """A float32 constant."""
        return self.constant(np.array(value, dtype=np.float32))

    def integer(self, value: int) -> Any:
        """An int64 constant."""
        return self.constant(np.array(value, dtype=np.int64))
