"""A student as ONNX, in float32 or with int8 weights.

Needs onnx, onnxscript and onnxruntime: ``pip install rankdistillm[onnx]``.

The folder holds ``onnx/model.onnx``, config.json and the tokeniser, where sentence-transformers'
ONNX backend and the ORT backend of text-embeddings-inference look for them. The graph takes
``input_ids``, ``attention_mask`` and, if the encoder has them, ``token_type_ids``, all int64
``[batch, length]``; it returns ``logits``, float32 ``[batch, 1]``: the student's scores.

torch's own exporter writes the graph, for it follows torch and needs nothing else; optimum has no
release for transformers 5.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats import save_tokenizer
from rankdistillm.model.formats.classifiers import activation_setting, classifier_config
from rankdistillm.model.formats.files import write_config
from rankdistillm.model.heads import ClassifierNetwork, ModularNetwork, MonoNetwork, pool

Network = MonoNetwork | ModularNetwork | ClassifierNetwork

MODEL = Path("onnx") / "model.onnx"

# A protobuf message holds 2 GiB; weights beyond that go into a file beside it.
LARGEST_MESSAGE = 2_000_000_000


def write(model: CrossEncoder, folder: Path, *, int8: bool = False) -> None:
    """Write the student into an existing folder; load it with ``packed=False``, in float32.

    With ``int8``, the weights of matrix products and embeddings are stored in 8 bits, and the
    activations are quantised when scoring, each tensor by its own range.

    Raises `InputError` if a package is missing.
    """
    check_packages()
    (folder / MODEL).parent.mkdir(exist_ok=True)
    if int8:
        with TemporaryDirectory(dir=folder) as temporary:
            fp32 = Path(temporary) / "model.onnx"
            _export(model, fp32)
            _quantise(fp32, folder / MODEL)
    else:
        _export(model, folder / MODEL)
    write_config(folder, _config(model))
    save_tokenizer(model.tokenizer, folder)


def check_packages() -> None:
    """Raises `InputError` if a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs the package {error.name}, of the extra onnx: pip install "
            "'rankdistillm[onnx]', or -e '.[onnx]' in a checkout"
        ) from error


class _Graph(nn.Module):
    """The network from padded tokens to ``[batch, 1]``."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        network = self.network
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if isinstance(network, ClassifierNetwork):
            return network.classifier(**inputs).logits
        states, mask = network.backbone(**inputs).last_hidden_state, attention_mask == 1
        if isinstance(network, ModularNetwork):
            pooled = torch.cat([pool(states, mask, name) for name in network.poolings], -1)
            return network.head(pooled)
        scores = network.linear(pool(states, mask, network.pooling))
        return scores.log_softmax(-1)[:, 1:] if scores.shape[-1] == 2 else scores


def _export(model: CrossEncoder, file: Path) -> None:
    # Sizes that no dimension of a model has, so that they are not taken for one.
    tokens = torch.arange(2 * 11).reshape(2, 11)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs["attention_mask"][1, 7:] = 0
    if model.template.has_types:
        inputs["token_type_ids"] = (tokens > 4).long()
    with _quietly(), torch.inference_mode():
        program: Any = torch.onnx.export(
            _Graph(model.network).eval(),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in inputs},
            input_names=list(inputs),
            output_names=["logits"],
            verbose=False,
        )
        size = sum(p.numel() * p.element_size() for p in model.network.parameters())
        program.save(str(file), external_data=size > LARGEST_MESSAGE)


def _quantise(fp32: Path, file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        # CPUs without VNNI add two products in 16 bits: weights of 8 bits could overflow there, so
        # give them 7. Each output of a layer has its own scale.
        quantize_dynamic(
            fp32, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's and the quantiser's notes on their own workings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _config(model: CrossEncoder) -> dict[str, Any]:
    """config.json of a classifier of the encoder, which is what servers expect beside the graph."""
    network = model.network
    if isinstance(network, ClassifierNetwork):
        config, name = network.config, type(network.classifier).__name__
    else:
        config = classifier_config(network)
        name = type(network.backbone).__name__.removesuffix("Model") + "ForSequenceClassification"
    return config.to_dict() | {
        "architectures": [name],
        "sentence_transformers": activation_setting(network.activation),
    }
