"""The student's network: an encoder, and the head that turns its states into scores.

There are two ways through the encoder, which give the same scores:

- plain (``packed=False``): transformers' own forward. The pairs are padded to the longest one and
  go in as ``input_ids``, ``attention_mask`` and ``token_type_ids``.
- packed (``packed=True``): the pairs lie end to end in one row, without padding, and
  `rankdistillm.encoder` computes attention inside each pair. Encoders that the packed way does
  not support take the plain one.
"""

from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rankdistillm.devices import to_device
from rankdistillm.encoder import (
    FusedLayers,
    Segments,
    pack_encoder,
    row_multiples,
    run_packed,
)
from rankdistillm.errors import InputError
from rankdistillm.model.pairs import PackedPairs

POOLINGS = ("first", "mean", "max", "sum")

# The longest filler pair, in tokens: attention in short pairs is cheap.
FILLER = 64


class MonoNetwork(nn.Module):
    """An encoder, pooling, and one linear layer: monoBERT, monoELECTRA (Nogueira et al., 2019).

    ``pooling`` over the tokens of a pair is ``first``, ``mean``, ``max`` or ``sum``. A head with
    two outputs (not relevant, relevant) scores by the log-probability of the second. The head has
    no dropout.
    """

    activation = None

    def __init__(
        self,
        backbone: Any,
        *,
        pooling: str = "first",
        bias: bool = False,
        outputs: int = 1,
        packed: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        backbone.pooler = None  # its output is not used
        is_first = packed and pooling == "first"
        self.first_only = is_first and pack_encoder(backbone, first_only=True)
        self.packed = self.first_only or (packed and pack_encoder(backbone, first_only=False))
        self.backbone: Any = backbone
        self.pooling = pooling
        self.linear = nn.Linear(backbone.config.hidden_size, outputs, bias=bias)
        nn.init.normal_(self.linear.weight, std=0.02)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.backbone.config

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def forward(self, pairs: PackedPairs, fused: FusedLayers | None = None) -> Tensor:
        """Scores ``[len(pairs)]``; neighbours should be of similar length.

        ``fused`` is the result of `rankdistillm.encoder.fused_layers`.
        """
        states, mask = (
            self._packed_states(pairs, fused) if self.packed else self._padded_states(pairs)
        )
        # Scores are float32, whatever the encoder computes in.
        with torch.autocast(states.device.type, enabled=False):
            scores = self.linear(self._pool(states.to(self.linear.weight.dtype), mask))
        scores = scores.log_softmax(-1)[:, 1] if scores.shape[-1] == 2 else scores.squeeze(-1)
        return scores[: len(pairs)]

    def _padded_states(self, pairs: PackedPairs) -> tuple[Tensor, Tensor]:
        """States ``[pairs, width, hidden]`` and the mask of real tokens, ``[pairs, width]``."""
        inputs = padded_inputs(pairs, self.config, self.linear.weight.device)
        return self.backbone(**inputs).last_hidden_state, inputs["attention_mask"] == 1

    def _packed_states(
        self, pairs: PackedPairs, fused: FusedLayers | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `_padded_states`; with the pooling ``first``, only the first tokens and no mask."""
        output, segments = _run_packed(self.backbone, pairs, self.linear.weight.device, fused)
        states = output.last_hidden_state
        if self.first_only:
            return states, None
        if self.pooling == "first":
            return states.index_select(1, segments.starts).transpose(0, 1), None
        return segments.pad(states.squeeze(0)), segments.mask

    def _pool(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """``[pairs, width, hidden]`` -> ``[pairs, hidden]``."""
        if self.pooling == "first" or mask is None:
            return states[:, 0]
        mask = mask.unsqueeze(-1)
        if self.pooling == "max":
            return states.masked_fill(~mask, -torch.inf).amax(1)
        total = states.masked_fill(~mask, 0).sum(1)
        return total if self.pooling == "sum" else total / mask.sum(1)


class ClassifierNetwork(nn.Module):
    """A transformers sequence classifier with one label; its logit is the score.

    ``activation`` is applied to the scores when re-ranking, None for nothing.
    """

    def __init__(
        self, classifier: Any, activation: nn.Module | None = None, *, packed: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        encoder = classifier.base_model
        # The heads of BERT, ELECTRA and RoBERTa only read the first token; others need all states
        # in a padded rectangle.
        self.packed = packed and pack_encoder(classifier, first_only=True)
        head = [module for module in classifier.children() if module is not encoder]
        for module in (*head, getattr(encoder, "pooler", None)):
            if isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
                module.forward = MethodType(_forward_without_autocast, module)
        self.classifier: Any = classifier

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return self.classifier.config

    def get_input_embeddings(self) -> nn.Module:
        return self.classifier.get_input_embeddings()

    def forward(self, pairs: PackedPairs, fused: FusedLayers | None = None) -> Tensor:
        """Scores ``[len(pairs)]``, as `MonoNetwork.forward`."""
        device = next(self.parameters()).device
        if self.packed:
            output, _ = _run_packed(self.classifier, pairs, device, fused)
        else:
            output = self.classifier(**padded_inputs(pairs, self.config, device))
        return output.logits.squeeze(-1)[: len(pairs)]


def _forward_without_autocast(module: Any, states: Tensor, *rest: Any, **options: Any) -> Any:
    """Run a module in the dtype of its weights: bf16 would round a score of 8 to within 1/32."""
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(next(module.parameters()).dtype)
        return type(module).forward(module, states, *rest, **options)


def padded_inputs(pairs: PackedPairs, config: Any, device: torch.device) -> dict[str, Any]:
    """The arguments of a transformers model for pairs padded to the longest: ``[pairs, width]``."""

    def pad(row: np.ndarray, value: int) -> Tensor:
        rows = torch.from_numpy(row.astype(np.int64)).split(pairs.lengths.tolist())
        padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
        return to_device(padded.numpy(), device)

    inputs = {
        "input_ids": pad(pairs.tokens, getattr(config, "pad_token_id", None) or 0),
        "attention_mask": pad(np.ones_like(pairs.tokens), 0),
    }
    if pairs.types is not None:
        inputs["token_type_ids"] = pad(pairs.types, 0)
    return inputs


def _run_packed(
    model: Any, pairs: PackedPairs, device: torch.device, fused: FusedLayers | None
) -> tuple[Any, Segments]:
    """The output of a model that takes packed pairs, and the segments of its row of tokens."""
    pairs = _filled(pairs, device)
    segments = Segments(pairs.lengths, device)
    tokens = to_device(pairs.tokens.astype(np.int64), device)
    types = None if pairs.types is None else to_device(pairs.types.astype(np.int64), device)
    return run_packed(model, segments, fused, input_ids=tokens, token_type_ids=types), segments


def _filled(pairs: PackedPairs, device: torch.device) -> PackedPairs:
    """Append filler pairs, so that matrix products have sizes that suit the device."""
    dtype = torch.float32
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    multiples = row_multiples(len(pairs.tokens), device, dtype)
    return pairs.filled(*multiples, min(FILLER, int(pairs.lengths.max())))
