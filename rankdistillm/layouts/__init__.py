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
from typing import Any

from rankdistillm.errors import InputError
from rankdistillm.files import writable_folder
from rankdistillm.layouts import classifier, encoder, mono
from rankdistillm.layouts.contents import (
    Checkpoint,
    check_scores,
    first_architecture,
    refuse_unsupported,
)
from rankdistillm.networks import ClassifierNetwork, MonoNetwork
from rankdistillm.pretrained import (
    UnreadableError,
    locate,
    quiet_transformers,
    read_config,
    reading,
)

__all__ = ["LAYOUTS", "Checkpoint", "load_checkpoint", "write_checkpoint"]

LAYOUTS: dict[str, Any] = {"encoder": encoder, "mono": mono, "classifier": classifier}


def load_checkpoint(path: str, *, dropout: float | None, attention: str | None) -> Checkpoint:
    """Read a checkpoint of any layout, in float32.

    ``dropout`` replaces every dropout rate of the encoder; ``attention`` is transformers'
    ``attn_implementation``. A head that is not in the checkpoint is drawn from N(0, 0.02) by
    torch's global generator. No code of a checkpoint runs.

    Raises `InputError` where there is no readable model, or one that cannot rank.
    """
    source = locate(path)
    try:
        config = read_config(source)
        layout = _layout_of(config)
        refuse_unsupported(source, config)
        with quiet_transformers():
            checkpoint = LAYOUTS[layout].load(source, config, dropout, attention)
            check_scores(checkpoint)
            return checkpoint
    except UnreadableError as error:
        raise InputError(
            f"model.path={path}: no model could be loaded ({error}); give a folder with "
            "config.json, model.safetensors and tokeniser, or a hub id"
        ) from error
    except InputError as error:
        raise InputError(f"model.path={path}: {error}") from error


def write_checkpoint(
    layout: str,
    network: MonoNetwork | ClassifierNetwork,
    tokenizer: Any,
    folder: Path,
    **settings: int | None,
) -> None:
    """Write config.json, model.safetensors and the tokeniser into a folder, made if need be.

    ``settings``: query_length and doc_length.
    """
    is_classifier = isinstance(network, ClassifierNetwork)
    if layout not in LAYOUTS or is_classifier != (layout == "classifier"):
        fitting = "classifier" if is_classifier else "encoder or mono"
        raise InputError(f"layout={layout} does not fit this student; use {fitting}")
    with writable_folder(folder, str(folder)):
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:
            if type(error) is not Exception:  # what tokenizers raises for a file it cannot write
                raise
            raise OSError(str(error)) from error
        LAYOUTS[layout].write(network, folder, settings)


def _layout_of(config: dict[str, Any]) -> str:
    with reading("config.json"):
        if config.get("model_type") in mono.MODEL_TYPES:
            return "mono"
        architecture = first_architecture(config)
    return "classifier" if architecture.endswith("ForSequenceClassification") else "encoder"
