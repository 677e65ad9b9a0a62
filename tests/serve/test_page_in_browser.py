"""The web page in headless Chromium, with real photographs and two C4 models.

Needs playwright (`pip install '.[browser]'`) and a Chromium of the system.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.service import running

from sparsedet.detector import Detector
from sparsedet.images.draw import _colour
from sparsedet.images.read import decode_image, read_image
from sparsedet.images.run_lengths import encode_mask, read_counts
from sparsedet.serve.server import Service

ROOT = Path(__file__).parents[2]
BEACH, FRISBEE = (ROOT / "examples" / name for name in ("beach.jpg", "frisbee.jpg"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: .[browser]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is at hand (Debian: chromium)"),
]

FLAGS = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""The browser's webcam: moving test images."""


@pytest.fixture(scope="module")
def detectors() -> dict[str, Detector]:
    dense = ROOT / "recipes" / "embedded" / "dense.safetensors"
    return {
        "sparse": Detector.load("r50half-c4", threads=1),
        "dense": Detector.load(dense, threads=1),
    }


@pytest.fixture(scope="module")
def served(detectors: dict[str, Detector]) -> Iterator[Service]:
    with running(detectors) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


class OpenPage:
    """The page in a tab of its own; whatever the browser complains of is a failure."""

    def __init__(self, browser: Any, service: Service, **settings: Any) -> None:
        self.context = browser.new_context(**{"accept_downloads": True, **settings})
        self.tab = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on(
            "console", lambda m: self.complaints.append(m.text) if m.type == "error" else None
        )
        self.tab.goto(service.address)
        self.tab.wait_for_selector("#model option", state="attached")

    def until(self, script: str) -> None:
        """Wait until a script is true. (Playwright's own way evaluates text inside the page, which
        the page's policy forbids.)"""
        for _ in range(600):
            if self.tab.evaluate(script):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"never true: {script}")

    def look(self, path: Path = BEACH) -> None:
        """Choose a file, and wait for what is found."""
        self.tab.set_input_files("#file", path)
        self.found()

    def found(self) -> None:
        self.tab.wait_for_selector("body:not(.busy) #panel")
        self.until("document.querySelectorAll('#detections tbody tr').length > 0")

    def rows(self) -> list[list[str]]:
        """The texts of the table, row by row."""
        script = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        rows: list[list[str]] = self.tab.locator("#detections tbody tr").evaluate_all(script)
        return rows

    def detections_asked(self) -> int:
        return sum("/detect" in address for address in self.asked)

    def score(self, value: float) -> None:
        slider = "(slider, v) => {slider.value = v; slider.dispatchEvent(new Event('input'))}"
        self.tab.locator("#score").evaluate(slider, value)
        self.until(f"document.getElementById('score-value').textContent === '{value:.2f}'")

    def picture(self) -> str:
        """The canvas, pixel by pixel."""
        return str(self.tab.locator("canvas").first.evaluate("one => one.toDataURL()"))

    def saved(self, button: str) -> tuple[str, bytes]:
        with self.tab.expect_download() as download:
            self.tab.click(button)
        path = Path(download.value.path())
        return download.value.suggested_filename, path.read_bytes()


@pytest.fixture
def page(browser: Any, served: Service) -> Iterator[OpenPage]:
    opened = OpenPage(browser, served)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert all(one.startswith((served.address, "blob:")) for one in opened.asked), opened.asked


def expected(detector: Detector, path: Path, score: float) -> list[list[str]]:
    found = detector(read_image(path), 0.0).to_dict()["detections"]
    return [[one["name"], f"{one['score']:.2f}"] for one in found if one["score"] >= score]


