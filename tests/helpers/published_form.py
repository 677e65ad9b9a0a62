"""An IR in the form that the published network most likely has, built with OpenVINO's own classes.

Not a test: run as `python published_form.py MODEL OUT.xml [variant...]`, in a process of its own.
The published file's converter replaced TensorPack's box arithmetic by the operations Proposal
(py-faster-rcnn's anchors), ROIPooling and DetectionOutput; its input is NHWC, its batch norms are
folded. Variants: `nchw`, `half` (float16 constants), `norms` (Multiply and Add behind each
convolution instead of folded batch norms), `variances` (in DetectionOutput instead of in the
weights), `image_info` (an input instead of a constant), `reversed` (BGR to RGB inside).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset8 as op

from sparsedet.model.c4 import build_graph
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import ModelFile, load_model
from sparsedet.model.graph import IMAGE, MaxPool, Operation, RoiAlign, typed


def build(model: ModelFile, variants: set[str]) -> ov.Model:
    config, tensors = require_c4(model.config, "written"), model.tensors
    graph = build_graph(config)
    height, width = config.input_height, config.input_width

    def floats(value: Any) -> Any:
        return op.constant(np.asarray(value, dtype=np.float32))

    def ints(*values: int) -> Any:
        return op.constant(np.array(values, dtype=np.int64))

    shape = [1, 3, height, width] if "nchw" in variants else [1, height, width, 3]
    image = op.parameter(shape, np.float32, name="input" if "nchw" in variants else "image")
    parameters = [image]
    x = image if "nchw" in variants else op.transpose(image, ints(0, 3, 1, 2))
    mean, std = np.array(config.pixel_mean), np.array(config.pixel_std)
    if "reversed" in variants:
        x = op.gather(x, ints(2, 1, 0), ints(1))
        mean, std = mean[::-1], std[::-1]
    x = op.add(x, floats(-mean.reshape(1, 3, 1, 1)))
    x = op.multiply(x, floats(1 / std.reshape(1, 3, 1, 1)))
    values = {IMAGE: x}
    rng = np.random.default_rng(0)

    def run(operation: Operation) -> Any:
        x, *residual = [values[name] for name in operation.inputs]
        if operation.kind == "normalise":
            return x
        if operation.kind == "max_pool":
            before, after = typed(operation, MaxPool).padding[1:3]
            return op.max_pool(x, [2, 2], [1, 1], [before] * 2, [after] * 2, [3, 3]).output(0)
        if operation.kind == "mean":
            return op.reduce_mean(x, ints(2, 3), False)
        layer = graph.layer[operation.name]
        weight, bias = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
        if layer.name == "stem.conv" and "reversed" in variants:
            weight = weight[:, ::-1]
        if layer.name == "box.deltas" and "variances" not in variants:
            scale = np.tile(np.asarray(config.box_weights, dtype=np.float32), len(bias) // 4)
            weight, bias = weight / scale[:, None], bias / scale
        if layer.kind == "linear":
            return op.add(op.matmul(x, floats(weight), False, True), floats(bias[None]))
        before, after = layer.padding
        if after < 0:  # TensorPack's x[:, :, :-1, :-1]
            x = op.strided_slice(
                x,
                ints(0, 0, 0, 0),
                ints(0, 0, after, after),
                ints(1, 1, 1, 1),
                [1, 1, 1, 1],
                [1, 1, 0, 0],
            )
        factor = np.ones(len(bias), dtype=np.float32)
        if layer.norm and "norms" in variants:
            factor = np.exp2(rng.integers(-2, 3, len(bias))).astype(np.float32)  # exact
        weight = weight / factor[:, None, None, None]
        x = op.convolution(
            x, floats(weight), [layer.stride] * 2, [before] * 2, [max(after, 0)] * 2, [1, 1]
        )
        if layer.norm and "norms" in variants:
            x = op.multiply(x, floats(factor.reshape(1, -1, 1, 1)))
        x = op.add(x, floats(bias.reshape(1, -1, 1, 1)))
        for other in residual:
            x = op.add(x, other)
        return op.relu(x) if layer.relu else x

    align = graph.only(RoiAlign)[0]
    order = list(graph.operations)
    boxes_at, rois_at = order.index(graph.by_name[align.inputs[1]]), order.index(align)
    for operation in order[:boxes_at]:
        values[operation.name] = run(operation)
    if "image_info" in variants:
        info = op.parameter([1, 3], np.float32, name="image_info")
        parameters.append(info)
    else:
        info = floats([[height, width, 1]])
    score = op.sigmoid(values["rpn.objectness"])
    other = op.add(op.multiply(score, floats(-1)), floats(1))
    attributes = {
        "base_size": np.uint(16),
        "pre_nms_topn": np.uint(config.rpn_pre_nms),
        "post_nms_topn": np.uint(config.proposals),
        "nms_thresh": np.float32(config.rpn_nms_threshold),
        "feat_stride": np.uint(config.anchor_stride),
        "min_size": np.uint(1),
        "ratio": np.array(config.anchor_ratios, dtype=np.float32),
        "scale": np.array(config.anchor_sizes, dtype=np.float32) / 16,
        "clip_before_nms": True,
        "clip_after_nms": False,
        "normalize": True,
        "framework": "",
    }
    rois = op.proposal(
        op.concat([other, score], 1),
        values["rpn.deltas"],
        op.reshape(info, ints(3), False),
        attributes,
    ).output(0)
    bins = config.roi_size * 2
    pooled = op.roi_pooling(values[align.inputs[0]], rois, [bins, bins], 1.0, "bilinear")
    values[align.name] = op.avg_pool(pooled, [2, 2], [0, 0], [0, 0], [2, 2], True)
    for operation in order[rois_at + 1 : -1]:
        values[operation.name] = run(operation)
    count, classes = config.proposals, config.num_classes + 1
    boxes = op.strided_slice(rois, ints(0, 1), ints(0, 5), ints(1, 1), [1, 0], [1, 0])
    boxes = op.reshape(boxes, ints(1, 1, count * 4), False)
    if "variances" in variants:
        numbers = np.tile(1 / np.asarray(config.box_weights, dtype=np.float32), count)
        boxes = op.concat([boxes, floats(numbers.reshape(1, 1, -1))], 1)
    rows = op.detection_output(
        op.reshape(values["box.deltas"], ints(1, count * classes * 4), False),
        op.reshape(op.softmax(values["box.logits"], 1), ints(1, count * classes), False),
        boxes,
        {
            "background_label_id": 0,
            "top_k": -1,
            "keep_top_k": [config.max_detections],
            "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
            "share_location": False,
            "nms_threshold": config.nms_threshold,
            "confidence_threshold": config.score_threshold,
            "variance_encoded_in_target": "variances" not in variants,
            "normalized": True,
            "clip_before_nms": True,
            "clip_after_nms": False,
        },
    )
    return ov.Model([op.result(rows, name="detection_output")], parameters, "published")


if __name__ == "__main__":
    source, target, *words = sys.argv[1:]
    graph = build(load_model(Path(source)), set(words))
    ov.save_model(graph, target, compress_to_fp16="half" in words)
