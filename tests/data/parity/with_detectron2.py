"""Runs Detectron2's own code on random weights, and the imported model beside it.

    python with_detectron2.py CHECKOUT golden [OUT]         the small network of this folder
    python with_detectron2.py CHECKOUT rgb [OUT]            the same, made of it in another form
    python with_detectron2.py CHECKOUT config [OUT]         the same weights with other settings
    python with_detectron2.py CHECKOUT photos PHOTO...      R101-C4 on photographs, all stages

CHECKOUT is a clone of github.com/facebookresearch/detectron2 (run at 02b5c4e); it needs no
compiling, but torch, torchvision, fvcore, iopath, omegaconf, hydra-core, yacs, cloudpickle,
tabulate, termcolor. Nothing of it is copied here.
"""

from __future__ import annotations

import sys
import tempfile
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
CHECKOUT = Path(sys.argv[1])
sys.path[:0] = [str(CHECKOUT), str(HERE.parents[1])]
sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")  # gone from setuptools
sys.modules["pkg_resources"].resource_filename = lambda *_: ""  # type: ignore[attr-defined]

from detectron2.checkpoint import (  # type: ignore[import-not-found]  # noqa: E402
    DetectionCheckpointer,
)
from detectron2.config import get_cfg  # type: ignore[import-not-found]  # noqa: E402
from detectron2.data import transforms as T  # type: ignore[import-not-found]  # noqa: E402
from detectron2.data.detection_utils import (  # type: ignore[import-not-found]  # noqa: E402
    read_image,
)
from detectron2.modeling import build_model  # type: ignore[import-not-found]  # noqa: E402
from helpers.parity import SETTINGS  # noqa: E402
from helpers.parts import EngineParts  # noqa: E402
from importers.test_import_peers import (  # noqa: E402
    deviation,
    rgb_agnostic,
    run,
    same_detections,
)

from sparsedet.engine import Engine  # noqa: E402
from sparsedet.importers import load_foreign  # noqa: E402
from sparsedet.importers.detectron2.names import layer_name  # noqa: E402
from sparsedet.model.c4 import build_graph  # noqa: E402
from sparsedet.model.presets import preset  # noqa: E402
from sparsedet.testing import calibrated_random_tensors  # noqa: E402


def settings(depth: int) -> Any:
    cfg = get_cfg()
    file = f"COCO-Detection/faster_rcnn_R_{depth}_C4_3x.yaml"
    cfg.merge_from_file(str(CHECKOUT / "configs" / file))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return cfg


def state_of(config: Any, folded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Detectron2's tensors: random batch norms that fold to the tensors `folded`."""
    rng = np.random.default_rng(0)
    state: dict[str, Any] = {}
    for layer in build_graph(config).layers:
        weight, bias = folded[f"{layer.name}.weight"], folded[f"{layer.name}.bias"]
        name, n = layer_name(layer), layer.out_channels
        if layer.norm:
            var, mean = rng.uniform(0.25, 4, n), rng.normal(size=n)
            gamma = rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n)
            scale = gamma / np.sqrt(var + 1e-5)
            weight = weight / scale[:, None, None, None]
            norm = {
                "weight": gamma,
                "bias": bias + mean * scale,
                "running_mean": mean,
                "running_var": var,
            }
            state |= {f"{name}.norm.{leaf}": value for leaf, value in norm.items()}
        else:
            state[f"{name}.bias"] = bias
        state[f"{name}.weight"] = weight
    return {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in state.items()}


@torch.no_grad()
def stages(model: Any, network_input: Any) -> dict[str, Any]:
    """What each of its modules gives for a network input, in our order of axes."""
    picture = torch.from_numpy(np.ascontiguousarray(network_input.transpose(2, 0, 1)))
    images = model.preprocess_image([{"image": picture}])
    features = model.backbone(images.tensor)
    maps = [features["res4"]]
    (logits,), (deltas,) = model.proposal_generator.rpn_head(maps)
    proposals, _ = model.proposal_generator(images, features, None)
    boxes = proposals[0].proposal_boxes
    pooled = model.roi_heads.pooler(maps, [boxes])
    predictor = model.roi_heads.box_predictor
    predictions = predictor(model.roi_heads.res5(pooled).mean(dim=[2, 3]))
    found = predictor.inference(predictions, proposals)[0][0]
    out = {
        "features": features["res4"][0],
        "objectness": logits[0].permute(1, 2, 0).reshape(-1),
        "deltas": deltas[0].permute(1, 2, 0).reshape(-1, 4),
        "proposals": boxes.tensor,
        "rois": pooled,
        "class_logits": predictions[0],
        "box_deltas": predictions[1],
        "boxes": found.pred_boxes.tensor,
        "scores": found.scores,
        "labels": found.pred_classes.int() + 1,
    }
    return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}


def narrow() -> Any:
    """Settings of a ResNet-50 of few channels, 20 classes."""
    cfg = settings(50)
    resnet = cfg.MODEL.RESNETS
    resnet.WIDTH_PER_GROUP, resnet.RES2_OUT_CHANNELS, resnet.STEM_OUT_CHANNELS = 2, 8, 4
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    return cfg


