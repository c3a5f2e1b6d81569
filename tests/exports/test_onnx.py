"""The ONNX graph of each kind of encoder: same scores, any batch and length."""

import builtins
import json

import numpy as np
import pytest
import torch

from rankdistillm.errors import InputError
from rankdistillm.exports import onnx
from rankdistillm.model.heads import Dense, ModularNetwork, padded_inputs
from tests.helpers import PAIRS, load, pack, write_classifier

onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

FEW = [(query, doc[:40]) for query, doc in PAIRS[:2]]


def session_of(folder):
    return onnxruntime.InferenceSession(folder / onnx.MODEL, providers=["CPUExecutionProvider"])


def both_scores(model, session, pairs):
    packed = pack(model, pairs)
    inputs = padded_inputs(packed, model.network.config, torch.device("cpu"))
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.inference_mode():
        return logits, model(packed).numpy()


def check_graph(model, folder):
    """Compare scores in batches of several shapes; check what servers rely on."""
    session = session_of(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if not model.template.has_types:
        names.remove("token_type_ids")
    assert {i.name for i in session.get_inputs()} == {*names}
    assert all(i.type == "tensor(int64)" for i in session.get_inputs())
    (output,) = session.get_outputs()
    assert (output.name, output.type) == ("logits", "tensor(float)")
    for pairs in (PAIRS, FEW, PAIRS[3:4], [("", "")]):
        logits, expected = both_scores(model, session, pairs)
        assert logits.shape == (len(pairs), 1)
        assert logits[:, 0] == pytest.approx(expected, abs=1e-5)
    assert both_scores(model, session, PAIRS)[1].std() > 0.05
    # What TEI's router and its ORT backend read.
    config = json.loads((folder / "config.json").read_text())
    assert (folder / "onnx/model.onnx").exists()
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["label2id"] == {"LABEL_0": 0}
    assert config["hidden_size"] == 16
    assert config["num_hidden_layers"] == 3
    assert config["max_position_embeddings"] == 320
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert (folder / "tokenizer.json").exists()


# The exporter takes seconds for each. Others write a BERT and, with the command, an ELECTRA.
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["modernbert", "roberta", "deberta"])
def test_students_of_each_encoder(architecture, tiny_models, tmp_path):
    model = load(tiny_models(architecture), packed=False)
    model.network.linear.weight.data.mul_(5)
    onnx.write(model, tmp_path)
    check_graph(model, tmp_path)


def test_sentence_transformers_finds_the_graph(tmp_path):
    utils = pytest.importorskip("sentence_transformers.backend.utils")
    (tmp_path / "onnx").mkdir()
    (tmp_path / onnx.MODEL).touch()
    export, options = utils.backend_should_export(
        tmp_path, True, {}, "model.onnx", "*.onnx", "onnx"
    )
    assert export is False  # it would export the folder anew if it did not find the file
    assert options == {"subfolder": "onnx", "file_name": "model.onnx"}


@pytest.mark.slow
def test_a_classifier(tmp_path):
    write_classifier(tmp_path / "classifier", "roberta")
    model = load(tmp_path / "classifier", packed=False)
    (tmp_path / "new").mkdir()
    onnx.write(model, tmp_path / "new")
    check_graph(model, tmp_path / "new")


@pytest.mark.slow
def test_a_bert_in_float32_and_in_int8_which_is_smaller_and_close(tiny_models, tmp_path):
    model = load(tiny_models("bert"), packed=False)
    model.network.linear.weight.data.mul_(5)
    for name, int8 in (("fp32", False), ("int8", True)):
        (tmp_path / name).mkdir()
        onnx.write(model, tmp_path / name, int8=int8)
    check_graph(model, tmp_path / "fp32")
    sizes = [(tmp_path / name / onnx.MODEL).stat().st_size for name in ("fp32", "int8")]
    assert sizes[1] < 0.7 * sizes[0]
    logits, expected = both_scores(model, session_of(tmp_path / "int8"), PAIRS)
    assert np.corrcoef(logits[:, 0], expected)[0, 1] > 0.95
    assert np.abs(logits[:, 0] - expected).max() > 1e-5  # it is not float32


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tiny_models, tmp_path, monkeypatch):
    model = load(tiny_models("bert"), packed=False)

    def importing(name, *rest, do_import=builtins.__import__, **options):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return do_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(InputError, match=rf"the package {package}, of the extra onnx: pip install"):
        onnx.write(model, tmp_path)


@pytest.mark.slow
def test_a_head_of_modules_over_other_poolings(tiny_models, tmp_path):
    backbone = load(tiny_models("modernbert"), packed=False).network.backbone
    torch.manual_seed(1)
    head = torch.nn.Sequential(
        Dense(48, 16, torch.nn.GELU(), bias=True, residual=False),
        torch.nn.LayerNorm(16),
        Dense(16, 1, torch.nn.Identity(), bias=True, residual=False),
    )
    model = load(tiny_models("modernbert"), packed=False)
    model.network = ModularNetwork(
        backbone, ["first", "mean", "max"], head, torch.nn.Sigmoid(), packed=False
    ).eval()
    onnx.write(model, tmp_path)
    logits, expected = both_scores(model, session_of(tmp_path), PAIRS)
    assert expected.std() > 0.1
    assert logits[:, 0] == pytest.approx(expected, abs=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"].endswith(".Sigmoid")
