import numpy as np
import pytest

from rankdistillm.data.sampling import STRATEGIES, sample
from rankdistillm.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("length", "size"), [(100, 20), (7, 20), (20, 20), (3, 2)])
def test_indices_are_distinct_and_in_rank_order(strategy, length, size):
    positions = sample(strategy, size, np.zeros(length), rng())
    assert len(positions) == min(length, size)
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert positions.min() >= 0
    assert positions.max() < length


def test_top_takes_the_best_passages():
    assert sample("top", 3, np.zeros(10), rng()).tolist() == [0, 1, 2]


def test_top_and_random_holds_the_best_half():
    drawn = [sample("top_and_random", 10, np.zeros(100), rng(s)) for s in range(20)]
    assert all(positions[:5].tolist() == [0, 1, 2, 3, 4] for positions in drawn)
    assert len({tuple(positions) for positions in drawn}) > 1


def test_log_random_prefers_the_top_and_random_does_not():
    def mean(strategy):
        return np.mean([sample(strategy, 10, np.zeros(100), rng(s)).mean() for s in range(400)])

    assert mean("random") == pytest.approx(49.5, abs=1.5)
    assert mean("log_random") < 45


def test_single_relevant_takes_one_positive_and_negatives():
    relevance = np.zeros(30)
    relevance[[4, 9, 20]] = [1, 3, 2]
    positives = set()
    for seed in range(30):
        positions = sample("single_relevant", 8, relevance, rng(seed))
        assert len(positions) == 8
        assert np.count_nonzero(relevance[positions]) == 1
        positives |= set(positions[relevance[positions] > 0].tolist())
    assert positives == {4, 9, 20}


def test_single_relevant_without_a_positive_is_empty():
    assert len(sample("single_relevant", 8, np.zeros(30), rng())) == 0


def test_unknown_strategy_names_the_known_ones():
    with pytest.raises(InputError, match=r"sampling=best is not one of top, random.*single_rel"):
        sample("best", 8, np.zeros(30), rng())
