"""`sparsedet download`: a published model, downloaded, checked and converted."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UsageError
from .messages import Progress
from .options import INPUT, OUTPUT, Command, add, check_outputs, group, output_file


def register(command: Command) -> None:
    """Add the parser."""
    download = command(
        "download",
        run_download,
        "Download a published model, check it and convert it.",
        usage="NAME [OPTIONS]",
        details="The files go to the cache folder (see sparsedet cache), the converted model to\n"
        "--output, by default NAME.safetensors in this folder.",
        examples=("sparsedet download --list", "sparsedet download resnet101-v1 --no-convert"),
    )
    download.add_argument("name", nargs="?", metavar="NAME", help="name of a model, see --list")
    source = group(download, INPUT)
    source.add_argument(
        "--list", action="store_true", help="list the models and what is in the cache"
    )
    source.add_argument(
        "--offline",
        action="store_true",
        help="open no connection, use the cache alone (also: SPARSEDET_OFFLINE=1)",
    )
    source.add_argument(
        "--mirror", metavar="URL", help="address of a mirror, used instead of the publisher's host"
    )
    add(download, "--output", type=output_file)
    add(download, "--overwrite")
    group(download, OUTPUT).add_argument(
        "--no-convert", action="store_true", help="download and check only"
    )


def run_download(arguments: argparse.Namespace) -> int:
    from ..hub.cache import download_model
    from ..hub.catalogue import describe_check, entry
    from .convert import convert_file

    if arguments.list:
        print(_table())
        return 0
    if arguments.name is None:
        raise UsageError("which model? Give a NAME, or --list to see the names")
    model = entry(arguments.name)
    convert = model.detector and not arguments.no_convert
    if arguments.output and not convert:
        raise UsageError("--output is for the converted model, and nothing is converted here")
    output = arguments.output or Path(f"{arguments.name}.safetensors")
    if convert:
        check_outputs(arguments.overwrite, output)  # before the work, not after
    bar = Progress(unit="MB")
    try:
        paths = download_model(
            arguments.name,
            mirror=arguments.mirror,
            offline=arguments.offline,
            progress=lambda name, done, total: bar(done, total, name),
            note=bar.note,
        )
    finally:
        bar.end()
    for path, remote in zip(paths, model.files, strict=True):
        print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB; {describe_check(remote)})")
    print(f"licence: {model.licence}")
    if not model.detector:
        print(f"a start for training: sparsedet train --init {paths[0]}")
    if convert:
        return convert_file(paths[0], output, overwrite=arguments.overwrite)
    return 0


def _table() -> str:
    from ..files import cache_folder
    from ..hub.cache import is_cached
    from ..hub.catalogue import CATALOGUE

    width = max(map(len, CATALOGUE))
    lines = [f"{'NAME':<{width}}  {'MB':>6}  cached  what"]
    for name, model in CATALOGUE.items():
        sizes = [file.size for file in model.files]
        total = "?" if None in sizes else f"{sum(size or 0 for size in sizes) / 1e6:.0f}"
        here = "yes" if is_cached(name) else "no"
        lines.append(f"{name:<{width}}  {total:>6}  {here:<6}  {model.title}; {model.licence}")
    return "\n".join([*lines, f"cache: {cache_folder()}"])
