"""What turns the embedded tokens of pairs into scores: an encoder and what stands on top of it."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rankdistillm.bert_layers import FusedLayers, use_packed_layers
from rankdistillm.errors import InputError
from rankdistillm.packed_attention import first_position, use_packed_attention
from rankdistillm.segments import Segments

POOLINGS = ("first", "mean", "max", "sum")


class MonoNetwork(nn.Module):
    """Encoder, pooling, one linear layer: monoBERT and monoELECTRA (Nogueira et al., 2019).

    ``pooling`` over the tokens of a pair: ``first``, ``mean``, ``max`` or ``sum``. A head with two
    outputs (not relevant, relevant) scores by the log-probability of the second. Without dropout in
    the head.
    """

    activation = None

    def __init__(
        self, backbone: Any, *, pooling: str = "first", bias: bool = False, outputs: int = 1
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        backbone.pooler = None  # its output is not used
        self.packed = use_packed_attention(backbone)
        is_first = pooling == "first"
        self.first_only = use_packed_layers(backbone, first_only=is_first) and is_first
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

    def forward(
        self,
        embedded: Tensor,
        types: Tensor | None,
        segments: Segments,
        fused: FusedLayers | None = None,
    ) -> Tensor:
        """Scores ``[pairs]`` of packed pairs.

        ``embedded`` ``[tokens, embedding size]``; ``types``: token types ``[tokens]``, None for a
        model that takes none; ``fused``: of `rankdistillm.bert_layers.fused_layers`.
        """
        inputs = _encoder_inputs(self.backbone, self.packed, embedded, types, segments, fused)
        states = self.backbone(**inputs).last_hidden_state
        # Scores are float32 whatever the encoder computes in.
        with torch.autocast(states.device.type, enabled=False):
            scores = self.linear(self._pool(states.to(self.linear.weight.dtype), segments))
        if scores.shape[-1] == 2:
            return scores.log_softmax(-1)[:, 1]
        return scores.squeeze(-1)

    def _pool(self, states: Tensor, segments: Segments) -> Tensor:
        if self.first_only:
            return states[:, 0]
        if self.packed and self.pooling == "first":
            return states.squeeze(0).index_select(0, segments.starts)
        if self.packed:
            states = segments.pad(states.squeeze(0))
        if self.pooling == "first":
            return states[:, 0]
        real = segments.mask.unsqueeze(-1)
        if self.pooling == "max":
            return states.masked_fill(~real, -torch.inf).amax(1)
        total = states.masked_fill(~real, 0).sum(1)
        return total if self.pooling == "sum" else total / real.sum(1)


class ClassifierNetwork(nn.Module):
    """A transformers sequence classifier with one label, scored by its logit.

    ``activation``: what its scores go through when re-ranking, None for nothing.
    """

    def __init__(self, classifier: Any, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation
        # The heads of BERT, ELECTRA and RoBERTa look at the first token alone; others want to see
        # the rectangle.
        self.packed = use_packed_layers(classifier.base_model, first_only=True)
        if self.packed:
            use_packed_attention(classifier)
        encoder = classifier.base_model
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

    def forward(
        self,
        embedded: Tensor,
        types: Tensor | None,
        segments: Segments,
        fused: FusedLayers | None = None,
    ) -> Tensor:
        """Scores ``[pairs]``; the inputs are those of `MonoNetwork.forward`."""
        inputs = _encoder_inputs(self.classifier, self.packed, embedded, types, segments, fused)
        return self.classifier(**inputs).logits.squeeze(-1)


def _forward_without_autocast(module: Any, states: Tensor, *rest: Any, **options: Any) -> Any:
    """A module's forward in the type of its weights: in bf16 scores of 8 would differ by 1/16."""
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(next(module.parameters()).dtype)
        return type(module).forward(module, states, *rest, **options)


def _encoder_inputs(
    model: Any,
    packed: bool,
    embedded: Tensor,
    types: Tensor | None,
    segments: Segments,
    fused: FusedLayers | None,
) -> dict[str, Any]:
    """What a model of transformers is called with: one row of all pairs, or a padded rectangle."""
    if packed:
        inputs = {
            "inputs_embeds": embedded.unsqueeze(0),
            "position_ids": (segments.positions + first_position(model.config)).unsqueeze(0),
            "segments": segments,
            "fused": fused,
        }
    else:
        inputs = {"inputs_embeds": segments.pad(embedded), "attention_mask": segments.mask.long()}
    if types is not None:
        inputs["token_type_ids"] = types.unsqueeze(0) if packed else segments.pad(types)
    return inputs
