"""Whether a training may use its output folder, and the progress that it resumes from."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rankdistillm import distributed
from rankdistillm.data.outputs import replacing
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.training.output import restore_folder
from rankdistillm.training.state import Progress, TrainingState

log = logging.getLogger(__name__)

# The options that decide the trajectory: a training resumes only with the same values.
TRAJECTORY = (
    "stage", "seed", "queries_per_step", "model", "loss", "optim",
    "data.docs", "data.queries", "data.train",
)  # fmt: skip

LISTS = "data.train.run's lists, as a digest"


def settings_of(config: DictConfig, run: Run, dtype: torch.dtype) -> dict[str, Any]:
    """The settings of the training's `TrainingState`.

    ``run``: the ranked lists it trains on, which may change behind the name of their file.
    ``dtype``: the precision it computes in, which ``precision=auto`` does not tell.
    """
    return _options(config) | {"precision": str(dtype), LISTS: run.digest()}


def resume(config: DictConfig, state: TrainingState, output: Path, *, num_steps: int) -> Progress:
    """Load the newest state in ``output`` (``resume=auto``) or delete it (``resume=never``).

    Returns the progress to continue from. Raises `InputError` if the folder holds a different
    training, more than ``num_steps`` steps, or a state whose best student is missing. Writes
    config.yaml only after all checks, so that a rejected training overwrites nothing.
    """
    validated_on = _plain(config.data.validation) | {"metric": config.validation.metric}
    progress = Progress(validated_on)
    if config.resume == "auto":
        saved = state.load()
        if saved is None:
            _check_student(state, output)
        else:
            progress = saved
    if progress.validated_on != validated_on and progress.step < num_steps:
        log.warning("the validation has changed: the best student so far no longer counts")
        progress = Progress(validated_on, step=progress.step)
    if progress.step > num_steps:
        raise InputError(
            f"{output}: holds a training of {progress.step} steps, more than the {num_steps} "
            "requested; choose another output, or start over with resume=never"
        )
    if distributed.is_first():
        if config.resume == "never":
            state.remove()
        restore_folder(output / "checkpoint")
        if progress.best is not None and not (output / "checkpoint").exists():
            raise InputError(
                f"{output}/checkpoint: the best student is missing; start over with resume=never"
            )
        with replacing(output / "config.yaml") as beside:
            beside.write_text(OmegaConf.to_yaml(config, resolve=True), "utf-8")
    return progress


def _check_student(state: TrainingState, output: Path) -> None:
    """Raises `InputError` if a student lies here, without its state, of a different training."""
    file = output / "config.yaml"
    if (output / "checkpoint").exists() and file.exists():
        state.check_settings(state.settings | _options(OmegaConf.load(file)))


def _options(config: Any) -> dict[str, Any]:
    return {name: _plain(OmegaConf.select(config, name)) for name in TRAJECTORY}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
