import numpy as np
import pytest
import torch
from torch.amp import GradScaler

from rankdistillm.errors import InputError
from rankdistillm.losses import WeightedSum, adr_mse_loss, info_nce_loss, ranknet_loss
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.training.gradients import TokenBudget, accumulate_gradients, step_gradients
from tests.helpers import compute_gradients, load_for_training, relative_distance, training_data


@pytest.fixture
def batch():
    return training_data(sizes=(6, 3, 6, 2, 6), per_step=5, epochs=1, list_size=6).batch(0)


@pytest.mark.parametrize("loss", [ranknet_loss, adr_mse_loss])
@pytest.mark.parametrize("budget", [1, 25, 60, 120])
def test_any_split_gives_the_gradient_of_the_whole_step(loss, budget, batch, tiny_bert):
    model = load_for_training(tiny_bert).double()
    value, exact, _ = compute_gradients(model, loss, batch, 10**6)
    split_value, found, _ = compute_gradients(model, loss, batch, budget)
    assert relative_distance(found, exact) < 1e-13
    torch.testing.assert_close(split_value, value, rtol=1e-6, atol=1e-7)
    # In float32, two summation orders differ as much from each other as from the exact gradient.
    model = load_for_training(tiny_bert)
    _, unsplit, _ = compute_gradients(model, loss, batch, 10**6)
    _, split, _ = compute_gradients(model, loss, batch, budget)
    assert relative_distance(split, unsplit) < 1.5e-6
    assert relative_distance(split, exact) < 2 * relative_distance(unsplit, exact)


@pytest.mark.parametrize("budget", [1, 25, 60, 120])
def test_any_split_gives_the_gradient_of_a_mixture(budget, tiny_bert):
    qrels = {"q0": {"d0_1": 1, "d0_3": 0}, "q2": {"d2_0": 1, "d2_5": 0}}
    batch = training_data(
        (6, 3, 6, 2, 6), qrels, per_step=5, epochs=1, list_size=6, targets=("rank", "judged")
    ).batch(0)
    loss = WeightedSum([ranknet_loss, info_nce_loss], [1.0, 0.5], targets=["rank", "judged"])
    model = load_for_training(tiny_bert).double()
    value, exact, _ = compute_gradients(model, loss, batch, 10**6)
    split_value, found, _ = compute_gradients(model, loss, batch, budget)
    assert relative_distance(found, exact) < 1e-13
    torch.testing.assert_close(split_value, value, rtol=1e-6, atol=1e-7)


def test_the_whole_step_is_the_mean_over_lists(batch, tiny_bert):
    model = load_for_training(tiny_bert)
    value, _, _ = compute_gradients(model, ranknet_loss, batch, 10**6)
    scores = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, model(batch.pairs))
    assert value == pytest.approx(ranknet_loss(scores, batch.targets, mask=batch.mask).item())


def test_gradient_caching_draws_the_same_dropout_twice(tiny_bert):
    one_list = training_data(sizes=(6,), per_step=1, epochs=1, list_size=6).batch(0)
    model = load_for_training(tiny_bert, dropout=0.3)
    cached_value, found, cached_state = compute_gradients(model, ranknet_loss, one_list, 24)
    # The same chunks in one graph, which draws the same random numbers once.
    model.zero_grad()
    torch.manual_seed(11)
    chunks = model.plan_chunks(one_list.pairs.lengths, 24)
    assert len(chunks) > 1
    scores = torch.cat([model(one_list.pairs.select(chunk)) for chunk in chunks])
    in_order = scores[np.argsort(np.concatenate(chunks))]
    value = ranknet_loss(in_order.unsqueeze(0), one_list.targets, mask=one_list.mask)
    value.backward()
    torch.testing.assert_close(cached_value, value.detach())
    assert torch.equal(cached_state, torch.get_rng_state())
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)
    _, without, _ = compute_gradients(load_for_training(tiny_bert), ranknet_loss, one_list, 24)
    assert any(not torch.allclose(without[n], expected[n], rtol=1e-2) for n in expected)


