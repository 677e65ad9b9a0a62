"""Write the tables of speed in the documents from the recorded results; nothing is measured.

    python benchmarks/tables.py

Reads those of docs/results/bench_{model,peers,bf16,int8,avx2,embedded,load}.json that exist, and
writes the table between the marks in README.md; likewise of bench_detectors*.json into
docs/weights.md and of bench_onnx*.json into docs/onnx.md,
and of bench_{start,service,bulk,stream}.json into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lib.documents import insert
from lib.records import RESULTS, ROOT

from sparsedet.pruning.patterns import PATTERNS

MARK = "<!-- bench table: benchmarks/tables.py -->"
DETECTORS_MARK = "<!-- detectors table: benchmarks/tables.py -->"
AROUND_MARK = "<!-- around table: benchmarks/tables.py -->"
ONNX_MARK = "<!-- onnx table: benchmarks/tables.py -->"
MODELS = ("bench_model", "bench_peers", "bench_bf16", "bench_int8", "bench_avx2", "bench_embedded")
TITLES = {
    "openvino-f32": "OpenVINO f32",
    "openvino-bf16": "OpenVINO bf16",
    "openvino-int8": "OpenVINO INT8",
    "openvino-default": "OpenVINO's default",
    "torchvision's ONNX": "torchvision's ONNX in OpenVINO",
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


def compared(result: dict[str, Any], peer: str) -> str:
    """A peer's time and ratio to ours; nothing if it did not run."""
    if peer not in result["seconds"]:
        return ""
    r = result["ratios"][peer]
    return (
        f"{duration(result['seconds'][peer])}, **{r['median']:.2f}x** "
        f"({r['least']:.2f}..{r['most']:.2f})"
    )


def peers_of(results: Iterable[dict[str, Any]]) -> list[str]:
    """The runtimes that some of the results have beside ours, in the order of `TITLES`."""
    found = {name for result in results for name in result["seconds"]}
    return [name for name in TITLES if name in found]


