"""Proposals and RoIAlign in an exported graph.

Glossary: R RoIs, always as many as `count` allows: those that are missing are empty boxes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..model import boxes as np_boxes
from ..model.graph import Operation, Proposals, RoiAlign, typed
from .boxes import BoxBuilder
from .maps import MapBuilder


class RoiBuilder(MapBuilder, BoxBuilder):
    """Proposals, and the maps of RoIs.

    Attributes:
        sampled: the boxes that RoIAlign samples, by the name of the boxes, size and scale of the
            map.
    """

    sampled: dict[tuple[Any, ...], Any]

    def proposals(self, operation: Operation, *inputs: Any) -> tuple[Any, Any]:
        """Boxes [R, 4], padded with zeros; whether each is a proposal [R, 1] (1.0 or 0.0)."""
        attributes = typed(operation, Proposals)
        levels = len(attributes.strides)
        counts = [
            min(attributes.pre_nms, shape.channels * shape.height * shape.width)
            for shape in (self.graph.shapes[name] for name in operation.inputs[:levels])
        ]
        found = [
            self._level(operation, level, count, inputs[level], inputs[levels + level])
            for level, count in enumerate(counts)
        ]
        # The levels are a batch of images for non-maximum suppression; shorter ones are filled.
        longest = max(counts)
        if levels > 1:
            found = [
                self._filled(boxes, scores, longest - count)
                for (boxes, scores), count in zip(found, counts, strict=True)
            ]
        boxes, scores = (
            values[0] if levels == 1 else self.concat(*values, axis=0)
            for values in zip(*found, strict=True)
        )
        covered = boxes
        if attributes.inclusive:
            beyond = self.constant(np.array([0, 0, 1, 1], dtype=np.float32))
            covered = self.binary("Add", boxes, beyond)
        kept = self.nms(
            self.reshape(covered, levels, longest, 4),
            self.reshape(scores, levels, 1, longest),
            attributes.count,
            attributes.nms_threshold,
            -1e30,
        )
        index = self.part(kept, 2, 3, 1)
        if levels > 1:
            start = self.binary("Mul", self.part(kept, 0, 1, 1), self.integer(longest))
            index = self.binary("Add", start, index)
        index = self.reshape(index, -1)  # [M]
        return self._chosen(boxes, scores, index, levels * longest, attributes.count, levels > 1)

    def _level(
        self, operation: Operation, level: int, count: int, objectness: Any, deltas: Any
    ) -> tuple[Any, Any]:
        """The best boxes [count, 4] of a level and their logits [count], -inf where dropped."""
        attributes = typed(operation, Proposals)
        anchors = self.anchors(attributes, level, self.graph.shapes[operation.inputs[level]].size)
        logits = self.reshape(self.transpose(objectness, 0, 2, 3, 1), len(anchors))
        deltas = self.reshape(self.transpose(deltas, 0, 2, 3, 1), len(anchors), 4)
        scores, order = self.top_k(logits, count, ordered=False)  # NMS sorts anyway
        best = self.gather(self.constant(anchors.astype(np.float32)), order)
        boxes = self.decode(
            self.gather(deltas, order),
            best,
            attributes.box_weights,
            attributes.delta_clamp,
            float(attributes.inclusive),
        )
        if attributes.score_threshold:
            least = self.scalar(attributes.score_threshold)
            good = self.binary("GreaterOrEqual", self.unary("Sigmoid", scores), least)
            scores = self.select(good, scores, self.scalar(-np.inf))
        for least_side in ([0.0] if attributes.remove_empty else []) + (
            [attributes.min_size] if attributes.min_size else []
        ):
            scores = self.without_small(boxes, scores, (count,), least_side, -np.inf)
        return boxes, scores

    def _filled(self, boxes: Any, scores: Any, missing: int) -> tuple[Any, Any]:
        """Boxes and logits with so many dropped ones more."""
        if not missing:
            return boxes, scores
        empty = self.constant(np.zeros((missing, 4), dtype=np.float32))
        dropped = self.constant(np.full(missing, -np.inf, dtype=np.float32))
        return self.concat(boxes, empty, axis=0), self.concat(scores, dropped, axis=0)

    def _chosen(
        self, boxes: Any, scores: Any, index: Any, total: int, most: int, sort: bool
    ) -> tuple[Any, Any]:
        """The first, or the best, R of some boxes.

        Args:
            boxes, scores: [total, 4] and [total].
            index: [M], of those that may be chosen.
            sort: choose by score.
        """
        # The last row, of zeros, stands in for missing proposals.
        flagged = self.concat(boxes, self.constant(np.ones((total, 1), dtype=np.float32)), axis=1)
        table = self.concat(flagged, self.constant(np.zeros((1, 5), dtype=np.float32)), axis=0)
        filler = self.constant(np.full(most, total, dtype=np.int64))
        index = self.concat(index, filler, axis=0)
        if sort:
            last = self.constant(np.full(1, -np.inf, dtype=np.float32))
            of_index = self.gather(self.concat(scores, last, axis=0), index)
            index = self.gather(index, self.top_k(of_index, most, ordered=True)[1])
        else:
            index = self.part(index, 0, most, 0)
            index = self.reshape(index, most)  # states the static shape
        chosen = self.gather(table, index)
        return self.part(chosen, 0, 4, 1), self.part(chosen, 4, 5, 1)

    # -------------------------------------------------------------- RoIAlign

    def roi_align(self, operation: Operation, *inputs: Any) -> Any:
        """RoIAlign of all bins, then those that are read, bias and activation."""
        *maps, boxes = inputs
        align, shape = typed(operation, RoiAlign), self.graph.shapes[operation.name]
        if self.graph.shapes[operation.inputs[-1]].domain == "rows":
            boxes = self._boxes_of_rows(operation.inputs[-1], boxes)
        else:
            boxes = boxes[0]
        zeros = self.constant(np.zeros(shape.count, dtype=np.int64))
        if len(maps) == 1:
            boxes = self._sampling_boxes(operation, 0, boxes)
            x = self.sample(align, 0, maps[0], boxes, zeros)
        else:
            x = self._sample_levels(operation, maps, boxes, zeros)
        if align.step > 1:
            rows, columns = (align.step * (length - 1) + 1 for length in shape.size)
            x = self.crop(x, rows, columns, align.step)
        if align.bias_of:
            bias = self.bias(align.bias_of).reshape(1, -1, 1, 1)
            x = self.binary("Add", x, self.constant(bias, f"{align.bias_of}.bias"))
        return self.activated(x, align.activation)

    def _sample_levels(self, operation: Operation, maps: list[Any], boxes: Any, zeros: Any) -> Any:
        """Each box from the map of its level."""
        align, shape = typed(operation, RoiAlign), self.graph.shapes[operation.name]
        indices = self._of_levels(align, boxes, shape.count)
        parts = []
        for level, (x, index) in enumerate(zip(maps, indices, strict=True)):
            of_level = self._sampling_boxes(operation, level, boxes)
            parts.append(
                self.sample(
                    align, level, x, self.gather(of_level, index), self.gather(zeros, index)
                )
            )
        order = self.constant(np.arange(shape.count, dtype=np.int64))
        place = self.scatter(self.concat(*indices, axis=0), order, shape.count)
        x = self.gather(self.concat(*parts, axis=0), place)
        return self.reshape(x, shape.count, shape.channels, align.size, align.size)

    def _of_levels(self, align: RoiAlign, boxes: Any, count: int) -> list[Any]:
        """Of each level, which boxes are its own."""
        width, height = self.sides(boxes)
        area = self.reshape(self.binary("Mul", width, height), count)
        first = align.first_level - align.canonical_level
        # 1e-6 as in `RoiAlign`'s level: a box whose side is a limit belongs to the upper level.
        limits = [
            self.scalar((align.canonical_size * 2 ** (first + i - 1e-6)) ** 2)
            for i in range(1, len(align.scales))
        ]
        found = [self.binary("Less", area, limits[0])]
        for low, high in pairwise(limits):
            above = self.binary("GreaterOrEqual", area, low)
            found.append(self.binary("And", above, self.binary("Less", area, high)))
        found.append(self.binary("GreaterOrEqual", area, limits[-1]))
        return [self.nonzero(mask) for mask in found]

    def _boxes_of_rows(self, name: str, rows: Any) -> Any:
        """Boxes [R, 4] in pixels, of rows."""
        key = (name,)
        if key not in self.sampled:
            fractions = self.part(rows, 3, 7, 1)
            self.sampled[key] = self.binary("Mul", fractions, self.constant(self.extent))
        return self.sampled[key]

    def _sampling_boxes(self, operation: Operation, level: int, boxes: Any) -> Any:
        """Boxes [R, 4] for RoIAlign, moved where the model samples from corner to corner."""
        align = typed(operation, RoiAlign)
        if align.sampling != "corners":
            return boxes
        size = self.graph.shapes[operation.inputs[level]].size
        samples, stride = align.size * align.sampling_ratio, round(1 / align.scales[level])
        key = (operation.inputs[-1], size, samples, stride)
        if key not in self.sampled:
            a, b, c = np_boxes.corner_sampling(size, stride, samples)
            other = self.concat(self.part(boxes, 2, 4, 1), self.part(boxes, 0, 2, 1), axis=1)
            products = [
                self.binary("Mul", x, self.constant(np.array(factors, dtype=np.float32)))
                for x, factors in ((boxes, a), (other, b))
            ]
            self.sampled[key] = self.binary("Add", self.binary("Add", *products), self.scalar(c))
        return self.sampled[key]
