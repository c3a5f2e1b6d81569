"""The options of each command and their checks, which come before anything is read or written."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rankdistillm.errors import InputError, check_count, check_flag, check_number
from rankdistillm.overrides import meant

log = logging.getLogger(__name__)

# Called with the dotted name of an option and its value; raises `InputError`.
Check = Callable[..., None]


def check_text(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but text that a file can hold (or None)."""
    if value is None and optional:
        return
    if value is None:
        raise InputError(f"{name} is not set; add {name}=… to the command line")
    if not isinstance(value, str):
        raise InputError(f"{name}={value} is not text; write {name}=TEXT, quoted if necessary")
    if not value.strip():
        raise InputError(f"{name} is empty; give it a value" + (", or null" if optional else ""))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}={value} is not UTF-8; rename it") from error
    if "\0" in value:
        raise InputError(f"{name}={value} contains a NUL character; remove it")


def check_texts(name: str, value: Any, *, optional: bool = False) -> None:
    """Raises `InputError` for anything but text or a list of texts (or None)."""
    if not OmegaConf.is_list(value):
        return check_text(name, value, optional=optional)
    if not value and not optional:
        raise InputError(f"{name}=[] is empty; give at least one")
    for i, text in enumerate(value):
        check_text(f"{name}[{i}]", text)


def check_tree(name: str, value: Any) -> None:
    """Raises `InputError` unless the value is None, text, or groups with text at their leaves."""
    if OmegaConf.is_list(value):
        raise InputError(f"{name}={value}: give each value a name, as in '{name}={{NAME: VALUE}}'")
    if not OmegaConf.is_dict(value):
        return check_text(name, value, optional=True)
    for key in value:
        if value[key] is None:
            raise InputError(f"{name}.{key} is not set; give it a value or leave it out")
        check_tree(f"{name}.{key}", value[key])


def check_choice(name: str, value: Any, *, choices: Sequence[str]) -> None:
    """Raises `InputError` for anything but one of ``choices``."""
    if value not in choices:
        close = meant(value, choices) if isinstance(value, str) else ""
        raise InputError(f"{name}={value} is not one of {', '.join(choices)}{close}")


def check_below_one(name: str, value: Any, **bounds: Any) -> None:
    """Raises `InputError` for anything but a number below 1 that `check_number` accepts."""
    check_number(name, value, **bounds)
    if value is not None and value >= 1:
        raise InputError(f"{name}={value} is not below 1")


