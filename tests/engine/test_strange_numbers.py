"""NaN, infinity and sizes that do not fit: one clear line, never nothing found without a word."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small import SMALL, picture

from sparsedet import Detector, InputError
from sparsedet._native import NativeEngine
from sparsedet.cli import main
from sparsedet.engine import Engine, available_isas, memory
from sparsedet.engine.formats import plan_formats
from sparsedet.engine.lower import operations
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.file import ModelFile, Tensors, load_model, save_model
from sparsedet.model.tensors import StoredTensor
from sparsedet.testing import calibrated_random_tensors, random_tensors

IMAGE = to_network_input(picture(), SMALL.input_height, SMALL.input_width)[0]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return dict(calibrated_random_tensors(SMALL, 0.4, IMAGE))


@pytest.mark.parametrize("layer", ["stem.conv", "res2.0.conv1", "res4.0.conv3", "box.logits"])
@pytest.mark.parametrize("isa", available_isas())
def test_weights_that_overflow_are_said(layer: str, isa: str, tensors: Tensors) -> None:
    """Also inside the network, where a ReLU makes 0 of NaN."""
    name = f"{layer}.weight"
    huge = np.where(tensors[name] == 0, 0, 3e38 * np.sign(tensors[name])).astype(np.float32)
    engine = Engine(SMALL, {**tensors, name: huge}, threads=1, isa=isa, precision="f32")
    with pytest.raises(InputError, match=r"small: \S+ computes NaN or infinity in this image"):
        engine.run(IMAGE)
    with pytest.raises(InputError):  # and again
        engine.run(IMAGE)


def test_a_network_that_finds_nothing_is_asked_once(tensors: Tensors) -> None:
    silent: Tensors = {**tensors, "box.logits.bias": np.array([50, -50, -50, -50], np.float32)}
    if SMALL.num_classes + 1 != 4:
        pytest.skip("the small model has other classes")
    engine = Engine(SMALL, silent, threads=1)
    assert len(engine.run(IMAGE)) == 0 and not engine._doubts_empty and engine._doubts_overflow
    assert len(engine.run(IMAGE)) == 0
    assert Engine(SMALL, tensors, threads=1).run(IMAGE).shape[0] > 0


def test_a_blank_image_does_not_hide_what_overflows_later(tensors: Tensors) -> None:
    name = "stem.conv.weight"
    huge = np.where(tensors[name] == 0, 0, 3e38 * np.sign(tensors[name])).astype(np.float32)
    grey = replace(SMALL, pixel_mean=(0.0, 0.0, 0.0))
    silent = {**tensors, name: huge, "stem.conv.bias": np.zeros_like(tensors["stem.conv.bias"])}
    engine = Engine(grey, silent, threads=1, precision="f32")
    engine.run(np.zeros_like(IMAGE))
    with pytest.raises(InputError, match="computes NaN or infinity"):
        engine.run(IMAGE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_refused(value: float, tensors: Tensors) -> None:
    engine = Engine(SMALL, tensors, threads=1)
    bad = IMAGE.astype(np.float32)
    bad[3, 4, 1] = value
    with pytest.raises(InputError, match="network input holds NaN or infinity"):
        engine.run(bad)
    with pytest.raises(InputError, match="blob has values"):
        Detector(ModelFile(SMALL, tensors, {}, "float32"), engine).infer(bad[None])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((64, 96), np.uint8), r"shape \(64, 96\), expected \(H, W, 3\)"),
        (np.zeros((3, 64, 96), np.uint8), r"shape \(3, 64, 96\), expected"),
        (np.zeros((64, 96, 3), "U1"), "has type <U1, expected numbers"),
        (np.zeros((64, 96, 3), complex), "has type complex128"),
    ],
)
def test_an_input_of_another_shape_or_type(
    array: np.ndarray, message: str, tensors: Tensors
) -> None:
    with pytest.raises(InputError, match=message):
        Engine(SMALL, tensors, threads=1).run(array)


def test_activations_that_do_not_fit_are_refused_before_they_are_allocated(
    tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(SMALL, tensors, threads=1)
    rows = engine.run(IMAGE)
    before = engine.memory.activations
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000_000)
    with pytest.raises(
        InputError, match=r"input of 2048x2048 needs \d+ MB .*, but \d+ MB are free"
    ):
        engine.run(np.zeros((2048, 2048, 3), np.uint8))
    assert engine.memory.activations == before
    assert np.array_equal(engine.run(IMAGE), rows)  # it goes on
    monkeypatch.setattr(memory, "available_memory", lambda: None)  # not known
    engine.run(np.zeros((256, 256, 3), np.uint8))


def test_streams_that_plan_at_once_do_not_count_on_the_same_memory(
    tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, size = Engine(SMALL, tensors, threads=1), (512, 512)
    image = np.zeros((*size, 3), np.uint8)
    engine.run(image)
    room = engine.memory.activations * 3 // 2
    monkeypatch.setattr(memory, "available_memory", lambda: room)
    first, second = engine.fork(), engine.fork()
    first.plan(*size)
    with pytest.raises(InputError, match="are free"):
        second.run(image)
    first.plan(*size)  # again: what it has is not counted twice
    first.run(image)  # from now on the system counts it
    second.run(image)
    third, fourth = engine.fork(), engine.fork()
    third.plan(*size)
    del third  # it gives back what it never used
    fourth.run(image)


def test_free_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5000 kB\n")
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.available_memory() == 5000 * 1024
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\nactive_file 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.available_memory() == 500000  # what is kept of files is freed on demand
    (tmp_path / "memory.max").write_text("400000\n")
    assert memory.available_memory() == 0
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "none")
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "none")
    assert memory.available_memory() is None


def test_a_small_file_that_costs_much_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of some kilobytes may ask for minutes of work: whoever loads it can know before."""
    small = Detector(*_model(tmp_path, 64, 96))
    large = Detector(*_model(tmp_path, 8192, 8192))
    assert large.gflop > 1000 * small.gflop
    assert (tmp_path / "m.safetensors").stat().st_size < 100_000
    wide = replace(SMALL, stem_channels=4096, input_height=8192, input_width=8192)
    save_model(tmp_path / "wide.safetensors", wide, random_tensors(wide, 0.0), {})
    detect = ["detect", "none.png", "--model", str(tmp_path / "wide.safetensors")]
    assert main(detect) == 1
    cost = Detector.load(tmp_path / "wide.safetensors").gflop
    assert cost > 10_000
    assert f"needs {cost:,.0f} GFLOP" in capsys.readouterr().err


