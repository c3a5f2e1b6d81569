"""Dashboards that show a training: Weights & Biases and TensorBoard, both on request.

`rankdistillm.training.tracking.Tracker` passes on to them what it writes into its files.
"""

import re
import secrets
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from rankdistillm import distributed
from rankdistillm.data.catalogue import local_run
from rankdistillm.data.outputs import replacing
from rankdistillm.errors import InputError
from rankdistillm.evaluation.trainings import flat_options
from rankdistillm.exports.card import CARD
from rankdistillm.training.validation import Comparison

RUN_ID = "wandb_run_id"
RANKINGS = ("before.run", "after.run", "validation.run", "per_query.csv")
# Step -> the names of its metrics.
Logged = Mapping[int, Set[str]]


class Dashboard(Protocol):
    """A place that shows the metrics of a training while it runs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics of one step."""

    def sum_up(self, summary: Mapping[str, Any], comparison: Comparison | None) -> None:
        """Show the end of a finished training.

        ``summary`` is what summary.json holds, ``comparison`` the closing table if there is one.
        """

    def close(self) -> None:
        """Flush everything; without `sum_up` before it, the training has not finished."""


def check_dashboards(config: DictConfig) -> None:
    """Raises `InputError` if a dashboard that ``config`` (conf/train.yaml) asks for cannot start.

    Call it before the work: the mode "online" asks for the API key of Weights & Biases, but nothing
    is sent.
    """
    if config.tensorboard:
        _summary_writer()
    if config.wandb.mode == "disabled":
        return
    import wandb

    try:
        wandb.Settings(**_settings(config.wandb))
    except (ValueError, wandb.Error) as error:
        raise InputError(
            f"wandb: {error}; correct the project, entity, name, group, job_type or tags"
        ) from error
    if config.wandb.mode == "online" and distributed.is_first():
        try:
            wandb.login(verify=False)
        except (ValueError, wandb.Error) as error:
            raise InputError(
                f"wandb: the mode online needs an account ({error}); run `wandb login`, set "
                "WANDB_API_KEY, or use the mode offline"
            ) from error


def open_dashboards(
    config: DictConfig, folder: Path, *, step: int, dropped: Logged
) -> list[Dashboard]:
    """The dashboards that ``config`` (conf/train.yaml) asks for, of the training in ``folder``.

    It continues after ``step``; ``dropped`` are metrics of later steps that an interrupted process
    has logged and that will be logged again.
    """
    dashboards: list[Dashboard] = []
    if config.wandb.mode != "disabled":
        dashboards.append(Wandb(config, folder, dropped=dropped))
    if config.tensorboard:
        dashboards.append(TensorBoard(config, folder / "tensorboard", step=step))
    return dashboards


def closing_metrics(summary: Mapping[str, Any], comparison: Comparison | None) -> dict[str, float]:
    """The metrics of the closing table, and the one that a sweep optimises as ``objective``.

    They have the same names whatever the files of the training are called.
    """
    found = {}
    if "best_validation" in summary:
        found["objective"] = summary["best_validation"]["value"]
    for name, column in comparison.columns.items() if comparison else ():
        found[f"{summary['measured_on']}/{summary['metric']}/{column}"] = summary["means"][name]
    return found


# ---- Weights & Biases


