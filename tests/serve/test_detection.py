"""`POST /detect` answers what the command line prints, and refuses what it cannot read."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from helpers.service import ask, refused_with, running
from helpers.small import bomb, encoded, picture

from sparsedet.cli import main
from sparsedet.detector import Detector
from sparsedet.images.read import decode_image
from sparsedet.images.write import encode_image
from sparsedet.serve import ServiceLimits
from sparsedet.serve.server import Service
from sparsedet.serve.upload import uploaded

JPEG = {"Content-Type": "image/jpeg"}


def form(*files: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body with files, behind a field that is none, and its header."""
    parts = [b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n']
    for name, data in files:
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
        parts.append(f"--x\r\n{head}\r\n\r\n".encode() + data + b"\r\n")
    return b"".join([*parts, b"--x--\r\n"]), {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_the_rows_are_those_of_the_detector(
    service: Service, detector: Detector, suffix: str
) -> None:
    data = encoded(suffix)
    found = detector(decode_image(data, "image"), 0.2)
    assert len(found) > 1
    reply = ask(service.address, "/detect?score=0.2", data)
    assert reply.status == 200 and reply.headers["content-type"] == "application/json"
    assert reply.json == {"photo": "image", **found.to_dict()}
    assert "detect;dur=" in reply.headers["server-timing"]


def test_the_answer_is_the_line_of_the_command(
    service: Service, small_model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--score", "0.1", "--classes", "cat,traffic light", "--top", "2"]
    command = ["detect", str(photo), "--model", str(small_model), "--threads", "1", "--no-save"]
    assert main([*command, "--format", "json", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    body, headers = form((str(photo), photo.read_bytes()))
    query = "/detect?score=0.1&classes=cat,traffic%20light&top=2"
    reply = ask(service.address, query, body, headers)
    assert reply.json == printed and len(printed["detections"]) == 2


def test_a_picture(service: Service, detector: Detector) -> None:
    data = encoded(".png")
    reply = ask(service.address, "/detect?format=image&score=0.2", data)
    assert reply.headers["content-type"] == "image/jpeg"
    image = picture()
    assert reply.body == encode_image(detector(image, 0.2).draw(image), "a.jpg")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(service: Service, detector: Detector, photo: Path) -> None:
    expected = detector(picture(), 0.5).to_dict()["detections"]
    for way in (["--data-binary", f"@{photo}"], ["-F", f"image=@{photo}"]):
        command = ["curl", "-sS", "--fail", *way, f"{service.address}/detect"]
        done = subprocess.run(command, capture_output=True, check=True, timeout=20)
        assert json.loads(done.stdout)["detections"] == expected


def test_models_by_name(small_model: Path, detector: Detector) -> None:
    other = Detector.load(small_model, threads=1, resize="stretch")
    with running({"small": detector, "flat": other}) as served:
        data, image = encoded(".png"), picture()
        for query, model in (("", detector), ("?model=small", detector), ("?model=flat", other)):
            reply = ask(served.address, f"/detect{query}", data)
            assert reply.json == {"photo": "image", **model(image, 0.5).to_dict()}
        assert detector(image).to_dict() != other(image).to_dict()
        refused_with(ask(served.address, "/detect?model=x", data), 404, "'x'", "small, flat")


BODIES = {
    "empty": (b"", {}, "empty"),
    "text": (b"hello, this is no image", JPEG, "not a JPEG"),
    "half": (encoded(".jpg")[:600], JPEG, "truncated or damaged"),
    "bomb": (bomb(), {}, "3600000000 pixels, expected at most"),
    "no file": (*form(), "0 files"),
    "two files": (*form(("a", b"1"), ("b", b"2")), "2 files"),
    "half a form": (form(("a.png", encoded(".png")))[0][:-9], form()[1], "truncated"),
    "no form": (b"nothing", form()[1], "damaged"),
    "many parts": (b"".join(b"--x\r\n\r\n\r\n" for _ in range(40)), form()[1], "parts"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies(service: Service, name: str) -> None:
    body, headers, words = BODIES[name]
    refused_with(ask(service.address, "/detect", body, headers), 400, words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("colour=red", "'colour' is no option"),
        ("score=2", "'2', expected 0..1"),
        ("score=nan", "expected 0..1"),
        ("score=", "expected 0..1"),
        ("top=0", "at least 1"),
        ("top=-1", "at least 1"),
        ("top=1&top=2", "twice"),
        ("format=gif", "json or image"),
        ("classes=dog", "is no class of this model"),
    ],
)
def test_bad_options(service: Service, query: str, words: str) -> None:
    refused_with(ask(service.address, f"/detect?{query}", encoded(".jpg")), 400, words)


def test_limits_of_size(detector: Detector) -> None:
    image = encoded(".png")
    limits = ServiceLimits(body=len(image), pixels=picture().size // 3 - 1)
    with running({"small": detector}, limits=limits) as served:
        refused_with(ask(served.address, "/detect", image), 400, "pixels, expected at most")
        refused_with(ask(served.address, "/detect", image + b"1"), 413, "expected at most")
        chunks = iter([image, b"1"])  # its length is not declared
        refused_with(ask(served.address, "/detect", chunks), 413, "expected at most")
        assert served.context.intake.held == 0
    with running({"small": detector}, limits=ServiceLimits(bodies=100)) as served:
        refused_with(ask(served.address, "/detect", image), 429, "try later")


def test_a_compressed_body(service: Service) -> None:
    packed = zlib.compress(encoded(".png"))
    reply = ask(service.address, "/detect", packed, {"Content-Encoding": "deflate"})
    refused_with(reply, 415, "'deflate'")


def test_a_form_as_browsers_send_it() -> None:
    body, headers = form(("Straße 1.png", b"\r\n--\r\n--y"))
    name, data = uploaded(headers["Content-Type"], body)
    assert (name, data) == ("Straße 1.png", b"\r\n--\r\n--y")
