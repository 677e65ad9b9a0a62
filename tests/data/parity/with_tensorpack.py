"""Runs TensorPack's own graph on random weights, and the imported model beside it.

    python with_tensorpack.py weights SIZE FOLDER [PHOTO...]   writes weights and network inputs
    python with_tensorpack.py run SIZE FOLDER CHECKOUT         in an environment with TensorFlow
    python with_tensorpack.py compare SIZE FOLDER              stage by stage and as a whole
    python with_tensorpack.py golden small FOLDER              writes the files of this folder

SIZE is `small` (the network of this folder) or `full` (R101-C4, photographs). CHECKOUT is a clone
of github.com/tensorpack/tensorpack (run at 1547a54, with TensorFlow 2.15.1 for CPUs in its
compatibility mode, numpy 1.26). Nothing of it is copied here.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CLASSES = {"small": 20, "full": 80}
BLOCKS = {"small": (1, 2, 2, 1), "full": (3, 4, 23, 3)}
VARIANTS = {"": {}, "tf_pad_mode/": {"TF_PAD_MODE": True}, "stride_1x1/": {"STRIDE_1X1": True}}
OUTPUTS = {
    "features": "group2/block{last}/output:0",
    "objectness": "rpn/class/output:0",
    "deltas": "rpn/box/output:0",
    "proposals": "generate_rpn_proposals/boxes:0",
    "rois": "roi_align/AvgPool2D:0",
    "class_logits": "fastrcnn/class/output:0",
    "box_deltas": "fastrcnn/output_box:0",
    "boxes": "output/boxes:0",
    "scores": "output/scores:0",
    "labels": "output/labels:0",
}


def weights(size: str, folder: Path, photos: list[str]) -> None:
    import cv2

    from sparsedet.testing import calibrated_random_tensors

    if size == "small":
        network_inputs = dict(np.load(HERE / "canvases.npz"))
    else:
        network_inputs = {}
        for path in photos:
            image = cv2.imread(path)
            assert image is not None, path
            short, long = sorted(image.shape[:2])
            scale = min(800 / short, 1333 / long)
            height, width = (int(n * scale + 0.5) for n in image.shape[:2])
            network_inputs[Path(path).stem] = cv2.resize(image, (width, height))
    config = config_of(size)
    folded = calibrated_random_tensors(config, 0.0, next(iter(network_inputs.values())), seed=5)
    np.savez_compressed(folder / "weights.npz", **variables_of(config, folded, size == "small"))
    np.savez_compressed(folder / "canvases.npz", **network_inputs)


def config_of(size: str) -> Any:
    from dataclasses import replace

    from sparsedet.model.presets import preset

    if size == "full":
        return preset("r101-c4")
    return replace(
        preset("r101-c4"),
        name="small",
        blocks=BLOCKS["small"],
        stem_channels=8,
        rpn_channels=24,
        bottleneck_channels=(4, 8, 16, 32),
        stage_channels=(16, 32, 64, 128),
        class_names=tuple(f"class {n}" for n in range(1, 21)),
        category_ids=tuple(range(1, 21)),
    )


def variables_of(config: Any, folded: dict[str, Any], half: bool) -> dict[str, Any]:
    """Its variables: a random batch norm for each convolution, which folds to `folded`."""
    from sparsedet.importers.tensorpack import layer_name
    from sparsedet.model.c4 import build_graph

    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    for layer in build_graph(config).layers:
        weight, bias = folded[f"{layer.name}.weight"], folded[f"{layer.name}.bias"]
        name, n = layer_name(layer), layer.out_channels
        if layer.norm:
            var, mean = rng.uniform(0.25, 4, n), rng.normal(size=n)
            gamma = rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n)
            scale = gamma / np.sqrt(var + 1e-5)
            weight = weight / scale[:, None, None, None]
            out |= {
                f"{name}/bn/gamma": gamma,
                f"{name}/bn/beta": bias + mean * scale,
                f"{name}/bn/mean/EMA": mean,
                f"{name}/bn/variance/EMA": var,
            }
        else:
            out[f"{name}/b"] = bias
        weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        out[f"{name}/W"] = weight.astype(np.float16) if half else weight  # halves compress
    return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


def run_theirs(size: str, folder: Path, checkout: Path) -> None:
    """One process for each variant: a graph is built once."""
    import subprocess

    for variant in VARIANTS if size == "small" else ("",):
        subprocess.run(
            [sys.executable, __file__, "one", size, str(folder), str(checkout), variant], check=True
        )


def run_one(size: str, folder: Path, checkout: Path, variant: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path[:0] = [str(checkout), str(checkout / "examples" / "FasterRCNN")]
    from config import config as cfg  # type: ignore[import-not-found]

    cfg.freeze(False)
    cfg.MODE_FPN = cfg.MODE_MASK = False
    cfg.BACKBONE.RESNET_NUM_BLOCKS = list(BLOCKS[size])
    for key, value in VARIANTS[variant].items():
        setattr(cfg.BACKBONE, key, value)
    cfg.RPN.NUM_ANCHOR, cfg.RPN.TEST_POST_NMS_TOPK = 15, 300
    cfg.DATA.NUM_CATEGORY = CLASSES[size]
    cfg.RPN.HEAD_DIM = 24 if size == "small" else 1024
    cfg.freeze()
    from modeling import backbone  # type: ignore[import-not-found]
    from modeling.generalized_rcnn import ResNetC4Model  # type: ignore[import-not-found]
    from tensorpack.predict import (  # type: ignore[import-not-found]
        OfflinePredictor,
        PredictConfig,
    )
    from tensorpack.tfutils import SmartInit  # type: ignore[import-not-found]

    if size == "small":  # its functions, with a sixteenth of the channels
        group, conv = backbone.resnet_group, backbone.Conv2D
        backbone.resnet_group = lambda name, x, block, features, *rest: group(
            name, x, block, features // 16, *rest
        )

        @functools.wraps(conv)
        def narrow(name: str, x: Any, channels: int, *rest: Any, **options: Any) -> Any:
            return conv(name, x, 8 if name == "conv0" else channels, *rest, **options)

        backbone.Conv2D = narrow
    names = [name.format(last=BLOCKS[size][2] - 1) for name in OUTPUTS.values()]
    predict = OfflinePredictor(
        PredictConfig(
            model=ResNetC4Model(),
            session_init=SmartInit(str(folder / "weights.npz")),
            input_names=["image"],
            output_names=names,
        )
    )
    out: dict[str, Any] = {}
    for key, network_input in np.load(folder / "canvases.npz").items():
        values = dict(zip(OUTPUTS, predict(network_input.astype(np.float32)), strict=True))
        values["features"] = values["features"][0]
        values["objectness"] = values["objectness"][0].transpose(1, 2, 0).reshape(-1)
        values["deltas"] = values["deltas"][0].transpose(1, 2, 0).reshape(-1, 4)
        values["box_deltas"] = values["box_deltas"].reshape(len(values["box_deltas"]), -1)
        values["labels"] = values["labels"].astype(np.int32)
        out |= {f"{key}/{name}": np.ascontiguousarray(v) for name, v in values.items()}
    np.savez(folder / f"outputs_{variant.strip('/')}.npz", **out)


def compare(size: str, folder: Path) -> None:
    sys.path.insert(0, str(HERE.parents[1]))
    from helpers.parts import EngineParts
    from importers.test_import_peers import deviation, run, same_detections

    from sparsedet.engine import Engine
    from sparsedet.importers import load_foreign
    from sparsedet.model.presets import preset

    imported = load_foreign(folder / "weights.npz", base=preset("r101-c4"))
    assert size == "small" or imported.config == preset("r101-c4")
    engine = Engine(imported.config, imported.tensors)
    plain = Engine(imported.config, imported.tensors, hoist=False)  # which has RoI features
    theirs = np.load(folder / "outputs_.npz")
    for key, network_input in np.load(folder / "canvases.npz").items():
        out = {name: theirs[f"{key}/{name}"] for name in OUTPUTS}
        boxes, scores, labels = run(engine, network_input)
        same_detections(boxes, scores, labels, {f"x/{k}": v for k, v in out.items()}, "x")
        assert size == "small" or len(set(out["labels"].tolist())) >= 10
        parts = EngineParts(engine)
        features = parts.features(network_input)
        logits, deltas = parts.rpn(out["features"])
        class_logits, box_deltas = parts.roi_head(out["features"], out["proposals"])
        rois = EngineParts(plain, parts.size).roi_features(out["features"], out["proposals"])
        step = 14 // rois.shape[-1]
        out["rois"] = out["rois"][:, :, ::step, ::step]
        ours = {
            "features": features,
            "objectness": logits,
            "deltas": deltas,
            "proposals": parts.proposals(out["objectness"], out["deltas"]),
            "rois": rois,
            "class_logits": class_logits,
            "box_deltas": box_deltas.reshape(len(box_deltas), -1),
        }
        errors = {name: deviation(value, out[name]) for name, value in ours.items()}
        assert max(errors.values()) < 1e-4, errors
        difference = np.abs(np.sort(scores) - np.sort(out["scores"])).max()
        print(
            f"{key} {network_input.shape[:2]}: {len(boxes)} detections of "
            f"{len(set(labels.tolist()))} classes, all the same, scores to {difference:.1e};",
            ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
        )


def golden(folder: Path) -> None:
    kept: dict[str, Any] = {}
    for variant in VARIANTS:
        values = np.load(folder / f"outputs_{variant.strip('/')}.npz")
        for key, value in values.items():
            network_input, name = key.split("/")
            if name in ("rois", "class_logits", "box_deltas"):  # samples are enough
                value = value[::60, ::4] if name == "rois" else value[::8]
            if name in ("boxes", "scores", "labels") or (network_input == "c0" and not variant):
                kept[variant + key] = value
    (HERE / "tensorpack.npz").write_bytes((folder / "weights.npz").read_bytes())
    np.savez_compressed(HERE / "tensorpack_outputs.npz", **kept)


if __name__ == "__main__":
    verb, size, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if verb == "weights":
        weights(size, folder, sys.argv[4:])
    elif verb == "run":
        run_theirs(size, folder, Path(sys.argv[4]))
    elif verb == "one":
        run_one(size, folder, Path(sys.argv[4]), sys.argv[5])
    elif verb == "compare":
        compare(size, folder)
    else:
        golden(folder)
