"""Many small photographs, all different, and what a bulk run made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sparsedet.images.read import read_image

EXAMPLES = Path(__file__).parents[2] / "examples"


def write_views(folder: Path, count: int, size: tuple[int, int] = (120, 90)) -> list[Path]:
    """Views of the example photographs as JPEGs in ten subfolders, sorted by path."""
    photos = [read_image(path) for path in sorted(EXAMPLES.glob("*.jpg"))]
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        photo = photos[number % len(photos)]
        height = int(random.integers(photo.shape[0] // 3, photo.shape[0] - 8))
        width = min(height * size[0] // size[1], photo.shape[1])
        y, x = (
            int(random.integers(0, a - b + 1))
            for a, b in ((photo.shape[0], height), (photo.shape[1], width))
        )
        view = cv2.resize(photo[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
        path = folder / f"{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), view)
        paths.append(path)
    return sorted(paths)


def table(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All rows of a run's "images" or "detections", part after part."""
    from pyarrow import parquet

    files = sorted((folder / kind).glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]
