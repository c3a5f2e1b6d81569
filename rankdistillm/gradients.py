"""The exact gradient of one optimiser step under a token budget.

Whole lists go through the model in micro-batches; their losses are summed and divided by the
number of lists of the whole step, so that any split gives the same gradient. A list above the
budget goes through *gradient caching* (Gao et al., RepL4NLP 2021): score it in chunks without a
graph, differentiate the loss by the scores of the whole list, then run each chunk again with its
random state restored and send its slice of that derivative back. Memory follows the budget, never
the length of a list.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from rankdistillm import processes
from rankdistillm.data import Batch
from rankdistillm.devices import pair_too_large, to_device
from rankdistillm.model import CrossEncoder

log = logging.getLogger(__name__)

Loss = Callable[..., Tensor]


class TokenBudget:
    """How many tokens go through the model in one forward pass; halved where they do not fit."""

    @classmethod
    def for_model(cls, model: CrossEncoder, tokens: int | None = None) -> "TokenBudget":
        """``tokens``; for None what fits on the model's device while it trains.

        On CPUs memory is not what bounds: the usual budget is 16,384.
        """
        if tokens is None and model.device.type == "cuda":
            # Bytes that a layer keeps for a token and hidden unit until the backward pass: 32 to
            # 40 were counted with half precision and flash attention, up to 105 with float32 or
            # padding. A third of the device is left for weights, optimiser and workspace.
            kept = 64 if model.autocast_dtype.itemsize == 2 and not model.padded else 128
            num_layers, hidden_size = model.size
            free, _ = torch.cuda.mem_get_info(model.device)
            tokens = max(4096, int(free / 1.5) // (kept * num_layers * hidden_size))
        return cls(tokens or 16_384)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._halved = False

    def halve(self, longest_pair: int) -> None:
        """Raises `InputError` where not even one pair fits."""
        if self.tokens <= longest_pair:
            raise pair_too_large(longest_pair)
        self.tokens //= 2
        self._halved = True
        log.warning("out of device memory: the step is repeated with token_budget=%d", self.tokens)

    def state_dict(self) -> dict[str, int | None]:
        return {"halved_to": self.tokens if self._halved else None}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        halved_to = state["halved_to"]
        if halved_to is not None:
            self.tokens = min(self.tokens, halved_to)
            self._halved = True


def step_gradients(
    model: CrossEncoder, loss: Loss, batch: Batch, *, budget: TokenBudget, scaler: GradScaler
) -> Tensor:
    """Put the gradient of the batch's mean loss into the parameters; returns that loss, detached.

    The processes of a job share out the lists; each ends with the gradient of all. Where the
    device's memory does not suffice, the step is done again, with the same random numbers, under
    half the budget.
    """
    lists = batch.share(processes.rank(), processes.count())
    state = _random_state(model.device)
    total = None
    while total is None:
        with suppress(torch.OutOfMemoryError):
            total = accumulate_gradients(
                model, loss, batch, token_budget=budget.tokens, scaler=scaler, lists=lists
            )
        # Not in a handler, which would hold the frames and so the tensors of the failed step.
        if total is None:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            budget.halve(int(batch.pairs.lengths.max()))
            _set_random_state(model.device, state)
    if processes.count() > 1:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # no list of the step was this process's
                parameter.grad = torch.zeros_like(parameter)
        processes.add_up([total, *(p.grad for p in trained if p.grad is not None)])
    return total


def accumulate_gradients(
    model: CrossEncoder,
    loss: Loss,
    batch: Batch,
    *,
    token_budget: int,
    scaler: GradScaler,
    lists: np.ndarray | None = None,
) -> Tensor:
    """Add what these lists (None: all) give to the gradient of the batch's mean loss.

    Returns their part of that loss, detached. ``loss`` is called as ``loss(scores, targets,
    mask=mask, reduction="sum")``. The gradients are multiplied by the scale of ``scaler``.
    """
    total = torch.zeros((), device=model.device)
    for group in batch.micro_batches(token_budget, lists, count_tokens=model.count_tokens):
        rows = batch.rows_of(group)
        mask, targets = batch.mask[group].numpy(), batch.targets[group].numpy()
        loss_of = partial(
            _share,
            loss,
            to_device(targets, model.device),
            to_device(mask, model.device),
            to_device(np.flatnonzero(mask), model.device),
            len(batch),
        )
        if model.count_tokens(batch.pairs.lengths[rows]) <= token_budget:
            value = loss_of(model(batch.pairs.select(rows)))
            scaler.scale(value).backward()
        else:
            value = _cached_backward(model, loss_of, batch, rows, token_budget, scaler)
        total += value.detach()
    return total


def _share(
    loss: Loss, targets: Tensor, mask: Tensor, places: Tensor, num_lists: int, scores: Tensor
) -> Tensor:
    """What these lists add to the mean loss; ``scores`` are those of the passages at ``places``."""
    # By places, since the device would have to say first how many are True in a mask.
    spread = scores.new_zeros(mask.numel()).index_copy(0, places, scores)
    return loss(spread.view(mask.shape), targets, mask=mask, reduction="sum") / num_lists


def _cached_backward(
    model: CrossEncoder,
    loss_of: Callable[[Tensor], Tensor],
    batch: Batch,
    rows: np.ndarray,
    token_budget: int,
    scaler: GradScaler,
) -> Tensor:
    chunks = [rows[chunk] for chunk in model.plan_chunks(batch.pairs.lengths[rows], token_budget)]
    in_order = to_device(np.argsort(np.concatenate(chunks)), model.device)
    states, scored = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(model.device))
            scored.append(model(batch.pairs.select(chunk)))
    scores = torch.cat(scored).requires_grad_()
    value = loss_of(scores[in_order])
    (gradient,) = torch.autograd.grad(scaler.scale(value), scores)
    # The second pass draws what the first drew, so that both end in the same random state.
    gradients = gradient.split([len(chunk) for chunk in chunks])
    for chunk, state, part in zip(chunks, states, gradients, strict=True):
        _set_random_state(model.device, state)
        model(batch.pairs.select(chunk)).backward(part)
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
