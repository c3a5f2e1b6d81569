"""The student: a cross-encoder, from texts to scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rankdistillm.bert_layers import FusedLayers, fused_layers
from rankdistillm.devices import autocast_dtype_of, to_device
from rankdistillm.dropout import use_fast_dropout
from rankdistillm.errors import InputError, check_count, check_flag, check_number
from rankdistillm.layouts import Checkpoint, load_checkpoint, write_checkpoint
from rankdistillm.segments import ROWS, Segments, size_multiple
from rankdistillm.token_cache import TokenisedTexts
from rankdistillm.tokens import (
    CHUNK_TOKENS,
    CHUNK_TOKENS_OF_GPU,
    PackedPairs,
    PairTemplate,
    plan_chunks,
)

# What fills up a chunk on a CPU are pairs of at most so many tokens, which attention costs little.
FILLER = 64


class CrossEncoder(nn.Module):
    """Scores (query, passage) pairs.

    A query is cut to ``query_length`` tokens and a passage to ``doc_length``, each alone (None: not
    cut); only then are they joined by the tokeniser's own special tokens. A pair that is still
    longer than the encoder allows is cut at the end of its longer text. ``retokenise`` is that of
    `TokenisedTexts`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        retokenise: bool = False,
        autocast_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = checkpoint.network
        use_fast_dropout(self.network)
        self.layout = checkpoint.layout
        self.has_head = checkpoint.has_head
        self.tokenizer = checkpoint.tokenizer
        self.template = PairTemplate.from_tokenizer(checkpoint.tokenizer, checkpoint.max_length)
        self.query_length = checkpoint.query_length
        self.doc_length = checkpoint.doc_length
        self.retokenise = retokenise
        self.autocast_dtype = autocast_dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        query_length: int | None = None,
        doc_length: int | None = None,
        dropout: float | None = None,
        retokenise: bool = False,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> "CrossEncoder":
        """Load a student saved by `save_pretrained`, another re-ranker, or start from any encoder.

        ``path`` is a folder or a hub id in one of the layouts of `rankdistillm.layouts`. The
        lengths default to the checkpoint's own, 32 and 256 tokens for a bare encoder; ``dropout``
        replaces every dropout rate of the encoder; ``precision`` is what `autocast_dtype_of` takes.
        A head that is not in the checkpoint is drawn from N(0, 0.02) by torch's global generator.
        The model is in evaluation mode, as those of transformers are.

        Raises `InputError` where there is no readable model, and for one that is no encoder.
        """
        if not isinstance(path, str | Path) or not str(path):
            raise InputError(f"path={path!r} is neither a folder nor a hub id")
        check_count("query_length", query_length, optional=True)
        check_count("doc_length", doc_length, optional=True)
        check_number("model.dropout", dropout, optional=True)
        if dropout is not None and not 0 <= dropout < 1:
            raise InputError(f"model.dropout={dropout} is not a share in [0, 1)")
        check_flag("model.retokenise", retokenise)
        device = torch.device(device)
        dtype = autocast_dtype_of(precision, device)
        # For encoders that take no packed pairs. On CPUs the fused attention's backward takes six
        # times as long as plain matrix products at the lengths of passages (torch 2.13).
        attention = "eager" if device.type == "cpu" else None
        checkpoint = load_checkpoint(str(path), dropout=dropout, attention=attention)
        model = cls(checkpoint, retokenise=retokenise, autocast_dtype=dtype)
        model.query_length = query_length or model.query_length
        model.doc_length = doc_length or model.doc_length
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path, *, layout: str | None = None) -> None:
        """Write config.json, model.safetensors and the tokeniser into a folder, made if need be.

        ``layout``: that of `rankdistillm.layouts` which it was loaded from, unless said; a student
        in the layout ``mono`` is one that lightning-ir loads.
        """
        write_checkpoint(
            layout or self.layout,
            self.network,
            self.tokenizer,
            Path(folder),
            query_length=self.query_length,
            doc_length=self.doc_length,
        )

    def tokenise_queries(self, texts: Mapping[str, str]) -> TokenisedTexts:
        """The queries, cut to ``query_length`` tokens; shows a progress bar."""
        return self._tokenise(texts, self.query_length, "tokenise queries")

    def tokenise_docs(self, texts: Mapping[str, str]) -> TokenisedTexts:
        """The passages, cut to ``doc_length`` tokens; shows a progress bar."""
        return self._tokenise(texts, self.doc_length, "tokenise passages")

    def _tokenise(
        self, texts: Mapping[str, str], max_length: int | None, description: str
    ) -> TokenisedTexts:
        for identifier, text in texts.items():
            if not isinstance(text, str):
                raise InputError(f"{description}: {identifier} is {text!r:.40}, not a text")
        return TokenisedTexts(
            texts,
            self.tokenizer,
            max_length,
            retokenise=self.retokenise,
            description=description,
        )

    def forward(self, pairs: PackedPairs) -> Tensor:
        """Scores of the pairs, float32 ``[len(pairs)]``."""
        chunks = self.plan_chunks(pairs.lengths)
        scores = torch.cat([scored for _, scored in self.score_chunks(pairs, chunks)])
        restore = np.empty(len(pairs), dtype=np.int64)
        restore[np.concatenate(chunks)] = np.arange(len(pairs))
        return scores.index_select(0, to_device(restore, self.device))

    def fused_layers(self) -> FusedLayers:
        """What makes `score_chunks` quicker where no gradient is wanted, as the weights are now.

        Empty where nothing does. Scores then differ by the rounding of half precision.
        """
        return fused_layers(self.network, self.device, self.autocast_dtype)

    def score_chunks(
        self, pairs: PackedPairs, chunks: Sequence[np.ndarray], fused: FusedLayers | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield each chunk (positions of some pairs) with the scores of its pairs, float32.

        ``fused``: what `fused_layers` gives, for an evaluation without gradients.
        """
        device = self.device
        parts = [pairs.select(chunk) for chunk in chunks]
        if device.type == "cpu" and self.network.packed:
            longest = min(FILLER, self.template.max_length or FILLER)
            parts = [part.filled(self._multiple(part), ROWS, longest) for part in parts]
        tokens = [to_device(part.tokens.astype(np.int64), device) for part in parts]
        embed = self.network.get_input_embeddings()
        embedded: Iterable[Tensor] = map(embed, tokens)
        if torch.is_grad_enabled():
            # One look-up for all chunks: its gradient has the size of the vocabulary, and would be
            # made anew for each chunk.
            embedded = embed(torch.cat(tokens)).split([len(part.tokens) for part in parts])
        for chunk, part, states in zip(chunks, parts, embedded, strict=True):
            types = None if part.types is None else to_device(part.types.astype(np.int64), device)
            with self.autocast():
                scores = self.network(states, types, Segments(part.lengths, device), fused)
            yield chunk, scores[: len(chunk)]

    def _multiple(self, pairs: PackedPairs) -> int:
        """What the tokens of a chunk are made a multiple of, on a CPU."""
        is_half = self.autocast_dtype.itemsize == 2
        return size_multiple(len(pairs.tokens)) if is_half else ROWS

    def autocast(self) -> torch.autocast:
        """The precision that the network computes in, as a context.

        Without gradients, one round all calls saves time: it keeps the weights that it casts.
        """
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def plan_chunks(self, lengths: np.ndarray, token_budget: int | None = None) -> list[np.ndarray]:
        """Pairs of these lengths in chunks for the network (`rankdistillm.tokens.plan_chunks`).

        ``token_budget``: None for what fills the device, which is more on a GPU.
        """
        if token_budget is None:
            token_budget = CHUNK_TOKENS if self.device.type == "cpu" else CHUNK_TOKENS_OF_GPU
        return plan_chunks(lengths, token_budget, padded=self.padded)

    def count_tokens(self, lengths: np.ndarray) -> int:
        """Tokens of pairs of these lengths in one forward pass, padding counted if there is any.

        Not what fills up a chunk on CPUs, which is little.
        """
        if not self.padded:
            return int(lengths.sum())
        return sum(len(chunk) * int(lengths[chunk[0]]) for chunk in self.plan_chunks(lengths))

    @property
    def padded(self) -> bool:
        """Whether the network pads the pairs of a chunk to the longest one."""
        return not self.network.packed

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden units) of the encoder."""
        config = self.network.config
        return config.num_hidden_layers, config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
