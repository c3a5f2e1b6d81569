"""Tiny random models through transformers: batches, log-probabilities, scores, and their limits."""

import asyncio
import itertools

import pytest
import torch
import transformers

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.teachers.ask import AskOptions, rank_all
from rankdistillm.teachers.backends import Backend, ContextTooLong, QueryFailed, ScoringBackend
from rankdistillm.teachers.local_model import LanguageModel, LocalChat, QueryLikelihood, YesNo
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.rankings import pointwise, sliding_window
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import ORDER
from tests.helpers import DOCS, tokenizer_for, write_language_model

SCORE = '{% set answer = "score" %}{{ query }} {{ passages[0] }}'
LIKELIHOOD = """{% set answer = "score" %}
{% call user() %}passage {{ passages[0] }}{% endcall %}
{% call assistant() %}{{ query }}{% endcall %}
"""
MESSAGES = [
    [{"role": "user", "content": text}]
    for text in ("tide", "bread rises in an oven " * 3, "the moon")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("t5"), "t5", chat=False)


def load(folder, **options):
    return LanguageModel.from_pretrained(folder, device="cpu", precision="fp32", **options)


def prompt_of(tmp_path, source):
    (tmp_path / "prompt.jinja").write_text(source)
    return Prompt.load(tmp_path / "prompt.jinja")


def complete_all(chat, messages, **options):
    options = {"max_tokens": 8, "temperature": 0.0} | options

    async def go():
        try:
            return await asyncio.gather(*(chat.complete(m, **options) for m in messages))
        finally:
            await chat.close()

    return asyncio.run(go())


def next_logprobs(model, ids, **inputs):
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([ids]), **inputs).logits[0].double()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_answers_as_one_question_at_a_time(folder, batch_size):
    model = load(folder)
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


def test_the_chat_template_is_applied(folder):
    model = load(folder)
    decode = model.tokenizer.decode
    turns = [{"role": "system", "content": "tide"}, {"role": "user", "content": "moon"}]
    assert decode(model.encode(turns)) == (
        decode(model.tokenizer("[CLS] system tide [SEP] [CLS] user moon [SEP] [CLS] assistant",
                               add_special_tokens=False).input_ids)
    )  # fmt: skip
    begun = model.encode([*turns, {"role": "assistant", "content": "bread"}])
    assert decode(begun[-1:]) == "bread"


def test_a_model_without_a_chat_template_gets_the_text(tmp_path):
    model = load(write_language_model(tmp_path, chat=False))
    turns = [{"role": "system", "content": "tide"}, {"role": "user", "content": "moon"}]
    assert model.encode(turns) == model.tokenizer("tide\n\nmoon").input_ids


def test_a_template_that_refuses_the_prompt(folder):
    model = load(folder)
    model.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"refuses the prompt .*System role not supported"):
        model.encode(MESSAGES[0])


def test_log_probabilities_of_the_first_token(folder):
    model = load(folder)
    found = complete_all(LocalChat(model), MESSAGES, max_tokens=1, top_logprobs=5)
    for messages, completion in zip(MESSAGES, found, strict=True):
        values, ids = next_logprobs(model, model.encode(messages))[-1].topk(5)
        (top,) = completion.top_logprobs
        assert list(top) == [model.tokenizer.decode([i]) for i in ids.tolist()]
        assert list(top.values()) == pytest.approx(values.tolist(), abs=1e-4)
        assert completion.output_tokens == 1


def test_questions_with_other_options_are_other_batches(folder):
    chat = LocalChat(load(folder))

    async def go():
        options = [{"max_tokens": n, "temperature": 0.0} for n in (1, 5, 1)]
        return await asyncio.gather(
            *(chat.complete(m, **o) for m, o in zip(MESSAGES, options, strict=True))
        )

    assert all(c.output_tokens <= n for c, n in zip(asyncio.run(go()), (1, 5, 1), strict=True))


def test_what_exceeds_the_context_is_refused(folder, tmp_path):
    model = load(folder)
    long = [{"role": "user", "content": "tide " * 250}]
    with pytest.raises(ContextTooLong, match="exceed the model's context of 256"):
        complete_all(LocalChat(model), [long])
    with pytest.raises(ContextTooLong):
        YesNo(model, prompt_of(tmp_path, SCORE), yes="a", no="b").score("q", ["tide " * 300])


