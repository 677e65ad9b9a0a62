"""Hostile texts: IR, ONNX, COCO files, requests of tensors, settings, packed weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sparsedet.engine import packed_cache

Made = dict[str, tuple[bytes, str]]
NESTED = "[" * 20_000


def ir(folder: Path) -> Made:
    """Without a .bin each: nothing of it is read before the XML is."""
    entities = "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "a billion laughs": (
            f'<!DOCTYPE n [<!ENTITY a "aaaaaaaaaa">{entities}]><net><layers>&i;</layers></net>',
            "document type",
        ),
        "an external entity": (
            '<!DOCTYPE n [<!ENTITY a SYSTEM "file:///etc/passwd">]><net>&a;</net>',
            "document type",
        ),
        "nested": ("<net>" + "<a>" * 1000 + "</a>" * 1000 + "</net>", "nested too deeply"),
        "no edges": ('<net version="11"><layers/></net>', "no <edges>"),
        "a web page": ("<html></html>", "not an OpenVINO IR"),
        "truncated": ("<net", "truncated"),
    }
    return {
        f"{name}.xml": (f'<?xml version="1.0"?>{text}'.encode(), message)
        for name, (text, message) in texts.items()
    }


def onnx(folder: Path) -> Made:
    import onnx as package
    from helpers.onnx_files import conv_node, conv_tensors, save_onnx

    node = package.helper.make_node
    nodes = [conv_node("c", "x", "a"), node("Relu", ["a"], ["y"], name="act")]
    path = save_onnx(folder / "a.onnx", nodes, ["y"], conv_tensors("c", 4, 3))

    def changed(change: Any) -> bytes:
        model = package.load(str(path))
        change(model)
        return bytes(model.SerializeToString())

    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = package.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../../etc/passwd"

    def gigantic(model: Any) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend([1 << 40, 1 << 40])

    def negative(model: Any) -> None:
        model.graph.initializer[0].dims[0] = -4

    def cycle(model: Any) -> None:
        model.graph.node[0].input[0] = "y"

    def huge_input(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40

    changes = {
        "outside of the folder": (outside, "outside|location"),
        "gigantic": (gigantic, "."),
        "negative": (negative, "."),
        "a cycle": (cycle, "cycle|circle"),
        "a huge input": (huge_input, r"16\.\.8192"),
    }
    made: Made = {
        f"{name}.onnx": (changed(change), message) for name, (change, message) in changes.items()
    }
    there = b"../../../../etc/passwd"
    for name, location in (("no text", b"\xa1"), ("a zero", b"\0"), ("a line", b"\n")):
        data = changed(outside).replace(there, there[:-1] + location)
        made[f"a location with {name}.onnx"] = data, "no name of a file"
    for number, data in enumerate((b"", bytes(64), b"PK\3\4 and so on", b"\x08" * 999)):
        made[f"no file {number}.onnx"] = data, "no ONNX file|of less than 2 GiB"
    return made


def coco(folder: Path) -> Made:
    image = {"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}
    whole = {
        "images": [image],
        "annotations": [],
        "categories": [{"id": 3, "name": "a"}],
    }
    texts: dict[str, Any] = {
        "no object": "[]",
        "nested": NESTED,
        "no images": {**whole, "images": []},
        "images no list": {**whole, "images": {}},
        "an image twice": {**whole, "images": [image, image]},
        "a huge image": {**whole, "images": [{**image, "width": 10**30}]},
        "a width of text": {**whole, "images": [{**image, "width": "wide"}]},
        "an image no object": {**whole, "images": [7]},
        "no categories": {**whole, "categories": []},
        "a number of 5000 digits": '{"images": [' + "9" * 5000 + "]}",
    }
    return {
        f"{name}.json": ((t if isinstance(t, str) else json.dumps(t)).encode(), ".")
        for name, t in texts.items()
    }


def kserve(folder: Path) -> Made:
    """A line with the header `Inference-Header-Content-Length`, or an empty one; the body."""
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 2, 2]}
    binary = {**entry, "parameters": {"binary_data_size": 12}}
    many = {**entry, "shape": [2**31 - 1] * 4, "parameters": {"binary_data_size": 2**124}}
    bodies: dict[str, tuple[Any, str]] = {
        "no JSON": ("{", "not JSON"),
        "nested": (NESTED, "not JSON"),
        "a list": ("[]", "."),
        "no inputs": ({}, "."),
        "an unknown datatype": ({"inputs": [{**entry, "datatype": "OBJECT"}]}, "expected"),
        "a negative length": ({"inputs": [{**entry, "shape": [-1]}]}, "needs a shape"),
        "a length of truth": ({"inputs": [{**entry, "shape": [True]}]}, "needs a shape"),
        "a huge shape": ({"inputs": [{**entry, "shape": [2**30, 2**30], "data": []}]}, "."),
        "more than there is": ({"inputs": [binary]}, "bytes of binary data, expected 12"),
        "gigantic": ({"inputs": [many]}, "."),
        "data nested": ({"inputs": [{**entry, "data": [[[[[[9]]]]]]}]}, "."),
        "data of text": ({"inputs": [{**entry, "data": ["a"] * 12}]}, "."),
        "data out of range": ({"inputs": [{**entry, "data": [10**30] * 12}]}, "."),
        "twice": ({"inputs": [{**entry, "data": [1] * 12}] * 2}, "there twice"),
    }
    made: Made = {}
    for name, (body, message) in bodies.items():
        text = body if isinstance(body, str) else json.dumps(body)
        made[f"{name}.request"] = b"\n" + text.encode(), message
    text = json.dumps({"inputs": [binary]})
    for name, line in (("length 0", "0"), ("length text", "x"), ("length huge", "9" * 19)):
        made[f"{name}.request"] = f"{line}\n{text}".encode() + bytes(12), "expected the length"
    made["bytes to spare.request"] = f"{len(text)}\n{text}".encode() + bytes(13), "1 bytes follow"
    return made


def settings(folder: Path) -> Made:
    return {
        "recipe unknown.json": (b'{"evil": 1}', "unknown recipe key 'evil'"),
        "recipe infinite.json": (b'{"learning_rate": 1e999}', "learning_rate"),
        "recipe gigantic.json": (b'{"batch": 1e300}', "batch"),
        "recipe nested.json": (NESTED.encode(), "not valid JSON"),
        "recipe list.json": (b"[1]", "."),
        "tuning list.json": (b"[]", "."),
        "tuning nested.json": (NESTED.encode(), "cannot be read as a tuning file"),
        "tuning number.json": (b'{"res2.0.conv1": 7}', "."),
        "tuning text.json": (b"\xff\xfe\x00", "."),
        "code.yaml": (b"a: !!python/object/apply:os.system ['touch an_attack_ran']\n", "."),
        "deep.yaml": (b"a: " + b"[" * 5000, "."),
        "tabs.yaml": (b"a:\n\t- b\n", "."),
    }


def packed(folder: Path) -> Made:
    """Tables with a right digest; the key that the test asks for is "attack"."""

    def file(values: Any, weights: bytes = bytes(64)) -> bytes:
        table = values if isinstance(values, bytes) else json.dumps(values).encode()
        start = packed_cache._START
        place = start.size + len(weights)
        digest = hashlib.sha256(table).digest()
        return start.pack(packed_cache._MAGIC, place, len(table), digest) + weights + table

    def of(*numbers: Any) -> bytes:
        return file({**good, "operations": {"stem.conv": numbers}})

    good = {"key": "attack", "version": [], "sha256": "?"}
    damaged = "the table is damaged"
    return {
        "empty.packed": (b"", "truncated"),
        "short.packed": (b"x" * 20, "truncated"),
        "another file.packed": (b"x" * 200, "not a file of packed weights"),
        "table elsewhere.packed": (file({})[:-1], "truncated"),
        "digest.packed": (file({})[:-1] + b"]", damaged),
        "no JSON.packed": (file(b"{"), damaged),
        "nested.packed": (file(NESTED.encode()), damaged),
        "a list.packed": (file([]), damaged),
        "no operations.packed": (file(good), damaged),
        "outside.packed": (of(0, 10**6, "sparse", 1, 1), damaged),
        "before.packed": (of(-64, 64, "sparse", 1, 1), damaged),
        "backwards.packed": (of(128, 64, "sparse", 1, 1), damaged),
        "a float.packed": (of(0.0, 64, "sparse", 1, 1), damaged),
        "a huge sum.packed": (of(0, 64, "sparse", 1, 1 << 64), damaged),
        "too few.packed": (of(0, 64), damaged),
    }
