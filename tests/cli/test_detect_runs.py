"""`sparsedet detect` on videos, folders and streams: filters, outputs, stopping and going on."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, Run, refused, tree
from helpers.small import bomb, encoded
from helpers.videos import damage, frame_image, write_h264, write_video

from sparsedet.detector import Detector
from sparsedet.images.read import read_image
from sparsedet.sources import open_source


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.avi", 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images, one of them bad, and a video."""
    path = tmp_path / "mixed"
    path.mkdir()
    for name in ("a.png", "b.jpg"):
        (path / name).write_bytes(encoded(Path(name).suffix))
    (path / "bad.png").write_bytes(b"text")
    write_video(path / "film.avi", 3)
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------- in and out


def test_a_video_is_printed_frame_by_frame_as_the_detector_finds(
    detect: Run, film: Path, small_model: Path
) -> None:
    outcome = detect(film, "--no-save", "--format", "json")
    assert outcome.code == 0 and outcome.err == ""
    printed = lines(outcome.out)
    assert [(one["photo"], one["frame"]) for one in printed] == [(str(film), i) for i in range(6)]
    detector = Detector.load(small_model, threads=1)
    for one, (frame, found) in zip(printed, detector.stream(film, 0.5, frames=True), strict=True):
        assert one == {
            "photo": frame.name,
            "frame": frame.number,
            "time": round(frame.time or 0, 3),
            **found.to_dict(),
        }
    table = detect(film, "--no-save", "--every", "4").out.splitlines()
    assert [line.split(":")[0] for line in table] == [
        f"{film} frame 0 at 0.00 s",
        f"{film} frame 4 at 0.16 s",
    ]
    rows = list(csv.DictReader(io.StringIO(detect(film, "--no-save", "--format", "csv").out)))
    assert {row["frame"] for row in rows} <= set("012345") and len(rows) >= 6


def test_a_video_is_annotated_beside_it_into_a_file_and_a_folder(
    detect: Run, film: Path, tmp_path: Path, small_model: Path
) -> None:
    pytest.importorskip("av")
    assert detect(film).out.splitlines()[-1] == f"-> {tmp_path}/film_detected.mp4"
    assert f"-> {tmp_path}/out.mp4" in detect(film, "-o", tmp_path / "out.mp4").out
    assert f"-> {tmp_path}/new/film.mp4" in detect(film, "-o", f"{tmp_path}/new/").out
    written = [tmp_path / name for name in ("film_detected.mp4", "out.mp4", "new/film.mp4")]
    assert len({path.read_bytes() for path in written}) == 1
    frames = list(open_source(written[0]))
    detector = Detector.load(small_model, threads=1)
    assert [round(frame.time or 0, 2) for frame in frames] == [i / 25 for i in range(6)]
    for frame, plain in zip(frames, open_source(film), strict=True):
        drawn = detector(plain.image, 0.5).draw(plain.image)
        pixels = frame.image.astype(int)
        assert np.abs(pixels - drawn).mean() < np.abs(pixels - plain.image).mean()
    before = tree(tmp_path)
    refused(detect(film, "-o", tmp_path / "out.mp4"), "exists already")
    refused(detect(film, "-o", film, "--overwrite"), "written as .mp4", code=2)
    refused(detect(film, "-o", tmp_path / "out.jpg"), "written as .mp4", code=2)
    assert tree(tmp_path) == before


def test_a_mixed_folder_gives_all_outputs_and_says_what_was_left_out(
    detect: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--write", tmp_path / "f.jsonl", "--write", tmp_path / "f.csv", "--yolo", out / "yolo"]
    outcome = detect(folder, *flags, "--crops", out / "crops", "--format", "json")
    assert outcome.code == 1
    errors = outcome.err.splitlines()
    assert len(errors) == 2 and "bad.png: not a JPEG" in errors[0]
    assert errors[1] == "sparsedet: 1 of 6 images failed"
    printed = lines(outcome.out)
    assert lines((tmp_path / "f.jsonl").read_text()) == printed and len(printed) == 5
    labels = sorted(path.name for path in (out / "yolo").iterdir())
    assert labels == ["a.txt", "b.txt", *(f"film_{number:06d}.txt" for number in range(3))]
    counts = [len(one["detections"]) for one in printed]
    assert [len((out / "yolo" / name).read_text().splitlines()) for name in labels] == counts
    assert 0 < len(list((out / "crops").rglob("*.jpg"))) <= sum(counts)
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.png",
        "b.jpg",
        "bad.png",
        "film.avi",
    ]


