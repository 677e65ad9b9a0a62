"""Rows and masks in an exported graph.

Glossary: R RoIs, K classes without background, D `max_detections`, M a number that depends on the
image, N candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.graph import (
    CellOutput,
    DetectionOutput,
    FcosOutput,
    MaskOutput,
    Operation,
    RetinaNetOutput,
    typed,
)
from .boxes import BoxBuilder

Candidates = tuple[Any, Any, Any]
"""Boxes [N, 4], scores [N] and labels [N], integers from 0."""


class DetectionBuilder(BoxBuilder):
    """Operations that make rows, and masks of them."""

    def detections(
        self,
        operation: Operation,
        logits: Any,
        deltas: Any,
        proposals: tuple[Any, Any],
        image: Any,
    ) -> Any:
        """The best D rows [D, 7] of the contract, padded."""
        attributes, (boxes, valid) = typed(operation, DetectionOutput), proposals
        classes, shape = attributes.num_classes, self.graph.shapes[operation.inputs[0]]
        rois = shape.count
        first = 1 if attributes.background == "first" else 0
        scores = self.part(self.softmax(logits), first, first + classes, 1)
        scores = self.transpose(self.binary("Mul", scores, valid), 1, 0)  # [K, R]
        deltas = self.reshape(deltas, rois, classes + attributes.background_deltas, 4)
        if attributes.background_deltas:
            deltas = self.part(deltas, first, first + classes, 1)
        boxes = self.decode(
            deltas,
            self.reshape(boxes, rois, 1, 4),
            attributes.box_weights,
            attributes.delta_clamp,
        )
        boxes = self.transpose(boxes, 1, 0, 2)  # [K, R, 4]
        if attributes.min_size:
            scores = self.without_small(boxes, scores, (classes, rois), attributes.min_size, -1.0)
        # The operation has one set of boxes for each image of a batch, and here each class has its
        # own: classes are given as a batch of images.
        kept = self.nms(
            boxes,
            self.reshape(scores, classes, 1, rois),
            rois,
            attributes.nms_threshold,
            attributes.score_threshold,
        )
        label, box = self.part(kept, 0, 1, 1), self.part(kept, 2, 3, 1)
        index = self.binary("Add", self.binary("Mul", label, self.integer(rois)), box)
        index = self.reshape(index, -1)  # [M]
        # One row for each class and RoI.
        names = np.repeat(np.arange(1, classes + 1, dtype=np.float32), rois)
        fixed = self.constant(np.stack([np.zeros_like(names), names], axis=1))
        flat_scores = self.reshape(scores, classes * rois, 1)
        flat_boxes = self.reshape(boxes, classes * rois, 4)
        return self._rows(
            fixed, flat_scores, flat_boxes, index, classes * rois, attributes.max_detections
        )

    def _rows(self, fixed: Any, scores: Any, boxes: Any, index: Any, count: int, limit: int) -> Any:
        """The best rows [limit, 7] of some candidates, padded.

        Args:
            fixed: [count, 2], zeros and labels.
            scores, boxes: [count, 1] and [count, 4].
            index: [M], of the candidates that may become rows.
        """
        fractions = self.binary("Div", boxes, self.constant(self.extent))
        padding = self.constant(np.array([[-1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
        table = self.concat(self.concat(fixed, scores, fractions, axis=1), padding, axis=0)
        filler = self.constant(np.full(limit, count, dtype=np.int64))
        index = self.concat(index, filler, axis=0)
        confidence = self.reshape(self.part(self.gather(table, index), 2, 3, 1), -1)
        _, best = self.top_k(confidence, limit, ordered=True)
        return self.gather(table, self.gather(index, best))

    # ----------------------------------------------------- without proposals

    def retinanet_detections(self, operation: Operation, *inputs: Any) -> Any:
        """As `detections`."""
        attributes = typed(operation, RetinaNetOutput)
        levels, found = len(attributes.strides), []
        for level in range(levels):
            size = self.graph.shapes[operation.inputs[level]].size
            cells, anchors = size[0] * size[1], len(attributes.cell_anchors[level])
            flat = self.reshape(inputs[level], -1)
            best = self.max_over(
                self.reshape(inputs[level], anchors, attributes.num_classes, cells), 1
            )
            count, rows = self._best_places(attributes, best, anchors * cells)
            logits = self._values(flat, rows, attributes.num_classes, cells)
            scores, place, label = self._best_scores(
                attributes, self.unary("Sigmoid", logits), count
            )
            rows = self.gather(rows, place)
            # From cell after cell to anchor after anchor, as the maps are.
            grid = self.anchors(attributes, level, size).reshape(cells, anchors, 4)
            by_anchor = np.ascontiguousarray(grid.transpose(1, 0, 2).reshape(-1, 4))
            boxes = self.decode(
                self._values(self.reshape(inputs[levels + level], -1), rows, 4, cells),
                self.gather(self.constant(by_anchor), rows),
                attributes.box_weights,
                attributes.delta_clamp,
                0.0 if attributes.clip_first else None,
            )
            found.append((boxes, scores, label))
        return self._suppressed(operation, attributes, found)

    def fcos_detections(self, operation: Operation, *inputs: Any) -> Any:
        """As `detections`."""
        attributes = typed(operation, FcosOutput)
        levels, found = len(attributes.strides), []
        for level in range(levels):
            logits, distances, centerness = inputs[level:-1:levels]
            size = self.graph.shapes[operation.inputs[level]].size
            cells, classes = size[0] * size[1], attributes.num_classes
            centered = self.unary("Sigmoid", self.reshape(centerness, cells))
            best = self.max_over(self.reshape(logits, classes, cells), 0)
            best = self.binary("Mul", self.unary("Sigmoid", best), centered)
            count, rows = self._best_places(attributes, best, cells)
            of_class = self._values(self.reshape(logits, -1), rows, classes, cells)
            of_cell = self.reshape(self.gather(centered, rows), count, 1)
            scores = self.binary("Mul", self.unary("Sigmoid", of_class), of_cell)
            scores, place, label = self._best_scores(attributes, self.unary("Sqrt", scores), count)
            rows = self.gather(rows, place)
            down, right = self.steps(attributes.strides[level], size)
            y, x = np.mgrid[: size[0], : size[1]].reshape(2, -1) * [[down], [right]]
            points = self.constant(np.stack([x, y, x, y], axis=1).astype(np.float32))
            unit = np.array([-1, -1, 1, 1], dtype=np.float32) * np.float32(attributes.sizes[level])
            reach = self.binary(
                "Mul",
                self._values(self.reshape(distances, -1), rows, 4, cells),
                self.constant(unit),
            )
            boxes = self.clip(self.binary("Add", self.gather(points, rows), reach))
            found.append((boxes, scores, label))
        return self._suppressed(operation, attributes, found)

    def cell_detections(self, operation: Operation, *inputs: Any) -> Any:
        """As `detections`."""
        attributes = typed(operation, CellOutput)
        levels, found = len(attributes.strides), []
        for level in range(levels):
            logits, boxes, *objectness = inputs[level:-1:levels]
            size = self.graph.shapes[operation.inputs[level]].size
            cells, classes = size[0] * size[1], attributes.num_classes
            scores = self.unary("Sigmoid", self.reshape(logits, classes, cells))
            if objectness:
                factor = self.unary("Sigmoid", self.reshape(objectness[0], 1, cells))
                scores = self.binary("Mul", scores, factor)
            if not attributes.several_labels:
                scores = self._only_best(scores, classes, cells)
            best = self.max_over(scores, 0)
            count, rows = self._best_places(attributes, best, cells)
            of_class = self._values(self.reshape(scores, -1), rows, classes, cells)
            scores, place, label = self._best_scores(attributes, of_class, count)
            rows = self.gather(rows, place)
            y, x = np.mgrid[: size[0], : size[1]].reshape(2, -1) + attributes.offset
            points = self.gather(self.constant(np.stack([x, y], axis=1).astype(np.float32)), rows)
            channels = 4 * attributes.bins
            of_cell = self._values(self.reshape(boxes, -1), rows, channels, cells)
            decoded = self._cell_boxes(attributes, level, of_cell, points)
            stride = self.scalar(float(attributes.strides[level]))
            found.append((self.binary("Mul", decoded, stride), scores, label))
        return self._suppressed(operation, attributes, found)

    def _only_best(self, scores: Any, classes: int, cells: int) -> Any:
        """Scores [K, N] of which each cell's best one stays, the first of equal ones."""
        best = self.reshape(self.max_over(scores, 0), 1, cells)
        # Of equal scores the first label is the best: its rank is the largest.
        ranks = self.constant(np.arange(classes, 0, -1, dtype=np.float32)[:, None])
        top = self.select(self.binary("Equal", scores, best), ranks, self.scalar(0.0))
        first = self.reshape(self.max_over(top, 0), 1, cells)
        return self.select(self.binary("Equal", top, first), scores, self.scalar(-1.0))

    def _cell_boxes(self, attributes: CellOutput, level: int, of_cell: Any, points: Any) -> Any:
        """Boxes [N, 4] in strides, of the outputs [N, 4 * bins] of cells at points [N, 2]."""
        if attributes.boxes == "centre":
            centre = self.binary("Add", points, self.part(of_cell, 0, 2, 1))
            sides = self.unary("Exp", self.part(of_cell, 2, 4, 1))
            return self._around(centre, self.binary("Mul", sides, self.scalar(0.5)))
        if attributes.boxes == "anchor":
            twice = self.binary("Mul", self.unary("Sigmoid", of_cell), self.scalar(2.0))
            moved = self.binary("Sub", self.part(twice, 0, 2, 1), self.scalar(1.0))
            anchor = np.array(attributes.anchors[level], dtype=np.float32)
            half = anchor / np.float32(2 * attributes.strides[level])
            sides = self.part(twice, 2, 4, 1)
            sides = self.binary("Mul", self.binary("Mul", sides, sides), self.constant(half))
            return self._around(self.binary("Add", points, moved), sides)
        sides = of_cell
        if attributes.bins > 1:
            shares = self.softmax(self.reshape(of_cell, -1, 4, attributes.bins), 2)
            bins = self.constant(np.arange(attributes.bins, dtype=np.float32)[:, None])
            sides = self.reshape(self.matmul(shares, bins), -1, 4)
        first = self.binary("Sub", points, self.part(sides, 0, 2, 1))
        return self.concat(first, self.binary("Add", points, self.part(sides, 2, 4, 1)), axis=1)

    def _around(self, centre: Any, half: Any) -> Any:
        """Boxes [N, 4] around their centres [N, 2], of half their sides [N, 2]."""
        first, last = (self.binary(name, centre, half) for name in ("Sub", "Add"))
        return self.concat(first, last, axis=1)

    def _best_places(
        self, attributes: RetinaNetOutput | FcosOutput | CellOutput, best: Any, total: int
    ) -> tuple[int, Any]:
        """The anchors or cells, of `total`, with the best scores, and their number.

        The best `pre_nms` scores belong to the `pre_nms` anchors whose best scores are highest:
        the others need not be sorted.
        """
        count = min(attributes.pre_nms, total)
        return count, self.top_k(self.reshape(best, total), count, ordered=False)[1]

    def _best_scores(
        self, attributes: RetinaNetOutput | FcosOutput | CellOutput, scores: Any, count: int
    ) -> tuple[Any, Any, Any]:
        """The best of the scores [count, K], their rows and their labels."""
        classes = attributes.num_classes
        most = min(attributes.pre_nms, count * classes)
        best, index = self.top_k(self.reshape(scores, count * classes), most, ordered=False)
        row = self.binary("Div", index, self.integer(classes))
        return best, row, self.binary("Sub", index, self.binary("Mul", row, self.integer(classes)))

    def _values(self, flat: Any, rows: Any, values: int, cells: int) -> Any:
        """Some anchors' values [N, values] of a map.

        Args:
            flat: the map [A * values * cells].
            rows: [N], anchor * cells + cell.
        """
        anchor = self.binary("Div", rows, self.integer(cells))
        before = self.binary("Mul", anchor, self.integer((values - 1) * cells))
        start = self.reshape(self.binary("Add", rows, before), -1, 1)
        step = self.constant(np.arange(values, dtype=np.int64)[None] * cells)
        return self.gather(flat, self.binary("Add", start, step))

    def _suppressed(
        self,
        operation: Operation,
        attributes: RetinaNetOutput | FcosOutput | CellOutput,
        found: list[Candidates],
    ) -> Any:
        """The best rows of all levels after non-maximum suppression by class."""
        boxes, scores, label = (self.concat(*values, axis=0) for values in zip(*found, strict=True))
        count = sum(
            min(attributes.pre_nms, shape.channels * shape.height * shape.width)
            for shape in (self.graph.shapes[name] for name in operation.inputs[: len(found)])
        )
        classes, limit = attributes.num_classes, attributes.max_detections
        each = self.constant(np.arange(classes, dtype=np.int64)[:, None])
        own = self.binary("Equal", self.reshape(label, 1, count), each)  # [K, N]
        by_class = self.select(own, self.reshape(scores, 1, count), self.scalar(-1.0))
        kept = self.nms(
            self.reshape(boxes, 1, count, 4),
            self.reshape(by_class, 1, classes, count),
            min(limit, count),
            attributes.nms_threshold,
            attributes.score_threshold,
        )
        index = self.reshape(self.part(kept, 2, 3, 1), -1)
        names = self.reshape(self.binary("Add", label, self.integer(1)), count, 1)
        zeros = self.constant(np.zeros((count, 1), dtype=np.float32))
        fixed = self.concat(zeros, self.to_float32(names), axis=1)
        clips_last = isinstance(attributes, RetinaNetOutput) and not attributes.clip_first
        if clips_last or isinstance(attributes, CellOutput):
            boxes = self.clip(boxes)
        return self._rows(fixed, self.reshape(scores, count, 1), boxes, index, count, limit)

    # ----------------------------------------------------------------- masks

    def masks(self, operation: Operation, logits: Any, rows: Any) -> Any:
        """Masks [D, h, w], zero where there is no row."""
        shape = self.graph.shapes[operation.inputs[0]]
        size = (shape.height, shape.width)
        # Exact: labels are small whole numbers.
        first = 0 if typed(operation, MaskOutput).background else 1
        starts = np.arange(shape.count, dtype=np.float32)[:, None] * shape.channels - first
        places = self.binary("Add", self.part(rows, 1, 2, 1), self.constant(starts))
        places = self.binary("Max", places, self.scalar(0.0))
        index = self.to_int64(self.reshape(places, shape.count))
        of_label = self.gather(self.reshape(logits, shape.count * shape.channels, *size), index)
        image = self.reshape(self.part(rows, 0, 1, 1), shape.count, 1, 1)
        real = self.binary("GreaterOrEqual", image, self.scalar(0.0))
        return self.select(real, self.unary("Sigmoid", of_label), self.scalar(0.0))
