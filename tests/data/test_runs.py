"""Runs: every format in and out, sub-sampling, and each kind of bad input with file and line."""

import gzip
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rankdistillm.data import catalogue, columns
from rankdistillm.data import parquet as parquet_format
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.errors import InputError

TREC = "q1 Q0 d1 1 3.5 tag\nq1 Q0 d2 2 2.5 tag\nq2 Q0 d3 1 0.1 tag\n"
SUFFIXES = ["run", "txt", "tsv", "run.gz", "jsonl", "jsonl.gz", "json", "parquet"]


@pytest.fixture
def write(tmp_path):
    def write(text, name="some.run"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def listed(run):
    return {query_id: list(ranked.doc_ids) for query_id, ranked in run.items()}


def refused(source, *parts):
    """Reading fails with one line that holds all these parts."""
    with pytest.raises(InputError) as caught:
        Run.read(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(source), *parts):
        assert part in message, message


# ---- formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_reads_back_what_it_wrote(tmp_path, suffix):
    path = tmp_path / "deep" / f"a.{suffix}"
    scores = {"q2": {"ä": 0.1, "b": 1e-30}, "q1": {"c": -7.25, "b": -7.5, "a": -1e30}}
    run = Run.from_scores(scores)
    run.write(path, tag="me")
    read = Run.read(path)
    assert listed(read) == listed(run) == {"q2": ["ä", "b"], "q1": ["c", "b", "a"]}
    for query_id, ranked in run.items():
        assert np.array_equal(read[query_id].scores.astype(np.float32), np.float32(ranked.scores))


def test_an_empty_run_is_written(tmp_path):
    Run({}).write(tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows == 0


@pytest.mark.parametrize("identifier", ["a b", "", "a\u3000b"])
def test_trec_rejects_ids_with_spaces(identifier, tmp_path):
    run = Run.from_scores({"q": {identifier: 1.0}})
    for attempt in (run.write, run.check_writable):
        with pytest.raises(InputError, match="cannot be written to a TREC run"):
            attempt(tmp_path / "a.run")
    assert not list(tmp_path.iterdir())
    run.write(tmp_path / "a.jsonl")
    assert listed(Run.read(tmp_path / "a.jsonl")) == {"q": [identifier]}


def test_byte_order_marks_are_stripped(tmp_path):
    (tmp_path / "a.run").write_text(TREC, encoding="utf-8-sig")
    with gzip.open(tmp_path / "a.run.gz", "wt", encoding="utf-8-sig") as file:
        file.write(TREC)
    for name in ("a.run", "a.run.gz"):
        assert list(Run.read(tmp_path / name)) == ["q1", "q2"]


def test_huge_numbers_name_the_line(write):
    for score in ("9" * 400, "9" * 5000):
        line = f'{{"query_id": "q", "doc_id": "d", "score": {score}}}'
        refused(write(line, "a.jsonl"), "line 1")
    refused(write("[" * 100_000, "a.jsonl"), "line 1: not JSON")


def test_trec_columns(write):
    run = Run.read(write(TREC))
    assert listed(run) == {"q1": ["d1", "d2"], "q2": ["d3"]}
    assert run["q1"].scores.tolist() == [3.5, 2.5]
    assert run.source.endswith("some.run")
    assert (len(run), len(run["q1"])) == (2, 2)


def test_trec_as_written(tmp_path):
    Run.from_scores({"q1": {"d1": 0.1}}).write(tmp_path / "a.run", tag="me")
    assert (tmp_path / "a.run").read_text() == "q1 Q0 d1 1 0.1 me\n"


def test_ranks_decide_the_order_not_lines(write):
    assert listed(Run.read(write("q1 Q0 b 2 1 t\nq1 Q0 c 3 1 t\nq1 Q0 a 1 1 t\n"))) == {
        "q1": ["a", "b", "c"]
    }


def test_equal_ranks_with_equal_scores_are_accepted(write):
    assert len(Run.read(write("q1 Q0 a 1 2 t\nq1 Q0 b 1 2 t\n"))["q1"]) == 2


def test_ranks_from_zero_and_blank_lines_and_windows_line_ends(write):
    text = "q1 Q0 a 0 2 t\r\n\r\nq1\tQ0\tb\t1\t1\tt\r\n"
    assert listed(Run.read(write(text))) == {"q1": ["a", "b"]}


@pytest.mark.parametrize("query_id", ["query_id", "qid"])
@pytest.mark.parametrize("doc_id", ["doc_id", "docid", "docno"])
def test_column_spellings(write, query_id, doc_id):
    header = f"{query_id}\t{doc_id}\tscore\textra\tquery\ttext\n"
    rows = "q1\td1\t1\tx\twho?\tone text\nq1\td2\t2\tx\twho?\tanother text\n"
    run = Run.read(write(header + rows, "a.tsv"))
    assert listed(run) == {"q1": ["d2", "d1"]}
    assert run.queries == {"q1": "who?"}
    assert run.docs == {"d1": "one text", "d2": "another text"}
    as_json = [
        json.dumps({query_id: "q1", doc_id: f"d{i}", "score": i, "query": "who?"}) for i in (1, 2)
    ]
    assert listed(Run.read(write("\n".join(as_json), "a.jsonl"))) == {"q1": ["d2", "d1"]}


def test_parquet_column_spellings_and_order(tmp_path):
    columns = {"text": ["t1", "t2"], "score": [1.0, 2.0], "docno": ["d1", "d2"], "qid": [7, 7]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    run = Run.read(tmp_path / "a.parquet")
    assert listed(run) == {"7": ["d2", "d1"]}
    assert run.docs == {"d1": "t1", "d2": "t2"}


def test_rank_alone_gives_falling_scores(write):
    run = Run.read(write("query_id\tdoc_id\trank\nq1\tb\t2\nq1\ta\t1\n", "a.tsv"))
    assert listed(run) == {"q1": ["a", "b"]}
    assert run["q1"].scores.tolist() == [-1, -2]


def test_score_alone_ranks_as_trec_eval(write):
    rows = "query_id\tdoc_id\tscore\nq1\ta\t1\nq1\tb\t1\nq1\tc\t2\n"
    assert listed(Run.read(write(rows, "a.tsv"))) == {"q1": ["c", "b", "a"]}


def test_tsv_without_header_is_trec(write):
    assert len(Run.read(write(TREC.replace(" ", "\t"), "a.tsv"))) == 2


def test_only_some_queries_are_kept(write):
    assert list(Run.read(write(TREC), queries={"q2"})) == ["q2"]


def test_from_scores_ranks_ties_by_descending_doc_id():
    assert listed(Run.from_scores({"q": {"a": 1.0, "c": 0.5, "b": 1.0}})) == {"q": ["b", "a", "c"]}


# ---- sub-sampling


def test_truncate_and_select():
    run = Run.from_scores({"q1": {"a": 3, "b": 2, "c": 1}, "q2": {"d": 1}})
    assert listed(run.truncate(2)) == {"q1": ["a", "b"], "q2": ["d"]}
    assert run.truncate(None) is run
    assert listed(run.select(["q2", "absent"])) == {"q2": ["d"]}
    assert listed(Run({"q": run["q1"].take([2, 0])})) == {"q": ["c", "a"]}


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "3"])
def test_depths_and_sizes_must_be_counts(number):
    run = Run.from_scores({"q": {"a": 1.0, "b": 0.5}})
    for cut in (run.truncate, lambda n: run.within(run, n), lambda n: run.sample_queries(n, 1)):
        with pytest.raises(InputError, match=f"={number} is not a whole number above 0"):
            cut(number)


def test_sub_samples_hold_only_the_passages_of_their_lists():
    run = Run.from_scores({"q1": {"a": 3, "b": 2, "c": 1}, "q2": {"d": 2, "a": 1}})
    first = Run.from_scores({"q1": {"c": 2, "a": 1}, "q2": {"a": 2, "d": 1}})
    samples = {
        "truncated": (run.truncate(1), ["a", "d"]),
        "selected": (run.select(["q2"]), ["a", "d"]),
        "within": (run.within(first, 1), ["a", "c"]),
        "with relevant": (run.select(["q2"]).with_relevant({"q2": {"e": 1}}), ["a", "d", "e"]),
    }
    for name, (sample, expected) in samples.items():
        assert sorted(sample.doc_ids()) == expected, name
        assert sorted({d for ranked in sample.values() for d in ranked.doc_ids}) == expected, name
        assert list(sample.pairs()) == [(q, d) for q in sample for d in sample[q].doc_ids], name
    assert listed(run.truncate(2).truncate(1).select(["q1"])) == {"q1": ["a"]}


def test_depth_counts_in_the_first_stage_run():
    first = Run.from_scores({"q": {"a": 4, "b": 3, "c": 2, "d": 1}}, source="first")
    teacher = Run.from_scores({"q": {"d": 4, "c": 3, "b": 2, "a": 1}}, source="teacher")
    assert listed(teacher.within(first, 2)) == {"q": ["b", "a"]}
    assert listed(teacher.within(first, None)) == listed(teacher)


def test_within_refuses_runs_that_do_not_belong_together(write):
    teacher = Run.read(write("q1 Q0 a 1 2 t\nq2 Q0 b 1 2 t\n", "teacher.run"))
    first = Run.from_scores({"q1": {"a": 1}}, source="first.run")
    with pytest.raises(InputError, match=r"teacher\.run, line 2: query q2 is not in .*first\.run"):
        teacher.within(first, 10)
    other = Run.from_scores({"q1": {"z": 1}, "q2": {"b": 1}}, source="first.run")
    with pytest.raises(InputError, match=r"teacher\.run, line 1: no passage of query q1 .*give"):
        teacher.within(other, 10)


def test_query_samples_are_seeded_and_nested():
    run = Run.from_scores({f"q{i}": {"d": 1.0} for i in range(100)})
    small, large = run.sample_queries(10, seed=3), run.sample_queries(40, seed=3)
    assert (len(small), len(large)) == (10, 40)
    assert set(small) < set(large) < set(run)
    assert list(small) == list(run.sample_queries(10, seed=3))
    assert set(small) != set(run.sample_queries(10, seed=4))
    assert list(large) == [query_id for query_id in run if query_id in large]
    assert run.sample_queries(None, seed=3) is run
    assert run.sample_queries(1000, seed=3) is run
    backwards = Run.from_scores({f"q{i}": {"d": 1.0} for i in reversed(range(100))})
    assert set(backwards.sample_queries(10, seed=3)) == set(small)


# ---- whole runs at once, compared with plain loops over their lists


@pytest.fixture(params=range(20))
def rng(request, monkeypatch):
    """A source of random runs; blocks of a few rows make every method work on several."""
    monkeypatch.setattr(columns, "ROWS_AT_ONCE", 5)
    return np.random.default_rng(request.param)


def random_run(rng, num_queries=8):
    run = Run.from_scores(
        {
            f"q{query}": {f"d{doc}": float(rng.integers(9)) for doc in rng.permutation(12)[:depth]}
            for query, depth in enumerate(rng.integers(1, 9, num_queries))
        }
    )
    sampled = [run, run.truncate(3), run.select({"q1", "q4", "q5"}), run.sample_queries(3, 1)]
    return sampled[rng.integers(len(sampled))]


def random_qrels(rng):
    """Judgements of some queries, on passages some of which no run has."""
    return {
        f"q{query}": {f"d{doc}": int(rng.integers(-1, 3)) for doc in rng.permutation(16)[:judged]}
        for query, judged in enumerate(rng.integers(0, 9, 10))
        if query % 3
    }


def test_listed_relevance_is_that_of_a_plain_loop(rng):
    run, qrels = random_run(rng), random_qrels(rng)
    expected = {
        query_id: [max(0, r) for d, r in qrels.get(query_id, {}).items() if d in ranked.doc_ids]
        for query_id, ranked in run.items()
    }
    assert run.listed_relevance(qrels) == expected
    assert run.listed_relevance({}) == {query_id: [] for query_id in run}


def test_with_relevant_is_that_of_a_plain_loop(rng):
    run, qrels = random_run(rng), random_qrels(rng)
    extended = run.with_relevant(qrels)
    assert list(extended) == list(run)
    for query_id, ranked in run.items():
        doc_ids, scores = list(ranked.doc_ids), ranked.scores.tolist()
        for doc_id, relevance in qrels.get(query_id, {}).items():
            if relevance > 0 and doc_id not in ranked.doc_ids:
                doc_ids.append(doc_id)
                scores.append(np.nan)
        assert list(extended[query_id].doc_ids) == doc_ids
        np.testing.assert_array_equal(extended[query_id].scores, scores)
    assert len(set(extended.doc_ids())) == len(extended.doc_ids())
    assert listed(run.with_relevant({})) == listed(run)


def test_within_is_that_of_a_plain_loop(rng):
    first_stage, run = random_run(rng), random_run(rng)
    depth = int(rng.integers(1, 6))
    tops = {q: first_stage[q].doc_ids[:depth] for q in run if q in first_stage}
    expected = {q: [d for d in run[q].doc_ids if d in top] for q, top in tops.items()}
    run = run.select(query_id for query_id, doc_ids in expected.items() if doc_ids)
    kept = run.within(first_stage, depth)
    assert listed(kept) == {query_id: expected[query_id] for query_id in run}
    for query_id, ranked in kept.items():
        score_of = dict(zip(run[query_id].doc_ids, run[query_id].scores, strict=True))
        assert ranked.scores.tolist() == [score_of[doc_id] for doc_id in ranked.doc_ids]


def test_equal_lists_have_equal_digests_whatever_their_codes(rng):
    run = random_run(rng)
    content = listed(run)
    again = Run({q: RankedList(tuple(d), np.zeros(len(d))) for q, d in content.items()})
    assert again.digest() == run.digest()
    # The codes of this one follow another order of the queries.
    backwards = Run({query_id: run[query_id] for query_id in reversed(content)})
    reordered = backwards._with(backwards._columns.lists(np.arange(len(run))[::-1]))
    assert listed(reordered) == content
    assert reordered.digest() == run.digest()


def run_of(**lists):
    return Run({q: RankedList(tuple(d), -np.arange(len(d), dtype=float)) for q, d in lists.items()})


def test_other_lists_have_other_digests():
    runs = [
        Run({}),
        run_of(q=["a", "b"], r=["c"]),
        run_of(r=["c"], q=["a", "b"]),
        run_of(q=["b", "a"], r=["c"]),
        run_of(q=["a", "b"], r=["b"]),
        run_of(q=["a", "b"], r=["a"]),
        run_of(q=["a"], r=["b", "c"]),
        run_of(q=["a", "b"], s=["c"]),
        run_of(q=["a", "bc"], r=["c"]),
        run_of(q=["ab", "c"], r=["c"]),
        run_of(q=["a\tb"], r=["c"]),
        run_of(q=["a", "b"]),
        run_of(q=["a", "b"], r=["c"], s=[]),
        run_of(q=["a", "ä"], r=["c"]),
    ]
    assert len({run.digest() for run in runs}) == len(runs)


def test_scores_count_in_a_digest_where_asked():
    runs = [Run({"q": RankedList(("a", "b"), np.array(scores))}) for scores in ([2, 1], [3, 1])]
    assert runs[0].digest() == runs[1].digest()
    assert runs[0].digest(scores=True) != runs[1].digest(scores=True)
    narrow = Run({"q": RankedList(("a", "b"), np.array([2, 1], dtype=np.float32))})
    assert narrow.digest(scores=True) == runs[0].digest(scores=True)


# ---- writing


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("before")
    broken = Run({"q1": RankedList(("a", "b"), np.array([1.0, 0.5]))})
    broken._columns.doc_ids[1] = "\ud800"
    with pytest.raises(UnicodeEncodeError):
        broken.write(path)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.run: cannot be written .*choose another"):
        Run.from_scores({"q": {"d": 1.0}}).write(tmp_path / "file" / "a.run")


# ---- bad input


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q1 Q0 d9 9 1", ["6 columns 'query_id Q0 doc_id rank score tag'", "found 5", "correct"]),
        ("q1 Q0 d9 9 1 tag more", ["found 7"]),
        ("q1 Q0 d9 third 1 tag", ["rank 'third' is not a whole number", "correct the line"]),
        ("q1 Q0 d9 9.5 1 tag", ["rank '9.5' is not a whole number"]),
        ("q1 Q0 d9 9 high tag", ["score 'high' is not a number", "correct the line"]),
        ("q1 Q0 d9 9 nan tag", ["score 'nan' is not a number", "correct the line"]),
        ("q1 Q0 d9 9 inf tag", ["score 'inf' is not a number"]),
        ("q1 Q0 d1 9 1 tag", ["d1 appears twice", "query q1", "keep one"]),
        ("q1 Q0 d9 9 99 tag", ["rank 9 with score 99 contradicts rank 2 with score 2.5", "one of"]),
        ("q1 Q0 d9 2 2 tag", ["rank 2 with score 2 contradicts rank 2 with score 2.5"]),
    ],
)
def test_bad_trec_line(write, line, expected):
    refused(write(TREC + line + "\n"), "line 4", *expected)


