"""The sparse engine: runs a model in the native core, which skips zero weights.

`lower` rewrites the graph of the model for it and adds the folded weights. The core packs the
weights of each convolution and runs the operations; it knows no architecture.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._native import NativeEngine, available_isas, choose_isa, failed_kernels
from ..errors import InputError, UsageError
from ..model.detector_config import Config, build_graph, makes_masks
from ..model.graph import IMAGE, Graph
from ..model.int8_ranges import ClippingThreshold
from ..model.record import Record
from ..model.tensors import StoredTensor
from .cpus import cpu_name, default_threads
from .formats import plan_formats
from .lower import lowered, operations, weight_owners
from .memory import PromisedMemory
from .precision import PRECISIONS, Format, Precision, choose_precision, explain_precision
from .process import remake_after_fork

F32 = NDArray[np.float32]
Result = TypeVar("Result")

_PROMISED = PromisedMemory()


def check_threads(threads: int) -> None:
    """Raise InputError unless `threads` is a whole number, 1..1024."""
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads!r}, expected a whole number 1..1024")


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """Packed weights of one operation, from an earlier engine.

    Attributes:
        data: uint8 [bytes], 64-byte aligned; the engine keeps the array and does not copy it.
        algorithm: "sparse", "dense", "rowwise", "depthwise", "matrix" or "winograd".
        nonzero: number of nonzero weights.
        checksum: checksum of `data`, computed by the core.
    """

    data: NDArray[np.uint8]
    algorithm: str
    nonzero: int
    checksum: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Memory(Record):
    """Memory that an engine uses, in bytes.

    Attributes:
        weights: packed weights with their indices; an engine and its forks share them.
        activations: the arena with all feature maps, and the threads' partial sums. Each fork has
            its own. 0 before the first run.
    """

    weights: int
    activations: int


class Engine:
    """A model, packed for this CPU.

    It works in a forked process as well, also if another thread was inside `run` during the fork.

    Args:
        config: configuration of the model; with a graph of its own, no more than its name is read
            before `run`.
        tensors: folded weights and biases by name.
        threads: CPU threads, 1..1024; default: `default_threads`.
        isa: instruction set, one of `available_isas()`; default: SPARSEDET_ISA from the
            environment, else the best that the CPU supports.
        pin: keep each worker thread on one CPU.
        hoist: run the RoI head's first linear layers once on the feature map, before RoIAlign,
            instead of once for each RoI; the same results up to rounding.
        graph: the graph to run, from `lower.lowered`; default: that of `config`.
        precision: precision of weights and of the activations between layers; sums are float32,
            of int8 exact int32. A promise becomes a format, see `explain_precision`.
        algorithms: "sparse", "dense", "rowwise", "matrix" or "winograd" by operation; default: a
            cost model chooses by shapes, zeros and instruction set only. Equal algorithms give
            bit-identical results for any number of threads.
        packed: packed weights by operation, for all operations with weights, from an engine with
            the same tensors, instruction set, precision, algorithms and `hoist`.
        clipping_thresholds, int8_biases: int8 only: what bytes hold of each value, and biases of
            layers, see `calibrate`.

    Attributes:
        conversions: the operations that only change the format of a value, or copy a part of it.

    Raises:
        InputError: the instruction set, precision, algorithm or number of threads is unknown or
            not supported by this CPU; packed weights are damaged; clipping thresholds are missing.
    """

    def __init__(
        self,
        config: Config,
        tensors: Mapping[str, NDArray[Any]],
        *,
        threads: int | None = None,
        isa: str = "",
        pin: bool = False,
        hoist: bool = True,
        graph: Graph | None = None,
        precision: Precision = "full",
        algorithms: Mapping[str, str] | None = None,
        packed: Mapping[str, PackedWeights] | None = None,
        clipping_thresholds: Mapping[str, ClippingThreshold] | None = None,
        int8_biases: Mapping[str, F32] | None = None,
    ) -> None:
        threads = default_threads() if threads is None else threads
        check_threads(threads)
        self.config = config
        chosen = explain_precision(precision, isa, thresholds=bool(clipping_thresholds))
        self.precision: Format = chosen.format
        self.precision_reason = chosen.reason
        self._prepare()
        self.graph = graph or lowered(build_graph(config), hoisted=hoist)
        size = self.graph.image.size
        self.native = _start(threads, lambda: NativeEngine(isa, threads, pin, self.precision, size))
        _warn_of_failed_kernels()
        algorithms, clipping_thresholds = dict(algorithms or {}), clipping_thresholds or {}
        if self.precision == "int8" and not clipping_thresholds:
            raise InputError(
                f"precision 'int8': {config.name} has no clipping thresholds; make them with "
                "'sparsedet quantize MODEL --images FOLDER --output FILE' and load that file"
            )
        planned = plan_formats(self.graph, self.precision, clipping_thresholds)
        self.conversions = tuple(p.operation.name for p in planned if p.conversion)
        self._owners = weight_owners(planned)
        try:
            for operation in operations(
                self.graph,
                planned,
                tensors,
                int8_biases=int8_biases,
                weights=packed is None,
            ):
                fields, bias = operation.fields, operation.bias
                name = fields["name"]
                algorithm = algorithms.pop(name, "")
                if packed is not None and fields["kind"] == "conv" and not operation.weights_of:
                    if name not in packed:
                        raise InputError(f"{name} is not among the packed weights")
                    p = packed[name]
                    self.native.add_packed(
                        fields,
                        packed=p.data,
                        bias=bias,
                        algorithm=p.algorithm,
                        nonzero=p.nonzero,
                        checksum=p.checksum,
                    )
                else:
                    given: Any = operation.weight
                    if isinstance(given, StoredTensor):
                        given = given.mask, given.values
                    self.native.add(fields, given, bias, algorithm, weights_of=operation.weights_of)
        except InputError:
            raise
        except ValueError as error:  # an unknown algorithm or damaged packed weights
            raise InputError(str(error)) from None
        if algorithms:
            raise InputError(
                f"tuning file: {min(algorithms)!r} is not an operation of {config.name}"
            )

    @property
    def packed_operations(self) -> list[str]:
        """The convolutions that have packed weights of their own."""
        return [name for name, owner in self._owners.items() if name == owner]

    def fork(self, threads: int = 1) -> Engine:
        """Another engine that shares the packed weights, to run at the same time."""
        other = object.__new__(Engine)
        other.config, other.graph = self.config, self.graph
        other.precision, other.precision_reason = self.precision, self.precision_reason
        other.conversions, other._owners = self.conversions, self._owners
        other._prepare()
        other.native = _start(threads, lambda: NativeEngine(self.native, threads))
        return other

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._size = (0, 0)  # the last network input size that passed the check in `run`
        self._torn = False  # a fork left the activations of a run half written
        # Are values finite where there are no rows, or where the CPU noted an overflow?
        self._doubts_empty = self._doubts_overflow = True
        remake_after_fork(self)

    def _after_fork(self) -> None:
        """In a new process: forget the run of another thread, which does not exist here."""
        if self._lock.locked():
            self._lock, self._torn = threading.Lock(), True

    def __reduce__(self) -> Any:
        raise InputError("an Engine cannot be pickled: make it in the other process, from its file")

    @property
    def memory(self) -> Memory:
        """Memory that packed weights and activations use."""
        return Memory(int(self.native.weight_bytes), int(self.native.activation_bytes))

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self.native.isa)

    @property
    def threads(self) -> int:
        """Number of CPU threads."""
        return int(self.native.threads)

    @property
    def masks(self) -> bool:
        """Whether the network makes masks."""
        return makes_masks(self.graph)

    def run(self, network_input: NDArray[Any], content: tuple[int, int] | None = None) -> F32:
        """Detect the objects in one network input.

        Args:
            network_input: BGR (H, W, 3), uint8 or float, values 0..255; at least 16x16 pixels.
            content: height and width of what is in its upper left corner, where boxes end;
                default: all of it.

        Returns:
            (N, 7) float32 rows, best first, without padding rows, N <= max_detections: image_id 0,
            class_id, confidence, normalised x0, y0, x1, y1.

        Raises:
            InputError: the network input has another shape or type, holds NaN or infinity, or is
                too small for the network; its activations do not fit into memory; the network's
                weights are so large that its values are NaN or infinity.
        """
        return self._run(network_input, content, lambda rows: rows)

    def run_with_masks(
        self, network_input: NDArray[Any], content: tuple[int, int] | None = None
    ) -> tuple[F32, F32]:
        """Detect the objects in one network input, with their masks.

        Args:
            network_input, content: as of `run`.

        Returns:
            The rows of `run`, and (N, h, w) float32 masks: cell (y, x) of a mask is the probability
            that the object covers it; the cells divide the row's box evenly.

        Raises:
            InputError: the network makes no masks, or as `run`.
        """
        if not self.masks:
            raise InputError(f"{self.config.name} makes no masks")
        return self._run(
            network_input, content, lambda rows: (rows, np.asarray(self.native.masks()))
        )

    def values(self, network_input: NDArray[Any], wanted: Sequence[str]) -> dict[str, F32]:
        """Values of the graph for one network input.

        Args:
            network_input: as of `run`, of the size that the configuration says.
            wanted: names of maps.

        Returns:
            Name -> map [1, C, H, W].
        """
        image = np.ascontiguousarray(network_input, dtype=np.float32)
        with self._lock:
            self._mend()
            if image.shape[:2] != self._size:
                self.plan(*image.shape[:2])
            found = self.native.run_between({IMAGE: image}, list(wanted))
            _PROMISED.written(self)
            return {
                name: np.asarray(value)[None] for name, value in zip(wanted, found, strict=True)
            }

    def _mend(self) -> None:
        """Make the activations anew if a fork left them half written; weights never change."""
        if self._torn:
            threads = self.threads
            self.native = _start(threads, lambda: NativeEngine(self.native, threads))
            self._torn = False

    def _run(
        self,
        network_input: NDArray[Any],
        content: tuple[int, int] | None,
        result: Callable[[F32], Result],
    ) -> Result:
        """The result of a run for its rows, made before another run may begin."""
        if network_input.ndim != 3 or network_input.shape[2] != 3:
            raise InputError(
                f"the network input has shape {network_input.shape}, expected (H, W, 3)"
            )
        if network_input.shape[:2] != self._size:
            build_graph(self.config, network_input.shape[:2])  # refuses what is too small
        if network_input.dtype != np.uint8:
            if network_input.dtype.kind not in "uif":
                raise InputError(
                    f"the network input has type {network_input.dtype}, expected numbers 0..255"
                )
            network_input = network_input.astype(np.float32, copy=False)
            if not np.isfinite(network_input).all():
                raise InputError("the network input holds NaN or infinity, expected 0..255")
        with self._lock:
            self._mend()
            if network_input.shape[:2] != self._size:
                self.plan(*network_input.shape[:2])
            given = np.ascontiguousarray(network_input)
            rows = np.asarray(self.native.run(given, content))
            _PROMISED.written(self)
            overflowed = self._doubts_overflow and self.native.overflowed
            if overflowed or (self._doubts_empty and not len(rows)):
                self._check_values(given, content)
                self._doubts_empty = False
                self._doubts_overflow &= not overflowed
            return result(rows)

    def plan(self, height: int, width: int) -> None:
        """Make room for inputs of a size; InputError if it is out of range or would not fit."""
        try:
            with _PROMISED.plan(self, lambda: int(self.native.arena_bytes)) as free:
                self.native.plan(height, width, free)
        except ValueError as error:
            raise InputError(
                f"{self.config.name}: a network input of {height}x{width} {error}"
            ) from None
        self._size = (height, width)

    def _check_values(self, given: NDArray[Any], content: tuple[int, int] | None) -> None:
        """Where a value was too large, or nothing is found: are there NaN or infinity?

        It takes as long as computing: what was in doubt and proved right is not doubted again.
        """
        try:
            self.native.run(given, content, checked=True)
        except ValueError as error:
            raise InputError(
                f"{self.config.name}: {error} in this image: its weights are too large or damaged"
            ) from None


_warned: set[str] = set()
"""Kernels whose failure this process has told."""


def _warn_of_failed_kernels() -> None:
    """The core checks kernels on a small known product before it uses them."""
    for name in failed_kernels():
        if name not in _warned:
            _warned.add(name)
            warnings.warn(
                f"{cpu_name()}: the kernels {name} computed a known product wrongly and are not "
                "used; please report this CPU, its hypervisor and 'sparsedet env'",
                RuntimeWarning,
                stacklevel=4,
            )


def _start(threads: int, make: Callable[[], NativeEngine]) -> NativeEngine:
    try:
        return make()
    except ValueError as error:
        raise InputError(str(error)) from None
    except RuntimeError as error:  # a std::system_error
        raise InputError(
            f"threads is {threads}, but the system does not start as many ({error}); ask for fewer"
        ) from None


__all__ = [
    "PRECISIONS",
    "Engine",
    "Memory",
    "PackedWeights",
    "Precision",
    "available_isas",
    "check_threads",
    "choose_isa",
    "choose_precision",
    "default_threads",
    "explain_precision",
]
