"""AP against sparsity for each pruning method, and the error of each layer.

    python benchmarks/bench_pruning.py --annotations VAL.json --images FOLDER \\
      --calibration FOLDER [--dense FILE] \\
      [--gradual 0.6=RUN 0.8=RUN --tuned 0.6=RUN --dense-continued RUN]

Writes docs/results/bench_pruning.json, docs/images/pruning.svg, and the tables between the marks of
docs/pruning.md. --name is for another detector: its files and its table have that name.

One-shot pruning, by magnitude and by reconstruction, to each of --sparsities, is done here: from
--dense, with images of --calibration that are not among --images. Gradual pruning with fine-tuning
(--gradual), and reconstruction followed by fine-tuning (--tuned), are finished models: files or run
folders. The engine scores every model. The difference to a model's baseline has a paired bootstrap
interval over --images. The baseline of one-shot pruning is --dense; that of --gradual and --tuned
is --dense-continued, trained for the same number of steps with the same schedule, but not pruned.

Pruned models and detections are kept in --work under names that depend on their inputs. A run that
was interrupted continues; another dense model, other names of images or changed pruning code start
from the beginning.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.documents import insert
from lib.records import RESULTS, ROOT, describe, save

import sparsedet
from sparsedet.evaluation import evaluate, score_results
from sparsedet.evaluation.bootstrap import paired_bootstrap
from sparsedet.evaluation.coco import load_coco
from sparsedet.files import sha256_of, write_atomic
from sparsedet.pruning.one_shot import OneShotConfig
from sparsedet.pruning.run import prune_files
from sparsedet.sources.folder import find_images

NAME = "pruning"
CODE = (
    "allocation",
    "calibration",
    "sensitivity",
    "one_shot",
    "patterns",
    "positions",
    "reconstruct",
    "schedule",
    "selection",
)
"""Modules of `sparsedet.pruning`; a change in one of them makes kept models invalid."""
TITLES = {
    "magnitude": "one-shot, magnitude",
    "reconstruct": "one-shot, reconstruction",
    "tuned": "one-shot, reconstruction, then fine-tuned",
    "gradual": "gradual, fine-tuned",
}
ONE_SHOT = ("magnitude", "reconstruct")
TRAINED = ("tuned", "gradual")
"""Methods whose baseline was trained for as many steps."""


def mark(name: str) -> str:
    """Where a table begins in the document."""
    return f"<!-- {name} table: benchmarks/bench_pruning.py -->"


def digest(*parts: str) -> str:
    """A short name that depends on all parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def model_file(path: Path) -> Path:
    """A run folder's result, or the file itself."""
    return path / "model.safetensors" if path.is_dir() else path


def pruned(dense: Path, method: Any, sparsity: float, images: Path, count: int, work: Path) -> Path:
    """Folder of a model with one-shot pruning, done now or by an earlier run.

    Args:
        dense: the model to prune.
        method: "magnitude" or "reconstruct".
        images: folder of calibration images.
        count: number of calibration images.
        work: folder of kept results.
    """
    source = Path(sparsedet.__file__).parent / "pruning"
    code = [sha256_of(source / f"{name}.py") for name in CODE]
    names = sorted(path.name for path in find_images(images))
    name = digest(sha256_of(dense), method, str(sparsity), str(count), *names, *code)
    folder = work / f"{method}-{sparsity:g}-{name}"
    if not (folder / "report.png").exists():  # the last file of a run
        for path in folder.glob("*"):
            path.unlink()
        print(f"pruning to {sparsity:g} by {method}", flush=True)
        settings = OneShotConfig(method=method, sparsity=sparsity)
        prune_files(dense, images, folder, settings, calibration_images=count)
    return folder


