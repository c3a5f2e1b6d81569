"""Trainings side by side: names of rows, means, what is separated, tests, notes."""

import os

import numpy as np
import pytest
from scipy import stats

from rankdistillm.errors import InputError
from rankdistillm.evaluation.sweeps import arrange, check_baselines, sweep_table
from rankdistillm.evaluation.tables import as_text
from rankdistillm.evaluation.trainings import find_trainings
from tests.helpers import write_training

LOSS = "loss._target_"
KL = {LOSS: "rankdistillm.losses.kl_loss"}
CHOICES = {
    "loss": {
        "ranknet": {LOSS: "rankdistillm.losses.ranknet_loss", "loss.temperature": 1.0},
        "kl": {LOSS: "rankdistillm.losses.kl_loss", "loss.temperature": 1.0},
        "sharp_kl": {LOSS: "rankdistillm.losses.kl_loss", "loss.temperature": 0.1},
    },
    "model": {"minilm": {"model.path": "sentence-transformers/all-MiniLM-L6-v2"}},
    "data": {"local": {"data.train.run": None}},
}


@pytest.fixture
def sweep(tmp_path):
    """``sweep(options, …)`` writes a training for each and arranges them all."""

    def make(*trainings, **settings):
        for i, options in enumerate(trainings):
            known = {k: options.pop(k) for k in list(options) if k in WRITTEN}
            write_training(tmp_path / f"t{i}", options, **known)
        found, problems = find_trainings([tmp_path])
        assert not problems
        return arrange(found, **{"choices": CHOICES} | settings)

    return make


WRITTEN = (
    "values", "best", "step", "measured_on", "finished", "per_query", "first_stage",
)  # fmt: skip


def test_rows_are_named_by_what_varies_and_a_group_by_its_choice(sweep):
    rows = sweep({}, KL | {"seed": 2}, KL | {"optim.learning_rate": 1e-5}).rows
    assert list(rows) == [
        "loss=kl, optim.learning_rate=1e-05", "loss=kl, optim.learning_rate=0.0001",
        "loss=ranknet, optim.learning_rate=0.0001",
    ]  # fmt: skip


def test_numbers_are_sorted_by_value_and_shortened_where_they_stay_distinct(sweep):
    found = sweep(*({"optim.learning_rate": rate} for rate in (0.0012345678, 2e-5, 1e-4)))
    assert [row.partition("=")[2] for row in found.rows] == ["2e-05", "0.0001", "0.001235"]
    found = sweep(*({"optim.learning_rate": rate} for rate in (0.0012345678, 0.0012345679, 0.1)))
    assert [row.partition("=")[2] for row in found.rows] == ["0.0012345678", "0.0012345679", "0.1"]


def test_an_option_inside_a_group_is_named_where_the_choice_does_not_tell(sweep):
    rows = sweep({"loss.temperature": 0.5}, {}, KL, KL | {"loss.temperature": 0.1}).rows
    assert list(rows) == [
        "loss=kl, loss.temperature=1", "loss=ranknet, loss.temperature=0.5",
        "loss=ranknet, loss.temperature=1", "loss=sharp_kl, loss.temperature=0.1",
    ]  # fmt: skip


def test_a_choice_that_is_not_known_is_named_by_its_option(sweep):
    assert set(sweep({}, {LOSS: "own.loss"}).rows) == {"loss=ranknet", "loss._target_=own.loss"}
    paths = [{"model.path": f"stage1/{name}"} for name in "ab"]
    assert set(sweep(*paths).rows) == {"model.path=stage1/a", "model.path=stage1/b"}


def test_copies_of_an_option_and_bookkeeping_name_nothing(sweep):
    moved = {f"data{part}.docs": "other.tsv" for part in ("", ".validation", ".test")}
    found = sweep({"device": "cuda:1"}, moved | {"wandb": {"mode": "offline"}})
    assert set(found.rows) == {"data.docs=docs.tsv", "data.docs=other.tsv"}
    assert not found.notes


def test_trainings_of_one_setting_are_named_by_their_loss(sweep):
    assert list(sweep({}, {"seed": 2}).rows) == ["loss=ranknet"]


def test_an_option_that_varies_along_is_noted(sweep):
    found = sweep({}, KL | {"data.train.transform": "log2_rank"})
    assert list(found.rows) == ["loss=kl", "loss=ranknet"]
    assert found.notes == [
        "varies along: data.train.transform: null for loss=ranknet; log2_rank for loss=kl"
    ]


