"""The student's network: an encoder, and the head that turns its states into scores.

There are two ways through the encoder, which give the same scores:

- plain (``packed=False``): transformers' own forward. The pairs are padded to the longest one and
  go in as ``input_ids``, ``attention_mask`` and ``token_type_ids``.
- packed (``packed=True``): the pairs lie end to end in one row, without padding, and
  `rankdistillm.encoder` computes attention inside each pair. Encoders that the packed way does
  not support take the plain one.
"""

from collections.abc import Sequence
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
MODULAR_POOLINGS = ("first", "mean", "max", "mean_sqrt", "weighted_mean", "last")

# The longest filler pair, in tokens: attention in short pairs is cheap.
FILLER = 64


class _PooledEncoder(nn.Module):
    """An encoder and the pooling of its states: the base of `MonoNetwork` and `ModularNetwork`.

    ``poolings`` are concatenated.
    """

    def __init__(self, backbone: Any, poolings: Sequence[str], *, packed: bool) -> None:
        super().__init__()
        backbone.pooler = None  # its output is not used
        is_first = packed and tuple(poolings) == ("first",)
        self.first_only = is_first and pack_encoder(backbone, first_only=True)
        self.packed = self.first_only or (packed and pack_encoder(backbone, first_only=False))
        self.backbone: Any = backbone

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.backbone.config

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def _pooled(
        self, pairs: PackedPairs, fused: FusedLayers | None, poolings: Sequence[str]
    ) -> Tensor:
        """The pooled states, in the dtype of the weights: ``[pairs, poolings * hidden]``.

        Fillers may follow the pairs.
        """
        weights: Any = self.get_input_embeddings().weight
        if self.packed:
            states, mask = self._packed_states(pairs, fused, weights.device, poolings)
        else:
            inputs = padded_inputs(pairs, self.config, weights.device)
            states = self.backbone(**inputs).last_hidden_state
            mask = inputs["attention_mask"] == 1
        states = states.to(weights.dtype)
        return torch.cat([pool(states, mask, pooling) for pooling in poolings], -1)

    def _packed_states(
        self,
        pairs: PackedPairs,
        fused: FusedLayers | None,
        device: torch.device,
        poolings: Sequence[str],
    ) -> tuple[Tensor, Tensor | None]:
        """States ``[pairs, width, hidden]`` and the mask of real tokens ``[pairs, width]``.

        With the pooling ``first`` alone, only the first tokens and no mask.
        """
        output, segments = _run_packed(self.backbone, pairs, device, fused)
        states = output.last_hidden_state
        if self.first_only:
            return states, None
        if tuple(poolings) == ("first",):
            return states.index_select(1, segments.starts).transpose(0, 1), None
        return segments.pad(states.squeeze(0)), segments.mask


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """``[pairs, width, hidden]`` -> ``[pairs, hidden]``."""
    if pooling == "first" or mask is None:
        return states[:, 0]
    lengths = mask.sum(1, keepdim=True)
    if pooling == "last":
        return states.gather(1, (lengths - 1).unsqueeze(-1).expand(-1, 1, states.shape[-1]))[:, 0]
    if pooling == "max":
        return states.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    states = states.masked_fill(~mask.unsqueeze(-1), 0)
    if pooling == "weighted_mean":
        weights = mask.cumsum(1) * mask
        return (states * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)
    divisors: dict[str, Any] = {"sum": 1, "mean": lengths, "mean_sqrt": lengths.sqrt()}
    return states.sum(1) / divisors[pooling]


class MonoNetwork(_PooledEncoder):
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
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        super().__init__(backbone, [pooling], packed=packed)
        self.pooling = pooling
        self.linear = nn.Linear(backbone.config.hidden_size, outputs, bias=bias)
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, pairs: PackedPairs, fused: FusedLayers | None = None) -> Tensor:
        """Scores ``[len(pairs)]``; neighbours should be of similar length.

        ``fused`` is the result of `rankdistillm.encoder.fused_layers`.
        """
        pooled = self._pooled(pairs, fused, [self.pooling])
        # Scores are float32, whatever the encoder computes in.
        with torch.autocast(pooled.device.type, enabled=False):
            scores = self.linear(pooled)
        scores = scores.log_softmax(-1)[:, 1] if scores.shape[-1] == 2 else scores.squeeze(-1)
        return scores[: len(pairs)]


class ModularNetwork(_PooledEncoder):
    """An encoder, pooling, and a head of several modules, as sentence-transformers builds it.

    ``poolings`` are any of `MODULAR_POOLINGS`, concatenated. ``head`` maps the pooled states,
    ``[pairs, len(poolings) * hidden]``, to ``[pairs, 1]``. ``activation`` is applied to the scores
    when re-ranking, None for nothing.
    """

    def __init__(
        self,
        backbone: Any,
        poolings: Sequence[str],
        head: nn.Sequential,
        activation: nn.Module | None = None,
        *,
        packed: bool = True,
    ) -> None:
        super().__init__(backbone, poolings, packed=packed)
        self.poolings = tuple(poolings)
        self.head = head
        self.activation = activation

    def forward(self, pairs: PackedPairs, fused: FusedLayers | None = None) -> Tensor:
        """Scores ``[len(pairs)]``, as `MonoNetwork.forward`."""
        pooled = self._pooled(pairs, fused, self.poolings)
        with torch.autocast(pooled.device.type, enabled=False):
            scores = self.head(pooled)
        return scores.squeeze(-1)[: len(pairs)]


class Dense(nn.Module):
    """A linear layer and an activation; ``residual`` adds the input to the result.

    Where input and output differ in size, a second linear layer fits the input.
    """

    def __init__(
        self, inputs: int, outputs: int, activation: nn.Module, *, bias: bool, residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation_function = activation
        self.has_residual = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """``[pairs, inputs]`` -> ``[pairs, outputs]``."""
        result = self.activation_function(self.linear(states))
        if not self.has_residual:
            return result
        return result + (self.residual(states) if hasattr(self, "residual") else states)


class Normalize(nn.Module):
    """Scales each row to length 1: ``[pairs, hidden]`` in and out."""

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(states, dim=-1)


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
