"""Optimiser steps, parameter groups, schedules and averaged weights."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from rankdistillm.errors import InputError
from rankdistillm.training.optim import (
    WeightAverage,
    make_optimizer,
    make_scaler,
    make_schedule,
    optimizer_step,
)


@pytest.fixture
def layer():
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def test_weight_decay_applies_to_all_parameters_or_only_to_matrices(layer):
    (group,) = make_optimizer(layer, 1e-3, 0.1).param_groups
    assert (len(group["params"]), group["weight_decay"]) == (2, 0.1)
    weight, bias = make_optimizer(layer, 1e-3, 0.1, "matrices").param_groups
    assert weight["params"] == [layer.weight]
    assert weight["weight_decay"] == 0.1
    assert bias["params"] == [layer.bias]
    assert bias["weight_decay"] == 0


def test_the_head_may_have_its_own_learning_rate(layer):
    model = nn.ModuleDict({"network": nn.ModuleDict({"encoder": layer, "linear": nn.Linear(2, 1)})})
    encoder, head = make_optimizer(model, 1e-5, 0, head_learning_rate=1e-3).param_groups
    assert (encoder["lr"], head["lr"]) == (1e-5, 1e-3)
    assert head["params"] == list(model["network"]["linear"].parameters())


def test_errors_name_the_arguments(layer):
    optimizer = make_optimizer(layer, 1e-3, 0)
    with pytest.raises(InputError, match=r"^decay=some is not one of all, matrices"):
        make_optimizer(layer, 1e-3, 0, "some")
    with pytest.raises(InputError, match=r"^schedule=steps is not one of constant"):
        make_schedule(optimizer, "steps", 0, 10)
    with pytest.raises(InputError, match=r"^warmup=1 is not a share"):
        make_schedule(optimizer, "linear", 1, 10)
    for decay in (0, 1):
        with pytest.raises(InputError, match=f"^decay={decay} is neither None nor"):
            WeightAverage(layer, decay)


def test_an_overflow_skips_the_step_and_lowers_the_scale(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = layer.weight.detach().clone()
    scaler.scale(layer.weight.sum() * float("inf")).backward()
    scaler.unscale_(optimizer)
    assert not optimizer_step(optimizer, scaler)
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 4.0
    optimizer.zero_grad()
    scaler.scale(layer.weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert optimizer_step(optimizer, scaler)
    torch.testing.assert_close(layer.weight, before - 1.0)


def test_without_fp16_the_scaler_does_nothing(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scaler = make_scaler(torch.device("cpu"), is_fp16=False)
    before = layer.weight.detach().clone()
    scaler.scale(layer.weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert optimizer_step(optimizer, scaler)
    torch.testing.assert_close(layer.weight, before - 1.0)
    assert scaler.state_dict() == {}


def test_averaged_weights_are_only_in_place_inside_the_block(layer):
    average = WeightAverage(layer, 0.5)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update()  # with decay min(0.5, 2 / 11)
    with average.in_place():
        torch.testing.assert_close(layer.weight, start + 9 / 11)
    torch.testing.assert_close(layer.weight, start + 1)
