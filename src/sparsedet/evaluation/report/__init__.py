"""An evaluation as one self-contained HTML file, which loads nothing and runs no script.

Shows what `evaluate` and `analyse` computed, with charts as inline SVG and images as JPEG data.
Names of files and classes are untrusted and are escaped. Computes no figure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...images.read import read_image
from .. import AP_NAME, OMZ_NAME, CocoScores
from ..analysis import FEW, Analysis
from ..coco import CocoDataset
from ..confusion import ImageOutcome
from .charts import line_chart, log_bars, matrix_chart, spark

IMAGES = 12
"""Images shown, those with most mistakes."""

_PANEL = 460  # longest side of an image on the page, pixels
_QUALITY = 78  # JPEG quality
# Okabe and Ito's colours (BGR), as the legend names them.
_FOUND, _MISSED, _FALSE, _CROWD = (115, 158, 0), (0, 94, 213), (167, 121, 204), (150, 150, 150)
_RECALLS = np.linspace(0, 1, 101)

_MEANING = {
    "AP": "mean over IoU 0.50 to 0.95 and classes",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects below 32² pixels",
    "APm": "32² to 96²",
    "APl": "above 96²",
    "AR1": "recall, 1 detection an image and class",
    "AR10": "10 detections",
    "AR100": "100 detections",
    "ARs": "objects below 32² pixels",
    "ARm": "32² to 96²",
    "ARl": "above 96²",
}


def render_report(
    scores: CocoScores,
    analysis: Analysis,
    dataset: CocoDataset,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    images: int = IMAGES,
) -> str:
    """The page.

    Args:
        scores, analysis: computed from the same results over `dataset`.
        dataset: its images are read again; one that cannot be read is only named.
        title: title of the page, such as the model's name.
        facts: lines under the title, name -> value.
        images: number of images to show.
    """
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    sections = [
        _figures(scores, analysis),
        _charts(analysis),
        _images(analysis, dataset, images),
        _confusion(analysis),
        _classes(scores, analysis),
        _notes(scores, analysis),
    ]
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in (facts or {}).items()
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # If a name were not escaped after all, it could still load and run nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)} - evaluation</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><dl>{lines}</dl></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )
    # A file name may have bytes that are not UTF-8; the page must be written all the same.
    return page.encode("utf-8", "replace").decode()


def _figures(scores: CocoScores, analysis: Analysis) -> str:
    def tile(name: str, value: float, note: str) -> str:
        return (
            f'<div class="tile"><span>{escape(name)}</span><b>{_figure(value)}</b>'
            f"<small>{escape(note)}</small></div>"
        )

    def interval(name: str) -> str:
        entry = analysis.intervals.get(name)
        return f"95 % interval {entry.low:.3f} to {entry.high:.3f}" if entry else "not measured"

    def of_masks(name: str) -> str:
        return "" if scores.mask_stats is None else f"<td>{_figure(scores.mask_stats[name])}</td>"

    best_note, f1 = "no object was found", -1.0
    if best := analysis.best_score():
        best_note = f"scores from {best[0]:.2f}: precision {best[1]:.2f}, recall {best[2]:.2f}"
        f1 = best[3]
    tiles = [
        tile(AP_NAME, scores.stats["AP"], interval("AP")),
        tile(
            OMZ_NAME, scores.coco_precision, "counted as the published Open Model Zoo figures are"
        ),
        tile("AP50", scores.stats["AP50"], interval("AP50")),
        tile("Best F1", f1, best_note),
    ]
    rows = "".join(
        f"<tr><th>{name}</th><td>{_figure(value)}</td>{of_masks(name)}<td>{_MEANING[name]}</td>"
        "</tr>"
        for name, value in scores.stats.items()
    )
    if scores.mask_stats is not None:
        rows = f"<tr><th></th><th>boxes</th><th>masks</th><th></th></tr>{rows}"
    true_positives, false_negatives, false_positives = analysis.counts()
    return (
        f'<section><div class="tiles">{"".join(tiles)}</div>'
        f"<p>{true_positives + false_negatives:,} objects on {scores.images:,} images. "
        f"At IoU {analysis.iou:g} and scores from {analysis.score:g}: <b>{true_positives:,}</b> "
        f"found, <b>{false_negatives:,}</b> missed, <b>{false_positives:,}</b> false "
        "detections.</p>"
        f'<details><summary>All twelve COCO figures</summary><table class="coco">{rows}</table>'
        "</details></section>"
    )


def _charts(analysis: Analysis) -> str:
    if not analysis.curves:
        return "<section><p>No object in the ground truth: there are no curves.</p></section>"
    by_score = analysis.by_score
    names = ("precision", "recall", "F1")
    best = analysis.best_score()
    advice = f" F1 is best at {best[0]:.2f}, a threshold to start from." if best else ""
    figures = [
        _chart(
            "Precision and recall",
            ("IoU 0.50", "IoU 0.75"),
            line_chart(
                {f"IoU {t}": (_RECALLS, curve) for t, curve in analysis.curves[""].items()},
                x="recall",
                y="precision",
            ),
            "Mean over the classes that have objects; the area below a line is AP50 and AP75.",
        ),
        _chart(
            "By score threshold",
            names,
            line_chart(
                {name: (_RECALLS, by_score[:, i]) for i, name in enumerate(names)},
                x="score threshold",
                y="all classes together",
            ),
            f"At IoU {analysis.iou:g}.{advice}",
        ),
        _chart(
            "AP by IoU",
            (),
            line_chart(
                {"AP at IoU": (np.linspace(0.5, 0.95, 10), analysis.ap_by_iou)},
                x="IoU threshold",
                y="AP",
                x_range=(0.5, 1.0),
                dots=True,
                y_top=next(t for t in (0.1, 0.2, 0.5, 1.0) if analysis.ap_by_iou.max() <= t + 1e-9),
            ),
            "AP falls as boxes must fit better; AP is the mean of the ten values.",
        ),
        _chart(
            "Scores",
            ("true positives", "false positives"),
            log_bars(
                analysis.histogram,
                ("true positives", "false positives"),
                x="score",
                y="detections",
                x_range=(0, 1),
            ),
            f"All detections in steps of 0.05, at IoU {analysis.iou:g}; the scale is logarithmic. "
            "With a better detector there is more blue to the right of the orange.",
        ),
    ]
    return f'<section><h2>Curves</h2><div class="charts">{"".join(figures)}</div></section>'


def _chart(title: str, legend: tuple[str, ...], svg: str, caption: str) -> str:
    keys = "".join(f'<span><i class="k{i}"></i>{name}</span>' for i, name in enumerate(legend, 1))
    return (
        f'<figure><h3>{title}</h3><div class="legend">{keys}</div>{svg}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _images(analysis: Analysis, dataset: CocoDataset, count: int) -> str:
    shown = [outcome for outcome in analysis.images[:count] if outcome.mistakes]
    if not shown:
        return ""
    paths = {image.id: dataset.image_path(image) for image in dataset.images}
    figures = []
    for outcome in shown:
        try:
            image = read_image(paths[outcome.image_id])
        except InputError:
            panels = "<p>This image cannot be read.</p>"
        else:
            ground_truth, detections = _panels(image, outcome, analysis)
            panels = (
                f'<div class="pair"><img src="{_jpeg(ground_truth)}" alt="ground truth">'
                f'<img src="{_jpeg(detections)}" alt="detections"></div>'
            )
        figures.append(
            f"<figure>{panels}<figcaption><b>{escape(outcome.file_name)}</b> "
            f"{len(outcome.found)} found, {len(outcome.false_negatives)} missed, "
            f"{len(outcome.false_positives)} false</figcaption></figure>"
        )
    keys = (
        ("found", _FOUND),
        ("missed", _MISSED),
        ("false", _FALSE),
        ("crowd region, or a detection in one", _CROWD),
    )
    legend = "".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{name}</span>'
        for name, (b, g, r) in keys
    )
    return (
        f'<section><h2>Images with most mistakes</h2><div class="legend">{legend}</div>'
        f"<p>Left the ground truth, right the detections with scores from {analysis.score:g}.</p>"
        f'<div class="photos">{"".join(figures)}</div></section>'
    )


def _panels(
    image: NDArray[np.uint8], outcome: ImageOutcome, analysis: Analysis
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two small copies of the image: with its objects, and with the detections."""
    scale = min(1.0, _PANEL / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    ground_truth, detected = small.copy(), small.copy()
    for i, entry in enumerate(outcome.objects):
        missed = i in outcome.false_negatives
        colour = _CROWD if entry["iscrowd"] else _MISSED if missed else _FOUND
        label = analysis.names[entry["category_id"]] if missed else ""
        _box(ground_truth, entry["bbox"], scale, colour, label)
    for i, entry in reversed(list(enumerate(outcome.detections))):  # the best on top
        false = i in outcome.false_positives
        colour = _CROWD if i in outcome.ignored else _FALSE if false else _FOUND
        name = f"{analysis.names[entry['category_id']]} {entry['score']:.2f}"
        _box(detected, entry["bbox"], scale, colour, name if false else "")
    return ground_truth, detected


def _box(
    image: NDArray[np.uint8],
    xywh: list[float],
    scale: float,
    colour: tuple[int, int, int],
    label: str,
) -> None:
    """Draw a box (x, y, width, height) of the full-size image into its small copy."""
    limit = 2.0 * max(image.shape)  # a box far outside would overflow OpenCV's integers
    x, y, w, h = (float(np.clip(v * scale, -limit, limit)) for v in xywh)
    corners = (round(x), round(y)), (round(x + w), round(y + h))
    cv2.rectangle(image, *corners, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.rectangle(image, *corners, colour, 2, cv2.LINE_AA)
    if label and w > 24:
        text = label.encode("ascii", "replace").decode()  # OpenCV's fonts are ASCII
        at = (max(2, round(x) + 3), max(11, round(y) + 12))
        for ink, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(
                image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, ink, thickness, cv2.LINE_AA
            )


def _jpeg(image: NDArray[np.uint8]) -> str:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _confusion(analysis: Analysis) -> str:
    confusion = analysis.confusion
    used = np.flatnonzero(confusion.matrix.any(axis=0) | confusion.matrix.any(axis=1))
    if not used.size:
        return ""
    names = [confusion.names[i] for i in used]
    svg = matrix_chart(confusion.matrix[np.ix_(used, used)], names, rows="detected", columns="true")
    rows = "".join(
        f"<tr><td>{escape(true)}</td><td>{escape(detected)}</td><td>{times}</td></tr>"
        for true, detected, times in confusion.mistaken()[:15]
    )
    table = (
        "<table><thead><tr><th>true</th><th>detected as</th><th>times</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    left_out = len(confusion.names) - len(used)
    absent = f" {left_out} classes that do not occur are left out." if left_out > 0 else ""
    return (
        "<section><h2>Confusion matrix</h2>"
        f"<p>IoU from {analysis.iou:g}, scores from {analysis.score:g}. Columns are the objects, "
        "rows the classes detected there; colour is the fraction of the column. The last row "
        "counts missed objects, the last column false detections where no object is. A class "
        f"counts as mistaken only where no detection of the right class was left.{absent}</p>"
        f'<div class="confusion"><div class="scroll">{svg}</div>{table if rows else ""}</div>'
        "</section>"
    )


def _classes(scores: CocoScores, analysis: Analysis) -> str:
    measured = [(name, row) for name, row in scores.per_class.items() if row["boxes"]]
    rows = []
    for name, row in sorted(measured, key=lambda item: -item[1]["AP"]):
        few = ' class="few"' if row["boxes"] < FEW else ""
        curve = spark(list(analysis.curves[name].values()), f"precision over recall of {name}")
        bar = f'<span class="bar"><i style="width:{100 * row["AP"]:.1f}%"></i></span>'
        rows.append(
            f"<tr{few}><th>{escape(name)}</th><td>{curve}</td><td>{bar} {_figure(row['AP'])}</td>"
            f"<td>{_figure(row['AP50'])}</td><td>{_figure(row['coco_precision'])}</td>"
            f"<td>{row['boxes']:,}</td><td>{row['images']:,}</td></tr>"
        )
    if not rows:
        return ""
    return (
        '<section><h2>Classes</h2><div class="legend"><span><i class="k1"></i>IoU 0.50</span>'
        '<span><i class="k2"></i>IoU 0.75</span></div>'
        f"<p>Best first. Classes in grey have fewer than {FEW} objects.</p>"
        '<div class="scroll"><table class="classes"><thead><tr><th>class</th>'
        "<th>precision over recall</th><th>AP</th><th>AP50</th><th>AP (Open Model Zoo)</th>"
        f"<th>objects</th><th>images</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        "</section>"
    )


def _notes(scores: CocoScores, analysis: Analysis) -> str:
    lines = [
        f"<b>{AP_NAME}</b> is COCO's own figure.",
        f"<b>{OMZ_NAME}</b> is the figure that Open Model Zoo's accuracy checker reports and that "
        "is published there. It compares crowd regions by plain IoU, leaves out images without "
        "annotations, and lets an object be found twice if the best detection of its class in the "
        "image found it. Do not compare figures of the two kinds.",
        "The intervals come from resampling the images 1,000 times (bootstrap), 1.96 standard "
        "deviations to either side: how far a figure would move with other images of the same "
        "kind. They do not cover training again.",
        *(escape(line) for line in (*analysis.caveats(), *scores.warnings)),
    ]
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"<section><h2>How to read this</h2><ul>{items}</ul></section>"


def _figure(value: float) -> str:
    return "-" if value < 0 or np.isnan(value) else f"{value:.3f}"
