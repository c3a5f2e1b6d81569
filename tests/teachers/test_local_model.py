"""Tiny random models through transformers: their prompts, their context, and what they refuse."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rankdistillm.errors import InputError
from rankdistillm.teachers.backends import ContextTooLong
from rankdistillm.teachers.local_chat import LocalChat
from rankdistillm.teachers.local_model import LanguageModel
from rankdistillm.teachers.local_scorers import YesNo
from tests.endpoint import prompt_of
from tests.helpers import load_language_model, tokenizer_for, write_language_model
from tests.teacher import SCORE, complete_all

MESSAGES = [
    [{"role": "user", "content": text}]
    for text in ("tide", "bread rises in an oven " * 3, "the moon")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("causal"))


def test_the_chat_template_is_applied(folder):
    model = load_language_model(folder)
    decode = model.tokenizer.decode
    turns = [{"role": "system", "content": "tide"}, {"role": "user", "content": "moon"}]
    assert decode(model.encode(turns)) == (
        decode(model.tokenizer("[CLS] system tide [SEP] [CLS] user moon [SEP] [CLS] assistant",
                               add_special_tokens=False).input_ids)
    )  # fmt: skip
    begun = model.encode([*turns, {"role": "assistant", "content": "bread"}])
    assert decode(begun[-1:]) == "bread"


def test_a_model_without_a_chat_template_gets_the_text(tmp_path):
    model = load_language_model(write_language_model(tmp_path, chat=False))
    turns = [{"role": "system", "content": "tide"}, {"role": "user", "content": "moon"}]
    assert model.encode(turns) == model.tokenizer("tide\n\nmoon").input_ids


def test_a_template_that_refuses_the_prompt(folder):
    model = load_language_model(folder)
    model.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"refuses the prompt .*System role not supported"):
        model.encode(MESSAGES[0])


def test_what_exceeds_the_context_is_refused(folder, tmp_path):
    model = load_language_model(folder)
    long = [{"role": "user", "content": "tide " * 250}]
    with pytest.raises(ContextTooLong, match="exceed the model's context of 256"):
        complete_all(LocalChat(model), [long])
    with pytest.raises(ContextTooLong):
        YesNo(model, prompt_of(tmp_path, SCORE), yes="a", no="b").score("q", ["tide " * 300])


def test_what_is_no_whole_language_model_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="give the folder or hub id of a language model"):
        load_language_model(tmp_path / "nothing")
    model = transformers.LlamaModel.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tokenizer_for("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not a whole language model"):
        _ = load_language_model(tmp_path).model
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.safetensors.*give the folder or hub id"):
        load_language_model(tmp_path)


def test_the_weights_say_which_model_it_is(folder, tmp_path, monkeypatch):
    """The folder may move or be given by another path; its weights may not change."""
    first = load_language_model(folder)
    moved = shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for path in (moved, "moved", "./moved/"):
        again = load_language_model(path)
        assert (again.identity, again.options) == (first.identity, first.options)
        assert again.name == f"moved@{first.identity}"
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    assert load_language_model(moved).identity != first.identity
    low = LanguageModel.from_pretrained(folder, device="cpu", precision="bf16")
    assert low.options != first.options


def test_weights_that_exceed_the_memory(folder, monkeypatch):
    model = load_language_model(folder)

    def fail(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(transformers.LlamaForCausalLM, "to", fail)
    with pytest.raises(InputError, match="its weights exceed the memory of cpu"):
        complete_all(LocalChat(model), MESSAGES)
