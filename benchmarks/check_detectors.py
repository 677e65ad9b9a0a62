"""torchvision's detectors against the imported ones, at full size, on photographs of odd sizes.

    python benchmarks/check_detectors.py --images FOLDER

Weights are random and find much (sparsedet.testing.torchvision). Of each detector the largest
differences of boxes and scores over all photographs are printed, and how many detections have no
partner: of equal scores at the end of the list, one may be another. Exit code 1: a difference is
larger than 0.01 pixels or 1e-4, or a photograph has fewer than 20 detections above 0.5, which would
prove little.

Random weights of MobileNetV3 make rounding much larger: torchvision's own float32 differs from its
float64 by more than these bounds. On such a photograph ours may differ from torchvision's float32
by twice as much as its float64 does; how many photographs these are is printed.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import sparsedet
from sparsedet.importers import load_foreign
from sparsedet.model.file import save_model
from sparsedet.sources.folder import sample_images
from sparsedet.testing.torchvision import (
    SETTINGS,
    Deviation,
    as_input,
    confident,
    matched,
    save_state,
)

LEAST = 20
"""Detections above 0.5 that a photograph must have."""
BOUNDS = Deviation(0.01, 1e-4, 1)
"""Of one photograph; a detection at the end of the list may have no partner."""


def odd_size(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """A part of a photograph, of a size that no other has."""
    return np.ascontiguousarray(image[number % 7 :, : image.shape[1] - number % 11])


def in_bounds(found: Deviation, bounds: Deviation) -> bool:
    """Whether no difference is larger than its bound."""
    return all(difference <= bound for difference, bound in zip(found, bounds, strict=True))


def rounding(model64: nn.Module, image: NDArray[np.uint8], theirs: dict[str, Any]) -> Deviation:
    """How far torchvision's float32 is from its own float64."""
    with torch.no_grad():
        exact = model64([as_input(image).double()])[0]
    return matched(theirs, {k: v.float() if v.is_floating_point() else v for k, v in exact.items()})


def check(kind: str, images: list[NDArray[np.uint8]]) -> bool:
    """Compare one detector; returns whether it is equal."""
    settings = SETTINGS[kind]
    sizes = {key: settings[key] for key in ("min_size", "max_size") if key in settings}
    model = confident(kind, images[::3], **sizes)
    with tempfile.TemporaryDirectory() as folder:
        state = save_state(model, Path(folder, "state.pth"))
        imported = load_foreign(state, torchvision=settings)
        path = Path(folder, "model.safetensors")
        save_model(path, imported.config, imported.tensors, {}, dtype="float32")
        detector = sparsedet.Detector.load(path, cache=False)
        model64 = copy.deepcopy(model).double()
        worst, good = Deviation(0, 0, 0), True
        compared = rounded = 0
        fewest = 10**9
        for image in images:
            with torch.no_grad():
                theirs = model([as_input(image)])[0]
            found = matched(detector(image), theirs)
            if not in_bounds(found, BOUNDS):
                own = rounding(model64, image, theirs)
                rounded += 1
                limits = Deviation(
                    max(2 * own.box, BOUNDS.box),
                    max(2 * own.score, BOUNDS.score),
                    max(2 * own.missing, BOUNDS.missing),
                )
                good &= in_bounds(found, limits)
            worst = Deviation(
                max(worst.box, found.box),
                max(worst.score, found.score),
                worst.missing + found.missing,
            )
            compared += len(theirs["scores"])
            fewest = min(fewest, int((theirs["scores"] > 0.5).sum()))
    good &= fewest >= LEAST
    print(
        f"{kind:40} boxes {worst.box:.1e} px, scores {worst.score:.1e}, {worst.missing} of "
        f"{compared} without partner, {rounded} photographs judged by torchvision's own rounding, "
        f"at least {fewest} above 0.5: {'equal' if good else 'NOT EQUAL'}",
        flush=True,
    )
    return good


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=20, help="photographs")
    parser.add_argument("--kinds", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args(argv)
    paths = sample_images(arguments.images, arguments.count)
    images = [odd_size(sparsedet.read_image(path), i) for i, path in enumerate(paths)]
    return 0 if all([check(kind, images) for kind in arguments.kinds]) else 1


if __name__ == "__main__":
    sys.exit(main())
