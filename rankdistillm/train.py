"""Train a student: ``python -m rankdistillm.train +stage=distill``.

`train` reads from top to bottom: read, prepare, loop, sum up. The one training step stands in the
loop between two fences.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.utils import clip_grad_norm_

from rankdistillm import processes
from rankdistillm.checkpoint import (
    FILES,
    FOLDERS,
    TrainingState,
    check_ours,
    restore_folder,
    save_student,
)
from rankdistillm.cli import run_command
from rankdistillm.data import TrainingData, read_training_run
from rankdistillm.devices import bound_compiled_products, device_of, keep_freed_memory
from rankdistillm.errors import InputError
from rankdistillm.files import keep_apart, locked, replacing, writable_folder
from rankdistillm.gradients import Loss, TokenBudget, step_gradients
from rankdistillm.interruption import stop_requests
from rankdistillm.metrics import prepare_metrics
from rankdistillm.model import CrossEncoder
from rankdistillm.optim import (
    WeightAverage,
    make_optimizer,
    make_scaler,
    make_schedule,
    renew_rates,
)
from rankdistillm.options import READ_BY_TRAINING, check_training, files_read
from rankdistillm.progress import progress_bar
from rankdistillm.texts import texts_of_run
from rankdistillm.tracking import StepFigures, Tracker
from rankdistillm.validation import JudgedRun, measure_gain

log = logging.getLogger(__name__)

# What decides the trajectory: a training is only resumed where these are as they were.
SETTING = (
    "stage", "seed", "queries_per_step", "model", "loss", "optim",
    "data.docs", "data.queries", "data.train",
)  # fmt: skip

LISTS = "data.train.run's lists, as a digest"


def train(config: DictConfig) -> float | None:
    """Train the student that ``config`` (conf/train.yaml) describes.

    Returns the best value of the validation metric, for Hydra's sweepers; None without validation.
    """
    loss = check_training(config)
    device = device_of(config.device)
    keep_freed_memory(device)
    bound_compiled_products()
    with processes.joined(device):
        # Each process started at a time of its own, which may be in the folder's name.
        output = Path(processes.of_first(config.output))
        folder = _folder(config, output) if processes.is_first() else nullcontext()
        with folder, ExitStack() as opened:
            return _train(config, device, loss, output, opened)


def _train(
    config: DictConfig, device: torch.device, loss: Loss, output: Path, opened: ExitStack
) -> float | None:
    # ---- read: whatever is wrong with the input shows here, before anything is computed
    run, qrels = read_training_run(config.data.train, config.seed)
    queries, docs = texts_of_run(run, config.data.queries, config.data.docs)
    validation = JudgedRun.read("validation", config.data.validation)
    test = JudgedRun.read("test", config.data.test)

    # ---- prepare
    torch.manual_seed(config.seed)
    placed = {"device": device, "precision": config.precision}
    model = CrossEncoder.from_pretrained(**config.model, **placed)
    if not model.has_head:
        log.info("%s: an encoder without a head for scores, a new one is drawn", config.model.path)
    if processes.rank():  # all start from the same weights; each draws dropout of its own
        torch.manual_seed(config.seed + processes.rank())
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
    is_fp16 = model.autocast_dtype == torch.float16
    scaler = make_scaler(device, is_fp16)
    average = WeightAverage(model, optim.ema)
    budget = TokenBudget.for_model(model, config.token_budget)
    weights = list(model.parameters())  # to find them takes longer than to clip their gradients
    state = TrainingState(
        output / "state",
        _setting(config) | {"precision": str(model.autocast_dtype), LISTS: run.digest()},
        model=model,
        average=average,
        optimizer=optimizer,
        schedule=schedule,
        scaler=scaler,
        budget=budget,
    )
    measured = _plain(config.data.validation) | {"metric": config.validation.metric}
    unmeasured = {
        "best": None, "best_step": None, "validations_since_best": 0, "measured": measured,
    }  # fmt: skip
    place: dict[str, Any] = {"step": 0, **unmeasured}
    if config.resume == "auto":
        place |= (found := state.load())
        if not found:
            _refuse_another(state, output)
        renew_rates(schedule)
        if place["measured"] != measured and place["step"] < len(data):
            log.warning("the validation is another one: the best student so far is forgotten")
            place |= unmeasured
    if place["step"] > len(data):
        raise InputError(
            f"{output}: holds a training of {place['step']} steps, more than the {len(data)} asked "
            "for; choose another output, or start anew with resume=never"
        )
    if processes.is_first():  # only now: a refused training leaves what another one wrote
        if config.resume == "never":
            state.remove()
        restore_folder(output / "checkpoint")
        if place["best"] is not None and not (output / "checkpoint").exists():
            raise InputError(f"{output}/checkpoint: the best student is gone; use resume=never")
        with replacing(output / "config.yaml") as beside:
            beside.write_text(OmegaConf.to_yaml(config, resolve=True))
    log.info(
        "%s on %s (%s): %d lists, %d steps%s",
        config.stage,
        device.type if processes.count() == 1 else f"{processes.count()} x {device.type}",
        str(model.autocast_dtype).removeprefix("torch."),
        data.num_lists,
        len(data),
        f", from step {place['step']}" if place["step"] else "",
    )
    judged = test or validation
    if judged and place["step"] == 0:
        before = judged.rerank(model)
        if processes.is_first():
            before.write(output / "before.run", tag="before")
    if judged:
        prepare_metrics([config.validation.metric])

    # ---- loop
    tracker = opened.enter_context(closing(Tracker(output, config, step=place["step"])))
    model.train()
    patience = config.validation.patience or math.inf
    last = len(data) if place["validations_since_best"] < patience else place["step"]
    bar = progress_bar(range(place["step"], last), desc=config.stage, smoothing=0.05)
    figures = StepFigures(tracker, bar, overflow_is_routine=is_fp16)
    scale = scaler.get_scale()
    with closing(bar), stop_requests() as stop:
        for step, batch in zip(bar, data.batches(place["step"]), strict=False):
            # ================= one training step =================
            loss_value = step_gradients(model, loss, batch, budget=budget, scaler=scaler)
            scaler.unscale_(optimizer)
            grad_norm = clip_grad_norm_(weights, optim.max_grad_norm or math.inf)
            figures.note(
                step + 1,
                loss_value,
                grad_norm,
                learning_rate=optimizer.param_groups[0]["lr"],
                num_pairs=len(batch.pairs),
                stop_asked=stop.asked,
            )
            scaler.step(optimizer)
            scaler.update()
            # Only fp16 has to wait for the device: whether it overflowed, so that there is no step.
            scale, scale_before = scaler.get_scale() if is_fp16 else scale, scale
            if scale >= scale_before:
                schedule.step()
                average.update()
            optimizer.zero_grad(set_to_none=True)
            # =====================================================

            place["step"] = step + 1
            if validation and _is_due(step + 1, config.validation.every, len(data)):
                with figures.interrupted(), average.in_place():
                    _validate(model, validation, config, output, tracker, place)
            if figures.stop_asked or _is_due(step + 1, config.checkpoint.every, len(data)):
                with figures.interrupted():
                    state.save(place)
            if figures.stop_asked and step + 1 < len(data):
                log.info(
                    "stopped at step %d: the same command with output=%s goes on from there",
                    step + 1,
                    output,
                )
                stop.end()
            if place["validations_since_best"] >= patience:
                log.info("no better in %d validations: stopped at step %d", patience, step + 1)
                state.save(place)
                break

    # ---- sum up
    if validation is None:
        with average.in_place():
            save_student(model, output / "checkpoint")
    log.info("student: %s", output / "checkpoint")
    gain: dict[str, float] = {}
    if judged:
        best = CrossEncoder.from_pretrained(
            output / "checkpoint", retokenise=config.model.retokenise, **placed
        )
        gain = measure_gain(judged, best, config.validation.metric, output)
    tracker.sum_up(
        place["step"],
        metric=config.validation.metric,
        best=place["best"],
        best_step=place["best_step"],
        measured_on="test" if test else "validation",
        gain=gain,
    )
    return place["best"]


@contextmanager
def _folder(config: DictConfig, output: Path) -> Iterator[None]:
    """Make the output folder and keep it to this training; refuse one that holds anything else."""
    name = f"output={output}"
    outputs = [(name, output / written) for written in (*FILES, *FOLDERS)]
    keep_apart(outputs, files_read(config, READ_BY_TRAINING))
    check_ours(output)
    with writable_folder(output, name), locked(output):
        yield


def _setting(config: Any) -> dict[str, Any]:
    return {name: _plain(OmegaConf.select(config, name)) for name in SETTING}


def _refuse_another(state: TrainingState, output: Path) -> None:
    """`InputError` where the folder has a student of another training, whose state was removed."""
    file = output / "config.yaml"
    if (output / "checkpoint").exists() and file.exists():
        state.check(state.setting | _setting(OmegaConf.load(file)))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _is_due(step: int, every: int | None, last: int) -> bool:
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
    value = validation.measure(reranked, metric)
    tracker.log(place["step"], {f"validation/{metric}": value})
    place["validations_since_best"] += 1
    if place["best"] is None or value > place["best"]:
        place |= {"best": value, "best_step": place["step"], "validations_since_best": 0}
        save_student(model, output / "checkpoint")
        if processes.is_first():
            reranked.write(output / "validation.run", tag="student")
    log.info("step %d: validation %s %.4f (best %.4f)", place["step"], metric, value, place["best"])


def main() -> None:
    """Entry point of ``python -m rankdistillm.train``."""
    run_command(train, "train")


if __name__ == "__main__":
    main()
