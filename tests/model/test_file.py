"""The model file: round trips, hostile files, the documented reader, folding and counting."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sparsedet.errors import InputError
from sparsedet.model.batch_norm import fold_batch_norm
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import (
    StorageDtype,
    Tensors,
    check_tensors,
    load_model,
    save_model,
    tensor_shapes,
)
from sparsedet.model.presets import PRESETS, preset
from sparsedet.model.sparsity import sparsity_report
from sparsedet.pruning.allocation import prunable_layers, uniform_zeros

ROOT = Path(__file__).parents[2]
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


def random_tensors(config: ModelConfig, density: float, seed: int = 0) -> Tensors:
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


def stored_names(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.4, 0.95, 1.0])
def test_round_trip(tmp_path: Path, density: float, dtype: StorageDtype) -> None:
    path = tmp_path / "m.safetensors"
    tensors = random_tensors(TINY, density)
    save_model(path, TINY, tensors, PROVENANCE, dtype=dtype)
    model = load_model(path)
    assert model.config == TINY
    assert model.provenance == PROVENANCE
    assert model.storage_dtype == dtype
    assert list(model.tensors) == list(tensor_shapes(TINY))
    for name, value in tensors.items():
        expected = value if name.endswith(".bias") else value.astype(dtype).astype(np.float32)
        assert model.tensors[name].dtype == np.float32
        assert model.tensors[name].flags.writeable
        assert np.array_equal(model.tensors[name], expected), name
    sparse = [name for name in stored_names(path) if name.endswith(".mask")]
    if density in (0.0, 0.002, 0.4):
        assert len(sparse) > 15
    elif density == 1.0:
        assert not sparse


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17])
def test_each_single_bit_of_a_mask(tmp_path: Path, count: int) -> None:
    channels = {"bottleneck_channels": (2, 3, 3, 1), "stage_channels": (5, 6, count, 9)}
    config = replace(TINY, **channels)  # type: ignore[arg-type]
    tensors = random_tensors(config, 0.0)
    weight = tensors["res5.0.conv1.weight"]
    assert weight.size == count
    for element in range(count):
        weight[:] = 0
        weight.flat[element] = -1.5
        save_model(tmp_path / "m", config, tensors, {}, overwrite=True)
        assert np.array_equal(load_model(tmp_path / "m").tensors["res5.0.conv1.weight"], weight)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_every_preset_survives_the_metadata(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    save_model(tmp_path / "a", TINY, tensors, PROVENANCE)
    save_model(tmp_path / "b", TINY, dict(reversed(tensors.items())), PROVENANCE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_model(tmp_path / "a")
    save_model(tmp_path / "c", loaded.config, loaded.tensors, loaded.provenance)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_tensors_in_another_memory_order(tmp_path: Path, density: float) -> None:
    tensors = random_tensors(TINY, density)
    turned = {name: np.asfortranarray(value) for name, value in tensors.items()}
    save_model(tmp_path / "a", TINY, tensors, {})
    save_model(tmp_path / "b", TINY, turned, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sparse_form_is_chosen_where_it_is_smaller(tmp_path: Path) -> None:
    """rpn.conv has 189 elements, so 24 bytes of mask: 12 zeros in float16 break even."""
    tensors = random_tensors(TINY, 1.0)
    for zeros, smaller in ((12, False), (13, True)):
        tensors["rpn.conv.weight"].reshape(-1)[:zeros] = 0
        save_model(tmp_path / "m", TINY, tensors, {}, overwrite=True)
        assert ("rpn.conv.weight.mask" in stored_names(tmp_path / "m")) == smaller


def test_float16_rounding_to_zero_clears_the_mask(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    weight = tensors["rpn.conv.weight"].reshape(-1)
    weight[:] = 0
    weight[:4] = 2.0**-24, 2.0**-25, -1e-30, 65519.0  # smallest float16, half of it, the largest
    save_model(tmp_path / "m", TINY, tensors, {})
    assert stored_names(tmp_path / "m")["rpn.conv.weight.values"].tolist() == [2.0**-24, 65504.0]
    found = load_model(tmp_path / "m").tensors["rpn.conv.weight"].reshape(-1)
    assert found[:5].tolist() == [2.0**-24, 0, 0, 65504.0, 0]
    weight[3] = 65520.0
    with pytest.raises(InputError, match=r"'rpn.conv.weight' holds 65520, .*float32"):
        save_model(tmp_path / "over", TINY, tensors, {})
    save_model(tmp_path / "over", TINY, tensors, {}, dtype="float32")


def test_biases_keep_float32(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    tensors["rpn.conv.bias"][:] = 1e-30, 1e30, 1 / 3
    tensors["box.logits.bias"][:] = 0
    save_model(tmp_path / "m", TINY, tensors, {})
    assert np.array_equal(
        load_model(tmp_path / "m").tensors["rpn.conv.bias"], tensors["rpn.conv.bias"]
    )
    assert stored_names(tmp_path / "m")["box.logits.bias"].tolist() == [0, 0, 0]  # no mask


def test_published_network_is_at_most_50_mb(tmp_path: Path) -> None:
    """r101-c4 at 60 % of all parameters, float16: the size depends on counts alone."""
    config = preset("r101-c4")
    graph = build_graph(config)
    zeros = uniform_zeros(graph, prunable_layers(graph), 0.6)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        tensors[name] = np.ones(shape, np.float32)
        tensors[name].reshape(-1)[: zeros.get(name.removesuffix(".weight"), 0)] = 0
    path = tmp_path / "m"
    save_model(path, config, tensors, {})
    assert path.stat().st_size <= 50_000_000
    report = sparsity_report(config, load_model(path).tensors)
    assert report.parameters == 52_792_416
    assert 0.6 <= report.sparsity < 0.6001


# ------------------------------------------------------------- what others can read


def test_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    tensors = random_tensors(TINY, 0.3)
    save_model(path, TINY, tensors, PROVENANCE, dtype="float32")
    stored = stored_names(path)
    mask = np.unpackbits(stored["rpn.conv.weight.mask"], count=189, bitorder="little")
    weight = tensors["rpn.conv.weight"].reshape(-1)
    assert np.array_equal(mask, weight != 0)
    assert np.array_equal(stored["rpn.conv.weight.values"], weight[weight != 0])
    assert np.array_equal(stored["rpn.conv.bias"], tensors["rpn.conv.bias"])
    offset = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert offset % 8 == 0

    # And the other way round: the library's own writing order is accepted.
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sparsedet" and metadata["format_version"] == "1"
    safetensors.numpy.save_file(stored, tmp_path / "other", metadata)
    found = load_model(tmp_path / "other")
    assert all(np.array_equal(found.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_documented_reader(tmp_path: Path, dtype: StorageDtype) -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    path = tmp_path / "m"
    save_model(path, TINY, random_tensors(TINY, 0.4), {}, dtype=dtype)
    config, tensors = scope["read"](path)
    model = load_model(path)
    assert ModelConfig.from_dict(config) == TINY
    assert set(tensors) == set(model.tensors)
    assert all(np.array_equal(tensors[name], model.tensors[name]) for name in tensors)


# ----------------------------------------------------------------- refusing to write


def test_existing_file_is_kept_unless_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("mine")
    tensors = random_tensors(TINY, 0.5)
    with pytest.raises(InputError, match=r"m: exists already"):
        save_model(path, TINY, tensors, {})
    assert path.read_text() == "mine"
    save_model(path, TINY, tensors, {}, overwrite=True)
    assert load_model(path).config == TINY


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in ("missing/m", "file/m", "folder"):
        with pytest.raises(InputError, match=rf"{path}: cannot be written"):
            save_model(tmp_path / path, TINY, tensors, {}, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    save_model(tmp_path / "m", TINY, tensors, {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "m"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    for name in ("stem.conv.weight", "box.deltas.bias"):
        tensors = random_tensors(TINY, 0.5)
        tensors[name].reshape(-1)[-1] = bad
        with pytest.raises(InputError, match=f"'{name}' holds NaN or infinity"):
            save_model(tmp_path / "m", TINY, tensors, {})
    assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_fit_the_model() -> None:
    tensors = random_tensors(TINY, 1.0)
    check_tensors(TINY, tensors)
    name = "res5.0.conv2.weight"
    for change, message in (
        ({name: None}, "is missing"),
        ({name: tensors[name][:1]}, r"has shape \(1, 5, 3, 3\), expected \(5, 5, 3, 3\)"),
        ({name: tensors[name].astype(np.float64)}, "is float64, expected float32"),
        ({"res6.weight": tensors[name]}, "'res6.weight' belongs to no layer of 'tiny'"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(InputError, match=message):
            check_tensors(TINY, changed)


@pytest.mark.parametrize("provenance", [{"x": object()}, {"x": float("nan")}, {"x": "a" * 2**20}])
def test_provenance_that_cannot_be_stored(tmp_path: Path, provenance: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="provenance"):
        save_model(tmp_path / "m", TINY, random_tensors(TINY, 0.5), provenance)
    assert not list(tmp_path.iterdir())


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype is 'int8'"):
        save_model(tmp_path / "m", TINY, random_tensors(TINY, 0.5), {}, dtype="int8")  # type: ignore[arg-type]


# ------------------------------------------------------------------- hostile files


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


def _config(**changes: Any) -> Callable[[Parts], None]:
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


def _gigantic(p: Parts) -> None:
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
    "unknown key": (_config(rce="import os"), "unknown configuration key 'rce'"),
    "gigantic channels": (_config(rpn_channels=65536), r"\[65536, 7, 3, 3\]"),
    "gigantic, said twice": (_gigantic, r"has shape \[24\], expected \[516096\]"),
    "a billion blocks": (_config(blocks=[1, 1, 10**9, 1]), "blocks is .* expected"),
    "a thousand blocks": (_config(blocks=[1, 1, 1000, 1]), "do not fit a file of"),
    "half a block": (_config(blocks=[1, 1.5, 1, 1]), "configuration cannot be used"),
    "fractional channels": (_config(bottleneck_channels=[2, 3, 3.0, 5]), "configuration cannot"),
    "blocks of text": (_config(blocks=["1", "1", "1", "1"]), "configuration cannot be used"),
    "too few paddings": (_config(stem_padding=[3]), "configuration cannot be used"),
    "infinite padding": (
        lambda p: p.meta.update(config=p.meta["config"].replace("[3,3]", "[1e999,3]", 1)),
        "1e999 is not a finite number",
    ),
    "empty map": (_config(stem_padding=[-500, 3]), "configuration cannot be used"),
    "other class count": (_config(class_names=["a"], category_ids=[1]), r"\[2, 9\]"),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "m"
    save_model(path, TINY, random_tensors(TINY, 0.4), PROVENANCE)
    return path.read_bytes()


def refusal(path: Path) -> str:
    """The text of the error that reading `path` gives: one line that begins with the name."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text.splitlines()) == 1
    return text.removeprefix(f"{path}: ")