def test_a_photograph(page: OpenPage, detectors: dict[str, Detector]) -> None:
    page.look()
    sparse = detectors["sparse"]
    shown = [row[:2] for row in page.rows()]
    assert shown == expected(sparse, BEACH, 0.5) and len(shown) >= 5
    caption = page.tab.inner_text("figcaption >> nth=0")
    assert f"{len(shown)} objects" in caption and "ms detect" in caption
    assert "person" in page.tab.locator("canvas").first.get_attribute("aria-label")


def test_score_and_classes_react_without_a_request(
    page: OpenPage, detectors: dict[str, Detector]
) -> None:
    page.look()
    before, drawn = page.detections_asked(), page.picture()
    page.score(0.1)
    page.tab.wait_for_timeout(100)
    many = [row[:2] for row in page.rows()]
    assert many == expected(detectors["sparse"], BEACH, 0.1)
    assert page.picture() != drawn
    page.tab.click(".chip[data-name='person']")
    page.tab.wait_for_timeout(100)
    assert [row[:2] for row in page.rows()] == [row for row in many if row[0] != "person"]
    page.tab.click("#all")
    page.score(0.5)
    page.tab.wait_for_timeout(100)
    assert page.picture() == drawn
    assert page.detections_asked() == before == 1


def test_drop_and_paste(page: OpenPage) -> None:
    give = """async ([kind, address]) => {
        const blob = await (await fetch(address)).blob();
        const files = new DataTransfer();
        files.items.add(new File([blob], "given.jpg", {type: "image/jpeg"}));
        const settings = {bubbles: true, cancelable: true};
        const event = kind === "drop" ? new DragEvent("drop", {...settings, dataTransfer: files})
            : new ClipboardEvent("paste", {...settings, clipboardData: files});
        document.getElementById("drop").dispatchEvent(event);
    }"""
    page.tab.evaluate(give, ["drop", "page/beach.jpg"])
    page.found()
    dropped = page.rows()
    page.tab.evaluate(give, ["paste", "page/frisbee.jpg"])
    page.until("document.body.classList.contains('busy')")
    page.found()
    assert page.rows() != dropped


def test_an_example(page: OpenPage, detectors: dict[str, Detector]) -> None:
    page.tab.click("[data-example='frisbee.jpg']")
    page.found()
    assert [row[:2] for row in page.rows()] == expected(detectors["sparse"], FRISBEE, 0.5)


def test_dense_beside_sparse(page: OpenPage, detectors: dict[str, Detector]) -> None:
    page.look()
    page.tab.select_option("#other", "dense")
    page.until("document.querySelectorAll('#views.pair figcaption strong')[1]")
    page.found()
    captions = page.tab.locator("#views figcaption").all_inner_texts()
    assert [text.split()[0] for text in captions] == ["sparse", "dense"]
    assert all("also found by" in text for text in captions)
    page.tab.click("#whose .tab:has-text('dense')")
    page.tab.wait_for_timeout(100)
    assert [row[:2] for row in page.rows()] == expected(detectors["dense"], BEACH, 0.5)
    page.tab.click("#measure")
    page.tab.wait_for_selector("text=/times as fast as/", timeout=60000)
    assert page.tab.locator(".median").count() == 2


def test_the_layer_chart_is_the_one_of_the_models(
    page: OpenPage, detectors: dict[str, Detector]
) -> None:
    page.tab.select_option("#other", "dense")
    charts = page.tab.locator("#charts figure")
    assert charts.count() == 2
    for number, detector in enumerate(detectors.values()):
        text = charts.nth(number).inner_text()
        assert f"{100 * detector.sparsity:.1f} % of its weights are zero" in text
    heights = page.tab.locator("#charts svg").evaluate_all(
        "all => all.map(svg => ['all', 'rest'].map(kind => [...svg.querySelectorAll('.' + kind)]"
        ".reduce((sum, bar) => sum + Number(bar.getAttribute('height')), 0)))"
    )
    models = json.loads(page.tab.evaluate("fetch('models').then(answer => answer.text())"))[
        "models"
    ]
    for (whole, rest), model in zip(heights, models, strict=True):
        assert rest / whole == pytest.approx(model["sparse_gflops"] / model["gflops"], abs=1e-6)