NOT_NUMBERS = ["1_0", "\u0967\u0968", "0x10", "infinity", "nan", "", "1e", "--1", "1,5", "\u00b2"]


@pytest.mark.parametrize("number", [*NOT_NUMBERS, " 1", "1 ", "1\u00a0"])
@pytest.mark.parametrize("column", ["rank", "score"])
def test_numbers_are_written_in_plain_digits(write, number, column):
    said = f"the {column} {number!r} is not a "
    record = {"query_id": "q", "doc_id": "d", column: number}
    refused(write(json.dumps(record), "a.jsonl"), "line 1", said, "correct the line")
    tsv = f"query_id\tdoc_id\t{column}\nq\td\t{number}\n"
    refused(write(tsv, "a.tsv"), "line 2", said)
    if number and number == number.strip():
        rank, score = (number, "1") if column == "rank" else ("1", number)
        refused(write(f"q Q0 d {rank} {score} t\n"), "line 1", said)


def test_spellings_of_numbers(write):
    text = "q Q0 a +1 +1e2 t\nq Q0 b 02 5. t\nq Q0 c 3 .5 t\nq Q0 d 4 -1.5E-3 t\n"
    assert Run.read(write(text))["q"].scores.tolist() == [100, 5, 0.5, -0.0015]
    assert Run.read(write('{"qid": 1, "docno": "d", "rank": "+1"}', "a.jsonl"))["1"].doc_ids
    refused(write("q Q0 a 1 1e39 t\n"), "line 1: the score '1e39' is too large for float32")
    refused(write(f"q Q0 a {2**63} 1 t\n"), "line 1: the rank '9223372036854775808' is too large")
    for name in ("rank", "score"):
        line = json.dumps({"qid": 1, "docno": "d", name: True})
        refused(write(line, "a.jsonl"), f"line 1: the {name} True is not a")


