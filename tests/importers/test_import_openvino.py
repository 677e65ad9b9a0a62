"""Import of IRs: our exports unchanged, other forms give OpenVINO's rows, bad ones are refused.

`ir_forms.py` makes all IRs in a process of its own; OpenVINO is never loaded here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.cli import main
from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.evaluation.agreement import compare_rows
from sparsedet.evaluation.imported import synthetic_image
from sparsedet.images.read import read_image
from sparsedet.importers import detect_format, load_foreign
from sparsedet.importers.openvino_ir.graph import IR
from sparsedet.model.boxes import legacy_cell_anchors
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import load_model
from sparsedet.model.sparsity import sparsity_report

pytest.importorskip("openvino")

MODELS = ["tensorpack", "odd", "detectron2", "half", "legacy"]
FORMS = ["plain", "published", "hoisted", "float16"]


def in_a_process(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir")
    done = in_a_process("-m", "helpers.ir_forms", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """An IR to be damaged."""
    for suffix in (".xml", ".bin"):
        shutil.copy(folder / f"tensorpack_plain{suffix}", tmp_path / f"model{suffix}")
    return tmp_path / "model.xml"


def rows_of(file: Path) -> NDArray[np.float32]:
    """The rows of OpenVINO, without padding."""
    rows: NDArray[np.float32] = np.load(file.with_suffix(".npy")).reshape(-1, 7)
    ends = np.flatnonzero(rows[:, 0] < 0)
    return rows[: ends[0]] if len(ends) else rows


# ---------------------------------------------------------------------- our exports


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_an_export_comes_back_as_it_was(folder: Path, name: str, form: str) -> None:
    model = load_model(folder / f"{name}.safetensors")
    back = load_foreign(folder / f"{name}_{form}.xml")
    assert back.config == model.config
    assert list(back.tensors) == list(model.tensors)
    for key, value in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[key], value, err_msg=key)
    given, got = (sparsity_report(m.config, m.tensors) for m in (model, back))
    assert (got.parameters, got.zeros) == (given.parameters, given.zeros)
    assert 0.35 < got.sparsity < 0.45  # the zeros that were asked for


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_form_gives_the_engines_detections(folder: Path, name: str, form: str) -> None:
    model = load_model(folder / f"{name}.safetensors")
    engine = Engine(model.config, model.tensors, threads=1)
    ours = engine.run(read_image(folder / f"{name}.png"))
    result = compare_rows(rows_of(folder / f"{name}_{form}.xml"), ours, 0.05, 100)
    assert result.source >= 20 and result.source == result.ours
    assert result.unmatched == 0 and result.score < 1e-4 and result.corner < 1e-4


def test_the_graph_overrides_its_metadata(folder: Path, copy: Path) -> None:
    text = copy.read_text()
    changed = re.sub(r"roi_sampling_ratio&quot;: 2", "roi_sampling_ratio&quot;: 4", text)
    changed = re.sub(r"pixel_mean&quot;: \[103.53", "pixel_mean&quot;: [99.0", changed)
    assert changed != text
    copy.write_text(changed)
    assert load_foreign(copy).config == load_model(folder / "tensorpack.safetensors").config


def test_the_graph_is_enough_without_our_metadata(folder: Path, copy: Path) -> None:
    text = copy.read_text()
    start, end = text.index("<sparsedet>"), text.index("</sparsedet>") + len("</sparsedet>")
    copy.write_text(text[:start] + text[end:])
    model, back = load_model(folder / "tensorpack.safetensors"), load_foreign(copy)
    expected, got = (require_c4(m.config, "read").to_dict() for m in (model, back))
    # Sizes and ratios are not in the graph, the anchors themselves are.
    for key in ("name", "anchor_sizes", "cell_anchors", "category_ids"):
        expected.pop(key), got.pop(key)
    assert got == expected
    assert back.config.name == "r17-c4"


# --------------------------------------------------------------------- foreign forms


@pytest.mark.parametrize("name", ["seed", "later", "compressed"])
def test_the_published_form(folder: Path, name: str) -> None:
    """Proposal, ROIPooling, DetectionOutput: attributes become configuration."""
    model = load_model(folder / "legacy.safetensors")
    imported = load_foreign(folder / f"form_{name}.xml")
    config = require_c4(imported.config, "read")
    legacy = require_c4(model.config, "read")
    anchors = legacy_cell_anchors(legacy.anchor_sizes)
    np.testing.assert_allclose(np.array(config.cell_anchors), anchors, atol=1e-4)
    same = (
        "pixel_mean",
        "pixel_std",
        "blocks",
        "stride_in",
        "stem_padding",
        "pool_padding",
        "stride_conv1_padding",
        "stride_conv2_padding",
        "proposals",
        "rpn_nms_threshold",
        "rpn_pre_nms",
        "rpn_remove_empty",
        "rpn_inclusive",
        "roi_size",
        "roi_sampling_ratio",
        "roi_sampling",
        "background",
        "background_deltas",
        "score_threshold",
        "nms_threshold",
        "max_detections",
    )
    tolerance = 1e-3 if name == "compressed" else 1e-6
    for field in same:
        expected, got = getattr(legacy, field), getattr(config, field)
        if isinstance(expected, str | bool):
            assert got == expected, field
        else:
            np.testing.assert_allclose(got, expected, rtol=tolerance, err_msg=field)
    for key, value in model.tensors.items():
        got = imported.tensors[key]
        if key.startswith("box.deltas"):  # weights of deltas may be inside
            weights = np.tile(config.box_weights, len(value) // 4)
            got = (got.T / weights).T * 1.0
            value = (value.T / np.tile(legacy.box_weights, len(value) // 4)).T
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=1e-4 * tolerance + 1e-7)
    ours = Engine(config, imported.tensors, threads=1).run(read_image(folder / "legacy.png"))
    result = compare_rows(rows_of(folder / f"form_{name}.xml"), ours, 0.05, 100)
    assert result.source == result.ours == 100 and result.unmatched == 0
    assert result.corner < 1e-4 and result.score < 1e-4


TRACE = """
import sys, warnings
import numpy as np, openvino as ov, torch
from torchvision import ops
from sparsedet.evaluation.agreement import compare_rows
from sparsedet.images.read import read_image
from sparsedet.torch_model import FasterRCNN, operations
from sparsedet.model.file import load_model
warnings.filterwarnings("ignore")

