"""One model's tensors out of a file that may hold several, under the names that trainers add.

Trainers wrap a model in a module of their own, which puts a prefix before each name
(`model.` of Lightning, `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile), and
keep averaged weights, a teacher or an optimizer beside it. A model is found by tensors that each of
its kind has; what stands before their names is its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...errors import InputError
from ..tensor_source import Source, SourceTensor, printable

_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules around another one, at any place in a name, that do not change what it computes."""

_DETECTRON2 = re.compile(
    r"(.*?)(backbone\.(bottom_up\.)?(stem\.conv1|res2\.0\.conv1)|proposal_generator\.rpn_head\.conv"
    r"|roi_heads\.box_predictor\.cls_score|head\.cls_score)\.weight"
)
_CLASSIFIER = re.compile(r"(.*?)layer1\.0\.conv1\.weight")
_INSIDE = {"backbone", "body", "bottom_up"}  # a classifier's layers inside a detector

MAX_MODELS = 100

_WRAPPERS = ("model", "state_dict", "model_state")
_OPTIMIZER = {"optimizer", "optimizers", "optim", "scheduler", "momentum", "grad", "grads"}
_AVERAGED = {"ema", "averaged", "average", "avg", "swa", "shadow", "polyak"}


def choose_weights(
    path: Path, tensors: Mapping[str, SourceTensor], weights: str | None = None
) -> Source:
    """The tensors of one model, named as its own project names them.

    Args:
        path: the file, for messages.
        tensors: all tensors of the file; keys of nested dicts are joined with dots.
        weights: which of several models: its whole name or one part of it, as "ema"; default: the
            one that its project's own loader takes (see `_rank`).

    Raises:
        InputError: two tensors get one name, `weights` names none or several of the models, or
            there are several and none is the usual one.
    """
    named = _without_wrappers(path, tensors)
    roots = _roots(named)
    if not roots:
        if weights is not None:
            raise InputError(
                f"{path}: weights is {weights!r}, but the file holds no state dicts to choose from"
            )
        return _unknown(path, named)
    if len(roots) > MAX_MODELS:
        raise InputError(f"{path}: holds {len(roots)} models, expected at most {MAX_MODELS}")
    labels = {root: root.rstrip(".") or "model" for root in roots}
    if len(set(labels.values())) < len(labels):  # one at the top and one below "model."
        labels[""] = "top level"
    root = _usual(path, labels, roots) if weights is None else _named(path, labels, weights)
    others = {other: label for other, label in labels.items() if other != root}
    inner: dict[str, SourceTensor] = {}
    outside: list[str] = []
    alone: set[str] = set()  # names of no model
    for name, tensor in named.items():
        owners = [other for other in roots if name.startswith(other)]
        if owners and max(owners, key=len) == root:
            inner[name[len(root) :]] = tensor
        else:
            outside.append(name)
            alone |= set() if owners else {name}
    if twice := sorted(set(inner) & alone):
        raise InputError(f"{path}: tensor {twice[0]!r} occurs twice")
    if root == "":  # the file itself is the state dict: nothing of it is outside, but an optimizer
        optimizer = [n for n in inner if _words(n.partition(".")[0]) & _OPTIMIZER]
        outside += optimizer
        for name in optimizer:
            del inner[name]
    source = Source(path, inner)
    source.ignored += outside
    if others:
        source.notes.append(
            f"holds {len(roots)} sets of weights: took {printable(labels[root])}, left out "
            f"{_listed(others)} (--weights NAME takes another)"
        )
    return source


def _without_wrappers(path: Path, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    named: dict[str, SourceTensor] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in _TRANSPARENT) or name
        if bare in named:
            raise InputError(f"{path}: tensor {bare!r} occurs twice")
        named[bare] = tensor
    return named


def _roots(names: Mapping[str, SourceTensor]) -> dict[str, int]:
    """Prefix of each model in a file -> its rank; classifiers only if there is no detector."""
    for pattern in (_DETECTRON2, _CLASSIFIER):
        found = {match.group(1) for match in map(pattern.fullmatch, names) if match}
        ranks = {
            root: _rank(root, averaged=4 if pattern is _DETECTRON2 else -1)
            for root in sorted(found)
            if (root == "" or root.endswith("."))
            and not _words(root) & _OPTIMIZER
            and (pattern is _DETECTRON2 or not _INSIDE & set(root.split(".")))
        }
        if ranks:
            return dict(sorted(ranks.items(), key=lambda item: item[1]))
    return {}


def _rank(root: str, averaged: int) -> int:
    """Place in the order in which a project's own loader would take a model; the least is taken.

    Args:
        root: the prefix.
        averaged: the rank of averaged weights.

    Source: Detectron2's DetectionCheckpointer reads "model"; timm's `load_state_dict` takes
    "state_dict_ema" and "model_ema" first; mean-teacher detectors (Unbiased Teacher, Adaptive
    Teacher) are evaluated by their `modelTeacher`; of distillation the student is the result.
    """
    words = _words(root)
    if "modelTeacher" in root.split("."):
        return 1
    if "student" in words:
        return 2
    if "teacher" in words:
        return 3
    return averaged if words & _AVERAGED else 0


def _words(text: str) -> set[str]:
    """The words of a name: "modelTeacher.ema_state" -> model, teacher, ema, state."""
    parts = re.split(r"[\W_\d]+|(?<=[a-z])(?=[A-Z])", text)
    return {part.lower() for part in parts if part}


def _usual(path: Path, labels: Mapping[str, str], ranks: Mapping[str, int]) -> str:
    """The model of the least rank, if there is one alone."""
    first = min(ranks, key=lambda root: ranks[root])
    if list(ranks.values()).count(ranks[first]) > 1:
        raise InputError(
            f"{path}: holds {len(labels)} sets of weights ({_listed(labels)}); choose one: "
            "sparsedet convert --weights NAME"
        )
    return first


def _named(path: Path, labels: Mapping[str, str], weights: str) -> str:
    """The model of that name, or that alone has it as a part of its name."""
    whole = [root for root, label in labels.items() if label == weights]
    parts = [root for root, label in labels.items() if weights in label.split(".")]
    words = [root for root in labels if weights.lower() in _words(root)]
    for fitting in (whole, parts, words):
        if len(fitting) == 1:
            return fitting[0]
    raise InputError(f"{path}: weights is {weights!r}, expected one of: {_listed(labels)}")


def _listed(labels: Mapping[str, str]) -> str:
    names = [printable(label) for label in labels.values()]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def _unknown(path: Path, named: dict[str, SourceTensor]) -> Source:
    """Tensors of no known detector of torch: without the container's own first key."""
    for wrapper in _WRAPPERS:
        rest = {name: t for name, t in named.items() if name.startswith(f"{wrapper}.")}
        other = [name for name in named if name not in rest]
        if rest and all(_words(name.partition(".")[0]) & _OPTIMIZER for name in other):
            source = Source(path, {name[len(wrapper) + 1 :]: t for name, t in rest.items()})
            source.ignored += other
            return source
    return Source(path, named)