def test_all_that_is_bad_is_named_and_the_rest_goes_on(
    detect: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.web import body, serve

    folder, out, png = tmp_path / "in", tmp_path / "f.jsonl", encoded(".png")
    (folder / "locked").mkdir(parents=True)
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "empty.mp4").touch()
    (folder / "good.png").write_bytes(png)
    damage(write_h264(folder / "film.mp4"))
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with serve({"/half.png": body(png[:100], length=len(png))}) as site:
        outcome = detect("-r", folder, f"{site}/half.png", "--write", out, "-q")
    assert outcome.code == 1
    told = outcome.err.splitlines()  # OpenCV also lets FFmpeg speak, if it was used before
    *errors, last = (line for line in told if line.startswith("sparsedet: "))
    for name, words in (
        ("bomb.png", "3600000000 pixels, expected at most"),
        ("empty.mp4", "is empty"),
        ("film.mp4", "damaged"),
        ("locked", "cannot be read (Permission denied)"),
        ("half.png", f"broke after 100 of {len(png)} bytes"),
    ):
        assert any(name in error and words in error for error in errors), outcome.err
    assert re.fullmatch(rf"sparsedet: {len(errors)} of \d+ images failed", last)
    names = [Path(one["photo"]).name for one in lines(out.read_text())]
    assert names[-1] == "good.png" and names.count("film.mp4") == len(names) - 1 >= 12


def test_filters(detect: Run, photo: Path) -> None:
    def found(*flags: object) -> list[dict[str, Any]]:
        (one,) = lines(detect(photo, "--no-save", "--format", "json", *flags).out)
        return list(one["detections"])

    every = found("--score", "0.1")
    assert found("--score-threshold", "0.1") == every
    assert found("--score", "0.1", "--top", "2") == every[:2]
    some = found("--score", "0.1", "--classes", "cat, traffic light")
    assert some == [one for one in every if one["name"] in ("cat", "traffic light")]
    assert 0 < len(some) < len(every)
    refused(detect(photo, "--classes", "lorry"), "'lorry' is no class of this model")
    refused(detect(photo, "--top", "0"), "--top is 0", code=2)
    refused(detect(photo, "--every", "0"), "--every is 0", code=2)
    refused(detect(photo, "--write", "x.xml"), "x.xml: the detections go into", code=2)


def test_quiet_and_verbose(detect: Run, film: Path, photo: Path) -> None:
    assert detect(photo, film, "--no-save", "-q").out == ""
    text = detect(film, "--no-save", "-v", "--every", "5").out
    assert re.search(rf"^{film} frame 5: \d+ objects in \d+ ms$", text, re.M)
    assert re.search(r"^  \w+ .*  \d\.\d\d  ", text, re.M)


def test_streams_give_the_same(detect: Run, film: Path, run: Run, small_model: Path) -> None:
    flags = ["detect", film, "--no-save", "--format", "csv", "--model", small_model]
    several = run(*flags, "--threads", 2, "--streams", 2)
    assert several.code == 0 and several.out == detect(film, "--no-save", "--format", "csv").out


# ------------------------------------------------------------------- tracks and tiles


def test_objects_are_followed_through_a_video(detect: Run, film: Path) -> None:
    pytest.importorskip("trackers")
    outcome = detect(film, "--no-save", "--format", "json", "--track", "sort", "--score", "0.3")
    assert outcome.code == 0 and outcome.err == ""
    plain = detect(film, "--no-save", "--format", "json", "--score", "0.3").out
    for tracked, one in zip(lines(outcome.out), lines(plain), strict=True):
        for detection in tracked["detections"]:
            assert detection.pop("track_id") >= -1
        assert tracked == one
    assert detect(film, "--track", "magic").code == 2


