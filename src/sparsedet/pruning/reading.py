"""Reads what a network predicts: its graph is walked, and its operations that decide take notes.

Proposals, detections and masks note what they would decide on, and decide nothing. Anchors, cells
and RoIs that count are chosen once, by the dense network, and kept as *choices*, so that another
network answers the same questions. An image has batch size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.graph import (
    IMAGE,
    CellOutput,
    Conv,
    DetectionOutput,
    FcosOutput,
    Operation,
    Proposals,
    RetinaNetOutput,
    typed,
)
from ..model.network import AnyConfig, NetworkConfig
from ..torch_model import GraphModule, TorchInterpreter, flat_outputs
from ..torch_model.anchors import cells
from .predictions import Form, Prediction
from .regions import rows_of_regions, some_proposals

CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
"""A box's standard deviation is 1 in these units: a tenth of its sides for its place, a fifth for
the logarithm of its sides, as Faster R-CNN's deltas have it (box_weights)."""
LEAST_SIDE = 0.5
"""Shorter sides of boxes, in strides, count as this."""


@dataclass(frozen=True, slots=True, eq=False)
class PredictionReading:
    """What a network predicts on one image.

    Attributes:
        predictions: in the graph's order.
        choices: by operation; another network reads with them.
        before_activation: output of each convolution before its activation, by operation.
    """

    predictions: list[Prediction]
    choices: dict[str, Any]
    before_activation: dict[str, Tensor]


def read_outputs(config: AnyConfig) -> tuple[tuple[str, Form], ...]:
    """The values of a network's graph that are its outputs, with their forms; none of a detector.

    A value that a sigmoid or softmax reads holds logits; all others are real numbers.
    """
    if not isinstance(config, NetworkConfig):
        return ()
    layout = ("reshape", "transpose", "slice", "concat")
    found: list[tuple[str, Form]] = []
    for name in config.read:
        inside, ends = {name}, set[str]()
        for step in config.steps:
            if inside & set(step.inputs):
                if step.kind in layout:
                    inside.add(step.name)
                else:
                    ends.add(step.kind)
        if any(value in inside for _, value in config.outputs):
            ends.add("softmax" if config.class_count else "output")
        attributes = config.graph.by_name[name].attributes
        if getattr(attributes, "activation", "") == "sigmoid" or ends == {"sigmoid"}:
            found.append((name, "binary"))
        else:
            one = config.class_count and ends == {"softmax"}
            found.append((name, "categorical" if one else "real"))
    return tuple(found)


def read_predictions(
    model: GraphModule,
    image: Tensor,
    outputs: Sequence[tuple[str, Form]] = (),
    *,
    best: int | None,
    regions: int,
    choices: dict[str, Any] | None = None,
) -> PredictionReading:
    """Run a network on one image and note what it predicts.

    Args:
        model: without separate batch norms.
        image: network input [1, 3, H, W].
        outputs: of a network without detections, from `read_outputs`.
        best: anchors or cells of an image that count, those with the highest scores; None: all.
        regions: proposals of an image that count.
        choices: of another network's `PredictionReading`; default: made here.

    Raises:
        InputError: the RPN proposes nothing.
    """
    reader = _PredictionReader(model, best, regions, choices)
    wanted = [name for name, _ in outputs] or [model.graph.output]
    values = reader.run(model.graph, {IMAGE: image}, wanted)
    for (name, form), value in zip(outputs, values, strict=False):
        reader.output(model.graph.by_name[name], form, value)
    return PredictionReading(reader.predictions, reader.choices, reader.before_activation)


