"""Tiny random models that score passages, and what they refuse."""

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from rankdistillm.errors import InputError
from rankdistillm.teachers.answers import score_from_logprobs
from rankdistillm.teachers.backends import ScoringBackend
from rankdistillm.teachers.local_chat import LocalChat
from rankdistillm.teachers.local_model import LOGITS_PER_TOKEN, LanguageModel
from rankdistillm.teachers.local_scorers import QueryLikelihood, YesNo, mean_logprobs
from tests.endpoint import prompt_of
from tests.helpers import DOCS, load_language_model, next_logprobs, write_language_model
from tests.teacher import LIKELIHOOD, SCORE, complete_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("t5"), "t5", chat=False)


def test_odds_of_yes_against_no(folder, tmp_path):
    model, prompt = load_language_model(folder, token_budget=30), prompt_of(tmp_path, SCORE)
    scorer = YesNo(model, prompt, yes="a", no="b")
    assert isinstance(scorer, ScoringBackend)
    found = scorer.score("bread", DOCS)
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("a", "b"))
    for doc, score in zip(DOCS, found, strict=True):
        last = next_logprobs(model, model.encode(prompt.messages(query="bread", passages=[doc])))[
            -1
        ]
        assert score == pytest.approx(float(last[yes] - last[no]), abs=1e-4)
    assert len(set(found)) == len(DOCS)


def test_odds_are_on_the_scale_of_answers_with_log_probabilities(folder, tmp_path):
    """As an endpoint gives them: the likeliest tokens of the first word."""
    model, prompt = load_language_model(folder), prompt_of(tmp_path, SCORE)
    found = YesNo(model, prompt, yes="a", no="b").score("bread", DOCS)
    messages = [prompt.messages(query="bread", passages=[doc]) for doc in DOCS]
    asked = complete_all(
        LocalChat(model), messages, max_tokens=1, top_logprobs=len(model.tokenizer)
    )
    for score, completion in zip(found, asked, strict=True):
        (top,) = completion.top_logprobs
        value, repairs = score_from_logprobs({"yes": top["a"], "no": top["b"]})
        assert value == pytest.approx(score, abs=1e-4)
        assert not repairs


def test_words_of_several_tokens_are_refused(folder, tmp_path):
    for word in ("tide moon", "", "潮"):
        with pytest.raises(InputError, match="not a single token"):
            YesNo(load_language_model(folder), prompt_of(tmp_path, SCORE), yes=word)


@pytest.mark.parametrize("chat", [True, False])
def test_query_likelihood(tmp_path, chat):
    model = load_language_model(
        write_language_model(tmp_path / "model", chat=chat), token_budget=100
    )
    scorer = QueryLikelihood(model, prompt_of(tmp_path, LIKELIHOOD))
    query = "why do tides turn"
    tokens = model.tokenizer(query, add_special_tokens=False).input_ids
    assert len(tokens) > 1
    for doc, score in zip(DOCS, scorer.score(query, DOCS), strict=True):
        ids = model.encode([{"role": "user", "content": f"passage {doc}"}])
        logprobs = next_logprobs(model, ids + tokens)[len(ids) - 1 : -1]
        expected = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].mean()
        assert score == pytest.approx(float(expected), abs=1e-4)
    assert scorer.score("", DOCS) == [0.0] * len(DOCS)


