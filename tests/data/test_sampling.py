import numpy as np
import pytest

from rankdistillm.data.sampling import STRATEGIES, sample
from rankdistillm.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


def falling(length):
    """The scores of a teacher that tell ranks apart."""
    return np.arange(length, 0.0, -1)


def drawn(strategy, list_size, length, seed=0):
    return sample(strategy, list_size, falling(length), np.zeros(length), rng(seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("length", "size"), [(100, 20), (7, 20), (20, 20), (3, 2)])
def test_indices_are_distinct_and_in_rank_order(strategy, length, size):
    indices = drawn(strategy, size, length)
    assert len(indices) == min(length, size)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert indices.min() >= 0
    assert indices.max() < length


def test_top_takes_the_best_passages():
    assert drawn("top", 3, 10).tolist() == [0, 1, 2]


def test_top_and_random_holds_the_best_half():
    lists = [drawn("top_and_random", 10, 100, seed) for seed in range(20)]
    assert all(indices[:5].tolist() == [0, 1, 2, 3, 4] for indices in lists)
    assert len({tuple(indices) for indices in lists}) > 1


def test_log_random_prefers_the_top_and_random_does_not():
    def mean(strategy):
        return np.mean([drawn(strategy, 10, 100, seed).mean() for seed in range(400)])

    assert mean("random") == pytest.approx(49.5, abs=1.5)
    assert mean("log_random") < 45


def test_single_relevant_takes_one_positive_and_negatives():
    relevance = np.zeros(30)
    relevance[[4, 9, 20]] = [1, 3, 2]
    positives = set()
    for seed in range(30):
        indices = sample("single_relevant", 8, falling(30), relevance, rng(seed))
        assert len(indices) == 8
        assert np.count_nonzero(relevance[indices]) == 1
        positives |= set(indices[relevance[indices] > 0].tolist())
    assert positives == {4, 9, 20}


def test_single_relevant_without_a_positive_is_empty():
    assert len(drawn("single_relevant", 8, 30)) == 0


def test_unknown_strategy_names_the_known_ones():
    with pytest.raises(InputError, match=r"sampling=best is not one of top, random.*single_rel"):
        drawn("best", 8, 30)


@pytest.mark.parametrize(("length", "size"), [(100, 16), (33, 16), (20, 20), (17, 5)])
def test_stratified_takes_one_of_each_slice_of_the_ranks(length, size):
    lists = [drawn("stratified", size, length, seed) for seed in range(200)]
    for number, indices in enumerate(zip(*lists, strict=True)):
        first, stop = number * length // size, (number + 1) * length // size
        assert set(indices) == set(range(first, stop))


def test_stratified_scores_covers_the_range_of_the_scores():
    # 2 passages near 9, 3 near 5 and 95 near 0: four intervals, of which one is empty.
    scores = np.concatenate([[9.0, 8.9], [5.0, 5.1, 5.05], np.linspace(0.5, 0.0, 95)])
    scores[2:5] = np.sort(scores[2:5])[::-1]
    zeros = np.zeros(100)
    for seed in range(50):
        three = sample("stratified_scores", 4, scores, zeros, rng(seed))
        assert [(three < 2).sum(), ((three >= 2) & (three < 5)).sum()] in ([1, 1], [2, 1], [1, 2])
        many = sample("stratified_scores", 20, scores, zeros, rng(seed))
        assert set(range(5)) <= set(many.tolist())
    seen = {i for s in range(900) for i in sample("stratified_scores", 4, scores, zeros, rng(s))}
    assert seen == set(range(100))


def test_stratified_scores_of_equal_scores_draws_uniformly():
    lists = [
        sample("stratified_scores", 10, np.ones(100), np.zeros(100), rng(seed)).mean()
        for seed in range(400)
    ]
    assert np.mean(lists) == pytest.approx(49.5, abs=1.5)


def test_passages_that_the_teacher_did_not_score_are_an_interval_of_their_own():
    scores = np.array([4.0, 3.0, 2.0, 1.0, np.nan, np.nan])
    for seed in range(20):
        indices = sample("stratified_scores", 5, scores, np.zeros(6), rng(seed))
        assert (indices >= 4).sum() == 1
