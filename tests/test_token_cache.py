import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tokenizer_for
from transformers import CanineTokenizer

from rankdistillm import token_cache
from rankdistillm.token_cache import TokenisedTexts

TEXTS = {f"d{i}": f"the tide turns {'again ' * (i % 7)}number {i % 25}" for i in range(200)}


class Counting:
    """A tokeniser that counts the texts it was given; it is its own backend."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.backend_tokenizer = self
        self.texts = 0

    def encode_batch_fast(self, texts, **options):
        self.texts += len(texts)
        return self.tokenizer.backend_tokenizer.encode_batch_fast(texts, **options)

    def __getattr__(self, name):
        backend = self.tokenizer.backend_tokenizer
        return getattr(backend if hasattr(backend, name) else self.tokenizer, name)

    def __len__(self):
        return len(self.tokenizer)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "TEXTS_WORTH_CACHING", 1)
    monkeypatch.setattr(token_cache, "TEXTS_AT_ONCE", 16)
    return tmp_path / "cache/tokens"


def tokenise(texts=TEXTS, tokenizer=None, max_length=6, **options):
    tokenizer = Counting(tokenizer or tokenizer_for("bert"))
    tokens = TokenisedTexts(texts, tokenizer, max_length, description="", **options)
    return {i: tokens[i].tolist() for i in texts}, tokenizer.texts


def entries(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def expected(max_length=6):
    tokenizer = tokenizer_for("bert")
    return {
        i: tokenizer(t, add_special_tokens=False)["input_ids"][:max_length]
        for i, t in TEXTS.items()
    }


def test_each_distinct_text_is_tokenised_once_and_never_again(cache):
    distinct = len(set(TEXTS.values()))
    assert distinct < len(TEXTS)
    assert tokenise() == (expected(), distinct)
    assert tokenise() == (expected(), 0)
    (entry,) = entries(cache)
    assert {path.name for path in entry.iterdir()} == {"tokens.bin", "offsets.bin", "meta.json"}


def test_another_text_length_tokeniser_or_way_is_another_entry(cache):
    tokenise()
    other = tokenizer_for("roberta")
    for options in (
        {"texts": TEXTS | {"d0": "other"}},
        {"max_length": 5},
        {"max_length": None},
        {"tokenizer": other},
        {"retokenise": True},
    ):
        assert tokenise(**options)[1] > 0, options
        assert tokenise(**options)[1] == 0, options
    assert len(entries(cache)) == 6


def test_what_the_tokeniser_was_last_asked_to_cut_does_not_matter(cache):
    tokenizer = tokenizer_for("bert")
    tokenise(tokenizer=tokenizer)
    tokenizer(["a b c"], truncation=True, max_length=2, padding="max_length")
    assert tokenise(tokenizer=tokenizer) == (expected(), 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [0, 1, 6, None])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "deberta"])
def test_tokens_are_those_that_transformers_gives(architecture, max_length, side):
    tokenizer = tokenizer_for(architecture)
    tokenizer.truncation_side = side
    texts = TEXTS | {"": "", "special": "[SEP] the <s> </s> tide", "long": "tide " * 600}
    found, _ = tokenise(texts, tokenizer, max_length)
    options = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    given = tokenizer(list(texts.values()), add_special_tokens=False, **options)["input_ids"]
    assert list(found.values()) == given


def test_how_the_tokeniser_was_last_called_does_not_matter():
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


def test_tokenisers_without_a_fast_backend(cache):
    tokens = TokenisedTexts({"d": "a tide"}, CanineTokenizer(), 4, description="")
    assert tokens["d"].tolist() == [ord(letter) for letter in "a ti"]


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_entry_is_made_again(name, damage, cache, caplog):
    tokenise()
    file = entries(cache)[0] / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else b"\0" * 9 + content[9:])
    found, tokenised = tokenise()
    assert found == expected()
    assert tokenised > 0
    assert "damaged; tokenising again" in caplog.text
    assert tokenise()[1] == 0


def test_few_texts_leave_nothing_on_disk(cache, monkeypatch):
    monkeypatch.setattr(token_cache, "TEXTS_WORTH_CACHING", 1000)
    assert tokenise()[0] == expected()
    assert not cache.exists()


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(
    tmp_path, cache, monkeypatch, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "file"))
    assert tokenise()[0] == expected()
    assert "cannot be cached" in caplog.text


def test_an_interrupted_tokenising_leaves_no_entry(cache):
    tokenizer = tokenizer_for("bert")

    class Broken(Counting):
        def encode_batch_fast(self, texts, **options):
            if self.texts:
                raise KeyboardInterrupt
            return super().encode_batch_fast(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        TokenisedTexts(TEXTS, Broken(tokenizer), 6, description="")
    assert not entries(cache)


def test_texts_without_a_token(cache):
    found, _ = tokenise({"a": "", "b": ""})
    assert found == {"a": [], "b": []}


def test_processes_may_race(cache, tiny_bert, tmp_path):
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "from rankdistillm import token_cache\n"
        "token_cache.TEXTS_WORTH_CACHING = 1\n"
        "texts = json.load(open(sys.argv[1]))\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tiny_bert)!r})\n"
        "tokens = token_cache.TokenisedTexts(texts, tokenizer, 6, description='')\n"
        "print(json.dumps({i: tokens[i].tolist() for i in texts}))\n"
    )
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "texts.json")]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        for _ in range(2)
    ]
    found = [json.loads(racer.communicate()[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert found[0] == found[1]
    (entry,) = entries(cache)
    assert not [name for name in os.listdir(cache) if name.startswith(".")]
    distinct = {TEXTS[i]: tokens for i, tokens in found[0].items()}
    total = sum(map(len, distinct.values()))
    assert np.fromfile(entry / "offsets.bin", np.int64)[-1] == total
