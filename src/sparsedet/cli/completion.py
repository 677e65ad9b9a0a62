"""Shell completion: commands, flags and file names, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import output_file

SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("images", "source", "file", "model", "a", "b", "output")
"""Arguments that are files although their type is text."""


class PrintCompletion(argparse.Action):
    """Prints the script of one shell, and ends."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        build: Callable[[], argparse.ArgumentParser],
        **settings: Any,
    ) -> None:
        settings |= {"choices": SHELLS, "default": argparse.SUPPRESS}
        super().__init__(option_strings, dest, **settings)
        self.build = build

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(completion(self.build(), str(values)))
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes a parser's commands in a shell.

    Args:
        parser: with all of its commands; where files are expected, that is noted in it.
        shell: one of `SHELLS`.

    Raises:
        InputError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise InputError("--print-completion needs: pip install 'sparsedet[completion]'") from None
    for action in _actions(parser):
        if action.type in (Path, output_file) or action.dest in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
