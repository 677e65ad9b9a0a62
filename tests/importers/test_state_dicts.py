"""Several models in one file, names under prefixes, and what else trainers store."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from helpers.parity import DETECTRON2, TENSORPACK
from numpy.typing import NDArray

from sparsedet import InputError
from sparsedet.cli import main
from sparsedet.importers import detect_format, load_any, load_foreign
from sparsedet.importers.containers import open_source
from sparsedet.model.safetensors import container

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def state() -> Arrays:
    """The tensors of a small network by Detectron2's names."""
    return {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}


def saved(folder: Path, content: Mapping[Any, Any], protocol: int = 2) -> Path:
    path = folder / "model.pth"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def scaled(state: Arrays, factor: float) -> Arrays:
    """Another model of the same form: its box logits' biases tell which it is."""
    return {
        n: v * np.float32(factor) if n.endswith("cls_score.bias") else v for n, v in state.items()
    }


def factor_of(path: Path, weights: str | None = None) -> float:
    bias = load_foreign(path, weights=weights).tensors["box.logits.bias"]
    expected = load_foreign(DETECTRON2).tensors["box.logits.bias"]
    return round(float(bias[0] / expected[0]), 3)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "module.",
        "_orig_mod.",
        "student.",
        "model.module.",
        "module.model.student._orig_mod.",
        "_fsdp_wrapped_module.",
        "detector.",
    ],
)
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module", None])
def test_prefixes_of_trainers_are_taken_off(
    prefix: str, wrapper: str | None, state: Arrays, tmp_path: Path
) -> None:
    names = under(prefix, state)
    path = saved(tmp_path, {wrapper: names, "epoch": 1} if wrapper else names)
    assert detect_format(path) == "detectron2"
    imported, expected = load_foreign(path), load_foreign(DETECTRON2)
    assert imported.config == expected.config and imported.ignored == ()
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(imported.tensors[name], value)


def test_a_compiled_or_wrapped_part_of_a_model(state: Arrays, tmp_path: Path) -> None:
    inner = {n.replace("backbone.", "backbone._orig_mod."): v for n, v in state.items()}
    inner = {n.replace("roi_heads.", "roi_heads.module."): v for n, v in inner.items()}
    imported = load_foreign(saved(tmp_path, {"model": inner}))
    assert imported.ignored == () and len(imported.tensors) == 116
    twice = {**state, "module.backbone.stem.conv1.weight": state["backbone.stem.conv1.weight"]}
    with pytest.raises(InputError, match=r"'backbone.stem.conv1.weight' occurs twice"):
        load_foreign(saved(tmp_path, twice))


