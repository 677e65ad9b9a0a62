"""The model file: round trips, hostile files, the documented reader, folding and counting."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from attacks.make_model_files import (
    PROVENANCE,
    TINY,
    Parts,
    change_config,
    gigantic,
    random_tensors,
)

from sparsedet.errors import InputError
from sparsedet.model.batch_norm import fold_batch_norm
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.detector_config import require_c4
from sparsedet.model.file import (
    StorageDtype,
    Tensors,
    check_tensors,
    load_model,
    save_model,
    tensor_shapes,
)
from sparsedet.model.presets import PRESETS, preset
from sparsedet.model.sparsity import sparsity_report
from sparsedet.pruning.allocation import prunable_layers, uniform_zeros

ROOT = Path(__file__).parents[2]


def stored_names(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.4, 0.95, 1.0])
def test_round_trip(tmp_path: Path, density: float, dtype: StorageDtype) -> None:
    path = tmp_path / "m.safetensors"
    tensors = random_tensors(TINY, density)
    save_model(path, TINY, tensors, PROVENANCE, dtype=dtype)
    model = load_model(path)
    assert model.config == TINY
    assert model.provenance == PROVENANCE
    assert model.storage_dtype == dtype
    assert list(model.tensors) == list(tensor_shapes(TINY))
    for name, value in tensors.items():
        expected = value if name.endswith(".bias") else value.astype(dtype).astype(np.float32)
        assert model.tensors[name].dtype == np.float32
        assert model.tensors[name].flags.writeable
        assert np.array_equal(model.tensors[name], expected), name
    sparse = [name for name in stored_names(path) if name.endswith(".mask")]
    if density in (0.0, 0.002, 0.4):
        assert len(sparse) > 15
    elif density == 1.0:
        assert not sparse


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17])
def test_each_single_bit_of_a_mask(tmp_path: Path, count: int) -> None:
    channels = {"bottleneck_channels": (2, 3, 3, 1), "stage_channels": (5, 6, count, 9)}
    config = replace(TINY, **channels)  # type: ignore[arg-type]
    tensors = random_tensors(config, 0.0)
    weight = tensors["res5.0.conv1.weight"]
    assert weight.size == count
    for element in range(count):
        weight[:] = 0
        weight.flat[element] = -1.5
        save_model(tmp_path / "m", config, tensors, {}, overwrite=True)
        assert np.array_equal(load_model(tmp_path / "m").tensors["res5.0.conv1.weight"], weight)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_every_preset_survives_the_metadata(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    save_model(tmp_path / "a", TINY, tensors, PROVENANCE)
    save_model(tmp_path / "b", TINY, dict(reversed(tensors.items())), PROVENANCE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_model(tmp_path / "a")
    save_model(tmp_path / "c", loaded.config, loaded.tensors, loaded.provenance)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_tensors_in_another_memory_order(tmp_path: Path, density: float) -> None:
    tensors = random_tensors(TINY, density)
    turned = {name: np.asfortranarray(value) for name, value in tensors.items()}
    save_model(tmp_path / "a", TINY, tensors, {})
    save_model(tmp_path / "b", TINY, turned, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sparse_form_is_chosen_where_it_is_smaller(tmp_path: Path) -> None:
    """rpn.conv has 189 elements, so 24 bytes of mask: 12 zeros in float16 break even."""
    tensors = random_tensors(TINY, 1.0)
    for zeros, smaller in ((12, False), (13, True)):
        tensors["rpn.conv.weight"].reshape(-1)[:zeros] = 0
        save_model(tmp_path / "m", TINY, tensors, {}, overwrite=True)
        assert ("rpn.conv.weight.mask" in stored_names(tmp_path / "m")) == smaller


def test_float16_rounding_to_zero_clears_the_mask(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    weight = tensors["rpn.conv.weight"].reshape(-1)
    weight[:] = 0
    weight[:4] = 2.0**-24, 2.0**-25, -1e-30, 65519.0  # smallest float16, half of it, the largest
    save_model(tmp_path / "m", TINY, tensors, {})
    assert stored_names(tmp_path / "m")["rpn.conv.weight.values"].tolist() == [2.0**-24, 65504.0]
    found = load_model(tmp_path / "m").tensors["rpn.conv.weight"].reshape(-1)
    assert found[:5].tolist() == [2.0**-24, 0, 0, 65504.0, 0]
    weight[3] = 65520.0
    with pytest.raises(InputError, match=r"'rpn.conv.weight' holds 65520, .*float32"):
        save_model(tmp_path / "over", TINY, tensors, {})
    save_model(tmp_path / "over", TINY, tensors, {}, dtype="float32")


def test_biases_keep_float32(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    tensors["rpn.conv.bias"][:] = 1e-30, 1e30, 1 / 3
    tensors["box.logits.bias"][:] = 0
    save_model(tmp_path / "m", TINY, tensors, {})
    assert np.array_equal(
        load_model(tmp_path / "m").tensors["rpn.conv.bias"], tensors["rpn.conv.bias"]
    )
    assert stored_names(tmp_path / "m")["box.logits.bias"].tolist() == [0, 0, 0]  # no mask


def test_published_network_is_at_most_50_mb(tmp_path: Path) -> None:
    """r101-c4 at 60 % of all parameters, float16: the size depends on counts alone."""
    config = preset("r101-c4")
    graph = build_graph(config)
    zeros = uniform_zeros(graph, prunable_layers(graph), 0.6)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        tensors[name] = np.ones(shape, np.float32)
        tensors[name].reshape(-1)[: zeros.get(name.removesuffix(".weight"), 0)] = 0
    path = tmp_path / "m"
    save_model(path, config, tensors, {})
    assert path.stat().st_size <= 50_000_000
    report = sparsity_report(config, load_model(path).tensors)
    assert report.parameters == 52_792_416
    assert 0.6 <= report.sparsity < 0.6001


# ------------------------------------------------------------- what others can read


def test_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    tensors = random_tensors(TINY, 0.3)
    save_model(path, TINY, tensors, PROVENANCE, dtype="float32")
    stored = stored_names(path)
    mask = np.unpackbits(stored["rpn.conv.weight.mask"], count=189, bitorder="little")
    weight = tensors["rpn.conv.weight"].reshape(-1)
    assert np.array_equal(mask, weight != 0)
    assert np.array_equal(stored["rpn.conv.weight.values"], weight[weight != 0])
    assert np.array_equal(stored["rpn.conv.bias"], tensors["rpn.conv.bias"])
    offset = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert offset % 8 == 0

    # And the other way round: the library's own writing order is accepted.
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sparsedet" and metadata["format_version"] == "1"
    safetensors.numpy.save_file(stored, tmp_path / "other", metadata)
    found = load_model(tmp_path / "other")
    assert all(np.array_equal(found.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_documented_reader(tmp_path: Path, dtype: StorageDtype) -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    path = tmp_path / "m"
    save_model(path, TINY, random_tensors(TINY, 0.4), {}, dtype=dtype)
    config, tensors = scope["read"](path)
    model = load_model(path)
    assert ModelConfig.from_dict(config) == TINY
    assert set(tensors) == set(model.tensors)
    assert all(np.array_equal(tensors[name], model.tensors[name]) for name in tensors)


# ----------------------------------------------------------------- refusing to write


def test_existing_file_is_kept_unless_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("mine")
    tensors = random_tensors(TINY, 0.5)
    with pytest.raises(InputError, match=r"m: exists already"):
        save_model(path, TINY, tensors, {})
    assert path.read_text() == "mine"
    save_model(path, TINY, tensors, {}, overwrite=True)
    assert load_model(path).config == TINY


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    tensors = random_tensors(TINY, 0.5)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in ("missing/m", "file/m", "folder"):
        with pytest.raises(InputError, match=rf"{path}: cannot be written"):
            save_model(tmp_path / path, TINY, tensors, {}, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    save_model(tmp_path / "m", TINY, tensors, {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "m"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    for name in ("stem.conv.weight", "box.deltas.bias"):
        tensors = random_tensors(TINY, 0.5)
        tensors[name].reshape(-1)[-1] = bad
        with pytest.raises(InputError, match=f"'{name}' holds NaN or infinity"):
            save_model(tmp_path / "m", TINY, tensors, {})
    assert not list(tmp_path.iterdir())


def test_tensors_that_do_not_fit_the_model() -> None:
    tensors = random_tensors(TINY, 1.0)
    check_tensors(TINY, tensors)
    name = "res5.0.conv2.weight"
    for change, message in (
        ({name: None}, "is missing"),
        ({name: tensors[name][:1]}, r"has shape \(1, 5, 3, 3\), expected \(5, 5, 3, 3\)"),
        ({name: tensors[name].astype(np.float64)}, "is float64, expected float32"),
        ({"res6.weight": tensors[name]}, "'res6.weight' belongs to no layer of 'tiny'"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(InputError, match=message):
            check_tensors(TINY, changed)


@pytest.mark.parametrize("provenance", [{"x": object()}, {"x": float("nan")}, {"x": "a" * 2**20}])
def test_provenance_that_cannot_be_stored(tmp_path: Path, provenance: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="provenance"):
        save_model(tmp_path / "m", TINY, random_tensors(TINY, 0.5), provenance)
    assert not list(tmp_path.iterdir())


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype is 'int8'"):
        save_model(tmp_path / "m", TINY, random_tensors(TINY, 0.5), {}, dtype="int8")  # type: ignore[arg-type]


# ------------------------------------------------------------------- hostile files


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "m"
    save_model(path, TINY, random_tensors(TINY, 0.4), PROVENANCE)
    return path.read_bytes()


def refusal(path: Path) -> str:
    """The text of the error that reading `path` gives: one line that begins with the name."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text.splitlines()) == 1
    return text.removeprefix(f"{path}: ")


