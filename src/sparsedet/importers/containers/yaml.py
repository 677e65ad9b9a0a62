"""The part of YAML in which programs write settings, as Detectron2's `config.yaml`.

Block and flow mappings and sequences, plain and quoted scalars, anchors and aliases, comments. Its
values are those of PyYAML's safe loader (YAML 1.1), which a test compares. Tags, merge keys and
block text are errors: settings need none, and a tag is how a hostile file asks for code. Own code,
so that reading settings needs no further package and is the same everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..tensor_source import printable

MAX_YAML = 1 << 18
"""Largest file, bytes; Detectron2's complete configuration has 8,000."""
_MAX_VALUE, _MAX_LINES = 20_000, 500
"""Largest scalar or flow collection: characters, and lines."""
_MAX_DEPTH = 40
_NO_START = "\t%@`"

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F_]+")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **{f(word): True for word in ("true", "yes", "on") for f in (str.lower, str.title, str.upper)},
    **{
        f(word): False for word in ("false", "no", "off") for f in (str.lower, str.title, str.upper)
    },
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r",
    "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0",
    "L": "\u2028", "P": "\u2029",
}  # fmt: skip


def read_yaml(path: Path) -> Any:
    """A file's content: dicts, lists, strings, numbers, booleans and None.

    Raises:
        InputError: it cannot be read, is too large, or is not YAML of this part.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_YAML + 1)
        if len(data) > MAX_YAML:
            raise ValueError(f"has more than {MAX_YAML:,} bytes")
        return parse_yaml(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable YAML ({printable(str(error)[:300])})") from None


def parse_yaml(text: str) -> Any:
    """The value of one document.

    Raises:
        ValueError: the text is not of this part of YAML; names the line.
    """
    lines: list[_Line] = []
    blanks = 0
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = _without_comment(raw).rstrip()
        if re.fullmatch(r"---( .*)?", line) and not lines:
            line = line[4:]
        bare = line.lstrip(" ")
        if bare:
            lines.append(_Line(len(line) - len(bare), bare, number, raw.strip(" "), blanks))
        blanks = 0 if bare else blanks + 1
    reader = _YamlReader(lines)
    value = reader.node(0, 0)
    if reader.position < len(lines):
        raise reader.error("is not part of what comes before it")
    return value


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that holds something; `whole` has its comment, too, `blanks` are lines before it."""

    indent: int
    text: str
    number: int
    whole: str = ""
    blanks: int = 0


def _without_comment(line: str) -> str:
    """Without what follows a # that begins a comment: outside of quotes, after a space."""
    quote = ""
    for i, c in enumerate(line):
        before = line[i - 1] if i else " "
        if quote:
            if c == quote and not (quote == '"' and before == "\\"):
                quote = ""
        elif c in "'\"" and before in " [{,:-(":
            quote = c
        elif c == "#" and before in " \t":
            return line[:i]
    return line