def test_safetensors_with_prefixes_and_long_metadata(state: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {name: value.astype(np.float32) for name, value in under("model.", state).items()}
    data = container({"format": "pt"}, arrays)
    path.write_bytes(data)
    assert detect_format(path) == "detectron2" and load_foreign(path).ignored == ()
    length = int.from_bytes(data[:8], "little")  # some libraries put whole configurations there
    header = data[8 : 8 + length].replace(b'"pt"', b'"pt","config":"' + b"x" * (2 << 20) + b'"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert load_foreign(path).ignored == ()


def test_a_type_of_safetensors_that_numpy_lacks_matters_only_where_it_is_needed(
    state: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"

    def write(kind: str, item: int, beside: str) -> None:
        extra = np.zeros(4 * item, np.uint8)
        arrays = {name: value.astype(np.float32) for name, value in state.items()}
        data = container({}, {**arrays, beside: extra})
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header[beside].update(dtype=kind, shape=[4])
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    for kind, item in (("U16", 2), ("U32", 4), ("U64", 8), ("C64", 8), ("F8_E4M3", 1)):
        write(kind, item, "optimizer.step")
        assert load_foreign(path).ignored == ("optimizer.step",)
    name = "roi_heads.box_predictor.cls_score.bias"
    write("F8_E4M3", 1, name)
    with pytest.raises(InputError, match=f"{name}' is a tensor of type F8_E4M3, expected"):
        load_foreign(path)


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"model": 1, "model_ema": 2}, 1, ["model_ema"]),  # DetectionCheckpointer reads "model"
        ({"state_dict": 1, "ema_state": 2}, 1, ["ema_state"]),
        ({"model": 1, "ema": {"module": 2, "decay": 0.9}}, 1, ["ema"]),
        ({"student": 1, "teacher": 2}, 1, ["teacher"]),
        ({"model": {"student": 1, "teacher": 2}}, 1, ["model.teacher"]),
        ({"model": {"modelTeacher": 1, "modelStudent": 2}}, 1, ["model.modelStudent"]),
        ({"model_ema": 1}, 1, []),
        ({"teacher": 1, "ema_teacher": 2, "model": 3}, 3, ["teacher", "ema_teacher"]),
    ],
)
def test_of_several_models_the_usual_one_is_taken_and_the_others_named(
    content: Any,
    taken: int,
    left: list[str],
    state: Arrays,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        return scaled(state, node) if isinstance(node, int) else node

    path, output = saved(tmp_path, filled(content)), tmp_path / "m.safetensors"
    assert factor_of(path) == taken
    assert main(["convert", str(path), "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert ("left out" in text) == bool(left)
    assert all(name in text for name in left)
    assert load_any(path)[1] == load_foreign(path).notes  # what train --init prints


def test_a_flag_chooses(state: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"model": scaled(state, 1), "model_ema": under("module.", scaled(state, 2))}
    path, output = saved(tmp_path, content), tmp_path / "m.safetensors"
    assert factor_of(path, "model_ema") == 2 and factor_of(path, "ema") == 2
    assert factor_of(path, "model") == 1
    command = ["convert", str(path), "-o", str(output), "--weights"]
    assert main([*command, "ema"]) == 0
    assert "took model_ema, left out model" in capsys.readouterr().out
    assert main([*command, "best", "--overwrite"]) == 1
    assert "weights is 'best', expected one of: model, model_ema" in capsys.readouterr().err
    with pytest.raises(InputError, match="no state dicts to choose from"):
        load_foreign(TENSORPACK, weights="ema")
    assert factor_of(saved(tmp_path, {**state, **under("ema.", scaled(state, 2))}), "ema") == 2


def test_several_epochs_are_a_question(state: Arrays, tmp_path: Path) -> None:
    path = saved(tmp_path, {f"epoch_{n}": scaled(state, n) for n in (1, 2, 3)})
    with pytest.raises(InputError, match=r"3 sets of weights \(epoch_1, epoch_2, epoch_3\)"):
        load_foreign(path)
    assert factor_of(path, "epoch_3") == 3


def test_an_optimizer_is_no_model(state: Arrays, tmp_path: Path) -> None:
    """FSDP and some trainers store its state under the names of the parameters."""
    momentum = {"state": {name: {"exp_avg": value} for name, value in state.items()}}
    for key in ("optimizer", "optimizer_states"):
        imported = load_foreign(
            saved(tmp_path, {"state_dict": under("model.", state), key: momentum})
        )
        assert imported.ignored and all(name.startswith(key) for name in imported.ignored)
    imported = load_foreign(saved(tmp_path, {"model": state, "momentum": state}))
    assert len(imported.ignored) == len(state) and not any("left out" in n for n in imported.notes)


def test_timms_averaged_classifier_is_the_one_that_timm_takes(tmp_path: Path) -> None:
    w = np.zeros((64, 64, 1, 1), np.float32)
    names = {"conv1.weight": w, "layer1.0.conv1.weight": w, "layer1.0.conv3.weight": w}
    content = {"state_dict": names, "state_dict_ema": under("module.", names), "epoch": 3}
    path = saved(tmp_path, content)
    assert detect_format(path) == "torchvision"
    note = open_source(path)[1].notes[0]
    assert "took state_dict_ema, left out state_dict" in note
    for inside in ("backbone.", "backbone.body."):  # of a detector
        with pytest.raises(InputError, match=r"unknown model format|detector of torchvision"):
            detect_format(saved(tmp_path, under(inside, names)))


# ------------------------------------------------------------------- what else is stored


class Settings:
    """An object of a class of the trainer's own."""


def test_what_trainers_store_beside_weights_is_read_as_nothing(
    state: Arrays, tmp_path: Path
) -> None:
    table: collections.defaultdict[str, Any] = collections.defaultdict(list)
    table["a"] = [np.zeros(2, np.float32)]
    rest = {
        "paths": [tmp_path, PureWindowsPath("c:\\x")],
        "arguments": argparse.Namespace(lr=0.1, folder=tmp_path),
        "time": [datetime.datetime(2024, 1, 2), datetime.timedelta(3), datetime.date(2024, 1, 2)],
        "zone": datetime.timezone.utc,
        "set": {1, "a"},
        "frozen": frozenset([2]),
        "table": table,
        "queue": collections.deque([1, 2], 3),
        "counter": collections.Counter("abc"),
        "ordered": collections.OrderedDict(a=1),
        "bytes": [b"x", bytearray(b"y")],
        "complex": 1j,
        "type": float,
    }
    expected = load_foreign(DETECTRON2).tensors
    for protocol in (2, 3, 4, 5):
        path = saved(tmp_path, {"model": state, **rest}, protocol)
        imported = load_foreign(path)
        assert all(np.array_equal(imported.tensors[n], v) for n, v in expected.items())
        assert imported.ignored == ("table.a.0",)
    with pytest.raises(InputError, match=r"wants .*Settings; nothing was run\. Save the weights"):
        load_foreign(saved(tmp_path, {"model": state, "settings": Settings()}))


def test_a_stand_in_does_nothing(tmp_path: Path) -> None:
    """Names that are read as stand-ins are not the real ones."""
    marker = tmp_path / "made"

    class Touch:
        def __reduce__(self) -> Any:
            return Path, (str(marker),)

    huge = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x00\x85R."
    for data in (pickle.dumps({"model": Touch()}), huge):
        path = tmp_path / "x.pkl"
        path.write_bytes(data)
        with pytest.raises(InputError):
            load_foreign(path)
    assert not marker.exists()
    # A method of the path is another name, and is refused.
    path.write_bytes(b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93.")
    with pytest.raises(InputError, match=r"wants pathlib\.Path\.touch"):
        load_foreign(path)


def test_a_cut_or_wrong_file_says_so(tmp_path: Path) -> None:
    data = DETECTRON2.read_bytes()
    for name, content, match in (
        ("half.pth", data[: len(data) // 2], "truncated or damaged"),
        ("end.pth", data[:-30], "truncated or damaged"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("packed.pth", b"\x1f\x8b\x08\0" + bytes(60), "is a compressed file"),
        ("page.pth", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b"}}', "index lists the parts"),
        ("model-00001-of-00003.safetensors", data, "is part 1 of 3 of a model"),
        ("pytorch_model-00002-of-00002.bin", data, "is part 2 of 2 of a model"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=match) as caught:
            detect_format(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(InputError, match=r"many files; join them: .* dcp_to_torch"):
        detect_format(tmp_path)
    path = tmp_path / "crc.pth"
    flipped = bytearray(data)
    with zipfile.ZipFile(DETECTRON2) as archive:
        place = next(i for i in archive.infolist() if i.filename.endswith("data/3")).header_offset
    lengths = [int.from_bytes(data[place + at : place + at + 2], "little") for at in (26, 28)]
    flipped[place + 30 + sum(lengths)] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(InputError, match="truncated or damaged"):
        load_foreign(path)


# -------------------------------------------------------------------------- refusals


def without(state: Arrays, *parts: str) -> Arrays:
    return {n: v for n, v in state.items() if not any(part in n for part in parts)}


def test_models_that_do_not_run_are_named_with_what_to_do(state: Arrays, tmp_path: Path) -> None:
    w = np.zeros((4, 4), np.float32)
    groups = {n: v[:, :1] if ".conv2.weight" in n else v for n, v in state.items()}
    head = "roi_heads.box_head.fc1.weight"
    five = {
        n: np.repeat(v, 5, 0)[: v.shape[0] // 4 * 5] if "anchor_deltas" in n else v
        for n, v in state.items()
    }
    box = "roi_heads.box_predictor.bbox_pred.weight"
    rotated = {**state, box: np.zeros((100, 64), np.float32)}
    conv = "proposal_generator.rpn_head.conv"
    several = {n.replace(f"{conv}.", f"{conv}.conv0."): v for n, v in state.items()}
    basic = without(state, ".conv3.")
    for changed, match in (
        ({**state, "backbone.fpn_lateral2.weight": w}, r"FPN.*faster_rcnn_R_50_C4_3x"),
        (without(state, "running_"), r"GroupNorm.*RESNETS\.NORM FrozenBN, BN or SyncBN"),
        (without(state, ".norm."), r"no norms.*RESNETS\.NORM"),
        (groups, r"ResNeXt \(convolutions in 2 groups\).*NUM_GROUPS 1"),
        (five, r"rotated boxes.*PROPOSAL_GENERATOR\.NAME RPN"),
        (rotated, r"rotated boxes"),
        ({**without(state, "res5"), head: w}, r"StandardROIHeads.*ROI_HEADS\.NAME Res5ROIHeads"),
        (several, r"several convolutions in its RPN.*CONV_DIMS \[-1\]"),
        (basic, r"two convolutions \(ResNet 18 or 34\).*DEPTH 50"),
        ({**state, "backbone.res4.0.conv2_offset.weight": w}, r"deformable.*DEFORM_ON_PER_STAGE"),
        ({**state, "sem_seg_head.predictor.weight": w}, "semantic segmentation"),
    ):
        path = saved(tmp_path, {"model": changed})
        with pytest.raises(InputError, match=match):
            load_foreign(path, "detectron2")
        assert main(["convert", str(path), "-o", str(tmp_path / "m.safetensors")]) == 1


def test_a_model_pruned_by_torch_says_how_to_save_it(state: Arrays, tmp_path: Path) -> None:
    name = "backbone.res3.0.conv1.weight"
    masked = {**without(state, name), f"{name}_orig": state[name], f"{name}_mask": state[name]}
    with pytest.raises(InputError, match=r"weights and a mask: .*prune\.remove"):
        load_foreign(saved(tmp_path, masked))


def test_other_commands_point_to_convert(
    state: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors = tmp_path / "detectron2.safetensors"
    safetensors.write_bytes(
        container({"format": "pt"}, {n: v.astype("f4") for n, v in state.items()})
    )
    photo = str(Path(__file__).parents[2] / "examples" / "beach.jpg")
    for path in (DETECTRON2, TENSORPACK, saved(tmp_path, {"model": state}), safetensors):
        assert main(["detect", photo, "--no-save", "--model", str(path)]) == 1
        text = capsys.readouterr().err
        assert "not a sparsedet model" in text and "sparsedet convert FILE -o MODEL" in text
        assert main(["info", "--model", str(path)]) == 0  # it reads what convert reads
        assert "prunable layers: " in capsys.readouterr().out