def test_a_note_names_few_of_many_rows(sweep):
    rates = [{"optim.learning_rate": i / 10, "optim.warmup": i // 6} for i in range(1, 8)]
    (note,) = sweep(*rates).notes
    assert note == (
        "varies along: optim.warmup: 0 for optim.learning_rate=0.1 and optim.learning_rate=0.2 and "
        "optim.learning_rate=0.3 and 2 others; 1 for optim.learning_rate=0.6 and "
        "optim.learning_rate=0.7"
    )


def test_epochs_count_for_nothing_where_the_steps_are_given(sweep):
    assert list(sweep({"epochs": 1}, {"epochs": 2}).rows) == ["epochs=1", "epochs=2"]
    steps = {"max_steps": 9}
    found = sweep({"epochs": 1} | steps, {"epochs": 2, "seed": 2} | steps)
    assert list(found.rows) == ["loss=ranknet"]


def test_other_options_than_the_seed_may_be_averaged_over(sweep):
    trainings = [{"seed": i, "model.path": f"stage1/{i}"} for i in (1, 2)]
    assert len(sweep(*(t.copy() for t in trainings)).rows) == 2
    found = sweep(*(t.copy() for t in trainings), over=["seed", "model.path"])
    assert list(found.rows) == ["loss=ranknet"]
    assert found.repetitions == "trainings"
    assert list(sweep({}, KL | {"seed": 2}, over=["seed", "loss"]).rows) == ["all"]
    assert list(sweep(*trainings, over=[]).rows) == ["model.path=stage1/1", "model.path=stage1/2"]


def test_cells_are_means_with_the_deviation_over_seeds(sweep):
    values = [(0.25, 0.5), (0.5, 0.75), (0.125, 0.25)]
    found = sweep(*({"seed": i, "values": v} for i, v in enumerate(values)), KL | {"best": 0.9})
    table = sweep_table(found)
    means = [np.mean(v) for v in values]
    assert table.columns == ["test ndcg@10", "validation ndcg@10", "seeds"]
    assert table.values["loss=ranknet", "test ndcg@10"] == pytest.approx(np.mean(means))
    assert table.spreads["loss=ranknet", "test ndcg@10"] == pytest.approx(np.std(means, ddof=1))
    assert ("loss=kl", "test ndcg@10") not in table.spreads
    assert table.values["loss=kl", "validation ndcg@10"] == 0.9
    assert [table.values[row, "seeds"] for row in ("loss=ranknet", "loss=kl")] == [3, 1]
    assert table.emphasis("loss=ranknet", "seeds") == ""
    assert "best test ndcg@10: loss=kl" in table.notes
    text = as_text(table)
    assert f"{np.mean(means):.4f}  ± {np.std(means, ddof=1):.4f} " in text
    assert "test ndcg@10: 2 judged queries, bm25 0.4000, student before 0.1000" in text
    assert "steps: 67" in text


def test_different_steps_have_a_column(sweep):
    table = sweep_table(sweep({"step": 10}, {"step": 20, "seed": 2}, KL | {"step": 30}))
    assert table.columns[-1] == "steps"
    assert [table.values[row, "steps"] for row in table.rows] == [30, 15]


@pytest.mark.parametrize(
    "other",
    [
        {"values": (0.5, 0.75, 1.0)},
        {"first_stage": 0.41},
        {"data.test.run": "other.run"},
        {"data.test.depth": 50},
    ],
)
def test_trainings_measured_on_other_queries_are_not_averaged(other, sweep):
    table = sweep_table(sweep({}, {"seed": 2} | other))
    assert table.columns[:2] == ["test ndcg@10 (1)", "test ndcg@10 (2)"]
    assert table.values["loss=ranknet", "test ndcg@10 (1)"] == 0.625
    assert ("loss=ranknet", "test ndcg@10 (1)") not in table.spreads
    assert any("2 different sets of queries" in note for note in table.notes)
    assert "test ndcg@10 (2): loss=ranknet: over 1 of 2 seeds" in table.notes


def test_metrics_have_columns_of_their_own_and_one_may_be_chosen(sweep, tmp_path):
    mrr = {"validation.metric": "mrr@10", "values": (1.0, 0.5)}
    table = sweep_table(sweep({}, mrr))
    assert table.columns[:2] == ["test mrr@10", "test ndcg@10"]
    trainings, _ = find_trainings([tmp_path])
    assert list(arrange(trainings, metric="mrr@10").columns) == [
        "test mrr@10", "validation mrr@10",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^metric=map is not one that was measured: mrr@10, ndcg"):
        arrange(trainings, metric="map")


def test_a_closing_table_of_the_validation_queries_is_the_validation(sweep):
    table = sweep_table(sweep({"measured_on": "validation", "data.test.run": None}))
    assert table.columns == ["validation ndcg@10", "seeds"]
    assert table.values["loss=ranknet", "validation ndcg@10"] == 0.625


def test_queries_that_each_seed_draws_are_averaged_and_noted(sweep):
    held_out = {
        "data.validation.run": None, "validation.from_train": 0.1, "measured_on": "validation",
    }  # fmt: skip
    table = sweep_table(sweep(held_out.copy(), held_out | {"seed": 2, "first_stage": 0.3}))
    assert table.values["loss=ranknet", "seeds"] == 2
    assert table.columns == ["validation ndcg@10", "seeds"]
    assert any("training queries that the seed draws" in note for note in table.notes)


def test_of_two_equal_trainings_the_newer_counts(sweep, tmp_path):
    sweep({"values": (0.1, 0.1)}, {"values": (0.3, 0.3)})
    os.utime(tmp_path / "t1/summary.json", (1e9, 1e9))
    found = arrange(find_trainings([tmp_path])[0])
    (column,) = [c for c in found.columns.values() if c.data == "test"]
    assert [[value for _, value in row] for row in column.values.values()] == [[0.1]]
    old, new = tmp_path / "t1", tmp_path / "t0"
    assert f"left out: {old}: {new} has the same options and is newer" in found.notes


def test_a_training_that_was_repeated_for_another_test_set_counts_too(sweep):
    table = sweep_table(sweep({}, {"data.test.run": "other.run", "first_stage": 0.2}))
    assert table.values["loss=ranknet", "seeds"] == 2
    assert not any("left out" in note for note in table.notes)


# ---- significance


def per_query(seed, gain, number=30):
    """The values of the same queries in trainings of two seeds."""
    rng = np.random.default_rng(7)
    base = rng.uniform(0.2, 0.6, number)
    return tuple((base + gain + np.random.default_rng(seed).normal(0, 0.05, number)).tolist())


def test_rows_are_tested_by_query_over_the_means_of_their_seeds(sweep):
    values = {
        (loss, seed): per_query(10 * i + seed, gain)
        for i, (loss, gain) in enumerate((("ranknet", 0.0), ("kl", 0.1), ("mse", 0.001)))
        for seed in (1, 2)
    }
    found = sweep(
        *(
            {LOSS: f"rankdistillm.losses.{loss}_loss", "seed": seed, "values": v}
            for (loss, seed), v in values.items()
        )
    )
    mse = "loss._target_=rankdistillm.losses.mse_loss"
    table = sweep_table(found, ["loss=ranknet"])
    assert table.marks == {
        ("loss=ranknet", "test ndcg@10"): "", ("loss=kl", "test ndcg@10"): "*",
        (mse, "test ndcg@10"): "",
    }  # fmt: skip
    assert any("* from loss=ranknet (two-sided paired t-test, Holm" in n for n in table.notes)
    assert any("over 2 comparisons" in note for note in table.notes)
    means = {
        loss: np.mean([values[loss, 1], values[loss, 2]], axis=0) for loss in ("ranknet", "mse")
    }
    p = stats.ttest_rel(means["mse"], means["ranknet"]).pvalue
    for alpha, mark in ((p * 0.99, ""), (p * 1.01, "*")):  # Holm leaves the largest p as it is
        assert sweep_table(found, ["loss=ranknet"], alpha=alpha).marks[mse, "test ndcg@10"] == mark


def test_a_row_without_values_of_each_query_is_named_and_the_rest_is_tested(sweep, tmp_path):
    mse = {LOSS: "rankdistillm.losses.mse_loss"}
    found = sweep(
        {"values": per_query(1, 0)},
        KL | {"values": per_query(2, 0.1)},
        mse | {"values": per_query(3, 0.1), "per_query": False},
    )
    table = sweep_table(found, ["loss=ranknet"])
    assert table.marks["loss=kl", "test ndcg@10"] == "*"
    row = "loss._target_=rankdistillm.losses.mse_loss"
    file = tmp_path / "t2/per_query.csv"
    assert f"test ndcg@10: not tested: {row}: there is no {file}" in table.notes
    (tmp_path / "t1/per_query.csv").write_text("collection,query_id,metric,run,value\n")
    table = sweep_table(found, ["loss=ranknet"])
    assert any(f"{tmp_path}/t1/per_query.csv: not the queries of" in n for n in table.notes)
    assert not any(table.marks.values())


def test_a_baseline_is_a_row_in_any_spelling_of_spaces(sweep):
    found = sweep({}, KL | {"optim.learning_rate": 1e-5}, KL)
    row = "loss=kl, optim.learning_rate=1e-05"
    assert check_baselines(found, [row.replace(" ", "")]) == [row]
    with pytest.raises(InputError, match=r"^baseline=loss=k is not one of: loss=kl, optim"):
        check_baselines(found, ["loss=k"])


# ---- trainings that are not finished


def test_unfinished_trainings_are_named_with_their_step_out_of_how_many(sweep, tmp_path):
    stopped = {"seed": 2, "finished": False, "step": 20}
    found = sweep({}, stopped, KL | stopped | {"max_steps": 50}, KL | stopped | {"epochs": 9})
    (tmp_path / "t1/state").mkdir()
    table = sweep_table(found)
    assert [table.values[row, "seeds"] for row in table.rows] == [0, 0, 1]
    end = "stopped, without a state to resume from"
    assert [note for note in table.notes if note.startswith("not finished: ")] == [
        f"not finished: {tmp_path}/t2: step 20 of 50, {end}",
        f"not finished: {tmp_path}/t3: step 20, {end}",
        f"not finished: {tmp_path}/t1: step 20 of 67, stopped; the same command with its output "
        "folder resumes it",
    ]


def test_a_sweep_that_has_just_begun_has_rows_without_values(sweep):
    table = sweep_table(sweep({"finished": False, "step": 0}, KL | {"finished": False}))
    assert (table.columns, len(table.rows)) == (["seeds"], 2)
    assert "0" in as_text(table)