def detections(model: Path, dataset: Any, threads: int, work: Path) -> list[dict[str, Any]]:
    """COCO results of the model on all images of the data set, made now or by an earlier run."""
    isa = sparsedet.Detector.load(model, threads=1).isa
    path = work / f"found-{digest(sha256_of(model), sha256_of(dataset.path), isa)}.json"
    if not path.exists():
        print(f"scoring {model}", flush=True)
        _, results = evaluate(sparsedet.Detector.load(model, threads=threads), dataset)
        write_atomic(path, json.dumps(results).encode())
        return results
    kept: list[dict[str, Any]] = json.loads(path.read_text())
    return kept


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One row for each model, and the layer errors of each reconstruction."""
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    models: list[tuple[str, float, Path]] = []
    layers = []
    dense = model_file(arguments.dense)
    for method in arguments.methods:
        for sparsity in arguments.sparsities:
            folder = pruned(
                dense, method, sparsity, arguments.calibration, arguments.calibration_images, work
            )
            models.append((method, sparsity, folder / "model.safetensors"))
            if method == "reconstruct":
                report = json.loads((folder / "report.json").read_text())
                layers.append(layer_check(sparsity, report))
    for method in TRAINED:
        given = getattr(arguments, method)
        models += [(method, sparsity, model_file(path)) for sparsity, path in given]
    baselines = dict.fromkeys(ONE_SHOT, dense)
    if arguments.dense_continued:
        baselines |= dict.fromkeys(TRAINED, model_file(arguments.dense_continued))
    names = sparsedet.load_model(dense).config.class_names
    dataset = load_coco(arguments.annotations, arguments.images, names)

    @functools.cache  # several methods have the same baseline
    def row(path: Path) -> dict[str, Any]:
        results = detections(path, dataset, arguments.threads, work)
        stats = score_results(dataset.path, results, class_names=dataset.class_names).stats
        detector = sparsedet.Detector.load(path, threads=1)
        provenance = detector.model.provenance
        return {
            "allocation": provenance.get("recipe", {}).get("allocation", "uniform"),
            "teacher": "teacher" in provenance,
            "file": f"{path.parent.name}/{path.name}",
            "sha256": sha256_of(path),
            "sparsity": detector.sparsity,
            "ap": stats["AP"],
            "ap50": stats["AP50"],
        }

    rows = []
    for method, target, path in models:
        base = baselines[method]
        both = [detections(p, dataset, arguments.threads, work) for p in (base, path)]
        differences = paired_bootstrap(dataset, *both, resamples=arguments.resamples)
        rows.append(
            {
                "method": method,
                "target": target,
                **row(path),
                "difference": {name: asdict(differences[name]) for name in ("AP", "AP50")},
            }
        )
    machine = describe("", arguments.threads)
    sparsities = " ".join(f"{s:g}" for s in arguments.sparsities)  # without local paths
    machine["command"] = (
        f"python benchmarks/bench_pruning.py --sparsities {sparsities} "
        f"--calibration-images {arguments.calibration_images} ..."
    )
    return {
        "machine": machine,
        "images": len(dataset.images),
        "resamples": arguments.resamples,
        "calibration_photographs": arguments.calibration_images,
        "baselines": {method: row(path) for method, path in baselines.items()},
        "rows": rows,
        "layers": layers,
    }


def layer_check(sparsity: float, report: dict[str, Any]) -> dict[str, Any]:
    """In how many layers reconstruction has a smaller error on held-out images than magnitude.

    Left out are layers without new zeros, and layers on which no output depends.
    """
    rows = [r for r in report["layers"] if r["had"] < r["zeros"] and r["magnitude_error"] > 0]
    ratios = {r["name"]: r["error"] / r["magnitude_error"] for r in rows}
    worst = max(ratios, key=lambda name: ratios[name])
    ordered = sorted(ratios.values())
    return {
        "target": sparsity,
        "layers": len(ratios),
        "better": sum(ratio < 1 for ratio in ordered),
        "median_ratio": ordered[len(ordered) // 2],
        "worst_layer": worst,
        "worst_ratio": ratios[worst],
        "errors": {r["name"]: [r["error"], r["magnitude_error"]] for r in rows},
    }


def table(result: dict[str, Any]) -> str:
    """The Markdown table: a row for each model, its baseline before it, and the conditions."""
    lines = [
        "| Method | Zeros of all parameters | AP | AP50 | Of baseline | Difference in AP |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for row in result["rows"]:
        base = result["baselines"][row["method"]]
        if base["sha256"] not in seen:
            seen.add(base["sha256"])
            name = "dense, trained further" if row["method"] in TRAINED else "dense"
            lines.append(
                f"| {name} | {100 * base['sparsity']:.1f} % | {base['ap']:.4f} | "
                f"{base['ap50']:.4f} |  |  |"
            )
        d = row["difference"]["AP"]
        title = TITLES[row["method"]]
        if row["method"] == "gradual" and row["allocation"] != "uniform":
            title = title.replace("gradual", f"gradual by {row['allocation']}")
        if row["method"] in TRAINED and row["teacher"]:
            title += ", with a teacher"
        percent = f"{100 * row['ap'] / base['ap']:.1f} %" if base["ap"] > 0 else ""
        lines.append(
            f"| {title} | {100 * row['sparsity']:.1f} % | {row['ap']:.4f} | "
            f"{row['ap50']:.4f} | {percent} | "
            f"{d['difference']:+.4f} ({d['low']:+.4f} .. {d['high']:+.4f}) |"
        )
    machine = result["machine"]
    methods = {row["method"] for row in result["rows"]}
    ways = {
        "magnitude": "magnitude prunes every layer alike",
        "reconstruct": "reconstruction allocates by sensitivity",
    }
    how = ", ".join(way for method, way in ways.items() if method in methods)
    lines += [
        "",
        f"{result['images']} images, not used for training, pruning or any choice; engine "
        f"{machine['isa']}, float32. In brackets: 95 % interval of the paired bootstrap over "
        f"images ({result['resamples']} resamples). One-shot: "
        f"{result['calibration_photographs']} images of the training set without labels, no "
        f"training; {how}.",
    ]
    return "\n".join(lines)


def layer_table(result: dict[str, Any]) -> str:
    """The Markdown table of layer errors: reconstruction against magnitude."""
    lines = [
        "| Zeros of all parameters | Layers where reconstruction has the smaller error | Its error "
        "divided by magnitude's: median | largest |",
        "|---|---|---|---|",
    ]
    for check in result["layers"]:
        lines.append(
            f"| {100 * check['target']:.0f} % | {check['better']} of {check['layers']} | "
            f"{check['median_ratio']:.2f} | {check['worst_ratio']:.2f} "
            f"(`{check['worst_layer']}`) |"
        )
    return "\n".join(lines)


def chart(result: dict[str, Any]) -> bytes:
    """SVG: AP against sparsity, one line a method; bars are the paired intervals."""
    from lib.charts import BLUE, GREEN, GREY, ORANGE, PINK, plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    colours = {"magnitude": ORANGE, "reconstruct": BLUE, "tuned": PINK, "gradual": GREEN}
    shift = {
        "magnitude": -0.4,
        "reconstruct": 0.0,
        "tuned": 0.4,
        "gradual": 0.8,
    }  # in percent, so that bars do not overlap
    lines = {"reconstruct": ("dense", "--"), "gradual": ("dense, trained further", ":")}
    if result["baselines"].get("gradual") == result["baselines"]["reconstruct"]:
        del lines["gradual"]
    for method, title in TITLES.items():
        rows = [r for r in result["rows"] if r["method"] == method]
        if not rows:
            continue
        base = result["baselines"][method]
        zeros = [100 * r["sparsity"] + shift[method] for r in rows]
        spread = [
            [r["difference"]["AP"][a] - r["difference"]["AP"][b] for r in rows]
            for a, b in (("difference", "low"), ("high", "difference"))
        ]
        axes.errorbar(
            zeros,
            [r["ap"] for r in rows],
            yerr=spread,
            fmt="o-",
            capsize=3,
            color=colours[method],
            label=title,
        )
        if method in lines:
            label, style = lines[method]
            axes.axhline(base["ap"], color=GREY, linestyle=style, label=label)
    axes.set(
        xlabel="zeros among all parameters, %",
        ylabel="AP",
        ylim=(0, None),
        title=f"{result['images']} images; bars: 95 %, paired with the baseline",
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    return drawn.getvalue()


def pair(text: str) -> tuple[float, Path]:
    """Parse SPARSITY=MODEL, as 0.6=RUN."""
    sparsity, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected SPARSITY=MODEL")
    return float(sparsity), Path(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of other images")
    parser.add_argument(
        "--dense", type=Path, default=ROOT / "recipes" / "embedded" / "dense.safetensors"
    )
    parser.add_argument("--gradual", type=pair, nargs="*", default=[], metavar="SPARSITY=MODEL")
    parser.add_argument("--tuned", type=pair, nargs="*", default=[], metavar="SPARSITY=MODEL")
    parser.add_argument("--dense-continued", type=Path, metavar="MODEL")
    parser.add_argument(
        "--methods", nargs="+", choices=ONE_SHOT, default=list(ONE_SHOT), help="of one-shot pruning"
    )
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.602, 0.7, 0.8, 0.9])
    parser.add_argument("--calibration-images", type=int, default=192, help="how many are used")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_pruning")
    parser.add_argument("--name", default=NAME, help="of the results, the table and the chart")
    parser.add_argument("--json", type=Path, help="default: docs/results/bench_NAME.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "pruning.md")
    parser.add_argument("--chart", type=Path, help="default: docs/images/NAME.svg")
    arguments = parser.parse_args(argv)
    if (arguments.gradual or arguments.tuned) and not arguments.dense_continued:
        parser.error("--gradual and --tuned need --dense-continued, their baseline")
    name = arguments.name
    result = measure(arguments)
    save(arguments.json or RESULTS / f"bench_{name}.json", result)
    drawn = arguments.chart or ROOT / "docs" / "images" / f"{name}.svg"
    write_atomic(drawn, chart(result), overwrite=True)
    tables = {mark(name): table(result)}
    if name == NAME:
        tables[mark("layer")] = layer_table(result)
    for before, text in tables.items():
        insert(arguments.document, before, text)
        print(text)


if __name__ == "__main__":
    main()
