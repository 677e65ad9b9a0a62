"""A small COCO data set on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2

from helpers.small import SMALL, picture


def coco(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Write a data set of two images; the small model finds part of its ground truth.

    Returns:
        The annotation file and the folder of images.
    """
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in (1, 2):
        cv2.imwrite(str(images / f"{number}.png"), picture(seed=number - 1))
    data: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 120, "height": 90} for n in (1, 2)],
        "categories": [
            {"id": id_, "name": name}
            for id_, name in zip(SMALL.category_ids, SMALL.class_names, strict=True)
        ],
        "annotations": [
            {
                "id": 7,
                "image_id": n,
                "category_id": 17,
                "bbox": [9 * n, 8, 40, 30],
                "area": 1200,
                "iscrowd": 0,
            }
            for n in (1, 2)
        ],
    }
    data |= changes
    path = folder / "instances.json"
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return path, images
