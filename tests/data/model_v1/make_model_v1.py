"""Writes the model files of this folder and their detections, with release 0.1.0 of sparsedet.

    python make_model_v1.py [OUT]     (sparsedet 0.1.0 installed)

Two tiny networks of random weights, rescaled on a picture so that they detect many objects, in the
forms that release 0.1 writes: float32 and float16, sparse (masks) and dense, with int8 ranges.
`expected.npz` holds the picture and the rows of each file: the scalar kernels, float32, hoisted;
int8 for the file with ranges. Later programs must read these files for ever.
"""

# mypy: ignore-errors
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from sparsedet.config import preset
from sparsedet.pruning.synthetic import lively_tensors
from sparsedet.quantize import calibrate
from sparsedet.weights import load_model, save_model

import sparsedet
from sparsedet.engine import Engine

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
NAMES = ("person", "bicycle", "car", "bus", "dog")
SMALL = dict(
    canvas_height=97,
    canvas_width=131,
    blocks=(1, 1, 2, 1),
    stem_channels=8,
    bottleneck_channels=(5, 8, 10, 12),
    stage_channels=(12, 16, 24, 32),
    rpn_channels=16,
    class_names=NAMES,
    category_ids=(1, 2, 3, 6, 18),
    anchor_sizes=(16.0, 32.0, 64.0),
    proposals=40,
    rpn_pre_nms=200,
    max_detections=30,
)


def picture(height: int, width: int) -> np.ndarray:
    """Rectangles on smooth noise, BGR."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    image = np.kron(noise, np.ones((8, 8, 1), np.uint8))[:height, :width]
    for _ in range(20):
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(6, 60, 2)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return np.ascontiguousarray(image)


def main() -> None:
    assert sparsedet.__version__ == "0.1.0"
    canvas = picture(97, 131)
    expected = {"canvas": canvas}
    for family in ("r101-c4", "r101-c4-detectron2"):
        config = replace(preset(family), name=f"tiny-{family}", **SMALL)
        for form, dtype, sparsity in (
            ("float32-sparse", "float32", 0.6),
            ("float16-sparse", "float16", 0.6),
            ("float32-dense", "float32", 0.0),
            ("float16-ranges", "float16", 0.6),
        ):
            tensors = lively_tensors(config, sparsity, canvas)
            ranges = calibrate(config, tensors, [canvas]) if "ranges" in form else None
            path = OUT / f"{family}-{form}.safetensors"
            path.unlink(missing_ok=True)
            save_model(path, config, tensors, {"seed": 0}, dtype=dtype, ranges=ranges)
            model = load_model(path)
            for precision in ("f32", "int8") if ranges else ("f32",):
                engine = Engine(
                    model.config,
                    model.tensors,
                    threads=1,
                    isa="scalar",
                    precision=precision,
                    ranges=model.ranges,
                )
                rows = engine.run(canvas)
                assert len(rows) >= 10, (path, precision, len(rows))
                expected[f"{path.stem}-{precision}"] = rows
    np.savez_compressed(OUT / "expected.npz", **expected)


if __name__ == "__main__":
    main()
