"""How a model is trained: one frozen dataclass, written into every run folder.

No torch here, so that the command line can generate its flags without importing it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from ..config import coerce
from ..errors import InputError
from ..pruning.schedule import PATTERNS, Allocation, Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of a training run. Steps are optimizer steps; a batch is the images of one step.

    The defaults of the losses and of SGD are Detectron2's and TensorPack's common ones for one
    image; `recipes/embedded` holds those of the embedded model, `recipes/coco` the reference's.

    A batch is cut into `accumulate` parts. One process computes them one after the other, several
    side by side; what is learnt is the same.

    Attributes:
        reference_batch: the batch that `learning_rate` is meant for; another `batch` scales it
            in proportion (Goyal et al., arXiv 1706.02677). 0: it is meant for `batch`.
        amp: type of the convolutions' arithmetic, automatic mixed precision.
        ema: decay of the running mean of the weights, which is then what is validated and saved;
            0: none.
        short_sides, long_side: the photograph's shorter side is drawn from these pixels, its
            longer one limited, as in Detectron2. Empty: it is fitted into the model's canvas
            times a factor drawn from scale_low..scale_high.
        workers: processes that load photographs, for each process that trains.
        val_fraction, val_every: this share of the photographs, chosen by their ids alone, is kept
            out of training, and AP on it is measured every so many steps and at the end.
        pattern: of the zeros; "2:4" prunes with sparsity 0, for it says itself how many.
        keep_zeros: the zeros that the initial weights have stay, and no others are made.
        distill_class, distill_rpn, distill_features: weights of the losses towards a teacher,
            where the run has one; see `distill`.
        distill_temperature: of the class scores that are compared.
        patience: stop after so many validations without a better AP; 0: never.
        samples: photographs with detections drawn every `val_every` steps.
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
        require(self.decay in ("cosine", "step", "constant"), "decay",
                "'cosine', 'step' or 'constant'")  # fmt: skip
        require(self.allocation in get_args(Allocation), "allocation",
                "'uniform', 'global', 'erk' or 'sensitivity'")  # fmt: skip
        require(self.amp in ("off", "bf16", "fp16"), "amp", "'off', 'bf16' or 'fp16'")
        require(self.batch % self.accumulate == 0, "accumulate", f"a divisor of batch {self.batch}")
        require(list(self.milestones) == sorted(set(self.milestones)), "milestones",
                "ascending steps")  # fmt: skip
        require(not self.milestones or self.decay == "step", "milestones",
                f"none with decay {self.decay!r}")  # fmt: skip
        require(self.ema < 1, "ema", "less than 1")
        require(self.scale_low <= self.scale_high, "scale_low", f"at most {self.scale_high}")
        require(not self.short_sides or self.scale_low == self.scale_high == 1, "short_sides",
                "none beside scale_low and scale_high")  # fmt: skip
        require(max(self.short_sides, default=0) <= self.long_side, "long_side",
                "at least the largest of short_sides")  # fmt: skip
        require(self.val_fraction < 1, "val_fraction", "less than 1")
        require(not self.patience or self.val_fraction > 0, "patience", "0 without val_fraction")
        require(self.pattern in PATTERNS, "pattern", "'unstructured', '1x4' or '2:4'")
        if self.pattern == "2:4":
            require(self.sparsity == 0, "sparsity",
                    "0 with pattern 2:4, which makes half of each layer zero")  # fmt: skip
            require(self.allocation == "uniform", "allocation",
                    "'uniform' with pattern 2:4, which makes half of each layer zero")  # fmt: skip
        elif self.pattern != "unstructured":
            require(self.sparsity > 0, "pattern", "'unstructured' where sparsity is 0")
        require(not (self.keep_zeros and self.prunes), "keep_zeros",
                "False where zeros are made, by sparsity or pattern")  # fmt: skip
        if self.prunes:
            # The last zeros appear before step `prune_end`, counted from 0: it has to exist.
            require(self.prune_begin < self.prune_end < self.steps, "prune_end",
                    f"more than {self.prune_begin} and less than {self.steps} steps")  # fmt: skip

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


_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 9e6), "batch": (1, 65536), "accumulate": (1, 65536),
    "reference_batch": (0, 65536), "learning_rate": (0, 1e3), "momentum": (0, 1),
    "weight_decay": (0, 10), "warmup_steps": (0, 1e9), "milestones": (0, 1e9),
    "clip_gradient": (0, 1e6), "backbone_rate": (0, 1e3), "freeze_at": (0, 5),
    "ema": (0, 1), "seed": (0, 2**53), "flip": (0, 1),
    "scale_low": (0.05, 8), "scale_high": (0.05, 8),
    "short_sides": (16, 8192), "long_side": (16, 8192), "workers": (0, 256),
    "rpn_batch": (1, 1e6), "rpn_beta": (0, 1e3), "rpn_pre_nms": (1, 1e6),
    "rpn_post_nms": (1, 1e6), "roi_batch": (1, 1e6), "roi_positive": (0, 1),
    "roi_beta": (0, 1e3), "distill_class": (0, 1e6), "distill_rpn": (0, 1e6),
    "distill_features": (0, 1e6), "distill_temperature": (0.01, 100),
    "sparsity": (0, 1), "prune_begin": (0, 1e9), "prune_end": (0, 1e9),
    "prune_every": (1, 1e9), "val_fraction": (0, 1), "val_every": (1, 1e9),
    "patience": (0, 1e9), "samples": (0, 1000),
    "checkpoint_minutes": (0, 1e6), "log_every": (1, 1e9),
}  # fmt: skip
"""What every number lies in."""
