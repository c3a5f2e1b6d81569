"""Texts of the lengths of MS MARCO's passages, for measurements that need no collection."""

from collections.abc import Mapping

import numpy as np

from rankdistillm.cli import PACKAGE
from rankdistillm.data.batches import TrainingData
from rankdistillm.data.runs import RankedList, Run
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder

WORDS_A_DOC, SPREAD = 56, 0.4  # log-normal: median, standard deviation of the logarithm


def training_data(
    model: CrossEncoder,
    run: Run,
    queries: Mapping[str, str],
    docs: Mapping[str, str],
    *,
    queries_per_step: int,
    epochs: int = 1,
) -> TrainingData:
    """Whole lists of the run, to be ranked as they are."""
    config = {"sampling": "top", "targets": "rank", "transform": None}
    config["list_size"] = max(len(ranked) for ranked in run.values())
    return TrainingData(
        run,
        {},
        model.tokenise_queries(queries),
        model.tokenise_docs(docs),
        model.template,
        config,
        queries_per_step=queries_per_step,
        epochs=epochs,
        seed=0,
    )


def collection(
    num_lists: int, list_size: int, seed: int = 0
) -> tuple[Run, dict[str, str], dict[str, str]]:
    """(run, queries, docs): every list has passages of its own."""
    draw = np.random.default_rng(seed)
    words = np.array(" ".join(read_texts(PACKAGE / "mini/docs.tsv", "doc").values()).split())

    def text(length: float) -> str:
        return " ".join(draw.choice(words, max(1, round(length))))

    lists: dict[str, RankedList] = {}
    queries: dict[str, str] = {}
    docs: dict[str, str] = {}
    for i in range(num_lists):
        lengths = draw.lognormal(np.log(WORDS_A_DOC), SPREAD, list_size)
        own = {f"d{i}_{j}": text(length) for j, length in enumerate(lengths)}
        lists[f"q{i}"] = RankedList(tuple(own), np.arange(list_size, 0, -1.0))
        queries[f"q{i}"] = text(6)
        docs |= own
    return Run(lists), queries, docs
