"""Train a student: ``python -m rankdistillm.train +stage=distill``.

`train` reads from top to bottom: read, prepare, loop, sum up. The one training step stands in the
loop between two fences.
"""

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from rankdistillm.checkpoint import load_state, save_state, save_student
from rankdistillm.cli import run_command
from rankdistillm.data import TrainingData, read_training_run
from rankdistillm.devices import device_of
from rankdistillm.errors import InputError
from rankdistillm.evaluate import format_table
from rankdistillm.gradients import accumulate_gradients
from rankdistillm.metrics import parse_metric
from rankdistillm.model import CrossEncoder
from rankdistillm.optim import WeightAverage, make_optimizer, make_schedule
from rankdistillm.runs import Run
from rankdistillm.targets import check_pairing
from rankdistillm.texts import texts_of_run
from rankdistillm.tracking import Tracker
from rankdistillm.validation import JudgedRun

log = logging.getLogger(__name__)

STAGES = ("prefinetune", "distill")


def train(config: DictConfig) -> float | None:
    """Train the student that ``config`` (conf/train.yaml) describes.

    Returns the best value of the validation metric, for Hydra's sweepers; None without validation.
    """
    # ---- read: whatever is wrong with the input shows here, before anything is computed
    if config.stage not in STAGES:
        raise InputError(f"no stage: add {' or '.join(f'+stage={stage}' for stage in STAGES)}")
    _check_numbers(config)
    parse_metric(config.validation.metric)
    device = device_of(config.device)
    loss = instantiate(config.loss)
    check_pairing(loss, config.data.train.targets, config.data.train.transform)
    output = _make_output_folder(config)
    run, qrels = read_training_run(config.data.train, config.seed)
    queries, docs = texts_of_run(run, config.data.queries, config.data.docs)
    validation = JudgedRun.read("validation", config.data.validation)
    test = JudgedRun.read("test", config.data.test)

    # ---- prepare
    torch.manual_seed(config.seed)
    placed = {"device": device, "precision": config.precision}
    model = CrossEncoder.from_pretrained(**config.model, **placed)
    data = TrainingData(
        run,
        qrels,
        model.tokenise_queries(queries),
        model.tokenise_docs(docs),
        model.template,
        config.data.train,
        queries_per_step=config.queries_per_step,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
    optim = config.optim
    optimizer = make_optimizer(
        model, optim.learning_rate, optim.weight_decay, optim.decay, optim.head_learning_rate
    )
    schedule = make_schedule(optimizer, optim.schedule, optim.warmup, len(data))
    scaler = GradScaler(device.type, enabled=model.autocast_dtype == torch.float16)
    average = WeightAverage(model, optim.ema)
    parts = {
        "model": model,
        "average": average,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
    }
    place: dict[str, Any] = {"step": 0, "best": None, "validations_since_best": 0}
    if config.resume == "auto":
        place |= load_state(output / "state", **parts) or {}
    tracker = Tracker(output, config, step=place["step"])
    log.info(
        "%s on %s (%s): %d lists, %d steps%s",
        config.stage,
        device.type,
        str(model.autocast_dtype).removeprefix("torch."),
        data.num_lists,
        len(data),
        f", from step {place['step']}" if place["step"] else "",
    )
    judged = test or validation
    if judged and place["step"] == 0:
        judged.rerank(model).write(output / "before.run", tag="before")

    # ---- loop
    model.train()
    bar = tqdm(range(place["step"], len(data)), config.stage, disable=None, smoothing=0.05)
    try:
        for step in bar:
            started = time.perf_counter()
            batch = data.batch(step)

            # ================= one training step =================
            loss_value = accumulate_gradients(
                model, loss, batch, token_budget=config.token_budget, scaler=scaler
            )
            scaler.unscale_(optimizer)
            grad_norm = clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
            _check_finite(step, loss_value, grad_norm, scaler)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:  # else fp16 overflowed and the step was left out
                schedule.step()
                average.update()
            optimizer.zero_grad(set_to_none=True)
            # =====================================================

            place["step"] = step + 1
            figures = {
                "loss": float(loss_value),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "grad_norm": float(grad_norm),
                "pairs_per_second": len(batch.pairs) / (time.perf_counter() - started),
            }
            tracker.log(step + 1, figures)
            bar.set_postfix_str(
                f"loss {figures['loss']:.4f}, {figures['pairs_per_second']:.0f} pairs/s"
            )
            if validation and _is_due(step + 1, config.validation.every, len(data)):
                with average.in_place():
                    _validate(model, validation, config, output, tracker, place)
            if _is_due(step + 1, config.checkpoint.every, math.inf):
                save_state(output / "state", **parts, **place)
            patience = config.validation.patience
            if patience and place["validations_since_best"] >= patience:
                log.info("no better in %d validations: stopped at step %d", patience, step + 1)
                break
    finally:
        bar.close()
        tracker.close()

    # ---- sum up
    if validation is None:
        with average.in_place():
            save_student(model, output / "checkpoint")
    log.info("student: %s", output / "checkpoint")
    if judged:
        best = CrossEncoder.from_pretrained(output / "checkpoint", **placed)
        _print_gain(judged, best, config.validation.metric, output)
    return place["best"]


def _check_numbers(config: DictConfig) -> None:
    whole = ("queries_per_step", "token_budget", "data.train.list_size")
    optional = ("max_steps", "validation.every", "validation.patience", "checkpoint.every")
    for name in (*whole, *optional):
        value = OmegaConf.select(config, name)
        if value is None and name in optional:
            continue
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value} is not a whole number from 1 on")
    if not isinstance(config.epochs, int | float) or config.epochs <= 0:
        raise InputError(f"epochs={config.epochs} is not a number above 0")


