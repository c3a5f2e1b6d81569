"""rank_llm's history files become rankings; recorded answers of an LLM rebuild its run."""

import asyncio
import gzip
import json
import os
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.teachers.answers import read_order
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.history import Call, read_history, replay
from rankdistillm.teachers.openai_endpoint import OpenAIEndpoint
from rankdistillm.teachers.rankings import answer_all, sliding_window
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import completion, prompt_of, serving

ask = partial(sliding_window, window=4, stride=2)
DOCS = {f"d{i}": f"passage number {i}, \u201cquoted\u201d [7]" for i in range(6)}
ORDER = tuple(DOCS)


def shown(doc_ids):
    """The prompt of rank_llm, which mends quotation marks and brackets."""
    texts = [
        DOCS[d].replace("\u201c", '"').replace("\u201d", '"').replace("[7]", "(7)") for d in doc_ids
    ]
    lines = "".join(f"[{rank}] {text}\n" for rank, text in enumerate(texts, 1))
    user = f"I will provide you with {len(texts)} passages.\n{lines}Rank them, e.g., [2] > [1]"
    return [{"role": "system", "content": "You are RankLLM"}, {"role": "user", "content": user}]


def invocation(response, doc_ids, **fields):
    return {
        "prompt": shown(doc_ids), "response": response, "input_token_count": 90,
        "output_token_count": 7, **fields,
    }  # fmt: skip


def entry(qid="q1", calls=None):
    # The windows of six passages: d2 d3 d4 d5, then d0 d1 and the best two of these.
    if calls is None:
        calls = [
            invocation("[4] > [3] > [1] > [2]", ["d2", "d3", "d4", "d5"]),
            invocation("[3] > [1] > [4]", ["d0", "d1", "d5", "d4"], reasoning="so", token_usage={}),
        ]
    return {"query": {"text": "why", "qid": qid}, "invocations_history": calls}


@pytest.fixture
def written(tmp_path):
    def write(content, name="history.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        return path

    return write


def test_a_history_is_read(written):
    (history,) = read_history(written([entry(qid=7)]))
    assert (history.query_id, history.query) == ("7", "why")
    first, second = history.calls
    assert first == Call(
        "[4] > [3] > [1] > [2]",
        tuple(f'passage number {i}, "quoted" (7)' for i in (2, 3, 4, 5)),
    )
    assert second.response == "[3] > [1] > [4]"


def test_its_answers_become_a_ranking(written):
    histories = read_history(written([entry()]))
    expected = ["d5", "d0", "d4", "d1", "d2", "d3"]
    for docs in (None, DOCS):
        orders, repairs = replay(histories, {"q1": ORDER, "other": ["x"]}, ask, docs=docs)
        assert orders == {"q1": expected}
        assert repairs == {"missing": 1}


def test_a_list_below_the_window_and_one_without_calls(written):
    calls = [invocation("[2] > [1]", ["d0", "d1"])]
    histories = read_history(written([entry("a", calls), entry("b", []), entry("c", [])]))
    orders, repairs = replay(histories, {"a": ["d0", "d1"], "b": ["d3"], "c": []}, ask)
    assert orders == {"a": ["d1", "d0"], "b": ["d3"], "c": []}
    assert not repairs


def test_all_layouts_of_the_file(written, tmp_path):
    entries = [entry("a"), entry("b")]
    layouts = [
        written(entries, "list.json"),
        written("".join(json.dumps([e], indent=1) for e in entries), "appended.json"),
        written("\n\n".join(map(json.dumps, entries)) + "\n", "lines.jsonl"),
    ]
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(json.dumps(entries).encode()))
    for path in (*layouts, tmp_path / "packed.json.gz"):
        assert [history.query_id for history in read_history(path)] == ["a", "b"]


