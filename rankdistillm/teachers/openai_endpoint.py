"""Ask an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama or a hosted one."""

import asyncio
import logging
import os
import random
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

from rankdistillm.errors import InputError, check_count, check_number, printable
from rankdistillm.teachers.answers import sum_by_text
from rankdistillm.teachers.backends import (
    Completion,
    ContextTooLong,
    Messages,
    QueryFailed,
    estimated_tokens,
)

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
# OpenAI and vLLM: "maximum context length"; llama.cpp: "exceeds the available context size"; TGI:
# "`inputs` tokens + `max_new_tokens`"; Gemini: "maximum number of tokens allowed"; xAI:
# "maximum prompt length"; others: "prompt is too long", "context window", or only a code.
TOO_LONG = re.compile(
    r"context.{0,3}(length|window|size)|maximum context|(prompt|input) is too long"
    r"|maximum (prompt length|number of tokens allowed)|`inputs` tokens",
    re.I,
)
LONGEST_MESSAGE = 200
LONGEST_RETRY_AFTER = 600.0  # seconds; a longer wait is a limit of a day or an account


class OpenAIEndpoint:
    """A chat model behind an OpenAI-compatible endpoint, asked through the ``openai`` client.

    Rate limits (429), errors of the server (5xx), time-outs, dropped connections and answers that
    are no chat completion are asked again: up to ``attempts`` times in all, after a wait that
    doubles from ``first_wait`` to ``longest_wait`` seconds, with jitter. If the server names a
    time (Retry-After) of up to ten minutes, the wait is at least that. Any other error ends the
    query at once.

    Args:
        model: the model as the endpoint calls it.
        base_url: where the endpoint is, e.g. ``http://localhost:8000/v1``; None: OpenAI's own, or
            the environment's OPENAI_BASE_URL.
        key_variable: the environment variable that holds the key. A server of one's own needs
            none. The key is in no message, log or store.
        timeout: seconds for one attempt.
        length_option: the option's name for the longest answer; OpenAI's reasoning models want
            ``max_completion_tokens``.
        sends_temperature: False leaves the temperature out, for models that take none.
        extra: more options in the body, e.g. ``{"chat_template_kwargs": {"enable_thinking":
            False}}`` for vLLM; for a prompt that begins the answer, vLLM needs
            ``{"add_generation_prompt": False, "continue_final_message": True}``. They are part of
            the store's key. Without the latter, a prompt that begins the answer gives a warning.

    Raises `InputError` if the package ``openai`` or OpenAI's key is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout: float = 600.0,
        attempts: int = 8,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        length_option: str = "max_tokens",
        sends_temperature: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("attempts", attempts)
        for name, seconds in (
            ("timeout", timeout),
            ("first_wait", first_wait),
            ("longest_wait", longest_wait),
        ):
            check_number(name, seconds, above=0)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_variable):
            # Not shown: it may be the key itself.
            raise InputError("key_variable is no name of an environment variable; give the name")
        try:
            import openai
        except ImportError as error:
            raise InputError(
                "asking an endpoint needs the package openai; pip install 'rankdistillm[teach]'"
            ) from error
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and base_url is None:
            raise InputError(
                f"the environment variable {key_variable} holds no key; set it, or give the "
                "address of your own endpoint (base_url)"
            )
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise InputError(f"base_url={base_url} is no address; write http://HOST:PORT/v1")
        # They log every request at INFO, with the password of an address that has one.
        for name in ("httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._openai = openai
        # The client insists on a key; servers without keys ignore it.
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=base_url, max_retries=0, timeout=timeout
        )
        address = urlsplit(str(self._client.base_url))
        self.where = f"{address.scheme}://{address.hostname}" + (
            f":{address.port}" if address.port else ""
        )
        self.name = self.identity = model
        self._extra = dict(extra or {})
        self.options: dict[str, Any] = {
            **self._extra,
            **({} if sends_temperature else {"sends_temperature": False}),
        }
        self.timeout = timeout
        self.attempts = attempts
        self.first_wait, self.longest_wait = first_wait, longest_wait
        self.length_option, self.sends_temperature = length_option, sends_temperature
        self.retries = 0
        self._usage_seen = True
        self._continues = bool(self._extra.get("continue_final_message"))

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
        first_line: bool = False,
    ) -> Completion:
        """Ask, and ask again as long as it may help; see `Backend.complete`."""
        # No stop at a line break for ``first_line``: these are chat models, which end their answers
        # themselves, and one that thinks, or begins with a line break, would be cut before it.
        if messages[-1]["role"] == "assistant" and not self._continues:
            self._continues = True  # one warning is enough
            log.warning(
                "the prompt begins the answer, which not every endpoint goes on with; vLLM needs "
                "extra={add_generation_prompt: false, continue_final_message: true}"
            )
        body: dict[str, Any] = {self.length_option: max_tokens}
        if self.sends_temperature:
            body["temperature"] = temperature
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        for attempt in range(1, self.attempts + 1):
            found = await self._ask(messages, body)
            if isinstance(found, Completion):
                if top_logprobs is not None and not found.top_logprobs:
                    raise QueryFailed(f"{self.where} returns no log-probabilities of tokens")
                return found
            if attempt == self.attempts:
                break
            wait = min(self.longest_wait, self.first_wait * 2 ** (attempt - 1))
            wait *= random.uniform(0.5, 1.0)  # so that refused questions do not return together
            if found.retry_after is not None:
                wait += found.retry_after
            level = logging.DEBUG if self.retries else logging.INFO  # one line says enough
            log.log(level, "%s; asked again in %.1f s", found, wait)
            self.retries += 1
            await asyncio.sleep(wait)
        raise QueryFailed(f"{found}, {self.attempts} times")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, messages: Messages, body: Mapping[str, Any]) -> "Completion | _Transient":
        """One attempt. Raises `ContextTooLong` and `QueryFailed` where another would not help."""
        openai = self._openai
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._client.chat.completions.create(
                    model=self.name,
                    messages=[dict(message) for message in messages],  # type: ignore[misc]
                    extra_body={**body, **self._extra},
                )
            return self._read(response, messages)
        except (TimeoutError, openai.APITimeoutError):
            error: QueryFailed | ContextTooLong | _Transient = _Transient(
                f"{self.where} gave no answer in {self.timeout:g} s"
            )
        except openai.APIConnectionError as dropped:
            cause = dropped.__cause__ or dropped
            error = _Transient(
                f"{self.where} cannot be reached ({self._clean(str(cause)) or 'dropped'})"
            )
        except openai.APIStatusError as refused:
            error = self._reason(refused)
        except (openai.APIError, ValueError) as unreadable:
            error = _Transient(
                f"{self.where} answers with no chat completion ({self._clean(str(unreadable))})"
            )
        if isinstance(error, _Transient):
            return error
        # Outside the handlers, so that no traceback leads to the request and its headers.
        raise error

    def _reason(self, error: Any) -> "QueryFailed | ContextTooLong | _Transient":
        """Turn an HTTP error into the error that it means here."""
        status, body = error.status_code, error.body
        said = body.get("message") if isinstance(body, dict) else body
        if not isinstance(said, str) or not said:
            said = str(error.message)
        about_question = 400 <= status < 500 and status not in (401, 403, 404, 429)
        if about_question and TOO_LONG.search(f"{said} {error.code}"):
            return ContextTooLong(self._clean(said))
        line = f"{self.where} answers {status}: {self._clean(said)}"
        waits = status in (408, 409, 425, 429) or status >= 500
        if not waits or error.code == "insufficient_quota":
            return QueryFailed(line)
        after = _seconds(error.response.headers.get("retry-after"))
        if after is not None and after > LONGEST_RETRY_AFTER:
            return QueryFailed(f"{line} (and to ask again after {after:.0f} s)")
        return _Transient(line, retry_after=after)

    def _read(self, response: Any, messages: Messages) -> Completion:
        """The completion of a response. Raises ValueError for anything else."""
        try:
            choice = response.choices[0]
            text = choice.message.content or getattr(choice.message, "refusal", None) or ""
            usage = response.usage
            tokens = None if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            listed = choice.logprobs and choice.logprobs.content
            top = [sum_by_text((t.token, t.logprob) for t in o.top_logprobs) for o in listed or ()]
        except (AttributeError, IndexError, TypeError) as error:
            said = getattr(response, "error", None) or response
            raise ValueError(f"{said!s:.200}") from error
        if getattr(choice, "finish_reason", None) == "error":  # OpenRouter: the model broke off
            raise ValueError(f"{getattr(choice, 'error', None) or 'the answer broke off'!s:.200}")
        if not isinstance(text, str):
            raise ValueError(f"the text is {text!r:.100}")
        if tokens is None or not all(isinstance(number, int) for number in tokens):
            if self._usage_seen:
                log.warning(
                    "%s reports no tokens; they are estimated, four characters each", self.where
                )
            self._usage_seen = False
            tokens = (estimated_tokens(messages), -(-len(text) // 4))
        # Half a surrogate pair, which JSON can spell, is not text.
        text = text.encode("utf-8", "replace").decode()
        cut_off = getattr(choice, "finish_reason", None) == "length"
        found = top if any(top) else None
        return Completion(text, tokens[0], tokens[1], found, cut_off=cut_off)

    def _clean(self, text: str) -> str:
        """One short line without the key, which some servers repeat."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = printable(" ".join(text.split()))
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"


class _Transient:
    """An error after which the same question is worth another attempt."""

    def __init__(self, line: str, retry_after: float | None = None) -> None:
        self.line, self.retry_after = line, retry_after

    def __str__(self) -> str:
        return self.line


def _seconds(retry_after: str | None) -> float | None:
    """The header Retry-After, in seconds or as a date, as seconds from now; None if unreadable."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (TypeError, ValueError, OverflowError):
        return None