def test_parts_alone_change_nothing(tmp_path: Path, valid: bytes) -> None:
    (tmp_path / "m").write_bytes(Parts(valid).join())
    assert load_model(tmp_path / "m").config == TINY


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path: Path, valid: bytes, case: str) -> None:
    change, message = HOSTILE[case]
    parts = Parts(valid)
    change(parts)
    (tmp_path / "m").write_bytes(parts.join())
    assert re.search(message, refusal(tmp_path / "m"))


def test_refusing_allocates_next_to_nothing(tmp_path: Path, valid: bytes) -> None:
    for change in (_gigantic, _config(rpn_channels=10**12), _config(blocks=[1, 1, 10**9, 1])):
        parts = Parts(valid)
        change(parts)
        (tmp_path / "m").write_bytes(parts.join())
        tracemalloc.start()
        refusal(tmp_path / "m")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000


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


@pytest.mark.parametrize("case", RAW)
def test_raw_bytes(tmp_path: Path, case: str) -> None:
    content, message = RAW[case]
    (tmp_path / "m").write_bytes(content)
    text = refusal(tmp_path / "m")
    assert message in text and len(text) <= 300


@pytest.mark.slow
def test_torch_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pth")
    assert refusal(tmp_path / "m.pth") == (
        "a PyTorch or ZIP file, so not a sparsedet model; first: sparsedet convert FILE -o MODEL"
    )


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing") == "No such file or directory"
    assert refusal(tmp_path) == "Is a directory"


