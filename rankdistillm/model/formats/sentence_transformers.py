"""sentence-transformers' re-rankers made of modules: Transformer + Pooling + Dense and others.

modules.json lists the modules in their order, each with the folder of its config.json and weights;
the encoder's own files are in the root. sentence-transformers reads this layout from version 5.5
on. It cuts a pair to a number of tokens, longest text first, where our students cut query and
passage each to its own length; the scores agree wherever neither cuts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from rankdistillm.errors import InputError, check_count
from rankdistillm.model.formats.common import (
    Checkpoint,
    LoadOptions,
    check_encoder,
    lengths_of,
    load_config,
    load_model,
    load_tokenizer,
    longest_pair,
    mono_network,
    name_of_activation,
    named_activation,
    own_settings,
    read_activation,
)
from rankdistillm.model.formats.files import (
    UnreadableError,
    find_file,
    read_json,
    read_tensors,
    reading,
    write_files,
    write_json,
)
from rankdistillm.model.heads import POOLINGS, Dense, ModularNetwork, MonoNetwork, Normalize
from rankdistillm.model.pairs import PairTemplate

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"

# The modules that are built here, and where the library keeps them.
KINDS = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Dense": "base.modules.dense",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Normalize": "sentence_transformer.modules",
    "Dropout": "sentence_transformer.modules.dropout",
}
NAMES = {  # of the settings in a module's config.json
    "Dense": {
        "in_features", "out_features", "bias", "activation_function", "use_residual",
        "module_input_name", "module_output_name",
    },
    "LayerNorm": {"dimension"},
    "Normalize": {"module_input_name", "module_output_name"},
    "Dropout": {"dropout"},
}  # fmt: skip

# Their names of poolings to ours.
POOLING_NAMES = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Older versions wrote a flag for each, in this order.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Modules pass on tensors by name: the pooled states, until the last one makes the scores.
POOLED, SCORES = "sentence_embedding", "scores"

ENCODER_SETTINGS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


@dataclass(frozen=True)
class Module:
    """An entry of modules.json: the class, and the folder of its files."""

    kind: str
    path: str

    @property
    def config_file(self) -> str:
        return f"{self.path}/config.json"


# ---- recognising the layout


def is_reranker(source: str, architecture: str) -> bool:
    """Whether the checkpoint is a re-ranker made of modules.

    Embedding models have modules too, but only make embeddings; a CrossEncoder of one module is a
    sequence classifier. Raises `UnreadableError` for a re-ranker that lacks one of its files.
    """
    settings = find_file(source, SETTINGS)
    is_cross_encoder = bool(settings) and _read(settings, "model_type") == "CrossEncoder"
    if find_file(source, MODULES) is None:
        if is_cross_encoder and not architecture.endswith("ForSequenceClassification"):
            raise UnreadableError(
                f"{SETTINGS} describes a CrossEncoder, but {MODULES}, which names the modules of "
                "its head, is missing"
            )
        return False
    modules = _read_modules(source)
    if is_cross_encoder:
        return [module.kind for module in modules] != ["Transformer"]
    last = modules[-1]
    file = find_file(source, last.config_file) if last.kind == "Dense" else None
    if file and _read(file, "module_output_name") == SCORES:
        raise UnreadableError(
            f"{MODULES} describes a re-ranker, but {SETTINGS} does not (model_type: CrossEncoder)"
        )
    return False


def _read(file: str | None, name: str) -> Any:
    return read_json(str(file)).get(name)


def _read_modules(source: str) -> list[Module]:
    with reading(MODULES):
        text = Path(str(find_file(source, MODULES))).read_text(encoding="utf-8")
        entries = json.loads(text)
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{entries!r:.40} is not a list of modules")
        modules = []
        for entry in entries:
            library, _, kind = entry["type"].partition(".")
            path = entry["path"]
            if path and Path(path).name != path:
                raise ValueError(f"the path {path!r:.60} is not a folder beside it")
            is_theirs = library == "sentence_transformers"
            modules.append(Module(kind.rpartition(".")[2] if is_theirs else entry["type"], path))
        return modules


# ---- loading


def load(source: str, raw: dict[str, Any], options: LoadOptions) -> Checkpoint:
    modules = _read_modules(source)
    _check_kinds([module.kind for module in modules])
    transformer, pooling, *rest = modules
    ours = own_settings(raw, "query_length", "doc_length")
    max_length = _read_transformer(source, transformer)
    _check_prompt(source)
    activation = read_activation(source, raw)
    config = load_config(source, options.dropout)
    backbone, _ = load_model(AutoModel, source, config, options.attention)
    check_encoder(backbone)
    tokenizer = load_tokenizer(source)
    if max_length is not None and not ours:  # with ours, it follows from the two lengths
        tokenizer.model_max_length = max_length
    width = backbone.config.hidden_size
    poolings = _read_pooling(source, pooling, width)
    head = _read_head(source, rest, width * len(poolings), options.dropout)
    return Checkpoint(
        "sentence_transformers",
        _network(backbone, poolings, head, activation, packed=options.packed),
        tokenizer,
        *lengths_of(ours, None, None),
        longest_pair(tokenizer, backbone.config),
    )


def _network(
    backbone: Any,
    poolings: list[str],
    head: nn.Sequential,
    activation: nn.Module | None,
    *,
    packed: bool,
) -> MonoNetwork | ModularNetwork:
    """A bare linear head makes a `MonoNetwork`, which other layouts hold too."""
    last = head[-1]
    is_linear = len(head) == 1 and isinstance(last.activation_function, nn.Identity)
    is_linear = is_linear and not last.has_residual and activation is None
    if not is_linear or len(poolings) > 1 or poolings[0] not in POOLINGS:
        return ModularNetwork(backbone, poolings, head, activation, packed=packed)
    return mono_network(backbone, last.state_dict(), poolings[0], packed=packed)


def _check_kinds(kinds: list[str]) -> None:
    """Raises `InputError` unless the modules are ones that we build, in an order that scores."""
    made = " + ".join(kinds)
    if "LogitScore" in kinds:
        raise InputError(
            f"{MODULES}: a sentence-transformers CrossEncoder made of {made}: a decoder that "
            "scores by its next token, but a student is an encoder; let it teach instead "
            "(python -m rankdistillm.teach teacher=yes_no teacher.model.path=…)"
        )
    unknown = [kind for kind in kinds if kind not in KINDS]
    in_order = kinds[:2] == ["Transformer", "Pooling"] and kinds[-1] == "Dense"
    if unknown or not in_order or {"Transformer", "Pooling"} & {*kinds[2:]}:
        reason = (
            f"whose {unknown[0]} is not known here" if unknown else "in an order not known here"
        )
        raise InputError(
            f"{MODULES}: a sentence-transformers CrossEncoder made of {made}, {reason}; give one "
            f"made of Transformer + Pooling + others that end in Dense, from {', '.join(KINDS)}"
        )


def _read_transformer(source: str, module: Module) -> int | None:
    """Return the longest pair that sentence-transformers takes, in tokens, None for no limit.

    Raises `UnreadableError` for settings that would change the scores.
    """
    content = _module_config(source, TRANSFORMER)
    with reading(TRANSFORMER):
        if module.path:
            raise ValueError(f"the Transformer's files are in {module.path}, not beside {MODULES}")
        # These set how fast it runs, or the lengths of texts that do not come in pairs.
        ignored = {"unpad_inputs", "query_length", "document_length", "max_seq_length"}
        for name, value in content.items():
            is_default = value in (None, False, {}) or value == ENCODER_SETTINGS.get(name)
            if name not in ignored and not is_default:
                raise ValueError(f"{name}={value!r:.80} is not supported")
        max_length = content.get("max_seq_length")
        check_count(f"{TRANSFORMER}: max_seq_length", max_length, optional=True)
        return max_length


def _check_prompt(source: str) -> None:
    """Raises `UnreadableError` if sentence-transformers puts a prompt before each pair."""
    file = find_file(source, SETTINGS)
    name = _read(file, "default_prompt_name") if file else None
    if name is not None:
        raise UnreadableError(f"{SETTINGS}: default_prompt_name={name!r:.40} is not supported")


def _read_pooling(source: str, module: Module, width: int) -> list[str]:
    """Return our names of the poolings of an encoder with states of size ``width``."""
    content = _module_config(source, module.config_file)
    with reading(module.config_file):
        sizes = {"embedding_dimension", "word_embedding_dimension"}
        _check_names(content, {*sizes, "pooling_mode", "include_prompt", *POOLING_FLAGS})
        for name in sizes & content.keys():
            if content[name] != width:
                raise ValueError(f"{name}={content[name]!r:.20} is not the encoder's {width}")
        modes = content.get("pooling_mode")
        if modes is None:
            modes = [mode for flag, mode in POOLING_FLAGS.items() if content.get(flag)]
        modes = [modes] if isinstance(modes, str) else modes
        if not modes or not {*modes} <= {*POOLING_NAMES}:
            raise ValueError(f"pooling_mode={modes!r:.60} is not of {', '.join(POOLING_NAMES)}")
        return [POOLING_NAMES[mode] for mode in modes]


def _read_head(
    source: str, modules: list[Module], width: int, dropout: float | None
) -> nn.Sequential:
    """Build the modules that make one score of a pair's ``width`` pooled numbers."""
    head = nn.Sequential()
    name = POOLED
    for module in modules:
        content = _module_config(source, module.config_file, optional=module.kind == "Normalize")
        with reading(module.config_file):
            _check_names(content, NAMES[module.kind])
            reads = content.get("module_input_name") or POOLED
            if reads != name:
                raise ValueError(f"module_input_name={reads!r:.40} is not {name!r}")
            name = content.get("module_output_name") or reads
            with torch.device("meta"):  # takes no memory before the sizes are checked
                made, width = _module(module.kind, content, width, dropout)
        if made.state_dict():
            tensors = read_tensors(source, module.path)
            with reading(f"{module.path}/model.safetensors"):
                _load_weights(made, tensors)
        head.append(made)
    if name != SCORES or width != 1:
        raise UnreadableError(
            f"{modules[-1].config_file}: the head makes {width} numbers named {name!r:.40}, not "
            f"one named {SCORES!r}"
        )
    return head


