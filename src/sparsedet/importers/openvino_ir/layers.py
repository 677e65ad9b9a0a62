"""The layers of a Faster R-CNN C4 in an IR: found by following its graph, not by names.

Starts at the input and follows values: pixel arithmetic, stem, residual blocks up to the map that a
3x3 convolution (the RPN) reads; then from RoI pooling through res5 to the two predictors. How
one step is made is `ir_steps`', box arithmetic `ir_boxes`'.

Glossary: x is the node whose output is the current activation; O output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .graph import IR, Array, Node
from .steps import Linear, Reached, Steps

ROI_TYPES = ("ROIAlign", "ROIPooling")
MAX_BLOCKS = 1000


@dataclass(slots=True, eq=False)
class Body:
    """What was found.

    Attributes:
        network_input: (height, width).
        mean, std: of the input's channels, in the input's order.
        layers: by our names, complete.
        pool_padding: of the stem's max pooling.
        rois: the RoI pooling nodes: one, or two with hoisted layers.
        bins: bins an axis that res5 reads, and samples a bin that a pooling averages (1 or 2).
    """

    layout: str = ""
    input_size: tuple[int, int] = (0, 0)
    mean: Array = field(default_factory=lambda: np.zeros(3))
    std: Array = field(default_factory=lambda: np.ones(3))
    layers: dict[str, Linear] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    pool_padding: tuple[int, int] = (0, 0)
    rois: list[Node] = field(default_factory=list)
    averaged: int = 1
    features: Node | None = None


def find_layers(ir: IR) -> Body:
    """Follow the graph.

    Raises:
        InputError: it is of another kind of network, or a node is not what stands there in a C4
            detector; the message names it.
    """
    return _Walk(ir).run()


class _Walk(Steps):
    def __init__(self, ir: IR) -> None:
        super().__init__(ir)
        self.body = Body(rois=self.rois)

    def run(self) -> Body:
        ir, body = self.ir, self.body
        self._check_kind()
        x, reversed_channels = self._pixels(self._image())
        (first,) = self._convolutions(x, 1)
        stem = self._linear(first)
        if stem.kernel != 7 or stem.stride != 2 or not stem.relu:
            raise self._unfit(stem.node, "the stem, a 7x7 convolution of stride 2 and a ReLU")
        if reversed_channels:
            weight = np.ascontiguousarray(stem.weight[:, ::-1])
            stem = Linear(stem.node, weight, *_rest(stem))
        body.layers["stem.conv"] = stem
        x = self._pool(stem.out)
        x = self._stages(x, 2, lambda found: any(_kernel(ir, r.node) == 3 for r in found))
        if len(body.blocks) != 3:
            raise self._unfit(x, f"the end of res4, but {len(body.blocks)} stages came before")
        body.features = x
        hoisted = self._rpn(x)
        if hoisted:
            x = self._block("res5.0", hoisted, None)
            body.blocks.append(1)
            x = self._stages(x, 5, lambda found: not found, 1)
        else:
            x = self._roi_pooling(x)
            x = self._stages(x, 5, lambda found: not found)
        if len(body.blocks) != 4:
            raise self._unfit(x, f"the end of res5, but {len(body.blocks) - 3} stages follow RoIs")
        self._predictors(x)
        self._check_all_taken()
        return body

    def _check_kind(self) -> None:
        """Refuse other networks in words that say what they are."""
        ir = self.ir
        if ir.of_type("FakeQuantize"):
            raise ir.error("holds an INT8 model; import the FP32 or FP16 model it was made from")
        if ir.of_type(*ROI_TYPES):
            return
        kind = "no RoI pooling"
        if ir.of_type("ExperimentalDetectronROIFeatureExtractor"):
            kind = "a feature pyramid (ExperimentalDetectronROIFeatureExtractor)"
        elif ir.of_type("RegionYolo"):
            kind = "a YOLO head (RegionYolo) and no RoI pooling"
        elif ir.of_type("DetectionOutput", "PriorBox", "PriorBoxClustered"):
            kind = "an SSD head (DetectionOutput, prior boxes) and no RoI pooling"
        elif ir.of_type("SoftMax", "Softmax") and not ir.of_type("NonMaxSuppression"):
            kind = "a classifier's softmax, neither RoI pooling nor NMS"
        raise ir.error(f"has {kind}: expected a Faster R-CNN C4")

    def _image(self) -> Node:
        images = [p for p in self.ir.parameters if len(p.shape) == 4]
        if len(images) != 1:
            raise self.ir.error(f"has {len(images)} inputs of four axes, expected one image")
        (image,) = images
        shape = image.shape
        self.body.layout = "NCHW" if shape[1] == 3 else "NHWC"
        size = shape[2:] if self.body.layout == "NCHW" else shape[1:3]
        if 3 not in (shape[1], shape[3]) or min(size) < 1 or shape[0] > 1:
            raise self.ir.error(
                f"{image.says()}: shape {shape}, expected [1, 3, H, W] or [1, H, W, 3] of known "
                "size (reshape the model to its network input first)"
            )
        self.body.input_size = (size[0], size[1])
        return image

    def _pixels(self, x: Node) -> tuple[Node, bool]:
        """Follow pixel arithmetic to the node that the stem reads; were channels reversed?"""
        body, ir = self.body, self.ir
        flipped = False
        channels = 1 if body.layout == "NCHW" else 3
        while True:
            after = [c for c in set(x.consumers) if c.type != "ShapeOf"]
            if len(after) != 1:
                raise self._unfit(x, f"one reader of the pixels, it has {len(after)}")
            (node,) = after
            if node.type in ("Convolution", "Pad"):
                return x, flipped
            if node.type in ("Add", "Subtract", "Multiply", "Divide"):
                value = ir.operand(node, 1 if node.inputs[0][0] is x else 0)
                if (
                    value is None
                    or value.size not in (1, 3)
                    or (node.type in ("Subtract", "Divide") and node.inputs[0][0] is not x)
                ):
                    raise self._unfit(node, "pixel arithmetic with one or three constants")
                numbers = np.broadcast_to(value.astype(np.float64).reshape(-1), 3)
                if flipped:
                    numbers = numbers[::-1]
                # In the input's order: x = (pixel - mean) / std.
                match node.type:
                    case "Subtract":
                        body.mean = body.mean + numbers * body.std
                    case "Add":
                        body.mean = body.mean - numbers * body.std
                    case "Multiply":
                        body.std = body.std / numbers
                    case _:
                        body.std = body.std * numbers
            elif node.type == "Transpose":
                channels = 1
            elif node.type == "Gather":
                index, axis = ir.operand(node, 1), ir.operand(node, 2)
                if (
                    index is None
                    or axis is None
                    or int(axis.reshape(-1)[0]) % 4 != channels
                    or (index.reshape(-1).tolist() != [2, 1, 0])
                ):
                    raise self._unfit(node, "the reversal of three channels")
                flipped = not flipped
            elif node.type != "Convert" and not (node.type == "Reshape" and node.shape == x.shape):
                raise self._unfit(node, "pixel arithmetic before the first convolution")
            x = node

    # --------------------------------------------------------------- network

    def _pool(self, x: Node) -> Node:
        found = [r for r in self._reach(x) if r.node.type == "MaxPool"]
        if len(found) != 1:
            raise self._unfit(x, f"one max pooling after the stem, found {len(found)}")
        (reached,) = found
        node = reached.node
        if set(node.numbers("kernel")) != {3.0}:
            raise self._unfit(node, "a 3x3 window")
        stride, (before, after) = self._geometry(node, 3)
        before, after = before + reached.padding[0], after + reached.padding[1]
        if node.attributes.get("rounding_type") == "ceil":  # pads as much as the last window needs
            given, left = x.shape[2:], node.shape[2:]
            need = {(m - 1) * stride + 3 - n - before for n, m in zip(given, left, strict=True)}
            after = max(after, *need)
        if stride != 2:
            raise self._unfit(node, "stride 2")
        self.body.pool_padding = (before, after)
        return node

    def _stages(
        self, x: Node, number: int, stop: Callable[[list[Reached]], bool], block: int = 0
    ) -> Node:
        """Residual blocks from x on; a block with a shortcut convolution opens a stage."""
        number -= 0 if block else 1
        for _ in range(MAX_BLOCKS):
            found = [r for r in self._reach(x) if r.node.type == "Convolution"]
            if stop(found) and (block or number > 4):
                return x
            if len(found) == 2:
                number, block = number + 1, 0
                self.body.blocks.append(0)
            if number not in (2, 3, 4, 5) or not self.body.blocks:
                raise self._unfit(x, "a residual block with a shortcut convolution after it")
            x = self._block(f"res{number}.{block}", found, x)
            block += 1
            self.body.blocks[-1] = block
        raise self.ir.error(f"has more than {MAX_BLOCKS} residual blocks")

    def _block(self, name: str, found: list[Reached], x: Node | None) -> Node:
        """One bottleneck; `found` are its first convolutions, x what a plain shortcut adds."""
        layers = self.body.layers
        linear = [self._linear(reached) for reached in found]
        first = [n for n in linear if n.relu]
        shortcut = [n for n in linear if not n.relu]
        if len(first) != 1 or len(shortcut) > 1:
            where = found[0].node if found else x
            assert where is not None
            raise self._unfit(
                where,
                f"the start of {name}: a convolution with ReLU, and at most "
                "one without for the shortcut",
            )
        layers[f"{name}.conv1"] = first[0]
        second = self._linear(self._convolutions(first[0].out, 1)[0])
        third = self._linear(self._convolutions(second.out, 1)[0])
        sizes = (first[0].kernel, second.kernel, third.kernel, *(s.kernel for s in shortcut))
        if sizes[:3] != (1, 3, 1) or sizes[3:] not in ((), (1,)) or not second.relu or third.relu:
            raise self._unfit(second.node, f"{name} as a bottleneck of 1x1, 3x3 and 1x1 kernels")
        layers[f"{name}.conv2"], layers[f"{name}.conv3"] = second, third
        other = shortcut[0].out if shortcut else x
        if shortcut:
            layers[f"{name}.shortcut"] = shortcut[0]
        total = third.out.consumers[0] if third.out.consumers else third.out
        operands = {source for source, _ in total.inputs}
        if total.type != "Add" or operands != {third.out, other}:
            raise self._unfit(total, f"the sum of {name} and its shortcut")
        relu = [c for c in total.consumers if c.type != "ShapeOf"]
        if len(relu) != 1 or relu[0].type != "ReLU":
            raise self._unfit(total, f"a ReLU after {name}")
        return relu[0]

    def _rpn(self, x: Node) -> list[Reached]:
        """The RPN's layers; returns hoisted convolutions of res5, if there are any."""
        found = [r for r in self._reach(x) if r.node.type == "Convolution"]
        heads = [r for r in found if _kernel(self.ir, r.node) == 3]
        if len(heads) != 1:
            raise self._unfit(x, "one 3x3 convolution after res4 (the RPN's)")
        head = self._linear(heads[0])
        pair = [self._linear(r) for r in self._convolutions(head.out, 2)]
        few, many = sorted(pair, key=lambda n: len(n.weight))
        if not head.relu or len(many.weight) != 4 * len(few.weight) or few.relu or many.relu:
            counts = f"{len(few.weight)} and {len(many.weight)}"
            raise self._unfit(few.node, f"one logit and four deltas an anchor, found {counts}")
        layers = self.body.layers
        layers["rpn.conv"], layers["rpn.objectness"], layers["rpn.deltas"] = head, few, many
        return [r for r in found if r not in heads]

    def _roi_pooling(self, x: Node) -> Node:
        found = [n for n in self.ir.of_type(*ROI_TYPES)]
        if len(found) != 1:
            raise self.ir.error(f"has {len(found)} RoI poolings, expected one for a C4 detector")
        (node,) = found
        if node.inputs[0][0] is not x and not any(r.node is node for r in self._reach(x)):
            raise self._unfit(node, f"the map of {x.name!r} as its input")
        self.body.rois.append(node)
        after = [c for c in node.consumers if c.type == "AvgPool"]
        if len(after) == 1:
            (pool,) = after
            if set(pool.numbers("kernel")) != {2.0} or set(pool.numbers("strides")) != {2.0}:
                raise self._unfit(pool, "an average of 2x2 samples")
            self.body.averaged = 2
            return pool
        return node

    def _predictors(self, x: Node) -> None:
        """Mean over the bins, then two fully connected layers."""
        node = x
        if len(x.consumers) != 1 or x.consumers[0].type not in ("ReduceMean", "AvgPool"):
            raise self._unfit(x, "the mean over all bins after res5")
        node = x.consumers[0]
        if node.type == "AvgPool" and tuple(node.numbers("kernel")) != x.shape[2:]:
            raise self._unfit(node, "the mean over all bins")
        while len(node.consumers) == 1 and node.consumers[0].type in (
            "Reshape",
            "Squeeze",
            "Convert",
            "Unsqueeze",
            "Transpose",
        ):
            node = node.consumers[0]
        found = [c for c in dict.fromkeys(node.consumers) if c.type in ("MatMul", "Convolution")]
        if len(found) != 2:
            raise self._unfit(node, f"two predictors (classes, boxes) after it, found {len(found)}")
        pair = [self._linear(Reached(n, (0, 0), 1)) for n in found]
        logits, deltas = sorted(pair, key=lambda n: len(n.weight))
        if len(deltas.weight) not in (4 * len(logits.weight), 4 * (len(logits.weight) - 1)):
            counts = f"{len(logits.weight)} and {len(deltas.weight)}"
            raise self._unfit(logits.node, f"a score and four deltas a class, found {counts}")
        for name, linear in (("box.logits", logits), ("box.deltas", deltas)):
            flat = linear.weight.reshape(len(linear.weight), -1)
            self.body.layers[name] = Linear(linear.node, flat, *_rest(linear))

    def _check_all_taken(self) -> None:
        for node in self.ir.of_type("Convolution", "MatMul", "GroupConvolution"):
            if node not in self.taken and self.ir.operand(node, 1) is not None:
                raise self._unfit(node, "no layer beside those of a Faster R-CNN C4")


def _rest(linear: Linear) -> tuple[Array, int, tuple[int, int], bool, Node]:
    return linear.bias, linear.stride, linear.padding, linear.relu, linear.out


def _kernel(ir: IR, node: Node) -> int:
    weight = ir.operand(node, 1)
    return int(weight.shape[-1]) if weight is not None and weight.ndim == 4 else 0
