"""Paired tests of runs against baselines, query by query, corrected for the number of tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics

RESAMPLES = 20_000
MARKS = "abcdefghijklmnopqrstuvwxyz"  # of several baselines; a single one has an asterisk


def paired_t_test(differences: Sequence[float]) -> float:
    """The p-value of the two-sided paired t-test; 1 where no query differs."""
    from scipy import stats  # imported late: it takes a noticeable part of a second

    if np.ptp(differences) < 1e-12:  # the same difference everywhere: t is undefined
        return 1.0 if abs(differences[0]) < 1e-12 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def randomisation_test(differences: Sequence[float]) -> float:
    """The p-value of the two-sided paired randomisation test (Smucker et al., CIKM 2007).

    Draws the signs of the differences at random, 20,000 times with seed 0; if there are fewer
    sign patterns than that, it takes all of them.
    """
    from scipy import stats

    found = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, step by step from the smallest (Holm, 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, i in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[i]))
        corrected[i] = largest
    return corrected


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: multiply each by it (Dunn, 1961)."""
    return [min(1.0, len(p_values) * p) for p in p_values]


TESTS: dict[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "t": ("two-sided paired t-test", paired_t_test),
    "randomisation": ("two-sided paired randomisation test", randomisation_test),
}
CORRECTIONS: dict[str, tuple[str, Callable[[Sequence[float]], list[float]]]] = {
    "holm": ("Holm", holm),
    "bonferroni": ("Bonferroni", bonferroni),
}


@dataclass(frozen=True)
class Significance:
    """Corrected p-values of the comparisons: baseline -> run -> metric -> p.

    A baseline that was not measured is a key too, so that all baselines keep their marks.
    """

    test: str
    correction: str
    alpha: float
    p_values: Mapping[str, Mapping[str, Mapping[str, float]]]

    def marks(self, run: str, metric: str) -> str:
        """The marks of the baselines that the run differs from significantly."""
        return "".join(
            mark
            for mark, compared in zip(self._marks, self.p_values.values(), strict=True)
            if compared.get(run, {}).get(metric, 1.0) < self.alpha
        )

    @property
    def caption(self) -> str:
        """Explains the marks: baselines, test, correction, alpha."""
        meant = ", ".join(f"{m} from {b}" for m, b in zip(self._marks, self.p_values, strict=True))
        return f"differs significantly: {meant} ({self.method}, alpha = {self.alpha:g})"

    @property
    def method(self) -> str:
        """The test and its correction, in words."""
        number = sum(len(compared) for compared in self.p_values.values())
        return (
            f"{TESTS[self.test][0]}, {CORRECTIONS[self.correction][0]} correction over {number} "
            f"comparison{'s' if number > 1 else ''} per metric"
        )

    @property
    def _marks(self) -> str:
        return "*" if len(self.p_values) == 1 else MARKS[: len(self.p_values)]


def check_settings(test: str, correction: str, alpha: float) -> None:
    """Raises `InputError` for settings that `compare` does not support."""
    for kind, given, known in (("test", test, TESTS), ("correction", correction, CORRECTIONS)):
        if given not in known:
            raise InputError(f"{kind}={given} is not one of {', '.join(known)}")
    if not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise InputError(f"alpha={alpha} is not a number between 0 and 1")


def compare(
    runs: Mapping[str, RunMetrics],
    baselines: Sequence[str],
    *,
    test: str = "t",
    correction: str = "holm",
    alpha: float = 0.05,
) -> Significance:
    """Test every run against each baseline, paired by query, for each metric.

    All runs must have been measured on the same judgements. Two baselines are compared with each
    other once. A baseline that is not among ``runs`` adds no comparison, nor does naming one twice.

    Raises `InputError` if nothing can be tested (no run beside a baseline, or a single query), and
    for more baselines than there are `MARKS`.
    """
    check_settings(test, correction, alpha)
    baselines = list(dict.fromkeys(baselines))
    if len(baselines) > len(MARKS):
        raise InputError(f"{len(baselines)} baselines; give at most {len(MARKS)}")
    pairs = [
        (baseline, name)
        for i, baseline in enumerate(baselines)
        for name in runs
        if baseline in runs and name not in baselines[: i + 1]
    ]
    if not pairs:
        among = "the baseline" if len(baselines) == 1 else "a baseline"
        raise InputError(
            f"nothing to compare with {among} {' or '.join(baselines)}; add another run"
        )
    first = runs[pairs[0][0]]
    if first.num_queries < 2:
        raise InputError("a paired test needs at least two judged queries; leave out the baseline")
    p_values: dict[str, dict[str, dict[str, float]]] = {baseline: {} for baseline in baselines}
    for metric in first.per_query:
        raw = []
        for baseline, name in pairs:
            base, other = runs[baseline].per_query[metric], runs[name].per_query[metric]
            raw.append(TESTS[test][1]([other[query_id] - base[query_id] for query_id in base]))
        corrected = CORRECTIONS[correction][1](raw)
        for (baseline, name), p in zip(pairs, corrected, strict=True):
            p_values[baseline].setdefault(name, {})[metric] = p
    return Significance(test, correction, alpha, p_values)
