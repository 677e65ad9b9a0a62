"""kill -9 in the middle of long work: files are whole or absent, and going on gives the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers.many_images import table, write_views
from test_nothing_lost import changes, killed_at, some, whole_or_absent

from sparsedet.cli import main
from sparsedet.evaluation.coco import CocoDataset
from sparsedet.model.file import load_file

pytestmark = pytest.mark.slow


def test_a_bulk_run(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    write_views(tmp_path / "photos", 12)

    def words(output: Path, *more: object) -> list[object]:
        flags = ["--model", small_model, "--threads", 1, "--part-images", 5, "--score", 0.2]
        return ["bulk", "--input", tmp_path / "photos", "--output", output, *flags, *more]

    whole = tmp_path / "whole"
    count = changes(killed_at(0, *words(whole)))
    wanted = {kind: table(whole, kind) for kind in ("images", "detections")}
    assert len(wanted["images"]) == 12 and wanted["detections"]
    for number in some(count, 14):
        folder = tmp_path / f"killed-{number}"
        assert killed_at(number, *words(folder)).returncode == -9
        for path in folder.rglob("*.parquet"):
            if not path.name.endswith(".partial"):
                table(folder, path.parent.name)  # every file there can be read
        begun = (folder / "bulk.json").exists()
        done = killed_at(0, *words(folder, *(["--resume"] if begun else [])))
        assert done.returncode == 0, done.stderr
        assert {kind: table(folder, kind) for kind in wanted} == wanted


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the folder `served`."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = partial(Silent, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = np.random.default_rng(5).bytes(3_000_000)
    (tmp_path / "served" / "net.bin").write_bytes(content)
    digest = f"sha384:{hashlib.sha384(content).hexdigest()}"
    given = ["run=download", f"{address}/net.bin", digest, len(content)]
    count = changes(killed_at(0, *given, tmp_path / "whole.bin"))
    assert count > 10  # the file comes in pieces
    killed = 0
    for number in some(count, 14):
        target = tmp_path / f"{number}" / "net.bin"
        killed += killed_at(number, *given, target).returncode == -9  # in how many pieces, varies
        assert not target.exists() or target.read_bytes() == content
        assert killed_at(0, *given, target).returncode == 0
        assert target.read_bytes() == content
        assert [path.name for path in target.parent.iterdir()] == ["net.bin"]
    assert killed >= 8


def test_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    whole = tmp_path / "whole"
    whole.mkdir()
    count = changes(killed_at(0, "run=video", whole / "a.mp4"))
    assert count > 40
    expected = {"a.mp4": (whole / "a.mp4").read_bytes()}
    for number in some(count, 14):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        assert killed_at(number, "run=video", folder / "a.mp4").returncode == -9
        whole_or_absent(folder, expected)
        assert killed_at(0, "run=video", folder / "a.mp4").returncode == 0
        assert [path.name for path in folder.iterdir()] == ["a.mp4"]
        assert (folder / "a.mp4").read_bytes() == expected["a.mp4"]


def test_pruning(small_model: Path, tmp_path: Path) -> None:
    for name in ("torch", "matplotlib"):
        pytest.importorskip(name)
    write_views(tmp_path / "photos", 6)

    def words(output: Path) -> list[object]:
        images = ["--images", tmp_path / "photos", "--calibration-images", 4]
        return [
            "prune",
            small_model,
            *images,
            "--sparsity",
            0.6,
            "--output",
            output,
            "--threads",
            1,
        ]

    count = changes(killed_at(0, *words(tmp_path / "whole")))
    wanted = (tmp_path / "whole" / "model.safetensors").read_bytes()
    tensors = load_file(tmp_path / "whole" / "model.safetensors").tensors
    for number in some(count, 4):
        folder = tmp_path / f"killed-{number}"
        assert killed_at(number, *words(folder)).returncode == -9
        model = folder / "model.safetensors"
        assert not model.exists() or model.read_bytes() == wanted
        shutil.rmtree(folder, ignore_errors=True)
        assert killed_at(0, *words(folder)).returncode == 0
        again = load_file(model).tensors
        assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.usefixtures("one_torch_thread")
def test_training(
    files: tuple[Path, Path],
    dataset: CocoDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("torch", "torchvision", "rich"):
        pytest.importorskip(name)
    from helpers.tiny_training import FAST, trainer

    trainer(dataset, replace(FAST, steps=1), tmp_path / "begin").run()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(replace(FAST, steps=5).to_dict()))

    def words(output: Path, *more: str) -> list[object]:
        data = ["--annotations", files[0], "--images", files[1], "--recipe", recipe]
        often = ["--threads", 1, "--checkpoint-minutes", 0, "--init", tmp_path / "begin"]
        return ["train", *data, *often, "--output", output, *more]

    count = changes(killed_at(0, *words(tmp_path / "whole")))
    wanted = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for number in some(count, 5):
        folder = tmp_path / f"killed-{number}"
        assert killed_at(number, *words(folder)).returncode == -9
        model = folder / "model.safetensors"
        assert not model.exists() or model.read_bytes() == wanted
        if list(folder.glob("checkpoint-*.safetensors")):
            assert main([str(word) for word in words(folder, "--resume")]) == 0
        else:
            shutil.rmtree(folder, ignore_errors=True)
            assert main([str(word) for word in words(folder)]) == 0
        assert model.read_bytes() == wanted
        assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
