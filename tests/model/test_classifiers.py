"""A student's linear head inside transformers' classifiers."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

from rankdistillm.errors import InputError
from rankdistillm.model.formats import classifiers, tei
from rankdistillm.model.heads import MonoNetwork
from rankdistillm.model.reranker import Reranker
from tests.helpers import DOCS, QUERIES, SIZES, config_for, load

EXACT = ("electra", "deberta", "deberta-v1", "distilbert")
BY_TANH = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "albert")


def random_network(architecture, *, outputs=1, bias=False, pooling="first", **changes):
    """A random student whose scores reach beyond 10."""
    sizes = dict(SIZES, vocab_size=100, pad_token_id=0, initializer_range=0.3)
    if architecture == "deberta-v1":
        config = transformers.DebertaConfig(**sizes, type_vocab_size=0)
    elif architecture == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=100, dim=16, n_layers=2, n_heads=2, hidden_dim=32, initializer_range=0.3
        )
    elif architecture == "mpnet":
        config = transformers.MPNetConfig(**sizes)
    elif architecture == "albert":
        config = transformers.AlbertConfig(**sizes, embedding_size=8)
    else:
        config = config_for(architecture, 100)
    config.update(changes)
    torch.manual_seed(3)
    network = MonoNetwork(
        transformers.AutoModel.from_config(config),
        outputs=outputs,
        bias=bias,
        pooling=pooling,
        packed=False,
    ).eval()
    network.linear.weight.data.mul_(200)
    return network


def random_tokens():
    return torch.randint(5, 100, (40, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores_in_float64(network, folder, activation=None):
    """The scores of some tokens: the network's, and those of the classifier in the folder."""
    tokens = random_tokens()
    expected = network.double().linear(network.backbone(tokens).last_hidden_state[:, 0])
    expected = expected.log_softmax(-1)[:, 1] if expected.shape[1] == 2 else expected[:, 0]
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    logits = classifier.eval()(tokens).logits
    assert logits.shape == (40, 1)
    found = logits[:, 0] if activation is None else activation(logits[:, 0])
    assert expected.std() > 1
    return found.numpy(), expected.numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("architecture", EXACT)
def test_activations_that_are_linear_in_pairs_hold_the_head_exactly(architecture, bias, tmp_path):
    network = random_network(architecture, bias=bias)
    classifiers.write(network, tmp_path, {})
    found, expected = scores_in_float64(network, tmp_path)
    assert np.abs(expected).max() > 5
    assert found == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("architecture", BY_TANH)
