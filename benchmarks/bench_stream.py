"""What decoding, drawing and writing a video cost beside the engine.

    python benchmarks/bench_stream.py --json docs/results/bench_stream.json

Makes a video of 300 frames of 640x480 that pan over the example photographs, unless --video names
one. Then, in one process and in turns, so that a machine that slows down slows all alike:

- engine: `Backend.run` on the network inputs of its frames, prepared before the clock starts;
- rows: the pipeline of `sparsedet detect --no-save --write found.csv`, decoding included;
- annotated: the same with `-o annotated.mp4` (needs PyAV).

Prints frames a second, their share of the engine's own, and the CPU time of the engine as a share
of the CPU time of the whole process. The rows of all ways must be equal, else nothing is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lib import records

from sparsedet.detector import Detector
from sparsedet.images.letterbox import prepare
from sparsedet.images.read import read_image
from sparsedet.pipeline import Pipeline
from sparsedet.sinks import Annotated, ResultFiles
from sparsedet.sinks.video import VideoFile
from sparsedet.sources import open_source

ROOT = Path(__file__).parents[1]
SCORE = 0.5


def make_video(path: Path, frames: int) -> None:
    """A view of 640x480 that pans over the example photographs."""
    import cv2

    photos = [read_image(photo) for photo in sorted((ROOT / "examples").glob("*.jpg"))]
    wide = [np.asarray(cv2.resize(photo, (960, 720)), np.uint8) for photo in photos]
    video = VideoFile(path, 25.0)
    for number in range(frames):
        photo = wide[number * len(wide) // frames]
        place = number % (frames // len(wide)) / (frames // len(wide))
        y, x = int(240 * place), int(320 * place)
        video.write(np.ascontiguousarray(photo[y : y + 480, x : x + 640]), number / 25)
    video.close()


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of CPU, result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - start, time.process_time() - cpu, result


def through_pipeline(detector: Detector, video: Path, folder: Path, annotated: bool) -> list[Any]:
    """Detect as the command line does; returns the rows of all frames."""
    source = open_source([str(video)])
    sinks = [Annotated(source, str(folder / "annotated.mp4"), overwrite=True)] if annotated else []
    files = ResultFiles([folder / "found.csv"], overwrite=True)
    pipeline = Pipeline(source, lambda image: detector(image, SCORE), sinks, journal=files)
    rows = [done.found.rows() for done in pipeline if done.found is not None]
    problems = pipeline.close(complete=True).errors
    assert not problems, problems
    return rows


def measure(video: Path, detector: Detector, rounds: int, folder: Path) -> dict[str, Any]:
    images = [frame.image for frame in open_source(video)]
    inputs = [prepare(image, detector.config)[0] for image in images]
    expected = [detector(image, SCORE).rows() for image in images]
    frames = len(images)
    figures: dict[str, list[tuple[float, float]]] = {"engine": [], "rows": [], "annotated": []}
    del images
    ways: dict[str, Callable[[], Any]] = {
        "engine": lambda: [detector.engine.run(one) for one in inputs],
        "rows": lambda: through_pipeline(detector, video, folder, False),
        "annotated": lambda: through_pipeline(detector, video, folder, True),
    }
    for _ in range(rounds):
        for name, work in ways.items():
            seconds, cpu, rows = timed(work)
            if name != "engine":
                same = [np.array_equal(a, b) for a, b in zip(rows, expected, strict=True)]
                assert all(same), f"{name}: {same.count(False)} frames have other rows"
            figures[name].append((frames / seconds, cpu / frames))
    result: dict[str, Any] = {"frames": frames, "rounds": rounds, "runtime": detector.runtime}
    for name, values in figures.items():
        fps = [rate for rate, _ in values]
        own = figures["engine"]
        result[name] = {
            "fps": statistics.median(fps),
            "share_of_engine_fps": statistics.median(
                rate / mine for rate, (mine, _) in zip(fps, own, strict=True)
            ),
            "engine_share_of_cpu": statistics.median(
                mine / cpu for (_, cpu), (_, mine) in zip(values, own, strict=True)
            ),
        }
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--video", type=Path, help="default: one that is made")
    parser.add_argument("--frames", type=int, default=300, help="of the video that is made")
    parser.add_argument("--model", type=Path, default=Path("r50half-c4"), help="model file or name")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    detector = Detector.load(arguments.model, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = arguments.video or folder / "video.mp4"
        if arguments.video is None:
            make_video(video, arguments.frames)
        result = measure(video, detector, arguments.rounds, folder)
    for name in ("engine", "rows", "annotated"):
        one = result[name]
        print(
            f"{name:<10} {one['fps']:6.2f} frames/s  {one['share_of_engine_fps']:.3f} of the "
            f"engine's  engine {one['engine_share_of_cpu']:.3f} of the CPU time"
        )
    if arguments.json:
        conditions = records.describe(detector.isa, detector.engine.threads)
        records.save(arguments.json, {"machine": conditions, **result})


if __name__ == "__main__":
    main()
