"""An exported model in OpenVINO's Model API, on photographs, against our own detections.

    pip install openvino-model-api
    python benchmarks/ecosystem.py examples/*.jpg

The model is exported and loaded by its file alone: what kind of model it is, its labels and how
photographs are resized is in the file. Asked twice: with photographs that have the network input's size,
on which nothing is resized and the answers must be equal (Model API rounds corners to whole
pixels), and with the photographs as they are, which Model API resizes by an operation of the graph
and not by OpenCV. In float32: left to itself OpenVINO takes bf16 where the CPU has it. Beside them:
our own answers to the network inputs with noise of one grey level on an eighth of the values, to tell how
much a model answers to so little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.evaluation.agreement import distances
from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import to_network_input

Answer = Callable[[NDArray[np.uint8]], tuple[list[str], Any, Any]]
"""A photograph -> names, scores (N,) and boxes (N, 4) in pixels."""


class ModelApi:
    """A graph file in Model API; calling it with a photograph gives its detections.

    Args:
        form: what the file does not say of itself, as Model API's configuration.
    """

    def __init__(self, path: Path, threads: int, floor: float, **form: Any) -> None:
        from model_api.adapters import OpenvinoAdapter, create_core
        from model_api.models import DetectionModel

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        adapter = OpenvinoAdapter(create_core(), str(path), device="CPU", plugin_config=settings)
        self.model = DetectionModel.create_model(
            adapter, configuration={"confidence_threshold": floor, **form}
        )

    def __call__(self, photo: NDArray[np.uint8]) -> tuple[list[str], Any, Any]:
        found = self.model(photo)
        return list(found.label_names), found.scores, found.bboxes


def noisy(detector: sparsedet.Detector, floor: float) -> Answer:
    """Our own answers to a photograph with noise, see above."""
    random = np.random.default_rng(0)

    def answer(photo: NDArray[np.uint8]) -> tuple[list[str], Any, Any]:
        step = random.choice([-1, 1], photo.shape) * (random.random(photo.shape) < 1 / 8)
        found = detector(np.clip(photo + step, 0, 255).astype(np.uint8), floor)
        return [name.replace(" ", "_") for name in found.names], found.scores, found.boxes

    return answer


def compare(
    detector: sparsedet.Detector, other: Answer, photos: Iterable[NDArray[np.uint8]], floor: float
) -> dict[str, float]:
    """How far the answers to these photographs are apart.

    Args:
        floor: scores that count.
    """
    found: list[tuple[float, float]] = []
    alone = 0
    for photo in photos:
        ours = detector(photo, floor)
        # Model API leaves out boxes of one pixel and less.
        areas = (np.round(ours.boxes[:, 2:]) - np.round(ours.boxes[:, :2])).prod(axis=1)
        if (areas <= 1).any():
            raise SystemExit("a detection of one pixel: Model API leaves it out")
        more, single = distances(ours, *other(photo))
        found += more
        alone += single
    scores, corners = np.array(found).T if found else np.zeros((2, 1))
    return {
        "pairs": len(found),
        "alone": alone,
        "score_median": float(np.median(scores)),
        "score_most": float(scores.max()),
        "pixels_median": float(np.median(corners)),
        "pixels_most": float(corners.max()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=embedded_model(), help="model file")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NHWC")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.3, help="scores that count")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    detector = sparsedet.Detector.load(arguments.model, threads=arguments.threads)
    config = detector.config
    photos = [sparsedet.read_image(path) for path in arguments.photos]
    size = (config.input_height, config.input_width)
    network_inputs = [to_network_input(photo, *size, config.resize)[0] for photo in photos]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_openvino(path, config, detector.model.tensors, layout=arguments.layout)
        other = ModelApi(path, arguments.threads, arguments.score)
    result = {
        name: compare(detector, answer, pictures, arguments.score)
        for name, answer, pictures in (
            ("same network input", other, network_inputs),
            ("own resizing", other, photos),
            ("noise", noisy(detector, arguments.score), network_inputs),
        )
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, r in result.items():
        print(
            f"{name}: {r['pairs']} detections of both, {r['alone']} of one alone; scores differ by "
            f"{r['score_median']:.2g} (median) to {r['score_most']:.2g}, corners by "
            f"{r['pixels_median']:.1f} to {r['pixels_most']:.1f} pixels"
        )


if __name__ == "__main__":
    main()