@pytest.mark.parametrize("name", ["query_id", "doc_id", "query", "text"])
def test_lone_surrogates_are_refused_when_read(write, name):
    record = {"query_id": "q", "doc_id": "d", "score": 1, name: "a\ud800"}
    said = (
        rf"the {name} a\ud800 holds half of a surrogate pair, which is not a character; correct it"
    )
    refused(write(json.dumps(record), "a.jsonl"), "line 1", said)


@pytest.mark.parametrize("ids", [("q\udfff", "d"), ("q", "d\ud800"), ("q", 1), (1, "d")])
def test_ids_that_cannot_be_written_are_refused(ids):
    query_id, doc_id = ids
    scored = {query_id: {doc_id: 1.0}}
    ranked = {query_id: RankedList((doc_id,), np.array([1.0]))}
    for make in (lambda: Run.from_scores(scored), lambda: Run(ranked)):
        with pytest.raises(InputError, match=r"run: the id .* is not a text that can be written"):
            make()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_scores_that_are_not_finite_are_refused(score):
    for make in (
        lambda: Run.from_scores({"q": {"a": 1.0, "b": score}}),
        lambda: Run({"q": RankedList(("a", "b"), np.array([1.0, score]))}),
    ):
        with pytest.raises(InputError, match=r"run: the score .* of query q is not finite"):
            make()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"doc_id": "d\ud800"}, "the doc_id d.ud800 holds half"),
        ({"doc_id": None}, "the doc_id has no value"),
        ({"score": float("nan")}, "the score nan is not finite"),
        ({}, None),
    ],
)
def test_entries_of_ir_datasets_are_checked_as_those_of_files(entry, said, monkeypatch):
    entry = SimpleNamespace(**({"query_id": "q", "doc_id": "d", "score": 2} | entry))
    dataset = SimpleNamespace(has_scoreddocs=lambda: True, scoreddocs_iter=lambda: iter([entry]))
    monkeypatch.setattr(catalogue, "load_ir_dataset", lambda identifier, what: dataset)
    if said is None:
        assert Run.read("some/data")["q"].scores.tolist() == [2.0]
        return
    with pytest.raises(InputError, match=f"some/data, line 1: {said}"):
        Run.read("some/data")


