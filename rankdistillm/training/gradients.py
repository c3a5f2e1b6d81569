"""The exact gradient of one optimiser step under a token budget.

    the queries_per_step lists of a step
      └─ shared out over the processes; all_reduce adds up their gradients
           └─ micro-batches: whole lists, together at most token_budget tokens
                └─ a single list above the budget: chunks, by gradient caching

The losses of all lists are summed and divided by the number of lists in the step, so that any split
gives the same gradient.

Gradient caching (Gao et al., RepL4NLP 2021) takes three steps. It scores the chunks of a list
without a graph. It differentiates the loss of the whole list with respect to the scores. Then it
runs each chunk again, from the same random state, and backpropagates the chunk's part of that
derivative. Memory depends on the budget, never on the length of a list.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from rankdistillm import distributed
from rankdistillm.data.batches import Batch
from rankdistillm.devices import pair_too_large, to_device
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.pairs import PackedPairs

log = logging.getLogger(__name__)

Loss = Callable[..., Tensor]


class TokenBudget:
    """The number of tokens in one forward pass; halved when device memory runs out."""

    @classmethod
    def for_model(cls, model: CrossEncoder, tokens: int | None = None) -> "TokenBudget":
        """A budget of ``tokens``; None: as many as fit on the model's device in training.

        On a CPU, where memory is not the limit, None means 16,384.
        """
        if tokens is None and model.device.type == "cuda":
            # A third of the free memory is left for weights, optimiser and workspace.
            free, _ = torch.cuda.mem_get_info(model.device)
            tokens = max(4096, int(free / 1.5) // model.training_bytes_per_token)
        return cls(tokens or 16_384)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._halved = False

    def halve(self, longest_pair: int) -> None:
        """Halve the budget; raises `InputError` if it no longer holds even one pair."""
        if self.tokens <= longest_pair:
            raise pair_too_large(longest_pair)
        self.tokens //= 2
        self._halved = True
        log.warning("out of device memory: repeating the step with token_budget=%d", self.tokens)

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
    """Add the gradient of the batch's mean loss to the parameters; returns that loss, detached.

    The processes of a job share out the lists; each ends up with the gradient over all of them. If
    device memory runs out, the step is repeated with half the budget and the same random numbers.
    """
    lists = batch.share(distributed.rank(), distributed.world_size())
    state = _random_state(model.device)
    total = None
    while total is None:
        with suppress(torch.OutOfMemoryError):
            total = accumulate_gradients(
                model, loss, batch, token_budget=budget.tokens, scaler=scaler, lists=lists
            )
        # Outside the exception handler: a live exception keeps the failed step's tensors.
        if total is None:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            budget.halve(int(batch.pairs.lengths.max()))
            _set_random_state(model.device, state)
    if distributed.world_size() > 1:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # this process had no list in the step
                parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce([total, *(p.grad for p in trained if p.grad is not None)])
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
    """Accumulate what ``lists`` (None: all) contribute to the gradient of the batch's mean loss.

    Returns their share of that loss, detached. ``loss`` is called as ``loss(scores, targets,
    mask=mask, reduction="sum")``. The gradients are multiplied by the scale of ``scaler``.
    """
    total = torch.zeros((), device=model.device)
    for group in batch.micro_batches(token_budget, lists, count_tokens=model.count_tokens):
        rows = batch.rows_of(group)
        mask, targets = batch.mask[group].numpy(), batch.targets[group].numpy()
        loss_of = partial(
            _loss_share,
            loss,
            to_device(targets, model.device),
            to_device(mask, model.device),
            to_device(np.flatnonzero(mask), model.device),
            len(batch),
        )
        pairs = batch.pairs.select(rows)
        chunks = model.plan_chunks(pairs.lengths, token_budget)
        if len(chunks) == 1:
            value = loss_of(model(pairs))
            scaler.scale(value).backward()
        else:
            value = _cached_backward(model, loss_of, pairs, chunks, scaler)
        total += value.detach()
    return total


def _loss_share(
    loss: Loss, targets: Tensor, mask: Tensor, indices: Tensor, num_lists: int, scores: Tensor
) -> Tensor:
    """The share of some lists in the mean loss of a step of ``num_lists``.

    ``scores`` belong to the passages at ``indices`` of the flattened ``mask``.
    """
    # Indexing by the mask would make a GPU wait until its True values are counted.
    padded = scores.new_zeros(mask.numel()).index_copy(0, indices, scores)
    return loss(padded.view(mask.shape), targets, mask=mask, reduction="sum") / num_lists


def _cached_backward(
    model: CrossEncoder,
    loss_of: Callable[[Tensor], Tensor],
    pairs: PackedPairs,
    chunks: list[np.ndarray],
    scaler: GradScaler,
) -> Tensor:
    in_order = to_device(np.argsort(np.concatenate(chunks)), model.device)
    states, scored = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(model.device))
            scored.append(model(pairs.select(chunk)))
    scores = torch.cat(scored).requires_grad_()
    value = loss_of(scores[in_order])
    (grad_scores,) = torch.autograd.grad(scaler.scale(value), scores)
    # The second pass draws the same dropout as the first and ends in the same random state.
    grads = grad_scores.split([len(chunk) for chunk in chunks])
    for chunk, state, grad in zip(chunks, states, grads, strict=True):
        _set_random_state(model.device, state)
        model(pairs.select(chunk)).backward(grad)
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
