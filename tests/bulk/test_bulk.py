"""Bulk runs: each image once, the rows of `detect`, resumable, and what is bad is said."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from helpers.commands import MAIN
from helpers.many_images import table, write_views
from helpers.small import encoded
from pyarrow import parquet

from sparsedet.bulk import Wanted, do_part, load_plan, make_plan
from sparsedet.bulk.listing import list_entries
from sparsedet.cli import main
from sparsedet.detector import Detector
from sparsedet.errors import InputError, UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "photos"
    write_views(folder, 25)
    return folder


@pytest.fixture
def bulk(small_model: Path, tmp_path: Path) -> Callable[..., int]:
    """`sparsedet bulk` into tmp_path/found, in parts of ten images."""

    def run(given: object, *flags: object, output: str = "found") -> int:
        place = ["--input", given, "--output", tmp_path / output, "--model", small_model]
        words = ["bulk", *place, "--threads", 2, "--part-images", 10, "--score", 0.2, *flags]
        return main([str(word) for word in words])

    return run


def expected(paths: list[Path], model: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What `detect --write` makes of the same files."""
    file = tmp_path / "expected.parquet"
    flags = ["--model", str(model), "--threads", "1", "--score", "0.2", "-q"]
    main(["detect", *map(str, paths), "--write", str(file), *flags])
    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


def test_the_rows_are_those_of_detect(
    bulk: Callable[..., int], photos: Path, small_model: Path, tmp_path: Path
) -> None:
    assert bulk(photos) == 0
    paths = sorted(photos.rglob("*.jpg"))
    images = table(tmp_path / "found", "images")
    assert [row["photo"] for row in images] == [str(path) for path in paths]
    assert {row["error"] for row in images} == {None}
    found = table(tmp_path / "found", "detections")
    assert found == expected(paths, small_model, tmp_path) and len(found) > 25
    assert sum(row["detections"] for row in images) == len(found)
    parts = sorted(path.name for path in (tmp_path / "found" / "images").iterdir())
    assert parts == [f"part-{number:06}.parquet" for number in range(3)]