def test_prompts_in_turns_in_one_text_and_unknown_ones(written):
    turns = [
        {"role": "user", "content": "I will provide you with 2 passages"},
        {"role": "user", "content": "[1] one\n"},
        {"role": "assistant", "content": "Received passage [1]."},
        {"role": "user", "content": "[2] two"},
        {"role": "assistant", "content": "Received passage [2]."},
    ]
    text = "<|system|>\nRank.</s>\n<|user|>\n[1] one\n[2] two\nSearch Query: x [3] y\n<|assistant|>"
    prompts = [turns, text, None, 5, "Passage: one", [7, {"content": None}]]
    calls = [{"prompt": prompt, "response": "[1]"} for prompt in prompts]
    (history,) = read_history(written([entry(calls=calls)]))
    found = [call.passages for call in history.calls]
    assert found == [("one", "two"), ("one", "two"), (), (), (), ()]


def refusal(work):
    with pytest.raises(InputError) as refused:
        work()
    return str(refused.value)


@pytest.mark.parametrize(
    ("candidates", "window", "message"),
    [
        ({}, 4, "entry 1: the run has no candidates for query q1; give the run"),
        ({"q1": ORDER[:5]}, 4, "entry 1: query q1 has a call with 4 passages instead of 3"),
        ({"q1": ORDER[:4]}, 4, "entry 1: query q1 has 1 calls too many; give the run, depth"),
        ({"q1": [*ORDER, "d6", "d7"]}, 4, "entry 1: query q1 has only 2 calls"),
        ({"q1": ORDER}, 6, "entry 1: query q1 has a call with 4 passages instead of 6"),
        ({"q1": ORDER[::-1]}, 4, "entry 1: query q1 shows other passages; give the run, depth"),
    ],
)
def test_calls_that_do_not_fit_are_refused(written, candidates, window, message):
    histories = read_history(written([entry()]))
    make = partial(sliding_window, window=window, stride=2)
    docs = DOCS if "other passages" in message else None
    assert message in refusal(lambda: replay(histories, candidates, make, docs=docs))


def test_a_history_without_a_readable_answer_is_refused(written):
    calls = [{"prompt": None, "response": "[B] > [A]"}, {"prompt": None, "response": ""}]
    histories = read_history(written([entry(calls=calls)]))
    assert "no answer of this file names a passage" in refusal(
        lambda: replay(histories, {"q1": ORDER}, ask)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "history.json: no query; expected a history file of rank_llm"),
        ("", "history.json: the file is empty"),
        ('[\n{"query": ', "history.json, line 2: not JSON (Expecting value)"),
        ("[" * 100_000, "history.json, line 1: not JSON ("),
        ([7], "entry 1: expected query (text, qid) and invocations_history"),
        ([{"query": {"qid": 1, "text": "a"}}], "entry 1: expected query (text, qid)"),
        ([entry(calls=["x"])], "entry 1: expected query (text, qid)"),
        ([entry(calls=[{"response": None}])], "entry 1: the response None is not a text"),
        ([entry(qid=[1])], "entry 1: the qid [1] is not a text"),
        ([entry("a"), entry("a")], "entry 2: the qid a stands twice"),
    ],
)
def test_other_files_are_refused(written, content, message):
    assert message in refusal(lambda: read_history(written(content)))


# The recorded answers of RankVicuna


def folder_of(name):
    """A folder of the DATA that experiments/trec_dl takes; None if there is none."""
    if "RANKDISTILLM_DATA" in os.environ:
        beside = [Path(os.environ["RANKDISTILLM_DATA"]) / name]
    else:
        beside = [f for p in Path(__file__).resolve().parents for f in p.glob(f"*/data/{name}")]
    return next((folder for folder in beside if (folder / "windows").is_dir()), None)


DL20 = folder_of("trec-dl-2020")
recorded = pytest.mark.skipif(
    DL20 is None, reason="needs trec-dl-2020/windows; set RANKDISTILLM_DATA=FOLDER"
)
FIRST_STAGES = ["bm25", "splade-pp-ed"]


