"""Names that tensors have in torchvision's detectors, of today and of their first releases."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.graph import Graph
from .tensor_source import Source, take_transposed

Arrays = dict[str, NDArray[np.float32]]

_NORM = ("weight", "bias", "running_mean", "running_var")

_FIRST_RELEASES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
"""Name in torchvision 0.12 and earlier, and in most published weights, and the name of today."""

_FIXED = {
    "rpn.objectness": ("rpn.head.cls_logits", ""),
    "rpn.deltas": ("rpn.head.bbox_pred", ""),
    "box.logits": ("roi_heads.box_predictor.cls_score", ""),
    "mask.upsample": ("roi_heads.mask_predictor.conv5_mask", ""),
    "mask.logits": ("roi_heads.mask_predictor.mask_fcn_logits", ""),
    "class.logits": ("head.classification_head.cls_logits", ""),
    "box.centerness": ("head.regression_head.bbox_ctrness", ""),
}
_TOWERS = {"class": "head.classification_head.conv", "box": "head.regression_head.conv"}


def rename_first_releases(source: Source) -> None:
    """Give the tensors the names that torchvision's modules have today."""
    fcos = "head.regression_head.bbox_ctrness.weight" in source
    names = {}
    for name in source.left:
        new = name
        for pattern, replacement in _FIRST_RELEASES:
            new = re.sub(f"{pattern}$", replacement, new)
        if found := re.fullmatch(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)", name):
            new = f"{found[1]}.{int(found[2]) - 1}.0.{found[3]}"
        tower = re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", name)
        if tower and not fcos:  # convolutions and ReLUs took turns
            new = f"{tower[1]}.{int(tower[2]) // 2}.0.{tower[3]}"
        if new != name:
            names[name] = new
    source.rename(names)


def take_tensors(source: Source, graph: Graph) -> Arrays:
    """The tensors of a graph, in training form.

    Raises:
        InputError: a tensor is missing or has the wrong shape or values.
    """
    names = _Names(source)
    tensors: Arrays = {}
    for layer in graph.layers:
        convolution, norm = names.of_layer(layer.name)
        channels = (layer.out_channels,)
        if layer.name == "mask.upsample":
            weight, bias = take_transposed(source, convolution, layer.weight_shape)
            tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"] = weight, bias
            continue
        tensors[f"{layer.name}.weight"] = source.take(f"{convolution}.weight", layer.weight_shape)
        if layer.norm:
            for leaf in _NORM:
                tensors[f"{layer.name}.norm.{leaf}"] = source.take(f"{norm}.{leaf}", channels)
        elif names.has_bias(convolution, graph):
            tensors[f"{layer.name}.bias"] = source.take(f"{convolution}.bias", channels)
        else:
            tensors[f"{layer.name}.bias"] = np.zeros(channels, np.float32)
    for name, count in graph.norms.items():
        for leaf in ("weight", "bias"):
            tensors[f"{name}.{leaf}"] = source.take(f"{names.of_norm(name)}.{leaf}", (count,))
    stem = tensors["stem.conv.weight"]
    tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])  # RGB -> BGR
    return tensors


