"""The layers for scoring in bf16 on a CPU."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig

from rankdistillm.encoder import Segments, cpu
from rankdistillm.encoder.cpu import CpuLayer
from rankdistillm.model.heads import MonoNetwork
from rankdistillm.model.reranker import Reranker
from tests.helpers import DOCS, PAIRS, SIZES, load, pack

pytestmark = pytest.mark.skipif(
    not cpu.is_available(), reason="needs a CPU with bf16 in hardware, and oneDNN in torch"
)


def score(model):
    """The scores of a re-ranker that is made now."""
    return torch.from_numpy(Reranker(model).score("how is bread made", DOCS))


def error(scores, exact):
    return ((scores - exact).norm() / (exact - exact.mean()).norm()).item()


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "xlm-roberta", "camembert"])
def test_a_reranker_in_bf16_scores_by_fused_layers(architecture, tiny_models, calls_of):
    path = tiny_models(architecture)
    exact = score(load(path))
    model = load(path, precision="bf16")
    calls = calls_of(CpuLayer)
    scores = score(model)
    assert calls
    assert 0 < error(scores, exact) < 0.06
    # All but the last, which computes first tokens alone, in float32.
    assert len(model.fused_layers()) == SIZES["num_hidden_layers"] - 1


def test_a_forward_pass_has_gradients_beside_fused_layers(tiny_bert):
    model = load(tiny_bert, precision="bf16")
    score(model)
    model(pack(model, PAIRS)).sum().backward()
    for layer in model.network.backbone.encoder.layer:
        assert layer.output.dense.weight.grad.abs().max() > 0


def test_a_fused_layer_equals_the_layer(tiny_bert):
    layer = load(tiny_bert).network.backbone.encoder.layer[0]
    torch.manual_seed(5)
    for parameter in layer.parameters():  # random models have biases of 0
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(1, 30, SIZES["hidden_size"])
    segments = Segments(np.array([14, 9, 7]), torch.device("cpu"))
    exact = layer(hidden, segments=segments)
    output = CpuLayer(layer)(hidden, segments)
    assert output.dtype == torch.bfloat16
    assert (output - exact).norm() < 0.01 * exact.norm()


def test_a_last_layer_that_computes_all_tokens_is_fused_too(tiny_bert):
    exact = load(tiny_bert)
    model = load(tiny_bert, precision="bf16")
    for each in (exact, model):
        each.network = MonoNetwork(each.network.backbone, pooling="mean").eval()
        torch.nn.init.ones_(each.network.linear.weight[:, ::2])
    assert error(score(model), score(exact)) < 0.06
    assert len(model.fused_layers()) == SIZES["num_hidden_layers"]


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "silu"])
def test_activations_other_than_gelu_are_fused_too(activation, tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(7)
    config = BertConfig(
        **SIZES, vocab_size=len(tokenizer), initializer_range=0.3, hidden_act=activation
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    exact = score(load(tmp_path))
    model = load(tmp_path, precision="bf16")
    assert error(score(model), exact) < 0.06
    assert model.fused_layers()


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("bert", "fp32"), ("bert", "fp16"), ("modernbert", "bf16"), ("deberta", "bf16")],
)
def test_other_precisions_and_encoders_have_no_fused_layers(architecture, precision, tiny_models):
    model = load(tiny_models(architecture), precision=precision)
    assert model.fused_layers() == {}


def halve(model):
    with torch.no_grad():
        for layer in model.network.backbone.encoder.layer:
            layer.output.dense.weight.mul_(0.5)


def load_others(model):
    state = model.state_dict()
    halved = {n: w * 0.5 if "dense.weight" in n else w for n, w in state.items()}
    model.load_state_dict(halved, assign=True)


@pytest.mark.parametrize("change", [halve, load_others])
def test_fused_layers_have_the_weights_of_the_moment(change, tiny_bert):
    model = load(tiny_bert, precision="bf16")
    before = score(model)
    change(model)
    after = score(model)
    assert error(after, before) > 0.05
    exact = load(tiny_bert)
    exact.load_state_dict(model.state_dict())
    assert error(after, score(exact)) < 0.06


def test_a_reranker_repeats_its_scores(tiny_bert):
    reranker = Reranker(load(tiny_bert, precision="bf16"))
    first = reranker.score("how is bread made", DOCS)
    assert (reranker.score("how is bread made", DOCS) == first).all()


def test_a_model_loaded_in_inference_mode_scores_as_any_other(tiny_bert):
    with torch.inference_mode():
        model = load(tiny_bert, precision="bf16")
    assert torch.equal(score(model), score(load(tiny_bert, precision="bf16")))


@pytest.fixture
def as_anew():
    """Availability is determined again, in the test and after it."""
    cpu.is_available.cache_clear()
    yield
    cpu.is_available.cache_clear()


@pytest.mark.usefixtures("as_anew")
@pytest.mark.parametrize("missing", [AttributeError, NotImplementedError, RuntimeError, None])
def test_without_the_calls_or_the_hardware_the_plain_layers_run(missing, tiny_bert, monkeypatch):
    def absent(*_):
        raise missing("no such operator")

    if missing:
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", absent)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    model = load(tiny_bert, precision="bf16")
    assert model.fused_layers() == {}
    assert error(score(model), score(load(tiny_bert))) < 0.06
