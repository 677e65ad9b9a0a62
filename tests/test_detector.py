"""The detector's two doors: a photograph in, or bare network inputs in; and what both refuse."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from helpers.small import SMALL, picture
from numpy.typing import NDArray

from sparsedet import Detector, InputError, available_isas, read_image
from sparsedet.choices import DEFAULT_MODEL, EMBEDDED
from sparsedet.detections import from_rows
from sparsedet.detector import embedded_model, model_path
from sparsedet.engine import Engine
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.file import load_model, save_model

HEIGHT, WIDTH = SMALL.input_height, SMALL.input_width


@pytest.fixture(scope="module")
def detector(small_model: Path) -> Detector:
    return Detector.load(small_model, threads=1)


def network_inputs(count: int = 2) -> np.ndarray:
    """[B, H, W, 3] uint8: different pictures on the model's network input."""
    return np.stack([to_network_input(picture(seed=s), HEIGHT, WIDTH)[0] for s in range(count)])


# ------------------------------------------------------------------------ photographs


@pytest.mark.parametrize("threshold", ["0.5", float("nan")])
def test_a_threshold_that_is_no_number_is_refused_before_the_work(
    detector: Detector, threshold: Any
) -> None:
    image, words = picture(), "score threshold is .*, expected a number"

    async def images() -> AsyncIterator[NDArray[np.uint8]]:
        yield image

    async def every() -> list[Any]:
        return [found async for found in detector.stream_async(images(), threshold)]

    with pytest.raises(InputError, match=words):
        detector(image, threshold)
    with pytest.raises(InputError, match=words):
        list(detector.stream([image], threshold))
    with pytest.raises(InputError, match=words):
        asyncio.run(every())


def test_a_photograph_gives_detections_on_it(detector: Detector) -> None:
    image = picture(90, 120)
    found = detector(image)
    assert len(found) >= 10 and set(found.names) == set(SMALL.class_names)
    assert found.scores.min() > SMALL.score_threshold
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [120, 90, 120, 90]).all()
    assert ((found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1) > 0).sum() >= 10
    assert {entry["category_id"] for entry in found.to_coco(5)} == set(SMALL.category_ids)
    assert found.draw(image).shape == image.shape


@pytest.mark.parametrize("shape", [(90, 120), (61, 33), (1, 1), (500, 3), (64, 96)])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_a_call_is_canvas_rows_and_mapping(
    small_model: Path, shape: tuple[int, int], resize: Literal["letterbox", "stretch"]
) -> None:
    detector = Detector.load(small_model, threads=1, resize=resize)
    image = picture(90, 120)[: shape[0], : shape[1]]
    if image.shape[:2] != shape:
        image = np.asarray(cv2.resize(image, shape[::-1]), np.uint8)
    network_input, letterbox = to_network_input(image, HEIGHT, WIDTH, resize)
    rows = detector.infer(network_input[None])
    expected = from_rows(rows, letterbox, SMALL.class_names, SMALL.category_ids)
    found = detector(image)
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.labels, expected.labels)
    assert found.letterbox == letterbox


def test_score_threshold(detector: Detector) -> None:
    everything = detector(picture())
    threshold = float(everything.scores[4])
    assert len(detector(picture(), threshold)) == 5  # the threshold itself counts
    assert len(detector(picture(), 1.0)) == 0
    assert len(detector(picture(), 0.0)) == len(everything)


def test_from_file_to_boxes(detector: Detector, photo: Path) -> None:
    found = detector(read_image(photo))
    assert np.array_equal(found.boxes, detector(picture()).boxes)


# ------------------------------------------------------------------------ bare network inputs


def test_layouts_and_types_of_a_blob_are_one(detector: Detector) -> None:
    blob = network_inputs(2)
    rows = detector.infer(blob)
    for same in (
        blob.transpose(0, 3, 1, 2),
        blob.astype(np.float32),
        blob.astype(np.int64),
        np.asfortranarray(blob),
        blob.transpose(0, 3, 1, 2).astype(float),
    ):
        assert np.array_equal(detector.infer(same), rows)


