"""Parameter groups and learning-rate schedules."""

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from rankdistillm.errors import InputError

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, decay: str = "all"
) -> AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), fused where the device can.

    ``decay``: ``"all"`` parameters are decayed, as Rank-DistiLLM does, or only ``"matrices"``, not
    biases and normalisation weights.
    """
    if decay not in ("all", "matrices"):
        raise InputError(f"optim.decay={decay} is not one of all, matrices")
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if decay == "all" or p.ndim > 1]
    others = [p for p in parameters if decay != "all" and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, warmup: float, num_steps: int
) -> LRScheduler:
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