@pytest.mark.parametrize("budget", [25, 10**6])
def test_the_scaler_multiplies_the_gradients(budget, batch, tiny_bert):
    model = load_for_training(tiny_bert)
    value, plain, _ = compute_gradients(model, ranknet_loss, batch, budget)
    scaled_value, scaled, _ = compute_gradients(
        model, ranknet_loss, batch, budget, GradScaler("cpu", init_scale=8.0)
    )
    assert torch.equal(value, scaled_value)
    for name in plain:
        torch.testing.assert_close(scaled[name], 8 * plain[name], rtol=1e-4, atol=1e-6)


def test_a_list_without_a_loss_still_counts_in_the_mean(tiny_bert):
    qrels = {"q0": {"d0_1": 1}, "q1": {"d1_5": 1}}  # d1_5 is below the top 4
    options = {"sampling": "top", "targets": "relevance"}
    data = training_data(sizes=(4, 6), qrels=qrels, per_step=2, epochs=1, **options)
    batch = data.batch(0)
    model = load_for_training(tiny_bert)
    value, _, _ = compute_gradients(model, info_nce_loss, batch, 10**6)
    useful = batch.query_ids.index("q0")
    scores = model(batch.pairs).view(2, 4)[useful]
    assert float(value) == pytest.approx(info_nce_loss(scores, batch.targets[useful]).item() / 2)


def test_out_of_memory_halves_the_budget_and_changes_nothing_else(
    batch, tiny_bert, monkeypatch, caplog
):
    model = load_for_training(tiny_bert, dropout=0.3)
    scaler = GradScaler("cpu", enabled=False)
    expected_value, expected, _ = compute_gradients(model, ranknet_loss, batch, 60)

    def forward(self, pairs):
        if pairs.lengths.sum() > 80:  # simulated: 80 tokens fill the device
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, pairs)

    original = CrossEncoder.forward
    monkeypatch.setattr(CrossEncoder, "forward", forward)
    model.zero_grad()
    torch.manual_seed(11)
    budget = TokenBudget(240)
    value = step_gradients(model, ranknet_loss, batch, budget=budget, scaler=scaler)
    assert budget.tokens == 60
    assert "token_budget=60" in caplog.text
    assert torch.equal(value, expected_value)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_a_halved_budget_is_saved_with_the_state():
    budget = TokenBudget(240)
    resumed = TokenBudget(480)
    resumed.load_state_dict(budget.state_dict())
    assert resumed.tokens == 480
    budget.halve(longest_pair=10)
    resumed.load_state_dict(budget.state_dict())
    assert resumed.tokens == 120
    again = TokenBudget(480)
    again.load_state_dict(resumed.state_dict())
    assert again.tokens == 120


def test_a_pair_too_large_for_the_device_is_an_error(batch, tiny_bert, monkeypatch):
    def forward(self, pairs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CrossEncoder, "forward", forward)
    scaler = GradScaler("cpu", enabled=False)
    with pytest.raises(InputError, match="does not fit into the device's memory"):
        step_gradients(
            load_for_training(tiny_bert),
            ranknet_loss,
            batch,
            budget=TokenBudget(240),
            scaler=scaler,
        )


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_shares_of_all_processes_add_up_to_the_step(world_size, batch, tiny_bert):
    model = load_for_training(tiny_bert)
    shares = [batch.share(rank, world_size) for rank in range(world_size)]
    assert sorted(i for share in shares for i in share) == list(range(len(batch)))
    value, expected, _ = compute_gradients(model, ranknet_loss, batch, 10**6)
    model.zero_grad()
    scaler = GradScaler("cpu", enabled=False)
    parts = [
        accumulate_gradients(
            model, ranknet_loss, batch, token_budget=10**6, scaler=scaler, lists=share
        )
        for share in shares
    ]
    torch.testing.assert_close(sum(parts), value)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)
