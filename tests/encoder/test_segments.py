import numpy as np
import pytest
import torch

from rankdistillm.encoder import Segments, row_multiples
from rankdistillm.encoder.segments import LOW_MULTIPLE, ROWS

CPU = torch.device("cpu")
# Sorted as chunks are, unsorted, longer than a rectangle's bound, a single token.
LENGTHS = [
    [9, 9, 4, 1],
    -np.sort(-np.random.default_rng(1).integers(3, 90, 60)),
    np.random.default_rng(2).integers(3, 300, 40),
    [500, 400, 40, 3],
    [1],
]


def segments_of(lengths):
    return Segments(np.array(lengths), CPU)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_padding_and_unpadding_are_inverse(lengths):
    segments = segments_of(lengths)
    row = torch.arange(segments.num_tokens * 3).view(-1, 3)
    rectangle = segments.pad(row)
    assert rectangle.shape == (len(lengths), max(lengths), 3)
    assert torch.equal(segments.unpad(rectangle), row)
    assert torch.equal(rectangle[segments.mask], row)
    assert segments.mask.sum(1).tolist() == list(lengths)


def test_indices_of_a_small_row():
    segments = segments_of([3, 1, 2])
    assert segments.starts.tolist() == [0, 3, 4]
    assert segments.bounds.tolist() == [0, 3, 4, 6]
    assert segments.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert segments.pad_indices.tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    assert segments.bias.tolist() == [[0, 0, 0], [0, -np.inf, -np.inf], [0, 0, -np.inf]]


@pytest.mark.parametrize("name", ["by_length", "rectangles", "low_rectangles"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_rectangles_hold_all_pairs_in_order_with_little_padding(lengths, name):
    parts = getattr(segments_of(lengths), name)
    multiple = LOW_MULTIPLE if name == "low_rectangles" else ROWS
    assert np.concatenate([part.lengths for part in parts]).tolist() == list(lengths)
    for part in parts:
        assert part.width >= part.longest
        assert part.width % multiple == 0
        # Padding: a quarter of a pair's width, or what rounds its length up.
        alone = -(-part.lengths // multiple) * multiple
        assert (part.width <= np.maximum(part.lengths / 0.75, alone)).all()


@pytest.mark.parametrize("name", ["rectangles", "low_rectangles"])
def test_memory_for_attention_weights_does_not_grow_with_the_row(name):
    def most_weights(num_pairs):
        parts = getattr(segments_of([40] * num_pairs), name)
        return max(part.mask.numel() * part.width for part in parts)

    assert most_weights(10) < most_weights(1000) == most_weights(10_000)


def test_neighbours_of_similar_length_share_a_rectangle():
    lengths = [64, 60, 50, 20, 18, 17]
    assert len(segments_of(lengths).rectangles) < len(lengths)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_all_low_rectangles_lie_end_to_end_in_a_row_of_a_suitable_size(lengths):
    segments = segments_of(lengths)
    row = torch.randn(segments.num_tokens, 2)
    padded = row[segments.low_pad_indices]
    assert torch.equal(padded[segments.low_unpad_indices], row)
    multiple, _ = row_multiples(len(padded), CPU, torch.bfloat16)
    assert len(padded) % multiple == 0
    sizes = [part.mask.numel() for part in segments.low_rectangles]
    assert len(padded) - sum(sizes) < multiple
    tokens = row.split([part.num_tokens for part in segments.low_rectangles])
    slots = padded[: sum(sizes)].split(sizes)
    for part, expected, rectangle in zip(segments.low_rectangles, tokens, slots, strict=True):
        assert torch.equal(rectangle.unflatten(0, part.mask.shape)[part.mask], expected)


def test_rows_have_multiples_of_four_in_float32_on_a_cpu_and_any_size_on_a_gpu():
    # Whether scores depend on the number of threads otherwise is seen on some CPUs only.
    assert row_multiples(1000, CPU, torch.float32) == (ROWS, ROWS)
    assert row_multiples(1000, torch.device("cuda"), torch.bfloat16) == (1, 1)


def test_rows_of_a_cpu_have_few_sizes_in_half_precision():
    rounded = {
        -(-size // multiple) * multiple
        for size in range(1, 12_288)
        for multiple in row_multiples(size, CPU, torch.bfloat16)[:1]
    }
    assert len(rounded) <= 64  # the compiled products that training keeps
