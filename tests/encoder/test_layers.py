"""Encoders on packed pairs against transformers' own forward, one pair at a time."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel

from rankdistillm.encoder import Segments, pack_encoder, run_packed
from rankdistillm.encoder.attention import PACKED_MODELS
from tests.helpers import SIZES

LENGTHS = np.array([14, 9, 7, 1])
SEGMENTS = Segments(LENGTHS, torch.device("cpu"))
BERT_LIKE = [name for name in PACKED_MODELS if name != "modernbert"]


def load_encoder(path):
    return AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randint(4, 200, (int(LENGTHS.sum()),))


def run(encoder, tokens):
    return run_packed(encoder, SEGMENTS, input_ids=tokens).last_hidden_state


def one_by_one(encoder, tokens):
    """``[tokens, hidden]``."""
    pairs = tokens.split(LENGTHS.tolist())
    return torch.cat([encoder(pair.unsqueeze(0)).last_hidden_state[0] for pair in pairs])


@pytest.mark.parametrize("architecture", PACKED_MODELS)
def test_packed_states_equal_those_of_each_pair_alone(architecture, tiny_models, tokens):
    encoder = load_encoder(tiny_models(architecture))
    expected = one_by_one(encoder, tokens)
    assert pack_encoder(encoder, first_only=False)
    states = run(encoder, tokens)
    torch.testing.assert_close(states, expected.unsqueeze(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", BERT_LIKE)
def test_first_only_gives_each_first_token_with_the_gradients_of_the_whole_layer(
    architecture, tiny_models, tokens
):
    encoder = load_encoder(tiny_models(architecture))
    expected = one_by_one(encoder, tokens)[SEGMENTS.starts]
    expected.square().sum().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    assert pack_encoder(encoder, first_only=True)
    states = run(encoder, tokens)
    torch.testing.assert_close(states, expected.unsqueeze(1), atol=1e-5, rtol=1e-5)
    states.square().sum().backward()
    for name, gradient in gradients.items():
        # Optimisers decay the key bias only if it has a gradient, though that is 0.
        found = dict(encoder.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("architecture", ["modernbert", "deberta"])
def test_other_layers_do_not_support_first_only_and_stay_unchanged(
    architecture, tiny_models, tokens
):
    encoder = load_encoder(tiny_models(architecture))
    expected = one_by_one(encoder, tokens)
    assert not pack_encoder(encoder, first_only=True)
    assert torch.equal(one_by_one(encoder, tokens), expected)


def test_an_encoder_whose_attention_sees_positions_is_not_packed(tiny_models):
    assert not pack_encoder(load_encoder(tiny_models("deberta")), first_only=False)


def test_under_autocast_the_first_token_stays_in_float32(tiny_bert, tokens):
    encoder = load_encoder(tiny_bert)
    pack_encoder(encoder, first_only=True)
    exact = run(encoder, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        states = run(encoder, tokens)
    assert states.dtype == torch.float32
    assert 0 < (states - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("first_only", [False, True])
def test_a_copy_of_a_packed_encoder_runs_its_own_layers(first_only, tiny_bert, tokens):
    encoder = load_encoder(tiny_bert)
    names = list(encoder.state_dict())
    pack_encoder(encoder, first_only=first_only)
    assert list(encoder.state_dict()) == names
    twin = copy.deepcopy(encoder)
    before = run(encoder, tokens)
    assert torch.equal(run(twin, tokens), before)
    with torch.no_grad():
        for layer in twin.encoder.layer:
            layer.output.dense.weight.zero_()
    assert not torch.allclose(run(twin, tokens), before, atol=1e-2)
    assert torch.equal(run(encoder, tokens), before)
    assert before.shape[-1] == SIZES["hidden_size"]
