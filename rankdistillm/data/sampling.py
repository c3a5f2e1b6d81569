"""Choose the passages of a ranked list that form one training list.

Each strategy takes the length of the list and returns at most ``list_size`` distinct indices into
it (0 = rank 1), in rank order. The names are those of Rank-DistiLLM.
"""

from collections.abc import Callable

import numpy as np

from rankdistillm.errors import InputError


def top(length: int, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """The best ``list_size``."""
    return np.arange(min(length, list_size))


def random(length: int, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly, without replacement."""
    return np.sort(rng.permutation(length)[:list_size])


def log_random(length: int, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """Without replacement, with a probability that falls as 1 / log2(1 + rank)."""
    weights = 1 / np.log2(np.arange(length) + 2)
    size = min(length, list_size)
    return np.sort(rng.choice(length, size, replace=False, p=weights / weights.sum()))


def top_and_random(length: int, list_size: int, rng: np.random.Generator) -> np.ndarray:
    """The best ``list_size // 2``, and the rest uniformly from the passages below them."""
    best = min(length, list_size // 2)
    rest = rng.permutation(np.arange(best, length))[: list_size - best]
    return np.concatenate([np.arange(best), np.sort(rest)])


STRATEGIES: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "top": top,
    "random": random,
    "log_random": log_random,
    "top_and_random": top_and_random,
}
SINGLE_RELEVANT = "single_relevant"


def sample(
    strategy: str,
    list_size: int,
    relevance: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The indices of one training list.

    ``relevance`` ``[length of the ranked list]`` is the judged relevance, 0 if unjudged. Only
    ``single_relevant`` uses it: one random relevant passage, and hard negatives drawn uniformly
    from the others. It returns no indices for a list without a relevant passage. Raises
    `InputError` for an unknown strategy.
    """
    length = len(relevance)
    if strategy != SINGLE_RELEVANT:
        if strategy not in STRATEGIES:
            choices = ", ".join([*STRATEGIES, SINGLE_RELEVANT])
            raise InputError(f"data.train.sampling={strategy} is not one of {choices}")
        return STRATEGIES[strategy](length, list_size, rng)
    relevant = np.flatnonzero(relevance > 0)
    if not len(relevant):
        return relevant
    positive = rng.choice(relevant)
    negatives = rng.permutation(np.flatnonzero(relevance <= 0))[: list_size - 1]
    return np.sort(np.append(negatives, positive))
