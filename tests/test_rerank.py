import logging
import os

import numpy as np
import pytest
import torch

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker

DOCS = {
    "a": "Bread rises because yeast makes gas.",
    "b": "The tide follows the Moon.",
    "c": "Owls fly without noise.",
}
QUERIES = {"q1": "why do tides turn", "q2": "how is bread made"}


@pytest.fixture
def student(tiny_bert, tmp_path):
    torch.manual_seed(3)
    (tmp_path / "student").mkdir()
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def reranker(student):
    return Reranker.from_pretrained(student, precision="fp32")


def test_score_is_float32_in_the_order_of_the_passages(reranker):
    docs = list(DOCS.values())
    scores = reranker.score(QUERIES["q1"], docs)
    assert scores.dtype == np.float32
    assert scores.shape == (3,)
    assert reranker.score(QUERIES["q1"], docs[::-1]) == pytest.approx(scores[::-1], abs=1e-6)
    assert len(reranker.score("q", [])) == 0


def test_an_encoder_that_was_never_trained_to_rank_is_rejected(tiny_bert):
    with pytest.raises(InputError, match=r"an encoder without a head.*train it first"):
        Reranker.from_pretrained(tiny_bert)


def test_a_reranker_of_a_folder_is_made_by_from_pretrained(student):
    with pytest.raises(InputError, match=r"not of PosixPath; .* use Reranker\.from_pretrained"):
        Reranker(student)


def test_rank_is_best_first(reranker):
    docs = list(DOCS.values())
    scores = reranker.score(QUERIES["q1"], docs)
    ranked = reranker.rank(QUERIES["q1"], docs)
    assert [r.rank for r in ranked] == [1, 2, 3]
    assert [r.index for r in ranked] == np.argsort(-scores).tolist()
    assert [r.doc for r in ranked] == [docs[r.index] for r in ranked]
    assert reranker.rank(QUERIES["q1"], docs, depth=1) == ranked[:1]


def test_rerank_orders_each_list_by_its_own_scores(reranker):
    run = Run.from_scores({q: {d: -i for i, d in enumerate("abc")} for q in QUERIES})
    reranked = reranker.rerank(run, QUERIES, DOCS, progress=False)
    for query_id in run:
        scores = reranker.score(QUERIES[query_id], [DOCS[d] for d in reranked[query_id].doc_ids])
        assert reranked[query_id].scores == pytest.approx(scores, abs=1e-6)
        assert (np.diff(reranked[query_id].scores) <= 0).all()
    assert reranker.rerank(run, QUERIES, DOCS, depth=2, progress=False)["q1"].doc_ids in (
        ("a", "b"),
        ("b", "a"),
    )


def test_a_chunk_that_exceeds_memory_is_halved(reranker, monkeypatch):
    run = Run.from_scores({q: {d: -i for i, d in enumerate("abc")} for q in QUERIES})
    expected = reranker.rerank(run, QUERIES, DOCS, progress=False)
    forward, room = CrossEncoder.forward, 2

    def cramped(self, pairs, fused):
        if len(pairs) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pairs, fused)

    monkeypatch.setattr(CrossEncoder, "forward", cramped)
    found = reranker.rerank(run, QUERIES, DOCS, progress=False)
    for query_id in run:
        assert found[query_id].doc_ids == expected[query_id].doc_ids
        assert found[query_id].scores == pytest.approx(expected[query_id].scores, abs=1e-6)
    room = 0
    with pytest.raises(InputError, match="does not fit into the device's memory"):
        reranker.rerank(run, QUERIES, DOCS, progress=False)


def test_a_token_budget_bounds_the_forward_pass_and_changes_no_score(reranker, monkeypatch):
    run = Run.from_scores({q: {d: -i for i, d in enumerate("abc")} for q in QUERIES})
    expected = reranker.rerank(run, QUERIES, DOCS, progress=False)
    forward, sizes = CrossEncoder.forward, []

    def counted(self, pairs, fused):
        sizes.append(int(pairs.lengths.sum()))
        return forward(self, pairs, fused)

    monkeypatch.setattr(CrossEncoder, "forward", counted)
    found = Reranker(reranker.model, token_budget=40).rerank(run, QUERIES, DOCS, progress=False)
    assert len(sizes) > 1
    assert max(sizes) <= 40
    for query_id in run:
        assert found[query_id].doc_ids == expected[query_id].doc_ids
        assert found[query_id].scores == pytest.approx(expected[query_id].scores, abs=1e-6)
    with pytest.raises(InputError, match="token_budget=0 is not a whole number above 0"):
        Reranker(reranker.model, token_budget=0)


def test_training_mode_is_restored(reranker):
    reranker.model.train()
    reranker.score("q", ["d"])
    assert reranker.model.training


