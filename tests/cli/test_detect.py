"""The commands as a user runs them: what they write, print and refuse; and what they import.

No torch here: training's own refusals are in test_training.py.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.coco_files import coco
from helpers.small import SMALL, picture

import sparsedet
from sparsedet.cli import main
from sparsedet.images.read import read_image
from sparsedet.model.file import load_model, save_model, tensor_shapes
from sparsedet.model.presets import preset

SOURCE = Path(sparsedet.__file__).parent


class Outcome:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run_command(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run_command


@pytest.fixture
def detect(run, small_model: Path) -> Callable[..., Outcome]:
    """`sparsedet detect` with the small model on one CPU thread."""
    return lambda *arguments: run("detect", "--model", small_model, "--threads", 1, *arguments)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content; folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(outcome: Outcome, *words: str) -> None:
    """One line on stderr that holds `words`, nothing on stdout, exit code 2."""
    assert outcome.code == 2 and outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sparsedet: "), outcome.err
    for word in words:
        assert word in lines[0], lines[0]


# --------------------------------------------------------------------- detect: what it writes


def test_one_photograph(detect, photo: Path) -> None:
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


def test_an_earlier_picture_stays(detect, photo: Path) -> None:
    for name in ("street_detected.png", "street_detected-2.png", "street_detected-3.png"):
        assert f"-> {photo.with_name(name)}" in detect(photo).out
    first = photo.with_name("street_detected.png")
    first.write_bytes(b"old")
    assert f"-> {first}" in detect(photo, "--overwrite").out
    assert len(list(photo.parent.iterdir())) == 4
    assert read_image(first).shape == picture().shape


def test_output_names(detect, photo: Path, tmp_path: Path) -> None:
    assert detect(photo, "-o", tmp_path / "a.jpg").code == 0
    assert read_image(tmp_path / "a.jpg").shape == picture().shape
    (tmp_path / "folder").mkdir()
    assert detect(photo, "-o", tmp_path / "folder").code == 0
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["street.png"]
    tiff = photo.with_name("scan.tiff")
    cv2.imwrite(str(tiff), picture())
    assert detect(tiff).code == 0  # a picture format that everyone can open
    assert photo.with_name("scan_detected.jpg").exists()


def test_many_photographs_into_a_folder(detect, photo: Path, tmp_path: Path) -> None:
    second = photo.with_name("garden.jpg")
    cv2.imwrite(str(second), picture(40, 50, seed=2))
    outcome = detect(photo, second, "-o", tmp_path / "new" / "folder")
    assert outcome.code == 0 and outcome.err == ""
    written = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert written == ["garden.jpg", "street.png"]
    assert len(list(photo.parent.iterdir())) == 2


def test_an_existing_file_is_not_overwritten(detect, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.png"
    target.write_bytes(b"precious")
    before = tree(tmp_path)
    refused(detect(photo, "-o", target), "mine.png", "exists already", "--overwrite")
    assert tree(tmp_path) == before
    assert detect(photo, "-o", target, "--overwrite").code == 0
    assert read_image(target).shape == picture().shape


@pytest.mark.parametrize("link", [False, True])
def test_never_over_the_photograph(detect, photo: Path, tmp_path: Path, link: bool) -> None:
    target = photo
    if link:
        target = tmp_path / "link.png"
        target.symlink_to(photo)
    before = tree(tmp_path)
    refused(detect(photo, "-o", target, "--overwrite"), "photograph")
    refused(detect(photo, "-o", photo.parent, "--overwrite"), "photograph")
    assert tree(tmp_path) == before


def test_never_over_another_photograph_or_picture_of_the_run(detect, tmp_path: Path) -> None:
    names = ("a/x.png", "b/x.png", "out/y.png", "a/y.png")
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(seed=seed))
    before = tree(tmp_path)
    photos = [tmp_path / name for name in names]
    outcome = detect(*photos, "-o", tmp_path / "out", "--overwrite")
    assert outcome.code == 2
    # a/x.png is written to out/x.png; nothing of the others may go there or over out/y.png.
    assert len(outcome.err.splitlines()) == 4 and "3 of 4" in outcome.err
    after = tree(tmp_path)
    assert set(after) - set(before) == {"out/x.png"}
    assert {name: after[name] for name in before} == before


def test_nothing_drawn_on_request(detect, photo: Path) -> None:
    outcome = detect(photo, "--no-picture")
    assert outcome.code == 0 and "->" not in outcome.out
    assert list(photo.parent.iterdir()) == [photo]


# --------------------------------------------------------------------- detect: what it prints


def test_json_and_csv_say_the_same(detect, photo: Path) -> None:
    second = photo.with_name("näher, am Fluß.png")
    cv2.imwrite(str(second), picture(70, 60, seed=3))
    outcome = detect(photo, second, "--no-picture", "--format", "json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    assert [r["photo"] for r in records] == [str(photo), str(second)]
    assert [(r["width"], r["height"]) for r in records] == [(120, 90), (60, 70)]
    outcome = detect(photo, second, "--no-picture", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    flat = [{"photo": r["photo"], **d} for r in records for d in r["detections"]]
    assert rows == [{key: str(value) for key, value in row.items()} for row in flat]
    assert len(rows) >= 6 and {row["name"] for row in rows} <= set(SMALL.class_names)


def test_score_threshold(detect, photo: Path) -> None:
    def scores(*flags: object) -> list[float]:
        out = detect(photo, "--no-picture", "--format", "json", *flags).out
        return [d["score"] for d in json.loads(out)["detections"]]

    usual, most = scores(), scores("--score-threshold", 0)
    assert min(usual) >= 0.5 and usual == [s for s in most if s >= 0.5]
    few = scores("--score-threshold", 0.9)
    assert few and few == [s for s in most if s >= 0.9] and len(few) < len(most)
    assert scores("--score-threshold", 1) == []
    outcome = detect(photo, "--score-threshold", 1)
    assert outcome.code == 0 and ": 0 objects" in outcome.out  # finding nothing is no error


def test_csv_without_detections_has_its_header(detect, photo: Path) -> None:
    outcome = detect(photo, "--no-picture", "--format", "csv", "--score-threshold", 1)
    assert outcome.out == "photo,name,label,category_id,score,x0,y0,x1,y1\n"


def test_packed_weights_are_kept(detect, photo: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "kept"))
    plain = detect(photo, "--no-picture", "--format", "csv").out
    assert not (tmp_path / "kept").exists()
    for _ in range(2):
        assert detect(photo, "--no-picture", "--format", "csv", "--cache").out == plain
        assert len(list((tmp_path / "kept" / "packed").iterdir())) == 1


def test_resize(detect, photo: Path) -> None:
    tall = photo.with_name("tall.png")
    cv2.imwrite(str(tall), picture(200, 60))
    fit, stretch, default = (
        detect(tall, "--no-picture", "--format", "csv", *flags).out
        for flags in (("--resize", "letterbox"), ("--resize", "stretch"), ())
    )
    assert fit == default != stretch


# --------------------------------------------------------------------- detect: bad photographs


def png(width: int, height: int, raw: bytes, colour: int = 2, bits: int = 8) -> bytes:
    """A PNG file with that header and those uncompressed bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, picture())[1].tobytes()


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
def test_bad_photograph(detect, tmp_path: Path, case: str) -> None:
    make, word = BAD_PHOTOS[case]
    bad = tmp_path / "bad.png"
    bad.write_bytes(make())
    before = tree(tmp_path)
    refused(detect(bad), "bad.png", word)
    refused(detect(bad, "-o", tmp_path / "out.png"), "bad.png", word)
    assert tree(tmp_path) == before


