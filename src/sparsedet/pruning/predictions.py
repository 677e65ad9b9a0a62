"""What a network predicts: random variables whose parameters are its outputs, without labels.

Outcomes are drawn from them to learn how much the outputs change when a layer does (`sensitivity`),
and one network's are compared with another's (`divergence`). `reading` finds them in a network.

Glossary: N rows, of anchors, cells, RoIs or cells of a map; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Literal["binary", "categorical", "real"]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Random variables of one form.

    Attributes:
        form: "binary": each value is a logit. "categorical": the last axis has the logits of one
            variable. "real": each value is the mean of a normal variable of standard deviation 1.
        values: [N, ...].
        rows: N, over which a mean is taken.
        given: index of the earlier prediction on whose outcome these variables depend, or None.
        weigh: from that outcome, 0 or 1 or a probability, to weights of the variables.
        objects: most rows are background: the mean is taken over objects instead.
    """

    form: Form
    values: Tensor
    rows: int
    given: int | None = None
    weigh: Callable[[Tensor], Tensor] | None = None
    objects: bool = False


def drawn_loss(predictions: Sequence[Prediction], generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of outcomes that are drawn from the predictions themselves.

    The squares of its gradients are, on average, those of the mean over rows: each prediction is
    divided by the square root of its rows.
    """
    outcomes: list[Tensor] = []
    total = torch.zeros(())
    for prediction in predictions:
        values = prediction.values
        weights = _weights(prediction, outcomes)
        if prediction.form == "binary":
            drawn = torch.bernoulli(values.detach().sigmoid(), generator=generator)
            loss = F.binary_cross_entropy_with_logits(
                values,
                drawn,
                None if weights is None else weights.expand_as(values),
                reduction="sum",
            )
        elif prediction.form == "categorical":
            flat = values.reshape(-1, values.shape[-1])
            probabilities = flat.detach().softmax(dim=1)
            column = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            drawn = F.one_hot(column, values.shape[-1]).to(values.dtype).view(values.shape)
            if weights is None:
                loss = F.cross_entropy(flat, column, reduction="sum")
            else:
                losses = F.cross_entropy(flat, column, reduction="none").view(values.shape[:-1])
                loss = (losses * weights).sum()
        else:
            # Of several boxes in a row one alone has a weight: one draw serves all.
            noise = torch.randn(len(values), values.shape[-1], generator=generator)
            drawn = noise.view(len(values), *[1] * (values.dim() - 2), -1)
            loss = (values * (drawn if weights is None else drawn * weights)).sum()
        outcomes.append(drawn)
        total = total + loss / prediction.rows**0.5
    return total


def divergence(teacher: Sequence[Prediction], student: Sequence[Prediction]) -> Tensor:
    """Kullback-Leibler divergence of the student's predictions from the teacher's.

    The mean over rows, or over the objects that the teacher sees; 0 where the networks agree.

    Args:
        teacher, student: of the same graph, image and choices.
    """
    expected: list[Tensor] = []
    rows: list[float] = []
    total = torch.zeros(())
    for of_teacher, of_student in zip(teacher, student, strict=True):
        target, values = of_teacher.values.detach(), of_student.values
        weights = _weights(of_teacher, expected)
        if of_teacher.form == "binary":
            outcome = target.sigmoid()
            terms = outcome * (F.logsigmoid(target) - F.logsigmoid(values))
            terms = terms + (1 - outcome) * (F.logsigmoid(-target) - F.logsigmoid(-values))
        elif of_teacher.form == "categorical":
            log_target, log_values = target.log_softmax(dim=-1), values.log_softmax(dim=-1)
            outcome = log_target.exp()
            terms = (outcome * (log_target - log_values)).sum(dim=-1)
        else:
            outcome, terms = target, 0.5 * (target - values).square()
        expected.append(outcome)
        if of_teacher.given is not None:
            rows.append(rows[of_teacher.given])
        elif of_teacher.objects:
            rows.append(max(1.0, float(outcome.amax(dim=1).sum())))
        else:
            rows.append(float(of_teacher.rows))
        total = total + (terms if weights is None else terms * weights).sum() / rows[-1]
    return total


def _weights(prediction: Prediction, outcomes: Sequence[Tensor]) -> Tensor | None:
    if prediction.given is None or prediction.weigh is None:
        return None
    return prediction.weigh(outcomes[prediction.given])
