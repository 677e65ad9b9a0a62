"""Packing from the stored form, and packed weights in a file: equal bytes, nothing trusted."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small import SMALL, picture
from numpy.typing import NDArray

from sparsedet._native import has_bfloat16
from sparsedet.backends import Backend
from sparsedet.detector import Detector, embedded_model
from sparsedet.engine import Engine, Memory, PackedWeights, available_isas
from sparsedet.engine import packed_cache as packed
from sparsedet.errors import InputError
from sparsedet.files import cache_folder
from sparsedet.model.file import ModelFile, StorageDtype, load_model, save_model
from sparsedet.model.presets import preset
from sparsedet.model.sparsity import sparsity_report
from sparsedet.model.tensors import LazyTensors, StoredTensor
from sparsedet.testing import random_tensors

# Odd numbers of channels, more columns than a panel and more rows than a chunk.
WIDE = replace(
    preset("r101-c4"),
    input_height=64,
    input_width=96,
    blocks=(1, 1, 1, 2),
    stem_channels=7,
    bottleneck_channels=(5, 13, 150, 33),
    stage_channels=(9, 21, 421, 65),
    rpn_channels=19,
)


@pytest.fixture(scope="module", params=["float32", "float16"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    dtype: StorageDtype = request.param
    save_model(path, WIDE, random_tensors(WIDE, 0.6), {}, dtype=dtype)
    return path


def streams(engine: Backend) -> dict[str, tuple[str, int, int, bytes]]:
    assert isinstance(engine, Engine)
    out = {}
    for name, *_ in engine.native.convolutions:
        algorithm, nonzero, checksum, pieces = engine.native.packed(name)
        out[name] = algorithm, nonzero, checksum, b"".join(pieces)
    return out


def memory(detector: Detector) -> Memory:
    assert isinstance(detector.engine, Engine)
    return detector.engine.memory


def stored_tensors(model: ModelFile) -> LazyTensors:
    assert isinstance(model.tensors, LazyTensors)
    return model.tensors


# ------------------------------------------------------------------- from the stored form


@pytest.mark.parametrize("algorithm", ["", "sparse", "dense", "rowwise", "winograd"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("isa", available_isas())
def test_the_same_streams_as_from_arrays(
    wide: Path, isa: str, precision: Any, algorithm: str
) -> None:
    if precision == "bf16" and not has_bfloat16(isa):
        pytest.skip("no bfloat16 here")
    options: dict[str, Any] = {"isa": isa, "precision": precision}
    tensors = dict(load_model(wide).tensors)
    names = Engine(WIDE, tensors, **options).native.convolutions
    if algorithm in ("rowwise", "winograd") and precision == "bf16":
        pytest.skip("it runs in float32 only")
    if algorithm == "rowwise" and isa == "scalar":
        pytest.skip("no map is small there")
    chosen = {name: algorithm for name, *_, eligible in names if algorithm in eligible}
    expected = streams(Engine(WIDE, tensors, threads=1, algorithms=chosen, **options))
    assert {a for a, *_ in expected.values()} & (
        {algorithm} if algorithm else {"sparse", "rowwise"}
    )
    for threads in (1, 2, 5):
        model = load_model(wide)
        from_file = streams(
            Engine(WIDE, model.tensors, threads=threads, algorithms=chosen, **options)
        )
        assert from_file == expected
        assert all(stored_tensors(model).is_stored(name) for name in model.tensors)


def test_no_dense_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(embedded_model("r50half-c4"))
    parameters = sum(np.prod(stored_tensors(model).shape(name)) for name in model.tensors)
    decoded = 0
    dense = StoredTensor.dense

    def counted(stored: StoredTensor) -> NDArray[np.float32]:
        nonlocal decoded
        decoded += int(np.prod(stored.shape))
        return dense(stored)

    monkeypatch.setattr(StoredTensor, "dense", counted)
    tracemalloc.start()
    detector = Detector.load("r50half-c4", threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < decoded < 0.1 * parameters  # the predictors, and biases
    assert peak < 4 * parameters / 2
    assert detector.sparsity == sparsity_report(model.config, dict(model.tensors)).sparsity
    assert all(stored_tensors(detector.model).is_stored(name) for name in model.tensors)


def test_an_array_that_was_changed_is_what_the_engine_takes(small_model: Path) -> None:
    model = load_model(small_model)
    before = Engine(SMALL, model.tensors).native.nonzero_weights
    weight = model.tensors["rpn.conv.weight"]
    weight[:] = 0
    assert model.tensors["rpn.conv.weight"] is weight
    lost = before - Engine(SMALL, model.tensors).native.nonzero_weights
    assert lost == np.count_nonzero(load_model(small_model).tensors["rpn.conv.weight"]) > 0


def test_the_file_may_go_but_not_change(small_model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(small_model, tmp_path / "m"))
    gone, changed = load_model(path), load_model(path)
    expected = dict(load_model(small_model).tensors)
    path.rename(tmp_path / "elsewhere")
    assert all(np.array_equal(gone.tensors[name], expected[name]) for name in expected)
    with open(tmp_path / "elsewhere", "r+b") as file:
        file.truncate(1000)
    for use in (lambda: changed.tensors["stem.conv.bias"], lambda: Engine(SMALL, changed.tensors)):
        with pytest.raises(InputError, match=r"m: the file has changed since it was opened"):
            use()


def test_what_the_core_refuses(small_model: Path) -> None:
    engine = Engine(SMALL, load_model(small_model).tensors, threads=1).native
    number = itertools.count()
    five = {"name": "five", "kind": "slice", "inputs": ["stem.conv"], "first": 0, "channels": 5}
    engine.add(five)  # 15 weights: the last bit of a mask is none

    def add(mask: list[int], values: NDArray[Any], bias: int = 3) -> None:
        fields = {
            "name": f"x{next(number)}",
            "kind": "conv",
            "inputs": ["five"],
            "in_channels": 5,
            "out_channels": 3,
            "kernel": (1, 1),
            "stride": 1,
            "padding": (0, 0, 0, 0),
            "dilation": 1,
            "groups": 1,
            "activation": "none",
            "type": "f32",
        }
        weight = np.array(mask, np.uint8), values
        engine.add(fields, weight=weight, bias=np.zeros(bias, np.float32))

    two = np.ones(2, np.float32)
    add([1, 64], two)
    add([1, 64], two.astype(np.float16))
    for mask in ([1], [1, 0], [3, 64], [1, 128], [1, 64, 0], []):
        with pytest.raises(ValueError, match="disagree"):
            add(mask, two)
    for values in (two.astype(np.int32), two.astype(np.float64)):
        with pytest.raises(ValueError, match="neither float32 nor float16"):
            add([1, 64], values)
    with pytest.raises(ValueError, match="bias"):
        add([1, 64], two, bias=2)


# ------------------------------------------------------------------------------ the cache


def load(model: Path, cache: Path, **options: Any) -> Detector:
    """Any warning is an error."""
    return Detector.load(model, threads=1, cache=cache, **options)


def rows(detector: Detector) -> NDArray[np.float32]:
    return detector(picture()).rows()


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("isa", available_isas())
def test_round_trip(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str, precision: str
) -> None:
    if precision == "bf16" and not has_bfloat16(isa):
        pytest.skip("no bfloat16 here")
    options: dict[str, Any] = {"isa": isa, "precision": precision}
    expected = Detector.load(small_model, threads=1, **options)
    first = load(small_model, tmp_path / "new" / "folder", **options)
    monkeypatch.setattr(packed, "_save", None)  # the second one needs none
    second = load(small_model, tmp_path / "new" / "folder", **options)
    for detector in (first, second):
        assert streams(detector.engine) == streams(expected.engine)
        assert np.array_equal(rows(detector), rows(expected))
        assert memory(detector) == memory(expected)
        assert detector.sparsity == expected.sparsity
    fork = second.engine.fork(1)
    network_input = np.zeros((64, 96, 3), np.uint8)
    want_rows = expected.engine.run(network_input)
    del second, detector
    assert np.array_equal(fork.run(network_input), want_rows)


def test_winograd_and_streams_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_model(path, WIDE, random_tensors(WIDE, 0.2), {})
    expected = streams(Engine(WIDE, load_model(path).tensors))
    assert "winograd" in {algorithm for algorithm, *_ in expected.values()}
    for _ in range(2):
        detector = Detector.load(path, threads=2, streams=2, cache=tmp_path / "cache")
        assert streams(detector.engine) == expected


def test_where_the_cache_lies(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "root"))
    Detector.load(small_model, threads=1)
    assert not (tmp_path / "root").exists()
    Detector.load(small_model, threads=1, cache=True)
    assert only_file(tmp_path / "root" / "packed").name.startswith("small-")
    monkeypatch.delenv("SPARSEDET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    Detector.load(small_model, threads=1, cache=True)
    assert only_file(tmp_path / ".cache" / "sparsedet" / "packed")


def test_a_file_for_each_way_to_pack(small_model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"plan": {"rpn.conv": "dense"}}))
    load(small_model, tmp_path / "c")
    load(small_model, tmp_path / "c", tuning=plan)
    load(small_model, tmp_path / "c", isa="scalar")
    load(small_model, tmp_path / "c", resize="stretch")  # packed alike
    assert len(list((tmp_path / "c").iterdir())) == 3
    assert streams(load(small_model, tmp_path / "c", tuning=plan).engine)["rpn.conv"][0] == "dense"


def test_another_model_of_the_same_name_and_header(small_model: Path, tmp_path: Path) -> None:
    path, cache = Path(shutil.copy(small_model, tmp_path / "m")), tmp_path / "c"
    before = rows(load(path, cache))
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for at in range(start + 3, start + 80, 4):  # the predictors' biases: float32s lie first
        content[at] ^= 0x80  # their signs
    path.write_bytes(content)
    detector = load(path, cache)
    assert np.array_equal(rows(detector), rows(Detector.load(path, threads=1)))
    assert not np.array_equal(rows(detector), before)
    assert only_file(cache)


def test_a_copy_of_the_model_is_the_same_model(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(small_model, tmp_path / "small.safetensors"))
    load(small_model, tmp_path / "c")
    monkeypatch.setattr(packed, "_save", None)
    load(path, tmp_path / "c")


def test_a_bad_value_is_found_before_anything_is_kept(small_model: Path, tmp_path: Path) -> None:
    content = bytearray(small_model.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start : start + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(InputError, match=r"m: tensor .* holds NaN or infinity"):
        load(tmp_path / "m", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_damage_anywhere_is_noticed_and_mended(small_model: Path, tmp_path: Path) -> None:
    expected = rows(load(small_model, tmp_path))
    file = only_file(tmp_path)
    good = file.read_bytes()
    table = int.from_bytes(good[8:16], "little")
    flips = [*range(0, 56, 3), *range(64, table, len(good) // 60), *range(table, len(good), 300)]
    for at in flips:
        content = bytearray(good)
        content[at] ^= 1 << at % 8
        file.write_bytes(content)
        with pytest.warns(RuntimeWarning, match="packed weights are damaged"):
            detector = load(small_model, tmp_path)
        assert np.array_equal(rows(detector), expected), at
        assert file.read_bytes() == good, at
    for damaged in (b"", good[:30], good[:64], good[:-1], good + b"\0", good[:table]):
        file.write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match="packed weights are damaged"):
            load(small_model, tmp_path)
        assert file.read_bytes() == good


def test_tables_that_lie(small_model: Path, tmp_path: Path) -> None:
    """With the right digest, as somebody who means harm would write it."""
    load(small_model, tmp_path)
    file = only_file(tmp_path)
    good = file.read_bytes()
    table = int.from_bytes(good[8:16], "little")
    values = json.loads(good[table:])
    name, entry = next(iter(values["operations"].items()))

    def operation(index: int, value: object) -> dict[str, Any]:
        changed = [value if i == index else v for i, v in enumerate(entry)]
        return {**values, "operations": {**values["operations"], name: changed}}

    rest = {k: v for k, v in values["operations"].items() if k != name}
    bad_algorithms: tuple[object, ...] = ("dense", "winograd", "", "x", None, 7, [])
    lies: list[Any] = [
        [],
        {},
        None,
        3,
        {**values, "operations": []},
        {**values, "operations": rest},
        {**values, "operations": {**rest, name: []}},
        {**values, "operations": {**rest, name: 7}},
        *(operation(i, v) for i in (0, 1) for v in (-64, 1, 2**70, 0.5, "0", None, True)),
        *(operation(2, v) for v in bad_algorithms),
        *(operation(3, v) for v in (-1, 2**63, 2**70, 0.5, None)),
        *(operation(4, v) for v in (-1, 0, 2**64, 0.5, None)),
        operation(1, entry[0]),
        operation(1, entry[1] + 64),
        operation(0, entry[0] + 64),
    ]
    for lie in lies:
        text = json.dumps(lie).encode()
        start = packed._START.pack(packed._MAGIC, table, len(text), hashlib.sha256(text).digest())
        file.write_bytes(start + good[64:table] + text)
        if lie == operation(2, "dense"):  # true of the weights as they lie
            load(small_model, tmp_path)
            continue
        with pytest.warns(RuntimeWarning, match="packed weights are damaged"):
            load(small_model, tmp_path)
        assert file.read_bytes() == good


def checksum(data: bytes) -> int:
    """The core's, of at most 256 KiB."""

    def mix(a: int, b: int) -> int:
        a = (a ^ b) * 0x9E3779B97F4A7C15 % 2**64
        return a ^ a >> 32

    def sums(data: bytes) -> int:
        lanes = [0] * 8
        for i in range(0, len(data), 8):
            lanes[i // 8 % 8] = mix(lanes[i // 8 % 8], int.from_bytes(data[i : i + 8], "little"))
        total = len(data)
        for lane in lanes:
            total = mix(total, lane)
        return total

    return sums(sums(data).to_bytes(8, "little") if data else b"")  # nothing has no piece


@pytest.mark.parametrize("isa", available_isas())
def test_weights_that_lie(small_model: Path, isa: str) -> None:
    """With the right checksum: nothing gets in by which a kernel would read out of bounds."""
    tensors = load_model(small_model).tensors
    good = Engine(SMALL, tensors, threads=1, isa=isa, algorithms={"rpn.conv": "sparse"})
    everything = streams(good)
    algorithm, nonzero, known, data = everything["rpn.conv"]
    assert checksum(data) == known
    network_input = np.zeros((64, 96, 3), np.uint8)

    def operation(data: bytes, checksum: int, algorithm: str, nonzero: int) -> PackedWeights:
        aligned = np.zeros(len(data) + 64, np.uint8)
        # What is empty begins where its array does, whatever the slice says.
        aligned = aligned[-aligned.ctypes.data % 64 :][: len(data)]
        aligned[:] = np.frombuffer(data, np.uint8)
        return PackedWeights(aligned, algorithm, nonzero, checksum)

    others = {n: operation(d, c, a, k) for n, (a, k, c, d) in everything.items()}

    def build(data: bytes) -> Engine:
        lie = operation(data, checksum(data), algorithm, nonzero)
        return Engine(SMALL, tensors, threads=1, isa=isa, packed={**others, "rpn.conv": lie})

    assert np.array_equal(build(data).run(network_input), good.run(network_input))
    halves = np.frombuffer(data, np.uint16)
    tile_rows = {"avx2": 3, "avxvnni": 3}.get(isa, 5)
    row_tiles = -(-SMALL.rpn_channels // tile_rows)
    blocks = -(-SMALL.stage_channels[2] * 9 // 1000)
    counts = row_tiles * blocks * (2**tile_rows - 1)
    kept = int(halves[:counts].sum())
    assert 0 < kept < len(halves) - counts
    lies = []
    for at in range(counts, counts + kept):  # indices: past the end, not at a column
        for value in (0xFFFF, halves[at] + 1, 0x8000):
            lies.append((at, value))
    for at in range(counts):  # counts: more than there are, down to fewer
        lies.append((at, 0xFFFF))
    for at, value in lies[:: max(1, len(lies) // 150)]:
        changed = halves.copy()
        changed[at] = value
        with pytest.raises(InputError, match="do not fit"):
            build(changed.tobytes())
    for cut in (data[:-64], data[: 2 * counts], b"", data + bytes(64)):
        with pytest.raises(InputError, match=r"do not fit|more packed weights|not aligned"):
            build(cut)
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever gets in can be run
        changed = halves.copy()
        changed[rng.integers(counts + kept)] = rng.integers(0x1000)
        with warnings.catch_warnings():
            try:
                engine = build(changed.tobytes())
            except InputError:
                continue
        engine.run(network_input)


@pytest.mark.parametrize("where", ["file/folder", "file"])
def test_a_folder_that_cannot_be_written(small_model: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.warns(RuntimeWarning, match=r"file.*: packed weights cannot be kept there \(.+\)"):
        detector = load(small_model, tmp_path / where)
    assert np.array_equal(rows(detector), rows(Detector.load(small_model, threads=1)))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nothing_is_left_of_a_full_disk(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        load(small_model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_processes_at_once(small_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys, sparsedet; sparsedet.Detector.load(sys.argv[1], threads=1, cache=sys.argv[2])"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(small_model), str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    only_file(tmp_path)
    load(small_model, tmp_path)


# ------------------------------------------------------------------------ the cache's folder


def test_one_folder_for_a_home_folder_in_the_environment(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARSEDET_CACHE", "~/x")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    Detector.load(small_model, threads=1, cache=True)
    assert cache_folder() == tmp_path / "home" / "x"
    assert packed.packed_folder(True) == cache_folder() / "packed"
    assert only_file(tmp_path / "home" / "x" / "packed").name.startswith("small-")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]  # and none named "~"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", packed.DEFAULT_LIMIT),
        ("0", 0),
        ("123456", 123456),
        ("500MB", 500 * 10**6),
        ("10GB", 10**10),
        ("1.5 gb", 1500 * 10**6),
        ("2k", 2000),
        ("1TB", 10**12),
    ],
)
def test_sizes_of_the_limit(monkeypatch: pytest.MonkeyPatch, text: str, limit: int) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", text)
    assert packed.cache_limit() == limit


@pytest.mark.parametrize("text", ["-1", "much", "10 XB", "GB", "1e9", "nan"])
def test_limits_that_are_no_size(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", text)
    with pytest.raises(InputError, match=f"SPARSEDET_CACHE_LIMIT is '{text}'"):
        load(small_model, tmp_path)


def copies(model: Path, folder: Path, names: str) -> list[Path]:
    """A copy of a model file for each letter."""
    folder.mkdir()
    return [Path(shutil.copy(model, folder / f"{name}.safetensors")) for name in names]


def stems(folder: Path) -> list[str]:
    """First letters of the packed files, the least recently used one first."""
    return [entry.path.name[0] for entry in packed.entries(folder)]


def age(folder: Path) -> None:
    """Make every file's last use distinct and past, in the order of the names."""
    for seconds, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (10**9 + seconds, 10**9 + seconds), follow_symlinks=False)


def test_the_least_recently_used_files_go(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d = copies(small_model, tmp_path / "m", "abcd")
    folder = tmp_path / "c"
    for path in (a, b, c):
        load(path, folder)
    age(folder)
    load(a, folder)  # a use
    assert stems(folder) == ["b", "c", "a"]
    size = packed.entries(folder)[0].bytes
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", str(3 * size + size // 2))
    load(d, folder)
    assert stems(folder) == ["c", "a", "d"]
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", "1")
    load(c, folder)  # nothing is written, so nothing goes
    assert stems(folder) == ["a", "d", "c"]
    load(b, folder)  # the file of this very load stays, however small the limit is
    assert stems(folder) == ["b"]
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", "0")
    for path in (a, b, c, d):
        load(path, folder)
    assert sorted(stems(folder)) == ["a", "b", "c", "d"]


def test_files_of_others_stay(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = copies(small_model, tmp_path / "m", "ab")
    folder = tmp_path / "c"
    load(a, folder)
    mine = only_file(folder)
    content = mine.read_bytes()
    others = {
        folder / "notes.txt": b"mine",
        folder / "model.packed": content,  # another name
        folder / mine.name.replace("a-", "z-"): b"0" * len(content),  # another magic
        folder / f"{mine.name}.part": content,
    }
    for path, data in others.items():
        path.write_bytes(data)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(content)
    link = folder / mine.name.replace("a-", "y-")
    link.symlink_to(elsewhere)
    (folder / mine.name.replace("a-", "x-")).mkdir()
    age(folder)
    monkeypatch.setenv("SPARSEDET_CACHE_LIMIT", "1")
    load(b, folder)
    assert stems(folder) == ["b"]
    assert not mine.exists() and link.is_symlink() and elsewhere.read_bytes() == content
    assert all(path.read_bytes() == data for path, data in others.items())


def test_entries_and_their_removal(small_model: Path, tmp_path: Path) -> None:
    assert packed.entries(tmp_path / "none") == []
    detector = load(small_model, tmp_path / "c")
    used = load(small_model, tmp_path / "c")
    (entry,) = packed.entries(tmp_path / "c")
    file = only_file(tmp_path / "c")
    assert (entry.path, entry.bytes) == (file, file.stat().st_size)
    assert entry.last_used == file.stat().st_mtime
    packed.remove([entry])
    packed.remove([entry])  # gone already
    assert packed.entries(tmp_path / "c") == []
    assert np.array_equal(rows(used), rows(detector))  # still mapped
    folder = packed.CacheEntry(tmp_path / "c", 0, 0.0)
    with pytest.raises(InputError, match=r"c: cannot be deleted \("):
        packed.remove([folder])


# --------------------------------------------------------------------------------- memory


def test_memory(small_model: Path) -> None:
    engine = Engine(SMALL, load_model(small_model).tensors, threads=1)
    weights = sum(len(data) for *_, data in streams(engine).values())
    assert weights <= engine.memory.weights < weights + 100_000
    assert engine.memory.activations == 0
    engine.run(np.zeros((64, 96, 3), np.uint8))
    assert engine.memory.activations > engine.native.arena_bytes > 0
