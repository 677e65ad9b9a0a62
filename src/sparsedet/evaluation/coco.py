"""COCO-format ground truth: reads the JSON file, checks it and lists it image by image.

Reads only the JSON; an image's `file_name` is relative to the folder of images. Single bad
annotations are skipped or corrected, and counted; a file that is not a COCO data set is an error.

Glossary: labels are contiguous 1..K in the order of `categories`; `category_id` is the
file's own. Boxes are xyxy float pixels of the image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..files import read_json


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image with its ground truth.

    Attributes:
        id, file_name, width, height: as in the file, pixels.
        boxes: (N, 4) float32 xyxy, inside the image, of positive area.
        labels: (N,) int64, 1..K.
        crowd: (N,) bool.
    """

    id: int
    file_name: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class CocoDataset:
    """A checked data set.

    Attributes:
        path: the JSON file.
        root: folder of the images.
        images: in the file's order.
        class_names, category_ids: of label 1, 2, ... K; -1 for a class that the file lacks.
        problems: kind of annotations skipped or corrected -> count.
    """

    path: Path
    root: Path
    images: tuple[CocoImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: Counter[str] = field(default_factory=Counter)

    def image_path(self, image: CocoImage) -> Path:
        return self.root / image.file_name

    def first(self, limit: int | None) -> CocoDataset:
        """The data set of the first `limit` images; None: all.

        Raises:
            InputError: limit is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise UsageError(f"limit is {limit}, expected at least 1 image")
        return replace(self, images=self.images[:limit])

    def warnings(self) -> list[str]:
        """One line for each kind of problem."""
        return [
            f"{self.path}: {count} {problem}" for problem, count in sorted(self.problems.items())
        ]

    def require_images(self) -> None:
        """Check that every image exists.

        Raises:
            InputError: images are missing; the message counts them and names the first.
        """
        # os.path.isfile also answers for names that the file system refuses; Path.is_file raises.
        missing = [i.file_name for i in self.images if not os.path.isfile(self.image_path(i))]
        if missing:
            raise InputError(
                f"{self.root}: {len(missing)} of {len(self.images)} images are missing, "
                f"first {missing[0]!r}"
            )


def load_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
) -> CocoDataset:
    """Read and check a COCO-format data set.

    Args:
        annotations: the JSON file with `images`, `annotations` and `categories`.
        images: folder of the images.
        class_names: the classes that count, in label order, matched by name; annotations of
            other categories are skipped and counted. Default: all, ordered by category id.

    Raises:
        InputError: the file cannot be read or is not a COCO data set, keys or images are missing,
            an id or class name appears twice, or there is no usable class.
    """
    path = Path(annotations)
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a COCO data set (the top level is not an object)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise InputError(f"{path}: not a COCO data set (no list {key!r})")
    if not data["images"]:
        raise InputError(f"{path}: the data set has no images")

    by_name: dict[str, int] = {}
    known: set[int] = set()
    for entry in data["categories"]:
        category = _get(path, "categories", entry, "id", int)
        name = _get(path, "categories", entry, "name", str)
        if category < 0 or name in by_name or category in known:
            raise InputError(f"{path}: category {category} {name!r} is negative or appears twice")
        by_name[name] = category
        known.add(category)
    names = tuple(class_names) if class_names else tuple(sorted(by_name, key=lambda n: by_name[n]))
    if len(set(names)) < len(names):
        raise InputError(f"class_names has a name twice: {', '.join(names)}")
    present = [name for name in names if name in by_name]
    if not present:
        raise InputError(
            f"{path}: none of its categories is among the {len(names)} classes asked for"
        )
    ids = tuple(by_name.get(name, -1) for name in names)
    label_of = {id_: label for label, id_ in enumerate(ids, start=1) if id_ != -1}

    problems: Counter[str] = Counter()
    sizes: dict[int, tuple[int, int]] = {}
    for entry in data["images"]:
        image_id = _get(path, "images", entry, "id", int)
        if image_id in sizes:
            raise InputError(f"{path}: image id {image_id} appears twice")
        width = _get(path, "images", entry, "width", int)
        height = _get(path, "images", entry, "height", int)
        if not (1 <= width <= 1_000_000 and 1 <= height <= 1_000_000):
            raise InputError(f"{path}: image {image_id} has size {width}x{height}")
        sizes[image_id] = (width, height)

    rows: dict[int, list[tuple[list[float], int, bool]]] = {id_: [] for id_ in sizes}
    for entry in data["annotations"]:
        image_id = _get(path, "annotations", entry, "image_id", int)
        category = _get(path, "annotations", entry, "category_id", int)
        box = _get(path, "annotations", entry, "bbox", list)
        if image_id not in sizes:
            problems["annotations of an unknown image skipped"] += 1
            continue
        if category not in label_of:
            reason = "a class not asked for" if category in known else "an unknown category"
            problems[f"annotations of {reason} skipped"] += 1
            continue
        numbers = finite_numbers(box, 4)
        if numbers is None:
            problems["annotations whose bbox is not four numbers skipped"] += 1
            continue
        x, y, w, h = numbers
        width, height = sizes[image_id]
        if w <= 0 or h <= 0:
            problems["boxes without area skipped"] += 1
            continue
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            problems["boxes outside the image skipped"] += 1
            continue
        corners = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        x0, y0, x1, y1 = np.array(corners, dtype=np.float32).tolist()
        if x1 <= x0 or y1 <= y0:  # a sliver so thin that float32 closes it
            problems["boxes without area skipped"] += 1
            continue
        if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            problems["boxes reaching over the image's edge clipped"] += 1
        rows[image_id].append(([x0, y0, x1, y1], label_of[category], bool(entry.get("iscrowd"))))

    result = []
    for entry, (image_id, image_rows) in zip(data["images"], rows.items(), strict=True):
        result.append(
            CocoImage(
                image_id,
                _get(path, "images", entry, "file_name", str),
                *sizes[image_id],
                np.array([b for b, _, _ in image_rows], dtype=np.float32).reshape(-1, 4),
                np.array([label for _, label, _ in image_rows], dtype=np.int64),
                np.array([c for _, _, c in image_rows], dtype=np.bool_),
            )
        )
    return CocoDataset(path, Path(images), tuple(result), names, ids, problems)


def finite_numbers(value: Any, count: int) -> list[float] | None:
    """A JSON list of exactly `count` finite numbers as floats, else None."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in value):
        return None
    try:
        numbers = [float(v) for v in value]
    except OverflowError:  # JSON's integers have no upper limit
        return None
    return numbers if np.isfinite(numbers).all() else None


def _get(path: Path, section: str, entry: Any, key: str, expected: type) -> Any:
    """`entry[key]` of the expected type; whole floats pass as integers."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{path}: an entry of {section!r} has no {key!r}")
    value = entry[key]
    if expected is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise InputError(f"{path}: {section}.{key} is {value!r}, expected {expected.__name__}")
    return value
