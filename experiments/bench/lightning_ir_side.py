"""The side of lightning-ir, in its own environment, as `lists.read_settings` says."""

import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.data import RankBatch, TrainBatch
from lightning_ir.loss import RankNet
from lightning_ir.models import MonoConfig
from lists import Batch, Work, answer, one_by_one, read_batches, read_settings, set_dropout

given = read_settings()
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
module = CrossEncoderModule(
    model_name_or_path=given.model,
    config=MonoConfig(query_length=32, doc_length=256),
    loss_functions=[RankNet()],
).to(device)
module.log = lambda *_, **__: None  # it wants a trainer
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)


def parts(batch: Batch) -> tuple[list[str], list[list[str]], list[str], list[list[str]]]:
    return (
        [query for _, query, _ in batch],
        [[text for _, text in docs] for _, _, docs in batch],
        [query_id for query_id, _, _ in batch],
        [[doc_id for doc_id, _ in docs] for _, _, docs in batch],
    )


def train(batch: Batch) -> None:
    targets = torch.cat([torch.arange(len(docs), 0, -1) for _, _, docs in batch]).view(-1, 1)
    targets = targets.to(device)
    with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
        loss = module.training_step(TrainBatch(*parts(batch), targets=targets), 0)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def rerank(batch: Batch) -> None:
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
        module(RankBatch(*parts(batch)))


def work_of(what: str, dropout: float) -> Work:
    module.train(what == "train")
    module.model.train(what == "train")
    set_dropout(module, dropout)
    return one_by_one(train if what == "train" else rerank)


answer(
    read_batches(given.data, given.steps, given.queries_per_step),
    work_of,
    torch.cuda if device == "cuda" else None,
)
