import numpy as np
import pytest

from rankdistillm.model.pairs import PackedPairs, PairTemplate, plan_chunks
from rankdistillm.model.tokenise import TokenisedTexts
from tests.helpers import ARCHITECTURES, tokenizer_for

QUERIES = {"q1": "why do tides turn", "q2": "zzz", "q3": ""}
DOCS = {"d1": "The tide follows the Moon, slowly.", "d2": "naïve café 潮汐", "d3": ""}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_pairs_equal_the_tokenisers_own_pairs(architecture):
    tokenizer = tokenizer_for(architecture)
    queries = TokenisedTexts(QUERIES, tokenizer, 32, description="")
    docs = TokenisedTexts(DOCS, tokenizer, 256, description="")
    pairs = [(q, d) for q in QUERIES for d in DOCS]
    packed = PairTemplate.from_tokenizer(tokenizer).pack([(queries[q], docs[d]) for q, d in pairs])
    ends = np.cumsum(packed.lengths)
    for i, (q, d) in enumerate(pairs):
        # As a batch of one: transformers takes a single empty second text for none.
        expected = {k: v[0] for k, v in tokenizer([QUERIES[q]], [DOCS[d]]).items()}
        part = slice(ends[i] - packed.lengths[i], ends[i])
        assert packed.tokens[part].tolist() == expected["input_ids"]
        if "token_type_ids" in tokenizer.model_input_names:
            assert packed.types[part].tolist() == expected["token_type_ids"]
        else:
            assert packed.types is None


def test_texts_are_cut_separately():
    tokenizer = tokenizer_for("bert")
    texts = TokenisedTexts({"a": "tide " * 50}, tokenizer, 7, description="")
    assert len(texts["a"]) == 7


@pytest.mark.parametrize("padded", [False, True])
def test_chunks_hold_every_pair_once_within_the_budget(padded):
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    chunks = plan_chunks(lengths, 256, padded=padded)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(200))
    tokens = [len(c) * lengths[c].max() if padded else lengths[c].sum() for c in chunks]
    assert max(tokens) <= 256
    # None is cut before the next pair, the longest of those left, would not fit.
    for chunk, following, used in zip(chunks, chunks[1:], tokens, strict=False):
        assert used + (lengths[chunk].max() if padded else lengths[following].max()) > 256
    assert plan_chunks(np.array([500]), 256, padded=padded)[0].tolist() == [0]
    assert plan_chunks(np.array([], int), 256, padded=padded) == []


def test_selected_pairs_equal_newly_packed_ones():
    tokenizer = tokenizer_for("bert")
    docs = TokenisedTexts(DOCS, tokenizer, 256, description="")
    pairs = [(docs["d1"], docs[d]) for d in DOCS]
    template = PairTemplate.from_tokenizer(tokenizer)
    chosen = template.pack(pairs).select(np.array([2, 0]))
    expected = template.pack([pairs[2], pairs[0]])
    for found, wanted in zip(vars(chosen).values(), vars(expected).values(), strict=True):
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("token_multiple", "pair_multiple", "longest", "added"),
    [
        (10, 1, 9, []),
        (16, 1, 9, [6]),
        (4, 4, 9, [2]),
        (13, 5, 9, [2, 1]),
        (1, 5, 9, [1, 1]),
        (10, 2, 10, [10]),
        (10, 2, 9, [4, 3, 3]),
        (4, 3, 9, [2, 2, 2]),
        (16, 1, 2, [2, 2, 2]),
        (9, 4, 2, [2, 2, 2, 1, 1]),
    ],
)
def test_pairs_are_filled_up_to_multiples(token_multiple, pair_multiple, longest, added):
    pairs = PackedPairs(np.arange(10), np.arange(10) % 2, np.array([4, 3, 3]))
    filled = pairs.filled(token_multiple, pair_multiple, longest)
    assert filled.lengths.tolist() == [4, 3, 3, *added]
    assert len(filled.types) == len(filled.tokens) == 10 + sum(added)
    assert filled.tokens.tolist() == [*range(10), *range(10)][: 10 + sum(added)]
    assert (filled is pairs) == (not added)
    found = filled.select(np.arange(len(pairs)))
    assert found.tokens.tolist() == pairs.tokens.tolist()
