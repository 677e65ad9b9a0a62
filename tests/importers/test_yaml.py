"""The reader of settings in YAML: PyYAML's values, and one line for all else."""

from __future__ import annotations

import random
import string
import time
from pathlib import Path
from typing import Any

import pytest

from sparsedet import InputError
from sparsedet.importers.containers.yaml import MAX_YAML, parse_yaml, read_yaml


def test_the_forms_in_which_settings_are_written() -> None:
    text = """
# a comment
%s
A: 1   # and another
B:
  C: [1, 2.5, 'a, b', "x\\ty"]
  D:
  - - 32
    - 64
  - [0.5,
     1.0]
  E: {F: null, G: ~, 'H I': yes}
  EMPTY: []
  NOTHING:
J: &one
- 1.0e-05
- -.5
K: *one
L: "#no comment"
M: a text that goes on
  in the next line
N: (800, 900)
"""
    assert parse_yaml(text % "---") == {
        "A": 1,
        "B": {
            "C": [1, 2.5, "a, b", "x\ty"],
            "D": [[32, 64], [0.5, 1.0]],
            "E": {"F": None, "G": None, "H I": True},
            "EMPTY": [],
            "NOTHING": None,
        },
        "J": [1e-05, -0.5],
        "K": [1e-05, -0.5],
        "L": "#no comment",
        "M": "a text that goes on in the next line",
        "N": "(800, 900)",
    }
    assert parse_yaml("") is None and parse_yaml("a: !!python/tuple [1, 2]") == {"a": [1, 2]}
    assert parse_yaml('{\n"a": {\n"b": [1,\n2]\n}\n}') == {"a": {"b": [1, 2]}}  # JSON


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: !!python/object/apply:os.system [touch x]", "the tag !!python/object/apply:os.system"),
        ("a: {b: !!python/name:eval }", "the tag !!python/name:eval"),
        ("a: 1\na: 2", "line 2: .* twice"),
        ("<<: {a: 1}", "line 1"),
        ("a: [1, 2", "has no ] at its end"),
        ("a: 'x", "has no quote at its end"),
        ("a: *b", "which is not defined before"),
        ("a: |\n  text", "block text"),
        ("a: 1\n  b: 2", "a key below a value"),
        ("a: 1\n   - b\n c: 2", "line 3"),
        ("a:\n\tb: 1", "line 2"),
        ("a: b: c", "two keys in one line"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("[" * 100_000, "too deeply|too long"),
        ("- " * 1000 + "1", "too deeply"),
        ("a: [" + "1, " * 50_000 + "1", "has no ] at its end"),
        ('a: "\\q"', "unknown escape"),
        ('a: "\\uZZZZ"', "invalid literal"),
    ],
)
def test_what_is_not_read_is_one_line(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError, match=match) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: not readable YAML") and "\n" not in str(
        caught.value
    )
    assert time.monotonic() - start < 5


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match=r"config\.yaml: not readable YAML"):
        read_yaml(path)
    path.write_bytes(b"a" * (MAX_YAML + 1))
    with pytest.raises(InputError, match="more than 262,144 bytes"):
        read_yaml(path)
    with pytest.raises(InputError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    rng = random.Random(3)
    for _ in range(3000):  # any text: a value or a ValueError
        text = "".join(rng.choice("abA1.:-[]{},'\"\\ \n#&*!|>%@\t?") for _ in range(40))
        try:
            parse_yaml(text)
        except ValueError as error:
            assert "\n" not in str(error)


def test_it_reads_what_pyyaml_writes() -> None:
    yaml = pytest.importorskip("yaml")
    rng = random.Random(0)
    words = [
        "", "yes", "1", "1e3", "null", "a: b", "# x", "- a", "it's", '"q"', "a\nb", "[a", "{a}",
        "tab\tx", "é", "long " * 40, "*a", "&a", "!x", "0x1F", "007", "1_000", "~", "@a", "%a",
        ":", "a:", "?", "=", "|", ">", "'", "\\", "1:30", "2020-01-01", "/a/path x/y.pth",
    ]  # fmt: skip

    def key() -> str:
        return "".join(rng.choice(string.ascii_letters) for _ in range(rng.randrange(1, 12)))

    def value(depth: int) -> Any:
        kind = rng.random()
        if depth < 4 and kind < 0.25:
            return {key(): value(depth + 1) for _ in range(rng.randrange(4))}
        if depth < 4 and kind < 0.5:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        number = rng.uniform(-1, 1) * 10 ** rng.randrange(-12, 12)
        return rng.choice([None, True, False, rng.randrange(-1000, 10**6), number, *words])

    shared = (1, 2, 3)  # written as an anchor and an alias
    for count in range(200):
        content = {key(): value(0) for _ in range(4)}
        if count % 4 == 0:
            content |= {"one": shared, "two": shared}
        for style in (False, None, True):
            text = yaml.safe_dump(content, default_flow_style=style)
            assert parse_yaml(text) == yaml.safe_load(text), text
