"""An endpoint that works, is slow, refuses, breaks or lies; and where its key does not go."""

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from math import log

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import Backend, Completion, ContextTooLong, QueryFailed
from rankdistillm.teachers.openai_endpoint import OpenAIEndpoint
from tests.endpoint import Reply, completion, error, serving

MESSAGES = [{"role": "system", "content": "rank"}, {"role": "user", "content": "these"}]
FAST = {"first_wait": 0.001, "longest_wait": 0.01, "timeout": 60.0, "attempts": 4}
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(script, *, times=1, top_logprobs=None, **options):
    """The answers (or errors) to the same question, the server's record and the backend."""

    async def go(url):
        backend = OpenAIEndpoint("m", base_url=url, **(FAST | options))
        assert isinstance(backend, Backend)
        found = []
        for _ in range(times):
            try:
                found.append(
                    await backend.complete(
                        MESSAGES, max_tokens=50, temperature=0.0, top_logprobs=top_logprobs
                    )
                )
            except Exception as problem:
                found.append(problem)
        await backend.close()
        return found, backend

    with serving(script) as endpoint:
        found, backend = asyncio.run(go(endpoint.url))
    return found, endpoint, backend


def choice(text, **fields):
    """An answer with other fields than a sound one."""
    reply = completion(text)
    reply.body["choices"][0] |= fields
    return reply


def test_question_and_answer():
    (found,), endpoint, backend = ask(lambda *_: completion("[2] > [1]"))
    assert found == Completion("[2] > [1]", input_tokens=100, output_tokens=10)
    assert backend.retries == 0
    assert endpoint.bodies == [
        {"model": "m", "messages": MESSAGES, "max_tokens": 50, "temperature": 0.0}
    ]


def test_options_of_the_endpoint():
    (_,), endpoint, backend = ask(
        lambda *_: completion("x"),
        length_option="max_completion_tokens",
        sends_temperature=False,
        extra={"reasoning_effort": "low"},
    )
    assert endpoint.bodies == [
        {
            "model": "m",
            "messages": MESSAGES,
            "max_completion_tokens": 50,
            "reasoning_effort": "low",
        }
    ]
    assert backend.options == {"reasoning_effort": "low", "sends_temperature": False}


def test_log_probabilities():
    top = [{"A": -0.1, " B": -2.5}]
    (found,), endpoint, _ = ask(lambda *_: completion("A", top), top_logprobs=20)
    assert found.top_logprobs == top
    assert endpoint.bodies[0]["logprobs"] is True
    assert endpoint.bodies[0]["top_logprobs"] == 20
    (found,), _, _ = ask(lambda *_: completion("A"), top_logprobs=20)
    assert isinstance(found, QueryFailed)
    assert "returns no log-probabilities" in str(found)


def test_log_probabilities_of_tokens_that_read_alike():
    sound = completion("A", [{"A": -1.0}])
    (listed,) = sound.body["choices"][0]["logprobs"]["content"]
    listed["top_logprobs"] += [{"token": "A", "logprob": -1.0}, {"token": "B", "logprob": None}]
    (found,), _, _ = ask(lambda *_: sound, top_logprobs=20)
    (top,) = found.top_logprobs
    assert top == pytest.approx({"A": log(2) - 1.0})


