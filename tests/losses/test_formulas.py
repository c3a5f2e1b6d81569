"""Each loss against its formula: by hand, and by independent implementations."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from rankdistillm.losses import (
    adr_mse_loss,
    approx_mrr_loss,
    approx_ndcg_loss,
    bce_loss,
    hinge_loss,
    info_nce_loss,
    kl_loss,
    lambda_loss,
    listmle_loss,
    listnet_loss,
    margin_mse_loss,
    mse_loss,
    neural_ndcg_loss,
    p_listmle_loss,
    pearson_loss,
    ranknet_loss,
    weighted_ranknet_loss,
)
from rankdistillm.losses.lists import average_ranks
from rankdistillm.losses.neural import neural_sort

E, LOG, LOG2 = math.e, math.log, math.log2
SIZE = 7


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def logistic(margin):
    return LOG(1 + E**-margin)


def sigmoid(x):
    return 1 / (1 + E**-x)


# Scores that rank the best of three passages first and the other two in the wrong order.
SCORES, RANKED, GRADED, BINARY = double(2, 0, 1), double(3, 2, 1), double(2, 0, 1), double(0, 0, 1)
# Their approximate ranks.
A1, A2, A3 = (
    1 + sigmoid(-2) + sigmoid(-1),
    1 + sigmoid(2) + sigmoid(1),
    1 + sigmoid(1) + sigmoid(-1),
)

GOLDEN = [
    (ranknet_loss, RANKED, {}, (logistic(2) + logistic(1) + logistic(-1)) / 3),
    (
        ranknet_loss,
        RANKED,
        {"temperature": 0.5},
        (logistic(4) + logistic(2) + logistic(-2)) / 3,
    ),
    (ranknet_loss, double(1, 0, 0), {}, (logistic(2) + logistic(1)) / 2),
    (
        weighted_ranknet_loss,
        RANKED,
        {},
        (logistic(2) / (1 + 2) + logistic(1) / (1 + 3) + logistic(-1) / (2 + 3)) / 3,
    ),
    (
        weighted_ranknet_loss,
        RANKED,
        {"weighting": "reciprocal_difference"},
        (logistic(2) * (1 - 1 / 2) + logistic(1) * (1 - 1 / 3) + logistic(-1) * (1 / 2 - 1 / 3))
        / 3,
    ),
    # The second and the third share rank 2.5.
    (weighted_ranknet_loss, double(1, 0, 0), {}, (logistic(2) + logistic(1)) / 3.5 / 2),
    (hinge_loss, RANKED, {}, (0 + 0 + (1 + 1)) / 3),
    (hinge_loss, RANKED, {"margin": 1.5}, (0 + (1.5 - 1) + (1.5 + 1)) / 3),
    (
        margin_mse_loss,
        double(5, 1, -2),
        {},
        ((2 - (5 - 1)) ** 2 + (1 - (5 + 2)) ** 2 + (-1 - (1 + 2)) ** 2) / 3,
    ),
    (margin_mse_loss, RANKED, {"margin": 3.0}, ((2 - 3) ** 2 + (1 - 3) ** 2 + (-1 - 3) ** 2) / 3),
    (margin_mse_loss, RANKED, {"margin": 3}, ((2 - 3) ** 2 + (1 - 3) ** 2 + (-1 - 3) ** 2) / 3),
    (info_nce_loss, BINARY, {}, -LOG(E**1 / (E**1 + E**2 + E**0))),
    (info_nce_loss, BINARY, {"temperature": 2.0}, -LOG(E**0.5 / (E**0.5 + E**1 + E**0))),
    # Two relevant passages do not compete with one another.
    (
        info_nce_loss,
        double(3, 0, 1),
        {},
        (-LOG(E**2 / (E**2 + E**0)) - LOG(E**1 / (E**1 + E**0))) / 2,
    ),
    (
        listmle_loss,
        RANKED,
        {},
        (-LOG(E**2 / (E**2 + E**0 + E**1)) - LOG(E**0 / (E**0 + E**1)) - LOG(1)) / 3,
    ),
    # Tied passages do not compete, and the worst ones have no competitors.
    (
        listmle_loss,
        double(1, 1, 0),
        {},
        (-LOG(E**2 / (E**2 + E**1)) - LOG(E**0 / (E**0 + E**1))) / 3,
    ),
    (
        p_listmle_loss,
        RANKED,
        {},
        (
            (2 ** (3 - 1) - 1) * -LOG(E**2 / (E**2 + E**0 + E**1))
            + (2 ** (3 - 2) - 1) * -LOG(E**0 / (E**0 + E**1))
        )
        / ((2 ** (3 - 1) - 1) + (2 ** (3 - 2) - 1)),
    ),
    (
        adr_mse_loss,
        RANKED,
        {},
        ((A1 - 1) ** 2 / LOG2(2) + (A2 - 2) ** 2 / LOG2(3) + (A3 - 3) ** 2 / LOG2(4)) / 3,
    ),
    (
        adr_mse_loss,
        RANKED,
        {"discount": "reciprocal"},
        ((A1 - 1) ** 2 + (A2 - 2) ** 2 / 2 + (A3 - 3) ** 2 / 3) / 3,
    ),
    (
        adr_mse_loss,
        double(1, 0, 0),
        {"discount": None},
        ((A1 - 1) ** 2 + (A2 - 2.5) ** 2 + (A3 - 2.5) ** 2) / 3,
    ),
    (
        approx_ndcg_loss,
        GRADED,
        {},
        1 - (3 / LOG2(1 + A1) + 1 / LOG2(1 + A3)) / (3 / LOG2(2) + 1 / LOG2(3)),
    ),
    (
        approx_ndcg_loss,
        GRADED,
        {"gain": "linear"},
        1 - (2 / LOG2(1 + A1) + 1 / LOG2(1 + A3)) / (2 / LOG2(2) + 1 / LOG2(3)),
    ),
    # A negative target counts as zero.
    (
        approx_ndcg_loss,
        double(2, -2, 1),
        {},
        1 - (3 / LOG2(1 + A1) + 1 / LOG2(1 + A3)) / (3 / LOG2(2) + 1 / LOG2(3)),
    ),
    (approx_mrr_loss, BINARY, {}, 1 - 1 / A3),
    (approx_mrr_loss, double(0, 2, 1), {}, 1 - 1 / min(A2, A3)),
    (mse_loss, double(5, 1, -2), {}, ((2 - 5) ** 2 + (0 - 1) ** 2 + (1 + 2) ** 2) / 3),
    (
        bce_loss,
        double(1, 0, 0.25),
        {},
        -(LOG(sigmoid(2)) + LOG(sigmoid(0)) + 0.25 * LOG(sigmoid(1)) + 0.75 * LOG(sigmoid(-1))) / 3,
    ),
    # Any grade from 1 up is relevant, any below 0 is not.
    (bce_loss, double(3, -2, 0), {}, -(LOG(sigmoid(2)) + LOG(sigmoid(0)) + LOG(sigmoid(-1))) / 3),
]


def golden_id(case):
    loss, targets, settings, _ = case
    return "-".join([loss.__name__, str(targets.tolist()), *map(str, settings.values())])


@pytest.mark.parametrize("case", GOLDEN, ids=golden_id)
def test_a_loss_equals_its_formula(case):
    loss, targets, settings, expected = case
    assert loss(SCORES, targets, **settings).item() == pytest.approx(expected, abs=1e-12)


def random_list(seed, kind="graded"):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=SIZE) * 2
    targets = {
        "graded": generator.integers(0, 4, size=SIZE).astype(float),
        "real": generator.normal(size=SIZE) * 3,
        "ranked": SIZE - generator.permutation(SIZE).astype(float),
    }[kind]
    if kind == "graded":
        targets[:2] = 0, 3
    return torch.from_numpy(scores), torch.from_numpy(targets)


def test_ranknet_is_exact_for_large_margins():
    """torch's softplus is linear from 20 on."""
    for margin in (-30.0, -20.5, 20.5, 30.0):
        expected = max(-margin, 0) + math.log1p(math.exp(-abs(margin)))
        ours = ranknet_loss(double(margin, 0), double(1, 0)).item()
        assert ours == pytest.approx(expected, rel=1e-14, abs=1e-20)


