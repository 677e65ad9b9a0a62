"""The layers of a Faster R-CNN C4 in an IR, found by following its graph, not by names.

Starts at the input and follows the values: pixel arithmetic, stem, residual blocks up to the map
that a 3x3 convolution (the RPN) reads; then from RoI pooling through res5 to the two predictors.
`steps` reads single layers, `boxes` the box arithmetic.

Glossary: x is the node whose output is the current activation; O output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .graph import IR, Array, Node
from .steps import AffineOp, OperationReader, Reached

ROI_TYPES = ("ROIAlign", "ROIPooling")
MAX_BLOCKS = 1000


@dataclass(slots=True, eq=False)
class ImportedNetwork:
    """The network that a graph describes.

    Attributes:
        layout: "NCHW" or "NHWC".
        input_size: (height, width) of the network input.
        mean, std: of the input's channels, in the input's order.
        layers: our layer name -> operation.
        blocks: residual blocks of res2 ... res5.
        pool_padding: (before, after) of the stem's max pooling.
        rois: the RoI pooling nodes: one, or two with hoisted layers.
        averaged: samples of a bin, along an axis, that an average pooling merges (1 or 2).
        features: the node whose output the RPN reads.
    """

    layout: str = ""
    input_size: tuple[int, int] = (0, 0)
    mean: Array = field(default_factory=lambda: np.zeros(3))
    std: Array = field(default_factory=lambda: np.ones(3))
    layers: dict[str, AffineOp] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    pool_padding: tuple[int, int] = (0, 0)
    rois: list[Node] = field(default_factory=list)
    averaged: int = 1
    features: Node | None = None


def find_layers(ir: IR) -> ImportedNetwork:
    """Read the network of a graph.

    Raises:
        InputError: the graph is another kind of network, or a node is not that of a C4 detector;
            the message names it.
    """
    return _NetworkReader(ir).run()


class _NetworkReader(OperationReader):
    """Follows the graph from input to predictors."""

    def __init__(self, ir: IR) -> None:
        super().__init__(ir)
        self.network = ImportedNetwork(rois=self.rois)

    def run(self) -> ImportedNetwork:
        ir, network = self.ir, self.network
        self._check_kind()
        x, reversed_channels = self._pixels(self._image())
        (first,) = self._convolutions(x, 1)
        stem = self._affine_op(first)
        if stem.kernel != 7 or stem.stride != 2 or not stem.relu:
            raise self._unexpected(stem.node, "the stem, a 7x7 convolution of stride 2 and a ReLU")
        if reversed_channels:
            weight = np.ascontiguousarray(stem.weight[:, ::-1])
            stem = replace(stem, weight=weight)
        network.layers["stem.conv"] = stem
        x = self._pool(stem.out)
        x = self._stages(
            x, 2, lambda convolutions: any(_kernel(ir, r.node) == 3 for r in convolutions)
        )
        if len(network.blocks) != 3:
            raise self._unexpected(
                x, f"the end of res4, but {len(network.blocks)} stages precede it"
            )
        network.features = x
        hoisted = self._rpn(x)
        if hoisted:
            x = self._block("res5.0", hoisted, None)
            network.blocks.append(1)
            x = self._stages(x, 5, lambda convolutions: not convolutions, 1)
        else:
            x = self._roi_pooling(x)
            x = self._stages(x, 5, lambda convolutions: not convolutions)
        if len(network.blocks) != 4:
            raise self._unexpected(
                x, f"the end of res5, but {len(network.blocks) - 3} stages follow RoIs"
            )
        self._predictors(x)
        self._check_all_taken()
        return network

    def _check_kind(self) -> None:
        """Raise InputError, naming the kind of network, unless it has RoI pooling."""
        ir = self.ir
        if ir.of_type("FakeQuantize"):
            raise ir.error("is an INT8 model; import the FP32 or FP16 model it was made from")
        if ir.of_type(*ROI_TYPES):
            return
        contents = "no RoI pooling"
        if ir.of_type("ExperimentalDetectronROIFeatureExtractor"):
            contents = "a feature pyramid (ExperimentalDetectronROIFeatureExtractor)"
        elif ir.of_type("RegionYolo"):
            contents = "a YOLO head (RegionYolo) and no RoI pooling"
        elif ir.of_type("DetectionOutput", "PriorBox", "PriorBoxClustered"):
            contents = "an SSD head (DetectionOutput, prior boxes) and no RoI pooling"
        elif ir.of_type("SoftMax", "Softmax") and not ir.of_type("NonMaxSuppression"):
            contents = "a classifier's softmax, neither RoI pooling nor NMS"
        raise ir.error(f"has {contents}: expected a Faster R-CNN C4")

    def _image(self) -> Node:
        """The image input; sets layout and input size."""
        images = [p for p in self.ir.parameters if len(p.shape) == 4]
        if len(images) != 1:
            raise self.ir.error(f"has {len(images)} inputs of four axes, expected one image")
        (image,) = images
        shape = image.shape
        self.network.layout = "NCHW" if shape[1] == 3 else "NHWC"
        size = shape[2:] if self.network.layout == "NCHW" else shape[1:3]
        if 3 not in (shape[1], shape[3]) or min(size) < 1 or shape[0] > 1:
            raise self.ir.error(
                f"{image.label()}: shape {shape}, expected [1, 3, H, W] or [1, H, W, 3] of "
                "fixed size (reshape the model to its network input first)"
            )
        self.network.input_size = (size[0], size[1])
        return image

    def _pixels(self, x: Node) -> tuple[Node, bool]:
        """Read the pixel arithmetic.

        Returns:
            The node that the stem reads, and whether the channels are reversed before it.
        """
        network, ir = self.network, self.ir
        flipped = False
        channels = 1 if network.layout == "NCHW" else 3
        while True:
            after = [c for c in set(x.consumers) if c.type != "ShapeOf"]
            if len(after) != 1:
                raise self._unexpected(x, f"one reader of the pixels, not {len(after)}")
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
                    raise self._unexpected(node, "pixel arithmetic with one or three constants")
                numbers = np.broadcast_to(value.astype(np.float64).reshape(-1), 3)
                if flipped:
                    numbers = numbers[::-1]
                # In the input's order: x = (pixel - mean) / std.
                match node.type:
                    case "Subtract":
                        network.mean = network.mean + numbers * network.std
                    case "Add":
                        network.mean = network.mean - numbers * network.std
                    case "Multiply":
                        network.std = network.std / numbers
                    case _:
                        network.std = network.std * numbers
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
                    raise self._unexpected(node, "the reversal of three channels")
                flipped = not flipped
            elif node.type != "Convert" and not (node.type == "Reshape" and node.shape == x.shape):
                raise self._unexpected(node, "pixel arithmetic before the first convolution")
            x = node

    # --------------------------------------------------------------- network

    def _pool(self, x: Node) -> Node:
        """The max pooling after the stem."""
        pools = [r for r in self._reach(x) if r.node.type == "MaxPool"]
        if len(pools) != 1:
            raise self._unexpected(x, f"one max pooling after the stem, found {len(pools)}")
        (reached,) = pools
        node = reached.node
        if set(node.numbers("kernel")) != {3.0}:
            raise self._unexpected(node, "a 3x3 window")
        stride, (before, after) = self._geometry(node, 3)
        before, after = before + reached.padding[0], after + reached.padding[1]
        if node.attributes.get("rounding_type") == "ceil":  # pads so that the last window fits
            given, left = x.shape[2:], node.shape[2:]
            need = {(m - 1) * stride + 3 - n - before for n, m in zip(given, left, strict=True)}
            after = max(after, *need)
        if stride != 2:
            raise self._unexpected(node, "stride 2")
        self.network.pool_padding = (before, after)
        return node

    def _stages(
        self, x: Node, number: int, stop: Callable[[list[Reached]], bool], block: int = 0
    ) -> Node:
        """Read residual blocks from x on; a block with a shortcut convolution starts a stage.

        Args:
            number: number of the first stage, as 2 for res2.
            stop: whether to stop before these convolutions, at the end of a stage.
            block: number of the first block; above 0 its stage has started before.

        Returns:
            The output of the last block.
        """
        number -= 0 if block else 1
        for _ in range(MAX_BLOCKS):
            convolutions = [r for r in self._reach(x) if r.node.type == "Convolution"]
            if stop(convolutions) and (block or number > 4):
                return x
            if len(convolutions) == 2:
                number, block = number + 1, 0
                self.network.blocks.append(0)
            if number not in (2, 3, 4, 5) or not self.network.blocks:
                raise self._unexpected(x, "a residual block with a shortcut convolution after it")
            x = self._block(f"res{number}.{block}", convolutions, x)
            block += 1
            self.network.blocks[-1] = block
        raise self.ir.error(f"has more than {MAX_BLOCKS} residual blocks")

    def _block(self, name: str, convolutions: list[Reached], x: Node | None) -> Node:
        """Read one bottleneck.

        Args:
            convolutions: its first convolution and that of its shortcut.
            x: value that a shortcut without convolution adds.

        Returns:
            The ReLU at its end.
        """
        layers = self.network.layers
        affine = [self._affine_op(reached) for reached in convolutions]
        first = [n for n in affine if n.relu]
        shortcut = [n for n in affine if not n.relu]
        if len(first) != 1 or len(shortcut) > 1:
            where = convolutions[0].node if convolutions else x
            assert where is not None
            raise self._unexpected(
                where,
                f"the start of {name}: a convolution with ReLU, and at most "
                "one without for the shortcut",
            )
        layers[f"{name}.conv1"] = first[0]
        second = self._affine_op(self._convolutions(first[0].out, 1)[0])
        third = self._affine_op(self._convolutions(second.out, 1)[0])
        sizes = (first[0].kernel, second.kernel, third.kernel, *(s.kernel for s in shortcut))
        if sizes[:3] != (1, 3, 1) or sizes[3:] not in ((), (1,)) or not second.relu or third.relu:
            raise self._unexpected(
                second.node, f"{name} as a bottleneck of 1x1, 3x3 and 1x1 kernels"
            )
        layers[f"{name}.conv2"], layers[f"{name}.conv3"] = second, third
        other = shortcut[0].out if shortcut else x
        if shortcut:
            layers[f"{name}.shortcut"] = shortcut[0]
        total = third.out.consumers[0] if third.out.consumers else third.out
        operands = {source for source, _ in total.inputs}
        if total.type != "Add" or operands != {third.out, other}:
            raise self._unexpected(total, f"the sum of {name} and its shortcut")
        relu = [c for c in total.consumers if c.type != "ShapeOf"]
        if len(relu) != 1 or relu[0].type != "ReLU":
            raise self._unexpected(total, f"a ReLU after {name}")
        return relu[0]

    def _rpn(self, x: Node) -> list[Reached]:
        """Read the RPN's layers; returns the hoisted convolutions of res5, if there are any."""
        convolutions = [r for r in self._reach(x) if r.node.type == "Convolution"]
        heads = [r for r in convolutions if _kernel(self.ir, r.node) == 3]
        if len(heads) != 1:
            raise self._unexpected(x, "one 3x3 convolution after res4 (the RPN's)")
        head = self._affine_op(heads[0])
        pair = [self._affine_op(r) for r in self._convolutions(head.out, 2)]
        few, many = sorted(pair, key=lambda n: len(n.weight))
        if not head.relu or len(many.weight) != 4 * len(few.weight) or few.relu or many.relu:
            counts = f"{len(few.weight)} and {len(many.weight)}"
            raise self._unexpected(few.node, f"one logit and four deltas an anchor, found {counts}")
        layers = self.network.layers
        layers["rpn.conv"], layers["rpn.objectness"], layers["rpn.deltas"] = head, few, many
        return [r for r in convolutions if r not in heads]

    def _roi_pooling(self, x: Node) -> Node:
        """Read the RoI pooling of the map x; returns the node that res5 reads."""
        nodes = self.ir.of_type(*ROI_TYPES)
        if len(nodes) != 1:
            raise self.ir.error(f"has {len(nodes)} RoI poolings, expected one for a C4 detector")
        (node,) = nodes
        if node.inputs[0][0] is not x and not any(r.node is node for r in self._reach(x)):
            raise self._unexpected(node, f"the map of {x.name!r} as its input")
        self.network.rois.append(node)
        after = [c for c in node.consumers if c.type == "AvgPool"]
        if len(after) == 1:
            (pool,) = after
            if set(pool.numbers("kernel")) != {2.0} or set(pool.numbers("strides")) != {2.0}:
                raise self._unexpected(pool, "an average of 2x2 samples")
            self.network.averaged = 2
            return pool
        return node

    def _predictors(self, x: Node) -> None:
        """Read the mean over the bins, then two fully connected layers."""
        node = x
        if len(x.consumers) != 1 or x.consumers[0].type not in ("ReduceMean", "AvgPool"):
            raise self._unexpected(x, "the mean over all bins after res5")
        node = x.consumers[0]
        if node.type == "AvgPool" and tuple(node.numbers("kernel")) != x.shape[2:]:
            raise self._unexpected(node, "the mean over all bins")
        while len(node.consumers) == 1 and node.consumers[0].type in (
            "Reshape",
            "Squeeze",
            "Convert",
            "Unsqueeze",
            "Transpose",
        ):
            node = node.consumers[0]
        heads = [c for c in dict.fromkeys(node.consumers) if c.type in ("MatMul", "Convolution")]
        if len(heads) != 2:
            raise self._unexpected(
                node, f"two predictors (classes, boxes) after it, found {len(heads)}"
            )
        pair = [self._affine_op(Reached(n, (0, 0), 1)) for n in heads]
        logits, deltas = sorted(pair, key=lambda n: len(n.weight))
        if len(deltas.weight) not in (4 * len(logits.weight), 4 * (len(logits.weight) - 1)):
            counts = f"{len(logits.weight)} and {len(deltas.weight)}"
            raise self._unexpected(logits.node, f"a score and four deltas a class, found {counts}")
        for name, affine in (("box.logits", logits), ("box.deltas", deltas)):
            flat = affine.weight.reshape(len(affine.weight), -1)
            self.network.layers[name] = replace(affine, weight=flat)

    def _check_all_taken(self) -> None:
        """Raise InputError if a layer with constant weights is left."""
        for node in self.ir.of_type("Convolution", "MatMul", "GroupConvolution"):
            if node not in self.taken and self.ir.operand(node, 1) is not None:
                raise self._unexpected(node, "only the layers of a Faster R-CNN C4")


def _kernel(ir: IR, node: Node) -> int:
    """Width of a convolution's kernel, 0 if its weights are not constant."""
    weight = ir.operand(node, 1)
    return int(weight.shape[-1]) if weight is not None and weight.ndim == 4 else 0
