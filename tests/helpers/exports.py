"""What the exporters' tests share: small networks, an image, and the comparison of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.model import c4
from sparsedet.model.detector_config import DetectorConfig, rows_of
from sparsedet.model.faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from sparsedet.model.fpn import rounded_cell_anchors
from sparsedet.model.graph import IMAGE, Graph
from sparsedet.model.mask_head import MaskHead
from sparsedet.model.mobilenet import InvertedResidual, MobileNetV3
from sparsedet.model.one_stage import OneStage, build_one_stage
from sparsedet.model.presets import preset
from sparsedet.model.resnet import ResNet
from sparsedet.testing import calibrated_random_tensors, colour_gradients

SMALL: dict[str, Any] = {
    "blocks": (1, 1, 2, 1),
    "stem_channels": 16,
    "bottleneck_channels": (8, 8, 16, 24),
    "stage_channels": (32, 32, 48, 64),
    "rpn_channels": 32,
    "proposals": 50,
    "anchor_sizes": (16.0, 32.0, 64.0, 96.0, 128.0),
}
"""Fields of a small network."""

edges_image = colour_gradients
"""The image that the exported networks run on."""


def assert_same_rows(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Equal rows [N, 7] up to 1e-4, where equal scores may come in another order."""
    assert len(ours) >= 20 and len(ours) == len(theirs)
    for row in ours:
        same = theirs[(theirs[:, 1] == row[1]) & (abs(theirs[:, 2] - row[2]) < 1e-4)]
        assert len(same) and abs(same[:, 3:] - row[3:]).max(axis=1).min() < 1e-4


# ------------------------------------------------------------------- families of graphs

CLASSES = 7
_NAMES = tuple(f"class {k}" for k in range(CLASSES))
_FAMILY: dict[str, Any] = {"mean": (104.0, 117.0, 124.0), "std": (57.0, 57.0, 58.0)}
_RESNET = ResNet((1, 1, 1, 1), 16, (8, 8, 8, 16), (32, 32, 32, 64))
_SIDES = (16.0, 32.0, 64.0, 96.0, 128.0)
_FPN: dict[str, Any] = {
    **_FAMILY,
    "backbone": _RESNET,
    "fpn_channels": 16,
    "head_channels": 32,
    "num_classes": CLASSES,
    "cell_anchors": rounded_cell_anchors([[side] for side in _SIDES]),
    "pre_nms": 150,
    "proposals": 120,
    "rpn_min_size": 4.0,
    "min_size": 4.0,
}
_MOBILE = MobileNetV3(
    8,
    (
        InvertedResidual(3, 8, 8, False, "relu"),
        InvertedResidual(5, 24, 16, True, "hardswish", 2),
        InvertedResidual(3, 32, 16, True, "relu", 2),
        InvertedResidual(3, 32, 16, False, "hardswish"),
    ),
    24,
)
_ONE_STAGE: dict[str, Any] = {
    **_FAMILY,
    "backbone": _RESNET,
    "channels": 16,
    "tower": 1,
    "num_classes": CLASSES,
    "pre_nms": 100,
    "max_detections": 100,
}
FAMILIES: dict[str, Any] = {
    "faster-rcnn": FasterRCNNFPN(**_FPN),
    "faster-rcnn-aligned": FasterRCNNFPN(
        **_FPN
        | {
            "roi_sampling": "aligned",
            "roi_sampling_ratio": 0,
            "strides": (4, 8, 16, 32, 64),
            "background": "last",
            "background_deltas": False,
        }
    ),
    "faster-rcnn-v2": FasterRCNNFPN(
        **_FPN, fpn_norm=True, rpn_convs=2, head_convs=2, head_layers=1
    ),
    "faster-rcnn-mobilenet": FasterRCNNFPN(
        **_FPN
        | {
            "backbone": _MOBILE,
            "cell_anchors": rounded_cell_anchors([_SIDES] * 3),
            "strides": (0, 0, 0),
            "first_level": 3,
            "roi_levels": 1,
            "rpn_score_threshold": 0.4,
        }
    ),
    "mask-rcnn": FasterRCNNFPN(**_FPN, mask_convs=1),
    "mask-rcnn-c4": MaskHead(channels=16, pasting="continuous"),
    "retinanet": OneStage(
        **_ONE_STAGE, cell_anchors=rounded_cell_anchors([[s, 1.3 * s] for s in _SIDES])
    ),
    "fcos": OneStage(**_ONE_STAGE, tower_groups=4, sizes=(8.0, 16.0, 32.0, 64.0, 128.0)),
}
"""Small families with all kinds of operations; a mask head alone stands on a C4 backbone."""


@dataclass
class Network:
    """A small network with weights that make it detect much on its image."""

    config: DetectorConfig
    tensors: dict[str, NDArray[np.float32]]
    image: NDArray[np.uint8]

    @property
    def blob(self) -> NDArray[np.float32]:
        """The image as NCHW."""
        return np.ascontiguousarray(self.image.transpose(2, 0, 1)[None], dtype=np.float32)

    def outputs(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Rows [N, 7] without padding and their masks, by the engine."""
        engine = Engine(self.config, self.tensors, threads=1)
        if self.config.masks:
            return engine.run_with_masks(self.image)
        return engine.run(self.image), None

    def outputs_of_torch(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """As `outputs`, by torch."""
        import torch

        from sparsedet.torch_model import GraphModule

        module = GraphModule("small", self.config.graph).eval()
        module.load_tensors(self.tensors)
        names = [rows_of(module.graph).name, module.graph.output]
        with torch.no_grad():
            rows, last = module.run({IMAGE: torch.from_numpy(self.blob)}, names)
        found = rows[0][rows[0, :, 0] >= 0].numpy()
        return found, last.numpy() if self.config.masks else None


def family_graph(family: str, size: tuple[int, int]) -> Graph:
    """The graph of a family of `FAMILIES` for a network input of (height, width) pixels."""
    described = FAMILIES[family]
    if isinstance(described, MaskHead):
        names: dict[str, Any] = {
            "class_names": _NAMES,
            "category_ids": tuple(range(1, CLASSES + 1)),
        }
        config = replace(preset("r101-c4-detectron2"), **SMALL, **names)
        return c4.build_graph(config, size, described)
    build: Any = build_one_stage if isinstance(described, OneStage) else build_faster_rcnn_fpn
    graph: Graph = build(described, size)
    return graph


def small_network(family: str, size: tuple[int, int] = (160, 224)) -> Network:
    """A network of `FAMILIES`."""
    return network_of(family_graph(family, size), family)


def network_of(graph: Graph, name: str) -> Network:
    """A graph of `CLASSES` with its weights."""
    config = DetectorConfig(
        name=name,
        graph=graph,
        class_names=_NAMES,
        category_ids=tuple(range(1, CLASSES + 1)),
    )
    image = edges_image(*graph.image.size)
    tensors = calibrated_random_tensors(config, 0.3, image)
    return Network(config, tensors, image)
