"""AP and time of the default model, and of the dense network it was made from, in OpenVINO too.

    python benchmarks/default_model.py picodet_s_416.onnx --annotations VAL.json --images FOLDER

The file is the owner's. Timed in turn, with one and with two threads, from the network input on:
the default model here, the dense network here, the dense network with its detections in OpenVINO
f32, and in OpenVINO f32 the owner's file itself, which ends with raw maps, before any box or score
is made. Whole processes of `sparsedet detect PHOTO` follow. Writes docs/results/default_model.json,
and the table between the marks in README.md and docs/picodet.md, where they have them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from embedded import score
from lib import records
from lib.documents import insert
from lib.processes import installed_environment, whole_process
from lib.records import RESULTS, ROOT

import sparsedet
from sparsedet.backends import build_backend
from sparsedet.benchmark.timing import interleaved, ratio
from sparsedet.choices import DEFAULT_MODEL, Name
from sparsedet.detector import embedded_model
from sparsedet.evaluation.coco import load_coco
from sparsedet.images.letterbox import prepare
from sparsedet.importers import load_trained
from sparsedet.importers.onnx.detectors import Preprocessing
from sparsedet.model.detector_config import build_graph
from sparsedet.model.file import ModelFile, load_model, save_model
from sparsedet.model.graph import Normalise

MARK = "<!-- default model table: benchmarks/default_model.py -->"
DOCUMENTS = ROOT / "README.md", ROOT / "docs" / "picodet.md"
STATED = Preprocessing(score_threshold=0.02, max_detections=100)  # as it was converted
OURS, DENSE, WHOLE, RAW = "ours", "ours, dense", "OpenVINO, detections", "OpenVINO, raw maps"
PHOTO = ROOT / "examples" / "beach.jpg"


def raw_run(path: Path, model: ModelFile, network_input: Any, threads: int) -> Callable[[], Any]:
    """The owner's file in OpenVINO, on normalised values that are made before."""
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(str(path), "CPU", {**hints, "INFERENCE_NUM_THREADS": threads})
    attributes = build_graph(model.config).only(Normalise)[1]
    mean, std = (np.asarray(n, np.float32) for n in (attributes.mean, attributes.std))
    pixels = (network_input.astype(np.float32) - mean) / std
    pixels = pixels[:, :, ::-1] if attributes.rgb else pixels
    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    request = compiled.create_infer_request()
    return lambda: request.infer([values], share_inputs=True, share_outputs=True)


def times(source: Path, dense: ModelFile, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of each runtime in each round, and their times divided by ours."""
    default = load_model(embedded_model(DEFAULT_MODEL))
    image = sparsedet.read_image(PHOTO)
    runs: dict[str, Callable[[], Any]] = {}
    whole: dict[str, tuple[Name, ModelFile]] = {
        OURS: ("native", default),
        DENSE: ("native", dense),
        WHOLE: ("openvino", dense),
    }
    for name, (backend, model) in whole.items():
        opened = build_backend(backend, model, threads=threads)
        runs[name] = partial(opened.run, prepare(image, model.config)[0])
    runs[RAW] = raw_run(source, dense, prepare(image, dense.config)[0], threads)
    seconds = interleaved(runs, repeats)
    ratios = {name: ratio(seconds[OURS], found) for name, found in seconds.items() if name != OURS}
    return {"seconds": seconds, "times_ours": ratios}


def starts(repeats: int) -> list[float]:
    """Seconds of `sparsedet detect PHOTO` with compiled modules, files in the system's cache."""
    with tempfile.TemporaryDirectory() as folder:
        env = installed_environment(Path(folder) / "compiled")
        output = ["-o", str(Path(folder) / "found.jpg"), "--overwrite"]
        words = ["-m", "sparsedet", "detect", str(PHOTO), *output]
        return [whole_process(words, env) for _ in range(repeats + 1)][1:]


def scores(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    detector = sparsedet.Detector.load(path)
    dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
    return {**score(detector, path, dataset), "images": len(dataset.images)}


def table(result: dict[str, Any]) -> str:
    """The Markdown table, and the conditions of the measurement."""
    counts = [int(threads) for threads in result["threads"]]
    heads = [f"{n} thread{'s' * (n > 1)}" for n in counts]
    lines = [
        f"| Model | Zeros of all parameters | AP | AP50 | File | {' | '.join(heads)} |",
        "|---|---|---|---|---|" + "---|" * len(heads),
    ]
    rows = [(f"`{DEFAULT_MODEL}`", "default", OURS), ("dense, its original", "dense", DENSE)]
    for title, key, runtime in [*rows, ("dense, OpenVINO f32", "", WHOLE)]:
        one = result.get(key)
        cells = ["", "", "", ""]
        if one:
            cells = [f"{100 * one['sparsity']:.1f} %", f"{one['ap']:.4f}", f"{one['ap50']:.4f}"]
            cells.append(f"{one['megabytes']:.1f} MB")
        for n in counts:
            found = result["threads"][str(n)]
            text = f"{1000 * statistics.median(found['seconds'][runtime]):.1f} ms"
            if runtime != OURS:
                ratios = found["times_ours"][runtime]
                text += f", **{ratios['median']:.2f}x**"
                text += f" ({ratios['least']:.2f}..{ratios['most']:.2f})"
            cells.append(text)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    raw = [result["threads"][str(n)] for n in counts]
    without = " and ".join(f"{1000 * statistics.median(r['seconds'][RAW]):.1f} ms" for r in raw)
    lines += [
        "",
        f"From the network input to the detections, {len(raw[0]['seconds'][OURS])} rounds in turn; "
        f"in bold: how many times faster `{DEFAULT_MODEL}` is. OpenVINO without making boxes and "
        f"scores of its maps: {without}. {result['machine']['cpu']}, {result['machine']['isa']}, "
        f"OpenVINO {result['machine']['versions']['openvino']}. `sparsedet detect` as a whole "
        f"process: {min(result['whole_process_seconds']):.2f} s at best, "
        f"{statistics.median(result['whole_process_seconds']):.2f} s in the median.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the owner's ONNX file")
    parser.add_argument("--annotations", type=Path, help="COCO-format JSON; none: no AP")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=25, help="rounds that count")
    parser.add_argument("--starts", type=int, default=10, help="whole processes")
    parser.add_argument("--json", type=Path, default=RESULTS / "default_model.json")
    parser.add_argument("--no-document", action="store_true", help="write the JSON file alone")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.safetensors"
        imported = load_trained(arguments.source, stated=STATED)[0]
        save_model(dense, imported.config, imported.tensors, {}, dtype="float32")
        result: dict[str, Any] = {"whole_process_seconds": starts(arguments.starts)}
        if arguments.annotations:
            for key, path in ("default", embedded_model(DEFAULT_MODEL)), ("dense", dense):
                result[key] = scores(path, arguments)
        model = load_model(dense)
        result["threads"] = {
            str(n): times(arguments.source, model, n, arguments.repeats) for n in arguments.threads
        }
    result["machine"] = records.describe("", max(arguments.threads))
    result["machine"]["command"] = "python benchmarks/default_model.py ..."  # no local paths
    records.save(arguments.json, result)
    text = table(result)
    for document in () if arguments.no_document else DOCUMENTS:
        if MARK in document.read_text():
            insert(document, MARK, text)
    print(text)


if __name__ == "__main__":
    main()