class Wandb:
    """A run of Weights & Biases; resuming a training continues its run.

    Its inputs and outputs are artifacts, so that the project's graph leads from a teacher run to
    the student, and on to the student of the next stage. `closing_metrics` are in the summary, the
    gain of each query in the table ``gains``.
    """

    def __init__(self, config: DictConfig, folder: Path, *, dropped: Logged) -> None:
        import wandb  # late: it takes seconds, and most trainings do not use it

        known = folder / RUN_ID
        resumes = config.resume == "auto" and known.exists()
        self._id = read_run_id(known) if resumes else secrets.token_hex(4)
        # W&B cannot take a step back: what it has, it would have twice.
        self._logged = dropped if resumes else {}
        self._folder = folder
        self._artifacts = config.wandb.artifacts
        self._is_finished = False
        with replacing(known) as beside:
            beside.write_text(self._id)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        try:
            self._run = wandb.init(
                mode=config.wandb.mode,
                name=config.wandb.name or folder.resolve().name,
                dir=str(folder),
                config=resolved,
                id=self._id,
                resume="allow",
                settings=_settings(config.wandb),
            )
            self._run.define_metric(f"validation/{config.validation.metric}", summary="max")
            if self._artifacts != "none":
                self._use_inputs(Path(config.model.path), config.data.train.run)
        except (ValueError, wandb.Error) as error:  # no connection, no permission, …
            raise InputError(
                f"wandb: mode {config.wandb.mode}: {error}; fix that, or use the mode offline"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        logged = self._logged.get(step, ())
        new = {name: value for name, value in metrics.items() if name not in logged}
        if new:
            self._run.log(new, step=step)

    def sum_up(self, summary: Mapping[str, Any], comparison: Comparison | None) -> None:
        import wandb

        last: dict[str, Any] = closing_metrics(summary, comparison)
        if best := summary.get("best_validation"):
            # A resumed run may have had its best value before.
            last[f"validation/{summary['metric']}"] = {"max": best["value"]}
            last["best_step"] = best["step"]
        table = {}
        if comparison is not None:
            rows = comparison.gains()
            data = [list(row.values()) for row in rows]
            table = {"gains": wandb.Table(columns=list(rows[0]), data=data)}
        # Completes the row of the last step, which would otherwise replace the best value later.
        self._run.log(table, step=max(self._run.step, summary["step"]), commit=True)
        self._run.summary.update(last)
        if self._artifacts != "none":
            self._log_outputs(summary)
        self._is_finished = True

    def close(self) -> None:
        self._run.finish(exit_code=0 if self._is_finished else 1)

    def _use_inputs(self, model: Path, run: str) -> None:
        file = local_run(run)
        files = {file.name: file} if file.exists() else {}
        self._use(_artifact(file.name if Path(run).exists() else run, "run", files, source=run))
        beside = model.parent / RUN_ID
        if model.is_dir() and beside.is_file():  # the student of an earlier stage
            name = f"student-{read_run_id(beside)}"
            self._use(_artifact(name, "model", _student_files(model), source=str(model)))

    def _use(self, artifact: Any) -> None:
        if self._run.offline:
            # `use_artifact` refuses to work offline. This is the record that it would send, and
            # `wandb sync` sends it later.
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(artifact)

    def _log_outputs(self, summary: Mapping[str, Any]) -> None:
        upload = self._artifacts == "upload"
        student = _student_files(self._folder / "checkpoint")
        name = f"student-{self._id}"
        self._run.log_artifact(_artifact(name, "model", student, upload=upload, **summary))
        runs = {name: self._folder / name for name in RANKINGS}
        runs = {name: file for name, file in runs.items() if file.exists()}
        if runs:
            name = f"rankings-{self._id}"
            self._run.log_artifact(_artifact(name, "run", runs, upload=upload, **summary))


def read_run_id(file: Path) -> str:
    """The id of a run that `Wandb` wrote; raises `InputError` for anything else."""
    content = file.read_bytes()
    if not re.fullmatch(rb"[\w-]{1,64}", content):
        raise InputError(f"{file}: not the id of a W&B run; remove it to continue in a new run")
    return content.decode()


def _settings(config: DictConfig) -> dict[str, Any]:
    """The options under the names of W&B's settings."""
    tags = config.tags or []
    return {
        "project": config.project,
        "entity": config.entity,
        "run_name": config.name,
        "run_group": config.group,
        "run_job_type": config.job_type,
        "run_tags": [tags] if isinstance(tags, str) else list(tags),
    }


def _student_files(folder: Path) -> dict[str, Path]:
    """Name -> file of a student. The card is not part of it: it is written after the training."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CARD)
    return {file.relative_to(folder).as_posix(): file for file in files}


def _artifact(
    name: str, kind: str, files: Mapping[str, Path], *, upload: bool = False, **metadata: Any
) -> Any:
    """An artifact of these files: their content if ``upload``, else their digests alone.

    Equal files make the same version of it, wherever they are. Without files, its ``source`` does.
    """
    import wandb

    # W&B allows only these characters.
    name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[-128:]
    artifact = wandb.Artifact(name, kind, metadata=metadata)
    for path, file in files.items():
        if upload:
            artifact.add_file(str(file), name=path)
        else:
            artifact.add_reference(file.resolve().as_uri(), name=path)
    if not files:
        artifact.add_reference(f"ir-datasets:{metadata['source']}", name="id", checksum=False)
    return artifact


# ---- TensorBoard


class TensorBoard:
    """Events for TensorBoard in ``folder``; resuming after ``step`` hides those of later steps.

    The options and the `closing_metrics` are in its tab HPARAMS.
    """

    def __init__(self, config: DictConfig, folder: Path, *, step: int) -> None:
        # A process that is killed loses what was not flushed.
        self._writer = _summary_writer()(str(folder), purge_step=step + 1, flush_secs=10)
        self._options = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in flat_options(config).items()
            if value is not None
        }

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def sum_up(self, summary: Mapping[str, Any], comparison: Comparison | None) -> None:
        closing = closing_metrics(summary, comparison)
        self._writer.add_hparams(self._options, closing, run_name=".", global_step=summary["step"])

    def close(self) -> None:
        self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # late: few trainings use it
    except ImportError as error:
        raise InputError(
            "tensorboard=true needs the extra tensorboard: pip install "
            "'rankdistillm[tensorboard]', or -e '.[tensorboard]' in a checkout"
        ) from error
    return SummaryWriter
