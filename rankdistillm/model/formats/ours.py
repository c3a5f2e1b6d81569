"""Encoders as transformers saves them, and our students: the same plus a head, ``linear.*``."""

from pathlib import Path
from typing import Any

from transformers import AutoModel

from rankdistillm.model.formats.common import (
    HEAD,
    Checkpoint,
    LoadOptions,
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
from rankdistillm.model.formats.files import UnreadableError, write_files
from rankdistillm.model.heads import MonoNetwork

QUERY_LENGTH, DOC_LENGTH = 32, 256


def load(source: str, raw: dict[str, Any], options: LoadOptions) -> Checkpoint:
    ours = own_settings(raw, "query_length", "doc_length", "pooling")
    config = load_config(source, options.dropout)
    backbone, tensors = load_model(AutoModel, source, config, options.attention)
    check_encoder(backbone)
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if bool(head) != bool(ours):
        missing = "the head's linear.* weights are" if ours else "rankdistillm in config.json is"
        raise UnreadableError(f"{missing} missing: an incomplete student of rankdistillm")
    if not first_architecture(raw) and any(name.startswith("classifier.") for name in tensors):
        raise UnreadableError(
            "config.json names no architecture, but the weights have a classifier"
        )
    tokenizer = load_tokenizer(source)
    return Checkpoint(
        "encoder",
        mono_network(backbone, head, ours.get("pooling", "first"), packed=options.packed),
        tokenizer,
        *lengths_of(ours, QUERY_LENGTH, DOC_LENGTH),
        longest_pair(tokenizer, backbone.config),
        has_head=bool(head),
    )


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """Write files that ``AutoModel`` reads too; it ignores the head ``linear.*``."""
    config = network.config.to_dict()
    config["architectures"] = [type(network.backbone).__name__]
    config["rankdistillm"] = settings | {"pooling": network.pooling}
    write_files(folder, config, mono_tensors(network))
