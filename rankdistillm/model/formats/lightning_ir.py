"""lightning-ir's ``mono`` models, such as webis/monoelectra-base.

The encoder's weights have no prefix (in older releases possibly the encoder's own, such as
``electra.``); the head is ``linear.*``.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedTokenizerFast

from rankdistillm.errors import InputError
from rankdistillm.model.formats.common import (
    HEAD,
    Checkpoint,
    LoadOptions,
    check_encoder,
    check_layers,
    check_weights,
    first_architecture,
    lengths_of,
    load_tokenizer,
    longest_pair,
    mono_network,
    mono_tensors,
    set_dropout,
)
from rankdistillm.model.formats.files import (
    UnreadableError,
    find_file,
    read_tensors,
    reading,
    write_files,
    write_json,
)
from rankdistillm.model.heads import MonoNetwork

MODEL_TYPES = ("mono", "cross-encoder")


def load(source: str, raw: dict[str, Any], options: LoadOptions) -> Checkpoint:
    if raw.get("_bert_pool"):
        raise InputError(
            "config.json: mono models with BERT's pooler (_bert_pool) are not supported; give one "
            "without it"
        )
    with reading("config.json"):
        backbone_type = _backbone_type(raw)
        own = {"model_type", "architectures", "backbone_model_type", "dtype", "torch_dtype"}
        known = {k: v for k, v in raw.items() if k not in own}
        config = AutoConfig.for_model(backbone_type, **known)
        config._attn_implementation = None  # the checkpoint's may name code on the hub
    set_dropout(config, options.dropout)
    tensors = read_tensors(source)
    if f"{HEAD}weight" not in tensors:
        raise UnreadableError(f"the head's {HEAD}weight is missing")
    backbone = _load_backbone(config, options.attention, tensors)
    check_encoder(backbone)
    tokenizer = _load_tokenizer(source, config)
    pooling = raw.get("pooling_strategy")
    return Checkpoint(
        "mono",
        mono_network(
            backbone, tensors, "first" if pooling is None else pooling, packed=options.packed
        ),
        tokenizer,
        *lengths_of(raw, 32, 512),
        longest_pair(tokenizer, config),
    )


def _load_backbone(config: Any, attention: str | None, tensors: dict[str, Tensor]) -> Any:
    check_layers(config)

    def make() -> Any:
        return AutoModel.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )

    with reading("config.json"), torch.device("meta"):
        empty = make()
        shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    prefixes = rf"^({empty.base_model_prefix}|{config.model_type})\."
    with reading("the weights"):
        weights = {
            re.sub(prefixes, "", name): tensor
            for name, tensor in tensors.items()
            if not name.startswith(HEAD)
        }
        missing = [n for n in shapes if n not in weights and not n.startswith("pooler.")]
        unexpected = [n for n in weights if n not in shapes]
        unexpected = [n for n in unexpected if "pooler." not in n and "position_ids" not in n]
        if missing or unexpected:
            raise ValueError(
                f"the weights do not fit {config.model_type}: missing {missing[:3]}, unexpected "
                f"{unexpected[:3]}"
            )
        for name, tensor in weights.items():
            if name in shapes and tensor.shape != shapes[name]:
                raise ValueError(f"{name} has the shape {[*tensor.shape]}, not {[*shapes[name]]}")
        # Allocate only now that the sizes in config.json match the stored tensors.
        backbone = make().eval()
        backbone.load_state_dict(weights, strict=False)
        check_weights(backbone, [], [], weights)
    return backbone


def _load_tokenizer(source: str, config: Any) -> Any:
    # tokenizer_config.json names classes that exist only in lightning-ir.
    if find_file(source, "tokenizer.json") is None:
        return load_tokenizer(source, tokenizer_type=config.model_type)
    types = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    names = ["input_ids", *types, "attention_mask"]
    return load_tokenizer(source, PreTrainedTokenizerFast, model_input_names=names)


def _backbone_type(raw: dict[str, Any]) -> str:
    """Return the encoder's type; older checkpoints only name it in CrossEncoder*Electra*Model."""
    if raw.get("backbone_model_type"):
        return raw["backbone_model_type"]
    architecture = first_architecture(raw)
    name = re.sub(r"^(CrossEncoder|Mono)|Model$", "", architecture).lower()
    for known in CONFIG_MAPPING:
        if known.replace("-", "").replace("_", "") == name:
            return known
    raise ValueError(f"config.json names no known encoder (architectures: {architecture!r})")


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """Write files that lightning-ir loads."""
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
