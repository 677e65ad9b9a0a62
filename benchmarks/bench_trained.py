"""AP and time of trained detectors in ONNX files, pruned without labels, with and without tuning.

    python benchmarks/bench_trained.py yolox_nano_416.onnx picodet_s_416.onnx \\
      --annotations VAL.json --images VAL --photographs TRAIN --work FOLDER

Each file is pruned to each of --sparsities by reconstruction and then tuned on its own dense
outputs, both on photographs of --photographs, of which none may be among --images. Every network is
scored on --images; the difference to the dense one has a paired bootstrap interval over them. At
the end dense, pruned and tuned networks and OpenVINO (the dense network, float32) are timed in
turns, network alone.

Everything is kept in --work: a run that was interrupted continues, and a tuning from its last
checkpoint. Prints the table; --json FILE and --document FILE keep it, the latter between its mark
and the next end mark.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_pruning import detections, digest
from lib.documents import insert
from lib.records import ROOT, describe, save

import sparsedet
from sparsedet.backends import build_backend
from sparsedet.evaluation import score_results
from sparsedet.evaluation.bootstrap import paired_bootstrap
from sparsedet.evaluation.coco import CocoDataset, load_coco
from sparsedet.files import sha256_of
from sparsedet.images.letterbox import prepare
from sparsedet.importers import load_trained
from sparsedet.importers.onnx.detectors import Preprocessing
from sparsedet.model.file import load_model, save_model
from sparsedet.model.sparsity import sparsity_report
from sparsedet.pruning.one_shot import OneShotConfig
from sparsedet.pruning.run import prune_files
from sparsedet.sources.folder import find_images
from sparsedet.training.tune_config import TuneConfig
from sparsedet.training.tune_run import tune_files

MARK = "<!-- trained table: benchmarks/bench_trained.py -->"
STATED = Preprocessing(score_threshold=0.02, max_detections=100)
TIMED_IMAGES, ROUNDS = 10, 4


def dense_file(source: Path, work: Path) -> Path:
    """The detector of an ONNX file as a model file."""
    path: Path = work / f"{source.stem}-{digest(sha256_of(source))}.safetensors"
    if not path.exists():
        model = load_trained(source, stated=STATED)[0]
        save_model(path, model.config, model.tensors, model.provenance, dtype="float32")
    return path


def finished(folder: Path, last: str) -> bool:
    """Whether a run has written its last file; what an unfinished pruning left is deleted."""
    if (folder / last).exists():
        return True
    if last == "report.png":
        for path in folder.glob("*"):
            path.unlink()
    return False


def pruned_file(dense: Path, sparsity: float, arguments: argparse.Namespace) -> Path:
    settings = OneShotConfig(
        sparsity=sparsity, pattern=arguments.pattern, damping=arguments.damping
    )
    parts = (sha256_of(dense), str(settings), str(arguments.calibration_images))
    folder: Path = arguments.work / f"{dense.stem[:12]}-{sparsity:g}-{digest(*parts)}"
    if not finished(folder, "report.png"):
        print(f"pruning {dense.name} to {sparsity:g}", flush=True)
        prune_files(
            dense,
            arguments.photographs,
            folder,
            settings,
            calibration_images=arguments.calibration_images,
        )
    return folder / "model.safetensors"


def tuned_file(pruned: Path, dense: Path, arguments: argparse.Namespace) -> Path:
    settings = TuneConfig(
        steps=arguments.tune_steps,
        batch=arguments.tune_batch,
        step_size=arguments.tune_rate,
        checkpoint_every=10,
    )
    name = digest(sha256_of(pruned), str(settings))
    folder = pruned.parent.with_name(f"{pruned.parent.name[:17]}-tuned-{name}")
    if not finished(folder, "report.json"):
        print(f"tuning {pruned.parent.name}", flush=True)
        tune_files(
            load_model(pruned),
            load_model(dense),
            arguments.photographs,
            folder,
            settings,
            names=(pruned, dense),
            resume=True,
        )
    return folder / "model.safetensors"


def row(
    path: Path, title: str, dense: Path, dataset: CocoDataset, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The figures of a network."""
    found = detections(path, dataset, arguments.threads, arguments.work)
    stats = score_results(dataset.path, found, class_names=dataset.class_names).stats
    model = load_model(path)
    result = {
        "title": title,
        "sha256": sha256_of(path),
        "megabytes": path.stat().st_size / 1e6,
        "sparsity": sparsity_report(model.config, model.tensors).sparsity,
        "ap": stats["AP"],
        "ap50": stats["AP50"],
    }
    if path != dense:
        base = detections(dense, dataset, arguments.threads, arguments.work)
        result["difference"] = asdict(
            paired_bootstrap(dataset, base, found, resamples=arguments.resamples)["AP"]
        )
    return result


