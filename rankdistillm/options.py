"""What the options of a training alone tell to be wrong, before anything is read or written."""

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rankdistillm.cli import numbers_as_text
from rankdistillm.errors import InputError, check_count, check_flag, check_number
from rankdistillm.gradients import Loss
from rankdistillm.metrics import parse_metric
from rankdistillm.targets import check_pairing
from rankdistillm.tracking import check_mode

STAGES = ("prefinetune", "distill")

# Groups of options, none of which may be set to something else.
SECTIONS = (
    "model", "data", "data.train", "data.validation", "data.test", "loss", "optim", "validation",
    "checkpoint", "wandb",
)  # fmt: skip
TEXT = (
    "output", "model.path", "data.docs", "data.queries", "data.train.run", "data.train.qrels",
    "data.train.first_stage",
)  # fmt: skip


def check_training(config: DictConfig) -> Loss:
    """Refuse what the options alone tell to be wrong, before a folder is made; returns the loss."""
    if config.stage not in STAGES:
        raise InputError(f"no stage: add {' or '.join(f'+stage={stage}' for stage in STAGES)}")
    for section in SECTIONS:
        given = OmegaConf.select(config, section)
        if not OmegaConf.is_dict(given):
            raise InputError(f"{section}={given} is no group of options; set those inside it")
    numbers_as_text(config, *TEXT)
    _check_values(config)
    parse_metric(str(config.validation.metric))
    check_mode(config.wandb.mode)
    try:
        loss = instantiate(config.loss)
        loss(torch.zeros(2), torch.tensor([2.0, 1.0]), mask=torch.ones(2, dtype=torch.bool))
    except (TypeError, ValueError) as error:
        raise InputError(f"loss: {error}; correct the options of the loss") from error
    check_pairing(loss, config.data.train.targets, config.data.train.transform)
    return loss


def _check_values(config: DictConfig) -> None:
    whole = ("queries_per_step", "data.train.list_size")
    optional = (
        "max_steps", "token_budget", "validation.every", "validation.patience", "checkpoint.every",
        "data.train.num_queries", "data.train.depth", "data.validation.depth", "data.test.depth",
        "model.query_length", "model.doc_length",
    )  # fmt: skip
    for name in (*whole, *optional):
        check_count(name, OmegaConf.select(config, name), optional=name in optional)
    check_number("epochs", config.epochs, above=0)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**63:
        raise InputError(f"seed={config.seed} is not a whole number from 0 on")
    check_number("optim.learning_rate", config.optim.learning_rate, least=0)
    check_number("optim.weight_decay", config.optim.weight_decay, least=0)
    check_number("optim.warmup", config.optim.warmup, least=0)
    check_number(
        "optim.head_learning_rate", config.optim.head_learning_rate, least=0, optional=True
    )
    for name in ("optim.max_grad_norm", "optim.ema"):
        check_number(name, OmegaConf.select(config, name), above=0, optional=True)
    for name in ("model.retokenise", "data.train.add_docs_not_in_ranking"):
        check_flag(name, OmegaConf.select(config, name))
    check_number("model.dropout", config.model.dropout, least=0, optional=True)
