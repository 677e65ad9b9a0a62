"""Small charts as inline SVG; the page's style sheet sets colours for light, dark and print.

Draws only, computes nothing. All SVG of the report is made here, with its text escaped. Colours are
the CSS variables --c1, --c2, --c3 of the page; text has the class "t".
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

_W, _H = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 42  # margins of the plotting area


def line_chart(
    series: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    x: str,
    y: str,
    x_range: tuple[float, float] = (0, 1),
    y_top: float = 1.0,
    dots: bool = False,
) -> str:
    """Up to three lines over a common x. NaN points are left out.

    Args:
        series: name -> (x, y).
        x, y: names of the axes.
        x_range: ends of the x axis.
        y_top: upper end of the y axis, which starts at 0.
        dots: mark the points.
    """
    ticks = {value / y_top: f"{value:g}" for value in _steps(0, y_top)}
    parts = [_axes(x, y, _steps(*x_range), ticks)]
    for number, (name, (xs, ys)) in enumerate(series.items(), start=1):
        points = [
            (
                _LEFT + (a - x_range[0]) / (x_range[1] - x_range[0]) * (_W - _LEFT - _RIGHT),
                _H - _BOTTOM - b / y_top * (_H - _TOP - _BOTTOM),
                f"{name} {a:.2f}: {b:.3f}",
            )
            for a, b in zip(xs.tolist(), ys.tolist(), strict=True)
            if not np.isnan(b)
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline class="l c{number}" points="{path}"/>')
        if dots:
            parts += [
                f'<circle class="f{number}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
                f"<title>{escape(tip)}</title></circle>"
                for px, py, tip in points
            ]
    return _svg(_W, _H, "".join(parts), f"{y} over {x}: {', '.join(series)}")


def log_bars(
    values: NDArray[np.int64], names: Sequence[str], *, x: str, y: str, x_range: tuple[float, float]
) -> str:
    """Counts over `x_range` as bars, side by side in each bin, on a logarithmic scale.

    False positives of low scores outnumber all others by far and would hide them on a linear scale.

    Args:
        values: (bins, series) counts.
        names: names of the series.
        x, y: names of the axes.
        x_range: ends of the x axis.
    """
    bins, number = values.shape
    top = max(1, int(np.ceil(np.log10(max(int(values.max(initial=0)), 2)))))
    height = _H - _TOP - _BOTTOM
    # A count of 1 is a little above the axis, 0 is on it.
    level = {0: 0.0} | {int(v): (np.log10(v) + 0.25) / (top + 0.25) for v in np.unique(values) if v}
    ticks = {0.0: "0"} | {(i + 0.25) / (top + 0.25): f"{10**i:,}" for i in range(top + 1)}
    parts = [_axes(x, y, _steps(*x_range), ticks)]
    width = (_W - _LEFT - _RIGHT) / bins
    bin_width = (x_range[1] - x_range[0]) / bins
    for i, row in enumerate(values.tolist()):
        start = x_range[0] + i * bin_width
        counts = ", ".join(f"{name} {v}" for name, v in zip(names, row, strict=True))
        bars = "".join(
            f'<rect class="f{n + 1}" x="{_LEFT + (i + (n + 0.1) * 0.9 / number) * width:.1f}" '
            f'y="{_H - _BOTTOM - height * level[v]:.1f}" width="{width * 0.85 / number:.1f}" '
            f'height="{height * level[v]:.1f}"/>'
            for n, v in enumerate(row)
        )
        tip = escape(f"{start:.2f} to {start + bin_width:.2f}: {counts}")
        parts.append(f"<g><title>{tip}</title>{bars}</g>")
    return _svg(_W, _H, "".join(parts), f"{y} over {x}: {', '.join(names)}")


def spark(curves: Sequence[NDArray[np.float64]], text: str) -> str:
    """A thumbnail of curves, both axes from 0 to 1 and without labels; `text` describes it."""
    w, h = 100, 64
    parts = [f'<rect class="frame" x=".5" y=".5" width="{w - 1}" height="{h - 1}"/>']
    for number, curve in enumerate(curves, start=1):
        xs = np.linspace(1, w - 1, len(curve)).tolist()
        points = " ".join(
            f"{a:.0f},{h - 1 - b * (h - 2):.0f}" for a, b in zip(xs, curve.tolist(), strict=True)
        )
        parts.append(f'<polyline class="l c{number}" points="{points}"/>')
    return _svg(w, h, "".join(parts), text)


def matrix_chart(
    matrix: NDArray[np.int64], names: Sequence[str], *, rows: str, columns: str
) -> str:
    """A confusion matrix as a grid: colour is the fraction of the column, counts where they fit.

    Args:
        matrix: (n, n) counts.
        names: names of the n rows and of the n columns.
        rows, columns: titles of the axes.
    """
    n = len(names)
    cell = max(11, min(44, 640 // n))
    labels = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    font = min(12, cell - 2)
    margin = 40 + round(0.62 * font * max(map(len, labels)))
    side = n * cell
    parts = []
    for i in range(n + 1):
        at = margin + i * cell
        parts.append(f'<path class="grid" d="M{margin} {at}h{side}M{at} {margin}v{side}"/>')
    for i, name in enumerate(map(escape, labels)):
        base = margin + (i + 0.5) * cell + font * 0.35
        parts.append(
            f'<text class="t e" x="{margin - 5}" y="{base:.1f}" font-size="{font}">{name}</text>'
            f'<text class="t" transform="translate({base:.1f},{margin - 5}) rotate(-90)" '
            f'font-size="{font}">{name}</text>'
        )
    totals = np.maximum(matrix.sum(axis=0), 1)
    for row, column in np.argwhere(matrix).tolist():
        count = int(matrix[row, column])
        fraction = count / int(totals[column])
        x, y = margin + column * cell, margin + row * cell
        tip = escape(
            f"{columns} {names[column]}, {rows} {names[row]}: {count} "
            f"({100 * fraction:.0f} % of the column)"
        )
        style = "good" if row == column else "bad"
        text = ""
        if cell >= 22:
            text = (
                f'<text class="t m" x="{x + cell / 2}" y="{y + cell / 2 + 4}" '
                f'font-size="{min(11, cell // 3)}">{count}</text>'
            )
        parts.append(
            f'<g><title>{tip}</title><rect class="{style}" x="{x}" y="{y}" width="{cell}" '
            f'height="{cell}" fill-opacity="{0.12 + 0.88 * fraction:.2f}"/>{text}</g>'
        )
    middle = margin + side / 2
    parts.append(
        f'<text class="t m axis" x="{middle}" y="14" font-size="13">{escape(columns)}</text>'
        f'<text class="t m axis" transform="translate(14,{middle}) rotate(-90)" font-size="13">'
        f"{escape(rows)}</text>"
    )
    return _svg(margin + side + 2, margin + side + 2, "".join(parts), f"{rows} against {columns}")


def _axes(x: str, y: str, x_ticks: list[float], y_ticks: dict[float, str]) -> str:
    """Both axes; `y_ticks`: height as a fraction of the plotting area -> text."""
    parts = []
    for height, text in y_ticks.items():
        at = _H - _BOTTOM - height * (_H - _TOP - _BOTTOM)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="t e" x="{_LEFT - 6}" y="{at + 4:.1f}">{text}</text>'
        )
    span = x_ticks[-1] - x_ticks[0]
    for value in x_ticks:
        at = _LEFT + (value - x_ticks[0]) / span * (_W - _LEFT - _RIGHT)
        parts.append(f'<text class="t m" x="{at:.1f}" y="{_H - _BOTTOM + 16}">{value:g}</text>')
    middle = (_TOP + _H - _BOTTOM) / 2
    parts.append(
        f'<text class="t m axis" x="{(_LEFT + _W - _RIGHT) / 2}" y="{_H - 6}">{escape(x)}</text>'
        f'<text class="t m axis" transform="translate(13,{middle}) rotate(-90)">'
        f"{escape(y)}</text>"
    )
    return "".join(parts)


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high` or just above it."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    count = int(np.ceil((high - low) / step - 1e-9))
    return [round(float(low + i * step), 6) for i in range(count + 1)]


def _svg(width: float, height: float, content: str, text: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(text)}">'
        f"{content}</svg>"
    )
