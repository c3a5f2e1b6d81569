from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rankdistillm import packed_attention as module
from rankdistillm import segments as segments_module
from rankdistillm.packed_attention import attend, use_packed_attention
from rankdistillm.segments import Segments

CPU = torch.device("cpu")
LENGTHS = np.array([9, 9, 4, 1])
SEGMENTS = Segments(LENGTHS, CPU)


def reference(query, key, value, scaling, window=None):
    """Each pair alone, by autograd."""
    contexts = []
    pieces = zip(
        query.split(LENGTHS.tolist()),
        key.split(LENGTHS.tolist()),
        value.split(LENGTHS.tolist()),
        strict=True,
    )
    for q, k, v in pieces:
        logits = torch.einsum("ihd,jhd->hij", q, k) * scaling
        if window is not None:
            places = torch.arange(len(k))
            far = (places[:, None] - places).abs() > window
            logits = logits.masked_fill(far, -torch.inf)
        contexts.append(torch.einsum("hij,jhd->ihd", logits.softmax(-1), v))
    return torch.cat(contexts)


def rows(tokens, dtype=torch.float64):
    return torch.randn(tokens, 2, 4, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_each_pair_alone(dtype, multiple, window, monkeypatch):
    monkeypatch.setattr(segments_module, "MULTIPLE", multiple)
    torch.manual_seed(1)
    inputs = [rows(LENGTHS.sum()) for _ in range(3)]
    upstream = torch.randn(LENGTHS.sum(), 2, 4, dtype=torch.float64)
    expected = reference(*inputs, 0.3, window)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    narrow = [states.detach().to(dtype).requires_grad_() for states in inputs]
    found = attend(*narrow, Segments(LENGTHS, CPU), 0.3, 0.0, window)
    assert found.dtype == dtype
    gradients = torch.autograd.grad(found, narrow, upstream.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
    for value, wanted in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert (value.double() - wanted).norm() < tolerance * wanted.norm()


def kernel_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    """What stands in for torch's kernel, as of torch 2.10."""
    return kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def kernel(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    """The same, as of torch 2.13."""
    for bounds, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k)):
        assert bounds.dtype == torch.int32
        assert bounds.diff().tolist() == LENGTHS.tolist()
        assert longest == LENGTHS.max()
    assert all(states.is_contiguous() for states in (query, key, value))
    left, right = window_size
    assert left == right
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference(query, key, value, scale, None if left == -1 else left)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("stand_in", [kernel_210, kernel])
def test_the_kernel_of_a_gpu_is_given_what_it_takes(stand_in, window, monkeypatch):
    torch.manual_seed(6)
    inputs = [rows(LENGTHS.sum()) for _ in range(3)]
    expected = reference(*inputs, 0.3, window)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr(module, "_has_flash", lambda _: True)
    module._flash_parameters.cache_clear()
    called = []
    monkeypatch.setattr(module, "_in_rectangle", lambda *_: called.append(1) or inputs[0])
    found = attend(*inputs, SEGMENTS, 0.3, 0.0, window)
    module._flash_parameters.cache_clear()
    # torch 2.10's has no window: such layers take rectangles.
    assert bool(called) == (stand_in is kernel_210 and window is not None)
    if not called:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("multiple", "products", "expected"),
    [
        (1, 40, [[9], [4, 3], [4], [2], [3, 3, 3], [1, 1]]),
        (4, 40, [[9], [4, 3], [4, 2], [3, 3], [3, 1], [1]]),
        (4, 10**6, [[9], [4, 3, 4, 2, 3, 3, 3, 1, 1]]),
        (16, 10**6, [[9, 4, 3, 4, 2, 3, 3, 3, 1, 1]]),
    ],
)
def test_rectangles_hold_all_pairs_in_turn_with_little_padding_and_few_products(
    multiple, products, expected, monkeypatch
):
    monkeypatch.setattr(segments_module, "PRODUCTS", products)
    for name in ("ROWS", "MULTIPLE"):
        monkeypatch.setattr(segments_module, name, multiple)
    segments = Segments(np.array([9, 4, 3, 4, 2, 3, 3, 3, 1, 1]), CPU)
    for parts in (segments.rectangles, segments.aligned):
        assert [part.lengths.tolist() for part in parts] == expected
        for part in parts:
            assert part.width % multiple == 0
            assert part.longest <= part.width < part.longest + multiple


