"""Time to load a photograph for training, with each augmentation.

    python benchmarks/bench_loader.py --annotations TRAIN.json --images FOLDER [--json FILE]

One process and one thread, as a worker of the loader has: file, decoding, augmentation, resizing to
the size of the network input of `r50half-c4`. The settings are timed in turn, photograph by
photograph, so that other work on the machine falls on all alike. Prints a table of the mean and the
95th percentile, because a training step waits for the whole batch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from sparsedet import preset
from sparsedet.engine.cpus import cpu_name
from sparsedet.evaluation.coco import CocoDataset, load_coco
from sparsedet.files import write_atomic
from sparsedet.training.data import load_sample
from sparsedet.training.recipe import Recipe

PLAIN = Recipe(scale_low=0.6, scale_high=1.3)  # as `r50half-c4` was trained

SETTINGS: dict[str, dict[str, Any]] = {
    "flip and scale 0.6..1.3": {},
    "large scale jitter 0.1..2 with crop": {"scale_low": 0.1, "scale_high": 2.0, "crop": True},
    "scale jitter 0.5..2 with crop": {"scale_low": 0.5, "scale_high": 2.0, "crop": True},
    "zoom_out 1": {"zoom_out": 1.0},
    "iou_crop 1": {"iou_crop": 1.0},
    "mosaic 1": {"mosaic": 1.0},
    "colour 1": {"colour": 1.0},
    "all, half of the images each": {
        "scale_low": 0.5,
        "scale_high": 2.0,
        "crop": True,
        "zoom_out": 0.5,
        "iou_crop": 0.5,
        "mosaic": 0.5,
        "colour": 0.5,
    },
}


def measure(dataset: CocoDataset, count: int) -> dict[str, list[float]]:
    """Milliseconds of each of the first `count` images, for each setting."""
    config = preset("r50half-c4")
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    usable = [image for image in dataset.images if not image.crowd.all()]
    for image in usable[:count]:
        for name, changes in SETTINGS.items():
            recipe = replace(PLAIN, **changes)
            start = time.perf_counter()
            load_sample(dataset, image, config, recipe, epoch=0)
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300, help="photographs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = load_coco(arguments.annotations, arguments.images)
    measure(dataset, 5)  # first calls load code
    rows = {
        name: {"mean_ms": float(np.mean(ms)), "p95_ms": float(np.percentile(ms, 95))}
        for name, ms in measure(dataset, arguments.count).items()
    }
    print("| Setting | Mean, ms | 95 % below, ms |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['mean_ms']:.1f} | {row['p95_ms']:.1f} |")
    if arguments.json:
        result = {"cpu": cpu_name(), "photographs": arguments.count, "rows": rows}
        write_atomic(arguments.json, json.dumps(result, indent=1).encode(), overwrite=True)


if __name__ == "__main__":
    main()
