"""Run a command with its Hydra config: find the configs, print help, report errors in one line."""

import gc
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankdistillm import distributed
from rankdistillm.errors import InputError, printable
from rankdistillm.overrides import check_overrides, explain_unknown, varying

PACKAGE = Path(__file__).parent
# A wheel has the configs inside the package, a checkout beside it.
CONFIGS = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

# Option groups without a default; the user adds them as +GROUP=NAME.
APPENDED = {"train": ("stage", "recipe")}
# A line for each group of options; the files of conf/GROUP are its choices.
GROUPS = {
    "model": "the student: where it starts, and how it cuts texts",
    "data": "texts, runs and judgements, and how training lists are drawn from them",
    "loss": "what a training minimises",
    "stage": "what a training learns from: judged positives, then a teacher's ranking",
    "recipe": "settings of a whole training that were tried together",
    "teacher": "the model that ranks",
    "ranking": "which passages the teacher compares in one question",
}

USER_ERRORS = (InputError, HydraException, OmegaConfBaseException, OSError)
LONGEST = 1000  # characters of a message

log = logging.getLogger(__name__)


def run_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``job`` with the Hydra config ``config_name`` and the command line.

    An error that the user can fix ends as one line on stderr and exit status 1; with
    ``HYDRA_FULL_ERROR=1``, it keeps its traceback. A sweep reports the error and runs its other
    jobs. A launcher may run a job in another process; there the error is raised, and the launcher
    brings it back.
    """
    # Imported modules live as long as the process. Keeping them from the garbage collector saves
    # more than a second at exit.
    gc.freeze()
    if not distributed.is_first():
        _stay_quiet()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    launching_process = os.getpid()
    errors: list[str] = []

    def reported(config: DictConfig) -> Any:
        logging.getLogger("huggingface_hub").propagate = False  # it prints its messages itself
        try:
            return job(config)
        except USER_ERRORS as error:
            if wants_traceback or os.getpid() != launching_process:
                raise
            errors.append(_one_line(error))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                errors[-1] = f"{varying(HydraConfig.get().overrides.task)}: {errors[-1]}"
                log.error(errors[-1])
            return float("nan")  # the worst value, for sweepers that optimise

    try:
        groups = [group.removeprefix("+") for group in groups_of(config_name)]
        check_overrides(sys.argv[1:], groups)
        main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
        with _errors_raised_by_hydra(), _sigterm_unwinds(), _output_may_end():
            main(reported)()
    except USER_ERRORS as error:
        if wants_traceback:
            raise
        errors.append(explain_unknown(_one_line(error), lambda: _option_names(config_name)))
    except KeyboardInterrupt:  # the loop of a training handles Ctrl-C itself, with a checkpoint
        if wants_traceback:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if errors:
        if not distributed.is_first():
            time.sleep(2)  # rank 0 reports shared errors; torchrun then stops the rest
        sys.exit("\n".join(f"error: {message}" for message in errors))


@contextmanager
def _errors_raised_by_hydra() -> Iterator[None]:
    """Hydra raises its errors, as it does with HYDRA_FULL_ERROR=1, instead of printing them."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends the ``with`` block by `SystemExit`, so that no temporary file stays behind.

    A second one ends the process at once. The processes that torchrun starts keep the system's
    way: they may wait for each other, and torchrun then kills those that do not end.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or distributed.world_size() > 1:
        yield
        return

    def unwind(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _output_may_end() -> Iterator[None]:
    """The command goes on when nobody reads what it prints: behind ``| head``, or with ``>&-``."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # Python has None in place of a stream that was closed from the start.
        sys.stdout, sys.stderr = (_MayEnd(stream or nowhere) for stream in before)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = before


class _MayEnd:
    """A stream that drops what is written after its reader has gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._or_drop(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._or_drop(self._stream.flush)

    def _or_drop(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            # The rest of the buffer is then written there, too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RemoveUnusedFolders(Callback):
    """Removes the empty folder that Hydra makes for a job; writing into it makes it again.

    Its parents go too, as far as this command made them.
    """

    def __init__(self) -> None:
        self._made: Path | None = None  # the topmost folder that Hydra makes

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._note(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._note(config, "hydra.sweep.dir")

    def _note(self, config: DictConfig, option: str) -> None:
        with suppress(OmegaConfBaseException):  # a name that is only known in the job
            folder = Path(os.path.abspath(OmegaConf.select(config, option)))
            missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
            self._made = missing[-1] if missing else None

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.runtime.output_dir)
        with suppress(OSError):  # it is not empty
            while self._made in (folder, *folder.parents) and folder != Path.cwd():
                folder.rmdir()
                folder = folder.parent


def _stay_quiet() -> None:
    """Let rank 0 alone log and make Hydra's folders; errors of other ranks are still shown."""
    sys.argv.append("hydra.run.dir=.")
    logging.disable(logging.WARNING)


# ---- messages


class OneLine(logging.Formatter):
    """Formats log messages of any length and content safely for a terminal.

    A traceback that comes with a message keeps its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _shortened(super().formatMessage(record))


def _one_line(error: BaseException) -> str:
    return _shortened(" ".join(str(error).split()))


def _shortened(message: str) -> str:
    """The message, printable and without its middle if it has more than `LONGEST` characters."""
    if len(message) > LONGEST:  # keep the end, which names the remedy
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 3 :]}"
    return printable(message)


# ---- configs


def _help(command: str) -> str:
    """The output of ``--help``: the groups and options of the command, with their comments."""
    groups, options = [], [commented(f"{command}.yaml")]
    for name in groups_of(command):
        group = name.removeprefix("+")
        choice = HydraConfig.get().runtime.choices.get(group)
        listed = " | ".join(f"[{c}]" if c == choice else c for c in choices_of(group))
        label = f"  {name}="
        groups.append(f"{label:<11}{GROUPS[group]}\n{textwrap.indent(_filled(listed), ' ' * 11)}")
        if choice:
            text = commented(f"{group}/{choice}.yaml")
            if name == group and not sets_options_of_all(f"{group}/{choice}.yaml"):
                text = f"{group}: # {group}={choice}\n{textwrap.indent(text, '  ')}"
            options.append(text)
    parts = [
        f"python -m rankdistillm.{command} NAME=VALUE …",
        *(["Groups of options, [chosen]:\n" + "\n".join(groups)] if groups else []),
        "Options:",
        *options,
        "More: --cfg job (the options as this command line sets them), -m (sweep), --hydra-help",
    ]
    return "\n\n".join(parts).replace("$", "$$")  # Hydra fills it in as a template


def groups_of(command: str) -> list[str]:
    """The groups of options that a command takes; ``+GROUP`` for those without a default."""
    defaults = OmegaConf.load(CONFIGS / f"{command}.yaml").defaults
    chosen = [str(group) for entry in defaults if OmegaConf.is_dict(entry) for group in entry]
    # Hydra has groups of its own, such as hydra/launcher.
    return [
        *(group for group in chosen if group in GROUPS),
        *(f"+{group}" for group in APPENDED.get(command, ())),
    ]


def choices_of(group: str) -> list[str]:
    """The files of a group of options, by name."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def options_of(group: str, choice: str) -> DictConfig:
    """The options that a choice sets within its group, with those of the files it builds on.

    ``override`` entries, which choose other groups, are not followed.
    """
    own: Any = OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    bases = [str(entry) for entry in own.pop("defaults", []) if not OmegaConf.is_dict(entry)]
    below = [options_of(group, base) for base in bases if base != "_self_"]
    return OmegaConf.merge(*below, own)  # type: ignore[return-value]


def _filled(text: str) -> str:
    return textwrap.fill(text, 88, break_long_words=False, break_on_hyphens=False)


def _option_names(command: str) -> set[str]:
    """The dotted names of a command's options, whatever its groups are set to."""
    config: Any = OmegaConf.load(CONFIGS / f"{command}.yaml")
    groups = [str(g) for entry in config.pop("defaults") if OmegaConf.is_dict(entry) for g in entry]
    names = {*(name for name, _ in leaves(OmegaConf.to_container(config))), *groups}
    for group in groups:
        for file in (CONFIGS / group).rglob("*.yaml"):
            prefix = "" if sets_options_of_all(file) else group
            options = OmegaConf.to_container(OmegaConf.load(file))
            names |= {name for name, _ in leaves(options, prefix)}
    appended = APPENDED.get(command, ())
    return names - {*appended} | {f"+{group}" for group in appended}


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all options below ``tree``, made of dicts and lists.

    The values of a list share its name. An empty dict or list is a value.
    """
    if isinstance(tree, dict) and (tree or not prefix):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and tree:
        for value in tree:
            yield from leaves(value, prefix)
    else:
        yield prefix, tree


def sets_options_of_all(file: str | Path) -> bool:
    """Whether a config names its options from the top, and not within its group."""
    return "# @package _global_" in (CONFIGS / file).read_text("utf-8")


def commented(file: str) -> str:
    """The text of a config, without the parts that are for Hydra alone.

    Options that it takes from ``common/`` and does not set follow its own.
    """
    text = (CONFIGS / file).read_text("utf-8")
    config: Any = OmegaConf.create(text)
    bases = [str(entry) for entry in config.get("defaults", [])]
    text = re.sub(r"(?m)^# @package .*\n", "", text)
    text = re.sub(r"(?m)^(defaults|hydra):.*\n((  .*)?\n)*", "", text).strip()
    own = set(re.findall(r"(?m)^(\w+):", text))
    for base in bases:
        if base.startswith("common/"):
            shared = commented(f"{file.partition('/')[0]}/{base}.yaml")
            options = re.finditer(r"(?m)^(\w+):.*(\n .*)*", shared)
            text = "\n".join([text, *(o[0] for o in options if o[1] not in own)])
    return text


def _sweep() -> str | None:
    """The name of the folder of the sweep that this job belongs to; None outside of sweeps."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return os.path.basename(os.path.abspath(HydraConfig.get().sweep.dir))


def _choices(*groups: str) -> list[str]:
    """The names that the command line or its defaults choose in these groups of options."""
    # A config that is composed outside of a command has none.
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return [chosen[group] for group in groups if chosen.get(group)]


# `${package:mini/docs.tsv}` is a file that ships with the package.
OmegaConf.register_new_resolver("package", lambda name: str(PACKAGE / name), replace=True)
OmegaConf.register_new_resolver("varying", varying, replace=True)
OmegaConf.register_new_resolver("sweep", _sweep, replace=True)
OmegaConf.register_new_resolver("choices", _choices, replace=True)
OmegaConf.register_new_resolver("help", _help, replace=True)
