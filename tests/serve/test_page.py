"""The web page's files and what they may load; `test_page_in_browser.py` uses it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.service import ask, refused_with, running

from sparsedet.choices import DEFAULT_MODEL
from sparsedet.detector import Detector, embedded_model
from sparsedet.model.sparsity import sparsity_report
from sparsedet.serve.models import model_files
from sparsedet.serve.page import POLICY, WEB
from sparsedet.serve.server import Service

FILES = sorted(WEB.iterdir())
TEXTS = {path.name: path.read_text() for path in FILES if path.suffix != ".jpg"}
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_file_is_served_with_the_policy(service: Service) -> None:
    assert len(FILES) > 8
    for path in FILES:
        reply = ask(service.address, f"/page/{path.name}")
        assert reply.status == 200 and reply.body == path.read_bytes()
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        again = ask(
            service.address, f"/page/{path.name}", None, {"If-None-Match": reply.headers["etag"]}
        )
        assert again.status == 304 and not again.body
    index = ask(service.address, "/")
    assert index.body == (WEB / "index.html").read_bytes()
    assert index.headers["content-type"] == "text/html; charset=utf-8"


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    directives = dict(directive.split(" ", 1) for directive in POLICY.split("; "))
    assert directives.pop("default-src") == "'none'"
    assert set(directives.values()) == {"'self'", "'none'"}
    assert directives["frame-ancestors"] == "'none'"


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_names_another_host(name: str) -> None:
    text = TEXTS[name].replace("http://www.w3.org/2000/svg", "")  # a name, never loaded
    assert not re.findall(r"(?:https?:)?//\w+\.\w+|@import|url\(|eval\(|innerHTML", text)


def test_the_index_names_files_that_are_there_and_has_nothing_inline() -> None:
    index = TEXTS["index.html"]
    named = re.findall(r'(?:src|href)="([^"]*)"', index)
    assert named and all(
        address.removeprefix("page/") in map(lambda p: p.name, FILES) for address in named
    )
    assert not re.findall(r"<style|\son\w+=|\sstyle=|<script(?![^>]*src=)", index)
    imported = {name for text in TEXTS.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert imported <= set(TEXTS) and "main.js" not in imported


def test_the_examples_are_those_of_the_project() -> None:
    for path in WEB.glob("*.jpg"):
        assert path.read_bytes() == (EXAMPLES / path.name).read_bytes()


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/../page.py", "/page/..%2fpage.py", "/page/a/b"]
)
def test_other_files_are_not_served(service: Service, path: str) -> None:
    refused_with(ask(service.address, path), 404)


def test_what_is_told_of_the_models(service: Service, detector: Detector) -> None:
    (model,) = ask(service.address, "/models").json["models"]
    report = sparsity_report(detector.config, detector.model.tensors)
    assert model["name"] == "small" and model["runtime"] == detector.runtime
    assert model["classes"] == list(detector.config.class_names)
    assert model["zeros"] == report.zeros and model["parameters"] == report.parameters
    assert model["sparse_gflops"] == report.sparse_gflops
    assert model["layers"] == [
        {**asdict(layer), "shape": list(layer.shape)} for layer in report.layers
    ]


def test_with_a_token_the_page_is_open_and_the_models_are_not(detector: Detector) -> None:
    with running({"small": detector}, token="s3cret") as served:
        assert ask(served.address, "/").status == 200
        assert ask(served.address, "/page/main.js").status == 200
        refused_with(ask(served.address, "/models"), 401)
        good = {"Authorization": "Bearer s3cret"}
        assert ask(served.address, "/models", None, good).status == 200


def test_embedded_models_have_names_among_files() -> None:
    given = ["r50half-c4", "small=picodet-s", "dense.onnx"]
    files = {"r50half-c4": "r50half-c4", "small": "picodet-s", "dense": "dense.onnx"}
    assert model_files(given) == {name: Path(file) for name, file in files.items()}
    assert model_files([]) == {DEFAULT_MODEL: embedded_model(DEFAULT_MODEL)}
