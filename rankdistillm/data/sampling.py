"""Choose the passages of a ranked list that form one training list.

Each strategy takes the teacher's scores of the list, best rank first, and returns at most
``list_size`` distinct indices into it (0 = rank 1), in rank order. The names are those of
Rank-DistiLLM, except the stratified ones.
"""

from collections.abc import Callable

import numpy as np

from rankdistillm.errors import InputError


def top(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """The best ``list_size``."""
    return np.arange(min(len(scores), list_size))


def random(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly, without replacement."""
    return np.sort(rng.permutation(len(scores))[:list_size])


def log_random(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """Without replacement, with a probability that falls as 1 / log2(1 + rank)."""
    weights = 1 / np.log2(np.arange(len(scores)) + 2)
    size = min(len(scores), list_size)
    return np.sort(rng.choice(len(scores), size, replace=False, p=weights / weights.sum()))


def top_and_random(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """The best ``list_size // 2``, and the rest uniformly from the passages below them."""
    best = min(len(scores), list_size // 2)
    rest = rng.permutation(np.arange(best, len(scores)))[: list_size - best]
    return np.concatenate([np.arange(best), np.sort(rest)])


def stratified(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """One passage from each of ``list_size`` equal slices of the ranks."""
    size = min(len(scores), list_size)
    bounds = np.arange(size + 1) * len(scores) // size
    return rng.integers(bounds[:-1], bounds[1:])


def stratified_scores(scores: np.ndarray, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """Round-robin over ``list_size`` equal intervals of the scores until the list is full.

    So the list covers the range of the teacher's scores evenly, however many passages share one.
    Passages that the teacher did not score form an interval of their own.
    """
    size = min(len(scores), list_size)
    bounds = np.linspace(np.nanmin(scores), np.nanmax(scores), size + 1)[1:]
    shuffled = rng.permutation(len(scores))
    interval = np.digitize(scores[shuffled], bounds, right=True)  # NaN comes last
    # The turn in which a passage is drawn: how many of its interval stand before it.
    grouped = np.argsort(interval, kind="stable")
    sizes = np.unique(interval, return_counts=True)[1]
    turn = np.empty(len(scores), dtype=np.int64)
    turn[grouped] = np.arange(len(scores)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:size]])


STRATIFIED_SCORES = "stratified_scores"
STRATEGIES: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "top": top,
    "random": random,
    "log_random": log_random,
    "top_and_random": top_and_random,
    "stratified": stratified,
    STRATIFIED_SCORES: stratified_scores,
}
SINGLE_RELEVANT = "single_relevant"


def sample(
    strategy: str,
    list_size: int,
    scores: np.ndarray,
    relevance: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The indices of one training list.

    ``scores`` ``[length of the ranked list]`` are the teacher's, best first, NaN for a passage that
    it did not rank; ``relevance``, of the same shape, is the judged one, 0 if unjudged. Only
    ``single_relevant`` uses it: one random relevant passage, and hard negatives drawn uniformly
    from the others. It returns no indices for a list without a relevant passage. Raises
    `InputError` for an unknown strategy.
    """
    if strategy != SINGLE_RELEVANT:
        if strategy not in STRATEGIES:
            choices = ", ".join([*STRATEGIES, SINGLE_RELEVANT])
            raise InputError(f"data.train.sampling={strategy} is not one of {choices}")
        return STRATEGIES[strategy](scores, list_size, rng)
    relevant = np.flatnonzero(relevance > 0)
    if not len(relevant):
        return relevant
    positive = rng.choice(relevant)
    negatives = rng.permutation(np.flatnonzero(relevance <= 0))[: list_size - 1]
    return np.sort(np.append(negatives, positive))
