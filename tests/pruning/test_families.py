"""Pruning at once, without labels, of every family of detectors."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.exports import FAMILIES, small_network

torch = pytest.importorskip("torch")

from sparsedet.pruning.allocation import prunable_layers  # noqa: E402
from sparsedet.pruning.one_shot import OneShotConfig, prune_once  # noqa: E402
from sparsedet.pruning.sensitivity import output_importance  # noqa: E402
from sparsedet.torch_model import GraphModule  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_reconstruction_prunes_every_family(family: str) -> None:
    network = small_network(family)
    graph = network.config.graph
    rng = np.random.default_rng(0)
    images = [network.blob, rng.integers(0, 256, network.blob.shape).astype(np.float32)]
    inputs = [
        torch.from_numpy(np.array(image)).reshape(1, 3, *image.shape[-2:]) for image in images
    ]
    model = GraphModule("x", graph)
    model.load_tensors(network.tensors)
    settings = OneShotConfig(method="reconstruct", sparsity=0.4, allocation="sensitivity")
    report = prune_once(model, inputs, settings, held_out=1)
    names = prunable_layers(graph)
    assert {layer.name for layer in report.layers} == set(names)
    assert report.zeros >= 0.4 * graph.parameters * 0.99
    better = [layer.error <= layer.magnitude_error * 1.2 for layer in report.layers]
    assert np.mean(better) > 0.5
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("family", ["mask-rcnn", "mask-rcnn-c4", "retinanet", "fcos"])
def test_all_layers_matter_to_the_outputs(family: str) -> None:
    network = small_network(family)
    graph = network.config.graph
    model = GraphModule("x", graph)
    model.load_tensors(network.tensors)
    blob = torch.from_numpy(np.array(network.blob)).reshape(1, 3, *graph.image.size)
    importance = output_importance(model, [blob])
    assert set(importance) == {layer.name for layer in graph.layers}
    seen = [layer.name for layer in graph.layers if importance[layer.name].any()]
    # The highest level has no anchor among the best.
    assert {layer.name for layer in graph.layers} - set(seen) <= {"fpn.output6", "fpn.output7"}
    again = output_importance(model, [blob])
    assert all(torch.equal(importance[name], again[name]) for name in seen)
