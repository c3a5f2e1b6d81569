"""Teacher ranks and scores, judged relevance -> targets, **higher is better**.

The only place that knows a convention. Which losses may consume which targets:

=============  ======================================  =========================
targets        what they are                           give
=============  ======================================  =========================
``rank``       list length + 1 - rank of the teacher   order
``score``      the teacher's score                     order, score
``relevance``  the assessors' judgement, 0 if none     order, score, gain
=============  ======================================  =========================

A *transform* turns targets into something that every loss may consume: ``reciprocal_rank``
(1 / rank), ``log2_rank`` (1 / log2(1 + rank), the discount of nDCG), where rank is counted in the
training list by descending target.
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
    kind: str, positions: np.ndarray, scores: np.ndarray, relevance: np.ndarray
) -> np.ndarray:
    """Targets ``[len(positions)]`` of the chosen positions of one ranked list.

    ``scores`` and ``relevance`` are those of the whole ranked list, best rank first.
    """
    if kind == "rank":
        return len(scores) - positions.astype(np.float32)
    return (scores if kind == "score" else relevance)[positions].astype(np.float32)


def transform_targets(name: str | None, targets: np.ndarray) -> np.ndarray:
    """Apply a named transform (None: leave as they are). Equal targets get their average rank."""
    if name is None:
        return targets
    higher = (targets[None, :] > targets[:, None]).sum(1)
    equal = (targets[None, :] == targets[:, None]).sum(1)
    return TRANSFORMS[name](higher + (equal + 1) / 2).astype(np.float32)


def check_pairing(loss: Callable[..., Tensor], kind: str, transform: str | None) -> None:
    """Refuse a loss that cannot make sense of these targets.

    Raises `InputError` for an unknown kind or transform, and where the loss consumes what the
    targets do not give (an exponential gain of ranks, a teacher distribution over bare ranks).
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
            f"this loss consumes a {consumed}, but data.train.targets={kind} gives only "
            f"{' and '.join(sorted(GIVES[kind]))}: set data.train.targets={' or '.join(fitting)}, "
            f"or make numbers of the ranks by data.train.transform={' or '.join(TRANSFORMS)}"
        )


def _check_that_it_learns(loss: Callable[..., Tensor], transform: str) -> None:
    # A transform makes every target positive; to a loss that tells positive from not, nothing is
    # left to learn, and it is zero whatever the scores.
    ranks = transform_targets(transform, np.array([4.0, 3.0, 2.0, 1.0]))
    scores = torch.tensor([0.1, -0.2, 0.3, 0.0], requires_grad=True)
    value = loss(scores, torch.from_numpy(ranks), mask=torch.ones(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, scores)
    if not gradient.any():
        raise InputError(
            f"this loss tells relevant passages from others, and data.train.transform={transform} "
            "makes all of a list relevant: leave the transform out and set "
            "data.train.targets=relevance"
        )
