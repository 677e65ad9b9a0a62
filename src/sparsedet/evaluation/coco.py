"""COCO-format ground truth: reads the JSON file, checks it and lists it image by image.

Reads only the JSON; an image's `file_name` is relative to the folder of images. Single bad
annotations are skipped or corrected, and counted; a file that is not a COCO data set is an error.
What tools write in other types is read: ids and numbers as text, `iscrowd` as text or bool
(docs/evaluation.md lists it).

Glossary: labels are contiguous 1..K in the order of `categories`; `category_id` is the
file's own. Boxes are xyxy float pixels of the image. An id's *key* is what ids are compared by:
1, 1.0 and "1" have one key.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..files import read_json
from .coco_fields import Id, finite_numbers, get, get_id, id_key, id_order

NO_IMAGE_ID = "annotations without a usable image_id skipped"
NO_CATEGORY_ID = "annotations without a usable category_id skipped"
BAD_BOX = "annotations whose bbox is not four numbers skipped"
BAD_CROWD = "annotations whose iscrowd is neither 0 nor 1 skipped"
TWO_IDS = "categories with the name of another one taken for the same class"
SAME_FILE = "images with the file of another image (one of them may have wrong annotations)"
UNUSABLE = (NO_IMAGE_ID, NO_CATEGORY_ID, BAD_BOX, BAD_CROWD)
"""Kinds of annotations that neither training nor scoring can use."""

_CROWD = {"": False, "0": False, "false": False, "1": True, "true": True}


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image with its ground truth.

    Attributes:
        id, file_name, width, height: as in the file, pixels; `id` is text where the file has text.
        boxes: (N, 4) float32 xyxy, inside the image, of positive area.
        labels: (N,) int64, 1..K.
        crowd: (N,) bool.
    """

    id: Id
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
        problems: kind of entries skipped or corrected -> count.
        examples: the same kind -> which entry was the first.
        same_class: key of a further category id of a class -> the class's id in `category_ids`.
    """

    path: Path
    root: Path
    images: tuple[CocoImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    same_class: dict[Id, Id] = field(default_factory=dict)

    def image_path(self, image: CocoImage) -> Path:
        path = self.root / image.file_name
        if ("\\" in image.file_name or "%" in image.file_name) and not os.path.isfile(path):
            slashes = image.file_name.replace("\\", "/")  # written on Windows
            for name in (slashes, unquote(image.file_name), unquote(slashes)):  # web tools
                if os.path.isfile(self.root / name):
                    return self.root / name
            return self.root / slashes
        return path

    def whole_category_ids(self) -> tuple[int, ...]:
        """`category_ids` as a model file holds them: 1..K where one of them is text."""
        keys = [id_key(id_) for id_ in self.category_ids]
        whole = tuple(key for key in keys if isinstance(key, int))
        return whole if len(whole) == len(keys) else tuple(range(1, len(keys) + 1))

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

    def warnings(self, kinds: Collection[str] | None = None) -> list[str]:
        """One line for each kind of problem, with its count and the first annotation.

        Args:
            kinds: only these; default: all.
        """
        return [
            f"{self.path}: {count} {problem} (first: {self.examples[problem]})"
            for problem, count in sorted(self.problems.items())
            if kinds is None or problem in kinds
        ]

    def require_images(self) -> None:
        """Check that every image exists.

        Raises:
            InputError: images are missing; the message counts them and names the first.
        """
        # os.path.isfile also answers for names that the file system refuses; Path.is_file raises.
        missing = [i.file_name for i in self.images if not os.path.isfile(self.image_path(i))]
        if missing:
            above, first = self.root.absolute().parent, missing[0].replace("\\", "/")
            way = f"; give --images {above}" if os.path.isfile(above / first) else ""
            raise InputError(
                f"{self.root}: {len(missing)} of {len(self.images)} images are missing, "
                f"first {missing[0]!r}{way}"
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
    for section in ("images", "annotations", "categories"):
        if not isinstance(data.get(section), list):
            raise InputError(f"{path}: not a COCO data set (no list {section!r})")
    if not data["images"]:
        raise InputError(f"{path}: the data set has no images")

    problems: Counter[str] = Counter()
    examples: dict[str, str] = {}
    names_of, same_class = _categories(path, data)
    for further in same_class:
        problems[TWO_IDS] += 1
        examples.setdefault(TWO_IDS, f"category {further} {names_of[further][1]!r}")
    known = set(names_of)
    by_name = {name: id_ for key, (id_, name) in names_of.items() if key not in same_class}
    in_order = sorted(by_name, key=lambda name: id_order(by_name[name]))
    names = tuple(class_names) if class_names else tuple(in_order)
    if len(set(names)) < len(names):
        raise InputError(f"class_names has a name twice: {', '.join(names)}")
    present = [name for name in names if name in by_name]
    if not present:
        raise InputError(
            f"{path}: none of its categories is among the {len(names)} classes asked for"
        )
    ids = tuple(by_name.get(name, -1) for name in names)
    label_of = {id_key(id_): label for label, id_ in enumerate(ids, start=1) if id_ != -1}
    label_of |= {
        key: label_of[id_key(id_)] for key, id_ in same_class.items() if id_key(id_) in label_of
    }

    sizes: dict[Id | None, tuple[int, int]] = {}
    for entry in data["images"]:
        image_id = get_id(path, "images", entry)
        if id_key(image_id) in sizes:
            raise InputError(f"{path}: image id {image_id} appears twice")
        width = get(path, "images", entry, "width", int)
        height = get(path, "images", entry, "height", int)
        if not (1 <= width <= 1_000_000 and 1 <= height <= 1_000_000):
            raise InputError(f"{path}: image {image_id} has size {width}x{height}")
        sizes[id_key(image_id)] = (width, height)

    rows: dict[Id | None, list[tuple[list[float], int, bool]]] = {key: [] for key in sizes}
    for index, entry in enumerate(data["annotations"]):
        image, category_key = annotation_keys(entry)
        row: tuple[list[float], int, bool] | None = None
        problem = ""
        if image is None:
            problem = NO_IMAGE_ID
        elif category_key is None:
            problem = NO_CATEGORY_ID
        elif image not in sizes:
            problem = "annotations of an unknown image skipped"
        elif category_key not in label_of:
            reason = "a class not asked for" if category_key in known else "an unknown category"
            problem = f"annotations of {reason} skipped"
        elif isinstance(found := annotated_object(entry), str):
            problem = found
        else:
            corners, problem = _clip(found.box, *sizes[image])
            if corners is not None:
                row = corners, label_of[category_key], found.crowd
        if problem:
            problems[problem] += 1
            examples.setdefault(problem, _example(entry, index))
        if row is not None:
            rows[image].append(row)

    result = []
    files: set[str] = set()
    for entry, (key, image_rows) in zip(data["images"], rows.items(), strict=True):
        file_name = get(path, "images", entry, "file_name", str)
        file = os.path.normpath(file_name.replace("\\", "/"))
        if file in files:
            problems[SAME_FILE] += 1
            examples.setdefault(SAME_FILE, f"image {key} {file_name!r}")
        files.add(file)
        result.append(
            CocoImage(
                get_id(path, "images", entry),
                file_name,
                *sizes[key],
                np.array([b for b, _, _ in image_rows], dtype=np.float32).reshape(-1, 4),
                np.array([label for _, label, _ in image_rows], dtype=np.int64),
                np.array([c for _, _, c in image_rows], dtype=np.bool_),
            )
        )
    return CocoDataset(
        path, Path(images), tuple(result), names, ids, problems, examples, same_class
    )


def _categories(path: Path, data: dict[str, Any]) -> tuple[dict[Id, tuple[Id, str]], dict[Id, Id]]:
    """Key of each category -> its id and name; and `CocoDataset.same_class`.

    Some exporters list a group and a class in it under one name, or a category once for each of
    its objects. Of several ids the first that an annotation uses is the class's.
    """
    names_of: dict[Id, tuple[Id, str]] = {}
    keys_of: dict[str, list[Id]] = {}
    for entry in data["categories"]:
        category = get_id(path, "categories", entry)
        key = id_key(category)
        assert key is not None
        name = get(path, "categories", entry, "name", str)
        if isinstance(key, int) and key < 0:
            raise InputError(f"{path}: category {category} {name!r} is negative")
        if key in names_of and names_of[key][1] != name:
            other = names_of[key][1]
            raise InputError(f"{path}: category {category} {name!r} has the id of {other!r}")
        if key not in names_of:
            names_of[key] = (category, name)
            keys_of.setdefault(name, []).append(key)
    if len(keys_of) == len(names_of):
        return names_of, {}
    used = {annotation_keys(entry)[1] for entry in data["annotations"]}
    same_class: dict[Id, Id] = {}
    for keys in keys_of.values():
        first = next((key for key in keys if key in used), keys[0])
        same_class |= {key: names_of[first][0] for key in keys if key != first}
    return names_of, same_class


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """An annotation's box x, y, width, height as in the file, its area, and if it is a crowd."""

    box: list[float]
    area: float
    crowd: bool


