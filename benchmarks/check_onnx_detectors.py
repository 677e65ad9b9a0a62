"""AP of trained detectors in ONNX files, by ONNX Runtime and by the engine, on the same images.

    python benchmarks/check_onnx_detectors.py yolox_nano_416.onnx picodet_s_416.onnx \
        --images val --annotations instances_val.json

ONNX Runtime's outputs are decoded here as the detectors' authors do it; boxes end at the image's
edges on both sides. Exit code 1 if the two AP differ by more than 0.001.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sparsedet import Detector, read_image, save_model
from sparsedet.importers.onnx import load_onnx_detector
from sparsedet.importers.onnx.detectors import Preprocessing

F32 = NDArray[np.float32]
Found = tuple[F32, F32, NDArray[np.int64]]
"""Boxes [N, 4] xyxy in pixels of the image, scores [N] and classes [N] from 0."""
LEAST_SCORE, MOST = 0.02, 100


def _cells(size: int, stride: int) -> F32:
    rows, columns = np.mgrid[: -(-size // stride), : -(-size // stride)]
    return np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float32)


def yolox(run: Callable[[F32], list[F32]], size: int, image: Any) -> tuple[F32, F32]:
    """Boxes and scores of all cells."""
    height, width = image.shape[:2]
    ratio = min(size / height, size / width)
    network_input = np.full((size, size, 3), 114, np.uint8)
    resized = cv2.resize(image, (int(width * ratio), int(height * ratio)))
    network_input[: resized.shape[0], : resized.shape[1]] = resized
    raw = run(network_input.transpose(2, 0, 1)[None].astype(np.float32))[0][0]
    points = np.concatenate([_cells(size, s) for s in (8, 16, 32)])
    strides = np.concatenate([np.full((len(_cells(size, s)), 1), s) for s in (8, 16, 32)])
    centre, half = (raw[:, :2] + points) * strides, np.exp(raw[:, 2:4]) * strides / 2
    boxes = np.concatenate([centre - half, centre + half], 1) / ratio
    return boxes.astype(np.float32), raw[:, 4:5] * raw[:, 5:]


def picodet(run: Callable[[F32], list[F32]], size: int, image: Any) -> tuple[F32, F32]:
    """Boxes and scores of all cells."""
    height, width = image.shape[:2]
    rgb = cv2.resize(image, (size, size))[:, :, ::-1] / 255.0
    pixels = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    outputs = run(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    levels, boxes = len(outputs) // 2, []
    for stride, bins in zip((8, 16, 32, 64), outputs[levels:], strict=False):
        powers = np.exp(bins[0].reshape(-1, 4, 8))
        sides = (powers * np.arange(8)).sum(2) / powers.sum(2) * stride
        points = (_cells(size, stride) + 0.5) * stride
        boxes.append(np.concatenate([points - sides[:, :2], points + sides[:, 2:]], 1))
    scale = np.array([width, height, width, height]) / size
    return (np.concatenate(boxes) * scale).astype(np.float32), np.concatenate(
        [scores[0] for scores in outputs[:levels]]
    )


def suppressed(boxes: F32, scores: F32, iou: float) -> Found:
    """The best detections after non-maximum suppression by class, by OpenCV."""
    cells, classes = np.nonzero(scores > LEAST_SCORE)
    boxes, best = boxes[cells], scores[cells, classes]
    kept: list[int] = []
    for label in np.unique(classes):
        of_class = np.nonzero(classes == label)[0]
        corners = boxes[of_class]
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        chosen = cv2.dnn.NMSBoxes(sides.tolist(), best[of_class].tolist(), 0.0, iou)
        kept += of_class[np.asarray(chosen, int).reshape(-1)].tolist()
    order = np.asarray(sorted(kept, key=lambda i: -best[i])[:MOST], int)
    return boxes[order], best[order], classes[order]


def by_onnxruntime(path: Path) -> Callable[[Any], Found]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options)
    (given,) = session.get_inputs()
    decode, iou = (picodet, 0.6) if len(session.get_outputs()) > 1 else (yolox, 0.65)

    def run(array: F32) -> list[F32]:
        outputs: list[F32] = session.run(None, {given.name: array})
        return outputs

    def detect(image: Any) -> Found:
        boxes, scores, classes = suppressed(*decode(run, given.shape[2], image), iou)
        height, width = image.shape[:2]
        return boxes.clip(0, [width, height, width, height]), scores, classes

    return detect


def by_engine(path: Path, folder: Path) -> Callable[[Any], Found]:
    """The file, converted and loaded."""
    stated = Preprocessing(score_threshold=LEAST_SCORE, max_detections=MOST)
    imported = load_onnx_detector(path, stated=stated)
    target = folder / f"{path.stem}.safetensors"
    save_model(target, imported.config, imported.tensors, {}, dtype="float32", overwrite=True)
    detector = Detector.load(target)

    def detect(image: Any) -> Found:
        found = detector(image)
        return found.boxes, found.scores, np.asarray(found.labels, np.int64) - 1

    return detect


def average_precision(truth: Any, folder: Path, detect: Callable[[Any], Found]) -> float:
    from pycocotools.cocoeval import COCOeval

    def results() -> Iterator[dict[str, Any]]:
        categories = sorted(truth.getCatIds())
        for entry in truth.loadImgs(truth.getImgIds()):
            for box, score, label in zip(
                *detect(read_image(folder / entry["file_name"])), strict=True
            ):
                x0, y0, x1, y1 = map(float, box)
                yield {
                    "image_id": entry["id"],
                    "category_id": categories[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(score),
                }

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(list(results())), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> int:
    import tempfile

    from pycocotools.coco import COCO

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(arguments.annotations))
    failed = 0
    for path in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            theirs = average_precision(truth, arguments.images, by_onnxruntime(path))
            ours = average_precision(truth, arguments.images, by_engine(path, Path(folder)))
        failed |= abs(ours - theirs) > 0.001
        print(f"{path.name}: AP {theirs:.4f} by ONNX Runtime, {ours:.4f} by the engine", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
