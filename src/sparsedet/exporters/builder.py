"""The exported graph, built once for all file formats: the model's graph in plain operations.

`GraphBuilder` knows the order of the operations; a subclass for each file format (`onnx`,
`openvino`) knows how to write one operation. Shapes are static but for what non-maximum
suppression keeps and for the RoIs of one level; one image at a time. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..model.detector_config import Config, build_graph, rows_of, with_fixed_input
from ..model.graph import IMAGE, Add, Concat, MaskOutput, Operation
from ..model.interpreter import Interpreter
from ..model.rewrite import hoist, merge_equal
from .detections import DetectionBuilder
from .form import Form
from .primitives import Array
from .rois import RoiBuilder


class GraphBuilder(RoiBuilder, DetectionBuilder, Interpreter[Any]):
    """Builds the graph out of operations that a subclass writes.

    Args:
        config: the model.
        tensors: folded weights by name.
        form: form of the graph.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Array], form: Form) -> None:
        self.config, self.tensors, self.form = with_fixed_input(config), tensors, form
        graph = build_graph(config)
        self.graph = merge_equal(hoist(graph)) if form.hoist else graph
        self.weights, self.flat, self.sampled = {}, set(), {}

    def execute(self, operation: Operation, inputs: Sequence[Any]) -> Any:
        """As `Interpreter.execute`; "concat" and "add" are names of single operations, too."""
        if isinstance(operation.attributes, Concat):
            return self.concat(*inputs, axis=1)
        if isinstance(operation.attributes, Add):
            return self.sum_of(operation, *inputs)
        return super().execute(operation, inputs)

    def outputs(self, network_input: Any) -> dict[str, Any]:
        """The whole network: input of the form's layout -> the outputs by name."""
        if self.form.layout == "NHWC":
            network_input = self.transpose(network_input, 0, 3, 1, 2)
        wanted = {"detections": rows_of(self.graph).name}
        for operation, _ in self.graph.of_kind(MaskOutput):
            wanted["masks"] = operation.name
        values = self.run(self.graph, {IMAGE: network_input}, list(wanted.values()))
        shapes = self.form.output_shapes(self.config)
        return {
            name: self.reshape(value, *shapes[name], name=name)
            for name, value in zip(wanted, values, strict=True)
        }
