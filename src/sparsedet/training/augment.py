"""Augmentation beyond scale and mirroring: what is drawn at random comes from one seed an image.

Zoom-out, IoU crop and colours are torchvision's (`transforms.v2`), with its defaults, which are
those of SSD. torchvision draws the numbers, from torch's generator, which is seeded for each image
and put back afterwards; pixels are copied and boxes moved here, so that crowds follow and what is
left of an object that was cut off is known.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..images.letterbox import fit_letterbox
from .recipe import Recipe

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class View:
    """What an augmented image shows: one photograph, a part of it, or several.

    Attributes:
        image: (H, W, 3) uint8 BGR; float32 where resizing is not rounded ("shorter").
        boxes: (N, 4) float32 xyxy pixels, inside the image.
        labels: (N,) int64.
        ignored: (N,) bool: crowds, and objects of which too little is left.
        areas: (N,) float64, of the whole objects at this scale, with what was cut off.
    """

    image: NDArray[Any]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64]

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    def scaled(self, image: NDArray[Any], height: int, width: int) -> View:
        """The same on an image of another size.

        Args:
            height, width: what of the size of this view has become the whole of `image`.
        """
        across, down = image.shape[1] / width, image.shape[0] / height
        boxes = (self.boxes * np.array([across, down] * 2)).astype(np.float32)
        return replace(self, image=image, boxes=boxes, areas=self.areas * (across * down))


def areas_of(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Areas (N,) of boxes (N, 4)."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return np.asarray(sides[:, 0] * sides[:, 1])


def moved(boxes: NDArray[np.float32], x: int, y: int) -> NDArray[np.float32]:
    """Boxes (N, 4), x pixels to the right and y down."""
    return boxes + np.array([x, y, x, y], np.float32)


def cut(view: View, left: int, top: int, width: int, height: int) -> View:
    """A window of a view; objects outside it are gone."""
    limit = np.array([width, height] * 2, np.float32)
    boxes = np.clip(moved(view.boxes, -left, -top), 0, limit)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return View(
        view.image[top : top + height, left : left + width],
        boxes[seen],
        view.labels[seen],
        view.ignored[seen],
        view.areas[seen],
    )


def random_window(view: View, height: int, width: int, rng: random.Random) -> View:
    """A window of at most that size, anywhere on a view."""
    height, width = min(height, view.height), min(width, view.width)
    left, top = rng.randint(0, view.width - width), rng.randint(0, view.height - height)
    return cut(view, left, top, width, height)


def zoom_out(view: View, fill: Sequence[float]) -> View:
    """The view somewhere on a canvas with up to 4 times its sides (torchvision, SSD).

    Args:
        fill: BGR of the canvas.
    """
    transform = v2.RandomZoomOut()
    left, top, right, bottom = transform.make_params([_shape(view)])["padding"]
    image = _canvas(view.height + top + bottom, view.width + left + right, fill)
    image[top : top + view.height, left : left + view.width] = view.image
    return replace(view, image=image, boxes=moved(view.boxes, left, top))


def iou_crop(view: View) -> View:
    """A window that overlaps an object at least so much, as drawn (torchvision, SSD).

    Objects whose centre is outside are ignored where they reach into it.
    """
    single = ~view.ignored
    if not single.any():
        return view
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(view.boxes[single]), format="XYXY", canvas_size=(view.height, view.width)
    )
    params = v2.RandomIoUCrop().make_params([_shape(view), boxes])
    if not params:  # "leave as it is" was drawn
        return view
    ignored = view.ignored.copy()
    ignored[single] = ~params["is_within_crop_area"].numpy()
    view = replace(view, ignored=ignored)
    return cut(view, params["left"], params["top"], params["width"], params["height"])


def distort_colours(image: U8) -> U8:
    """Brightness, contrast, saturation, hue and order of channels (torchvision, SSD).

    Args:
        image: (H, W, 3) uint8 BGR.
    """
    rgb = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    changed = v2.RandomPhotometricDistort()(tv_tensors.Image(rgb))
    return np.ascontiguousarray(changed.numpy().transpose(1, 2, 0)[:, :, ::-1])


def mosaic(views: Sequence[View], rng: random.Random, fill: Sequence[float]) -> View:
    """Four views around a random point of a canvas with twice the sides of the first.

    Each is scaled to the size of the first, its aspect ratio kept, and lies with one corner at the
    point; what reaches over the canvas is cut off.

    Source: YOLOv4 (arXiv 2004.10934); sizes and the range of the point, a quarter to three quarters
    of the canvas, are those of YOLOX and Ultralytics.
    """
    height, width = views[0].height, views[0].width
    point_x, point_y = (round(side * rng.uniform(0.5, 1.5)) for side in (width, height))
    image = _canvas(2 * height, 2 * width, fill)
    parts = []
    for number, view in enumerate(views):
        fit = fit_letterbox(view.height, view.width, height, width)
        size = (fit.resized_width, fit.resized_height)
        resized = cv2.resize(view.image, size, interpolation=cv2.INTER_LINEAR)
        view = view.scaled(np.asarray(resized, np.uint8), view.height, view.width)
        to_left, above = number % 2 == 0, number < 2
        across = min(view.width, point_x if to_left else 2 * width - point_x)
        down = min(view.height, point_y if above else 2 * height - point_y)
        view = cut(
            view,
            view.width - across if to_left else 0,
            view.height - down if above else 0,
            across,
            down,
        )
        x, y = point_x - across * to_left, point_y - down * above
        image[y : y + down, x : x + across] = view.image
        parts.append(replace(view, boxes=moved(view.boxes, x, y)))
    return View(
        image,
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.ignored for part in parts]),
        np.concatenate([part.areas for part in parts]),
    )


def mirrored(view: View) -> View:
    """The view, left to right."""
    boxes = view.boxes.copy()
    boxes[:, [0, 2]] = view.width - boxes[:, [2, 0]]
    return replace(view, image=view.image[:, ::-1], boxes=boxes)


def settled(view: View, recipe: Recipe) -> View:
    """The view where objects that are too small, or of which too little is left, are ignored."""
    small = ((view.boxes[:, 2:] - view.boxes[:, :2]) < recipe.min_box).any(axis=1)
    rest = areas_of(view.boxes) < recipe.min_visible * view.areas
    return replace(view, ignored=view.ignored | small | rest)


def before_resizing(
    view: View,
    recipe: Recipe,
    rng: random.Random,
    fill: Sequence[float],
    other: Callable[[random.Random], View],
) -> View:
    """Mosaic, zoom-out and IoU crop, each for the recipe's fraction of the images. A mosaic has
    small objects already and is not zoomed out.

    Args:
        fill: BGR of what no photograph covers.
        other: reads another image, for a mosaic.
    """
    # All are drawn, so that one field does not change what another one does.
    chosen = [rng.random() < f for f in (recipe.mosaic, recipe.zoom_out, recipe.iou_crop)]
    with _seeded(rng.getrandbits(48)):
        if chosen[0]:
            view = mosaic([view, other(rng), other(rng), other(rng)], rng, fill)
        elif chosen[1]:
            view = zoom_out(view, fill)
        if chosen[2]:
            view = iou_crop(view)
    return view


def after_resizing(view: View, recipe: Recipe, rng: random.Random, height: int, width: int) -> View:
    """Crop to at most that size, and colours."""
    if recipe.crop:
        view = random_window(view, height, width, rng)
    if rng.random() < recipe.colour:
        with _seeded(rng.getrandbits(48)):
            whole = np.round(view.image).astype(np.uint8)  # "shorter" does not round
            view = replace(view, image=distort_colours(whole))
    return settled(view, recipe) if recipe.cuts else view


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, torch's generator of the CPU starts from `seed`; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reset GPUs
        yield


def _shape(view: View) -> tv_tensors.Image:
    """An image of the view's size without memory, for torchvision to read the size of."""
    return tv_tensors.Image(torch.empty(1, dtype=torch.uint8).expand(3, view.height, view.width))


def _canvas(height: int, width: int, fill: Sequence[float]) -> U8:
    return np.full((height, width, 3), np.clip(np.round(fill), 0, 255).astype(np.uint8))
