"""How long the program takes to begin: import, help, and one photograph by the command line.

    python benchmarks/bench_start.py --json docs/results/bench_start.json

Whole processes, from start to end, in turn; files are in the file system's cache and modules are
compiled, as after the first run of an installed package. In the same rounds, in this process: the
time of loading the model and of one detection in the photograph. The last line is the part of
`sparsedet detect` that is neither, and the part that is not the detection.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lib import records
from lib.processes import installed_environment, whole_process

from sparsedet.detector import Detector
from sparsedet.images.read import read_image

PHOTO = Path(__file__).parents[1] / "examples" / "beach.jpg"


def measure(repeats: int, folder: Path) -> dict[str, Any]:
    env = installed_environment(folder / "compiled")
    drawn = ["detect", str(PHOTO), "-o", str(folder / "found.jpg"), "--overwrite"]
    processes = {
        "python alone": ["-c", "pass"],
        "import sparsedet": ["-c", "import sparsedet"],
        "from sparsedet import Detector": ["-c", "from sparsedet import Detector"],
        "sparsedet --help": ["-m", "sparsedet", "--help"],
        "sparsedet detect, annotated": ["-m", "sparsedet", *drawn],
        "sparsedet detect --no-save": ["-m", "sparsedet", "detect", str(PHOTO), "--no-save"],
    }
    image = read_image(PHOTO)
    times: dict[str, list[float]] = {name: [] for name in (*processes, "load", "detection")}
    for _ in range(repeats + 1):
        for name, words in processes.items():
            times[name].append(whole_process(words, env))
        start = time.perf_counter()
        detector = Detector.load()
        times["load"].append(time.perf_counter() - start)
        detector(image)  # it prepares its memory
        start = time.perf_counter()
        detector(image)
        times["detection"].append(time.perf_counter() - start)
    return {"seconds": {name: values[1:] for name, values in times.items()}, "isa": detector.isa}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.repeats, Path(folder))
    seconds = found["seconds"]
    for name, values in seconds.items():
        print(f"{name:32} {statistics.median(values):.3f} s ({min(values):.3f}..{max(values):.3f})")
    whole = seconds["sparsedet detect, annotated"]
    rows = list(zip(whole, seconds["load"], seconds["detection"], strict=True))
    found["above"] = {
        "detection": statistics.median(all_ - once for all_, _, once in rows),
        "loading_and_detection": statistics.median(all_ - load - once for all_, load, once in rows),
    }
    print(
        f"sparsedet detect, annotated, above one detection: {found['above']['detection']:.3f} s; "
        f"above loading and detection: {found['above']['loading_and_detection']:.3f} s"
    )
    if arguments.json:
        conditions = records.describe(found.pop("isa"), Detector.load().engine.threads)
        records.save(arguments.json, {"machine": conditions, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
