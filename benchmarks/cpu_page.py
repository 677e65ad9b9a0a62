"""Write a section for each CPU into docs/benchmarks.md, and a row into README, from this_cpu.py.

    python benchmarks/cpu_page.py

Nothing is measured. Reads docs/results/cpu/*.json; sections and rows stand between the marks of the
documents.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_model import RESTRICTED
from lib.documents import insert
from lib.records import RESULTS, ROOT

MARK = "<!-- CPUs: benchmarks/cpu_page.py -->"
TITLES = {
    "sparsedet": "ours",
    "openvino-f32": "OpenVINO f32",
    "openvino-bf16": "OpenVINO bf16",
    "openvino-int8": "OpenVINO INT8",
    "openvino-default": "OpenVINO, its default",
}


def rate(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table, or nothing where there are no rows."""
    return (
        [row(*head), "|---" * len(head) + "|", *(row(*cells) for cells in rows), ""] if rows else []
    )


def peaks(content: dict[str, Any]) -> list[str]:
    """Peaks by instruction set, format and unit."""
    threads = str(content["machine"]["threads"])
    rows = [
        [isa, name, unit, rate(rates["1"]), rate(rates[threads])]
        for isa, formats in content["peak_gflops"].items()
        for name, units in formats.items()
        for unit, rates in units.items()
    ]
    head = ["Instruction set", "Format", "Unit", "one thread", f"{threads} threads"]
    return table(head, rows)


def layer_share(result: dict[str, Any]) -> str:
    """Share of the peak over all layers of which it is known, each by its work."""
    known = [layer for layer in result["layers"] if layer["share_of_peak"]]
    seconds = sum(layer["seconds"] for layer in known)
    if not seconds:
        return ""
    return f"{sum(layer['share_of_peak'] * layer['seconds'] for layer in known) / seconds:.0%}"


def ours(content: dict[str, Any]) -> list[str]:
    """Our times without anybody else."""
    rows = [
        [
            name,
            f"{float(zeros):.0%}",
            f"{statistics.median(result['seconds']):.3f} s",
            layer_share(result),
            f"{result['images_per_second']:.2f}",
        ]
        for name, results in content["ours"].items()
        for zeros, result in results.items()
    ]
    return table(["Ours", "Zeros", "One image", "Share of the peak", "Images/s in flight"], rows)


