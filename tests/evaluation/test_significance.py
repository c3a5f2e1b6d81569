"""Paired tests and corrections, against enumeration and scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.significance import (
    bonferroni,
    compare,
    paired_t_test,
    randomisation_test,
)


def test_the_randomisation_test_is_exact_for_few_queries():
    differences = [0.3, 0.1, -0.2, 0.4, 0.25, 0.0, 0.5]
    signs = np.array(list(product([1, -1], repeat=len(differences))))
    means = np.abs((signs * differences).mean(1))
    expected = (means >= abs(np.mean(differences)) - 1e-12).mean()
    assert randomisation_test(differences) == pytest.approx(expected)


def test_the_randomisation_test_is_reproducible_and_near_the_t_test():
    differences = np.random.default_rng(2).normal(0.1, 0.3, 60).tolist()
    first = randomisation_test(differences)
    assert first == randomisation_test(differences)
    assert first == pytest.approx(paired_t_test(differences), abs=0.01)
    assert randomisation_test([0.0] * 30) == 1.0


def test_a_baseline_that_was_not_measured_keeps_its_mark():
    runs = {name: RunMetrics({"m": {f"q{i}": i + gain for i in range(9)}}) for name, gain in
               (("base", 0.0), ("run", 0.5))}  # fmt: skip
    found = compare(runs, ["absent", "base"])
    assert found.marks("run", "m") == "b"
    assert "a from absent, b from base" in found.caption
    assert "over 1 comparison per metric" in found.caption
    with pytest.raises(InputError, match="nothing to compare with a baseline x or y"):
        compare(runs, ["x", "y"])


def test_bonferroni_multiplies_by_the_number_of_tests():
    assert bonferroni([0.01, 0.4, 0.03]) == pytest.approx([0.03, 1.0, 0.09])


def test_several_baselines_are_compared_once_each_and_corrected_together():
    rng = np.random.default_rng(3)
    runs = {
        name: RunMetrics(
            {"m": {f"q{i}": float(v) for i, v in enumerate(rng.normal(mean, 0.2, 30))}}
        )
        for name, mean in (("a", 0.2), ("b", 0.3), ("c", 0.7))
    }
    found = compare(runs, ["a", "b"], correction="bonferroni")
    assert {base: sorted(others) for base, others in found.p_values.items()} == {
        "a": ["b", "c"],
        "b": ["c"],
    }
    for base, other in (("a", "b"), ("a", "c"), ("b", "c")):
        values = [list(runs[name].per_query["m"].values()) for name in (other, base)]
        expected = min(1.0, 3 * stats.ttest_rel(*values).pvalue)
        assert found.p_values[base][other]["m"] == pytest.approx(expected)
    assert found.marks("c", "m") == "ab"
    assert found.marks("a", "m") == ""
    assert "a from a, b from b" in found.caption
    assert "Bonferroni correction over 3 comparisons per metric" in found.caption


def test_a_baseline_named_twice_counts_once():
    rng = np.random.default_rng(4)
    runs = {
        name: RunMetrics({"m": {f"q{i}": float(v) for i, v in enumerate(rng.normal(size=9))}})
        for name in ("base", "run")
    }
    assert compare(runs, ["base", "base"]) == compare(runs, ["base"])


def test_more_baselines_than_letters_are_refused():
    runs = {f"r{i}": RunMetrics({"m": {"q1": 0.0, "q2": float(i)}}) for i in range(28)}
    assert compare(runs, list(runs)[:26]).marks("r0", "m") == ""
    with pytest.raises(InputError, match="27 baselines; give at most 26"):
        compare(runs, list(runs)[:27])
