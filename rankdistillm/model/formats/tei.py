"""Write a BERT re-ranker for the candle backend of text-embeddings-inference (TEI).

It knows BERT but not ELECTRA, whose layers are the same under another name. It applies
``classifier`` to the first token's state if the weights have no ``bert.pooler.dense``: our head,
exactly. transformers would draw the missing pooler at random, so this layout is for TEI alone.
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import BertConfig

from rankdistillm.errors import InputError
from rankdistillm.model.formats.classifiers import (
    activation_setting,
    check_first_token,
    single_output,
)
from rankdistillm.model.formats.files import write_files
from rankdistillm.model.heads import ClassifierNetwork, MonoNetwork

NOTE = "FOR_TEI_ONLY.md"
NOTE_TEXT = """\
# For text-embeddings-inference only

This BERT has no pooler: the candle backend of text-embeddings-inference then applies the classifier
to the first token's state. transformers, and all that builds on it, would draw a random pooler
instead, and with it random scores.

TEI computes the tanh form of GELU, so its scores differ slightly from those of the student. It cuts
a long pair at the end of its longer text. `/rerank` applies a sigmoid unless `raw_scores` is true.
"""


def check(network: MonoNetwork | ClassifierNetwork) -> None:
    """Raises `InputError` unless the network is layers like BERT's and a linear head."""
    if not isinstance(network, MonoNetwork):
        raise InputError("the student is a classifier already, which TEI loads if it can")
    config = network.config
    # A small ELECTRA projects its embeddings, which BERT does not.
    is_bert = config.model_type == "bert" or (
        config.model_type == "electra" and config.embedding_size == config.hidden_size
    )
    if not is_bert:
        raise InputError(
            f"the layers of this {config.model_type} are not BERT's; write it as onnx, which the "
            "CPU image of TEI loads, or as classifier"
        )
    check_first_token(network, "onnx")


def write(network: MonoNetwork, folder: Path, settings: dict[str, Any]) -> None:
    """Write a BertForSequenceClassification without a pooler."""
    known = BertConfig().to_dict().keys() - {"model_type", "architectures"}
    fields = {k: v for k, v in network.config.to_dict().items() if k in known}
    config = BertConfig(**fields)
    config.num_labels = 1
    is_pair = network.linear.out_features == 2
    content = config.to_dict() | {
        "architectures": ["BertForSequenceClassification"],
        "sentence_transformers": activation_setting(nn.LogSigmoid() if is_pair else None),
    }
    weight, bias = single_output(network)
    tensors = {f"bert.{name}": t for name, t in network.backbone.state_dict().items()}
    tensors |= {"classifier.weight": weight[None], "classifier.bias": bias[None]}
    write_files(folder, content | {"rankdistillm": settings}, tensors)
    (folder / NOTE).write_text(NOTE_TEXT, encoding="utf-8")
