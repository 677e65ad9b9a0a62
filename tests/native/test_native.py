"""The native core: its own test program, what its files export, and the choice of kernels."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.parts import EngineParts
from numpy.typing import NDArray

from sparsedet import _native
from sparsedet.engine import Engine, available_isas
from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.presets import preset
from sparsedet.testing import random_tensors

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
X86 = platform.machine() in ("x86_64", "AMD64")
ARCHITECTURE = "x86_64" if X86 else "aarch64"


class KernelTable(NamedTuple):
    """A line of native/kernels/list.h."""

    architecture: str
    set: str
    table: str
    file: str
    features: str

    @property
    def flags(self) -> list[str]:
        """Compiler flags of its file."""
        return ["-fno-exceptions", *(f"-m{feature}" for feature in self.features.split())]

    @property
    def symbol(self) -> str:
        """Name of the table in the object file."""
        name = f"kernels_{self.set}_{self.table}"
        return f"_ZN9sparsedet{len(name)}{name}E"


def tables() -> list[KernelTable]:
    """The tables that are compiled on this architecture."""
    text = (NATIVE / "kernels/list.h").read_text().replace("\\\n", "")
    found = re.findall(r'X\((\w+), (\w+), (\w+), (\w+),\s*"([^"]*)"\)', text)
    assert len(found) == text.count(" X(") > 5
    return [t for t in map(KernelTable._make, found) if t.architecture in (ARCHITECTURE, "any")]


needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


def compile_cpp(source: Path, to: Path, *flags: str) -> Path:
    """An object file of `source`; unoptimised, which compiles several times faster."""
    command = ["c++", "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast"]
    out = to / f"{source.stem}.o"
    subprocess.run([*command, f"-I{NATIVE}", *flags, "-c", source, "-o", out], check=True)
    return out


def compile_all(sources: dict[Path, list[str]], to: Path) -> list[Path]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda item: compile_cpp(item[0], to, *item[1]), sources.items()))


def kernel_sources(*flags: str) -> dict[Path, list[str]]:
    return {NATIVE / f"kernels/{t.file}.cpp": [*t.flags, *flags] for t in tables()}


def core_sources() -> list[Path]:
    """The core but for the kernels."""
    build = (ROOT / "CMakeLists.txt").read_text()
    parts = re.findall(r"native/((?:algorithms|graph|ops|tensors)/\w+\.cpp)", build)
    return [NATIVE / part for part in parts]


def test_every_kernel_file_is_listed() -> None:
    listed = {
        match[1]
        for match in re.finditer(
            r"X\(\w+, \w+, \w+, (\w+),", (NATIVE / "kernels/list.h").read_text()
        )
    }
    assert listed | {"dispatch", "amx_permission", "self_check"} == {
        path.stem for path in (NATIVE / "kernels").glob("*.cpp")
    }


@needs_compiler
@pytest.mark.slow
def test_kernels(tmp_path: Path) -> None:
    """Against plain loops, with the compiler's checks for memory errors and undefined behaviour."""
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = tmp_path / "test_kernels"
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    if subprocess.run(["c++", *checks, probe, "-o", program], capture_output=True).returncode:
        checks = []  # a compiler without the checks' libraries
    tests = [
        ROOT / "tests/native" / name
        for name in (
            *("test_kernels.cpp", "test_int8.cpp", "test_layers.cpp"),
            *("test_low_precision.cpp", "low_precision.cpp"),
        )
    ]
    names = "amx_permission", "dispatch", "self_check"
    others = [*core_sources(), *(NATIVE / f"kernels/{name}.cpp" for name in names), *tests]
    sources = kernel_sources(*checks) | {path: ["-O1", *checks] for path in others}
    subprocess.run(["c++", *checks, *compile_all(sources, tmp_path), "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for isa in available_isas():
        for group in ("sparse", "pack_conv", "layers"):
            assert f"ok   {isa} {group}" in run.stdout
        for name, has in (("int8", _native.has_int8), ("bf16", _native.has_bfloat16)):
            for group in ("layers", "network"):
                assert not has(isa) or f"ok   {isa} {name} {group}" in run.stdout
        assert not _native.has_int8(isa) or f"ok   {isa} int8 sparse" in run.stdout


@needs_compiler
@pytest.mark.slow
def test_planner_executor_and_cost_model(tmp_path: Path) -> None:
    """Without a detector, and with an algorithm that is added by one file and one line."""
    listed = (NATIVE / "algorithms/list.cpp").read_text()
    assert listed.count("X(winograd)\n") == 1
    own_list = tmp_path / "list.cpp"
    own_list.write_text(listed.replace("X(winograd)\n", "X(winograd) X(im2col)\n"))
    sources = [path for path in core_sources() if path != NATIVE / "algorithms/list.cpp"]
    names = "amx_permission", "dispatch", "self_check"
    sources += [NATIVE / f"kernels/{name}.cpp" for name in names]
    sources.append(own_list)
    sources += [ROOT / "tests/native" / name for name in ("test_graph.cpp", "im2col.cpp")]
    flags = kernel_sources() | {path: [] for path in sources}
    program = tmp_path / "test_graph"
    subprocess.run(["c++", *compile_all(flags, tmp_path), "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for group in ("memory plan", "cost model", "graph", "im2col"):
        assert f"ok   {group}" in run.stdout


@needs_compiler
@pytest.mark.skipif(not X86 or sys.platform != "linux", reason="emulates on x86-64 Linux")
@pytest.mark.slow
def test_amx_kernels_and_a_network_in_an_emulator(tmp_path: Path) -> None:
    """The machine code of AMX, also on a CPU without it; AVX-512 with bfloat16 is needed."""
    sources = core_sources()
    sources += [NATIVE / f"kernels/{name}.cpp" for name in ("dispatch", "self_check")]
    names = "amx_emulator.cpp", "test_amx.cpp", "low_precision.cpp"
    sources += [ROOT / "tests/native" / name for name in names]
    flags = kernel_sources() | {path: [] for path in sources}
    program = tmp_path / "test_amx"
    subprocess.run(["c++", *compile_all(flags, tmp_path), "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    if not _native.has_bfloat16():
        pytest.skip(run.stdout)
    for group in ("bf16 products", "int8 products", "layers", "network"):
        assert f"ok   amx {group}" in run.stdout
    assert "instructions were emulated" in run.stdout


@needs_compiler
@pytest.mark.skipif(not shutil.which("nm"), reason="there is no nm")
def test_nothing_but_the_table_leaves_a_kernel_file(tmp_path: Path) -> None:
    """A weak or global function compiled for AVX-512 could be linked into code for every CPU."""
    sources = kernel_sources()
    for source, object_file in zip(sources, compile_all(sources, tmp_path), strict=True):
        listing = subprocess.run(
            ["nm", "--extern-only", "--defined-only", "--format=posix", object_file],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        symbols = [line.split()[:2] for line in listing.splitlines()]
        own = {t.symbol for t in tables() if t.file == source.stem}
        assert {symbol for symbol, _ in symbols} == own, listing
        assert {kind for _, kind in symbols} <= {"R", "D"}, "tables are constant data"


# -------------------------------------------------------------------- the choice of kernels

TINY = replace(
    preset("r50half-c4"),
    input_height=32,
    input_width=32,
    blocks=(1, 1, 1, 1),
    stem_channels=3,
    bottleneck_channels=(3, 3, 3, 3),
    stage_channels=(5, 5, 5, 5),
    rpn_channels=3,
)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


PRINT_ISA = f"""
from sparsedet.model.config import ModelConfig
from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.testing import random_tensors
config = ModelConfig.from_dict({TINY.to_dict()!r})
try:
    print(Engine(config, random_tensors(config, 0.0), threads=1).isa)
except InputError as error:
    print("InputError:", error)
"""


@pytest.mark.parametrize("isa", available_isas())
def test_a_forced_instruction_set_is_active(isa: str) -> None:
    assert Engine(TINY, random_tensors(TINY, 0.0), threads=1, isa=isa).isa == isa
    assert run_python(PRINT_ISA, SPARSEDET_ISA=isa).stdout == f"{isa}\n"


def test_the_best_instruction_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "scalar" in available_isas()
    monkeypatch.delenv("SPARSEDET_ISA", raising=False)
    assert Engine(TINY, random_tensors(TINY, 0.0), threads=1).isa == available_isas()[0]
    monkeypatch.setenv("SPARSEDET_ISA", "")  # as good as none
    assert Engine(TINY, random_tensors(TINY, 0.0), threads=1).isa == available_isas()[0]


def test_the_argument_outranks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDET_ISA", "no-such-set")
    assert Engine(TINY, random_tensors(TINY, 0.0), threads=1, isa="scalar").isa == "scalar"


MISSING = sorted({t.set for t in tables()} - set(available_isas()))


@pytest.mark.parametrize("isa", [*MISSING, "sse9", "AVX2", "scalar "])
def test_an_unusable_instruction_set_is_refused(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"instruction set '{isa}'") as refused:
        Engine(TINY, random_tensors(TINY, 0.0), threads=1, isa=isa)
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("SPARSEDET_ISA", isa)
    with pytest.raises(InputError, match=f"instruction set '{isa}'"):
        Engine(TINY, random_tensors(TINY, 0.0), threads=1)


def test_an_unknown_instruction_set_in_the_environment_of_a_process() -> None:
    out = run_python(PRINT_ISA, SPARSEDET_ISA="sse9").stdout
    assert out.startswith("InputError:") and "sse9" in out and "scalar" in out


FAKE_CPU = """
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include "kernels/dispatch.h"
#include "kernels/list.h"
#include "kernels/scalar.cpp"
namespace sparsedet {
static bool named(const char* variable, const char* name) {
  const char* text = std::getenv(variable);
  return text && std::string(text).find(name) != std::string::npos;
}
static void wrong(const SparseArgs& a) { *a.out = 0.5f; }
static constexpr auto& right_f32 = kernels_scalar_f32;
static constexpr auto& right_bf16 = kernels_scalar_bf16;
static constexpr auto& right_int8 = kernels_scalar_int8;
static constexpr MatrixKernels right_bf16_matrix{
    nullptr, [] {}, [] {}, wrong, nullptr, 1};
static constexpr MatrixKernels right_int8_matrix = right_bf16_matrix;
static void make_wrong(MatrixKernels&) {}
template <class Table> static void make_wrong(Table& table) {
  table.sparse[table.tile_rows] = wrong;
}
template <class Table> static Table fake(Table table, bool (*supported)(), const char* name) {
  table.supported = supported;
  if (named("WRONG", name)) make_wrong(table);
  return table;
}
#define SPARSEDET_scalar(...)
#define SPARSEDET_avx2(...) __VA_ARGS__
#define SPARSEDET_avxvnni(...) __VA_ARGS__
#define SPARSEDET_avx512(...) __VA_ARGS__
#define SPARSEDET_amx(...) __VA_ARGS__
#define TABLE(architecture, set, table, file, features) \\
  SPARSEDET_IF_##architecture(SPARSEDET_##set( \\
      extern const decltype(fake(right_##table, nullptr, "")) kernels_##set##_##table = fake( \\
          right_##table, [] { return named("CPU", #set); }, #set " " #table);))
SPARSEDET_KERNELS(TABLE)
}  // namespace sparsedet
int main() {
  using namespace sparsedet;
  for (const auto& name : available_isas()) std::printf("%s ", name.c_str());
  for (const char* isa : {"", "scalar", "avx512"}) try {
      const Kernels& kernels = choose_kernels(isa);
      std::printf("[%s", kernels.isa);
      if (has_bfloat16(kernels)) std::printf(kernels.bf16_matrix ? " bf16_matrix" : " bf16");
      if (has_int8(kernels)) std::printf(kernels.int8_matrix ? " int8_matrix" : " int8");
      std::printf("] ");
    } catch (const std::invalid_argument& error) { std::printf("refused: %s ", error.what()); }
  for (const auto& name : failed_kernels()) std::printf("failed: %s ", name.c_str());
}
"""


@needs_compiler
@pytest.mark.skipif(not X86, reason="needs two instruction sets besides scalar")
def test_cpus_that_lack_an_instruction_set_or_compute_it_wrongly(tmp_path: Path) -> None:
    """dispatch.cpp on invented CPUs."""
    source = tmp_path / "fake_cpu.cpp"
    source.write_text(FAKE_CPU)
    parts: dict[Path, list[str]] = {
        NATIVE / f"kernels/{name}.cpp": [] for name in ("dispatch", "self_check")
    }
    flags: dict[Path, list[str]] = {source: [], **parts}
    subprocess.run(["c++", *compile_all(flags, tmp_path), "-o", tmp_path / "fake_cpu"], check=True)

    def run(**environment: str) -> str:
        return subprocess.run(
            [tmp_path / "fake_cpu"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "SPARSEDET_ISA": "", **environment},
        ).stdout.strip()

    scalar, refused = "[scalar bf16 int8]", "refused: instruction set 'avx512' is not available"
    refused += " on this CPU"
    assert run(CPU="avx2") == f"avx2 scalar [avx2 int8] {scalar} {refused}"
    out = run(CPU="avx2 avxvnni")
    assert out == f"avxvnni avx2 scalar [avxvnni int8] {scalar} {refused}"
    # The environment does not fall back to another instruction set either.
    assert run(CPU="avx2", SPARSEDET_ISA="avx512") == f"avx2 scalar {refused} {scalar} {refused}"
    best = "[avx512 bf16 int8]"
    assert run(CPU="avx2 avx512") == f"avx512 avx2 scalar {best} {scalar} {best}"
    out = run(CPU="amx avx2")  # the first lacks its base
    assert out == f"avx2 scalar [avx2 int8] {scalar} {refused}"

    # A known product that is wrong disables the table, and only that one.
    out = run(CPU="avx2 avx512", WRONG="avx512 f32")
    assert out == f"avx2 scalar [avx2 int8] {scalar} {refused} failed: avx512 f32"
    out = run(CPU="avx2", WRONG="avx2 int8")
    assert out == f"avx2 scalar [avx2] {scalar} {refused} failed: avx2 int8"
    out = run(CPU="avx512", WRONG="avx512 bf16")
    assert out == f"avx512 scalar [avx512 int8] {scalar} [avx512 int8] failed: avx512 bf16"
    # The fake matrix unit computes everything wrongly.
    out = run(CPU="amx avx512")
    failed = "failed: amx bf16_matrix failed: amx int8_matrix"
    assert out == f"amx avx512 scalar [amx bf16 int8] {scalar} {best} {failed}"


# ------------------------------------------------------------------ runs and their arguments


def test_a_caller_is_let_go_where_it_was() -> None:
    """Worker 0 is the calling thread: it is pinned while the engine works, not afterwards."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    before = os.sched_getaffinity(0)
    engine = Engine(TINY, random_tensors(TINY, 0.1), threads=3, pin=True)
    free = Engine(TINY, random_tensors(TINY, 0.1), threads=3)
    network_input = np.full((32, 32, 3), 99, np.uint8)
    assert np.array_equal(engine.run(network_input), free.run(network_input))
    assert os.sched_getaffinity(0) == before
    try:
        for cpu in before:  # one that the engine's first worker may or may not have
            os.sched_setaffinity(0, {cpu})
            engine.run(network_input)
            assert os.sched_getaffinity(0) == {cpu}
    finally:
        os.sched_setaffinity(0, before)


def test_shapes_that_do_not_fit_an_operation() -> None:
    engine = Engine(TINY, random_tensors(TINY, 0.1), threads=1, hoist=False).native

    def ones(*shape: int) -> NDArray[np.float32]:
        return np.ones(shape, np.float32)

    assert engine.run_operation("stem.conv", [ones(1, 3, 9, 9)]).shape == (1, 3, 5, 5)
    residual = next(layer for layer in build_graph(TINY).layers if layer.residual)
    channels, out = residual.in_channels, residual.out_channels
    assert engine.run_operation(residual.name, [ones(1, channels, 2, 3), ones(1, out, 2, 3)]).size
    for name, shape in (
        ("stem.conv", (1, 4, 9, 9)),
        ("stem.conv", (2, 3, 9, 9)),
        ("stem.conv", (1, 3, 0, 9)),
        ("stem.conv", (0, 3, 9, 9)),
        ("res5.0.conv1", (0, 5, 7, 7)),
        ("res5.0.conv1", (2, 4, 7, 7)),
        ("stem.pool", (1, 2, 9, 9)),
        ("stem.pool", (1, 3, 9, 0)),
        ("stem.pool", (1, 9, 9)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: [^\n]*$"):
            engine.run_operation(name, [ones(*shape)])
    for shape in ((1, out, 2, 2), (1, out + 1, 2, 3), (2, out, 2, 3)):
        with pytest.raises(ValueError, match=rf"^{residual.name}: [^\n]*$"):
            engine.run_operation(residual.name, [ones(1, channels, 2, 3), ones(*shape)])
    with pytest.raises(ValueError, match=r"^stem\.pool: wrong number of inputs$"):
        engine.run_operation("stem.pool", [ones(1, 3, 9, 9), ones(1, 3, 5, 5)])
    with pytest.raises(ValueError, match="no operation 'x'"):
        engine.run_operation("x", [ones(1, 3, 9, 9)])


def test_logits_that_are_no_numbers_come_last() -> None:
    config = replace(TINY, input_height=160, input_width=160, rpn_pre_nms=50, proposals=50)
    parts = EngineParts(Engine(config, random_tensors(config, 0.1), threads=1), (160, 160))
    rng = np.random.default_rng(0)
    anchors = 10 * 10 * len(config.anchor_sizes) * len(config.anchor_ratios)
    deltas = rng.standard_normal((anchors, 4)).astype(np.float32)
    for fraction in (0.1, 0.5, 0.9, 1.0):
        logits = rng.integers(-3, 4, anchors).astype(np.float32)  # with equal ones
        logits[rng.random(anchors) < fraction] = np.nan
        lowest = np.where(np.isnan(logits), np.float32(-np.inf), logits)
        proposals = parts.proposals(logits, deltas)
        assert len(proposals) and np.array_equal(proposals, parts.proposals(lowest, deltas))
