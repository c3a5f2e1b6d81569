import numpy as np
import pytest
import torch

from rankdistillm.encoder import Segments, row_multiples
from rankdistillm.encoder.segments import LOW_MULTIPLE, MAX_WEIGHTS, MIN_FILL, ROWS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
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
        assert part.width % multiple == 0
        assert part.longest <= part.width < part.longest + multiple
        alone = -(-part.lengths // multiple) * multiple
        assert ((part.lengths >= MIN_FILL * part.width) | (alone == part.width)).all()
        if name != "by_length":
            assert len(part.lengths) == 1 or part.mask.numel() * part.width <= MAX_WEIGHTS


def test_neighbours_of_similar_length_share_a_rectangle():
    parts = segments_of([64, 60, 50, 20, 18, 17]).rectangles
    assert [part.lengths.tolist() for part in parts] == [[64, 60, 50], [20, 18, 17]]


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


def test_row_sizes_matter_on_a_cpu_only_and_are_few_in_half_precision():
    assert row_multiples(1000, CUDA, torch.bfloat16) == (1, 1)
    assert row_multiples(1000, CPU, torch.float32) == (ROWS, ROWS)
    rounded = {
        -(-size // multiple) * multiple
        for size in range(1, 12_288)
        for multiple in row_multiples(size, CPU, torch.bfloat16)[:1]
    }
    assert len(rounded) <= 64  # the compiled products that training keeps
