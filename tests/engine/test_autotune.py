"""The algorithms of the operations: their report, the tuning, and the tuning file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.small import SMALL, picture

from sparsedet import Detector, InputError
from sparsedet.cli import main
from sparsedet.engine import Engine
from sparsedet.engine.autotune import load_tuning, measure
from sparsedet.model.c4 import build_graph
from sparsedet.model.file import load_model


def test_the_work_is_that_of_the_graph(small_model: Path) -> None:
    model = load_model(small_model)
    every = [name for name, *_ in Engine(SMALL, model.tensors, threads=1).native.convolutions]
    dense = Engine(
        SMALL, model.tensors, threads=1, hoist=False, algorithms=dict.fromkeys(every, "dense")
    )
    rows = {row.name: row for row in measure(dense)}
    for layer in build_graph(SMALL).layers:
        if layer.name in rows and not layer.per_roi:
            assert rows[layer.name].gflop == pytest.approx(2e-9 * layer.macs)
            assert rows[layer.name].seconds > 0 and rows[layer.name].expected > 0
    plan = dict.fromkeys(every, "sparse")
    other = Engine(SMALL, model.tensors, threads=1, hoist=False, algorithms=plan)
    sparse = {row.name: row for row in measure(other)}
    for name, row in sparse.items():
        assert row.gflop == pytest.approx((1 - row.sparsity) * rows[name].gflop)


def test_show_tune_and_use(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["info", str(small_model), "--operations", "--autotune", str(plan)]) == 0
    out = capsys.readouterr().out
    assert "rpn.conv" in out and "GFLOP/s" in out
    assert set(load_tuning(plan).values()) <= {"sparse", "dense", "rowwise", "winograd"}
    photo = picture()
    tuned = Detector.load(small_model, threads=1, tuning=plan)
    usual = Detector.load(small_model, threads=1)
    assert isinstance(tuned.engine, Engine)
    used = {name: algorithm for name, algorithm, *_ in tuned.engine.native.convolutions}
    assert used == load_tuning(plan)
    assert np.allclose(tuned(photo).scores, usual(photo).scores, atol=1e-4)
    assert main(["info", str(small_model), "--autotune", str(plan)]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plan": 3}', '{"plan": {"rpn.conv": 1}}'])
def test_bad_plan_files(small_model: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InputError, match="plan"):
        Detector.load(small_model, tuning=path)
    path.write_text(json.dumps({"plan": {"no_such": "dense"}}))
    with pytest.raises(InputError, match="no_such"):
        Detector.load(small_model, tuning=path)
