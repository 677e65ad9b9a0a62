"""`sparsedet detect`: what it writes, prints and refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.commands import Run, refused, tree
from helpers.small import SMALL, encoded, picture

import sparsedet
from sparsedet.images.read import read_image
from sparsedet.images.run_lengths import decode_mask

# ---------------------------------------------------------------------------- what it writes


def test_one_photograph(detect: Run, photo: Path) -> None:
    before = photo.read_bytes()
    outcome = detect(photo)
    assert outcome.code == 0 and outcome.err == ""
    lines = outcome.out.splitlines()
    assert re.fullmatch(rf"{photo}: \d+ objects in \d+ ms", lines[0])
    assert len(lines) >= 7 and all(float(line.split()[-5]) >= 0.5 for line in lines[1:-1])
    target = photo.with_name("street_detected.png")
    assert lines[-1] == f"-> {target}"
    assert sorted(p.name for p in photo.parent.iterdir()) == ["street.png", "street_detected.png"]
    assert photo.read_bytes() == before
    drawn = read_image(target)
    assert drawn.shape == picture().shape and (drawn != picture()).any()


def test_an_earlier_picture_stays(detect: Run, photo: Path) -> None:
    for name in ("street_detected.png", "street_detected-2.png", "street_detected-3.png"):
        assert f"-> {photo.with_name(name)}" in detect(photo).out
    first = photo.with_name("street_detected.png")
    first.write_bytes(b"old")
    assert f"-> {first}" in detect(photo, "--overwrite").out
    assert len(list(photo.parent.iterdir())) == 4
    assert read_image(first).shape == picture().shape


def test_output_names(detect: Run, photo: Path, tmp_path: Path) -> None:
    assert detect(photo, "-o", tmp_path / "a.jpg").code == 0
    assert read_image(tmp_path / "a.jpg").shape == picture().shape
    (tmp_path / "folder").mkdir()
    assert detect(photo, "-o", tmp_path / "folder").code == 0
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["street.png"]
    tiff = photo.with_name("scan.tiff")
    cv2.imwrite(str(tiff), picture())
    assert detect(tiff).code == 0  # a picture format that everyone can open
    assert photo.with_name("scan_detected.jpg").exists()


def test_many_photographs_into_a_folder(detect: Run, photo: Path, tmp_path: Path) -> None:
    second = photo.with_name("garden.jpg")
    cv2.imwrite(str(second), picture(40, 50, seed=2))
    outcome = detect(photo, second, "-o", tmp_path / "new" / "folder")
    assert outcome.code == 0 and outcome.err == ""
    written = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert written == ["garden.jpg", "street.png"]
    assert len(list(photo.parent.iterdir())) == 2


def test_an_existing_file_is_not_overwritten(detect: Run, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.png"
    target.write_bytes(b"precious")
    before = tree(tmp_path)
    refused(detect(photo, "-o", target), "mine.png", "exists already", "--overwrite")
    assert tree(tmp_path) == before
    assert detect(photo, "-o", target, "--overwrite").code == 0
    assert read_image(target).shape == picture().shape


@pytest.mark.parametrize("link", [False, True])
def test_never_over_the_photograph(detect: Run, photo: Path, tmp_path: Path, link: bool) -> None:
    target = photo
    if link:
        target = tmp_path / "link.png"
        target.symlink_to(photo)
    before = tree(tmp_path)
    refused(detect(photo, "-o", target, "--overwrite"), "an input of this run", code=2)
    assert tree(tmp_path) == before
    assert detect(photo, "-o", photo.parent, "--overwrite").code == 0
    after = tree(tmp_path)
    (new,) = set(after) - set(before)
    assert new.endswith("street-2.png") and {name: after[name] for name in before} == before


def test_never_over_another_photograph_or_picture_of_the_run(detect: Run, tmp_path: Path) -> None:
    names = ("a/x.png", "b/x.png", "out/y.png", "a/y.png")
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(seed=seed))
    before = tree(tmp_path)
    photos = [tmp_path / name for name in names]
    outcome = detect(*photos, "-o", tmp_path / "out", "--overwrite")
    assert outcome.code == 0 and outcome.err == ""
    # None of the four goes over another, nor over out/y.png, which is an image of the run.
    after = tree(tmp_path)
    new = ["out/x.png", "out/x-2.png", "out/y-2.png", "out/y-3.png"]
    assert set(after) - set(before) == set(new)
    assert {name: after[name] for name in before} == before
    assert len({after[name] for name in new}) == 4
    arrows = [line for line in outcome.out.splitlines() if line.startswith("-> ")]
    assert arrows == [f"-> {tmp_path / name}" for name in new]


def test_nothing_drawn_on_request(detect: Run, photo: Path) -> None:
    outcome = detect(photo, "--no-save")
    assert outcome.code == 0 and "->" not in outcome.out
    assert list(photo.parent.iterdir()) == [photo]


# ---------------------------------------------------------------------------- what it prints


def test_json_and_csv_say_the_same(detect: Run, photo: Path) -> None:
    second = photo.with_name("näher, am Fluß.png")
    cv2.imwrite(str(second), picture(70, 60, seed=3))
    outcome = detect(photo, second, "--no-save", "--format", "json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert [r["photo"] for r in records] == [str(photo), str(second)]
    assert [(r["width"], r["height"]) for r in records] == [(120, 90), (60, 70)]
    outcome = detect(photo, second, "--no-save", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    flat = [{"photo": r["photo"], **d} for r in records for d in r["detections"]]
    assert rows == [{key: str(value) for key, value in row.items()} for row in flat]
    assert len(rows) >= 6 and {row["name"] for row in rows} <= set(SMALL.class_names)


def test_masks_are_printed_and_drawn(run: Run, photo: Path, mask_model: Path) -> None:
    flags = ("--model", mask_model, "--threads", 1, "--score-threshold", 0.1)
    (record,) = map(json.loads, run("detect", photo, *flags, "--format", "json").out.splitlines())
    sizes = [d["segmentation"]["size"] for d in record["detections"]]
    assert len(sizes) >= 5 and all(size == [record["height"], record["width"]] for size in sizes)
    masks = [decode_mask(d["segmentation"]) for d in record["detections"]]
    drawn = read_image(photo.with_name(f"{photo.stem}_detected.png"))
    changed = (drawn != read_image(photo)).any(axis=2)
    covered = np.any(masks, axis=0)
    assert covered.sum() > 100 and changed[covered].mean() > 0.95
    csv_lines = run("detect", photo, *flags, "--no-save", "--format", "csv").out.splitlines()
    assert len(csv_lines) == len(sizes) + 1 and "counts" not in csv_lines[0]


def test_score_threshold(detect: Run, photo: Path) -> None:
    def scores(*flags: object) -> list[float]:
        out = detect(photo, "--no-save", "--format", "json", *flags).out
        return [d["score"] for d in json.loads(out)["detections"]]

    usual, most = scores(), scores("--score-threshold", 0)
    assert min(usual) >= 0.5 and usual == [s for s in most if s >= 0.5]
    few = scores("--score-threshold", 0.9)
    assert few and few == [s for s in most if s >= 0.9] and len(few) < len(most)
    assert scores("--score-threshold", 1) == []
    outcome = detect(photo, "--score-threshold", 1)
    assert outcome.code == 0 and ": 0 objects" in outcome.out  # finding nothing is no error


def test_csv_without_detections_has_its_header(detect: Run, photo: Path) -> None:
    outcome = detect(photo, "--no-save", "--format", "csv", "--score-threshold", 1)
    assert outcome.out == "photo,name,label,category_id,score,x0,y0,x1,y1\n"


def test_packed_weights_are_kept(
    detect: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "kept"))
    plain = detect(photo, "--no-save", "--format", "csv").out
    assert not (tmp_path / "kept").exists()
    for _ in range(2):
        assert detect(photo, "--no-save", "--format", "csv", "--cache").out == plain
        assert len(list((tmp_path / "kept" / "packed").iterdir())) == 1


def test_resize(detect: Run, photo: Path) -> None:
    tall = photo.with_name("tall.png")
    cv2.imwrite(str(tall), picture(200, 60))
    fit, stretch, default = (
        detect(tall, "--no-save", "--format", "csv", *flags).out
        for flags in (("--resize", "letterbox"), ("--resize", "stretch"), ())
    )
    assert fit == default != stretch


def test_a_webp_photograph_has_a_lossy_copy(detect: Run, tmp_path: Path) -> None:
    photo = tmp_path / "photo.webp"
    image = cv2.resize(picture(), (900, 600), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(photo), image, [cv2.IMWRITE_WEBP_QUALITY, 80])
    sizes = []
    for flags in ((), ("--quality", 30), ("--quality", 90)):
        assert detect(photo, "--overwrite", *flags).code == 0
        sizes.append(photo.with_name("photo_detected.webp").stat().st_size)
    assert sizes[1] < sizes[0] == sizes[2]
    assert detect(photo, "-o", tmp_path / "x.png").code == 0
    assert sizes[0] < (tmp_path / "x.png").stat().st_size / 2


def test_a_slash_makes_a_folder(detect: Run, photo: Path, tmp_path: Path) -> None:
    outcome = detect(photo, "-o", f"{tmp_path}/new/")
    assert outcome.code == 0 and outcome.out.endswith(f"-> {tmp_path}/new/street.png\n")


def test_photographs_of_one_name_are_both_kept(detect: Run, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "x.png"), picture(seed=seed))
    outcome = detect(tmp_path / "a/x.png", tmp_path / "b/x.png", "-o", tmp_path / "new")
    assert outcome.code == 0 and sorted(tree(tmp_path / "new")) == ["x-2.png", "x.png"]


# ------------------------------------------------------ detections first, then what went wrong


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_an_annotated_image_that_its_format_cannot_hold(
    detect: Run, tmp_path: Path, suffix: str
) -> None:
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), np.zeros((2, 70000, 3), np.uint8))
    outcome = detect(wide, "-o", tmp_path / f"out{suffix}")
    assert outcome.code == 1 and outcome.out.startswith(f"{wide}: ")
    assert outcome.err.startswith(f"sparsedet: {tmp_path}/out{suffix}: 70000x2 pixels are too many")
    assert outcome.err.count("\n") == 1 and "->" not in outcome.out
    assert [p.name for p in tmp_path.iterdir()] == ["wide.png"]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_detections_are_printed_where_no_image_can_be_written(
    detect: Run, photo: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = detect(photo, "--no-save", "--format", form).out
    long = photo.rename(photo.with_name("x" * 248 + ".png"))  # 252 bytes
    outcome = detect(long, "--format", form)
    assert outcome.code == 1 and len(outcome.out.splitlines()) == len(expected.splitlines())
    assert "_detected.png: cannot be written (File name too long)" in outcome.err
    photo = long.rename(photo)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = detect(photo, photo, "--format", form)
    assert outcome.code == 1 and len(outcome.out.splitlines()) >= 2 * len(expected.splitlines()) - 1
    lines = outcome.err.splitlines()
    assert [line.rpartition("(")[2] for line in lines[:2]] == ["No space left on device)"] * 2
    assert lines[2:] == ["sparsedet: 2 of 2 images failed"]
    assert list(photo.parent.iterdir()) == [photo]


def test_a_read_only_medium(detect: Run, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ro"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root mounts, and not everywhere")
    try:
        (folder / "street.png").write_bytes(photo.read_bytes())
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for flags in ((), ("-o", folder / "x.png"), ("-o", f"{folder}/new/")):
            outcome = detect(folder / "street.png", *flags)
            assert outcome.code == 1 and ": 0 objects" not in outcome.out
            assert len(outcome.out.splitlines()) >= 6
            assert outcome.err.endswith("Read-only file system)\n") and outcome.err.count("\n") == 1
    finally:
        subprocess.run(["umount", folder], check=True)


def test_bad_images_stop(detect: Run, photo: Path) -> None:
    bad = photo.with_name("bad.png")
    bad.write_bytes(b"text")
    outcome = detect(photo, bad, photo, "--no-save", "--format", "json", "--bad-images", "stop")
    assert outcome.code == 1 and len(outcome.out.splitlines()) == 1
    outcome = detect(photo, bad, photo, "--no-save", "--format", "json", "--bad-images", "skip")
    assert outcome.code == 1 and len(outcome.out.splitlines()) == 2


# --------------------------------------------------------------------------- bad photographs


def png(width: int, height: int, raw: bytes, colour: int = 2, bits: int = 8) -> bytes:
    """A PNG file with that header and those uncompressed bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BAD_PHOTOS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"no picture at all\n" * 20, "not a JPEG"),
    "truncated jpeg": (lambda: encoded(".jpg")[:-200], "truncated"),
    "truncated png": (lambda: encoded(".png")[:-200], "truncated"),
    "only a header": (lambda: encoded(".png")[:20], "truncated"),
    "damaged": (lambda: encoded(".png").replace(b"IDAT", b"IDAX"), "damaged"),
    "over the limit": (lambda: png(10_001, 10_000, b""), "expected at most 100000000"),
    # 400 million pixels in 230 kB.
    "bomb": (lambda: png(20_000, 20_000, bytes(2501 * 20_000), 0, 1), "expected at most"),
    "model file": (lambda: b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "not a JPEG"),
}


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_bad_photograph(detect: Run, tmp_path: Path, case: str) -> None:
    make, word = BAD_PHOTOS[case]
    bad = tmp_path / "bad.png"
    bad.write_bytes(make())
    before = tree(tmp_path)
    refused(detect(bad), "bad.png", word)
    refused(detect(bad, "-o", tmp_path / "out.png"), "bad.png", word)
    assert tree(tmp_path) == before


