"""An engine in parts: arrays go in and come out of the middle of its graph. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.model.graph import IMAGE, DetectionOutput, Proposals, RoiAlign

F32 = NDArray[np.float32]


class EngineParts:
    """What the parts of an engine's detector make of arrays that are given to them.

    Maps are (C, H, W), RoIs (R, C, h, w), boxes (R, 4), logits and deltas of the RPN (N,) and
    (N, 4), of the RoI head (R, K + 1) and (R, K (+ 1), 4), rows (N, 7).

    Args:
        engine: its graph may be hoisted or not.
        size: rows and columns of the network input; default: the first of `features`.
    """

    def __init__(self, engine: Engine, size: tuple[int, int] | None = None) -> None:
        self.native, self.graph, self.config = engine.native, engine.graph, engine.config
        proposals, self.attributes = self.graph.only(Proposals)
        self.boxes = proposals.name
        self.objectness, self.offsets = proposals.inputs[:2]
        self.aligned = [operation.name for operation, _ in self.graph.of_kind(RoiAlign)]
        source = self.graph.by_name[self.aligned[0]].inputs[0]
        self.hoisted = self.layer_of(self.aligned[0]) != ""
        self.feature_map = self.graph.by_name[source].inputs[0] if self.hoisted else source
        detections = self.graph.only(DetectionOutput)[0]
        self.logits, self.deltas = detections.inputs[:2]
        self.rows = detections.name
        if size is not None:
            self.plan(size)

    def plan(self, size: tuple[int, int]) -> None:
        self.native.plan(*size)
        self.size = size

    def layer_of(self, aligned: str) -> str:
        """The layer that a RoIAlign ends, if it is hoisted, or ""."""
        return dict((o.name, a.bias_of) for o, a in self.graph.of_kind(RoiAlign))[aligned]

    def between(self, given: Mapping[str, NDArray[Any]], *wanted: str) -> list[F32]:
        arrays = {name: np.ascontiguousarray(v, dtype=np.float32) for name, v in given.items()}
        return [np.asarray(value) for value in self.native.run_between(arrays, wanted)]

    def features(self, network_input: NDArray[Any]) -> F32:
        """The feature map that RPN and RoI head read; of any size of the network input."""
        self.plan((network_input.shape[0], network_input.shape[1]))
        return self.between({IMAGE: network_input}, self.feature_map)[0]

    def rpn(self, features: NDArray[Any]) -> tuple[F32, F32]:
        """Objectness logits and deltas."""
        maps = self.between({self.feature_map: features}, self.objectness, self.offsets)
        logits, deltas = (m.transpose(1, 2, 0) for m in maps)
        return logits.reshape(-1), deltas.reshape(-1, 4)

    def proposals(self, logits: NDArray[Any], deltas: NDArray[Any]) -> F32:
        height, width = self.graph.resized(*self.size).shapes[self.objectness].size
        given = {self.objectness: logits, self.offsets: deltas}
        maps = {
            name: np.asarray(value).reshape(height, width, -1).transpose(2, 0, 1)
            for name, value in given.items()
        }
        return self.between(maps, self.boxes)[0]

    def roi_features(self, features: NDArray[Any], boxes: NDArray[Any]) -> F32:
        """RoIAlign, the bins that are read; of an engine without hoisting."""
        assert not self.hoisted
        return self.between({self.feature_map: features, self.boxes: boxes}, *self.aligned)[0]

    def roi_head(self, features: NDArray[Any], boxes: NDArray[Any]) -> tuple[F32, F32]:
        """Class logits and deltas."""
        given = {self.feature_map: features, self.boxes: boxes}
        logits, deltas = self.between(given, self.logits, self.deltas)
        return logits[:, :, 0, 0], deltas.reshape(len(deltas), -1, 4)

    def detect(self, logits: NDArray[Any], deltas: NDArray[Any], boxes: NDArray[Any]) -> F32:
        count = len(boxes)
        given = {
            self.logits: np.asarray(logits).reshape(count, -1, 1, 1),
            self.deltas: np.asarray(deltas).reshape(count, -1, 1, 1),
            self.boxes: boxes,
        }
        return self.between(given, self.rows)[0]
