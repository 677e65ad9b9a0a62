"""Bulk runs from and to S3: moto's server stands for it, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("moto.server", reason="no moto: pip install '.[cluster]'")

from helpers.many_images import table, write_views
from moto.server import ThreadedMotoServer
from pyarrow import fs

from sparsedet.bulk import storage
from sparsedet.bulk.listing import list_entries
from sparsedet.cli import main
from sparsedet.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The file system of a new S3, with the bucket `photos`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    storage._s3.cache_clear()
    system = fs.S3FileSystem(
        endpoint_override=address, region="us-east-1", allow_bucket_creation=True
    )
    system.create_dir("photos")
    yield system
    storage._s3.cache_clear()
    patch.undo()
    server.stop()


def test_from_s3_to_s3(bucket: Any, small_model: Path, tmp_path: Path) -> None:
    paths = write_views(tmp_path / "in", 23)
    for path in paths:
        with bucket.open_output_stream(f"photos/{path.relative_to(tmp_path)}") as stream:
            stream.write(path.read_bytes())
    for name in ("in/.hidden.jpg", "in/notes.md", "in/9/bad.jpg"):
        with bucket.open_output_stream(f"photos/{name}") as stream:
            stream.write(b"no image")
    flags = ["--model", str(small_model), "--threads", "2", "--part-images", "10", "--score", "0.2"]
    command = ["bulk", "--input", "s3://photos/in", "--output", "s3://photos/out", *flags]
    assert main(command) == 1  # bad.jpg
    for info in bucket.get_file_info(fs.FileSelector("photos/out", recursive=True)):
        if info.is_file:
            copy = tmp_path / info.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(bucket.open_input_file(info.path).read())
    there = tmp_path / "photos" / "out"
    images, found = table(there, "images"), table(there, "detections")
    names = [f"s3://photos/{path.relative_to(tmp_path)}" for path in paths]
    assert [row["photo"] for row in images] == [*names, "s3://photos/in/9/bad.jpg"]
    assert [row["photo"] for row in images if row["error"]] == ["s3://photos/in/9/bad.jpg"]

    here = tmp_path / "here"
    assert main(["bulk", "--input", str(tmp_path / "in"), "--output", str(here), *flags]) == 0
    local = [
        {**row, "photo": f"s3://photos/{Path(row['photo']).relative_to(tmp_path)}"}
        for row in table(here, "detections")
    ]
    assert found == local and len(found) > 10

    bucket.delete_file("photos/out/images/part-000001.parquet")
    assert main([*command, "--resume"]) == 1
    again = bucket.open_input_file("photos/out/images/part-000001.parquet").read()
    assert again == (there / "images" / "part-000001.parquet").read_bytes()


def test_a_list_and_parquet_in_s3(bucket: Any, tmp_path: Path) -> None:
    with bucket.open_output_stream("photos/lists/some.txt") as stream:
        stream.write(b"a.jpg\ns3://other/b.jpg\n")
    entries, _ = list_entries("s3://photos/lists/some.txt")
    assert entries.column("file").to_pylist() == ["s3://photos/lists/a.jpg", "s3://other/b.jpg"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("s3://", "no bucket"),
        ("s3://photos/none", "expected a folder"),
        ("s3://photos/none.txt", "s3://photos/none.txt"),
        ("s3://photos/none.parquet", "s3://photos/none.parquet"),
        ("s3://no-such-bucket/in", "s3://no-such-bucket/in"),
    ],
)
def test_bad_addresses(bucket: Any, given: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        list_entries(given)
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    storage._s3.cache_clear()
    try:
        with pytest.raises(InputError, match="s3://photos/in: "):
            storage.read_bytes("s3://photos/in")
    finally:
        storage._s3.cache_clear()
