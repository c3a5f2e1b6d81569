"""Tests that need a GPU: half precision, the attention kernels, asynchrony."""

import json

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from rankdistillm.encoder.attention import PACKED_MODELS
from rankdistillm.encoder.cuda import CudaLayer
from rankdistillm.losses import ranknet_loss
from rankdistillm.model.reranker import Reranker
from rankdistillm.training import gradients as gradients_module
from rankdistillm.training.gradients import TokenBudget, step_gradients
from rankdistillm.training.optim import make_optimizer, make_scaler, optimizer_step
from tests.helpers import (
    PAIRS,
    SIZES,
    compute_gradients,
    load_for_training,
    pack,
    relative_distance,
    training_data,
)

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def batch():
    return training_data(sizes=(6, 3, 6, 2, 6), per_step=5, epochs=1, list_size=6).batch(0)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.02)]
)
@pytest.mark.parametrize("architecture", [*PACKED_MODELS, "deberta"])
def test_scores_and_gradients_equal_those_of_a_cpu(
    architecture, precision, tolerance, batch, tiny_models
):
    path = tiny_models(architecture)
    on_cpu = load_for_training(path)
    on_gpu = load_for_training(path, device=DEVICE, precision=precision)
    pairs = pack(on_cpu, PAIRS)
    with torch.no_grad():
        scores, expected = on_gpu.eval()(pairs).cpu(), on_cpu.eval()(pairs)
    assert scores.dtype == torch.float32
    assert (scores - expected).square().mean().sqrt() < tolerance * expected.std()
    if architecture in ("bert", "electra"):  # the batch is made with their tokeniser
        _, gradient, _ = compute_gradients(on_gpu.train(), ranknet_loss, batch, 10**6)
        _, exact, _ = compute_gradients(on_cpu.train(), ranknet_loss, batch, 10**6)
        assert relative_distance({n: g.cpu() for n, g in gradient.items()}, exact) < 4 * tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_half_precision_uses_the_layers_for_gpus(precision, batch, tiny_bert, calls_of):
    model = load_for_training(tiny_bert, device=DEVICE, precision=precision)
    calls = calls_of(CudaLayer)
    for work in (
        lambda: compute_gradients(model, ranknet_loss, batch, 10**6),
        lambda: Reranker(model).score("tides", ["The tide.", "Bread."]),
    ):
        calls.clear()
        work()
        assert len(calls) == (0 if precision == "fp32" else SIZES["num_hidden_layers"] - 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_caching_draws_the_same_dropout_twice(precision, tiny_bert):
    one_list = training_data(sizes=(12,), per_step=1, epochs=1, list_size=12).batch(0)
    model = load_for_training(tiny_bert, dropout=0.3, device=DEVICE, precision=precision)
    cached_value, found, _ = compute_gradients(model, ranknet_loss, one_list, 64)
    model.zero_grad()
    torch.manual_seed(11)
    chunks = model.plan_chunks(one_list.pairs.lengths, 64)
    assert len(chunks) > 1
    scores = torch.cat([model(one_list.pairs.select(chunk)) for chunk in chunks])
    in_order = scores[np.argsort(np.concatenate(chunks))].cpu().unsqueeze(0)
    value = ranknet_loss(in_order, one_list.targets, mask=one_list.mask)
    value.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert float(cached_value) == pytest.approx(float(value), rel=1e-4)
    assert relative_distance(found, expected) < 1e-2
    _, without, _ = compute_gradients(
        load_for_training(tiny_bert, device=DEVICE), ranknet_loss, one_list, 64
    )
    assert relative_distance(without, expected) > 0.1


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # a prototype of torch
def test_a_step_does_not_wait_for_the_device(batch, tiny_bert):
    model = load_for_training(tiny_bert, dropout=0.1, device=DEVICE, precision="bf16")
    optimizer = make_optimizer(model, 1e-4, 0.01)
    scaler = make_scaler(model.device, is_fp16=False)

    def step():
        budget = TokenBudget(10**6)
        step_gradients(model, ranknet_loss, batch, budget=budget, scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    step()  # the first one may wait: it allocates and compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_overflow_in_fp16_skips_the_step(batch, tiny_bert):
    model = load_for_training(tiny_bert, device=DEVICE, precision="fp16")
    optimizer = make_optimizer(model, 1e-2, 0.01)
    scaler = make_scaler(model.device, is_fp16=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def infinite(scores, targets, **options):
        return ranknet_loss(scores, targets, **options) * float("inf")

    step_gradients(model, infinite, batch, budget=TokenBudget(10**6), scaler=scaler)
    scaler.unscale_(optimizer)
    assert not optimizer_step(optimizer, scaler)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_step_that_does_not_fit_is_repeated_with_half_the_budget(batch, tiny_bert, monkeypatch):
    model = load_for_training(tiny_bert, dropout=0.3, device=DEVICE)
    _, expected, _ = compute_gradients(model, ranknet_loss, batch, 100)
    accumulate = gradients_module.accumulate_gradients

    def cramped(*given, token_budget, **options):
        value = accumulate(*given, token_budget=token_budget, **options)
        if token_budget > 100:
            torch.empty(2**50, device=DEVICE)  # exceeds any memory
        return value

    monkeypatch.setattr(gradients_module, "accumulate_gradients", cramped)
    model.zero_grad()
    torch.manual_seed(11)
    scaler, budget = GradScaler(DEVICE, enabled=False), TokenBudget(400)
    step_gradients(model, ranknet_loss, batch, budget=budget, scaler=scaler)
    assert budget.tokens == 100
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert relative_distance(found, expected) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_interrupted_training_resumes(precision, command, tiny_bert, tmp_path):
    options = ["+stage=distill", f"model.path={tiny_bert}", f"device={DEVICE}", "model.dropout=0"]
    options += [f"precision={precision}", "data.test.run=null", "data.validation.run=null"]
    options += ["optim.schedule=constant", "optim.warmup=0", "optim.learning_rate=1e-2"]
    options += ["loss=mse", "data.train.transform=reciprocal_rank"]
    assert command("train", *options, "max_steps=6", "output=whole").status == 0
    for steps in (3, 6):
        assert command("train", *options, f"max_steps={steps}", "output=cut").status == 0
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    losses, expected = (
        [line["loss"] for line in lines if "loss" in line] for lines in (cut, whole)
    )
    assert len(losses) == 6
    assert losses == pytest.approx(expected, rel=1e-2)
    # The loss changes so much that resuming without the saved weights would show.
    assert abs(expected[-1] - expected[0]) > 0.1
    student = Reranker.from_pretrained(tmp_path / "cut/checkpoint", device=DEVICE)
    assert len(student.rank("tides", ["The tide.", "Bread."])) == 2
