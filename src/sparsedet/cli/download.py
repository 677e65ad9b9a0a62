"""`sparsedet download`: a model that others publish, fetched, checked and converted."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..errors import InputError
from .options import Command


def register(command: Command) -> None:
    """Add the parser."""
    download = command(
        "download",
        run_download,
        "Fetch a published model into the cache, check it and convert it to a model file.",
    )
    download.add_argument("name", nargs="?", metavar="NAME", help="see --list")
    download.add_argument("--list", action="store_true", help="show what there is, fetch nothing")
    download.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the model file to write; default: NAME.safetensors here",
    )
    download.add_argument("--no-convert", action="store_true", help="only fetch and check")
    download.add_argument("--overwrite", action="store_true", help="replace an existing file")
    download.add_argument(
        "--offline",
        action="store_true",
        help="open no connection, use what is in the cache (also by SPARSEDET_OFFLINE=1)",
    )
    download.add_argument(
        "--mirror",
        metavar="URL",
        help="ask this address instead of the publisher's host, for the same path",
    )


def run_download(arguments: argparse.Namespace) -> int:
    from ..hub.cache import download_model
    from ..hub.catalogue import describe_check, entry

    if arguments.list:
        print(_table())
        return 0
    if arguments.name is None:
        raise InputError("which model? Give a NAME, or --list to see what there is")
    model = entry(arguments.name)
    convert = model.detector and not arguments.no_convert
    if arguments.output and not convert:
        raise InputError("--output is for the converted model, and nothing is converted here")
    output = arguments.output or Path(f"{arguments.name}.safetensors")
    if convert and output.exists() and not arguments.overwrite:  # before the work, not after
        raise InputError(f"{output}: exists already; give --overwrite or another name")
    bar = _Bar()
    try:
        paths = download_model(
            arguments.name,
            mirror=arguments.mirror,
            offline=arguments.offline,
            progress=bar.show,
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
        return _convert(paths[0], output, arguments.overwrite)
    return 0


def _convert(source: Path, output: Path, overwrite: bool) -> int:
    """`sparsedet convert SOURCE -o OUTPUT`, all else as it is there by default."""
    from . import convert

    parser = argparse.ArgumentParser()
    convert.register(lambda name, run, text: parser)
    command = [str(source), "-o", str(output)] + ["--overwrite"] * overwrite
    return convert.run_convert(parser.parse_args(command))


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


class _Bar:
    """One line on a terminal that follows a download, nothing elsewhere; notes always."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.name, self.shown, self.started, self.first = "", 0.0, 0.0, 0
        self.open = False

    def show(self, name: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if name != self.name:
            self.end()
            self.name, self.started, self.first = name, now, done
        if not self.terminal or (now - self.shown < 0.1 and done != total):
            return
        self.shown = now
        speed = (done - self.first) / max(now - self.started, 1e-3)
        text = f"{name}  {done / 1e6:.1f}"
        if total:
            filled = 30 * done // total
            left = (total - done) / speed if speed else 0
            text = f"{name} [{'#' * filled:<30}] {done / 1e6:.1f} of {total / 1e6:.1f}"
            text += f" MB  {speed / 1e6:.1f} MB/s  {left // 60:02.0f}:{left % 60:02.0f}"
        else:
            text += f" MB  {speed / 1e6:.1f} MB/s"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        self.open = True

    def note(self, line: str) -> None:
        self.end()
        print(f"sparsedet: {line}", file=sys.stderr)

    def end(self) -> None:
        if self.open:
            print(file=sys.stderr)
        self.open = False