def test_a_model_of_the_package_by_its_name(
    bulk: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one.txt"
    one.write_text(f"{min(photos.rglob('*.jpg'))}\n")
    assert bulk(one, "--model", "picodet-s") == 0
    assert len(table(tmp_path / "found", "images")) == 1


def test_what_is_bad_is_said_and_the_rest_goes_on(
    bulk: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    bad = sorted(folder.rglob("*.jpg"))[7]
    bad.write_bytes(bad.read_bytes()[:300])
    (folder / "empty.png").touch()
    assert bulk(folder) == 1
    assert "2 of 26 images failed" in capsys.readouterr().err
    failed = [row for row in table(tmp_path / "found", "images") if row["error"]]
    assert [row["photo"] for row in failed] == [str(bad), str(folder / "empty.png")]
    assert "truncated" in failed[0]["error"] and "empty" in failed[1]["error"]
    assert failed[0]["width"] is None and failed[0]["detections"] is None


def test_filters(bulk: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    assert bulk(photos, "--classes", "cat,traffic light", "--top", 1) == 0
    found = table(tmp_path / "found", "detections")
    assert {row["name"] for row in found} <= {"cat", "traffic light"}
    assert all(row["detections"] <= 1 for row in table(tmp_path / "found", "images"))
    assert bulk(photos, "--classes", "dragon", output="other") == 1
    assert not (tmp_path / "other").exists()


def test_a_list_names_each_image_once(
    bulk: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))[:5]
    given = photos / "list.txt"
    given.write_text("# five\n" + "\n".join([*names, names[0], "missing.jpg"]))
    assert bulk(given) == 1
    assert "1 images are named again" in capsys.readouterr().err
    images = table(tmp_path / "found", "images")
    assert [row["photo"] for row in images] == [str(photos / n) for n in [*names, "missing.jpg"]]
    assert "No such file" in images[-1]["error"]
    given.unlink()


def rows_of(path: Path, columns: dict[str, Any], group: int = 4) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_parquet_with_images_inside(
    bulk: Callable[..., int], photos: Path, small_model: Path, tmp_path: Path
) -> None:
    """As Ray Data and hubs write them; a row without an image and a damaged one are told."""
    paths = sorted(photos.rglob("*.jpg"))[:13]
    data = [path.read_bytes() for path in paths]
    data[3], data[5] = b"no image", None  # type: ignore[call-overload]
    names = [path.name for path in paths]
    whole = expected(paths, small_model, tmp_path)
    forms: dict[str, dict[str, Any]] = {
        "ray": {"bytes": pa.array(data, pa.binary()), "path": names},
        "hub": {"image": [{"bytes": d, "path": n} for d, n in zip(data, names, strict=True)]},
        "plain": {"image": pa.array(data, pa.large_binary())},
    }
    for form, columns in forms.items():
        file = rows_of(tmp_path / f"{form}.parquet", columns)
        assert bulk(file, output=form) == 1
        images = table(tmp_path / form, "images")
        own = [f"{file}#{row}" for row in range(13)]
        assert [row["photo"] for row in images] == (own if form == "plain" else names)
        assert [n for n, row in enumerate(images) if row["error"]] == [3, 5]
        assert "not a JPEG" in images[3]["error"] and "no image" in images[5]["error"]
        called = {str(path): row["photo"] for path, row in zip(paths, images, strict=True)}
        good = [{**row, "photo": called[row["photo"]]} for row in whole]
        bad = {images[3]["photo"], images[5]["photo"]}
        found = table(tmp_path / form, "detections")
        assert found == [row for row in good if row["photo"] not in bad]


def test_parquet_that_names_images(bulk: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    file = rows_of(photos / "names.parquet", {"file_name": [*names, None], "id": range(26)})
    assert bulk(file) == 0
    assert [row["photo"] for row in table(tmp_path / "found", "images")] == [
        str(photos / name) for name in names
    ]
    file.unlink()


def test_a_folder_of_parquet(photos: Path, tmp_path: Path) -> None:
    for number in (2, 1):
        rows_of(tmp_path / f"{number}.parquet", {"bytes": [encoded(".jpg")] * number})
    entries, _ = list_entries(str(tmp_path))
    assert entries.column("name").to_pylist() == [
        f"{tmp_path}/1.parquet#0",
        f"{tmp_path}/2.parquet#0",
        f"{tmp_path}/2.parquet#1",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "expected a folder, a list"),
        ("none.txt", "No such file"),
        ("none.parquet", "none.parquet"),
        ("text.parquet", "not a Parquet file"),
        ("numbers.parquet", "no column of images"),
        ("bytes.txt", "not a list of paths"),
        ("blank.txt", "names no images"),
        ("web.txt", "expected paths and s3:// addresses"),
        ("empty", "no images and no Parquet"),
    ],
)
def test_bad_inputs(
    bulk: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: str,
) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    rows_of(tmp_path / "numbers.parquet", {"a": [1, 2]})
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "blank.txt").write_text("# nothing\n")
    (tmp_path / "web.txt").write_text("https://example.org/a.jpg\n")
    (tmp_path / "empty").mkdir()
    assert bulk(tmp_path / name) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "found").exists()


