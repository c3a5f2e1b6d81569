"""Teachers that answer by what they are given, and `rank_all` on them."""

import asyncio
from collections import Counter

from rankdistillm.teachers.ask import rank_all
from rankdistillm.teachers.backends import Completion, ContextTooLong
from rankdistillm.teachers.store import AnswerStore
from tests.endpoint import ORDER, oracle, prompt_of, windows

SCORE = '{% set answer = "score" %}{{ query }} {{ passages[0] }}'
LETTERS = '{% set answer = "letters" %}' + ORDER
BEST = '{% set answer = "best" %}' + ORDER
LIKELIHOOD = """{% set answer = "score" %}
{% call user() %}passage {{ passages[0] }}{% endcall %}
{% call assistant() %}{{ query }}{% endcall %}
"""


def by_relevance(doc_ids, docs):
    return sorted(doc_ids, key=lambda doc_id: -int(docs[doc_id].split()[1]))


class Model:
    """Answers as `answer` does; counts its questions, and how many are under way at once."""

    name = identity = "model"

    def __init__(self, answer=None, options=None):
        self.answer = answer or (lambda text: Completion(oracle_text(text), 100, 10))
        self.options = options or {}
        self.asked = Counter()
        self.sent = []
        self.under_way = self.most = 0

    async def complete(
        self, messages, *, max_tokens, temperature, top_logprobs=None, first_line=False
    ):
        text = messages[-1]["content"]
        self.asked[text] += 1
        self.sent.append((max_tokens, temperature, top_logprobs))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return self.answer(text)

    async def close(self):
        pass


class Scorer:
    """Scores a passage by its relevance."""

    name = identity = "scorer"
    options = {"length": 5}  # noqa: RUF012
    cuts_passages = False

    def __init__(self, longest=10**6):
        self.longest = longest
        self.calls = []

    def score(self, query, passages):
        self.calls.append(len(passages))
        if max(map(len, passages)) > self.longest:
            raise ContextTooLong("too long")
        return [float(passage.split()[1]) / 8 for passage in passages]


def oracle_text(text):
    return oracle(text).body["choices"][0]["message"]["content"]


def ask(tmp_path, given, backend, *, ranking=windows, source=ORDER, store="answers", **options):
    prompt = None if isinstance(backend, Scorer) else prompt_of(tmp_path, source)
    with AnswerStore(tmp_path / store) as answers:
        return asyncio.run(
            rank_all(*given, ranking, prompt, backend, store=answers, progress=False, **options)
        )


def orders(run):
    return {query_id: run[query_id].doc_ids for query_id in run}


def complete_all(chat, messages, **options):
    options = {"max_tokens": 8, "temperature": 0.0} | options

    async def go():
        try:
            return await asyncio.gather(*(chat.complete(m, **options) for m in messages))
        finally:
            await chat.close()

    return asyncio.run(go())
