"""The command line as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.commands import ENVIRONMENT, MAIN, python
from helpers.small import encoded, picture

import sparsedet
from sparsedet.images.read import read_image

COMMAND = [sys.executable, "-m", "sparsedet"]
SETTINGS: Any = {"timeout": 60, "env": ENVIRONMENT}


def test_torch_is_never_imported(small_model: Path, photo: Path) -> None:
    program = f"""
import sys
import sparsedet
from sparsedet.cli import main
for command in (["info", {str(small_model)!r}], ["info", "--preset", "r101-c4"],
                ["detect", {str(photo)!r}, "--model", {str(small_model)!r}]):
    assert main(command) == 0
heavy = {{"torch", "torchvision", "onnx", "pycocotools", "rich"}}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert photo.with_name("street_detected.png").exists()


def test_a_file_name_of_any_bytes(small_model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(encoded(".png"))
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    for form in ("table", "json", "csv"):
        done = python(MAIN, "detect", name, "--model", str(small_model), "--format", form)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert len(list(tmp_path.iterdir())) == 4


def test_a_reader_that_stops_reading(small_model: Path, photo: Path) -> None:
    # More output than Python buffers, and less; help, which argparse prints; many images.
    few = ["detect", str(photo), "--model", str(small_model), "--no-save"]
    many = [*few[:1], *[str(photo)] * 3, *few[1:], "--format", "json"]
    for arguments in (["info", "--preset", "r101-c4"], few, many, ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=PIPE, **SETTINGS)
        os.close(writer)
        assert done.returncode == 0 and done.stderr == b"", done.stderr


def closed(*streams: int) -> Callable[[], None]:
    """For `preexec_fn`: the command starts with these closed."""

    def close() -> None:
        for stream in streams:
            os.close(stream)

    return close


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams(small_model: Path, photo: Path, tmp_path: Path, streams: Any) -> None:
    target = tmp_path / "out.png"
    good = ["detect", str(photo), "--model", str(small_model), "-o", str(target), "--overwrite"]
    bad = ["detect", str(tmp_path / "none.png")]
    for arguments, code in ((good, 0), (["info", str(small_model)], 0), (["--version"], 0)):
        done = subprocess.run(
            [*COMMAND, *arguments],
            stderr=None if 2 in streams else PIPE,
            preexec_fn=closed(*streams),
        )
        assert done.returncode == code and not done.stderr, done.stderr
    assert read_image(target).shape == picture().shape  # not written into by a print
    done = subprocess.run([*COMMAND, *bad], capture_output=True, preexec_fn=closed(*streams))
    assert done.returncode == 1 and done.stderr.count(b"\n") == (0 if 2 in streams else 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk(small_model: Path, photo: Path) -> None:
    detect = ["detect", str(photo), str(photo), "--model", str(small_model), "--no-save"]
    for arguments in (detect, ["info", str(small_model)], ["env"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=PIPE, **SETTINGS)
        assert done.returncode == 1, done.stderr
        assert done.stderr == b"sparsedet: standard output: No space left on device\n"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "detect", "none.png"], stdout=PIPE, stderr=full)
    assert done.returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp437"])
def test_json_is_ascii_in_every_encoding(small_model: Path, tmp_path: Path, encoding: str) -> None:
    names = ["caf\u00e9.png", "\U0001f600.png", "\u540d\u524d.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(".png"))
    command = [*COMMAND, "detect", *names, "--model", str(small_model), "--no-save"]
    settings: Any = {"cwd": tmp_path, "env": {**ENVIRONMENT, "PYTHONIOENCODING": encoding}}
    done = subprocess.run([*command, "--format", "json"], capture_output=True, **settings)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    text = done.stdout.decode(encoding)
    assert text.isascii()
    assert [json.loads(line)["photo"] for line in text.splitlines()] == names
    assert "d\u00f6g" in [d["name"] for d in json.loads(text.splitlines()[0])["detections"]]
    for form in ("table", "csv"):  # as much as the encoding can say
        done = subprocess.run([*command, "--format", form], capture_output=True, **settings)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
        expected = names[0].encode(encoding, "backslashreplace").removeprefix(b"\xff\xfe")
        assert expected in done.stdout


def test_json_of_eval_to_standard_output(small_model: Path, tmp_path: Path) -> None:
    """In order and whole, also where the standard output is a file."""
    pytest.importorskip("pycocotools")
    (tmp_path / "caf\u00e9.png").write_bytes(encoded(".png"))
    height, width = picture().shape[:2]
    data = {
        "images": [{"id": 1, "file_name": "caf\u00e9.png", "width": width, "height": height}],
        "categories": [{"id": 18, "name": "d\u00f6g"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 2, 30, 40], "area": 1200}
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    command = [
        *COMMAND,
        "eval",
        "--annotations",
        "a.json",
        "--images",
        ".",
        "--model",
        str(small_model),
    ]
    command += ["--json", "/dev/stdout", "--overwrite"]
    settings: Any = {"cwd": tmp_path, "env": {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}}
    piped = subprocess.run(command, stdout=PIPE, **settings)
    with open(tmp_path / "f", "wb") as file:
        filed = subprocess.run(command, stdout=file, **settings)
    assert piped.returncode == filed.returncode == 0
    for out in (piped.stdout, (tmp_path / "f").read_bytes()):
        text = bytes(out).decode("ascii")
        figures, end = json.JSONDecoder().raw_decode(text)
        assert "analysis" in figures and "AP (pycocotools)" in text[end:]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_each_images_result_is_there_at_once(small_model: Path, photo: Path, form: str) -> None:
    """The second image is read only after this test has seen the first one's result."""
    command = ["detect", *[str(photo)] * 2, "--model", str(small_model), "--no-save"]
    program = f"""
import sys
from sparsedet.cli import main
from sparsedet.images import read
real, calls = read.read_image, []
def read_image(path, **settings):
    calls.append(path)
    if len(calls) == 2:
        sys.stdin.read()
    return real(path, **settings)
read.read_image = read_image
sys.exit(main({[*command, "--format", form]!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    seen = b""
    while str(photo).encode() not in seen:
        seen += os.read(process.stdout.fileno(), 65536)
    assert process.poll() is None
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and str(photo).encode() in rest


def test_the_package_is_a_module() -> None:
    for module in ("sparsedet", "sparsedet.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True)
        assert done.stdout.decode() == f"sparsedet {sparsedet.__version__}\n"


def test_ctrl_c_is_silent_while_it_starts(tmp_path: Path) -> None:
    """Interrupted by itself at each of its imports in turn, as a user would by chance."""
    program = """
import builtins, os, signal, sys
from sparsedet.__main__ import run
count, limit, real = [0], int(sys.argv.pop(1)), builtins.__import__
def interrupting(name, *rest):
    count[0] += 1
    if count[0] == limit:
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest)
builtins.__import__ = interrupting
run()
"""
    for number in (2, 5, 30, 100, 300, 900):
        done = subprocess.run(
            [sys.executable, "-c", program, str(number), "env"], capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b""), number


def test_ctrl_c_is_silent_while_the_command_line_is_built() -> None:
    """Numpy makes an ImportError of a KeyboardInterrupt that comes while it is imported."""
    program = """
import os, signal, sys
import sparsedet.cli as cli
from sparsedet.__main__ import run
real = cli.build_parser
def interrupted(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy._core.multiarray failed to import") from None
    return real(*arguments)
cli.build_parser = interrupted
run()
"""
    done = python(program, "env")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_process_that_is_stopped_leaves_no_half_written_file(
    name: str, small_model: Path, photo: Path
) -> None:
    before = sorted(photo.parent.iterdir())
    program = f"""
import os, signal, sys
from sparsedet.__main__ import run
os.fsync = lambda _: os.kill(os.getpid(), signal.{name})
run()
"""
    done = python(program, "detect", str(photo), "--model", str(small_model))
    assert done.returncode == 128 + getattr(signal, name) and done.stderr == b""
    assert sorted(photo.parent.iterdir()) == before
    ignored = program.replace("run()", f"signal.signal(signal.{name}, signal.SIG_IGN); run()")
    done = python(ignored, "detect", str(photo), "--model", str(small_model))  # as nohup does
    assert done.returncode == 0 and len(list(photo.parent.iterdir())) == len(before) + 1


def test_a_pointer_given_as_an_image_is_named(small_model: Path, photo: Path) -> None:
    pointer = photo.with_name("lfs.jpg")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    arguments = [str(photo.parent), str(pointer), "--model", str(small_model), "--no-save"]
    done = python(MAIN, "detect", *arguments)
    assert done.returncode == 1 and b"street.png: " in done.stdout  # of the folder
    assert done.stderr.count(b"git lfs pull") == 2 and b"2 of 3 images failed" in done.stderr


def test_an_image_that_memory_does_not_hold_is_one_line(small_model: Path, photo: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    large = photo.with_name("large.png")
    cv2.imwrite(str(large), np.zeros((9000, 9000, 3), np.uint8))
    program = f"""
import resource, sys
import numpy, cv2, sparsedet.cli, sparsedet.images.read, sparsedet.sinks.picture
from sparsedet import Detector
Detector.load({str(small_model)!r}, threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
sys.exit(sparsedet.cli.main(sys.argv[1:]))
"""
    arguments = [str(large), str(photo), "--model", str(small_model), "--no-save", "--threads", "1"]
    done = python(program, "detect", *arguments)
    lines = done.stderr.decode().splitlines()
    assert lines[0] == f"sparsedet: {large}: not enough memory for its 9000x9000 pixels"
    assert lines[1:] == ["sparsedet: 1 of 2 images failed"] and done.returncode == 1
    assert b"street.png: " in done.stdout