def _model(folder: Path, height: int, width: int) -> tuple[ModelFile, Engine]:
    config = replace(SMALL, input_height=height, input_width=width)
    path = folder / "m.safetensors"
    save_model(path, config, random_tensors(config, 0.4), {}, overwrite=True)
    model = load_model(path)
    return model, Engine(model.config, model.tensors, threads=1)


def test_other_threads_go_on_while_packed_weights_are_checked() -> None:
    """Their checksum reads all of a mapped file, which may be on a slow disk."""
    wide = replace(SMALL, rpn_channels=1024, stage_channels=(8, 12, 1024, 20))
    tensors = random_tensors(wide, 0.0)
    engine = Engine(wide, tensors, threads=1, isa="scalar", precision="f32")
    algorithm, nonzero, checksum, pieces = engine.native.packed("rpn.conv")
    size = sum(map(len, pieces))
    room = np.empty(size + 64, np.uint8)
    data = room[-room.ctypes.data % 64 :][:size]
    data[:] = np.frombuffer(b"".join(pieces), np.uint8)
    other = NativeEngine("scalar", 1, False, "f32", (64, 96))
    given = operations(engine.graph, plan_formats(engine.graph, "f32", {}), tensors)
    for made in given:
        if made.fields["name"] == "rpn.conv":
            break
        assert not isinstance(made.weight, StoredTensor)
        other.add(made.fields, made.weight, made.bias, "", weights_of=made.weights_of)
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.0002):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = ticks[0]
        other.add_packed(made.fields, data, made.bias, algorithm, nonzero, checksum)
        during = ticks[0] - before
    finally:
        stop.set()
        thread.join()
    assert size > 30_000_000 and during > 3