def test_scoring_never_uses_dropout(tiny_bert):
    model = CrossEncoder.from_pretrained(tiny_bert, dropout=0.5)
    assert not model.training
    expected = Reranker(model).score("bread", ["The dough.", "The tide."])
    model.network.backbone.train()
    assert (Reranker(model).score("bread", ["The dough.", "The tide."]) == expected).all()


def halve_a_layer(model):
    with torch.no_grad():
        model.network.backbone.encoder.layer[0].output.dense.weight.mul_(0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_new_reranker_has_the_new_weights(precision, student, tmp_path):
    model = CrossEncoder.from_pretrained(student, precision=precision)
    before = Reranker(model).score("q", list(DOCS.values()))
    halve_a_layer(model)
    after = Reranker(model).score("q", list(DOCS.values()))
    assert (after != before).any()
    model.save_pretrained(tmp_path / "changed")
    loaded = Reranker.from_pretrained(tmp_path / "changed", device="cpu", precision=precision)
    assert (loaded.score("q", list(DOCS.values())) == after).all()


def test_the_command_takes_the_plain_path(command, student, files):
    first, second = (
        command("rerank", f"model.path={student}", *files, f"output={name}", *options).status
        for name, options in (("a.run", ["precision=fp32"]),
                              ("b.run", ["precision=fp32", "model.packed=false"]))
    )  # fmt: skip
    assert first == second == 0
    packed, plain = Run.read("a.run"), Run.read("b.run")
    for query_id in packed:
        assert packed[query_id].scores == pytest.approx(plain[query_id].scores, abs=1e-5)
    result = command("rerank", f"model.path={student}", *files, "output=c", "model.packed=maybe")
    assert "model.packed=maybe is neither true nor false" in result.err


def test_the_command_module_also_offers_the_class():
    from rankdistillm import rerank

    assert rerank.Reranker is Reranker


@pytest.fixture
def files(tmp_path):
    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in DOCS.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in QUERIES.items()))
    (tmp_path / "first.run").write_text(
        "".join(f"{q} Q0 {d} {r} {-r} bm25\n" for q in QUERIES for r, d in enumerate("abc", 1))
    )
    return ["data=local", "data.docs=docs.tsv", "data.queries=queries.tsv", "run=first.run"]


def test_the_output_is_checked_before_loading_the_model(command, student, files, monkeypatch):
    monkeypatch.setattr(Reranker, "from_pretrained", None)  # must not be reached
    result = command("rerank", f"model.path={student}", *files, "output=/dev/null/o.run")
    assert "/dev/null/o.run: cannot be written" in result.err


@pytest.mark.parametrize("output", ["new/out.run", "out.jsonl", "out.parquet", "out.run.gz"])
def test_the_command_writes_the_run_of_the_class(output, command, student, files, tmp_path):
    result = command(
        "rerank", f"model.path={student}", *files, f"output={output}", "precision=fp32"
    )
    assert result.status == 0, result.err
    expected = Reranker.from_pretrained(student, precision="fp32").rerank(
        Run.read(tmp_path / "first.run"), QUERIES, DOCS, progress=False
    )
    found = Run.read(tmp_path / output)
    assert list(found) == list(expected)
    for query_id in expected:
        assert found[query_id].doc_ids == expected[query_id].doc_ids
        assert np.array_equal(found[query_id].scores.astype(np.float32), expected[query_id].scores)


def test_the_command_scores_long_passages_by_windows(command, student, files):
    given = [f"model.path={student}", *files, "precision=fp32", "model.doc_length=4"]
    for output, options in (("cut.run", []), ("best.run", ["long=maxp", "stride=1"])):
        result = command("rerank", *given, f"output={output}", *options)
        assert result.status == 0, result.err
        assert "3 of 3 passages are longer than the 4 tokens that the student reads" in result.out
    cut, best = Run.read("cut.run"), Run.read("best.run")
    reranker = Reranker.from_pretrained(
        student, precision="fp32", doc_length=4, long="maxp", stride=1
    )
    for query_id, ranked in best.items():
        scores = dict(zip(ranked.doc_ids, ranked.scores, strict=True))
        of_cut = dict(zip(cut[query_id].doc_ids, cut[query_id].scores, strict=True))
        assert all(scores[doc_id] >= of_cut[doc_id] for doc_id in DOCS)
        expected = reranker.score(QUERIES[query_id], [DOCS[doc_id] for doc_id in ranked.doc_ids])
        assert ranked.scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["output=o.run", "long=all"], "long=all is not one of truncate, maxp"),
        (["output=o.run", "stride=2"], "stride=2 is for long=maxp"),
        (["output=o.run", "long=maxp", "stride=300"], "stride=300 is above doc_length=256"),
        (["run=null", "output=o.run"], "run is not set; add run=FILE"),
        (["output=null"], "output is not set; add output=FILE"),
        (["output=/dev/null/o.run"], "/dev/null/o.run: cannot be written"),
        (["output=."], "output=.: a folder; give the name of a file"),
        (["output=first.run"], "output=first.run would overwrite run=first.run, which is read"),
        (["output=pipe"], "output=pipe: a device or pipe; give the name of a file"),
        ([f"output={'o' * 250}.run"], "cannot be written (File name too long)"),
        (["output=o.run", "model.doc_length=-1"], "model.doc_length=-1 is not a whole number"),
        (["output=o.run", "run=5"], "5: neither a file nor an ir_datasets id"),
        (["output=o.run", "data.docs=null"], "first.run, line 1: the doc_id a has no text"),
        (["output=o.run", "model.path=nowhere"], "nowhere: no model could be loaded"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said, command, student, files, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    result = command("rerank", f"model.path={student}", *files, *arguments)
    assert result.status != 0
    assert result.err.strip().splitlines()[-1].startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "o.run").exists()


