"""Our side of the comparison, as `lists.read_settings` says."""

import numpy as np
import torch
from generated import training_data
from lists import QUERIES_PER_STEP, Batch, measure, read_batches, read_settings
from torch.nn.utils import clip_grad_norm_

from rankdistillm.devices import bound_compiled_products, device_of, keep_freed_memory
from rankdistillm.gradients import TokenBudget, step_gradients
from rankdistillm.losses import ranknet_loss
from rankdistillm.model import CrossEncoder
from rankdistillm.optim import make_optimizer, make_scaler
from rankdistillm.rerank import Reranker
from rankdistillm.runs import RankedList, Run

given = read_settings()
batches = read_batches(given.data, given.steps)
device = device_of("auto")
keep_freed_memory(device)
torch.manual_seed(0)
model = CrossEncoder.from_pretrained(
    given.model, dropout=given.dropout, device=device, precision=given.precision
)


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


if given.what == "train":
    bound_compiled_products()
    optimizer = make_optimizer(model, 1e-5, 0.01)
    scaler = make_scaler(device, is_fp16=False)
    budget = TokenBudget.for_model(model)
    model.train()

    def step(batch: Batch) -> None:
        # The texts of a step are tokenised in its time: a training tokenises them once, for all
        # its epochs.
        queries, docs = texts_of(batch)
        data = training_data(model, run_of(batch), queries, docs, queries_per_step=QUERIES_PER_STEP)
        step_gradients(model, ranknet_loss, data.batch(0), budget=budget, scaler=scaler)
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
else:
    reranker = Reranker(model)

    def step(batch: Batch) -> None:
        reranker.rerank(run_of(batch), *texts_of(batch), progress=False)


measure(batches, step, torch.cuda.synchronize if device.type == "cuda" else None)