def check_seed(name: str, value: Any) -> None:
    """Raises `InputError` for anything but a whole number from 0 to 2^63 - 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(f"{name}={value} is not a whole number from 0 to 2^63 - 1")


def optional(check: Check) -> Check:
    """The same check, which None passes too."""
    return partial(check, optional=True)


def one_of(*choices: str) -> Check:
    return partial(check_choice, choices=choices)


COUNT: Check = check_count
FLAG: Check = check_flag
TEXT: Check = check_text
NON_NEGATIVE: Check = partial(check_number, least=0)
POSITIVE: Check = partial(check_number, above=0)

# The options of the run that a training validates on, and of the one that it tests on.
MEASURED: dict[str, Check] = {
    "run": optional(TEXT),
    "teacher": optional(TEXT),
    "qrels": optional(TEXT),
    "queries": optional(TEXT),
    "docs": optional(TEXT),
    "depth": optional(COUNT),
}

TRAIN: dict[str, Check] = {
    "stage": optional(TEXT),
    "seed": check_seed,
    "device": TEXT,
    "precision": TEXT,
    "queries_per_step": COUNT,
    "token_budget": optional(COUNT),
    "epochs": POSITIVE,
    "max_steps": optional(COUNT),
    "resume": one_of("auto", "never"),
    "output": TEXT,
    "model.path": TEXT,
    "model.query_length": optional(COUNT),
    "model.doc_length": optional(COUNT),
    "model.retokenise": FLAG,
    "model.packed": FLAG,
    "model.dropout": partial(check_below_one, least=0, optional=True),
    "data.docs": optional(TEXT),
    "data.queries": optional(TEXT),
    "data.train.run": optional(TEXT),
    "data.train.first_stage": optional(TEXT),
    "data.train.qrels": optional(TEXT),
    "data.train.targets": TEXT,
    "data.train.transform": optional(TEXT),
    "data.train.depth": optional(COUNT),
    "data.train.list_size": COUNT,
    "data.train.num_queries": optional(COUNT),
    "data.train.add_docs_not_in_ranking": FLAG,
    "data.train.sampling": TEXT,
    **{f"data.validation.{name}": check for name, check in MEASURED.items()},
    **{f"data.test.{name}": check for name, check in MEASURED.items()},
    "optim.learning_rate": NON_NEGATIVE,
    "optim.head_learning_rate": optional(NON_NEGATIVE),
    "optim.weight_decay": NON_NEGATIVE,
    "optim.decay": one_of("all", "matrices"),
    "optim.schedule": one_of("constant", "linear", "cosine"),
    "optim.warmup": partial(check_below_one, least=0),
    "optim.max_grad_norm": optional(POSITIVE),
    "optim.ema": partial(check_below_one, above=0, optional=True),
    "validation.from_train": partial(check_below_one, above=0, optional=True),
    "validation.every": optional(COUNT),
    "validation.metric": TEXT,
    "validation.patience": optional(COUNT),
    "state.every": optional(COUNT),
    "checkpoint.every": optional(COUNT),
    "card.license": optional(TEXT),
    "wandb.mode": one_of("disabled", "offline", "online"),
    "wandb.project": TEXT,
    "wandb.entity": optional(TEXT),
    "wandb.name": optional(TEXT),
    "wandb.group": optional(TEXT),
    "wandb.job_type": optional(TEXT),
    "wandb.tags": partial(check_texts, optional=True),
    "wandb.artifacts": one_of("none", "references", "upload"),
    "tensorboard": FLAG,
    "loss._target_": TEXT,
}

RERANK: dict[str, Check] = {
    "model.path": TEXT,
    "model.query_length": optional(COUNT),
    "model.doc_length": optional(COUNT),
    "model.retokenise": FLAG,
    "model.packed": FLAG,
    "data.docs": optional(TEXT),
    "data.queries": optional(TEXT),
    "run": TEXT,
    "depth": optional(COUNT),
    "long": one_of("truncate", "maxp"),
    "stride": optional(COUNT),
    "token_budget": optional(COUNT),
    "output": TEXT,
    "device": TEXT,
    "precision": TEXT,
}

RETRIEVE: dict[str, Check] = {
    "data.docs": TEXT,
    "data.queries": TEXT,
    "k1": NON_NEGATIVE,
    "b": NON_NEGATIVE,
    "language": TEXT,
    "depth": optional(COUNT),
    "index": optional(TEXT),
    "output": TEXT,
}

# The options of every command that asks a language model.
ASK: dict[str, Check] = {
    "data.docs": optional(TEXT),
    "teacher._target_": TEXT,
    "output": TEXT,
    "store": optional(TEXT),
    "dry_run": FLAG,
    "prompt": optional(TEXT),
    "ask.words": COUNT,
    "ask.characters": COUNT,
    "ask.max_tokens": optional(COUNT),
    "ask.temperature": NON_NEGATIVE,
    "concurrency": COUNT,
    "budget.requests": optional(COUNT),
    "budget.tokens": optional(COUNT),
    "budget.money": optional(POSITIVE),
    "prices.input": optional(NON_NEGATIVE),
    "prices.output": optional(NON_NEGATIVE),
    "answer_tokens": optional(COUNT),
}

TEACH: dict[str, Check] = ASK | {
    "data.queries": optional(TEXT),
    "run": TEXT,
    "depth": optional(COUNT),
    "qrels": optional(TEXT),
    "windows": FLAG,
    "ranking._target_": TEXT,
    "ask.top_logprobs": COUNT,
}

GENERATE: dict[str, Check] = ASK | {
    "data.docs": TEXT,
    "num_passages": optional(COUNT),
    "seed": check_seed,
    "examples": optional(TEXT),
    "filter.depth": optional(COUNT),
    "filter.language": TEXT,
    "filter.index": optional(TEXT),
    "filter.reranker": optional(TEXT),
    "filter.candidates": COUNT,
}

# The options of every command that compares runs.
COMPARED = ("runs", "qrels", "metrics", "baseline", "test", "correction", "alpha")

EVALUATE: dict[str, Check] = {
    "runs": check_tree,
    "qrels": check_tree,
    "metrics": check_texts,
    "by": one_of("collection", "corpus"),
    "corpora": check_tree,
    "baseline": optional(check_texts),
    "test": TEXT,
    "correction": TEXT,
    "alpha": POSITIVE,
    "output": optional(TEXT),
    "table": optional(TEXT),
    "per_query": optional(TEXT),
    "plot": optional(TEXT),
}

SUMMARIZE: dict[str, Check] = {
    "folder": check_texts,
    "metric": optional(TEXT),
    "over": optional(check_texts),
    "baseline": optional(check_texts),
    "test": TEXT,
    "correction": TEXT,
    "alpha": POSITIVE,
    "table": optional(TEXT),
    "plot": optional(TEXT),
}

REPORT: dict[str, Check] = {
    **{name: EVALUATE[name] for name in COMPARED},
    "data.docs": optional(TEXT),
    "data.queries": optional(TEXT),
    "title": optional(TEXT),
    "num_queries": optional(COUNT),
    "depth": optional(COUNT),
    "characters": optional(COUNT),
    "output": TEXT,
}

EXPORT: dict[str, Check] = {
    "model.path": TEXT,
    "format": TEXT,
    "int8": FLAG,
    "output": TEXT,
    "card.license": optional(TEXT),
    "push": FLAG,
    "repo": optional(TEXT),
    "private": FLAG,
}

INFO: dict[str, Check] = {
    "device": TEXT,
    "precision": TEXT,
    "model.path": optional(TEXT),
}

# The options that name inputs, by command.
READ = ("model.path", "data.docs", "data.queries", "run")  # rerank
EXPORTED = ("model.path",)  # export
ASKED = ("data.docs", "data.queries", "run", "qrels")  # teach
WRITTEN_FOR = ("data.docs", "examples", "filter.index", "filter.reranker")  # generate_queries
TEXTS = ("data.docs", "data.queries")  # report
SEARCHED = ("data.docs", "data.queries", "index")  # retrieve
READ_BY_TRAINING = (
    "model.path", "data.docs", "data.queries", "data.train.run", "data.train.first_stage",
    "data.train.qrels", *(f"data.{part}.{name}" for part in ("validation", "test")
                          for name in MEASURED if name != "depth"),
)  # fmt: skip

# Files of a model's folder; others there, such as runs, are not read with the model.
MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt")


def check_options(config: DictConfig, checks: Mapping[str, Check]) -> None:
    """Raises `InputError` for an option of ``checks`` that is missing or has an unsuitable value.

    Numbers given as the value of a text option, such as ``output=5``, become text in ``config``.
    """
    for name, check in checks.items():
        *sections, last = name.split(".")
        group = config
        for depth, section in enumerate(sections, 1):
            dotted = ".".join(sections[:depth])
            if section not in group:
                raise InputError(f"{dotted} is missing; remove ~{dotted} from the command line")
            group = group[section]
            if not OmegaConf.is_dict(group):
                raise InputError(f"{dotted}={group} is not a group of options; set those inside it")
        if OmegaConf.is_missing(group, last):
            raise InputError(f"{name} is not set; add {name}=… to the command line")
        if last not in group:
            raise InputError(
                f"{name} is missing; remove ~{name} from the command line, or give it a value"
            )
        if getattr(check, "func", check) in (check_text, check_texts, check_tree):
            group[last] = _numbers_as_text(group[last])
        check(name, group[last])


def texts_in(value: Any) -> list[str]:
    """The texts of an option that passes `check_texts`."""
    if value is None:
        return []
    return [str(text) for text in (value if OmegaConf.is_list(value) else [value])]


def _numbers_as_text(value: Any) -> Any:
    if OmegaConf.is_dict(value):
        return {key: _numbers_as_text(value[key]) for key in value}
    if OmegaConf.is_list(value):
        return [_numbers_as_text(element) for element in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def replace_old_names(config: DictConfig) -> None:
    """Give renamed options of a training their new names in ``config``, with a warning."""
    # By default the old option refers to the new one.
    if not OmegaConf.is_interpolation(config.checkpoint, "every"):
        log.warning("checkpoint.every is deprecated: it is now called state.every")
        config.state.every = config.checkpoint.every
    with open_dict(config):
        del config.checkpoint


def files_read(config: DictConfig, names: tuple[str, ...]) -> Iterator[tuple[str, str | Path]]:
    """Pairs (``name=value``, path) of the files that a command reads for the options ``names``."""
    for name in names:
        path = OmegaConf.select(config, name)
        if path is None:
            continue
        yield f"{name}={path}", path
        if name == "model.path" and Path(path).is_dir():
            for file in Path(path).iterdir():
                if file.suffix in MODEL_SUFFIXES:
                    yield f"{name}={path}", file
