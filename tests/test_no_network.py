"""No command opens a connection, but `download` and what the user names; there is no telemetry."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.commands import python

FORBIDDING = """
import socket, sys
asked = []
def forbidden(self, address, *_):
    asked.append(address)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = forbidden
def no_names(*arguments, **_):
    asked.append(arguments)
    raise socket.gaierror(-3, "no names here")
socket.getaddrinfo = no_names
from sparsedet.cli import main
code = main(sys.argv[1:])
if asked:
    sys.exit(f"asked for {asked}")
sys.exit(code)
"""


def test_commands_ask_nobody(small_model: Path, photo: Path, tmp_path: Path) -> None:
    cache = ["--cache"]
    for arguments in (
        ["detect", str(photo), "--model", str(small_model), *cache, "-o", str(tmp_path / "a.png")],
        ["info", str(small_model), "--operations"],
        ["env"],
        ["cache"],
        ["--help"],
        ["download", "--help"],
    ):
        done = python(FORBIDDING, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)


def test_what_the_user_names_is_asked() -> None:
    done = python(FORBIDDING, "detect", "http://example.invalid/a.jpg", "--no-save")
    assert done.returncode == 1 and b"asked for" in done.stderr, done.stderr


def test_no_module_reports_home() -> None:
    """The addresses in the source are those of the catalogue, of documents and of namespaces."""
    source = Path(__file__).parents[1] / "src" / "sparsedet"
    words = ("telemetry", "analytics", "sentry", "posthog", "segment.io")
    text = {path: path.read_text().lower() for path in source.rglob("*.py")}
    assert json.dumps(sorted(str(p) for p, t in text.items() if any(w in t for w in words))) == "[]"
