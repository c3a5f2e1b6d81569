"""What the three commands share: where the configs lie, and errors in one line."""

import gc
import logging
import os
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankdistillm import processes
from rankdistillm.errors import InputError
from rankdistillm.names import shown

PACKAGE = Path(__file__).parent
# Inside a wheel the configs lie in the package, in a checkout beside it.
CONFIGS = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())


# The names that a sweep varies, for the jobs of a launcher, which do not see the command line.
SWEPT = "RANKDISTILLM_SWEPT"

LONGEST = 1000  # characters of a message


def _check_arguments(arguments: Sequence[str]) -> None:
    """Note what a sweep varies; refuse what Hydra cannot parse, with the quotes that it needs."""
    parser = OverridesParser.create()
    swept = []
    is_sweep = any(a == "-m" or a.startswith("--mul") for a in arguments)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        takes_value = before.startswith("-") and before != "-m"
        if argument.startswith("-") or (takes_value and "=" not in argument):
            continue
        if "=" not in argument and not argument.startswith("~"):
            raise InputError(f"{argument or repr('')}: not an option; write NAME=VALUE")
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            raise InputError(
                f"{argument}: has characters that need quotes; {_advice(parser, argument)}"
            ) from error
        if override.is_sweep_override():
            swept.append(override.key_or_group)
            if not is_sweep and "," in argument and "hydra.mode" not in " ".join(arguments):
                raise InputError(
                    f"{argument}: several values are a sweep, which needs -m; "
                    f"for a comma in a text {_advice(parser, argument)}"
                )
    os.environ[SWEPT] = "\n".join(swept)


def _advice(parser: OverridesParser, argument: str) -> str:
    """How to type an argument that Hydra does not take as it is."""
    name, _, value = argument.partition("=")

    def is_parsed(text: str) -> bool:
        with suppress(HydraException):
            return bool(parser.parse_override(text))
        return False

    quoted = [_quoted(value)]
    if value[:1] in ("{", "["):  # quotes inside a list or group keep it one; keys stand without
        quoted.insert(
            0,
            re.sub(
                r"""[^\s{}\[\],:'"][^{}\[\],:'"]*+(?!\s*:)""",
                lambda found: found[0] if is_parsed(f"x={found[0]}") else _quoted(found[0]),
                value,
            ),
        )
    for fitting in quoted:
        if is_parsed(f"{name}={fitting}"):
            return f"write {shlex.quote(f'{name}={fitting}')}"
    return "write NAME=VALUE, with letters, digits and dots in the name"


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _varying(overrides: Sequence[str]) -> str:
    """The overrides of a job that its sweep varies, as a folder's name: ``loss=kl,seed=1``."""
    parser = OverridesParser.create()
    swept = os.environ.get(SWEPT, "").split("\n")
    # A sweeper with parameters of its own leaves no trace on the command line: then name all.
    varied = [o for o in overrides if parser.parse_override(o).key_or_group in swept] or overrides
    return ",".join(sorted(varied)).replace("/", "_")


# `${package:mini/docs.tsv}`: a file that ships with the package.
OmegaConf.register_new_resolver("package", lambda name: str(PACKAGE / name), replace=True)
OmegaConf.register_new_resolver("varying", _varying, replace=True)


# Groups of options that a command line may append, which no list of defaults names.
APPENDED = {"train": ("stage", "recipe")}


def _help(command: str) -> str:
    """What ``--help`` prints: the groups and options of the command, with their comments."""
    defaults = OmegaConf.load(CONFIGS / f"{command}.yaml").defaults
    chosen = [str(group) for entry in defaults if OmegaConf.is_dict(entry) for group in entry]
    groups, options = [], [_commented(f"{command}.yaml")]
    for group in (*chosen, *APPENDED.get(command, ())):
        if not (CONFIGS / group).is_dir():  # one of Hydra's own
            continue
        names = ", ".join(sorted(file.stem for file in (CONFIGS / group).glob("*.yaml")))
        groups.append(f"  {group if group in chosen else f'+{group}'}={names.replace(', ', ' | ')}")
        if choice := HydraConfig.get().runtime.choices.get(group):
            text = _commented(f"{group}/{choice}.yaml")
            if group in chosen:
                text = f"{group}: # {group}={choice}\n{textwrap.indent(text, '  ')}"
            options.append(text)
    parts = [
        f"python -m rankdistillm.{command} NAME=VALUE …",
        *(["Groups of options:\n" + "\n".join(groups)] if groups else []),
        "Options:",
        *options,
        "More: --cfg job (the options as this command line sets them), -m (sweep), --hydra-help",
    ]
    return "\n\n".join(parts).replace("$", "$$")  # Hydra takes it for a template


