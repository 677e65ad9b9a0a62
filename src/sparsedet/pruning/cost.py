"""What pruning cost and what it gave: a pruned network beside its dense one, on photographs.

Agreement is measured without labels, with the dense network's answers as the truth; AP where there
are annotations; milliseconds of both in the engine, and of the dense network in OpenVINO.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import build_backend
from ..detections import Detections
from ..detector import Detector
from ..engine import default_threads
from ..errors import InputError
from ..evaluation.agreement import pair
from ..evaluation.coco import CocoDataset
from ..evaluation.compare import compare
from ..images.crop import fitted
from ..images.letterbox import prepare
from ..model.boxes import iou
from ..model.file import AnyFile, NetworkFile
from ..model.graph import Normalise
from ..network import Model

U8 = NDArray[np.uint8]
LEAST_SCORE = 0.3
"""Scores of detections that are compared."""
LEAST_IOU = 0.5
"""Overlap of two boxes that are the same object."""
TIMED = 10
"""Runs of each network that are timed, at least."""

_WHAT = {
    "detections": f"detections with a score of at least {LEAST_SCORE} that have a partner in the "
    f"other network (same class, IoU of at least {LEAST_IOU})",
    "classes": "photographs with the same likeliest class",
    "outputs": "1 - the relative error of the outputs",
}


@dataclass(frozen=True, slots=True)
class PruningCost:
    """A pruned network beside its dense one.

    Attributes:
        images: photographs that agreement was measured on.
        compared: what agrees: "detections", "classes" or "outputs".
        agreement: share of it that agrees, 0..1.
        average_precision: where there are annotations: AP of the dense and the pruned network,
            their difference, and the lower and upper end of its 95 % interval.
        milliseconds: median of one image, network alone: "dense", "pruned", and "openvino", the
            dense network there, where it could be had.
        threads: that all three ran on.
        note: why a figure is missing; "": none is.
    """

    images: int
    compared: str
    agreement: float
    average_precision: dict[str, float] | None
    milliseconds: dict[str, float]
    threads: int
    note: str = ""

    def text(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"on {self.images} photographs that nothing was fitted to, pruned and dense network "
            f"agree in {100 * self.agreement:.1f} % ({_WHAT[self.compared]})"
        ]
        if self.average_precision is not None:
            ap = self.average_precision
            lines.append(
                f"AP {ap['dense']:.3f} dense, {ap['pruned']:.3f} pruned: difference "
                f"{ap['difference']:+.3f}, 95 % interval {ap['low']:+.3f} to {ap['high']:+.3f}"
            )
        times = ", ".join(
            f"{value:.1f} ms {'OpenVINO, dense' if name == 'openvino' else name}"
            for name, value in self.milliseconds.items()
        )
        lines.append(f"{times} (median of an image, {self.threads} threads, float32)")
        return "\n".join([*lines, *([self.note] if self.note else [])])


def measure_cost(
    dense: AnyFile,
    pruned: AnyFile,
    images: Sequence[U8],
    *,
    dataset: CocoDataset | None = None,
    source: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PruningCost:
    """Compare two networks of one graph.

    Args:
        dense, pruned: the networks.
        images: (H, W, 3) uint8 BGR; at least one, and nothing was fitted to them.
        dataset: with annotations, of other images; None: no AP. For detectors.
        source: ONNX file that `dense` came from, which OpenVINO can read.
        threads: CPU threads; default: the CPUs that this process may use.
        progress: called with (images done, all) while AP is measured.

    Raises:
        InputError: `dataset` is given for a network without detections, or cannot be used.
    """
    threads = default_threads() if threads is None else threads
    if isinstance(dense, NetworkFile) or isinstance(pruned, NetworkFile):
        if dataset is not None:
            raise InputError(
                f"{dataset.path}: AP is for detectors, and {dense.config.name} is none"
            )
        assert isinstance(dense, NetworkFile) and isinstance(pruned, NetworkFile)
        return _networks(dense, pruned, images, source, threads)
    both = [Detector(m, build_backend("native", m, threads=threads)) for m in (dense, pruned)]
    found = [[detector(image, LEAST_SCORE) for image in images] for detector in both]
    precision = None
    if dataset is not None:
        result = compare(both[0], both[1], dataset, progress=progress)
        precision = {
            "dense": result.a.scores.stats["AP"],
            "pruned": result.b.scores.stats["AP"],
        }
        if change := result.differences.get("AP"):
            precision |= {k: getattr(change, k) for k in ("difference", "low", "high")}
        else:
            precision |= {"difference": precision["pruned"] - precision["dense"]}
            precision |= {"low": -1.0, "high": 1.0}
    inputs = [prepare(image, dense.config)[0] for image in images]
    runs: dict[str, Callable[[Any], Any]] = dict(
        zip(("dense", "pruned"), (d.engine.run for d in both), strict=True)
    )
    note = ""
    try:
        runs["openvino"] = build_backend("openvino", dense, threads=threads).run
    except InputError as error:
        note = f"not timed in OpenVINO: {error}"
    return PruningCost(
        len(images),
        "detections",
        detection_agreement(*found),
        precision,
        _milliseconds(runs, inputs),
        threads,
        note,
    )


def detection_agreement(a: Sequence[Detections], b: Sequence[Detections]) -> float:
    """Share of two detectors' detections that have a partner in the other one, 0..1.

    1 if neither finds anything. This is the F1 score of one with the other as ground truth.
    """
    matched = 0
    for of_a, of_b in zip(a, b, strict=True):
        overlap = iou(of_a.boxes, of_b.boxes)
        candidates = (overlap >= LEAST_IOU) & (of_a.labels[:, None] == of_b.labels)
        matched += int((pair(candidates, -overlap) >= 0).sum())
    count = sum(map(len, a)) + sum(map(len, b))
    return 2 * matched / count if count else 1.0


def _networks(
    dense: NetworkFile,
    pruned: NetworkFile,
    images: Sequence[U8],
    source: Path | None,
    threads: int,
) -> PruningCost:
    config = dense.config
    both = [Model(m, threads=threads) for m in (dense, pruned)]
    inputs = [as_array(image, dense) for image in images]
    outputs = [[model(x) for x in inputs] for model in both]
    if config.class_count:
        name = config.outputs[0][0]
        same = [
            first[name].argmax() == second[name].argmax()
            for first, second in zip(*outputs, strict=True)
        ]
        compared, agreement = "classes", float(np.mean(same))
    else:
        errors = []
        for first, second in zip(*outputs, strict=True):
            for name, value in first.items():
                norm = float(np.linalg.norm(value))
                errors.append(float(np.linalg.norm(value - second[name])) / max(norm, 1e-12))
        compared, agreement = "outputs", max(0.0, 1.0 - float(np.mean(errors)))
    runs: dict[str, Callable[[Any], Any]] = dict(zip(("dense", "pruned"), both, strict=True))
    note = "not timed in OpenVINO: only ONNX files of networks without detections are"
    if source is not None:
        try:
            runs["openvino"], note = _by_openvino(source, inputs[0].shape, threads), ""
        except (ImportError, InputError, RuntimeError) as error:
            lines = str(error).strip().splitlines()
            note = f"not timed in OpenVINO: {lines[-1] if lines else type(error).__name__}"
    return PruningCost(
        len(images), compared, agreement, None, _milliseconds(runs, inputs), threads, note
    )


def as_array(image: U8, network: NetworkFile) -> NDArray[np.float32]:
    """An image as the array [1, 3, H, W] that `Model` reads."""
    attributes = network.config.graph.only(Normalise)[1]
    mean, std = (np.asarray(n, np.float32) for n in (attributes.mean, attributes.std))
    pixels = (fitted(image, network.config).astype(np.float32) - mean) / std
    pixels = pixels[..., ::-1] if attributes.rgb else pixels
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _by_openvino(path: Path, shape: tuple[int, ...], threads: int) -> Callable[[Any], Any]:
    """The network of an ONNX file in OpenVINO."""
    import openvino

    from ..backends.openvino import plugin_settings, read_graph

    graph = read_graph(path)
    graph.reshape({graph.inputs[0]: list(shape)})
    settings = plugin_settings(threads, 1, "f32")
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return lambda array: request.infer([array])


def _milliseconds(runs: dict[str, Callable[[Any], Any]], inputs: Sequence[Any]) -> dict[str, float]:
    """Median time of one image of each, interleaved, after a first run that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, max(len(inputs), TIMED)):
        for name, run in runs.items():
            start = time.perf_counter()
            run(inputs[number % len(inputs)])
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * float(np.median(times)) for name, times in seconds.items()}
