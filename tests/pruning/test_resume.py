"""Pruning at once loses no work: a run that was stopped, killed or out of disk goes on to the same
bits."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from helpers.any_network import file_of, write_photographs  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.errors import UsageError  # noqa: E402
from sparsedet.importers import load_trained  # noqa: E402
from sparsedet.model.checkpoint import checkpoint_path, checkpoints  # noqa: E402
from sparsedet.pruning.one_shot import OneShotConfig  # noqa: E402
from sparsedet.pruning.report import PruningReport  # noqa: E402
from sparsedet.pruning.run import OUTPUTS, prune_files  # noqa: E402
from sparsedet.torch_model.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SETTINGS = OneShotConfig(sparsity=0.4)


class PowerLoss(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, the networks `classifier` and `yolox`, and each of them pruned in one go."""
    made = tmp_path_factory.mktemp("resume")
    write_photographs(made, range(16))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests: more add up in another order
    for kind in ("classifier", "yolox"):
        file_of(kind, made)
        assert prune(made, kind, made / kind) is not None
    torch.set_num_threads(threads)
    return made


def prune(
    folder: Path, kind: str, output: Path, settings: OneShotConfig = SETTINGS, **more: Any
) -> PruningReport | None:
    return prune_files(
        folder / f"{kind}.onnx",
        folder / "photographs",
        output,
        settings,
        calibration_images=16,
        load=lambda path: load_trained(path)[0],
        **{"checkpoint_minutes": 0.0, **more},
    )


