"""The side of sentence-transformers, in its own environment, as `lists.read_settings` says."""

import torch
from lists import Batch, Work, answer, one_by_one, read_batches, read_settings, set_dropout
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import RankNetLoss

given = read_settings()
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = CrossEncoder(given.model, num_labels=1, max_length=292, device=device)
on_gpu = device == "cuda"
# Its own default is as many pairs at once as there are queries, four; a GPU would be idle.
loss_of = RankNetLoss(model, mini_batch_size=-1 if on_gpu else None)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)


def train(batch: Batch) -> None:
    queries = [query for _, query, _ in batch]
    docs = [[text for _, text in docs] for _, _, docs in batch]
    targets = [torch.arange(len(texts), 0, -1, device=device).float() for texts in docs]
    with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
        loss = loss_of([queries, docs], targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def rerank(batch: Batch) -> None:
    pairs = [(query, text) for _, query, docs in batch for _, text in docs]
    with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16"):
        model.predict(pairs, batch_size=512 if on_gpu else 32, show_progress_bar=False)


def work_of(what: str, dropout: float) -> Work:
    model.train(what == "train")
    set_dropout(model, dropout)
    return one_by_one(train if what == "train" else rerank)


answer(
    read_batches(given.data, given.steps, given.queries_per_step),
    work_of,
    torch.cuda if on_gpu else None,
)
