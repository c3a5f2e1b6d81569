"""Our side of the comparisons: tiny random models, twenty steps of training, scores.

Weights come from seeds, texts from the embedded collection; nothing is downloaded.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.amp import GradScaler

from rankdistillm.data.batches import TrainingData
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.losses import info_nce_loss, ranknet_loss
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.files import locate
from rankdistillm.model.reranker import Reranker
from rankdistillm.training.gradients import accumulate_gradients
from rankdistillm.training.optim import make_optimizer

MINI = Path(__import__("rankdistillm").__file__).parent / "mini"
STEPS, QUERIES_PER_STEP, LIST_SIZE, LEARNING_RATE = 20, 4, 8, 1e-4
STAGES = {
    "prefinetune": (info_nce_loss, {"sampling": "single_relevant", "targets": "relevance"}),
    "distill": (ranknet_loss, {"sampling": "top", "targets": "rank"}),
}
# Their exact gradient is zero (shifting all keys, or all scores of a list, changes no loss), so
# Adam moves them by the rounding errors of each library.
WITHOUT_GRADIENT = ("attention.self.key.bias", "encoder.layer.1.output.LayerNorm.bias")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def tokenizer() -> Any:
    """BERT's tokeniser, from the packaged MiniLM."""
    return transformers.AutoTokenizer.from_pretrained(
        locate("sentence-transformers/all-MiniLM-L6-v2")
    )


def make_encoder(folder: Path, architecture: str = "electra") -> Path:
    """A tiny random encoder with a real vocabulary."""
    torch.manual_seed(11)
    words = tokenizer()
    sizes = {**SIZES, "vocab_size": len(words), "pad_token_id": 0}
    config: Any = transformers.BertConfig(**sizes)
    if architecture == "electra":
        config = transformers.ElectraConfig(**sizes, embedding_size=8)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def make_student(folder: Path, encoder: Path) -> Path:
    """Save the encoder with a random head, in lightning-ir's layout."""
    torch.manual_seed(12)
    model = CrossEncoder.from_pretrained(encoder, query_length=8, doc_length=24, precision="fp32")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, layout="mono")
    return folder


def training_data(stage: str, model: CrossEncoder) -> tuple[TrainingData, dict, dict]:
    """Return the lists of one stage, and the texts of their queries and passages."""
    run = Run.read(MINI / "train" / ("teacher.run" if stage == "distill" else "bm25.run"))
    qrels = read_qrels(MINI / "train/qrels.txt")
    queries, docs = texts_of_run(run, MINI / "train/queries.tsv", MINI / "docs.tsv")
    data = TrainingData(
        run,
        qrels,
        model.tokenise_queries(queries),
        model.tokenise_docs(docs),
        model.template,
        {"list_size": LIST_SIZE, "transform": None, **STAGES[stage][1]},
        queries_per_step=QUERIES_PER_STEP,
        epochs=1,
        max_steps=STEPS,
        seed=1,
    )
    return data, queries, docs


def load(student: Path) -> CrossEncoder:
    """Load the student without dropout, tokenising as lightning-ir does."""
    return CrossEncoder.from_pretrained(student, dropout=0.0, retokenise=True, precision="fp32")


def write_steps(stage: str, student: Path, file: Path) -> None:
    """Write the texts and targets of all steps for the other side."""
    data, queries, docs = training_data(stage, load(student))
    steps = []
    for step in range(len(data)):
        batch = data.batch(step)
        # lightning-ir's InfoNCE expects 1 for the positive, whatever its grade.
        targets = batch.targets.clamp(max=1) if stage == "prefinetune" else batch.targets
        steps.append(
            {
                "query_ids": batch.query_ids,
                "doc_ids": batch.doc_ids,
                "queries": [queries[q] for q in batch.query_ids],
                "docs": [[docs[d] for d in doc_ids] for doc_ids in batch.doc_ids],
                "targets": targets.tolist(),
            }
        )
    file.write_text(json.dumps(steps))


def train(stage: str, student: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of the twenty steps, and the final weights under lightning-ir's names."""
    model = load(student)
    losses = take_steps(stage, model)
    network = model.network
    weights = network.backbone.state_dict() | {"linear.weight": network.linear.weight.detach()}
    return losses, weights


def take_steps(stage: str, model: CrossEncoder) -> list[float]:
    """Train for the twenty steps; returns the losses."""
    data, _, _ = training_data(stage, model)
    optimizer = make_optimizer(model, LEARNING_RATE, weight_decay=0.01)
    scaler = GradScaler("cpu", enabled=False)
    losses = []
    model.train()
    for step in range(len(data)):
        loss = accumulate_gradients(
            model, STAGES[stage][0], data.batch(step), token_budget=1000, scaler=scaler
        )
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def pairs() -> list[tuple[str, list[str]]]:
    """Return queries and passages to score: short, long, empty, accented, not Latin."""
    run = Run.read(MINI / "test/bm25.run")
    queries, docs = texts_of_run(run, MINI / "test/queries.tsv", MINI / "docs.tsv")
    odd = ["", "Zürich, naïve — 東京 は 日本 の 首都", "it does n't matter", "tide " * 700]
    return [(queries[q], [docs[d] for d in run[q].doc_ids[:6]] + odd) for q in list(run)[:5]]


def scores(path: Path, **options: Any) -> list[float]:
    """Our scores of `pairs` by any checkpoint."""
    reranker = Reranker.from_pretrained(path, device="cpu", precision="fp32", **options)
    return [float(s) for query, docs in pairs() for s in reranker.score(query, docs)]


def scores_of(path: Path, chosen: list[tuple[str, str]], **options: Any) -> list[float]:
    """Our scores of these pairs by any checkpoint."""
    reranker = Reranker.from_pretrained(path, device="cpu", precision="fp32", **options)
    return [float(reranker.score(query, [doc])[0]) for query, doc in chosen]
