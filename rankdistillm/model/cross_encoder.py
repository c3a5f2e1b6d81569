"""The student: a cross-encoder, from texts to scores."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rankdistillm.devices import autocast_dtype_of, to_device
from rankdistillm.encoder import FusedLayers, fused_layers
from rankdistillm.errors import InputError, check_count, check_flag, check_number
from rankdistillm.model.formats import Checkpoint, LoadOptions, load_checkpoint, write_checkpoint
from rankdistillm.model.pairs import PackedPairs, PairTemplate, plan_chunks
from rankdistillm.model.tokenise import TokenisedTexts

# The default token budget of a forward without gradients: on a CPU, few passes over the weights;
# on a GPU, enough work to keep it busy.
CPU_CHUNK_TOKENS = 12_288
GPU_CHUNK_TOKENS = 262_144


class CrossEncoder(nn.Module):
    """Scores (query, passage) pairs.

    A query is cut to ``query_length`` tokens and a passage to ``doc_length``, each on its own
    (None: not cut), before the tokeniser's special tokens join them. If the pair is then still
    longer than the encoder allows, its longer text is cut at the end. ``retokenise`` is explained
    in `TokenisedTexts`.
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
        packed: bool = True,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> "CrossEncoder":
        """Load a student saved by `save_pretrained`, another re-ranker, or any encoder.

        ``path`` is a folder or a hub id in one of the layouts of `rankdistillm.model.formats`.
        ``query_length`` and ``doc_length`` default to the checkpoint's own, or to 32 and 256 tokens
        for a bare encoder. ``dropout`` replaces every dropout rate of the encoder. ``packed=False``
        runs transformers' own padded forward (`rankdistillm.model.heads`). ``precision`` is
        explained in `autocast_dtype_of`. A head that the checkpoint lacks is drawn from N(0, 0.02)
        by torch's global generator. The model is returned in evaluation mode, as in transformers.

        Raises `InputError` if there is no readable model or if the model is not an encoder.
        """
        if not isinstance(path, str | Path) or not str(path):
            raise InputError(f"path={path!r} is neither a folder nor a hub id")
        check_count("query_length", query_length, optional=True)
        check_count("doc_length", doc_length, optional=True)
        check_number("dropout", dropout, optional=True)
        if dropout is not None and not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} is not a share in [0, 1)")
        check_flag("retokenise", retokenise)
        check_flag("packed", packed)
        device = torch.device(device)
        dtype = autocast_dtype_of(precision, device)
        # For the padded forward on a CPU: the backward of transformers' fused attention takes six
        # times as long as plain matrix products at the lengths of passages (torch 2.13).
        attention = "eager" if device.type == "cpu" else None
        options = LoadOptions(dropout=dropout, attention=attention, packed=packed)
        checkpoint = load_checkpoint(str(path), options)
        model = cls(checkpoint, retokenise=retokenise, autocast_dtype=dtype)
        model.query_length = query_length or model.query_length
        model.doc_length = doc_length or model.doc_length
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path, *, layout: str | None = None) -> None:
        """Write config.json, model.safetensors and the tokeniser; creates the folder if needed.

        ``layout`` is a layout of `rankdistillm.model.formats` (None: the one it was loaded from):
        lightning-ir loads a student saved as ``mono``, sentence-transformers (from 5.5 on) one
        saved as ``sentence_transformers``. The latter cuts a pair to ``query_length`` plus
        ``doc_length`` and the special tokens, its longer text first: scores agree for texts that
        are not cut.

        Raises `InputError` if the layout cannot hold the student, or the folder cannot be written.
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
        """Tokenise queries, cut to ``query_length`` tokens; shows a progress bar."""
        return self._tokenise(texts, self.query_length, "tokenise queries")

    def tokenise_docs(self, texts: Mapping[str, str], *, cut: bool = True) -> TokenisedTexts:
        """Tokenise passages, cut to ``doc_length`` tokens if ``cut``; shows a progress bar."""
        return self._tokenise(texts, self.doc_length if cut else None, "tokenise passages")

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

    def forward(self, pairs: PackedPairs, fused: FusedLayers | None = None) -> Tensor:
        """Score the pairs in one forward pass: float32 ``[len(pairs)]``.

        Split pairs that do not fit in memory with `plan_chunks` first. ``fused`` is the result of
        `fused_layers`, for scoring without gradients.
        """
        # Neighbours of similar length need little padding.
        order = np.argsort(-pairs.lengths, kind="stable")
        with self.autocast():
            scores = self.network(pairs.select(order), fused)
        return scores.index_select(0, to_device(np.argsort(order), self.device))

    def fused_layers(self) -> FusedLayers:
        """Prepare faster layers for scoring without gradients, with a copy of the current weights.

        The result is empty if the device or the encoder has none. Scores differ by the rounding of
        half precision.
        """
        return fused_layers(self.network, self.device, self.autocast_dtype)

    def autocast(self) -> torch.autocast:
        """The precision that the network computes in, as a context.

        Without gradients, enter it once around many calls: it then casts the weights only once.
        """
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def plan_chunks(self, lengths: np.ndarray, token_budget: int | None = None) -> list[np.ndarray]:
        """Cut pairs of these lengths into chunks for `forward` (`rankdistillm.model.pairs`).

        ``token_budget``: None for the device's default in re-ranking.
        """
        if token_budget is None:
            token_budget = CPU_CHUNK_TOKENS if self.device.type == "cpu" else GPU_CHUNK_TOKENS
        return plan_chunks(lengths, token_budget, padded=not self.network.packed)

    def count_tokens(self, lengths: np.ndarray) -> int:
        """Tokens of pairs of these lengths in one forward pass, padding to the longest included."""
        if self.network.packed:
            return int(lengths.sum())
        return len(lengths) * int(lengths.max(initial=0))

    @property
    def training_bytes_per_token(self) -> int:
        """Estimate of the bytes that one token keeps on a GPU from forward to backward."""
        # Measured per layer and hidden unit: 32 to 40 bytes with half precision and flash
        # attention, up to 105 with float32 or padding.
        is_small = self.autocast_dtype.itemsize == 2 and self.network.packed
        config = self.network.config
        return (64 if is_small else 128) * config.num_hidden_layers * config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