def test_repeated_columns_are_refused(write, tmp_path):
    refused(
        write("query_id\tdoc_id\tscore\tscore\nq\td\t1\t2\n", "a.tsv"),
        "line 1: the column score appears twice; remove one",
    )
    table = pyarrow.table([["q"], ["d"], [1], [2]], ["query_id", "doc_id", "score", "score"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "the column score appears twice; remove one")


def test_long_ids_and_lines_are_shortened_in_messages(write):
    long = "x" * 100_000
    for text in (
        f"q Q0 {long} 1 1 t\n" * 2,
        f"{long} Q0 d 1 1 t\n" * 2,
        f"q Q0 d {long} 1 t\n",
        f"q Q0 d 1 {long} t\n",
    ):
        with pytest.raises(InputError, match=r"line [12]: .*x\.\.\.x.*; (correct|keep)") as caught:
            Run.read(write(text))
        assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match=r"x\.\.\.x") as caught:
        Run.read(write(json.dumps({long: 1, "text": long}), "a.jsonl"))
    assert len(str(caught.value)) < 400


def test_unprintable_characters_are_escaped_in_messages(write):
    line = json.dumps({"qid": "q\x1b[31m\n", "docno": "d", "score": 1})
    refused(write(f"{line}\n{line}", "a.jsonl"), r"passage d appears twice", r"query q\x1b[31m\n;")


