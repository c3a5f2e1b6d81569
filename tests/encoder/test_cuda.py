"""The layers for GPUs, on any device: everything but their speed shows on a CPU too."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from rankdistillm.encoder import cuda
from rankdistillm.encoder.attention import attend
from rankdistillm.encoder.cuda import CudaLayer, States
from rankdistillm.encoder.dropout import dropout_threshold, random_int16
from rankdistillm.encoder.segments import Segments
from rankdistillm.model.heads import POOLINGS, MonoNetwork
from rankdistillm.model.reranker import Reranker
from tests.encoder import reference_kernels as reference
from tests.helpers import DOCS, PAIRS, SIZES, load, pack, relative_distance

LENGTHS = np.array([14, 9, 7])
TOKENS = int(LENGTHS.sum())
SEGMENTS = Segments(LENGTHS, torch.device("cpu"))


@pytest.fixture(autouse=True)
def torch_kernels(monkeypatch):
    """Stand-ins for the Triton kernels; on a CPU they compute in any precision."""
    kernels = SimpleNamespace(
        attention=reference.Attention, gelu=reference.Gelu, norm=reference.Norm
    )
    monkeypatch.setattr(cuda, "kernels", lambda: kernels)


@pytest.fixture
def layers(tiny_bert):
    layers = load(tiny_bert).network.backbone.encoder.layer[:2].double()
    torch.manual_seed(5)
    for parameter in layers.parameters():  # random models have biases of 0
        torch.nn.init.normal_(parameter, std=0.3)
    return layers


def random_states(dtype=torch.float64):
    torch.manual_seed(6)
    return torch.randn(1, TOKENS, SIZES["hidden_size"], dtype=dtype, requires_grad=True)


def plain(layer, hidden):
    return layer(hidden, segments=SEGMENTS)


def on_cuda(layer, hidden):
    return CudaLayer(layer, torch.float64)(hidden, SEGMENTS)


def run(layers, compute):
    """The layers' output, and the gradients of a weighted sum of it."""
    layers.zero_grad()
    inputs = hidden = random_states()
    for layer in layers:
        hidden = compute(layer, hidden)
    output = hidden.fp32.unsqueeze(0) if isinstance(hidden, States) else hidden
    weights = torch.linspace(-1, 1, SIZES["hidden_size"], dtype=torch.float64)
    (output * weights).square().sum().div(len(weights)).backward()
    gradients = {name: parameter.grad for name, parameter in layers.named_parameters()}
    return output.detach(), gradients | {"states": inputs.grad}


def test_layers_and_their_gradients_equal_the_plain_ones(layers):
    expected, expected_gradients = run(layers, plain)
    output, gradients = run(layers, on_cuda)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 0 or name.endswith("key.bias")
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_only_the_products_are_in_half_precision(layers):
    layer = layers[0].float()
    hidden = random_states(torch.float32)
    exact = layer(hidden, segments=SEGMENTS)
    output = CudaLayer(layer, torch.bfloat16)(hidden, SEGMENTS)
    assert output.fp32.dtype == torch.float32
    assert torch.equal(output.low, output.fp32.to(torch.bfloat16))
    assert 0 < (output.fp32 - exact).norm() < 0.01 * exact.norm()
    # Input in half precision, as a projection of embeddings gives it under autocast.
    output = CudaLayer(layer, torch.bfloat16)(hidden.to(torch.bfloat16), SEGMENTS)
    assert output.fp32.dtype == torch.float32
    assert (output.fp32 - exact).norm() < 0.01 * exact.norm()


def test_gradients_of_the_residual_stream_do_not_vanish_in_half_precision(layers):
    for layer in layers.float():  # only the residual stream is left
        torch.nn.init.zeros_(layer.attention.output.dense.weight)
        torch.nn.init.zeros_(layer.output.dense.weight)

    def gradient(compute, scale):
        hidden = inputs = random_states(torch.float32)
        for layer in layers:
            hidden = compute(layer, hidden)
        output = hidden.fp32 if isinstance(hidden, States) else hidden[0]
        (output[:, ::2].square().sum() * scale).backward()
        return inputs.grad / scale

    expected = gradient(plain, 1.0)
    # fp16 ends at 6e-8; of the gradients here nothing would be left.
    in_half = gradient(lambda *given: CudaLayer(given[0], torch.float16)(given[1], SEGMENTS), 1e-12)
    assert (in_half - expected).norm() < 0.01 * expected.norm()


def test_gradients_follow_the_dropout_that_was_drawn(layers):
    layer = layers[0].train()
    layer.attention.output.dropout.p, layer.output.dropout.p = 0.4, 0.2
    layer.attention.self.dropout.p = 0.0

    def compute(fp32, low, *_):
        torch.manual_seed(3)
        return CudaLayer(layer, torch.float64)(States(fp32[0], low[0]), SEGMENTS)

    low = random_states().detach().flip(1).requires_grad_()
    inputs = (random_states(), low, *layer.parameters())
    assert torch.autograd.gradcheck(compute, inputs, atol=1e-9, fast_mode=True)


def test_a_layer_draws_dropout_in_training_only(layers):
    layer = layers[0].train()
    layer.attention.output.dropout.p = layer.output.dropout.p = 0.4
    hidden = random_states()

    def draw(seed):
        torch.manual_seed(seed)
        return on_cuda(layer, hidden).fp32

    assert torch.equal(draw(1), draw(1))
    assert not torch.allclose(draw(1), draw(2), atol=0.1)
    layer.eval()
    assert torch.equal(draw(1), draw(2))