@pytest.mark.parametrize(
    "trouble",
    [
        error(429, "slow down"),
        error(500, "oops"),
        error(503, "loading model"),
        error(408, "too slow"),
        Reply(502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
        Reply(drop="before"),
        Reply(body={"choices": []}, drop="inside"),
        Reply(body=b"<html>sign in</html>", headers={"Content-Type": "text/html"}),
        Reply(body=b'{"choices": [{"mess'),
        Reply(body={"error": {"message": "upstream is overloaded", "code": 502}}),
        Reply(body={"choices": []}),
        Reply(body=[1, 2]),
        choice("[2] > [1]", finish_reason="error"),
        choice("A", logprobs={"content": [{"token": "A", "top_logprobs": None}]}),
        Reply(body=None),
    ],
    ids=str,
)
def test_passing_trouble_is_asked_again_with_a_limit(trouble):
    sound = completion("[1]")
    (found,), endpoint, backend = ask(lambda _, n: trouble if n < 3 else sound)
    assert isinstance(found, Completion)
    assert found.text == "[1]"
    assert (endpoint.asked.total(), backend.retries) == (3, 2)

    (found,), endpoint, _ = ask(lambda *_: trouble)
    assert isinstance(found, QueryFailed)
    assert str(found).startswith("http://127.0.0.1:")
    assert str(found).endswith(", 4 times")
    assert "\n" not in str(found)
    assert endpoint.asked.total() == 4


def test_a_server_that_is_too_slow_is_asked_again():
    (found,), endpoint, _ = ask(
        lambda _, n: Reply(body={}, seconds=2.5) if n == 1 else completion("[1]"), timeout=1.0
    )
    assert found.text == "[1]"
    assert endpoint.asked.total() >= 2


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    async def go():
        backend = OpenAIEndpoint("m", base_url=url, **FAST)
        try:
            await backend.complete(MESSAGES, max_tokens=5, temperature=0.0)
        finally:
            await backend.close()

    with pytest.raises(QueryFailed, match=r"127\.0\.0\.1:\d+ cannot be reached .*, 4 times"):
        asyncio.run(go())


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form):
    def script(_, n):
        after = "0.3" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return error(429, "slow down", {"Retry-After": after}) if n == 1 else completion("[1]")

    started = time.monotonic()
    (found,), _, _ = ask(script)
    assert found.text == "[1]"
    assert time.monotonic() - started >= 0.3


def test_waits_that_no_user_wants_end_the_query():
    (found,), endpoint, _ = ask(lambda *_: error(429, "tomorrow", {"Retry-After": "86400"}))
    assert isinstance(found, QueryFailed)
    assert "86400 s" in str(found)
    (used_up,), other, _ = ask(lambda *_: error(429, "pay first", code="insufficient_quota"))
    assert "pay first" in str(used_up)
    assert endpoint.asked.total() == other.asked.total() == 1


@pytest.mark.parametrize("header", ["soon", "", "nan", "-5", "Thu, 99 Foo 2020"])
def test_an_unreadable_retry_after_is_ignored(header):
    (found,), _, _ = ask(
        lambda _, n: error(429, "wait", {"Retry-After": header}) if n == 1 else completion("[1]")
    )
    assert found.text == "[1]"


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size, try increasing it",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Your input exceeds the context window of this model.",
        "context_length_exceeded",
        "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
        "This model's maximum prompt length is 4096 but the request contains 5000 tokens.",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
    ],
)
def test_a_question_that_is_too_long(said):
    (found,), endpoint, _ = ask(lambda *_: error(400, said))
    assert isinstance(found, ContextTooLong)
    assert said in str(found)
    assert endpoint.asked.total() == 1


def test_a_question_that_is_too_long_by_its_code():
    (found,), _, _ = ask(
        lambda *_: Reply(400, {"error": {"message": "no", "code": "context_length_exceeded"}})
    )
    assert isinstance(found, ContextTooLong)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_any_other_error_ends_the_query_at_once(status):
    (found,), endpoint, _ = ask(lambda *_: error(status, "no such\nmodel [3] > [1]"))
    assert isinstance(found, QueryFailed)
    assert str(found).endswith(f"answers {status}: no such model [3] > [1]")
    assert endpoint.asked.total() == 1


def test_an_answer_that_reached_the_longest_length_is_marked():
    (found,), _, _ = ask(lambda *_: choice("[2] > [", finish_reason="length"))
    assert found == Completion("[2] > [", 100, 10, cut_off=True)