@pytest.mark.parametrize(("num_pairs", "multiple"), [(1, 64), (7, 64), (60, 256)])
def test_a_row_of_all_aligned_rectangles_has_one_of_few_sizes(num_pairs, multiple):
    lengths = np.random.default_rng(num_pairs).integers(20, 90, num_pairs)
    segments = Segments(-np.sort(-lengths), CPU)
    row = rows(segments.num_tokens)
    padded = row[segments.aligned_places]
    assert len(padded) % multiple == 0
    torch.testing.assert_close(padded[segments.aligned_real], row, rtol=0, atol=0)
    sizes = [part.mask.numel() for part in segments.aligned]
    assert len(padded) - sum(sizes) < multiple
    tokens = row.split([part.num_tokens for part in segments.aligned])
    rectangles = padded[: sum(sizes)].split(sizes)
    for part, own, rectangle in zip(segments.aligned, tokens, rectangles, strict=True):
        found = rectangle.unflatten(0, part.mask.shape)[part.mask]
        torch.testing.assert_close(found, own, rtol=0, atol=0)


@pytest.mark.parametrize("window", [None, 2])
def test_the_size_of_the_rectangles_does_not_matter(window, monkeypatch):
    torch.manual_seed(2)
    inputs = [rows(LENGTHS.sum()) for _ in range(3)]
    monkeypatch.setattr(segments_module, "FULL", 0.0)
    whole = attend(*inputs, Segments(LENGTHS, CPU), 0.5, 0.0, window)
    monkeypatch.setattr(segments_module, "PRODUCTS", 1)
    alone = attend(*inputs, Segments(LENGTHS, CPU), 0.5, 0.0, window)
    torch.testing.assert_close(alone, whole)
    for gradient, wanted in zip(
        torch.autograd.grad(alone.square().sum(), inputs),
        torch.autograd.grad(whole.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted)


def test_what_all_keys_share_is_not_rounded_in_half_precision():
    """Large scores that hardly differ: bf16 has steps of 0.25 at 50."""
    torch.manual_seed(4)
    query, key, value = (rows(LENGTHS.sum()).detach() for _ in range(3))
    query, key = query * 0.1 + 5, key * 0.25
    query, key, value = (s.bfloat16().double() for s in (query, key + 5, value))
    expected = reference(query, key, value, 0.5)
    found = attend(*(s.bfloat16() for s in (query, key, value)), SEGMENTS, 0.5)
    assert (found.double() - expected).norm() < 0.005 * expected.norm()


def test_dropout_is_that_of_the_global_generator_and_keeps_the_mean():
    inputs = [rows(LENGTHS.sum(), torch.float32).detach() for _ in range(3)]
    without = attend(*inputs, SEGMENTS, 0.5)
    drawn = []
    for seed in (1, 1, *range(2, 400)):
        torch.manual_seed(seed)
        drawn.append(attend(*inputs, SEGMENTS, 0.5, 0.2))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    torch.testing.assert_close(torch.stack(drawn).mean(0), without, atol=0.15, rtol=0)


def test_gradients_under_dropout_are_those_of_the_drawn_weights():
    torch.manual_seed(3)
    inputs = tuple(rows(LENGTHS.sum()) for _ in range(3))

    def drawn(*inputs):
        torch.manual_seed(5)
        return attend(*inputs, SEGMENTS, 0.5, 0.3)

    assert torch.autograd.gradcheck(drawn, inputs)


def test_padding_and_unpadding_are_inverse():
    row = torch.arange(int(LENGTHS.sum()) * 3).view(-1, 3)
    rectangle = SEGMENTS.pad(row)
    assert rectangle.shape == (4, 9, 3)
    assert torch.equal(SEGMENTS.unpad(rectangle), row)
    assert SEGMENTS.mask.sum(1).tolist() == LENGTHS.tolist()
    assert SEGMENTS.positions.tolist() == [*range(9), *range(9), *range(4), 0]


def test_an_encoder_that_keeps_another_attention_is_none_to_pack():
    class Encoder:  # as ModernBERT's in transformers 5.0 to 5.6
        config = SimpleNamespace(model_type="modernbert", _attn_implementation="eager")

        def set_attn_implementation(self, name):
            pass

    assert not use_packed_attention(Encoder())
