"""Tiny random models that write: batches, log-probabilities, and the limits of memory."""

import asyncio
import itertools
import json

import pytest
import torch

from rankdistillm.data.runs import Run
from rankdistillm.teachers.answers import read_query
from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.backends import Backend, QueryFailed
from rankdistillm.teachers.local_chat import LocalChat
from rankdistillm.teachers.local_scorers import QueryLikelihood, YesNo
from rankdistillm.teachers.questions import AskOptions
from rankdistillm.teachers.rankings import pointwise, sliding_window
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import ORDER, prompt_of
from tests.helpers import DOCS, load_language_model, next_logprobs, write_language_model
from tests.teacher import LIKELIHOOD, SCORE, complete_all

MESSAGES = [
    [{"role": "user", "content": text}]
    for text in ("tide", "bread rises in an oven " * 3, "the moon")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("causal"))


def test_the_first_batch_says_what_is_under_way(folder, caplog):
    caplog.set_level("INFO")
    complete_all(LocalChat(load_language_model(folder), batch_size=2), MESSAGES)
    said = [message for message in caplog.messages if "first" in message]
    assert len(said) == 1
    assert "answers its first 2 questions on cpu, all at once" in said[0]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_answers_as_one_question_at_a_time(folder, batch_size):
    model = load_language_model(folder)
    chat = LocalChat(model, batch_size=batch_size)
    assert isinstance(chat, Backend)
    for messages, found in zip(MESSAGES, complete_all(chat, MESSAGES), strict=True):
        ids = model.encode(messages)
        expected = list(ids)
        for _ in range(8):  # greedy, by hand
            expected.append(int(next_logprobs(model, expected)[-1].argmax()))
            if expected[-1] in model.ends:
                break
        answer = expected[len(ids) :]
        assert found.text == model.tokenizer.decode(answer, skip_special_tokens=True)
        assert (found.input_tokens, found.output_tokens) == (len(ids), len(answer))
        assert found.top_logprobs is None
        assert found.cut_off is (answer[-1] not in model.ends)


def test_log_probabilities_of_the_first_token(folder):
    model = load_language_model(folder)
    found = complete_all(LocalChat(model), MESSAGES, max_tokens=1, top_logprobs=5)
    for messages, completion in zip(MESSAGES, found, strict=True):
        values, ids = next_logprobs(model, model.encode(messages))[-1].topk(5)
        (top,) = completion.top_logprobs
        assert list(top) == [model.tokenizer.decode([i]) for i in ids.tolist()]
        assert list(top.values()) == pytest.approx(values.tolist(), abs=1e-4)
        assert completion.output_tokens == 1


def with_line_break(folder, word):
    """In the tokeniser of the folder, make a word end with a line break and another word."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[f"{word}\nPassage"] = vocabulary.pop(word)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("chat", [True, False])
def test_a_base_model_stops_after_the_first_line(tmp_path, chat):
    folder = write_language_model(tmp_path / "model", chat=chat)
    messages = MESSAGES[::2]  # one answer has the line break, the other goes on
    whole = complete_all(LocalChat(load_language_model(folder)), messages, max_tokens=12)
    first, other = ([word for word in c.text.split() if word.isalpha()] for c in whole)
    word = next(w for w in first[2:] if w not in other and first.count(w) == 1)
    with_line_break(folder, word)
    loaded = LocalChat(load_language_model(folder))
    found = complete_all(loaded, messages, max_tokens=12, first_line=True)
    assert found[1] == whole[1]
    assert found[1].output_tokens == 12
    if chat:  # it may be thinking
        assert found[0].output_tokens == whole[0].output_tokens
        assert f"{word}\nPassage " in found[0].text
    else:
        begin, _, rest = whole[0].text.partition(word)
        assert rest
        assert found[0].text == f"{begin}{word}\n"
        assert found[0].output_tokens < whole[0].output_tokens
        assert not found[0].cut_off
        assert read_query(found[0].text) == (f"{begin}{word}", frozenset())
    # All other questions get the whole answer.
    assert complete_all(loaded, messages, max_tokens=12)[0].output_tokens == 12


def test_questions_with_other_options_are_other_batches(folder):
    chat = LocalChat(load_language_model(folder))

    async def go():
        options = [{"max_tokens": n, "temperature": 0.0} for n in (1, 5, 1)]
        return await asyncio.gather(
            *(chat.complete(m, **o) for m, o in zip(MESSAGES, options, strict=True))
        )

    assert all(c.output_tokens <= n for c, n in zip(asyncio.run(go()), (1, 5, 1), strict=True))


def test_a_batch_that_exceeds_the_memory_is_halved(folder, monkeypatch):
    model = load_language_model(folder)
    expected = complete_all(LocalChat(model), MESSAGES)
    generate = model._generate

    def small(prompts, *options):
        if len(prompts) > most or max(map(len, prompts)) > longest:
            raise torch.OutOfMemoryError
        return generate(prompts, *options)

    monkeypatch.setattr(model, "_generate", small)
    most, longest = 1, 10**6
    assert complete_all(LocalChat(model), MESSAGES) == expected
    most = 0
    with pytest.raises(QueryFailed, match="does not fit into the device's memory"):
        complete_all(LocalChat(model), MESSAGES)

    most, longest = 16, len(model.encode(MESSAGES[1])) - 1  # one question does not fit, two do

    async def go():
        chat = LocalChat(model)
        asked = (chat.complete(m, max_tokens=8, temperature=0.0) for m in MESSAGES)
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = asyncio.run(go())
    assert [first, last] == [expected[0], expected[2]]
    assert isinstance(failed, QueryFailed)


@pytest.mark.parametrize("way", ["listwise", "letters", "yes_no", "likelihood"])
def test_end_to_end(folder, tmp_path, way):
    queries = {"q1": "why do tides turn", "q2": "how is bread made"}
    docs = {f"d{i}": doc for i, doc in enumerate(DOCS)}
    candidates = Run.from_scores({q: {d: -i for i, d in enumerate(docs)} for q in queries})
    model = load_language_model(folder)
    prompt, ranking = None, pointwise
    if way == "listwise":
        backend, ranking = LocalChat(model), sliding_window
        prompt = prompt_of(tmp_path, ORDER)
    elif way == "letters":
        backend, ranking = LocalChat(model), sliding_window
        prompt = prompt_of(tmp_path, '{% set answer = "letters" %}' + ORDER)
    elif way == "yes_no":
        backend = YesNo(model, prompt_of(tmp_path, SCORE), yes="a", no="b")
    else:
        backend = QueryLikelihood(model, prompt_of(tmp_path, LIKELIHOOD))
    runs = []
    with AnswerStore(tmp_path / "answers") as store:
        for calls in (2 if prompt else 10, 0):
            ranked, tally = asyncio.run(
                rank_all(
                    queries, candidates, docs, ranking, prompt, backend, store=store,
                    progress=False, options=AskOptions(max_tokens=8),
                )
            )  # fmt: skip
            assert (tally.calls, tally.failed) == (calls, {})
            runs.append({q: (ranked[q].doc_ids, ranked[q].scores.tolist()) for q in ranked})
    assert runs[0] == runs[1]
    for doc_ids, scores in runs[0].values():
        assert sorted(doc_ids) == sorted(docs)
        assert all(a >= b for a, b in itertools.pairwise(scores))
