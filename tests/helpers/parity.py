"""Weights written by Detectron2 and TensorPack, and settings of Detectron2."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.importers.containers import open_source

Arrays = dict[str, NDArray[Any]]

DATA = Path(__file__).parents[1] / "data" / "parity"
DETECTRON2, TENSORPACK = DATA / "detectron2.pth", DATA / "tensorpack.npz"
PYRAMIDS = {"fpn": DATA / "detectron2_fpn.pth", "retinanet": DATA / "detectron2_retinanet.pth"}
"""A small Mask R-CNN with a feature pyramid, and a small RetinaNet."""
MASK_C4 = DATA / "detectron2_mask_c4.pth"
"""A small Mask R-CNN with a C4 backbone."""

SETTINGS: dict[str, dict[str, Any]] = {
    "thresholds": {
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 10,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [12.0, 12.0, 6.0, 6.0],
        "MODEL.RPN.BBOX_REG_WEIGHTS": [1.2, 1.1, 1.0, 0.9],
        "MODEL.RPN.NMS_THRESH": 0.6,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 400,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 150,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
        "TEST.DETECTIONS_PER_IMAGE": 60,
    },
    "anchors": {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[24, 48, 96.5]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.4, 0.5, 1.0, 2.0, 3.0]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.RESNETS.RES5_DILATION": 2,
    },
    "rgb": {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [120.0, 110.0, 100.0],
        "MODEL.PIXEL_STD": [1.1, 1.2, 1.3],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
}
"""Settings with which Detectron2 itself ran the small network (with_detectron2.py config)."""

_RATIOS = {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.4, 1.0, 3.0]]}
PYRAMID_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "fpn": {
        "published": {},
        "changed": {
            "MODEL.ANCHOR_GENERATOR.SIZES": [[24], [50.5], [90], [150], [300]],
            **_RATIOS,
            "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [12.0, 12.0, 6.0, 6.0],
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 11,
            "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 3,
            "MODEL.RPN.BBOX_REG_WEIGHTS": [1.2, 1.1, 1.0, 0.9],
            "MODEL.RPN.NMS_THRESH": 0.6,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 150,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
            "TEST.DETECTIONS_PER_IMAGE": 60,
        },
        "rgb": SETTINGS["rgb"],
    },
    "retinanet": {
        "published": {},
        "changed": {
            "MODEL.ANCHOR_GENERATOR.SIZES": [
                [24, 30, 40],
                [50, 60, 70.5],
                [90, 100, 110],
                [200, 220, 240],
                [400, 440, 480],
            ],
            **_RATIOS,
            "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
            "MODEL.RETINANET.BBOX_REG_WEIGHTS": [1.2, 1.1, 1.0, 0.9],
            "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 100,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.1,
            "MODEL.RETINANET.NMS_THRESH_TEST": 0.4,
            "TEST.DETECTIONS_PER_IMAGE": 60,
        },
        "rgb": SETTINGS["rgb"],
    },
}
"""Settings with which Detectron2 itself ran the small pyramids (with_detectron2_pyramids.py)."""

MASK_C4_SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "changed": {
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 10,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,  # these two have no effect
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.RPN.POST_NMS_TOPK_TEST": 150,
        "TEST.DETECTIONS_PER_IMAGE": 60,
    },
    "convs": {
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.NORM": "BN",
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    },
}
"""Settings with which Detectron2 itself ran the small Mask R-CNN C4 (with_detectron2_masks.py);
"convs" has another mask head."""

PASTED_SIZE = (37, 53)
"""Height and width of the image of `pasted_cases`."""


def pasted_cases() -> tuple[NDArray[Any], NDArray[Any]]:
    """Mask probabilities [N, 14, 14] and boxes [N, 4]: inside the image, over its edges, larger;
    none outside, where Detectron2's pasting fails."""
    rng = np.random.default_rng(5)
    corners = rng.uniform(-10, 60, (40, 2, 2)) * rng.choice([0.3, 1, 1, 3], (40, 1, 1))
    boxes = np.sort(corners, axis=1).reshape(40, 4).astype(np.float32)
    touching = (boxes[:, :2] < PASTED_SIZE[::-1]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    boxes = boxes[touching]
    return rng.uniform(0, 1, (len(boxes), 14, 14)).astype(np.float32), boxes


_OWN: dict[str, dict[str, Any]] = {
    "c4": {"MODEL.ROI_HEADS.NUM_CLASSES": 20},
    "mask_c4": {"MODEL.ROI_HEADS.NUM_CLASSES": 20, "MODEL.MASK_ON": True},
    "fpn": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    },
    "retinanet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RETINANET.NUM_CLASSES": 20,
        "MODEL.ANCHOR_GENERATOR.SIZES": [
            [side * 2 ** (part / 3) for part in range(3)] for side in (32, 64, 128, 256, 512)
        ],
    },
}


def config_yaml(settings: Mapping[str, Any], family: str = "c4") -> str:
    """A small network's config.yaml with some settings, as {"MODEL.RPN.NMS_THRESH": 0.6}."""
    tree: dict[str, Any] = {}
    own = {"VERSION": 2, "MODEL.RESNETS.DEPTH": 50, **_OWN[family]}
    for name, value in {**own, **settings}.items():
        *parts, leaf = name.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = value

    def lines(node: Mapping[str, Any], indent: str) -> list[str]:
        out = []
        for key, value in sorted(node.items()):
            if isinstance(value, dict):
                out += [f"{indent}{key}:", *lines(value, indent + "  ")]
            else:  # JSON's lists, numbers and booleans are YAML's as well
                text = value if isinstance(value, str) else json.dumps(value)
                out.append(f"{indent}{key}: {text}")
        return out

    return "\n".join(lines(tree, "")) + "\n"


def state_of(path: Path) -> Arrays:
    """The tensors of a checkpoint by their names in it."""
    return {name: tensor.read() for name, tensor in open_source(path)[1].left.items()}


def zoo(folder: Path, state: Arrays) -> Path:
    """A file in the form of Detectron2's model zoo."""
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    return path
