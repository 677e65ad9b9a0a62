"""The same detections by every backend, and graphs as files; OpenVINO in a process of its own.

(Once OpenVINO's CPU plugin is loaded, a signal that Python handles can end the process, and other
tests send themselves signals.)
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from helpers.exports import edges_image, small_network
from helpers.small import SMALL, picture

from sparsedet import Detector, InputError, backends, read_image
from sparsedet.backends import BACKENDS, GRAPHS, NAMES, PRECISIONS, Name
from sparsedet.backends.signature import Port, Signature, is_nhwc, plain_rows
from sparsedet.choices import EMBEDDED
from sparsedet.detections import Detections
from sparsedet.detector import embedded_model
from sparsedet.evaluation.agreement import exact
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES
from sparsedet.model.file import load_model, save_model
from sparsedet.model.presets import preset

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOS = (EXAMPLES / "beach.jpg", EXAMPLES / "frisbee.jpg")

DETECT = """
import json, pickle, sys
from sparsedet import Detector, read_image
options, photos, out = json.loads(sys.argv[1]), sys.argv[2:-1], sys.argv[-1]
detector = Detector.load(**options)
detections = list(detector.stream(map(read_image, photos)))
engine = detector.engine
threads = None
if options["backend"] == "openvino":
    threads = [engine.compiled.get_property(k) for k in ("INFERENCE_NUM_THREADS", "NUM_STREAMS")]
with open(out, "wb") as file:
    pickle.dump((detections, detector.config, threads), file)
"""


def elsewhere(tmp_path: Path, photos: tuple[Path, ...], **options: Any) -> Any:
    """Detections, configuration and OpenVINO's threads and streams, in a process of its own."""
    out = tmp_path / "detections.pickle"
    arguments = [json.dumps(options), *map(str, photos), str(out)]
    subprocess.run([sys.executable, "-c", DETECT, *arguments], check=True)
    return pickle.loads(out.read_bytes())


def same(expected: Detections, got: Detections) -> None:
    """Equal but for rounding: class, scores to 1e-3, corners to 1e-4 of the network input."""
    assert len(expected) >= 10
    agreement = exact(expected, got)
    assert agreement.matched_fraction == 1.0, agreement
    assert expected.letterbox == got.letterbox and expected.class_names == got.class_names


@pytest.fixture(scope="module", params=EMBEDDED)
def expected(request: pytest.FixtureRequest) -> tuple[str, list[Detections]]:
    """An embedded model, and the native engine's detections with it."""
    detector = Detector.load(request.param, threads=1)
    return request.param, [detector(read_image(photo)) for photo in PHOTOS]


# ------------------------------------------------------------------------ the table


def test_the_table_has_every_name_and_its_module() -> None:
    assert get_args(Name) == NAMES
    for info in BACKENDS.values():
        assert (Path(backends.__file__).parent / f"{info.module}.py").is_file()
        assert info.precisions and set(info.precisions) < set(PRECISIONS)
    assert GRAPHS == {".xml": ("openvino",), ".onnx": ("openvino", "onnxruntime")}


def test_load_gives_what_the_detector_runs(small_model: Path, tmp_path: Path) -> None:
    image = picture(SMALL.input_height, SMALL.input_width)
    expected = Detector.load(small_model, threads=1).engine.run(image)
    for options in ({}, {"cache": tmp_path}, {"isa": "scalar"}):
        model, backend = backends.load("native", small_model, threads=1, **options)
        assert model.config == SMALL and backend.threads == 1
        np.testing.assert_allclose(backend.run(image), expected, atol=1e-4)
    model = load_model(small_model)
    built = backends.build_backend("native", model, threads=1, precision="auto")
    assert built.precision in ("f32", "bf16")
    with pytest.raises(InputError, match=r"isa, tuning and cache are for the backend 'native'"):
        backends.load("onnxruntime", small_model, threads=1, isa="scalar")
    with pytest.raises(InputError, match=r"precision 'int8' is for the backend 'native', not"):
        backends.load("onnxruntime", small_model, threads=1, precision="int8")