def test_files_to_keep(page: OpenPage) -> None:
    page.look()
    page.score(0.7)
    rows = page.rows()
    name, data = page.saved("#save-json")
    content = json.loads(data)
    assert name == "beach.json" and content["photo"] == "beach.jpg"
    assert len(content["detections"]) == len(rows)
    assert min(one["score"] for one in content["detections"]) >= 0.7
    name, data = page.saved("#save-picture")
    image = decode_image(data, name)
    assert name == "beach_detected.jpg" and image.shape == read_image(BEACH).shape


def test_keys(page: OpenPage) -> None:
    page.look()
    drawn = page.picture()
    page.tab.locator("#detections tbody tr").first.focus()
    page.tab.keyboard.press("ArrowDown")
    page.tab.wait_for_timeout(100)
    selected = page.tab.locator("#detections tr[aria-selected='true']")
    assert selected.count() == 1
    assert page.tab.evaluate("document.activeElement.ariaSelected") == "true"
    assert page.picture() != drawn
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_timeout(100)
    assert selected.count() == 0 and page.picture() == drawn
    choosers: list[Any] = []
    page.tab.on("filechooser", lambda one: choosers.append(one))  # heard of before the key
    page.tab.wait_for_timeout(200)
    page.tab.keyboard.press("o")
    page.tab.wait_for_timeout(300)
    assert len(choosers) == 1


def test_everything_is_reached_by_tab(page: OpenPage) -> None:
    page.look()
    reached = set()
    page.tab.locator("body").press("Tab")
    for _ in range(60):
        reached.add(
            page.tab.evaluate("document.activeElement.id || document.activeElement.tagName")
        )
        page.tab.keyboard.press("Tab")
    assert {"model", "other", "open", "webcam", "score", "save-picture", "save-json"} <= reached
    assert {"TR", "SUMMARY"} <= reached


def test_pointing_at_an_object_selects_it(page: OpenPage) -> None:
    page.look()
    _, _, corner, size = page.rows()[0]
    x, y = map(int, corner.split(","))
    width, height = map(int, size.split(" \N{MULTIPLICATION SIGN} "))
    frame = page.tab.locator("canvas").first.bounding_box()
    scale = frame["width"] / read_image(BEACH).shape[1]
    middle = {"x": (x + width / 2) * scale, "y": (y + height / 2) * scale}
    page.tab.locator("canvas").first.click(position=middle)
    page.tab.wait_for_timeout(100)
    assert page.tab.locator("#detections tr[aria-selected='true']").count() == 1


def test_the_webcam(page: OpenPage) -> None:
    page.tab.click("#webcam")
    page.tab.wait_for_selector("text=/Live: [0-9.]+ images a second/", timeout=20000)
    pictures = set()
    for _ in range(200):
        pictures.add(page.picture())
        if len(pictures) > 2 and page.detections_asked() > 2:
            break
        page.tab.wait_for_timeout(50)
    assert len(pictures) > 2  # it moves
    page.tab.keyboard.press("w")
    page.tab.wait_for_selector("#webcam[aria-pressed='false']")
    page.tab.wait_for_timeout(500)
    stopped = page.detections_asked()
    page.tab.wait_for_timeout(1000)
    assert page.detections_asked() == stopped