def test_image_id_is_the_index_in_the_batch(detector: Detector) -> None:
    blob = network_inputs(3)[[0, 1, 2, 0]]
    rows = detector.infer(blob)
    assert rows.shape == (4 * SMALL.max_detections, 7) and rows.dtype == np.float32
    for index in range(4):
        alone = detector.infer(blob[index : index + 1])
        alone = alone[alone[:, 0] == 0]
        assert len(alone) >= 5
        mine = rows[rows[:, 0] == index]
        assert np.array_equal(mine[:, 1:], alone[:, 1:])
        assert (np.diff(mine[:, 2]) <= 0).all()
    valid = rows[rows[:, 0] >= 0]
    assert (np.diff(valid[:, 0]) >= 0).all()
    assert set(valid[:, 1]) <= {1, 2, 3}
    assert (valid[:, 3:] >= 0).all() and (valid[:, 3:] <= 1).all()


def variant(small_model: Path, path: Path, **changes: Any) -> Detector:
    """A detector with the same weights and other settings."""
    model = load_model(small_model)
    save_model(path, replace(model.config, **changes), model.tensors, {})
    return Detector.load(path, threads=1)


def test_padding_rows(small_model: Path, tmp_path: Path) -> None:
    detector = variant(small_model, tmp_path / "m", score_threshold=0.85)
    rows = detector.infer(network_inputs(2))
    assert set(rows[:, 0]) == {-1, 0, 1}
    valid = int((rows[:, 0] >= 0).sum())
    assert 0 < valid < len(rows)
    assert (rows[:valid, 2] > 0).all()
    assert np.array_equal(rows[valid:], np.tile([[-1, 0, 0, 0, 0, 0, 0]], (len(rows) - valid, 1)))


def test_the_four_dimensional_form(detector: Detector) -> None:
    flat = detector.infer(network_inputs(2))
    rows = detector.infer(network_inputs(2), four_d=True)
    assert rows.shape == (1, 1, 2 * SMALL.max_detections, 7)
    assert np.array_equal(rows[0, 0], flat)


def test_any_canvas_size(detector: Detector) -> None:
    blob = network_inputs(1)
    before = detector.infer(blob)
    for height, width in ((48, 80), (65, 97), (16, 16)):
        assert detector.infer(np.full((1, height, width, 3), 77, np.uint8)).shape == before.shape
    assert np.array_equal(detector.infer(blob), before)  # plans of other sizes leave no trace


# ------------------------------------------------------------------------ threads, instruction sets


def test_every_number_of_threads_gives_the_same_bits(small_model: Path) -> None:
    expected = Detector.load(small_model, threads=1).infer(network_inputs(2))
    for count in (2, 3, 5):
        rows = Detector.load(small_model, threads=count).infer(network_inputs(2))
        assert np.array_equal(rows, expected)


def test_every_instruction_set_agrees(small_model: Path) -> None:
    expected = Detector.load(small_model, threads=1, isa="scalar").infer(network_inputs(2))
    for isa in available_isas():
        detector = Detector.load(small_model, threads=1, isa=isa)
        assert detector.isa == isa
        assert np.allclose(detector.infer(network_inputs(2)), expected, atol=1e-4)