def by_operator(features, rois, size, scale, ratio, step):  # not its faster equal
    return ops.roi_align(features, rois, size, scale, ratio, True)[:, :, ::step, ::step]

operations.roi_align_matmul = by_operator
source, image, target = sys.argv[1:]
model = load_model(source)
network = FasterRCNN(model.config).eval()
network.load_tensors(model.tensors)
x = torch.from_numpy(read_image(image)).permute(2, 0, 1)[None].float()
graph = ov.convert_model(network, example_input=x, input=list(x.shape))
ov.save_model(graph, target, compress_to_fp16=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorpack", "detectron2"])
def test_torch_graphs_that_openvino_converted(folder: Path, name: str, tmp_path: Path) -> None:
    """By the command line, which runs both before it saves."""
    pytest.importorskip("torch")
    source, image = folder / f"{name}.safetensors", folder / f"{name}.png"
    graph, target = tmp_path / "graph.xml", tmp_path / "model.safetensors"
    done = in_a_process("-c", TRACE, source, image, graph)
    assert done.returncode == 0, done.stderr
    # The trace keeps numbers of its own image, so that image is the probe.
    done = in_a_process("-m", "sparsedet", "convert", graph, "-o", target, "--probe", image)
    assert done.returncode == 0, done.stderr
    counts = re.search(r"(\d+) detections of the source, (\d+) ours, 0 without", done.stdout)
    assert counts and counts[1] == counts[2] and int(counts[1]) >= 20
    model, back = load_model(source), load_model(target)
    for key, value in model.tensors.items():
        np.testing.assert_allclose(back.tensors[key], value, rtol=1e-6, err_msg=key)
    left_out = {"name", "anchor_sizes", "cell_anchors"}
    ours, theirs = (require_c4(m.config, "read").to_dict() for m in (model, back))
    assert {k: v for k, v in theirs.items() if k not in left_out} == {
        k: v for k, v in ours.items() if k not in left_out
    }


FROM_ONNX = """
import sys
import openvino as ov
from sparsedet.exporters.onnx import save_onnx
from sparsedet.model.file import load_model
model = load_model(sys.argv[1])
save_onnx(sys.argv[2] + ".onnx", model.config, model.tensors)
ov.save_model(ov.convert_model(sys.argv[2] + ".onnx"), sys.argv[2] + ".xml", compress_to_fp16=False)
"""


def test_our_onnx_that_openvino_converted(small_model: Path, tmp_path: Path) -> None:
    """It keeps ONNX's metadata in a place of its own, our configuration too."""
    pytest.importorskip("onnx")
    done = in_a_process("-c", FROM_ONNX, small_model, tmp_path / "graph")
    assert done.returncode == 0, done.stderr
    model, back = load_model(small_model), load_foreign(tmp_path / "graph.xml")
    assert back.config == model.config
    for key, value in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[key], value, err_msg=key)