def test_a_small_screen_needs_no_sideways_scrolling(browser: Any, served: Service) -> None:
    phone = OpenPage(
        browser, served, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    try:
        wide = "document.documentElement.scrollWidth"
        assert phone.tab.evaluate(wide) <= 360
        assert phone.tab.is_visible("#photograph")
        phone.tab.set_input_files("#photo", BEACH)
        phone.found()
        phone.tab.select_option("#other", "dense")
        phone.tab.wait_for_selector("#views.pair")
        phone.found()
        assert phone.tab.evaluate(wide) <= 360
        assert phone.complaints == []
    finally:
        phone.context.close()


def test_dark_mode(browser: Any, served: Service) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        opened = OpenPage(browser, served, color_scheme=scheme)
        colour = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness[scheme] = sum(int(part) for part in colour[4:-1].split(","))
        opened.context.close()
    assert brightness["dark"] < 200 < 600 < brightness["light"]


def test_what_is_wrong_is_said(page: OpenPage, tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("this is no image")
    page.tab.set_input_files("#file", text)
    page.tab.wait_for_selector("#message.error:has-text('not a JPEG')")
    assert page.tab.is_visible("#drop")
    page.look()  # and the next one works
    page.complaints = [one for one in page.complaints if "400 (Bad Request)" not in one]


def test_a_format_that_browsers_do_not_show(page: OpenPage, tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "beach.tiff"
    cv2.imwrite(str(path), read_image(BEACH))
    page.look(path)
    assert "does not show this format" in page.tab.inner_text("#message")


def test_a_token_is_asked_for(browser: Any, detectors: dict[str, Detector]) -> None:
    with running({"sparse": detectors["sparse"]}, token="s3cret") as served:
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(served.address)
        tab.wait_for_selector("#token[open]")
        tab.fill("#token-value", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#token[open]")
        tab.fill("#token-value", "s3cret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#model option", state="attached")
        tab.set_input_files("#file", BEACH)
        tab.wait_for_selector("#detections tbody tr")
        context.close()


def test_nothing_from_elsewhere_gets_in(page: OpenPage) -> None:
    """The browser itself refuses what the policy forbids."""
    refused = page.tab.evaluate(
        """async () => {
            const seen = [];
            const see = (event) => seen.push(event.violatedDirective);
            document.addEventListener("securitypolicyviolation", see);
            await fetch("http://localhost:9/").catch(() => {});
            const image = document.createElement("img");
            image.src = "http://localhost:9/a.png";
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(image, script);
            await new Promise((resolve) => setTimeout(resolve, 200));
            return [seen.sort(), Boolean(window.ran)];
        }"""
    )
    assert refused == [["connect-src", "img-src", "script-src-elem"], False]
    page.complaints = [one for one in page.complaints if "Content Security Policy" not in one]
    page.asked = [one for one in page.asked if not one.startswith("http://localhost:9")]


def test_colours_and_run_lengths_are_those_of_the_package(page: OpenPage) -> None:
    ask_page = "async (given) => { const draw = await import('/page/draw.js'); return %s; }"
    colours = page.tab.evaluate(ask_page % "given.map(draw.colourOf)", list(range(1, 60)))
    expected = np.array([_colour(n)[::-1] for n in range(1, 60)])
    np.testing.assert_allclose(colours, expected, atol=1)  # halves are rounded in other ways
    random = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        text = encode_mask(random.random((230, 171)) < density, 230, 171)["counts"]
        lengths = page.tab.evaluate(ask_page % "draw.runLengths(given)", text)
        assert lengths == read_counts(text).tolist()


def test_a_written_video_plays(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="no PyAV: .[video]")
    from sparsedet.sinks.video import VideoFile

    video = VideoFile(tmp_path / "boxes.mp4", 10.0)
    for number in range(10):
        video.write(np.full((61, 81, 3), 20 * number, np.uint8), number / 10)
    path = video.close()
    tab = browser.new_page()
    tab.goto(f"file://{path}")  # a page that is one <video>
    found = tab.evaluate(
        """async () => {
            const video = document.querySelector("video");
            video.muted = true;
            const end = new Promise(done => video.onended = done);
            await video.play();
            await end;
            return [video.videoWidth, video.videoHeight, video.duration, video.error];
        }"""
    )
    assert found == [82, 62, pytest.approx(1.0, abs=0.05), None]
    tab.close()