def test_a_prompt_that_begins_the_answer_gives_one_warning(caplog):
    def warnings(messages, **options):
        async def go(url):
            backend = OpenAIEndpoint("m", base_url=url, **FAST, **options)
            for _ in range(2):
                await backend.complete(messages, max_tokens=1, temperature=0.0)
            await backend.close()

        caplog.clear()
        with serving(lambda *_: completion("1]")) as endpoint:
            asyncio.run(go(endpoint.url))
        assert endpoint.bodies[0].get("continue_final_message") is options.get("extra", {}).get(
            "continue_final_message"
        )
        return [r.getMessage() for r in caplog.records if "begins the answer" in r.message]

    begun = [*MESSAGES, {"role": "assistant", "content": "["}]
    (said,) = warnings(begun)
    assert "extra={add_generation_prompt: false, continue_final_message: true}" in said
    goes_on = {"add_generation_prompt": False, "continue_final_message": True}
    assert not warnings(begun, extra=goes_on)
    assert not warnings(MESSAGES)


def test_texts_that_are_odd_or_missing():
    odd = [completion(None), completion("\ud800 [1]"), completion("", usage=None)]
    odd.append(completion("[1]"))
    del odd[-1].body["choices"][0]["finish_reason"]
    found, _, _ = ask(lambda _, n: odd[n - 1], times=4)
    assert [f.text for f in found] == ["", "? [1]", "", "[1]"]
    refused = completion(None)
    refused.body["choices"][0]["message"]["refusal"] = "I cannot rank these."
    (found,), _, _ = ask(lambda *_: refused)
    assert found.text == "I cannot rank these."


def test_tokens_that_are_not_reported_are_estimated_and_said_once(caplog):
    found, _, _ = ask(lambda *_: completion("x" * 40, usage=None), times=2)
    assert [(f.input_tokens, f.output_tokens) for f in found] == [(3, 10)] * 2
    assert sum("reports no tokens" in r.message for r in caplog.records) == 1


def test_the_key_goes_to_the_endpoint_and_nowhere_else(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")

    def script(_, n):
        if n == 1:
            return error(500, f"while {KEY} was served")
        if n == 2:
            return error(401, f"Incorrect API key provided: {KEY}")
        return error(400, f"maximum context length of {KEY} is 12")

    found, endpoint, backend = ask(script, times=2, key_variable="MY_KEY")
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert isinstance(found[0], QueryFailed)
    assert isinstance(found[1], ContextTooLong)
    assert "Incorrect API key provided: [key]" in str(found[0])
    for problem in found:
        assert problem.__cause__ is None
        assert problem.__context__ is None
    shown = [caplog.text, *map(repr, found), *map(str, found), repr(backend.options), backend.name]
    assert "asked again" in caplog.text
    assert not [r for r in caplog.records if r.name.startswith("httpx")]  # a line a request
    assert not any(KEY in text for text in shown)


def test_an_address_with_a_password_is_not_repeated():
    backend = OpenAIEndpoint("m", base_url="http://user:hidden@localhost:8000/v1")
    assert backend.where == "http://localhost:8000"
    asyncio.run(backend.close())


def test_what_is_missing_is_said_before_anything_is_asked(monkeypatch):
    with pytest.raises(InputError, match="OPENAI_API_KEY holds no key"):
        OpenAIEndpoint("gpt")
    with pytest.raises(InputError, match="MY_KEY holds no key"):
        OpenAIEndpoint("gpt", key_variable="MY_KEY")
    with pytest.raises(InputError, match="base_url=localhost:8000 is no address"):
        OpenAIEndpoint("m", base_url="localhost:8000")
    with pytest.raises(InputError, match="attempts=0"):
        OpenAIEndpoint("m", base_url="http://localhost/v1", attempts=0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    backend = OpenAIEndpoint("m")
    assert backend.where == "http://localhost:1"
    asyncio.run(backend.close())
