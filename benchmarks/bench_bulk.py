"""Images a second of a bulk run, beside those of `Detector.stream` on the same files.

    python benchmarks/bench_bulk.py --json docs/results/bench_bulk.json

Makes photographs of 640x480 from the examples, all different. Then, in turns:

- stream: `Detector.stream` on the folder, one image a thread;
- bulk: `sparsedet bulk` in this process, as many threads;
- ray: the same on a Ray cluster of one worker a thread, started before the clock (needs ray).

Loading the model counts for none of them: stream and bulk share a detector, and the workers of ray
have done a part before. The detections of all must be equal, else nothing is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lib import records
from pyarrow import parquet

from sparsedet.bulk import PartDone, Wanted, do_part, make_plan
from sparsedet.detector import Detector
from sparsedet.images.read import read_image

ROOT = Path(__file__).parents[1]
SCORE = 0.5
PART = 25


def write_views(folder: Path, count: int) -> None:
    """Views of 640x480 of the example photographs."""
    photos = [read_image(path) for path in sorted((ROOT / "examples").glob("*.jpg"))]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = cv2.resize(photos[number % len(photos)], (960, 720))
        y, x = random.integers(0, 240), random.integers(0, 320)
        cv2.imwrite(str(folder / f"{number:06}.jpg"), photo[y : y + 480, x : x + 640])


def rows_of(output: Path) -> list[Any]:
    """All detections of a bulk run, without the parts' borders."""
    files = sorted((output / "detections").glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def through_bulk(detector: Detector, photos: Path, output: Path) -> float:
    """Seconds of a bulk run."""
    start = time.perf_counter()
    plan, _ = make_plan(str(photos), str(output), {}, PART, resume=False)
    for part in plan.missing():
        do_part(plan, part, Wanted(SCORE).of(detector), detector.streams)
    return time.perf_counter() - start


def through_ray(model: Path | None, photos: Path, output: Path, workers: int) -> float:
    """Seconds from the first part that is done to the last, for the images between them."""
    from sparsedet.ray import run_on_ray

    make_plan(str(photos), str(output), {}, PART, resume=False)
    times: list[tuple[float, int]] = []

    def tell(done: PartDone) -> None:
        times.append((time.perf_counter(), done.images))

    settings = {"path": None if model is None else str(model), "threads": 1, "streams": 1}
    run_on_ray(str(output), settings, Wanted(SCORE), workers=workers, tell=tell)
    begun = times[workers - 1][0]  # all workers have loaded
    images = sum(count for at, count in times[workers:])
    return (times[-1][0] - begun) / images * sum(count for _, count in times)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    photos = folder / "photos"
    photos.mkdir()
    write_views(photos, arguments.images)
    threads = arguments.threads
    detector = Detector.load(arguments.model, threads=threads, streams=threads)
    rates: dict[str, list[float]] = {"stream": [], "bulk": [], "ray": []}
    for round_ in range(arguments.rounds):
        start = time.perf_counter()
        found = list(detector.stream(photos, SCORE))
        rates["stream"].append(arguments.images / (time.perf_counter() - start))
        bulk, ray = folder / f"bulk{round_}", folder / f"ray{round_}"
        rates["bulk"].append(arguments.images / through_bulk(detector, photos, bulk))
        rows = rows_of(bulk)
        assert len(rows) == sum(map(len, found))
        scores = [score for one in found for score in one.scores.tolist()]
        assert [row["score"] for row in rows] == scores
        if arguments.ray:
            seconds = through_ray(arguments.model, photos, ray, threads)
            rates["ray"].append(arguments.images / seconds)
            assert rows_of(ray) == rows
    result: dict[str, Any] = {"images": arguments.images, "rounds": arguments.rounds}
    for name, values in rates.items():
        if values:
            shares = [rate / own for rate, own in zip(values, rates["stream"], strict=True)]
            result[name] = {
                "images_per_second": statistics.median(values),
                "share_of_stream": statistics.median(shares),
            }
    return {**result, "isa": detector.isa}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--model", type=Path, default=Path("r50half-c4"), help="model file or name")
    parser.add_argument("--threads", type=int, default=2, help="and workers of ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster here")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.ray:
            import ray

            ray.init(
                num_cpus=arguments.threads,
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": ":".join(filter(None, sys.path))}},
            )
        result = measure(arguments, Path(folder))
    for name in ("stream", "bulk", "ray"):
        if name in result:
            one = result[name]
            print(
                f"{name:<8}{one['images_per_second']:7.2f} images/s, "
                f"{one['share_of_stream']:.3f} of stream's"
            )
    if arguments.json:
        conditions = records.describe(result.pop("isa"), arguments.threads)
        records.save(arguments.json, {"machine": conditions, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
