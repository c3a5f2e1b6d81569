"""Train a student: ``python -m rankdistillm.train +stage=distill``.

`_train` reads from top to bottom: read, prepare, loop, sum up. One training step is fenced off
inside the loop.
"""

import logging
import math
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.nn.utils import clip_grad_norm_

from rankdistillm import distributed
from rankdistillm.cli import run_command
from rankdistillm.data.batches import TrainingData, read_training_run
from rankdistillm.data.targets import check_pairing, learns_from_judgements, targets_for
from rankdistillm.data.texts import texts_of_run
from rankdistillm.devices import bound_compiled_products, device_of, keep_freed_memory
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import parse_metric, prepare_metrics
from rankdistillm.exports.card import write_card
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.options import (
    READ_BY_TRAINING,
    TRAIN,
    check_options,
    files_read,
    replace_old_names,
)
from rankdistillm.progress import progress_bar
from rankdistillm.training.dashboards import check_dashboards
from rankdistillm.training.gradients import Loss, TokenBudget, step_gradients
from rankdistillm.training.optim import (
    WeightAverage,
    make_optimizer,
    make_scaler,
    make_schedule,
    optimizer_step,
    update_learning_rates,
)
from rankdistillm.training.output import save_student, training_folder
from rankdistillm.training.resume import LISTS, resume, save_config, settings_of
from rankdistillm.training.signals import stop_requests
from rankdistillm.training.state import Progress, TrainingState
from rankdistillm.training.tracking import StepMetrics, Tracker
from rankdistillm.training.validation import JudgedRun, print_comparison, save_ranking_before

log = logging.getLogger(__name__)

STAGES = ("prefinetune", "distill")


def train(config: DictConfig) -> float | None:
    """Train the student that ``config`` (conf/train.yaml) describes.

    Returns the best value of the validation metric, for Hydra's sweepers; None without validation.
    """
    loss = check_config(config)
    device = device_of(config.device)
    keep_freed_memory(device)
    bound_compiled_products()
    with distributed.process_group(device), ExitStack() as resources:
        # The default name of the folder contains the start time, which differs between processes.
        output = Path(distributed.broadcast(config.output))
        if distributed.is_first():
            read = files_read(config, READ_BY_TRAINING)
            resources.enter_context(training_folder(output, read))
        return _train(config, device, loss, output, resources)


def check_config(config: DictConfig) -> Loss:
    """Validate the config before creating any files; returns the loss."""
    if OmegaConf.select(config, "stage") not in STAGES:
        raise InputError(f"no stage: add {' or '.join(f'+stage={stage}' for stage in STAGES)}")
    if config.get("output", "") is None:
        raise InputError("output is not set; add output=FOLDER to the command line")
    check_options(config, TRAIN)
    replace_old_names(config)
    parse_metric(config.validation.metric)
    try:
        loss = instantiate(config.loss)
        kinds = targets_for(loss, default="rank")
        targets = torch.tensor([2.0, 1.0])
        if not isinstance(kinds, str):
            targets = targets.expand(len(kinds), 2)
        value = loss(torch.zeros(2), targets, mask=torch.ones(2, dtype=torch.bool))
        if not isinstance(value, torch.Tensor) or value.dim():
            raise TypeError("it does not return one number for a list")
    except Exception as error:  # the function may raise anything about the options it was given
        raise InputError(f"loss: {error}; correct the options of the loss") from error
    check_pairing(loss, config.data.train.targets, config.data.train.transform)
    check_dashboards(config)
    return loss


