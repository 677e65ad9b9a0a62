"""What the commands share: one table of flags, and loading a detector.

A flag has one spelling, one metavar and one help text in all commands, because it is defined here
once. A command names the flags it takes (`add`) and gives only their defaults.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DEFAULT_MODEL, EMBEDDED, NAMES, PRECISIONS
from ..errors import UsageError
from .messages import warn

if TYPE_CHECKING:
    from ..detector import Detector

Run = Callable[[argparse.Namespace], int]
Command = Callable[..., argparse.ArgumentParser]
"""command(name, run, summary, usage=, examples=, details=) adds a command, returns its parser."""

EXPENSIVE = 10_000
"""GFLOP of an image from which on a warning says it. Source: choice; two CPUs do some 100 a second,
and the largest preset needs a tenth."""

FILE_OR_NAME = f"model file, or {' or '.join(EMBEDDED)}"
"""The help of a model that a command needs."""
MODEL_OR_NAME = f"{FILE_OR_NAME} (default: {DEFAULT_MODEL})"
"""The help of a model that a command takes by its place."""

INPUT, OUTPUT, RUNNING, MODEL = "input", "output", "running", "model"
"""Titles of the groups in a command's help."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the command line.

    Attributes:
        group: title of its group in the help.
        help: the same text in all commands.
        short: a shorter spelling as well.
        old: spellings of release 0.1, which still work and warn.
        settings: of `add_argument`.
    """

    group: str
    help: str
    short: str = ""
    old: tuple[str, ...] = ()
    settings: dict[str, Any]


def _path(group: str, help: str, metavar: str = "FILE", **more: Any) -> Flag:
    names = {key: more.pop(key) for key in ("short", "old") if key in more}
    return Flag(
        group=group, help=help, settings={"type": Path, "metavar": metavar, **more}, **names
    )


def _switch(group: str, help: str, **more: Any) -> Flag:
    return Flag(group=group, help=help, settings={"action": "store_true"}, **more)


def _value(group: str, help: str, type: Any, metavar: str, old: tuple[str, ...] = ()) -> Flag:
    return Flag(group=group, help=help, settings={"type": type, "metavar": metavar}, old=old)


def _choice(group: str, help: str, *choices: str, old: tuple[str, ...] = ()) -> Flag:
    return Flag(group=group, help=help, settings={"choices": choices}, old=old)


def output_file(name: str) -> Path:
    """The type of flags that name a file to write: a slash at the end names a folder."""
    if name.endswith(os.sep):
        raise argparse.ArgumentTypeError(f"{name} is a folder, expected the name of a file")
    return Path(name)


FLAGS: dict[str, Flag] = {
    # --- input
    "--annotations": _path(INPUT, "ground truth, COCO-format JSON"),
    "--images": _path(INPUT, "folder of images", "FOLDER"),
    "--no-compare": _switch(OUTPUT, "do not compare the result with the dense network"),
    "--val-images": _path(
        INPUT, "folder of the images that --annotations names (default: --images)", "FOLDER"
    ),
    "--limit": _value(INPUT, "use only the first N images", int, "N"),
    "--top": _value(OUTPUT, "at most the N best results of an image", int, "N"),
    "--bad-images": _choice(
        INPUT,
        "an image that cannot be read: stop, skip it, or keep what of it can be decoded",
        "stop",
        "skip",
        "keep",
    ),
    "--calibration-images": _value(
        INPUT, "number of images to calibrate on", int, "N", ("--calibration-photos", "--photos")
    ),
    "--resize": Flag(
        group=INPUT,
        help="letterbox keeps the aspect ratio, stretch fills the network input (default: the "
        "model's)",
        settings={"choices": ("letterbox", "stretch"), "type": lambda v: _renamed_resize(v)},
    ),
    # --- output
    "--output": _path(OUTPUT, "where the result goes", "PATH", short="-o"),
    "--overwrite": _switch(OUTPUT, "replace existing files"),
    "--no-save": _switch(OUTPUT, "do not write annotated images", old=("--no-picture",)),
    "--quality": _value(OUTPUT, "quality of JPEG, WebP and AVIF, 1 to 100", int, "Q"),
    "--format": _choice(OUTPUT, "form of the printed detections", "table", "json", "csv"),
    "--score-threshold": Flag(
        group=OUTPUT,
        help="ignore detections with a lower score",
        short="--score",
        settings={"type": float, "metavar": "S", "dest": "score_threshold"},
    ),
    "--classes": _value(
        OUTPUT,
        "only these classes, as person,car",
        lambda text: [name.strip() for name in text.split(",") if name.strip()],
        "NAMES",
    ),
    "--json": _path(OUTPUT, "write the figures to a JSON file", type=output_file),
    "--results": _path(OUTPUT, "write the detections to a COCO results file", type=output_file),
    "--report": _path(
        OUTPUT, "write an HTML page with curves, confusions and images", type=output_file
    ),
    "--calibrated": _path(
        OUTPUT, "write the model with scores calibrated on these images", type=output_file
    ),
    "--dtype": _choice(OUTPUT, "type of the stored weights", "float32", "float16"),
    "--verbose": _switch(OUTPUT, "print every detail", short="-v"),
    "--quiet": _switch(OUTPUT, "print errors alone", short="-q"),
    "--resume": _switch(OUTPUT, "go on with a run that was stopped"),
    # --- model
    "--model": _path(MODEL, MODEL_OR_NAME),
    "--preset": _value(
        MODEL, "model configuration: r101-c4, r50half-c4, r50half-fpn, ...", str, "NAME"
    ),
    "--init": _path(
        MODEL,
        "weights to start from: run folder, checkpoint, model file, detector of another project "
        "(see convert), or a ResNet classifier",
        "PATH",
    ),
    "--teacher": _path(MODEL, "dense run folder or model file to learn from as well", "PATH"),
    "--config": _path(
        MODEL,
        'the config.yaml of a Detectron2 run, or JSON of configuration fields, as {"class_names": '
        "[...]}; may be given twice",
    ),
    "--shape": _value(
        MODEL, "ONNX: shape of the input, where the file leaves it open", str, "1x3xHxW"
    ),
    "--max-detections": _value(
        MODEL, "detections of an image, at most (default: the model's)", int, "N"
    ),
    "--rois": _value(MODEL, "RoIs per image (default: the model's)", int, "N"),
    # --- running
    "--backend": _choice(RUNNING, "what runs the network", *NAMES),
    "--threads": _value(RUNNING, "CPU threads (default: the CPUs of this process)", int, "N"),
    "--isa": _value(RUNNING, "instruction set (default: the best of this CPU)", str, "NAME"),
    "--precision": _choice(
        RUNNING,
        "a format (bf16 needs a CPU with bfloat16 and changes scores slightly; int8 needs a file "
        "of quantize) or a promise: full (float32's accuracy, the default), close (bf16 too where "
        "it is faster here; auto is the same), fastest (int8 too)",
        *PRECISIONS,
    ),
    "--streams": _value(RUNNING, "images at once; they share the threads", int, "N"),
    "--tuning": _path(RUNNING, "tuning file of info --autotune (default: a cost model)"),
    "--cache": _switch(
        RUNNING, "keep packed weights in the cache folder, so that the next start is faster"
    ),
}
"""The flags that several commands share, or that are named after a thing of the whole program."""


class OldSpelling(argparse.Action):
    """A flag by its name of release 0.1: warns, then does what the new one does."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, *, new: str, **settings: Any
    ) -> None:
        settings |= {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        super().__init__(option_strings, dest, **settings)
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        warn([f"{option_string} is now {self.new}"])
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class OldSwitch(OldSpelling):
    """A switch of release 0.1 that is now one choice of a flag."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, value: str, **settings: Any):
        super().__init__(option_strings, dest, nargs=0, **settings)
        self.value = value

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        warn([f"{option_string} is now {self.new}"])
        setattr(namespace, self.dest, self.value)


def add(parser: argparse.ArgumentParser, *names: str, **settings: Any) -> None:
    """Add flags of `FLAGS` to a command.

    Args:
        names: keys of `FLAGS`.
        settings: of all of them, as `required=True` or `default=...`.
    """
    for name in names:
        flag = FLAGS[name]
        target = group(parser, flag.group)
        spellings = [flag.short, name] if flag.short else [name]
        target.add_argument(*spellings, help=flag.help, **{**flag.settings, **settings})
        for old in flag.old:
            add_old(parser, old, name, **flag.settings)


def add_bad_images(parser: argparse.ArgumentParser, default: str = "stop") -> None:
    """`--bad-images`, and its old spelling."""
    add(parser, "--bad-images", default=default)
    parser.add_argument(
        "--skip-bad", action=OldSwitch, dest="bad_images", new="--bad-images skip", value="skip"
    )


def add_old(parser: argparse.ArgumentParser, old: str, new: str, **settings: Any) -> None:
    """Take a flag by its name of release 0.1 as well."""
    if settings.pop("action", "") == "store_true":
        settings["nargs"] = 0
    dest = new.removeprefix("--").replace("-", "_")
    parser.add_argument(old, action=OldSpelling, dest=dest, new=new, **settings)


def group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """The group of that title in a command's help, made when first asked for."""
    for existing in parser._action_groups:
        if existing.title == title:
            return existing
    return parser.add_argument_group(title)


def settings_of(arguments: argparse.Namespace, prefix: str) -> dict[str, Any]:
    """What was given of the flags whose destination is PREFIX.NAME: NAME -> value."""
    start = f"{prefix}."
    given = vars(arguments).items()
    return {key.removeprefix(start): value for key, value in given if key.startswith(start)}


def _renamed_resize(value: str) -> str:
    if value == "fit":
        warn(["--resize fit is now --resize letterbox"])
        return "letterbox"
    return value


def add_running(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """The flags that `load_detector` reads; without `model`, the command names its own models."""
    if model:
        add(parser, "--model")
    add(parser, "--backend", default="native")
    add(parser, "--threads")
    add(parser, "--isa", default="")
    add(parser, "--precision", default="full")
    add(parser, "--tuning")
    add_old(parser, "--plan", "--tuning", type=Path, metavar="FILE")


def load_detector(arguments: argparse.Namespace, **different: Any) -> Detector:
    """The detector that the flags of `add_running` (and `--resize`, `--cache`) ask for.

    Args:
        different: settings of `Detector.load` that replace those of the flags; `path` is the model.

    Raises:
        InputError: as `Detector.load`.
    """
    from ..detector import Detector
    from ..engine import choose_isa

    if arguments.isa:
        try:
            choose_isa(arguments.isa)
        except ValueError as error:
            raise UsageError(str(error)) from None
    settings = detector_settings(arguments, **different)
    detector = Detector.load(settings.pop("path"), **settings)
    if detector.gflop > EXPENSIVE:
        warn([f"an image needs {detector.gflop:,.0f} GFLOP, which takes minutes on most machines"])
    return detector


def detector_settings(arguments: argparse.Namespace, **different: Any) -> dict[str, Any]:
    """The arguments of `Detector.load` by `load_detector`; `path` is the model."""
    return {
        "path": getattr(arguments, "model", None),
        "threads": arguments.threads,
        "isa": arguments.isa,
        "precision": arguments.precision,
        "tuning": arguments.tuning,
        "backend": arguments.backend,
        "resize": getattr(arguments, "resize", None),
        "cache": getattr(arguments, "cache", False),
        **different,
    }


def check_score_threshold(arguments: argparse.Namespace) -> None:
    """Raises InputError unless --score-threshold is 0..1."""
    if not 0 <= arguments.score_threshold <= 1:
        raise UsageError(f"--score-threshold is {arguments.score_threshold}, expected 0..1")


def check_outputs(overwrite: bool, *paths: Path | None) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        InputError: as `files.check_output`, or two outputs have one name.
    """
    from ..files import check_output, is_stream

    given = [path for path in paths if path is not None]
    for path in given:
        check_output(path, overwrite=overwrite)
    files = [os.path.realpath(path) for path in given if not is_stream(path)]
    if len(set(files)) < len(files):
        raise UsageError(f"{given[0]}: two outputs cannot have one name")
