"""Constants that an IR computes from others: the right values, and never much more memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.importers.openvino_ir.graph import COMPUTED_BYTES, IR


class IrOfConstants:
    """An IR of constants and operations on them."""

    def __init__(self, weights: bytes) -> None:
        self.weights, self.layers, self.edges = weights, "", ""

    def constant(self, number: int, shape: str, size: int) -> None:
        self.layers += (
            f'<layer id="{number}" name="n{number}" type="Const"><data element_type="f32" '
            f'shape="{shape}" offset="0" size="{size}"/><output><port id="0"/></output></layer>'
        )

    def operation(self, number: int, kind: str, *inputs: int) -> None:
        ports = "".join(f'<port id="{port}"/>' for port in range(1, 1 + len(inputs)))
        self.layers += (
            f'<layer id="{number}" name="n{number}" type="{kind}"><input>{ports}</input>'
            '<output><port id="0"/></output></layer>'
        )
        for port, source in enumerate(inputs, start=1):
            self.edges += (
                f'<edge from-layer="{source}" from-port="0" to-layer="{number}" to-port="{port}"/>'
            )

    def read(self, path: Path) -> IR:
        path.write_text(
            f'<net version="11"><layers>{self.layers}</layers><edges>{self.edges}</edges></net>'
        )
        path.with_suffix(".bin").write_bytes(self.weights)
        return IR(path)


def test_operations_on_constants(tmp_path: Path) -> None:
    graph = IrOfConstants(np.arange(1, 7, dtype=np.float32).tobytes())
    graph.constant(0, "2,3", 24)
    graph.constant(1, "3", 12)
    kinds = {"Add": np.add, "Subtract": np.subtract, "Multiply": np.multiply, "Divide": np.divide}
    for number, kind in enumerate(kinds, start=2):
        graph.operation(number, kind, 0, 1)
    ir = graph.read(tmp_path / "x.xml")
    left, right = np.arange(1, 7, dtype=np.float32).reshape(2, 3), np.array([1, 2, 3], np.float32)
    for node, compute in zip(ir.nodes[2:], kinds.values(), strict=True):
        value = ir.constant(node)
        assert value is not None and value.dtype == np.float32
        np.testing.assert_array_equal(value, compute(left, right))


def test_a_product_much_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    graph = IrOfConstants(bytes(4 * 8192))
    graph.constant(0, "8192,1", 4 * 8192)
    graph.constant(1, "1,8192", 4 * 8192)
    graph.operation(2, "Multiply", 0, 1)
    ir = graph.read(tmp_path / "x.xml")
    with pytest.raises(InputError, match=r"'n2'.*too much of its constants"):
        ir.constant(ir.nodes[2])


@pytest.mark.parametrize("kind", ["Const", "Add"])
def test_bytes_that_are_named_many_times_are_refused(kind: str, tmp_path: Path) -> None:
    """Each result alone is as large as the file."""
    floats, times = 1 << 18, (COMPUTED_BYTES >> 20) + 40
    graph = IrOfConstants(bytes(4 * floats))
    for number in range(times):
        if kind == "Const" or number < 2:
            graph.constant(number, str(floats), 4 * floats)
        else:
            graph.operation(number, kind, 0, 1)
    ir = graph.read(tmp_path / "x.xml")
    with pytest.raises(InputError, match="too much of its constants"):
        for node in ir.nodes:
            ir.constant(node)
