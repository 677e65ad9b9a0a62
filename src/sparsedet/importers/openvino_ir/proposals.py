"""Proposals and RoI pooling in an IR -> fields of the configuration.

Proposals are OpenVINO's operation `Proposal` with its attributes, or operations of their own
(anchors, decoding, `TopK`, `NonMaxSuppression`), as in converted torch and ONNX graphs.

Glossary: A anchors a cell, Hf and Wf rows and columns of the map.
"""

from __future__ import annotations

import numpy as np

from ...model.boxes import cell_anchors, corner_sampling, grid_anchors
from .constants import FieldReader
from .graph import Array, Node, ancestors, descendants


class ProposalReader(FieldReader):
    """Reads anchors, counts and thresholds of proposals, and how RoIs are sampled."""

    def read_proposals(self) -> None:
        """Read RoI pooling and proposals.

        Raises:
            InputError: an operation is missing or is not that of a Faster R-CNN.
        """
        self._roi_pooling()
        proposal = self._single("Proposal")
        if proposal is not None:
            self._proposal(proposal)
        else:
            self._written_out_proposals()

    def _roi_pooling(self) -> None:
        """Fields of RoI pooling."""
        node = self.network.rois[0]
        averaged = self.network.averaged
        stride, corners = self.base.anchor_stride, node.type == "ROIPooling"
        if node.type == "ROIAlign":
            bins = (int(node.number("pooled_h")), int(node.number("pooled_w")))
            ratio, scale = int(node.number("sampling_ratio")), node.number("spatial_scale")
            mode = node.attributes.get("aligned_mode", "asymmetric")
            if mode not in ("half_pixel_for_nn", "half_pixel"):
                raise self.ir.error(
                    f"{node.label()}: aligned_mode {mode!r}, expected half_pixel_for_nn"
                )
            if mode == "half_pixel":
                self.notes.append(
                    f"{node.label()} is aligned as half_pixel, our engine as RoIAlign"
                )
            if node.attributes.get("mode", "avg") != "avg":
                raise self.ir.error(f"{node.label()}: expected the mode avg")
            stride = round(1 / scale) if scale > 0 else 0
            corners = self._corners(node, bins[0] * ratio, stride)
        else:
            sizes = node.numbers("output_size") or [
                node.number("pooled_h"),
                node.number("pooled_w"),
            ]
            bins, ratio = (int(sizes[0]), int(sizes[-1])), 1
            if node.attributes.get("method", "max") != "bilinear":
                raise self.ir.error(f"{node.label()}: expected the method bilinear")
            if node.inputs[1][0].type == "Proposal" and not node.inputs[1][0].flag("normalize"):
                raise self.ir.error(
                    f"{node.label()}: expected boxes as fractions of the network input"
                )
            if any(length % stride for length in self.network.input_size):
                self.notes.append(
                    f"{node.label()} scales boxes to the whole map, which is only right if the "
                    "sides of the network input are multiples of the stride"
                )
        if bins[0] != bins[1] or bins[0] % averaged:
            raise self.ir.error(f"{node.label()}: {bins} bins, expected a square of an even number")
        self.fields["roi_sampling"] = "corners" if corners else "aligned"
        self.fields["roi_size"] = bins[0] // averaged
        self.fields["roi_sampling_ratio"] = max(ratio, 1) * averaged if averaged > 1 else ratio
        self.fields["anchor_stride"] = stride

    def _corners(self, node: Node, samples: int, stride: int) -> bool:
        """Whether the boxes of a RoIAlign are moved so that it samples from corner to corner."""
        source = self._upstream(node.inputs[1][0])
        if source.type not in ("Add", "Subtract", "Multiply", "Divide"):
            return False
        sides = [side for side, _ in source.inputs if side.type == "Add"]
        if source.type == "Add" and sides and samples > 1:
            size = self.layers["rpn.objectness"].shape[2:]
            a, b, _ = corner_sampling((size[0], size[1]), stride, samples)
            factors = [
                value.reshape(-1)
                for product, _ in sides[0].inputs
                for value in self._constants([product])
                if value.size == 4
            ]
            if all(any(np.allclose(f, x, rtol=1e-5) for f in factors) for x in (a, b)):
                return True
        raise self.ir.error(
            f"{source.label()}: boxes are changed between NMS and RoI pooling, "
            "expected them as they are"
        )

    def _anchors(self, cells: Array, stride: int) -> None:
        """Set the anchors of the map's first cell, unless those of the base are the same."""
        self.fields["anchor_stride"] = stride
        base = cell_anchors(self.base)
        tolerance = 1e-3 if _is_half(cells) else 1e-5
        if base.shape == cells.shape and np.allclose(base, cells, rtol=tolerance, atol=1e-3):
            return
        exact = [tuple(float(f"{v:.7g}") for v in row) for row in cells.tolist()]
        self.fields["cell_anchors"] = tuple(exact)

    def _proposal(self, node: Node) -> None:
        """The operation `Proposal`, whose attributes define the anchors.

        TensorFlow's variant is refused: its deltas and boxes are (y, x), which needs a further
        operation in the network.
        """
        if node.attributes.get("framework"):
            raise self.ir.error(
                f"{node.label()}: is TensorFlow's variant, with boxes as (y, x), "
                'expected Caffe\'s (framework "")'
            )
        ratios, scales = node.numbers("ratio"), node.numbers("scale")
        size, stride = node.number("base_size"), int(node.number("feat_stride"))
        count = len(self.network.layers["rpn.objectness"].weight)
        if len(ratios) * len(scales) != count:
            raise self.ir.error(
                f"{node.label()}: {len(ratios)} ratios and {len(scales)} scales for {count} anchors"
            )
        rows = []
        for ratio in ratios:
            width = np.floor(np.sqrt(size * size / ratio) + 0.5)  # C's round, not numpy's
            height = np.floor(width * ratio + 0.5)
            for scale in scales:
                w, h = (width * scale - 1) / 2, (height * scale - 1) / 2
                centre = (size - 1) / 2
                # Its last pixel is inside the box; our corner is one further.
                rows.append((centre - w, centre - h, centre + w + 1, centre + h + 1))
        cells = np.asarray(rows, dtype=np.float32)
        self.fields["rpn_inclusive"] = True
        self._anchors(cells, stride)
        centre_scale = node.number("box_coordinate_scale", 1.0)
        size_scale = node.number("box_size_scale", 1.0)
        self.put("rpn_box_weights", (centre_scale, centre_scale, size_scale, size_scale))
        self.put("rpn_nms_threshold", node.number("nms_thresh"))
        self.fields["rpn_pre_nms"] = int(node.number("pre_nms_topn"))
        self.fields["proposals"] = int(node.number("post_nms_topn"))
        self.fields["rpn_remove_empty"] = False
        self.fields["delta_clamp"] = 20.0
        if node.number("min_size") > 1:  # no box is shorter, as its last pixel counts
            self.notes.append(
                f"{node.label()} drops boxes under {node.number('min_size'):g} pixels"
            )
        if not node.flag("clip_before_nms", True):
            self.notes.append(f"{node.label()} clips boxes after NMS, our engine before")

    def _written_out_proposals(self) -> None:
        """Anchors, decoding and NMS as operations of their own."""
        ir, layers = self.ir, self.layers
        heads = (layers["rpn.objectness"], layers["rpn.deltas"])
        boxes = [source for node in self.network.rois for source, _ in node.inputs[1:]]
        region = descendants(*heads) & ancestors(*boxes)
        nms = [node for node in region if node.type == "NonMaxSuppression"]
        if len(nms) != 1:
            raise ir.error(
                f"has {len(nms)} NonMaxSuppression between the RPN and RoI pooling, "
                "expected one, or Proposal"
            )
        threshold = self._scalar(nms[0], 3)
        if threshold is None:
            raise ir.error(f"{nms[0].label()}: expected a constant IoU threshold")
        self.put("rpn_nms_threshold", threshold)
        limits = self._stops(region | set(boxes), nms[0])
        most = self._scalar(nms[0], 2)
        limits += [int(most)] if most is not None and 0 < most < 1 << 30 else []
        if not limits:
            raise ir.error(f"{nms[0].label()}: the number of proposals is not constant")
        self.fields["proposals"] = min(limits)
        total = int(np.prod(self.layers["rpn.objectness"].shape))
        self.fields["rpn_pre_nms"] = self._pre_nms(region, nms[0], total)
        self.put("rpn_box_weights", self._box_weights(heads[1]))
        self.put("delta_clamp", self._clamp(region))
        before = region & ancestors(nms[0])
        empties = {"Greater", "GreaterEqual", "NonZero", "Select", "Less"}
        self.fields["rpn_remove_empty"] = any(node.type in empties for node in before)
        for value in self._constants(before):
            if value.size == 4 * total and value.shape[-1] == 4:
                self._grid(value.reshape(-1, 4))
                return
        raise ir.error(f"has no constant of {total} anchors to decode boxes from")

    def _pre_nms(self, region: set[Node], nms: Node, total: int) -> int:
        """Number of anchors before NMS; a graph may omit a limit above their total."""
        limits = [total]
        for top in (node for node in region if node.type == "TopK"):
            count = self._scalar(top, 1)
            limits += [int(count)] if count is not None else []
            limits += self._stops(region & ancestors(nms), top)
        base = self.base.rpn_pre_nms
        return base if min(limits) == total <= base else min(limits)

    def _grid(self, anchors: Array) -> None:
        """Set the anchors of one cell from those of the whole map."""
        rows, columns = self.layers["rpn.objectness"].shape[2:]
        count = self.layers["rpn.objectness"].shape[1]
        if anchors.size != rows * columns * count * 4:
            raise self.ir.error(f"its {len(anchors)} anchors do not fit a map of {rows}x{columns}")
        grid = anchors.reshape(rows, columns, count, 4).astype(np.float32)
        cells = grid[0, 0]
        stride = self.fields["anchor_stride"]
        if columns > 1:
            stride = round(float(grid[0, 1, 0, 0] - grid[0, 0, 0, 0]))
        whole = grid_anchors(cells, (rows, columns), stride).reshape(grid.shape)
        rounded = _is_half(grid)
        if not np.allclose(whole, grid, rtol=2e-3 if rounded else 1e-5, atol=0.02):
            raise self.ir.error("its anchors are not a regular grid of cells, as in a C4 RPN")
        if rounded and not np.array_equal(whole, grid):
            self.notes.append("its anchors are rounded to half-floats, ours only within a cell")
        self._anchors(cells, stride)


def _is_half(values: Array) -> bool:
    """Whether all values are exact in half-floats."""
    return bool(np.array_equal(values, values.astype(np.float16)))
