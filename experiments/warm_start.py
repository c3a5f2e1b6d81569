"""A teacher run from the student's own encoder: what MiniLM thinks as a bi-encoder.

all-MiniLM-L6-v2 was trained to embed texts, query and passage apart; read together by a
cross-encoder with a fresh head, that knowledge is out of reach, and a few hundred queries do not
bring it back. Distilling the cosines of its own embeddings into it does. No judgement and no other
model goes into this: the queries of the training run, and spans of its passages as further queries.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from experiments.lists import write_texts
from rankdistillm.data.runs import Run
from rankdistillm.model.formats.files import locate, quiet_transformers

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SPANS = 3  # further queries for each query
SCALE = 20.0  # cosines times this are the scores; its temperature when it was trained was 1 / 20


def write_warm_start(
    run: Run, queries: Mapping[str, str], docs: Mapping[str, str], folder: Path
) -> None:
    """Write warm-queries.tsv and warm-teacher.run: each query and its spans, with scores."""
    draw = random.Random(0)
    texts = {}
    for query_id, ranked in run.items():
        texts[query_id] = queries[query_id]
        for number in range(SPANS):
            span = _span(docs[draw.choice(ranked.doc_ids)], draw)
            if len(span.split()) >= 3:
                texts[f"{query_id}#{number}"] = span
    doc_ids = sorted({doc_id for ranked in run.values() for doc_id in ranked.doc_ids})
    of_query = dict(zip(texts, embed(list(texts.values())), strict=True))
    of_doc = dict(zip(doc_ids, embed([docs[doc_id] for doc_id in doc_ids]), strict=True))
    scores = {
        key: {
            doc_id: SCALE * float(of_query[key] @ of_doc[doc_id])
            for doc_id in run[key.partition("#")[0]].doc_ids
        }
        for key in texts
    }
    write_texts(folder / "warm-queries.tsv", texts)
    Run.from_scores(scores).write(folder / "warm-teacher.run", tag="bi-encoder")


def _span(passage: str, draw: random.Random) -> str:
    """4 to 9 words of a passage, in the plain spelling of queries."""
    words = passage.split()
    length = draw.randint(4, 9)
    start = draw.randint(0, max(0, len(words) - length))
    plain = re.sub(r"[^\w\s'-]", "", " ".join(words[start : start + length]))
    return " ".join(plain.lower().split())


@torch.inference_mode()
def embed(texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Unit vectors ``[len(texts), hidden]``: the mean over tokens, as the encoder was trained."""
    source = locate(ENCODER)
    tokenizer = AutoTokenizer.from_pretrained(source)
    with quiet_transformers():
        encoder = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    order = np.argsort([-len(text) for text in texts])
    vectors = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
    for start in tqdm(range(0, len(texts), batch_size), desc="embed", disable=None):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=256,
            return_tensors="pt",
        )
        states = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        vectors[chosen] = torch.nn.functional.normalize(means, dim=-1).numpy()
    return vectors
