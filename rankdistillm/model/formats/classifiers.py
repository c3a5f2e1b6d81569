"""transformers sequence classifiers with one label, and sentence-transformers' CrossEncoder.

A student's linear head on the first token is written into the head of transformers' classifier of
the same encoder, which has a dense layer, an activation f and an output layer. Two rows of the
dense layer are enough; all other weights are zero:

- GELU and ReLU: f(s) - f(-s) = s, so the rows are w and -w, and the output is their difference.
  Exact, in any precision.
- tanh: 4/3 tanh(x) - 1/6 tanh(2x) = x - 8/15 x^5 + …, so the rows are ew and 2ew, and the output
  divides by e. With e = 2^-11 the remainder stays below float32's own rounding up to |s| = 20, and
  below 1e-5 up to |s| = 50. In float16 (|s| up to 1.3) it is off by 0.003, the linear layer by
  0.0005; in bfloat16 both by 0.005.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rankdistillm.errors import InputError
from rankdistillm.model.formats.common import (
    Checkpoint,
    LoadOptions,
    check_encoder,
    lengths_of,
    load_config,
    load_model,
    load_tokenizer,
    longest_pair,
    name_of_activation,
    own_settings,
    read_activation,
)
from rankdistillm.model.formats.files import UnreadableError, write_files
from rankdistillm.model.heads import ClassifierNetwork, ModularNetwork, MonoNetwork

TANH_SCALE = 2.0**-11


@dataclass(frozen=True)
class ClassifierHead:
    """Names of the two layers of a classifier's head, and the activation between them.

    ``settings`` are fields of the configuration that the head depends on.
    """

    dense: str
    output: str
    activation: str
    settings: tuple[tuple[str, str], ...] = ()


_ROBERTA = ClassifierHead("classifier.dense", "classifier.out_proj", "tanh")
_DEBERTA = ClassifierHead("pooler.dense", "classifier", "gelu", (("pooler_hidden_act", "gelu"),))

# By the encoder's model type. Heads that normalise (ModernBERT) cannot hold a linear head.
HEADS = {
    "electra": ClassifierHead("classifier.dense", "classifier.out_proj", "gelu"),
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "distilbert": ClassifierHead("pre_classifier", "classifier", "relu"),
    "bert": ClassifierHead("bert.pooler.dense", "classifier", "tanh"),
    "albert": ClassifierHead("albert.pooler", "classifier", "tanh"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
}


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
        ClassifierNetwork(classifier, read_activation(source, raw), packed=options.packed),
        tokenizer,
        *lengths_of(ours, None, None),
        longest_pair(tokenizer, config),
    )


def check(network: MonoNetwork | ClassifierNetwork) -> None:
    """Raises `InputError` if no classifier of transformers can hold the network's head."""
    if isinstance(network, ClassifierNetwork):
        return
    kind = network.config.model_type
    if kind not in HEADS:
        raise InputError(
            f"transformers' {kind} classifier has a head that cannot hold the student's linear one "
            "exactly; write it as sentence_transformers"
        )
    check_first_token(network, "sentence_transformers")


def check_first_token(network: MonoNetwork, remedy: str) -> None:
    """Raises `InputError`, naming the layout to use, if the head does not read the first token."""
    if network.pooling != "first":
        raise InputError(
            f"the student pools its tokens ({network.pooling}), where a classifier reads the first "
            f"one; write it as {remedy}"
        )


def write(network: MonoNetwork | ClassifierNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """Write files that ``AutoModelForSequenceClassification`` reads."""
    if isinstance(network, MonoNetwork):
        config, tensors = _classifier_of(network)
        # The log-probability of the second of two outputs, given their difference.
        is_pair = network.linear.out_features == 2
        activation: nn.Module | None = nn.LogSigmoid() if is_pair else None
    else:
        config = network.config.to_dict()
        config["architectures"] = [type(network.classifier).__name__]
        tensors = network.classifier.state_dict()
        activation = network.activation
    config["rankdistillm"] = settings
    config["sentence_transformers"] = activation_setting(activation)
    write_files(folder, config, tensors)


def activation_setting(activation: nn.Module | None) -> dict[str, str]:
    """Make the entry ``sentence_transformers`` of config.json, which names the activation.

    Without it, sentence-transformers and vLLM would apply a sigmoid.
    """
    return {"activation_fn": name_of_activation(activation or nn.Identity())}


def _classifier_of(network: MonoNetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a classifier with the student's scores."""
    head = HEADS[network.config.model_type]
    config = classifier_config(network)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    prefix = classifier.base_model_prefix
    tensors = {f"{prefix}.{name}": t for name, t in network.backbone.state_dict().items()}
    for name, empty in classifier.state_dict().items():
        if name.startswith((f"{head.dense}.", f"{head.output}.")):
            tensors[name] = torch.zeros(empty.shape)
    weight, bias = single_output(network)
    dense, output = tensors[f"{head.dense}.weight"], tensors[f"{head.output}.weight"]
    if head.activation == "tanh":
        dense[0], dense[1] = TANH_SCALE * weight, 2 * TANH_SCALE * weight
        output[0, 0], output[0, 1] = 4 / (3 * TANH_SCALE), -1 / (6 * TANH_SCALE)
    else:
        dense[0], dense[1] = weight, -weight
        output[0, 0], output[0, 1] = 1, -1
    tensors[f"{head.output}.bias"][0] = bias
    return config.to_dict() | {"architectures": [type(classifier).__name__]}, tensors


def classifier_config(network: MonoNetwork | ModularNetwork) -> Any:
    """A copy of the encoder's configuration, for a classifier with one label."""
    config = copy.deepcopy(network.config)
    config.num_labels = 1
    config.problem_type = None  # vLLM would prefer its activation to the recorded one
    head = HEADS.get(config.model_type)
    for name, value in head.settings if head else ():
        setattr(config, name, value)
    return config


def single_output(network: MonoNetwork) -> tuple[Tensor, Tensor]:
    """The head as one vector ``[hidden]`` and one bias ``[]``; of two outputs, their difference."""
    weight, own = network.linear.weight.detach().cpu(), network.linear.bias
    bias = torch.zeros(len(weight)) if own is None else own.detach().cpu()
    if len(weight) == 2:
        return weight[1] - weight[0], bias[1] - bias[0]
    return weight[0], bias[0]
