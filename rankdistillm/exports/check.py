"""Load an export by the software it is for, and compare its scores with the student's."""

import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

import rankdistillm
from rankdistillm.data.texts import read_texts
from rankdistillm.errors import InputError
from rankdistillm.exports import onnx
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.common import named_activation
from rankdistillm.model.formats.files import quiet_transformers
from rankdistillm.model.reranker import Reranker

MINI = Path(__file__).parents[1] / "mini"

Pair = tuple[str, str]
# Scores of (query, passage) pairs by other software: float ``[pairs]``.
Score = Callable[[Sequence[Pair]], np.ndarray]

# Relative to scores above 1. Rounding in float32 differs between implementations by some 1e-6.
LARGEST_DIFFERENCE = 1e-4


def compare(model: CrossEncoder, folder: Path, name: str, *, int8: bool = False) -> Iterator[str]:
    """Yield a line on each piece of software that the format ``name`` is for.

    ``model`` is the student in float32. Raises `InputError` if the scores of an export that should
    be exact are not the student's.
    """
    pairs = sample_pairs()
    expected = scores_here(model, pairs)
    whole = np.array([not is_cut(model, pair) for pair in pairs])
    for package, scorer in SOFTWARE[name]:
        version = _version(package)
        if version is None:
            yield f"{package} is not installed: not compared with it"
            continue
        with _quietly():
            found = scorer(folder)(pairs)
        difference = np.abs(found - expected)
        largest = difference[whole].max(initial=0)
        limit = LARGEST_DIFFERENCE * max(1, np.abs(expected).max())
        if not int8 and not largest <= limit:
            raise InputError(
                f"{package} {version} scores {largest:.1e} from the student, which is more than "
                "rounding; nothing was written"
            )
        yield (
            f"{package} {version}: {whole.sum()} pairs differ by at most {largest:.1e}"
            + (f" (int8; the scores' standard deviation is {expected.std():.1e})" if int8 else "")
            + f"; {(~whole).sum()} longer ones, which it may cut elsewhere, by at most "
            + f"{difference[~whole].max(initial=0):.1e}"
        )


def sample_pairs() -> list[Pair]:
    """Pairs of the embedded collection, and some in which query or passage is too long."""
    queries = list(read_texts(MINI / "test/queries.tsv", "query").values())[:10]
    docs = list(read_texts(MINI / "docs.tsv", "doc").values())[:20]
    pairs = [(query, doc) for i, query in enumerate(queries) for doc in docs[i : i + 3]]
    long_doc = " ".join(docs * 8)
    long_query = " ".join(queries * 8)
    return [*pairs, (queries[0], long_doc), (long_query, docs[0]), (long_query, long_doc)]


def is_cut(model: CrossEncoder, pair: Pair) -> bool:
    """Whether the student reads only a part of the pair."""
    lengths = [
        len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        for text in pair
    ]
    special = model.tokenizer.num_special_tokens_to_add(pair=True)
    limits = (model.query_length, model.doc_length)
    return any(n > limit for n, limit in zip(lengths, limits, strict=True) if limit) or (
        model.template.max_length is not None and sum(lengths) + special > model.template.max_length
    )


def scores_here(model: CrossEncoder, pairs: Sequence[Pair]) -> np.ndarray:
    reranker = Reranker(model)
    return np.array([reranker.score(query, [doc])[0] for query, doc in pairs])


# ---- the software


def _rankdistillm(folder: Path) -> Score:
    model = CrossEncoder.from_pretrained(folder, precision="fp32")
    return lambda pairs: scores_here(model, pairs)


def _sentence_transformers(folder: Path) -> Score:
    from sentence_transformers import CrossEncoder as TheirCrossEncoder

    model = TheirCrossEncoder(str(folder), device="cpu")
    return lambda pairs: np.asarray(model.predict(list(pairs), show_progress_bar=False))


def _transformers(folder: Path) -> Score:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return _score_by(folder, lambda **inputs: classifier(**inputs).logits)


def _transformers_as_tei(folder: Path) -> Score:
    """TEI itself is a server; this is what it computes, but for its form of GELU."""
    encoder = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    tensors = load_file(folder / "model.safetensors")
    weight, bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
    encoder.load_state_dict({n.removeprefix("bert."): t for n, t in tensors.items()})
    return _score_by(
        folder,
        lambda **inputs: nn.functional.linear(
            encoder(**inputs).last_hidden_state[:, 0], weight, bias
        ),
    )


def _onnxruntime(folder: Path) -> Score:
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / onnx.MODEL, providers=["CPUExecutionProvider"])

    def logits(**inputs: Tensor) -> Tensor:
        (found,) = session.run(["logits"], {name: t.numpy() for name, t in inputs.items()})
        return torch.from_numpy(found)

    return _score_by(folder, logits)


def _score_by(folder: Path, logits: Callable[..., Tensor]) -> Score:
    """Tokenise pairs as transformers does, compute logits ``[pairs, 1]``, apply the activation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    activation = named_activation(config["sentence_transformers"]["activation_fn"])

    @torch.inference_mode()
    def score(pairs: Sequence[Pair]) -> np.ndarray:
        texts = map(list, zip(*pairs, strict=True))
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
        return activation(logits(**inputs)[:, 0]).numpy()

    return score


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence progress bars, and the notes of sentence-transformers on how it loads a folder."""
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers():
            yield
    finally:
        logger.setLevel(level)


def _version(package: str) -> str | None:
    if package == rankdistillm.__name__:  # a checkout may be on the path without being installed
        return rankdistillm.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# The software that each format is for. lightning-ir needs transformers 4, so it is never installed
# beside us.
SOFTWARE: dict[str, list[tuple[str, Callable[[Path], Score]]]] = {
    "encoder": [("rankdistillm", _rankdistillm)],
    "mono": [("rankdistillm", _rankdistillm)],
    "sentence_transformers": [("sentence-transformers", _sentence_transformers)],
    "classifier": [
        ("transformers", _transformers),
        ("sentence-transformers", _sentence_transformers),
    ],
    "tei": [("transformers", _transformers_as_tei)],
    "onnx": [("onnxruntime", _onnxruntime)],
}
