from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rankdistillm.encoder import attention
from rankdistillm.encoder.attention import attend, use_packed_attention
from rankdistillm.encoder.segments import Segments

CPU = torch.device("cpu")
LENGTHS = [9, 9, 4, 1]
# One rectangle, several by length, and pairs too long to share one.
MANY_LENGTHS = [LENGTHS, [40, 33, 30, 12, 11, 5], [430, 400, 7]]


def segments_of(lengths):
    return Segments(np.array(lengths), CPU)


def reference(query, key, value, lengths, scaling, window=None):
    """Each pair alone, by autograd."""
    contexts = []
    pairs = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    for q, k, v in pairs:
        logits = torch.einsum("ihd,jhd->hij", q, k) * scaling
        if window is not None:
            indices = torch.arange(len(k))
            far = (indices[:, None] - indices).abs() > window
            logits = logits.masked_fill(far, -torch.inf)
        contexts.append(torch.einsum("hij,jhd->ihd", logits.softmax(-1), v))
    return torch.cat(contexts)


def random_row(lengths, dtype=torch.float64):
    return torch.randn(sum(lengths), 2, 4, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("lengths", MANY_LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_equal_those_of_each_pair_alone(dtype, lengths, window):
    torch.manual_seed(1)
    inputs = [random_row(lengths) for _ in range(3)]
    upstream = torch.randn(sum(lengths), 2, 4, dtype=torch.float64)
    expected = reference(*inputs, lengths, 0.3, window)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    low = [states.detach().to(dtype).requires_grad_() for states in inputs]
    context = attend(*low, segments_of(lengths), 0.3, 0.0, window)
    assert context.dtype == dtype
    gradients = torch.autograd.grad(context, low, upstream.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
    for value, wanted in zip((context, *gradients), (expected, *expected_gradients), strict=True):
        assert (value.double() - wanted).norm() < tolerance * wanted.norm()


def varlen_attn_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    """Stands in for torch 2.10's kernel."""
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    """Stands in for torch 2.13's kernel."""
    for bounds, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k)):
        assert bounds.dtype == torch.int32
        assert bounds.diff().tolist() == LENGTHS
        assert longest == max(LENGTHS)
    assert all(states.is_contiguous() for states in (query, key, value))
    left, right = window_size
    assert left == right
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference(query, key, value, LENGTHS, scale, None if left == -1 else left)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kernel", [varlen_attn_210, varlen_attn])
def test_flash_attention_gets_the_arguments_of_its_version(kernel, window, monkeypatch):
    torch.manual_seed(6)
    inputs = [random_row(LENGTHS) for _ in range(3)]
    calls = []

    @wraps(kernel)  # with its signature
    def counted(*arguments, **options):
        calls.append(arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    attention._flash_parameters.cache_clear()
    try:
        context = attend(*inputs, segments_of(LENGTHS), 0.3, 0.0, window)
    finally:
        attention._flash_parameters.cache_clear()
    torch.testing.assert_close(context, reference(*inputs, LENGTHS, 0.3, window))
    # torch 2.10's kernel has no window, so such layers use rectangles.
    assert bool(calls) == (kernel is varlen_attn or window is None)


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
    inputs = tuple(random_row(LENGTHS) for _ in range(3))

    def draw(*inputs):
        torch.manual_seed(5)
        return attend(*inputs, segments_of(LENGTHS), 0.5, 0.3)

    assert torch.autograd.gradcheck(draw, inputs)


def test_an_encoder_that_keeps_another_attention_is_not_packed():
    class Encoder:  # as ModernBERT's in transformers 5.0 to 5.6
        config = SimpleNamespace(model_type="modernbert", _attn_implementation="eager")

        def set_attn_implementation(self, name):
            pass

    assert not use_packed_attention(Encoder())
