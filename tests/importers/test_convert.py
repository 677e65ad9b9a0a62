"""`sparsedet convert`: files that are read and counted, and files that are refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import DETECTRON2, TENSORPACK
from numpy.typing import NDArray

from sparsedet import InputError
from sparsedet.cli import main
from sparsedet.importers import detect_format, load_foreign
from sparsedet.importers.containers import open_source
from sparsedet.model.boxes import cell_anchors
from sparsedet.model.c4 import build_graph
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import load_model, save_model
from sparsedet.model.presets import preset
from sparsedet.model.sparsity import sparsity_report

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def state() -> Arrays:
    """The tensors of a small network by Detectron2's names."""
    return {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}


@pytest.fixture(scope="module")
def variables() -> Arrays:
    """The tensors of a small network by TensorPack's names."""
    return dict(np.load(TENSORPACK))


def zoo(folder: Path, state: Mapping[str, Any], protocol: int = 4) -> Path:
    """A file in the form of Detectron2's model zoo."""
    path = folder / "model_final.pkl"
    content = {"model": dict(state), "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def npz(folder: Path, arrays: Mapping[str, Any]) -> Path:
    path = folder / "model.npz"
    np.savez_compressed(path, **arrays)
    return path


def refused(path: Path, match: str, *flags: str) -> None:
    """One line with the file's name, exit code 1, and nothing written."""
    output = path.parent / "refused.safetensors"
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError, match=match):
        load_foreign(path, *flags)
    arguments = ["convert", str(path), "-o", str(output)]
    assert main(arguments + [f"--from={name}" for name in flags]) == 1
    assert sorted(path.parent.iterdir()) == before


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("sparsedet: ")
    return text


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("source", [DETECTRON2, TENSORPACK])
def test_convert_writes_the_imported_model(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    assert main(["convert", str(source), "-o", str(output)]) == 0
    text = capsys.readouterr().out
    imported, written = load_foreign(source), load_model(output)
    assert written.config == imported.config and written.storage_dtype == "float32"
    assert all(np.array_equal(written.tensors[n], v) for n, v in imported.tensors.items())
    parameters = build_graph(require_c4(imported.config, "read")).parameters
    assert f"{parameters:,} parameters" in text and source.name in str(written.provenance)

    before = output.read_bytes()
    assert main(["convert", str(source), "-o", str(output)]) == 1  # never over a file unasked
    assert "exists already" in one_line(capsys) and output.read_bytes() == before
    assert main(["convert", str(source), "-o", str(output), "--overwrite", "--dtype=float16"]) == 0
    assert load_model(output).storage_dtype == "float16"
    capsys.readouterr()
    assert main(["convert", str(source), "-o", str(tmp_path / "no" / "x.safetensors")]) == 1
    assert "is not a folder" in one_line(capsys)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_of_any_protocol_gives_the_same_model(
    protocol: int, state: Arrays, tmp_path: Path
) -> None:
    expected = load_foreign(DETECTRON2)
    path = zoo(tmp_path, state, protocol)
    if protocol < 2:  # without a header, which no such file has
        return refused(path, "is not a pickle")
    data = path.read_bytes()
    assert b"numpy._core" in data or b"numpy.core" in data
    for name in (b"numpy._core", b"numpy.core") if protocol == 2 else (b"numpy._core",):
        path.write_bytes(data.replace(b"numpy._core", name))  # numpy 2 and 1
        assert detect_format(path) == "detectron2"
        imported = load_foreign(path)
        assert imported.config == expected.config
        assert all(np.array_equal(imported.tensors[n], v) for n, v in expected.tensors.items())
    return None


def test_layouts_and_types_are_read_as_numpy_reads_them(state: Arrays, tmp_path: Path) -> None:
    expected = load_foreign(DETECTRON2).tensors
    fortran = {name: np.asfortranarray(value) for name, value in state.items()}
    swapped = {name: value.astype(">f4") for name, value in state.items()}
    double = {name: value.astype(np.float64) for name, value in state.items()}
    for other in (fortran, swapped, double, OrderedDict(state)):
        tensors = load_foreign(zoo(tmp_path, other)).tensors
        assert all(np.array_equal(tensors[name], value) for name, value in expected.items())


def test_sixty_percent_in_sixty_percent_out(
    state: Arrays, variables: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for source in (state, variables):
        pruned, zeros = {}, 0
        for name, value in source.items():
            pruned[name] = value.copy()
            if value.ndim > 1:
                pruned[name][rng.random(value.shape) < 0.6] = 0
                zeros += int((pruned[name] == 0).sum())
        path = zoo(tmp_path, pruned) if source is state else npz(tmp_path, pruned)
        output = tmp_path / "model.safetensors"
        assert main(["convert", str(path), "-o", str(output), "--overwrite"]) == 0
        report = sparsity_report(load_model(output).config, load_model(output).tensors)
        assert report.zeros == zeros and 0.5 < report.sparsity < 0.6  # biases are not pruned
        assert f"{zeros:,} of them zero" in capsys.readouterr().out


def test_weights_that_float16_rounds_to_zero_are_reported(
    state: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {
        **state,
        "roi_heads.box_predictor.bbox_pred.weight": state[
            "roi_heads.box_predictor.bbox_pred.weight"
        ]
        * np.float32(1e-9),
    }
    path, output = zoo(tmp_path, tiny), tmp_path / "model.safetensors"
    assert main(["convert", str(path), "-o", str(output), "--dtype", "float16"]) == 0
    assert "were too small for float16" in capsys.readouterr().out


def test_tensors_outside_of_the_network_are_listed(
    state: Arrays, variables: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Momenta and counters, TensorPack's mask heads."""
    counter = {"backbone.stem.conv1.norm.num_batches_tracked": np.int64(4)}
    content = {
        "model": {**state, **counter},
        "iteration": 9,
        "optimizer": {
            "state": {0: {"momentum_buffer": np.zeros(3, np.float32)}},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        },
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    imported = load_foreign(path)
    # A numpy scalar is a number and no array.
    assert set(imported.ignored) == {"optimizer.state.0.momentum_buffer"}
    assert np.array_equal(
        imported.tensors["box.logits.bias"], load_foreign(DETECTRON2).tensors["box.logits.bias"]
    )
    more = {
        "maskrcnn/deconv/W": np.zeros((2, 2, 3, 4), np.float32),
        "global_step": np.int64(7),
        "learning_rate": np.float32(0.1),
        "conv0/W/Momentum": variables["conv0/W"],
    }
    path = npz(tmp_path, {**variables, **more})
    assert load_foreign(path).ignored == tuple(sorted(more))
    output = tmp_path / "model.safetensors"
    assert main(["convert", str(path), "-o", str(output), "--verbose"]) == 0
    assert all(name in capsys.readouterr().out for name in ["maskrcnn/deconv/W"])


def test_what_an_older_checkpoint_states_is_used(state: Arrays, tmp_path: Path) -> None:
    config = require_c4(load_foreign(DETECTRON2).config, "read")
    anchors = "proposal_generator.anchor_generator.cell_anchors.0"
    usual = cell_anchors(config)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((1, 2, 3), (4, 5, 6)))
    stated = {**state, "pixel_mean": mean, "pixel_std": std, anchors: usual}
    imported = load_foreign(zoo(tmp_path, stated))
    assert require_c4(imported.config, "read").pixel_mean == (1, 2, 3) and require_c4(
        imported.config, "read"
    ).pixel_std == (4, 5, 6)
    assert require_c4(imported.config, "read").cell_anchors is None and imported.ignored == ()
    imported = load_foreign(zoo(tmp_path, {**stated, anchors: usual + np.float32(1)}))
    assert np.array_equal(cell_anchors(require_c4(imported.config, "read")), usual + np.float32(1))
    assert any("anchors" in note for note in imported.notes)
    refused(zoo(tmp_path, {**stated, anchors: usual[:3]}), r"shape \(3, 4\), expected \(15, 4\)")


def test_one_set_of_box_deltas_is_repeated(
    state: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deltas = "roi_heads.box_predictor.bbox_pred"
    four = {f"{deltas}.{leaf}": state[f"{deltas}.{leaf}"][4:8] for leaf in ("weight", "bias")}
    each = {name: np.concatenate([value] * 20) for name, value in four.items()}
    expected, output = load_foreign(zoo(tmp_path, {**state, **each})), tmp_path / "m.safetensors"
    imported = load_foreign(zoo(tmp_path, {**state, **four}))
    assert imported.config == expected.config
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(imported.tensors[name], value)
    # With another preset there is a set for the background, too.
    imported = load_foreign(zoo(tmp_path, {**state, **four}), base=preset("r101-c4"))
    assert imported.tensors["box.deltas.bias"].shape == (84,)
    assert main(["convert", str(tmp_path / "model_final.pkl"), "-o", str(output)]) == 0
    assert "one set of box deltas for all classes: repeated" in capsys.readouterr().out
    one = {name: state[name][:2] for name in state if "cls_score" in name}  # one class: both forms
    imported = load_foreign(zoo(tmp_path, {**state, **four, **one}))
    np.testing.assert_array_equal(imported.tensors["box.deltas.bias"], four[f"{deltas}.bias"])


def test_a_model_of_rgb_images(
    state: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem, output = "backbone.stem.conv1.weight", tmp_path / "m.safetensors"
    expected = load_foreign(DETECTRON2).tensors["stem.conv.weight"]
    reversed_ = {**state, stem: state[stem][:, ::-1]}
    imported = load_foreign(zoo(tmp_path, reversed_), rgb=True)
    np.testing.assert_array_equal(imported.tensors["stem.conv.weight"], expected)
    usual = preset("r101-c4")  # Detectron2's recipe for torchvision's weights
    assert require_c4(imported.config, "read").pixel_mean == usual.pixel_mean
    assert (
        require_c4(imported.config, "read").pixel_std == usual.pixel_std
        and require_c4(imported.config, "read").stride_in == "conv2"
    )
    fields = {"stride_in": "conv1", "pixel_std": [1.0, 1.0, 1.0], "pixel_mean": [1.0, 2.0, 3.0]}
    imported = load_foreign(zoo(tmp_path, reversed_), rgb=True, fields=fields)
    assert require_c4(imported.config, "read").stride_in == "conv1" and require_c4(
        imported.config, "read"
    ).pixel_mean == (1, 2, 3)  # BGR
    stated = {"pixel_mean": np.array([9, 8, 7], np.float32).reshape(3, 1, 1)}  # in its own order
    path = zoo(tmp_path, {**reversed_, **stated})
    assert require_c4(load_foreign(path, rgb=True).config, "read").pixel_mean == (7, 8, 9)
    assert require_c4(load_foreign(path).config, "read").pixel_mean == (9, 8, 7)
    assert main(["convert", str(path), "-o", str(output), "--rgb"]) == 0
    assert "RGB images of mean (7.0, 8.0, 9.0), std (57.375" in capsys.readouterr().out
    np.testing.assert_array_equal(load_model(output).tensors["stem.conv.weight"], expected)
    assert main(["convert", str(TENSORPACK), "-o", str(tmp_path / "x"), "--rgb"]) == 1
    assert "--rgb applies to Detectron2 models only" in one_line(capsys)


def test_tensors_without_axes(state: Arrays, variables: Arrays, tmp_path: Path) -> None:
    """Where a shape decides the configuration."""
    for name in (
        "backbone.stem.conv1.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.weight",
        "backbone.res3.0.conv3.weight",
        "proposal_generator.rpn_head.objectness_logits.weight",
    ):
        refused(zoo(tmp_path, {**state, name: np.array(1, np.float32)}), f"'{name}' has shape")
    for name in ("conv0/W", "fastrcnn/class/W", "rpn/class/W", "group1/block0/conv3/W"):
        refused(npz(tmp_path, {**variables, name: np.array(1, np.float32)}), f"'{name}' has shape")


def test_the_users_fields_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"thing {n}" for n in range(20)]
    fields = {"class_names": names, "proposals": 50, "input_height": 320, "name": "mine"}
    settings, output = tmp_path / "fields.json", tmp_path / "model.safetensors"
    settings.write_text(json.dumps(fields))
    convert = ["convert", str(TENSORPACK), "-o", str(output), "--config", str(settings)]
    assert main(convert) == 0
    config = load_model(output).config
    assert config.class_names == tuple(names) and config.category_ids == tuple(range(1, 21))
    assert (config.proposals, config.input_height, config.name) == (50, 320, "mine")
    assert load_foreign(TENSORPACK).config.proposals == 1000
    assert load_foreign(TENSORPACK, base=preset("r101-c4")).config.proposals == 300
    capsys.readouterr()
    for bad, expected in (
        ({"class_names": ["a"]}, "has 20 classes, class_names gives 1"),
        ({"proposal": 5}, "unknown configuration key 'proposal'"),
        ({"proposals": "many"}, "proposals is 'many'"),
        ({"anchor_sizes": [32.0]}, "has 15 anchors a cell"),
        ({"blocks": [1, 2, 3, 1]}, "'group2/block2/conv1/W' is missing"),
        ([1], "expected a JSON object"),
    ):
        settings.write_text(json.dumps(bad))
        assert main([*convert, "--overwrite"]) == 1
        assert expected in one_line(capsys)
    assert main([*convert[:4], "--preset", "r999"]) == 2


def test_the_published_names_cover_the_reference() -> None:
    """Detectron2's R101-C4 and TensorPack's have as many tensors as their layers need."""
    from sparsedet.importers import tensorpack
    from sparsedet.importers.detectron2 import names

    for module, name, parameters in (
        (names, "r101-c4-detectron2", 52_784_220),
        (tensorpack, "r101-c4", 52_792_416),
    ):
        graph = build_graph(preset(name))
        assert graph.parameters == parameters
        assert len({module.layer_name(layer) for layer in graph.layers}) == len(graph.layers)


# -------------------------------------------------------------------------- hostile files


def rewritten(path: Path, changes: Mapping[str, bytes | None], **options: Any) -> Path:
    """A copy of the Detectron2 checkpoint with entries replaced, or left out for None."""
    with zipfile.ZipFile(DETECTRON2) as old, zipfile.ZipFile(path, "w", **options) as new:
        for name in old.namelist():
            inner = name.partition("/")[2]
            data = changes.get(inner, old.read(name))
            if data is not None:
                new.writestr(name, data, compresslevel=1)
    return path


def test_archive_bombs_are_not_unpacked(tmp_path: Path, variables: Arrays) -> None:
    compress: dict[str, Any] = {"compression": zipfile.ZIP_DEFLATED}
    nothing = bytes(65 << 20)
    path = rewritten(tmp_path / "a.pth", {"data.pkl": nothing}, **compress)
    assert path.stat().st_size < 1_000_000
    refused(path, "would unpack to 68,157,440 bytes")
    path = rewritten(tmp_path / "b.pth", {"data/0": nothing[: 8 << 20]}, **compress)
    refused(path, r"storage '0' has 8388608 bytes, expected \d+")

    # Arrays whose entry is larger than its shape, whose shape is not the network's, or that make
    # a network of a terabyte: none is unpacked (the last has no bytes to unpack).
    def forged(shape: tuple[int, ...], size: int) -> Path:
        path = npz(tmp_path, {k: v for k, v in variables.items() if k != "rpn/conv0/W"})
        with zipfile.ZipFile(path, "a", **compress) as archive:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            data = header.getvalue() + bytes(size)
            archive.writestr("rpn/conv0/W.npy", data, compresslevel=1)
        return path

    refused(forged((3, 3, 64, 24), 8 << 20), "does not fit its shape")
    refused(forged((1, 1, 1000, 1000), 4_000_000), r"expected \(3, 3, 64, 1000\)")
    refused(forged((3, 3, 1 << 20, 1 << 20), 0), "does not fit its shape")
    many = {f"group2/block{n}/conv1/W": np.zeros(1, np.float32) for n in range(2000)}
    refused(npz(tmp_path, {**variables, **many}), "blocks")


def test_a_wide_network_is_refused_before_its_weights_are_read(
    tmp_path: Path, variables: Arrays
) -> None:
    """One small file may declare a res5 of 30 billion weights."""
    wide = {"group3/block0/conv1/W": np.zeros((1, 1, 64, 60_000), np.float32)}
    path = npz(tmp_path, {**variables, **wide})
    assert path.stat().st_size < 400_000
    refused(path, r"would have 32,\d{3},\d{3},\d{3} parameters, expected at most")


def test_damaged_files(tmp_path: Path, state: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, or with bytes changed: one line, or (in a pickle's weights) another model."""
    rng = np.random.default_rng(1)
    pickled = zoo(tmp_path, state)
    for source in (DETECTRON2, TENSORPACK, pickled):
        data = source.read_bytes()
        path = tmp_path / f"cut{source.suffix}"
        for length in [0, 1, 3, 9, 64, *rng.integers(64, len(data) - 1, 20).tolist()]:
            path.write_bytes(data[:length])
            with pytest.raises(InputError, match=f"cut{source.suffix}: "):
                load_foreign(path)
        for _ in range(60):
            flipped = bytearray(data)
            # The pickle itself, where structure is: mostly at the beginning.
            for place in rng.integers(0, 4000 if rng.random() < 0.7 else len(data), 3):
                flipped[place] = rng.integers(256)
            path.write_bytes(flipped)
            try:
                load_foreign(path)
            except InputError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
    (tmp_path / "text.pkl").write_text("no weights, but a text of some length\n" * 3)
    refused(tmp_path / "text.pkl", "is not a pickle, PyTorch, .npz, safetensors or .xml file")
    refused(tmp_path / "none.pth", "No such file")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "none.pth"), "-o", str(tmp_path / "x")]) == 1
    assert "No such file" in one_line(capsys)


def test_missing_doubled_and_bad_tensors(tmp_path: Path, state: Arrays, variables: Arrays) -> None:
    name = "backbone.res3.1.conv2.weight"
    without = {k: v for k, v in state.items() if k != name}
    refused(zoo(tmp_path, without), f"tensor '{name}' is missing")
    bad = state[name].copy()
    bad[0, 0, 0, 0] = np.nan
    refused(zoo(tmp_path, {**state, name: bad}), f"'{name}' holds NaN or infinite")
    refused(zoo(tmp_path, {**state, name: state[name].astype(np.float64) * 1e300}), "infinite")
    refused(zoo(tmp_path, {**state, name: state[name][:1]}), r"has shape \(1, 4, 3, 3\), expected")
    refused(zoo(tmp_path, {**state, name: state[name].astype(np.int64)}), "does not hold floats")
    refused(zoo(tmp_path, {**state, "backbone.res3.1.conv9.weight": bad}), "belongs to no layer")
    refused(
        zoo(tmp_path, {**state, "backbone.res2.0.conv1.norm.running_var": -np.ones(2, np.float32)}),
        "running_var' is negative",
    )
    doubled = {"model": {**state, name: {"a": bad}}, f"{name}.a": bad}
    (tmp_path / "twice.pkl").write_bytes(pickle.dumps(doubled))
    refused(tmp_path / "twice.pkl", f"tensor '{name}.a' occurs twice")

    refused(npz(tmp_path, {k: v for k, v in variables.items() if k != "rpn/box/b"}), "is missing")
    refused(npz(tmp_path, {**variables, "extra/W": variables["conv0/W"]}), "belongs to no layer")
    refused(npz(tmp_path, {**variables, "conv0/W": variables["conv0/W"].T}), "shape")
    path = npz(tmp_path, variables)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("conv0/W.npy", archive.read("conv0/W.npy"))
    refused(path, "'conv0/W.npy' occurs twice")
    objects = npz(tmp_path, {**variables, "x": np.array([None])})
    refused(objects, "holds Python objects")


def test_other_models_are_named(
    tmp_path: Path,
    state: Arrays,
    variables: Arrays,
    small_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    w = np.zeros((2, 2), np.float32)
    fpn = {"backbone.bottom_up.stem.conv1.weight": w, "backbone.fpn_lateral2.weight": w}
    for names, match in (
        (fpn, "no box head"),
        ({"backbone.body.conv1.weight": w, "backbone.fpn.x": w}, "torchvision's|feature pyramid"),
        ({"model.0.conv.weight": w, "model.1.conv.weight": w}, "is a YOLO model"),
        ({"transformer.encoder.x": w}, "is a DETR model"),
        ({"bbox_head.fc_cls.weight": w}, "MMDetection"),
        ({"conv1_w": w, "res2_0_branch2a_w": w}, "is a Caffe2 model"),
        ({"layer1.0.conv1.weight": w, "fc.weight": w}, "ResNet classifier, not a detector"),
        ({"backbone.res2.0.conv1.weight": w, "backbone.res5.0.conv1.weight": w}, "dilated C5"),
        ({"backbone.res2.0.conv1.weight": w}, "no box head"),
        ({"a": w}, r"unknown model format \(1 tensors, as a\)"),
        ({}, r"unknown model format \(no tensors\)"),
        ({**state, "roi_heads.box_predictor.0.cls_score.weight": w}, "is a cascade"),
        (
            {**state, "roi_heads.box_predictor.bbox_pred.weight": w.repeat(2, 0)},
            r"bbox_pred.weight' has shape \(4, 2\), expected \(4, 64\)",
        ),
    ):
        refused(zoo(tmp_path, names), match)
    for arrays, match in (
        ({"fpn/lateral_1x1_c2/W": w, "conv0/W": w}, "feature pyramid"),
        ({"conv0/W": w, "group0/block0/conv1/W": w}, r"has no box head \('fastrcnn/'\)"),
        ({"conv0/W": w, "conv0/gn/gamma": w}, "group norms"),
    ):
        refused(npz(tmp_path, arrays), match)
    output = tmp_path / "model.safetensors"
    save_model(output, load_model(small_model).config, load_model(small_model).tensors, {})
    refused(output, "is a sparsedet model file already")
    (tmp_path / "a.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(tmp_path / "a.zip", "neither PyTorch's nor numpy's")
    script = rewritten(tmp_path / "script.pth", {"data.pkl": b"\x80\x02}."})
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr(archive.namelist()[0].split("/")[0] + "/code/__torch__.py", "")
    refused(script, "TorchScript")
    refused(tmp_path, "has no checkpoint of a training run")
    # The wrong form, asked for.
    copy = tmp_path / "copy.npz"
    copy.write_bytes(TENSORPACK.read_bytes())
    refused(copy, "no box head", "detectron2")
    refused(zoo(tmp_path, state), "no box head", "tensorpack")
    refused(zoo(tmp_path, state), "not a checkpoint of a training run", "checkpoint")
    with pytest.raises(SystemExit):
        main(["convert", "x", "-o", "y", "--from", "keras"])
    assert "invalid choice" in capsys.readouterr().err
