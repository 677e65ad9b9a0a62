"""Kinds of Detectron2's models that do not run here, recognised by their tensors and named."""

from __future__ import annotations

from ..tensor_source import Source
from .keys import FamilyName

_NEXT = (
    "only Faster and Mask R-CNN (C4 or FPN) and RetinaNet run here, as "
    "COCO-Detection/faster_rcnn_R_50_C4_3x of the model zoo"
)
_FOLDABLE = "FrozenBN, BN or SyncBN"


def has(source: Source, *prefixes: str) -> bool:
    """Whether a tensor's name begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in source.left)


def family_of(source: Source) -> FamilyName:
    """The family of a model, by its tensors."""
    if has(source, "head.cls_subnet.", "head.cls_score."):
        return "retinanet"
    return "fpn" if has(source, "backbone.bottom_up.") else "c4"


def check_model(source: Source, family: FamilyName) -> None:
    """Raise InputError, naming the kind of model and what to do, unless it runs here."""
    if has(source, "roi_heads.box_predictor.0."):
        raise source.error(f"is a cascade; {_NEXT}")
    if has(source, "sem_seg_head."):
        raise source.error(f"has a head for semantic segmentation; {_NEXT}")
    if has(source, "roi_heads.keypoint_head."):
        raise source.error(f"has a keypoint head; {_NEXT}")
    if has(source, "roi_heads.mask_head.point_head.", "roi_heads.mask_head.coarse_head."):
        raise source.error(f"is a PointRend; {_NEXT}")
    if has(source, "proposal_generator.rpn_head.conv.conv"):
        raise source.error(
            "has several convolutions in its RPN, expected one: train it with MODEL.RPN.CONV_DIMS "
            "[-1]"
        )
    if any(".conv2_offset." in name for name in source.left):
        raise source.error(
            "has deformable convolutions: train it with MODEL.RESNETS.DEFORM_ON_PER_STAGE False"
        )
    match family:
        case "c4":
            _check_c4(source)
        case "fpn":
            _check_fpn(source)
        case "retinanet":
            _check_retinanet(source)
    check_blocks(source, "backbone" if family == "c4" else "backbone.bottom_up")
    if family != "retinanet":
        _check_boxes(source)


def _check_c4(source: Source) -> None:
    if has(source, "backbone.fpn_"):
        raise source.error(
            f"has layers of a feature pyramid (FPN), but no 'backbone.bottom_up.'; {_NEXT}"
        )
    if has(source, "backbone.res5."):
        raise source.error(f"has res5 in its backbone (a dilated C5 model); {_NEXT}")
    if not has(source, "roi_heads."):
        raise source.error(
            "has no box head ('roi_heads.'), expected a trained Faster R-CNN; a backbone or an "
            "RPN alone detects nothing"
        )
    if has(source, "roi_heads.box_head.") and not has(source, "roi_heads.res5."):
        raise source.error(
            "has StandardROIHeads (roi_heads.box_head) on a C4 backbone, expected Res5ROIHeads: "
            "train it with MODEL.ROI_HEADS.NAME Res5ROIHeads"
        )


def check_norm(source: Source, part: str, setting: str) -> None:
    """Raise InputError for a norm that cannot be folded.

    Args:
        part: layer of the norm.
        setting: section of MODEL that states it.
    """
    norm = f"{part}.norm"
    if f"{norm}.weight" in source and f"{norm}.running_mean" not in source:
        raise source.error(
            f"has norms without running statistics ({norm}: GroupNorm or LayerNorm), which "
            f"cannot be folded into weights: train it with MODEL.{setting}.NORM '' or SyncBN"
        )


def _check_fpn(source: Source) -> None:
    if not has(source, "roi_heads.box_predictor."):
        raise source.error(
            "has no box head ('roi_heads.'), expected a trained Faster R-CNN; a backbone or an "
            "RPN alone detects nothing"
        )
    for part, setting in (
        ("backbone.fpn_lateral5", "FPN"),
        ("roi_heads.box_head.conv1", "ROI_BOX_HEAD"),
        ("roi_heads.mask_head.mask_fcn1", "ROI_MASK_HEAD"),
    ):
        check_norm(source, part, setting)
    conv = "roi_heads.box_head.conv1"
    if f"{conv}.weight" in source and f"{conv}.norm.weight" not in source:
        raise source.error(
            "has convolutions without norms in its box head: train it with "
            "MODEL.ROI_BOX_HEAD.NORM SyncBN, or NUM_CONV 0"
        )


def _check_retinanet(source: Source) -> None:
    if has(source, "backbone.res2."):
        raise source.error(f"is a RetinaNet without a feature pyramid; {_NEXT}")
    if has(source, "backbone.fpn_lateral5.norm."):
        raise source.error("has norms in its pyramid: train it with MODEL.FPN.NORM ''")
    if has(source, "head.cls_subnet.1.", "head.bbox_subnet.1."):
        raise source.error("has norms in its head: train it with MODEL.RETINANET.NORM ''")


def check_blocks(source: Source, backbone: str) -> None:
    """Raise InputError for residual blocks that these networks do not have.

    Args:
        backbone: what the names of the backbone's layers begin with.
    """
    first = f"{backbone}.res2.0"
    if f"{first}.conv1.weight" not in source:
        return  # named later, with the tensor that is missing
    if f"{first}.conv3.weight" not in source and f"{first}.conv2.weight" in source:
        raise source.error(
            "has blocks of two convolutions (ResNet 18 or 34), expected MODEL.RESNETS.DEPTH 50, "
            "101 or 152"
        )
    if f"{first}.conv1.norm.weight" in source and f"{first}.conv1.norm.running_mean" not in source:
        raise source.error(
            "has norms without running statistics (GroupNorm or LayerNorm), which cannot be folded "
            f"into weights: train it with MODEL.RESNETS.NORM {_FOLDABLE}"
        )
    if f"{first}.conv1.norm.weight" not in source and f"{first}.conv2.weight" in source:
        raise source.error(
            f"has no norms in its backbone: train it with MODEL.RESNETS.NORM {_FOLDABLE}"
        )
    if f"{first}.conv2.weight" in source:
        width, inputs = source.length(f"{first}.conv2.weight", 0), 1
        if len(source.shape(f"{first}.conv2.weight")) == 4:
            inputs = source.length(f"{first}.conv2.weight", 1)
        narrow = source.length(f"{first}.conv1.weight", 0)
        if narrow == width > inputs > 0 and width % inputs == 0:
            raise source.error(
                f"is a ResNeXt (convolutions in {width // inputs} groups), expected a ResNet: "
                "train it with MODEL.RESNETS.NUM_GROUPS 1"
            )


def _check_boxes(source: Source) -> None:
    """Raise InputError if boxes have five numbers: the fifth is an angle."""
    rpn, predictor = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    objectness, deltas = f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas"
    logits, box = f"{predictor}.cls_score", f"{predictor}.bbox_pred"
    if not all(f"{name}.weight" in source for name in (objectness, deltas, logits, box)):
        return
    anchors, classes = (source.length(f"{n}.weight", 0) for n in (objectness, logits))
    rotated_rpn = source.length(f"{deltas}.weight", 0) == 5 * anchors
    numbers = source.length(f"{box}.weight", 0)
    if rotated_rpn or (numbers in (5, 5 * (classes - 1)) and numbers != 4 * (classes - 1)):
        raise source.error(
            "has rotated boxes (five numbers a box), expected four: train it with "
            "MODEL.PROPOSAL_GENERATOR.NAME RPN and MODEL.ROI_HEADS.NAME Res5ROIHeads or "
            "StandardROIHeads"
        )
