"""Bulk runs on a Ray cluster of two workers on this machine; one of them is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("ray.data", reason="no ray: pip install '.[cluster]'")

import ray
from helpers.many_images import table, write_views

from sparsedet.bulk import Wanted, load_plan, make_plan
from sparsedet.cli import main
from sparsedet.detector import Detector
from sparsedet.errors import InputError
from sparsedet.images.read import read_image
from sparsedet.ray import DetectImages, run_on_ray

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES = 2000


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Of two CPUs, whatever this machine has."""
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "photos"
    write_views(folder, IMAGES)
    return folder


def workers() -> list[int]:
    """Processes of the cluster of this process that detect."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "status").read_text()
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            parent = int(status.split("PPid:")[1].split()[0])
            parents[int(entry.name)] = parent, command

    def is_ours(process: int) -> bool:
        while process in parents:
            process = parents[process][0]
            if process == os.getpid():
                return True
        return False

    return [
        process
        for process, (_, command) in parents.items()
        if command.startswith(b"ray::MapWorker") and is_ours(process)
    ]


def test_a_killed_worker_loses_and_doubles_nothing(
    cluster: None, photos: Path, small_model: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(small_model), "--score", "0.2", "--part-images", "50", "--threads", "1"]
    single = tmp_path / "single"
    assert main(["bulk", "--input", str(photos), "--output", str(single), *flags]) == 0

    shared = tmp_path / "shared"
    plan, _ = make_plan(str(photos), str(shared), {}, 50, resume=False)
    killed: list[int] = []
    seen: set[int] = set()
    ended = threading.Event()

    def kill_one() -> None:
        while not ended.is_set() and not killed:
            seen.update(workers())
            if len(plan.missing()) < plan.parts - 3 and (alive := workers()):
                os.kill(alive[0], signal.SIGKILL)
                killed.append(alive[0])
            time.sleep(0.05)
        while not ended.is_set():
            seen.update(workers())
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    done: list[Any] = []
    settings = {"path": str(small_model), "threads": 1, "streams": 1}
    try:
        run_on_ray(str(shared), settings, Wanted(0.2), workers=2, tell=done.append)
    finally:
        ended.set()
        killer.join()
    assert killed and len(seen) >= 3  # two, and the one that was started in its place
    assert sorted(one.part for one in done) == list(range(plan.parts))
    images = table(shared, "images")
    names = [row["photo"] for row in images]
    assert len(names) == len(set(names)) == IMAGES
    assert images == table(single, "images")
    assert table(shared, "detections") == table(single, "detections")


def test_the_command_goes_on_on_a_cluster(
    cluster: None, photos: Path, small_model: Path, tmp_path: Path, capsys: Any
) -> None:
    """What one machine began a cluster ends."""
    found = tmp_path / "found"
    some = sorted(photos.rglob("*.jpg"))[:60]
    given = tmp_path / "list.txt"
    given.write_text("\n".join(map(str, some)))
    flags = ["--model", str(small_model), "--part-images", "10", "--score", "0.2"]
    command = ["bulk", "--input", str(given), "--output", str(found), *flags]
    assert main(command) == 0
    before = table(found, "images"), table(found, "detections")
    for part in (1, 4):
        (found / "images" / f"part-{part:06}.parquet").unlink()
    assert main([*command, "--resume", "--ray", "auto", "--ray-workers", "2"]) == 0
    assert "60 images (40 by an earlier run)" in capsys.readouterr().out
    assert (table(found, "images"), table(found, "detections")) == before
    assert load_plan(str(found)).missing() == []


def test_detect_images_in_a_pipeline(
    cluster: None, photos: Path, small_model: Path, tmp_path: Path
) -> None:
    paths = sorted(photos.rglob("*.jpg"))[:12]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    files = ray.data.read_binary_files([*map(str, paths), str(broken)], include_paths=True)
    # Workers that hold all CPUs would leave none for reading.
    options: dict[str, Any] = {"batch_size": 4, "concurrency": 1, "num_cpus": 1}
    options["fn_constructor_args"] = (str(small_model),)
    options["fn_constructor_kwargs"] = {"score": 0.2}
    rows = {row["path"]: row for row in files.map_batches(DetectImages, **options).iter_rows()}
    assert len(rows) == 13 and "not a JPEG" in rows[str(broken)]["error"]
    detector = Detector.load(small_model, threads=1)
    for path in paths:
        found, row = detector(read_image(path), 0.2), rows[str(path)]
        assert list(row["names"]) == found.names and row["error"] is None
        assert [list(box) for box in row["boxes"]] == found.boxes.tolist()
        assert (row["width"], row["height"]) == (120, 90)


def test_images_as_ray_reads_them_are_rgb(small_model: Path, photos: Path) -> None:
    path = next(photos.rglob("*.jpg"))
    image = read_image(path)
    batch = DetectImages(str(small_model), score=0.2)({"image": image[None, :, :, ::-1]})
    expected = Detector.load(small_model, threads=1)(image, 0.2)
    assert batch["names"] == [expected.names]
    with pytest.raises(InputError, match="expected bytes or image"):
        DetectImages(str(small_model))({"path": image})


def test_no_cluster(small_model: Path, photos: Path, tmp_path: Path) -> None:
    ray.shutdown()
    make_plan(str(photos), str(tmp_path / "found"), {}, 100, resume=False)
    with pytest.raises(InputError, match="no Ray cluster at auto"):
        run_on_ray(str(tmp_path / "found"), {"path": None, "threads": 1}, Wanted(), address="auto")