def test_a_photograph_that_is_no_file(detect, tmp_path: Path) -> None:
    refused(detect(tmp_path / "none.jpg"), "none.jpg", "No such file")
    refused(detect(tmp_path), str(tmp_path), "not a file")
    refused(detect(tmp_path / ("x" * 300 + ".jpg")), "name too long")
    refused(detect(tmp_path / "two\nlines.jpg"), "No such file")
    assert tree(tmp_path) == {}


def test_one_bad_file_among_many(detect, photo: Path, tmp_path: Path) -> None:
    others = []
    for name, data in (("empty.png", b""), ("good.jpg", encoded(".jpg")), ("text.jpg", b"text")):
        others.append(photo.with_name(name))
        others[-1].write_bytes(data)
    missing = photo.with_name("missing.jpg")
    outcome = detect(photo, missing, *others, "-o", tmp_path / "out", "--format", "json")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert [line.startswith("sparsedet: ") for line in lines] == [True] * 4
    for line, word in zip(lines, ("missing.jpg", "empty.png", "text.jpg", "3 of 5"), strict=True):
        assert word in line
    done = [json.loads(line)["photo"] for line in outcome.out.splitlines()]
    assert done == [str(photo), str(others[1])]
    assert sorted(tree(tmp_path / "out")) == ["good.jpg", "street.png"]


