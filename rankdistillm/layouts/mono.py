"""The ``mono`` models of lightning-ir, such as webis/monoelectra-base.

The encoder's weights have no prefix (in older releases maybe its own), the head is ``linear.*``.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rankdistillm.layouts.contents import (
    HEAD,
    Checkpoint,
    longest_pair,
    mono_network,
    mono_tensors,
    set_dropout,
)
from rankdistillm.networks import MonoNetwork
from rankdistillm.pretrained import find_file, read_tensors, write_files, write_json

MODEL_TYPES = ("mono", "cross-encoder")


def load(
    source: str, raw: dict[str, Any], dropout: float | None, attention: str | None
) -> Checkpoint:
    if raw.get("_bert_pool") or raw.get("is_encoder_decoder"):
        raise ValueError("BERT's pooler and encoder-decoders are not supported in mono models")
    backbone_type = _backbone_type(raw)
    own = {"model_type", "architectures", "backbone_model_type", "dtype", "torch_dtype"}
    config = AutoConfig.for_model(backbone_type, **{k: v for k, v in raw.items() if k not in own})
    set_dropout(config, dropout)
    backbone = AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attention)
    tensors = read_tensors(source)
    if f"{HEAD}weight" not in tensors:
        raise ValueError(f"{HEAD}weight is missing, which makes scores of states")
    weights = {
        re.sub(rf"^({backbone.base_model_prefix}|{backbone_type})\.", "", name): tensor
        for name, tensor in tensors.items()
        if not name.startswith(HEAD)
    }
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.startswith("pooler.")]
    unexpected = [
        name for name in unexpected if "pooler." not in name and "position_ids" not in name
    ]
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit {backbone_type}: missing {missing[:3]}, besides them "
            f"{unexpected[:3]}"
        )
    tokenizer = _load_tokenizer(source, config)
    return Checkpoint(
        "mono",
        mono_network(backbone, tensors, raw.get("pooling_strategy") or "first"),
        tokenizer,
        raw.get("query_length", 32),
        raw.get("doc_length", 512),
        longest_pair(tokenizer, config),
    )


def _load_tokenizer(source: str, config: Any) -> Any:
    # tokenizer_config.json names classes that only lightning-ir has.
    if find_file(source, "tokenizer.json") is None:
        return AutoTokenizer.from_pretrained(source, tokenizer_type=config.model_type)
    types = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    names = ["input_ids", *types, "attention_mask"]
    return PreTrainedTokenizerFast.from_pretrained(source, model_input_names=names)


def _backbone_type(raw: dict[str, Any]) -> str:
    """``backbone_model_type``; older checkpoints say it in CrossEncoder*Electra*Model alone."""
    if raw.get("backbone_model_type"):
        return raw["backbone_model_type"]
    architecture = (raw.get("architectures") or [""])[0]
    name = re.sub(r"^(CrossEncoder|Mono)|Model$", "", architecture).lower()
    for known in CONFIG_MAPPING:
        if known.replace("-", "").replace("_", "") == name:
            return known
    raise ValueError(f"config.json names no known encoder (architectures: {architecture!r})")


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """lightning-ir reads the folder."""
    config = network.config.to_dict()
    kind = config["model_type"]
    name = type(network.backbone).__name__
    config |= {
        "model_type": "mono",
        "architectures": [f"Mono{name}"],
        "backbone_model_type": kind,
        "pooling_strategy": network.pooling,
        "linear_bias": network.linear.bias is not None,
        "scoring_strategy": "mono" if network.linear.out_features == 2 else "rank",
    } | settings
    write_files(folder, config, mono_tensors(network))
    file = folder / "tokenizer_config.json"
    tokenizer_config = json.loads(file.read_text()) | settings
    tokenizer_config |= {
        "tokenizer_class": "CrossEncoderTokenizer",
        "backbone_tokenizer_class": name.replace("Model", "TokenizerFast"),
    }
    write_json(file, tokenizer_config)