def _commented(file: str) -> str:
    """A config as it stands, but for what is meant for Hydra alone."""
    text = (CONFIGS / file).read_text("utf-8")
    text = re.sub(r"(?m)^# @package .*\n", "", text)
    return re.sub(r"(?m)^(defaults|hydra):.*\n((  .*)?\n)*", "", text).strip()


OmegaConf.register_new_resolver("help", _help, replace=True)


def run_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``job`` with the Hydra config ``config_name`` and the command line.

    An error that is the user's to mend ends as one line on stderr and exit status 1; with
    ``HYDRA_FULL_ERROR=1`` its traceback is shown. In a sweep the other jobs still run. A launcher
    may send a job to another process: there an error is raised, and the launcher brings it back.
    """
    # What the imports made lives as long as the process: the collector need not go through it,
    # which takes a second and more at the end alone.
    gc.freeze()
    if not processes.is_first():
        _stay_quiet()
    here = os.getpid()
    asked = os.environ.get("HYDRA_FULL_ERROR")
    full_error = asked == "1"
    # Hydra then hands its errors on, instead of printing them in its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    mendable = (InputError, HydraException, OmegaConfBaseException, OSError)
    failed: list[str] = []

    def guarded(config: DictConfig) -> Any:
        _remove_unused_folder()
        try:
            return job(config)
        except mendable as error:
            elsewhere = os.getpid() != here
            if full_error or elsewhere or HydraConfig.get().mode != RunMode.MULTIRUN:
                raise
            job_name = _varying(HydraConfig.get().overrides.task)
            failed.append(f"{job_name}: {_one_line(error)}")
            logging.getLogger(__name__).error(failed[-1])
            return float("nan")

    def silenced(config: DictConfig) -> Any:
        # Hydra writes a line of its own before it hands on an exception of a job, but not before
        # SystemExit.
        try:
            return guarded(config)
        except mendable as error:
            if full_error or os.getpid() != here:
                raise
            _end(error)

    try:
        _check_arguments(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(
            silenced
        )()
    except mendable as error:
        if full_error:
            raise
        _end(error)
    except KeyboardInterrupt:  # but in the steps of a training, which end with a checkpoint
        if full_error:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if asked is not None:
            os.environ["HYDRA_FULL_ERROR"] = asked
    if failed:
        sys.exit("\n".join(f"error: {message}" for message in failed))


def _remove_unused_folder() -> None:
    """Remove the folder that Hydra made for a job; what is written there makes it again."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with suppress(OSError):  # not empty: it is used
        while Path.cwd() in folder.parents:
            folder.rmdir()
            folder = folder.parent


def _end(error: BaseException) -> NoReturn:
    if not processes.is_first():
        # What is wrong for all processes the first one says, whereupon torchrun ends the others.
        time.sleep(2)
    sys.exit(f"error: {_one_line(error)}")


def _stay_quiet() -> None:
    """Of the processes of a job only the first speaks and makes Hydra's folders.

    An error of another one alone is still shown.
    """
    sys.argv.append("hydra.run.dir=.")
    logging.disable(logging.WARNING)


class OneLine(logging.Formatter):
    """Log messages that can do nothing to a terminal, however long and strange the names in them.

    A traceback that comes with a message keeps its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _printable(super().formatMessage(record))


def _one_line(error: BaseException) -> str:
    return _printable(" ".join(str(error).split()))


def _printable(text: str) -> str:
    """At most `LONGEST` characters, of which the terminal obeys none."""
    if len(text) > LONGEST:  # the remedy stands at the end
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 3 :]}"
    return shown(text, "text")
