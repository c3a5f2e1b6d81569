"""The exact gradient of one optimiser step under a token budget.

Whole lists go through the model in micro-batches; their losses are summed and divided by the
number of lists of the whole step, so that any split gives the same gradient. A list above the
budget goes through *gradient caching* (Gao et al., RepL4NLP 2021): score it in chunks without a
graph, differentiate the loss by the scores of the whole list, then run each chunk again with its
random state restored and send its slice of that derivative back. Memory follows the budget, never
the length of a list.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from rankdistillm.data import Batch
from rankdistillm.model import CrossEncoder
from rankdistillm.tokens import padded_tokens, plan_chunks

Loss = Callable[..., Tensor]


def accumulate_gradients(
    model: CrossEncoder, loss: Loss, batch: Batch, *, token_budget: int, scaler: GradScaler
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters; returns that loss, detached.

    ``loss`` is called as ``loss(scores, targets, mask=mask, reduction="sum")``. The gradients are
    multiplied by the scale of ``scaler``.
    """
    total = torch.zeros((), device=model.device)
    for lists in batch.micro_batches(token_budget):
        rows = batch.rows_of(lists)
        mask = batch.mask[lists].to(model.device)
        targets = batch.targets[lists].to(model.device)
        loss_of = partial(_share, loss, targets, mask, len(batch))
        if padded_tokens(batch.pairs.lengths[rows]) <= token_budget:
            value = loss_of(model(batch.pairs.select(rows)))
            scaler.scale(value).backward()
        else:
            value = _cached_backward(model, loss_of, batch, rows, token_budget, scaler)
        total += value.detach()
    return total


def _share(loss: Loss, targets: Tensor, mask: Tensor, num_lists: int, scores: Tensor) -> Tensor:
    """What these lists add to the mean loss; ``scores`` ``[number of True in mask]``."""
    spread = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, scores)
    return loss(spread, targets, mask=mask, reduction="sum") / num_lists


def _cached_backward(
    model: CrossEncoder,
    loss_of: Callable[[Tensor], Tensor],
    batch: Batch,
    rows: np.ndarray,
    token_budget: int,
    scaler: GradScaler,
) -> Tensor:
    chunks = [rows[chunk] for chunk in plan_chunks(batch.pairs.lengths[rows], token_budget)]
    scores = torch.empty(len(rows), device=model.device)
    places = [torch.from_numpy(np.searchsorted(rows, c)).to(model.device) for c in chunks]
    states = []
    with torch.no_grad():
        for chunk, place in zip(chunks, places, strict=True):
            states.append(_random_state(model.device))
            scores[place] = model(batch.pairs.select(chunk))
    scores.requires_grad_()
    value = loss_of(scores)
    (gradient,) = torch.autograd.grad(scaler.scale(value), scores)
    # The second pass draws what the first drew, so that both end in the same random state.
    for chunk, place, state in zip(chunks, places, states, strict=True):
        _set_random_state(model.device, state)
        model(batch.pairs.select(chunk)).backward(gradient[place])
    return value


def _random_state(device: torch.device) -> Tensor:
    return (
        torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.random.get_rng_state()
    )


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.random.set_rng_state(state)
