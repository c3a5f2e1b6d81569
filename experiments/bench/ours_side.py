"""Our side of the comparison, as `lists.read_settings` says."""

import numpy as np
import torch
from generated import training_data
from lists import Batch, Work, answer, one_by_one, read_batches, read_settings, set_dropout
from torch.nn.utils import clip_grad_norm_

from rankdistillm.data import Batch as TrainingBatch
from rankdistillm.devices import (
    bound_compiled_products,
    device_of,
    keep_freed_memory,
    made_ahead,
)
from rankdistillm.gradients import TokenBudget, step_gradients
from rankdistillm.losses import ranknet_loss
from rankdistillm.model import CrossEncoder
from rankdistillm.optim import make_optimizer, make_scaler
from rankdistillm.rerank import Reranker
from rankdistillm.runs import RankedList, Run

given = read_settings()
device = device_of("auto")
keep_freed_memory(device)
torch.manual_seed(0)
model = CrossEncoder.from_pretrained(given.model, device=device, precision=given.precision)
optimizer = make_optimizer(model, 1e-5, 0.01)
scaler = make_scaler(device, is_fp16=False)
budget = TokenBudget.for_model(model)
reranker = Reranker(model)


def texts_of(batch: Batch) -> tuple[dict[str, str], dict[str, str]]:
    queries = {query_id: query for query_id, query, _ in batch}
    return queries, {doc_id: text for _, _, docs in batch for doc_id, text in docs}


def run_of(batch: Batch) -> Run:
    """The lists as a run, best first."""
    return Run(
        {
            query_id: RankedList(tuple(doc_id for doc_id, _ in docs), np.arange(len(docs), 0, -1.0))
            for query_id, _, docs in batch
        }
    )


def train(batches: list[Batch]) -> None:
    # All texts are tokenised in the time measured, where a training does so once for all epochs.
    # As there, a batch is prepared in the background while the step before it is computed.
    def prepare(i: int) -> TrainingBatch:
        queries, docs = texts_of(batches[i])
        per_step = len(batches[i])
        data = training_data(model, run_of(batches[i]), queries, docs, queries_per_step=per_step)
        return data.batch(0)

    for batch in made_ahead(prepare, range(len(batches))):
        step_gradients(model, ranknet_loss, batch, budget=budget, scaler=scaler)
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


def rerank(batch: Batch) -> None:
    reranker.rerank(run_of(batch), *texts_of(batch), progress=False)


def work_of(what: str, dropout: float) -> Work:
    if what == "train":
        bound_compiled_products()
    model.train(what == "train")
    set_dropout(model, dropout)
    return train if what == "train" else one_by_one(rerank)


answer(
    read_batches(given.data, given.steps, given.queries_per_step),
    work_of,
    torch.cuda if device.type == "cuda" else None,
)
