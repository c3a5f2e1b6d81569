"""Score passages by a language model in this process: yes against no, or the query's likelihood."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankdistillm.errors import InputError
from rankdistillm.teachers.local_model import LanguageModel
from rankdistillm.teachers.prompts import Prompt


class YesNo:
    """Scores a passage by the log-odds of "yes" against "no" as the first word of the answer.

    The same scale as that of an endpoint's answers (`answers.score_from_logprobs`), which may lack
    one of the words; here, both are always known.

    Qwen3-Reranker, monoT5 (``yes="true", no="false"`` in its tokeniser's spelling) and any other
    model that was trained to, or can, answer so. The probability of yes among the two is the
    score's sigmoid. See `rankdistillm.teachers.backends.ScoringBackend`.

    Raises `InputError` if one of the words is not a single token.
    """

    cuts_passages = False

    def __init__(
        self, model: LanguageModel, prompt: Prompt, *, yes: str = "yes", no: str = "no"
    ) -> None:
        self.model, self.prompt = model, prompt
        self.name, self.identity = model.name, model.identity
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

    cuts_passages = False

    def __init__(self, model: LanguageModel, prompt: Prompt) -> None:
        query, passage = "3141592653", "2718281828"  # as in `Prompt.load`
        *before, last = prompt.messages(query=query, passages=[passage])
        if not before or query not in last["content"] or passage in last["content"]:
            raise InputError(
                f"{prompt.path}: query likelihood needs a prompt of at least two turns, of which "
                "the last one holds the query and no passage; choose another prompt"
            )
        self.model, self.prompt = model, prompt
        self.name, self.identity = model.name, model.identity
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
        return model.score(contexts, tokens, lambda logits: mean_logprobs(logits[:, :-1], wanted))


def mean_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean log-probability ``[n]`` of ``tokens [m]`` by ``logits [n, m, vocabulary]``.

    Needs no memory beyond that of the logits of one row: with a large vocabulary, a copy of all of
    them takes more than the rest of the forward pass.
    """
    found = [row.gather(1, tokens[:, None])[:, 0] - row.logsumexp(dim=1) for row in logits]
    return torch.stack(found).mean(dim=1)