def annotation_keys(entry: Any) -> tuple[Id | None, Id | None]:
    """Keys of an annotation's image and category; None where it has no usable one."""
    if not isinstance(entry, dict):
        return None, None
    return id_key(entry.get("image_id")), id_key(entry.get("category_id"))


def annotated_object(entry: dict[str, Any]) -> AnnotatedObject | str:
    """What an annotation says of its object, or the kind of problem with it (`UNUSABLE`)."""
    box = finite_numbers(entry.get("bbox"), 4)
    if box is None:
        return BAD_BOX
    crowd = _is_crowd(entry.get("iscrowd"))
    if crowd is None:
        return BAD_CROWD
    area = finite_numbers([entry.get("area")], 1)
    return AnnotatedObject(box, area[0] if area else box[2] * box[3], crowd)


def _is_crowd(value: Any) -> bool | None:
    """`iscrowd` as 0, 1, false, true, or their text; absent, null and "" are 0; else None."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _CROWD:
            return _CROWD[text]
    number = finite_numbers([value], 1)
    return bool(number[0]) if number and number[0] in (0, 1) else None


def _clip(box: list[float], width: int, height: int) -> tuple[list[float] | None, str]:
    """Corners x0, y0, x1, y1 inside the image, None for a box to skip; and the problem or ""."""
    x, y, w, h = box
    no_area = "boxes without area skipped in training (scored as by pycocotools)"
    if w <= 0 or h <= 0:
        return None, no_area
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return None, "boxes outside the image skipped in training (scored as by pycocotools)"
    corners = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
    x0, y0, x1, y1 = np.array(corners, dtype=np.float32).tolist()
    if x1 <= x0 or y1 <= y0:  # a sliver so thin that float32 closes it
        return None, no_area
    over = x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1
    problem = "boxes reaching over the image's edge clipped in training" if over else ""
    return [x0, y0, x1, y1], problem


def _example(entry: Any, index: int) -> str:
    """An annotation's name in a warning: its id, else its place in the list."""
    if isinstance(entry, dict) and isinstance(id_ := entry.get("id"), int | float | str):
        return f"annotation {str(id_)[:40]}"
    return f"number {index + 1} of the list"
