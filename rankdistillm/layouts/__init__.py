"""Layouts of checkpoints: which one a folder or hub id has, how it is read and written.

=============  =====================================================  ==========================
layout         written by                                             known by, in config.json
=============  =====================================================  ==========================
`encoder`      transformers (any encoder); ours, which adds the head  none of the others
`mono`         lightning-ir (webis/monoelectra-*, any "mono" model)   ``model_type``
`classifier`   transformers sequence classification, one label;       ``architectures``
               sentence-transformers' CrossEncoder
=============  =====================================================  ==========================

Each is a module with `load` and `write`.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from rankdistillm.errors import InputError
from rankdistillm.layouts import classifier, encoder, mono
from rankdistillm.layouts.contents import Checkpoint
from rankdistillm.networks import ClassifierNetwork, MonoNetwork
from rankdistillm.pretrained import locate, quiet_transformers, read_config

__all__ = ["LAYOUTS", "Checkpoint", "load_checkpoint", "write_checkpoint"]

LAYOUTS: dict[str, Any] = {"encoder": encoder, "mono": mono, "classifier": classifier}


def load_checkpoint(path: str, *, dropout: float | None, attention: str | None) -> Checkpoint:
    """Read a checkpoint of any layout, in float32.

    ``dropout`` replaces every dropout rate of the encoder; ``attention`` is transformers'
    ``attn_implementation``. A head that is not in the checkpoint is drawn from N(0, 0.02) by
    torch's global generator.

    Raises `InputError` where there is no readable model.
    """
    source = locate(path)
    try:
        config = read_config(source)
        with quiet_transformers():
            return LAYOUTS[_layout_of(config)].load(source, config, dropout, attention)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise InputError(
            f"model.path={path}: no model could be loaded ({' '.join(str(error).split())[:200]}"
            "); give a folder with config.json, model.safetensors and tokeniser, or a hub id"
        ) from error


def write_checkpoint(
    layout: str,
    network: MonoNetwork | ClassifierNetwork,
    tokenizer: Any,
    folder: Path,
    **settings: int | None,
) -> None:
    """Write config.json, model.safetensors and the tokeniser into an existing folder.

    ``settings``: query_length and doc_length.
    """
    is_classifier = isinstance(network, ClassifierNetwork)
    if layout not in LAYOUTS or is_classifier != (layout == "classifier"):
        fitting = "classifier" if is_classifier else "encoder or mono"
        raise InputError(f"layout={layout} does not fit this student; use {fitting}")
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:  # what tokenizers raises for a file it cannot write
            raise
        raise OSError(str(error)) from error
    LAYOUTS[layout].write(network, folder, settings)


def _layout_of(config: dict[str, Any]) -> str:
    if config.get("model_type") in mono.MODEL_TYPES:
        return "mono"
    architecture = (config.get("architectures") or [""])[0]
    return "classifier" if architecture.endswith("ForSequenceClassification") else "encoder"
