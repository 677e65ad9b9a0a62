"""What the documents tell people to type is what the program takes, and does.

The program's parser takes every command, or it stands below with the reason why it does not run.
With SPARSEDET_RUN_DOCUMENTS=1 they run on small files, page by page, in some minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.documents import PAGES, commands, kitchen, of_the_program
from helpers.service import answering, ask

from sparsedet.cli import build_parser, main

NOT_RUN: dict[str, tuple[str, ...]] = {
    "it installs, from the network or into the system; .ci/run installs the same": (
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        "pip install .",
        "pip install cibuildwheel",
        "pip install openvino-model-api",
        "pip install 'sparsedet[serve]'",
        "pip install 'sparsedet[onnx]'",
        "pip install dist/sparsedet-*.whl",
        "pip install -c constraints.txt '.[docs]'",
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/sparsedet detect "
        "examples/beach.jpg",
        'pip install . && python -c "import sparsedet; print(sparsedet.available_isas())"',
    ),
    "it runs the tests": (
        "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt '.[train,test]' && "
        ".venv/bin/python -m pytest -q",
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt "
        "'.[dev,docs,train,test]' && .venv/bin/python -m pytest",
        "cp build/dev/_native*.so src/sparsedet/ && PYTHONPATH=src python -m pytest tests/engine",
        "python -m pytest -q tests/backends tests/test_architecture.py",
        "python -m pytest tests/cli tests/test_architecture.py tests/test_readme.py",
        "python -m pytest -q tests/importers",
        "python -m pytest -q tests/evaluation",
        "python -m pytest tests/test_detections.py tests/test_exchange.py tests/sources "
        "tests/sinks tests/cli/test_detect.py tests/cli/test_detect_runs.py",
    ),
    "it compiles or builds for minutes; .ci/run does the same": (
        "cmake -S . -B build/dev -Dnanobind_DIR=$(python -m nanobind --cmake_dir) && make -C "
        "build/dev",
        "cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release -DSPARSEDET_NATIVE_TESTS=ON "
        "-Dnanobind_DIR=$(python -m nanobind --cmake_dir)",
        "make -C build/native -j2 native_tests && build/native/native_tests",
        "pip wheel --no-deps --wheel-dir dist .",
        "mkdocs build --strict",
    ),
    "S3 and a cluster; tests/bulk runs both on this machine": (
        "sparsedet bulk --input s3://bucket/photos --output s3://bucket/found --ray auto",
        "sparsedet bulk --input s3://bucket/photos --output s3://bucket/found --ray auto "
        "--ray-workers 64 --threads 2 --resume",
    ),
    "it needs a container engine": (
        "cibuildwheel --output-dir dist",
        "docker build -t sparsedet .",
        'docker run --rm --user "$(id -u)" --read-only -v "$PWD:/work" sparsedet detect photo.jpg '
        "-o found.jpg",
        "docker run --rm --read-only -p 127.0.0.1:8000:8000 sparsedet serve --host 0.0.0.0",
    ),
    "it measures for long": (
        "SPARSEDET_ISA=<isa> python benchmarks/bench_layers.py",
        "python benchmarks/this_cpu.py",
    ),
    "the network: the published model": (
        "sparsedet download faster-rcnn-resnet101-coco-sparse-60-0001",
        "sparsedet detect photo.jpg --model faster-rcnn-resnet101-coco-sparse-60-0001.safetensors",
        "sparsedet convert faster-rcnn-resnet101-coco-sparse-60-0001.xml -o "
        "published.safetensors --probe photo.jpg",
    ),
    "a camera": (
        "sparsedet detect 0 --format json",
        "sparsedet detect rtsp://CAMERA/stream --write camera.jsonl",
        "ffmpeg -i CAMERA -f mjpeg - | sparsedet detect - --format json",
    ),
    "programs of others, which the tests do not install": (
        "python benchmarks/ecosystem.py examples/*.jpg IMAGE...",
        "python object_detection_demo.py -at ssd -m model.xml -i photo.jpg --no_show -r -o "
        "out.jpg --resize_type fit_to_window --labels data/dataset_classes/coco_80cl_bkgr.txt",
        "accuracy_check -c accuracy-check.yml -m model.xml -s COCO -d dataset_definitions.yml -a "
        "annotations -td CPU --inference_precision_hint f32",
    ),
    "a name that the reader chooses": (
        "sparsedet detect examples/beach.jpg --backend NAME --format json",
    ),
    "the owner's file, which is not part of the project": (
        "sparsedet convert picodet_s_416.onnx -o dense.safetensors --least-score 0.02 --max-detections 100",  # noqa: E501
        "sparsedet prune dense.safetensors --images photos --sparsity 0.4 --damping 1 --calibration-images 128 --output picodet",  # noqa: E501
        "python recipes/picodet/ship.py calibrated.safetensors",
    ),
    "GPUs, and COCO": (
        "torchrun --nproc-per-node 8 -m sparsedet train --recipe recipes/coco/dense_3x.json ...",
        "torchrun --nproc-per-node 2 -m sparsedet train --recipe recipes/coco/dense_3x.json ...",
        "sparsedet train --recipe recipes/coco/dense_3x.json ...",
    ),
}
"""Reason -> commands that are not run."""

COMMANDS = {page: found for page, text in PAGES.items() if (found := commands(text))}
LISTED = {command for group in NOT_RUN.values() for command in group}
FEWER = {"--steps": "2", "--val-every": "1", "--calibration-images": "2", "--sparsity": "0.4"}
"""Flags with which a command takes seconds instead of hours, on a very small network."""
EXTRAS = {"--track": "trackers"}
"""A flag -> the package without which a command that has it does not run."""
SMALL = ["--min-size", "64", "--max-size", "96", "--proposals", "20"]
"""What `convert` is told of torchvision's detectors, for the same reason; and large networks are
pruned by magnitude, because the other method takes a minute for a large layer."""


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_and_flags_exist(page: str) -> None:
    parser = build_parser()
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in COMMANDS[page]:
        for words in of_the_program(command):
            if command not in LISTED:
                known = words[0] in ("--version", "--print-completion")
                assert known or parser.parse_args(words).run, command  # exits at a wrong flag
            elif words and words[0] in choices:  # it may be cut short, and have placeholders
                flags = {word for word in words if re.match("--?[a-z]", word)}
                assert flags <= set(choices[words[0]]._option_string_actions), command


def test_every_command_runs_or_has_a_reason() -> None:
    known = {command for found in COMMANDS.values() for command in found}
    assert known >= LISTED, "listed, but in no document"
    for page, found in COMMANDS.items():
        for command in set(found) - LISTED:
            programs = ("sparsedet ", "curl ")
            assert command.startswith(programs), f"{page}: neither run nor listed: {command}"
    assert len(LISTED) == 48, "a command that cannot run is a decision: change this number with it"


def _shortened(page: str, command: str) -> list[str]:
    """The words of a command, with `FEWER` and `SMALL`."""
    (words,) = of_the_program(command)
    if words[0] == "train" and "--preset" not in words:  # as in a run folder of the test
        words = [word.removeprefix("recipes/embedded/") for word in words]
    if "convert fasterrcnn" in PAGES[page] or "recipes/embedded/dense.safetensors" in words:
        words = ["magnitude" if word == "reconstruct" else word for word in words]
    for number, word in enumerate(words[:-1]):
        words[number + 1] = FEWER.get(word, words[number + 1])
    gradual = words[0] == "prune" and "--init" in words and "--method" not in words
    if (words[0] == "train" or gradual) and "--steps" not in words:
        words += ["--steps", "2"]
    if words[0] == "convert" and words[1].startswith("fasterrcnn"):
        words += SMALL
    if "--streams" in words and "--threads" not in words:  # this machine may have one CPU
        words += ["--threads", "2"]
    if words[0] == "bench":
        words += ["--repeats", "2"]
    at_once = words[0] == "prune" and not gradual
    if (at_once or "--method" in words) and "--calibration-images" not in words:
        words += ["--calibration-images", "2"]
    return words


RUN = [page for page, found in COMMANDS.items() if set(found) - LISTED]


@pytest.mark.skipif(
    not os.environ.get("SPARSEDET_RUN_DOCUMENTS"),
    reason="minutes: set SPARSEDET_RUN_DOCUMENTS=1 (CONTRIBUTING.md)",
)
@pytest.mark.filterwarnings("default")  # a warning for people does not end a command
@pytest.mark.parametrize("page", RUN)
def test_commands_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kitchen(tmp_path, PAGES[page])
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS[page]:
        needed = [package for flag, package in EXTRAS.items() if flag in command]
        if command in LISTED or not all(map(find_spec, needed)):
            continue
        if command.startswith("curl "):
            with answering(["serve"]) as address:
                at_it = command.replace("http://127.0.0.1:8000", address)
                code = subprocess.run(["sh", "-c", f"{at_it} --fail"]).returncode
        elif command.startswith("sparsedet serve"):
            with answering(_shortened(page, command)) as address:
                code = 0 if ask(address, "/v2/health/ready").status == 200 else 1
        else:
            code = _run_here(_shortened(page, command))
        assert code == 0, f"{command}\n{capfd.readouterr().err}"


def _run_here(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # of --print-completion
        return int(end.code or 0)
