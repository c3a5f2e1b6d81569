"""The table and the plot of the study: effects against stage 1, tested over all 150 queries.

    python -m experiments.antique.report DATA WORK

Reads the pooled runs that `experiments.antique.run` has written, however many there are. An arm's
value for a query is the mean over its seeds. Effects are paired by query against stage 1 of the
same seeds: mean difference, 95% confidence interval, two-sided paired t-test, Holm's correction
over all arms.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from experiments.antique.run import ALL, ARMS, METRIC, prepare
from rankdistillm.data.qrels import Qrels, read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.evaluation.metrics import RunMetrics, evaluate_run
from rankdistillm.evaluation.significance import holm, paired_t_test

BASELINE = "stage1"
# Arm -> label of the ranking that its RankNet students learn from.
PLOTTED = {
    "control-ranknet": "BM25's order",
    "llama-ranknet": "Llama 3.2",
    "gpt4o-ranknet": "GPT-4o",
    "grades-ranknet": "human grades",
}


def mean_over_seeds(measured: Sequence[RunMetrics]) -> dict[str, float]:
    """Each query's mean over the seeds."""
    return {
        q: fmean(m.per_query[METRIC][q] for m in measured) for q in measured[0].per_query[METRIC]
    }


def measure(work: Path, qrels: Qrels) -> dict[str, dict[int, RunMetrics]]:
    """The metrics of each pooled run: arm -> seed -> metrics."""
    found: dict[str, dict[int, RunMetrics]] = {}
    for arm in ALL:
        for file in work.glob(f"seed*/antique/{arm}/pooled.run"):
            seed = int(file.relative_to(work).parts[0].removeprefix("seed"))
            found.setdefault(arm, {})[seed] = evaluate_run(Run.read(file), qrels, [METRIC])
        found[arm] = dict(sorted(found.get(arm, {}).items()))
    return {arm: by_seed for arm, by_seed in found.items() if by_seed}


def differences(
    arm: Mapping[int, RunMetrics], baseline: Mapping[int, RunMetrics]
) -> list[float] | None:
    """Per query, the arm minus the baseline over the seeds of both; None without such a seed."""
    seeds = [seed for seed in arm if seed in baseline]
    if not seeds:
        return None
    ours = mean_over_seeds([arm[seed] for seed in seeds])
    theirs = mean_over_seeds([baseline[seed] for seed in seeds])
    return [ours[q] - theirs[q] for q in ours]


def agreement(students: Sequence[Run], teacher: Run) -> float:
    """Mean Kendall's tau between the students and the teacher on queries that they never saw."""
    from scipy.stats import kendalltau

    taus = []
    for student in students:
        for query_id, ranked in student.items():
            rank_of = {doc_id: i for i, doc_id in enumerate(teacher[query_id].doc_ids)}
            ranks = [rank_of[doc_id] for doc_id in ranked.doc_ids]
            taus.append(kendalltau(range(len(ranks)), ranks).statistic)
    return float(np.nanmean(taus))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% confidence interval of the mean."""
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return fmean(values) - half, fmean(values) + half


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    qrels = read_qrels(prepare(data, work) / "qrels.txt")
    names = ("bm25-pool", *dict.fromkeys(name for name, _, _ in ARMS.values()))
    rankings = {name: Run.read(data / f"antique/runs/{name}.run") for name in dict.fromkeys(names)}
    teachers = {
        name: evaluate_run(run, qrels, [METRIC]).means[METRIC] for name, run in rankings.items()
    }
    for name, value in teachers.items():
        print(f"{name}: {value:.4f}")
    measured = measure(work, qrels)
    baseline = measured.get(BASELINE, {})
    effects = {
        arm: found
        for arm, by_seed in measured.items()
        if arm != BASELINE and (found := differences(by_seed, baseline)) is not None
    }
    p_values = dict(
        zip(effects, holm([paired_t_test(found) for found in effects.values()]), strict=True)
    )
    print(f"\n| arm | {METRIC} | sd | by seed | minus stage 1 (95% interval) | p (Holm) | tau |")
    print("|---|---|---|---|---|---|---|")
    for arm, by_seed in measured.items():
        means = [metrics.means[METRIC] for metrics in by_seed.values()]
        spread = f"{stdev(means):.4f}" if len(means) > 1 else ""
        seeds = " ".join(f"{value:.4f}" for value in means)
        effect = p = tau = ""
        if arm in effects:
            low, high = interval(effects[arm])
            effect = f"{fmean(effects[arm]):+.4f} ({low:+.4f} to {high:+.4f})"
            p = f"{p_values[arm]:.2g}"
        if arm in ARMS and not arm.startswith("grades"):
            files = [work / f"seed{seed}/antique/{arm}/pooled.run" for seed in by_seed]
            tau = f"{agreement([Run.read(f) for f in files], rankings[ARMS[arm][0]]):.3f}"
        print(f"| {arm} | {fmean(means):.4f} | {spread} | {seeds} | {effect} | {p} | {tau} |")
    plot(
        {arm: [m.means[METRIC] for m in by_seed.values()] for arm, by_seed in measured.items()},
        teachers,
        work / "antique_teachers.png",
    )


def plot(by_seed: dict[str, list[float]], teachers: dict[str, float], path: Path) -> None:
    """The quality of RankNet students against that of the rankings they learnt from."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for arm, label in PLOTTED.items():
        if arm not in by_seed:
            continue
        x = 1.0 if arm == "grades-ranknet" else teachers[ARMS[arm][0]]
        points = axes.scatter([x] * len(by_seed[arm]), by_seed[arm], s=18)
        axes.annotate(
            label, (x, max(by_seed[arm])), xytext=(0, 6), textcoords="offset points",
            ha="center", color=points.get_facecolor()[0],
        )  # fmt: skip
    if BASELINE in by_seed:
        baseline = fmean(by_seed[BASELINE])
        axes.axhline(baseline, color="0.5", linestyle="--", linewidth=1, label="stage 1 alone")
        axes.legend(loc="lower right")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("nDCG@10 of the ranking that is distilled")
    axes.set_ylabel("nDCG@10 of the student, unseen queries")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