# --------------------------------------------------------------------- the command line


def test_convert_runs_both_and_refuses_what_differs(folder: Path, tmp_path: Path) -> None:
    source, probe = folder / "half_published.xml", folder / "half.png"
    target, wrong = tmp_path / "model.safetensors", tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"box_weights": [5.0, 5.0, 5.0, 5.0]}))
    command = ("-m", "sparsedet", "convert", source, "-o", target, "--probe", probe)
    done = in_a_process(*command, "--config", wrong)
    assert done.returncode == 1 and not target.exists()
    assert len(done.stderr.splitlines()) == 1 and "detections differ from the source" in done.stderr
    done = in_a_process(*command)
    assert done.returncode == 0, done.stderr
    assert "compared with OpenVINO on one image: " in done.stdout
    assert load_model(target).config == load_model(folder / "half.safetensors").config


def test_a_probe_is_for_ir_alone(small_model: Path, tmp_path: Path, capsys: object) -> None:
    assert main(["convert", str(small_model), "-o", str(tmp_path / "o"), "--force"]) == 1


def test_comparison_counts_detections_without_a_partner() -> None:
    a = np.array([[0, 1, 0.9, 0.1, 0.1, 0.5, 0.5], [0, 2, 0.5, 0.5, 0.5, 0.9, 0.9]], np.float32)
    same = compare_rows(a, a[::-1], 0.05, 100)
    assert same.agrees and (same.source, same.ours, same.unmatched) == (2, 2, 0)
    moved = a + np.array([0, 0, 0.1, 0.02, 0, 0, 0], np.float32)
    other = compare_rows(a, moved, 0.05, 100)
    assert not other.agrees
    assert other.score == pytest.approx(0.1) and other.corner == pytest.approx(0.02)
    renamed = a.copy()
    renamed[0, 1] = 3
    assert compare_rows(a, renamed, 0.05, 100).unmatched == 2
    assert compare_rows(a, a[:0], 0.05, 100).unmatched == 2
    near = a.copy()
    near[1, 2] = 0.051  # a score that rounding may lift over the threshold
    assert compare_rows(near, near[:1], 0.05, 100).agrees
    full = np.array([[0, 1, 0.5, 0.1, 0.1, 0.5, 0.5], [0, 2, 0.5, 0.5, 0.5, 0.9, 0.9]], np.float32)
    assert (
        compare_rows(full[:1], full[1:], 0.05, 1).unmatched == 0
    )  # one of two equal ones is left out
    assert synthetic_image(64, 96).shape == (64, 96, 3)


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "message"), [("classifier", "classifier"), ("yolo", "YOLO"), ("ssd", "SSD")]
)
def test_other_networks(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"{name}\.xml: has .*{message}.*expected a Faster R-CNN"):
        load_foreign(folder / f"{name}.xml")


def test_a_node_that_does_not_fit_is_named(copy: Path) -> None:
    text = copy.read_text()
    for old, new, message in (
        (
            'mode="avg" aligned_mode="half_pixel_for_nn"',
            'mode="max" aligned_mode="half_pixel_for_nn"',
            r"\(ROIAlign\): expected the mode avg",
        ),
        ('type="MaxPool"', 'type="AvgPool"', "one max pooling after the stem"),
        ('type="SoftMax"', 'type="LogSoftmax"', "0 softmax after the class scores"),
        ('type="ReLU"', 'type="Elu"', "expected the stem"),
    ):
        assert old in text
        copy.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            load_foreign(copy)


