"""Metrics of a training: metrics.jsonl always, Weights & Biases on request."""

import json
import logging
import math
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from rankdistillm import distributed
from rankdistillm.data.outputs import replacing, unwritable
from rankdistillm.errors import InputError
from rankdistillm.training.state import Progress

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")


def check_tracking(config: Any) -> None:
    """Raises `InputError` if Weights & Biases would reject ``config``: mode, project, entity, name.

    Call it before the work: the mode "online" asks for the API key, but nothing is sent.
    """
    if config["mode"] not in MODES:
        raise InputError(f"wandb: the mode {config['mode']} is not one of {', '.join(MODES)}")
    if config["mode"] == "disabled":
        return
    import wandb

    try:
        wandb.Settings(project=config["project"], entity=config["entity"], run_name=config["name"])
    except (ValueError, wandb.Error) as error:
        raise InputError(f"wandb: {error}; correct the project, entity or name") from error
    if config["mode"] == "online" and distributed.is_first():
        try:
            wandb.login(verify=False)
        except (ValueError, wandb.Error) as error:
            raise InputError(
                f"wandb: the mode online needs an account ({error}); run `wandb login`, set "
                "WANDB_API_KEY, or use the mode offline"
            ) from error


class Tracker:
    """Writes metrics to ``folder/metrics.jsonl``, one JSON object per line, each with its ``step``.

    The last line of a finished training is its summary, which summary.json holds too.

    A training that resumes at ``step`` first drops the lines of later steps, so that the file has
    neither gaps nor repeats, and continues the same W&B run. Of the processes of a job only the
    first one writes. ``config`` is that of the whole training (conf/train.yaml).
    """

    def __init__(self, folder: Path, config: DictConfig, *, step: int = 0) -> None:
        self._file = None
        self._wandb = None
        if not distributed.is_first():
            return
        path = folder / "metrics.jsonl"
        _drop_later_lines(path, step)
        self._summary = folder / "summary.json"
        self._summary.unlink(missing_ok=True)  # the summary of an earlier, finished training
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if config.wandb.mode != "disabled":
            resolved: Any = OmegaConf.to_container(config, resolve=True)
            import wandb  # late: it takes seconds, and most trainings do not use it

            known = folder / "wandb_run_id"
            resumes = config.resume == "auto" and known.exists()
            run_id = known.read_text() if resumes else secrets.token_hex(4)
            with replacing(known) as beside:
                beside.write_text(run_id)
            try:
                self._wandb = wandb.init(
                    mode=config.wandb.mode,
                    project=config.wandb.project,
                    entity=config.wandb.entity,
                    name=config.wandb.name or folder.name,
                    dir=str(folder),
                    config=resolved,
                    id=run_id,
                    resume="allow",
                )
            except wandb.Error as error:  # no connection, no permission, …
                self._file.close()
                raise InputError(
                    f"wandb: mode {config.wandb.mode}: {error}; fix that, or use the mode offline"
                ) from error

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics of one step (counted from 1; 0 is before training)."""
        # JSON has no infinity, but the norm of an fp16 gradient that overflowed is infinite.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._write_line({"step": step, **finite})
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def sum_up(
        self,
        progress: Progress,
        metric: str,
        *,
        trained_on: Mapping[str, Any],
        measured: Mapping[str, Any] | None,
        measured_on: str,
    ) -> None:
        """Write the summary of a finished training.

        ``trained_on`` identifies the training lists. ``measured`` is the closing table
        (`rankdistillm.training.validation.summarise`) of the queries ``measured_on``, "test" or
        "validation"; None without a table.
        """
        if not distributed.is_first():
            return
        summary: dict[str, Any] = {
            "step": progress.step,
            "trained_on": dict(trained_on),
            "metric": metric,
        }
        if progress.best is not None:
            summary["best_validation"] = {"value": progress.best, "step": progress.best_step}
        if measured:
            summary |= {"measured_on": measured_on, **measured}
        self._write_line({"step": progress.step, "summary": summary})
        with replacing(self._summary) as beside:
            beside.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        if self._wandb is not None:
            means = summary.get("means", {})
            last = {f"{measured_on}/{metric}/{name}": value for name, value in means.items()}
            if progress.best is not None:  # W&B would show the last validation, not the best one
                last[f"validation/{metric}"] = progress.best
            self._wandb.summary.update(last)

    def _write_line(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise unwritable(self._file.name, error) from error

    def close(self) -> None:
        """Close the files; call it after a failed training too."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_later_lines(path: Path, step: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    # A process that was killed may have left a partial last line.
    complete = [line for line in lines if line.endswith(b"\n")]
    if complete and not step:
        log.warning("%s: replacing the metrics of an earlier training", path)
    kept = []
    for number, line in enumerate(complete if step else [], 1):
        try:
            found = json.loads(line)
            is_earlier = found["step"] <= step and "summary" not in found
        except (ValueError, KeyError, TypeError):  # a power failure can leave such lines
            log.warning("%s, line %d: damaged, dropped", path, number)
            continue
        if is_earlier:
            kept.append(line)
    with replacing(path) as beside:
        beside.write_bytes(b"".join(kept))


# Steps in a row. The loss scale of fp16 starts at 2^16 and each overflow halves it: 16 make it 1.
MAX_OVERFLOWS = 50


class StepMetrics:
    """Logs the loss, learning rate, gradient norm and throughput of each step.

    Throughput counts the pairs of a step over the time since the step before, without the time
    inside `paused`. ``is_fp16``: gradients may overflow, and the gradient scaler skips such steps.
    """

    def __init__(self, tracker: Tracker, bar: tqdm, *, is_fp16: bool) -> None:
        self._tracker = tracker
        self._bar = bar
        self._is_fp16 = is_fp16
        self._overflows = 0
        self._start = time.perf_counter()

    def log(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor,
        optimizer: torch.optim.Optimizer,
        *,
        num_pairs: int,
    ) -> None:
        """Log ``step``, counted from 1; call it before the optimiser step.

        Raises `InputError` if the loss or the gradient is not finite; with fp16 an infinite
        gradient is an error only after `MAX_OVERFLOWS` such steps in a row.
        """
        loss_value, norm = torch.stack([loss, grad_norm]).tolist()
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if not math.isfinite(loss_value) or (self._overflows and not self._is_fp16):
            raise InputError(
                f"step {step}: loss {loss_value:g}, gradient norm {norm:g}: training diverged; "
                "lower the learning rate, warm up for longer, or train in fp32"
            )
        if self._overflows >= MAX_OVERFLOWS:
            raise InputError(
                f"step {step}: no finite gradient in {MAX_OVERFLOWS} steps; train in bf16 or fp32"
            )
        now = time.perf_counter()
        rate = num_pairs / (now - self._start)
        self._start = now
        metrics = {
            "loss": loss_value,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "pairs_per_second": rate,
        }
        self._tracker.log(step, metrics)
        self._bar.set_postfix_str(f"loss {loss_value:.4f}, {rate:.0f} pairs/s", refresh=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the ``with`` block from throughput."""
        paused_at = time.perf_counter()
        yield
        self._start += time.perf_counter() - paused_at
