"""The sparse engine: a layer table and folded weights, lowered to the native core and run.

Lowering is short: layers that read the same tensor and predict from it are merged, and each
operation is handed to the core, which packs its weights. The core knows shapes and names,
not architectures.

Glossary: Hf x Wf the stride-16 map, A anchors a cell, R regions, K classes without background.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._native import Engine as NativeEngine
from .._native import available_isas, choose_isa, has_bfloat16
from ..errors import InputError
from ..model import boxes as np_boxes
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.tensors import StoredTensor
from .lower import OUTPUTS, lower

F32 = NDArray[np.float32]


def default_threads() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int) -> None:
    """Raises InputError unless there may be that many."""
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads is {threads!r}, expected a whole number 1..1024")


Precision = Literal["f32", "bf16", "int8", "auto"]
_PRECISIONS: tuple[Literal["f32", "bf16", "int8"], ...] = ("f32", "bf16", "int8")


def choose_precision(precision: str, isa: str = "") -> Literal["f32", "bf16", "int8"]:
    """What "auto" means here: bf16 where the CPU multiplies it natively, as OpenVINO does.

    Raises:
        InputError: another word than "f32", "bf16", "int8" or "auto", or a bad instruction set.
    """
    if precision == "auto":
        try:
            native = choose_isa(isa) != "scalar" and has_bfloat16(isa)
        except ValueError as error:
            raise InputError(str(error)) from None
        return "bf16" if native else "f32"
    for known in _PRECISIONS:
        if precision == known:
            return known
    raise InputError(f"precision is {precision!r}, expected 'f32', 'bf16', 'int8' or 'auto'")


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """What was packed for one operation before.

    Attributes:
        data: uint8, 64-byte aligned; kept by the engine, not copied.
        method: "sparse", "dense" or "winograd".
        nonzero: weights.
        checksum: of `data`, as the core gave it.
    """

    data: NDArray[np.uint8]
    method: str
    nonzero: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What an engine holds, in bytes.

    Attributes:
        weights: packed, with their indices; shared by an engine and its forks.
        activations: of one engine: the arena of all maps and regions, and its threads' partial
            sums. 0 before a network input size is planned.
    """

    weights: int
    activations: int


