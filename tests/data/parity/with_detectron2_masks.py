"""Runs Detectron2's own Mask R-CNN C4 on random weights, and the import of it; and its pasting.

    python with_detectron2_masks.py CHECKOUT golden [OUT]     the small network of this folder
    python with_detectron2_masks.py CHECKOUT photos PHOTO...  full size, on photographs

CHECKOUT and what else it needs: see with_detectron2.py. Nothing of it is copied here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from with_detectron2_pyramids import (  # type: ignore[import-not-found]
    HERE,
    DetectionCheckpointer,
    T,
    build_model,
    difference,
    enliven,
    found,
    settings,
)

# isort: split
from detectron2.layers.mask_ops import (  # type: ignore[import-not-found]
    paste_masks_in_image,
)
from detectron2.modeling.postprocessing import (  # type: ignore[import-not-found]
    detector_postprocess,
)
from detectron2.structures import Boxes, Instances  # type: ignore[import-not-found]
from helpers.parity import MASK_C4_SETTINGS, PASTED_SIZE, pasted_cases
from importers.test_detectron2_masks import IMAGE_SIZE, in_both, pasted_apart

from sparsedet.images.read import read_image
from sparsedet.importers import load_foreign

MODEL = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x"


def narrow(changes: dict[str, Any]) -> Any:
    """Settings of a network of few channels, 20 classes."""
    cfg = settings(MODEL)
    resnet = cfg.MODEL.RESNETS
    resnet.WIDTH_PER_GROUP, resnet.RES2_OUT_CHANNELS, resnet.STEM_OUT_CHANNELS = 2, 8, 4
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 8, 20
    cfg.merge_from_list([part for pair in changes.items() for part in pair])
    return cfg


def pasted(values: dict[str, Any], size: tuple[int, int], image_size: tuple[int, int]) -> Any:
    """Their masks in an image, [N, H, W]; those of boxes without area are empty.

    Args:
        values: of `found`.
        size: of the network input that they are of.
    """
    masks = np.zeros((len(values["boxes"]), *image_size), bool)
    one = Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(values["boxes"].copy())),
        pred_masks=torch.from_numpy(values["masks"])[:, None],
        number=torch.arange(len(masks)),
    )
    out = detector_postprocess(one, *image_size)
    masks[out.number.numpy()] = out.pred_masks.numpy()
    return masks


def golden(out: Path) -> None:
    """The narrow network on the two small network inputs, with several settings."""
    network_inputs = dict(np.load(HERE / "canvases.npz"))
    kept: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for variant, changes in MASK_C4_SETTINGS.items():
        cfg = narrow(changes)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        path = out / "detectron2_mask_c4.pth"
        with tempfile.TemporaryDirectory() as folder:
            if variant == "published":
                enliven(model, network_inputs["c0"])
                DetectionCheckpointer(model, str(out)).save("detectron2_mask_c4", iteration=1)
                (out / "last_checkpoint").unlink()
                state = model.state_dict()
            elif variant == "convs":  # its mask head is another one
                enliven(model, network_inputs["c0"])
                head = {
                    name: value
                    for name, value in model.state_dict().items()
                    if "mask_head" in name and "num_batches" not in name
                }
                kept |= {f"{variant}/{n}": v.numpy() for n, v in head.items()}
                model.load_state_dict({**state, **head}, strict=False)
                DetectionCheckpointer(model, folder).save("model", iteration=1)
                path = Path(folder) / "model.pth"
                state_of_all = model.state_dict()
                assert all(torch.equal(state_of_all[n], v) for n, v in head.items())
            else:
                model.load_state_dict(state)
            settings_path = Path(folder) / "config.yaml"
            settings_path.write_text(cfg.dump())
            imported = load_foreign(path, config=settings_path)
            assert not any("not a setting" in note for note in imported.notes)
        for key, network_input in network_inputs.items():
            values = found(model, network_input)
            if variant == "published":
                masks = pasted(values, network_input.shape[:2], IMAGE_SIZE)[::25]
                kept[f"pasted/{key}"] = np.packbits(masks)
            values["masks"] = values["masks"][::10].astype(np.float16)  # samples are enough
            kept |= {f"{variant}/{key}/{name}": value for name, value in values.items()}
            for by, ours in in_both(imported, network_input).items():
                print(variant, key, by, difference(ours, values))
    probabilities, boxes = (torch.from_numpy(array) for array in pasted_cases())
    kept["pasted"] = np.packbits(paste_masks_in_image(probabilities, boxes, PASTED_SIZE).numpy())
    np.savez_compressed(out / "detectron2_mask_c4_outputs.npz", **kept)


def photos(paths: list[Path]) -> None:
    """A network of full size with random weights, on Detectron2's own network inputs."""
    cfg = settings(MODEL)
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
        stated = load_foreign(Path(folder) / "model_final.pth", config=path)
        assert stated.config == imported.config
    assert imported.ignored == ()
    for path, image, network_input in zip(paths, images, network_inputs, strict=True):
        theirs, size = found(model, network_input), network_input.shape[:2]
        whole = pasted(theirs, size, image.shape[:2])
        for by, ours in in_both(imported, network_input).items():
            apart, covered = pasted_apart(ours, theirs, size, image.shape[:2], whole)
            line = f"masks in the image: {apart} of {covered} pixels differ"
            print(path.name, size, by, difference(ours, theirs), line, flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "golden":
        golden(Path(sys.argv[3]) if sys.argv[3:] else HERE)
    else:
        photos([Path(name) for name in sys.argv[3:]])
