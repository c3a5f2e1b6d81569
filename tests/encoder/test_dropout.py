import pytest
import torch
from torch import nn

from rankdistillm.encoder.dropout import (
    Dropout,
    apply_keep_bits,
    draw_keep_bits,
    dropout_mask,
    use_fast_dropout,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_has_the_rate_and_the_scale(rate, dtype):
    torch.manual_seed(1)
    mask = dropout_mask(torch.empty(1000, 401, dtype=dtype), rate)
    assert mask.shape == (1000, 401)
    assert mask.dtype == dtype
    kept = mask != 0
    assert kept.double().mean().item() == pytest.approx(1 - rate, abs=0.003)
    scale = torch.tensor(1 / (1 - rate), dtype=dtype)
    assert torch.equal(mask[kept], scale.expand(int(kept.sum())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bits_and_mask_keep_the_same_elements(dtype):
    values = torch.randn(37, 11, dtype=dtype)
    torch.manual_seed(5)
    mask = dropout_mask(values, 0.4)
    torch.manual_seed(5)
    kept = apply_keep_bits(values, draw_keep_bits(values, 0.4))
    assert torch.equal(kept, torch.where(mask != 0, values, 0))


def test_the_four_elements_of_a_random_number_are_independent():
    torch.manual_seed(2)
    kept = (dropout_mask(torch.empty(100_000, 4), 0.3) != 0).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 0.015  # 1 / sqrt(100,000) is 0.003
    columns = kept.mean(0)
    torch.testing.assert_close(columns, torch.full_like(columns, 0.7), atol=0.006, rtol=0)


def test_a_mask_follows_the_global_generator():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout_mask(torch.empty(7, 3), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_rates_near_0_and_1_keep_and_drop_nearly_all():
    torch.manual_seed(3)
    assert (dropout_mask(torch.empty(100_000), 1e-5) == 0).sum() <= 10
    assert (dropout_mask(torch.empty(100_000), 1 - 1e-9) != 0).sum() <= 10


def test_the_gradient_is_the_mask_and_evaluation_drops_nothing():
    dropout = Dropout(0.2)
    states = torch.randn(50, 8, requires_grad=True)
    torch.manual_seed(4)
    dropped = dropout(states)
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    torch.testing.assert_close(dropped, states * gradient)
    assert 0 < (gradient == 0).sum() < gradient.numel() / 2
    assert torch.equal(dropout.eval()(states), states)
    assert torch.equal(Dropout(0.0)(states), states)
    assert not Dropout(1.0)(states).any()


def test_every_dropout_of_a_network_is_replaced():
    network = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))).eval()
    use_fast_dropout(network)
    modules = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p, module.training) for module in modules] == [
        (Dropout, 0.1, False),
        (Dropout, 0.3, False),
    ]
