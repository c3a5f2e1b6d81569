"""A language model in this process, through ``transformers``: it writes, or scores passages.

Three ways to use one `LanguageModel`: `LocalChat` answers chat messages (also with
log-probabilities of its tokens), `YesNo` scores a passage by the odds of "yes" against "no",
`QueryLikelihood` by how likely it makes the query.
"""

import asyncio
import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from rankdistillm.devices import autocast_dtype_of, device_of
from rankdistillm.errors import InputError, check_count
from rankdistillm.model.formats.files import UnreadableError, reading
from rankdistillm.teachers.answers import sum_by_text
from rankdistillm.teachers.backends import Completion, ContextTooLong, Messages, QueryFailed
from rankdistillm.teachers.prompts import Prompt

# Tokens, padding counted, of passages that are scored in one forward pass.
CPU_TOKENS, GPU_TOKENS = 8_192, 65_536
# How long a batch waits for other questions, which come back from the store in the meantime.
SECONDS = 0.005
SAMPLED = 64  # values of each tensor that `fingerprint` looks at


def fingerprint(model: nn.Module) -> str:
    """A short hash of the names, shapes and some values of all weights.

    It tells apart models that were trained one after the other in the same folder, and takes no
    reading of all weights.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        values = weight.detach().flatten()
        values = values[:: max(1, len(values) // SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:8]


class LanguageModel:
    """A causal language model, or an encoder-decoder such as T5, and its tokeniser.

    ``token_budget`` bounds the tokens of one forward pass when passages are scored. A model or
    batch that exceeds the device's memory is tried again in halves.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        path: str | Path,
        *,
        token_budget: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("token_budget", token_budget, optional=True)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device: torch.device = model.device
        self.token_budget = token_budget or (
            GPU_TOKENS if self.device.type == "cuda" else CPU_TOKENS
        )
        self.template_options = dict(template_options or {})
        self.name = f"{path}@{fingerprint(model)}"
        template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:8]
        self.options = {"chat_template": template, **self.template_options}
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        text_config = model.config.get_text_config()
        # T5 has no longest input: its positions are relative.
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
        # Padding is masked, so that any token will do.
        pad = tokenizer.pad_token_id
        self.pad = int(pad if pad is not None else next(iter(self.ends), 0))
        self._accepted = set(inspect.signature(model.forward).parameters)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "auto",
        precision: str = "auto",
        token_budget: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load a folder or hub id.

        The weights are converted to ``precision``: bf16 on a GPU that has it (see
        `autocast_dtype_of`). ``template_options`` go to the tokeniser's chat template, e.g.
        ``{"enable_thinking": False}``.

        Raises `InputError` if the model cannot be loaded whole.
        """
        device = device_of(device)
        dtype = autocast_dtype_of(precision, device)
        try:
            with reading(str(path)):
                config = transformers.AutoConfig.from_pretrained(path)
                kind: Any = (
                    transformers.AutoModelForSeq2SeqLM
                    if config.is_encoder_decoder
                    else transformers.AutoModelForCausalLM
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(path)
                model, found = kind.from_pretrained(path, dtype=dtype, output_loading_info=True)
        except UnreadableError as error:
            raise InputError(f"{error}; give the folder or hub id of a language model") from error
        if found["missing_keys"]:
            raise InputError(
                f"{path}: not a whole language model, it lacks {sorted(found['missing_keys'])[0]}; "
                "give one with its output layer"
            )
        return cls(
            model.to(device),
            tokenizer,
            path,
            token_budget=token_budget,
            template_options=template_options,
        )

    def encode(self, messages: Messages) -> list[int]:
        """The tokens of the messages, in the form that the model's chat template gives them.

        A last message of the assistant is the beginning of the answer. A model without a chat
        template gets the contents, with an empty line between two messages.
        """
        if not self.tokenizer.chat_template:
            text = "\n\n".join(message["content"] for message in messages)
            return list(self.tokenizer(text, truncation=False).input_ids)
        continued = messages[-1]["role"] == "assistant"
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **self.template_options,
            )
        except (TemplateError, ValueError) as error:
            raise InputError(
                f"{self.name}: its chat template refuses the prompt ({error}); use a prompt with "
                "other turns"
            ) from error
        # The template writes the special tokens itself.
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False).input_ids)

    def check_length(self, tokens: int, added: int) -> None:
        """Raises `ContextTooLong` if a prompt and ``added`` more tokens exceed the context."""
        if self.context is not None and tokens + added > self.context:
            raise ContextTooLong(
                f"{tokens} tokens and {added} more exceed the model's context of {self.context}"
            )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None,
    ) -> list[Completion | QueryFailed]:
        """Answers to tokenised prompts, as one batch; greedy if ``temperature`` is 0.

        A prompt that exceeds the device's memory by itself has a `QueryFailed` in its place.
        """
        found: list[Completion | QueryFailed] = []
        todo = deque([list(prompts)])
        while todo:
            batch = todo.popleft()
            try:
                found += self._generate(batch, max_tokens, temperature, top_logprobs)
            except torch.OutOfMemoryError:
                try:
                    todo.extendleft(reversed(_halves(batch)))
                except QueryFailed as error:
                    found.append(error)
        return found

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None,
    ) -> list[Completion]:
        ids, mask = self._padded(prompts)
        # All that the model's own generation_config would otherwise fill in.
        config = transformers.GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else 1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad,
        )
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            return_dict_in_generate=True,
            output_logits=top_logprobs is not None,
        )
        # An encoder-decoder's sequence begins with its start token, not with the prompt.
        answers = made.sequences[:, 1 if self.is_encoder_decoder else ids.shape[1] :].tolist()
        tops = (
            [] if top_logprobs is None else [self._top(step, top_logprobs) for step in made.logits]
        )
        completions = []
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            length = next((n for n, token in enumerate(answer, 1) if token in self.ends), None)
            answer = answer[:length]
            completions.append(
                Completion(
                    self.tokenizer.decode(answer, skip_special_tokens=True),
                    len(prompt),
                    len(answer),
                    [top[i] for top in tops[: len(answer)]] if tops else None,
                )
            )
        return completions

    def _top(self, logits: Tensor, number: int) -> list[dict[str, float]]:
        """The likeliest tokens of each row of ``logits [n, vocabulary]``."""
        logprobs = log_softmax(logits.float(), dim=-1)
        values, ids = logprobs.topk(min(number, logprobs.shape[-1]))
        rows = []
        for row, tokens in zip(values.tolist(), ids.tolist(), strict=True):
            texts = [self.tokenizer.decode([token]) for token in tokens]
            rows.append(sum_by_text(zip(texts, row, strict=True)))
        return rows

    @torch.inference_mode()
    def score(
        self,
        contexts: Sequence[Sequence[int]],
        continuation: Sequence[int],
        read: Callable[[Tensor], Tensor],
    ) -> list[float]:
        """A number for each context: what ``read`` makes of the logits.

        ``read`` gets those of the tokens of the continuation and of the one that follows it,
        float32 ``[n, len(continuation) + 1, vocabulary]``, and returns ``[n]``.
        """
        for context in contexts:
            self.check_length(len(context), len(continuation))
        scores = [0.0] * len(contexts)
        todo = deque(self._chunks([len(context) for context in contexts], len(continuation)))
        while todo:
            chunk = todo.popleft()
            try:
                logits = self._logits([contexts[i] for i in chunk], continuation)
                for i, score in zip(chunk, read(logits.float()).tolist(), strict=True):
                    scores[i] = score
            except torch.OutOfMemoryError:
                todo.extendleft(reversed(_halves(chunk)))
        return scores

    def _chunks(self, lengths: Sequence[int], added: int) -> list[list[int]]:
        """Indices of contexts of similar length, within ``token_budget`` (or a single one)."""
        chunks: list[list[int]] = []
        longest = 0
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if not chunks or (len(chunks[-1]) + 1) * longest > self.token_budget:
                chunks.append([])
                longest = lengths[i] + added
            chunks[-1].append(i)
        return chunks

    def _logits(self, contexts: Sequence[Sequence[int]], continuation: Sequence[int]) -> Tensor:
        kept = len(continuation) + 1
        inputs: dict[str, Any] = {}
        if self.is_encoder_decoder:
            ids, mask = self._padded(contexts)
            decoded = [self.model.config.decoder_start_token_id, *continuation]
            decoder_ids = torch.tensor([decoded], device=self.device).expand(len(contexts), -1)
            inputs["decoder_input_ids"] = decoder_ids
        else:
            ids, mask = self._padded([[*context, *continuation] for context in contexts])
            if "position_ids" in self._accepted:
                inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
            if "logits_to_keep" in self._accepted:
                inputs["logits_to_keep"] = kept
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs)
        return output.logits[:, -kept:]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and mask ``[n, longest]``, padded on the left: all rows end together."""
        longest = max(map(len, rows))
        ids = [[self.pad] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _halves(batch: list[Any]) -> list[list[Any]]:
    """Two halves of a batch that was too large. Raises `QueryFailed` for a single question."""
    if len(batch) == 1:
        raise QueryFailed("a single question does not fit into the device's memory")
    torch.cuda.empty_cache()
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


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
        self.name: str = model.name
        self.options: Mapping[str, Any] = model.options
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def complete(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float,
        top_logprobs: int | None = None,
    ) -> Completion:
        """Answer the messages; see `rankdistillm.teachers.backends.Backend.complete`."""
        prompt = self.model.encode(messages)
        self.model.check_length(len(prompt), max_tokens)
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_logprobs": top_logprobs,
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


class YesNo:
    """Scores a passage by the log-odds of "yes" against "no" as the first word of the answer.

    Qwen3-Reranker, monoT5 (``yes="true", no="false"`` in its tokeniser's spelling) and any other
    model that was trained to, or can, answer so. The probability of yes among the two is the
    score's sigmoid. See `rankdistillm.teachers.backends.ScoringBackend`.

    Raises `InputError` if one of the words is not a single token.
    """

    def __init__(
        self, model: LanguageModel, prompt: Prompt, *, yes: str = "yes", no: str = "no"
    ) -> None:
        self.model, self.prompt = model, prompt
        self.name: str = model.name
        self.options: Mapping[str, Any] = {
            **model.options, "prompt": prompt.digest(), "yes": yes, "no": no,
        }  # fmt: skip
        self._words = [self._token(word) for word in (yes, no)]

    def _token(self, word: str) -> int:
        ids = self.model.tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.model.tokenizer.unk_token_id:
            raise InputError(
                f"{word!r} is not a single token of {self.model.name}; give a word that is, maybe "
                "with a space before it"
            )
        return int(ids[0])

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """The log-odds for each passage."""
        yes, no = self._words
        contexts = [
            self.model.encode(self.prompt.messages(query=query, passages=[passage]))
            for passage in passages
        ]
        return self.model.score(contexts, [], lambda logits: logits[:, 0, yes] - logits[:, 0, no])


class QueryLikelihood:
    """Scores a passage by the mean log-probability of the query's tokens after it.

    The prompt's last message is the query, as it is to be scored; those before hold the passage.
    A base model without instructions can do this. See
    `rankdistillm.teachers.backends.ScoringBackend`.

    Source: Sachan et al., *Improving Passage Retrieval with Zero-Shot Question Generation*, EMNLP
    2022.

    Raises `InputError` for a prompt of other turns.
    """

    def __init__(self, model: LanguageModel, prompt: Prompt) -> None:
        query, passage = "3141592653", "2718281828"  # as in `Prompt.load`
        *before, last = prompt.messages(query=query, passages=[passage])
        if not before or query not in last["content"] or passage in last["content"]:
            raise InputError(
                f"{prompt.path}: query likelihood needs a prompt of at least two turns, of which "
                "the last one holds the query and no passage; choose another prompt"
            )
        self.model, self.prompt = model, prompt
        self.name: str = model.name
        self.options: Mapping[str, Any] = {
            **model.options, "prompt": prompt.digest(), "scored": "query",
        }  # fmt: skip

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """The mean log-probabilities, natural logarithms; 0 for a query without tokens."""
        model = self.model
        contexts, scored = [], ""
        for passage in passages:
            *before, last = self.prompt.messages(query=query, passages=[passage])
            contexts.append(model.encode(before))
            scored = last["content"]
        # A word's first token differs at the beginning of a text; a chat begins a turn there.
        begins = model.tokenizer.chat_template or model.is_encoder_decoder
        text = scored if begins or scored.startswith((" ", "\n")) else f" {scored}"
        tokens = list(model.tokenizer(text, add_special_tokens=False).input_ids)
        if not tokens:
            return [0.0] * len(passages)
        wanted = torch.tensor(tokens, device=model.device)

        def mean_logprob(logits: Tensor) -> Tensor:
            found = log_softmax(logits[:, :-1], dim=-1)
            return found[:, torch.arange(len(tokens)), wanted].mean(dim=1)

        return model.score(contexts, tokens, mean_logprob)