def outcome(path: Path, content: bytes) -> bool:
    """Does it load? Anything but a model or a proper refusal fails the test."""
    path.write_bytes(content)
    try:
        model = load_model(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
        return False
    check_tensors(model.config, model.tensors)
    return True


def test_every_truncation_is_refused(tmp_path: Path, valid: bytes) -> None:
    for length in [*range(0, 64), *range(64, len(valid), 61), len(valid) - 1]:
        assert not outcome(tmp_path / "m", valid[:length])


@pytest.mark.parametrize("where", ["length", "header", "data"])
def test_flipped_bytes(tmp_path: Path, valid: bytes, where: str) -> None:
    rng = np.random.default_rng(7)
    start = 8 + int.from_bytes(valid[:8], "little")
    low, high = {"length": (0, 8), "header": (8, start), "data": (start, len(valid))}[where]
    loaded = 0
    for _ in range(100 if where == "length" else 400):
        content = bytearray(valid)
        for at in rng.integers(low, high, rng.integers(1, 3)):
            # Digits and brackets reach further into the parser than noise does.
            content[at] = rng.choice([*b'0129-.e[]{}",: n', rng.integers(256)])
        if content != valid:  # a byte may have been what it became
            loaded += outcome(tmp_path / "m", bytes(content))
    assert (loaded > 0) == (where != "length")  # the fuzz reaches past the first check


# ------------------------------------------------------------- batch norm, sparsity


def training_form(config: ModelConfig, seed: int = 0) -> Tensors:
    """Tensors with random batch norms, and 60 % zeros."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(config, 0.4, seed)
    for layer in build_graph(config).layers:
        if layer.norm:
            del tensors[f"{layer.name}.bias"]
            for part in ("weight", "bias", "running_mean", "running_var"):
                low = 0 if part == "running_var" else -1
                value = rng.uniform(low, 1, layer.out_channels).astype(np.float32)
                tensors[f"{layer.name}.norm.{part}"] = value
    return tensors


def test_fold_batch_norm_equals_the_formula() -> None:
    tensors = training_form(TINY)
    folded = fold_batch_norm(tensors, TINY)
    check_tensors(TINY, folded)
    norm = {
        part: tensors[f"res3.0.conv2.norm.{part}"][1].item()
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    scale = norm["weight"] / (norm["running_var"] + 1e-5) ** 0.5
    expected = tensors["res3.0.conv2.weight"][1].astype(np.float64) * scale
    np.testing.assert_allclose(folded["res3.0.conv2.weight"][1], expected, rtol=1e-6)
    bias = norm["bias"] - norm["running_mean"] * scale
    np.testing.assert_allclose(folded["res3.0.conv2.bias"][1], bias, rtol=1e-6)
    zeros = tensors["res3.0.conv2.weight"] == 0
    assert zeros.any() and np.array_equal(folded["res3.0.conv2.weight"] == 0, zeros)


@pytest.mark.slow
def test_fold_batch_norm_equals_torch() -> None:
    pytest.importorskip("torch")
    from sparsedet.torch_model import FasterRCNN

    tensors = training_form(TINY)
    model = FasterRCNN(TINY, norm=True)
    model.load_tensors(tensors)
    folded = fold_batch_norm(tensors, TINY)
    for name, expected in model.folded_tensors().items():
        np.testing.assert_allclose(folded[name], expected, rtol=1e-5, atol=1e-6)


def test_folding_twice_changes_nothing() -> None:
    tensors = training_form(TINY)
    once = fold_batch_norm(tensors, TINY)
    twice = fold_batch_norm(once, TINY)
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert all(
        np.array_equal(once[f"rpn.conv.{part}"], tensors[f"rpn.conv.{part}"])
        for part in ("weight", "bias")
    )


def test_folding_names_what_is_wrong() -> None:
    tensors = training_form(TINY)
    name = "res2.0.conv1.norm"
    for change, message in (
        ({f"{name}.running_mean": None}, "running_mean' is missing"),
        ({f"{name}.bias": np.zeros(3)}, r"has shape \(3,\), expected \(2,\)"),
        ({f"{name}.running_var": np.array([1.0, -1.0])}, "running_var' is negative"),
        ({f"{name}.running_var": np.array([1.0, np.nan])}, "running_var' is negative or not"),
        ({f"{name}.weight": np.array([1.0, 1e300])}, "res2.0.conv1.weight' holds NaN or inf"),
        ({"rpn.conv.norm.weight": np.ones(3)}, "'rpn.conv.norm.weight' belongs to no layer"),
        ({"res2.0.conv1.bias": np.zeros(2)}, "'res2.0.conv1.bias' belongs to no layer"),
        ({f"{name}.weight": None}, "res2.0.conv1.bias' is missing"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(InputError, match=message):
            fold_batch_norm(changed, TINY)


def test_sparsity_report() -> None:
    tensors = random_tensors(TINY, 1.0)
    tensors["rpn.conv.weight"].reshape(-1)[:100] = 0  # 189 weights
    tensors["rpn.conv.bias"][0] = 0
    tensors["box.logits.weight"][0] = 0  # 9 of 27
    report = sparsity_report(TINY, tensors, rois=10)
    graph = build_graph(TINY)
    assert [row.name for row in report.layers] == [layer.name for layer in graph.layers]
    rows = {row.name: row for row in report.layers}
    conv, logits = rows["rpn.conv"], rows["box.logits"]
    assert (conv.shape, conv.parameters, conv.zeros) == ((3, 7, 3, 3), 192, 101)
    assert conv.sparsity == 101 / 192
    assert (conv.macs, conv.sparse_macs) == (189 * 20 * 30, 89 * 20 * 30)
    assert (logits.macs, logits.sparse_macs) == (270, 180)
    assert rows["stem.conv"].zeros == 0
    assert report.parameters == graph.parameters
    assert report.zeros == 110 and report.sparsity == 110 / graph.parameters
    assert report.gflops == pytest.approx(graph.flops(10) * 1e-9)
    saved = 2e-9 * (100 * 600 + 90)
    assert report.sparse_gflops == pytest.approx(report.gflops - saved)
    assert sparsity_report(TINY, tensors).rois == TINY.proposals


@pytest.mark.slow
def test_torch_takes_the_tensors_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from sparsedet.torch_model import FasterRCNN

    tensors = random_tensors(TINY, 0.5)
    save_model(tmp_path / "m", TINY, tensors, PROVENANCE, dtype="float32")
    model = load_model(tmp_path / "m")
    reference = FasterRCNN(require_c4(model.config, "trained"))
    reference.load_tensors(model.tensors)
    folded = reference.folded_tensors()
    assert all(np.array_equal(folded[name], tensors[name]) for name in tensors)
