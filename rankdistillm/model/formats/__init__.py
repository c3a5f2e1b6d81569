"""Checkpoint layouts: detect the layout of a folder or hub id, load it, write it.

============  =====================================================  =============================
layout        written by                                             recognised in config.json by
============  =====================================================  =============================
`encoder`     transformers (any encoder); rankdistillm, with a head  none of the fields below
`mono`        lightning-ir (webis/monoelectra-*, any "mono" model)   ``model_type``
`classifier`  transformers sequence classification, one label;       ``architectures``
              sentence-transformers' CrossEncoder
============  =====================================================  =============================

Each layout is a module with `load` and `write`; `common` holds what they share, and `files` finds,
reads and writes the files themselves.
"""

from pathlib import Path
from typing import Any

from rankdistillm.data.outputs import writable_folder
from rankdistillm.errors import InputError
from rankdistillm.model.formats import classifiers, lightning_ir, ours
from rankdistillm.model.formats.common import (
    Checkpoint,
    LoadOptions,
    check_scores,
    first_architecture,
    refuse_unsupported,
)
from rankdistillm.model.formats.files import (
    UnreadableError,
    locate,
    quiet_transformers,
    read_config,
    reading,
)
from rankdistillm.model.heads import ClassifierNetwork, MonoNetwork

__all__ = ["LAYOUTS", "Checkpoint", "LoadOptions", "load_checkpoint", "write_checkpoint"]

LAYOUTS: dict[str, Any] = {"encoder": ours, "mono": lightning_ir, "classifier": classifiers}


def load_checkpoint(path: str, options: LoadOptions) -> Checkpoint:
    """Load a checkpoint of any layout in float32.

    A head that the checkpoint lacks is drawn from N(0, 0.02) by torch's global generator. Code that
    comes with a checkpoint is never run.

    Raises `InputError` if there is no readable model, or if the model cannot rank.
    """
    source = locate(path)
    try:
        config = read_config(source)
        layout = _layout_of(config)
        refuse_unsupported(source, config)
        with quiet_transformers():
            checkpoint = LAYOUTS[layout].load(source, config, options)
            check_scores(checkpoint)
            return checkpoint
    except UnreadableError as error:
        raise InputError(
            f"{path}: no model could be loaded ({error}); give a folder with "
            "config.json, model.safetensors and tokeniser, or a hub id"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_checkpoint(
    layout: str,
    network: MonoNetwork | ClassifierNetwork,
    tokenizer: Any,
    folder: Path,
    **settings: int | None,
) -> None:
    """Write config.json, model.safetensors and the tokeniser; creates the folder if needed.

    ``layout`` is a key of `LAYOUTS`; ``settings`` are query_length and doc_length. Raises
    `InputError` if the layout cannot hold the network.
    """
    is_classifier = isinstance(network, ClassifierNetwork)
    if layout not in LAYOUTS or is_classifier != (layout == "classifier"):
        fitting = "classifier" if is_classifier else "encoder or mono"
        raise InputError(f"layout={layout} does not fit this student; use {fitting}")
    with writable_folder(folder, str(folder)):
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:
            if type(error) is not Exception:  # tokenizers raises a bare Exception if writing fails
                raise
            raise OSError(str(error)) from error
        LAYOUTS[layout].write(network, folder, settings)


def _layout_of(config: dict[str, Any]) -> str:
    with reading("config.json"):
        if config.get("model_type") in lightning_ir.MODEL_TYPES:
            return "mono"
        architecture = first_architecture(config)
    return "classifier" if architecture.endswith("ForSequenceClassification") else "encoder"
