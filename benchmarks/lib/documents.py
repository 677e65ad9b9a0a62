"""Generated text in a document, between a mark that names the script and `<!-- end -->`."""

from __future__ import annotations

from pathlib import Path

from sparsedet.files import write_atomic

_END = "<!-- end -->"


def insert(path: Path, mark: str, text: str) -> None:
    """Replace the text between `mark` and the next end mark.

    Raises:
        ValueError: the document has the mark not at all, or more than once.
    """
    content = path.read_text()
    if content.count(mark) != 1:
        raise ValueError(f"{path}: expected {mark!r} once")
    before, rest = content.split(mark)
    _, after = rest.split(_END, 1)
    write_atomic(path, f"{before}{mark}\n{text}\n{_END}{after}".encode(), overwrite=True)
