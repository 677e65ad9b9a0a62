"""`sparsedet train` without torch; training's own refusals are in tests/training."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import Run, python, refused, tree


@pytest.mark.parametrize("command", ["train", "prune"])
@pytest.mark.parametrize(
    ("recipe", "flags", "word"),
    [
        ('{"stepps": 5}', (), "'stepps'"),
        ('{"steps": "5"}', (), "steps is '5'"),
        ('{"steps": 2.5}', (), "steps is 2.5"),
        ('{"learning_rate": NaN}', (), "learning_rate is nan"),
        ('{"optimizer": "lion"}', (), "optimizer is 'lion'"),
        ("[]", (), "expected a JSON object"),
        ("steps: 5", (), "not valid JSON"),
        ("{}", ("--steps", "0"), "steps is 0"),
        ("{}", ("--learning-rate", "-1"), "learning_rate is -1"),
        ("{}", ("--sparsity", "1.0", "--prune-end", "9"), "sparsity is 1.0"),
        ("{}", ("--sparsity", "0.5", "--prune-end", "2000"), "prune_end is 2000"),
    ],
)
def test_bad_recipes(
    run: Run, tmp_path: Path, command: str, recipe: str, flags: tuple[str, ...], word: str
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(recipe)
    before = tree(tmp_path)
    outcome = run(
        command,
        "--annotations",
        tmp_path / "a",
        "--images",
        tmp_path,
        "--init",
        path,
        "--output",
        tmp_path / "run",
        "--recipe",
        path,
        *flags,
    )
    refused(outcome, word)
    assert tree(tmp_path) == before


def test_training_without_torch_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from sparsedet.cli import main; main()"
    arguments = ["train", "--annotations", "a", "--images", "b", "--output", str(tmp_path / "run")]
    done = python(program.replace("main()", f"sys.exit(main({arguments!r}))"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert b"pip install 'sparsedet[train]'" in done.stderr
    assert tree(tmp_path) == {}
