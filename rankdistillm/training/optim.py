"""Optimiser, learning-rate schedules, gradient scaler and averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from rankdistillm.errors import InputError

DECAYS = ("all", "matrices")
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    decay: str = "all",
    head_learning_rate: float | None = None,
) -> AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), fused if the device supports it.

    ``decay``: weight decay applies to ``"all"`` parameters, as in Rank-DistiLLM, or only to
    ``"matrices"``, not to biases and normalisation weights. ``head_learning_rate``: for the linear
    layer of a `MonoNetwork`, which starts untrained; None: that of the encoder.
    """
    if decay not in DECAYS:
        raise InputError(f"decay={decay} is not one of {', '.join(DECAYS)}")
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = head_learning_rate is not None and name.startswith("network.linear.")
        is_decayed = decay == "all" or parameter.ndim > 1
        group = groups.setdefault(
            (is_head, is_decayed),
            {
                "params": [],
                "lr": head_learning_rate if is_head else learning_rate,
                "weight_decay": weight_decay if is_decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return AdamW(list(groups.values()), fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, warmup: float, num_steps: int
) -> LambdaLR:
    """``constant``, ``linear`` (to 0) or ``cosine`` (to 0), after a linear warm-up.

    ``warmup`` is the share of the ``num_steps`` steps over which the rate rises from 0.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule={schedule} is not one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        raise InputError(f"warmup={warmup} is not a share of the steps in [0, 1)")
    return get_scheduler(
        SCHEDULES[schedule],
        optimizer,
        num_warmup_steps=round(warmup * num_steps),
        num_training_steps=num_steps,
    )


def update_learning_rates(schedule: LambdaLR) -> None:
    """Set the rates of the optimiser to those of the schedule's current step.

    A resumed optimiser has the rates it was saved with. They are wrong if the training is now
    longer.
    """
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)


def make_scaler(device: torch.device, is_fp16: bool) -> GradScaler:
    """The gradient scaler of fp16; it does nothing in other precisions."""
    scaler = GradScaler(device.type, enabled=is_fp16)
    # It creates its scale at the first use, and a process without a list in a step does not use it.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def optimizer_step(optimizer: torch.optim.Optimizer, scaler: GradScaler) -> bool:
    """Step the optimiser unless an fp16 gradient overflowed; returns whether it did step.

    The gradients must be unscaled. An overflow lowers the scale.
    """
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= scale


class WeightAverage:
    """Exponential moving average of the weights (Polyak & Juditsky, SIAM J. Control Optim. 1992).

    ``decay`` in (0, 1), or None: no average, at no cost; the student has the weights of the last
    step. The decay of step t (from 1) is ``min(decay, (1 + t) / (10 + t))``, so that the average
    soon forgets the untrained weights.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"decay={decay} is neither None nor a number between 0 and 1")
        self.decay = decay
        self.num_updates = 0
        weights = [] if decay is None else model.parameters()
        self.weights: list[torch.Tensor] = [p for p in weights if p.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self) -> None:
        """Add the weights of one more step to the average."""
        if self.decay is None:
            return
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights inside the ``with`` block."""
        trained = [weight.detach().clone() for weight in self.weights]
        try:
            self._set(self.averages)
            yield
        finally:
            self._set(trained)

    def _set(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self.weights, values, strict=True):
                weight.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
