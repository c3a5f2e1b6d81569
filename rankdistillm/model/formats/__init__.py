"""Checkpoint layouts: detect the layout of a folder or hub id, load it, write it.

=======================  ================================================  ======================
layout                   written by                                        recognised by
=======================  ================================================  ======================
`encoder`                transformers (any encoder); rankdistillm, with a  none of the others
                         head
`mono`                   lightning-ir (webis/monoelectra-*, any "mono"     ``model_type`` in
                         model)                                            config.json
`sentence_transformers`  sentence-transformers' CrossEncoder made of       modules.json
                         modules (cross-encoder/ettin-reranker-*)
`classifier`             transformers sequence classification, one label;  ``architectures`` in
                         sentence-transformers' other CrossEncoders        config.json
`tei`                    here, for text-embeddings-inference alone         nothing: not loaded
=======================  ================================================  ======================

Each layout is a module with `load` and `write`; `common` holds what they share, and `files` finds,
reads and writes the files themselves.
"""

from pathlib import Path
from typing import Any

from rankdistillm.data.outputs import writable_folder
from rankdistillm.errors import InputError
from rankdistillm.model.formats import (
    classifiers,
    lightning_ir,
    ours,
    sentence_transformers,
    tei,
)
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
    read_json,
    reading,
    write_json,
)
from rankdistillm.model.heads import ClassifierNetwork, ModularNetwork, MonoNetwork

__all__ = [
    "LAYOUTS", "Checkpoint", "LoadOptions", "layout_of", "load_checkpoint", "save_tokenizer",
    "write_checkpoint",
]  # fmt: skip

LAYOUTS: dict[str, Any] = {
    "encoder": ours,
    "mono": lightning_ir,
    "sentence_transformers": sentence_transformers,
    "classifier": classifiers,
    "tei": tei,
}


def load_checkpoint(path: str, options: LoadOptions) -> Checkpoint:
    """Load a checkpoint of any layout in float32.

    A head that the checkpoint lacks is drawn from N(0, 0.02) by torch's global generator. Code that
    comes with a checkpoint is never run.

    Raises `InputError` if there is no readable model, or if the model cannot rank.
    """
    source = locate(path)
    try:
        config = read_config(source)
        refuse_unsupported(source, config)
        layout = _layout_of(source, config)
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


def layout_of(path: str) -> str:
    """The layout of a folder or hub id, a key of `LAYOUTS`; raises `UnreadableError`."""
    source = locate(path)
    return _layout_of(source, read_config(source))


def write_checkpoint(
    layout: str,
    network: MonoNetwork | ModularNetwork | ClassifierNetwork,
    tokenizer: Any,
    folder: Path,
    **settings: int | None,
) -> None:
    """Write config.json, model.safetensors and the tokeniser; creates the folder if needed.

    ``layout`` is a key of `LAYOUTS`; ``settings`` are query_length and doc_length. Raises
    `InputError` if the layout cannot hold the network.
    """
    fitting = _fitting_layouts(network)
    if layout not in fitting:
        raise InputError(f"layout={layout} does not fit this student; use {' or '.join(fitting)}")
    if layout in ("sentence_transformers", "classifier", "tei"):
        LAYOUTS[layout].check(network)
    if layout != "sentence_transformers" and (folder / sentence_transformers.MODULES).exists():
        raise InputError(
            f"{folder}: {sentence_transformers.MODULES} there describes another model and would "
            "be read with this student's weights; give another folder"
        )
    with writable_folder(folder, str(folder)):
        save_tokenizer(tokenizer, folder)
        LAYOUTS[layout].write(network, folder, settings)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokeniser's files into an existing folder."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises a bare Exception if writing fails
            raise
        raise OSError(str(error)) from error
    # The class has this name in all versions of transformers, its new one only from 5 on.
    file = folder / "tokenizer_config.json"
    config = read_json(str(file))
    if config.get("tokenizer_class") == "TokenizersBackend":
        write_json(file, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _fitting_layouts(network: MonoNetwork | ModularNetwork | ClassifierNetwork) -> list[str]:
    if isinstance(network, ClassifierNetwork):
        return ["classifier"]
    return ["sentence_transformers"] if isinstance(network, ModularNetwork) else [*LAYOUTS]


def _layout_of(source: str, config: dict[str, Any]) -> str:
    with reading("config.json"):
        if config.get("model_type") in lightning_ir.MODEL_TYPES:
            return "mono"
        architecture = first_architecture(config)
    if sentence_transformers.is_reranker(source, architecture):
        return "sentence_transformers"
    return "classifier" if architecture.endswith("ForSequenceClassification") else "encoder"
