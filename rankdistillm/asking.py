"""Shared by the commands that ask a language model: the teacher, its store and its limits."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rankdistillm.cli import CONFIGS, leaves
from rankdistillm.data.outputs import check_output, keep_apart
from rankdistillm.errors import InputError, quoted
from rankdistillm.teachers.backends import Backend, ScoringBackend
from rankdistillm.teachers.budget import Budget, Prices
from rankdistillm.teachers.provenance import provenance_of, windows_of
from rankdistillm.teachers.questions import AskOptions
from rankdistillm.teachers.store import AnswerStore
from rankdistillm.teachers.tally import Tally

log = logging.getLogger(__name__)

# Names of options that would hold a secret; `key_variable` only names where one is.
SECRET = re.compile(r"(api|access)[_-]?key|authorization|secret|password|credential|bearer", re.I)
MOST_NAMED = 3

T = TypeVar("T")


def check_teacher(config: DictConfig) -> None:
    """Raises `InputError` for an option of the teacher that is not set or holds a secret."""
    if missing := sorted(OmegaConf.missing_keys(config.teacher)):
        raise InputError(f"{missing[0]} is not set; add {missing[0]}=… to the command line")
    for name, value in leaves(OmegaConf.to_container(config.teacher)):
        if SECRET.search(name):
            raise InputError(
                f"teacher.{name} looks like a secret; keys are read from the environment, from "
                "the variable that teacher.key_variable names"
            )
        if name == "base_url" and isinstance(value, str):
            address = urlsplit(value)
            if address.username or address.password or address.query:
                raise InputError(
                    "teacher.base_url contains a user, password or query; give the address alone, "
                    "and the key in the environment"
                )


def prompt_file(config: DictConfig) -> Path | None:
    """The file of ``config.prompt``: a name in conf/prompts, or a path; None if there is none."""
    if config.prompt is None:
        return None
    named = CONFIGS / "prompts" / f"{config.prompt}.jinja"
    is_path = Path(config.prompt).suffix == ".jinja" or "/" in config.prompt
    return Path(config.prompt) if is_path else named


class Outputs:
    """The files of a command with the output ``config.output``.

    ``partial`` holds what is finished if something is missing. `provenance_of` names the file that
    says how either was made. ``windows`` is written on request only.
    """

    def __init__(self, config: DictConfig) -> None:
        self.file = Path(config.output)
        self.partial = self.file.with_name(f"partial.{self.file.name}")
        self.store = Path(config.store or f"{self.file}.answers.sqlite")
        self.windows = windows_of(self.file)
        self.given = f"output={self.file}"

    def check(self, inputs: Iterator[tuple[str, str | Path]], *others: Path) -> None:
        """Raises `InputError` if a file cannot be written, or is an input or another output."""
        beside = (provenance_of(self.file), self.partial, provenance_of(self.partial), *others)
        files = [(self.given, self.file), (f"store={self.store}", self.store)]
        files += [(f"{file}, written with {self.given},", file) for file in beside]
        for name, file in files:
            check_output(file, name)
        keep_apart(files, inputs)

    def open_store(self, *, dry_run: bool) -> AnswerStore:
        """The store of answers; a dry run makes no file."""
        return AnswerStore(":memory:" if dry_run and not self.store.exists() else self.store)

    def remove_partial(self) -> None:
        """Remove what an earlier command left that could not finish."""
        for file in (self.partial, provenance_of(self.partial)):
            file.unlink(missing_ok=True)


def files_of_teacher(config: DictConfig) -> Iterator[tuple[str, str | Path]]:
    """Pairs (``name=value``, path) of what the teacher may read."""
    if (prompt := prompt_file(config)) is not None:
        yield f"prompt={config.prompt}", prompt
    for name, value in leaves(OmegaConf.to_container(config.teacher)):
        if isinstance(value, str) and os.path.exists(value):
            yield f"teacher.{name}={value}", value


def instantiate_group(config: DictConfig, name: str) -> Any:
    """Instantiate the group ``name``. Raises `InputError` for what its options make impossible."""
    try:
        return instantiate(config[name], _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, InputError | OSError):
            cause = cause.__cause__
        raise InputError(f"{name}: {cause}") from error


def budget_of(config: DictConfig) -> Budget:
    prices = Prices(config.prices.input, config.prices.output)
    limits = config.budget
    return Budget(requests=limits.requests, tokens=limits.tokens, money=limits.money, prices=prices)


def ask_options(config: DictConfig) -> AskOptions:
    return AskOptions(**{str(name): value for name, value in config.ask.items()})


def ask_all(
    config: DictConfig,
    outputs: Outputs,
    teacher: Backend | ScoringBackend,
    ask: Callable[..., Coroutine[Any, Any, T]],
    rehearse: Callable[..., Coroutine[Any, Any, Tally]],
    *given: Any,
) -> T | tuple[None, Tally]:
    """Run ``ask`` on ``given``, or ``rehearse`` for a dry run, with the store and the limits.

    Closes the teacher in the end. A dry run returns None and the tally.
    """

    async def run() -> T | tuple[None, Tally]:
        shared: dict[str, Any] = {"budget": budget_of(config), "options": ask_options(config)}
        try:
            with outputs.open_store(dry_run=config.dry_run) as store:
                shared["store"] = store
                if config.dry_run:
                    tokens = config.answer_tokens
                    return None, await rehearse(*given, answer_tokens=tokens, **shared)
                return await ask(*given, concurrency=config.concurrency, **shared)
        finally:
            if isinstance(teacher, Backend):
                await teacher.close()

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        if not config.dry_run:
            log.info("answers so far are kept in %s; the same command goes on", outputs.store)
        raise


def say_missing(tally: Tally, total: int, what: str) -> str:
    """A line that names what is missing, and why."""
    reasons = [f"{quoted(i)} ({why})" for i, why in list(tally.failed.items())[:MOST_NAMED]]
    more = ", …" if len(tally.failed) > MOST_NAMED else ""
    return f"{len(tally.failed)} of {total} {what}: {', '.join(reasons)}{more}"