def test_ids_that_the_format_cannot_hold_are_rejected_before_scoring(
    command, student, files, monkeypatch
):
    Run.from_scores({"q1": {"a b": 1.0}}).write("spaces.jsonl")
    monkeypatch.setattr(Reranker, "rerank", None)  # must not be reached
    with open("docs.tsv", "a") as docs:
        docs.write("a b\ttext\n")
    given = [f"model.path={student}", *files[:3], "run=spaces.jsonl"]
    result = command("rerank", *given, "output=o.run")
    assert "o.run: the id 'a b' cannot be written to a TREC run" in result.err


def test_a_bad_list_of_passages_is_rejected(reranker):
    with pytest.raises(InputError, match="docs is a list of passages, not one text"):
        reranker.rank("q", "abc")
    with pytest.raises(InputError, match="1 is None, not a text"):
        reranker.rank("q", ["a", None])
    with pytest.raises(InputError, match="depth=0 is not a whole number"):
        reranker.rank("q", ["a"], depth=0)
    with pytest.raises(InputError, match=r"half a character.*'a .ud83d'"):
        reranker.rank("q", ["a \ud83d"])


@pytest.mark.parametrize(
    "docs", [None, 5, {"a", "b"}, {"a": "b"}, b"ab", iter(["a"]), {"a": 1}.values()]
)
def test_passages_without_an_order_are_rejected(docs, reranker):
    for call in (reranker.score, reranker.rank):
        with pytest.raises(InputError, match="not a list of passages"):
            call("q", docs)


@pytest.mark.parametrize("docs", [["a", "b"], ("a", "b"), np.array(["a", "b"])])
def test_any_sequence_of_passages_is_accepted(docs, reranker):
    assert [r.index for r in reranker.rank("q", docs)] == [
        r.index for r in reranker.rank("q", ["a", "b"])
    ]


@pytest.mark.parametrize("query", [None, 5, ["q"]])
def test_a_query_must_be_a_text(query, reranker):
    with pytest.raises(InputError, match="not a text"):
        reranker.score(query, ["a"])


def test_ids_without_a_text_are_named(reranker):
    run = Run.from_scores({"q1": {"a": 1.0}})
    with pytest.raises(InputError, match=r"the doc_id a of .* has no text"):
        reranker.rerank(run, QUERIES, {})
    with pytest.raises(InputError, match=r"the query_id q1 of .* has no text"):
        reranker.rerank(run, {}, DOCS)


def test_an_unknown_id_is_reported_with_its_line(command, student, files, tmp_path):
    with open("first.run", "a") as run:
        run.write("q2 Q0 zz 4 -4 bm25\n")
    result = command("rerank", f"model.path={student}", *files, "output=o.run")
    assert "error: first.run, line 7: the doc_id zz has no text in docs.tsv" in result.err
    (tmp_path / "queries.tsv").write_text("q1\tonly one\n")
    result = command("rerank", f"model.path={student}", *files, "output=o.run")
    assert "error: first.run, line 4: the query_id q2 has no text in queries.tsv" in result.err


def test_texts_may_come_with_the_run(command, student, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    rows = [
        f'{{"qid": "q1", "docno": "{d}", "score": 1.5, "query": "tides", "text": "{t}"}}\n'
        for d, t in DOCS.items()
    ]
    (tmp_path / "first.jsonl").write_text("".join(rows))
    result = command(
        "rerank", f"model.path={student}", "data=local", "run=first.jsonl", "output=o.run"
    )
    assert result.status == 0, result.err
    assert set(Run.read("o.run")["q1"].doc_ids) == set(DOCS)