class _YamlReader:
    """Reads nodes from lines; `position` is the next line."""

    def __init__(self, lines: list[_Line]) -> None:
        self.lines = lines
        self.position = 0
        self.anchors: dict[str, Any] = {}

    def error(self, what: str) -> ValueError:
        if not self.lines:
            return ValueError(what)
        line = self.lines[min(self.position, len(self.lines) - 1)]
        return ValueError(f"line {line.number}: {line.text[:40]!r} {what}")

    def here(self, indent: int) -> _Line | None:
        """The next line, if it is indented by at least `indent`."""
        if self.position < len(self.lines) and self.lines[self.position].indent >= indent:
            return self.lines[self.position]
        return None

    def node(self, indent: int, depth: int) -> Any:
        """The mapping, sequence or scalar that begins in the next line."""
        if depth > _MAX_DEPTH:
            raise self.error("is nested too deeply")
        line = self.here(indent)
        if line is None:
            return None
        if line.text[0] in _NO_START:
            raise self.error("begins with a character that no value begins with")
        if line.text == "-" or line.text.startswith("- "):
            return self.sequence(line.indent, depth)
        if _split_key(line.text) is not None:
            return self.mapping(line.indent, depth)
        return self.inline(line.text, line.indent, depth)

    def sequence(self, indent: int, depth: int) -> list[Any]:
        items: list[Any] = []
        while (
            (line := self.here(indent)) and line.indent == indent and line.text[:2].strip() == "-"
        ):
            rest = line.text[1:].lstrip(" ")
            if rest and (
                (rest[0] == "-" and rest[1:2] in ("", " ")) or _split_key(rest) is not None
            ):
                inner = indent + len(line.text) - len(rest)
                self.lines[self.position] = _Line(inner, rest, line.number)
                items.append(self.node(inner, depth + 1))
            else:
                items.append(self.value(rest, indent, depth, indent + 1))
        return items

    def mapping(self, indent: int, depth: int) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        while (line := self.here(indent)) and line.indent == indent:
            pair = _split_key(line.text)
            if pair is None:
                break
            if line.text[0] in _NO_START:
                raise self.error("begins with a character that no key begins with")
            key = _scalar(pair[0]) if pair[0][0] not in "'\"" else self.flow(pair[0], depth)
            if key == "<<" or key in out or isinstance(key, dict | list):
                raise self.error("has a key that comes twice, or none that settings have")
            below = self.lines[self.position + 1 : self.position + 2]
            dashed = below and below[0].indent == indent and below[0].text[:2].strip() == "-"
            out[key] = self.value(pair[1], indent, depth, indent if dashed else indent + 1)
        return out

    def value(self, text: str, indent: int, depth: int, below: int) -> Any:
        """What follows a key or a dash: `text` in its line, or a node indented by `below`."""
        anchor, text = self.properties(text)
        if text:
            value = self.inline(text, indent, depth)
        else:
            self.position += 1
            value = self.node(below, depth + 1)
        if anchor:
            self.anchors[anchor] = value
        return value

    def properties(self, text: str) -> tuple[str, str]:
        """An anchor before a value, and the rest."""
        anchor = ""
        while text[:1] in ("&", "!"):
            word, _, text = text.partition(" ")
            if word[0] == "&":
                anchor = word[1:]
            elif word not in ("!!python/tuple", "!!str"):  # a tuple is a list here
                raise self.error(f"has the tag {word}, which is not read; nothing was run")
            text = text.lstrip(" ")
        return anchor, text

    def inline(self, text: str, indent: int, depth: int) -> Any:
        """A scalar or flow collection, which may go on in deeper lines."""
        if text[0] in "|>":
            raise self.error("is block text, which settings do not have")
        self.position += 1
        first = self.position
        flow = text[0] in "[{"  # goes on at any place until its bracket
        while (below := self.here(0 if flow else indent + 1)) and (
            text[0] not in "'\"[{" or _open(text)
        ):
            if text[0] not in "'\"[{" and _split_key(below.text) is not None:
                raise self.error("has a key below a value")
            text = _joined(text, below)
            self.position += 1
            if len(text) > _MAX_VALUE or self.position - first > _MAX_LINES:
                raise self.error("is part of a value that is too long for a setting")
        self.position -= 1  # for messages
        value = self.flow(text, depth) if text[0] in "'\"[{*&!" else _scalar(text)
        if text[0] not in "'\"[{*&!" and _split_key(text) is not None:
            raise self.error("has two keys in one line")
        self.position += 1
        return value

    def flow(self, text: str, depth: int) -> Any:
        value, end = self.flow_value(text, 0, depth, "")
        if text[end:].strip():
            raise self.error("has something after its value")
        return value

    def flow_value(self, text: str, start: int, depth: int, stop: str) -> tuple[Any, int]:
        """A value from `start` on, and where it ends; a plain one ends at one of `stop`."""
        if depth > _MAX_DEPTH:
            raise self.error("is nested too deeply")
        start = _skip(text, start)
        c = text[start : start + 1]
        if c in ("[", "{"):
            return self.flow_items(text, start, depth)
        if c in ("'", '"'):
            return self.quoted(text, start)
        if c in ("&", "!"):
            anchor, rest = self.properties(text[start:])
            value, end = self.flow_value(rest, 0, depth + 1, stop)
            if anchor:
                self.anchors[anchor] = value
            return value, len(text) - len(rest) + end
        end = start
        while (
            end < len(text)
            and text[end] not in stop
            and not (
                "}" in stop and text[end] == ":" and text[end + 1 : end + 2] in ("", " ", ",", "}")
            )
        ):
            end += 1
        word = text[start:end].strip()
        if word[:1] == "*":
            if word[1:] not in self.anchors:
                raise self.error(f"names {word}, which is not defined before")
            return self.anchors[word[1:]], end
        return _scalar(word), end

    def flow_items(self, text: str, start: int, depth: int) -> tuple[Any, int]:
        """[a, b] or {a: b}, and where it ends."""
        table = text[start] == "{"
        close = "}" if table else "]"
        items: list[Any] = []
        pairs: dict[Any, Any] = {}
        i = start + 1
        while True:
            i = _skip(text, i)
            if text[i : i + 1] == close:
                return (pairs if table else items), i + 1
            value, i = self.flow_value(text, i, depth + 1, f",{close}")
            i = _skip(text, i)
            if table:
                if text[i : i + 1] != ":" or isinstance(value, dict | list) or value in pairs:
                    raise self.error("has a key without a value, or twice")
                pairs[value], i = self.flow_value(text, i + 1, depth + 1, f",{close}")
                i = _skip(text, i)
            else:
                items.append(value)
            if text[i : i + 1] == ",":
                i += 1
            elif text[i : i + 1] != close:
                raise self.error(f"has no {close} at its end")

    def quoted(self, text: str, start: int) -> tuple[str, int]:
        """A string in quotes, and where it ends."""
        quote, out, i = text[start], [], start + 1
        while i < len(text):
            c = text[i]
            if c == quote == "'" and text[i + 1 : i + 2] == "'":
                out.append("'")
                i += 2
            elif c == quote:
                return "".join(out), i + 1
            elif c == "\\" and quote == '"':
                kind = text[i + 1 : i + 2]
                length = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
                if length:
                    out.append(chr(int(text[i + 2 : i + 2 + length], 16)))
                elif kind in _ESCAPES:
                    out.append(_ESCAPES[kind])
                else:
                    raise self.error(f"has the unknown escape \\{kind}")
                i += 2 + length
            else:
                out.append(c)
                i += 1
        raise self.error("has no quote at its end")


