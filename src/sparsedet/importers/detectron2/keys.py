"""Settings of Detectron2: what each family of models takes, what it must be, what has no effect.

Source: detectron2/config/defaults.py and the readers of its settings in detectron2/modeling, at
commit 02b5c4e.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FamilyName = Literal["c4", "fpn", "retinanet"]
"""Faster and Mask R-CNN with C4, the same with a feature pyramid, RetinaNet."""

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is the one that runs here, and that value in words."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The settings of a family.

    Attributes:
        fields: setting -> field that holds it.
        only: setting -> the value that runs here.
        masks: as `only`, where the model has a mask head.
        classes: the setting of the number of classes.
        defaults: Detectron2's defaults where they are not those of the published models.
    """

    fields: Mapping[str, str]
    only: Mapping[str, Rule]
    masks: Mapping[str, Rule] = field(default_factory=dict)
    classes: str = "MODEL.ROI_HEADS.NUM_CLASSES"
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _is(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def _holds(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and set(names) <= set(map(str, value))


def _lists(*names: str) -> Rule:
    return _is(list(names), names), str(list(names))


def _nothing(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

_FOLDABLE: Rule = (_is(*NORMS), f"one of {', '.join(NORMS)}, which can be folded")
_NO_NORM: Rule = (_is(""), "'': no norms")
_ANY_FOLDABLE: Rule = (_is("", *NORMS), f"'' or one of {', '.join(NORMS)}, which can be folded")

_OF_ALL_FIELDS = {
    "MODEL.RESNETS.STRIDE_IN_1X1": "stride_in",
    "MODEL.ANCHOR_GENERATOR.SIZES": "anchor_sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "anchor_ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "anchor_offset",
    "TEST.DETECTIONS_PER_IMAGE": "max_detections",
    "MODEL.PIXEL_MEAN": "pixel_mean",
    "MODEL.PIXEL_STD": "pixel_std",
}
_OF_ROIS_FIELDS = {
    **_OF_ALL_FIELDS,
    "MODEL.RPN.BBOX_REG_WEIGHTS": "rpn_box_weights",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "rpn_pre_nms",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "proposals",
    "MODEL.RPN.NMS_THRESH": "rpn_nms_threshold",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "roi_size",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "roi_sampling_ratio",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "box_weights",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "nms_threshold",
}

_OF_ALL: dict[str, Rule] = {
    "VERSION": (_is(2), "2"),
    "MODEL.RESNETS.NUM_GROUPS": (_is(1), "1: a ResNet, not a ResNeXt"),
    "MODEL.RESNETS.NORM": _FOLDABLE,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (
        lambda value: isinstance(value, list | tuple) and not any(value),
        "False in every stage: there are no deformable convolutions",
    ),
    "MODEL.ANCHOR_GENERATOR.NAME": (_is("DefaultAnchorGenerator"), "DefaultAnchorGenerator"),
}
_OF_ROIS: dict[str, Rule] = {
    **_OF_ALL,
    "MODEL.META_ARCHITECTURE": (_is("GeneralizedRCNN"), "GeneralizedRCNN"),
    "MODEL.LOAD_PROPOSALS": (_is(False), "False: proposals come from the model's own RPN"),
    "MODEL.KEYPOINT_ON": (_is(False), "False: there is no keypoint head"),
    "MODEL.PROPOSAL_GENERATOR.NAME": (_is("RPN"), "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (_nothing, "0: proposals of every size are kept"),
    "MODEL.RPN.HEAD_NAME": (_is("StandardRPNHead"), "StandardRPNHead"),
    "MODEL.RPN.CONV_DIMS": (
        lambda value: isinstance(value, list | tuple) and len(value) == 1,
        "one number: the RPN has one convolution",
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (_is("ROIAlignV2"), "ROIAlignV2"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (_is(False), "False: scores are a softmax"),
}
_OF_PYRAMIDS: dict[str, Rule] = {
    "MODEL.RESNETS.RES5_DILATION": (_is(1), "1: res5 is not dilated"),
    "MODEL.FPN.FUSE_TYPE": (_is("sum"), "sum"),
}

_MASKS: dict[str, Rule] = {
    "MODEL.ROI_MASK_HEAD.NAME": (_is("MaskRCNNConvUpsampleHead"), "MaskRCNNConvUpsampleHead"),
    "MODEL.ROI_MASK_HEAD.NORM": _ANY_FOLDABLE,
}

_C4 = Keys(
    _OF_ROIS_FIELDS,
    {
        **_OF_ROIS,
        "MODEL.BACKBONE.NAME": (_is("build_resnet_backbone"), "build_resnet_backbone"),
        "MODEL.RESNETS.OUT_FEATURES": (_holds("res4"), "['res4'], a C4 backbone"),
        "MODEL.RPN.IN_FEATURES": _lists("res4"),
        "MODEL.ROI_HEADS.NAME": (_is("Res5ROIHeads"), "Res5ROIHeads, the head of C4 models"),
        "MODEL.ROI_HEADS.IN_FEATURES": _lists("res4"),
    },
    masks=_MASKS,  # RoIs of masks are those of boxes: ROI_MASK_HEAD.POOLER_* have no effect
)

_STAGES = ("res2", "res3", "res4", "res5")
_FPN = Keys(
    {
        **_OF_ROIS_FIELDS,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "mask_roi_size",
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "mask_roi_sampling_ratio",
    },
    {
        **_OF_ROIS,
        **_OF_PYRAMIDS,
        "MODEL.BACKBONE.NAME": (_is("build_resnet_fpn_backbone"), "build_resnet_fpn_backbone"),
        "MODEL.RESNETS.OUT_FEATURES": (_holds(*_STAGES), str(list(_STAGES))),
        "MODEL.FPN.IN_FEATURES": _lists(*_STAGES),
        "MODEL.FPN.NORM": _ANY_FOLDABLE,
        "MODEL.RPN.IN_FEATURES": _lists("p2", "p3", "p4", "p5", "p6"),
        "MODEL.ROI_HEADS.NAME": (_is("StandardROIHeads"), "StandardROIHeads"),
        "MODEL.ROI_HEADS.IN_FEATURES": _lists("p2", "p3", "p4", "p5"),
        "MODEL.ROI_BOX_HEAD.NAME": (_is("FastRCNNConvFCHead"), "FastRCNNConvFCHead"),
        "MODEL.ROI_BOX_HEAD.NORM": _ANY_FOLDABLE,
    },
    masks={**_MASKS, "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (_is("ROIAlignV2"), "ROIAlignV2")},
    defaults={
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    },
)

_RETINANET = Keys(
    {
        **_OF_ALL_FIELDS,
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": "box_weights",
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "pre_nms",
        "MODEL.RETINANET.SCORE_THRESH_TEST": "score_threshold",
        "MODEL.RETINANET.NMS_THRESH_TEST": "nms_threshold",
    },
    {
        **_OF_ALL,
        **_OF_PYRAMIDS,
        "MODEL.META_ARCHITECTURE": (_is("RetinaNet"), "RetinaNet"),
        "MODEL.BACKBONE.NAME": (
            _is("build_retinanet_resnet_fpn_backbone"),
            "build_retinanet_resnet_fpn_backbone",
        ),
        "MODEL.RESNETS.OUT_FEATURES": (_holds(*_STAGES[1:]), str(list(_STAGES[1:]))),
        "MODEL.FPN.IN_FEATURES": _lists(*_STAGES[1:]),
        "MODEL.FPN.NORM": _NO_NORM,
        "MODEL.RETINANET.IN_FEATURES": _lists("p3", "p4", "p5", "p6", "p7"),
        "MODEL.RETINANET.NORM": _NO_NORM,
    },
    classes="MODEL.RETINANET.NUM_CLASSES",
    defaults={"MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]]},
)

FAMILIES: dict[FamilyName, Keys] = {"c4": _C4, "fpn": _FPN, "retinanet": _RETINANET}

NO_EFFECT = re.compile(
    # training, data, logs
    r"SOLVER\..*|DATALOADER\..*|DATASETS\..*|GLOBAL\..*|OUTPUT_DIR|SEED|VIS_PERIOD"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|MODEL\.DEVICE|MODEL\.WEIGHTS|MODEL\.BACKBONE\.FREEZE_AT"
    r"|INPUT\.((MIN|MAX)_SIZE_TRAIN(_SAMPLING)?|CROP\..*|RANDOM_FLIP|MASK_FORMAT)"
    r"|TEST\.(EXPECTED_RESULTS|EVAL_PERIOD|KEYPOINT_OKS_SIGMAS|(PRECISE_BN|AUG)\..*)"
    r"|MODEL\.RPN\.(BATCH_SIZE_PER_IMAGE|POSITIVE_FRACTION|BOUNDARY_THRESH|BBOX_REG_LOSS_\w+"
    r"|SMOOTH_L1_BETA|LOSS_WEIGHT|IOU_\w+|(PRE|POST)_NMS_TOPK_TRAIN)"
    r"|MODEL\.ROI_HEADS\.(BATCH_SIZE_PER_IMAGE|POSITIVE_FRACTION|PROPOSAL_APPEND_GT|IOU_\w+)"
    r"|MODEL\.ROI_BOX_HEAD\.(BBOX_REG_LOSS_\w+|SMOOTH_L1_BETA|TRAIN_ON_PRED_BOXES|\w*FED_LOSS\w*)"
    # of other heads, or read from the shapes of the tensors
    r"|MODEL\.ROI_BOX_HEAD\.(NAME|NUM_FC|FC_DIM|NUM_CONV|CONV_DIM|NORM)|MODEL\.MASK_ON"
    r"|MODEL\.(FPN|RETINANET|SEM_SEG_HEAD|PANOPTIC_FPN|ROI_BOX_CASCADE_HEAD|ROI_MASK_HEAD"
    r"|ROI_KEYPOINT_HEAD)\..*|MODEL\.ANCHOR_GENERATOR\.ANGLES"
    # of a C4 model, res5 is the head's, which is never dilated
    r"|MODEL\.RESNETS\.(WIDTH_PER_GROUP|RES2_OUT_CHANNELS|STEM_OUT_CHANNELS|RES5_DILATION"
    r"|DEFORM_MODULATED|DEFORM_NUM_GROUPS)"
)
"""Settings that change no detections, of any family that does not name them above."""

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""MODEL.RESNETS.DEPTH -> blocks of each stage."""

CHECKED = {
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RESNETS.DEPTH",
    "INPUT.FORMAT",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
}
"""Settings that are read beside those of `Keys`."""


def known(name: str) -> bool:
    """Whether a setting is one of Detectron2's own."""
    tables: list[Mapping[str, Any]] = []
    for keys in FAMILIES.values():
        tables += [keys.fields, keys.only, keys.masks]
    listed = name in CHECKED or any(name in table for table in tables)
    return listed or NO_EFFECT.fullmatch(name) is not None