@pytest.mark.parametrize(
    "loss", [info_nce_loss, approx_mrr_loss, partial(lambda_loss, weighting="mrr")]
)
def test_any_target_above_zero_is_relevant(loss):
    expected = loss(SCORES, double(0, 1, 1))
    assert expected > 0
    assert loss(SCORES, double(-0.1, 0.1, 3)) == expected


SEEDS = pytest.mark.parametrize("seed", range(5))


@SEEDS
def test_ranknet_equals_the_binary_cross_entropy_of_the_pairs(seed):
    scores, targets = random_list(seed)
    pairs = [(i, j) for i in range(SIZE) for j in range(SIZE) if targets[i] > targets[j]]
    margins = torch.stack([scores[i] - scores[j] for i, j in pairs])
    expected = F.binary_cross_entropy_with_logits(margins, torch.ones_like(margins))
    torch.testing.assert_close(ranknet_loss(scores, targets), expected)


@SEEDS
def test_hinge_equals_torchs_margin_ranking_loss(seed):
    scores, targets = random_list(seed)
    better, worse = torch.nonzero(targets[:, None] > targets[None, :], as_tuple=True)
    ones = torch.ones(len(better), dtype=torch.float64)
    expected = F.margin_ranking_loss(scores[better], scores[worse], ones, margin=0.7)
    torch.testing.assert_close(hinge_loss(scores, targets, margin=0.7), expected)


