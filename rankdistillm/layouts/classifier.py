"""Sequence classifiers of transformers with one label, and sentence-transformers' CrossEncoder."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rankdistillm.layouts.contents import Checkpoint, load_model, longest_pair, set_dropout
from rankdistillm.networks import ClassifierNetwork
from rankdistillm.pretrained import find_file, write_files


def load(
    source: str, raw: dict[str, Any], dropout: float | None, attention: str | None
) -> Checkpoint:
    config = AutoConfig.from_pretrained(source)
    if config.num_labels != 1:
        raise ValueError(f"a classifier with {config.num_labels} labels; a re-ranker has one")
    set_dropout(config, dropout)
    classifier = load_model(AutoModelForSequenceClassification, source, config, attention)
    tokenizer = AutoTokenizer.from_pretrained(source)
    ours = raw.get("rankdistillm") or {}
    return Checkpoint(
        "classifier",
        ClassifierNetwork(classifier, _activation(source, raw)),
        tokenizer,
        ours.get("query_length"),
        ours.get("doc_length"),
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
    """What sentence-transformers puts the logits through: every version says it elsewhere.

    Where it wrote the folder but names none, that is the sigmoid.
    """
    file = find_file(source, "config_sentence_transformers.json")
    name = json.loads(Path(file).read_text()).get("activation_fn") if file else None
    name = name or (raw.get("sentence_transformers") or {}).get("activation_fn")
    name = name or raw.get("sbert_ce_default_activation_function")
    if name is None:
        return nn.Sigmoid() if file or "sentence_transformers" in raw else None
    function = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if function is None:
        raise ValueError(f"the activation function {name} is not one of torch.nn")
    return None if function is nn.Identity else function()