class Engine:
    """A model, packed for this CPU.

    Args:
        config: the model.
        tensors: folded weights by name.
        threads: default: the CPUs that this process may use.
        isa: instruction set, one of `available_isas()`; default: SPARSEDET_ISA from the
            environment, else the best that the CPU has.
        pin: keep each worker thread on one CPU.
        hoist: run res5's linear parts before RoIAlign, once for the map instead of once for
            each region; the same up to rounding.
        precision: of weights and of the activations between layers; sums are float32, of int8
            whole numbers. "auto": see `choose_precision`.
        clipping_thresholds: for int8 the range of every operation's output, see `quantize.calibrate`.
        algorithms: "sparse", "dense" or "winograd" for operations by name; a cost model that looks at
            shapes and zeros alone chooses for the others. Results are the same to the bit for
            one algorithms, whatever the number of threads.
        packed: operations by name that need not be packed again: those of an engine with the same
            tensors, instruction set, precision, algorithms and `hoist`. All or none.
        linear: drop ReLUs and residuals and merge nothing, for looking at single layers with
            `native.run_op`.

    Raises:
        InputError: an instruction set that is unknown or that this CPU lacks, or a bad number
            of threads; a precision that is unknown or that this CPU lacks; packed weights that
            are damaged; int8 without clipping_thresholds.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, NDArray[Any]],
        *,
        threads: int | None = None,
        isa: str = "",
        pin: bool = False,
        hoist: bool = True,
        linear: bool = False,
        precision: Precision = "f32",
        algorithms: Mapping[str, str] | None = None,
        packed: Mapping[str, PackedWeights] | None = None,
        clipping_thresholds: Mapping[str, float] | None = None,
    ) -> None:
        threads = default_threads() if threads is None else threads
        check_threads(threads)
        self.config = config
        self.precision = choose_precision(precision, isa)
        self._lock = threading.Lock()
        self._size = (0, 0)  # a network input size that the network can take
        try:
            self.native = NativeEngine(isa, threads, pin, _params(config, hoist, self.precision))
        except ValueError as error:
            raise InputError(str(error)) from None
        algorithms, clipping_thresholds = dict(algorithms or {}), clipping_thresholds or {}
        if self.precision == "int8" and not clipping_thresholds:
            raise InputError(
                f"precision 'int8': {config.name} has no clipping_thresholds of its activations; make them with "
                "'sparsedet quantize MODEL --images FOLDER --output FILE' and load that file"
            )
        try:
            for layer, weight, bias in lower(config, tensors, not linear, packed is None):
                operation = (
                    layer.name,
                    layer.source,
                    "" if linear else layer.residual or "",
                    layer.component,
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel,
                    layer.stride,
                    layer.padding,
                    layer.relu and not linear,
                    layer.name in OUTPUTS,
                )
                method = algorithms.pop(layer.name, "")
                if packed is not None and bias is not None:
                    if layer.name not in packed:
                        raise InputError(f"{layer.name} is not among the packed weights")
                    p = packed[layer.name]
                    self.native.add_packed(
                        *operation, p.data, bias, p.method, p.nonzero, p.checksum
                    )
                else:
                    given: Any = weight
                    if isinstance(weight, StoredTensor):
                        given = weight.mask, weight.values
                    self.native.add(
                        *operation, given, bias, method, clipping_thresholds.get(layer.name, 0.0)
                    )
        except InputError:
            raise
        except (
            ValueError
        ) as error:  # of the algorithms; weights that do not fit were refused before
            raise InputError(str(error)) from None
        if algorithms:
            raise InputError(
                f"plan names {min(algorithms)!r}, which is no operation of {config.name}"
            )

    def fork(self, threads: int = 1) -> Engine:
        """Another engine with the same packed weights, to run beside this one."""
        other = object.__new__(Engine)
        other.config, other.precision = self.config, self.precision
        other._lock, other._size = threading.Lock(), (0, 0)
        other.native = NativeEngine(self.native, threads)
        return other

    @property
    def memory(self) -> Memory:
        """Packed weights and activations."""
        return Memory(int(self.native.weight_bytes), int(self.native.activation_bytes))

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self.native.isa)

    @property
    def threads(self) -> int:
        return int(self.native.threads)

    def run(self, network_input: NDArray[Any]) -> F32:
        """Detections of one network input.

        Args:
            network_input: BGR (H, W, 3), uint8 or float, values 0..255; any size of at least 16x16.

        Returns:
            (N, 7) rows of the contract, best first, N <= max_detections, image_id 0, no padding.

        Raises:
            InputError: the network input is too small for the network.
        """
        if network_input.shape[:2] != self._size:
            build_network(self.config, network_input.shape[:2])  # the core relies on this check
            self._size = network_input.shape[:2]
        if network_input.dtype != np.uint8:
            network_input = network_input.astype(np.float32, copy=False)
        with self._lock:
            return np.asarray(self.native.run(np.ascontiguousarray(network_input)))


def _params(config: ModelConfig, hoist: bool, precision: str) -> dict[str, Any]:
    """What the core needs to know beside the operations."""
    skip_bins = config.stride_in == "conv1" and config.stride_conv1_padding[0] == 0
    return {
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
        "roi_scale": 1.0 / config.anchor_stride,
        "roi_size": config.roi_size,
        "roi_sampling_ratio": config.roi_sampling_ratio,
        "roi_corners": config.roi_sampling == "corners",
        # With the stride in the first 1x1, res5 reads only every second bin.
        "roi_step": 2 if skip_bins else 1,
        "cell_anchors": np_boxes.cell_anchors(config).tolist(),
        "num_classes": config.num_classes,
        "background_first": config.background == "first",
        "hoist": hoist,
        "precision": precision,
        **{
            key: getattr(config, key)
            for key in (
                "anchor_stride",
                "rpn_box_weights",
                "box_weights",
                "delta_clamp",
                "rpn_pre_nms",
                "proposals",
                "rpn_nms_threshold",
                "rpn_remove_empty",
                "rpn_inclusive",
                "background_deltas",
                "score_threshold",
                "nms_threshold",
                "max_detections",
            )
        },
    }


__all__ = [
    "Engine",
    "Memory",
    "PackedWeights",
    "Precision",
    "available_isas",
    "check_threads",
    "choose_isa",
    "choose_precision",
    "default_threads",
]