class _PredictionReader(TorchInterpreter):
    """Runs a graph; its operations that decide note predictions."""

    def __init__(
        self, model: GraphModule, best: int | None, regions: int, choices: dict[str, Any] | None
    ) -> None:
        super().__init__(model.layers, None, model.norms)
        self.best, self.regions = best, regions
        self.choices: dict[str, Any] = {} if choices is None else choices
        self.predictions: list[Prediction] = []
        self.before_activation: dict[str, Tensor] = {}

    def note(
        self,
        form: Form,
        values: Tensor,
        rows: int | None = None,
        given: int | None = None,
        weigh: Callable[[Tensor], Tensor] | None = None,
        objects: bool = False,
    ) -> int:
        """Add a prediction; returns its index."""
        count = len(values) if rows is None else rows
        self.predictions.append(Prediction(form, values.float(), count, given, weigh, objects))
        return len(self.predictions) - 1

    def choice(self, operation: Operation, make: Callable[[], Any]) -> Any:
        """What is chosen once for all networks."""
        if operation.name not in self.choices:
            with torch.no_grad():
                self.choices[operation.name] = make()
        return self.choices[operation.name]

    def top(self, scores: Tensor) -> Tensor:
        """Rows of the highest scores [N]."""
        scores = scores.detach()
        if self.best is None:
            return torch.arange(len(scores), device=scores.device)
        return scores.topk(min(self.best, len(scores))).indices

    def conv(self, operation: Operation, x: Tensor, residual: Tensor | None = None) -> Tensor:
        (layer,) = typed(operation, Conv).layers
        module: Any = self.layers[layer]
        before = module.before_activation(x, residual)
        self.before_activation[operation.name] = before
        out: Tensor = module.activated(before, residual)
        return out

    def normalise(self, operation: Operation, image: Tensor) -> Tensor:
        x = super().normalise(operation, image)
        # All gradients are wanted, also those at the stem, while parameters may need none.
        return x.requires_grad_() if torch.is_grad_enabled() else x

    def proposals(self, operation: Operation, *inputs: Tensor) -> list[Tensor]:
        levels = len(typed(operation, Proposals).strides)
        of_levels = [
            flat_outputs(*pair) for pair in zip(inputs[:levels], inputs[levels:-1], strict=True)
        ]
        logits, deltas = (torch.cat([x[0] for x in part]) for part in zip(*of_levels, strict=True))
        detached = [value.detach() for value in inputs]
        best, rois = self.choice(
            operation,
            lambda: (
                self.top(logits),
                some_proposals(
                    super(_PredictionReader, self).proposals(operation, *detached)[0], self.regions
                ),
            ),
        )
        first = self.note("binary", logits[best][:, None], objects=True)
        self.note("real", deltas[best], given=first, weigh=lambda objects: objects)
        return [rois]

    def detections(
        self,
        operation: Operation,
        logits: Tensor,
        deltas: Tensor,
        boxes: list[Tensor],
        image: Tensor,
    ) -> Tensor:
        attributes = typed(operation, DetectionOutput)
        first = 1 if attributes.background == "first" else 0

        def of_objects(classes: Tensor) -> Tensor:
            objects = classes[:, first : first + attributes.num_classes]
            if attributes.background_deltas:
                objects = F.pad(objects, (first, 1 - first))
            return objects[..., None]

        index = self.note("categorical", logits.flatten(1))
        self.note("real", deltas.reshape(len(deltas), -1, 4), given=index, weigh=of_objects)
        return rows_of_regions(boxes[0], image)

    def masks(self, operation: Operation, logits: Tensor, rows: Tensor) -> Tensor:
        self.note("binary", logits, rows=logits[:, 0].numel())
        return logits

    def retinanet_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes = typed(operation, RetinaNetOutput)
        logits, deltas = _flat(inputs, len(attributes.strides), attributes.num_classes, 4)
        best = self.choice(operation, lambda: self.top(logits.amax(dim=1)))
        first = self.note("binary", logits[best], objects=True)
        self.note("real", deltas[best], given=first, weigh=_likeliest(logits[best]))
        return logits

    def fcos_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes = typed(operation, FcosOutput)
        parts = _flat(inputs, len(attributes.strides), attributes.num_classes, 4, 1)
        logits, distances, centerness = parts
        best = self.choice(operation, lambda: self.top(logits.amax(dim=1)))
        first = self.note("binary", logits[best], objects=True)
        object_of = _likeliest(logits[best])
        self.note("real", distances[best], given=first, weigh=object_of)
        self.note("binary", centerness[best], given=first, weigh=object_of)
        return logits

    def cell_detections(self, operation: Operation, *inputs: Tensor) -> Tensor:
        attributes = typed(operation, CellOutput)
        sizes = [attributes.num_classes, 4 * attributes.bins, *[1] * attributes.objectness]
        logits, boxes, *objectness = _flat(inputs, len(attributes.strides), *sizes)
        scores = logits.sigmoid().amax(dim=1)
        if objectness:
            scores = scores * objectness[0][:, 0].sigmoid()

        def chosen() -> tuple[Tensor, Tensor]:
            best = self.top(scores)
            return best, _box_scale(attributes, boxes[best])

        best, scale = self.choice(operation, chosen)
        objects = objectness[0][best] if objectness else logits[best]
        object_of = _likeliest(objects)
        first = self.note("binary", objects, objects=True)
        if objectness:
            self.note("binary", logits[best], given=first, weigh=object_of)
        of_cells = boxes[best]
        if attributes.bins > 1:
            of_bins = of_cells.view(len(of_cells), 4, attributes.bins)
            self.note("categorical", of_bins, given=first, weigh=object_of)
        numbers = _box_numbers(attributes, of_cells) * scale
        self.note("real", numbers, given=first, weigh=object_of)
        return logits

    def output(self, operation: Operation, form: Form, value: Tensor) -> None:
        """An output of a network without detections, [1, C, H, W] or [1, C]."""
        rows = value.flatten(2)[0].T if value.dim() > 2 else value  # [H*W, C]
        if form == "real":
            spread = self.choice(operation, lambda: rows.std().clamp(min=1e-6))
            self.note(form, rows / spread)
        elif form == "binary":
            sigmoid = getattr(operation.attributes, "activation", "") == "sigmoid"
            self.note(form, torch.logit(rows, eps=1e-6) if sigmoid else rows)
        else:
            self.note(form, value.reshape(1, -1))


