"""Licences of dependencies: all are listed, and are what the packages say of themselves."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "Apache-2.0": r"apache",
    "BSD-2-Clause": r"bsd",
    "BSD-3-Clause": r"bsd",
    "ISC": r"isc",
    "MIT": r"\bmit\b",
    "MIT-CMU": r"mit-cmu|hpnd",
    "MPL-2.0": r"mpl|mozilla",
    "PSF-2.0": r"python software foundation|psf|matplotlib",
}
"""Licence -> what a package says that has it."""
FORBIDDEN = r"\bA?GPL|affero|non.?commercial|proprietary"


def required() -> dict[str, set[str]]:
    """Package -> extras that ask for it, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    found: dict[str, set[str]] = {}

    def add(requirements: str, where: str) -> None:
        for name in re.findall(r'"([A-Za-z0-9_.-]+)(?:\[[^\]"]*\])?[^"]*"', requirements):
            found.setdefault(name, set()).add(where)

    add(re.search(r"^requires = \[(.*?)\]$", text, re.M)[1], "building")  # type: ignore[index]
    add(re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1], "always")  # type: ignore[index]
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    for name, requirements in re.findall(r"^(\w+) = \[(.*)\]$", extras, re.M):
        add(requirements, name)
    return found


def listed() -> dict[str, tuple[str, set[str]]]:
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([\w.-]+) \| ([\w, ]+) \|$",
        (ROOT / "docs" / "licences.md").read_text(),
        re.M,
    )
    return {name: (licence, set(extras.split(", "))) for name, licence, extras in rows[1:]}


def stated(package: str) -> str:
    """What an installed package says of its licence."""
    fields = metadata.metadata(package)
    texts = [
        text for key in ("License-Expression", "License") for text in fields.get_all(key) or []
    ]
    texts = [text[:200] for text in texts]
    texts += [c for c in fields.get_all("Classifier") or [] if c.startswith("License")]
    return "\n".join(filter(None, texts))


def test_every_dependency_is_listed() -> None:
    page = {name: extras for name, (_, extras) in listed().items()}
    assert page == required()


def test_licences_are_what_the_packages_say() -> None:
    checked = 0
    for package, (licence, _) in listed().items():
        assert licence in ALLOWED, package
        try:
            said = stated(package)
        except metadata.PackageNotFoundError:
            continue
        assert not re.search(FORBIDDEN, said, re.I), (package, said)
        if said:
            assert re.search(ALLOWED[licence], said, re.I), (package, said)
            checked += 1
    assert checked >= 10


def test_what_would_bind_a_user_is_found() -> None:
    for text in ("GPL-3.0-only", "GNU Affero General Public License", "CC-BY-NC: Non-Commercial"):
        assert re.search(FORBIDDEN, text, re.I)
    assert not re.search(FORBIDDEN, "LGPL-2.1, dynamically linked", re.I)
