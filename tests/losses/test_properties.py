"""Properties of every loss, with each choice of its settings."""

import inspect
import warnings
from functools import partial
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from rankdistillm.losses import LOSSES, consumed_by

# Settings that are tested together, beside each setting by itself.
COMBINED = {
    "adr_mse": [{"discount": None, "temperature": 0.1}],
    "lambda": [{"weighting": "lambdarank", "k": 2}, {"gain": "linear", "k": 3}],
    "neural_ndcg": [{"gain": "linear", "sinkhorn_iterations": 0}],
}
NUMBERS = {float: 2.0, int: 2}


def choices(hint):
    """Values of a type: all of a Literal, one number, None if it is optional."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif hint is NoneType:
        yield None
    elif hint in NUMBERS:
        yield NUMBERS[hint]
    else:
        for part in get_args(hint):
            yield from choices(part)


def variants(name):
    """The settings with which a loss is tested: defaults, each other choice, combinations."""
    yield {}
    hints = get_type_hints(LOSSES[name])
    for setting, parameter in inspect.signature(LOSSES[name]).parameters.items():
        if setting not in ("scores", "targets", "mask", "reduction", "temperature"):
            for choice in choices(hints[setting]):
                if choice != parameter.default:
                    yield {setting: choice}
    yield from COMBINED.get(name, [])


def says(function, words):
    """Whether the docstring says so. The tests hold each loss to its documentation."""
    return words in " ".join(function.__doc__.split())


VARIANTS = [
    pytest.param(
        partial(function, **settings),
        id="-".join([name, *(f"{key}={value}" for key, value in settings.items())]),
    )
    for name, function in LOSSES.items()
    for settings in variants(name)
]
every_loss = pytest.mark.parametrize("loss", VARIANTS)
every_name = pytest.mark.parametrize("name", LOSSES)
KINDS = ("ranked", "graded", "binary", "real")
every_kind = pytest.mark.parametrize("kind", KINDS)

# Losses that fit each passage by itself, and losses that learn from equal targets.
POINTWISE = {
    loss
    for loss in LOSSES.values()
    if says(loss, "A list of one passage, or of equal targets, still counts")
}
FITS_TIES = POINTWISE | {
    loss for loss in LOSSES.values() if says(loss, "A list of equal targets still counts")
}

LISTS, SIZE = 6, 8


def make_targets(kind, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if kind == "ranked":
        return shape[-1] - noise.argsort(-1).argsort(-1).double()
    if kind == "graded":
        return (noise * 2).round().clamp(-1, 3)
    if kind == "binary":
        return (noise > 0.3).double()
    return noise * 3


def make_scores(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*shape, generator=generator, dtype=torch.float64) * 2
    return scores.requires_grad_()


def make_mask():
    """Lists of 8, 6, 4, 2, 1 and 0 passages, at random indices."""
    order = torch.rand(LISTS, SIZE, generator=torch.Generator().manual_seed(2)).argsort(-1)
    return order < torch.tensor([8, 6, 4, 2, 1, 0])[:, None]


def gradient_of(value, scores):
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    return gradient


def assert_zero_in_the_graph(value, scores):
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    gradient = gradient_of(value, scores)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@every_kind
@every_loss
def test_masking_equals_slicing(loss, kind):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets(kind, LISTS, SIZE), make_mask()
    masked = loss(scores, targets, mask=mask, reduction="none")
    gradient = gradient_of(masked, scores)
    for i in range(LISTS):
        part = scores.detach()[i][mask[i]].requires_grad_()
        sliced = loss(part, targets[i][mask[i]])
        torch.testing.assert_close(masked[i], sliced)
        torch.testing.assert_close(gradient[i][mask[i]], gradient_of(sliced, part))
    assert (gradient[~mask] == 0).all()


@every_kind
@every_loss
def test_a_batch_equals_the_mean_of_its_lists(loss, kind):
    """Lists with one passage or none count too."""
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets(kind, LISTS, SIZE), make_mask()
    batch = loss(scores, targets, mask=mask)
    singles = [loss(scores[i], targets[i], mask=mask[i]) for i in range(LISTS)]
    mean = torch.stack(singles).mean()
    torch.testing.assert_close(batch, mean)
    torch.testing.assert_close(gradient_of(batch, scores), gradient_of(mean, scores))


@every_loss
def test_reductions_agree(loss):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets("real", LISTS, SIZE), make_mask()
    values = loss(scores, targets, mask=mask, reduction="none")
    assert values.shape == (LISTS,)
    assert values[0] != 0
    torch.testing.assert_close(loss(scores, targets, mask=mask, reduction="sum"), values.sum())
    torch.testing.assert_close(loss(scores, targets, mask=mask, reduction="mean"), values.mean())
    torch.testing.assert_close(loss(scores, targets, mask=mask), values.mean())


@every_loss
def test_leading_dimensions_are_lists(loss):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets("real", LISTS, SIZE), make_mask()
    flat = loss(scores, targets, mask=mask, reduction="none")
    shape = (2, 1, 3, SIZE)
    deep = loss(
        scores.reshape(shape), targets.reshape(shape), mask=mask.reshape(shape), reduction="none"
    )
    assert deep.shape == (2, 1, 3)
    torch.testing.assert_close(deep.flatten(), flat)
    one = loss(scores[0], targets[0], reduction="none")
    assert one.shape == ()
    torch.testing.assert_close(one, flat[0])


@every_kind
@every_loss
def test_order_of_the_passages_does_not_matter(loss, kind):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets(kind, LISTS, SIZE), make_mask()
    # Ties between scores must not be broken by the order of the input either.
    tied = scores.detach().round().requires_grad_()
    flat = torch.zeros_like(scores).requires_grad_()
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))
    for student in (scores, tied, flat):
        value = loss(student, targets, mask=mask, reduction="none")
        moved = student.detach()[:, order].requires_grad_()
        moved_value = loss(moved, targets[:, order], mask=mask[:, order], reduction="none")
        torch.testing.assert_close(moved_value, value)
        torch.testing.assert_close(
            gradient_of(moved_value, moved), gradient_of(value, student)[:, order]
        )


@every_kind
@every_loss
def test_the_gradient_equals_the_numerical_derivative(loss, kind):
    targets = make_targets(kind, 3, 5, seed=4)
    mask = torch.arange(5) < torch.tensor([[5], [4], [2]])
    assert torch.autograd.gradcheck(
        lambda scores: loss(scores, targets, mask=mask, reduction="none"), make_scores(3, 5)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_loss
def test_half_precision_scores_give_a_float32_loss(loss, dtype):
    low = make_scores(LISTS, SIZE).detach().to(dtype).requires_grad_()
    targets, mask = make_targets("graded", LISTS, SIZE).to(dtype), make_mask()
    value = loss(low, targets, mask=mask)
    assert value.dtype == torch.float32
    fp32 = low.detach().float().requires_grad_()
    expected = loss(fp32, targets.float(), mask=mask)
    # Equal to the bit, because no arithmetic is in half precision.
    assert value == expected
    gradient = gradient_of(value, low)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, gradient_of(expected, fp32).to(dtype))


@every_loss
def test_float64_scores_give_a_float64_loss(loss):
    value = loss(make_scores(LISTS, SIZE), make_targets("graded", LISTS, SIZE).float())
    assert value.dtype == torch.float64


@every_loss
def test_autocast_changes_nothing(loss):
    scores = make_scores(LISTS, SIZE).detach().float()
    targets, mask = make_targets("graded", LISTS, SIZE), make_mask()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(scores, targets, mask=mask)
    assert inside.dtype == torch.float32
    assert inside == loss(scores, targets, mask=mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
@every_loss
def test_targets_may_have_any_dtype(loss, dtype):
    scores = make_scores(LISTS, SIZE).detach().float()
    targets = make_targets("binary", LISTS, SIZE)
    assert loss(scores, targets.to(dtype)) == loss(scores, targets.float())


@every_loss
def test_no_gradient_flows_to_the_targets(loss):
    scores = make_scores(LISTS, SIZE)
    targets = make_targets("real", LISTS, SIZE).requires_grad_()
    loss(scores, targets).backward()
    assert targets.grad is None
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 1e30])
@every_loss
def test_values_at_masked_positions_are_ignored(loss, junk):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets("real", LISTS, SIZE), make_mask()
    clean = loss(scores, targets, mask=mask, reduction="none")
    dirty_scores = scores.detach().masked_fill(~mask, junk).requires_grad_()
    dirty = loss(dirty_scores, targets.masked_fill(~mask, junk), mask=mask, reduction="none")
    assert (dirty == clean).all()
    gradient = gradient_of(dirty, dirty_scores)
    assert (gradient == gradient_of(clean, scores)).all()
    assert (gradient[~mask] == 0).all()


@every_loss
def test_a_nan_target_makes_the_loss_of_its_list_nan_and_of_no_other(loss):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets("real", LISTS, SIZE), make_mask()
    clean = loss(scores, targets, mask=mask, reduction="none")
    for j in range(SIZE):
        unknown = targets.clone()
        unknown[:, j] = torch.nan
        value = loss(scores, unknown, mask=mask, reduction="none")
        assert value.isnan().tolist() == mask[:, j].tolist()
        assert (value == clean)[~mask[:, j]].all()
        assert loss(scores, unknown, mask=mask).isnan()
        assert gradient_of(value, scores)[~mask[:, j]].isfinite().all()


@every_loss
def test_a_list_without_passages_costs_zero_and_stays_in_the_graph(loss):
    scores = make_scores(3, SIZE)
    mask = torch.zeros(3, SIZE, dtype=torch.bool)
    for reduction in ("mean", "sum", "none"):
        value = loss(scores, make_targets("real", 3, SIZE), mask=mask, reduction=reduction)
        assert_zero_in_the_graph(value, scores)
    empty = make_scores(3, 0)
    value = loss(empty, torch.zeros(3, 0), reduction="none")
    assert value.shape == (3,)
    assert_zero_in_the_graph(value, empty)


@every_loss
def test_no_lists_at_all_cost_zero(loss):
    scores = make_scores(0, SIZE)
    value = loss(scores, torch.zeros(0, SIZE))
    assert value.item() == 0
    assert gradient_of(value, scores).shape == (0, SIZE)


@every_kind
@every_loss
def test_one_passage_costs_zero_unless_it_is_fitted_by_itself(loss, kind):
    scores, targets = make_scores(4, 1), make_targets(kind, 4, 1, seed=5)
    value = loss(scores, targets, reduction="none")
    if loss.func in POINTWISE:
        assert (value > 0).all()
        assert gradient_of(value, scores).isfinite().all()
    else:
        assert_zero_in_the_graph(value, scores)


@pytest.mark.parametrize("tie", [-1.0, 0.0, 0.1, 1.0, 3.0])
@every_loss
def test_equal_targets_cost_zero_unless_they_are_learnt(loss, tie):
    scores = make_scores(LISTS, SIZE)
    value = loss(scores, torch.full((LISTS, SIZE), tie), mask=make_mask(), reduction="none")
    if loss.func in FITS_TIES:
        assert value.isfinite().all()
        assert (value[:4] > 0).all()
        assert gradient_of(value, scores).isfinite().all()
    else:
        assert_zero_in_the_graph(value, scores)


def hard_lists(dtype):
    """Scores that overflow an exponential or tie, in lists of several lengths."""
    extreme = torch.tensor([1e4, -1e4, 1e4, 0.0, -1e4, 1e-4, 1e4, 3.0], dtype=dtype)
    noise = make_scores(SIZE).detach().to(dtype)
    rows = torch.stack(
        [extreme, -extreme, noise * 1e4, extreme.abs(), torch.zeros(SIZE, dtype=dtype), noise]
    )
    shapes = torch.tensor([8, 5, 3, 2, 1, 0])[:, None] > torch.arange(SIZE)
    scores = rows.repeat_interleave(len(shapes), 0).requires_grad_()
    return scores, shapes.repeat(len(rows), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [*KINDS, "extreme"])
@every_loss
def test_loss_and_gradient_are_finite(loss, kind, dtype):
    scores, mask = hard_lists(dtype)
    if kind == "extreme":
        targets = make_targets("real", *scores.shape) * 1e4
    else:
        targets = make_targets(kind, *scores.shape)
    # Anomaly detection also finds a NaN that a later step of the backward pass hides.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():
            value = loss(scores, targets, mask=mask, reduction="none")
            gradient = gradient_of(value, scores)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@every_name
def test_a_pair_that_is_far_off_has_a_gradient_unless_the_loss_is_bounded(name):
    """RankNet's cost of such a pair is its distance, not the -log(eps) of a clamped sigmoid."""
    loss, targets = LOSSES[name], torch.tensor([1.0, 0.0])
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = loss(scores, targets)
    assert value > 0.1
    if says(loss, "Bounded:"):
        torch.testing.assert_close(loss(scores * 2, targets), value)
    else:
        gradient = gradient_of(value, scores)
        assert gradient[0] < 0 < gradient[1]


