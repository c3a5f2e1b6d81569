"""Encoders as transformers saves them, and our own students: the same and a head, ``linear.*``."""

from pathlib import Path
from typing import Any

from transformers import AutoModel

from rankdistillm.layouts.contents import (
    HEAD,
    Checkpoint,
    check_encoder,
    first_architecture,
    lengths_of,
    load_config,
    load_model,
    load_tokenizer,
    longest_pair,
    mono_network,
    mono_tensors,
    own_settings,
)
from rankdistillm.networks import MonoNetwork
from rankdistillm.pretrained import UnreadableError, write_files

QUERY_LENGTH, DOC_LENGTH = 32, 256


def load(
    source: str, raw: dict[str, Any], dropout: float | None, attention: str | None
) -> Checkpoint:
    ours = own_settings(raw, "query_length", "doc_length", "pooling")
    config = load_config(source, dropout)
    backbone, tensors = load_model(AutoModel, source, config, attention)
    check_encoder(backbone)
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if bool(head) != bool(ours):
        lacking = "the weights linear.* of the head" if ours else "rankdistillm in config.json"
        raise UnreadableError(f"{lacking} is missing, which a student of ours has")
    if not first_architecture(raw) and any(name.startswith("classifier.") for name in tensors):
        raise UnreadableError("config.json: no architectures, though the weights have a classifier")
    tokenizer = load_tokenizer(source)
    network = mono_network(backbone, head, ours.get("pooling", "first"))
    return Checkpoint(
        "encoder",
        network,
        tokenizer,
        *lengths_of(ours, QUERY_LENGTH, DOC_LENGTH),
        longest_pair(tokenizer, backbone.config),
        has_head=bool(head),
    )


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """``AutoModel`` reads the folder too; the head is ``linear.*``."""
    config = network.config.to_dict()
    config["architectures"] = [type(network.backbone).__name__]
    config["rankdistillm"] = settings | {"pooling": network.pooling}
    write_files(folder, config, mono_tensors(network))
