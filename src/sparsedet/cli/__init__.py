"""The `sparsedet` command: a parser of the commands, one file each. An error is one line.

Exit codes: 0 all done, 1 an input or output could not be used (the message says which and why),
2 the command line is wrong by itself, 130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from ..errors import InputError, UsageError
from .completion import PrintCompletion
from .messages import complain, warn
from .options import Run

COMMANDS = (
    "detect",
    "bulk",
    "serve",
    "classify",
    "info",
    "eval",
    "compare",
    "bench",
    "train",
    "prune",
    "tune",
    "quantize",
    "convert",
    "export",
    "download",
    "cache",
    "env",
)
"""In the order of the help; each is a module of this package (`eval`: `evaluate`)."""


def main(argv: Sequence[str] | None = None, *, parsed: Callable[[], object] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after the program's name; default: those of this process.
        parsed: called when they are understood and the command begins.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # file names may be any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv), parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `sparsedet info | head`
        return 0
    except InputError as error:
        complain(error)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # a full disk, a name too long
        complain(f"standard output: {error.strerror}" if _is_of_stdout(error) else error)
        return 1
    except MemoryError as error:
        complain(f"not enough memory {error}".rstrip())
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again as it ends, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str], parsed: Callable[[], object] | None) -> int:
    first = next((word for word in argv if word != "--"), "")
    asked = first if first in COMMANDS else ""
    arguments = build_parser(asked).parse_args(argv)
    arguments.command_line = argv
    if parsed is not None:
        parsed()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"sparsedet\b")
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return int(arguments.run(arguments))


def _is_of_stdout(error: OSError) -> bool:
    try:
        sys.stdout.flush()  # what it could not write it still holds
    except OSError as again:
        return again.errno == error.errno and error.filename is None
    return False


def _open_closed_streams() -> None:
    """Give closed streams (`>&-`, cron, daemons) a place; else the next open file takes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, nowhere)


def _show_warning(message: Warning | str, *_: Any) -> None:
    warn([str(message)])


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written, the default behind each help text."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, max_help_position=30, width=width)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default in (None, False, "", (), argparse.SUPPRESS)
        return text if silent or not action.option_strings else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says of files whose names look like flags how to give them."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        for name in self._given:
            if name.startswith("-") and len(name) > 2 and os.path.isfile(name):
                message += f" (to give the file {name}, write ./{name}, or -- before it)"
                break
        super().error(message)


class _EnoughError(Exception):
    """A command's flags are not needed."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """All commands and their flags.

    Args:
        only: leave out all other commands, which take time to import, but for their names; "":
            leave out the flags of all.
    """
    from ..version import VERSION

    parser = _Parser(
        prog="sparsedet",
        description="Pruned object detectors, fast on CPUs: run, evaluate, train, prune, convert.",
        epilog="sparsedet COMMAND --help explains a command and gives examples.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"sparsedet {VERSION}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        build=build_parser,
        help="print a script that completes commands, flags and files in this shell",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(
        name: str,
        run: Run,
        summary: str,
        *,
        usage: str,
        examples: Sequence[str],
        details: str | Callable[[], str] = "",
    ) -> argparse.ArgumentParser:
        if only == "":
            commands.add_parser(name, help=summary)
            raise _EnoughError
        text = details() if callable(details) else details
        sub = commands.add_parser(
            name,
            help=summary,
            usage=f"sparsedet {name} {usage}",
            description=f"{summary}\n\n{text}".strip(),
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=_Help,
        )
        sub._positionals.title = "arguments"
        sub.set_defaults(run=run)
        return sub

    for name in COMMANDS:
        if only and name != only:
            commands.add_parser(name)
            continue
        module = import_module(f".{'evaluate' if name == 'eval' else name}", __name__)
        with contextlib.suppress(_EnoughError):
            module.register(command)
    return parser