def test_odds_of_yes_against_no(folder, tmp_path):
    model, prompt = load(folder, token_budget=30), prompt_of(tmp_path, SCORE)
    scorer = YesNo(model, prompt, yes="a", no="b")
    assert isinstance(scorer, ScoringBackend)
    found = scorer.score("bread", DOCS)
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("a", "b"))
    for doc, score in zip(DOCS, found, strict=True):
        last = next_logprobs(model, model.encode(prompt.messages(query="bread", passages=[doc])))[
            -1
        ]
        assert score == pytest.approx(float(last[yes] - last[no]), abs=1e-4)
    assert len(set(found)) == len(DOCS)


def test_words_of_several_tokens_are_refused(folder, tmp_path):
    for word in ("tide moon", "", "潮"):
        with pytest.raises(InputError, match="not a single token"):
            YesNo(load(folder), prompt_of(tmp_path, SCORE), yes=word)


@pytest.mark.parametrize("chat", [True, False])
def test_query_likelihood(tmp_path, chat):
    model = load(write_language_model(tmp_path / "model", chat=chat), token_budget=100)
    scorer = QueryLikelihood(model, prompt_of(tmp_path, LIKELIHOOD))
    query = "why do tides turn"
    tokens = model.tokenizer(query, add_special_tokens=False).input_ids
    assert len(tokens) > 1
    for doc, score in zip(DOCS, scorer.score(query, DOCS), strict=True):
        ids = model.encode([{"role": "user", "content": f"passage {doc}"}])
        logprobs = next_logprobs(model, ids + tokens)[len(ids) - 1 : -1]
        expected = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].mean()
        assert score == pytest.approx(float(expected), abs=1e-4)
    assert scorer.score("", DOCS) == [0.0] * len(DOCS)


def test_query_likelihood_needs_the_query_in_a_turn_of_its_own(folder, tmp_path):
    model = load(folder)
    with pytest.raises(InputError, match="needs a prompt of at least two turns"):
        QueryLikelihood(model, prompt_of(tmp_path, SCORE))


def test_an_encoder_decoder_as_mono_t5(t5, tmp_path):
    model, prompt = load(t5), prompt_of(tmp_path, SCORE)
    assert model.context is None
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("a", "b"))
    found = YesNo(model, prompt, yes="a", no="b").score("bread", DOCS)
    for doc, score in zip(DOCS, found, strict=True):
        ids = model.encode(prompt.messages(query="bread", passages=[doc]))
        (first,) = next_logprobs(model, ids, decoder_input_ids=torch.tensor([[0]]))
        assert score == pytest.approx(float(first[yes] - first[no]), abs=1e-4)
    (answer,) = complete_all(LocalChat(model), MESSAGES[:1])
    assert answer.output_tokens <= 8


def test_a_batch_that_exceeds_the_memory_is_halved(folder, monkeypatch):
    model = load(folder)
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


def test_what_is_no_whole_language_model_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="give the folder or hub id of a language model"):
        load(tmp_path / "nothing")
    model = transformers.LlamaModel.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tokenizer_for("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not a whole language model"):
        load(tmp_path)


@pytest.mark.parametrize("way", ["listwise", "letters", "yes_no", "likelihood"])
def test_end_to_end(folder, tmp_path, way):
    queries = {"q1": "why do tides turn", "q2": "how is bread made"}
    docs = {f"d{i}": doc for i, doc in enumerate(DOCS)}
    candidates = Run.from_scores({q: {d: -i for i, d in enumerate(docs)} for q in queries})
    model = load(folder)
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
            ranked, report = asyncio.run(
                rank_all(
                    queries, candidates, docs, ranking, prompt, backend, store=store,
                    progress=False, options=AskOptions(max_tokens=8),
                )
            )  # fmt: skip
            assert (report.calls, report.failed) == (calls, {})
            runs.append({q: (ranked[q].doc_ids, ranked[q].scores.tolist()) for q in ranked})
    assert runs[0] == runs[1]
    for doc_ids, scores in runs[0].values():
        assert sorted(doc_ids) == sorted(docs)
        assert all(a >= b for a, b in itertools.pairwise(scores))
