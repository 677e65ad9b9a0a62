"""Hostile model files, version 1: a small valid file with one thing changed, and raw bytes."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet.model.detector_config import Config
from sparsedet.model.file import Tensors, save_model, tensor_shapes
from sparsedet.model.presets import preset

PROVENANCE = {"recipe": "none", "data": ["näher", "\N{SNOWMAN}"], "steps": 3, "ap": 0.125}

# Odd channel counts, so that hardly any element count is a multiple of 8.
TINY = replace(
    preset("r50half-c4"),
    name="tiny",
    blocks=(1, 1, 1, 1),
    stem_channels=3,
    bottleneck_channels=(2, 3, 3, 5),
    stage_channels=(5, 6, 7, 9),
    rpn_channels=3,
    class_names=("cat", "dög"),
    category_ids=(17, 18),
)


def random_tensors(config: Config, density: float, seed: int = 0) -> Tensors:
    """Biases, and weights of that density (of which at least one is nonzero unless 0)."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        value = rng.standard_normal(shape).astype(np.float32)
        if name.endswith(".weight"):
            dense = value.copy()
            value[rng.random(shape) >= density] = 0
            if density:
                value.flat[-1] = dense.flat[-1]
        tensors[name] = value
    return tensors


class Parts:
    """A valid file taken apart, to be changed and put together again."""

    def __init__(self, raw: bytes) -> None:
        length = int.from_bytes(raw[:8], "little")
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = bytearray(raw[8 + length :])
        self.meta: dict[str, Any] = self.header["__metadata__"]

    def edit(self, key: str, **changes: Any) -> None:
        """Change entries of one of the JSON texts in the metadata."""
        self.meta[key] = json.dumps({**json.loads(self.meta[key]), **changes})

    def join(self) -> bytes:
        text = json.dumps(self.header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(self.data)

    def insert(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        end = len(self.data)
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        self.data += data

    def replace(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """Another tensor in the place of one; the rest moves up or down."""
        begin, end = self.header[name]["data_offsets"]
        self.data[begin:end] = data
        for entry in self.header.values():
            if "data_offsets" in entry and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [n + len(data) - end + begin for n in entry["data_offsets"]]
        offsets = [begin, begin + len(data)]
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MASK, VALUES, BIAS = "rpn.conv.weight.mask", "rpn.conv.weight.values", "rpn.conv.bias"
LAST = "stem.conv.weight.mask"  # in the file


def _entry(name: str, **changes: Any) -> Callable[[Parts], None]:
    return lambda p: p.header[name].update(changes)


def change_config(**changes: Any) -> Callable[[Parts], None]:
    return lambda p: p.edit("config", **changes)


def _meta(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda p: p.meta.update({key: value})


def _overlap(p: Parts) -> None:
    begin, end = p.header[MASK]["data_offsets"]
    p.header[MASK]["data_offsets"] = [begin - 8, end - 8]


def _last_reversed(p: Parts) -> None:
    begin, _ = p.header[LAST]["data_offsets"]
    p.header[LAST]["data_offsets"] = [begin, begin - 24]


def _no_data(p: Parts) -> None:
    p.data.clear()


def _flip_mask_bit(p: Parts) -> None:
    p.data[p.header[MASK]["data_offsets"][0]] ^= 1


def _padding_bit(p: Parts) -> None:
    """One bit moved from the elements to past their end: the count still agrees."""
    begin, end = p.header[MASK]["data_offsets"]
    assert p.data[end - 1] < 32  # 189 elements: five bits of the last byte
    at = next(i for i in range(begin, end) if p.data[i])
    p.data[at] &= p.data[at] - 1
    p.data[end - 1] |= 128


def _put_float(name: str, value: float, dtype: str) -> Callable[[Parts], None]:
    def change(p: Parts) -> None:
        begin = p.header[name]["data_offsets"][0]
        raw = np.array(value, dtype).tobytes()
        p.data[begin : begin + len(raw)] = raw

    return change


def _signalling_nan(p: Parts) -> None:
    begin = p.header[VALUES]["data_offsets"][0]
    p.data[begin : begin + 2] = b"\x01\x7c"


def gigantic(p: Parts) -> None:
    """The list of sparse tensors agrees with the configuration; the bytes do not."""
    p.edit("config", rpn_channels=65536)
    p.edit("sparse", **{"rpn.conv.weight": [65536, 7, 3, 3]})


def _mixed(p: Parts) -> None:
    values = np.frombuffer(bytes(p.data[slice(*p.header[VALUES]["data_offsets"])]), "<f2")
    p.replace(VALUES, "F32", [len(values)], values.astype("<f4").tobytes())


HOSTILE: dict[str, tuple[Callable[[Parts], Any], str]] = {
    # the container
    "no metadata": (lambda p: p.header.pop("__metadata__"), "not a sparsedet model"),
    "metadata a list": (lambda p: p.header.update(__metadata__=[]), "not a table of strings"),
    "metadata a number": (_meta("format_version", 1), "not a table of strings"),
    "another program's": (_meta("format", "pt"), "not a sparsedet model"),
    "newer version": (
        _meta("format_version", "3"),
        "format version '3', this program reads '1' and '2'",
    ),
    "version 2 without a graph": (_meta("format_version", "2"), "no 'graph'"),
    "no config": (lambda p: p.meta.pop("config"), "no 'config'"),
    "no sparse list": (lambda p: p.meta.pop("sparse"), "no 'sparse'"),
    "no provenance": (lambda p: p.meta.pop("provenance"), "no 'provenance'"),
    "provenance no JSON": (_meta("provenance", "{"), "provenance is not valid JSON"),
    "provenance NaN": (_meta("provenance", '{"x":NaN}'), "NaN is not a finite number"),
    "provenance a list": (_meta("provenance", "[]"), "provenance is not a JSON object"),
    "entry a list": (lambda p: p.header.update({MASK: []}), "expected dtype, shape"),
    "entry incomplete": (lambda p: p.header[MASK].pop("shape"), "expected dtype, shape"),
    "entry with more": (_entry(MASK, more=1), "expected dtype, shape"),
    "negative size": (_entry(MASK, shape=[-24]), "expected dtype, shape"),
    "shape of floats": (_entry(MASK, shape=[24.0]), "expected dtype, shape"),
    "shape of truths": (_entry(MASK, shape=[True]), "expected dtype, shape"),
    "shape a number": (_entry(MASK, shape=24), "expected dtype, shape"),
    "one offset": (_entry(MASK, data_offsets=[0]), "expected dtype, shape"),
    "negative offset": (_entry(MASK, data_offsets=[-24, 0]), "expected dtype, shape"),
    "offsets reversed": (_entry(MASK, data_offsets=[24, 0]), "expected to start at"),
    "offsets out of range": (_entry(LAST, data_offsets=[10**30, 10**30 + 1]), "is at bytes"),
    "last one reversed": (_last_reversed, "bytes after its last tensor"),
    "overlap": (_overlap, "expected to start at"),
    "hole": (lambda p: p.header.pop(MASK), "expected to start at"),
    "longer than the file": (lambda p: p.data.pop(), "truncated: has"),
    "no data": (_no_data, "truncated: has 0 of"),
    "bytes to spare": (lambda p: p.data.append(0), "has 1 bytes after its last tensor"),
    "end moved": (
        lambda p: p.header[LAST]["data_offsets"].__setitem__(1, 10**12),
        "truncated: has",
    ),
    # tensors against the graph
    "bias of another type": (_entry(BIAS, dtype="U8"), "is 'U8', expected 'F32'"),
    "unknown type": (_entry(BIAS, dtype="F8_E4M3"), "is 'F8_E4M3', expected 'F32'"),
    "type no text": (_entry(BIAS, dtype={"a": 1}), "expected 'F32'"),
    "mixed types": (_mixed, "is 'F32', expected 'F16'"),
    "mask of another type": (_entry(MASK, dtype="I8"), "is 'I8', expected 'U8'"),
    "bias of another shape": (_entry(BIAS, shape=[1, 3]), r"shape \[1, 3\], expected \[3\]"),
    "shape gigantic": (_entry(BIAS, shape=[10**18]), r"expected \[3\]"),
    "fewer bytes than its shape": (
        lambda p: p.replace(BIAS, "F32", [3], bytes(8)),
        "8 bytes, which does not fit",
    ),
    "values with an odd byte": (
        lambda p: p.replace(VALUES, "F16", [1], bytes(3)),
        "3 bytes, which does not fit",
    ),
    "values of two axes": (_entry(VALUES, shape=[1, 1]), r"shape \[1, 1\], expected"),
    "mask too short": (lambda p: p.replace(MASK, "U8", [23], bytes(23)), r"expected \[24\]"),
    "values too few": (lambda p: p.replace(VALUES, "F16", [0], b""), "for 0 values"),
    "mask bit flipped": (_flip_mask_bit, "bits set for"),
    "mask bit past the end": (_padding_bit, "and 189 elements"),
    "missing tensor": (lambda p: p.header.update(x=p.header.pop(BIAS)), "conv.bias' is missing"),
    "extra tensor": (lambda p: p.insert("x.bias", "F32", [1], bytes(4)), "'x.bias' occurs twice"),
    "dense beside sparse": (
        lambda p: p.insert("rpn.conv.weight", "F16", [3, 7, 3, 3], bytes(378)),
        "'rpn.conv.weight' occurs twice",
    ),
    "NaN value": (_put_float(VALUES, float("nan"), "<f2"), "'rpn.conv.weight' holds NaN"),
    "signalling NaN": (_signalling_nan, "'rpn.conv.weight' holds NaN"),
    "infinite bias": (_put_float(BIAS, float("inf"), "<f4"), "'rpn.conv.bias' holds NaN or inf"),
    # the list of sparse tensors
    "sparse no JSON": (_meta("sparse", "x"), "list of sparse tensors is not valid JSON"),
    "sparse names nothing": (lambda p: p.edit("sparse", x=[1]), "'x' occurs twice"),
    "sparse shape": (
        lambda p: p.edit("sparse", **{"rpn.conv.weight": [189]}),
        r"expected shape \[3, 7, 3, 3\]",
    ),
    "sparse shape no list": (
        lambda p: p.edit("sparse", **{"rpn.conv.weight": None}),
        "expected shape",
    ),
    "not listed": (_meta("sparse", "{}"), "weight' is missing"),
    # the configuration
    "config no JSON": (_meta("config", "{'name': 1}"), "configuration .* not valid JSON"),
    "config a list": (_meta("config", "[]"), "not a JSON object"),
    "config key twice": (_meta("config", '{"name":"a","name":"b"}'), "'name' occurs twice"),
    "config deeply nested": (_meta("config", '{"a":' + "[" * 50_000), "not valid JSON"),
    "config nested less": (
        _meta("config", '{"name":"a","blocks":' + "[" * 900 + "]" * 900 + "}"),
        "configuration",
    ),
    "config nameless": (_meta("config", "{}"), "no 'name'"),
    "unknown key": (change_config(rce="import os"), "unknown configuration key 'rce'"),
    "gigantic channels": (change_config(rpn_channels=65536), r"\[65536, 7, 3, 3\]"),
    "gigantic, said twice": (gigantic, r"has shape \[24\], expected \[516096\]"),
    "a billion blocks": (change_config(blocks=[1, 1, 10**9, 1]), "blocks is .* expected"),
    "a thousand blocks": (change_config(blocks=[1, 1, 1000, 1]), "do not fit a file of"),
    "half a block": (change_config(blocks=[1, 1.5, 1, 1]), "configuration cannot be used"),
    "fractional channels": (
        change_config(bottleneck_channels=[2, 3, 3.0, 5]),
        "configuration cannot",
    ),
    "blocks of text": (change_config(blocks=["1", "1", "1", "1"]), "configuration cannot be used"),
    "too few paddings": (change_config(stem_padding=[3]), "configuration cannot be used"),
    "infinite padding": (
        lambda p: p.meta.update(config=p.meta["config"].replace("[3,3]", "[1e999,3]", 1)),
        "1e999 is not a finite number",
    ),
    "empty map": (change_config(stem_padding=[-500, 3]), "configuration cannot be used"),
    "other class count": (change_config(class_names=["a"], category_ids=[1]), r"\[2, 9\]"),
}


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


RAW: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "one byte": (b"\0", "not a safetensors file"),
    "length alone": (bytes(8), "not a safetensors file"),
    "a picture": (b"\xff\xd8\xff\xe0\0\x10JFIF", "not a safetensors file"),
    "absurd header": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "header over the limit": ((2**20 + 1).to_bytes(8, "little") + b"{}", "not a safetensors file"),
    "header cut off": ((500).to_bytes(8, "little") + b"{}", "truncated: 10 bytes"),
    "header of no length": (bytes(8) + b"{}", "header is not valid JSON"),
    "header no JSON": (_header(b"{]"), "header is not valid JSON"),
    "header no UTF-8": (_header(b'{"\xff":1}'), "header is not valid JSON"),
    "header in UTF-16": (_header("{}".encode("utf-16-le")), "header is not valid JSON"),
    "header nested": (_header(b'{"a":' + b"[" * 200_000), "header is not valid JSON"),
    "header a name": (_header(b'{"' + b"x" * 9000 + b'":0}'), "tensor 'xxx"),
    "key twice": (_header(b'{"__metadata__":{"a":"","a":""}}'), "'a' occurs twice"),
    "tensor twice": (_header(b'{"a\\n":{},"a\\u000a":{}}'), r"'a\n' occurs twice"),
    "nothing inside": (_header(b"{}"), "not a sparsedet model"),
    "old pickle": (pickle.dumps({"a": 1}, 2), "a pickle"),
    "new pickle": (pickle.dumps({"a": 1}, 5), "a pickle"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch\x1a\x03" + bytes(99), "an ONNX file"),
}


def files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content, and what the refusal says, as a regular expression."""
    path = folder / "valid"
    save_model(path, TINY, random_tensors(TINY, 0.4), PROVENANCE, overwrite=True)
    made = {}
    for case, (change, message) in HOSTILE.items():
        parts = Parts(path.read_bytes())
        change(parts)
        made[f"{case}.safetensors"] = parts.join(), message
    for case, (content, text) in RAW.items():
        made[f"{case}.safetensors"] = content, re.escape(text)
    return made
