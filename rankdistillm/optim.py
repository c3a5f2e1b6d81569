"""Parameter groups, learning-rate schedules, gradient scaler and averaged weights."""

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

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    decay: str = "all",
    head_learning_rate: float | None = None,
) -> AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), fused where the device can.

    ``decay``: ``"all"`` parameters are decayed, as Rank-DistiLLM does, or only ``"matrices"``, not
    biases and normalisation weights. ``head_learning_rate``: that of a `MonoNetwork`'s linear
    layer, which starts from nothing; None: the same as for the encoder.
    """
    if decay not in ("all", "matrices"):
        raise InputError(f"optim.decay={decay} is not one of all, matrices")
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
        raise InputError(f"optim.schedule={schedule} is not one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        raise InputError(f"optim.warmup={warmup} is not a share of the steps in [0, 1)")
    return get_scheduler(
        SCHEDULES[schedule],
        optimizer,
        num_warmup_steps=round(warmup * num_steps),
        num_training_steps=num_steps,
    )


def renew_rates(schedule: LambdaLR) -> None:
    """Set the rates of the step that a loaded schedule is at.

    Those that were saved are the same, unless the training has become longer.
    """
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)


def make_scaler(device: torch.device, is_fp16: bool) -> GradScaler:
    """The gradient scaler of fp16; on CUDA also without it, at scale 1.

    It leaves out a step that is not finite: on the device, before the update, so that the
    processor need not wait to know.
    """
    if is_fp16 or device.type != "cuda":
        scaler = GradScaler(device.type, enabled=is_fp16)
    else:
        scaler = GradScaler(device.type, init_scale=1.0, growth_interval=2**31 - 1)
    # It makes its scale when it is first used, which a process without a list of the step is not.
    scaler.scale(torch.zeros((), device=device))
    return scaler


class WeightAverage:
    """Exponential moving average of the weights (Polyak & Juditsky, SIAM J. Control Optim. 1992).

    ``decay`` in (0, 1), or None: the weights of the last step are the student's, and nothing here
    costs anything. The decay of step t (from 1) is ``min(decay, (1 + t) / (10 + t))``, so that the
    first, untrained weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        if decay is not None and not 0 < decay < 1:
            raise InputError(f"optim.ema={decay} is not a decay between 0 and 1, nor null")
        self.decay = decay
        self.num_updates = 0
        weights = [] if decay is None else model.parameters()
        self.weights: list[torch.Tensor] = [p for p in weights if p.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self) -> None:
        """Take in the weights of one more step."""
        if self.decay is None:
            return
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages for its weights inside the ``with`` block."""
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
