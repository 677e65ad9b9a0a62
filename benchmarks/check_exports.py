"""Check that exported files give the detections and the AP of the native engine.

    python benchmarks/check_exports.py --annotations VAL.json --images FOLDER \\
      --json docs/results/exports.json
    python benchmarks/check_exports.py --document docs/results/exports.json

The first command prints a line for each form, writes the JSON file if --json is given, and exits
with 1 if a float32 form differs. The second puts the table of a result into docs/interchange.md.

Each form is written to a temporary folder, read back by our importer (parameters and zeros must be
equal), and run in its runtime. Its detections are compared with ours one by one: float32 forms must
have the same classes, an IoU above 0.99 and scores within 1e-3. A detection on one side only must
be a tie: its score, or its IoU with a better box of its class, is within 1e-4 of the threshold, so
the order of a sum decides. Then the AP of all images is computed. `--ir NAME=FILE.xml` adds an
existing IR, for example in INT8; it is reported and not judged.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lib import machine
from lib.documents import insert

import sparsedet
from sparsedet.detections import Detections, from_rows
from sparsedet.detector import embedded_model
from sparsedet.engine import Engine
from sparsedet.evaluation import evaluate
from sparsedet.evaluation.coco import load_coco
from sparsedet.exporters.onnx import save_onnx
from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import to_network_input
from sparsedet.importers import load_foreign
from sparsedet.model.boxes import iou
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import ModelFile
from sparsedet.model.sparsity import sparsity_report

FORMS: dict[str, dict[str, Any]] = {
    "openvino float32": {},
    "openvino float32, NHWC, 2d, image_info": {
        "layout": "NHWC",
        "rows": "2d",
        "image_info": True,
    },
    "openvino float32, hoisted": {"hoist": True},
    "openvino float16": {"dtype": "float16"},
    "onnx float32": {},
    "onnx float32, hoisted": {"hoist": True},
    "onnx float16": {"dtype": "float16"},
}
"""Name -> options of the exporter."""

MARK = "<!-- exports: benchmarks/check_exports.py -->"
IOU, SCORE, TIE = 0.99, 1e-3, 1e-4

Rows = Callable[[np.ndarray], np.ndarray]


def blobs(network_input: np.ndarray, inputs: dict[str, list[int]]) -> list[np.ndarray]:
    """Arrays for the inputs of a graph, by their shapes: an image blob or `image_info`."""
    arrays = []
    for shape in inputs.values():
        if len(shape) == 4:
            blob = network_input[None] if shape[3] == 3 else network_input.transpose(2, 0, 1)[None]
            arrays.append(np.ascontiguousarray(blob, dtype=np.float32))
        else:
            arrays.append(np.array([[*network_input.shape[:2], 1]], dtype=np.float32))
    return arrays


def run_openvino(path: Path, threads: int) -> Rows:
    """A function that runs an IR: network input -> rows."""
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(path, "CPU", options)
    inputs = {port.any_name: list(port.shape) for port in compiled.inputs}
    return lambda network_input: np.array(compiled(blobs(network_input, inputs))[0])


def run_onnx(path: Path, threads: int) -> Rows:
    """A function that runs an ONNX file: network input -> rows."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {port.name: port.shape for port in session.get_inputs()}

    def run(network_input: np.ndarray) -> np.ndarray:
        arrays = dict(zip(inputs, blobs(network_input, inputs), strict=True))
        return np.asarray(session.run(None, arrays)[0])

    return run


def detector(model: ModelFile, rows: Rows) -> Callable[[np.ndarray], Detections]:
    """A function from an image to its detections, with the pre- and postprocessing of ours."""
    config = model.config

    def detect(image: np.ndarray) -> Detections:
        size = (config.input_height, config.input_width)
        network_input, letterbox = to_network_input(image, *size, config.resize)
        return from_rows(
            rows(network_input).reshape(-1, 7), letterbox, config.class_names, config.category_ids
        )

    return detect


def is_tie(index: int, found: Detections, config: ModelConfig) -> bool:
    """Whether rounding decides if a detection is there."""
    score = found.scores[index]
    better = (found.labels == found.labels[index]) & (found.scores > score)
    overlap = iou(found.boxes[index : index + 1], found.boxes[better])[0]
    last = found.scores.min() if len(found) == config.max_detections else 0.0
    gaps = [*(overlap - config.nms_threshold), score - config.score_threshold, score - last]
    return bool(min(map(abs, gaps)) < TIE)


def compare(
    ours: list[Detections], theirs: list[Detections], config: ModelConfig
) -> dict[str, Any]:
    """Detections of the same photographs, each pair by the best IoU of its class."""
    total = sum(map(len, ours))
    found = {
        "ours": total,
        "theirs": sum(map(len, theirs)),
        "same": 0,
        "ties": 0,
        "others": 0,
        "least_iou": 1.0,
        "largest_score_difference": 0.0,
    }
    for a, b in zip(ours, theirs, strict=True):
        overlap = iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None, :])
        # Of boxes that overlap alike, the one with the score.
        apart = abs(a.scores[:, None] - b.scores[None, :])
        free = np.ones(len(b), dtype=bool)
        lonely = []
        for i in range(len(a)):
            fit = np.flatnonzero(free & (overlap[i] > IOU) & (apart[i] < SCORE))
            if not len(fit):
                lonely.append(is_tie(i, a, config))
            else:
                best = fit[np.lexsort((apart[i][fit], -overlap[i][fit]))[0]]
                free[best] = False
                found["same"] += 1
                found["least_iou"] = min(found["least_iou"], float(overlap[i, best]))
                found["largest_score_difference"] = max(
                    found["largest_score_difference"], float(apart[i, best])
                )
        lonely += [is_tie(int(i), b, config) for i in np.flatnonzero(free)]
        found["ties"] += sum(lonely)
        found["others"] += len(lonely) - sum(lonely)
    return found


