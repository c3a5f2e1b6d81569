"""metrics.jsonl and the metrics of each step."""

import json
import math
import resource
import time

import pytest
import torch
from omegaconf import OmegaConf

from rankdistillm.encoder import row_multiples
from rankdistillm.errors import InputError
from rankdistillm.losses import ranknet_loss
from rankdistillm.model.heads import FILLER
from rankdistillm.progress import progress_bar
from rankdistillm.training.tracking import MAX_OVERFLOWS, PaddingCount, StepMetrics, Tracker
from tests.helpers import PAIRS, compute_gradients, load_for_training, pack, training_data

CONFIG = OmegaConf.create({"wandb": {"mode": "disabled"}, "tensorboard": False})


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_infinity_is_null_in_the_metrics(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.log(1, {"loss": 0.5, "grad_norm": math.inf})
    tracker.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "grad_norm": None}]


def test_a_training_from_step_0_names_the_metrics_that_it_replaces(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    for times in range(2):
        tracker = Tracker(tmp_path, CONFIG)
        tracker.log(1, {"loss": 0.5 + times})
        tracker.close()
        assert len(caplog.messages) == times
    assert f"{file}: replacing the metrics of an earlier training" in caplog.text
    assert file.read_text() == '{"step": 1, "loss": 1.5}\n'


def test_a_resumed_training_drops_later_lines_and_a_partial_one(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    for step in range(1, 5):
        tracker.log(step, {"loss": 0.5})
    tracker.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    Tracker(tmp_path, CONFIG, step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.fixture
def log_step(tiny_bert, tmp_path):
    """``log_step(step, loss, grad_norm, is_fp16=…)``; the metrics of one training."""
    tracker = Tracker(tmp_path, CONFIG)
    model = load_for_training(tiny_bert)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.25)
    metrics = {
        is_fp16: StepMetrics(tracker, progress_bar(shown=False), model, is_fp16=is_fp16)
        for is_fp16 in (True, False)
    }

    def log(step, loss=0.5, grad_norm=2.0, *, is_fp16=False, pause=0.0):
        with metrics[is_fp16].paused():
            time.sleep(pause)
        metrics[is_fp16].log(
            step, torch.tensor(loss), torch.tensor(grad_norm), optimizer, num_pairs=100
        )

    yield log
    tracker.close()


def test_a_step_logs_loss_learning_rate_gradient_norm_throughput_and_memory(log_step, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    log_step(1)
    (line,) = lines(tmp_path)
    assert line.pop("pairs_per_second") > 0
    assert line.pop("memory_mib") == pytest.approx(before / 2**20, rel=0.2)
    assert line == {
        "step": 1, "loss": 0.5, "learning_rate": 0.25, "grad_norm": 2.0, "padding": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta"])
def test_padding_is_the_share_of_positions_without_a_token(architecture, packed, tiny_models):
    model = load_for_training(tiny_models(architecture), packed=packed)
    count = PaddingCount(model)
    pairs = pack(model, PAIRS)
    positions = len(pairs) * int(pairs.lengths.max())
    if packed and architecture != "deberta":  # which has no packed path
        multiples = row_multiples(len(pairs.tokens), model.device, torch.float32)
        longest = min(FILLER, int(pairs.lengths.max()))
        positions = len(pairs.filled(*multiples, longest).tokens)
    model.eval()(pairs)  # a validation
    model.train()(pairs)
    assert count.take() == pytest.approx(1 - len(pairs.tokens) / positions, abs=1e-6)
    assert count.take() == 0


@pytest.mark.parametrize("budget", [40, 120, 10_000])  # part of a list, a list, all lists
def test_padding_counts_every_forward_pass_of_a_step(budget, tiny_bert):
    model = load_for_training(tiny_bert, packed=False)
    count = PaddingCount(model)
    batch = training_data((3, 9), list_size=9).batch(0)
    compute_gradients(model, ranknet_loss, batch, budget)
    tokens = positions = 0
    for group in batch.micro_batches(budget, count_tokens=model.count_tokens):
        lengths = batch.pairs.select(batch.rows_of(group)).lengths
        chunks = model.plan_chunks(lengths, budget)
        times = 1 if len(chunks) == 1 else 2  # gradient caching
        for chunk in chunks:
            tokens += times * lengths[chunk].sum()
            positions += times * len(chunk) * lengths[chunk].max()
    assert count.take() == pytest.approx(1 - tokens / positions, abs=1e-6)


def test_a_pause_does_not_count_for_throughput(log_step, tmp_path):
    log_step(1)
    log_step(2, pause=1.0)  # with the pause: at most 100 pairs per second
    assert lines(tmp_path)[-1]["pairs_per_second"] > 200


@pytest.mark.parametrize(
    ("loss", "grad_norm", "is_fp16"),
    [(math.nan, 1.0, False), (math.inf, 1.0, True), (0.5, math.nan, False), (0.5, math.inf, False)],
)
def test_a_diverged_training_is_an_error(loss, grad_norm, is_fp16, log_step, tmp_path):
    log_step(1, is_fp16=is_fp16)
    with pytest.raises(InputError, match=r"^step 2: .* training diverged; lower the learning rate"):
        log_step(2, loss, grad_norm, is_fp16=is_fp16)
    assert len(lines(tmp_path)) == 1


def test_fp16_gradients_may_overflow_but_not_in_50_steps_in_a_row(log_step):
    step = 0
    for _ in range(2):
        for _ in range(MAX_OVERFLOWS - 1):
            log_step(step := step + 1, grad_norm=math.inf, is_fp16=True)
        log_step(step := step + 1, is_fp16=True)
    for step in range(101, 150):
        log_step(step, grad_norm=math.inf, is_fp16=True)
    with pytest.raises(InputError, match=r"^step 150: no finite gradient in 50 steps; train in"):
        log_step(150, grad_norm=math.inf, is_fp16=True)