def milliseconds(paths: list[Path], images: Path, threads: int) -> list[float]:
    """Median time of an image of each network, interleaved; the last is OpenVINO with the first."""
    runs = [build_backend("native", load_model(path), threads=threads).run for path in paths]
    runs.append(build_backend("openvino", load_model(paths[0]), threads=threads).run)
    config = load_model(paths[0]).config
    chosen = find_images(images)[:TIMED_IMAGES]
    inputs = [prepare(sparsedet.read_image(path), config)[0] for path in chosen]
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(-1, ROUNDS):
        for network_input in inputs if number >= 0 else inputs[:1]:
            for run, times in zip(runs, seconds, strict=True):
                start = time.perf_counter()
                run(network_input)
                if number >= 0:
                    times.append(time.perf_counter() - start)
    return [1000 * float(np.median(times)) for times in seconds]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows, network by network."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    scored = {path.name for path in find_images(arguments.images)}
    both = [path.name for path in find_images(arguments.photographs) if path.name in scored]
    if both:
        raise SystemExit(f"{both[0]} is among --photographs and --images")
    networks = []
    for source in arguments.files:
        dense = dense_file(source, arguments.work)
        names = load_model(dense).config.class_names
        dataset = load_coco(arguments.annotations, arguments.images, names)
        paths, rows = [dense], [row(dense, "dense", dense, dataset, arguments)]
        show(source.stem, rows[-1])
        for sparsity in arguments.sparsities:
            pruned = pruned_file(dense, sparsity, arguments)
            made = [(pruned, "pruned")]
            if arguments.tune_steps and sparsity in (arguments.tuned or arguments.sparsities):
                made.append((tuned_file(pruned, dense, arguments), "pruned, then tuned"))
            for path, title in made:
                paths.append(path)
                rows.append(row(path, title, dense, dataset, arguments))
                show(source.stem, rows[-1])
        if not arguments.no_times:
            *times, openvino = milliseconds(paths, arguments.images, arguments.threads)
            for entry, value in zip(rows, times, strict=True):
                entry["milliseconds"] = value
            rows[0]["openvino_milliseconds"] = openvino
        networks.append({"file": source.name, "rows": rows, "images": len(dataset.images)})
    machine = describe("", arguments.threads)
    machine["command"] = "python benchmarks/bench_trained.py ..."  # without local paths
    return {
        "machine": machine,
        "calibration_photographs": arguments.calibration_images,
        "damping": arguments.damping,
        "tune": {"steps": arguments.tune_steps, "batch": arguments.tune_batch},
        "resamples": arguments.resamples,
        "networks": networks,
    }


def show(name: str, entry: dict[str, Any]) -> None:
    print(
        f"{name} {entry['title']}: zeros {100 * entry['sparsity']:.1f} %, AP {entry['ap']:.4f}",
        flush=True,
    )


def table(result: dict[str, Any]) -> str:
    """The Markdown table, and the conditions."""
    lines = [
        "| Network | Zeros of all parameters | AP | AP50 | Of dense | Difference in AP | MB | ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in result["networks"]:
        base = network["rows"][0]
        for entry in network["rows"]:
            cells = [
                f"`{network['file']}`, {entry['title']}",
                f"{100 * entry['sparsity']:.1f} %",
                f"{entry['ap']:.4f}",
                f"{entry['ap50']:.4f}",
                "",
                "",
                f"{entry['megabytes']:.1f}",
                f"{entry['milliseconds']:.1f}" if "milliseconds" in entry else "",
            ]
            if change := entry.get("difference"):
                cells[4] = f"{100 * entry['ap'] / base['ap']:.1f} %"
                cells[5] = (
                    f"{change['difference']:+.4f} ({change['low']:+.4f} .. {change['high']:+.4f})"
                )
            lines.append("| " + " | ".join(cells) + " |")
        if "openvino_milliseconds" in base:
            time_of = f"{base['openvino_milliseconds']:.1f}"
            lines.append(f"| `{network['file']}`, dense, OpenVINO | | | | | | | {time_of} |")
    machine, tune = result["machine"], result["tune"]
    images = result["networks"][0]["images"]
    lines += [
        "",
        f"{images} images, not used for pruning, tuning or any choice; engine {machine['isa']}, "
        f"float32, {machine['threads']} threads. In brackets: 95 % interval of the paired "
        f"bootstrap over images ({result['resamples']} resamples). Pruned on "
        f"{result['calibration_photographs']} photographs (damping {result['damping']:g}), "
        f"tuned for {tune['steps']} steps of "
        f"{tune['batch']}; both without labels.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="ONNX files of detectors")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of other images")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--tuned", type=float, nargs="*", help="those that are tuned (all)")
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--damping", type=float, default=1.0, help="as of prune --damping")
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--tune-steps", type=int, default=500, help="0: no tuning")
    parser.add_argument("--tune-batch", type=int, default=8)
    parser.add_argument("--tune-rate", type=float, default=TuneConfig().step_size)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_trained")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--document", type=Path, help="document with the mark of this table")
    arguments = parser.parse_args(argv)
    result = measure(arguments)
    text = table(result)
    if arguments.json:
        save(arguments.json, result)
    if arguments.document:
        insert(arguments.document, MARK, text)
    print(text)


if __name__ == "__main__":
    main()
