"""What a backend is, and the table of all backends.

To add one: its name in `choices.py`, a row of `BACKENDS`, and a module beside this one
(docs/contributing/backend.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..model.detector_config import Config
from ..model.record import Record


class Backend(Protocol):
    """A network, ready to run. `engine.Engine` is one."""

    config: Config
    """The model. For a graph file only the network input, the classes and the number of rows are
    read from the file; the fields that describe the layers are those of the preset `r101-c4`."""

    @property
    def precision(self) -> str:
        """ "f32", "bf16" or "int8"."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads that work on one image."""
        ...

    @property
    def isa(self) -> str:
        """Instruction set in use; "" where the runtime chooses it."""
        ...

    def run(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Detect objects in one network input; one call at a time.

        Args:
            network_input: (H, W, 3) BGR, 0..255.
            content: height and width of what is in its upper left corner, where boxes end;
                default: all of it.

        Returns:
            (N, 7) rows, best first, without padding.
        """
        ...

    @property
    def masks(self) -> bool:
        """Whether detections have masks, which `run_with_masks` makes."""
        ...

    def run_with_masks(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `run`, with masks: the rows, and (N, h, w) float32, 0..1, whose cells divide the
        row's box evenly."""
        ...

    def fork(self, threads: int) -> Backend:
        """Another backend with the same weights, to run beside this one on `threads` threads."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BackendInfo(Record):
    """One row of the table.

    Attributes:
        module: file of this package, imported only when the backend is asked for. It has
            `from_model`, and `from_graph` if there are `graph_suffixes`.
        extra: optional dependencies, as in `pip install 'sparsedet[extra]'`; "": none.
        precisions: supported precisions, without "auto".
        graph_suffixes: graph files that it runs.
    """

    module: str
    extra: str
    precisions: tuple[str, ...]
    graph_suffixes: tuple[str, ...] = ()


BACKENDS: dict[str, BackendInfo] = {
    "native": BackendInfo("native", "", ("f32", "bf16", "int8")),
    "openvino": BackendInfo("openvino", "export", ("f32", "bf16"), (".xml", ".onnx")),
    "onnxruntime": BackendInfo("onnxruntime", "export", ("f32",), (".onnx",)),
    "torch": BackendInfo("torch", "train", ("f32",)),
}
"""Name -> the backend."""