def compared(content: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of the comparison with OpenVINO: a row for each format, sparsity and runtime."""
    for name, run in content["against_openvino"].items():
        for result in run.get("results", []):
            flights = result.get("images_per_second", {})
            our_flight = statistics.median(flights.get("sparsedet", [0.0]))
            for runtime, times in result["seconds"].items():
                if runtime not in TITLES:
                    continue
                ratio = result["ratios"].get(runtime)
                known = "void" if result["void"] else f"{ratio['median']:.2f}x" if ratio else ""
                if content["machine"]["isa"] in RESTRICTED:
                    wide = result["openvino_health"][0]["avx512_time_share"]
                    known += f" ({wide:.1%} of its time in AVX-512)"
                flight = statistics.median(flights.get(runtime, [0.0]))
                in_flight = f"{flight:.2f}" if flight else ""
                if flight and ratio:
                    in_flight += f" ({our_flight / flight:.2f}x)"
                yield [
                    f"{name}, {result['sparsity']:.0%}",
                    TITLES[runtime],
                    f"{statistics.median(times):.3f} s",
                    known if ratio else "",
                    in_flight,
                ]


def section(content: dict[str, Any]) -> list[str]:
    """The section of one CPU."""
    machine, identity = content["machine"], content["identity"]
    sets = ", ".join(
        f"`{isa}` ({', '.join(formats)})" for isa, formats in content["instruction_sets"].items()
    )
    cycles = [machine["cycle_rates"]]
    if end := content.get("cycle_rates_at_the_end"):
        cycles.append(end)

    def span(key: str) -> str:
        return " and ".join(f"{c[key]:.2f}" for c in cycles)

    promises = ", ".join(
        f"`{name}` runs {chosen['format']}" for name, chosen in content["promises"].items()
    )
    runs = [one["machine"] for one in content["against_openvino"].values() if "machine" in one]
    runs += [one for results in content["ours"].values() for one in results.values()]
    commits = dict.fromkeys(one["commit"] for one in runs if "commit" in one)
    best = next(iter(content["instruction_sets"]))
    restricted = f", restricted to {machine['isa']}" if machine["isa"] != best else ""
    versions = machine["versions"]
    openvino = f"; OpenVINO {versions['openvino']}" if "openvino" in versions else ""
    lines = [
        f"## {machine['cpu']}, family {identity['family']}, model {identity['model']}{restricted}",
        "",
        f"{identity['vendor']}; instruction sets {sets}. {machine['threads']} threads, measured "
        f"with `{machine['isa']}`; commit {', '.join(commits)}{openvino}.",
        "",
        f"Promises: {promises}. Memory: {content['bandwidth_gb_s']:.0f} GB/s. One core loaded "
        f"{span('vector_loads')} vectors in a cycle and did {span('multiply_adds')} vector "
        "multiply-adds (at the beginning, and at the end).",
        "",
        "Peaks in GFLOP/s:",
        "",
        *peaks(content),
        *ours(content),
        *table(
            [
                "Ours, zeros",
                "Runtime",
                "One image",
                "Times ours",
                "Images/s in flight (ours by it)",
            ],
            list(compared(content)),
        ),
    ]
    failed = [
        f"{name}: {' '.join(run['failed'])}"
        for name, run in content["against_openvino"].items()
        if "failed" in run
    ]
    return [*lines, *(f"Not compared, {text}" for text in failed)]


SUMMARY = 0.6
"""The share of zeros in the row of a CPU, to the nearest tenth."""


def summary(content: dict[str, Any]) -> list[str]:
    """The row of one CPU: ours in each format, and how many times as long OpenVINO takes."""
    identity, machine = content["identity"], content["machine"]
    cells = [
        f"{machine['cpu']}, {identity['vendor']} {identity['family']}-{identity['model']}, "
        f"{machine['threads']} threads of `{machine['isa']}`"
    ]
    for name in ("f32", "bf16", "int8"):
        run = content["against_openvino"].get(name, {})
        found = [r for r in run.get("results", []) if round(r["sparsity"], 1) == SUMMARY]
        cell = ""
        for result in found[:1]:
            cell = f"{statistics.median(result['seconds']['sparsedet']):.2f} s"
            for runtime in filter(result["ratios"].get, TITLES):
                ratio = result["ratios"][runtime]["median"]
                cell += f"; {TITLES[runtime]} {'void' if result['void'] else f'**{ratio:.2f}x**'}"
        cells.append(cell)
    return cells


def summaries(contents: list[dict[str, Any]]) -> str:
    """A row for each CPU."""
    head = ["CPU", *(f"{name}, {SUMMARY:.0%} zeros" for name in ("f32", "bf16", "int8"))]
    return "\n".join(table(head, [summary(content) for content in contents])).rstrip()


def sections(contents: list[dict[str, Any]]) -> str:
    """All sections."""
    if not contents:
        return "No CPU was measured yet: `python benchmarks/this_cpu.py`."
    return "\n".join(line for content in contents for line in section(content)).rstrip()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "cpu", help="folder of the files")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README and docs")
    arguments = parser.parse_args(argv)
    contents = [
        json.loads(path.read_text())
        for path in sorted(arguments.results.glob("*.json"), key=lambda path: path.stem)
    ]
    for document, text in (("docs/benchmarks.md", sections), ("README.md", summaries)):
        insert(arguments.root / document, MARK, text(contents))
        print(f"-> {arguments.root / document}")


if __name__ == "__main__":
    main()
