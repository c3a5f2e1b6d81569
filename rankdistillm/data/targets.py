"""Turn teacher ranks, teacher scores or judged relevance into targets: **higher is better**.

No other module knows this convention. The losses that may consume each kind of targets:

=============  ======================================  =========================
targets        meaning                                provides
=============  ======================================  =========================
``rank``       list length + 1 - rank of the teacher   order
``score``      the teacher's score                     order, score
``relevance``  the assessors' judgement, 0 if none     order, score, gain
=============  ======================================  =========================

A *transform* turns targets into numbers that every loss may consume: ``reciprocal_rank``
(1 / rank) or ``log2_rank`` (1 / log2(1 + rank), the discount of nDCG). Here, rank is the rank by
descending target within the training list.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rankdistillm.errors import InputError
from rankdistillm.losses import consumed_by

GIVES = {
    "rank": {"order"},
    "score": {"order", "score"},
    "relevance": {"order", "score", "gain"},
}
TRANSFORMS = {
    "reciprocal_rank": lambda rank: 1 / rank,
    "log2_rank": lambda rank: 1 / np.log2(1 + rank),
}


def make_targets(
    kind: str, indices: np.ndarray, scores: np.ndarray, relevance: np.ndarray
) -> np.ndarray:
    """Targets, float32 ``[len(indices)]``, of the chosen passages of one ranked list.

    ``scores`` and ``relevance`` cover the whole ranked list, best rank first.
    """
    if kind == "rank":
        return len(scores) - indices.astype(np.float32)
    return (scores if kind == "score" else relevance)[indices].astype(np.float32)


def transform_targets(name: str | None, targets: np.ndarray) -> np.ndarray:
    """Apply a named transform; None returns the targets unchanged. Ties get their average rank."""
    if name is None:
        return targets
    higher = (targets[None, :] > targets[:, None]).sum(1)
    equal = (targets[None, :] == targets[:, None]).sum(1)
    return TRANSFORMS[name](higher + (equal + 1) / 2).astype(np.float32)


def check_pairing(loss: Callable[..., Tensor], kind: str, transform: str | None) -> None:
    """Refuse a loss that cannot use these targets.

    Raises `InputError` for an unknown kind or transform, and if the loss consumes what the targets
    do not provide (an exponential gain of ranks, a teacher distribution over bare ranks).
    """
    if kind not in GIVES:
        raise InputError(f"data.train.targets={kind} is not one of {', '.join(GIVES)}")
    if transform is not None:
        if transform not in TRANSFORMS:
            known = ", ".join(TRANSFORMS)
            raise InputError(f"data.train.transform={transform} is not one of {known}")
        _check_that_it_learns(loss, transform)
        return
    for consumed in sorted(consumed_by(loss) - GIVES[kind]):
        fitting = [name for name, given in GIVES.items() if consumed in given]
        raise InputError(
            f"this loss consumes a {consumed}, but data.train.targets={kind} provides only "
            f"{' and '.join(sorted(GIVES[kind]))}: set data.train.targets={' or '.join(fitting)}, "
            f"or turn ranks into numbers with data.train.transform={' or '.join(TRANSFORMS)}"
        )


def _check_that_it_learns(loss: Callable[..., Tensor], transform: str) -> None:
    # A transform makes every target positive. A loss that only separates positive targets from
    # others then has nothing to learn: it is zero for all scores.
    ranks = transform_targets(transform, np.array([4.0, 3.0, 2.0, 1.0]))
    scores = torch.tensor([0.1, -0.2, 0.3, 0.0], requires_grad=True)
    value = loss(scores, torch.from_numpy(ranks), mask=torch.ones(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, scores)
    if not gradient.any():
        raise InputError(
            f"this loss separates relevant passages from others, and "
            f"data.train.transform={transform} makes every passage relevant: drop the transform "
            "and set data.train.targets=relevance"
        )