def ranked(path):
    lists = defaultdict(list)
    for line in path.read_text().splitlines():
        query_id, _, doc_id, *_ = line.split()
        lists[query_id].append(doc_id)
    return lists


def windows(first_stage):
    path = DL20 / "windows" / f"rankvicuna-{first_stage}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@recorded
@pytest.mark.parametrize("first_stage", FIRST_STAGES)
def test_recorded_answers_are_read_to_the_recorded_permutations(first_stage):
    complete = [window for window in windows(first_stage) if window["complete"]]
    assert len(complete) == 54 * 9
    for window in complete:
        order, repairs = read_order(window["response"], len(window["doc_ids"]))
        assert list(order) == window["permutation"]
        assert not repairs


@recorded
@pytest.mark.parametrize("first_stage", FIRST_STAGES)
def test_recorded_answers_rebuild_the_run_passage_for_passage(first_stage):
    answers = defaultdict(list)
    for window in windows(first_stage):
        answers[window["query_id"]].append(window)
    candidates = ranked(DL20 / "runs" / f"{first_stage}.run")
    teacher = ranked(DL20 / "runs" / f"rankvicuna-{first_stage}.run")
    assert answers.keys() == teacher.keys()
    for query_id, of_query in answers.items():
        left = iter(of_query)

        def answer(question, left=left):
            return read_order(next(left)["response"], len(question)).order

        assert answer_all(sliding_window(candidates[query_id]), answer) == teacher[query_id]
        assert not list(left)


def texts_of_passages():
    lines = (DL20 / "docs.tsv").read_text().splitlines()
    return dict(line.split("\t", 1) for line in lines)


@recorded
def test_recorded_answers_of_a_server_rebuild_the_run(tmp_path):
    queries, answers = {}, defaultdict(list)
    for window in windows("bm25"):
        queries[window["query_id"]] = window["query"]
        answers[window["query"]].append(window["response"])
    left = {query: iter(responses) for query, responses in answers.items()}

    async def ask_all(url):
        backend = OpenAIEndpoint("rankvicuna", base_url=url)
        candidates = Run.read(DL20 / "runs" / "bm25.run").select(queries)
        try:
            with AnswerStore(tmp_path / "answers") as store:
                return await rank_all(
                    queries, candidates, texts_of_passages(), sliding_window, prompt_of(tmp_path),
                    backend, store=store, progress=False,
                )  # fmt: skip
        finally:
            await backend.close()

    # The windows of a query come one after the other; the prompt begins with the query.
    with serving(lambda text, _: completion(next(left[text.split("\n")[0]]))) as endpoint:
        run, tally = asyncio.run(ask_all(endpoint.url))
    assert {query_id: list(run[query_id].doc_ids) for query_id in run} == ranked(
        DL20 / "runs" / "rankvicuna-bm25.run"
    )
    assert (tally.calls, tally.failed, tally.repairs) == (54 * 9, {}, {})


@recorded
def test_recorded_answers_as_a_history_rebuild_the_run(tmp_path):
    histories = {}
    for window in windows("bm25"):
        lines = "".join(f"[{i}] {text}\n" for i, text in enumerate(window["passages"], 1))
        history = histories.setdefault(
            window["query_id"],
            {
                "query": {"qid": window["query_id"], "text": window["query"]},
                "invocations_history": [],
            },
        )
        history["invocations_history"].append({"prompt": lines, "response": window["response"]})
    path = tmp_path / "history.json"
    path.write_text(json.dumps(list(histories.values())))
    docs = texts_of_passages()
    candidates = ranked(DL20 / "runs" / "bm25.run")
    read = read_history(path)
    orders, repairs = replay(read, candidates, sliding_window, docs=docs)
    assert orders == ranked(DL20 / "runs" / "rankvicuna-bm25.run")
    assert not repairs
    other = ranked(DL20 / "runs" / "splade-pp-ed.run")
    with pytest.raises(InputError, match="shows other passages"):
        replay(read, other, sliding_window, docs=docs)
