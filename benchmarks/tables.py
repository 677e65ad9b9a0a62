"""Write the benchmark table of the README from the recorded results; nothing is measured.

    python benchmarks/tables.py

Reads those of docs/results/bench_{model,peers,bf16,int8,avx2,embedded,load}.json that exist, and
writes the table between the marks in README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from lib.documents import insert
from lib.machine import RESULTS, ROOT

from sparsedet.pruning.patterns import PATTERNS

MARK = "<!-- bench table: benchmarks/tables.py -->"
MODELS = ("bench_model", "bench_peers", "bench_bf16", "bench_int8", "bench_avx2", "bench_embedded")
TITLES = {
    "openvino-f32": "OpenVINO f32",
    "openvino-bf16": "OpenVINO bf16",
    "openvino-int8": "OpenVINO INT8",
    "onnxruntime": "ONNX Runtime f32",
    "torch": "PyTorch f32",
}


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """A recorded result; None if there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def duration(times: list[float]) -> str:
    """The median with its unit, s or ms."""
    seconds = statistics.median(times)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def table(runs: list[dict[str, Any]]) -> list[str]:
    """The table: a row for each model, precision and sparsity, a column for each runtime."""
    peers = [p for p in TITLES if any(p in r["seconds"] for run in runs for r in run["results"])]
    lines = [
        "| Model | Zeros | Ours | sparsedet | " + " | ".join(TITLES[p] for p in peers) + " |",
        "|---" * (4 + len(peers)) + "|",
    ]
    for run in runs:
        for result in run["results"]:
            machine = run["machine"]["isa"]
            weights = run.get("weights", "")
            block = next((name for name in PATTERNS if f"{name} zeros" in weights), "")
            pattern = f" in {block} blocks" if block else ""
            cells = [
                f"`{run['model']}`",
                f"{100 * result['sparsity']:.0f} %{pattern}",
                run["precision"] + (", AVX2" if machine == "avx2" else ""),
                duration(result["seconds"]["sparsedet"]),
            ]
            for peer in peers:
                if peer not in result["seconds"]:
                    cells.append("")
                elif result["void"]:
                    cells.append("not without AVX-512" if machine == "avx2" else "void")
                else:
                    r = result["ratios"][peer]
                    cells.append(
                        f"{duration(result['seconds'][peer])}, **{r['median']:.2f}x** "
                        f"({r['least']:.2f}..{r['most']:.2f})"
                    )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def conditions(runs: list[dict[str, Any]]) -> list[str]:
    """Sentences on the machine, the versions and the rounds of the measurement."""
    machine = runs[0]["machine"]
    versions = ", ".join(
        f"{title} {machine['versions'][package]}"
        for package, title in (
            ("openvino", "OpenVINO"),
            ("onnxruntime", "ONNX Runtime"),
            ("torch", "PyTorch"),
        )
        if package in machine["versions"]
    )
    lines = [f"{machine['threads']} threads of {machine['cpu']}, {machine['isa']}; {versions}."]
    for run in runs:
        percents = [
            100 * h["share_of_peak"]
            for r in run["results"]
            for h in r["openvino_health"]
            if h["precision"] == run["precision"]
        ]
        span = f"{min(percents):.0f}"
        if f"{max(percents):.0f}" != span:
            span += f" to {max(percents):.0f}"
        peers = [TITLES[p] for p in TITLES if p in run["results"][0]["seconds"]]
        lines.append(
            f"`{run['model']}` against {', '.join(peers)}: medians of "
            f"{len(run['results'][0]['seconds']['sparsedet'])} rounds in which all run in turn; "
            f"OpenVINO's dense work reaches {span} % of the CPU's measured "
            f"{run['precision']} peak; commit {run['machine']['commit']}."
        )
    return lines


def loading(run: dict[str, Any]) -> str:
    """The sentence on whole processes."""
    result = run["results"][0]
    costs = {
        name: f"{statistics.median(seconds):.2f} s and "
        f"{statistics.median(result['peak_memory_mb'][name]):.0f} MB of memory"
        for name, seconds in result["seconds"].items()
    }
    cached = f" ({costs['cached']} with packed weights from a file)" if "cached" in costs else ""
    return (
        f"A whole process from files to the first detection, `{run['model']}` with "
        f"{100 * result['sparsity']:.0f} % zeros: {costs['sparsedet']}{cached}; OpenVINO f32: "
        f"{costs['openvino']}."
    )


def text(folder: Path) -> str:
    """The whole text between the marks."""
    runs = [run for name in MODELS if (run := load(folder, name))]
    if not runs:
        return "Not measured yet: `python benchmarks/bench_model.py --json FILE`."
    lines = table(runs)
    lines += [
        "",
        "Time of a whole detection, from an image in memory. In bold: how many times faster "
        "sparsedet is; in brackets the range over the rounds.",
    ]
    lines += conditions(runs)
    if run := load(folder, "bench_load"):
        lines += ["", loading(run)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON files")
    parser.add_argument("--document", type=Path, default=ROOT / "README.md", help="file to change")
    arguments = parser.parse_args(argv)
    content = text(arguments.results)
    insert(arguments.document, MARK, content)
    print(content)


if __name__ == "__main__":
    main()