def _make_output_folder(config: DictConfig) -> Path:
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    except OSError as error:
        raise InputError(
            f"output={output}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    if config.resume not in ("auto", "never"):
        raise InputError(f"resume={config.resume} is not one of auto, never")
    if config.resume == "never":
        shutil.rmtree(output / "state", ignore_errors=True)
    return output


def _check_finite(step: int, loss: Tensor, grad_norm: Tensor, scaler: GradScaler) -> None:
    # With fp16 a gradient that overflows is routine: the scaler leaves the step out.
    if not math.isfinite(loss) or not (scaler.is_enabled() or math.isfinite(grad_norm)):
        raise InputError(
            f"step {step + 1}: loss {float(loss):g}, gradient norm {float(grad_norm):g}: training "
            "diverged; lower optim.learning_rate, raise optim.warmup or use precision=fp32"
        )


def _is_due(step: int, every: int | None, last: float) -> bool:
    return step == last or (every is not None and step % every == 0)


def _validate(
    model: CrossEncoder,
    validation: JudgedRun,
    config: DictConfig,
    output: Path,
    tracker: Tracker,
    place: dict[str, Any],
) -> None:
    """Measure the student; keep it, and its validation run, where it is the best so far."""
    metric = config.validation.metric
    reranked = validation.rerank(model)
    value = validation.evaluate(reranked, [metric]).means[metric]
    tracker.log(place["step"], {f"validation/{metric}": value})
    place["validations_since_best"] += 1
    if place["best"] is None or value > place["best"]:
        place |= {"best": value, "validations_since_best": 0}
        save_student(model, output / "checkpoint")
        reranked.write(output / "validation.run", tag="student")
    log.info("step %d: validation %s %.4f (best %.4f)", place["step"], metric, value, place["best"])


def _print_gain(judged: JudgedRun, student: CrossEncoder, metric: str, output: Path) -> None:
    after = judged.rerank(student)
    after.write(output / "after.run", tag="after")
    runs = {judged.name: judged.run}
    if judged.teacher is not None:
        runs["teacher"] = judged.teacher
    runs |= {"student before": Run.read(output / "before.run"), "student after": after}
    figures = {name: judged.evaluate(run, [metric]) for name, run in runs.items()}
    print(format_table(figures, [metric]))


def main() -> None:
    """Entry point of ``python -m rankdistillm.train``."""
    run_command(train, "train")


if __name__ == "__main__":
    main()
