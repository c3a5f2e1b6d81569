"""Our side of the comparison, as `lists.read_settings` says."""

import numpy as np
import torch
from generated import training_data
from lists import Batch, Work, answer, one_by_one, read_batches, read_settings, set_dropout
from torch.nn.utils import clip_grad_norm_

from rankdistillm.data.runs import RankedList, Run
from rankdistillm.devices import bound_compiled_products, device_of, keep_freed_memory
from rankdistillm.losses import ranknet_loss
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker
from rankdistillm.training.gradients import TokenBudget, step_gradients
from rankdistillm.training.optim import make_optimizer, make_scaler

given = read_settings()
device = device_of("auto")
keep_freed_memory(device)
torch.manual_seed(0)
model = CrossEncoder.from_pretrained(given.model, device=device, precision=given.precision)
optimizer = make_optimizer(model, 1e-5, 0.01)
scaler = make_scaler(device, is_fp16=False)
budget = TokenBudget.for_model(model)
weights = list(model.parameters())


def texts_of(lists: Batch) -> tuple[dict[str, str], dict[str, str]]:
    queries = {query_id: query for query_id, query, _ in lists}
    return queries, {doc_id: text for _, _, docs in lists for doc_id, text in docs}


def run_of(lists: Batch) -> Run:
    """The lists as a run, best first."""
    return Run(
        {
            query_id: RankedList(tuple(doc_id for doc_id, _ in docs), np.arange(len(docs), 0, -1.0))
            for query_id, _, docs in lists
        }
    )


def train(batches: list[Batch]) -> None:
    # As `rankdistillm.train` does: all texts are tokenised before the first step, once.
    lists = [own for batch in batches for own in batch]
    per_step = len(batches[0])
    data = training_data(model, run_of(lists), *texts_of(lists), queries_per_step=per_step)
    for batch in data.batches(0):
        step_gradients(model, ranknet_loss, batch, budget=budget, scaler=scaler)
        scaler.unscale_(optimizer)
        clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


def work_of(what: str, dropout: float) -> Work:
    if what == "train":
        bound_compiled_products()
    model.train(what == "train")
    set_dropout(model, dropout)
    if what == "train":
        return train
    reranker = Reranker(model)  # with the weights as they are now
    return one_by_one(
        lambda batch: reranker.rerank(run_of(batch), *texts_of(batch), progress=False)
    )


answer(
    read_batches(given.data, given.steps, given.queries_per_step),
    work_of,
    torch.cuda if device.type == "cuda" else None,
)