def test_operations_of_other_detectors(folder: Path, copy: Path) -> None:
    text = (folder / "form_later.xml").read_text()
    shutil.copy(folder / "form_later.bin", copy.with_suffix(".bin"))
    copy.write_text(re.sub('framework=""', 'framework="tensorflow"', text))
    with pytest.raises(InputError, match=r"\(Proposal\): is TensorFlow's variant"):
        load_foreign(copy)
    copy.write_text(text.replace('"ROIPooling"', '"ExperimentalDetectronROIFeatureExtractor"'))
    with pytest.raises(InputError, match=r"has a feature pyramid .*: expected a Faster R-CNN C4"):
        load_foreign(copy)


def test_int8_is_refused_by_name(copy: Path) -> None:
    copy.write_text(copy.read_text().replace('type="ReLU"', 'type="FakeQuantize"', 1))
    with pytest.raises(InputError, match="INT8 model"):
        load_foreign(copy)


def test_nan_in_weights(copy: Path) -> None:
    ir = IR(copy)
    convolution = ir.of_type("Convolution")[3]
    offset = int(convolution.inputs[1][0].number("offset"))
    data = bytearray(copy.with_suffix(".bin").read_bytes())
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    copy.with_suffix(".bin").write_bytes(data)
    with pytest.raises(InputError, match=r"\(Convolution\): res2\.0\.conv\d holds NaN"):
        load_foreign(copy)


def test_damaged_files(folder: Path, copy: Path) -> None:
    text, data = copy.read_bytes(), copy.with_suffix(".bin").read_bytes()

    def refused(message: str, file: Path = copy) -> None:
        with pytest.raises(InputError, match=message):
            load_foreign(file)
        copy.write_bytes(text)
        copy.with_suffix(".bin").write_bytes(data)

    for part in (0.1, 0.5, 0.99):
        copy.write_bytes(text[: int(len(text) * part)])
        refused("truncated or not XML")
    copy.with_suffix(".bin").write_bytes(data[:-100])
    refused(r"model\.bin: has .* bytes, model\.xml needs")
    copy.with_suffix(".bin").write_bytes((folder / "detectron2_plain.bin").read_bytes())
    refused("another model's")
    copy.with_suffix(".bin").write_bytes(data + bytes(100_000))
    refused("another model's")
    copy.with_suffix(".bin").write_bytes(text)
    refused("are .xml and .bin swapped")
    copy.with_suffix(".bin").unlink()
    refused(r"model\.bin: No such file")
    copy.write_bytes(text.replace(b'version="11"', b'version="7"', 1))
    refused("IR version '7', expected 10 or 11")
    copy.write_bytes(text.replace(b"<edges>", b"<sides>").replace(b"</edges>", b"</sides>"))
    refused("no <edges>")
    edge = text.index(b"<edge ")
    copy.write_bytes(text[:edge] + text[text.index(b"/>", edge) + 2 :])
    refused("an input has no edge")
    refused("give the .xml", copy.with_suffix(".bin"))


def test_swapped_files_are_no_format(copy: Path) -> None:
    swapped = copy.with_name("swapped.xml")
    swapped.write_bytes(copy.with_suffix(".bin").read_bytes())
    with pytest.raises(InputError, match=r"swapped\.xml: is not XML"):
        load_foreign(swapped, "openvino")
    assert detect_format(copy) == "openvino"


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_crashes(copy: Path, seed: int) -> None:
    """Numbers, types and names replaced at random: still a model, or one clear error."""
    rng = np.random.default_rng(seed)
    text = copy.read_text()
    places = list(re.finditer(r'(?<==")[^"<>&]{1,20}(?=")', text[: text.index("<rt_info>\n")]))
    for _ in range(3):
        place, other = places[rng.integers(len(places))], places[rng.integers(len(places))]
        words = [other.group(), "-1", "999999999999", "0", "nan", ""]
        text = text[: place.start()] + words[rng.integers(6)] + text[place.end() :]
        places = list(re.finditer(r'(?<==")[^"<>&]{1,20}(?=")', text))
    copy.write_text(text)
    try:
        imported = load_foreign(copy)
    except InputError as error:
        assert "\n" not in str(error) and str(copy.parent) in str(error)
    else:
        sparsity_report(imported.config, imported.tensors)
