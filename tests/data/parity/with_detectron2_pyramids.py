"""Runs Detectron2's own models with a feature pyramid on random weights, and the imports of them.

    python with_detectron2_pyramids.py CHECKOUT golden [OUT]     the small networks of this folder
    python with_detectron2_pyramids.py CHECKOUT photos PHOTO...  full size, on photographs

CHECKOUT and what else it needs: see with_detectron2.py. Nothing of it is copied here.
"""

from __future__ import annotations

import sys
import tempfile
import types
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
from detectron2.modeling import build_model  # type: ignore[import-not-found]  # noqa: E402
from helpers.parity import PYRAMID_SETTINGS  # noqa: E402
from importers.test_detectron2_pyramids import (  # noqa: E402
    difference,
    in_engine,
    in_torch,
    padded,
)

from sparsedet.images.read import read_image  # noqa: E402
from sparsedet.importers import load_foreign  # noqa: E402

MODELS = {
    "fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_3x",
}
ZOO = (
    "COCO-Detection/faster_rcnn_R_50_FPN_3x",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x",
    *MODELS.values(),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x",
    "COCO-Detection/retinanet_R_101_FPN_3x",
)
LAYERS = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
DEVIATIONS = {
    "head.cls_score": 1.0,
    "cls_score": 3.0,
    "mask_head.predictor": 3.0,
    "anchor_deltas": 0.1,
    "bbox_pred": 0.3,
}
"""Deviation of the outputs of layers with these names, else 1."""


def settings(file: str) -> Any:
    cfg = get_cfg()
    cfg.merge_from_file(str(CHECKOUT / "configs" / f"{file}.yaml"), allow_unsafe=True)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return cfg


def narrow(family: str) -> Any:
    """Settings of a network of few channels, 20 classes."""
    cfg = settings(MODELS[family])
    resnet, heads = cfg.MODEL.RESNETS, cfg.MODEL
    resnet.WIDTH_PER_GROUP, resnet.RES2_OUT_CHANNELS, resnet.STEM_OUT_CHANNELS = 2, 8, 4
    heads.FPN.OUT_CHANNELS, heads.ROI_BOX_HEAD.FC_DIM, heads.ROI_MASK_HEAD.CONV_DIM = 8, 32, 8
    heads.ROI_HEADS.NUM_CLASSES = heads.RETINANET.NUM_CLASSES = 20
    return cfg


def found(model: Any, network_input: Any) -> dict[str, Any]:
    """The detections of a network input (H, W, 3), in its pixels."""
    picture = torch.from_numpy(np.ascontiguousarray(network_input.transpose(2, 0, 1)))
    with torch.no_grad():
        images = model.preprocess_image([{"image": picture}])
        features = model.backbone(images.tensor)
        if hasattr(model, "roi_heads"):
            proposals, _ = model.proposal_generator(images, features, None)
            (one,), _ = model.roi_heads(images, features, proposals, None)
        else:
            maps = [features[name] for name in model.head_in_features]
            (one,) = model.forward_inference(images, maps, model.head(maps))
    one.pred_boxes.clip(one.image_size)
    out = {
        "boxes": one.pred_boxes.tensor,
        "scores": one.scores,
        "labels": one.pred_classes.int() + 1,
    }
    if one.has("pred_masks"):
        out["masks"] = one.pred_masks[:, 0]
    return {name: np.ascontiguousarray(value.numpy()) for name, value in out.items()}


def set_norm(name: str, norm: Any, x: torch.Tensor) -> None:
    """Statistics of the input. A residual branch adds little to its trunk: rounding stays small.

    A norm that runs twice is set at its first time.
    """
    if hasattr(norm, "is_set"):
        return
    norm.is_set = True
    count = len(norm.weight)
    norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(x.var(dim=(0, 2, 3)).clamp(min=1e-6))
    norm.weight.copy_((0.2 if "conv3" in name else 1.0) + 0.05 * torch.randn(count))
    norm.bias.copy_(0.1 * torch.randn(count))


def set_layer(name: str, layer: Any, out: torch.Tensor) -> torch.Tensor:
    """A random bias, and weights that give outputs of a fixed deviation; returns the new output.

    A layer that runs on several levels is set on the first. Of a single cell nothing is known.
    """
    if hasattr(layer, "is_set") or out.numel() == out.shape[1]:
        return out
    layer.is_set = True
    deviation = next((d for part, d in DEVIATIONS.items() if part in name), 1.0)
    rare = -4.0 if name == "head.cls_score" else 0.0  # most anchors are background
    axes = [axis for axis in range(out.dim()) if axis != 1]
    shape = [1, -1] + [1] * (out.dim() - 2)
    factor, mean = deviation / out.std(dim=axes).clamp(min=1e-6), out.mean(dim=axes)
    bias = rare + 0.1 * deviation * torch.randn(out.shape[1])
    side = [1, -1] if isinstance(layer, torch.nn.ConvTranspose2d) else [-1, 1]
    layer.weight *= factor.view(*side, *[1] * (layer.weight.dim() - 2))
    layer.bias.copy_((layer.bias - mean) * factor + bias)
    return (out - mean.view(shape)) * factor.view(shape) + bias.view(shape)


