"""A language model in this process, through ``transformers``: tokens in, text or scores out.

`local_chat` asks it to write, `local_scorers` to score passages.
"""

import hashlib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from rankdistillm.devices import autocast_dtype_of, device_of
from rankdistillm.errors import InputError, check_count
from rankdistillm.model.formats.files import UnreadableError, read_tensors, reading
from rankdistillm.teachers.answers import sum_by_text
from rankdistillm.teachers.backends import Completion, ContextTooLong, Messages, QueryFailed

# Tokens, padding counted, of passages that are scored in one forward pass.
CPU_TOKENS, GPU_TOKENS = 8_192, 65_536
# Values that the logits of one forward pass may have for each of these tokens: 256 MiB in float32
# for CPU_TOKENS. A vocabulary of 262,144 would otherwise outweigh all else in memory.
LOGITS_PER_TOKEN = 8_192
ROWS = 16_384  # of the output layer that are converted to float32 at once
SAMPLED = 64  # values of each tensor that `fingerprint` looks at
_FIRST_LINE = re.compile(r"\s*\S[^\n]*\n")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A short hash of the names, shapes and some values of all weights.

    It tells apart models that were trained one after the other in the same folder, and reads only
    a small part of weights that are memory-mapped.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        values = weight.detach().flatten()
        values = values[:: max(1, len(values) // SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def shown_name(path: str | Path, weights: str) -> str:
    """The name for messages: that of the folder, or the hub id, and the fingerprint."""
    return f"{Path(path).resolve().name if Path(path).exists() else path}@{weights}"


class LanguageModel:
    """A causal language model, or an encoder-decoder such as T5, and its tokeniser.

    The weights are loaded when they are first needed, so that a command whose answers are all in
    the store does without them. ``identity`` is the fingerprint of the weights: the same model in
    another folder is the same.

    ``token_budget`` bounds the tokens of one forward pass when passages are scored, and with them
    its logits (`LOGITS_PER_TOKEN`). A model or batch that exceeds the device's memory is tried
    again in halves.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        config: Any,
        tokenizer: Any,
        *,
        name: str,
        identity: str,
        device: torch.device,
        dtype: torch.dtype,
        token_budget: int | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("token_budget", token_budget, optional=True)
        self._load = load
        self.tokenizer = tokenizer
        self.name, self.identity = name, identity
        self.device = device
        self.token_budget = token_budget or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
        self.template_options = dict(template_options or {})
        template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:8]
        # The fingerprint is that of the files, whatever they are converted to.
        self.options = {
            "chat_template": template,
            "dtype": str(dtype).removeprefix("torch."),
            **self.template_options,
        }
        self.is_encoder_decoder = bool(config.is_encoder_decoder)
        text_config = config.get_text_config()
        # T5 has no longest input: its positions are relative.
        self.context: int | None = getattr(text_config, "max_position_embeddings", None)
        self.vocabulary = int(text_config.vocab_size)

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
        """Open a folder or hub id.

        The weights are converted to ``precision``: bf16 where the hardware has it (see
        `autocast_dtype_of`). ``template_options`` go to the tokeniser's chat template, e.g.
        ``{"enable_thinking": False}``.

        Raises `InputError` if there is no such model. Weights that are not whole raise it when they
        are first used.
        """
        device = device_of(device)
        dtype = autocast_dtype_of(precision, device)
        with _opening(path):
            config = transformers.AutoConfig.from_pretrained(path)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            weights = fingerprint(read_tensors(str(path)))
        return cls(
            lambda: _load(path, config, dtype).to(device),
            config,
            tokenizer,
            name=shown_name(path, weights),
            identity=weights,
            device=device,
            dtype=dtype,
            token_budget=token_budget,
            template_options=template_options,
        )

    @cached_property
    def model(self) -> Any:
        """The model of transformers; loaded when it is first used.

        Raises `InputError` for weights that are not whole or do not fit into the device's memory.
        """
        try:
            with torch.inference_mode(False):  # so that others may compute gradients with it
                return self._load().eval()
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.name}: its weights exceed the memory of {self.device}; choose a smaller "
                "model or another device"
            ) from error

    @cached_property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {end for end in (*ends, self.tokenizer.eos_token_id) if end is not None}

    @cached_property
    def _pad(self) -> int:
        # Padding is masked, so that any token will do.
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else next(iter(self.ends), 0))

    @cached_property
    def _accepted(self) -> set[str]:
        return set(inspect.signature(self.model.forward).parameters)

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
        first_line: bool = False,
    ) -> list[Completion | QueryFailed]:
        """Answers to tokenised prompts, as one batch; greedy if ``temperature`` is 0.

        With ``first_line``, the answers of a model without chat template end with their first line:
        such a model does not end them itself, but goes on with the next passage. A chat model does,
        and may begin with a thought of several lines.

        A prompt that exceeds the device's memory by itself has a `QueryFailed` in its place.
        """
        found: list[Completion | QueryFailed] = []
        todo = deque([list(prompts)])
        while todo:
            batch = todo.popleft()
            try:
                found += self._generate(batch, max_tokens, temperature, top_logprobs, first_line)
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
        first_line: bool,
    ) -> list[Completion]:
        ids, mask = self._padded(prompts)
        # An encoder-decoder's sequence begins with its start token, not with the prompt.
        begin = 1 if self.is_encoder_decoder else ids.shape[1]
        stop = None
        if first_line and not self.tokenizer.chat_template:
            stop = _AfterFirstLine(self.tokenizer, begin, len(prompts))
        # All that the model's own generation_config would otherwise fill in.
        config = transformers.GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else 1.0,
            top_k=0 if temperature > 0 else None,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self._pad,
            return_dict_in_generate=True,
            output_logits=top_logprobs is not None,
        )
        made = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=transformers.StoppingCriteriaList([] if stop is None else [stop]),
        )
        answers = made.sequences[:, begin:].tolist()
        tops = (
            [] if top_logprobs is None else [self._top(step, top_logprobs) for step in made.logits]
        )
        completions = []
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            length = next((n for n, token in enumerate(answer, 1) if token in self.ends), None)
            if stop is not None and (line_end := stop.lengths[i]) is not None:
                length = line_end if length is None else min(length, line_end)
            answer = answer[:length]
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            if stop is not None and (line := _FIRST_LINE.match(text)):
                text = line.group()  # the last token may hold more
            completions.append(
                Completion(
                    text,
                    len(prompt),
                    len(answer),
                    [top[i] for top in tops[: len(answer)]] if tops else None,
                    cut_off=length is None,
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
        float32 ``[n, len(continuation) + 1, vocabulary]``, and returns ``[n]``. In half precision,
        the output layer still computes in float32: a bf16 number near 20 is a multiple of 0.125.
        """
        for context in contexts:
            self.check_length(len(context), len(continuation))
        scores = [0.0] * len(contexts)
        todo = deque(self._chunks([len(context) for context in contexts], len(continuation)))
        while todo:
            chunk = todo.popleft()
            try:
                with _float32_output(self.model):
                    logits = self._logits([contexts[i] for i in chunk], continuation)
                for i, score in zip(chunk, read(logits.float()).tolist(), strict=True):
                    scores[i] = score
            except torch.OutOfMemoryError:
                todo.extendleft(reversed(_halves(chunk)))
        return scores

    def _chunks(self, lengths: Sequence[int], added: int) -> list[list[int]]:
        """Indices of contexts of similar length, within ``token_budget`` (or a single one)."""
        chunks: list[list[int]] = []
        logits = (added + 1) * self.vocabulary
        size = 0.0  # of each context of a chunk, in tokens of the budget
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if not chunks or (len(chunks[-1]) + 1) * size > self.token_budget:
                chunks.append([])
                size = max(lengths[i] + added, logits / LOGITS_PER_TOKEN)
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
        ids = [[self._pad] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


@contextmanager
def _opening(path: str | Path) -> Iterator[None]:
    """Turn every error into an `InputError` that names the path."""
    try:
        with reading(str(path)):
            yield
    except UnreadableError as error:
        said = str(error)
        where = "" if said.startswith(str(path)) else f"{path}: "
        raise InputError(f"{where}{said}; give the folder or hub id of a language model") from error


def _load(path: str | Path, config: Any, dtype: torch.dtype) -> Any:
    kind: Any = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    with _opening(path):
        model, found = kind.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if found["missing_keys"]:
        raise InputError(
            f"{path}: not a whole language model, it lacks {sorted(found['missing_keys'])[0]}; "
            "give one with its output layer"
        )
    return model


class _AfterFirstLine(transformers.StoppingCriteria):
    """Ends each answer of a batch after its first line that has text.

    ``begin``: the index of the answers' first token. ``lengths``: the tokens up to the line break;
    None for an answer without one. (``stop_strings`` would also end an answer that begins with a
    line break.)
    """

    def __init__(self, tokenizer: Any, begin: int, number: int) -> None:
        self.tokenizer, self.begin = tokenizer, begin
        self.lengths: list[int | None] = [None] * number

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        for i, answer in enumerate(input_ids[:, self.begin :].tolist()):
            if self.lengths[i] is None:
                text = self.tokenizer.decode(answer, skip_special_tokens=True)
                self.lengths[i] = len(answer) if _FIRST_LINE.match(text) else None
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, device=input_ids.device)


@contextmanager
def _float32_output(model: Any) -> Iterator[None]:
    """Let the output layer compute in float32, and what the model then does to the logits.

    That may be a scale or a soft cap, which is why the model's own forward pass runs.
    """
    layer: Any = model.get_output_embeddings()
    is_linear = isinstance(layer, nn.Linear)
    if not is_linear or layer.weight.dtype == torch.float32:
        yield
        return
    layer.forward = partial(_in_float32, layer)
    try:
        yield
    finally:
        del layer.forward


def _in_float32(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """The layer's output without a float32 copy of all its weights, which may be gigabytes."""
    hidden = hidden.float()
    output = hidden.new_empty((*hidden.shape[:-1], layer.out_features))
    for start in range(0, layer.out_features, ROWS):
        rows = slice(start, start + ROWS)
        bias = None if layer.bias is None else layer.bias[rows].float()
        output[..., rows] = linear(hidden, layer.weight[rows].float(), bias)
    return output


def _halves(batch: list[Any]) -> list[list[Any]]:
    """Two halves of a batch that was too large. Raises `QueryFailed` for a single question."""
    if len(batch) == 1:
        raise QueryFailed("a single question does not fit into the device's memory")
    torch.cuda.empty_cache()
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
