"""The masks that a recipe asks for."""

from __future__ import annotations

from ..pruning.allocation import pattern_sparsity, prunable_layers
from ..pruning.masks import FixedMasks, GradualPruner, Masks
from ..pruning.patterns import PATTERNS
from ..pruning.schedule import CubicSchedule
from ..torch_model import TwoStageDetector
from .recipe import Recipe


def build_masks(model: TwoStageDetector, recipe: Recipe) -> Masks | None:
    """Masks for gradual pruning, fixed masks for `keep_zeros`, or None.

    Raises:
        InputError: the model does not fit the pattern or the target, or has no zeros to keep.
    """
    if recipe.keep_zeros:
        return FixedMasks(model, recipe.exclude)
    if not recipe.prunes:
        return None
    final, pattern = recipe.sparsity, PATTERNS[recipe.pattern]
    if pattern.fixed_sparsity is not None:
        layers = prunable_layers(model.graph, recipe.exclude)
        final = pattern_sparsity(model.graph, layers, pattern)
    schedule = CubicSchedule(
        final=final, begin=recipe.prune_begin, end=recipe.prune_end, every=recipe.prune_every
    )
    return GradualPruner(model, schedule, recipe.allocation, recipe.exclude, pattern)