def test_a_photograph_that_is_no_file(detect: Run, tmp_path: Path) -> None:
    refused(detect(tmp_path / "none.jpg"), "none.jpg", "No such file")
    refused(detect(tmp_path), str(tmp_path), "holds no images")
    refused(detect(tmp_path / ("x" * 300 + ".jpg")), "name too long")
    refused(detect(tmp_path / "two\nlines.jpg"), "No such file")
    assert tree(tmp_path) == {}


def test_one_bad_file_among_many(detect: Run, photo: Path, tmp_path: Path) -> None:
    others = []
    for name, data in (("empty.png", b""), ("good.jpg", encoded(".jpg")), ("text.jpg", b"text")):
        others.append(photo.with_name(name))
        others[-1].write_bytes(data)
    missing = photo.with_name("missing.jpg")
    outcome = detect(photo, missing, *others, "-o", tmp_path / "out", "--format", "json")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert [line.startswith("sparsedet: ") for line in lines] == [True] * 4
    for line, word in zip(lines, ("missing.jpg", "empty.png", "text.jpg", "3 of 5"), strict=True):
        assert word in line
    done = [json.loads(line)["photo"] for line in outcome.out.splitlines()]
    assert done == [str(photo), str(others[1])]
    assert sorted(tree(tmp_path / "out")) == ["good.jpg", "street.png"]


