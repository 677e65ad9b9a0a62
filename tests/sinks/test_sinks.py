"""Result files, labels, crops and video; and names that strangers choose."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.commands import tree
from helpers.small import encoded
from helpers.videos import frame_image, number_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedet.detections import Detections
from sparsedet.errors import InputError, UsageError
from sparsedet.images.read import read_image
from sparsedet.sinks import Crops, ResultFiles, YoloLabels, open_sink
from sparsedet.sinks.base import Stems, safe_folder, safe_name
from sparsedet.sinks.journal import Journal
from sparsedet.sources import Frame

NAMES = ("cat", "dog", "../../evil")


def detections(number: int = 0, count: int = 3) -> Detections:
    """Some detections in a frame of `helpers.videos`."""
    rng = np.random.default_rng(number)
    corners = np.sort(rng.uniform(0, 96, (count, 2, 2)), axis=1).reshape(count, 4)
    scores = rng.uniform(0.1, 1, count)
    labels = rng.integers(1, 4, count)
    size: Any = {"height": 96, "width": 128, "category_ids": (17, 18, 90)}
    return Detections.from_boxes(corners, scores, labels, NAMES, **size)


def frames(still: int = 2, moving: int = 3) -> list[tuple[Frame, Detections]]:
    stills = [Frame(f"a/{number}.jpg", frame_image(number)) for number in range(still)]
    video = [Frame("film.mp4", frame_image(i), i / 25, i) for i in range(moving)]
    return [(frame, detections(i, i % 4)) for i, frame in enumerate([*stills, *video])]


def rows_of(items: list[tuple[Frame, Detections]]) -> int:
    return sum(len(found) for _, found in items)


# ------------------------------------------------------------------- result files


def test_all_forms_hold_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    items = frames()
    paths = [tmp_path / f"found{suffix}" for suffix in (".jsonl", ".csv", ".json", ".parquet")]
    sink = ResultFiles(paths)
    for frame, found in items:
        sink.write(frame, found)
    assert sink.close() == paths and sorted(tmp_path.iterdir()) == sorted(paths)
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [line["photo"] for line in lines] == [frame.name for frame, _ in items]
    assert [line.get("frame") for line in lines] == [frame.number for frame, _ in items]
    assert [len(line["detections"]) for line in lines] == [len(found) for _, found in items]
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(rows) == rows_of(items) and list(rows[0])[:4] == ["photo", "frame", "time", "name"]
    flat = [detection for line in lines for detection in line["detections"]]
    assert [row["score"] for row in rows] == [str(one["score"]) for one in flat]
    coco = json.loads(paths[2].read_text())
    assert [one["category_id"] for one in coco] == [one["category_id"] for one in flat]
    assert coco[0]["image_id"] == 1 and coco[-1]["image_id"] == "film.mp4#1"
    table = parquet.read_table(paths[3]).to_pydict()
    assert table["name"] == [row["name"] for row in rows]
    exact = [score for _, found in items for score in found.scores.tolist()]
    assert table["score"] == exact and table["track_id"] == [None] * len(rows)
    assert table["photo"] == [row["photo"] for row in rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".parquet"])
def test_nothing_found_and_nothing_written_are_whole_files(tmp_path: Path, suffix: str) -> None:
    for name, items in (("none", []), ("empty", [(Frame("x", frame_image(0)), detections(0, 0))])):
        path = tmp_path / f"{name}{suffix}"
        with open_sink(path) as sink:
            for frame, found in items:
                sink.write(frame, found)
        if suffix == ".json":
            assert json.loads(path.read_text()) == []
        elif suffix == ".parquet":
            assert pytest.importorskip("pyarrow.parquet").read_table(path).num_rows == 0
        else:
            lines = path.read_text().splitlines()
            expected = {".csv": "photo,name", ".jsonl": '{"photo": "x"'}[suffix]
            assert len(lines) == (1 if items else 0) and all(x.startswith(expected) for x in lines)


def test_existing_files_and_unknown_forms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        open_sink(path)
    with pytest.raises(UsageError, match="the detections go into"):
        open_sink(tmp_path / "found.xml", "results")
    with pytest.raises(UsageError, match="form is 'txt'"):
        open_sink(tmp_path, "txt")  # type: ignore[arg-type]
    assert path.read_text() == "precious"
    with open_sink(path, overwrite=True) as sink:
        sink.write(*frames()[1])
    assert path.read_text().startswith("photo,")


# ------------------------------------------------------------------- the journal


def test_a_journal_gives_back_the_exact_detections(tmp_path: Path) -> None:
    items = frames()
    masks = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    full = replace(detections(9), mask_probabilities=masks, track_ids=np.array([4, -1, 7]))
    items.append((Frame("caf\udce9.png", frame_image(0)), full))
    journal = Journal(tmp_path / "j", {"a": 1})
    for frame, found in items:
        journal.add(frame.name, frame.time, frame.number, found)
    for (frame, found), entry in zip(items, journal, strict=True):
        assert (entry.name, entry.time, entry.number) == (frame.name, frame.time, frame.number)
        assert np.array_equal(entry.found.rows(), found.rows())
        assert entry.found.to_json() == found.to_json() and repr(entry.found) == repr(found)
        assert entry.found.letterbox == found.letterbox
    journal.close(keep=False)
    assert not list(tmp_path.iterdir())


def test_a_journal_goes_on_wherever_it_was_cut(tmp_path: Path) -> None:
    items = frames()
    path = tmp_path / "j"
    journal = Journal(path, {})
    for frame, found in items:
        journal.add(frame.name, frame.time, frame.number, found)
    journal.close(keep=True)
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    for cut in {*ends[1:], *(end - 1 for end in ends[1:]), *(end - 40 for end in ends[1:])}:
        path.write_bytes(data[:cut])
        again = Journal(path, {}, resume=True)
        whole = sum(end <= cut for end in ends) - 1
        assert sum(again.known.values()) == whole == len(list(again))
        for frame, found in items[whole:]:
            again.add(frame.name, frame.time, frame.number, found)
        again.close(keep=True)
        assert path.read_bytes() == data


@pytest.mark.parametrize("line", [b"[1]", b"7", b"[" * 5000, b"{" * 9, b"\xff", b'{"photo": []}'])
def test_a_journal_ends_before_a_line_that_is_none(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "j"
    journal = Journal(path, {})
    for frame, found in frames():
        journal.add(frame.name, frame.time, frame.number, found)
    journal.close(keep=True)
    data = path.read_bytes()
    path.write_bytes(data + line + b"\n")
    Journal(path, {}, resume=True).close(keep=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"words\n", "not the journal"),
        (b"\x00" * 100, "not the journal"),
        (b'{"kind": "other"}\n', "not the journal"),
        (b"[" * 5000 + b"\n", "not the journal"),
        (b"<html>\n", "is a web page"),
    ],
)
def test_other_files_are_no_journals(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    with pytest.raises(InputError, match=word):
        Journal(path, {}, resume=True)
    with pytest.raises(InputError, match="--resume goes on"):
        Journal(path, {})
    assert path.read_bytes() == data


def test_a_run_of_other_settings_does_not_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"--score-threshold": 0.5})
    journal.add("x", None, None, detections())
    journal.close(keep=True)
    with pytest.raises(InputError, match=r"had --score-threshold 0.5, this one has 0.3"):
        Journal(tmp_path / "j", {"--score-threshold": 0.3}, resume=True)
    other = replace(detections(), class_names=("a", "b", "c"))
    again = Journal(tmp_path / "j", {"--score-threshold": 0.5}, resume=True)
    with pytest.raises(InputError, match="other classes"):
        again.add("y", None, None, other)


# ------------------------------------------------------------------- labels and crops


def test_labels_are_divided_by_the_size_and_count_from_zero(tmp_path: Path) -> None:
    size: Any = {"height": 100, "width": 200}
    found = Detections.from_boxes([[20, 10, 60, 90]], [0.9], [2], ["cat", "dog"], **size)
    sink = YoloLabels(tmp_path / "labels")
    image = np.zeros((100, 200, 3), np.uint8)
    sink.write(Frame("b/street.jpg", image), found)
    sink.write(Frame("film.mp4", image, 0.2, 5), found.best(0))
    written = tree(tmp_path / "labels")
    assert written == {
        "street.txt": b"1 0.200000 0.500000 0.200000 0.800000\n",
        "film_000005.txt": b"",
    }
    with pytest.raises(InputError, match="exists already"):
        YoloLabels(tmp_path / "labels").write(Frame("street.png", image), found)


def test_crops_are_what_is_in_the_boxes(tmp_path: Path) -> None:
    frame, found = Frame("a/x.jpg", frame_image(3)), detections(5)
    Crops(tmp_path, quality=100).write(frame, found)
    for place, (name, _, box) in enumerate(found, 1):
        crop = read_image(tmp_path / safe_folder(name) / f"x_{place}.jpg")
        x0, y0 = np.floor(box[:2]).astype(int)
        x1, y1 = np.ceil(box[2:]).astype(int)
        assert crop.shape[:2] == (y1 - y0, x1 - x0)
        error = np.abs(crop.astype(int) - frame.image[y0:y1, x0:x1]).mean()
        assert error < 12  # JPEG halves the colours of noise


def test_no_name_leads_out_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    size: Any = {"height": 9, "width": 9}
    evil = [
        "../../a",
        "/etc/x",
        "..",
        "a/../../b",
        "c\\d",
        "\x00e",
        ".hidden",
        "x" * 999,
        "é" * 400,
    ]
    image = np.full((9, 9, 3), 7, np.uint8)
    for name in evil:
        found = Detections.from_boxes([[0, 0, 9, 9]], [0.9], [1], [name], **size)
        for frame_name in (name, f"http://host/{name}", "http://host/..%2F..%2Fz.png?q=/../y"):
            frame = Frame(frame_name, image)
            Crops(folder, overwrite=True).write(frame, found)
            YoloLabels(folder, overwrite=True).write(frame, found)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert all(not path.name.startswith(".") for path in folder.rglob("*"))


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(st.text(max_size=300))
def test_a_safe_name_is_one_name(name: str) -> None:
    for safe in (safe_name(name), safe_folder(name)):
        assert safe and os.path.basename(safe) == safe and safe not in (".", "..")
        assert len(os.fsencode(safe.encode("utf-8", "surrogatepass"))) <= 151
        assert not any(ord(character) < 32 for character in safe)


def test_inputs_of_one_name_have_files_of_their_own() -> None:
    stems = Stems()
    given_names = ["a/x.jpg", "b/x.png", "a/x.jpg", "b/X.png"]
    assert [stems.stem(name) for name in given_names] == ["x", "x-2", "x", "X-2-2"[:1] + "-3"]
    assert stems.stem("b/x.png", 7) == "x-2_000007"


# ------------------------------------------------------------------- video


@pytest.mark.parametrize("size", [(96, 128), (95, 127)])
def test_a_video_has_each_frame_at_its_time(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av")
    from sparsedet.sinks.video import VideoFile

    path = tmp_path / "out.mp4"
    video = VideoFile(path, 10.0)
    times = [0.0, 0.1, 0.25, 0.3, 0.9]
    for number, time in enumerate(times):
        video.write(frame_image(number, *size), time)
    assert not path.exists()
    assert video.close() == path and [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        decoded = [(frame.time, frame.to_ndarray(format="bgr24")) for frame in container.decode(0)]
    assert np.allclose([time for time, _ in decoded], times, atol=1e-4)
    assert [number_of(image) for _, image in decoded] == list(range(5))
    assert decoded[0][1].shape[:2] == tuple(length + length % 2 for length in size)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser starts before it has all


def test_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from sparsedet.sinks.video import VideoFile

    (tmp_path / "old.mp4").write_bytes(b"precious")
    for name, word in (
        ("old.mp4", "exists already"),
        ("x.gif", "written as .mp4"),
        ("no/x.mp4", "no"),
    ):
        with pytest.raises(InputError, match=word):
            VideoFile(tmp_path / name, 25.0)
    empty = VideoFile(tmp_path / "none.mp4", 25.0)
    assert empty.close() is None
    assert (tmp_path / "old.mp4").read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


def test_a_video_that_cannot_be_begun_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    from sparsedet.sinks.video import VideoFile

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(av, "open", refuse)
    video = VideoFile(tmp_path / "x.mp4", 25.0)
    with pytest.raises(InputError, match=r"x.mp4: cannot be written \(No space left"):
        video.write(frame_image(0), 0.0)
    assert video.close() is None and not list(tmp_path.iterdir())


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'sparsedet\[video\]'"):
        open_sink(tmp_path / "x.mp4")


def test_an_annotated_picture_and_a_folder_of_them(tmp_path: Path) -> None:
    frame, found = frames()[1]
    with open_sink(tmp_path / "one.png") as sink:
        assert sink.write(frame, found) == tmp_path / "one.png"
    assert np.array_equal(read_image(tmp_path / "one.png"), found.draw(frame.image))
    with open_sink(f"{tmp_path}/folder/") as sink:
        sink.write(Frame("https://host/a/street.png?x=1", frame.image), found)
    assert cv2.imread(str(tmp_path / "folder" / "street.jpg")) is not None
    assert encoded(".png")