# ------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    "backend",
    ["native", "openvino", "onnxruntime", pytest.param("torch", marks=pytest.mark.slow)],
)
def test_the_same_detections_by_every_backend(
    backend: str, expected: tuple[str, list[Detections]], tmp_path: Path
) -> None:
    if backend != "native":
        pytest.importorskip(backend)
    name, ours = expected
    got, config, threads = elsewhere(tmp_path, PHOTOS, path=name, backend=backend, threads=1)
    assert config == load_model(embedded_model(name)).config and threads in (None, [1, 1])
    for one, other in zip(ours, got, strict=True):
        same(one, other)


def test_threads_and_streams_of_openvino(small_model: Path, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    ours = Detector.load(small_model, threads=1)(read_image(photo))
    got, _, threads = elsewhere(
        tmp_path, (photo,) * 3, path=str(small_model), backend="openvino", threads=2, streams=2
    )
    assert threads == [2, 2]
    for detections in got:
        same(ours, detections)


def test_threads_and_streams_of_onnxruntime(small_model: Path, photo: Path) -> None:
    pytest.importorskip("onnxruntime")
    for threads, streams, pool in ((1, 1, 1), (3, 1, 3), (4, 2, 3)):
        detector = Detector.load(
            small_model, backend="onnxruntime", threads=threads, streams=streams
        )
        settings = detector.engine.session.get_session_options()  # type: ignore[attr-defined]
        assert settings.intra_op_num_threads == pool
        ours = Detector.load(small_model, threads=1)(read_image(photo))
        for detections in detector.stream([read_image(photo)] * 4):
            same(ours, detections)


@pytest.mark.slow
def test_threads_of_torch(small_model: Path, photo: Path, one_torch_thread: None) -> None:
    import torch

    detector = Detector.load(small_model, backend="torch", threads=3)
    assert torch.get_num_threads() == 3
    same(Detector.load(small_model)(read_image(photo)), detector(read_image(photo)))


@pytest.fixture
def pyramid_model(tmp_path: Path) -> Path:
    """A model file of a small Faster R-CNN FPN, whose images are resized by their shorter side."""
    small = small_network("faster-rcnn")
    config = replace(small.config, resize="shorter", min_size=160, max_size=224)
    save_model(tmp_path / "fpn.safetensors", config, small.tensors, {}, dtype="float32")
    return tmp_path / "fpn.safetensors"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_pyramid_in_other_runtimes(backend: str, pyramid_model: Path, tmp_path: Path) -> None:
    """Their network input has one size: images are letterboxed, in the exported file, too."""
    pytest.importorskip(backend)
    from sparsedet.exporters.onnx import save_onnx

    model = load_model(pyramid_model)
    graph = tmp_path / "fpn.onnx"
    save_onnx(graph, model.config, model.tensors)
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), edges_image(150, 190))
    ours = Detector.load(pyramid_model, threads=1, resize="letterbox")(read_image(photo))
    for path in (pyramid_model, graph):
        (got,), config, _ = elsewhere(
            tmp_path, (photo,), path=str(path), backend=backend, threads=1
        )
        assert config == replace(model.config, resize="letterbox")
        same(ours, got)


