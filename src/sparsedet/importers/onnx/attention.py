"""Self-attention among the cells of a map, as YOLO11 has it: products of queries and keys, softmax
and products with the values, on the channels of one map.

It becomes one node "*Attention" (`heads`, `key`, `score_scale`) that reads the map. What else reads
the values as a map reads slices of its channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from .program import OnnxNode, Program

_SWAPPED = (0, 1, 3, 2)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some channels of each head of a map.

    Attributes:
        source: the map [1, heads * each, H, W].
        first, count: channels of each head.
    """

    source: str
    heads: int
    each: int
    first: int
    count: int


def _part(program: Program, makers: dict[str, OnnxNode], name: str) -> _Part | None:
    """A value [1, heads, channels, cells] as channels of each head of a map."""
    node = makers.get(name)
    first, count = 0, program.shapes.get(name, (0,) * 3)[2] if node else 0
    if node is not None and node.op == "Slice" and node.attributes["axis"] == 2:
        if node.attributes["step"] != 1:
            return None
        first = node.attributes["start"]
        node = makers.get(node.inputs[0])
    if node is None or node.op != "Reshape":
        return None
    shape, source = node.attributes["shape"], program.shapes[node.inputs[0]]
    if len(shape) != 4 or len(source) != 4 or shape[3] != source[2] * source[3]:
        return None
    return _Part(node.inputs[0], shape[1], shape[2], first, count)


def _scaled(program: Program, makers: dict[str, OnnxNode], name: str) -> tuple[str, float]:
    """A value without the factor that it is multiplied by, and the factor."""
    node, factor = makers.get(name), 1.0
    while node is not None and node.op in ("Mul", "Div"):
        numbers = [
            (i, program.constants[n])
            for i, n in enumerate(node.inputs)
            if n in program.constants and program.constants[n].size == 1
        ]
        if len(numbers) != 1 or (node.op == "Div" and numbers[0][0] == 0):
            break
        number = float(numbers[0][1].reshape(-1)[0])
        factor *= number if node.op == "Mul" else 1 / number
        name = node.inputs[1 - numbers[0][0]]
        node = makers.get(name)
    return name, factor


def _swapped(makers: dict[str, OnnxNode], name: str) -> str | None:
    node = makers.get(name)
    plain = node is not None and node.op == "Transpose" and node.attributes["perm"] == _SWAPPED
    return node.inputs[0] if node is not None and plain else None


def _attention(program: Program, makers: dict[str, OnnxNode], node: OnnxNode) -> OnnxNode | None:
    """The whole attention whose result a Reshape makes a map of."""
    mixed = makers.get(node.inputs[0])
    if mixed is None or mixed.op != "MatMul":
        return None
    values, shares = _part(program, makers, mixed.inputs[0]), _swapped(makers, mixed.inputs[1])
    softmax = makers.get(shares or "")
    if values is None or softmax is None or softmax.op != "Softmax":
        return None
    name, factor = _scaled(program, makers, softmax.inputs[0])
    product = makers.get(name)
    if softmax.attributes["axis"] != 3 or product is None or product.op != "MatMul":
        return None
    left, by_left = _scaled(program, makers, product.inputs[0])
    right, by_right = _scaled(program, makers, product.inputs[1])
    turned, by_turned = _scaled(program, makers, _swapped(makers, left) or "")
    queries, keys = _part(program, makers, turned), _part(program, makers, right)
    if queries is None or keys is None:
        return None
    key, heads = queries.count, queries.heads
    expected = [
        _Part(values.source, heads, values.each, 0, key),
        _Part(values.source, heads, values.each, key, key),
        _Part(values.source, heads, values.each, 2 * key, values.each - 2 * key),
    ]
    whole = program.shapes[values.source]
    out = (1, heads * (values.each - 2 * key), *whole[2:])
    if [queries, keys, values] != expected or node.attributes["shape"] != out:
        return None
    attributes = {
        "heads": heads,
        "key": key,
        "score_scale": factor * by_left * by_right * by_turned,
    }
    return OnnxNode("*Attention", node.name, [values.source], node.outputs, attributes)


def _values(program: Program, node: OnnxNode, part: _Part) -> list[OnnxNode]:
    """The nodes that make a map of some channels of each head."""
    whole = program.shapes[part.source]
    slices = []
    for head in range(part.heads):
        start = head * part.each + part.first
        numbers = {"axis": 1, "start": start, "stop": start + part.count, "step": 1}
        name = node.out if part.heads == 1 else f"{node.out}.head{head}"
        program.shapes[name] = (1, part.count, *whole[2:])
        slices.append(OnnxNode("Slice", f"{node.name}.{head}", [part.source], [name], numbers))
    if part.heads == 1:
        return slices
    joined = OnnxNode("Concat", node.name, [s.out for s in slices], node.outputs, {"axis": 1})
    return [*slices, joined]


def find_attention(program: Program) -> None:
    """Finds attention in a folded program, in place."""
    if not any(node.op == "Softmax" for node in program.nodes):
        return
    makers = program.makers()
    nodes: list[OnnxNode] = []
    for node in program.nodes:
        shape = program.shapes.get(node.out, ())
        if node.op == "Reshape" and len(shape) == 4:
            whole = _attention(program, makers, node)
            part = _part(program, makers, node.inputs[0])
            if whole is not None:
                nodes.append(whole)
                continue
            source = program.shapes[part.source] if part else ()
            if part and shape == (1, part.heads * part.count, *source[2:]):
                nodes += _values(program, node, part)
                continue
        nodes.append(node)
    program.nodes = nodes
    program.drop_unread()
