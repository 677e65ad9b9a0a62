"""Time of whole detections of the detectors that people have, against OpenVINO.

    python benchmarks/bench_detectors.py --json docs/results/bench_detectors.json

The weights are random, and every prunable layer has the named share of zeros. For each detector and
share the two runtimes are compared and timed as bench_model.py does it: equal detections first,
then round after round in turn. r101-c4 is measured in the same run at the same shares, since its
ratio is known on several CPUs: the last lines have each ratio as a fraction of r101-c4's.

OpenVINO runs our export, in f32, and with --torchvision also torchvision's own ONNX of the dense
network. --beside adds OpenVINO at its default precision, and in INT8 (quantised by NNCF), to all
but the reference. The health of the run is that of dense r101-c4, profiled before and after all
others (lib/openvino_profile.py); the share of the peak that OpenVINO reaches on the others is
printed, and not judged. So is the forecast that `sparsedet info` makes from the graph and the CPU's
peak.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_model
from lib import records
from lib.openvino_profile import PRODUCTS, Profiler
from lib.peers import PEERS
from lib.reference import REFERENCE, add_options, after_share, random_model

import sparsedet
from sparsedet.benchmark.machine import peak_gflops
from sparsedet.engine import choose_isa
from sparsedet.engine.forecast import forecast
from sparsedet.images.letterbox import prepare
from sparsedet.importers.torchvision_detectors import load_torchvision_detector
from sparsedet.model.detector_config import Config, build_graph, with_form
from sparsedet.model.file import ModelFile

KINDS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "maskrcnn_resnet50_fpn",
)
INPUT_SIZE = 800, 1088


def torchvision_module(kind: str) -> Any:
    """torchvision's detector with new weights."""
    from torchvision.models import detection

    return getattr(detection, kind)(weights=None, weights_backbone=None).eval()


def config_of(kind: str) -> Config:
    """The configuration of a detector, for one size of the network input."""
    if kind == REFERENCE:
        return sparsedet.preset(REFERENCE)
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pth")
        torch.save(torchvision_module(kind).state_dict(), path)
        config = load_torchvision_detector(path).config
    return with_form(config, input_size=INPUT_SIZE, resize="stretch")


def torchvision_onnx(kind: str, threads: int) -> Callable[[], Any]:
    """torchvision's own ONNX of the dense network in OpenVINO: a function without arguments."""
    import openvino
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        image = torch.rand(3, *INPUT_SIZE)
        module = torchvision_module(kind)
        torch.onnx.export(module, ([image],), path, opset_version=17, dynamo=False)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    return lambda: request.infer([image.numpy()])


def outside_convolutions(model: ModelFile, threads: int, network_input: Any) -> float:
    """Fraction of OpenVINO's time that is neither a convolution nor a matrix product."""
    profiler = Profiler(model, threads, "f32")
    profiler(network_input)
    profile = profiler(network_input)
    products = sum(profile.types[name] for name in PRODUCTS)
    return 1 - products / sum(profile.types.values())


def measure(
    kind: str, config: Config, share: float, image: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One detector at one share of zeros: a result of bench_model.py, and more."""
    model = random_model(config, share, image)
    arguments.peer = [arguments.main]
    comparison = bench_model.RuntimeComparison(model, image, arguments)
    others = {}
    for name in arguments.beside if kind in KINDS else ():
        rows = PEERS[name](model, arguments.threads)
        others[name] = bench_model.detection(model, image, rows)
    if arguments.torchvision and share == 0 and kind in KINDS:
        others["torchvision's ONNX"] = torchvision_onnx(kind, arguments.threads)
    peak = peak_gflops(choose_isa(), arguments.threads, arguments.precision)
    result = comparison.result(others)
    result["void"] = result["void"] and share == 0  # health is that of the dense reference
    result["share_of_zeros"] = share
    result["after_share"] = after_share(comparison.engine)
    result["forecast_seconds"] = forecast(
        build_graph(config), share, peak=peak, precision=arguments.precision
    )
    if share == 0:
        network_input = prepare(image, config)[0]
        result["openvino_outside_convolutions"] = outside_convolutions(
            model, arguments.threads, network_input
        )
    return result


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, KINDS, repeats=5)
    parser.set_defaults(kinds=KINDS)
    parser.add_argument("--torchvision", action="store_true", help="also time torchvision's ONNX")
    parser.add_argument(
        "--precision", choices=["f32", "bf16"], default="f32", help="of both runtimes"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        default=[],
        choices=["openvino-default", "openvino-int8"],
        help="more that is timed: what a user of OpenVINO may get",
    )
    arguments = bench_model.with_defaults(parser.parse_args(argv))
    arguments.main = f"openvino-{arguments.precision}"
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    image = sparsedet.read_image(arguments.image)
    content: dict[str, Any] = {
        "machine": records.describe("", arguments.threads),
        "precision": arguments.precision,
        "results": {},
    }
    ratios: dict[str, dict[float, float]] = {}
    void = False
    for kind in (REFERENCE, *arguments.kinds, f"{REFERENCE} again"):
        again = kind.endswith("again")
        config = config_of(kind.removesuffix(" again"))
        content["results"][kind] = []
        for share in [0.0] if again else sorted({0.0, *arguments.zeros}):
            start = time.monotonic()
            result = measure(kind, config, share, image, arguments)
            void |= result["void"]
            bench_model.show(f"{kind}, {share:.0%} of each prunable layer", result, False)
            print(
                f"  forecast {result['forecast_seconds']:.3f} s, post-processing "
                f"{result['after_share']:.1%} of ours   ({time.monotonic() - start:.0f} s)"
            )
            if "openvino_outside_convolutions" in result:
                outside = result["openvino_outside_convolutions"]
                print(f"  OpenVINO outside convolutions and products: {outside:.1%} of its time")
            content["results"][kind].append(result)
            ratios.setdefault(kind, {})[share] = result["ratios"][arguments.main]["median"]
            gc.collect()
            content["void"] = void
            if arguments.json:
                records.save(arguments.json, content)
    print(f"\nratios to {arguments.main}" + (", VOID" if void else ""))
    for kind, found in ratios.items():
        line = "  ".join(
            f"{share:.0%} {ratio:.2f} ({ratio / ratios[REFERENCE][share]:.2f} of {REFERENCE}'s)"
            for share, ratio in found.items()
        )
        print(f"{kind:36} {line}")


if __name__ == "__main__":
    main()
