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
from lib import records
from lib.documents import insert

import sparsedet
from sparsedet.backends import load_graph
from sparsedet.detections import Detections, from_rows
from sparsedet.detector import embedded_model
from sparsedet.engine import Engine
from sparsedet.evaluation import evaluate
from sparsedet.evaluation.agreement import (
    EXPORT_IOU,
    EXPORT_SCORE,
    EXPORT_TIE,
    compare_exports,
)
from sparsedet.evaluation.coco import load_coco
from sparsedet.exporters.onnx import save_onnx
from sparsedet.exporters.openvino import save_openvino
from sparsedet.images.letterbox import prepare
from sparsedet.importers import load_foreign
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

Rows = Callable[[np.ndarray], np.ndarray]


def run_graph(path: Path, threads: int) -> Rows:
    """A function that runs an exported graph in its runtime: network input -> rows."""
    name = "openvino" if path.suffix == ".xml" else "onnxruntime"
    return load_graph(name, path, threads=threads).run


def detector(model: ModelFile, rows: Rows) -> Callable[[np.ndarray], Detections]:
    """A function from an image to its detections, with the pre- and postprocessing of ours."""
    config = model.config

    def detect(image: np.ndarray) -> Detections:
        network_input, letterbox = prepare(image, config)
        return from_rows(
            rows(network_input).reshape(-1, 7), letterbox, config.class_names, config.category_ids
        )

    return detect


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
    parser.add_argument("--model", type=Path, help="default: `r50half-c4`")
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
        insert(records.ROOT / "docs" / "interchange.md", MARK, table(content))
        return 0
    if not (arguments.annotations and arguments.images):
        parser.error("--annotations and --images are needed")
    model = sparsedet.load_model(arguments.model or embedded_model("r50half-c4"))
    dataset = load_coco(arguments.annotations, arguments.images, model.config.class_names)
    report = sparsity_report(model.config, model.tensors)
    conditions = records.describe("", arguments.threads)
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
        "limits": {"iou": EXPORT_IOU, "score": EXPORT_SCORE, "tie": EXPORT_TIE},
        "results": results,
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: write(model, name, Path(folder)) for name in arguments.forms}
        paths |= {name: Path(file) for name, file in (text.split("=", 1) for text in arguments.ir)}
        for name, path in paths.items():
            theirs, score = measure(run_graph(path, arguments.threads))
            result = {
                **compare_exports(ours, theirs, model.config),
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
                records.save(arguments.json, content)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
