"""AP and time of trained detectors in ONNX files, pruned without labels, with and without tuning.

    python benchmarks/bench_trained.py yolox_nano_416.onnx picodet_s_416.onnx \\
      --annotations VAL.json --images VAL --photographs TRAIN --work FOLDER --json FILE
    python benchmarks/bench_trained.py --times --images VAL --work FOLDER --json FILE

Each file is pruned to each of --sparsities by reconstruction and then tuned on its own dense
outputs, both on photographs of --photographs, of which none may be among --images. Every network is
scored on --images; the difference to the dense one has a paired bootstrap interval over them.

--times is a step of its own, for a quiet machine: it times the dense, pruned and tuned networks of
--json and OpenVINO (the dense network, float32) in turns, network alone, and adds the milliseconds
to the file.

Everything is kept in --work: a run that was interrupted continues, a pruning and a tuning from
their last checkpoint. Prints the table; --json FILE is written after each row, and --document FILE
has the table between its mark and the next end mark.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
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


def pruned_file(dense: Path, sparsity: float, arguments: argparse.Namespace) -> Path:
    settings = OneShotConfig(
        sparsity=sparsity, pattern=arguments.pattern, damping=arguments.damping
    )
    parts = (sha256_of(dense), str(settings), str(arguments.calibration_images))
    folder: Path = arguments.work / f"{dense.stem[:12]}-{sparsity:g}-{digest(*parts)}"
    if not (folder / "report.png").exists():  # the last file of a run
        print(f"pruning {dense.name} to {sparsity:g}", flush=True)
        report = prune_files(
            dense,
            arguments.photographs,
            folder,
            settings,
            calibration_images=arguments.calibration_images,
            resume=True,
        )
        if report is None:
            raise SystemExit("stopped; the same command continues")
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
    if not (folder / "report.json").exists():  # the last file of a run
        print(f"tuning {pruned.parent.name}", flush=True)
        report = tune_files(
            load_model(pruned),
            load_model(dense),
            arguments.photographs,
            folder,
            settings,
            names=(pruned, dense),
            resume=True,
        )
        if report is None:
            raise SystemExit("stopped; the same command continues")
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
        "kept": str(path.relative_to(arguments.work)),
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


def add_times(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Time the networks of a result in turns, and add the milliseconds to its rows."""
    for network in result["networks"]:
        rows = network["rows"]
        paths = [arguments.work / entry["kept"] for entry in rows]
        for path, entry in zip(paths, rows, strict=True):
            if sha256_of(path) != entry["sha256"]:
                raise SystemExit(f"{path} is not the network of {arguments.json}")
        *times, openvino = milliseconds(paths, arguments.images, arguments.threads)
        for entry, value in zip(rows, times, strict=True):
            entry["milliseconds"] = value
        rows[0]["openvino_milliseconds"] = openvino
    result["timed"] = conditions(arguments)


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    machine = describe("", arguments.threads)
    machine["command"] = "python benchmarks/bench_trained.py ..."  # without local paths
    return machine


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows, network by network; written as they are made."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    scored = {path.name for path in find_images(arguments.images)}
    both = [path.name for path in find_images(arguments.photographs) if path.name in scored]
    if both:
        raise SystemExit(f"{both[0]} is among --photographs and --images")
    result: dict[str, Any] = {
        "machine": conditions(arguments),
        "calibration_photographs": arguments.calibration_images,
        "damping": arguments.damping,
        "tune": {"steps": arguments.tune_steps, "batch": arguments.tune_batch},
        "resamples": arguments.resamples,
        "networks": [],
    }
    for source in arguments.files:
        dense = dense_file(source, arguments.work)
        names = load_model(dense).config.class_names
        dataset = load_coco(arguments.annotations, arguments.images, names)
        rows: list[dict[str, Any]] = []
        network = {"file": source.name, "rows": rows, "images": len(dataset.images)}
        result["networks"].append(network)
        for path, title in networks_of(dense, arguments):
            entry = row(path, title, dense, dataset, arguments)
            rows.append(entry)
            zeros = f"zeros {100 * entry['sparsity']:.1f} %"
            print(f"{source.stem} {title}: {zeros}, AP {entry['ap']:.4f}", flush=True)
            if arguments.json:
                save(arguments.json, result)
    return result


def networks_of(dense: Path, arguments: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """The networks of a file with their titles, made as they are asked for."""
    yield dense, "dense"
    tuned = arguments.sparsities if arguments.tuned is None else arguments.tuned
    for sparsity in arguments.sparsities:
        pruned = pruned_file(dense, sparsity, arguments)
        yield pruned, "pruned"
        if arguments.tune_steps and sparsity in tuned:
            yield tuned_file(pruned, dense, arguments), "pruned, then tuned"


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
    machine, tune = result.get("timed", result["machine"]), result["tune"]
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
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files of detectors")
    parser.add_argument("--annotations", type=Path, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--photographs", type=Path, help="folder of other images")
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
    parser.add_argument("--times", action="store_true", help="add milliseconds to --json")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_trained")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--document", type=Path, help="document with the mark of this table")
    arguments = parser.parse_args(argv)
    if arguments.times:
        if not arguments.json:
            parser.error("--times needs --json")
        result = json.loads(arguments.json.read_text())
        add_times(result, arguments)
        save(arguments.json, result)
    else:
        if not (arguments.files and arguments.annotations and arguments.photographs):
            parser.error("files, --annotations and --photographs are needed")
        result = measure(arguments)
    text = table(result)
    if arguments.document:
        insert(arguments.document, MARK, text)
    print(text)


if __name__ == "__main__":
    main()
