"""Check whether a training may use its output folder, and load the progress to resume from."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rankdistillm import distributed
from rankdistillm.data.outputs import replacing, restore_folder
from rankdistillm.data.qrels import Qrels, digest_of
from rankdistillm.data.runs import Run
from rankdistillm.data.sampling import STRATIFIED_SCORES
from rankdistillm.data.targets import Kinds, kinds_of
from rankdistillm.errors import InputError
from rankdistillm.training.state import Progress, TrainingState

log = logging.getLogger(__name__)

# The options that decide the trajectory: a training resumes only with the same values.
TRAJECTORY = (
    "stage", "seed", "queries_per_step", "model", "loss", "optim",
    "data.docs", "data.queries", "data.train",
)  # fmt: skip

LISTS = "data.train.run's lists, as a digest"
JUDGEMENTS = "data.train.qrels' judgements, as a digest"


def settings_of(
    config: DictConfig, run: Run, qrels: Qrels, targets: Kinds, dtype: torch.dtype
) -> dict[str, Any]:
    """The settings of the training's `TrainingState`.

    ``run`` and ``qrels``: what it trains on; their files may have changed since the last start.
    ``targets``: what its losses learn from. ``dtype``: the precision it computes in; "auto" may
    mean another one on another machine.
    """
    uses_scores = "score" in kinds_of(targets) or config.data.train.sampling == STRATIFIED_SCORES
    return _options(config) | {
        "precision": str(dtype),
        LISTS: run.digest(scores=uses_scores),
        JUDGEMENTS: digest_of(qrels),
    }


def resume(config: DictConfig, state: TrainingState, output: Path, *, num_steps: int) -> Progress:
    """Load the newest state in ``output``, or delete it if ``config.resume`` is "never".

    Returns the progress to continue from. Raises `InputError` if the folder holds a different
    training, more than ``num_steps`` steps, or a state that is unreadable or whose best student is
    missing.
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
            "requested; choose another output folder"
        )
    if distributed.is_first():
        if config.resume == "never":
            state.remove()
        restore_folder(output / "checkpoint")
        if progress.best is not None and not (output / "checkpoint").exists():
            raise InputError(f"{output}/checkpoint: the best student is missing; put it back")
    return progress


def save_config(config: DictConfig, output: Path) -> None:
    """Write config.yaml. Call it after `resume`: a rejected training must not overwrite it."""
    if distributed.is_first():
        with replacing(output / "config.yaml") as beside:
            beside.write_text(OmegaConf.to_yaml(config, resolve=True), "utf-8")


def _check_student(state: TrainingState, output: Path) -> None:
    """Raises `InputError` if ``output`` holds the student of a different training, but no state."""
    file = output / "config.yaml"
    if (output / "checkpoint").exists() and file.exists():
        state.check_settings(state.settings | _options(OmegaConf.load(file)))


def _options(config: Any) -> dict[str, Any]:
    options = {name: _plain(OmegaConf.select(config, name)) for name in TRAJECTORY}
    # Ignored where a validation run is given; otherwise it takes lists from the training.
    from_train, run = "validation.from_train", OmegaConf.select(config, "data.validation.run")
    return options | {from_train: OmegaConf.select(config, from_train) if run is None else None}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