@pytest.mark.parametrize("text", ["", "\n  \n"])
@pytest.mark.parametrize("suffix", ["run", "tsv", "jsonl"])
def test_empty_file(write, text, suffix):
    refused(write(text, f"a.{suffix}"), "the file is empty", "expected")


def test_a_run_without_the_wanted_queries_is_refused(write):
    with pytest.raises(InputError, match="the run is empty"):
        Run.read(write(TREC), queries={"other"})


@pytest.mark.parametrize("suffix", ["run.gz", "jsonl.gz"])
def test_cut_off_gz(tmp_path, suffix):
    rng = np.random.default_rng(0)  # random, so that it does not shrink to nothing
    scores = {f"d{i}": float(score) for i, score in enumerate(rng.random(5000))}
    whole = tmp_path / f"whole.{suffix}"
    Run.from_scores({"q1": scores}).write(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(cut, "after line", "cut off or damaged", "again")


def test_a_gz_file_that_is_not_gzipped(write):
    refused(write(TREC, "a.run.gz"), "cut off or damaged", "again")


def test_damaged_gz(tmp_path):
    data = bytearray(gzip.compress(TREC.encode() * 50))
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "a.run.gz"
    path.write_bytes(bytes(data))
    refused(path, "cut off or damaged")


def test_not_utf8(tmp_path):
    path = tmp_path / "a.run"
    path.write_bytes(TREC.encode() + "q1 Q0 ü 9 1 t\n".encode("latin-1"))
    refused(path, "not UTF-8", "convert it")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no parquet at all"])
def test_damaged_parquet(tmp_path, damage):
    path = tmp_path / "a.parquet"
    Run.from_scores({"q1": {"d1": 1.0, "d2": 0.5}}).write(path)
    path.write_bytes(damage(path.read_bytes()))
    refused(path, "not a readable Parquet file", "again")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("query_id\tpassage\tscore", ["no column doc_id or docid or docno", "rename"]),
        ("query_id\tdoc_id\ttext", ["neither a rank nor a score", "add one"]),
    ],
)
def test_missing_columns(write, tmp_path, header, expected):
    refused(write(f"{header}\na\tb\tc\n", "a.tsv"), "line 1", *expected)
    record = dict.fromkeys(header.split("\t"), "x")
    refused(write(json.dumps(record), "a.jsonl"), "line 1", *expected)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({name: ["x"] for name in record}), path)
    refused(path, *expected)