def _module(
    kind: str, content: dict[str, Any], width: int, dropout: float | None
) -> tuple[nn.Module, int]:
    """Build a module that takes ``width`` numbers; also return how many it makes."""
    if kind == "Normalize":
        return Normalize(), width
    if kind == "Dropout":
        return nn.Dropout(content["dropout"] if dropout is None else dropout), width
    taken = content["in_features" if kind == "Dense" else "dimension"]
    if taken != width:
        raise ValueError(f"it takes {taken!r:.20} numbers, but {width} come in")
    if kind == "LayerNorm":
        return nn.LayerNorm(width), width
    outputs, bias = content["out_features"], content["bias"]
    check_count("out_features", outputs)
    activation = named_activation(content["activation_function"])
    residual = content.get("use_residual", False)
    if not isinstance(bias, bool) or not isinstance(residual, bool):
        raise ValueError("bias and use_residual are true or false")
    return Dense(width, outputs, activation, bias=bias, residual=residual), outputs


def _load_weights(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{name} does not hold finite floating-point numbers")
    prefix = "norm." if isinstance(module, nn.LayerNorm) else ""
    weights = {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}
    module.load_state_dict(weights, assign=True)


def _module_config(source: str, name: str, *, optional: bool = False) -> dict[str, Any]:
    file = find_file(source, name)
    if file is None and not optional:
        raise UnreadableError(f"{name} is missing")
    return read_json(file) if file else {}


def _check_names(content: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"the setting {unknown[0]!r:.40} is not known here")


# ---- writing


def check(network: nn.Module) -> None:
    """Raises `InputError` if the layout cannot hold the network."""
    if isinstance(network, MonoNetwork) and network.pooling not in POOLING_NAMES.values():
        raise InputError(
            f"sentence-transformers has no pooling {network.pooling!r}; use layout=encoder or mono"
        )


def write(
    network: MonoNetwork | ModularNetwork, folder: Path, settings: dict[str, int | None]
) -> None:
    """Write files that ``sentence_transformers.CrossEncoder(folder)`` loads; it runs no code.

    Two outputs become one, with the logarithm of the sigmoid: their scores are the same.
    """
    backbone, config = network.backbone, network.config.to_dict()
    config["architectures"] = [type(backbone).__name__]
    config["rankdistillm"] = settings
    write_files(folder, config, backbone.state_dict())
    modular = _as_modular(network) if isinstance(network, MonoNetwork) else network
    ours = {ours: theirs for theirs, ours in POOLING_NAMES.items()}
    modes = [ours[pooling] for pooling in modular.poolings]
    modules = [Module("Transformer", ""), Module("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        "embedding_dimension": network.config.hidden_size,
        "pooling_mode": modes if len(modes) > 1 else modes[0],
        "include_prompt": True,
    }
    write_json(folder / "1_Pooling/config.json", pooling)
    for index, module in enumerate(modular.head, len(modules)):
        kind, content, tensors = _described(module)
        modules.append(Module(kind, f"{index}_{kind}"))
        (folder / modules[-1].path).mkdir(exist_ok=True)
        if module is modular.head[-1]:
            content |= {"module_input_name": POOLED, "module_output_name": SCORES}
        write_files(folder / modules[-1].path, content, tensors)
    max_length = _max_length(folder, network.config, settings)
    write_json(folder / TRANSFORMER, ENCODER_SETTINGS | {"max_seq_length": max_length})
    described: dict[str, Any] = {
        "model_type": "CrossEncoder",
        "activation_fn": name_of_activation(modular.activation or nn.Identity()),
        "prompts": {},
        "default_prompt_name": None,
    }
    write_json(folder / SETTINGS, described)
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": module.path,
            "type": f"sentence_transformers.{KINDS[module.kind]}.{module.kind}",
        }
        for i, module in enumerate(modules)
    ]
    (folder / MODULES).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _as_modular(network: MonoNetwork) -> ModularNetwork:
    """The same network with its linear layer as a `Dense`."""
    weight: Tensor = network.linear.weight.detach()
    bias: Tensor | None = network.linear.bias
    activation = None
    if len(weight) == 2:  # the log-probability of the second is log sigmoid(second - first)
        weight, activation = weight[1:] - weight[:1], nn.LogSigmoid()
        bias = None if bias is None else bias[1:] - bias[:1]
    with torch.device("meta"):
        dense = Dense(weight.shape[1], 1, nn.Identity(), bias=bias is not None, residual=False)
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias.detach()})
    dense.linear.load_state_dict(tensors, assign=True)
    # Its encoder is prepared already.
    return ModularNetwork(
        network.backbone, [network.pooling], nn.Sequential(dense), activation, packed=False
    )


