"""Detectron2's config.yaml: what is taken, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import DETECTRON2, TENSORPACK, config_yaml

from sparsedet import InputError
from sparsedet.cli import main
from sparsedet.importers import load_foreign
from sparsedet.model.boxes import cell_anchors
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import load_model
from sparsedet.model.presets import preset


def settings(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(config_yaml(changes))
    return path


def refused(path: Path, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command and in Python: one line, and nothing written."""
    with pytest.raises(InputError, match=match):
        load_foreign(DETECTRON2, config=path)
    capsys.readouterr()
    output = path.parent / "out.safetensors"
    assert main(["convert", str(DETECTRON2), "--config", str(path), "-o", str(output)]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "config.yaml: " in text and not output.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 40),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 17),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "RROIHeads"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["res5"]),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", -1),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "soft"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 80),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
        ("MODEL.RPN.HEAD_NAME", "MyHead"),
        ("MODEL.RPN.IN_FEATURES", ["p2", "p3"]),
        ("MODEL.RPN.CONV_DIMS", [-1, -1]),
        ("MODEL.RPN.NMS_THRESH", 1.5),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 0),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        ("MODEL.RESNETS.NUM_GROUPS", 32),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.RESNETS.DEPTH", 34),
        ("MODEL.RESNETS.DEPTH", 101),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, False]),
        ("MODEL.RESNETS.OUT_FEATURES", ["res5"]),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "sometimes"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.LOAD_PROPOSALS", True),
        ("MODEL.PIXEL_MEAN", [100.0]),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ("INPUT.FORMAT", "L"),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
        ("VERSION", 1),
    ],
)
def test_a_setting_that_cannot_be_represented_is_refused_by_name(
    key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(settings(tmp_path, {key: value}), key.replace(".", r"\."), capsys)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    changes = {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool", "MODEL.RESNETS.NUM_GROUPS": 32}
    with pytest.raises(InputError, match=r"NUM_GROUPS is 32.*POOLER_TYPE is 'ROIPool'"):
        load_foreign(DETECTRON2, config=settings(tmp_path, changes))


def test_settings_become_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = load_foreign(DETECTRON2)
    same = load_foreign(DETECTRON2, config=settings(tmp_path, {}))
    assert same.config == plain.config  # Detectron2's defaults are those that are assumed
    changes = {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": 400,
        "INPUT.MAX_SIZE_TEST": 600,
        "MODEL.PIXEL_MEAN": [120.0, 110.0, 100.0],
        "MODEL.PIXEL_STD": "(3.0, 2.0, 1.0)",  # as people write it
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES5_DILATION": 2,  # of the backbone's res5, which C4 does not have
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [0.25, 0.5, 1.0, 2.0, 4.0],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 2.0, 2.0],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 500,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 200,
        "MODEL.RPN.NMS_THRESH": 0.6,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [20.0, 20.0, 10.0, 10.0],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 10,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
        "TEST.DETECTIONS_PER_IMAGE": 30,
        "SOLVER.BASE_LR": 0.02,
    }
    path, output = settings(tmp_path, changes), tmp_path / "m.safetensors"
    assert main(["convert", str(DETECTRON2), "--config", str(path), "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert "settings of config.yaml: RGB images" in text and "assumed" not in text
    assert "Detectron2 itself resizes to short side 400, at most 600" in text
    model = load_model(output)
    config = require_c4(model.config, "read")
    assert (config.input_height, config.input_width) == (400, 600)
    assert config.pixel_mean == (100.0, 110.0, 120.0) and config.pixel_std == (1.0, 2.0, 3.0)
    assert config.stride_in == "conv2"
    assert config.anchor_sizes == (16, 32, 64) and len(config.anchor_ratios) == 5
    assert config.anchor_offset == 0.5 and config.rpn_box_weights == (1, 1, 2, 2)
    assert (config.rpn_pre_nms, config.proposals, config.rpn_nms_threshold) == (500, 200, 0.6)
    assert config.box_weights == (20, 20, 10, 10)
    assert (config.roi_size, config.roi_sampling_ratio) == (10, 2)
    assert (config.score_threshold, config.nms_threshold, config.max_detections) == (0.1, 0.4, 30)
    stem = plain.tensors["stem.conv.weight"]
    for channel in range(3):  # folded with the norm's scale, which is the same
        np.testing.assert_array_equal(
            model.tensors["stem.conv.weight"][:, channel], stem[:, 2 - channel]
        )


def test_fields_override_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings(tmp_path, {"INPUT.MIN_SIZE_TEST": 0, "MODEL.RPN.POST_NMS_TOPK_TEST": 200})
    fields, output = tmp_path / "fields.json", tmp_path / "m.safetensors"
    fields.write_text(json.dumps({"input_height": 320, "input_width": 480, "proposals": 50}))
    command = ["convert", str(DETECTRON2), "-o", str(output), "--config", str(path)]
    assert main([*command, "--config", str(fields)]) == 0
    config = load_model(output).config
    assert (config.input_height, config.input_width, config.proposals) == (320, 480, 50)
    own = tmp_path / "fields.yaml"  # our fields as YAML
    own.write_text(
        "input_height: 320\ninput_width: 480\nclass_names:\n"
        + "".join(f"- c{n}\n" for n in range(20))
    )
    assert load_foreign(DETECTRON2, config=[own]).config.class_names[0] == "c0"
    with pytest.raises(InputError, match="second configuration of Detectron2"):
        load_foreign(DETECTRON2, config=[path, path])
    with pytest.raises(InputError, match=r"is a configuration of Detectron2, .* is no model of it"):
        load_foreign(TENSORPACK, config=settings(tmp_path, {}))
    with pytest.raises(InputError, match=r"INPUT\.FORMAT is BGR, but --rgb is given"):
        load_foreign(DETECTRON2, config=path, rgb=True)


def test_settings_replace_what_an_old_checkpoint_states(tmp_path: Path) -> None:
    """As in Detectron2, which does not load those buffers any more."""
    import pickle

    from sparsedet.importers.containers import open_source

    state = {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}
    usual = cell_anchors(preset("r101-c4-detectron2"))
    state["proposal_generator.anchor_generator.cell_anchors.0"] = usual + np.float32(1)
    state["pixel_mean"] = np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": state}))
    stated = settings(
        tmp_path, {"MODEL.PIXEL_MEAN": [9.0, 8.0, 7.0], "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0}
    )
    config = require_c4(load_foreign(path, config=stated).config, "read")
    assert config.pixel_mean == (9, 8, 7) and np.array_equal(cell_anchors(config), usual)


def test_without_settings_the_assumed_ones_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, output = tmp_path / "model.pth", tmp_path / "m.safetensors"
    copy.write_bytes(DETECTRON2.read_bytes())
    assert main(["convert", str(copy), "-o", str(output)]) == 0
    text = capsys.readouterr().out
    for word in (
        "POOLER_TYPE ROIAlignV2",
        "USE_SIGMOID_CE False",
        "MIN_SIZE 0",
        "strides in conv1",
    ):
        assert word in text
    assert "--config (it is in the run's OUTPUT_DIR)" in text
    settings(tmp_path, {})
    assert main(["convert", str(copy), "-o", str(output), "--overwrite"]) == 0
    assert f"--config ({tmp_path / 'config.yaml'} lies beside it)" in capsys.readouterr().out


def test_what_is_not_detectron2s_own_is_named(tmp_path: Path) -> None:
    changes = {
        "SEMISUPNET.TRAINER": "x",
        "MODEL.ROI_HEADS.SOFT_NMS": True,
        "TEST.AUG.ENABLED": True,
    }
    notes = load_foreign(DETECTRON2, config=settings(tmp_path, changes)).notes
    assert any("MODEL.ROI_HEADS.SOFT_NMS, SEMISUPNET.TRAINER" in note for note in notes)
    assert any("TEST.AUG" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "_BASE_: ../Base.yaml\nMODEL:\n  MASK_ON: false\n",
            "_BASE_ is '../Base.yaml'.* OUTPUT_DIR",
        ),
        ("dataloader: {}\nmodel:\n  _target_: x\n", "LazyConfig"),
        ("MODEL: 3\n", "has no MODEL section"),
        ("MODEL:\n  RPN: &a\n    X: *a\n", "not defined before"),
        ("just a text", "expected a JSON object of configuration fields, or Detectron2's"),
        ("- 1\n- 2\n", "expected a JSON object"),
        ("MODEL: !!python/object/apply:os.system ['touch ran']\n", "nothing was run"),
        ("", "expected a JSON object"),
        ("MODEL:\n  RESNETS:\n    DEPTH: [50]\n", "DEPTH is"),
        (
            'MODEL:\n  RPN:\n    NMS_THRESH: \'__import__("os").system("touch ran")\'\n',
            "NMS_THRESH",
        ),
    ],
)
def test_wrong_and_hostile_settings_are_one_line(
    text: str,
    match: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    refused(path, match, capsys)
    assert not (tmp_path / "ran").exists()
