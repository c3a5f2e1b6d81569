"""Attention inside each pair: torch's flash kernel on a GPU in half precision, else rectangles."""

import numpy as np
import pytest
import torch

from rankdistillm.encoder.attention import attend
from rankdistillm.encoder.segments import Segments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = [9, 9, 4, 1]
# One rectangle, several by length, and pairs too long to share one.
MANY_LENGTHS = [LENGTHS, [40, 33, 30, 12, 11, 5], [430, 400, 7]]


def segments_of(lengths):
    return Segments(np.array(lengths), DEVICE)


def reference(query, key, value, lengths, scaling, window=None):
    """Each pair alone, by autograd."""
    contexts = []
    pairs = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    for q, k, v in pairs:
        logits = torch.einsum("ihd,jhd->hij", q, k) * scaling
        if window is not None:
            indices = torch.arange(len(k), device=k.device)
            far = (indices[:, None] - indices).abs() > window
            logits = logits.masked_fill(far, -torch.inf)
        contexts.append(torch.einsum("hij,jhd->ihd", logits.softmax(-1), v))
    return torch.cat(contexts)


def random_row(lengths, dtype=torch.float64):
    return torch.randn(sum(lengths), 2, 8, dtype=dtype, device=DEVICE, requires_grad=True)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("lengths", MANY_LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_equal_those_of_each_pair_alone(dtype, lengths, window):
    torch.manual_seed(1)
    inputs = [random_row(lengths) for _ in range(3)]
    upstream = random_row(lengths).detach()
    expected = reference(*inputs, lengths, 0.3, window)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    low = [states.detach().to(dtype).requires_grad_() for states in inputs]
    context = attend(*low, segments_of(lengths), 0.3, 0.0, window)
    assert context.dtype == dtype
    gradients = torch.autograd.grad(context, low, upstream.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
    for value, wanted in zip((context, *gradients), (expected, *expected_gradients), strict=True):
        assert (value.double() - wanted).norm() < tolerance * wanted.norm()


def test_half_precision_does_not_round_what_all_keys_share():
    """Large scores that hardly differ: bf16 has steps of 0.25 at 50."""
    torch.manual_seed(4)
    query, key, value = (random_row(LENGTHS).detach() for _ in range(3))
    query, key = query * 0.1 + 5, key * 0.25
    query, key, value = (s.bfloat16().double() for s in (query, key + 5, value))
    expected = reference(query, key, value, LENGTHS, 0.5)
    context = attend(*(s.bfloat16() for s in (query, key, value)), segments_of(LENGTHS), 0.5)
    assert (context.double() - expected).norm() < 0.005 * expected.norm()


def test_dropout_follows_the_global_generator_and_keeps_the_mean():
    inputs = [random_row(LENGTHS, torch.float32).detach() for _ in range(3)]
    without = attend(*inputs, segments_of(LENGTHS), 0.5)
    drawn = []
    for seed in (1, 1, *range(2, 400)):
        torch.manual_seed(seed)
        drawn.append(attend(*inputs, segments_of(LENGTHS), 0.5, 0.2))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    torch.testing.assert_close(torch.stack(drawn).mean(0), without, atol=0.15, rtol=0)


def test_gradients_under_dropout_follow_the_weights_that_were_drawn():
    torch.manual_seed(3)
    lengths = [5, 5, 3, 1]  # as short as two rectangles can be: it tries each value
    inputs = tuple(random_row(lengths)[..., :4].detach().requires_grad_() for _ in range(3))

    def draw(*inputs):
        torch.manual_seed(5)
        return attend(*inputs, segments_of(lengths), 0.5, 0.3)

    assert torch.autograd.gradcheck(draw, inputs)
