"""The settings of a training run: one frozen dataclass, written into every run folder.

The module does not import torch, so that the command line generates its flags without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from ..errors import InputError
from ..model.config import coerce
from ..pruning.allocation import Allocation
from ..pruning.patterns import PATTERNS, UNSTRUCTURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of a training run. Steps are optimizer steps; a batch is the images of one step.

    The defaults of losses and SGD are those that Detectron2 and TensorPack share, for one image.
    `recipes/embedded` holds the settings of r50half-c4, `recipes/coco` the reference's.

    A batch is cut into `accumulate` micro-batches. One process computes them one after the other,
    several processes at once; the result is the same.

    `HELP` describes each attribute.

    Raises:
        InputError: a setting is out of range, or contradicts another one.
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
    crop: bool = False
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    mosaic: float = 0.0
    colour: float = 0.0
    min_box: float = 1.0
    min_visible: float = 0.1
    repeat_threshold: float = 0.0
    crowd_overlap: float = 0.0
    workers: int = 0

    # --- sampling and losses
    rpn_batch: int = 256
    rpn_beta: float = 0.0
    rpn_anchors_inside: bool = False
    rpn_pre_nms: int = 2000
    rpn_post_nms: int = 0
    roi_batch: int = 512
    roi_positive: float = 0.25
    roi_beta: float = 0.0

    # --- teacher
    distill_class: float = 1.0
    distill_rpn: float = 1.0
    distill_features: float = 1.0
    distill_temperature: float = 2.0

    # --- gradual pruning, or zeros of the initial weights
    sparsity: float = 0.0
    pattern: str = field(default=UNSTRUCTURED.name, metadata={"choices": PATTERNS})
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

    # --- checkpoints and log
    checkpoint_minutes: float = 5.0
    log_every: int = 20

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            require(all(low <= n <= high for n in numbers), name, f"{low:g}..{high:g}")
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
        require(not (self.crop and self.short_sides), "crop", "False beside short_sides")
        require(self.val_fraction < 1, "val_fraction", "less than 1")
        require(not self.patience or self.val_fraction > 0, "patience", "0 without val_fraction")
        require(self.pattern in PATTERNS, "pattern", f"one of {', '.join(PATTERNS)}")
        fixed = PATTERNS[self.pattern].fixed_sparsity
        if fixed is not None:
            reason = f"with pattern {self.pattern}, which makes {fixed:g} of each layer zero"
            require(self.sparsity == 0, "sparsity", f"0 {reason}")
            require(self.allocation == "uniform", "allocation", f"'uniform' {reason}")
        elif self.pattern != UNSTRUCTURED.name:
            require(self.sparsity > 0, "pattern", f"{UNSTRUCTURED.name!r} where sparsity is 0")
        require(
            not (self.keep_zeros and self.prunes),
            "keep_zeros",
            "False where sparsity or pattern make zeros",
        )
        if self.prunes:
            # The last zeros appear before step `prune_end`, counted from 0: it must exist.
            require(
                self.prune_begin < self.prune_end < self.steps,
                "prune_end",
                f"more than {self.prune_begin} and less than {self.steps} steps",
            )

    @property
    def prunes(self) -> bool:
        """Whether the run prunes gradually."""
        return self.sparsity > 0 or PATTERNS[self.pattern].fixed_sparsity is not None

    @property
    def cuts(self) -> bool:
        """Whether augmentation cuts objects off or makes them smaller than scale_low does."""
        return self.crop or max(self.zoom_out, self.iou_crop, self.mosaic) > 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, 0..steps - 1: linear warm-up, then the decay."""
        factor = self.batch / (self.reference_batch or self.batch)
        if self.decay == "cosine":
            factor *= 0.5 * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))
        elif self.decay == "step":
            factor *= 0.1 ** sum(step >= m for m in self.milestones)
        if step < self.warmup_steps:
            factor *= (step + 1) / (self.warmup_steps + 1)
        return self.learning_rate * factor

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; settings that are not given have their defaults.

        Raises:
            InputError: a key is unknown or a value has the wrong type; names it.
        """
        hints = get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise InputError(f"unknown recipe key {key!r}")
        return cls(**{key: coerce(key, value, hints[key]) for key, value in values.items()})


HELP = {
    "steps": "optimizer steps",
    "batch": "images of a step, over all processes",
    "accumulate": "micro-batches that a batch is cut into; a multiple of the number of processes",
    "optimizer": "sgd with momentum, or adamw",
    "learning_rate": "peak rate; rates for SGD and for AdamW differ by orders of magnitude",
    "reference_batch": "batch that learning_rate is for; another batch scales the rate in "
    "proportion (Goyal et al., arXiv 1706.02677); 0: the rate is for this batch",
    "momentum": "of SGD",
    "weight_decay": "of weights; biases and batch norms have none",
    "warmup_steps": "steps in which the rate rises linearly",
    "decay": "of the rate: to zero along a cosine, by 10 at each milestone, or none",
    "milestones": "steps at which decay 'step' divides the rate by 10",
    "clip_gradient": "largest norm of all gradients together; 0: no limit",
    "backbone_rate": "factor of the rate for the stem and all residual stages",
    "freeze_at": "freeze the stem (1), res2 (2), ... up to this stage; 0: train all",
    "amp": "type of the convolutions' arithmetic in automatic mixed precision",
    "ema": "decay of the moving average of the weights, which is validated and saved; 0: none",
    "seed": "of data order, augmentation and sampling",
    "flip": "fraction of images mirrored left to right",
    "scale_low": "smallest size of an image, times the network input",
    "scale_high": "largest size of an image, times the network input",
    "short_sides": "lengths of the shorter side, pixels, one drawn for each image as in "
    "Detectron2; instead of scale_low..scale_high",
    "long_side": "limit of the longer side, with short_sides",
    "crop": "cut a random window of the network input's size out of images that are larger; with "
    "scale_low 0.1 and scale_high 2 it is large scale jitter (Ghiasi et al., arXiv 2012.07177)",
    "zoom_out": "fraction of images outside mosaics on a canvas of up to 4 times their sides (SSD, "
    "torchvision)",
    "iou_crop": "fraction of images cropped around an object (SSD, torchvision)",
    "mosaic": "fraction of images joined with three others (YOLOv4)",
    "colour": "fraction of images with changed colours (SSD, torchvision's photometric distortion)",
    "min_box": "with crops, zoom-out or mosaic: objects with a shorter side, pixels, are left out",
    "min_visible": "objects of which a smaller fraction is left after such a cut are left out",
    "repeat_threshold": "images with a class that a smaller fraction of all images shows are drawn "
    "more often (LVIS, arXiv 1908.03195; 0.001 there); 0: each once an epoch",
    "crowd_overlap": "no background is learnt from boxes of which this fraction lies in a crowd or "
    "in an object that was left out; Detectron has 0.7; 0: crowds are background",
    "workers": "processes that load images, for each process that trains",
    "rpn_batch": "anchors sampled from each image",
    "rpn_beta": "beta of the anchors' smooth L1; 0: L1",
    "rpn_anchors_inside": "leave out anchors that reach outside the image",
    "rpn_pre_nms": "proposals of each level of an image before NMS, in training",
    "rpn_post_nms": "proposals of an image after NMS, in training; 0: 1000, with a feature pyramid "
    "2000 as in torchvision",
    "roi_batch": "RoIs sampled from each image",
    "roi_positive": "largest fraction of them with an object",
    "roi_beta": "beta of the RoIs' smooth L1; 0: L1",
    "distill_class": "with a teacher, weight of the loss of class scores",
    "distill_rpn": "with a teacher, weight of the loss of objectness",
    "distill_features": "with a teacher, weight of the loss of the feature maps",
    "distill_temperature": "temperature of the class scores that are compared",
    "sparsity": "fraction of ALL parameters that becomes zero; 0 with a pattern that fixes it: "
    + ", ".join(p.name for p in PATTERNS.values() if p.fixed_sparsity is not None),
    "pattern": "weights that become zero together; "
    + ", ".join(f"{p.name}: {p.help}" for p in PATTERNS.values()),
    "allocation": "distribution of the zeros over the layers; uniform: the same sparsity in each, "
    "global: the smallest weights of all layers, erk: fewer in small layers, sensitivity: the "
    "weights that change the loss least, default of --method reconstruct",
    "prune_begin": "step of the first zeros",
    "prune_end": "step of the last zeros",
    "prune_every": "steps between two choices of zeros",
    "exclude": "layers left dense beside stem and predictors",
    "keep_zeros": "keep the initial weights' zeros and make no others",
    "val_fraction": "fraction of the images that is held out for validation, chosen by their ids "
    "alone",
    "val_every": "steps between two validations, or samples",
    "patience": "validations without a better AP after which training stops; 0: never",
    "samples": "images whose detections are drawn every val_every steps",
    "checkpoint_minutes": "minutes between two checkpoints",
    "log_every": "steps between two lines of the log",
}
"""Description of each setting, for the command line's help."""

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
    "zoom_out": (0, 1),
    "iou_crop": (0, 1),
    "mosaic": (0, 1),
    "colour": (0, 1),
    "min_box": (0, 8192),
    "min_visible": (0, 1),
    "repeat_threshold": (0, 1),
    "crowd_overlap": (0, 1),
    "workers": (0, 256),
    "rpn_batch": (1, 1e6),
    "rpn_beta": (0, 1e3),
    "rpn_pre_nms": (1, 1e6),
    "rpn_post_nms": (0, 1e6),
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
"""Range of each number, both ends included."""