def test_many_bad_files_leave_no_folder(detect: Run, tmp_path: Path) -> None:
    outcome = detect(tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", tmp_path / "out")
    assert outcome.code == 1 and "2 of 2" in outcome.err
    assert tree(tmp_path) == {}
    outcome = detect(tmp_path / "a.jpg", tmp_path / "b.jpg", "--format", "csv")
    assert outcome.out == ""


# ------------------------------------------------------------------------ bad outputs, flags


def test_an_output_that_cannot_be_written(detect: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    second = photo.with_name("second.png")
    second.write_bytes(photo.read_bytes())
    before = tree(tmp_path)
    refused(detect(photo, "-o", tmp_path / "file" / "x.png"), "file/x.png", "cannot be written")
    refused(detect(photo, "-o", tmp_path / "none" / "x.png"), "none/x.png", "cannot be written")
    refused(detect(photo, second, "-o", tmp_path / "file"), "cannot be used as a folder")
    refused(detect(photo, second, "-o", tmp_path / "file" / "below"), "cannot be used as a folder")
    refused(detect(photo, "-o", tmp_path / ("x" * 300 + ".png")), "name too long")
    refused(detect(photo, "-o", tmp_path / "x.xyz"), "use one of .jpg, .jpeg, .png", code=2)
    refused(detect(photo, "-o", tmp_path / "new"), f"or {tmp_path}/new/ for a folder", code=2)
    assert tree(tmp_path) == before


def test_a_read_only_folder(detect: Run, photo: Path, tmp_path: Path) -> None:
    photo.parent.chmod(0o555)
    try:
        if os.access(photo.parent, os.W_OK):
            pytest.skip("root may write anywhere")
        for flags in ((), ("-o", photo.parent / "out.png"), ("-o", f"{photo.parent}/out/")):
            outcome = detect(photo, *flags)
            assert outcome.code == 1 and len(outcome.out.splitlines()) >= 6
            assert "Permission denied" in outcome.err and outcome.err.count("\n") == 1
    finally:
        photo.parent.chmod(0o755)
    assert list(photo.parent.iterdir()) == [photo]


def bad_models(folder: Path, good: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "none.safetensors", "No such file"
    yield folder, "Is a directory"
    for name, data, word in (
        ("empty", b"", "empty"),
        ("text", b"some text, and more of it", "not a sparsedet model"),
        ("pickle", b"\x80\x02}q\x00.", "pickle"),
        ("zip", b"PK\x03\x04" + bytes(30), "PyTorch"),
        ("truncated", good.read_bytes()[:-100], "truncated"),
        ("foreign", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "not a sparsedet model"),
    ):
        (folder / name).write_bytes(data)
        yield folder / name, word


def test_wrong_model_files(run: Run, photo: Path, small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for path, word in bad_models(folder, small_model):
        before = tree(tmp_path)
        refused(run("detect", photo, "--model", path), str(path), word)
        refused(run("detect", photo, photo, "--model", path, "-o", tmp_path / "out"), word)
        refused(run("info", path), str(path))  # it reads checkpoints, too, and says what it expects
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--threads", "0"), "threads is 0"),
        (("--threads", "-3"), "threads is -3"),
        (("--threads", "99999"), "threads is 99999"),
        (("--isa", "mmx"), "'mmx'"),
        (("--backend", "openvino", "--isa", "scalar"), "for the backend 'native'"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "not for 'onnxruntime'"),
        (("--quality", "0"), "--quality is 0"),
        (("--quality", "101"), "--quality is 101"),
        (("--score-threshold", "1.5"), "--score-threshold is 1.5"),
        (("--score-threshold", "nan"), "--score-threshold is nan"),
    ],
)
def test_bad_values(
    run: Run, small_model: Path, photo: Path, tmp_path: Path, flags: tuple[str, ...], word: str
) -> None:
    before = tree(tmp_path)
    refused(run("detect", photo, "--model", small_model, *flags), word, code=2)
    assert tree(tmp_path) == before


def test_a_bad_environment(
    run: Run, detect: Run, photo: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEDET_ISA", "mmx")
    refused(detect(photo), "'mmx'")
    refused(run("info", small_model), "'mmx'")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode",),
        ("detect",),
        ("detect", "x.jpg", "--threads", "two"),
        ("detect", "x.jpg", "--format", "xml"),
        ("detect", "x.jpg", "--resize", "crop"),
        ("eval",),
        ("train", "--annotations", "a"),
        ("train", "--annotations", "a", "--images", "b", "--output", "c", "--optimizer", "lion"),
    ],
)
def test_what_argparse_refuses(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("usage: sparsedet")
    assert re.match(r"sparsedet.*: error: ", outcome.err.splitlines()[-1])


def test_files_whose_names_look_like_flags(
    detect: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-x.png", "-o.png", "--x.png"):
        Path(name).write_bytes(photo.read_bytes())
        for given in ((name,), (photo, name)):
            outcome = detect("--no-save", *given)
            if name != "-o.png" or photo not in given:  # -o and its value
                assert outcome.code == 2
                assert f"write ./{name}, or -- before it" in outcome.err.splitlines()[-1]
        assert detect("--no-save", f"./{name}").code == 0
        assert detect("--no-save", photo, "--", name).code == 0
    assert "or --" not in detect(photo, "--none").err


def test_version(run: Run) -> None:
    assert run("--version").out == f"sparsedet {sparsedet.__version__}\n"