@every_loss
def test_an_offset_of_the_scores_matters_to_pointwise_losses_alone(loss):
    # With multiples of 1/64, the offset costs no precision, even in float32.
    scores = (make_scores(LISTS, SIZE).detach() * 64).round().float() / 64
    targets, mask = make_targets("graded", LISTS, SIZE), make_mask()
    value = loss(scores, targets, mask=mask, reduction="none")
    moved = loss(scores + 2**14, targets, mask=mask, reduction="none")
    if loss.func in POINTWISE:
        assert (moved[:4] != value[:4]).all()
    else:
        torch.testing.assert_close(moved, value, rtol=1e-4, atol=1e-5)


def has_temperature(variant):
    (loss,) = variant.values
    return "temperature" in inspect.signature(loss.func).parameters


@every_name
def test_a_loss_without_a_temperature_says_why(name):
    has_none = "temperature" not in inspect.signature(LOSSES[name]).parameters
    assert has_none == says(LOSSES[name], "No temperature: ")


@pytest.mark.parametrize("loss", [variant for variant in VARIANTS if has_temperature(variant)])
def test_temperature_divides_the_scores(loss):
    scores, targets, mask = make_scores(LISTS, SIZE), make_targets("real", LISTS, SIZE), make_mask()
    cold = loss(scores, targets, mask=mask, temperature=0.25)
    torch.testing.assert_close(cold, loss(scores * 4, targets, mask=mask, temperature=1.0))
    assert cold != loss(scores, targets, mask=mask, temperature=1.0)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            loss(scores, targets, temperature=wrong)