def _split_key(text: str) -> tuple[str, str] | None:
    """Key and rest of a line of a mapping; None for any other line."""
    if text[0] in "[{|>":
        return None
    quote = text[0] if text[0] in "'\"" else ""
    if quote:
        match = re.match(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"", text)
        end = match.end() if match else len(text)
        rest = text[end:].lstrip(" ")
        if rest[:1] == ":" and rest[1:2] in ("", " "):
            return text[:end], rest[1:].strip()
        return None
    match = re.match(r"(.*?)\s*:(?: +|$)", text)
    return (match[1], text[match.end() :].strip()) if match and match[1] else None


def _skip(text: str, i: int) -> int:
    """The place of the next character that is no space."""
    while text[i : i + 1] == " ":
        i += 1
    return i


def _joined(text: str, line: _Line) -> str:
    """A value and the line in which it goes on; blank lines in quotes are line ends."""
    quote = _open(text)
    if quote == '"' and re.search(r"(?<!\\)(\\\\)*\\$", text):
        return text[:-1] + "\n" * line.blanks + line.whole
    between = "\n" * line.blanks or " "
    return text + between + (line.whole if quote in ("'", '"') else line.text)


def _open(text: str) -> str:
    """The quote or bracket of a value that is not closed yet; "": all are."""
    quote, depth, i = "", 0, 0
    while i < len(text):
        c = text[i]
        if quote:
            if c == "\\" and quote == '"':
                i += 1
            elif c == quote:
                quote = ""
        elif c in "'\"" and (i == 0 or text[i - 1] in " [{,:"):
            quote = c
        elif c in "[{":
            depth += 1
        elif c in "]}":
            depth -= 1
        i += 1
    return quote or ("[" if depth > 0 else "")


def _scalar(word: str) -> Any:
    """A plain scalar's value by YAML 1.1."""
    word = word.strip()
    if word in _WORDS:
        return _WORDS[word]
    if len(word) > 100:  # no number of a setting
        return word
    plain = word.replace("_", "")
    if _INT.fullmatch(word):
        return int(plain)
    if _HEX.fullmatch(word):
        return int(plain, 16)
    if _OCTAL.fullmatch(word):
        return int(plain, 8)
    if _FLOAT.fullmatch(word):
        return float(plain)
    return word