def _train(
    config: DictConfig, device: torch.device, loss: Loss, output: Path, resources: ExitStack
) -> float | None:
    # ---- read: input errors are reported here, before any computing
    targets = targets_for(loss, config.data.train.targets)
    run, qrels = read_training_run(config.data.train, config.seed, targets)
    queries, docs = texts_of_run(run, config.data.queries, config.data.docs)
    validation = JudgedRun.read("validation", config.data.validation)
    share = config.validation.from_train
    if share and validation:
        log.info("validation.from_train is ignored: data.validation.run is set")
    elif share:
        judgements = qrels if learns_from_judgements(targets) else None
        run, validation = JudgedRun.held_out(
            run, judgements, queries, docs, share=share, seed=config.seed
        )
    test = JudgedRun.read("test", config.data.test)

    # ---- prepare
    torch.manual_seed(config.seed)
    load = partial(CrossEncoder.from_pretrained, device=device, precision=config.precision)
    model = load(**config.model)
    if distributed.rank():  # all processes start from the same weights; each draws its own dropout
        torch.manual_seed(config.seed + distributed.rank())
    data = TrainingData(
        run, qrels, model.tokenise_queries(queries), model.tokenise_docs(docs), model.template,
        config.data.train, queries_per_step=config.queries_per_step, epochs=config.epochs,
        max_steps=config.max_steps, seed=config.seed, targets=targets,
    )  # fmt: skip
    optim, is_fp16 = config.optim, model.autocast_dtype == torch.float16
    optimizer = make_optimizer(
        model, optim.learning_rate, optim.weight_decay, optim.decay, optim.head_learning_rate
    )
    schedule = make_schedule(optimizer, optim.schedule, optim.warmup, len(data))
    scaler = make_scaler(device, is_fp16)
    average = WeightAverage(model, optim.ema)
    budget = TokenBudget.for_model(model, config.token_budget)
    state = TrainingState(
        output / "state", settings_of(config, run, qrels, targets, model.autocast_dtype),
        model=model, average=average, optimizer=optimizer, schedule=schedule, scaler=scaler,
        budget=budget,
    )  # fmt: skip
    try:
        progress = resume(config, state, output, num_steps=len(data))
    except InputError as error:
        raise InputError(f"{error}, or start over with resume=never") from error
    save_config(config, output)
    update_learning_rates(schedule)
    _log_start(config, model, data, progress)
    judged, metric = test or validation, config.validation.metric
    if judged and progress.step == 0:
        save_ranking_before(judged, model, output)
    if judged:
        prepare_metrics([metric])

    # ---- loop
    patience = config.validation.patience or math.inf
    end = len(data) if progress.validations_since_best < patience else progress.step
    is_finished = progress.step == end
    tracker = Tracker(output, config, step=progress.step, is_finished=is_finished)
    resources.enter_context(closing(tracker))
    model.train()
    weights = list(model.parameters())  # listing them takes longer than clipping their gradients
    bar = progress_bar(
        range(progress.step, end), desc=config.stage, smoothing=0.05,
        initial=progress.step, total=end,
    )  # fmt: skip
    metrics = StepMetrics(tracker, bar, model, is_fp16=is_fp16)
    with closing(bar), stop_requests() as stop:
        for step, batch in zip(bar, data.batches(progress.step), strict=False):
            # ================= one training step =================
            loss_value = step_gradients(model, loss, batch, budget=budget, scaler=scaler)
            scaler.unscale_(optimizer)
            grad_norm = clip_grad_norm_(weights, optim.max_grad_norm or math.inf)
            metrics.log(step + 1, loss_value, grad_norm, optimizer, num_pairs=len(batch.pairs))
            if optimizer_step(optimizer, scaler):
                schedule.step()
                average.update()
            optimizer.zero_grad(set_to_none=True)
            # =====================================================

            progress.step = step + 1
            stopping = distributed.any_process(stop.asked, device)
            if validation and _is_due(progress.step, config.validation.every, len(data)):
                with metrics.paused(), average.in_place():
                    _validate(model, validation, metric, output, tracker, progress)
            exhausted = progress.validations_since_best >= patience
            if stopping or exhausted or _is_due(progress.step, config.state.every, len(data)):
                with metrics.paused():
                    state.save(progress)
            if stopping and progress.step < len(data):
                log.info("stopped at step %d: re-run with output=%s to resume", step + 1, output)
                stop.end()
            if exhausted:
                log.info("no improvement in %d validations: stopped at step %d", patience, step + 1)
                break

    # ---- sum up
    if validation is None:
        with average.in_place():
            save_student(model, output / "checkpoint")
    log.info("student: %s", output / "checkpoint")
    comparison = None
    if judged:
        options = {name: config.model[name] for name in ("retokenise", "packed")}
        student = load(output / "checkpoint", **options)
        comparison = print_comparison(judged, student, metric, output)
    tracker.sum_up(
        progress,
        metric,
        trained_on={"queries": len(run), "digest": state.settings[LISTS]},
        comparison=comparison,
        measured_on="test" if test else "validation",
    )
    if distributed.is_first():
        write_card(output)
    return progress.best


def _log_start(
    config: DictConfig, model: CrossEncoder, data: TrainingData, progress: Progress
) -> None:
    if not model.has_head:
        log.info("%s: no scoring head; a new one is initialised", config.model.path)
    world_size = distributed.world_size()
    log.info(
        "%s on %s (%s): %d lists, %d steps%s",
        config.stage,
        f"{world_size} x {model.device.type}" if world_size > 1 else model.device.type,
        str(model.autocast_dtype).removeprefix("torch."),
        data.num_lists,
        len(data),
        f", from step {progress.step}" if progress.step else "",
    )


def _is_due(step: int, every: int | None, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)


def _validate(
    model: CrossEncoder,
    validation: JudgedRun,
    metric: str,
    output: Path,
    tracker: Tracker,
    progress: Progress,
) -> None:
    """Measure the student; save it and its validation run if it is the best so far."""
    reranked = validation.rerank(model)
    value = validation.measure(reranked, metric)
    tracker.log(progress.step, {f"validation/{metric}": value})
    if progress.note_validation(value):
        save_student(model, output / "checkpoint")
        if distributed.is_first():
            reranked.write(output / "validation.run", tag="student")
    log.info("step %d: validation %s %.4f (best %.4f)", progress.step, metric, value, progress.best)


def main() -> None:
    """Entry point of ``python -m rankdistillm.train``."""
    run_command(train, "train")


if __name__ == "__main__":
    main()