@every_name
def test_minimising_a_loss_ranks_the_best_passage_first(name):
    """A loss with a wrong sign, or inverted targets, fails here."""
    targets = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    scores = torch.tensor([[0.3, -0.3, 0.1, 0.0]], requires_grad=True)
    if LOSSES[name](scores, targets) == LOSSES[name](scores, targets.clamp(max=1)):
        targets = (targets == 3).float()  # the loss ignores grades
    optimizer = torch.optim.Adam([scores], lr=0.1)
    first = None
    for _ in range(100):
        optimizer.zero_grad()
        value = LOSSES[name](scores, targets)
        first = value.item() if first is None else first
        value.backward()
        optimizer.step()
    assert value < first
    assert scores.argmax() == 1
    if targets.max() == 3:
        assert scores.argsort(descending=True).tolist() == [[1, 3, 2, 0]]


@every_loss
def test_the_error_for_wrong_input_names_it(loss):
    scores, targets = torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and targets \(3,\)"):
        loss(scores, targets[0])
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and mask \(2, 1\)"):
        loss(scores, targets, mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be boolean .* got torch.int64"):
        loss(scores, targets, mask=torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scores must be \[\.\.\., list_size\]"):
        loss(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'avg'"):
        loss(scores, targets, reduction="avg")


@every_name
def test_losses_share_one_signature(name):
    parameters = inspect.signature(LOSSES[name]).parameters
    assert list(parameters)[:3] == ["scores", "targets", "mask"]
    assert parameters["mask"].default is None
    assert parameters["reduction"].default == "mean"
    keywords = [p for p in parameters.values() if p.name not in ("scores", "targets")]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in keywords)


@every_name
def test_a_loss_consumes_what_it_declares(name):
    """Losses of the order see nothing but the order; the others see more."""
    scores, targets = make_scores(LISTS, SIZE), make_targets("graded", LISTS, SIZE)
    value, stretched = (LOSSES[name](scores, t) for t in (targets, targets.exp() - 4))
    sees_order_only = consumed_by(LOSSES[name]) == {"order"}
    if sees_order_only and not says(LOSSES[name], "depends on their spacing"):
        torch.testing.assert_close(value, stretched)
    else:
        assert value != stretched
