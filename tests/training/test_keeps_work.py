"""Training never loses work: killed processes, full disks, damaged checkpoints."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("rich")

from helpers.tiny_training import FAST, trainer  # noqa: E402

from sparsedet import InputError  # noqa: E402
from sparsedet.cli import main  # noqa: E402
from sparsedet.evaluation.coco import CocoDataset  # noqa: E402
from sparsedet.model.checkpoint import checkpoints  # noqa: E402
from sparsedet.torch_model.checkpoint import (  # noqa: E402
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
)
from sparsedet.training.start import open_start  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

FULL = replace(
    FAST,
    steps=60,
    batch=4,
    accumulate=2,
    optimizer="adamw",
    learning_rate=1e-3,
    ema=0.9,
    sparsity=0.5,
    prune_begin=5,
    prune_end=50,
    prune_every=5,
    clip_gradient=1.0,
    allocation="sensitivity",
)
"""Uses everything that a checkpoint must restore."""


def same(a: Checkpoint, b: Checkpoint) -> bool:
    first, second = a.tensors, b.tensors
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_kill_9_and_resume_to_the_last_bit(
    dataset: CocoDataset,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real process, killed at a random moment, most likely while it writes a checkpoint."""
    begin = trainer(dataset, replace(FAST, steps=1), tmp_path / "begin")
    begin.run()
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(FULL.to_dict()))

    def arguments(output: str, *more: str) -> list[str]:
        return [
            "train",
            "--annotations",
            str(files[0]),
            "--images",
            str(files[1]),
            "--recipe",
            str(recipe),
            "--threads",
            "1",
            "--init",
            str(tmp_path / "begin"),
            "--output",
            str(tmp_path / output),
            *more,
        ]

    assert main(arguments("whole")) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsedet", *arguments("stopped", "--checkpoint-minutes", "0")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    moment, rest = random.randrange(1, 40), random.random() * 0.03
    print(f"to be killed {rest:.4f} s after step {moment}")
    deadline = time.monotonic() + 60
    while not any(int(p.stem[-7:]) >= moment for p in checkpoints(tmp_path / "stopped")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    time.sleep(rest)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    (tmp_path / "stopped" / ".checkpoint-0000001.safetensors.leftover.partial").write_bytes(b"half")

    assert main(arguments("stopped", "--resume")) == 0
    assert same(*(newest_checkpoint(tmp_path / name) for name in ("whole", "stopped")))
    whole, stopped = (
        (tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "stopped")
    )
    assert whole == stopped
    assert not list((tmp_path / "stopped").glob(".*"))  # nothing half-written is left
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(3, 61, 3))


def test_averages_masks_and_scaler_come_back(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(dataset, replace(FULL, steps=20, amp="fp16", prune_end=10), tmp_path / "run")
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 1024.0})
    run.run()
    rest = trainer(dataset, run.recipe, tmp_path / "run")
    rest.resume(newest_checkpoint(tmp_path / "run"))
    assert rest.average is not None and run.average is not None
    assert all(torch.equal(rest.average.tensors[n], v) for n, v in run.average.tensors.items())
    assert rest.pruner is not None and run.pruner is not None
    kept = rest.pruner.keep_masks
    assert all(torch.equal(kept[n], v) for n, v in run.pruner.keep_masks.items())
    assert run.pruner.sensitivity
    sensitivity = rest.pruner.sensitivity
    assert all(torch.equal(sensitivity[n], v) for n, v in run.pruner.sensitivity.items())
    assert rest.scaler.state_dict() == run.scaler.state_dict()
    assert rest.scaler.get_scale() == 1024.0


def test_a_full_disk(
    dataset: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, recipe = tmp_path / "run", replace(FULL, steps=16, prune_end=12)
    run = trainer(dataset, replace(recipe, checkpoint_minutes=0.0), folder)
    original = os.fsync

    def fsync(number: int) -> None:
        if run.step >= 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"0000007.*No space left.*0000006\.safetensors is whole"):
        run.run()
    monkeypatch.undo()
    assert [path.name[-19:] for path in checkpoints(folder)] == [
        "0000005.safetensors",
        "0000006.safetensors",
    ]
    assert not list(folder.glob(".checkpoint*"))  # the unfinished one is deleted
    rest = trainer(dataset, recipe, folder)
    rest.resume(newest_checkpoint(folder))
    rest.run()
    trainer(dataset, recipe, tmp_path / "whole").run()
    assert same(newest_checkpoint(folder), newest_checkpoint(tmp_path / "whole"))


def test_a_full_disk_before_the_first_checkpoint(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(dataset, FAST, tmp_path / "run")

    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        InputError, match=r"No space left on device.*there is no earlier checkpoint"
    ):
        run.run()


def test_a_log_that_cannot_be_written(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(dataset, FAST, tmp_path / "run")
    original = run.train_step

    def train_step(micro_batches: Any) -> dict[str, float]:
        if run.step == 2:  # before the first line is written
            (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
        return original(micro_batches)

    run.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        run.run()


@pytest.mark.parametrize("where", ["model/res3.0.conv2.weight", "optimizer/", "metadata"])
def test_flipped_bits_are_noticed(
    dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    folder = tmp_path / "run"
    run = trainer(
        dataset, replace(FULL, steps=6, prune_begin=1, prune_end=5, checkpoint_minutes=0.0), folder
    )
    run.run()
    older, newest = checkpoints(folder)
    data = bytearray(newest.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if where == "metadata":
        at = bytes(data).index(b'\\"stale\\": 0') + len(b'\\"stale\\": ')
        data[at] ^= 1  # 0 -> 1
    else:
        name = next(key for key in header if key.startswith(where))
        data[8 + size + header[name]["data_offsets"][0] + 2] ^= 0x10
    newest.write_bytes(data)
    with pytest.raises(InputError, match=r"0000006\.safetensors.*checksum"):
        read_checkpoint(newest)
    with pytest.raises(InputError, match="checksum"):
        open_start(newest)
    with pytest.warns(UserWarning, match="checksum is wrong"):
        assert newest_checkpoint(folder).path == older