def test_the_environment_chooses_the_instruction_set(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEDET_ISA", "scalar")
    assert Detector.load(small_model).isa == "scalar"
    assert Detector.load(small_model, isa=available_isas()[0]).isa == available_isas()[0]


def test_python_threads_share_a_detector(small_model: Path) -> None:
    detector = Detector.load(small_model, threads=2)
    # Different sizes, so that the calls would disturb each other's plan.
    blobs = [network_inputs(1), np.ascontiguousarray(network_inputs(2)[1:, :48, :80])]
    expected = [detector.infer(blob) for blob in blobs]
    assert not np.array_equal(expected[0], expected[1])
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(20):
            if not np.array_equal(detector.infer(blobs[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_streams_give_what_calls_give_in_order(small_model: Path, streams: int) -> None:
    one = Detector.load(small_model, threads=1)
    detector = Detector.load(small_model, threads=3, streams=streams)
    photos = [np.roll(photo, i, axis=1) for i, photo in enumerate(network_inputs(8))]
    expected = [one(photo).boxes for photo in photos]
    assert any(len(boxes) for boxes in expected)
    found = [detections.boxes for detections in detector.stream(iter(photos))]
    assert len(found) == len(photos)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(detector.stream([])) == []

    async def collect() -> list[np.ndarray]:
        async def source() -> AsyncIterator[np.ndarray]:
            for photo in photos:
                yield photo

        return [d.boxes async for d in detector.stream_async(source())]

    assert all(np.array_equal(a, b) for a, b in zip(asyncio.run(collect()), expected, strict=True))


def test_an_error_in_a_stream_reaches_the_caller(small_model: Path) -> None:
    detector = Detector.load(small_model, threads=2, streams=2)
    good = network_inputs(1)[0]
    found = detector.stream([good, good.astype(np.float32), good])
    next(found)
    with pytest.raises(InputError, match="uint8"):
        list(found)


# ------------------------------------------------------------------------ other processes

WORKERS = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np
from sparsedet import Detector, InputError

def found(detector, image):
    return detector(image)

def keep(detector):
    global kept
    kept = detector

def found_by_kept(image):
    return kept(image)

if __name__ == "__main__":
    path, image = sys.argv[1], np.load(sys.argv[2])
    detector = Detector.load(path, threads=1)
    expected = detector(image)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        results = [pool.submit(found, detector, image).result()]
    with spawn.Pool(1, initializer=keep, initargs=(detector,)) as pool:
        results += pool.map(found_by_kept, [image, image])
    made = Detector(detector.model, detector.engine)
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            pool.submit(found, made, image).result()
        except InputError as error:
            print(error)
    for result in results:
        assert np.array_equal(result.boxes, expected.boxes)
        assert np.array_equal(result.scores, expected.scores)
    print(len(results), len(expected))
"""


def test_spawned_workers_take_a_detector(small_model: Path, tmp_path: Path) -> None:
    """As an argument and as an initializer's; what they return comes back."""
    program, image = tmp_path / "program.py", tmp_path / "image.npy"
    program.write_text(WORKERS)
    np.save(image, picture())
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, program, small_model, image],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    refusal, counts = done.stdout.splitlines()
    assert "cannot be pickled" in refusal and "load it in the other process" in refusal
    assert counts.split()[0] == "3" and int(counts.split()[1]) >= 10


def test_a_detector_pickles_by_its_file_and_arguments(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_model.parent)
    detector = Detector.load(
        small_model.name,
        threads=2,
        streams=2,
        isa="scalar",
        precision="bf16",
        resize="stretch",
        cache="packed",
    )
    monkeypatch.chdir(tmp_path)  # the paths are absolute
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        assert type(again) is Detector and again.runtime == detector.runtime
        assert again.streams == 2 and again.config.resize == "stretch"
        assert np.array_equal(again.infer(network_inputs(1)), detector.infer(network_inputs(1)))
    assert not list(tmp_path.iterdir())
    assert len(pickle.dumps(detector)) < 1000


def test_an_embedded_model_pickles_as_such() -> None:
    """By no path: the other process may have it elsewhere."""
    for name in (None, *EMBEDDED):
        data = pickle.dumps(Detector.load(name, threads=1))
        assert b".safetensors" not in data
        assert pickle.loads(data).config.name == (name or DEFAULT_MODEL)


def test_a_model_in_the_package_is_loaded_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.load("picodet-s", threads=1)
    assert embedded_model("picodet-s").stat().st_size <= 3_000_000
    assert detector.model.provenance["licence"] == "Apache-2.0"
    assert len(detector.config.class_names) == 80 and detector.sparsity > 0.3
    beach = Path(__file__).parents[1] / "examples" / "beach.jpg"
    assert detector(beach, 0.4).names.count("person") >= 4
    data = pickle.dumps(detector)
    assert str(embedded_model("picodet-s")).encode() not in data
    assert pickle.loads(data).config == detector.config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picodet-s").write_bytes(b"mine")  # a file of that name comes first
    with pytest.raises(InputError, match="picodet-s"):
        Detector.load("picodet-s", threads=1)


def test_a_graph_pickles_too(small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from sparsedet.exporters.onnx import save_onnx

    model = load_model(small_model)
    save_onnx(tmp_path / "small.onnx", model.config, model.tensors)
    detector = Detector.load(tmp_path / "small.onnx", backend="onnxruntime", threads=1)
    again = pickle.loads(pickle.dumps(detector))
    assert np.array_equal(again.infer(network_inputs(1)), detector.infer(network_inputs(1)))


def test_what_does_not_pickle_says_so_in_one_line(small_model: Path, tmp_path: Path) -> None:
    model = load_model(small_model)
    made = Detector(model, Engine(model.config, model.tensors, threads=1))
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(InputError, match=r"cannot be pickled.*load it in the other") as refused:
            attempt(made)
        assert "\n" not in str(refused.value)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(small_model.read_bytes())
    data = pickle.dumps(Detector.load(moved, threads=1))
    moved.unlink()
    with pytest.raises(InputError, match=r"moved\.safetensors: No such file"):
        pickle.loads(data)


# ------------------------------------------------------------------------ what a detector says


def test_sparsity_counts_zeros_among_all_parameters(detector: Detector, small_model: Path) -> None:
    tensors = load_model(small_model).tensors.values()
    zeros = sum(int((t == 0).sum()) for t in tensors)
    assert detector.sparsity == zeros / sum(t.size for t in tensors)
    assert 0.4 <= detector.sparsity < 0.41


def test_the_default_model_is_embedded() -> None:
    detector = Detector.load()
    assert detector.config == load_model(embedded_model(DEFAULT_MODEL)).config
    assert detector.config.class_names[0] == "person" and len(detector.config.class_names) == 80


def test_the_c4_model_stays_by_its_name(embedded: Path) -> None:
    detector = Detector.load("r50half-c4")
    assert detector.config == load_model(embedded).config
    assert len(detector.config.class_names) == 80 and detector.sparsity >= 0.6
    assert embedded.stat().st_size <= 12_000_000
    assert detector.model.provenance
    with pytest.warns(DeprecationWarning, match="embedded is now r50half-c4"):
        assert model_path("embedded") == embedded


# ------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 1), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((1, 9, 9, 3), np.uint8),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9, 3), np.uint16),
        np.zeros((0, 9, 3), np.uint8),
        None,
        3.5,
    ],
    ids=lambda image: f"{getattr(image, 'shape', image)}",
)
def test_bad_photographs(detector: Detector, image: Any) -> None:
    with pytest.raises(InputError, match=r"image .*expected"):
        detector(image)


@pytest.mark.parametrize(
    "blob",
    [
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((1, 4, HEIGHT, WIDTH), np.uint8),
        np.zeros((0, 3, HEIGHT, WIDTH), np.uint8),
        np.zeros((1, 3, HEIGHT, 3), np.uint8),
        np.full((1, 3, HEIGHT, WIDTH), 0.5),
        np.full((1, 3, HEIGHT, WIDTH), -1),
        np.full((1, 3, HEIGHT, WIDTH), 256),
        np.full((1, 3, HEIGHT, WIDTH), np.nan, np.float32),
        np.full((1, 3, HEIGHT, WIDTH), "a"),
    ],
    ids=lambda blob: f"{blob.shape} {blob.flat[0] if blob.size else ''}",
)
def test_bad_blobs(detector: Detector, blob: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"blob .*expected"):
        detector.infer(blob)


def test_a_canvas_too_small_for_the_network(small_model: Path, tmp_path: Path) -> None:
    detector = variant(
        small_model,
        tmp_path / "m",
        pool_padding=(0, 0),
        stride_conv1_padding=(0, -1),
        stride_conv2_padding=(0, 1),
    )
    for height, width, message in (
        (8, 300, "is 8x300 pixels"),
        (64, 15, "64x15"),
        (16, 64, "16x64 is too small"),
    ):
        for _ in range(2):  # a refused size is refused again
            with pytest.raises(InputError, match=message):
                detector.infer(np.zeros((1, height, width, 3), np.uint8))
    assert len(detector.infer(network_inputs(1))) == SMALL.max_detections


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": -2}, "threads is -2"),
        ({"threads": 100_000}, "threads is 100000"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"threads": "2"}, "threads is '2'"),
        ({"isa": "mmx"}, "'mmx'"),
        ({"precision": "int3"}, "precision is 'int3'"),
        ({"streams": 0}, "streams is 0"),
        ({"streams": 3, "threads": 2}, "streams is 3, expected 1..2"),
        ({"streams": "2"}, "streams is '2'"),
        ({"resize": "crop"}, "resize is 'crop'"),
    ],
)
def test_bad_arguments(small_model: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Detector.load(small_model, **arguments)


def test_bad_model_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors"):
        Detector.load(tmp_path / "none.safetensors")
    (tmp_path / "m").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match="pickle"):
        Detector.load(tmp_path / "m")
