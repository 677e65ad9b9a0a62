"""One flag, one meaning; old spellings; help that reads well; progress."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome

from sparsedet.cli import COMMANDS, build_parser, main
from sparsedet.cli.convert_onnx import ONNX_FLAGS
from sparsedet.cli.messages import Progress
from sparsedet.cli.options import FLAGS, check_outputs
from sparsedet.errors import UsageError


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action.choices for action in build_parser()._actions if isinstance(action.choices, dict)
    )
    return choices


def flags() -> Iterator[tuple[str, argparse.Action]]:
    """(command, flag) of every flag that a help shows."""
    for name, parser in commands().items():
        for action in parser._actions:
            if action.option_strings and action.help != argparse.SUPPRESS:
                yield name, action


def test_a_flag_means_one_thing_in_all_commands() -> None:
    meanings = defaultdict(set)
    for _, action in flags():
        text = re.sub(r" \(default: [^()]*\)$", "", action.help or "")
        for spelling in action.option_strings:
            meanings[spelling].add((text, str(action.metavar), str(action.choices), action.nargs))
    assert len(meanings) > 60
    assert {flag: said for flag, said in meanings.items() if len(said) > 1} == {}


def test_a_shared_flag_is_written_once() -> None:
    shared = defaultdict(set)
    for command, action in flags():
        for spelling in action.option_strings:
            shared[spelling].add(command)
    recipe = {f"--{name.replace('_', '-')}" for name in recipe_fields()}
    recipe |= {flag.replace("--", "--no-", 1) for flag in recipe}
    # `train` and `prune` share what `cli.train.add_training` adds, eval and compare their data.
    # Those of ONNX files are `cli.convert_onnx`'s, for `convert` and `prune`.
    own = {"-h", "--help", "-o", "--resume", "--recipe", *ONNX_FLAGS} | recipe
    several = {flag for flag, users in shared.items() if len(users) > 1} - own
    assert several <= {*FLAGS, *(flag.short for flag in FLAGS.values())}


def recipe_fields() -> list[str]:
    from sparsedet.training.recipe import HELP

    return list(HELP)


def test_a_model_is_a_file_and_images_are_a_folder() -> None:
    seen = {spelling: action.metavar for _, action in flags() for spelling in action.option_strings}
    assert seen["--model"] == "FILE" and seen["--images"] == "FOLDER" and seen["--preset"] == "NAME"


def test_a_slash_names_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path would lose the slash, and the file would have the folder's name."""
    data = ["--annotations", "a", "--images", "b"]
    for arguments in (
        ["convert", "x", "-o"],
        ["quantize", "--images", "x", "-o"],
        ["export", "-o"],
        ["download", "x", "-o"],
        ["info", "--autotune"],
        *(["eval", *data, flag] for flag in ("--json", "--results", "--report")),
        ["compare", "x", "y", *data, "--json"],
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, f"{tmp_path}/new.onnx/"])
        assert stop.value.code == 2 and "is a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    check_outputs(False, tmp_path / "a", None, tmp_path / "b", Path(os.devnull), Path(os.devnull))
    for other in (tmp_path / "a", tmp_path / "link", tmp_path / ".." / tmp_path.name / "a"):
        with pytest.raises(UsageError, match="two outputs"):
            check_outputs(False, tmp_path / "a", other)


@pytest.mark.parametrize("name", list(commands()))
def test_help_has_a_usage_groups_and_two_examples(name: str) -> None:
    text = commands()[name].format_help()
    assert text.startswith(f"usage: sparsedet {name} ")
    examples = text[text.index("examples:\n") :].splitlines()[1:]
    assert len(examples) == 2 and all(line.startswith("  sparsedet ") for line in examples)
    assert max(map(len, text.splitlines())) <= 100 or name == "convert"
    parser = commands()[name]
    for action in parser._actions:
        assert action.help, (name, action.option_strings or action.dest)
        if action.option_strings and action.help != argparse.SUPPRESS:
            default = action.default
            shown = default in (None, False, "", ()) or default is argparse.SUPPRESS
            assert shown or f"(default: {default})" in re.sub(r"\s+", " ", text), action.dest


def test_every_command_is_registered() -> None:
    assert len(commands()) == len(COMMANDS)


OLD = [
    (("detect", "x.jpg", "--no-picture"), "no_save", True, "--no-save"),
    (("detect", "x.jpg", "--plan", "p"), "tuning", Path("p"), "--tuning"),
    (("detect", "x.jpg", "--resize", "fit"), "resize", "letterbox", "--resize letterbox"),
    (("info", "--plan"), "operations", True, "--operations"),
    (
        ("quantize", "--images", "d", "--output", "o", "--photos", "3"),
        "calibration_images",
        3,
        "--calibration-images",
    ),
    (("export", "-o", "o", "--photos", "3"), "calibration_images", 3, "--calibration-images"),
    (("export", "-o", "o", "-f", "onnx"), "to", "onnx", "--to"),
    (("export", "-o", "o", "--format", "onnx"), "to", "onnx", "--to"),
    (
        ("prune", "--images", "d", "--output", "o", "--calibration-photos", "3"),
        "calibration_images",
        3,
        "--calibration-images",
    ),
    (
        ("train", "--annotations", "a", "--images", "d", "--output", "o", "--model", "r50-c4"),
        "preset",
        "r50-c4",
        "--preset",
    ),
]


@pytest.mark.parametrize(("command", "dest", "value", "new"), OLD)
def test_old_spellings_work_and_warn_once(
    command: tuple[str, ...], dest: str, value: Any, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = build_parser().parse_args(command)
    assert getattr(arguments, dest) == value
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sparsedet: warning: ")
    assert lines[0].endswith(f"is now {new}")


def facts(outcome: Outcome) -> str:
    """What info prints before its forecast, which follows the CPU's load."""
    before, _, forecast = outcome.out.partition("forecast of one detection")
    assert forecast
    return before


def test_a_presets_name_as_a_model_works_and_warns(run: Callable[..., Outcome]) -> None:
    old, new = run("info", "--model", "r101-c4"), run("info", "--preset", "r101-c4")
    assert old.code == new.code == 0 and facts(old) == facts(new)
    assert old.err == "sparsedet: warning: --model r101-c4 is now --preset r101-c4\n"


def test_info_takes_a_model_file_by_flag_as_well(
    run: Callable[..., Outcome], small_model: Path
) -> None:
    assert facts(run("info", "--model", small_model)) == facts(run("info", small_model))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "10 of 10 images"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress("eval")
        for done in range(1, 11):
            progress(done, 10)
        assert (expected in stream.getvalue()) and bool(stream.getvalue()) == bool(expected)


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr("sparsedet.cli.messages.time.monotonic", lambda: float(next(now)))
    progress = Progress("net.bin", unit="MB")
    for done in range(6):
        progress(done * 1_000_000, 5_000_000)
    progress(7_000_000, None, "other.bin")
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("sparsedet: net.bin [") for line in lines)
    assert "of 5.0 MB" in lines[0]
