import logging

import numpy as np
import pytest

from rankdistillm.data.batches import read_training_run
from rankdistillm.errors import InputError
from tests.helpers import training_data


def content(batch):
    return batch.query_ids, batch.doc_ids, batch.targets.tolist(), batch.pairs.tokens.tolist()


def test_a_batch_depends_only_on_seed_and_step():
    forwards, backwards = training_data(), training_data()
    expected = [content(forwards.batch(step)) for step in range(8)]
    assert [content(backwards.batch(step)) for step in reversed(range(8))] == expected[::-1]
    assert content(training_data(seed=2).batch(0)) != expected[0]


def test_every_epoch_has_each_query_once_in_a_new_order_with_new_passages():
    data = training_data()
    assert len(data) == 8  # 15 lists, 2 a step
    batches = [data.batch(step) for step in range(8)]
    assert len(batches[-1]) == 1
    stream = [q for batch in batches for q in batch.query_ids]
    epochs = [stream[0:5], stream[5:10], stream[10:15]]
    assert all(sorted(epoch) == [f"q{i}" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    drawn = {
        tuple(d) for b in batches for q, d in zip(b.query_ids, b.doc_ids, strict=True) if q == "q0"
    }
    assert len(drawn) > 1


def test_max_steps_overrides_epochs():
    assert len(training_data(max_steps=11)) == 11
    assert len(training_data(max_steps=11).batch(10)) == 2


def test_targets_fall_with_the_rank_and_the_mask_marks_padding(caplog):
    with caplog.at_level(logging.WARNING):
        data = training_data(sizes=(6, 3), per_step=2, epochs=1)
    assert "1 of 2 lists have fewer than list_size=4 passages and are used whole" in caplog.text
    batch = data.batch(0)
    assert batch.mask.sum(1).tolist() == [len(d) for d in batch.doc_ids]
    assert sorted(batch.mask.sum(1).tolist()) == [3, 4]
    assert len(batch.pairs) == 7
    for i, doc_ids in enumerate(batch.doc_ids):
        size = {"q0": 6, "q1": 3}[batch.query_ids[i]]
        expected = [size - int(doc_id.split("_")[1]) for doc_id in doc_ids]
        assert batch.targets[i, : len(doc_ids)].tolist() == expected


def test_micro_batches_are_whole_lists_within_the_budget():
    batch = training_data(per_step=5, epochs=1).batch(0)
    one_list = int(batch.pairs.lengths[:4].max() * 4)
    for budget in (1, one_list, 2 * one_list + 1, 10**6):
        groups = list(batch.micro_batches(budget, count_tokens=np.sum))
        assert np.concatenate(groups).tolist() == [0, 1, 2, 3, 4]
        assert all(
            len(g) == 1 or batch.pairs.lengths[batch.rows_of(g)].sum() <= budget for g in groups
        )
    assert len(list(batch.micro_batches(1, count_tokens=np.sum))) == 5
    assert len(list(batch.micro_batches(10**6, count_tokens=np.sum))) == 1
    assert batch.rows_of(np.array([1, 2])).tolist() == list(range(4, 12))


def test_single_relevant_counts_the_lists_it_leaves_out(caplog):
    qrels = {"q0": {"d0_1": 1}, "q1": {"d1_1": 0}, "q2": {f"d2_{j}": 1 for j in range(6)}}
    with caplog.at_level(logging.WARNING):
        data = training_data(qrels=qrels, sampling="single_relevant", targets="relevance")
    assert data.query_ids == ["q0"]
    assert "4 of 5 queries are left out" in caplog.text
    assert sorted(data.batch(0).targets[0].tolist()) == [0, 0, 0, 1]


def test_no_usable_query_is_an_error_with_the_remedy():
    with pytest.raises(
        InputError, match=r"sampling=single_relevant needs a relevant.*data\.train\.qrels"
    ):
        training_data(sampling="single_relevant")


def test_relevance_targets_leave_out_lists_of_equal_relevance(caplog):
    graded = {"q0": {"d0_1": 1}, "q1": {"d1_1": 0}, "q2": {f"d2_{j}": 1 + j for j in range(6)}}
    with caplog.at_level(logging.WARNING):
        data = training_data(qrels=graded, targets="relevance")
    assert data.query_ids == ["q0", "q2"]
    assert "3 of 5 queries are left out: their lists lack passages of diff" in caplog.text
    with pytest.raises(InputError, match="targets=relevance needs passages of different"):
        training_data(targets="relevance")


@pytest.mark.parametrize(("size", "said"), [(7, "lower it to 6"), (1, "at least 2 passages")])
def test_impossible_list_sizes_are_refused(size, said):
    with pytest.raises(InputError, match=said):
        training_data(list_size=size)


def config(folder, **changes):
    return {
        "run": str(folder / "teacher.run"),
        "first_stage": None,
        "qrels": None,
        "depth": None,
        "num_queries": None,
        "sampling": "top",
        "targets": "relevance",
        "add_docs_not_in_ranking": False,
    } | changes


def test_depth_counts_in_the_first_stage(tmp_path):
    (tmp_path / "teacher.run").write_text("q Q0 c 1 3 t\nq Q0 a 2 2 t\nq Q0 b 3 1 t\n")
    (tmp_path / "first.run").write_text("q Q0 a 1 3 f\nq Q0 b 2 2 f\nq Q0 c 3 1 f\n")
    alone, _ = read_training_run(config(tmp_path, depth=2), 1)
    assert alone["q"].doc_ids == ("c", "a")
    within, _ = read_training_run(
        config(tmp_path, depth=2, first_stage=str(tmp_path / "first.run")), 1
    )
    assert within["q"].doc_ids == ("a", "b")


def test_qrels_of_other_queries_are_refused(tmp_path):
    (tmp_path / "teacher.run").write_text("q Q0 c 1 3 t\n")
    (tmp_path / "qrels").write_text("other 0 c 1\n")
    with pytest.raises(
        InputError, match=r"none of its 1 queries \(q\) is among the 1 judged ones \(other\)"
    ):
        read_training_run(config(tmp_path, qrels=str(tmp_path / "qrels")), 1)


def test_judged_positives_outside_the_run_can_be_the_positive(tmp_path):
    (tmp_path / "teacher.run").write_text("q Q0 a 1 3 t\nq Q0 b 2 2 t\n")
    (tmp_path / "qrels").write_text("q 0 x 1\nq 0 b 1\nq 0 y 0\nq 0 z 2\n")
    options = config(tmp_path, qrels=str(tmp_path / "qrels"), add_docs_not_in_ranking=True)
    run, _ = read_training_run(options | {"sampling": "single_relevant"}, 1)
    assert run["q"].doc_ids == ("a", "b", "x", "z")
    np.testing.assert_array_equal(run["q"].scores, [3, 2, np.nan, np.nan])
    with pytest.raises(InputError, match=r"needs data\.train\.sampling=single_relevant, not top"):
        read_training_run(options, 1)
    with pytest.raises(InputError, match="the positive that is added has no rank to learn"):
        read_training_run(options | {"sampling": "single_relevant", "targets": "rank"}, 1)


def test_a_mixture_has_a_row_of_targets_for_each_kind():
    qrels = {"q0": {"d0_1": 2, "d0_4": 0}}
    data = training_data(
        (6, 6), qrels, per_step=2, epochs=1, list_size=6, targets=("rank", "judged", "relevance")
    )
    batch = data.batch(0)
    assert batch.targets.shape == (2, 3, 6)
    of_q0, of_q1 = (batch.targets[batch.query_ids.index(q)].numpy() for q in ("q0", "q1"))
    nan = np.nan
    np.testing.assert_array_equal(
        of_q0, [[6, 5, 4, 3, 2, 1], [nan, 2, nan, nan, 0, nan], [0, 2, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(of_q1, [[6, 5, 4, 3, 2, 1], [nan] * 6, [0] * 6])


def test_a_transform_leaves_the_judgements_of_a_mixture_alone():
    data = training_data(
        (6,), {"q0": {"d0_1": 2}}, per_step=1, epochs=1, list_size=6,
        targets=("rank", "relevance"), transform="reciprocal_rank",
    )  # fmt: skip
    expected = [[1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6], [0, 2, 0, 0, 0, 0]]
    np.testing.assert_allclose(data.batch(0).targets[0], expected, rtol=1e-6)


def test_a_mixture_without_judgements_names_the_option():
    with pytest.raises(InputError, match=r"targets=judged needs.*data\.train\.qrels"):
        training_data((6, 6), targets=("rank", "judged"))


def test_judgements_of_positives_alone_are_refused_for_judged_targets():
    positives = {"q0": {"d0_1": 1}, "q1": {"d1_0": 1}}
    with pytest.raises(InputError, match="their qrels know only one; for targets=relevance"):
        training_data((6, 6), positives, targets=("rank", "judged"))
    assert len(training_data((6, 6), positives, targets=("rank", "relevance")).query_ids) == 2


def test_a_mixture_counts_the_lists_with_judgements(caplog):
    with caplog.at_level(logging.INFO):
        training_data((6, 6), {"q0": {"d0_1": 1, "d0_2": 0}}, targets=("rank", "judged"))
    assert "targets=judged has something to compare in 1 of 2 lists" in caplog.text


def test_a_positive_that_the_teacher_did_not_rank_has_a_judgement_alone(tmp_path):
    (tmp_path / "teacher.run").write_text("q Q0 a 1 3 t\nq Q0 b 2 2 t\n")
    (tmp_path / "qrels").write_text("q 0 x 1\nq 0 b 0\n")
    options = config(
        tmp_path, qrels=str(tmp_path / "qrels"), add_docs_not_in_ranking=True, targets="rank",
        sampling="single_relevant",
    )  # fmt: skip
    with pytest.raises(InputError, match="no rank to learn"):
        read_training_run(options, 1)
    run, _ = read_training_run(options, 1, ("rank", "judged"))
    assert run["q"].doc_ids == ("a", "b", "x")
    assert np.isnan(run["q"].scores).tolist() == [False, False, True]
    assert run.ranked()["q"].doc_ids == ("a", "b")
