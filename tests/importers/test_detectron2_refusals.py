"""Detectron2's pyramids: files and settings that are refused, each in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import PYRAMIDS, config_yaml, state_of, zoo

from sparsedet import InputError
from sparsedet.importers import load_foreign
from sparsedet.model.detector_config import build_graph
from sparsedet.model.graph import Proposals
from sparsedet.model.presets import preset

FPN, RETINANET = PYRAMIDS["fpn"], PYRAMIDS["retinanet"]
MASK = "roi_heads.mask_head."


def refused(path: Path, match: str, **options: Any) -> None:
    """One line that names the file."""
    with pytest.raises(InputError, match=match) as error:
        load_foreign(path, **options)
    assert "\n" not in str(error.value) and str(path.parent) in str(error.value)


W = np.zeros((2, 2), np.float32)
LATERAL, FC = "backbone.fpn_lateral4", "roi_heads.box_head.fc1.weight"


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("fpn", {f"{LATERAL}.weight": None}, rf"'{LATERAL}\.weight' is missing"),
        ("fpn", {"roi_heads.box_head.": None}, "no fully connected layers"),
        ("fpn", {"roi_heads.": None}, "has no box head"),
        ("fpn", {"proposal_generator.": None}, "rpn_head.* is missing"),
        ("fpn", {f"{MASK}mask_fcn": None}, r"mask_fcn1\.weight' is missing"),
        ("fpn", {f"{MASK}predictor.weight": None}, r"predictor\.weight' is missing"),
        ("fpn", {f"{MASK}extra.weight": W}, r"mask_head\.extra.* belongs to no layer"),
        ("fpn", {FC: np.zeros((32, 8 * 50), np.float32)}, r"\(32, 400\), expected .* 8 times"),
        ("fpn", {f"{LATERAL}.weight": W}, r"has shape \(2, 2\), expected \(8, 32, 1, 1\)"),
        ("fpn", {f"{LATERAL}.bias": np.full(8, np.nan, np.float32)}, "NaN"),
        ("fpn", {f"{LATERAL}.bias": np.zeros(8, np.int64)}, "does not hold floats"),
        ("fpn", {"roi_heads.box_predictor.0.cls_score.weight": W}, "is a cascade"),
        ("fpn", {"roi_heads.keypoint_head.conv_fcn1.weight": W}, "keypoint head"),
        ("fpn", {"sem_seg_head.predictor.weight": W}, "semantic segmentation"),
        ("fpn", {f"{MASK}point_head.fc1.weight": W}, "PointRend"),
        ("fpn", {"backbone.fpn_lateral5.norm.weight": W}, r"GroupNorm.*MODEL\.FPN\.NORM"),
        ("fpn", {f"{MASK}mask_fcn1.norm.weight": W}, r"GroupNorm.*ROI_MASK_HEAD\.NORM"),
        ("fpn", {"roi_heads.box_head.conv1.weight": W}, "convolutions without norms"),
        ("fpn", {"backbone.bottom_up.res3.0.conv2_offset.weight": W}, "deformable"),
        ("fpn", {"backbone.bottom_up.res2.0.conv2.weight": np.zeros((2, 1, 3, 3))}, "ResNeXt"),
        ("fpn", {"backbone.bottom_up.res2.0.conv3": None}, "ResNet 18 or 34"),
        ("fpn", {"proposal_generator.rpn_head.conv.conv0.weight": W}, "several convolutions"),
        ("retinanet", {"backbone.bottom_up.": None}, "stem.* is missing|res2.* is missing"),
        ("retinanet", {"backbone.top_block.p7": None}, r"p7\.weight' is missing"),
        ("retinanet", {"head.bbox_subnet.4.": None}, r"bbox_subnet\.4\.weight' is missing"),
        ("retinanet", {"head.cls_subnet.1.weight": W}, r"norms in its head.*RETINANET\.NORM"),
        ("retinanet", {"backbone.fpn_lateral5.norm.weight": W}, r"norms in its pyramid"),
        ("retinanet", {"head.cls_score.weight": W}, "no classes"),
        ("retinanet", {"roi_heads.box_head.fc1.weight": W}, "belongs to no layer"),
    ],
)
def test_files_of_other_models_are_refused_in_one_line(
    family: str, changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    state = state_of(PYRAMIDS[family])
    for name, value in changes.items():
        state = {n: v for n, v in state.items() if not n.startswith(name)}
        if value is not None:
            state[name] = value
    refused(zoo(tmp_path, state), match)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("fpn", "MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("fpn", "MODEL.META_ARCHITECTURE", "PanopticFPN"),
        ("fpn", "MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        ("fpn", "MODEL.RESNETS.RES5_DILATION", 2),
        ("fpn", "MODEL.RESNETS.DEPTH", 101),
        ("fpn", "MODEL.RESNETS.NUM_GROUPS", 32),
        ("fpn", "MODEL.FPN.FUSE_TYPE", "avg"),
        ("fpn", "MODEL.FPN.NORM", "GN"),
        ("fpn", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        ("fpn", "MODEL.RPN.IN_FEATURES", ["p2", "p3"]),
        ("fpn", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("fpn", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]),
        ("fpn", "MODEL.ROI_HEADS.NUM_CLASSES", 80),
        ("fpn", "MODEL.ROI_BOX_HEAD.NAME", "MyHead"),
        ("fpn", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
        ("fpn", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14),
        ("fpn", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ("fpn", "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
        ("fpn", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
        ("fpn", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0),
        ("fpn", "MODEL.MASK_ON", False),
        ("fpn", "MODEL.KEYPOINT_ON", True),
        ("fpn", "INPUT.MIN_SIZE_TEST", 0),
        ("retinanet", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
        ("retinanet", "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]),
        ("retinanet", "MODEL.RETINANET.NORM", "GN"),
        ("retinanet", "MODEL.RETINANET.NUM_CLASSES", 80),
        ("retinanet", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0),
        ("retinanet", "MODEL.RETINANET.BBOX_REG_WEIGHTS", [1.0, 1.0]),
        ("retinanet", "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("retinanet", "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
    ],
)
def test_a_setting_that_cannot_be_represented_is_refused_by_name(
    family: str, key: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml({key: value}, family))
    with pytest.raises(InputError, match=key.rpartition(".")[2]) as error:
        load_foreign(PYRAMIDS[family], config=path)
    assert "\n" not in str(error.value)


def test_anchors_must_fit_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for sizes, match in (
        ([[32, 64, 128, 256, 512]], "has 3 anchors a cell, .* give 15"),
        ([[32], [64]], "anchor_sizes has 2 lists, expected 1 or 5"),
        ([], "SIZES"),
    ):
        path.write_text(config_yaml({"MODEL.ANCHOR_GENERATOR.SIZES": sizes}, "fpn"))
        with pytest.raises(InputError, match=match):
            load_foreign(FPN, config=path)
    shared = {
        "MODEL.ANCHOR_GENERATOR.SIZES": [40],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [1, 2, 3],
    }
    path.write_text(config_yaml(shared, "fpn"))  # a plain list is that of every level
    anchors = build_graph(load_foreign(FPN, config=path).config).only(Proposals)[1].cell_anchors
    assert anchors == anchors[:1] * 5 and anchors[0][0] == (-20, -20, 20, 20)


def test_what_applies_to_c4_alone_is_refused() -> None:
    refused(FPN, "r101-c4 is a preset for C4 models", base=preset("r101-c4"))
    refused(FPN, "'input_width' is no setting of a model with a pyramid", fields={"input_width": 9})
    refused(RETINANET, "min_size is 5, expected 32", fields={"min_size": 5})