@SEEDS
@pytest.mark.parametrize(("temperature", "target_temperature"), [(1.0, 1.0), (0.5, 3.0)])
def test_kl_equals_scipys_relative_entropy(seed, temperature, target_temperature):
    scores, targets = random_list(seed, "real")
    p = scipy.special.softmax(targets.numpy() / target_temperature)
    q = scipy.special.softmax(scores.numpy() / temperature)
    ours = kl_loss(scores, targets, temperature=temperature, target_temperature=target_temperature)
    assert ours.item() == pytest.approx(scipy.stats.entropy(p, q), abs=1e-12)


def test_kl_teaches_that_all_passages_are_equal():
    assert kl_loss(double(1, 1, 1), double(5, 5, 5)).item() == pytest.approx(0, abs=1e-12)
    assert kl_loss(double(2, 0, 0), double(5, 5, 5)) > 0.1


@SEEDS
@pytest.mark.parametrize(("temperature", "target_temperature"), [(1.0, 1.0), (0.5, 3.0)])
def test_listnet_equals_torchs_cross_entropy(seed, temperature, target_temperature):
    scores, targets = random_list(seed, "ranked")
    expected = F.cross_entropy(scores / temperature, (targets / target_temperature).softmax(-1))
    ours = listnet_loss(
        scores, targets, temperature=temperature, target_temperature=target_temperature
    )
    torch.testing.assert_close(ours, expected)


@SEEDS
def test_listnet_has_the_gradient_of_kl_and_ignores_the_offset_of_ranks(seed):
    scores, targets = random_list(seed, "ranked")
    scores.requires_grad_()
    (ours,) = torch.autograd.grad(listnet_loss(scores, targets), scores)
    (shifted,) = torch.autograd.grad(listnet_loss(scores, targets - SIZE - 1), scores)
    (kl,) = torch.autograd.grad(kl_loss(scores, targets), scores)
    torch.testing.assert_close(ours, kl)
    torch.testing.assert_close(ours, shifted)


def test_three_ranks_hold_most_of_listnets_top_one_probability():
    """The docstring says 95 %."""
    assert (100 - torch.arange(100.0)).softmax(-1)[:3].sum() == pytest.approx(1 - E**-3, abs=1e-6)
    assert round(1 - E**-3, 2) == 0.95


@SEEDS
def test_pearson_equals_scipys(seed):
    scores, targets = random_list(seed, "real")
    expected = 1 - scipy.stats.pearsonr(scores.numpy(), targets.numpy()).statistic
    assert pearson_loss(scores, targets).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", range(2, 30))
def test_pearson_of_equal_scores_is_one_and_points_to_the_targets(size):
    """The mean of equal numbers has a rounding error, which must not enter the correlation."""
    scores = torch.full((size,), 0.1, requires_grad=True)
    loss = pearson_loss(scores, -torch.arange(size))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(1, abs=1e-6)
    assert -1 < gradient[0] < 0 < gradient[-1] < 1


@SEEDS
def test_listmle_is_a_distribution_over_rankings(seed):
    """exp(-loss) is a probability, so over all rankings of the passages it sums to one."""
    scores, _ = random_list(seed)
    scores = scores[:4]
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64)
    losses = listmle_loss(scores.expand(len(orders), -1), orders, reduction="none")
    # Turn the mean over four passages back into the sum.
    assert (-4 * losses).exp().sum().item() == pytest.approx(1, abs=1e-12)


@SEEDS
def test_p_listmle_equals_a_loop_over_the_ranks(seed):
    scores, targets = random_list(seed, "ranked")
    order = targets.argsort(descending=True)
    total = weights = 0.0
    for rank, passage in enumerate(order, start=1):
        chance = scores[order[rank - 1 :]].softmax(-1)[0]
        assert order[rank - 1] == passage
        weight = 2 ** (SIZE - rank) - 1
        total, weights = total - weight * chance.log().item(), weights + weight
    assert p_listmle_loss(scores, targets).item() == pytest.approx(total / weights, abs=1e-12)


