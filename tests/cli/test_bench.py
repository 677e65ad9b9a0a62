"""`sparsedet bench`: the same detections, times in turn, table, JSON and picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Run
from helpers.small import picture

from sparsedet.benchmark import runtimes
from sparsedet.benchmark.peers import PEERS, open_peer
from sparsedet.benchmark.runtimes import OURS, RuntimeFigures, compare_runtimes, table
from sparsedet.benchmark.timing import at_once, interleaved, ratio
from sparsedet.detector import Detector
from sparsedet.errors import UsageError
from sparsedet.evaluation.agreement import Agreement
from sparsedet.images.read import decode_image


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "WINDOW", 0.01)


def test_table_json_and_picture(small_model: Path, photo: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    files = ["--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    command = ["bench", small_model, "--image", photo, "--peer", "onnxruntime", "--threads", "2"]
    done = run(*command, "--repeats", "3", *files)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [OURS, "onnxruntime"]
    content = json.loads((tmp_path / "b.json").read_text())
    ours, peer = content["runtimes"]
    assert len(ours["seconds"]) == len(peer["seconds"]) == 3 and min(ours["seconds"]) > 0
    assert len(ours["images_per_second"]) == 2
    assert peer["agreement"]["matched"] == peer["agreement"]["expected"] > 0 and peer["agrees"]
    expected = ratio(ours["seconds"], peer["seconds"])
    assert peer["latency_ratio"] == pytest.approx(expected)
    assert f"{expected['median']:.2f} x" in lines[3]
    assert content["machine"]["threads"] == 2 and "cpu" in content["machine"]
    image = decode_image((tmp_path / "b.png").read_bytes(), "b.png")
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    again = run(*command, *files)
    assert again.code == 1 and "b.json" in again.err and "--overwrite" in again.err


def test_without_peers(small_model: Path, photo: Path, run: Run) -> None:
    flags = ["--image", photo, "--peer", "none", "--threads", "1", "-q", "--repeats", "2"]
    done = run("bench", small_model, *flags)
    assert done.code == 0 and len(done.out.splitlines()) == 3 and done.err == ""


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--peer", "tensorrt"], 2, "expected openvino-f32"),
        (["--repeats", "1"], 2, "at least 2"),
        (["--backend", "torch"], 2, "--peer names the others"),
        (["--json", "same.json", "--plot", "same.json"], 2, "two outputs"),
        (["--image", "none.jpg"], 1, "none.jpg"),
    ],
)
def test_refusals(
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    flags: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("bench", small_model, *flags)
    assert done.code == code and words in done.err and done.err.count("\n") == 1


def test_a_peer_that_is_not_installed(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setitem(PEERS, "openvino-f32", ("no_such_runtime", "f32"))
    monkeypatch.setattr("sparsedet.benchmark.peers.package_of", lambda name: ("openvino", "export"))
    done = run("bench", small_model, "--peer", "openvino-f32")
    assert done.code == 1 and "pip install 'sparsedet[export]'" in done.err
    with pytest.raises(UsageError, match="tensorrt"):
        open_peer("tensorrt", Detector.load(small_model, threads=1).model, 1)


def test_other_detections_have_no_ratio(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that runs another network."""
    other = Detector.load(small_model, threads=1)

    class ShiftedBackend:
        config, precision, threads, isa, masks = other.config, "f32", 1, "", False

        def run(self, network_input: Any, content: Any = None) -> Any:
            rows = other.engine.run(network_input, content)
            rows[:, 3:] += 0.05
            return rows

        def fork(self, threads: int) -> ShiftedBackend:
            return self

    monkeypatch.setattr(runtimes, "open_peer", lambda *_: ShiftedBackend())
    figures = compare_runtimes(
        lambda **settings: Detector.load(small_model, **settings),
        picture(),
        ["onnxruntime"],
        threads=1,
        repeats=2,
    )
    assert not figures[1].agrees and figures[0].agrees
    assert "latency_ratio" not in figures[1].to_dict(figures[0])
    assert "not comparable" in table(figures)[2]


def test_the_rules_of_agreement() -> None:
    def figures(precision: str, matched: int) -> RuntimeFigures:
        return RuntimeFigures("a", precision, Agreement(100, 100, matched, 3))

    assert figures("f32", 98).agrees and not figures("f32", 97).agrees
    assert figures("bf16", 97).agrees and not figures("bf16", 29).agrees
    assert not RuntimeFigures("a", "f32", Agreement(0, 0, 0, 0)).agrees


def test_runs_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(runs, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 2)
    assert ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == {"median": 1.0, "least": 0.5, "most": 2.0}


def test_several_at_once() -> None:
    start = time.perf_counter()
    at_once(lambda: time.sleep(0.05), 4, 8)
    assert 0.1 <= time.perf_counter() - start < 0.35
    with pytest.raises(ZeroDivisionError):
        at_once(lambda: 1 / 0, 2, 2)
