"""Compare the detections of an exported model in OpenVINO's Model API with our own.

    pip install openvino-model-api
    python benchmarks/ecosystem.py examples/*.jpg

Prints pairs, unpaired detections and their differences, with --json as data; writes nothing.

The model is exported, and Model API loads the file alone: it states the kind of model, the labels
and the resizing. Three comparisons are made, in float32 (by default OpenVINO uses bf16 where the
CPU has it):

same network input  images that have the size of the network input already. Nothing is resized, so
                    the detections must be equal, except that Model API rounds corners to pixels.
own resizing        the images as they are. Model API resizes with an operation of the graph instead
                    of OpenCV.
noise               our own detections on network inputs with noise: one grey level on one of eight
                    values. It shows how much so small a change moves detections of this model.
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
from sparsedet.images.letterbox import prepare

DetectFunction = Callable[[NDArray[np.uint8]], tuple[list[str], Any, Any]]
"""An image -> names, scores (N,) and boxes (N, 4) in pixels."""


class ModelApi:
    """A graph file in Model API; a call detects on an image.

    Args:
        path: the .xml file.
        threads: CPU threads.
        min_score: smaller scores are left out.
    """

    def __init__(self, path: Path, threads: int, min_score: float) -> None:
        import model_api.adapters  # type: ignore[import-not-found, unused-ignore]
        import model_api.models  # type: ignore[import-not-found, unused-ignore]

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        adapter = model_api.adapters.OpenvinoAdapter(
            model_api.adapters.create_core(), str(path), device="CPU", plugin_config=settings
        )
        self.model = model_api.models.DetectionModel.create_model(
            adapter, configuration={"confidence_threshold": min_score}
        )

    def __call__(self, image: NDArray[np.uint8]) -> tuple[list[str], Any, Any]:
        result = self.model(image)
        return list(result.label_names), result.scores, result.bboxes


def noisy(detector: sparsedet.Detector, min_score: float) -> DetectFunction:
    """Our own detections on an image with noise, see above."""
    random = np.random.default_rng(0)

    def detect(image: NDArray[np.uint8]) -> tuple[list[str], Any, Any]:
        noise = random.choice([-1, 1], image.shape) * (random.random(image.shape) < 1 / 8)
        detections = detector(np.clip(image + noise, 0, 255).astype(np.uint8), min_score)
        names = [name.replace(" ", "_") for name in detections.names]
        return names, detections.scores, detections.boxes

    return detect


def compare(
    detector: sparsedet.Detector,
    other: DetectFunction,
    images: Iterable[NDArray[np.uint8]],
    min_score: float,
) -> dict[str, float]:
    """Differences of two sets of detections.

    Args:
        detector: ours.
        other: detects on the same images.
        images: (H, W, 3) uint8 BGR.
        min_score: smaller scores are left out.

    Returns:
        Numbers of pairs and of unpaired detections (`alone`); median and largest difference of
        scores, and of corners in pixels.
    """
    pairs: list[tuple[float, float]] = []
    alone = 0
    for image in images:
        ours = detector(image, min_score)
        # Model API leaves out boxes of one pixel and less.
        areas = (np.round(ours.boxes[:, 2:]) - np.round(ours.boxes[:, :2])).prod(axis=1)
        if (areas <= 1).any():
            raise SystemExit("a detection has one pixel or less, which Model API leaves out")
        paired, unpaired = distances(ours, *other(image))
        pairs += paired
        alone += unpaired
    scores, corners = np.array(pairs).T if pairs else np.zeros((2, 1))
    return {
        "pairs": len(pairs),
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
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--model",
        type=Path,
        default=embedded_model("r50half-c4"),
        help="model file (default: r50half-c4)",
    )
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NHWC")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.3, help="smallest score; default: 0.3")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    detector = sparsedet.Detector.load(arguments.model, threads=arguments.threads)
    config = detector.config
    images = [sparsedet.read_image(path) for path in arguments.images]
    network_inputs = [prepare(image, config)[0] for image in images]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_openvino(path, config, detector.model.tensors, layout=arguments.layout)
        other = ModelApi(path, arguments.threads, arguments.score)
    result = {
        name: compare(detector, detect, arrays, arguments.score)
        for name, detect, arrays in (
            ("same network input", other, network_inputs),
            ("own resizing", other, images),
            ("noise", noisy(detector, arguments.score), network_inputs),
        )
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, r in result.items():
        print(
            f"{name}: {r['pairs']} pairs, {r['alone']} unpaired detections; scores differ by "
            f"{r['score_median']:.2g} (median) to {r['score_most']:.2g}, corners by "
            f"{r['pixels_median']:.1f} to {r['pixels_most']:.1f} pixels"
        )


if __name__ == "__main__":
    main()