def test_tsv_line_with_too_few_columns(write):
    text = "query_id\tdoc_id\tscore\nq1\td1\t1\nq1\td2\n"
    refused(write(text, "a.tsv"), "line 3", "expected 3 columns as in line 1", "found 2", "tab")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{oops", ["not JSON", "one object a line"]),
        ("[1, 2]", ["expected a JSON object"]),
        ('{"query_id": "q1", "doc_id": "d2", "score": "high"}', ["'high' is not a number"]),
        ('{"query_id": "q1", "doc_id": "d2", "score": NaN}', ["not finite"]),
        ('{"query_id": "q1", "doc_id": "d2", "score": [1]}', ["[1] is not a number"]),
        ('{"query_id": "q1", "doc_id": "d2", "rank": [1]}', ["[1] is not a whole number"]),
        (
            '{"query_id": "q1", "doc_id": "d2", "rank": 2.5, "score": 1}',
            ["2.5 is not a whole number"],
        ),
        ('{"query_id": "q1", "doc_id": "d2", "score": null}', ["neither rank nor score", "give"]),
        ('{"query_id": null, "doc_id": "d2", "score": 1}', ["query_id has no value", "give"]),
        ('{"query_id": "q1", "doc_id": null, "score": 1}', ["doc_id has no value", "give"]),
    ],
)
def test_bad_jsonl_line(write, line, expected):
    good = '{"query_id": "q1", "doc_id": "d1", "score": 1}\n'
    refused(write(good + line + "\n", "a.jsonl"), "line 2", *expected)


