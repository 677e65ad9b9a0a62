"""IRs for the importer's tests, and OpenVINO's rows on them; not a test.

Run as `python -m helpers.ir_forms FOLDER`, in a process of its own (test_export_openvino.py says
why).
Writes models, their exports in every form as FOLDER/NAME.xml with the rows on one image as
NAME.npy, and networks of other kinds.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset8 as op

from helpers import published_form
from helpers.exports import SMALL, edges_image
from sparsedet.exporters.openvino import save_openvino
from sparsedet.model.boxes import legacy_cell_anchors
from sparsedet.model.config import ModelConfig
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import load_model, save_model
from sparsedet.model.presets import PRESETS
from sparsedet.testing import calibrated_random_tensors

LEGACY = replace(
    PRESETS["r101-c4"],
    **{**SMALL, "anchor_sizes": (32.0, 64.0, 96.0, 128.0, 160.0)},
    roi_sampling="corners",
    delta_clamp=20.0,
    rpn_inclusive=True,
)
MODELS: dict[str, ModelConfig] = {
    "tensorpack": replace(PRESETS["r101-c4"], input_height=160, input_width=224, **SMALL),
    "odd": replace(PRESETS["r101-c4"], input_height=113, input_width=151, **SMALL),
    "detectron2": replace(
        PRESETS["r101-c4-detectron2"], input_height=113, input_width=151, **SMALL
    ),
    "half": replace(
        PRESETS["r50half-c4"], input_height=160, input_width=224, resize="stretch", **SMALL
    ),
    "legacy": replace(
        LEGACY,
        input_height=160,
        input_width=224,
        cell_anchors=tuple(map(tuple, legacy_cell_anchors(LEGACY.anchor_sizes).tolist())),
    ),
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "published": {"layout": "NHWC", "rows": "2d", "image_info": True},
    "hoisted": {"hoist": True},
    "float16": {"dtype": "float16"},
}
PUBLISHED: dict[str, set[str]] = {
    "seed": {"nchw", "image_info", "norms", "variances", "reversed"},
    "later": set(),
    "compressed": {"half"},
}
"""Variants of `published_form`, of the model "legacy"."""


def blob(config: ModelConfig) -> NDArray[np.float32]:
    return edges_image(config.input_height, config.input_width)[None].astype(np.float32)


def run(file: Path, config: ModelConfig) -> None:
    """Write the rows of an IR beside it."""
    compiled = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = []
    for port in compiled.inputs:
        if len(port.shape) == 4:
            nhwc = blob(config)
            values.append(nhwc if port.shape[3] == 3 else nhwc.transpose(0, 3, 1, 2).copy())
        else:
            size = (config.input_height, config.input_width)
            values.append(np.array([[*size, 1]], dtype=np.float32))
    np.save(file.with_suffix(".npy"), compiled(values)[0])


def others(folder: Path) -> None:
    """Networks that are not a Faster R-CNN."""
    x = op.parameter([1, 3, 32, 32], np.float32, name="x")

    def convolution(out: int) -> Any:
        weight = op.constant(np.ones((out, 3, 3, 3), dtype=np.float32))
        return op.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])

    features = op.relu(convolution(8))
    score = op.softmax(op.reduce_mean(features, op.constant([2, 3]), False), 1)
    ov.save_model(ov.Model([op.result(score)], [x], "a"), folder / "classifier.xml", False)
    yolo = op.region_yolo(convolution(75), 4, 20, 3, True, [0, 1, 2], 1, 3)
    ov.save_model(ov.Model([op.result(yolo)], [x], "b"), folder / "yolo.xml", False)
    rows = op.detection_output(
        op.reshape(convolution(8), op.constant([1, 8 * 1024]), False),
        op.reshape(convolution(4), op.constant([1, 4 * 1024]), False),
        op.constant(np.zeros((1, 2, 8 * 1024), dtype=np.float32)),
        {
            "background_label_id": 0,
            "top_k": 10,
            "keep_top_k": [10],
            "share_location": True,
            "nms_threshold": 0.5,
            "confidence_threshold": 0.1,
            "normalized": True,
            "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
        },
    )
    ov.save_model(ov.Model([op.result(rows)], [x], "c"), folder / "ssd.xml", False)


def main(folder: Path) -> None:
    for name, config in MODELS.items():
        source = folder / f"{name}.safetensors"
        image = edges_image(config.input_height, config.input_width)
        tensors = calibrated_random_tensors(config, 0.4, image)
        save_model(source, config, tensors, {}, dtype="float16")  # exact in a half-float IR
        model = load_model(source)
        cv2.imwrite(str(folder / f"{name}.png"), image)
        for form, options in FORMS.items():
            file = folder / f"{name}_{form}.xml"
            save_openvino(file, config, model.tensors, **options)
            run(file, config)
    legacy = load_model(folder / "legacy.safetensors")
    for name, variants in PUBLISHED.items():
        file = folder / f"form_{name}.xml"
        graph = published_form.build(legacy, variants)
        ov.save_model(graph, file, compress_to_fp16="half" in variants)
        run(file, require_c4(legacy.config, "read"))
    others(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