@pytest.mark.parametrize(
    "backend", ["openvino", "onnxruntime", pytest.param("torch", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("family", "pasting"), [("mask-rcnn", "whole"), ("mask-rcnn-c4", "continuous")]
)
def test_masks_by_every_backend(backend: str, family: str, pasting: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    small = small_network(family)
    model, photo = tmp_path / "masks.safetensors", tmp_path / "photo.png"
    save_model(model, small.config, small.tensors, {}, dtype="float32")
    cv2.imwrite(str(photo), edges_image(150, 190))
    ours = Detector.load(model, threads=1)(read_image(photo))
    paths = {model}
    if backend == "onnxruntime":
        from sparsedet.exporters.onnx import save_onnx

        save_onnx(tmp_path / "masks.onnx", small.config, small.tensors)
        paths.add(tmp_path / "masks.onnx")
    for path in paths:
        (got,), _, _ = elsewhere(tmp_path, (photo,), path=str(path), backend=backend, threads=1)
        same(ours, got)
        assert ours.masks is not None and got.masks is not None and ours.masks.any()
        assert ours.pasting == got.pasting == pasting
        assert len(ours) == len(got)
        for label, box, mask in zip(got.labels, got.boxes, got.masks, strict=True):
            near = abs(ours.boxes - box).max(axis=1) < 0.1
            there = np.flatnonzero((ours.labels == label) & near)
            assert min((ours.masks[i] != mask).mean() for i in there) < 1e-3


def test_bare_network_inputs(small_model: Path) -> None:
    pytest.importorskip("onnxruntime")
    ours = Detector.load(small_model)
    theirs = Detector.load(small_model, backend="onnxruntime", threads=1)
    shape = (2, 3, SMALL.input_height, SMALL.input_width)
    blob = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    first, second = ours.infer(blob), theirs.infer(blob)
    assert first.shape == second.shape == (2 * SMALL.max_detections, 7)
    np.testing.assert_allclose(first, second, atol=1e-4)
    with pytest.raises(
        InputError, match=r"network input has 32x40 pixels, this backend takes 96x64"
    ):
        theirs.infer(np.zeros((1, 40, 32, 3), np.uint8))


# ------------------------------------------------------------------------ graphs as files


@pytest.fixture
def graphs(small_model: Path, tmp_path: Path) -> dict[str, Path]:
    """The small model as .xml and .onnx, in both layouts."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    from sparsedet.exporters.onnx import save_onnx
    from sparsedet.exporters.openvino import save_openvino
    from sparsedet.model.file import load_model

    model = load_model(small_model)
    made = {}
    for layout in ("NCHW", "NHWC"):
        for suffix, save in ((".xml", save_openvino), (".onnx", save_onnx)):
            made[layout + suffix] = tmp_path / f"{layout}{suffix}"
            save(made[layout + suffix], model.config, model.tensors, layout=layout)
    return made


@pytest.mark.parametrize(
    ("backend", "graph"),
    [
        ("openvino", "NCHW.xml"),
        ("openvino", "NHWC.xml"),
        ("openvino", "NHWC.onnx"),
        ("onnxruntime", "NCHW.onnx"),
        ("onnxruntime", "NHWC.onnx"),
    ],
)
def test_a_graph_runs_as_it_is(
    backend: str,
    graph: str,
    graphs: dict[str, Path],
    small_model: Path,
    photo: Path,
    tmp_path: Path,
) -> None:
    ours = Detector.load(small_model, threads=1)(read_image(photo))
    (got,), config, _ = elsewhere(
        tmp_path, (photo,), path=str(graphs[graph]), backend=backend, threads=1
    )
    assert config == SMALL  # all of it is in the metadata
    same(ours, got)


def test_the_command(
    graphs: dict[str, Path], photo: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsedet.cli import main

    def rows(*flags: str) -> list[dict[str, Any]]:
        assert (
            main(
                [
                    "detect",
                    str(photo),
                    "--no-save",
                    "--format",
                    "json",
                    "--threads",
                    "1",
                    "--score-threshold",
                    "0.05",
                    *flags,
                ]
            )
            == 0
        )
        detections: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["detections"]
        return detections

    ours = rows("--model", str(small_model))
    dense = rows("--model", str(small_model), "--backend", "onnxruntime")
    graph = rows("--model", str(graphs["NHWC.onnx"]), "--backend", "onnxruntime")
    assert len(ours) == len(dense) == len(graph) >= 10
    for key in ("label", "name", "category_id"):
        assert sorted(r[key] for r in ours) == sorted(r[key] for r in graph)
    assert [r["name"] for r in ours] == [r["name"] for r in dense]


def test_eval_and_compare(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    from helpers.coco_files import coco

    from sparsedet.cli import main

    annotations, images = coco(tmp_path)
    data = ["--annotations", str(annotations), "--images", str(images), "--threads", "1"]
    stats = []
    for backend in ("native", "onnxruntime"):
        out = tmp_path / f"{backend}.json"
        assert (
            main(
                [
                    "eval",
                    *data,
                    "--model",
                    str(small_model),
                    "--backend",
                    backend,
                    "--json",
                    str(out),
                ]
            )
            == 0
        )
        stats.append(json.loads(out.read_text())["stats"])
    assert stats[0] == pytest.approx(stats[1], abs=5e-4)
    capsys.readouterr()
    model = str(small_model)
    assert main(["compare", model, model, *data, "--backend-b", "onnxruntime"]) == 0
    assert "onnxruntime, f32, 1 threads" in capsys.readouterr().out


# ------------------------------------------------------------------------ signatures


FLOAT = "float32"
IMAGE, ROWS = Port("in", (1, 3, 800, 1280)), Port("out", (1, 1, 100, 7))


def test_signatures_of_the_published_forms() -> None:
    seed = Signature.find([Port("input", (1, 3, 800, 1280))], [Port("rows", (300, 7))])
    assert (is_nhwc(seed.image), seed.size, seed.count, seed.info) == (
        False,
        (800, 1280),
        300,
        None,
    )
    info = Port("image_info", (1, 3))
    later = Signature.find([info, Port("image", (-1, 800, 1280, 3), "uint8")], [ROWS])
    assert (is_nhwc(later.image), later.size, later.count) == (True, (800, 1280), 100)
    network_input = np.random.default_rng(0).integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    fed = later.feed(network_input)
    np.testing.assert_array_equal(fed["image"], network_input[None])
    assert fed["image"].dtype == np.uint8 and fed["image_info"].tolist() == [[800, 1280, 1]]
    fed = seed.feed(network_input)
    np.testing.assert_array_equal(fed["input"], network_input.transpose(2, 0, 1)[None])
    assert fed["input"].dtype == np.float32 and fed["input"].flags.c_contiguous


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([Port("a", (1, 80))], [ROWS], "has inputs [1, 80]"),
        ([IMAGE, IMAGE], [ROWS], "has inputs"),
        ([IMAGE, Port("b", (1, 3)), Port("c", (1, 3))], [ROWS], "has inputs"),
        ([], [ROWS], "has inputs none"),
        ([Port("a", (1, 3, -1, -1))], [ROWS], "[1, 3, ?, ?], expected a fixed size"),
        ([Port("a", (8, 3, 32, 32))], [ROWS], "expected a fixed size and a batch of one image"),
        ([IMAGE], [Port("a", (1, 1000))], "has outputs [1, 1000]"),
        ([IMAGE], [ROWS, ROWS], "has outputs"),
    ],
)
def test_signatures_of_other_networks(inputs: list[Port], outputs: list[Port], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Signature.find(inputs, outputs)
    assert words in str(caught.value)


def test_what_a_graph_says_of_its_classes() -> None:
    signature = Signature.find([IMAGE], [ROWS])
    silent = signature.config("net", {})
    assert silent.class_names == COCO_NAMES and silent.category_ids == COCO_CATEGORY_IDS
    assert (silent.input_height, silent.max_detections, silent.resize) == (800, 100, "letterbox")
    coco = " ".join(name.replace(" ", "_") for name in ("background", *COCO_NAMES))
    said = signature.config("net", {"labels": coco, "resize_type": "standard"})
    assert said.class_names == COCO_NAMES and said.category_ids == COCO_CATEGORY_IDS
    assert said.resize == "stretch"
    own = signature.config("net", {"labels": "__background__ cat traffic_light"})
    assert own.class_names == ("cat", "traffic_light") and own.category_ids == (1, 2)
    config = replace(preset("r50half-c4"), class_names=("a b",), category_ids=(7,))
    whole = signature.config("net", {"config": json.dumps(config.to_dict())})
    assert whole == replace(config, input_height=800, input_width=1280)
    for bad in ("{", "[]", '{"name": 3}', "null", '{"name": "x", "stem_channels": -1}'):
        with pytest.raises(InputError, match="no valid configuration"):
            signature.config("net", {"config": bad})
    with pytest.raises(InputError, match="class_names"):
        signature.config("net", {"labels": "cat cat"})


def test_rows_of_any_order_and_form() -> None:
    rows = np.array(
        [
            [-1, 0, 0, 0, 0, 0, 0],
            [0, 2, 0.5, 0, 0, 1, 1],
            [0, 1, 0.9, 0, 0, 1, 1],
            [0, 3, 0.0, 0, 0, 1, 1],
            [-1, 9, 0.7, 0, 0, 0, 0],
        ],
        np.float32,
    )
    for form in (rows, rows[None, None]):
        assert plain_rows(form)[:, 1].tolist() == [1, 2]
    assert plain_rows(rows[:1]).shape == (0, 7)


# ------------------------------------------------------------------------ what cannot be done


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_without_the_package_it_says_what_to_install(
    backend: str, small_model: Path, tmp_path: Path
) -> None:
    program = f"""
import sys
sys.modules[{backend!r}] = None
from sparsedet.cli import main
sys.exit(main(["detect", "x.jpg", "--backend", {backend!r}, "--model", {str(small_model)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{backend!r} needs: pip install 'sparsedet[" in done.stderr


def test_bad_requests(small_model: Path, tmp_path: Path) -> None:
    xml, onnx = tmp_path / "net.xml", tmp_path / "net.onnx"
    xml.write_text("<net/>")
    onnx.write_bytes(b"\x08\x0a")
    requests: tuple[tuple[dict[str, Any], str], ...] = (
        ({"backend": "tensorrt"}, "'tensorrt', expected one of native, openvino"),
        (
            {"backend": "onnxruntime", "isa": "scalar"},
            "isa, tuning and cache are for the backend 'native'",
        ),
        (
            {"backend": "onnxruntime", "precision": "bf16"},
            "precision 'bf16' is for the backend 'native' or 'openvino', not for 'onnxruntime'",
        ),
        ({"backend": "onnxruntime", "precision": "int4"}, "precision is 'int4'"),
        ({"backend": "onnxruntime", "threads": 0}, "threads is 0"),
        ({"path": xml}, "net.xml: is a graph, which the backend 'native' does not run"),
        ({"path": xml, "backend": "onnxruntime"}, "run it with the backend 'openvino'"),
        ({"path": onnx, "backend": "torch"}, "'openvino' or 'onnxruntime'"),
        ({"path": tmp_path / "no.onnx", "backend": "onnxruntime"}, "no.onnx: No such file"),
        ({"path": onnx, "backend": "onnxruntime"}, "net.onnx: ONNX Runtime cannot read it"),
    )
    for options, words in requests:
        if options.get("backend") == "onnxruntime":
            pytest.importorskip("onnxruntime")
        with pytest.raises(InputError) as caught:
            Detector.load(**{"path": small_model, **options})
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_graphs_for_openvino(tmp_path: Path, graphs: dict[str, Path]) -> None:
    good = graphs["NCHW.xml"]
    text, weights = good.read_text(), good.with_suffix(".bin").read_bytes()
    for name, content, data in (
        ("empty", "", b""),
        ("other", "<net/>", b""),
        ("cut", text[:3000], weights),
        ("without", text, None),
        ("short", text, weights[:5000]),
    ):
        (tmp_path / f"{name}.xml").write_text(content)
        if data is not None:
            (tmp_path / f"{name}.bin").write_bytes(data)
    program = """
import sys
from sparsedet.cli import main
for path in sys.argv[2:]:
    command = ["detect", sys.argv[1], "--no-save", "--backend", "openvino", "--model", path]
    assert main(command) == 1, path
"""
    paths = sorted(str(p) for p in tmp_path.glob("*.xml") if not p.stem.startswith("N"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(PHOTOS[0]), *paths], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    lines = done.stderr.splitlines()
    assert len(paths) == len(lines) == 5
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"sparsedet: {path}: "), line


def test_a_graph_has_no_sparsity(graphs: dict[str, Path]) -> None:
    detector = Detector.load(graphs["NHWC.onnx"], backend="onnxruntime", threads=1)
    assert detector.isa == ""
    with pytest.raises(InputError, match="not counted in a graph"):
        assert detector.sparsity
    detections = detector(picture())
    assert len(detections) >= 10
