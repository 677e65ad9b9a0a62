"""AP of trained detectors in ONNX files in float32 and in int8, and int8's bits on all kernels.

    python benchmarks/check_int8.py yolox_nano_416.onnx picodet_s_416.onnx --calibrate photos \
        --images val --annotations instances_val.json

Each file is quantised on photographs of --calibrate, none of which is scored. Prints AP of both,
the difference with its 95 % interval from a paired bootstrap over images, and the share of
multiply-adds on bytes. Then every operation on bytes runs on one photograph's own values with all
instruction sets, and must give equal bits. Exit code 1 if bits differ, or AP falls by more than
0.006.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet import Detector, load_model, read_image
from sparsedet._native import available_isas, has_int8
from sparsedet.engine import Engine
from sparsedet.engine.calibrate import network_input_of, quantize_file
from sparsedet.engine.formats import plan_formats
from sparsedet.evaluation.coco import load_coco
from sparsedet.evaluation.compare import Comparison, compare
from sparsedet.importers.onnx import load_onnx_detector
from sparsedet.importers.onnx.detectors import Preprocessing
from sparsedet.model.file import ModelFile

MOST_LOST = 0.006


def quantised(path: Path, photographs: Path, count: int, output: Path) -> ModelFile:
    """The detector of an ONNX file with its ranges."""
    stated = Preprocessing(score_threshold=0.02, max_detections=100)
    imported = load_onnx_detector(path, stated=stated)
    quantize_file(
        path,
        photographs,
        output,
        calibration_images=count,
        load=lambda _: imported.as_model(),
    )
    return load_model(output)


def share_on_bytes(model: ModelFile, engine: Engine) -> float:
    """Share of multiply-adds that read bytes, 0..1."""
    graph = engine.graph
    planned = plan_formats(graph, "int8", model.clipping_thresholds or {})
    types = {p.operation.name: p.type for p in planned}
    on_bytes, cells = 0, graph.cells(0)
    for p in planned:
        layers = [] if p.conversion else getattr(p.operation.attributes, "layers", [])
        if layers and types.get(p.operation.inputs[0]) == "int8":
            on_bytes += sum(graph.layer[name].weights * cells[name] for name in layers)
    return on_bytes / graph.macs(0)


def equal_bits(model: ModelFile, photograph: Path) -> int:
    """Operations on bytes whose results are equal on all instruction sets.

    Raises:
        SystemExit: one is not.
    """
    options: dict[str, Any] = {"precision": "int8", "threads": 2}
    options["clipping_thresholds"] = model.clipping_thresholds
    isas = [isa for isa in available_isas() if has_int8(isa)]
    engines = [Engine(model.config, model.tensors, isa=isa, **options) for isa in isas]
    graph = engines[0].graph
    maps = [n for n, s in graph.shapes.items() if s.domain == "map"]
    values = engines[0].values(network_input_of(read_image(photograph), model.config), maps)
    checked = 0
    for planned in plan_formats(graph, "int8", model.clipping_thresholds or {}):
        name = planned.operation.name
        if planned.type != "int8" or planned.conversion or name not in graph.by_name:
            continue
        given = [values[source] for source in graph.by_name[name].inputs]
        first, *others = [engine.native.run_operation(name, given) for engine in engines]
        if not all(np.array_equal(first, other) for other in others):
            raise SystemExit(f"{name}: the bits of {', '.join(isas)} differ")
        checked += 1
    return checked


def described(comparison: Comparison) -> dict[str, Any]:
    change = comparison.differences["AP"]
    return {
        "f32": comparison.a.scores.stats["AP"],
        "int8": comparison.b.scores.stats["AP"],
        "difference": change.difference,
        "low": change.low,
        "high": change.high,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True, help="photographs for the ranges")
    parser.add_argument("--calibration-images", type=int, default=16)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    failed, results = False, {}
    for path in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "int8.safetensors"
            model = quantised(path, arguments.calibrate, arguments.calibration_images, output)
            exact, fast = Detector.load(output), Detector.load(output, precision="int8")
            names = model.config.class_names
            dataset = load_coco(arguments.annotations, arguments.images, names)
            found = described(compare(exact, fast, dataset, names=("f32", "int8")))
            engine = fast.engine
            assert isinstance(engine, Engine)
            found["share_on_bytes"] = share_on_bytes(model, engine)
            found["conversions"] = len(engine.conversions)
            photograph = dataset.image_path(dataset.images[0])
            found["equal_operations"] = equal_bits(model, photograph)
        failed |= found["difference"] < -MOST_LOST
        results[path.name] = found
        print(
            f"{path.name}: AP {found['f32']:.4f} in float32, {found['int8']:.4f} in int8; "
            f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}); "
            f"{found['share_on_bytes']:.0%} of the multiply-adds on bytes, "
            f"{found['conversions']} conversions; {found['equal_operations']} operations on bytes "
            "give equal bits on all instruction sets",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