def test_tanh_holds_the_head_up_to_a_known_remainder(architecture, bias, tmp_path):
    network = random_network(architecture, bias=bias)
    classifiers.write(network, tmp_path, {})
    found, expected = scores_in_float64(network, tmp_path)
    largest = np.abs(expected).max()
    assert largest > 5
    # The remainder of the series, and the rounding of 4/(3e) and -1/(6e) to float32.
    remainder = 8 / 15 * classifiers.TANH_SCALE**4 * largest**5
    assert np.abs(found - expected).max() <= 1.1 * remainder + 2**-24 * largest
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("architecture", ["electra", "bert"])
def test_two_outputs_become_one_and_a_log_sigmoid(architecture, tmp_path):
    network = random_network(architecture, outputs=2, bias=True)
    with torch.no_grad():  # neither class should always win
        first, second = network.linear(network.backbone(random_tokens()).last_hidden_state[:, 0]).T
        network.linear.bias[0] += (second - first).median()
    classifiers.write(network, tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == (
        "torch.nn.modules.activation.LogSigmoid"
    )
    found, expected = scores_in_float64(network, tmp_path, torch.nn.functional.logsigmoid)
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_activation_of_the_configuration_does_not_matter(tmp_path):
    network = random_network("deberta", pooler_hidden_act="tanh", hidden_act="relu")
    classifiers.write(network, tmp_path, {})
    found, expected = scores_in_float64(network, tmp_path)
    assert found == pytest.approx(expected, abs=1e-13)
    assert network.config.pooler_hidden_act == "tanh"  # the student's own is not touched


@pytest.mark.parametrize("architecture", ["electra", "bert", "roberta", "deberta"])
def test_a_student_saved_as_classifier_is_loaded_again(architecture, tiny_models, tmp_path):
    model = load(tiny_models(architecture), query_length=8, doc_length=24)
    expected = [Reranker(model).score(query, DOCS) for query in QUERIES]
    model.save_pretrained(tmp_path, layout="classifier")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "LABEL_0"}
    # sentence-transformers and vLLM apply a sigmoid unless this says otherwise; vLLM only if there
    # is no problem_type, and only for names in torch.nn.modules.
    assert config["problem_type"] is None
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    tokeniser = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokeniser["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it
    again = Reranker.from_pretrained(tmp_path, precision="fp32", device="cpu")
    assert (again.model.query_length, again.model.doc_length) == (8, 24)
    found = [again.score(query, DOCS) for query in QUERIES]
    assert np.concatenate(found) == pytest.approx(np.concatenate(expected), abs=1e-5)


def test_heads_that_normalise_are_refused_and_nothing_is_written(tiny_models, tmp_path):
    model = load(tiny_models("modernbert"))
    for layout, said in [
        ("classifier", "modernbert classifier .* write it as sentence_transformers"),
        ("tei", "this modernbert are not BERT's; write it as onnx"),
    ]:
        with pytest.raises(InputError, match=said):
            model.save_pretrained(tmp_path / "new", layout=layout)
    assert not (tmp_path / "new").exists()


def test_other_poolings_are_refused():
    for layout, remedy in [(classifiers, "sentence_transformers"), (tei, "onnx")]:
        with pytest.raises(InputError, match=rf"pools its tokens \(mean\).* write it as {remedy}"):
            layout.check(random_network("electra", pooling="mean", embedding_size=16))


# ---- TEI: what backends/candle/src/models/bert.rs and router/src/lib.rs read


def tei_scores(folder, tokens):
    """The scores as TEI's candle backend computes them, from the keys that it reads."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert config["model_type"] == "bert"
    assert config["architectures"][0].endswith("Classification")
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["label2id"] == {"LABEL_0": 0}  # one label: a re-ranker
    assert config.get("position_embedding_type", "absolute") == "absolute"
    numbers = [
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "pad_token_id",
    ]  # fmt: skip
    assert all(isinstance(config[name], int) for name in numbers)
    fractions = ["hidden_dropout_prob", "initializer_range", "layer_norm_eps"]
    assert all(isinstance(config[name], float) for name in fractions)
    assert config["hidden_act"] == "gelu"
    # With a pooler, TEI would apply it and a tanh; without one, the classifier alone.
    assert "bert.pooler.dense.weight" not in tensors
    assert tensors["classifier.weight"].shape == (1, config["hidden_size"])
    assert tensors["classifier.bias"].shape == (1,)
    bert = transformers.BertModel(BertConfig(**config), add_pooling_layer=False).eval()
    bert.load_state_dict(
        {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    )
    with torch.no_grad():
        states = bert(tokens).last_hidden_state[:, 0]
    return states @ tensors["classifier.weight"][0] + tensors["classifier.bias"]


@pytest.mark.parametrize("architecture", ["electra", "bert"])
def test_tei_finds_what_it_reads(architecture, tmp_path):
    changes = {"embedding_size": 16} if architecture == "electra" else {}
    network = random_network(architecture, bias=True, **changes)
    tei.check(network)
    tei.write(network, tmp_path, {"query_length": 32, "doc_length": 256})
    tokens = random_tokens()
    with torch.no_grad():
        expected = network.linear(network.backbone(tokens).last_hidden_state[:, 0])[:, 0]
    assert expected.std() > 1
    assert torch.allclose(tei_scores(tmp_path, tokens), expected, atol=1e-5, rtol=1e-5)
    assert "random pooler" in (tmp_path / "FOR_TEI_ONLY.md").read_text()


def test_small_electras_and_classifiers_are_refused_for_tei(tiny_models, tmp_path):
    with pytest.raises(InputError, match="this electra are not BERT's; write it as onnx"):
        load(tiny_models("electra")).save_pretrained(tmp_path / "new", layout="tei")
    load(tiny_models("bert")).save_pretrained(tmp_path / "again", layout="classifier")
    with pytest.raises(InputError, match="layout=tei does not fit this student; use classifier"):
        load(tmp_path / "again").save_pretrained(tmp_path / "new", layout="tei")


def test_what_is_written_for_tei_is_not_half_loaded_here(tiny_models, tmp_path):
    load(tiny_models("bert")).save_pretrained(tmp_path, layout="tei")
    assert (tmp_path / "tokenizer.json").exists()  # TEI requires it
    with pytest.raises(InputError, match=r"weights are missing, such as bert\.pooler"):
        load(tmp_path)