def test_ranks_and_scores_must_not_be_mixed(write):
    lines = [
        '{"query_id": "q1", "doc_id": "a", "rank": 1}',
        '{"query_id": "q1", "doc_id": "b", "score": 1}',
    ]
    refused(write("\n".join(lines), "a.jsonl"), "line 1", "a rank only", "a score only", "fill")


def test_neither_file_nor_id():
    refused("no/such.run", "neither a file nor an ir_datasets id", "a run file")


def test_folder(tmp_path):
    refused(tmp_path, "cannot be read")


def test_repeated_passages_are_named_without_ranks_too(write):
    rows = "query_id\tdoc_id\tscore\nq1\ta\t3\nq1\tb\t2\nq1\ta\t1\n"
    refused(write(rows, "a.tsv"), "line 4: passage a appears twice", "query q1", "keep one")


def test_where_names_the_line(write):
    run = Run.read(write("\n" + TREC))
    assert run.where("q2").endswith("some.run, line 4")
    assert run.where("q1", "d2").endswith("some.run, line 3")
    assert Run.from_scores({"q": {"d": 1.0}}, source="made here").where("q") == "made here"


# ---- Parquet, column by column


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def row_by_row(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(parquet_format, "read_columns", lambda path: None)
        return Run.read(path)


@pytest.mark.parametrize("names", [("rank",), ("score",), ("rank", "score")])
@pytest.mark.parametrize("shuffled", [False, True])
def test_columns_give_the_run_that_rows_give(names, shuffled, tmp_path, monkeypatch):
    rng = np.random.default_rng(len(names))
    rows = []
    for query in rng.permutation(30):
        scores = np.sort(rng.integers(0, 6, 12))[::-1]  # with ties
        docs = rng.permutation(40)[:12]
        rows += [
            (str(query), int(d), rank, float(s))
            for rank, (d, s) in enumerate(zip(docs, scores, strict=True), 1)
        ]
    if shuffled:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    columns = dict(
        zip(("query_id", "docno", "rank", "score"), zip(*rows, strict=True), strict=True)
    )
    kept = {n: list(v) for n, v in columns.items() if n in ("query_id", "docno", *names)}
    path = parquet(tmp_path / "a.parquet", **kept)
    assert parquet_format.read_columns(path) is not None
    fast, slow = Run.read(path), row_by_row(path, monkeypatch)
    assert list(fast) == list(slow)
    for query_id, ranked in slow.items():
        assert fast[query_id].doc_ids == ranked.doc_ids
        assert fast[query_id].scores.tolist() == ranked.scores.tolist()
    some = Run.read(path, queries={"3", "5"})
    assert set(some) == {"3", "5"}
    assert some["3"].doc_ids == slow["3"].doc_ids


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc_id": ["a", "a"]}, "line 2: passage a appears twice"),
        ({"score": [1.0, 2.0]}, "line 2: rank 2 with score 2 contradicts rank 1"),
        ({"score": [1.0, float("nan")]}, "line 2: the score nan is not finite"),
        ({"rank": [1.0, 2.5]}, "line 2: the rank 2.5 is not a whole number"),
        ({"rank": [1.0, float("inf")]}, "line 2: the rank inf is not a whole number"),
        ({"doc_id": ["a", None]}, "line 2: the doc_id has no value"),
        ({"doc_id": [b"a", b"\xff"]}, r"line 2: the doc_id b'\\xff' is not UTF-8; convert it"),
        ({"score": [1e39, 1.0]}, "line 1: the score 1e[+]39 is too large for float32; correct"),
        ({"rank": [1.0, 1e19]}, "line 2: the rank 1e[+]19 is too large; correct"),
        ({"rank": ["1", "2.0"]}, "line 2: the rank '2.0' is not a whole number; correct"),
        ({"score": ["2", "1_0"]}, "line 2: the score '1_0' is not a number; correct"),
        ({"score": [b"2", b"\xff"]}, "line 2: the score '\ufffd' is not a number; correct"),
        ({"rank": [Decimal("1.0"), Decimal("2.5")]}, "line 2: the rank .* is not a whole number"),
    ],
)
def test_faults_in_parquet_name_the_row(changes, said, tmp_path):
    columns = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "rank": [1, 2], "score": [2.0, 1.0]}
    path = parquet(tmp_path / "a.parquet", **(columns | changes))
    with pytest.raises(InputError, match=said):
        Run.read(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc_id": [1.0, 2.0]}, "doc_id holds double; write it as texts"),
        ({"query_id": [True, True]}, "query_id holds bool; write it as texts"),
        ({"doc_id": [date(2020, 1, 1), date(2021, 1, 1)]}, "doc_id holds date32"),
        ({"doc_id": [Decimal("1.0"), Decimal("2.0")]}, "doc_id holds decimal128"),
        ({"text": [["a", "b"], ["c"]]}, "text holds list<element: string>; write it as texts"),
        ({"query": [{"a": 1}, {"a": 2}]}, "query holds struct"),
        ({"score": [True, False]}, "score holds bool; write it as numbers"),
        ({"rank": [date(2020, 1, 1), date(2021, 1, 1)]}, "rank holds date32"),
        ({"rank": [timedelta(1), timedelta(2)]}, "rank holds duration"),
        ({"score": [datetime(2020, 1, 1), datetime(2021, 1, 1)]}, "score holds timestamp"),
    ],
)
def test_columns_of_other_types_are_refused(changes, said, tmp_path, monkeypatch):
    columns = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "rank": [1, 2], "score": [2.0, 1.0]}
    path = parquet(tmp_path / "a.parquet", **(columns | changes))
    for read in (Run.read, lambda path: row_by_row(path, monkeypatch)):
        with pytest.raises(InputError, match=rf"a\.parquet: the column .*{said}"):
            read(path)