def test_p_listmle_of_a_long_list_is_finite_and_halves_the_weight_at_each_rank():
    scores = torch.zeros(500, requires_grad=True)
    loss = p_listmle_loss(scores, 500 - torch.arange(500))
    expected = sum(2.0 ** -(r + 1) * LOG(500 - r) for r in range(500))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # If the whole upper half is tied, its average rank must not underflow the weights to zero.
    tied = p_listmle_loss(scores, torch.arange(500) < 250)
    assert tied.item() == pytest.approx(LOG(1 + 250), rel=1e-5)


@SEEDS
def test_average_ranks_equal_scipys(seed):
    _, targets = random_list(seed)
    expected = torch.from_numpy(scipy.stats.rankdata(-targets.numpy(), method="average"))
    torch.testing.assert_close(average_ranks(targets, torch.ones(SIZE, dtype=torch.bool)), expected)


def dcg(gains, k=None):
    return sum(g / LOG2(1 + rank) for rank, g in enumerate(list(gains)[:k], start=1))


def exact_ndcg(scores, targets, gain="exp"):
    gains = 2**targets - 1 if gain == "exp" else targets
    in_order = gains[scores.argsort(descending=True)]
    return float(dcg(in_order) / dcg(gains.sort(descending=True).values))


@SEEDS
@pytest.mark.parametrize("gain", ["exp", "linear"])
@pytest.mark.parametrize("loss", [approx_ndcg_loss, neural_ndcg_loss])
def test_ndcg_losses_are_exact_at_a_low_temperature(loss, gain, seed):
    scores, targets = random_list(seed)
    expected = 1 - exact_ndcg(scores, targets, gain)
    ours = loss(scores, targets, gain=gain, temperature=1e-4)
    assert ours.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", [approx_ndcg_loss, neural_ndcg_loss, lambda_loss])
def test_the_exponential_gain_of_a_huge_target_is_finite(loss):
    """2^1000 overflows, but only the ratios of gains count."""
    scores = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    huge = loss(scores, torch.tensor([1001, 1000, 998]))
    (gradient,) = torch.autograd.grad(huge, scores)
    assert huge.item() == pytest.approx(loss(scores, torch.tensor([101, 100, 98])).item())
    assert gradient.isfinite().all()


@SEEDS
def test_approx_mrr_is_exact_at_a_low_temperature(seed):
    scores, targets = random_list(seed)
    relevant = (targets > 2)[scores.argsort(descending=True)]
    expected = 1 - 1 / (1 + relevant.tolist().index(True))
    ours = approx_mrr_loss(scores, targets > 2, temperature=1e-4)
    assert ours.item() == pytest.approx(expected, abs=1e-9)


@SEEDS
def test_neural_sort_is_doubly_stochastic_on_real_passages_alone(seed):
    scores, _ = random_list(seed)
    mask = torch.tensor([True, False, True, True, False, True, True])
    matrix = neural_sort(scores, mask, 1000)
    torch.testing.assert_close(matrix.sum(-2), mask.double(), rtol=0, atol=1e-6)
    rows = torch.arange(SIZE) < 5
    torch.testing.assert_close(matrix.sum(-1), rows.double(), rtol=0, atol=1e-6)
    unscaled = neural_sort(scores, mask, 0)
    assert (unscaled.sum(-2) - mask.double()).abs().max() > 1e-3


@SEEDS
def test_neural_sort_equals_its_definition(seed):
    """Grover et al., eq. 5, row by row."""
    scores, _ = random_list(seed)
    ours = neural_sort(scores, torch.ones(SIZE, dtype=torch.bool), 0)
    distances = (scores[:, None] - scores[None, :]).abs().sum(-1)
    for i in range(1, SIZE + 1):
        expected = torch.softmax((SIZE + 1 - 2 * i) * scores - distances, -1)
        torch.testing.assert_close(ours[i - 1], expected)


