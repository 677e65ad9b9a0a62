"""How a model is trained: one frozen dataclass, written into every run folder.

No torch here, so that the command line can generate its flags without importing it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from ..errors import InputError
from ..model.config import coerce
from ..pruning.schedule import PATTERNS, Allocation, Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of a training run. Steps are optimizer steps; a batch is the images of one step.

    The defaults of the losses and of SGD are Detectron2's and TensorPack's common ones for one
    image; `recipes/embedded` holds those of the embedded model, `recipes/coco` the reference's.

    A batch is cut into `accumulate` parts. One process computes them one after the other, several
    side by side; what is learnt is the same.

    Attributes: explained in `HELP`.
    """

    # --- length and optimizer
    steps: int = 1000
    batch: int = 4
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.005
    reference_batch: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    decay: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    clip_gradient: float = 0.0
    backbone_rate: float = 1.0
    freeze_at: int = 2
    amp: Literal["off", "bf16", "fp16"] = "off"
    ema: float = 0.0
    seed: int = 0

    # --- data
    flip: float = 0.5
    scale_low: float = 1.0
    scale_high: float = 1.0
    short_sides: tuple[int, ...] = ()
    long_side: int = 1333
    workers: int = 0

    # --- sampling and losses
    rpn_batch: int = 256
    rpn_beta: float = 0.0
    rpn_anchors_inside: bool = False
    rpn_pre_nms: int = 2000
    rpn_post_nms: int = 1000
    roi_batch: int = 512
    roi_positive: float = 0.25
    roi_beta: float = 0.0

    # --- towards a teacher
    distill_class: float = 1.0
    distill_rpn: float = 1.0
    distill_features: float = 1.0
    distill_temperature: float = 2.0

    # --- gradual pruning, or zeros that are there already
    sparsity: float = 0.0
    pattern: Pattern = "unstructured"
    allocation: Allocation = "uniform"
    prune_begin: int = 0
    prune_end: int = 0
    prune_every: int = 50
    exclude: tuple[str, ...] = ()
    keep_zeros: bool = False

    # --- validation
    val_fraction: float = 0.0
    val_every: int = 1000
    patience: int = 0
    samples: int = 4

    # --- keeping work
    checkpoint_minutes: float = 5.0
    log_every: int = 20

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise InputError(f"{field} is {getattr(self, field)!r}, expected {expected}")

        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            numbers = value if isinstance(value, tuple) else (value,)
            require(all(low <= n <= high for n in numbers), field, f"{low:g}..{high:g}")
        require(self.learning_rate > 0, "learning_rate", "more than 0")
        require(self.momentum < 1, "momentum", "less than 1")
        require(self.sparsity < 1, "sparsity", "less than 1")
        require(self.optimizer in ("sgd", "adamw"), "optimizer", "'sgd' or 'adamw'")
        require(
            self.decay in ("cosine", "step", "constant"), "decay", "'cosine', 'step' or 'constant'"
        )
        require(
            self.allocation in get_args(Allocation),
            "allocation",
            "'uniform', 'global', 'erk' or 'sensitivity'",
        )
        require(self.amp in ("off", "bf16", "fp16"), "amp", "'off', 'bf16' or 'fp16'")
        require(self.batch % self.accumulate == 0, "accumulate", f"a divisor of batch {self.batch}")
        require(
            list(self.milestones) == sorted(set(self.milestones)), "milestones", "ascending steps"
        )
        require(
            not self.milestones or self.decay == "step",
            "milestones",
            f"none with decay {self.decay!r}",
        )
        require(self.ema < 1, "ema", "less than 1")
        require(self.scale_low <= self.scale_high, "scale_low", f"at most {self.scale_high}")
        require(
            not self.short_sides or self.scale_low == self.scale_high == 1,
            "short_sides",
            "none beside scale_low and scale_high",
        )
        require(
            max(self.short_sides, default=0) <= self.long_side,
            "long_side",
            "at least the largest of short_sides",
        )
        require(self.val_fraction < 1, "val_fraction", "less than 1")
        require(not self.patience or self.val_fraction > 0, "patience", "0 without val_fraction")
        require(self.pattern in PATTERNS, "pattern", "'unstructured', '1x4' or '2:4'")
        if self.pattern == "2:4":
            require(
                self.sparsity == 0,
                "sparsity",
                "0 with pattern 2:4, which makes half of each layer zero",
            )
            require(
                self.allocation == "uniform",
                "allocation",
                "'uniform' with pattern 2:4, which makes half of each layer zero",
            )
        elif self.pattern != "unstructured":
            require(self.sparsity > 0, "pattern", "'unstructured' where sparsity is 0")
        require(
            not (self.keep_zeros and self.prunes),
            "keep_zeros",
            "False where zeros are made, by sparsity or pattern",
        )
        if self.prunes:
            # The last zeros appear before step `prune_end`, counted from 0: it has to exist.
            require(
                self.prune_begin < self.prune_end < self.steps,
                "prune_end",
                f"more than {self.prune_begin} and less than {self.steps} steps",
            )

    @property
    def prunes(self) -> bool:
        """Whether zeros are made while training."""
        return self.sparsity > 0 or self.pattern == "2:4"

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ... steps - 1: linear warm-up, then the decay."""
        factor = self.batch / (self.reference_batch or self.batch)
        if self.decay == "cosine":
            factor *= 0.5 * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))
        elif self.decay == "step":
            factor *= 0.1 ** sum(step >= m for m in self.milestones)
        if step < self.warmup_steps:
            factor *= (step + 1) / (self.warmup_steps + 1)
        return self.learning_rate * factor

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Rebuild from JSON; unknown keys and values of another type are refused by name."""
        hints = get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise InputError(f"unknown recipe key {key!r}")
        return cls(**{key: coerce(key, value, hints[key]) for key, value in values.items()})