class _Names:
    """torchvision's names of layers; some depend on what else the model has."""

    def __init__(self, source: Source) -> None:
        left = source.left
        self.head_convs = len(
            {m[1] for n in left if (m := re.match(r"roi_heads\.box_head\.(\d+)\.0\.", n))}
        )
        self.one_stage = "head.regression_head.bbox_reg.weight" in left
        self.fcos = "head.regression_head.bbox_ctrness.weight" in left
        self.mobile = "backbone.body.0.0.weight" in left
        # Position of the depthwise convolution: the first block need not have one before it.
        self.expanded = {
            int(m[1])
            for n in left
            if (m := re.match(r"backbone\.body\.(\d+)\.block\.1\.0\.", n))
            and left[f"backbone.body.{m[1]}.block.0.0.weight"].shape[1:] != (1, 3, 3)
        }
        self.excited = {
            int(m[1]) for n in left if (m := re.match(r"backbone\.body\.(\d+)\.block\.\d\.fc1", n))
        }

    def has_bias(self, convolution: str, graph: Graph) -> bool:
        """RetinaNet's towers have no bias before a group norm."""
        tower = re.match(r"head\.\w+_head\.conv\.", convolution)
        return self.fcos or not (tower and graph.norms)

    def of_norm(self, name: str) -> str:
        """The name of a group norm."""
        tower, number = name.split(".norm")
        if self.fcos:  # convolution, norm, ReLU
            return f"{_TOWERS[tower]}.{3 * int(number) + 1}"
        return f"{_TOWERS[tower]}.{number}.1"

    def of_layer(self, name: str) -> tuple[str, str]:
        """The names of a layer's convolution and its batch norm."""
        if name in _FIXED:
            return _FIXED[name]
        if name == "box.deltas":
            head = "head.regression_head.bbox_reg"
            return (head if self.one_stage else "roi_heads.box_predictor.bbox_pred"), ""
        if name in ("stem.conv", "last.conv") and self.mobile:
            prefix = f"backbone.body.{0 if name == 'stem.conv' else 16}"
            return f"{prefix}.0", f"{prefix}.1"
        if name == "stem.conv":
            return "backbone.body.conv1", "backbone.body.bn1"
        if found := re.fullmatch(r"res(\d)\.(\d+)\.(conv(\d)|shortcut)", name):
            prefix = f"backbone.body.layer{int(found[1]) - 1}.{found[2]}"
            if found[3] == "shortcut":
                return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
            return f"{prefix}.{found[3]}", f"{prefix}.bn{found[4]}"
        if found := re.fullmatch(r"block(\d+)\.(\w+)", name):
            return self._of_block(int(found[1]) + 1, found[2])
        if found := re.fullmatch(r"fpn\.(lateral|output)(\d)", name):
            return self._of_pyramid(found[1], int(found[2]))
        return self._of_head(name)

    def _of_block(self, number: int, part: str) -> tuple[str, str]:
        prefix = f"backbone.body.{number}.block"
        before = number in self.expanded
        if part in ("squeeze", "excite"):
            leaf = "fc1" if part == "squeeze" else "fc2"
            return f"{prefix}.{before + 1}.{leaf}", ""
        position = {
            "expand": 0,
            "depthwise": int(before),
            "project": before + 1 + (number in self.excited),
        }
        return f"{prefix}.{position[part]}.0", f"{prefix}.{position[part]}.1"

    def _of_pyramid(self, kind: str, level: int) -> tuple[str, str]:
        if self.one_stage and level > 5:
            return f"backbone.fpn.extra_blocks.p{level}", ""
        first = 5 if self.mobile else 3 if self.one_stage else 2
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[kind]
        prefix = f"backbone.fpn.{blocks}.{level - first}"
        return f"{prefix}.0", f"{prefix}.1"

    def _of_head(self, name: str) -> tuple[str, str]:
        if found := re.fullmatch(r"(class|box)\.conv(\d)", name):
            number = int(found[2])
            if self.fcos:
                return f"{_TOWERS[found[1]]}.{3 * number}", ""
            if self.one_stage:
                return f"{_TOWERS[found[1]]}.{number}.0", ""
            return f"roi_heads.box_head.{number}.0", f"roi_heads.box_head.{number}.1"
        if found := re.fullmatch(r"rpn\.conv(\d*)", name):
            return f"rpn.head.conv.{found[1] or 0}.0", ""
        if found := re.fullmatch(r"mask\.conv(\d)", name):
            return f"roi_heads.mask_head.{found[1]}.0", f"roi_heads.mask_head.{found[1]}.1"
        if found := re.fullmatch(r"box\.fc(\d)", name):
            if self.head_convs:  # then comes Flatten
                return f"roi_heads.box_head.{self.head_convs + 1}", ""
            return f"roi_heads.box_head.fc{int(found[1]) + 6}", ""
        raise InputError(f"layer {name!r} has no name in torchvision")
