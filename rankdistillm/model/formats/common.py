"""The parts that all checkpoint layouts share: settings, tokeniser, weights and checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer

from rankdistillm.errors import InputError, check_count
from rankdistillm.model.formats.files import (
    UnreadableError,
    find_file,
    read_json,
    read_tensors,
    reading,
    weight_files,
)
from rankdistillm.model.heads import ClassifierNetwork, ModularNetwork, MonoNetwork
from rankdistillm.model.pairs import PairTemplate

HEAD = "linear."

ACTIVATIONS = nn.ReLU.__module__  # of torch

# Buffers that older versions of transformers saved among the weights of a layer.
BUFFERS = ("position_ids", "inv_freq", "masked_bias")


@dataclass(frozen=True)
class LoadOptions:
    """How to build the network of a checkpoint.

    ``dropout`` replaces every dropout rate of the encoder (None: keep them); ``attention`` is
    transformers' ``attn_implementation``; ``packed`` is explained in `rankdistillm.model.heads`.
    """

    dropout: float | None
    attention: str | None
    packed: bool


@dataclass(frozen=True)
class Checkpoint:
    """The loaded contents of a checkpoint.

    ``layout`` is a key of `rankdistillm.model.formats.LAYOUTS`. ``query_length``, ``doc_length``
    and ``max_length`` (of a pair) are in tokens, None for no limit. ``has_head`` is False if the
    head was missing and has been drawn at random.
    """

    layout: str
    network: MonoNetwork | ModularNetwork | ClassifierNetwork
    tokenizer: Any
    query_length: int | None
    doc_length: int | None
    max_length: int | None
    has_head: bool = True


def first_architecture(raw: dict[str, Any]) -> str:
    """Return the transformers class that config.json names, or an empty string."""
    architectures = raw.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise UnreadableError(
            f"config.json: architectures={architectures!r:.40} is not a list of names"
        )
    return architectures[0]


def refuse_unsupported(source: str, raw: dict[str, Any]) -> None:
    """Raises `InputError` for checkpoints that could only be read in part."""
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING:
        raise InputError(
            f"config.json: the model type {raw.get('model_type')!r} needs code that comes with the "
            "checkpoint (auto_map), which is never run; give a model type that transformers knows"
        )
    if raw.get("quantization_config"):
        raise InputError(
            "config.json: the weights are quantised (quantization_config); give the original ones"
        )
    if find_file(source, "adapter_config.json"):
        raise InputError(
            "adapter_config.json: an adapter beside the weights; merge it into them (peft's "
            "merge_and_unload), save the result and give its folder"
        )


def load_config(source: str, dropout: float | None) -> Any:
    """Load transformers' configuration; ``dropout`` replaces its rates unless None."""
    with reading("config.json"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    set_dropout(config, dropout)
    return config


def load_tokenizer(source: str, kind: Any = AutoTokenizer, **options: Any) -> Any:
    """Load the tokeniser with ``kind.from_pretrained``.

    Raises `UnreadableError` if there is no vocabulary: transformers would make one up.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if file := find_file(source, name):
            read_json(file)
    has_tokens = find_file(source, "tokenizer.json")
    with reading("tokenizer.json" if has_tokens else "the tokeniser"):
        tokenizer = kind.from_pretrained(source, trust_remote_code=False, **options)
    names = {"tokenizer.json", *tokenizer.vocab_files_names.values()} - {"tokenizer_config.json"}
    if not any(find_file(source, name) for name in names):
        raise UnreadableError("there is no tokenizer.json")
    return tokenizer


def longest_pair(tokenizer: Any, config: Any) -> int | None:
    """Return the tokens of a pair, special ones included, that tokeniser and positions allow."""
    limit = tokenizer.model_max_length
    if not isinstance(limit, float) or limit < 1_000_000:  # transformers writes 1e30 for no limit
        check_count("tokenizer_config.json: model_max_length", limit, optional=True)
    positions = getattr(config, "max_position_embeddings", None)
    check_count("config.json: max_position_embeddings", positions, optional=True)
    if positions is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # their positions start after the padding id
    limits = [n for n in (limit, positions) if n and n < 1_000_000]
    return min(limits, default=None)


def lengths_of(settings: dict[str, Any], *defaults: int | None) -> tuple[int | None, int | None]:
    """Return the query_length and doc_length of a checkpoint's settings, in tokens."""
    names = ("query_length", "doc_length")
    query_length, doc_length = map(settings.get, names, defaults)
    for name, value in zip(names, (query_length, doc_length), strict=True):
        check_count(f"config.json: {name}", value, optional=True)
    return query_length, doc_length


def own_settings(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the ``rankdistillm`` settings in config.json, empty if there are none.

    Raises `UnreadableError` if any of ``names`` is missing.
    """
    if "rankdistillm" not in raw:
        return {}
    settings = raw["rankdistillm"]
    if not isinstance(settings, dict) or not settings.keys() >= {*names}:
        raise UnreadableError(
            f"config.json: rankdistillm={settings!r:.60} lacks {', '.join(names)}"
        )
    return settings


def load_model(
    kind: Any, source: str, config: Any, attention: str | None
) -> tuple[Any, dict[str, Tensor]]:
    """Load the model with ``kind.from_pretrained`` in float32; also return the stored tensors.

    Raises `UnreadableError` for missing weights (transformers would draw them at random), for
    layers that the model does not have, and for weights that are not floating-point numbers.
    """
    check_layers(config)
    tensors = read_tensors(source)
    config._attn_implementation = None  # the checkpoint's may name code on the hub
    with reading(Path(weight_files(source)[0]).name):
        model, report = kind.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
        )
        # Students have no pooler, and a classifier's pooler has another name.
        missing = [n for n in sorted(report["missing_keys"]) if not n.startswith("pooler.")]
        check_weights(model, missing, sorted(report["unexpected_keys"]), tensors)
    return model, tensors


def check_layers(config: Any) -> None:
    """Raises an error for an impossible number of layers, before they are allocated."""
    layers = getattr(config, "num_hidden_layers", 1)
    check_count("config.json: num_hidden_layers", layers)
    if layers > 1000:
        raise UnreadableError(f"config.json: num_hidden_layers={layers} is too large")


def check_weights(
    model: Any, missing: list[str], unexpected: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """Raises ValueError if the model was not loaded completely from these tensors."""
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    prefix = f"{model.base_model_prefix}."
    lists = {n for n, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists |= {f"{prefix}{name}" for name in lists}
    for name in unexpected:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if any(".".join(parts[:i]) in lists for i in numbers) and parts[-1] not in BUFFERS:
            raise ValueError(f"{name} does not belong to any layer that config.json describes")
    for name, weight in model.named_parameters():
        for stored in {name, name.removeprefix(prefix), prefix + name} & tensors.keys():
            if not tensors[stored].is_floating_point():
                raise ValueError(f"{stored} is {tensors[stored].dtype}, not floating point")
        if not weight.sum().isfinite():
            raise ValueError(f"{name} is not finite")


@torch.no_grad()
def check_encoder(model: Any) -> None:
    """Raises `InputError` if the model is not an encoder, `UnreadableError` if it cannot run.

    The first token gives the score; a decoder's first token sees no other token, so all passages
    would score the same. No field of a configuration tells decoders apart, so try it.
    """
    config = model.config
    remedy = (
        "give an encoder, such as google/electra-base-discriminator, and let other language models "
        "teach it (python -m rankdistillm.teach teacher=yes_no teacher.model.path=…)"
    )
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"config.json: {config.model_type} is an encoder-decoder, in which no single token "
            f"sees the whole pair; {remedy}"
        )
    encoder = model.base_model.eval()
    with reading("config.json"):
        embed = encoder.get_input_embeddings()
        tokens = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]]) % embed.num_embeddings
        mask = torch.ones(1, tokens.shape[1], dtype=torch.long)
        first, other = (
            encoder(inputs_embeds=embed(row[None]), attention_mask=mask).last_hidden_state[:, 0]
            for row in tokens
        )
    # Far above float32 rounding, far below the change that one random layer makes.
    if (first - other).abs().max() <= 1e-6 * first.abs().max():
        raise InputError(
            f"config.json: {config.model_type} is a decoder, whose first token does not see the "
            f"others, so all passages would score the same; {remedy}"
        )


@torch.no_grad()
def check_scores(checkpoint: Checkpoint) -> None:
    """Score two small pairs; raises `UnreadableError` if tokeniser, encoder and head do not fit."""
    network, tokenizer = checkpoint.network.eval(), checkpoint.tokenizer
    with reading("tokenizer.json"):
        template = PairTemplate.from_tokenizer(tokenizer, checkpoint.max_length)
        words = tokenizer(["a", "\u16a0"], add_special_tokens=False)["input_ids"]
        special = [*template.before, *template.between, *template.after]
        if tokenizer.cls_token_id is not None and tokenizer.cls_token_id not in special:
            raise ValueError(f"{tokenizer.cls_token} is not added to a pair (post_processor)")
        if checkpoint.max_length is not None and checkpoint.max_length <= len(special):
            raise ValueError(f"model_max_length={checkpoint.max_length} leaves no room for text")
        known = network.get_input_embeddings().num_embeddings
        largest = max(tokenizer.get_vocab().values())
        if largest >= known:
            raise ValueError(f"token {largest} is outside the model's vocabulary of {known}")
        pairs = template.pack([(np.array(word, np.int32),) * 2 for word in words])
    with reading("config.json"):
        scores = network(pairs)
        if network.activation is not None:
            scores = network.activation(scores)
        if scores.shape != (len(pairs),):
            raise ValueError(f"the scores of {len(pairs)} pairs have the shape {[*scores.shape]}")
        if not scores.isfinite().all():
            raise ValueError("the scores are not finite")


def read_activation(source: str, raw: dict[str, Any]) -> nn.Module | None:
    """Read what sentence-transformers applies to the scores, None for the identity.

    Each of its versions records it in another place; if none is recorded, it uses the sigmoid.
    """
    settings = "config_sentence_transformers.json"
    file = find_file(source, settings)
    name = read_json(file).get("activation_fn") if file else None
    with reading("config.json" if name is None else settings):
        if name is None:
            name = (raw.get("sentence_transformers") or {}).get("activation_fn")
        if name is None:
            name = raw.get("sbert_ce_default_activation_function")
        if name is None:
            return nn.Sigmoid() if file or "sentence_transformers" in raw else None
        function = named_activation(name)
        alone, together = function(torch.zeros(1)), function(torch.tensor([0.0, 1.0]))
        if together.shape != (2,) or not torch.equal(alone, together[:1]):
            raise ValueError(f"the activation function {name} does not treat each score alone")
        return None if isinstance(function, nn.Identity) else function


def named_activation(name: Any) -> nn.Module:
    """Build an activation function of torch from its dotted name; runs no other code."""
    is_known = isinstance(name, str) and name.startswith("torch.nn.")
    kind: Any = getattr(nn, name.rpartition(".")[2], None) if is_known else None
    if kind is not nn.Identity and getattr(kind, "__module__", None) != ACTIVATIONS:
        raise ValueError(f"the activation function {name!r:.60} is not one of torch.nn")
    return kind()


def name_of_activation(function: nn.Module) -> str:
    """The name by which `named_activation` builds the function."""
    return f"{type(function).__module__}.{type(function).__name__}"


def set_dropout(config: Any, rate: float | None) -> None:
    """Set every dropout rate of a transformers configuration, in place; None keeps them."""
    if rate is None:
        return
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


def mono_network(
    backbone: Any, tensors: Mapping[str, Tensor], pooling: str, *, packed: bool
) -> MonoNetwork:
    """Build the network with the head ``linear.*`` of ``tensors``, or with a fresh one."""
    head = {
        name.removeprefix(HEAD): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(HEAD)
    }
    # The weights decide whether there is a bias, whatever the config says.
    with reading("the head linear.*"):
        outputs = len(head["weight"]) if head else 1
        if outputs not in (1, 2) or not all(tensor.isfinite().all() for tensor in head.values()):
            raise ValueError("the head must have one or two outputs and finite weights")
        network = MonoNetwork(
            backbone, pooling=pooling, bias="bias" in head, outputs=outputs, packed=packed
        )
        if head:
            network.linear.load_state_dict(head)
    return network


def mono_tensors(network: MonoNetwork) -> dict[str, Tensor]:
    """Return the encoder's weights under transformers' names, and the head's as ``linear.*``."""
    head = {f"{HEAD}{name}": tensor for name, tensor in network.linear.state_dict().items()}
    return network.backbone.state_dict() | head
