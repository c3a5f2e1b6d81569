"""Metrics of a training: files in its folder always, dashboards on request."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from rankdistillm import distributed
from rankdistillm.data.outputs import replacing, unwritable, write_text
from rankdistillm.devices import peak_memory
from rankdistillm.errors import InputError
from rankdistillm.evaluation.tables import per_query_csv
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.training.dashboards import Dashboard, Logged, open_dashboards
from rankdistillm.training.state import Progress
from rankdistillm.training.validation import Comparison, summarise

log = logging.getLogger(__name__)


class Tracker:
    """Writes metrics to ``folder/metrics.jsonl``, one JSON object per line, each with its ``step``.

    The last line of a finished training is its summary, which summary.json holds too. The metric of
    each query is in per_query.csv. The dashboards that ``config`` (conf/train.yaml) asks for get
    the same metrics.

    A training that resumes at ``step`` first drops the lines of later steps, so that the file has
    neither gaps nor repeats. With ``is_finished``, no step follows, and the earlier summary stays
    until it is replaced. Of the processes of a job only the first one writes.
    """

    def __init__(
        self, folder: Path, config: DictConfig, *, step: int = 0, is_finished: bool = False
    ) -> None:
        self._file = None
        self._dashboards: list[Dashboard] = []
        if not distributed.is_first():
            return
        path = folder / "metrics.jsonl"
        dropped = _drop_later_lines(path, step)
        self._summary, self._per_query = folder / "summary.json", folder / "per_query.csv"
        self._dashboards = open_dashboards(config, folder, step=step, dropped=dropped)
        if not is_finished:
            for file in (self._summary, self._per_query):  # of an earlier training
                file.unlink(missing_ok=True)
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics of one step (counted from 1; 0 is before training)."""
        # JSON has no infinity, but the norm of an fp16 gradient that overflowed is infinite.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._write_line({"step": step, **finite})
        for dashboard in self._dashboards:
            dashboard.log(step, metrics)

    def sum_up(
        self,
        progress: Progress,
        metric: str,
        *,
        trained_on: Mapping[str, Any],
        comparison: Comparison | None,
        measured_on: str,
    ) -> None:
        """Write the summary of a finished training.

        ``trained_on`` identifies the training lists. ``comparison`` is the closing table of the
        queries ``measured_on``, "test" or "validation"; None without a table.
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
        if comparison is not None:
            summary |= {"measured_on": measured_on, **summarise(comparison)}
            write_text(self._per_query, per_query_csv({measured_on: comparison.measured}))
        self._write_line({"step": progress.step, "summary": summary})
        write_text(self._summary, json.dumps(summary, indent=2))
        for dashboard in self._dashboards:
            dashboard.sum_up(summary, comparison)

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
        for dashboard in self._dashboards:
            dashboard.close()


def _drop_later_lines(path: Path, step: int) -> Logged:
    """Drop the lines after ``step`` and the summary; returns the names of metrics dropped."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    # A process that was killed may have left a partial last line.
    complete = [line for line in lines if line.endswith(b"\n")]
    if complete and not step:
        log.warning("%s: replacing the metrics of an earlier training", path)
    kept: list[bytes] = []
    dropped: dict[int, set[str]] = {}
    for number, line in enumerate(complete, 1):
        try:
            found = json.loads(line)
            is_earlier, is_summary = found["step"] <= step, "summary" in found
        except (ValueError, KeyError, TypeError):  # a power failure can leave such lines
            log.warning("%s, line %d: damaged, dropped", path, number)
            continue
        if is_earlier and not is_summary:
            kept.append(line)
        elif not is_summary:
            dropped.setdefault(found["step"], set()).update(found)
    with replacing(path) as beside:
        beside.write_bytes(b"".join(kept))
    return dropped


# Steps in a row. The loss scale of fp16 starts at 2^16 and each overflow halves it: 16 make it 1.
MAX_OVERFLOWS = 50


class StepMetrics:
    """Logs the loss, learning rate, gradient norm, throughput, padding and memory of each step.

    Throughput counts the pairs of a step over the time since the step before, without the time
    inside `paused`. ``padding`` is the share of the positions that go through the layers of
    ``model`` and hold no real token, in the forward passes of this process. ``memory_mib`` is the
    `peak_memory` so far, in MiB.

    ``is_fp16``: gradients may overflow, and the gradient scaler skips such steps.
    """

    def __init__(self, tracker: Tracker, bar: tqdm, model: CrossEncoder, *, is_fp16: bool) -> None:
        self._tracker = tracker
        self._bar = bar
        self._padding = PaddingCount(model)
        self._device = model.device
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
            "padding": self._padding.take(),
        }
        if (peak := peak_memory(self._device)) is not None:
            metrics["memory_mib"] = round(peak / 2**20, 1)
        self._tracker.log(step, metrics)
        self._bar.set_postfix_str(f"loss {loss_value:.4f}, {rate:.0f} pairs/s", refresh=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the ``with`` block from throughput."""
        paused_at = time.perf_counter()
        yield
        self._start += time.perf_counter() - paused_at


class PaddingCount:
    """Counts the positions that go through the layers of ``model`` in training, and real tokens.

    The padded forward pass pads every pair to the longest one of its chunk. The packed one only
    appends fillers, which suit the matrix products of a CPU. Where its attention has no kernel for
    packed rows, it pads small rectangles by itself: those positions go through no layer and do not
    count. Both numbers are sizes that the CPU knows: no device has to be waited for.
    """

    def __init__(self, model: CrossEncoder) -> None:
        self._tokens = self._positions = 0
        model.register_forward_pre_hook(self._note_tokens)
        model.network.get_input_embeddings().register_forward_pre_hook(self._note_positions)

    def take(self) -> float:
        """The share of positions without a real token since the last call; 0 without positions."""
        share = 1 - self._tokens / self._positions if self._positions else 0.0
        self._tokens = self._positions = 0
        return round(share, 6)

    def _note_tokens(self, model: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if model.training:  # not in a validation
            self._tokens += len(inputs[0].tokens)

    def _note_positions(self, embeddings: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if embeddings.training:
            self._positions += inputs[0].numel()