def test_tiles_find_what_the_detector_finds_in_each(
    detect: Run, tmp_path: Path, small_model: Path
) -> None:
    pytest.importorskip("supervision")
    image = np.concatenate([frame_image(0, 128, 128), frame_image(1, 128, 128)], axis=1)
    import cv2

    cv2.imwrite(str(tmp_path / "wide.png"), image)
    flags = ["--no-save", "--format", "json", "--score", "0.3"]
    (tiled,) = lines(detect(tmp_path / "wide.png", *flags, "--tile", "128").out)
    assert tiled["width"] == 256 and tiled["detections"]
    detector = Detector.load(small_model, threads=1)
    single = {round(float(s), 4) for s in detector(image[:, :128].copy(), 0.3).scores}
    assert single & {one["score"] for one in tiled["detections"]}
    refused(detect(tmp_path / "wide.png", "--tile", "8"), "tiles of 8 pixels", code=2)


def test_extras_are_named_where_they_are_missing(
    detect: Run, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, flags, extra in (
        ("av", (), "video"),
        ("trackers", ("--no-save", "--track", "sort"), "track"),
        ("supervision", ("--no-save", "--tile", "64"), "supervision"),
        ("pyarrow", ("--write", "x.parquet"), "tables"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        refused(detect(film, *flags), f"pip install 'sparsedet[{extra}]'")


# ------------------------------------------------------------------- stopping and going on


def start(small_model: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """`sparsedet detect` as a process that Ctrl-C stops, and that takes 0.1 s for an image."""
    program = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from sparsedet.detector import Detector
plain = Detector.__call__
def slow(self, *given):
    time.sleep(0.1)
    return plain(self, *given)
Detector.__call__ = slow
from sparsedet.__main__ import run
run()
"""
    command = [sys.executable, "-c", program, "detect", *arguments]
    flags = ["--model", small_model, "--threads", 1, "--format", "json"]
    return subprocess.Popen(
        [str(word) for word in [*command, *flags]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_files(
    detect: Run, tmp_path: Path, small_model: Path, number: signal.Signals
) -> None:
    pytest.importorskip("av")
    photos = tmp_path / "photos"
    photos.mkdir()
    write_h264(photos / "a.mp4", 12)
    for name in ("b", "c"):
        (photos / f"{name}.png").write_bytes(encoded(".png"))
    out, files = tmp_path / "out", [tmp_path / "f.csv", tmp_path / "f.json"]
    flags = [photos, "-o", f"{out}/", "--yolo", out / "yolo"]
    flags += [word for file in files for word in ("--write", file)]
    process = start(small_model, *flags)
    assert process.stdout is not None and process.stderr is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(number)
    error = process.stderr.read().decode()
    process.communicate()
    journal = tmp_path / "f.csv.part"
    assert journal.exists()
    if number != signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert re.search(r"stopped after \d+ of 14 images; .* --resume goes on", error), error
        done = len(journal.read_bytes().splitlines()) - 1
        assert 3 <= done < 14
        assert len(list(open_source(out / "a.mp4"))) == done  # what is done is whole
        frames = {row["frame"] for row in csv.DictReader(io.StringIO(files[0].read_text()))}
        assert frames <= {str(i) for i in range(done)}
    if number == signal.SIGKILL:
        refused(detect(*flags), "f.csv.part: belongs to a run that was stopped")
    outcome = detect(*flags, "--resume")
    assert outcome.code == 0, outcome.err
    assert not journal.exists()
    once = tmp_path / "once"
    again = [str(word).replace(str(out), str(once)).replace("/f.", "/g.") for word in flags]
    assert detect(*again).code == 0
    resumed = {name: data for name, data in tree(out).items() if not name.startswith(".")}
    assert resumed == tree(once)
    for file in files:
        assert file.read_bytes() == file.with_name(file.name.replace("f.", "g.")).read_bytes()
    outcome = detect(*flags, "--resume")
    assert outcome.code == 0 and "there is nothing to go on with" in outcome.err


def test_resume_needs_a_place_that_knows_what_is_done(
    detect: Run, photo: Path, tmp_path: Path
) -> None:
    refused(detect(photo, "--resume"), "--resume needs --write", code=2)
    refused(detect("0", "--resume", "--write", tmp_path / "x.csv"), "not with cameras", code=2)


def test_a_run_that_goes_on_needs_the_same_flags(
    detect: Run, film: Path, tmp_path: Path, small_model: Path
) -> None:
    target = tmp_path / "f.csv"
    process = start(small_model, film, "--no-save", "--write", target)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    flags = [film, "--no-save", "--write", target, "--resume"]
    refused(detect(*flags, "--score", "0.3"), "had --score-threshold 0.5, this one has 0.3")
    assert detect(*flags, "--score", "0.5").code == 0 and target.exists()


def test_a_camera_stopped_by_ctrl_c_leaves_whole_files(tmp_path: Path, small_model: Path) -> None:
    """JPEGs through a pipe, as a camera's program writes them, without an end."""
    import cv2

    flags = ["--write", tmp_path / "f.jsonl", "--format", "json", "--threads", 1]
    command = [sys.executable, "-m", "sparsedet", "detect", "-", "--model", small_model, *flags]
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdin is not None and process.stdout is not None
    for number in range(4):
        process.stdin.write(cv2.imencode(".jpg", frame_image(number))[1].tobytes())
    process.stdin.flush()
    seen = [process.stdout.readline() for _ in range(3)]  # at once: the last may still grow
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(20)
    process.stdin.close()
    written = (tmp_path / "f.jsonl").read_text().splitlines()
    assert process.returncode == 130 and len(written) >= 3
    assert [json.loads(line) for line in written[:3]] == [json.loads(line) for line in seen]
    assert os.listdir(tmp_path) == ["f.jsonl"]  # no journal: a camera cannot be gone back to
    process.stdout.close()
    assert process.stderr is not None and b"--resume" not in process.stderr.read()
    process.stderr.close()


def test_an_address_is_named_by_nobody_else(detect: Run, tmp_path: Path) -> None:
    from helpers.web import body, serve

    answers = {"/..%2F..%2Fevil.png": body(encoded(".png"))}
    out = tmp_path / "a" / "b"
    with serve(answers) as site:
        outcome = detect(f"{site}/..%2F..%2Fevil.png", "-o", f"{out}/")
    assert outcome.code == 0 and [path.name for path in out.iterdir()] == ["evil.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert read_image(out / "evil.jpg").size > 0


def test_a_run_that_a_bad_image_stops_goes_on(detect: Run, folder: Path, tmp_path: Path) -> None:
    flags = [folder, "--write", tmp_path / "f.jsonl", "-q", "--bad-images", "stop"]
    assert detect(*flags).code == 1
    assert len(lines((tmp_path / "f.jsonl").read_text())) == 2  # a.png, b.jpg; then bad.png
    (folder / "bad.png").write_bytes(encoded(".png"))
    assert detect(*flags, "--resume").code == 0
    names = [Path(one["photo"]).name for one in lines((tmp_path / "f.jsonl").read_text())]
    assert names == ["a.png", "b.jpg", "bad.png", *["film.avi"] * 3]


def test_a_run_that_stops_before_the_first_image_is_not_complete(
    detect: Run, folder: Path, tmp_path: Path
) -> None:
    flags = [folder, "--write", tmp_path / "f.csv", "-q", "--bad-images", "stop"]
    (folder / "a.png").write_bytes(b"text")
    assert detect(*flags).code == 1 and not (tmp_path / "f.csv").exists()
    (folder / "a.png").write_bytes(encoded(".png"))
    (folder / "bad.png").unlink()
    assert detect(*flags, "--resume").code == 0 and (tmp_path / "f.csv").exists()
