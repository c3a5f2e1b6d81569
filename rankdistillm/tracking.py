"""Where the figures of a training go: metrics.jsonl always, Weights & Biases when wanted."""

import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from rankdistillm import processes
from rankdistillm.devices import read_later
from rankdistillm.errors import InputError
from rankdistillm.files import replacing, unwritable

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")


def check_tracking(config: Any) -> None:
    """Raises `InputError` for a ``mode`` not in `MODES`, and for what Weights & Biases refuses.

    To be called before the work: it asks for the key of ``mode=online``, but sends nothing.
    """
    if config["mode"] not in MODES:
        raise InputError(f"wandb.mode={config['mode']} is not one of {', '.join(MODES)}")
    if config["mode"] == "disabled":
        return
    import wandb

    try:
        wandb.Settings(project=config["project"], entity=config["entity"], run_name=config["name"])
    except (ValueError, wandb.Error) as error:
        raise InputError(
            f"wandb.project={config['project']}: {error}; choose another name"
        ) from error
    if config["mode"] == "online" and processes.is_first():
        try:
            wandb.login(verify=False)
        except (ValueError, wandb.Error) as error:
            raise InputError(
                f"wandb.mode=online needs an account ({error}); run `wandb login`, set "
                "WANDB_API_KEY, or use wandb.mode=offline"
            ) from error


class Tracker:
    """Writes one JSON object a line to ``metrics.jsonl``, each with its ``step``.

    The last one, of a training that came to its end, sums it up; ``summary.json`` is the same.

    When a run is resumed at ``step``, the lines of later steps are dropped first, so that the file
    has neither gaps nor repeats; Weights & Biases goes on with the same run. Of the processes of a
    job only the first one writes.
    """

    def __init__(self, folder: Path, config: DictConfig, *, step: int = 0) -> None:
        self._file = None
        self._wandb = None
        if not processes.is_first():
            return
        path = folder / "metrics.jsonl"
        _drop_later_lines(path, step)
        self._summary = folder / "summary.json"
        self._summary.unlink(missing_ok=True)  # it is of a training that had come to its end
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if config.wandb.mode != "disabled":
            resolved: Any = OmegaConf.to_container(config, resolve=True)
            import wandb  # late: it takes seconds, and most runs do without

            known = folder / "wandb_run_id"
            goes_on = config.resume == "auto" and known.exists()
            run_id = known.read_text() if goes_on else secrets.token_hex(4)
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
            except wandb.Error as error:  # no connection, no right to write there, …
                self._file.close()
                raise InputError(
                    f"wandb.mode={config.wandb.mode}: {error}; mend that, or use wandb.mode=offline"
                ) from error

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Note figures of one step (counted from 1; 0 is before training)."""
        # JSON knows no infinity, and a gradient of fp16 that overflowed is one.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }
        self._write_line({"step": step, **finite})
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def sum_up(
        self,
        step: int,
        *,
        metric: str,
        best: float | None,
        best_step: int | None,
        measured_on: str,
        gain: Mapping[str, float],
    ) -> None:
        """Note what a training that ended after ``step`` has reached.

        ``best``: the best validation, after ``best_step``. ``gain``: row of the closing table ->
        mean of the metric on the validation or test queries, as ``measured_on`` says.
        """
        if not processes.is_first():
            return
        summary: dict[str, Any] = {"step": step, "metric": metric}
        if best is not None:
            summary["best_validation"] = {"value": best, "step": best_step}
        if gain:
            summary |= {"measured_on": measured_on, "means": dict(gain)}
        self._write_line({"step": step, "summary": summary})
        with replacing(self._summary) as beside:
            beside.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        if self._wandb is not None:
            last = {f"{measured_on}/{metric}/{name}": value for name, value in gain.items()}
            if best is not None:  # else it would be that of the last validation
                last[f"validation/{metric}"] = best
            self._wandb.summary.update(last)

    def _write_line(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise unwritable(self._file.name, error) from error

    def close(self) -> None:
        """Flush and end; call it also when training failed."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_later_lines(path: Path, step: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    # A process that was killed may have left half a line, always the last one.
    whole = [line for line in lines if line.endswith(b"\n")]
    if whole and not step:
        log.warning("%s: the figures of an earlier training, not gone on with, are replaced", path)
    kept = []
    for number, line in enumerate(whole if step else [], 1):
        try:
            found = json.loads(line)
            is_earlier = found["step"] <= step and "summary" not in found
        except (ValueError, KeyError, TypeError):  # as a power failure may leave it
            log.warning("%s, line %d: damaged, dropped", path, number)
            continue
        if is_earlier:
            kept.append(line)
    with replacing(path) as beside:
        beside.write_bytes(b"".join(kept))


# Steps in a row. The scale of fp16 starts at 2^16 and is halved each time: it has long been small.
OVERFLOWS = 50


class StepFigures:
    """Reads the figures of each step when the device has them, and passes them on.

    On a CPU that is at once; on CUDA while the next step runs. Training that diverged is an
    `InputError`; ``overflow_is_routine``: with fp16 a gradient that overflows is not that.
    ``stop_asked`` is True once any process was asked to stop, in all of them after the same step.
    """

    def __init__(self, tracker: Tracker, bar: tqdm, *, overflow_is_routine: bool) -> None:
        self._tracker = tracker
        self._bar = bar
        self._overflow_is_routine = overflow_is_routine
        self._waiting: deque[tuple[int, Callable[[], list[float]], float, int]] = deque()
        self._read_at = time.perf_counter()
        self._overflows = 0
        self.stop_asked = False

    def note(
        self,
        step: int,
        loss: Tensor,
        grad_norm: Tensor,
        *,
        learning_rate: float,
        num_pairs: int,
        stop_asked: bool,
    ) -> None:
        """Take in what the device has just been given to compute for ``step``, counted from 1."""
        asked = torch.full_like(loss, float(stop_asked))
        processes.add_up([asked])
        read = read_later(torch.stack([loss, grad_norm, asked]))
        self._waiting.append((step, read, learning_rate, num_pairs))
        while len(self._waiting) > (1 if loss.is_cuda else 0):
            self._pass_on()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Do something else than training: all figures are passed on before, and its time is not
        that of a step."""
        while self._waiting:
            self._pass_on()
        yield
        self._read_at = time.perf_counter()

    def _pass_on(self) -> None:
        step, read, learning_rate, num_pairs = self._waiting.popleft()
        loss, grad_norm, asked = read()
        self._overflows = 0 if math.isfinite(grad_norm) else self._overflows + 1
        if self._overflows > OVERFLOWS:
            raise InputError(
                f"step {step}: no finite gradient in {OVERFLOWS} steps; use precision=bf16 or fp32"
            )
        if not math.isfinite(loss) or not (self._overflow_is_routine or math.isfinite(grad_norm)):
            raise InputError(
                f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}: training diverged; "
                "lower optim.learning_rate, raise optim.warmup or use precision=fp32"
            )
        self.stop_asked = self.stop_asked or asked > 0
        now = time.perf_counter()
        rate = num_pairs / (now - self._read_at)
        self._read_at = now
        figures = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "pairs_per_second": rate,
        }
        self._tracker.log(step, figures)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} pairs/s", refresh=False)
