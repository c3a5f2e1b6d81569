"""Turn teacher ranks, teacher scores or judged relevance into targets: **higher is better**.

No other module knows this convention. The losses that may consume each kind of targets:

=============  ========================================  =========================
targets        meaning                                  provides
=============  ========================================  =========================
``rank``       list length + 1 - rank of the teacher     order
``score``      the teacher's score                       order, score
``relevance``  the assessors' judgement, 0 if none       order, score, gain
``judged``     the assessors' judgement, NaN if none     order, score, gain
=============  ========================================  =========================

``rank`` and ``score`` are NaN for a passage that the teacher did not rank. A `WeightedSum` with
targets of its own for each loss masks NaN; a plain loss must not get any, so it takes no ``judged``
targets.

A *transform* turns targets into numbers that every loss may consume: ``reciprocal_rank``
(1 / rank) or ``log2_rank`` (1 / log2(1 + rank), the discount of nDCG). Here, rank is the rank by
descending target within the training list.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rankdistillm.errors import InputError
from rankdistillm.losses import WeightedSum, consumed_by

GIVES = {
    "rank": {"order"},
    "score": {"order", "score"},
    "relevance": {"order", "score", "gain"},
    "judged": {"order", "score", "gain"},
}
NEED_QRELS = ("relevance", "judged")
# One kind of targets, or one for each loss of a mixture.
Kinds = str | tuple[str, ...]
TRANSFORMS = {
    "reciprocal_rank": lambda rank: 1 / rank,
    "log2_rank": lambda rank: 1 / np.log2(1 + rank),
}


def targets_for(loss: Callable[..., Tensor], default: str) -> Kinds:
    """The kind of targets that ``loss`` takes: ``default``, or the kinds that it names itself.

    A `WeightedSum` may name one kind for each of its losses.
    """
    return getattr(loss, "targets", None) or default


def kinds_of(targets: Kinds) -> tuple[str, ...]:
    """The kinds, also of a single one."""
    return (targets,) if isinstance(targets, str) else targets


def learns_from_judgements(targets: Kinds) -> bool:
    """Whether all the targets are judgements, none the teacher's."""
    return {*kinds_of(targets)} <= {*NEED_QRELS}


def make_targets(
    targets: Kinds,
    transform: str | None,
    indices: np.ndarray,
    scores: np.ndarray,
    judgements: np.ndarray,
) -> np.ndarray:
    """Targets of the chosen passages of one ranked list, float32.

    ``scores`` and ``judgements`` cover the whole ranked list, best rank first; NaN where the
    teacher did not rank the passage, or nobody judged it. Returns ``[len(indices)]`` for one kind,
    which is transformed, and ``[kinds, len(indices)]`` for several. Of these, only the teacher's
    targets are transformed.
    """
    if isinstance(targets, str):
        made = _targets_of(targets, indices, scores, judgements)
        return transform_targets(transform, made)
    rows = []
    for kind in targets:
        made = _targets_of(kind, indices, scores, judgements)
        rows.append(made if kind in NEED_QRELS else transform_targets(transform, made))
    return np.stack(rows)


def _targets_of(
    kind: str, indices: np.ndarray, scores: np.ndarray, judgements: np.ndarray
) -> np.ndarray:
    if kind == "rank":
        ranks = len(scores) - indices.astype(np.float32)
        return np.where(np.isnan(scores[indices]), np.float32("nan"), ranks)
    if kind == "relevance":
        judgements = np.nan_to_num(judgements)
    return (scores if kind == "score" else judgements)[indices].astype(np.float32)


def transform_targets(name: str | None, targets: np.ndarray) -> np.ndarray:
    """Apply a named transform; None returns the targets unchanged.

    Ties get their average rank; NaN stays.
    """
    if name is None:
        return targets
    higher = (targets[None, :] > targets[:, None]).sum(1)
    equal = (targets[None, :] == targets[:, None]).sum(1)
    transformed = TRANSFORMS[name](higher + (equal + 1) / 2)
    return np.where(np.isnan(targets), np.nan, transformed).astype(np.float32)


def check_pairing(loss: Callable[..., Tensor], default: str, transform: str | None) -> None:
    """Refuse a loss that cannot use its targets, ``default`` unless it names its own.

    Raises `InputError` for an unknown kind or transform, and if the loss consumes what the targets
    do not provide (an exponential gain of ranks, a teacher distribution over bare ranks).
    """
    if transform is not None and transform not in TRANSFORMS:
        raise InputError(f"data.train.transform={transform} is not one of {', '.join(TRANSFORMS)}")
    if isinstance(loss, WeightedSum) and loss.targets is not None:
        for i, (part, kind) in enumerate(zip(loss.losses, loss.targets, strict=True)):
            own = None if kind in NEED_QRELS else transform
            _check_pair(part, kind, own, option=f"loss.targets[{i}]", known=list(GIVES))
        return
    if default == "judged":
        raise InputError(
            "data.train.targets=judged leaves passages without a target, which only loss=mixed "
            "takes: set data.train.targets=relevance (unjudged passages count 0), or loss=mixed"
        )
    without_gaps = [kind for kind in GIVES if kind != "judged"]
    _check_pair(loss, default, transform, option="data.train.targets", known=without_gaps)


def _check_pair(
    loss: Callable[..., Tensor],
    kind: str,
    transform: str | None,
    *,
    option: str,
    known: Sequence[str],
) -> None:
    if kind not in known:
        raise InputError(f"{option}={kind} is not one of {', '.join(known)}")
    if transform is not None:
        _check_that_it_learns(loss, transform)
        return
    for consumed in sorted(consumed_by(loss) - GIVES[kind]):
        fitting = [name for name in known if consumed in GIVES[name]]
        raise InputError(
            f"this loss consumes a {consumed}, but {option}={kind} provides only "
            f"{' and '.join(sorted(GIVES[kind]))}: set {option}={' or '.join(fitting)}, "
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
