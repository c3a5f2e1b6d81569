"""Check the options of the commands before anything is read or written."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rankdistillm.errors import InputError, check_count, check_flag, check_number

# torch is imported late: evaluate does without it.
if TYPE_CHECKING:
    from rankdistillm.gradients import Loss

STAGES = ("prefinetune", "distill")

# Takes the dotted name of an option and its value; raises `InputError`.
Check = Callable[[str, Any], None]


def check_text(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but a text that a file can hold (or None)."""
    if value is None and optional:
        return
    if value is None:
        raise InputError(f"{name} is not set; add {name}=… to the command line")
    if not isinstance(value, str):
        raise InputError(f"{name}={value} is not a text; write {name}=TEXT, in quotes if need be")
    if not value.strip():
        raise InputError(f"{name} is empty; give it a value" + (", or null" if optional else ""))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}={value} is not UTF-8; rename it") from error
    if "\0" in value:
        raise InputError(f"{name}={value} holds a NUL character; leave it out")


def check_texts(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but a text or a list of texts (or None)."""
    if not OmegaConf.is_list(value):
        return check_text(name, value, optional=optional)
    if not value and not optional:
        raise InputError(f"{name}=[] is empty; name one at least")
    for i, one in enumerate(value):
        check_text(f"{name}[{i}]", one)


def check_tree(name: str, value: Any) -> None:
    """Raises `InputError` for anything but None, a text, or texts under names (and names)."""
    if not OmegaConf.is_dict(value):
        return check_text(name, value, optional=True)
    for key in value:
        if value[key] is None:
            raise InputError(f"{name}.{key} is not set; give it a value or leave it out")
        check_tree(f"{name}.{key}", value[key])


def _check_seed(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(f"{name}={value} is not a whole number from 0 on")


TEXT: Check = check_text
OPTIONAL_TEXT: Check = partial(check_text, optional=True)
COUNT: Check = check_count
OPTIONAL_COUNT: Check = partial(check_count, optional=True)
FROM_ZERO: Check = partial(check_number, least=0)
OPTIONAL_FROM_ZERO: Check = partial(check_number, least=0, optional=True)
ABOVE_ZERO: Check = partial(check_number, above=0)
OPTIONAL_ABOVE_ZERO: Check = partial(check_number, above=0, optional=True)

TRAIN: dict[str, Check] = {
    "stage": OPTIONAL_TEXT,
    "seed": _check_seed,
    "device": TEXT,
    "precision": TEXT,
    "queries_per_step": COUNT,
    "token_budget": OPTIONAL_COUNT,
    "epochs": ABOVE_ZERO,
    "max_steps": OPTIONAL_COUNT,
    "resume": TEXT,
    "output": TEXT,
    "model.path": TEXT,
    "model.query_length": OPTIONAL_COUNT,
    "model.doc_length": OPTIONAL_COUNT,
    "model.retokenise": check_flag,
    "model.dropout": OPTIONAL_FROM_ZERO,
    "data.docs": OPTIONAL_TEXT,
    "data.queries": OPTIONAL_TEXT,
    "data.train.run": OPTIONAL_TEXT,
    "data.train.first_stage": OPTIONAL_TEXT,
    "data.train.qrels": OPTIONAL_TEXT,
    "data.train.targets": TEXT,
    "data.train.transform": OPTIONAL_TEXT,
    "data.train.depth": OPTIONAL_COUNT,
    "data.train.list_size": COUNT,
    "data.train.num_queries": OPTIONAL_COUNT,
    "data.train.add_docs_not_in_ranking": check_flag,
    "data.train.sampling": TEXT,
    "data.validation.run": OPTIONAL_TEXT,
    "data.validation.teacher": OPTIONAL_TEXT,
    "data.validation.qrels": OPTIONAL_TEXT,
    "data.validation.queries": OPTIONAL_TEXT,
    "data.validation.docs": OPTIONAL_TEXT,
    "data.validation.depth": OPTIONAL_COUNT,
    "data.test.run": OPTIONAL_TEXT,
    "data.test.teacher": OPTIONAL_TEXT,
    "data.test.qrels": OPTIONAL_TEXT,
    "data.test.queries": OPTIONAL_TEXT,
    "data.test.docs": OPTIONAL_TEXT,
    "data.test.depth": OPTIONAL_COUNT,
    "optim.learning_rate": FROM_ZERO,
    "optim.head_learning_rate": OPTIONAL_FROM_ZERO,
    "optim.weight_decay": FROM_ZERO,
    "optim.decay": TEXT,
    "optim.schedule": TEXT,
    "optim.warmup": FROM_ZERO,
    "optim.max_grad_norm": OPTIONAL_ABOVE_ZERO,
    "optim.ema": OPTIONAL_ABOVE_ZERO,
    "validation.every": OPTIONAL_COUNT,
    "validation.metric": TEXT,
    "validation.patience": OPTIONAL_COUNT,
    "checkpoint.every": OPTIONAL_COUNT,
    "wandb.mode": TEXT,
    "wandb.project": TEXT,
    "wandb.entity": OPTIONAL_TEXT,
    "wandb.name": OPTIONAL_TEXT,
    "loss._target_": TEXT,
}

RERANK: dict[str, Check] = {
    "model.path": TEXT,
    "model.query_length": OPTIONAL_COUNT,
    "model.doc_length": OPTIONAL_COUNT,
    "model.retokenise": check_flag,
    "data.docs": OPTIONAL_TEXT,
    "data.queries": OPTIONAL_TEXT,
    "run": TEXT,
    "depth": OPTIONAL_COUNT,
    "output": TEXT,
    "device": TEXT,
    "precision": TEXT,
}

EVALUATE: dict[str, Check] = {
    "runs": check_tree,
    "qrels": check_tree,
    "metrics": check_texts,
    "by": TEXT,
    "corpora": check_tree,
    "baseline": partial(check_texts, optional=True),
    "test": TEXT,
    "correction": TEXT,
    "alpha": ABOVE_ZERO,
    "output": OPTIONAL_TEXT,
    "table": OPTIONAL_TEXT,
    "per_query": OPTIONAL_TEXT,
    "plot": OPTIONAL_TEXT,
}

# The options that name what a command reads.
_SOURCES = ("run", "teacher", "qrels", "queries", "docs")
READ = ("model.path", "data.docs", "data.queries", "run")
READ_BY_TRAINING = (
    "model.path", "data.docs", "data.queries", "data.train.run", "data.train.first_stage",
    "data.train.qrels", *(f"data.validation.{name}" for name in _SOURCES),
    *(f"data.test.{name}" for name in _SOURCES),
)  # fmt: skip


# Files of a model's folder; others, such as a run that was written there, are not read.
MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt")


def check_options(config: DictConfig, checks: Mapping[str, Check]) -> None:
    """Raises `InputError` where an option of ``checks`` is gone or has a value of another kind.

    A number that stands for a text, such as ``output=5``, is made one in ``config``.
    """
    for name, check in checks.items():
        *sections, last = name.split(".")
        group = config
        for depth, section in enumerate(sections, 1):
            dotted = ".".join(sections[:depth])
            if section not in group:
                raise InputError(f"{dotted} is gone; leave out ~{dotted}")
            group = group[section]
            if not OmegaConf.is_dict(group):
                raise InputError(f"{dotted}={group} is no group of options; set those inside it")
        if OmegaConf.is_missing(group, last):
            raise InputError(f"{name} is not set; add {name}=… to the command line")
        if last not in group:
            raise InputError(f"{name} is gone; leave out ~{name}, or give it a value")
        if getattr(check, "func", check) in (check_text, check_texts, check_tree):
            group[last] = _numbers_as_text(group[last])
        check(name, group[last])


def _numbers_as_text(value: Any) -> Any:
    if OmegaConf.is_dict(value):
        return {key: _numbers_as_text(value[key]) for key in value}
    if OmegaConf.is_list(value):
        return [_numbers_as_text(one) for one in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def files_read(config: DictConfig, names: tuple[str, ...]) -> Iterator[tuple[str, str | Path]]:
    """Pairs (``name=value``, path) of all files that the options ``names`` make a command read."""
    for name in names:
        path = OmegaConf.select(config, name)
        if path is None:
            continue
        yield f"{name}={path}", path
        if name == "model.path" and Path(path).is_dir():
            for file in Path(path).iterdir():
                if file.suffix in MODEL_SUFFIXES:
                    yield f"{name}={path}", file


def check_training(config: DictConfig) -> "Loss":
    """Validate the config before any file is read or made; returns the loss."""
    import torch

    from rankdistillm.metrics import parse_metric
    from rankdistillm.targets import check_pairing
    from rankdistillm.tracking import check_tracking

    if OmegaConf.select(config, "stage") not in STAGES:
        raise InputError(f"no stage: add {' or '.join(f'+stage={stage}' for stage in STAGES)}")
    if config.get("output", "") is None:
        raise InputError("output is not set; add output=FOLDER to the command line")
    check_options(config, TRAIN)
    if config.resume not in ("auto", "never"):
        raise InputError(f"resume={config.resume} is not one of auto, never")
    parse_metric(config.validation.metric)
    try:
        loss = instantiate(config.loss)
        value = loss(torch.zeros(2), torch.tensor([2.0, 1.0]), mask=torch.ones(2, dtype=torch.bool))
        if not isinstance(value, torch.Tensor) or value.dim():
            raise TypeError("what it gives for a list is not one number")
    except Exception as error:  # whatever the function says to the options that it was given
        raise InputError(f"loss: {error}; correct the options of the loss") from error
    check_pairing(loss, config.data.train.targets, config.data.train.transform)
    check_tracking(config.wandb)
    return loss
