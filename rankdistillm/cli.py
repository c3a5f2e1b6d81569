"""What the three commands share: where the configs lie, and errors in one line."""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rankdistillm import processes
from rankdistillm.errors import InputError

PACKAGE = Path(__file__).parent
# Inside a wheel the configs lie in the package, in a checkout beside it.
CONFIGS = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())


# The names that a sweep varies, for the jobs of a launcher, which do not see the command line.
SWEPT = "RANKDISTILLM_SWEPT"


def _note_sweep() -> None:
    arguments = [a for a in sys.argv[1:] if "=" in a and a[0] != "-"]
    with suppress(HydraException):  # Hydra itself will say what is wrong with them
        given = OverridesParser.create().parse_overrides(arguments)
        os.environ[SWEPT] = "\n".join(o.key_or_group for o in given if o.is_sweep_override())


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


def run_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``job`` with the Hydra config ``config_name`` and the command line.

    An error that is the user's to mend ends as one line on stderr and exit status 1; with
    ``HYDRA_FULL_ERROR=1`` its traceback is shown. In a sweep the other jobs still run. A launcher
    may send a job to another process: there an error is raised, and the launcher brings it back.
    """
    # What the imports made lives as long as the process: the collector need not go through it,
    # which takes a second and more at the end alone.
    gc.freeze()
    _note_sweep()
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


def numbers_as_text(config: DictConfig, *names: str) -> None:
    """Make text of those options that the command line gave as a number, such as ``output=5``."""
    for name in names:
        value = OmegaConf.select(config, name)
        if isinstance(value, int | float):
            OmegaConf.update(config, name, str(value))


def remove_unused_folder(output: Path) -> None:
    """Remove the folder that Hydra made for a job that writes to ``output`` instead."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with suppress(OSError):  # not empty: it is used
        while folder != output.absolute() and Path.cwd() in folder.parents:
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