@pytest.mark.parametrize(
    ("rank", "score"),
    [
        (["1", "02"], [b"2e1", b"-.5"]),
        ([Decimal("1"), Decimal("2.0")], [Decimal("20"), Decimal("-0.5")]),
        (np.float16([1, 2]), np.float16([20, -0.5])),
        (np.uint8([0, 255]), None),
        (None, np.uint64([20, 0])),
        (None, np.int8([20, -128])),
        (None, pyarrow.array([20.0, -0.5]).dictionary_encode()),
        (None, pyarrow.array(["20", "-0.5"]).dictionary_encode()),
        (pyarrow.nulls(2), [20.0, -0.5]),
    ],
)
def test_numbers_of_any_type(rank, score, tmp_path, monkeypatch):
    columns = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "rank": rank, "score": score}
    path = parquet(tmp_path / "a.parquet", **{n: v for n, v in columns.items() if v is not None})
    for run in (Run.read(path), row_by_row(path, monkeypatch)):
        assert run["q"].doc_ids == ("a", "b")
        assert run["q"].scores[0] == (-1 if score is None else 20)


def test_ids_in_a_dictionary_are_read_column_by_column(tmp_path):
    ids = pyarrow.array(["b", "a"]).dictionary_encode()
    path = parquet(tmp_path / "a.parquet", query_id=["q", "q"], doc_id=ids, rank=[1, 2])
    assert parquet_format.read_columns(path) is not None
    assert Run.read(path)["q"].doc_ids == ("b", "a")


def test_ids_in_bytes(tmp_path, monkeypatch):
    columns = {"query_id": [b"q", b"q"], "doc_id": [b"a", "\u00e4".encode()], "rank": [1, 2]}
    path = parquet(tmp_path / "a.parquet", **columns)
    for run in (Run.read(path), row_by_row(path, monkeypatch)):
        assert run["q"].doc_ids == ("a", "\u00e4")
