"""`sparsedet classify`: the likeliest classes of images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError, UsageError
from .messages import complain
from .options import Command, add


def register(command: Command) -> None:
    """Add the parser."""
    classify = command(
        "classify",
        run_classify,
        "Name the likeliest classes of images.",
        usage="MODEL IMAGE... [OPTIONS]",
        details="MODEL is a classifier that `convert` wrote, or its ONNX file.",
        examples=(
            "sparsedet classify resnet50.onnx dog.jpg",
            "sparsedet classify resnet50.safetensors *.jpg --top 3",
        ),
    )
    classify.add_argument("model", type=Path, metavar="MODEL", help="model file or ONNX file")
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    add(classify, "--top", default=5)
    add(classify, "--threads", "--isa")
    add(classify, "--precision", default="f32")


def run_classify(arguments: argparse.Namespace) -> int:
    from ..images.read import read_image
    from ..network import Model

    if arguments.top < 1:
        raise UsageError(f"--top is {arguments.top}, expected at least 1")
    model = Model.load(
        arguments.model,
        threads=arguments.threads,
        precision=arguments.precision,
        isa=arguments.isa or "",
    )
    failed = 0
    for path in arguments.images:
        try:
            found = model.classify(read_image(path), arguments.top)
        except InputError as error:
            if not model.config.class_count:
                raise
            complain(error)
            failed += 1
            continue
        print(path)
        for name, score in found:
            print(f"  {score:7.2%}  {name}")
    return 1 if failed else 0
