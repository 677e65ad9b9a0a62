"""The benchmark scripts on a tiny model: they run, compare, refuse and write their files.

Each script runs in its own process (because of OpenVINO, see test_export_openvino.py), with an
invented peak of the CPU: a measured one takes time and makes results depend on the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lib.documents import insert
from tables import AROUND

import sparsedet
from sparsedet.detections import Detections
from sparsedet.evaluation.agreement import Agreement, exact, loose, refuse_to_time
from sparsedet.images.letterbox import fit_letterbox
from sparsedet.model.presets import preset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

RUN = f"""
import importlib, sys
from sparsedet import _native
_native.peak_gflops = lambda isa, threads, seconds: 100.0 * threads
_native.peak_gflops_bf16 = _native.peak_gflops_int8 = lambda isa, threads, seconds: 0.0
sys.path.insert(0, {str(BENCHMARKS)!r})
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
"""


def run(script: str, *arguments: object) -> list[str]:
    """Run a script; the lines that it prints."""
    command = [sys.executable, "-c", RUN, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_results_become_tables_and_charts(small_model: Path, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    common = ["--model", small_model, "--image", photo, "--threads", 1, "--repeats", 3, "--json"]

    *_, last = run(
        "bench_model",
        "--peer",
        "openvino-f32",
        "onnxruntime",
        "--ablate",
        "--scaling",
        "--throughput",
        *common,
        tmp_path / "bench_model.json",
    )
    assert last.startswith("ratios openvino-f32 0.40:")
    content = json.loads((tmp_path / "bench_model.json").read_text())
    assert {"cpu", "isa", "threads", "versions", "commit"} <= content["machine"].keys()
    (result,) = content["results"]
    names = {"sparsedet", "openvino-f32", "onnxruntime", "without hoisting", "one thread"}
    assert result["seconds"].keys() == names
    assert {len(times) for times in result["seconds"].values()} == {3}
    flights = result["images_per_second"]
    assert flights.keys() == {"sparsedet", "openvino-f32"}
    assert all(len(rates) == 3 and min(rates) > 0 for rates in flights.values())
    ratio = result["ratios"]["openvino-f32"]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    agreement = result["agreement_with_openvino_f32"]["sparsedet"]
    assert agreement["matched"] == agreement["expected"] > 0

    *_, last = run("bench_layers", *common, tmp_path / "bench_layers.json")
    assert last.startswith("median ratio of the shapes 0.40:")
    (result,) = json.loads((tmp_path / "bench_layers.json").read_text())["results"]
    rows = result["layers"]
    # Every layer with weights is in a row; each pair of predictors is one operation.
    assert sum(row["count"] for row in rows) == 1 + 4 * 4 + 1 + 2
    assert all(row["sparsedet_seconds"] > 0 for row in rows)
    # OpenVINO counts whole microseconds: the smallest of these layers may take less than one.
    assert sum(row["openvino_seconds"] > 0 for row in rows) > len(rows) / 2
    assert all(row["work_gflop"] <= row["gflop"] for row in rows if "hoisted" not in row["shape"])

    *_, last = run("bench_load", *common, tmp_path / "bench_load.json")
    assert last.startswith("ratios 0.40: time ")
    (result,) = json.loads((tmp_path / "bench_load.json").read_text())["results"]
    assert result["ratio_of_memory"] > 0.5

    document, *_ = documents(tmp_path)
    run("tables", "--results", tmp_path, "--root", tmp_path)
    text = document.read_text()
    assert "| `small` | 40 % | f32 |" in text and "stale" not in text and text.endswith("b\n")
    run("plots", "--results", tmp_path, "--output", tmp_path)
    for name in ("speed", "layers", "roofline", "gains"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_table_of_detectors(tmp_path: Path) -> None:
    def result(share: float, ratio: float) -> dict[str, Any]:
        return {
            "share_of_zeros": share,
            "sparsity": share,
            "seconds": {"sparsedet": [0.1], "openvino-f32": [0.1 * ratio]},
            "ratios": {"openvino-f32": {"median": ratio, "least": ratio, "most": ratio}},
            "after_share": 0.01,
            "forecast_seconds": 0.09,
            "openvino_health": [{"precision": "f32", "share_of_peak": 0.9}],
        }

    machine = {"threads": 1, "cpu": "a", "isa": "b", "commit": "c", "versions": {"openvino": "1"}}
    content = {
        "machine": machine,
        "precision": "f32",
        "void": False,
        "results": {"r101-c4": [result(0.6, 2.0)], "other": [result(0.6, 1.5)]},
    }
    _, document, *_ = documents(tmp_path)
    (tmp_path / "bench_detectors.json").write_text(json.dumps(content))
    run("tables", "--results", tmp_path, "--root", tmp_path)
    line = "| `other` | 60%, 60% | 100 ms | 150 ms, **1.50x** (1.50..1.50) | 0.75 | 1.0% | 0.90 |"
    assert line in document.read_text().splitlines()
    (tmp_path / "bench_detectors.json").write_text(json.dumps({**content, "void": True}))
    run("tables", "--results", tmp_path, "--root", tmp_path)
    assert "Not measured yet" in document.read_text()


@pytest.mark.slow
def test_networks_from_onnx_files(tmp_path: Path) -> None:
    for package in ("onnxruntime", "openvino", "torchvision"):
        pytest.importorskip(package)
    *_, last = run("check_onnx", "--kinds", "resnet18", "--json", tmp_path / "check.json")
    assert last == "1 of 1 networks are equal"
    small = ["--kinds", "resnet18", "yolov5n", "--zeros", 0, 0.8, "--no-reference", "--threads", 1]
    peers = ["--peers", "openvino-f32", "openvino-default", "--repeats", 1]
    *_, first, last = run("bench_onnx", *small, *peers, "--json", tmp_path / "bench_onnx.json")
    assert first.startswith("resnet18") and last.startswith("yolov5n") and "  80% " in last
    results = json.loads((tmp_path / "bench_onnx.json").read_text())["results"]
    dense, sparse = results["yolov5n"]
    # Stem and predictors, 16 % of its work, stay dense: 0.16 + 0.2 * 0.84 remains.
    assert sparse["rows"] == 100 and 0.32 < sparse["sparse_gflops"] / dense["gflops"] < 0.34
    assert sparse["copied_bytes"] == 0 and 0.7 < sparse["sparsity"] < 0.8
    _, _, document, _ = documents(tmp_path)
    run("tables", "--results", tmp_path, "--root", tmp_path)
    text = document.read_text()
    assert "| `yolov5n` | 80%, " in text and "stale" not in text and text.endswith("b\n")


@pytest.mark.slow
def test_the_default_model_beside_its_original(tmp_path: Path) -> None:
    for package in ("onnx", "openvino"):
        pytest.importorskip(package)
    from helpers.onnx_detectors import picodet

    few = ["--threads", 1, "--repeats", 1, "--starts", 1, "--no-document"]
    source, target = picodet(tmp_path / "small.onnx"), tmp_path / "default_model.json"
    lines = run("default_model", source, *few, "--json", target)
    found = json.loads(target.read_text())
    seconds = found["threads"]["1"]["seconds"]
    assert len(seconds) == 4 and all(times[0] > 0 for times in seconds.values())
    assert found["whole_process_seconds"][0] > 0 and "default" not in found
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert rows[1:] == ["| `picodet-s`", "| dense, its original", "| dense, OpenVINO f32"]


@pytest.mark.slow
def test_what_surrounds_the_engine(small_model: Path, tmp_path: Path) -> None:
    for package in ("av", "pyarrow", "starlette"):
        pytest.importorskip(package)
    paths = {name: tmp_path / f"bench_{name}.json" for name in AROUND}
    model = ["--model", small_model, "--threads", 1, "--rounds", 1, "--json"]
    run("bench_bulk", "--images", 30, *model, paths["bulk"])
    run("bench_stream", "--frames", 20, *model, paths["stream"])
    run("bench_start", "--repeats", 1, "--json", paths["start"])
    few = ["--starts", 1, "--requests", 8, "--minutes", 0.03]
    run("bench_service", *few, *model, paths["service"])

    found = {name: json.loads(path.read_text()) for name, path in paths.items()}
    assert found["bulk"]["bulk"]["share_of_stream"] > 0 and "ray" not in found["bulk"]
    assert found["stream"]["frames"] == 20
    above = found["start"]["above"]
    assert 0 < above["loading_and_detection"] < above["detection"]
    over = found["service"]["overload"]
    assert over["lost"] == 0 and over["statuses"].keys() <= {"200", "429"}
    assert 0 < over["p50_milliseconds"] <= over["p99_milliseconds"]

    *_, document = documents(tmp_path)
    run("tables", "--results", tmp_path, "--root", tmp_path)
    lines = document.read_text().splitlines()
    assert (
        sum(line.startswith("| ") for line in lines) == 1 + 4 + 4 + 1 + 2 and "stale" not in lines
    )


def test_this_cpu_in_one_file(small_model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    common = ["--model", small_model, "--image", photo, "--threads", 1, "--repeats", 3]
    *_, last = run("this_cpu", *common, "--alone", "--json", out)
    assert last == f"-> {out}"
    content = json.loads(out.read_text())
    assert content["identity"].keys() == {"vendor", "family", "model"}
    isa = content["machine"]["isa"]
    able = content["instruction_sets"][isa]
    assert content["ours"].keys() == set(able) and "f32" in able
    assert content["promises"]["full"]["format"] == "f32"
    for result in content["ours"].values():
        (one,) = result.values()
        assert len(one["seconds"]) == 3 and one["images_per_second"] > 0
        assert len(one["layers"]) > 10 and any(row["seconds"] > 0 for row in one["layers"])
    assert content["peak_gflops"][isa]["f32"]["vector"]["1"] == 100.0
    for rates in (content["machine"]["cycle_rates"], content["cycle_rates_at_the_end"]):
        assert 0 < rates["vector_loads"] < 9 and 0 < rates["multiply_adds"] < 9

    result = {
        "sparsity": 0.6,
        "void": False,
        "seconds": {"sparsedet": [0.2], "openvino-default": [0.3], "without hoisting": [1.0]},
        "ratios": {"openvino-default": {"median": 1.5}, "without hoisting": {"median": 5.0}},
        "images_per_second": {"sparsedet": [8.0], "openvino-default": [4.0]},
    }
    content["against_openvino"] = {"f32": {"results": [result]}, "int8": {"failed": ["no nncf"]}}
    out.write_text(json.dumps(content))
    document, readme = tmp_path / "docs/benchmarks.md", tmp_path / "README.md"
    document.parent.mkdir()
    for path in (document, readme):
        path.write_text("a\n<!-- CPUs: benchmarks/cpu_page.py -->\nstale\n<!-- end -->\nb\n")
    run("cpu_page", "--results", tmp_path, "--root", tmp_path)
    (row,) = (line for line in readme.read_text().splitlines() if f"`{isa}`" in line)
    assert "| 0.20 s; OpenVINO, its default **1.50x** |" in row
    lines = document.read_text().splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and "stale" not in lines
    assert "| f32, 60% | OpenVINO, its default | 0.300 s | 1.50x | 4.00 (2.00x) |" in lines
    assert "Not compared, int8: no nncf" in lines
    assert f"| {isa} | f32 | vector | 100 | 100 |" in lines
    assert any(line.startswith("| f32 | 40% |") for line in lines)


def test_two_programs_in_turn(small_model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "paired.json"
    package = Path(sparsedet.__file__).parents[1]
    *_, last = run(
        *("paired", "--before", package, "--model", small_model, "--image", photo),
        *("--threads", 1, "--repeats", 2, "--json", out),
    )
    assert last.startswith("small f32, 0.40 zeros: before / after ")
    (result,) = json.loads(out.read_text())["results"]
    assert {len(times) for times in result["seconds"].values()} == {2}
    assert result["ratios"]["before"]["lower"] <= result["ratios"]["before"]["upper"]


def test_the_start_of_two_programs_in_turn(small_model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "start.json"
    package = Path(sparsedet.__file__).parents[1]
    lines = run(
        *("paired_start", "--before", package, "--model", small_model, "--image", photo),
        *("--threads", 1, "--repeats", 2, "--json", out),
    )
    assert [line.split()[0] for line in lines[-3:]] == ["first", "load", "memory"]
    content = json.loads(out.read_text())
    for side in ("before", "after"):
        values = content["values"][side]
        assert {len(found) for found in values.values()} == {2}
        pairs = zip(values["load"], values["first"], strict=True)
        assert all(0 < load < first for load, first in pairs)
    assert 0.9 < content["ratios"]["memory"]["median"] < 1.1  # it is one program


def test_without_results_nothing_is_made_up(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = documents(tmp_path)
    run("tables", "--results", tmp_path, "--root", tmp_path)
    assert all("Not measured yet" in document.read_text() for document in made)
    assert run("plots", "--results", tmp_path, "--output", tmp_path) == []


def documents(folder: Path) -> list[Path]:
    """README.md, docs/weights.md, docs/onnx.md and docs/benchmarks.md with stale tables."""
    kinds = {"README": "bench", "docs/weights": "detectors", "docs/onnx": "onnx"}
    kinds["docs/benchmarks"] = "around"
    found = [folder / f"{name}.md" for name in kinds]
    found[1].parent.mkdir()
    for path, kind in zip(found, kinds.values(), strict=True):
        mark = f"<!-- {kind} table: benchmarks/tables.py -->"
        path.write_text(f"a\n{mark}\nstale\n<!-- end -->\nb\n")
    return found


@pytest.mark.slow
def test_torch_as_peer(small_model: Path, photo: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openvino")
    *_, last = run(
        "bench_model",
        "--peer",
        "torch",
        "--model",
        small_model,
        "--image",
        photo,
        "--threads",
        1,
        "--repeats",
        1,
    )
    assert last.startswith("ratios torch 0.40:")


# -------------------------------------------------------------------- agreement and void runs


def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    config = preset("r50half-c4")
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        config.class_names,
        config.category_ids,
        fit_letterbox(320, 480, 320, 480),
    )


def test_agreement() -> None:
    boxes = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.6, 0.9]]
    one = detections(boxes, [0.9, 0.8], [1, 2])
    assert exact(one, one) == Agreement(2, 2, 2, 2)
    moved = detections([[v + 0.01 for v in box] for box in boxes], [0.88, 0.75], [1, 2])
    assert exact(one, moved).matched == 0 and loose(one, moved).matched == 2
    other_class = detections(boxes, [0.9, 0.8], [2, 1])
    assert exact(one, other_class).matched == loose(one, other_class).matched == 0
    nothing = detections([], [], [])
    assert exact(one, nothing).matched_fraction == exact(nothing, one).matched_fraction == 0


def test_what_may_not_be_timed() -> None:
    def verdict(**shares: tuple[str, int]) -> str:
        agreements = {
            k.replace("_", "-"): Agreement(100, 100, n, 40) for k, (_, n) in shares.items()
        }
        precisions = {k.replace("_", "-"): precision for k, (precision, _) in shares.items()}
        return refuse_to_time(agreements, precisions)

    assert verdict(sparsedet=("f32", 98)) == ""
    assert verdict(sparsedet=("f32", 97)).startswith("sparsedet disagrees, nothing is timed")
    # bf16 is compared with OpenVINO's own bf16,
    assert verdict(sparsedet=("bf16", 60), openvino_bf16=("bf16", 65)) == ""
    assert verdict(sparsedet=("bf16", 50), openvino_bf16=("bf16", 65)).startswith("sparsedet dis")
    assert verdict(openvino_bf16=("bf16", 20)).startswith("openvino-bf16 disagrees")
    # and int8 with OpenVINO's int8, not with its bf16.
    both = {"openvino_bf16": ("bf16", 90), "openvino_int8": ("int8", 60)}
    assert verdict(sparsedet=("int8", 55), **both) == ""
    assert verdict(sparsedet=("int8", 45), **both).startswith("sparsedet dis")


def test_void() -> None:
    pytest.importorskip("openvino")
    from lib.openvino_profile import is_void

    large = preset("r101-c4")
    assert [is_void(large, "f32", share) for share in (0.85, 0.95, 1.2)] == [True, False, True]
    assert is_void(large, "bf16", 0.85) and not is_void(large, "bf16", 0.95)
    # No limits are known for these.
    assert not is_void(large, "int8", 0.5) and not is_void(preset("r50half-c4"), "f32", 0.5)


def test_insert_needs_its_mark(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("no mark")
    with pytest.raises(ValueError, match="expected '<!-- x -->' once"):
        insert(document, "<!-- x -->", "text")
    assert document.read_text() == "no mark"
