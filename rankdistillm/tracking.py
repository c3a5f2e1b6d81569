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
from rankdistillm.files import replacing

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")


def check_mode(mode: str) -> None:
    """Raises `InputError` for anything but one of `MODES`."""
    if mode not in MODES:
        raise InputError(f"wandb.mode={mode} is not one of {', '.join(MODES)}")


class Tracker:
    """Writes one JSON object a line to ``metrics.jsonl``, each with its ``step``.

    When a run is resumed at ``step``, the lines of later steps are dropped first, so that the file
    has neither gaps nor repeats; Weights & Biases goes on with the same run. Of the processes of a
    job only the first one writes.
    """

    def __init__(self, folder: Path, config: DictConfig, *, step: int = 0) -> None:
        check_mode(config.wandb.mode)
        self._file = None
        self._wandb = None
        if not processes.is_first():
            return
        path = folder / "metrics.jsonl"
        _drop_later_lines(path, step)
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if config.wandb.mode != "disabled":
            resolved: Any = OmegaConf.to_container(config, resolve=True)
            import wandb  # late: it takes seconds, and most runs do without

            known = folder / "wandb_run_id"
            goes_on = config.resume == "auto" and known.exists()
            run_id = known.read_text() if goes_on else secrets.token_hex(4)
            with replacing(known) as beside:
                beside.write_text(run_id)
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

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Note figures of one step (counted from 1; 0 is before training)."""
        if self._file is not None:
            # JSON knows no infinity, and a gradient of fp16 that overflowed is one.
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in figures.items()
            }
            try:
                self._file.write(json.dumps({"step": step, **finite}) + "\n")
            except OSError as error:
                raise InputError(
                    f"{self._file.name}: cannot be written ({error.strerror or error}); make room, "
                    "then go on from the last state by the same command"
                ) from error
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

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
            is_earlier = json.loads(line)["step"] <= step
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
