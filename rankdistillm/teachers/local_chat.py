"""A language model in this process that answers chat messages, many at once."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankdistillm.errors import check_count
from rankdistillm.teachers.backends import Completion, Messages, QueryFailed
from rankdistillm.teachers.local_model import LanguageModel

log = logging.getLogger(__name__)

# How long a batch waits for other questions, which come back from the store in the meantime.
SECONDS = 0.005


@dataclass
class _Waiting:
    prompt: list[int]
    options: dict[str, Any]
    future: "asyncio.Future[Completion]"


class LocalChat:
    """Answers chat messages with a `LanguageModel`; see `rankdistillm.teachers.backends.Backend`.

    Questions that wait at the same time, with the same options, are answered as one batch of up to
    ``batch_size``: ask about that many queries side by side. In half precision the last bits, and
    thus now and then an answer, depend on what else is in the batch.
    """

    def __init__(self, model: LanguageModel, *, batch_size: int = 16) -> None:
        check_count("batch_size", batch_size)
        self.model = model
        self.batch_size = batch_size
        self.name, self.identity = model.name, model.identity
        self.options: Mapping[str, Any] = model.options
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._has_begun = False

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
        first_line: bool = False,
    ) -> Completion:
        """Answer the messages; see `rankdistillm.teachers.backends.Backend.complete`."""
        prompt = self.model.encode(messages)
        self.model.check_length(len(prompt), max_tokens)
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_logprobs": top_logprobs,
            "first_line": first_line,
        }
        waiting = _Waiting(prompt, options, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.future

    async def close(self) -> None:
        """Let the batch under way end; nothing else is answered."""
        self._waiting.clear()
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(SECONDS)
            batch = self._next_batch()
            if not batch:
                continue
            if not self._has_begun:
                self._has_begun = True
                log.info(
                    "%s answers its first %d questions on %s, all at once; progress follows",
                    self.name,
                    len(batch),
                    self.model.device,
                )
            prompts, options = [waiting.prompt for waiting in batch], batch[0].options
            try:
                made = await asyncio.to_thread(self.model.generate, prompts, **options)
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, answer in zip(batch, made, strict=True):
                if waiting.future.done():
                    continue
                if isinstance(answer, QueryFailed):
                    waiting.future.set_exception(answer)
                else:
                    waiting.future.set_result(answer)

    def _next_batch(self) -> list[_Waiting]:
        """The questions that have waited longest and have the first one's options."""
        waiting = [w for w in self._waiting if not w.future.done()]
        batch = [w for w in waiting if w.options == waiting[0].options][: self.batch_size]
        taken = set(map(id, batch))
        self._waiting = deque(w for w in waiting if id(w) not in taken)
        return batch