def test_many_bad_files_leave_no_folder(detect, tmp_path: Path) -> None:
    outcome = detect(tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", tmp_path / "out")
    assert outcome.code == 2 and "2 of 2" in outcome.err
    assert tree(tmp_path) == {}
    outcome = detect(tmp_path / "a.jpg", tmp_path / "b.jpg", "--format", "csv")
    assert outcome.out == ""


# --------------------------------------------------------------------- detect: bad outputs, flags


def test_an_output_that_cannot_be_written(detect, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    second = photo.with_name("second.png")
    second.write_bytes(photo.read_bytes())
    before = tree(tmp_path)
    refused(detect(photo, "-o", tmp_path / "file" / "x.png"), "file/x.png", "cannot be written")
    refused(detect(photo, "-o", tmp_path / "none" / "x.png"), "none/x.png", "cannot be written")
    refused(detect(photo, second, "-o", tmp_path / "file"), "cannot be used as a folder")
    refused(detect(photo, second, "-o", tmp_path / "file" / "below"), "cannot be used as a folder")
    refused(detect(photo, "-o", tmp_path / ("x" * 300)), "name too long")
    refused(detect(photo, "-o", tmp_path / "x.xyz"), "use .jpg or .png")
    refused(detect(photo, "-o", tmp_path / "noextension"), "use .jpg or .png")
    assert tree(tmp_path) == before


def test_a_read_only_folder(detect, photo: Path, tmp_path: Path) -> None:
    photo.parent.chmod(0o555)
    try:
        if os.access(photo.parent, os.W_OK):
            pytest.skip("root may write anywhere")
        refused(detect(photo), "cannot be written", "Permission denied")
        refused(detect(photo, photo, "-o", photo.parent / "out"), "cannot be used as a folder")
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


def test_wrong_model_files(run, photo: Path, small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for path, word in bad_models(folder, small_model):
        before = tree(tmp_path)
        refused(run("detect", photo, "--model", path), str(path), word)
        refused(run("detect", photo, photo, "--model", path, "-o", tmp_path / "out"), word)
        refused(run("info", path), str(path), word)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--threads", "0"), "threads is 0"),
        (("--threads", "-3"), "threads is -3"),
        (("--threads", "99999"), "threads is 99999"),
        (("--isa", "mmx"), "'mmx'"),
        (("--score-threshold", "1.5"), "--score-threshold is 1.5"),
        (("--score-threshold", "nan"), "--score-threshold is nan"),
    ],
)
def test_bad_values(run, small_model: Path, photo: Path, tmp_path: Path, flags, word) -> None:
    before = tree(tmp_path)
    refused(run("detect", photo, "--model", small_model, *flags), word)
    assert tree(tmp_path) == before


def test_a_bad_environment(run, detect, photo, small_model, monkeypatch) -> None:
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
def test_what_argparse_refuses(run, arguments) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("usage: sparsedet")
    assert re.match(r"sparsedet.*: error: ", outcome.err.splitlines()[-1])


def test_version(run) -> None:
    assert run("--version").out == f"sparsedet {sparsedet.__version__}\n"


# --------------------------------------------------------------------- info


PUBLISHED = ("52,792,416", "847.46", "363.04", "849.91", "364.21")


def test_info_of_the_published_preset(run) -> None:
    outcome = run("info", "--model", "r101-c4")
    assert outcome.code == 0 and outcome.err == ""
    for figure in PUBLISHED:
        assert figure in outcome.out
    rows = [line for line in outcome.out.splitlines() if re.match(r"(stem|res|rpn|box)\S*\.", line)]
    assert len(rows) == 104 + 3 + 2  # convolutions, RPN, predictors
    assert sum(int(line.split()[2].replace(",", "")) for line in rows) == 52_792_416
    one = run("info", "--model", "r101-c4", "--rois", 1).out
    assert "363.04 GFLOPs by convolutions and fully connected layers with 1 regions" in one


def test_info_of_a_file_of_the_published_network(run, tmp_path: Path) -> None:
    config = preset("r101-c4")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    tensors["rpn.conv.bias"][:] = 1
    path = tmp_path / "r101.safetensors"
    save_model(path, config, tensors, {"recipe": "zeros", "data": {"images": 0}})
    outcome = run("info", path)
    assert outcome.code == 0
    for text in (
        *PUBLISHED,
        "52,791,392 of 52,792,416 parameters are zero",
        "recipe: zeros",
        'data: {"images": 0}',
        f"{path.stat().st_size / 1e6:.2f} MB",
        "After pruning 0.00 of 847.46 GFLOPs remain",
    ):
        assert text in outcome.out


def test_info_counts_zeros_a_layer(run, small_model: Path) -> None:
    out = run("info", small_model).out
    tensors = sparsedet.load_model(small_model).tensors
    total = sum(t.size for t in tensors.values())
    zeros = sum(int((t == 0).sum()) for t in tensors.values())
    assert f"{zeros:,} of {total:,} parameters are zero" in out
    assert f"sparsity {100 * zeros / total:.2f} % of all weights and biases" in out
    weight, bias = tensors["res3.0.conv2.weight"], tensors["res3.0.conv2.bias"]
    share = ((weight == 0).sum() + (bias == 0).sum()) / (weight.size + bias.size)
    (line,) = (line for line in out.splitlines() if line.startswith("res3.0.conv2 "))
    assert f"{weight.size + bias.size:,}" in line and f"{100 * share:.1f} %" in line
    assert "849.91" not in out  # those are another network's
    assert any(f"instruction set here: {isa}" in out for isa in sparsedet.available_isas())


def test_bad_info(run, small_model: Path) -> None:
    refused(run("info", "--model", "r102"), "'r102'", "r101-c4")
    refused(run("info", small_model, "--rois", 0), "--rois is 0")
    refused(run("info", small_model, "--model", "r101-c4"), "not both")
    refused(run("info", "--model", "r101-c4", "--plan"), "a preset has no weights")


def test_the_embedded_model(run, photo: Path, embedded: Path) -> None:
    out = run("info").out
    found = re.search(r"sparsity (\d+\.\d+) % of all weights and biases", out)
    assert found and float(found[1]) >= 60.0
    assert str(embedded) in out
    assert run("detect", photo).code == 0


# --------------------------------------------------------------------- eval


@pytest.fixture
def evaluate(run, small_model: Path) -> Callable[..., Outcome]:
    pytest.importorskip("pycocotools")

    def call(files: tuple[Path, Path], *flags: object) -> Outcome:
        return run(
            "eval",
            "--model",
            small_model,
            "--threads",
            1,
            "--annotations",
            files[0],
            "--images",
            files[1],
            *flags,
        )

    return call


def test_eval(evaluate, tmp_path: Path) -> None:
    files = coco(tmp_path)
    outcome = evaluate(files, "--json", tmp_path / "s.json", "--results", tmp_path / "r.json")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith("2 images, ")
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["images"] == 2 and 0 <= scores["stats"]["AP"] <= 1
    results = json.loads((tmp_path / "r.json").read_text())
    assert len(results) == scores["detections"] > 10
    assert {r["image_id"] for r in results} == {1, 2}
    assert {r["category_id"] for r in results} <= set(SMALL.category_ids)


def test_single_bad_annotations_are_counted_warnings(evaluate, tmp_path: Path) -> None:
    one = {"id": 1, "image_id": 1, "category_id": 17, "iscrowd": 0, "area": 9}
    bad = [
        {**one, "bbox": [500, 500, 3, 3]},
        {**one, "bbox": [5, 5, 0, 3]},
        {**one, "bbox": [5, 5, 3, 3], "category_id": 99},
        {**one, "bbox": [5, 5, 3, 3], "image_id": 99},
        {**one, "bbox": [100, 5, 60, 3]},
        {**one, "bbox": [5, 5, 9, 9]},
    ]
    outcome = evaluate(coco(tmp_path, annotations=bad))
    assert outcome.code == 0
    warnings = outcome.err.splitlines()
    assert all(line.startswith("sparsedet: warning: ") and " 1 " in line for line in warnings)
    for word in ("outside", "without area", "unknown category", "unknown image", "clipped"):
        assert sum(word in line for line in warnings) == 1, word


BAD_COCO: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": None}, "no list 'images'"),
    "no annotations": ({"annotations": None}, "no list 'annotations'"),
    "no categories": ({"categories": None}, "no list 'categories'"),
    "empty": ({"images": []}, "no images"),
    "no file name": ({"images": [{"id": 1, "width": 120, "height": 90}]}, "'file_name'"),
    "no width": ({"images": [{"id": 1, "file_name": "1.png", "height": 90}]}, "'width'"),
    "no bbox": ({"annotations": [{"id": 1, "image_id": 1, "category_id": 17}]}, "'bbox'"),
    "other classes": ({"categories": [{"id": 1, "name": "zebra"}]}, "none of its categories"),
    "missing photograph": (
        {"images": [{"id": n, "file_name": "9.png", "width": 120, "height": 90} for n in (1, 2)]},
        "2 of 2 images are missing, first '9.png'",
    ),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_data_set(evaluate, tmp_path: Path, case: str) -> None:
    changes, word = BAD_COCO[case]
    files = coco(tmp_path, **changes)
    before = tree(tmp_path)
    refused(evaluate(files, "--json", tmp_path / "s.json", "--results", tmp_path / "r.json"), word)
    assert tree(tmp_path) == before


def test_bad_eval(evaluate, tmp_path: Path) -> None:
    path, images = coco(tmp_path)
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text("[1]")
    (images / "2.png").write_bytes(b"broken")
    before = tree(tmp_path)
    refused(evaluate((tmp_path / "none.json", images)), "none.json", "No such file")
    refused(evaluate((tmp_path / "text.json", images)), "text.json", "not valid JSON")
    refused(evaluate((tmp_path / "list.json", images)), "list.json", "not a COCO data set")
    refused(evaluate((path, tmp_path / "none")), "2 of 2 images are missing")
    refused(evaluate((path, images), "--limit", 0), "limit is 0")
    refused(evaluate((path, images), "--json", path), "exists already")
    refused(evaluate((path, images), "--results", path / "r.json"), "cannot be written")
    refused(evaluate((path, images), "--json", tmp_path / "s.json"), "2.png")
    assert tree(tmp_path) == before
    outcome = evaluate((path, images), "--skip-bad")
    assert outcome.code == 0 and outcome.err.count("sparsedet: warning: ") == 1


def test_eval_report(evaluate, tmp_path: Path) -> None:
    files = coco(tmp_path)
    page, figures = tmp_path / "r.html", tmp_path / "s.json"
    outcome = evaluate(files, "--report", page, "--json", figures, "--score-threshold", 0.1)
    assert outcome.code == 0 and outcome.out.endswith(f"-> {page}\n")
    for words in (
        "AP (pycocotools)",
        "AP (Open Model Zoo coco_precision)",
        "AP by IoU",
        "scores from 0.1",
        "Most mistakes",
    ):
        assert words in outcome.out
    text = page.read_text(encoding="utf-8")
    assert "1.png" in text and "dög" in text and "data:image/jpeg" in text
    data = json.loads(figures.read_text())
    assert data["analysis"]["score"] == 0.1 and "coco_precision" in data
    before = tree(tmp_path)
    refused(evaluate(files, "--report", page), "r.html", "exists already")
    refused(evaluate(files, "--report", tmp_path / "none" / "r.html"), "cannot be written")
    refused(evaluate(files, "--report", tmp_path / "n", "--json", tmp_path / "n"), "one name")
    refused(evaluate(files, "--score-threshold", 2), "--score-threshold is 2")
    assert tree(tmp_path) == before
    assert evaluate(files, "--report", page, "--overwrite").code == 0


def test_compare(run, small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    annotations, images = coco(tmp_path)
    target = tmp_path / "c.json"

    def call(a: object, b: object, *flags: object) -> Outcome:
        return run(
            "compare",
            a,
            b,
            "--annotations",
            annotations,
            "--images",
            images,
            "--threads",
            1,
            *flags,
        )

    outcome = call(small_model, small_model, "--json", target)
    assert outcome.code == 0 and outcome.err == ""
    assert "2 images" in outcome.out and "do not tell them apart" in outcome.out
    data = json.loads(target.read_text())
    assert data["a"]["scores"]["stats"] == data["b"]["scores"]["stats"]
    assert data["a"]["size_mb"] == small_model.stat().st_size / 1e6
    before = tree(tmp_path)
    refused(call(small_model, small_model, "--json", target), "c.json", "exists already")
    refused(call(small_model, tmp_path / "absent"), "absent")
    model, other = load_model(small_model), tmp_path / "other.safetensors"
    save_model(other, replace(model.config, class_names=("a", "b", "c")), model.tensors, {})
    before = tree(tmp_path)
    refused(call(small_model, other), "no class in common")
    refused(call(small_model, small_model, "--limit", 0), "limit is 0")
    assert tree(tmp_path) == before
    shared = call(small_model, "embedded", "--limit", 1)  # cat and traffic light
    assert shared.code == 0 and "classes that are not scored" in shared.err


# --------------------------------------------------------------------- train, without torch


@pytest.mark.parametrize("command", ["train", "prune"])
@pytest.mark.parametrize(
    ("recipe", "flags", "word"),
    [
        ('{"stepps": 5}', (), "'stepps'"),
        ('{"steps": "5"}', (), "steps is '5'"),
        ('{"steps": 2.5}', (), "steps is 2.5"),
        ('{"learning_rate": NaN}', (), "learning_rate is nan"),
        ('{"optimizer": "lion"}', (), "optimizer is 'lion'"),
        ("[]", (), "expected a JSON object"),
        ("steps: 5", (), "not valid JSON"),
        ("{}", ("--steps", "0"), "steps is 0"),
        ("{}", ("--learning-rate", "-1"), "learning_rate is -1"),
        ("{}", ("--sparsity", "1.0", "--prune-end", "9"), "sparsity is 1.0"),
        ("{}", ("--sparsity", "0.5", "--prune-end", "2000"), "prune_end is 2000"),
    ],
)
def test_bad_recipes(run, tmp_path: Path, command, recipe, flags, word) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(recipe)
    before = tree(tmp_path)
    outcome = run(
        command,
        "--annotations",
        tmp_path / "a",
        "--images",
        tmp_path,
        "--init",
        path,
        "--output",
        tmp_path / "run",
        "--recipe",
        path,
        *flags,
    )
    refused(outcome, word)
    assert tree(tmp_path) == before


def test_training_without_torch_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from sparsedet.cli import main; main()"
    arguments = ["train", "--annotations", "a", "--images", "b", "--output", str(tmp_path / "run")]
    done = python(program.replace("main()", f"sys.exit(main({arguments!r}))"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert b"pip install 'sparsedet[train]'" in done.stderr
    assert tree(tmp_path) == {}


# --------------------------------------------------------------------- as a process


# As on a desktop: in the C locale Python lets any bytes through, and containers often ask for
# unbuffered output.
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUNBUFFERED": ""}
MAIN = "import sys; from sparsedet.cli import main; sys.exit(main(sys.argv[1:]))"


def python(program: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, env=ENVIRONMENT)


def test_torch_is_never_imported(small_model: Path, photo: Path) -> None:
    program = f"""
import sys
import sparsedet
from sparsedet.cli import main
for command in (["info", {str(small_model)!r}], ["info", "--model", "r101-c4"],
                ["detect", {str(photo)!r}, "--model", {str(small_model)!r}]):
    assert main(command) == 0
heavy = {{"torch", "torchvision", "onnx", "pycocotools", "rich"}}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert photo.with_name("street_detected.png").exists()


def test_a_file_name_of_any_bytes(small_model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(encoded(".png"))
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    for form in ("table", "json", "csv"):
        done = python(MAIN, "detect", name, "--model", str(small_model), "--format", form)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert len(list(tmp_path.iterdir())) == 4


def test_a_reader_that_stops_reading(small_model: Path, photo: Path) -> None:
    # More output than Python buffers, and less.
    few = ["detect", str(photo), "--model", str(small_model), "--no-picture"]
    for arguments in (["info", "--model", "r101-c4"], few):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, timeout=60, env=ENVIRONMENT
        )
        os.close(writer)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