def test_parts_alone_change_nothing(tmp_path: Path, valid: bytes) -> None:
    (tmp_path / "m").write_bytes(Parts(valid).join())
    assert load_model(tmp_path / "m").config == TINY


def test_refusing_allocates_next_to_nothing(tmp_path: Path, valid: bytes) -> None:
    for change in (
        gigantic,
        change_config(rpn_channels=10**12),
        change_config(blocks=[1, 1, 10**9, 1]),
    ):
        parts = Parts(valid)
        change(parts)
        (tmp_path / "m").write_bytes(parts.join())
        tracemalloc.start()
        refusal(tmp_path / "m")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000


@pytest.mark.slow
def test_torch_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pth")
    assert refusal(tmp_path / "m.pth") == (
        "a PyTorch or ZIP file, so not a sparsedet model; first: sparsedet convert FILE -o MODEL"
    )


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing") == "No such file or directory"
    assert refusal(tmp_path) == "Is a directory"


def outcome(path: Path, content: bytes) -> bool:
    """Does it load? Anything but a model or a proper refusal fails the test."""
    path.write_bytes(content)
    try:
        model = load_model(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
        return False
    check_tensors(model.config, model.tensors)
    return True


def test_every_truncation_is_refused(tmp_path: Path, valid: bytes) -> None:
    for length in [*range(0, 64), *range(64, len(valid), 61), len(valid) - 1]:
        assert not outcome(tmp_path / "m", valid[:length])


@pytest.mark.parametrize("where", ["length", "header", "data"])
def test_flipped_bytes(tmp_path: Path, valid: bytes, where: str) -> None:
    rng = np.random.default_rng(7)
    start = 8 + int.from_bytes(valid[:8], "little")
    low, high = {"length": (0, 8), "header": (8, start), "data": (start, len(valid))}[where]
    loaded = 0
    for _ in range(100 if where == "length" else 400):
        content = bytearray(valid)
        for at in rng.integers(low, high, rng.integers(1, 3)):
            # Digits and brackets reach further into the parser than noise does.
            content[at] = rng.choice([*b'0129-.e[]{}",: n', rng.integers(256)])
        if content != valid:  # a byte may have been what it became
            loaded += outcome(tmp_path / "m", bytes(content))
    assert (loaded > 0) == (where != "length")  # the fuzz reaches past the first check


# ------------------------------------------------------------- batch norm, sparsity


def training_form(config: ModelConfig, seed: int = 0) -> Tensors:
    """Tensors with random batch norms, and 60 % zeros."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(config, 0.4, seed)
    for layer in build_graph(config).layers:
        if layer.norm:
            del tensors[f"{layer.name}.bias"]
            for part in ("weight", "bias", "running_mean", "running_var"):
                low = 0 if part == "running_var" else -1
                value = rng.uniform(low, 1, layer.out_channels).astype(np.float32)
                tensors[f"{layer.name}.norm.{part}"] = value
    return tensors


def test_fold_batch_norm_equals_the_formula() -> None:
    tensors = training_form(TINY)
    folded = fold_batch_norm(tensors, TINY)
    check_tensors(TINY, folded)
    norm = {
        part: tensors[f"res3.0.conv2.norm.{part}"][1].item()
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    scale = norm["weight"] / (norm["running_var"] + 1e-5) ** 0.5
    expected = tensors["res3.0.conv2.weight"][1].astype(np.float64) * scale
    np.testing.assert_allclose(folded["res3.0.conv2.weight"][1], expected, rtol=1e-6)
    bias = norm["bias"] - norm["running_mean"] * scale
    np.testing.assert_allclose(folded["res3.0.conv2.bias"][1], bias, rtol=1e-6)
    zeros = tensors["res3.0.conv2.weight"] == 0
    assert zeros.any() and np.array_equal(folded["res3.0.conv2.weight"] == 0, zeros)


@pytest.mark.slow
def test_fold_batch_norm_equals_torch() -> None:
    pytest.importorskip("torch")
    from sparsedet.torch_model import FasterRCNN

    tensors = training_form(TINY)
    model = FasterRCNN(TINY, norm=True)
    model.load_tensors(tensors)
    folded = fold_batch_norm(tensors, TINY)
    for name, expected in model.folded_tensors().items():
        np.testing.assert_allclose(folded[name], expected, rtol=1e-5, atol=1e-6)


def test_folding_twice_changes_nothing() -> None:
    tensors = training_form(TINY)
    once = fold_batch_norm(tensors, TINY)
    twice = fold_batch_norm(once, TINY)
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert all(
        np.array_equal(once[f"rpn.conv.{part}"], tensors[f"rpn.conv.{part}"])
        for part in ("weight", "bias")
    )


def test_folding_names_what_is_wrong() -> None:
    tensors = training_form(TINY)
    name = "res2.0.conv1.norm"
    for change, message in (
        ({f"{name}.running_mean": None}, "running_mean' is missing"),
        ({f"{name}.bias": np.zeros(3)}, r"has shape \(3,\), expected \(2,\)"),
        ({f"{name}.running_var": np.array([1.0, -1.0])}, "running_var' is negative"),
        ({f"{name}.running_var": np.array([1.0, np.nan])}, "running_var' is negative or not"),
        ({f"{name}.weight": np.array([1.0, 1e300])}, "res2.0.conv1.weight' holds NaN or inf"),
        ({"rpn.conv.norm.weight": np.ones(3)}, "'rpn.conv.norm.weight' belongs to no layer"),
        ({"res2.0.conv1.bias": np.zeros(2)}, "'res2.0.conv1.bias' belongs to no layer"),
        ({f"{name}.weight": None}, "res2.0.conv1.bias' is missing"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        with pytest.raises(InputError, match=message):
            fold_batch_norm(changed, TINY)


def test_sparsity_report() -> None:
    tensors = random_tensors(TINY, 1.0)
    tensors["rpn.conv.weight"].reshape(-1)[:100] = 0  # 189 weights
    tensors["rpn.conv.bias"][0] = 0
    tensors["box.logits.weight"][0] = 0  # 9 of 27
    report = sparsity_report(TINY, tensors, rois=10)
    graph = build_graph(TINY)
    assert [row.name for row in report.layers] == [layer.name for layer in graph.layers]
    rows = {row.name: row for row in report.layers}
    conv, logits = rows["rpn.conv"], rows["box.logits"]
    assert (conv.shape, conv.parameters, conv.zeros) == ((3, 7, 3, 3), 192, 101)
    assert conv.sparsity == 101 / 192
    assert (conv.macs, conv.sparse_macs) == (189 * 20 * 30, 89 * 20 * 30)
    assert (logits.macs, logits.sparse_macs) == (270, 180)
    assert rows["stem.conv"].zeros == 0
    assert report.parameters == graph.parameters
    assert report.zeros == 110 and report.sparsity == 110 / graph.parameters
    assert report.gflops == pytest.approx(graph.flops(10) * 1e-9)
    saved = 2e-9 * (100 * 600 + 90)
    assert report.sparse_gflops == pytest.approx(report.gflops - saved)
    assert sparsity_report(TINY, tensors).rois == TINY.proposals


@pytest.mark.slow
def test_torch_takes_the_tensors_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from sparsedet.torch_model import FasterRCNN

    tensors = random_tensors(TINY, 0.5)
    save_model(tmp_path / "m", TINY, tensors, PROVENANCE, dtype="float32")
    model = load_model(tmp_path / "m")
    reference = FasterRCNN(require_c4(model.config, "trained"))
    reference.load_tensors(model.tensors)
    folded = reference.folded_tensors()
    assert all(np.array_equal(folded[name], tensors[name]) for name in tensors)
