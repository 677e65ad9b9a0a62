"""Draw the charts of speed from the recorded results; nothing is measured.

    python benchmarks/plots.py

Reads docs/results/*.json and writes to docs/images:

speed.svg     how many times faster than OpenVINO, against sparsity (bench_model, bench_bf16)
layers.svg    fraction of the CPU's arithmetic peak for each layer shape (bench_layers) roofline.svg
GFLOP/s of each layer shape against its FLOPs per byte (bench_layers) gains.svg     what zeros give,
and each method that `bench_model.py --ablate` leaves out (bench_model)

A chart without its results is left out.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from lib.charts import BLUE, GREEN, GREY, ORANGE, PINK, plt
from lib.records import RESULTS, ROOT
from tables import load

from sparsedet.files import write_atomic


def speed(folder: Path) -> Any:
    """Ratio to OpenVINO in the same precision against sparsity, with the range over rounds."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    lines = (  # the last item: offset of the figures from the line, in points
        ("bench_model", "openvino-f32", BLUE, 8),
        ("bench_bf16", "openvino-bf16", ORANGE, -17),
    )
    limit = None
    for name, peer, colour, offset in lines:
        run = load(folder, name)
        if run is None:
            continue
        results = [r for r in run["results"] if peer in r["ratios"] and not r["void"]]
        if not results:
            continue
        zeros = [100 * r["sparsity"] for r in results]
        ratios = [r["ratios"][peer] for r in results]
        axes.fill_between(
            zeros,
            [r["least"] for r in ratios],
            [r["most"] for r in ratios],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        label = f"{run['precision']} against OpenVINO {peer.split('-')[1]}"
        axes.plot(zeros, [r["median"] for r in ratios], "o-", color=colour, label=label)
        for x, r in zip(zeros, ratios, strict=True):
            axes.annotate(
                f"{r['median']:.2f}",
                (x, r["median"]),
                (0, offset),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
        limit = limit or (run["model"], zeros, [r["gflops"] / r["sparse_gflops"] for r in results])
    if limit is None:
        plt.close(figure)
        return None
    axes.plot(*limit[1:], ":", color=GREY, label="dense work / work by nonzero weights")
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="zeros among all parameters, %",
        ylabel="times faster than OpenVINO",
        ylim=(0.7, None),
        title=f"{limit[0]}, whole detections",
    )
    axes.legend(frameon=False, loc="upper left")
    return figure


def layers(folder: Path) -> Any:
    """Bars for each layer shape, at the recorded sparsity nearest to 60 %."""
    run = load(folder, "bench_layers")
    results = [r for r in run["results"] if not r["void"]] if run else []
    if run is None or not results:
        return None
    result = min(results, key=lambda r: abs(r["sparsity"] - 0.6))
    rows = result["layers"][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.6))
    positions = range(len(rows))
    for shift, key, colour, label in (
        (0.2, "openvino_share_of_peak", GREY, "OpenVINO, dense work"),
        (-0.2, "sparsedet_share_of_peak", BLUE, "sparsedet, work by nonzero weights"),
    ):
        axes.barh(
            [y + shift for y in positions],
            [100 * (r[key] or 0) for r in rows],
            0.4,
            color=colour,
            label=label,
        )
    for y, r in zip(positions, rows, strict=True):
        percent = 100 * max(r["sparsedet_share_of_peak"], r["openvino_share_of_peak"] or 0)
        axes.annotate(
            f"{r['ratio']:.1f}x",
            (percent, y),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=GREEN if r["ratio"] >= 1 else ORANGE,
            fontsize=9,
        )
    names = [f"{r['shape']}" + (f"  (x {r['count']})" if r["count"] > 1 else "") for r in rows]
    axes.set_yticks(positions, names, fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set(
        xlabel="fraction of the measured f32 peak, %",
        title=f"{run['model']}, {100 * result['sparsity']:.0f} % zeros; right: times faster",
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def roofline(folder: Path) -> Any:
    """GFLOP/s against FLOPs per byte, at the recorded sparsity nearest to 60 %."""
    run = load(folder, "bench_layers")
    if run is None:
        return None
    result = min(run["results"], key=lambda r: abs(r["sparsity"] - 0.6))
    peak, bandwidth = result["peak_gflops"], result["bandwidth_gb_s"]
    figure, axes = plt.subplots(figsize=(8, 5))
    points: dict[str, list[tuple[float, float]]] = {}
    for r in result["layers"]:
        domain = "regions" if "regions" in r["shape"] else "feature maps"
        kernel = next((k for k in ("3x3", "7x7") if k in r["shape"]), "1x1")
        point = 1000 * r["work_gflop"] / r["megabytes"], r["work_gflop"] / r["sparsedet_seconds"]
        points.setdefault(f"{kernel}, {domain}", []).append(point)
    colours = dict(zip(sorted(points), (BLUE, ORANGE, GREEN, PINK, "#56B4E9"), strict=False))
    for label, values in sorted(points.items()):
        axes.plot(*zip(*values, strict=True), "o", color=colours.get(label, GREY), label=label)
    low, high = min(x for p in points.values() for x, _ in p) / 2, 2000.0
    edge = peak / bandwidth
    axes.plot([low, edge, high], [low * bandwidth, peak, peak], color=GREY)
    axes.annotate(
        f"{peak:.0f} GFLOP/s, f32 peak",
        (high, peak),
        (-4, 6),
        ha="right",
        textcoords="offset points",
        color=GREY,
    )
    axes.annotate(
        f"{bandwidth:.0f} GB/s, memory",
        (low, low * bandwidth),
        (14, 4),
        textcoords="offset points",
        color=GREY,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(
        xlabel="FLOPs with nonzero weights for each byte read or written",
        ylabel="GFLOP/s",
        title=f"{run['model']}, {100 * result['sparsity']:.0f} % zeros, every layer shape",
    )
    axes.legend(frameon=False, loc="lower right")
    return figure


def gains(folder: Path) -> Any:
    """Bars: how much longer a whole detection takes without each method, the others in use."""
    run = load(folder, "bench_model")
    results = [r for r in run["results"] if not r["void"]] if run else []
    if run is None or not results:
        return None
    factors: dict[str, dict[str, float]] = {}
    for result in results:
        zeros = f"{100 * result['sparsity']:.0f} % zeros"
        if results[0]["sparsity"] < 0.01 < result["sparsity"]:
            # These two are not timed in the same rounds, so both are compared with OpenVINO, whose
            # time does not depend on zeros.
            ours, base = (r["ratios"]["openvino-f32"] for r in (result, results[0]))
            factors[zeros] = {
                "median": ours["median"] / base["median"],
                "least": ours["least"] / base["most"],
                "most": ours["most"] / base["least"],
            }
        for name, r in result["ratios"].items():
            if name.startswith("without "):
                factors[f"{name.removeprefix('without ')}, at {zeros}"] = r
    if not factors:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(factors) + 1.4))
    names = list(factors)[::-1]
    medians = [factors[n]["median"] for n in names]
    spread = [
        [factors[n]["median"] - factors[n]["least"] for n in names],
        [factors[n]["most"] - factors[n]["median"] for n in names],
    ]
    axes.barh(
        names,
        [m - 1 for m in medians],
        0.5,
        left=1,
        color=BLUE,
        xerr=spread,
        ecolor=GREY,
        capsize=3,
    )
    for y, name in enumerate(names):
        axes.annotate(
            f"{factors[name]['median']:.2f}",
            (factors[name]["most"], y),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set(xlabel="time without it / time with it", title=f"{run['model']}, {run['precision']}")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON files")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder")
    arguments = parser.parse_args(argv)
    for draw in (speed, layers, roofline, gains):
        if figure := draw(arguments.results):
            path, svg = arguments.output / f"{draw.__name__}.svg", io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            plt.close(figure)
            write_atomic(path, svg.getvalue(), overwrite=True)
            print(path)


if __name__ == "__main__":
    main()
