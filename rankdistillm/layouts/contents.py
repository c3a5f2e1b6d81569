"""What a checkpoint of any layout gives, and what its layouts have in common."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankdistillm.networks import ClassifierNetwork, MonoNetwork

HEAD = "linear."


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or hub id holds.

    ``query_length``, ``doc_length`` and ``max_length`` (of the pair) are in tokens, None for no
    bound; ``has_head``: the weights that make scores of states are in it, not drawn at random.
    """

    layout: str
    network: MonoNetwork | ClassifierNetwork
    tokenizer: Any
    query_length: int | None
    doc_length: int | None
    max_length: int | None
    has_head: bool = True


def longest_pair(tokenizer: Any, config: Any) -> int | None:
    """How many tokens of a pair, special ones counted, both tokeniser and positions allow."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # their positions start behind the padding's
    limits = [n for n in (tokenizer.model_max_length, positions) if n and n < 1_000_000]
    return min(limits, default=None)


def load_model(kind: Any, source: str, config: Any, attention: str | None) -> Any:
    """``kind.from_pretrained`` in float32.

    Raises ValueError for weights that are missing: transformers draws them at random.
    """
    model, report = kind.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
    )
    # No student has a pooler; the poolers of classifiers have names of their own.
    missing = [name for name in sorted(report["missing_keys"]) if not name.startswith("pooler.")]
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model


def set_dropout(config: Any, rate: float | None) -> None:
    if rate is None:
        return
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


def mono_network(backbone: Any, tensors: dict[str, Tensor], pooling: str) -> MonoNetwork:
    """The encoder with the head ``linear.*`` among the tensors; a fresh one if there is none."""
    head = {
        name.removeprefix(HEAD): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(HEAD)
    }
    # The bias is there if its weights are, whatever the config says.
    outputs = len(head["weight"]) if head else 1
    network = MonoNetwork(backbone, pooling=pooling, bias="bias" in head, outputs=outputs)
    if head:
        network.linear.load_state_dict(head)
    return network


def mono_tensors(network: MonoNetwork) -> dict[str, Tensor]:
    """The encoder's weights by transformers' names, and the head's."""
    head = {f"{HEAD}{name}": tensor for name, tensor in network.linear.state_dict().items()}
    return network.backbone.state_dict() | head
