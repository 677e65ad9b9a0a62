"""int8 of networks that it cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.exports import small_network

from sparsedet.engine import Engine
from sparsedet.engine.calibrate import quantize_file
from sparsedet.errors import InputError
from sparsedet.model.file import save_model

SAID = "precision 'int8' cannot run this network: fpn.output5 reads values that may be negative"


@pytest.mark.parametrize("family", ["faster-rcnn", "retinanet"])
def test_a_pyramid_has_negative_values(family: str, tmp_path: Path) -> None:
    network = small_network(family)
    with pytest.raises(InputError, match=SAID):
        Engine(network.config, network.tensors, precision="int8", clipping_thresholds={"x": 1.0})
    path = tmp_path / "model.safetensors"
    save_model(path, network.config, network.tensors, {}, dtype="float32")
    with pytest.raises(InputError, match=SAID):
        quantize_file(path, tmp_path / "nothing", tmp_path / "out.safetensors")


def test_clipping_thresholds_change_nothing_in_float32() -> None:
    """Layers that run on several levels share their weights, whatever the thresholds."""
    network = small_network("retinanet")
    thresholds = {"class.conv0": 1.0, "class.conv0.p3": 2.0}
    engine = Engine(network.config, network.tensors, threads=1, clipping_thresholds=thresholds)
    assert np.array_equal(engine.run(network.image), network.outputs()[0])
