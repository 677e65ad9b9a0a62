"""The box arithmetic of a Faster R-CNN in an IR -> fields of the configuration.

`proposals` reads proposals and RoI pooling; this module reads the operations after the two
predictors: OpenVINO's operation `DetectionOutput`, or softmax, decoding and NMS as operations of
their own. Notes say where our engine differs from the source; `convert` measures it.

Glossary: K classes without background.
"""

from __future__ import annotations

import numpy as np

from .graph import Node, ancestors, descendants
from .proposals import ProposalReader


class BoxReader(ProposalReader):
    """Reads all fields of the box arithmetic."""

    def read(self) -> None:
        """Read proposals and detections.

        Raises:
            InputError: an operation is missing or is not that of a Faster R-CNN.
        """
        self._output()
        self.read_proposals()
        output = self._single("DetectionOutput")
        if output is not None:
            self._detection_output(output)
        else:
            self._written_out_detections()

    def _output(self) -> None:
        """The number of rows."""
        results = self.ir.of_type("Result")
        if len(results) != 1:
            raise self.ir.error(f"has {len(results)} outputs, expected one of rows of seven")
        (result,) = results
        source, port = result.inputs[0]
        shape = source.shapes[port]
        if len(shape) < 2 or shape[-1] != 7 or shape[-2] < 1 or any(n != 1 for n in shape[:-2]):
            raise self.ir.error(
                f"{source.label()}: the output has shape {shape}, expected [1, 1, N, 7] or [N, 7]"
            )
        self.fields["max_detections"] = shape[-2]
        self.result = result

    def _classes(self, background: int) -> None:
        """Index of the background among the scores, and whether it has deltas."""
        scores = len(self.network.layers["box.logits"].weight)
        deltas = len(self.network.layers["box.deltas"].weight)
        if background not in (0, scores - 1):
            raise self.ir.error(f"has its background at {background}, expected first or last")
        self.fields["background"] = "first" if background == 0 else "last"
        self.fields["background_deltas"] = deltas == 4 * scores

    def _detection_output(self, node: Node) -> None:
        """Fields of OpenVINO's operation `DetectionOutput`."""
        ir = self.ir
        if node.flag("share_location"):
            raise ir.error(f"{node.label()}: expected boxes of their own for each class")
        code = node.attributes.get("code_type", "caffe.PriorBoxParameter.CORNER")
        if not code.endswith("CENTER_SIZE"):
            raise ir.error(f"{node.label()}: code type {code!r}, expected CENTER_SIZE")
        self._classes(int(node.number("background_label_id")))
        self.put("score_threshold", node.number("confidence_threshold"))
        self.put("nms_threshold", node.number("nms_threshold"))
        kept = int(node.number("keep_top_k", -1))
        if 0 < kept < self.fields["max_detections"]:
            self.fields["max_detections"] = kept
        weights = self._box_weights(self.layers["box.deltas"])
        if not node.flag("variance_encoded_in_target"):
            pairs = zip(weights, self._variances(node), strict=True)
            weights = tuple(weight / variance for weight, variance in pairs)
        self.put("box_weights", weights)
        top = int(node.number("top_k", -1))
        if 0 <= top < self.fields["proposals"]:
            self.notes.append(f"{node.label()} reads {top} boxes of a class, our engine all")
        if not node.flag("clip_before_nms"):
            self.notes.append(f"{node.label()} clips boxes after NMS or never, our engine before")
        if node.flag("decrease_label_id"):
            raise ir.error(
                f"{node.label()}: decrease_label_id counts classes from 0, expected from 1"
            )

    def _variances(self, node: Node) -> tuple[float, ...]:
        """The four factors of the deltas: a constant concatenated to the boxes."""
        source = self._upstream(node.inputs[2][0])
        if source.type == "Concat":
            for value in self._constants([source]):
                if value.size % 4 == 0 and value.size:
                    rows = value.reshape(-1, 4)
                    if (rows == rows[0]).all() and (rows > 0).all():
                        return tuple(rows[0].astype(np.float64).tolist())
        raise self.ir.error(
            f"{node.label()}: expected its variances as a constant beside the boxes"
        )

    def _written_out_detections(self) -> None:
        """Softmax, decoding and NMS as operations of their own."""
        ir, layers = self.ir, self.layers
        region = descendants(layers["box.logits"], layers["box.deltas"]) & ancestors(self.result)
        softmax = [node for node in region if node.type in ("SoftMax", "Softmax")]
        if len(softmax) != 1:
            raise ir.error(f"has {len(softmax)} softmax after the class scores, expected one")
        nms = [node for node in region if node.type == "NonMaxSuppression"]
        overlap = {self._scalar(node, 3) for node in nms}
        score = {self._scalar(node, 4) for node in nms}
        if len(overlap) != 1 or None in overlap or len(score) != 1:
            raise ir.error(
                "has no NMS of constant thresholds after the predictors, expected one "
                "for all classes, or one for each with the same thresholds"
            )
        self.put("nms_threshold", float(overlap.pop() or 0.0))
        limits = [
            value
            for node in region & descendants(softmax[0])
            if node.type in ("Greater", "GreaterEqual")
            for value in (self._scalar(node, 1),)
            if value is not None and 0 < value < 1
        ]
        least = score.pop()
        limits += [least] if least is not None and least > 0 else []
        self.put("score_threshold", float(max(limits, default=0.0)))
        self.put("box_weights", self._box_weights(layers["box.deltas"]))
        clamp = self.number("delta_clamp", self._clamp(region))
        if abs(clamp - self.fields["delta_clamp"]) > 1e-4:
            ours = self.fields["delta_clamp"]
            self.notes.append(
                f"limits growth to exp({clamp:g}) for detections, to exp({ours:g}) "
                "for proposals; our engine has one limit"
            )
        self._classes(self._background(softmax[0]))

    def _background(self, softmax: Node) -> int:
        """Index of the class that is sliced off the scores."""
        count = len(self.network.layers["box.logits"].weight)
        for node in softmax.consumers:
            if node.type in ("Slice", "StridedSlice"):
                start = self.ir.operand(node, 1)
                if start is not None and start.size:
                    first = int(start.reshape(-1)[-1])
                    return 0 if first == 1 else count - 1
            if node.type == "Gather":
                index = self.ir.operand(node, 1)
                if index is not None and index.size == count - 1:
                    return 0 if int(index.reshape(-1)[0]) == 1 else count - 1
        raise self.ir.error(f"{softmax.label()}: cannot tell which score is the background's")
