"""What a checkpoint of any layout gives, and what its layouts have in common."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer

from rankdistillm.errors import InputError, check_count
from rankdistillm.networks import ClassifierNetwork, MonoNetwork
from rankdistillm.pretrained import (
    UnreadableError,
    find_file,
    read_json,
    read_tensors,
    reading,
    weight_files,
)
from rankdistillm.segments import Segments
from rankdistillm.tokens import PairTemplate

HEAD = "linear."

# Not weights, though older versions of transformers saved them inside layers.
BUFFERS = ("position_ids", "inv_freq", "masked_bias")


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


def first_architecture(raw: dict[str, Any]) -> str:
    """The class of transformers that config.json names; empty if none."""
    architectures = raw.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise UnreadableError(f"config.json: architectures={architectures!r:.40}, not names")
    return architectures[0]


def refuse_unsupported(source: str, raw: dict[str, Any]) -> None:
    """Raises `InputError` for kinds of checkpoints of which only a part would be read."""
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING:
        raise InputError(
            f"config.json: the model type {raw.get('model_type')!r} needs code of the checkpoint's "
            "own (auto_map), which is never run; give a model of a type that transformers knows"
        )
    if raw.get("quantization_config"):
        raise InputError(
            "config.json: the weights are quantised (quantization_config); give the original ones"
        )
    if find_file(source, "adapter_config.json"):
        raise InputError(
            "adapter_config.json: an adapter beside the weights; merge it into them "
            "(merge_and_unload of peft), save that and give its folder"
        )
    _refuse_modules(source)


def _refuse_modules(source: str) -> None:
    """A CrossEncoder of sentence-transformers whose head is modules beside its encoder.

    Embedding models have modules too, but none of them makes scores.
    """
    file = find_file(source, "modules.json")
    if file is None:
        return
    with reading("modules.json"):
        kinds = [module["type"].rpartition(".")[2] for module in json.loads(Path(file).read_text())]
        settings = find_file(source, "config_sentence_transformers.json")
        is_ranker = settings and read_json(settings).get("model_type") == "CrossEncoder"
    if is_ranker and kinds != ["Transformer"]:
        raise InputError(
            f"modules.json: a CrossEncoder of sentence-transformers made of {' + '.join(kinds)}, "
            "whose head cannot be read; give one with a sequence classifier (architectures in "
            "config.json: …ForSequenceClassification), or train from the encoder it was made from"
        )


def load_config(source: str, dropout: float | None) -> Any:
    """transformers' configuration, with that dropout."""
    with reading("config.json"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    set_dropout(config, dropout)
    return config


def load_tokenizer(source: str, kind: Any = AutoTokenizer, **options: Any) -> Any:
    """``kind.from_pretrained``.

    Raises `UnreadableError` where there is no vocabulary: transformers makes one of its own.
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
    """How many tokens of a pair, special ones counted, both tokeniser and positions allow."""
    limit = tokenizer.model_max_length
    if not isinstance(limit, float) or limit < 1_000_000:  # above: transformers' word for no bound
        check_count("tokenizer_config.json: model_max_length", limit, optional=True)
    positions = getattr(config, "max_position_embeddings", None)
    check_count("config.json: max_position_embeddings", positions, optional=True)
    if positions is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # their positions start behind the padding's
    limits = [n for n in (limit, positions) if n and n < 1_000_000]
    return min(limits, default=None)


def lengths_of(settings: dict[str, Any], *defaults: int | None) -> tuple[int | None, int | None]:
    """query_length and doc_length of a checkpoint's settings, as numbers of tokens."""
    names = ("query_length", "doc_length")
    query_length, doc_length = map(settings.get, names, defaults)
    for name, value in zip(names, (query_length, doc_length), strict=True):
        check_count(f"config.json: {name}", value, optional=True)
    return query_length, doc_length


def own_settings(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    """What config.json says under ``rankdistillm``, all those names in it; empty if not ours."""
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
    """``kind.from_pretrained`` in float32, and all tensors of the checkpoint by its own names.

    Raises `UnreadableError` for weights that are missing, which transformers draws at random, for
    layers that the model has no place for, and for weights that are not floating-point numbers.
    """
    check_layers(config)
    tensors = read_tensors(source)
    config._attn_implementation = None  # the checkpoint's own may be code on the hub
    with reading(Path(weight_files(source)[0]).name):
        model, report = kind.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
        )
        # No student has a pooler; the poolers of classifiers have names of their own.
        missing = [n for n in sorted(report["missing_keys"]) if not n.startswith("pooler.")]
        check_weights(model, missing, sorted(report["unexpected_keys"]), tensors)
    return model, tensors


def check_layers(config: Any) -> None:
    """Before so many are made."""
    layers = getattr(config, "num_hidden_layers", 1)
    check_count("config.json: num_hidden_layers", layers)
    if layers > 1000:
        raise UnreadableError(f"config.json: num_hidden_layers={layers} is no number of layers")


def check_weights(
    model: Any, missing: list[str], unexpected: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """Raises ValueError where the model has not been read whole from these tensors."""
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    prefix = f"{model.base_model_prefix}."
    lists = {n for n, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists |= {f"{prefix}{name}" for name in lists}
    for name in unexpected:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if any(".".join(parts[:i]) in lists for i in numbers) and parts[-1] not in BUFFERS:
            raise ValueError(f"{name} belongs to no layer of the model that config.json describes")
    for name, weight in model.named_parameters():
        for stored in {name, name.removeprefix(prefix), prefix + name} & tensors.keys():
            if not tensors[stored].is_floating_point():
                raise ValueError(f"{stored} holds {tensors[stored].dtype}, not fractions")
        if not weight.sum().isfinite():
            raise ValueError(f"{name} is not finite")


@torch.no_grad()
def check_encoder(model: Any) -> None:
    """Raises `InputError` for a model that is no encoder, `UnreadableError` for one that fails.

    The first token makes the score, and that of a decoder sees no other: all passages would score
    the same. Whether it does is tried, since no name in a configuration tells it of every model.
    """
    config = model.config
    remedy = "give an encoder, such as google/electra-base-discriminator"
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"config.json: {config.model_type} is an encoder-decoder, which has no token that sees "
            f"the whole pair and is scored; {remedy}"
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
    # Far above the rounding of float32, far below what one layer with random weights changes.
    if (first - other).abs().max() <= 1e-6 * first.abs().max():
        raise InputError(
            f"config.json: {config.model_type} is a decoder, whose first token does not see the "
            f"others, so that all passages would score the same; {remedy}"
        )


@torch.no_grad()
def check_scores(checkpoint: Checkpoint) -> None:
    """Score one small pair: raises `UnreadableError` where parts do not fit each other."""
    network, tokenizer = checkpoint.network.eval(), checkpoint.tokenizer
    with reading("tokenizer.json"):
        template = PairTemplate.from_tokenizer(tokenizer, checkpoint.max_length)
        words = tokenizer(["a", "\u16a0"], add_special_tokens=False)["input_ids"]
        special = [*template.before, *template.between, *template.after]
        if tokenizer.cls_token_id is not None and tokenizer.cls_token_id not in special:
            raise ValueError(f"no {tokenizer.cls_token} is put round a pair (post_processor)")
        if checkpoint.max_length is not None and checkpoint.max_length <= len(special):
            raise ValueError(f"a pair may have {checkpoint.max_length} tokens (model_max_length)")
        embed = network.get_input_embeddings()
        largest = max(tokenizer.get_vocab().values())
        if largest >= embed.num_embeddings:
            raise ValueError(
                f"the token {largest} is none of the {embed.num_embeddings} that the model knows"
            )
        pairs = template.pack([(np.array(word, np.int32),) * 2 for word in words])
    with reading("config.json"):
        types = None if pairs.types is None else torch.from_numpy(pairs.types).long()
        segments = Segments(pairs.lengths, torch.device("cpu"))
        scores = network(embed(torch.from_numpy(pairs.tokens).long()), types, segments)
        if network.activation is not None:
            scores = network.activation(scores)
        if scores.shape != (len(pairs),):
            raise ValueError(f"the scores of {len(pairs)} pairs have the shape {[*scores.shape]}")
        if not scores.isfinite().all():
            raise ValueError("the scores are not finite")


def set_dropout(config: Any, rate: float | None) -> None:
    if rate is None:
        return
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


def mono_network(backbone: Any, tensors: Mapping[str, Tensor], pooling: str) -> MonoNetwork:
    """The encoder with the head ``linear.*`` among the tensors; a fresh one if there is none."""
    head = {
        name.removeprefix(HEAD): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(HEAD)
    }
    # The bias is there if its weights are, whatever the config says.
    with reading("the head linear.*"):
        outputs = len(head["weight"]) if head else 1
        if outputs not in (1, 2) or not all(tensor.isfinite().all() for tensor in head.values()):
            raise ValueError("a head has one output or two, and finite weights")
        network = MonoNetwork(backbone, pooling=pooling, bias="bias" in head, outputs=outputs)
        if head:
            network.linear.load_state_dict(head)
    return network


def mono_tensors(network: MonoNetwork) -> dict[str, Tensor]:
    """The encoder's weights by transformers' names, and the head's."""
    head = {f"{HEAD}{name}": tensor for name, tensor in network.linear.state_dict().items()}
    return network.backbone.state_dict() | head
