"""Sampling passages, reading examples and dropping duplicates."""

import pytest

from rankdistillm.errors import InputError
from rankdistillm.teachers.prompts import Example
from rankdistillm.teachers.queries import read_examples, sample_passages, without_duplicates

PASSAGES = {f"d{i}": f"text {i}" for i in range(30)}


@pytest.mark.parametrize("number", [1, 7, 30, 31])
def test_a_sample_is_drawn_once_and_in_order(number):
    sample = sample_passages(PASSAGES.items(), number, 1)
    assert len(sample) == min(number, 30)
    assert list(sample) == [doc_id for doc_id in PASSAGES if doc_id in sample]
    assert sample.items() <= PASSAGES.items()
    assert sample == sample_passages(PASSAGES.items(), number, 1)


def test_every_passage_is_as_likely():
    drawn = [d for seed in range(400) for d in sample_passages(PASSAGES.items(), 10, seed)]
    counts = [drawn.count(doc_id) for doc_id in PASSAGES]
    # 400 draws with probability 1/3: a standard deviation of 9.4.
    assert all(abs(count - 400 / 3) < 4.5 * 9.4 for count in counts)


def test_passages_without_text_are_not_drawn():
    assert sample_passages([("a", " "), ("b", ""), ("c", "x")], None, 1) == {"c": "x"}
    with pytest.raises(InputError, match="num_passages=0"):
        sample_passages([], 0, 1)


def test_examples(tmp_path):
    file = tmp_path / "examples.tsv"
    file.write_text("A passage.\ta query\n\nAnother. \t other \n")
    assert read_examples(file) == (Example("A passage.", "a query"), Example("Another.", "other"))
    for line in ("no tab", "a\tb\tc", "\tquery", "passage\t "):
        file.write_text(f"a\tb\n{line}\n")
        with pytest.raises(InputError, match=r"examples.tsv, line 2: expected 'passage<TAB>query'"):
            read_examples(file)


def test_duplicates():
    queries = {
        "a": "Why, tides?",
        "b": "why tides",
        "c": "tides why",
        "d": "潮汐",
        "e": "?",
        "f": "!",
    }
    assert list(without_duplicates(queries)) == ["a", "c", "d", "e", "f"]