def _described(module: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return a module's name, its config.json and its weights."""
    tensors = module.state_dict()
    if isinstance(module, nn.LayerNorm):
        tensors = {f"norm.{name}": tensor for name, tensor in tensors.items()}
        return "LayerNorm", {"dimension": module.normalized_shape[0]}, tensors
    if isinstance(module, Normalize):
        return "Normalize", {}, tensors
    if isinstance(module, nn.Dropout):
        return "Dropout", {"dropout": module.p}, tensors
    content = {
        "in_features": module.linear.in_features,
        "out_features": module.linear.out_features,
        "bias": module.linear.bias is not None,
        "activation_function": name_of_activation(module.activation_function),
        "module_input_name": POOLED,
        "module_output_name": POOLED,
    }
    # Versions before 5.7 reject the setting.
    return "Dense", content | ({"use_residual": True} if module.has_residual else {}), tensors


def _max_length(folder: Path, config: Any, settings: dict[str, int | None]) -> int | None:
    """The longest pair in tokens: as long as the cut query and passage with the special tokens."""
    tokenizer = load_tokenizer(str(folder))
    limit = longest_pair(tokenizer, config)
    query_length, doc_length = settings["query_length"], settings["doc_length"]
    if query_length is None or doc_length is None:
        return limit
    template = PairTemplate.from_tokenizer(tokenizer)
    special = len(template.before) + len(template.between) + len(template.after)
    length = query_length + doc_length + special
    return length if limit is None else min(length, limit)
