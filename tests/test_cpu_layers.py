import numpy as np
import pytest
import torch
from conftest import SIZES
from test_model import PAIRS, load, pack
from transformers import AutoModel, AutoTokenizer, BertConfig

from rankdistillm import cpu_layers as module
from rankdistillm.bert_layers import LAYERS
from rankdistillm.cpu_layers import CpuLayer
from rankdistillm.networks import MonoNetwork
from rankdistillm.rerank import Reranker
from rankdistillm.segments import Segments

DOCS = list(dict.fromkeys(doc for _, doc in PAIRS))

pytestmark = pytest.mark.skipif(
    not module.is_available(), reason="needs a CPU with bf16 in hardware, and oneDNN in torch"
)


@pytest.fixture
def calls(calls_of):
    """The layers that computed fused, in turn."""
    return calls_of(CpuLayer)


def scores(reranker):
    if not isinstance(reranker, Reranker):
        reranker = Reranker(reranker)
    return torch.from_numpy(reranker.score("how is bread made", DOCS))


def error(found, exact):
    return ((found - exact).norm() / (exact - exact.mean()).norm()).item()


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "xlm-roberta", "camembert"])
def test_a_reranker_in_bf16_scores_by_fused_layers(architecture, tiny_models, calls):
    path = tiny_models(architecture)
    exact = scores(load(path))
    assert not calls
    model = load(path, precision="bf16")
    found = scores(model)
    # All but the last, which is computed for first tokens alone, in float32.
    assert len(calls) == SIZES["num_hidden_layers"] - 1
    assert 0 < error(found, exact) < 0.06
    # With gradients, or without a word, the layers are those that training has.
    model(pack(model, PAIRS))
    assert len(calls) == SIZES["num_hidden_layers"] - 1


def test_a_fused_layer_is_the_layer(tiny_bert):
    layer = load(tiny_bert).network.backbone.encoder.layer[0]
    torch.manual_seed(5)
    for parameter in layer.parameters():  # random models have biases of 0
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(1, 30, SIZES["hidden_size"])
    segments = Segments(np.array([14, 9, 7]), torch.device("cpu"))
    exact = layer(hidden, segments=segments)
    found = CpuLayer(layer)(hidden, segments)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_an_encoder_whose_last_layer_is_whole_has_that_one_fused_too(tiny_bert, calls):
    exact = load(tiny_bert)
    model = load(tiny_bert, precision="bf16")
    for each in (exact, model):
        each.network = MonoNetwork(each.network.backbone, pooling="mean").eval()
        torch.nn.init.ones_(each.network.linear.weight[:, ::2])
    assert error(scores(model), scores(exact)) < 0.06
    assert len(calls) == SIZES["num_hidden_layers"]


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "silu"])
def test_other_activations_than_gelu(activation, tiny_bert, tmp_path, calls):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(7)
    config = BertConfig(
        **SIZES, vocab_size=len(tokenizer), initializer_range=0.3, hidden_act=activation
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    exact = scores(load(tmp_path))
    assert error(scores(load(tmp_path, precision="bf16")), exact) < 0.06
    assert calls


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("bert", "fp32"), ("bert", "fp16"), ("modernbert", "bf16"), ("deberta", "bf16")],
)
def test_others_stay_as_they_are(architecture, precision, tiny_models):
    model = load(tiny_models(architecture), precision=precision)
    assert model.fused_layers() == {}


def halve(model):
    with torch.no_grad():
        for layer in model.network.backbone.encoder.layer:
            layer.output.dense.weight.mul_(0.5)


def take_a_step(model):
    model(pack(model, PAIRS)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def load_others(model, **options):
    halved = {n: w * 0.5 if "dense.weight" in n else w for n, w in model.state_dict().items()}
    model.load_state_dict(halved, **options)


def replace(model):
    for layer in model.network.backbone.encoder.layer:
        layer.output.dense.weight.data = layer.output.dense.weight.data * 0.5


@pytest.mark.parametrize(
    "change",
    [halve, take_a_step, load_others, lambda model: load_others(model, assign=True), replace],
)
def test_the_weights_are_those_of_the_moment(change, tiny_bert):
    model = load(tiny_bert, precision="bf16")
    reranker = Reranker(model)
    before = scores(reranker)
    change(model)
    after = scores(reranker)
    assert error(after, before) > 0.05
    exact = load(tiny_bert)
    exact.load_state_dict(model.state_dict())
    assert error(after, scores(exact)) < 0.06


def test_layers_are_fused_once_for_many_calls(tiny_bert, monkeypatch):
    model = load(tiny_bert, precision="bf16")
    made = []
    make = model.fused_layers
    monkeypatch.setattr(model, "fused_layers", lambda: made.append(make()) or made[-1])
    reranker = Reranker(model)
    first = scores(reranker)
    assert torch.equal(scores(reranker), first)
    assert len(made) == 1
    halve(model)
    scores(reranker)
    assert len(made) == 2


def test_a_model_loaded_in_inference_mode_has_no_counts_of_changes(tiny_bert):
    with torch.inference_mode():
        model = load(tiny_bert, precision="bf16")
    assert torch.equal(scores(model), scores(load(tiny_bert, precision="bf16")))


@pytest.mark.parametrize("missing", [AttributeError, NotImplementedError, RuntimeError, None])
def test_without_the_calls_or_the_hardware_the_layers_stay(missing, tiny_bert, monkeypatch):
    def absent(*_):
        raise missing("no such operator")

    if missing:
        monkeypatch.setattr(module, "_linear", absent)
    else:
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    module.is_available.cache_clear()
    try:
        model = load(tiny_bert, precision="bf16")
        assert model.fused_layers() == {}
        assert error(scores(model), scores(load(tiny_bert))) < 0.06
    finally:
        module.is_available.cache_clear()


def test_every_layer_of_the_names_has_what_is_fused(tiny_models):
    for architecture in ("bert", "electra", "roberta", "xlm-roberta", "camembert"):
        model = load(tiny_models(architecture), precision="bf16")
        fused = model.fused_layers()
        assert len(fused) == SIZES["num_hidden_layers"] - 1
        assert {type(layer).__name__ for layer in fused} <= set(LAYERS)