def markdown(titles: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a table."""
    rule = "|---" * len(titles) + "|"
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, *rows)]
    return [lines[0], rule, *lines[1:]]


def circumstances(run: dict[str, Any], rounds: int, health: str) -> str:
    """What a run of other detectors or networks beside r101-c4 was measured on."""
    machine = run["machine"]
    return (
        f"{machine['threads']} threads of {machine['cpu']}, {machine['isa']}; OpenVINO "
        f"{machine['versions']['openvino']}; medians of {rounds} rounds in which all run in turn; "
        f"{health}; commit {machine['commit']}."
    )


def table(runs: list[dict[str, Any]]) -> list[str]:
    """The table: a row for each model, precision and sparsity, a column for each runtime."""
    peers = peers_of(result for run in runs for result in run["results"])
    rows = []
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
                if result["void"] and peer in result["seconds"]:
                    cells.append("not without AVX-512" if machine == "avx2" else "void")
                else:
                    cells.append(compared(result, peer))
            rows.append(cells)
    return markdown(["Model", "Zeros", "Ours", "sparsedet", *(TITLES[p] for p in peers)], rows)


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
        " ".join(
            [
                "Time of a whole detection, from an image in memory. In bold: how many times "
                "faster sparsedet is; in brackets the range over the rounds.",
                *conditions(runs),
            ]
        ),
    ]
    if run := load(folder, "bench_load"):
        lines += ["", loading(run)]
    return "\n".join(lines)


def detector_table(run: dict[str, Any]) -> str:
    """The table of one run of bench_detectors.py, and a sentence on its conditions."""
    results = run["results"]
    reference = next(iter(results))
    main = f"openvino-{run['precision']}"
    peers = peers_of(result for found in results.values() for result in found)
    titles = ["Detector", "Zeros: prunable, all", "sparsedet", *(TITLES[peer] for peer in peers)]
    titles += [f"Of `{reference}`'s ratio", "Post-processing", "Forecast"]
    rows = []
    ratios = {r["share_of_zeros"]: r["ratios"][main]["median"] for r in results[reference]}
    for kind, found in results.items():
        if kind.endswith("again"):
            continue
        for result in found:
            share = result["share_of_zeros"]
            seconds = statistics.median(result["seconds"]["sparsedet"])
            cells = [
                f"`{kind}`",
                f"{share:.0%}, {result['sparsity']:.0%}",
                duration(result["seconds"]["sparsedet"]),
            ]
            cells += [compared(result, peer) for peer in peers]
            cells += [
                f"{result['ratios'][main]['median'] / ratios[share]:.2f}",
                f"{result['after_share']:.1%}",
                f"{result['forecast_seconds'] / seconds:.2f}",
            ]
            rows.append(cells)
    health = [
        h["share_of_peak"]
        for kind, found in results.items()
        if kind.startswith(reference)
        for r in found
        if r["share_of_zeros"] == 0
        for h in r["openvino_health"]
        if h["precision"] == run["precision"]
    ]
    shares = " and ".join(f"{100 * share:.1f}" for share in health)
    words = (
        f"OpenVINO's dense `{reference}` reaches {shares} % of the measured peak before and after"
    )
    rounds = len(results[reference][0]["seconds"]["sparsedet"])
    lines = [
        *markdown(titles, rows),
        "",
        f"{run['precision']}, {circumstances(run, rounds, words)}",
    ]
    return "\n".join(lines)


def onnx_table(run: dict[str, Any]) -> str:
    """The table of one run of bench_onnx.py, and its conditions."""
    results = [(name, r) for name, found in run["results"].items() for r in found]
    peers = peers_of(result for _, result in results)
    titles = ["Network", "Zeros: prunable, all", "sparsedet", *(TITLES[peer] for peer in peers)]
    titles += ["Of `r101-c4`'s ratio", "Post-processing"]
    rows = []
    for name, result in results:
        cells = [f"`{name}`", f"{result['share']:.0%}, {result['sparsity']:.0%}"]
        cells.append(duration(result["seconds"]["sparsedet"]))
        cells += [compared(result, peer) for peer in peers]
        reference = run["reference"].get(str(result["share"]))
        gain = result["ratios"]["openvino-f32"]["median"]
        cells.append(f"{gain / reference:.2f}" if reference else "")
        cells.append(f"{result['after_share']:.1%}" if result["rows"] > 1 else "")
        rows.append(cells)
    rounds = len(results[0][1]["seconds"]["sparsedet"])
    shares = [100 * h["share_of_peak"] for h in run["health"] if h["share_of_peak"]]
    health = (
        f"dense r101-c4 in OpenVINO reaches {min(shares):.0f} to {max(shares):.0f} % of the CPU's "
        "f32 peak"
        if shares
        else "no health was measured"
    )
    return "\n".join(
        [
            *markdown(titles, rows),
            "",
            "Seeded random weights and zeros: times, not accuracies. Ours ends with detections or "
            "logits, OpenVINO with the raw tensors. In bold: how many times faster sparsedet is.",
            circumstances(run, rounds, health),
        ]
    )


def of_start(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("import sparsedet", "sparsedet --help", "sparsedet detect, annotated"):
        yield f"`{name.split(',')[0]}`, a whole process", duration(run["seconds"][name])
    above = run["above"]
    yield (
        "... of `detect`, above the detection; above loading and detection",
        f"{1000 * above['detection']:.0f} ms; {1000 * above['loading_and_detection']:.0f} ms",
    )


def of_service(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "`serve`, from its start to the first answer",
        f"{run['start_to_first_answer']['seconds']:.2f} s",
    )
    above = run["alone"]["milliseconds_above_detection"]
    yield "... a request, above its detection", f"{above:.1f} ms"
    rates = run["throughput"]
    yield (
        "... images a second, a stream for each CPU",
        f"{rates['images_per_second']:.1f}, {rates['share_of_engine']:.0%} of the engine's",
    )
    if "overload" not in run:
        return
    over = run["overload"]
    then, later = (over["memory_mb"][name] for name in ("second_tenth", "last_tenth"))
    answers = ", ".join(f"{count} times {status}" for status, count in over["statuses"].items())
    yield (
        f"... at four times that rate, {over['minutes']:g} minutes",
        f"{answers}; 99 % of the accepted within {over['p99_milliseconds']:.0f} ms; memory "
        f"{then:.0f} MB, then {later:.0f} MB",
    )


def of_bulk(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, words in (("bulk", "`bulk`"), ("ray", "`bulk --ray local`")):
        if name in run:
            one = run[name]
            yield (
                f"{words}, images a second",
                f"{one['images_per_second']:.1f}, {one['share_of_stream']:.0%} of "
                "`Detector.stream`'s",
            )


def of_stream(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows, drawn = run["rows"], run["annotated"]
    yield (
        f"`detect` on a video of {run['frames']} frames, rows alone",
        f"{rows['fps']:.1f} frames/s, {rows['share_of_engine_fps']:.0%} of the engine's",
    )
    yield (
        "... annotated",
        f"{drawn['fps']:.1f} frames/s; the engine has {drawn['engine_share_of_cpu']:.0%} of the "
        "CPU time",
    )


AROUND = {"start": of_start, "service": of_service, "bulk": of_bulk, "stream": of_stream}
"""Name of a benchmark -> what it measured, as (what, figure)."""


def around_table(folder: Path) -> str:
    """What surrounds the engine: the start of the program, the service, bulk runs, video."""
    found = {name: load(folder, f"bench_{name}") for name in ("start", "service", "bulk", "stream")}
    runs = {name: run for name, run in found.items() if run}
    if not runs:
        return "Not measured yet: `python benchmarks/bench_service.py --json FILE`."
    rows = [list(row) for name, run in runs.items() for row in AROUND[name](run)]
    machine = next(iter(runs.values()))["machine"]
    commits = dict.fromkeys(run["machine"]["commit"] for run in runs.values())
    return "\n".join(
        [
            *markdown(["What", "Measured"], rows),
            "",
            "The program starts with the default model, the others run `r50half-c4`; images of "
            f"640x480; {machine['threads']} threads of "
            f"{machine['cpu']}, {machine['isa']}; clients on the same cores; commit "
            f"{', '.join(commits)}.",
        ]
    )


def tables(folder: Path, name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """Tables of all runs of a benchmark that count."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}*.json"))]
    counting = [table(run) for run in runs if not run["void"]]
    return "\n\n".join(counting) or f"Not measured yet: `python benchmarks/{name}.py --json FILE`."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON files")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with the documents")
    arguments = parser.parse_args(argv)
    folder = arguments.results
    for document, mark, content in (
        ("README.md", MARK, text(folder)),
        ("docs/weights.md", DETECTORS_MARK, tables(folder, "bench_detectors", detector_table)),
        ("docs/onnx.md", ONNX_MARK, tables(folder, "bench_onnx", onnx_table)),
        ("docs/benchmarks.md", AROUND_MARK, around_table(folder)),
    ):
        insert(arguments.root / document, mark, content)
        print(content)


if __name__ == "__main__":
    main()