def test_each_half_of_a_layer_has_its_own_dropout_and_norm(layers):
    layer = layers[0]
    attention, attended, last = layer.attention.self, layer.attention.output, layer.output
    attended.LayerNorm.eps, last.LayerNorm.eps = 0.5, 0.1
    attended.dropout.p, last.dropout.p = 0.4, 0.2
    hidden = random_states()
    query, key, value = (
        project(hidden[0]).unflatten(-1, (attention.num_attention_heads, -1))
        for project in (attention.query, attention.key, attention.value)
    )
    context = attend(query, key, value, SEGMENTS, attention.scaling).flatten(1)

    torch.manual_seed(3)
    masks = {}
    for output, rate in ((attended, 0.4), (last, 0.2)):
        masks[output] = (random_int16(hidden[0]) >= dropout_threshold(rate)) / (1 - rate)
    middle = attended.LayerNorm(hidden[0] + attended.dense(context) * masks[attended])
    added = last.dense(layer.intermediate(middle)) * masks[last]
    expected = last.LayerNorm(middle + added)
    torch.manual_seed(3)
    torch.testing.assert_close(on_cuda(layer.train(), hidden).fp32, expected)


def test_attention_probabilities_have_no_dropout(layers):
    layers.train()
    for module in layers.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    hidden = random_states()
    without = on_cuda(layers[0], hidden).fp32
    layers[0].attention.self.dropout.p = 0.5
    assert torch.equal(on_cuda(layers[0], hidden).fp32, without)


def test_layers_with_large_heads_are_not_supported(layers):
    attention = layers[0].attention.self
    for size, expected in ((64, True), (128, True), (256, False)):
        attention.attention_head_size = size
        assert cuda.supports(layers[0]) == expected


def test_cuda_autocast_changes_nothing_on_a_cpu():
    torch.set_autocast_enabled("cuda", True)
    try:
        assert cuda.autocast_dtype(torch.device("cpu")) is None
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_a_missing_triton_is_reported(monkeypatch, caplog):
    def missing():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(cuda, "kernels", missing)
    assert not cuda.is_available.__wrapped__(torch.device("cuda"))
    assert "No module named 'triton'" in caplog.text
    assert "install triton" in caplog.text


@pytest.fixture
def as_on_a_gpu(monkeypatch, calls_of):
    """Models use `CudaLayer` on this CPU, in float32; the list of its calls, in order."""
    monkeypatch.setattr(cuda, "is_available", lambda _: True)
    monkeypatch.setattr(cuda, "autocast_dtype", lambda _: torch.float32)
    return calls_of(CudaLayer)


def scores_and_gradients(model, pairs):
    model.zero_grad()
    scores = model(pairs)
    scores.square().sum().backward()
    return scores.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_whole_model_has_the_scores_and_gradients_of_the_plain_one(
    architecture, pooling, tiny_models, request
):
    model = load(tiny_models(architecture))
    model.network = MonoNetwork(model.network.backbone, pooling=pooling)
    torch.nn.init.normal_(model.network.linear.weight)
    pairs = pack(model, PAIRS)
    expected, expected_gradients = scores_and_gradients(model, pairs)
    calls = request.getfixturevalue("as_on_a_gpu")
    scores, gradients = scores_and_gradients(model, pairs)
    assert calls
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert relative_distance(gradients, expected_gradients) < 1e-5


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_layers_with_another_activation_stay_plain(activation, tiny_bert, request):
    model = load(tiny_bert)
    for layer in model.network.backbone.encoder.layer:
        layer.intermediate.intermediate_act_fn = ACT2FN[activation]
    pairs = pack(model, PAIRS)
    expected, expected_gradients = scores_and_gradients(model, pairs)
    request.getfixturevalue("as_on_a_gpu")
    scores, gradients = scores_and_gradients(model, pairs)
    assert torch.equal(scores, expected)
    assert relative_distance(gradients, expected_gradients) == 0
    model.autocast_dtype = torch.bfloat16
    assert CudaLayer not in map(type, model.fused_layers().values())


def test_a_reranker_scores_by_the_layers_for_gpus(tiny_bert, as_on_a_gpu):
    model = load(tiny_bert)
    assert model.fused_layers() == {}  # in float32
    exact = Reranker(model).score("how is bread made", DOCS)
    model.autocast_dtype = torch.bfloat16
    reranker = Reranker(model)
    as_on_a_gpu.clear()
    scores = reranker.score("how is bread made", DOCS)
    assert as_on_a_gpu
    assert 0 < np.linalg.norm(scores - exact) < 0.06 * np.linalg.norm(exact - exact.mean())
    assert (reranker.score("how is bread made", DOCS) == scores).all()


def test_the_first_token_is_computed_in_float32_in_the_last_layer(tiny_bert):
    """Its keys and values are in half precision, its residual stream and feed-forward are not."""
    layer = load(tiny_bert).network.backbone.encoder.layer[-1]
    fp32 = random_states(torch.float32)[0]
    states = States(fp32, fp32.to(torch.bfloat16))
    output = layer(states, segments=SEGMENTS)
    exact = layer(fp32.unsqueeze(0), segments=SEGMENTS)
    assert output.dtype == torch.float32
    assert output.shape == (len(LENGTHS), 1, SIZES["hidden_size"])
    assert 0 < (output - exact).norm() < 0.01 * exact.norm()