HELP = {
    "steps": "optimizer steps",
    "batch": "images of a step, over all processes",
    "accumulate": "parts that a batch is cut into; a multiple of the number of processes",
    "optimizer": "sgd with momentum, or adamw",
    "learning_rate": "peak rate; a recipe for SGD and one for AdamW differ by orders of magnitude",
    "reference_batch": "batch that the rate is meant for: another batch scales it in proportion "
    "(Goyal et al., arXiv 1706.02677); 0: it is meant for this one",
    "momentum": "of SGD",
    "weight_decay": "of weights, not of biases and batch norms",
    "warmup_steps": "steps in which the rate rises linearly",
    "decay": "of the rate: to zero along a cosine, by 10 at each milestone, or none",
    "milestones": "steps at which decay step divides the rate by 10",
    "clip_gradient": "largest norm of all gradients together; 0: no limit",
    "backbone_rate": "factor of the rate for stem and res2 to res5",
    "freeze_at": "keep the stem (1), res2 (2), ... up to this as they are; 0: train all",
    "amp": "type of the convolutions' arithmetic, automatic mixed precision",
    "ema": "decay of the running mean of the weights, which is then validated and saved; 0: none",
    "seed": "of data order, augmentation and sampling",
    "flip": "share of images mirrored left to right",
    "scale_low": "smallest size of an image, times the network input",
    "scale_high": "largest size of an image, times the network input",
    "short_sides": "the shorter side is drawn from these pixels, as in Detectron2, instead of "
    "fitting the network input times scale_low..scale_high",
    "long_side": "limit of the longer side, with short_sides",
    "workers": "processes that load images, for each process that trains",
    "rpn_batch": "anchors sampled of an image",
    "rpn_beta": "smooth L1's beta of anchors; 0: L1",
    "rpn_anchors_inside": "leave out anchors that reach outside the image",
    "rpn_pre_nms": "proposals of an image before suppression, in training",
    "rpn_post_nms": "proposals of an image after suppression, in training",
    "roi_batch": "regions sampled of an image",
    "roi_positive": "share of them with an object, at most",
    "roi_beta": "smooth L1's beta of regions; 0: L1",
    "distill_class": "with a teacher, weight of the loss of class scores",
    "distill_rpn": "with a teacher, weight of the loss of objectness",
    "distill_features": "with a teacher, weight of the loss of the stride-16 map",
    "distill_temperature": "of the class scores that are compared",
    "sparsity": "share of ALL parameters that become zero; 0 with pattern 2:4",
    "pattern": "of the zeros: any weight, four input channels at once, two of such four",
    "allocation": "how zeros are shared out: to all layers alike, to the smallest weights, fewer "
    "in small layers, by what the loss feels; --method reconstruct: sensitivity",
    "prune_begin": "step before which there are no new zeros",
    "prune_end": "step at which the zeros are complete",
    "prune_every": "steps between two choices of zeros",
    "exclude": "layers left dense, beside stem and predictors",
    "keep_zeros": "the initial weights' zeros stay, and no others are made",
    "val_fraction": "share of the images, chosen by their ids alone, that is kept out of training "
    "and validated on",
    "val_every": "steps between two validations, or samples",
    "patience": "stop after so many validations without a better AP; 0: never",
    "samples": "images with detections drawn every val_every steps",
    "checkpoint_minutes": "minutes between two checkpoints",
    "log_every": "steps between two lines of the log",
}
"""What each setting is; the command line's help."""

_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 9e6),
    "batch": (1, 65536),
    "accumulate": (1, 65536),
    "reference_batch": (0, 65536),
    "learning_rate": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 10),
    "warmup_steps": (0, 1e9),
    "milestones": (0, 1e9),
    "clip_gradient": (0, 1e6),
    "backbone_rate": (0, 1e3),
    "freeze_at": (0, 5),
    "ema": (0, 1),
    "seed": (0, 2**53),
    "flip": (0, 1),
    "scale_low": (0.05, 8),
    "scale_high": (0.05, 8),
    "short_sides": (16, 8192),
    "long_side": (16, 8192),
    "workers": (0, 256),
    "rpn_batch": (1, 1e6),
    "rpn_beta": (0, 1e3),
    "rpn_pre_nms": (1, 1e6),
    "rpn_post_nms": (1, 1e6),
    "roi_batch": (1, 1e6),
    "roi_positive": (0, 1),
    "roi_beta": (0, 1e3),
    "distill_class": (0, 1e6),
    "distill_rpn": (0, 1e6),
    "distill_features": (0, 1e6),
    "distill_temperature": (0.01, 100),
    "sparsity": (0, 1),
    "prune_begin": (0, 1e9),
    "prune_end": (0, 1e9),
    "prune_every": (1, 1e9),
    "val_fraction": (0, 1),
    "val_every": (1, 1e9),
    "patience": (0, 1e9),
    "samples": (0, 1000),
    "checkpoint_minutes": (0, 1e6),
    "log_every": (1, 1e9),
}
"""What every number lies in."""
