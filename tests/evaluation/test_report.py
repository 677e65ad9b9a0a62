"""The HTML page: complete, self-contained, and safe whatever the names are."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sparsedet.evaluation import AP_NAME, OMZ_NAME, score
from sparsedet.evaluation.analysis import analyse
from sparsedet.evaluation.coco import CocoDataset, load_coco
from sparsedet.evaluation.report import render_report
from sparsedet.evaluation.report.charts import line_chart, log_bars, matrix_chart

pytest.importorskip("pycocotools")

EVIL = '<script>alert("1")</script>&\'"'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def data_set(
    folder: Path, first: str = "one", second: str = "two.png", objects: int = 3
) -> tuple[CocoDataset, list[dict[str, Any]]]:
    """Two images, and results that find, miss, confuse and invent."""
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30], "iscrowd": 0},
        {"image_id": 1, "category_id": 2, "bbox": [60, 10, 30, 30], "iscrowd": 0},
        {"image_id": 2, "category_id": 2, "bbox": [5, 5, 60, 60], "iscrowd": 1},
    ][:objects]
    document = {
        "images": [
            {"id": 1, "file_name": "one.png", "width": 120, "height": 90},
            {"id": 2, "file_name": second, "width": 120, "height": 90},
        ],
        "categories": [{"id": 1, "name": first}, {"id": 2, "name": "two"}, {"id": 3, "name": "x"}],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations, 1)],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    for name in ("one.png", "two.png"):
        cv2.imwrite(str(folder / name), np.full((90, 120, 3), 90, np.uint8))
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [60, 10, 30, 30], "score": 0.8},
        {"image_id": 2, "category_id": 1, "bbox": [90, 10, 1e30, 9], "score": 0.7},
        {"image_id": 2, "category_id": 2, "bbox": [10, 10, 9, 9], "score": 0.6},
    ]
    return load_coco(path, folder), results


def render(dataset: CocoDataset, results: list[dict[str, Any]], **options: Any) -> str:
    options = {"title": "a model", **options}
    return render_report(score(dataset, results), analyse(dataset, results), dataset, **options)


def test_the_page_is_complete(tmp_path: Path) -> None:
    dataset, results = data_set(tmp_path)
    page = Page(render(dataset, results, facts={"Zeros": "60 %"}))
    for words in (
        "a model",
        "60 %",
        AP_NAME,
        OMZ_NAME,
        "Precision and recall",
        "AP by IoU",
        "Scores",
        "By score threshold",
        "Images with most mistakes",
        "two.png",
        "Confusion matrix",
        "Classes",
        "1 found, 1 missed, 1 false",
        "1 of 3 classes have no object",
    ):
        assert words in page.text, words
    figures = score(dataset, results)
    assert (
        f"{figures.stats['AP']:.3f}" in page.text and f"{figures.coco_precision:.3f}" in page.text
    )
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    for source in images:
        media_type, data = source.split(",")
        assert media_type == "data:image/jpeg;base64"
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None and image.shape == (90, 120, 3)
        assert image.std() > 3  # boxes are drawn


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    text = render(*data_set(tmp_path))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "a"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy and "default-src 'none'" in policy


def test_untrusted_names_are_text(tmp_path: Path) -> None:
    dataset, results = data_set(tmp_path, first=EVIL, second=EVIL)
    text = render(dataset, results, title=EVIL, facts={EVIL: EVIL})
    assert "<script" not in text
    page = Page(text)  # tags still nest
    assert page.text.count(EVIL) >= 6
    assert all("script" not in tag for tag, _ in page.tags)
    assert "This image cannot be read." in page.text  # no such file
    # A name of bytes that are not UTF-8 does not keep the page from being written.
    render(*data_set(tmp_path, first="\udcff"), title="\udc80").encode("utf-8")


def test_little_data(tmp_path: Path) -> None:
    dataset, results = data_set(tmp_path, objects=0)
    nothing = Page(render(dataset, results))
    assert "there are no curves" in nothing.text and "not measured" in nothing.text
    dataset, _ = data_set(tmp_path)
    silent = Page(render(dataset, []))
    assert "0 found, 2 missed, 0 false" in silent.text
    Page(render(dataset, results, images=0))


def test_charts_hold_what_they_are_given() -> None:
    xs = np.linspace(0, 1, 5)
    svg = line_chart({"a<b": (xs, np.array([0, 1, np.nan, 0.5, 0]))}, x="x", y="y", dots=True)
    Page(svg)
    assert svg.count("<circle") == 4 and "nan" not in svg and "a<b" not in svg
    # From (0, 0) at the lower left to the highest value at the top.
    points = re.search(r'points="([^"]*)"', svg)[1].split()  # type: ignore[index]
    first, second = ([float(v) for v in point.split(",")] for point in points[:2])
    assert first == [50, 228] and second[1] == 12
    bars = log_bars(np.array([[0, 1], [10, 1000]]), ("true", "false"), x="x", y="y", x_range=(0, 1))
    heights = [float(v) for v in re.findall(r'<rect class="f\d".*?height="([\d.]+)"', bars)]
    assert heights[0] == 0 and heights[1] > 10  # one is seen
    assert heights[3] - heights[2] == pytest.approx(2 * (heights[2] - heights[1]), abs=0.2)
    Page(log_bars(np.zeros((4, 2), dtype=np.int64), ("a", "b"), x="x", y="y", x_range=(0, 1)))
    matrix = matrix_chart(np.array([[3, 0], [1, 2]]), ["cat", "a" * 40], rows="r", columns="c")
    Page(matrix)
    assert re.findall(r'<rect class="(good|bad)"[^>]*fill-opacity="([\d.]+)"', matrix) == [
        ("good", "0.78"),
        ("bad", "0.34"),
        ("good", "1.00"),
    ]
