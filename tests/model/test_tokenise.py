import json
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from transformers import CanineTokenizer

from rankdistillm.cli import PACKAGE
from rankdistillm.model.tokenise import TokenisedTexts
from tests.helpers import tokenizer_for

# More distinct texts than stay in memory, and some of them twice.
TEXTS = {f"d{i}": f"the tide turns {'again ' * (i % 7)}number {i % 2100}" for i in range(2600)}
FEW = dict(islice(TEXTS.items(), 200))


class Interrupted:
    """A tokeniser that is interrupted after some batches of texts; it is its own backend."""

    def __init__(self, tokenizer, batches=0):
        self.tokenizer = tokenizer
        self.backend_tokenizer = self
        self.batches = batches

    def encode_batch_fast(self, texts, **options):
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return self.tokenizer.backend_tokenizer.encode_batch_fast(texts, **options)

    def __getattr__(self, name):
        backend = self.tokenizer.backend_tokenizer
        return getattr(backend if hasattr(backend, name) else self.tokenizer, name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/tokens"


def tokenise(texts=TEXTS, tokenizer=None, max_length=6, **options):
    tokenizer = tokenizer or tokenizer_for("bert")
    tokens = TokenisedTexts(texts, tokenizer, max_length, description="", **options)
    return {i: tokens[i].tolist() for i in texts}


def from_cache(tokenizer=None, **options):
    """`tokenise` with a tokeniser that must not be used; None if it was."""
    try:
        return tokenise(tokenizer=Interrupted(tokenizer or tokenizer_for("bert")), **options)
    except KeyboardInterrupt:
        return None


def entries(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def expected(texts=TEXTS, max_length=6):
    tokenizer = tokenizer_for("bert")
    given = tokenizer(list(texts.values()), add_special_tokens=False)["input_ids"]
    return {i: tokens[:max_length] for i, tokens in zip(texts, given, strict=True)}


def test_many_texts_are_tokenised_once_and_come_from_the_cache(cache):
    assert from_cache() is None
    assert tokenise() == expected()
    assert from_cache() == expected()
    (entry,) = entries(cache)
    names = {"tokens.bin", "offsets.bin", "cut.bin", "meta.json"}
    assert {path.name for path in entry.iterdir()} == names


def test_equal_texts_share_their_tokens(cache):
    tokenise()
    (entry,) = entries(cache)
    assert len(np.fromfile(entry / "offsets.bin", np.int64)) == len(set(TEXTS.values())) + 1


def test_other_texts_lengths_tokenisers_and_ways_have_other_entries(cache):
    tokenise()
    others = (
        {"texts": TEXTS | {"d0": "other"}},
        {"max_length": 5},
        {"max_length": None},
        {"tokenizer": tokenizer_for("roberta")},
        {"retokenise": True},
    )
    for options in others:
        assert from_cache(**options) is None, options
        assert tokenise(**options) == from_cache(**options), options
    assert len(entries(cache)) == 1 + len(others)
    assert from_cache() == expected()


def test_earlier_truncation_does_not_change_the_entry(cache):
    tokenizer = tokenizer_for("bert")
    tokenise(tokenizer=tokenizer)
    tokenizer(["a b c"], truncation=True, max_length=2, padding="max_length")
    assert from_cache(tokenizer) == expected()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [0, 1, 6, None])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "deberta"])
def test_tokens_equal_those_of_transformers(architecture, max_length, side):
    tokenizer = tokenizer_for(architecture)
    tokenizer.truncation_side = side
    texts = FEW | {"": "", "special": "[SEP] the <s> </s> tide", "long": "tide " * 600}
    found = tokenise(texts, tokenizer, max_length)
    options = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    given = tokenizer(list(texts.values()), add_special_tokens=False, **options)["input_ids"]
    assert list(found.values()) == given


def test_earlier_calls_of_the_tokeniser_do_not_matter():
    tokenizer = tokenizer_for("bert")

    def found():
        tokens = TokenisedTexts({"a": "tide", "b": "a [SEP] b"}, tokenizer, None, description="")
        return [tokens[i].tolist() for i in "ab"]

    before = found()
    tokenizer(["a b c"], truncation=True, max_length=2, padding="max_length")
    tokenizer("a", split_special_tokens=True)
    assert found() == before
    tokenizer.split_special_tokens = True
    assert found() == tokenizer(["tide", "a [SEP] b"], add_special_tokens=False)["input_ids"]
    assert found() != before


def test_tokenisers_without_a_fast_backend():
    texts = {"d": "a tide", "e": "a ti"}
    tokens = TokenisedTexts(texts, CanineTokenizer(), 4, description="")
    for name in texts:
        assert tokens[name].tolist() == [ord(letter) for letter in "a ti"]
    assert [tokens.was_cut(name) for name in texts] == [True, False]


@pytest.mark.parametrize("retokenise", [False, True])
@pytest.mark.parametrize("texts", [FEW, TEXTS], ids=["memory", "cache"])
def test_cut_texts_are_known_also_from_the_cache(texts, retokenise, cache):
    sizes = {i: len(tokens) for i, tokens in expected(texts, None).items()}
    middle = sorted(sizes.values())[len(sizes) // 2]
    for _ in range(2):
        tokens = TokenisedTexts(
            texts, tokenizer_for("bert"), middle, retokenise=retokenise, description=""
        )
        found = {i: tokens.was_cut(i) for i in texts}
        assert found == {i: size > middle for i, size in sizes.items()}
    assert {*found.values()} == {True, False}
    uncut = TokenisedTexts(texts, tokenizer_for("bert"), None, description="")
    assert not any(map(uncut.was_cut, texts))


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "cut.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_entry_is_replaced(name, damage, cache, caplog):
    tokenise()
    file = entries(cache)[0] / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else b"\0" * 9 + content[9:])
    assert tokenise() == expected()
    assert "damaged; tokenising again" in caplog.text
    assert from_cache() == expected()


def test_few_texts_leave_nothing_on_disk(cache):
    assert tokenise(FEW) == expected(FEW)
    assert not cache.exists()


def test_without_a_writable_cache_the_tokens_stay_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "file"))
    assert tokenise() == expected()
    assert "cannot be cached" in caplog.text


def test_an_interrupted_tokenising_leaves_no_entry(cache):
    with pytest.raises(KeyboardInterrupt):
        tokenise(tokenizer=Interrupted(tokenizer_for("bert"), batches=1))
    assert not entries(cache)


def test_texts_without_tokens(cache):
    for number in (2, 2100):
        found = tokenise({str(i): " " * i for i in range(number)})
        assert found == {str(i): [] for i in range(number)}
    assert entries(cache)


@pytest.mark.slow
def test_processes_that_tokenise_the_same_texts_share_one_entry(cache, tiny_bert, tmp_path):
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "from rankdistillm.model.tokenise import TokenisedTexts\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "tokens = TokenisedTexts(texts, tokenizer, 6, description='')\n"
        "print(json.dumps({i: tokens[i].tolist() for i in texts}))\n"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    command = [sys.executable, "-W", "ignore", "-c", script, tmp_path / "texts.json", tiny_bert]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PACKAGE.parent)
        for _ in range(2)
    ]
    found = [json.loads(racer.communicate()[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert found[0] == found[1] == expected()
    assert len(entries(cache)) == 1
    assert not [name for name in os.listdir(cache) if name.startswith(".")]
