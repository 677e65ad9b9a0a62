"""A tiny model, recipe and data set that the tests of training share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers.small import SMALL
from sparsedet.evaluation.coco import CocoDataset
from sparsedet.torch_model import FasterRCNN
from sparsedet.training.recipe import Recipe
from sparsedet.training.trainer import Trainer

NAMES = ("red box", "green box", "blue bär")
TINY = replace(SMALL, name="tiny", class_names=NAMES, category_ids=(3, 5, 8))

FAST = Recipe(
    steps=6,
    batch=2,
    freeze_at=0,
    learning_rate=0.01,
    warmup_steps=2,
    decay="constant",
    rpn_batch=64,
    rpn_pre_nms=200,
    rpn_post_nms=50,
    roi_batch=32,
    log_every=3,
    scale_low=0.8,
)


def make_data(folder: Path, count: int = 4) -> tuple[Path, Path]:
    """Photographs with one to three coloured boxes on grey noise, and their COCO JSON."""
    rng = np.random.default_rng(7)
    images = folder / "images"
    images.mkdir(parents=True)
    colours = ((30, 30, 230), (30, 230, 30), (230, 30, 30))  # BGR, by class
    data: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip((3, 5, 8), NAMES, strict=True)],
    }
    for number in range(1, count + 1):
        image = rng.integers(100, 150, (64, 96, 3), dtype=np.uint8)
        for slot in range(1 + number % 3):
            width, height = int(rng.integers(16, 30)), int(rng.integers(16, 40))
            x = slot * 32 + int(rng.integers(0, 32 - width + 1))
            y = int(rng.integers(0, 64 - height))
            label = (number + slot) % 3
            image[y : y + height, x : x + width] = colours[label]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": number,
                    "category_id": (3, 5, 8)[label],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(images / f"{number}.png"), image)
        entry = {"id": number, "file_name": f"{number}.png", "width": 96, "height": 64}
        data["images"].append(entry)
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path, images


def trainer(dataset: CocoDataset, recipe: Recipe, folder: Path, norm: bool = True) -> Trainer:
    """A run of the tiny model from a random start."""
    folder.mkdir(exist_ok=True)
    return Trainer(FasterRCNN(TINY, norm=norm), dataset, recipe, folder)
