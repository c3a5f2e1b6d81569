"""transformers sequence classifiers with one label, and sentence-transformers' CrossEncoder."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification

from rankdistillm.model.formats.common import (
    Checkpoint,
    LoadOptions,
    check_encoder,
    lengths_of,
    load_config,
    load_model,
    load_tokenizer,
    longest_pair,
    own_settings,
)
from rankdistillm.model.formats.files import (
    UnreadableError,
    find_file,
    read_json,
    reading,
    write_files,
)
from rankdistillm.model.heads import ClassifierNetwork


def load(source: str, raw: dict[str, Any], options: LoadOptions) -> Checkpoint:
    ours = own_settings(raw, "query_length", "doc_length")
    config = load_config(source, options.dropout)
    if config.num_labels != 1:
        raise UnreadableError(
            f"config.json: a classifier with {config.num_labels} labels; a re-ranker has one"
        )
    kind = AutoModelForSequenceClassification
    classifier, _ = load_model(kind, source, config, options.attention)
    check_encoder(classifier)
    tokenizer = load_tokenizer(source)
    return Checkpoint(
        "classifier",
        ClassifierNetwork(classifier, _activation(source, raw), packed=options.packed),
        tokenizer,
        *lengths_of(ours, None, None),
        longest_pair(tokenizer, config),
    )


def write(network: ClassifierNetwork, folder: Path, settings: dict[str, Any]) -> None:
    config = network.config.to_dict()
    config["architectures"] = [type(network.classifier).__name__]
    config["rankdistillm"] = settings
    if network.activation is not None:
        kind = type(network.activation)
        name = f"{kind.__module__}.{kind.__name__}"
        config["sentence_transformers"] = {"activation_fn": name}
    write_files(folder, config, network.classifier.state_dict())


def _activation(source: str, raw: dict[str, Any]) -> nn.Module | None:
    """Find the activation that sentence-transformers applies to the logits, None for the identity.

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
        is_known = isinstance(name, str) and name.startswith("torch.nn.")
        function = getattr(nn, name.rpartition(".")[2], None) if is_known else None
        if function is None:
            raise ValueError(f"the activation function {name} is not one of torch.nn")
        return None if function is nn.Identity else function()
