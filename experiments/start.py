"""The student that the studies distil into: MiniLM after a warm start and stage 1 on MS MARCO.

One warm start and one stage 1 per seed, shared by all arms of all studies. Stage 1 reads three
samples of MS MARCO's training and development queries (`SAMPLES`, read from the folder DATA):

- msmarco-dev-sample: 600 queries, 20 BM25 passages each, the positive among them; 60 queries are
  held out and choose the step whose student is kept; the warm start reads the others;
- msmarco-instructir-pairs: 1,743 queries with one positive each, less the 181 of the first sample;
- msmarco-train-rankinggpt100: 100 queries of MS MARCO train.
"""

from pathlib import Path

import numpy as np

from experiments.commands import local, train
from experiments.lists import write_qrels, write_texts
from experiments.warm_start import write_warm_start
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts

SAMPLES = {
    "msmarco-dev-sample": "bm25-sampled",
    "msmarco-instructir-pairs": "bm25-top20-own-docs",
    "msmarco-train-rankinggpt100": "bm25-pool",
}
WARM_SAMPLE = "msmarco-dev-sample"  # the sample of the warm start and of the held-out queries
HELD_OUT = 60

WARM_START = (
    "loss=margin_mse",
    "data.train.targets=score",
    "data.train.sampling=random",
    "data.train.list_size=10",
    "epochs=1",
    "queries_per_step=4",
    "optim.learning_rate=2e-4",
    "optim.head_learning_rate=2e-3",
    "optim.ema=0.99",
)
PREFINETUNE = (
    "max_steps=240",
    "queries_per_step=4",
    "optim.learning_rate=5e-5",
    "optim.ema=0.98",
    "validation.every=80",
)
# Stage 2 of all arms keeps the last student: no validation chooses.
DISTILL = ("+recipe=small_distill", "validation.from_train=null", "validation.every=null")


def prepare(data: Path, work: Path) -> Path:
    """Write the training files of both steps into ``work/start`` unless they are there."""
    folder = work / "start"
    if (folder / "warm-teacher.run").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    queries: dict[str, str] = {}
    docs: dict[str, str] = {}
    lists, judgements = {}, {}
    for sample, name in SAMPLES.items():
        run = Run.read(data / sample / f"runs/{name}.run")
        qrels = read_qrels(data / sample / "qrels.txt")
        texts = read_texts(data / sample / "queries.tsv", "query")
        lists.update((q, run[q]) for q in run if q in qrels and q not in queries)
        judgements.update((q, grades) for q, grades in qrels.items() if q not in judgements)
        queries |= dict(texts)
        docs |= dict(read_texts(data / sample / "docs.tsv", "doc"))
        if sample == WARM_SAMPLE:
            positive = sorted(q for q in run if any(r > 0 for r in qrels.get(q, {}).values()))
            held_out = np.random.default_rng(0).permutation(positive)[:HELD_OUT].tolist()
            warm = set(run) - set(held_out)
    everything = Run(lists)
    training = everything.select(set(lists) - set(held_out))
    training.write(folder / "train.run")
    everything.select(held_out).write(folder / "validation.run")
    write_qrels(folder / "qrels.txt", judgements)
    write_texts(folder / "queries.tsv", queries)
    write_texts(folder / "docs.tsv", docs)
    write_warm_start(training.select(warm), queries, docs, folder)
    return folder


def warm_start(data: Path, work: Path, seed: int) -> Path:
    """Distil the encoder's own cosines into the cross-encoder; returns the student's folder."""
    files = prepare(data, work)
    return train(
        work / f"seed{seed}/warm",
        "+stage=distill",
        "data=local",
        f"data.docs={files}/docs.tsv",
        f"data.queries={files}/warm-queries.tsv",
        f"data.train.run={files}/warm-teacher.run",
        *WARM_START,
        f"seed={seed}",
    )


def stage_1(data: Path, work: Path, seed: int) -> Path:
    """The warm start after stage 1; returns its folder."""
    files = prepare(data, work)
    start = warm_start(data, work, seed)
    return train(
        work / f"seed{seed}/stage1",
        "+stage=prefinetune",
        *local(files),
        f"data.train.run={files}/train.run",
        f"data.train.qrels={files}/qrels.txt",
        f"data.validation.run={files}/validation.run",
        f"data.validation.qrels={files}/qrels.txt",
        *PREFINETUNE,
        f"model.path={start}",
        f"seed={seed}",
    )