def brute_force_lambda(scores, targets, weighting, k=None, mu=10.0):
    """LambdaLoss pair by pair, evaluating the metric before and after each swap."""
    scores, targets = scores.tolist(), targets.tolist()
    order = sorted(range(SIZE), key=lambda i: -scores[i])
    rank = {passage: r for r, passage in enumerate(order, start=1)}
    gains = [2**t - 1 for t in targets]
    best = dcg(sorted(gains, reverse=True), k)

    def ndcg(ranking):
        return dcg([gains[i] for i in ranking]) / best

    def reciprocal_rank(ranking):
        return 1 / (1 + [targets[i] > 0 for i in ranking].index(True))

    def change(metric, i, j):
        swapped = [j if p == i else i if p == j else p for p in order]
        return abs(metric(order) - metric(swapped))

    def delta(i, j):
        distance = abs(rank[i] - rank[j])
        lift = 1 / LOG2(1 + distance) - 1 / LOG2(2 + distance)
        return lift * abs(gains[i] - gains[j]) / best

    weight = {
        "ndcg1": lambda i, j: gains[i] / best / LOG2(1 + rank[i]),
        "ndcg2": delta,
        "lambdarank": lambda i, j: change(ndcg, i, j),
        "ndcg2++": lambda i, j: change(ndcg, i, j) + mu * delta(i, j),
        "mrr": lambda i, j: change(reciprocal_rank, i, j),
        None: lambda i, j: 1.0,
    }[weighting]
    belongs = {
        "ndcg1": lambda i, j: i != j,
        "mrr": lambda i, j: targets[i] > 0 >= targets[j],
    }.get(weighting, lambda i, j: targets[i] > targets[j])
    costs = [
        weight(i, j) * logistic(scores[i] - scores[j])
        for i in range(SIZE)
        for j in range(SIZE)
        if belongs(i, j) and min(rank[i], rank[j]) <= (k or SIZE)
    ]
    return sum(costs) / len(costs)


@SEEDS
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("weighting", ["ndcg1", "ndcg2", "ndcg2++", "lambdarank", "mrr", None])
def test_lambda_weights_equal_changes_of_the_metric(weighting, k, seed):
    scores, targets = random_list(seed)
    if weighting == "mrr":
        targets = targets - 1
    ours = lambda_loss(scores, targets, weighting=weighting, k=k)
    expected = brute_force_lambda(scores, targets, weighting, k)
    assert ours.item() == pytest.approx(expected, abs=1e-12)


def test_lambda_without_weights_equals_ranknet():
    scores, targets = random_list(0)
    ours = lambda_loss(scores, targets, weighting=None, temperature=0.3)
    torch.testing.assert_close(ours, ranknet_loss(scores, targets, temperature=0.3))


def test_every_setting_of_lambda_changes_its_value():
    scores, targets = random_list(0)
    base = lambda_loss(scores, targets)
    for settings in ({"mu": 1.0}, {"gain": "linear"}, {"k": 2}, {"temperature": 2.0}):
        assert lambda_loss(scores, targets, **settings) != base


def test_lambda_ranks_tied_scores_the_worst_target_first():
    """The relevant passage is at rank 4; the other three share ranks 1 to 3, i.e. 2."""
    ours = lambda_loss(double(0, 0, 0, 0), double(0, 1, 0, 0), weighting="mrr")
    assert ours.item() == pytest.approx((1 / 2 - 1 / 4) * LOG(2), abs=1e-12)


@pytest.mark.parametrize("weighting", ["ndcg1", "ndcg2", "ndcg2++", "lambdarank", "mrr"])
def test_lambda_treats_negative_targets_as_zero(weighting):
    ours = lambda_loss(SCORES, double(2, -2, -1), weighting=weighting)
    assert ours == lambda_loss(SCORES, double(2, 0, 0), weighting=weighting) > 0


@pytest.mark.parametrize("weighting", ["ndcg1", "ndcg2", "ndcg2++", "lambdarank", "mrr"])
def test_lambda_separates_tied_scores(weighting):
    """A student whose scores are all equal must still learn which passage is better."""
    scores = torch.zeros(4, requires_grad=True)
    loss = lambda_loss(scores, torch.tensor([0, 1, 0, 0]), weighting=weighting)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[1] < 0
    assert all(gradient[[0, 2, 3]] > 0)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (adr_mse_loss, {"discount": "log10"}, "discount must be 'log2', 'reciprocal' or None"),
        (approx_ndcg_loss, {"gain": "square"}, "gain must be 'exp' or 'linear', got 'square'"),
        (neural_ndcg_loss, {"gain": None}, "gain must be 'exp' or 'linear'"),
        (lambda_loss, {"gain": "square"}, "gain must be 'exp' or 'linear'"),
        (lambda_loss, {"weighting": "ndcg3"}, "weighting must be one of .* got 'ndcg3'"),
        (lambda_loss, {"k": 0}, "k must be 1 or more"),
        (margin_mse_loss, {"margin": "scores"}, "margin must be 'targets' or a number"),
        (weighted_ranknet_loss, {"weighting": "diff"}, "weighting must be 'inverse_sum' or"),
        (kl_loss, {"target_temperature": 0}, "target_temperature must be positive"),
        (listnet_loss, {"target_temperature": -1.0}, "target_temperature must be positive"),
    ],
)
def test_the_error_for_an_unknown_setting_names_it(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        loss(SCORES, GRADED, **settings)