def rgb(out: Path) -> None:
    """A model of RGB pictures (the recipe of convert-torchvision-to-d2.py), class-agnostic."""
    cfg = narrow()
    cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "RGB", False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    state = torch.load(HERE / "detectron2.pth", weights_only=True)["model"]
    state = rgb_agnostic({name: value.numpy() for name, value in state.items()})
    model = build_model(cfg).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    kept: dict[str, Any] = {}
    for key, network_input in np.load(HERE / "canvases.npz").items():
        values = stages(model, network_input[:, :, ::-1])
        kept |= {f"{key}/{name}": values[name] for name in ("boxes", "scores", "labels")}
    np.savez_compressed(out / "detectron2_rgb_outputs.npz", **kept)


def config(out: Path) -> None:
    """The narrow network with each of `SETTINGS`; all settings are known to the importer."""
    kept: dict[str, Any] = {}
    state = torch.load(HERE / "detectron2.pth", weights_only=True)["model"]
    for variant, changes in SETTINGS.items():
        cfg = narrow()
        cfg.merge_from_list([part for pair in changes.items() for part in pair])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(cfg.dump())
            imported = load_foreign(HERE / "detectron2.pth", config=path)
            assert not any("not a setting" in note for note in imported.notes)
        model = build_model(cfg).eval()
        model.load_state_dict(state, strict=False)
        for key, network_input in np.load(HERE / "canvases.npz").items():
            reads_rgb = cfg.INPUT.FORMAT == "RGB"
            values = stages(model, network_input[:, :, ::-1] if reads_rgb else network_input)
            for name in ("boxes", "scores", "labels"):
                kept[f"{variant}/{key}/{name}"] = values[name]
    np.savez_compressed(out / "detectron2_config_outputs.npz", **kept)


def golden(out: Path) -> None:
    """The narrow network on the two small network inputs."""
    cfg = narrow()
    config = replace(
        preset("r101-c4-detectron2"),
        blocks=(3, 4, 6, 3),
        stem_channels=4,
        rpn_channels=32,
        bottleneck_channels=(2, 4, 8, 16),
        stage_channels=(8, 16, 32, 64),
        class_names=tuple(f"class {n}" for n in range(1, 21)),
        category_ids=tuple(range(1, 21)),
    )
    network_inputs = dict(np.load(HERE / "canvases.npz"))
    model = build_model(cfg).eval()
    model.load_state_dict(
        state_of(config, calibrated_random_tensors(config, 0.0, network_inputs["c0"], seed=3)),
        strict=False,
    )
    DetectionCheckpointer(model, str(out)).save("detectron2", iteration=1)
    (out / "last_checkpoint").unlink()
    kept: dict[str, Any] = {}
    for key, network_input in network_inputs.items():
        values = stages(model, network_input)
        if key == "c0":  # samples are enough of the large ones
            values |= {"rois": values["rois"][::60, ::4]}
            values |= {name: values[name][::8] for name in ("class_logits", "box_deltas")}
        else:
            values = {name: values[name] for name in ("boxes", "scores", "labels")}
        kept |= {f"{key}/{name}": value for name, value in values.items()}
    np.savez_compressed(out / "detectron2_outputs.npz", **kept)


def photos(paths: list[Path]) -> None:
    """R101-C4 with random weights: stage by stage and as a whole, on its own network inputs."""
    cfg, config = settings(101), preset("r101-c4-detectron2")
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    images = [read_image(str(path), format="BGR") for path in paths]
    network_inputs = [resize.get_transform(image).apply_image(image) for image in images]
    model = build_model(cfg).eval()
    model.load_state_dict(
        state_of(config, calibrated_random_tensors(config, 0.0, network_inputs[0], seed=7)),
        strict=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        DetectionCheckpointer(model, folder).save("model_final", iteration=1)
        imported = load_foreign(Path(folder) / "model_final.pth")
    assert imported.config == config and imported.ignored == ()
    engine = Engine(imported.config, imported.tensors)
    plain = Engine(imported.config, imported.tensors, hoist=False)  # which has RoI features
    for path, network_input in zip(paths, network_inputs, strict=True):
        theirs = stages(model, network_input)
        assert len(set(theirs["labels"].tolist())) >= 10
        boxes, scores, labels = run(engine, network_input)
        same_detections(boxes, scores, labels, {f"x/{k}": v for k, v in theirs.items()}, "x")
        parts = EngineParts(engine)
        features = parts.features(network_input)
        logits, deltas = parts.rpn(theirs["features"])
        class_logits, box_deltas = parts.roi_head(theirs["features"], theirs["proposals"])
        rois = EngineParts(plain, parts.size).roi_features(theirs["features"], theirs["proposals"])
        step = 14 // rois.shape[-1]
        ours = {
            "features": features,
            "objectness": logits,
            "deltas": deltas,
            "rois": rois,
            "class_logits": class_logits,
            "proposals": parts.proposals(theirs["objectness"], theirs["deltas"]),
            "box_deltas": box_deltas.reshape(len(box_deltas), -1),
        }
        theirs["rois"] = theirs["rois"][:, :, ::step, ::step]
        errors = {name: deviation(value, theirs[name]) for name, value in ours.items()}
        assert max(errors.values()) < 1e-4, errors
        difference = np.abs(np.sort(scores) - np.sort(theirs["scores"])).max()
        print(
            f"{path.name} {network_input.shape[:2]}: {len(boxes)} detections of {len(set(labels))} "
            f"classes, all the same, scores to {difference:.1e};",
            ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
        )


if __name__ == "__main__":
    if sys.argv[2] in ("golden", "rgb", "config"):
        run_mode = {"golden": golden, "rgb": rgb, "config": config}[sys.argv[2]]
        run_mode(Path(sys.argv[3]) if sys.argv[3:] else HERE)
    else:
        photos([Path(name) for name in sys.argv[3:]])
