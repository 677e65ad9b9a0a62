"""What people have, as frames in order; and what is said of what cannot be read."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.rtsp import serve_rtsp
from helpers.small import encoded, picture
from helpers.videos import damage, frame_image, number_of, write_h264, write_video
from helpers.web import body, endless, redirect, serve, slow

from sparsedet.errors import InputError, UsageError
from sparsedet.sources import BadFrame, Frame, Limits, open_source
from sparsedet.sources.live import LivePart
from sparsedet.sources.mjpeg import split_jpegs


def read(*given: Any, **settings: Any) -> tuple[list[Frame], list[str]]:
    """Frames, and what is said of the others."""
    source = open_source(given[0] if len(given) == 1 else list(given), **settings)
    items = list(source.read())
    frames = [item for item in items if isinstance(item, Frame)]
    return frames, [str(item.error) for item in items if isinstance(item, BadFrame)]


def jpeg(number: int = 0) -> bytes:
    return bytes(cv2.imencode(".jpg", frame_image(number))[1])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images, a video, a subfolder, and files that are neither."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden.png"):
        (folder / name).write_bytes(encoded(Path(name).suffix.lower()))
    (folder / "notes.md").write_text("text")
    write_video(folder / "film.avi", 3)
    return folder


def names(frames: list[Frame], folder: Path) -> list[str]:
    return [str(Path(frame.name).relative_to(folder)) for frame in frames]


# ------------------------------------------------------------------- files


def test_a_folder_with_and_without_its_subfolders(photos: Path) -> None:
    frames, bad = read(photos)
    assert names(frames, photos) == ["a.JPG", "b.png", *["film.avi"] * 3] and not bad
    frames, bad = read(photos, recursive=True)
    assert names(frames, photos)[-1] == "sub/c.png" and len(frames) == 6
    assert open_source(photos).count() == 5


def test_patterns_lists_and_files_name_the_same(photos: Path) -> None:
    listing = photos / "some.txt"
    listing.write_text("\ufeff# a comment\nb.png\n\nsub/c.png\n", encoding="utf-8")
    pattern, bad = read(str(photos / "**" / "*.png"))
    assert names(pattern, photos) == ["b.png", "sub/c.png"] and not bad
    listed, bad = read(listing)
    assert names(listed, photos) == ["b.png", "sub/c.png"] and not bad
    each, bad = read(photos / "b.png", (photos / "sub" / "c.png").as_uri())
    assert names(each, photos) == ["b.png", "sub/c.png"] and not bad
    for frames in (pattern, listed, each):
        assert all(np.array_equal(frame.image, picture()) for frame in frames)


def test_what_is_wrong_stands_in_its_place_and_the_rest_goes_on(photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"text")
    (photos / "empty").mkdir()
    (photos / "binary.txt").write_bytes(b"\xff\xfe\xff")
    (photos / "nothing.txt").write_text("\n# only this\n")
    (photos / "lists.txt").write_text("nothing.txt\n")
    given = ["none.jpg", "*.tif", "bad.png", "empty", "binary.txt", "nothing.txt", "lists.txt"]
    frames, bad = read(*(photos / name for name in given), photos / "b.png")
    assert names(frames, photos) == ["b.png"]
    words = ["No such file", "no file of that pattern", "not a JPEG", "holds no images"]
    words += ["not a list", "is empty", "named in the list"]
    assert len(bad) == len(words)
    for error, word, name in zip(bad, words, given, strict=True):
        assert word in error and name.split(".")[0] in error and "\n" not in error
    with pytest.raises(InputError, match="not a JPEG"):
        list(open_source([photos / "b.png", photos / "bad.png"]))
    with pytest.warns(UserWarning, match="left out: .*not a JPEG"):
        assert (
            len(list(open_source([photos / "bad.png", photos / "b.png"], bad_images="skip"))) == 1
        )


def test_a_folder_that_cannot_be_read_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    frames, bad = read(photos, recursive=True)
    assert len(frames) == 5
    assert bad == [f"{photos}/sub: the folder cannot be read (Permission denied)"]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="every is 0"):
        open_source("x", every=0)
    with pytest.raises(InputError, match="bad_images is 'ignore'"):
        open_source("x", bad_images="ignore")  # type: ignore[arg-type]
    assert read("s3://bucket/key")[1] == [
        "s3://bucket/key: addresses of s3 are not read, but http, https, file, rtsp, rtsps, rtmp, "
        "rtmps, srt"
    ]


# ------------------------------------------------------------------- videos


def test_a_video_gives_every_frame_with_its_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.avi", 12)
    frames, bad = read(path)
    assert [number_of(frame.image) for frame in frames] == list(range(12)) and not bad
    assert [frame.number for frame in frames] == list(range(12))
    assert np.allclose([frame.time or 0 for frame in frames], np.arange(12) / 25, atol=1e-3)
    some, _ = read(path, every=5)
    assert [frame.number for frame in some] == [0, 5, 10]
    assert [number_of(frame.image) for frame in some] == [0, 5, 10]
    assert open_source(path, every=5).count() == 3 and open_source(path).count() == 12


def test_a_video_is_told_by_its_content_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.avi", 3).rename(tmp_path / "film.bin")
    assert len(read(path)[0]) == 3


def test_damaged_frames_in_mid_video_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_h264(tmp_path / "film.mp4", 24)
    whole, _ = read(path)
    damage(path)
    frames, bad = read(path)
    assert 12 <= len(frames) < len(whole) == 24
    assert bad and all("damaged" in error for error in bad)
    assert frames[-1].number == 23  # no frame moved
    assert [number_of(frame.image) for frame in frames[:12]] == list(range(12))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[: len(data) // 2], "cut"),
        (lambda data: data[:60], "cannot be opened"),
        (lambda data: b"#EXTM3U\n/etc/passwd\n", "not a video that is read here"),
        (lambda data: b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (lambda data: b"words " * 100, "not a video"),
    ],
)
def test_bad_videos(tmp_path: Path, data: Callable[[bytes], bytes], word: str) -> None:
    path = write_h264(tmp_path / "film.mp4", 24)
    path.write_bytes(data(path.read_bytes()))
    frames, bad = read(path)
    assert bad and word in bad[-1] and all(error.startswith(str(path)) for error in bad)
    assert len(frames) < 24


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "film.avi", 2)
    monkeypatch.setattr("sparsedet.sources.video.MAX_PIXELS", 96 * 128 - 1)
    assert read(path) == (
        [],
        [f"{path}: its frames have 128x96 pixels, expected at most 12287"],
    )


# ------------------------------------------------------------------- live


class FakeCapture:
    """A camera that gives numbered frames, some seconds apart."""

    def __init__(self, frames: int, pause: float = 0.0, opened: bool = True) -> None:
        self.frames, self.pause, self.opened = frames, pause, opened
        self.given = 0
        self.released = threading.Event()

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, Any]:
        time.sleep(self.pause)
        self.given += 1
        return (False, None) if self.given > self.frames else (True, frame_image(self.given - 1))

    def release(self) -> None:
        self.released.set()


def camera(capture: FakeCapture, **settings: Any) -> LivePart:
    return LivePart("webcam 0", 0, open=lambda what, timeout: capture, **settings)


def test_a_camera_gives_the_newest_frame() -> None:
    capture = FakeCapture(20, 0.01)
    numbers = []
    for frame in open_source(camera(capture)):
        assert number_of(frame.image) == frame.number and frame.name == "webcam 0"
        numbers.append(frame.number)
        time.sleep(0.04)  # slower than the camera
    assert numbers == sorted(set(numbers)) and 2 <= len(numbers) < 15
    assert capture.released.wait(2)


def test_a_camera_is_let_go_when_nobody_reads_on() -> None:
    capture = FakeCapture(10**9, 0.001)
    frames = iter(open_source(camera(capture)))
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert capture.released.wait(2)


def test_a_camera_that_is_not_there_or_silent() -> None:
    assert "cannot be opened" in read(camera(FakeCapture(0, opened=False)))[1][0]
    assert "gives no frame" in read(camera(FakeCapture(0)))[1][0]
    assert "no frame" in read(camera(FakeCapture(9, 0.5), timeout=0.05))[1][0]
    (part,) = open_source("rtsp://me:secret@127.0.0.1:9/x").parts
    assert part.name == "rtsp://me:***@127.0.0.1:9/x"
    assert open_source(7).live and open_source("rtsp://127.0.0.1/x").live


# ------------------------------------------------------------------- addresses


def test_addresses_of_images_videos_and_streams(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.avi", 4).read_bytes()
    parts = b"".join(
        b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(number) + b"\r\n"
        for number in range(5)
    )
    answers = {
        "/a.png": body(encoded(".png")),
        "/moved": redirect("/a.png"),
        "/film": body(film, "video/x-msvideo"),
        "/camera": body(parts, "multipart/x-mixed-replace; boundary=frame", -1),
    }
    with serve(answers) as site:
        for path in ("/a.png", "/moved"):
            (frame,), bad = read(site + path)
            assert np.array_equal(frame.image, picture()) and frame.name == site + path
        frames, bad = read(site + "/film", site + "/camera")
    assert [number_of(frame.image) for frame in frames] == [*range(4), *range(5)] and not bad
    assert [frame.number for frame in frames] == [*range(4), *range(5)]


def test_bad_addresses_are_refused_and_the_rest_goes_on() -> None:
    png = encoded(".png")
    limits = Limits(image_bytes=200_000, video_bytes=200_000, seconds=0.6, timeout=0.4)
    answers = {
        "/good.png": body(png),
        "/half.png": body(png[: len(png) // 2], length=len(png)),
        "/endless.png": endless(png + bytes(5000)),
        "/slow.png": slow(b"\x89PNG", 0.05),
        "/silent.png": slow(b"\x89PNG", 10),
        "/page": body(b"<!doctype html><title>no</title>", "text/html"),
        "/secret": redirect("file:///etc/passwd"),
        "/loop": redirect("/loop"),
    }
    words = {
        "half": "the connection broke after",
        "endless": "more than 200000 bytes",
        "slow": "not complete after 0.6 s",
        "silent": "sent nothing for 0.4 s",
        "page": "is a web page",
        "secret": "not allowed",
        "loop": "302",
        "none": "the server answers 404",
    }
    with serve(answers) as site:
        for name, word in words.items():
            suffix = ".png" if f"/{name}.png" in answers else ""
            frames, bad = read(f"{site}/{name}{suffix}", f"{site}/good.png", limits=limits)
            assert len(frames) == 1 and len(bad) == 1 and word in bad[0], (name, bad)
    frames, bad = read(f"{site}/good.png", limits=limits)  # it is gone
    assert not frames and "cannot be read" in bad[0]


# ------------------------------------------------------------------- standard input


class Pipe:
    """Standard input with these bytes, in small pieces."""

    def __init__(self, data: bytes) -> None:
        self.buffer: Any = io.BytesIO(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda: encoded(".png"), [None]),
        (lambda: jpeg(3), [None]),
        (lambda: b"".join(jpeg(number) for number in range(4)), [0, 1, 2, 3]),
        (lambda: jpeg(0) + b"\r\n--x\r\n" + jpeg(1)[:-300] + jpeg(2), [0]),
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, data: Callable[[], bytes], expected: list[int | None]
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(data()))
    frames, _ = read("-")
    assert [frame.number for frame in frames][: len(expected)] == expected
    assert all(frame.name == "stdin" for frame in frames)


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"words", "not a JPEG"), (b"\xff\xd8\xff\xe0" + bytes(300), "truncated")],
)
def test_bad_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes, word: str) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(data))
    frames, bad = read("-")
    assert not frames and len(bad) == 1 and word in bad[0] and bad[0].startswith("stdin")


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_jpegs_are_split_at_their_own_ends(piece: int) -> None:
    thumbnail = cv2.imencode(".jpg", frame_image(9)[:16, :16])[1].tobytes()
    inside = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    images = [jpeg(number) for number in range(3)]
    images[1] = images[1][:2] + inside + images[1][2:]  # as cameras embed it
    stream = io.BytesIO(b"noise\xff\xd8 \xff" + b"--boundary\r\n".join(images))
    found = list(split_jpegs(lambda count: stream.read(min(count, piece)), "x", 1 << 20))
    assert found == images


def test_a_stream_without_an_image_ends() -> None:
    data = io.BytesIO(jpeg()[:-2] + bytes(1000))
    with pytest.raises(InputError, match="more than 2000 bytes"):
        list(split_jpegs(data.read, "x", 2000))
    assert list(split_jpegs(io.BytesIO(bytes(10**6)).read, "x", 2000)) == []


# ------------------------------------------------------------------- Python


def test_values_of_python() -> None:
    pil = pytest.importorskip("PIL.Image")
    array, data = picture(), encoded(".png")
    values = [array, pil.fromarray(array[:, :, ::-1].copy()), data, io.BytesIO(data)]
    frames, bad = read(values)
    assert not bad and all(np.array_equal(frame.image, array) for frame in frames)
    assert [frame.name for frame in frames] == ["image 0", "image 1", "image 2", "image"]
    assert len(read(array)[0]) == 1
    assert "is a float" in read(3.5)[1][0]
    batch, _ = read(np.stack([frame_image(number) for number in range(3)]))
    assert [number_of(frame.image) for frame in batch] == [0, 1, 2]


def test_an_iterator_is_read_as_it_is_needed() -> None:
    taken: list[int] = []

    def images() -> Iterator[Any]:
        for number in range(100):
            taken.append(number)
            yield frame_image(number % 10)

    source = iter(open_source(images()))
    next(source)
    assert taken == [0] and open_source(images()).count() is None


def test_an_rtsp_camera() -> None:
    pytest.importorskip("av")
    with serve_rtsp(24, rate=10.0) as address:
        frames, bad = read(address)
    numbers = [number_of(frame.image) for frame in frames]
    # A camera does not wait: how many frames are left out depends on what else the machine does.
    assert len(frames) >= 2 and not bad and numbers[-1] >= 20
    assert numbers == sorted(numbers) and {frame.name for frame in frames} == {address}
    assert all(a.time < b.time for a, b in pairwise(frames) if a.time is not None and b.time)
    frames, bad = read(address, limits=Limits(timeout=2))  # it is gone
    assert not frames and "the stream cannot be opened" in bad[0]