def at(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A progress that does something at one step."""

    def note(done: int, steps: int, what: str) -> None:
        if done == step:
            act()

    return note


def kill() -> None:
    raise PowerLoss


def steps_of(folder: Path, kind: str, output: Path, **more: Any) -> list[str]:
    """What each step of a run is."""
    said: list[str] = []
    prune(folder, kind, output, progress=lambda done, steps, what: said.append(what), **more)
    return said


def same(first: Path, second: Path) -> bool:
    """Whether two finished runs hold the same model and the same report, and nothing else."""
    assert {p.name for p in first.iterdir()} == {p.name for p in second.iterdir()} == {*OUTPUTS}
    return all((first / n).read_bytes() == (second / n).read_bytes() for n in OUTPUTS[:2])


@pytest.mark.parametrize("kind", ["classifier", "yolox"])
def test_killed_at_any_step_it_goes_on_to_the_same_bits(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    said = steps_of(folder, kind, tmp_path / "whole")
    assert same(folder / kind, tmp_path / "whole")
    layers = [i for i, what in enumerate(said) if what.startswith("pruning")]
    assert len(layers) > 2
    # While it measures, before the first layer is pruned, and before the last one is.
    for step in (1, layers[0], layers[1], layers[-1]):
        parts = tmp_path / str(step)
        with pytest.raises(PowerLoss):
            prune(folder, kind, parts, progress=at(step, kill))
        assert not set(OUTPUTS) & {path.name for path in parts.iterdir()}
        left = steps_of(folder, kind, parts, resume=True)
        assert same(folder / kind, parts)
        done = sum(i < step for i in layers)  # what was pruned is not pruned again
        assert sum(what.startswith("pruning") for what in left) == len(layers) - done
        assert any("gradients" in what for what in left) == (step == 1)
        assert sum(what.startswith("measuring") for what in left) == len(layers) - done


def test_a_signal_finishes_the_layer(folder: Path, tmp_path: Path) -> None:
    said = steps_of(folder, "yolox", tmp_path / "whole")
    third = [i for i, what in enumerate(said) if what.startswith("pruning")][2]
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        output = tmp_path / number.name
        stop = at(third, partial(os.kill, os.getpid(), number))
        assert prune(folder, "yolox", output, progress=stop, checkpoint_minutes=60.0) is None
        assert signal.getsignal(number) == before
        assert checkpoints(output)[-1] == checkpoint_path(output, 3)
        prune(folder, "yolox", output, resume=True)
        assert same(folder / "yolox", output)


def test_checkpoints_wait_for_their_time(folder: Path, tmp_path: Path) -> None:
    said = steps_of(folder, "yolox", tmp_path / "whole")
    with pytest.raises(PowerLoss):
        prune(
            folder,
            "yolox",
            tmp_path / "parts",
            progress=at(len(said) - 1, kill),
            checkpoint_minutes=60.0,
        )
    assert checkpoints(tmp_path / "parts") == [checkpoint_path(tmp_path / "parts", 0)]


def full_disk(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """The disk is full after a number of files."""
    original, count = os.fsync, iter(range(10**6))

    def fsync(number: int) -> None:
        if next(count) >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(number)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    """In a layer, and while each of the results is written."""
    layers = len(json.loads((folder / "yolox" / "report.json").read_text())["layers"])
    checkpoint = r"No space left.*checkpoint-0000001\.safetensors is whole: .*then --resume"
    for writes, message in [
        (0, "No space left on device.*there is no earlier checkpoint"),
        (2, checkpoint),
        *((layers + 1 + i, f"{name}: cannot be written") for i, name in enumerate(OUTPUTS)),
    ]:
        output = tmp_path / str(writes)
        with pytest.MonkeyPatch.context() as patch:
            full_disk(patch, writes)
            with pytest.raises(InputError, match=message) as raised:
                prune(folder, "yolox", output)
        assert "\n" not in str(raised.value)
        assert not list(output.glob(".*"))  # nothing half-written is left
        prune(folder, "yolox", output, resume=True)
        assert same(folder / "yolox", output)


def killed_in_its_last_step(folder: Path, place: Path) -> Path:
    """The folder of a pruning of `yolox` that was killed there."""
    said = steps_of(folder, "yolox", place / "whole")
    with pytest.raises(PowerLoss):
        prune(folder, "yolox", place / "parts", progress=at(len(said) - 1, kill))
    return place / "parts"


def test_a_damaged_checkpoint_is_passed_over(folder: Path, tmp_path: Path) -> None:
    killed_in_its_last_step(folder, tmp_path)
    newest = checkpoints(tmp_path / "parts")[-1]
    data = bytearray(newest.read_bytes())
    data[-3] ^= 0x10
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="trying the one before"):
        prune(folder, "yolox", tmp_path / "parts", resume=True)
    assert same(folder / "yolox", tmp_path / "parts")


def test_it_goes_on_with_the_same_run_alone(folder: Path, tmp_path: Path) -> None:
    parts = killed_in_its_last_step(folder, tmp_path)
    with pytest.raises(InputError, match="holds a run already; resume it"):
        prune(folder, "yolox", parts)
    with pytest.raises(InputError, match=r"has sparsity 0\.4, now it is 0\.3: --resume needs"):
        prune(folder, "yolox", parts, OneShotConfig(sparsity=0.3), resume=True)
    with pytest.raises(InputError, match="has source"):
        prune(folder, "classifier", parts, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "yolox.onnx").symlink_to(folder / "yolox.onnx")
    write_photographs(other, range(1, 17))
    with pytest.raises(InputError, match="has digest of the images"):
        prune(other, "yolox", parts, resume=True)
    prune(folder, "yolox", parts, resume=True)
    with pytest.raises(InputError, match="exists already"):
        prune(folder, "yolox", parts, resume=True)
    assert same(folder / "yolox", parts)


def test_foreign_checkpoints_are_refused(folder: Path, tmp_path: Path) -> None:
    killed_in_its_last_step(folder, tmp_path)
    checkpoint = read_checkpoint(checkpoints(tmp_path / "parts")[-1])
    rows = json.loads(checkpoint.metadata["layers"])
    for change, message in (
        ({"prune": "tune"}, "is of no pruning at once"),
        ({"zeros": "[1]"}, "is of no pruning at once"),
        ({"layers": json.dumps([{**rows[0], "more": 1}])}, "is of no pruning at once"),
        ({"zeros": '{"a": 1}'}, "is of another network"),
        ({"layers": json.dumps(rows[:-1])}, "is of another network"),
        ({"layers": json.dumps([*rows[:-1], {**rows[-1], "name": "x"}])}, "of another network"),
    ):
        output = tmp_path / message[-8:]
        output.mkdir(exist_ok=True)
        metadata = {**checkpoint.metadata, **change}
        write_checkpoint(output, len(rows), checkpoint.tensors, metadata)
        with pytest.raises(InputError, match=message):
            prune(folder, "yolox", output, resume=True)
    with pytest.raises(UsageError, match="checkpoint_minutes is -1"):
        prune(folder, "yolox", output, resume=True, checkpoint_minutes=-1)
    (output / "model.safetensors").write_text("a user's own")  # kept by every refusal
    with pytest.raises(InputError):
        prune(folder, "yolox", output, resume=True)
    assert (output / "model.safetensors").read_text() == "a user's own"
