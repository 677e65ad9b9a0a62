"""The command line: one thin function a capability. Imports lazily; errors are one line.

Exit codes: 0 done, 2 an input could not be used (a message says which and why), 130 stopped.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from .errors import InputError

if TYPE_CHECKING:
    from .config import ModelConfig
    from .detections import Detections
    from .detector import Detector
    from .training.recipe import Recipe
    from .weights import ModelFile

SHOWN = 0.5
"""`detect` shows detections of this score and above unless told otherwise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    arguments.command_line = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `sparsedet info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:  # OSError: a full disk, a name too long
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _complain(what: object) -> None:
    """One line on stderr."""
    print("sparsedet:", " ".join(str(what).splitlines()), file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    from . import __version__

    parser = argparse.ArgumentParser(prog="sparsedet", description="Sparse Faster R-CNN on CPUs.")
    parser.add_argument("--version", action="version", version=f"sparsedet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    detect = command("detect", run_detect, "Find objects in photographs and draw them.")
    detect.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    detect.add_argument("-o", "--output", type=Path, help="annotated picture (one photograph) or "
                        "folder; default: NAME_detected.EXT beside the photograph")  # fmt: skip
    detect.add_argument("--overwrite", action="store_true", help="replace existing output files")
    detect.add_argument("--no-picture", action="store_true", help="draw nothing")
    detect.add_argument("--format", choices=("table", "json", "csv"), default="table",
                        help="of what is printed; json: one line a photograph")  # fmt: skip
    detect.add_argument("--score-threshold", type=float, default=SHOWN, metavar="S",
                        help=f"show scores of at least S (default {SHOWN})")  # fmt: skip
    detect.add_argument("--resize", choices=("fit", "stretch"), help="keep the aspect ratio or "
                        "fill the canvas (default: the model's)")  # fmt: skip
    _running_flags(detect)

    info = command("info", run_info, "Layers, parameters, sparsity and cost of a model.")
    info.add_argument("file", nargs="?", type=Path, help="default: the embedded model")
    info.add_argument("--model", metavar="PRESET", help="a preset instead of a file")
    info.add_argument("--plan", action="store_true", help="how each operation is run here: method, "
                      "expected and measured GFLOP/s")  # fmt: skip
    info.add_argument("--autotune", type=Path, metavar="FILE", help="measure all "
                      "methods of each operation, write the fastest to a plan file")  # fmt: skip
    info.add_argument("--precision", choices=("f32", "bf16", "auto"), default="f32",
                      help="of --plan")  # fmt: skip
    info.add_argument("--rois", type=int, help="regions an image (default: the model's)")

    evaluate = command("eval", run_eval, "COCO average precision of a model.")
    evaluate.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    evaluate.add_argument("--images", type=Path, required=True, help="folder of the photographs")
    evaluate.add_argument("--limit", type=int, help="only the first photographs")
    evaluate.add_argument("--json", type=Path, help="write the figures to this file")
    evaluate.add_argument("--results", type=Path, help="write COCO results to this file")
    evaluate.add_argument("--skip-bad", action="store_true",
                          help="count unreadable photographs as without detections")  # fmt: skip
    evaluate.add_argument("--overwrite", action="store_true", help="replace existing output files")
    _running_flags(evaluate)

    train = command("train", run_train, "Train a model on COCO-format data.")
    train.add_argument("--model", metavar="PRESET", help="default: that of --init, else r50half-c4")
    prune = command("prune", run_prune, "Prune a trained model, gradually while fine-tuning it or "
                    "at once.")  # fmt: skip
    prune.set_defaults(model=None)
    prune.add_argument("--method", choices=("gradual", "magnitude", "reconstruct"),
                       default="gradual", help="gradual trains and needs annotations; the others "
                       "prune at once and need photographs alone")  # fmt: skip
    prune.add_argument("--pattern", choices=("unstructured", "1x4", "2:4"), default="unstructured",
                       help="of the zeros, at once only")  # fmt: skip
    prune.add_argument("--calibration-photos", type=int, default=128, metavar="N",
                       help="photographs to prune at once by (default 128)")  # fmt: skip
    for sub in (train, prune):
        sub.add_argument("--annotations", type=Path, required=sub is train, help="COCO-format JSON")
        sub.add_argument("--images", type=Path, required=True, help="folder of the photographs")
        sub.add_argument("--init", type=Path, required=sub is prune, help="run folder, "
                         "checkpoint, model file, torchvision or open_nsfw classifier")  # fmt: skip
        sub.add_argument("--output", type=Path, required=True, help="run folder")
        sub.add_argument("--resume", action="store_true", help="continue the run in the folder")
        sub.add_argument("--threads", type=int, help="CPU threads")
        sub.add_argument("--recipe", type=Path, help="JSON file of the settings below")
        _recipe_flags(sub)
    return parser


def _running_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="model file; default: the embedded model")  # fmt: skip
    parser.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    parser.add_argument("--isa", default="", help="instruction set; default: the best of this CPU")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="of `info --plan --autotune`; "
                        "default: by a cost model")  # fmt: skip
    parser.add_argument("--precision", choices=("f32", "bf16", "auto"), default="f32",
                        help="bf16 is faster and gives other scores; auto: bf16 where the "
                        "CPU has it")  # fmt: skip


def _recipe_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `Recipe`, named after it."""
    from .training.recipe import Recipe

    group = parser.add_argument_group("recipe")
    hints = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        hint, flag = hints[field.name], "--" + field.name.replace("_", "-")
        common: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"default {field.default}",
                                  "dest": f"recipe.{field.name}"}  # fmt: skip
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif hint in (int, float):
            group.add_argument(flag, type=hint, metavar=hint.__name__.upper(), **common)
        elif get_args(hint) and get_args(hint)[-1] is Ellipsis:
            group.add_argument(flag, type=get_args(hint)[0], nargs="*", metavar="X", **common)
        else:
            group.add_argument(flag, choices=get_args(hint), **common)


# ------------------------------------------------------------------------ detect


def run_detect(arguments: argparse.Namespace) -> int:
    from .detector import Detector

    photos: list[Path] = arguments.photos
    output: Path | None = arguments.output
    if not 0 <= arguments.score_threshold <= 1:
        raise InputError(f"--score-threshold is {arguments.score_threshold}, expected 0..1")
    into_folder = output is not None and (output.is_dir() or len(photos) > 1)
    if into_folder and output is not None:
        _check_folder(output)
    detector = Detector.load(
        arguments.model, num_threads=arguments.threads, isa=arguments.isa,
        precision=arguments.precision, resize=arguments.resize, plan=arguments.plan
    )
    # What this run never writes over: its photographs and what it has written itself.
    taken = {os.path.realpath(photo) for photo in photos}
    failed = 0
    for index, photo in enumerate(photos):
        try:
            found, seconds, target = _detect_one(
                detector, photo, output, into_folder, taken, arguments
            )
        except (InputError, OSError) as error:
            _complain(error)
            failed += 1
            continue
        if arguments.format == "json":
            record = {"photo": str(photo), **json.loads(found.to_json())}
            print(json.dumps(record, ensure_ascii=False))
        elif arguments.format == "csv":
            _print_csv(photo, found, header=index == failed)
        else:
            print(_table(photo, found, seconds))
            if target is not None:
                print(f"-> {target}")
    if failed and len(photos) > 1:
        _complain(f"{failed} of {len(photos)} photographs failed")
    return 2 if failed else 0


def _detect_one(
    detector: Detector, photo: Path, output: Path | None, into_folder: bool, taken: set[str],
    arguments: argparse.Namespace,
) -> tuple[Detections, float, Path | None]:  # fmt: skip
    """Detections, seconds, and the annotated picture's path, which is added to `taken`."""
    from .preprocess import read_image

    image = read_image(photo)
    target = None
    if not arguments.no_picture:
        target = _picture_path(photo, output, into_folder, taken, arguments.overwrite)
    start = time.perf_counter()
    found = detector(image, arguments.score_threshold)
    seconds = time.perf_counter() - start
    if target is not None:
        if into_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_picture(found.draw(image), target, arguments.overwrite)
        taken.add(os.path.realpath(target))
    return found, seconds, target


def _table(photo: Path, found: Detections, seconds: float) -> str:
    lines = [f"{photo}: {len(found)} objects in {seconds * 1000:.0f} ms"]
    width = max((len(name) for name in found.names), default=0)
    for name, score, box in found:
        corners = "  ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {name:<{width}}  {score:.2f}  {corners}")
    return "\n".join(lines)


def _print_csv(photo: Path, found: Detections, header: bool) -> None:
    """`Detections.to_csv` with the photograph's name before each line."""
    first, *rows = csv.reader(found.to_csv().splitlines())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["photo", *first])
    writer.writerows([photo, *row] for row in rows)


def _picture_path(
    photo: Path, output: Path | None, into_folder: bool, taken: set[str], overwrite: bool
) -> Path:
    """Where the annotated picture goes; never a file in `taken`."""
    suffix = photo.suffix if photo.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else ".jpg"
    if output is None:
        # A picture of an earlier run stays: street_detected.jpg, street_detected-2.jpg, ...
        target = photo.with_name(f"{photo.stem}_detected{suffix}")
        number = 2
        while (target.exists() and not overwrite) or os.path.realpath(target) in taken:
            target = photo.with_name(f"{photo.stem}_detected-{number}{suffix}")
            number += 1
    else:
        target = output / f"{photo.stem}{suffix}" if into_folder else output
    if os.path.realpath(target) in taken:
        raise InputError(f"{target}: is a photograph or picture of this run, choose another output")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; choose another output or give --overwrite")
    return target


def _write_picture(picture: Any, target: Path, overwrite: bool) -> None:
    import cv2

    from .files import write_atomic

    try:
        ok, data = cv2.imencode(target.suffix or ".", picture)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(f"{target}: cannot write this kind of picture, use .jpg or .png")
    write_atomic(target, data.tobytes(), overwrite=overwrite)


def _check_folder(folder: Path) -> None:
    """Fail before the work, and leave no empty folder if the work fails."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: cannot be used as a folder ({existing} is none or read-only)")


# -------------------------------------------------------------------------- info


def run_info(arguments: argparse.Namespace) -> int:
    from .config import preset
    from .detector import embedded_model
    from .engine import choose_isa
    from .network import build_network
    from .weights import load_model, sparsity_report

    if arguments.rois is not None and arguments.rois < 1:
        raise InputError(f"--rois is {arguments.rois}, expected at least 1")
    if arguments.model and arguments.file:
        raise InputError("give a file or --model PRESET, not both")
    if arguments.model:
        config = preset(arguments.model)
        rois = arguments.rois or config.proposals
        print(_describe(config))
        network = build_network(config)
        rows = [
            (layer.name, layer.weight_shape, layer.parameters, None,
             layer.macs * (rois if layer.part == "roi" else 1), None)
            for layer in network.weighted
        ]  # fmt: skip
        print(_layer_table(rows, rois))
        print(_costs(config, rois))
        return 0
    path = arguments.file or embedded_model()
    model = load_model(path)
    try:
        isa = choose_isa()
    except ValueError as error:  # SPARSEDET_ISA
        raise InputError(str(error)) from None
    if arguments.plan or arguments.autotune:
        return _show_plan(arguments, model)
    report = sparsity_report(model.config, model.tensors, arguments.rois)
    print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB, {model.storage_dtype})")
    print(_describe(model.config))
    print(_layer_table(
        [(r.name, r.shape, r.parameters, r.sparsity, r.macs, r.sparse_macs) for r in report.layers],
        report.rois,
    ))  # fmt: skip
    print(
        f"{report.zeros:,} of {report.parameters:,} parameters are zero: "
        f"sparsity {100 * report.sparsity:.2f} % of all weights and biases, batch norm folded"
    )
    print(_costs(model.config, report.rois))
    print(
        f"After pruning {report.sparse_gflops:.2f} of {report.gflops:.2f} GFLOPs remain "
        f"({report.rois} regions)."
    )
    for key, value in model.provenance.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    print(f"instruction set here: {isa}")
    return 0


def _show_plan(arguments: argparse.Namespace, model: ModelFile) -> int:
    """`info --plan`: measured here, on noise; `--autotune` chooses by measuring first."""
    from .engine import Engine
    from .plan import autotune, measure, save_plan, table

    plan = None
    if arguments.autotune:
        plan = autotune(model.config, model.tensors, precision=arguments.precision)
        save_plan(arguments.autotune, plan)
    engine = Engine(model.config, model.tensors, precision=arguments.precision, plan=plan)
    rows = measure(engine)
    print(table(rows))
    work, busy = sum(r.gflop for r in rows), sum(r.seconds for r in rows)
    print(
        f"{engine.isa}, {engine.precision}, {engine.threads} threads: {work:.1f} GFLOP in "
        f"{busy:.3f} s, RoIAlign, pooling and NMS apart"
    )
    return 0


def _describe(config: ModelConfig) -> str:
    return (
        f"{config.name}: Faster R-CNN C4, {config.num_classes} classes, canvas "
        f"{config.canvas_width}x{config.canvas_height}, {config.proposals} proposals, "
        f"{config.max_detections} rows"
    )


def _layer_table(rows: list[tuple[Any, ...]], rois: int) -> str:
    """name, weight shape, parameters, sparsity, MACs and MACs after pruning of each layer."""
    heads = ("parameters", 13), ("sparsity", 10), ("GMACs", 10), ("pruned", 10)
    lines = [f"{'layer':<18}{'weights':>20}" + "".join(f"{text:>{width}}" for text, width in heads)]
    for name, shape, parameters, sparsity, macs, pruned in rows:
        lines.append(
            f"{name:<18}{'x'.join(map(str, shape)):>20}{parameters:>13,}"
            f"{'' if sparsity is None else f'{100 * sparsity:.1f} %':>10}{macs / 1e9:>10.3f}"
            f"{'' if pruned is None else f'{pruned / 1e9:.3f}':>10}"
        )
    lines.append(f"(GMACs of one image with {rois} regions)")
    return "\n".join(lines)


def _costs(config: ModelConfig, rois: int) -> str:
    """Parameters and GFLOPs of the configuration, the published figures beside them."""
    from .config import preset
    from .network import build_network

    network = build_network(config)
    many, one = network.flops(rois) / 1e9, network.flops(1) / 1e9
    text = (
        f"{network.parameters:,} parameters (batch norm folded)\n"
        f"{many:.2f} GFLOPs by convolutions and fully connected layers with {rois} regions, "
        f"{one:.2f} with one (2 FLOPs a multiply-add)"
    )
    if config == preset("r101-c4"):
        text += (
            "\nPublished: 52.79 M parameters; 849.91 GFLOPs (current description) and 364.21 "
            "(first one).\nBoth are this network: the first counts res5 and the predictors for "
            "300 regions, the second\nfor one; the rest, 2.4 and 1.2 GFLOPs, is element-wise "
            "work that is not counted here."
        )
    return text


# -------------------------------------------------------------------------- eval


def run_eval(arguments: argparse.Namespace) -> int:
    from .coco import load_coco
    from .detector import Detector
    from .evaluate import evaluate
    from .files import write_atomic

    for path in (arguments.json, arguments.results):
        if path is not None and path.exists() and not arguments.overwrite:
            raise InputError(f"{path}: exists already; give --overwrite or another name")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written ({path.parent} is no folder)")
    detector = Detector.load(arguments.model, num_threads=arguments.threads, isa=arguments.isa,
                             precision=arguments.precision, plan=arguments.plan)  # fmt: skip
    dataset = load_coco(arguments.annotations, arguments.images, detector.config.class_names)
    for line in dataset.warnings():
        print(f"sparsedet: warning: {line}", file=sys.stderr)
    scores, results = evaluate(
        detector, dataset, limit=arguments.limit, skip_bad=arguments.skip_bad, progress=_progress
    )
    for line in scores.warnings:
        print(f"sparsedet: warning: {line}", file=sys.stderr)
    print(scores.table())
    for path, value in ((arguments.json, scores.to_json()), (arguments.results, results)):
        if path is not None:
            write_atomic(path, json.dumps(value).encode(), overwrite=arguments.overwrite)
    return 0


def _progress(done: int, total: int) -> None:
    """A counter on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- train and prune


def run_train(arguments: argparse.Namespace) -> int:
    return _train(arguments, prune=False)


def run_prune(arguments: argparse.Namespace) -> int:
    if arguments.method != "gradual":
        return _prune_once(arguments)
    if arguments.annotations is None:
        raise InputError("--annotations is needed to prune gradually")
    if arguments.pattern != "unstructured":
        raise InputError(f"--pattern {arguments.pattern} needs --method magnitude or reconstruct")
    return _train(arguments, prune=True)


def _prune_once(arguments: argparse.Namespace) -> int:
    from .pruning.oneshot import OneShot
    from .pruning.run import prune_files
    from .training.start import set_threads

    given = {
        key.removeprefix("recipe."): value
        for key, value in vars(arguments).items()
        if key.startswith("recipe.")
    }
    for key in given:
        if key not in ("sparsity", "allocation", "exclude", "seed"):
            raise InputError(f"--{key.replace('_', '-')} is for --method gradual")
    if "exclude" in given:
        given["exclude"] = tuple(given["exclude"])
    if arguments.threads is not None:
        set_threads(arguments.threads)
    settings = OneShot(method=arguments.method, pattern=arguments.pattern, **given)

    def progress(done: int, layers: int, name: str) -> None:
        print(f"{done + 1}/{layers} {name}", flush=True)

    report = prune_files(
        arguments.init, arguments.images, arguments.output, settings,
        photographs=arguments.calibration_photos, progress=progress,
    )  # fmt: skip
    print(report.table())
    print(f"-> {arguments.output / 'model.safetensors'}")
    return 0


def _recipe(arguments: argparse.Namespace, prune: bool) -> Recipe:
    """The settings: those of the command, of the recipe file, of the flags; the last one wins."""
    from .coco import read_json
    from .training.recipe import Recipe

    values: dict[str, Any] = {}
    if arguments.recipe:
        values = read_json(arguments.recipe)
        if not isinstance(values, dict):
            raise InputError(f"{arguments.recipe}: expected a JSON object of recipe settings")
    values |= {key.removeprefix("recipe."): value for key, value in vars(arguments).items()
               if key.startswith("recipe.")}  # fmt: skip
    steps = values.get("steps", Recipe().steps)
    if prune and isinstance(steps, int):
        # Fine-tuning: zeros grow over the first two thirds, then the rest recovers.
        values = {"sparsity": 0.6, "prune_end": max(1, steps * 2 // 3), "learning_rate": 0.001,
                  "warmup_steps": min(100, steps // 10), **values}  # fmt: skip
    return Recipe.from_dict(values)


def _train(arguments: argparse.Namespace, prune: bool) -> int:
    recipe = _recipe(arguments, prune)
    try:
        from .training import run, start
    except ImportError as error:
        raise InputError(f"training needs: pip install 'sparsedet[train]' ({error})") from None
    if arguments.threads is not None:
        start.set_threads(arguments.threads)
    finished = run.train(
        recipe, arguments.annotations, arguments.images, arguments.output, init=arguments.init,
        model=arguments.model, resume=arguments.resume, command=arguments.command_line,
    )  # fmt: skip
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