def test_going_on_does_what_is_missing(
    bulk: Callable[..., int], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bulk(photos) == 0
    found = tmp_path / "found"
    before = table(found, "images"), table(found, "detections")
    (found / "images" / "part-000001.parquet").unlink()
    kept = (found / "images" / "part-000000.parquet").stat().st_mtime_ns
    assert bulk(photos) == 1
    assert "--resume goes on" in capsys.readouterr().err
    assert bulk(photos, "--resume", "--score", 0.9) == 1
    assert "--score-threshold 0.2" in capsys.readouterr().err
    assert bulk(photos, "--resume") == 0
    assert "25 images (15 by an earlier run)" in capsys.readouterr().out
    assert (table(found, "images"), table(found, "detections")) == before
    assert (found / "images" / "part-000000.parquet").stat().st_mtime_ns == kept


def test_new_images_do_not_move_the_parts_of_a_run(
    bulk: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    assert bulk(folder) == 0
    before = table(tmp_path / "found", "images")
    (tmp_path / "found" / "images" / "part-000002.parquet").unlink()
    shutil.copy(folder / "0" / "00000.jpg", folder / "0" / "00000a.jpg")
    assert bulk(folder, "--resume") == 0
    assert table(tmp_path / "found", "images") == before


def test_a_part_is_written_after_its_detections(
    small_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between the two files does the part again, and doubles nothing."""
    plan, _ = make_plan(str(photos), str(tmp_path / "found"), {}, 10, resume=False)
    detect = Wanted(0.2).of(Detector.load(small_model, threads=1))
    monkeypatch.setattr("sparsedet.bulk.work._images_file", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        do_part(plan, 0, detect, 1)
    assert plan.missing() == [0, 1, 2]
    assert len(list((tmp_path / "found" / "detections").iterdir())) == 1
    monkeypatch.undo()
    first = [do_part(load_plan(plan.output), part, detect, 1) for part in range(3)]
    assert [one.images for one in first] == [10, 10, 5] and plan.missing() == []
    assert do_part(plan, 0, detect, 1) == first[0]  # not again
    assert len(table(tmp_path / "found", "detections")) == sum(one.detections for one in first)


def test_ctrl_c_keeps_whole_parts(photos: Path, small_model: Path, tmp_path: Path) -> None:
    given = tmp_path / "list.txt"
    names = [str(path) for path in sorted(photos.rglob("*.jpg"))]
    links = tmp_path / "links"
    links.mkdir()
    for number in range(400):
        (links / f"{number:03}.jpg").symlink_to(names[number % len(names)])
    given.write_text("\n".join(f"links/{number:03}.jpg" for number in range(400)))
    found = tmp_path / "found"
    flags = ["--model", str(small_model), "--threads", "1", "--part-images", "5", "--score", "0.2"]
    command = ["bulk", "--input", str(given), "--output", str(found), *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *command], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 30
    while not (found / "images").is_dir() or not list((found / "images").glob("part*")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "--resume goes on" in error, error
    assert main([*command, "--resume"]) == 0
    images = table(found, "images")
    assert [row["photo"] for row in images] == [str(links / f"{n:03}.jpg") for n in range(400)]


def test_a_damaged_plan(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    for content in (b"", b"[]", b'{"kind": "other"}', b'{"kind": "sparsedet bulk 1"}'):
        (folder / "bulk.json").write_bytes(content)
        with pytest.raises(InputError, match="not the plan of a bulk run"):
            load_plan(str(folder))
    with pytest.raises(UsageError, match="at least 1"):
        make_plan(str(tmp_path), str(folder), {}, 0, resume=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--part-images", 0], "--part-images is 0"),
        (["--ray-workers", 2], "give --ray"),
        (["--score", 2], "0..1"),
    ],
)
def test_flags(
    bulk: Callable[..., int],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[object],
    words: str,
) -> None:
    assert bulk(photos, *flags) == 2
    assert words in capsys.readouterr().err


def test_the_images_of_a_parquet_file_that_shrank(small_model: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path / "a.parquet", {"bytes": [encoded(".jpg")] * 6})
    plan, _ = make_plan(str(file), str(tmp_path / "found"), {}, 10, resume=False)
    rows_of(file, {"bytes": [encoded(".jpg")] * 4})
    done = do_part(plan, 0, Wanted(0.2).of(Detector.load(small_model, threads=1)), 1)
    assert (done.images, done.failed) == (6, 2)
    errors = [row["error"] for row in table(tmp_path / "found", "images")]
    assert errors[:4] == [None] * 4 and all("fewer rows" in one for one in errors[4:])


def test_results_are_readable_by_others(
    bulk: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    assert bulk(photos) == 0
    frame = pandas.read_parquet(tmp_path / "found" / "detections")
    images = pandas.read_parquet(tmp_path / "found" / "images")
    counted = frame.groupby("photo").size()
    assert (images.set_index("photo")["detections"].loc[counted.index] == counted).all()
    assert io.StringIO(frame.to_csv()).readline().startswith(",photo,frame")


def test_rows_of_one_name_are_images_of_their_own(photos: Path, tmp_path: Path) -> None:
    """Data sets number the images of each of their files alike."""
    folder = tmp_path / "set.parquet"  # a folder, as Spark writes it
    folder.mkdir()
    for number in range(2):
        columns = {"bytes": [encoded(".jpg")] * 2, "path": ["0.jpg", "1.jpg"]}
        rows_of(folder / f"part-{number}.parquet", columns)
    entries, repeated = list_entries(str(folder))
    assert entries.column("name").to_pylist() == ["0.jpg", "1.jpg"] * 2 and repeated == 0
