"""`sparsedet convert` of ONNX files, and what is stated of their images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import check_outputs

if TYPE_CHECKING:
    from ..model.file import AnyFile

ONNX_FLAGS: dict[str, dict[str, Any]] = {
    "--raw": {"action": "store_true", "help": "the outputs as they are, also of a detector"},
    "--order": {"choices": ("rgb", "bgr"), "help": "order of the colours that the network reads"},
    "--mean": {"metavar": "A,B,C", "help": "mean of the pixels, 0..255, in that order"},
    "--std": {"metavar": "A,B,C", "help": "what they are divided by, as 255,255,255"},
    "--image-resize": {
        "choices": ("letterbox", "centred-letterbox", "stretch", "crop"),
        "help": "how an image becomes the network input; crop is for classifiers",
    },
    "--border": {"type": int, "metavar": "V", "help": "pixels beside the image, 0..255"},
    "--anchors": {
        "metavar": "WxH,...",
        "help": "of YOLOv5's outputs before decoding, pixels, the finest level first, as "
        "10x13,16x30,33x23,...",
    },
    "--one-label": {"action": "store_true", "help": "a box has one label, that of its best score"},
    "--least-score": {"type": float, "metavar": "S", "help": "scores that are detections at all"},
    "--nms-threshold": {"type": float, "metavar": "T", "help": "IoU of boxes that are one object"},
}


def onnx_flags(parser: Any) -> None:
    """Add the flags of ONNX files."""
    for flag, settings in ONNX_FLAGS.items():
        parser.add_argument(flag, **{**settings, "help": f"ONNX: {settings['help']}"})


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    flags = (*ONNX_FLAGS, "--shape", "--max-detections")
    names = {flag: flag.strip("-").replace("-", "_") for flag in flags}
    values = {flag: getattr(arguments, name) for flag, name in names.items()}
    return {flag: value for flag, value in values.items() if value not in (None, False)}


def check_no_onnx_flags(arguments: argparse.Namespace) -> None:
    """Raise UsageError if a flag of ONNX files is given for another one."""
    for flag in _given(arguments):
        source = getattr(arguments, "source", None) or arguments.init
        raise UsageError(f"{flag} is for ONNX files, {source} is none")


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """1x3x640x640 as numbers.

    Raises:
        UsageError: the text is something else.
    """
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(f"--shape is {text!r}, expected four numbers, as 1x3x640x640")
    return tuple(map(int, parts))


def _anchors(text: str | None) -> tuple[tuple[float, float], ...] | None:
    if text is None:
        return None
    try:
        pairs = [tuple(map(float, part.split("x"))) for part in text.split(",")]
        found = tuple((width, height) for width, height in pairs)
    except ValueError:
        found = ()
    if not found or not all(0.01 <= n <= 1e5 for anchor in found for n in anchor):
        raise UsageError(
            f"--anchors is {text[:80]!r}, expected width and height of each, as 10x13,16x30,33x23"
        )
    return found


def _three(flag: str, text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        a, b, c = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"{flag} is {text!r}, expected three numbers, as 123.7,116.3,103.5"
        ) from None
    return a, b, c


def stated_of(arguments: argparse.Namespace) -> Any:
    """What the flags say of images and detections."""
    from ..importers.onnx.detectors import Preprocessing

    resize = arguments.image_resize
    return Preprocessing(
        order=arguments.order,
        mean=_three("--mean", arguments.mean),
        std=_three("--std", arguments.std),
        resize="letterbox" if resize == "centred-letterbox" else resize,
        border=arguments.border,
        centred=None if resize is None else resize == "centred-letterbox",
        several_labels=False if arguments.one_label else None,
        anchors=_anchors(arguments.anchors),
        score_threshold=arguments.least_score,
        nms_threshold=arguments.nms_threshold,
        max_detections=arguments.max_detections,
    )


def load_network(model: Path, arguments: argparse.Namespace) -> tuple[AnyFile, tuple[str, ...]]:
    """A network of any kind, read with the flags of `onnx_flags`; and what is to be said of it."""
    from ..importers import load_trained

    if model.suffix.lower() != ".onnx":
        check_no_onnx_flags(arguments)
    return load_trained(
        model,
        shape=parse_shape(arguments.shape),
        stated=stated_of(arguments),
        raw=arguments.raw,
    )


def convert_onnx(arguments: argparse.Namespace) -> int:
    """Convert an ONNX file and print what was done; returns the exit code.

    Raises:
        InputError: the file cannot be converted, or the output cannot be written.
    """
    from ..importers.onnx import load_onnx, load_onnx_network
    from ..importers.tensor_source import Imported
    from ..model.file import save_model
    from ..model.network import graph_of

    check_outputs(arguments.overwrite, arguments.output)
    shape, stated = parse_shape(arguments.shape), stated_of(arguments)
    load = load_onnx_network if arguments.raw else load_onnx
    loaded = load(arguments.source, shape=shape, stated=stated)
    graph = graph_of(loaded.config)
    save_model(
        arguments.output,
        loaded.config,
        loaded.tensors,
        loaded.provenance,
        dtype=arguments.dtype,
        clipping_thresholds=loaded.clipping_thresholds,
        overwrite=arguments.overwrite,
    )
    print(
        f"{loaded.config.name}: {len(graph.operations)} operations, {len(graph.layers)} layers, "
        f"network input {graph.image.width}x{graph.image.height}, "
        f"{2 * graph.macs(1) / 1e9:.2f} GFLOPs"
    )
    if isinstance(loaded, Imported):
        print(f"{loaded.config.num_classes} classes; {loaded.notes[0]}")
    else:
        for name, sizes in loaded.config.output_shapes.items():
            print(f"output {name}: {'x'.join(map(str, sizes))}")
        print("its outputs are as they were: load it with sparsedet.Model.load")
    weights = [t for name, t in loaded.tensors.items() if name.endswith((".weight", ".bias"))]
    count, zeros = sum(t.size for t in weights), sum(int((t == 0).sum()) for t in weights)
    print(f"{count:,} parameters, {zeros:,} of them zero ({100 * zeros / max(count, 1):.2f} %)")
    size = arguments.output.stat().st_size / 1e6
    print(f"-> {arguments.output}  ({size:.2f} MB, {arguments.dtype})")
    return 0