def _likeliest(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """From outcomes of all classes [N, K] to those of each row's likeliest class [N, 1].

    A row of many unlikely classes is background; the chance that any of them occurs is not small.
    """
    column = logits.detach().argmax(dim=1, keepdim=True)
    return lambda classes: classes.gather(1, column)


def _flat(inputs: Sequence[Tensor], levels: int, *values: int) -> list[Tensor]:
    """The maps of all levels, kind after kind, each as [N, values]."""
    return [
        torch.cat([cells(m, n)[0] for m in inputs[kind * levels : (kind + 1) * levels]])
        for kind, n in enumerate(values)
    ]


def _box_numbers(attributes: CellOutput, of_cells: Tensor) -> Tensor:
    """Four numbers of each box, in strides [N, 4]; of bins their mean."""
    if attributes.bins == 1:
        return of_cells
    shares = of_cells.view(len(of_cells), 4, attributes.bins).softmax(dim=2)
    return shares @ torch.arange(attributes.bins, device=shares.device).float()


def _box_scale(attributes: CellOutput, of_cells: Tensor) -> Tensor:
    """Factors of `_box_numbers` that make a standard deviation of 1 fit the box, [N, 4]."""
    numbers = _box_numbers(attributes, of_cells)
    if attributes.boxes == "centre":
        sides = numbers[:, 2:].exp().clamp(min=LEAST_SIDE)
        return torch.cat([CENTRE_SCALE / sides, torch.full_like(sides, SIZE_SCALE)], dim=1)
    sides = (numbers[:, :2] + numbers[:, 2:]).clamp(min=LEAST_SIDE)
    return CENTRE_SCALE / torch.cat([sides, sides], dim=1)