@torch.no_grad()
def enliven(model: Any, network_input: Any) -> None:
    """Weights with which a network finds much on the picture: set layer by layer on it."""
    hooks: list[Any] = []
    activations: dict[Any, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):

            def before(norm: Any, inputs: Any, name: str = name) -> None:
                set_norm(name, norm, inputs[0])

            hooks.append(module.register_forward_pre_hook(before))
        elif isinstance(module, LAYERS) and module.bias is not None:
            activation: Any = getattr(module, "activation", None)
            if activation is not None:  # the hook sees what comes before it
                activations[module] = activation
                setattr(module, "activation", None)  # noqa: B010 - a module's type has none

            def after(
                layer: Any, _: Any, out: Any, name: str = name, last: Any = activation
            ) -> Any:
                out = set_layer(name, layer, out)
                return out if last is None else last(out)

            hooks.append(module.register_forward_hook(after))
    found(model, network_input)
    for hook in hooks:
        hook.remove()
    for module, activation in activations.items():
        module.activation = activation


def golden(out: Path) -> None:
    """The narrow networks on the two small network inputs, with several settings."""
    network_inputs = dict(np.load(HERE / "canvases.npz"))
    for family in MODELS:
        torch.manual_seed(0)
        model = build_model(narrow(family)).eval()
        enliven(model, network_inputs["c0"])
        DetectionCheckpointer(model, str(out)).save(f"detectron2_{family}", iteration=1)
        (out / "last_checkpoint").unlink()
        kept: dict[str, Any] = {}
        for variant, changes in PYRAMID_SETTINGS[family].items():
            cfg = narrow(family)
            cfg.merge_from_list([part for pair in changes.items() for part in pair])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(cfg.dump())
                imported = load_foreign(out / f"detectron2_{family}.pth", config=path)
                assert not any("not a setting" in note for note in imported.notes)
            changed = build_model(cfg).eval()
            changed.load_state_dict(model.state_dict(), strict=False)
            for key, network_input in network_inputs.items():
                reads_rgb = cfg.INPUT.FORMAT == "RGB"
                values = found(changed, network_input[:, :, ::-1] if reads_rgb else network_input)
                if "masks" in values:  # samples are enough
                    values["masks"] = values["masks"][::10].astype(np.float16)
                kept |= {f"{variant}/{key}/{name}": value for name, value in values.items()}
                content = network_input.shape[:2]
                ours = in_torch(imported, padded(network_input, imported), content)
                print(family, variant, key, difference(ours, values))
        np.savez_compressed(out / f"detectron2_{family}_outputs.npz", **kept)


def photos(paths: list[Path]) -> None:
    """Networks of full size with random weights, on Detectron2's own network inputs."""
    DEVIATIONS["head.cls_score"] = 0.2  # with 1, the best scores of other photographs are all 1
    for file in ZOO:
        cfg = settings(file)
        resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        images = [read_image(path) for path in paths]
        network_inputs = [resize.get_transform(image).apply_image(image) for image in images]
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        enliven(model, network_inputs[0])
        with tempfile.TemporaryDirectory() as folder:
            DetectionCheckpointer(model, folder).save("model_final", iteration=1)
            imported = load_foreign(Path(folder) / "model_final.pth")
            path = Path(folder) / "config.yaml"
            path.write_text(cfg.dump())
            assert (
                load_foreign(Path(folder) / "model_final.pth", config=path).config
                == imported.config
            )
        assert imported.ignored == ()
        for path, network_input in zip(paths, network_inputs, strict=True):
            theirs, content = found(model, network_input), network_input.shape[:2]
            batch = padded(network_input, imported)
            line = f"{difference(in_torch(imported, batch, content), theirs)}"
            if "faster" in file:  # the engine runs no masks and no RetinaNet yet
                line += f"; engine {difference(in_engine(imported, batch, content), theirs)}"
            print(file, path.name, content, line, flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "golden":
        golden(Path(sys.argv[3]) if sys.argv[3:] else HERE)
    else:
        photos([Path(name) for name in sys.argv[3:]])
