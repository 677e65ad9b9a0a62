"""AP on held-out images while training, and images with the model's detections drawn.

The torch model itself is evaluated, image by image, on the model's own network input, as the engine
would run it. The processes share the images; rank 0 computes the AP.
"""

from __future__ import annotations

import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..detections import Detections, from_rows
from ..errors import InputError
from ..evaluation import score_results
from ..evaluation.coco import CocoDataset, CocoImage, annotation_keys
from ..evaluation.coco_fields import id_key, id_order
from ..files import read_json, write_atomic
from ..images.check import BadImages
from ..images.letterbox import prepare
from ..images.write import encode_image
from ..torch_model import TwoStageDetector
from .data import read_annotated_image
from .distributed import Ranks
from .pulse import Pulse

U8 = NDArray[np.uint8]

GROUND_TRUTH = "val.json"
LEAST_DRAWN_SCORE = 0.3
"""Least score of a drawn detection: a model early in its training has no high scores."""


def detect(model: TwoStageDetector, image: Any, device: torch.device) -> Detections:
    """The torch model's detections in an image (H, W, 3) uint8 BGR."""
    config = model.config
    network_input, letterbox = prepare(image, config)
    content = None
    if config.resize == "shorter":  # as in `Detector`
        content = letterbox.resized_height, letterbox.resized_width
    rows = model(torch.from_numpy(network_input).permute(2, 0, 1)[None].to(device), content)[0]
    return from_rows(rows.cpu().numpy(), letterbox, config.class_names, config.category_ids)


def check_validation(dataset: CocoDataset) -> None:
    """Check at the start that validation will work.

    Raises:
        InputError: no image of `dataset` has a box, or pycocotools is missing.
    """
    if all(image.crowd.all() for image in dataset.images):
        raise InputError(
            f"val_fraction holds out {len(dataset.images)} images, none of them with a box"
        )
    if find_spec("pycocotools") is None:
        raise InputError("val_fraction needs pycocotools: pip install 'sparsedet[train]'")


def write_ground_truth(dataset: CocoDataset, path: Path) -> None:
    """Write the part of the annotation file that belongs to `dataset.images`."""
    content = read_json(dataset.path)
    ids = {id_key(image.id) for image in dataset.images}
    content["images"] = [entry for entry in content["images"] if id_key(entry["id"]) in ids]
    content["annotations"] = [a for a in content["annotations"] if annotation_keys(a)[0] in ids]
    write_atomic(path, json.dumps(content).encode(), overwrite=True)


def validate(
    model: TwoStageDetector,
    dataset: CocoDataset,
    ground_truth: Path,
    ranks: Ranks,
    bad_images: BadImages = "stop",
    pulse: Pulse | None = None,
) -> dict[str, float]:
    """The 12 COCO figures over `dataset`, on every process.

    Args:
        ground_truth: file from `write_ground_truth`.
        bad_images: an image that does not stop the run counts as one without detections.
        pulse: learns how far it is.
    """
    results: list[dict[str, Any]] = []
    own = dataset.images[ranks.rank :: ranks.world]
    for number, image in enumerate(own, start=1):
        if pulse is not None:
            pulse.doing = f"validation: image {number} of {len(own)}"
        pixels = _read(dataset, image, bad_images)
        if pixels is None:
            continue
        results += detect(model, pixels, ranks.device).to_coco(image.id)
    results = ranks.gather(results)
    stats: dict[str, float] | None = None
    if ranks.writes:
        # Order decides between equal scores; it must not depend on the number of processes.
        results.sort(key=lambda result: id_order(result["image_id"]))
        scores = score_results(ground_truth, results, class_names=dataset.class_names)
        stats = scores.stats
    return ranks.from_first(stats)  # type: ignore[no-any-return]


def _read(dataset: CocoDataset, image: CocoImage, bad_images: BadImages) -> U8 | None:
    """An image; None for a bad one that does not stop the run (training names it)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_annotated_image(dataset, image, bad_images)
    except InputError:
        if bad_images == "stop":
            raise
        return None


def draw_samples(
    model: TwoStageDetector,
    dataset: CocoDataset,
    images: tuple[CocoImage, ...],
    folder: Path,
    step: int,
    device: torch.device,
    bad_images: BadImages = "stop",
) -> None:
    """Write `step-NNNNNNN-ID.jpg` for each image, with its detections drawn."""
    folder.mkdir(exist_ok=True)
    for image in images:
        pixels = _read(dataset, image, bad_images)
        if pixels is None:
            continue
        drawn = detect(model, pixels, device).above(LEAST_DRAWN_SCORE).draw(pixels)
        name = re.sub(r"[^\w.-]", "_", str(image.id))[:100]  # an id may be text
        path = folder / f"step-{step:07d}-{name}.jpg"
        write_atomic(path, encode_image(drawn, str(path)), overwrite=True)
