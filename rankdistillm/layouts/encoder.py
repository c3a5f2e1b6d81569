"""Encoders as transformers saves them, and our own students: the same and a head, ``linear.*``."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer

from rankdistillm.layouts.contents import (
    HEAD,
    Checkpoint,
    load_model,
    longest_pair,
    mono_network,
    mono_tensors,
    set_dropout,
)
from rankdistillm.networks import MonoNetwork
from rankdistillm.pretrained import find_file, read_tensors, write_files

QUERY_LENGTH, DOC_LENGTH = 32, 256


def load(
    source: str, raw: dict[str, Any], dropout: float | None, attention: str | None
) -> Checkpoint:
    config = AutoConfig.from_pretrained(source)
    set_dropout(config, dropout)
    backbone = load_model(AutoModel, source, config, attention)
    tokenizer = AutoTokenizer.from_pretrained(source)
    ours = raw.get("rankdistillm") or {}
    # Our own heads alone: the encoder has been read.
    head = read_tensors(source, HEAD) if find_file(source, "model.safetensors") else {}
    network = mono_network(backbone, head, ours.get("pooling", "first"))
    return Checkpoint(
        "encoder",
        network,
        tokenizer,
        ours.get("query_length", QUERY_LENGTH),
        ours.get("doc_length", DOC_LENGTH),
        longest_pair(tokenizer, backbone.config),
        has_head=bool(head),
    )


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """``AutoModel`` reads the folder too; the head is ``linear.*``."""
    config = network.config.to_dict()
    config["architectures"] = [type(network.backbone).__name__]
    config["rankdistillm"] = settings | {"pooling": network.pooling}
    write_files(folder, config, mono_tensors(network))