class LargestResult(TorchDispatchMode):
    """The most values that any operation returns in memory of its own."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)]
        if isinstance(result, torch.Tensor):
            is_view = result.untyped_storage().data_ptr() in inputs
            self.values = max(self.values, 0 if is_view else result.numel())
        return result


def test_log_probabilities_copy_one_row_of_the_logits_at_most():
    torch.manual_seed(2)
    logits, tokens = 20 * torch.randn(6, 4, 500), torch.tensor([3, 0, 499, 3])
    with LargestResult() as largest:
        found = mean_logprobs(logits, tokens)
    expected = logits.double().log_softmax(-1)[:, torch.arange(4), tokens].mean(1)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0 < largest.values <= 4 * 500


def with_head(folder, kind, **options):
    """A random model of another architecture, with a wide output layer."""
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, tie_word_embeddings=False, attn_implementation="eager",
        **{"vocab_size": 3200, **options},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    torch.nn.init.normal_(head.weight, std=3.0)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    write_language_model(folder, chat=False)
    model.save_pretrained(folder)
    return folder


def test_a_large_vocabulary_makes_batches_smaller(tmp_path):
    folder = with_head(tmp_path, "llama", vocab_size=40_000)
    contexts = [[30 + i, 60 + i] for i in range(12)]
    continuation, sizes = [40, 50, 60, 70], []

    def read(logits):
        sizes.append(logits.numel())
        return logits[:, -1, 7]

    found = load_language_model(folder, token_budget=100).score(contexts, continuation, read)
    assert max(sizes) <= 100 * LOGITS_PER_TOKEN
    assert len(sizes) == 3  # four contexts each; by their tokens, all would fit
    whole = load_language_model(folder, token_budget=10_000).score(contexts, continuation, read)
    assert len(sizes) == 4
    assert found == pytest.approx(whole, abs=1e-4)


HEADS = {
    "llama": ({}, lambda logits: logits),
    "gemma2": ({"final_logit_softcapping": 30.0}, lambda logits: 30 * torch.tanh(logits / 30)),
    "gemma3_text": ({"final_logit_softcapping": 30.0}, lambda logits: 30 * torch.tanh(logits / 30)),
    "phi": ({}, lambda logits: logits),  # its output layer has a bias
    "granite": ({"logits_scaling": 0.5}, lambda logits: logits / 0.5),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_output_layer_of_a_model_in_bf16_computes_in_float32(tmp_path, kind):
    options, finish = HEADS[kind]
    folder = with_head(tmp_path / "model", kind, **options)
    low = LanguageModel.from_pretrained(folder, device="cpu", precision="bf16")
    prompt = prompt_of(tmp_path, LIKELIHOOD)
    rounded = []
    for query in ("why do tides turn", "bread", "how is soap made"):
        tokens = low.tokenizer(query, add_special_tokens=False).input_ids
        ids = low.encode([{"role": "user", "content": f"passage {DOCS[0]}"}])
        inputs = torch.tensor([ids + tokens])
        with torch.inference_mode():
            hidden = low.model.base_model(
                inputs, attention_mask=torch.ones_like(inputs), use_cache=False
            ).last_hidden_state[0, len(ids) - 1 : -1]
            assert hidden.dtype == torch.bfloat16
            head = low.model.get_output_embeddings()
            logits = hidden.double() @ head.weight.double().T
            assert (head.bias is not None) is (kind == "phi")
            if head.bias is not None:
                logits += head.bias.double()
            logprobs = [f.log_softmax(-1)[torch.arange(len(tokens)), tokens].mean().item()
                        for f in (finish(logits), finish(logits.bfloat16()).double())]  # fmt: skip
        (score,) = QueryLikelihood(low, prompt).score(query, DOCS[:1])
        assert score == pytest.approx(logprobs[0], abs=1e-4)
        rounded.append(abs(score - logprobs[1]))
    assert max(rounded) > 0.01  # what rounded logits would be off by
    # Generation is as it was.
    assert low.model(input_ids=inputs).logits.dtype == torch.bfloat16


def test_query_likelihood_needs_the_query_in_a_turn_of_its_own(folder, tmp_path):
    model = load_language_model(folder)
    with pytest.raises(InputError, match="needs a prompt of at least two turns"):
        QueryLikelihood(model, prompt_of(tmp_path, SCORE))


def test_an_encoder_decoder_as_mono_t5(t5, tmp_path):
    model, prompt = load_language_model(t5), prompt_of(tmp_path, SCORE)
    assert model.context is None
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("a", "b"))
    found = YesNo(model, prompt, yes="a", no="b").score("bread", DOCS)
    for doc, score in zip(DOCS, found, strict=True):
        ids = model.encode(prompt.messages(query="bread", passages=[doc]))
        (first,) = next_logprobs(model, ids, decoder_input_ids=torch.tensor([[0]]))
        assert score == pytest.approx(float(first[yes] - first[no]), abs=1e-4)
    (answer,) = complete_all(LocalChat(model), [[{"role": "user", "content": "tide"}]])
    assert answer.output_tokens <= 8