def write(model: ModelFile, name: str, folder: Path) -> Path:
    """Export a key of `FORMS`."""
    stem = name.replace(" ", "_").replace(",", "")
    if name.startswith("openvino"):
        path = folder / f"{stem}.xml"
        save_openvino(path, model.config, model.tensors, **FORMS[name])
    else:
        path = folder / f"{stem}.onnx"
        save_onnx(path, model.config, model.tensors, **FORMS[name])
    return path


def round_trip(model: ModelFile, path: Path) -> dict[str, Any]:
    """What our importer reads from an IR, compared with the model."""
    back = load_foreign(path)
    report = sparsity_report(back.config, back.tensors)
    return {
        "parameters": report.parameters,
        "zeros": report.zeros,
        "same_configuration": back.config == model.config,
        "same_tensors": all(np.array_equal(back.tensors[k], v) for k, v in model.tensors.items()),
    }


def table(content: dict[str, Any]) -> str:
    """The Markdown table of a result, and the conditions."""
    lines = [
        "| Form | Same | Ties | Others | Largest difference of a score | AP | Read back |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in content["results"].items():
        back = r.get("read_back")
        equal = back and back["same_configuration"] and back["same_tensors"]
        read = (
            ""
            if back is None
            else f"{'the same' if equal else 'NOT the same'}, {back['zeros']:,} zeros"
        )
        lines.append(
            f"| {name} | {r['same']:,} of {r['ours']:,} | {r['ties']} | {r['others']:,} | "
            f"{r['largest_score_difference']:.1g} | {r['ap']:.5f} ({r['ap_difference']:+.5f}) | "
            f"{read} |"
        )
    versions = content["machine"]["versions"]
    lines += [
        "",
        f"`{content['model']}`: {content['photographs']} images compared detection by detection, "
        f"AP of {content['scored']} images, {content['ap']:.5f} by the engine; "
        f"{content['parameters']:,} parameters, {content['zeros']:,} of them zero; OpenVINO "
        f"{versions['openvino']}, ONNX Runtime {versions['onnxruntime']}. Same: class, IoU over "
        f"{content['limits']['iou']}, score within {content['limits']['score']}. Ties: rounding "
        "decides whether they exist, because a score or an IoU is at the threshold.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument(
        "--compared", type=int, default=50, help="images compared detection by detection"
    )
    parser.add_argument("--limit", type=int, help="images for the AP; default: all")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--ir", action="append", default=[], metavar="NAME=FILE.xml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="result file; an older one is replaced")
    parser.add_argument(
        "--document",
        type=Path,
        metavar="RESULT.json",
        help="only put the table of that result into docs/interchange.md",
    )
    arguments = parser.parse_args(argv)
    if arguments.document:
        content = json.loads(arguments.document.read_text())
        insert(machine.ROOT / "docs" / "interchange.md", MARK, table(content))
        return 0
    if not (arguments.annotations and arguments.images):
        parser.error("--annotations and --images are needed")
    model = sparsedet.load_model(arguments.model or embedded_model())
    dataset = load_coco(arguments.annotations, arguments.images, model.config.class_names)
    report = sparsity_report(model.config, model.tensors)
    conditions = machine.describe("", arguments.threads)
    engine = Engine(model.config, model.tensors, threads=arguments.threads)
    scored = min(arguments.limit or len(dataset.images), len(dataset.images))
    compared = min(arguments.compared, scored)

    def measure(rows: Rows) -> tuple[list[Detections], float]:
        """Detections of the first images, AP of all."""
        detect = detector(model, rows)
        kept: list[Detections] = []

        def keep(image: np.ndarray) -> Detections:
            kept.append(detect(image))
            return kept[-1]

        scores, _ = evaluate(keep, dataset, limit=scored)
        return kept[:compared], scores.stats["AP"]

    ours, ap = measure(engine.run)
    print(f"{compared} images, {sum(map(len, ours))} detections; AP {ap:.4f}", flush=True)
    results: dict[str, Any] = {}
    content = {
        "machine": conditions,
        "model": model.config.name,
        "photographs": compared,
        "scored": scored,
        "ap": ap,
        "parameters": report.parameters,
        "zeros": report.zeros,
        "limits": {"iou": IOU, "score": SCORE, "tie": TIE},
        "results": results,
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: write(model, name, Path(folder)) for name in arguments.forms}
        paths |= {name: Path(file) for name, file in (text.split("=", 1) for text in arguments.ir)}
        for name, path in paths.items():
            run = run_openvino if path.suffix == ".xml" else run_onnx
            theirs, score = measure(run(path, arguments.threads))
            result = {
                **compare(ours, theirs, model.config),
                "ap": score,
                "ap_difference": score - ap,
            }
            if path.suffix == ".xml" and name in FORMS:
                result["read_back"] = round_trip(model, path)
            results[name] = result
            equal = not result["others"] and abs(score - ap) < 5e-4
            failed |= "float32" in name and not equal
            print(f"{name:40} {result}", flush=True)
            if arguments.json:  # after each, because a run takes minutes
                machine.save(arguments.json, content)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
