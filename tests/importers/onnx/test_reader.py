"""Files that cannot be converted: each is one line that names the file and the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from helpers.onnx_files import conv_node, conv_tensors, onnx, save_onnx

from sparsedet import InputError, Model
from sparsedet.importers.onnx import reader

node, helper = onnx.helper.make_node, onnx.helper


def plain(tmp_path: Path, **changes: Any) -> Path:
    nodes = [conv_node("c", "x", "a"), node("Relu", ["a"], ["y"], name="act")]
    return save_onnx(tmp_path / "a.onnx", nodes, ["y"], conv_tensors("c", 4, 3), **changes)


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, text: str, **arguments: Any) -> None:
    with pytest.raises(InputError, match=text) as error:
        Model.load(path, **arguments)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_the_plain_file_runs(tmp_path: Path) -> None:
    assert Model.load(plain(tmp_path)).config.output_shapes == {"y": (1, 4, 16, 16)}


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 and so on", b"\x08" * 999])
def test_bytes_that_are_no_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    refused(path, "no ONNX file|of less than 2 GiB")


def test_truncated_files(tmp_path: Path) -> None:
    whole = plain(tmp_path).read_bytes()
    for length in range(1, len(whole), 37):
        path = tmp_path / "b.onnx"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            Model.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "No such file")
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", "is no file")


def test_files_that_are_too_large_are_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain(tmp_path)
    monkeypatch.setattr(reader, "MOST_BYTES", path.stat().st_size)
    monkeypatch.setattr(onnx, "load", lambda *a, **k: pytest.fail("it was parsed"))
    refused(path, "expected an ONNX file of less than 2 GiB")


def test_open_shapes_need_a_statement(tmp_path: Path) -> None:
    path = plain(tmp_path, size=("h", "w"))
    refused(path, "leaves its size open; state it, as --shape 1x3x640x640")
    assert Model.load(path, shape=(1, 3, 20, 24)).config.graph.image.size == (20, 24)
    refused(path, "batch of 2", shape=(2, 3, 20, 24))
    refused(path, r"is \[1, 3, 0, 0\] \(0: open\), --shape says 1x4x20x24", shape=(1, 4, 20, 24))
    refused(path, "expected 3 channels and 16..8192", shape=(1, 3, 20, 10_000))
    fixed = plain(tmp_path)
    refused(fixed, "--shape says 1x3x20x24", shape=(1, 3, 20, 24))


@pytest.mark.parametrize("opset", [10, 999])
def test_opsets_that_are_too_old_or_new(tmp_path: Path, opset: int) -> None:
    def change(model: Any) -> None:
        model.opset_import[0].version = opset

    refused(changed(plain(tmp_path), change), f"has opset {opset}, expected 11..")


def test_names_twice_cycles_and_gaps(tmp_path: Path) -> None:
    def twice(model: Any) -> None:
        model.graph.node[1].output[0] = "a"

    def cycle(model: Any) -> None:
        model.graph.node[0].input[0] = "y"

    def unmade(model: Any) -> None:
        model.graph.node[1].input[0] = "z"

    def initialiser(model: Any) -> None:
        model.graph.initializer.append(model.graph.initializer[0])

    def output(model: Any) -> None:
        model.graph.output[0].name = "z"

    refused(changed(plain(tmp_path), twice), r"node 'act' \(Relu\) makes 'a', which exists already")
    refused(changed(plain(tmp_path), cycle), r"node '(c|act)' \((Conv|Relu)\) reads .* has a cycle")
    refused(changed(plain(tmp_path), unmade), r"node 'act' \(Relu\) reads 'z', which nothing makes")
    refused(changed(plain(tmp_path), initialiser), "two initialisers 'c.weight'")
    refused(changed(plain(tmp_path), output), "output 'z' is made by no node")


def test_nodes_in_another_order(tmp_path: Path) -> None:
    def turned(model: Any) -> None:
        nodes = list(model.graph.node)[::-1]
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)

    graph = Model.load(changed(plain(tmp_path), turned)).config.graph
    assert [operation.kind for operation in graph.operations] == ["normalise", "conv"]


def test_control_flow_and_operators_of_others(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [node("Identity", ["a"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    nodes = [
        conv_node("c", "x", "a"),
        node("If", ["t"], ["y"], name="if", then_branch=branch, else_branch=branch),
    ]
    constants: dict[str, Any] = {**conv_tensors("c", 4, 3), "t": np.asarray(True)}
    path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants)
    refused(path, r"node 'if' \(If\) is control flow")

    def domain(model: Any) -> None:
        model.graph.node[1].domain = "com.example"

    refused(changed(plain(tmp_path), domain), r"node 'act' \(Relu of 'com.example'\) is none")


def test_unknown_kinds_are_counted(tmp_path: Path) -> None:
    constants: dict[str, Any] = {**conv_tensors("c", 4, 3, 3), **conv_tensors("d", 4, 4, 3)}
    nodes = [
        conv_node("c", "x", "a", pads=[1] * 4),
        node("Celu", ["a"], ["b"], name="odd"),
        conv_node("d", "b", "e", pads=[1] * 4),
        node("Celu", ["e"], ["y"]),
    ]
    path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants)
    refused(
        path,
        r"node 'odd' \(Celu\) \(opset 17\) cannot be run here: it is one of 2 .*4 nodes,"
        r" and 43% of the multiplications",
    )


def test_damaged_tensors(tmp_path: Path) -> None:
    def shape(model: Any) -> None:
        model.graph.initializer[0].dims[0] = 2**40

    def short(model: Any) -> None:
        model.graph.initializer[0].dims[0] = 5

    def kind(model: Any) -> None:
        model.graph.initializer[0].data_type = 8

    def nan(model: Any) -> None:
        weights = np.full((4, 3, 1, 1), np.nan, np.float32)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "c.weight"))

    for change, text in (
        (shape, "which cannot be"),
        (short, "is damaged"),
        (kind, "has type"),
        (nan, "holds NaN"),
    ):
        refused(changed(plain(tmp_path), change), f"tensor 'c.weight' .*{text}")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "none.bin", "link"])
def test_external_data_outside_of_the_folder_or_missing(tmp_path: Path, location: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(bytes(48))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")

    def external(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    text = "No such file" if location == "none.bin" else "outside of the file's own folder"
    refused(changed(plain(tmp_path / "in"), external), text)


def test_external_data(tmp_path: Path) -> None:
    path = plain(tmp_path)
    weights = conv_tensors("c", 4, 3)["c.weight"]
    (tmp_path / "data.bin").write_bytes(bytes(64) + weights.tobytes())

    def external(offset: int) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "data.bin"), ("offset", str(offset))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value

        return change

    tensors = Model.load(changed(path, external(64))).network.tensors
    assert any((t == weights).all() for t in tensors.values() if t.shape == weights.shape)
    refused(changed(path, external(65)), "needs 48 bytes of .*data.bin from 65 on, which has 112")
    refused(changed(path, external(-1)), "needs 48 bytes")


def arithmetic(tmp_path: Path, nodes: list[Any], **constants: Any) -> Path:
    """A network that reshapes to what the nodes compute."""
    whole = [conv_node("c", "x", "a"), *nodes, node("Reshape", ["a", "s"], ["y"], name="end")]
    values = {k: np.asarray(v, np.int64) for k, v in constants.items()}
    return save_onnx(tmp_path / "a.onnx", whole, ["y"], {**conv_tensors("c", 4, 3), **values})


def test_shape_arithmetic_that_leaves_int64_or_the_memory(tmp_path: Path) -> None:
    product = [node("Mul", ["p", "p"], ["s"], name="mul")]
    refused(arithmetic(tmp_path, product, p=[2**62]), r"node 'mul' .*int64 cannot hold")
    division = [node("Div", ["p", "q"], ["s"], name="div")]
    refused(arithmetic(tmp_path, division, p=[2], q=[0]), r"node 'div' .*divides by zero")
    many = [node("ConstantOfShape", ["p"], ["s"], name="fill")]
    refused(arithmetic(tmp_path, many, p=[2**30, 2**30]), r"node 'fill' .*array of shape")
    spread = [node("Expand", ["q", "p"], ["s"], name="spread")]
    refused(arithmetic(tmp_path, spread, p=[2**40], q=[1]), r"node 'spread' .*array of shape")
    wrong = [node("Identity", ["p"], ["s"])]
    refused(arithmetic(tmp_path, wrong, p=[7, -1]), r"node 'end' \(Reshape\) makes the shape")


def test_functions_that_multiply_beyond_all_bounds(tmp_path: Path) -> None:
    functions = []
    for i in range(30):
        inner = (
            [
                node(f"f{i + 1}", ["a"], ["b"], domain="own"),
                node(f"f{i + 1}", ["b"], ["c"], domain="own"),
            ]
            if i < 29
            else [node("Relu", ["a"], ["c"])]
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{i}", ["a"], ["c"], inner, opsets))

    def change(model: Any) -> None:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "f0", "own"

    refused(changed(plain(tmp_path), change), "its functions have more than 50,000 nodes")

    def endless(model: Any) -> None:
        change(model)
        model.functions[29].node[0].op_type = "f0"
        model.functions[29].node[0].domain = "own"

    refused(changed(plain(tmp_path), endless), "function 'f0' calls itself|more than 50,000")


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        opsets = [helper.make_opsetid("", 17)]
        inner = [node("Sigmoid", ["a"], ["b"]), node("Mul", ["a", "b"], ["c"])]
        model.functions.append(helper.make_function("own", "Swish", ["a"], ["c"], inner, opsets))
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "Swish", "own"

    graph = Model.load(changed(plain(tmp_path), change)).config.graph
    assert getattr(graph.operations[-1].attributes, "activation", "") == "silu"


def test_strides_and_windows_that_do_not_run(tmp_path: Path) -> None:
    for attributes, text in (
        ({"strides": [1, 2]}, "strides 1x2"),
        ({"strides": [4, 4]}, "strides 4x4"),
        ({"dilations": [1, 3]}, "dilations 1x3"),
    ):
        nodes = [conv_node("c", "x", "y", **attributes)]
        path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], conv_tensors("c", 4, 3, 3))
        refused(path, rf"node 'c' \(Conv\) has .*{text}")


def test_changed_bytes_give_a_network_or_one_line(tmp_path: Path) -> None:
    whole, numbers = plain(tmp_path).read_bytes(), np.random.default_rng(0)
    path, refusals = tmp_path / "b.onnx", 0
    for _ in range(150):
        changed_bytes = bytearray(whole)
        for place in numbers.integers(0, len(whole), 3):
            changed_bytes[place] = numbers.integers(0, 256)
        path.write_bytes(bytes(changed_bytes))
        try:
            Model.load(path, threads=1)
        except InputError as error:
            refusals += 1
            assert str(error).isprintable() and str(path) in str(error)
    assert 0 < refusals < 150
