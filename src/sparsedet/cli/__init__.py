"""The command line: a parser of the commands in `commands`. Errors are one line.

Exit codes: 0 done, 2 an input could not be used (a message says which and why), 130 stopped.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ..errors import InputError
from . import compare, convert, detect, download, evaluate, export, info, quantize, train
from .options import Run, complain

COMMANDS = (detect, info, evaluate, compare, train, quantize, convert, export, download)
"""In the order of the help."""


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
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    from .. import __version__

    parser = argparse.ArgumentParser(prog="sparsedet", description="Sparse Faster R-CNN on CPUs.")
    parser.add_argument("--version", action="version", version=f"sparsedet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    for module in COMMANDS:
        module.register(command)
    return parser
