"""Re-rankers made of sentence-transformers' modules score here as there, and go back there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.heads import ModularNetwork, MonoNetwork
from rankdistillm.model.reranker import Reranker
from tests.helpers import load, load_for_training, pack, tokenizer_for, write_classifier

# Written by experiments/parity/sentence_transformers_modules.py.
GOLDEN = Path(__file__).parents[1] / "golden/sentence_transformers"
QUERIES = ["why do tides turn", "how is bread made " * 12, ""]
DOCS = ["The tide follows the Moon.", "", "café 潮汐", "Bread rises because yeast. " * 60]
PAIRS = [(query, doc) for query in QUERIES for doc in DOCS]
WIDTH = 16  # of the tiny encoders
HOMES = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Dense": "base.modules.dense",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Normalize": "base.modules.normalize",
    "Dropout": "sentence_transformer.modules.dropout",
    "LogitScore": "cross_encoder.modules.logit_score",
}


def scores(path, **options):
    reranker = Reranker.from_pretrained(path, **{"device": "cpu", "precision": "fp32", **options})
    return np.concatenate([reranker.score(query, DOCS) for query in QUERIES])


# ---- folders as sentence-transformers writes them


def write_modules(folder, *kinds, old=False, model_type="CrossEncoder", activation="Identity"):
    """modules.json and what names the task; ``old``: with the paths of classes before 5.4."""
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.{'models' if old else HOMES[kind]}.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {
        "__version__": {"sentence_transformers": "6.2.0"},
        "activation_fn": f"torch.nn.modules.activation.{activation}",
        "default_prompt_name": None,
        "model_type": model_type,
        "prompts": {},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    new = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
    }
    transformer = {"max_seq_length": 64, "do_lower_case": False} if old else new
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))


def write_module(folder, name, config, module=None, prefix=""):
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    if module is not None:
        torch.manual_seed(len(name) + WIDTH)
        tensors = {f"{prefix}{n}": torch.randn_like(t) for n, t in module.state_dict().items()}
        module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items()})
        save_file(tensors, folder / name / "model.safetensors")
    return module


def pooling_config(**values):
    return {"embedding_dimension": WIDTH, "include_prompt": True} | values


def dense_config(inputs, outputs, activation, *, bias, last=False, **values):
    return {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{activation}",
        "module_input_name": "sentence_embedding",
        "module_output_name": "scores" if last else "sentence_embedding",
    } | values


LAST = dense_config(WIDTH, 1, "linear.Identity", bias=True, last=True)


def write_ettin(folder, encoder, *, old=False, activation="Identity", pooling=None):
    """Write a re-ranker built like cross-encoder/ettin-reranker-*; returns its head."""
    shutil.copytree(encoder, folder)
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dense")
    write_modules(folder, *kinds, old=old, activation=activation)
    write_module(folder, "1_Pooling", pooling or pooling_config(pooling_mode="cls"))
    hidden = dense_config(WIDTH, WIDTH, "activation.GELU", bias=False)
    return nn.Sequential(
        write_module(folder, "2_Dense", hidden, nn.Linear(WIDTH, WIDTH, bias=False), "linear."),
        nn.GELU(),
        write_module(folder, "3_LayerNorm", {"dimension": WIDTH}, nn.LayerNorm(WIDTH), "norm."),
        write_module(folder, "4_Dense", LAST, nn.Linear(WIDTH, 1), "linear."),
    )


@torch.no_grad()
def pooled_states(folder, pool):
    """The states of transformers' own forward, pooled, for each pair alone."""
    encoder = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for query, doc in PAIRS:
        inputs = tokenizer(
            [query], [doc], return_tensors="pt", truncation="longest_first", max_length=300
        )
        found.append(pool(encoder(**inputs).last_hidden_state[0]))
    return torch.stack(found)


def first(states):
    return states[0]


@pytest.fixture
def ettin(tiny_models, tmp_path):
    """A re-ranker built like Ettin's, over a ModernBERT, for pairs of at most 300 tokens."""
    folder = tmp_path / "ettin"
    write_ettin(folder, tiny_models("modernbert"))
    edit(folder / "tokenizer_config.json", model_max_length=300)
    return folder


def edit(file, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v != "REMOVED"}))


# ---- reading


@pytest.mark.parametrize("packed", [True, False])
def test_a_reranker_of_sentence_transformers_scores_as_there(packed):
    record = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))["scores"]
    reranker = Reranker.from_pretrained(GOLDEN, device="cpu", precision="fp32", packed=packed)
    found = [reranker.score(r["query"], [r["passage"]])[0] for r in record]
    expected = [r["score"] for r in record]
    assert np.std(expected) > 0.05  # otherwise any scores would agree
    assert found == pytest.approx(expected, abs=1e-5, rel=0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("activation", ["Identity", "Sigmoid"])
@pytest.mark.parametrize("architecture", ["modernbert", "bert", "roberta"])
def test_an_ettin_reranker_scores_by_its_whole_head(
    architecture, activation, packed, tiny_models, tmp_path
):
    folder = tmp_path / "reranker"
    head = write_ettin(folder, tiny_models(architecture), activation=activation)
    edit(folder / "tokenizer_config.json", model_max_length=300)
    with torch.no_grad():
        expected = getattr(nn, activation)()(head(pooled_states(folder, first)))[:, 0]
    assert expected.std() > 0.003
    assert scores(folder, packed=packed) == pytest.approx(expected.numpy(), abs=1e-5)
    model = load(folder, packed=packed)
    assert model.has_head
    assert (model.layout, model.query_length, model.doc_length) == (
        "sentence_transformers", None, None,
    )  # fmt: skip


def weighted_mean(states):
    weights = torch.arange(1, len(states) + 1).unsqueeze(-1)
    return (states * weights).sum(0) / weights.sum()


POOLINGS = {
    "cls": first,
    "max": lambda states: states.amax(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": weighted_mean,
    "lasttoken": lambda states: states[-1],
}
OLD = {
    "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}  # fmt: skip


@pytest.mark.parametrize(("old", "packed"), [(False, True), (True, False)])
@pytest.mark.parametrize("mode", POOLINGS)
def test_poolings_in_the_old_and_the_new_spelling(mode, old, packed, tiny_bert, tmp_path):
    folder = tmp_path / "reranker"
    flags = {f"pooling_mode_{OLD[other]}": other == mode for other in POOLINGS}
    flags["word_embedding_dimension"] = WIDTH
    config = flags if old else pooling_config(pooling_mode=mode)
    head = write_ettin(folder, tiny_bert, old=old, pooling=config)
    edit(folder / "tokenizer_config.json", model_max_length=300)
    if old:
        edit(folder / "sentence_bert_config.json", max_seq_length=300)
    with torch.no_grad():
        expected = head(pooled_states(folder, POOLINGS[mode]))[:, 0]
    assert scores(folder, packed=packed) == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("old", [False, True])
def test_several_poolings_are_concatenated(old, packed, tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "reranker")
    write_modules(folder, "Transformer", "Pooling", "Dense")
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    config = flags if old else {"pooling_mode": ["cls", "mean"]}
    write_module(folder, "1_Pooling", pooling_config(**config))
    last = dense_config(2 * WIDTH, 1, "linear.Identity", bias=True, last=True)
    head = write_module(folder, "2_Dense", last, nn.Linear(2 * WIDTH, 1), "linear.")
    edit(folder / "tokenizer_config.json", model_max_length=300)
    both = [pooled_states(folder, POOLINGS[mode]) for mode in ("cls", "mean")]
    with torch.no_grad():
        expected = head(torch.cat(both, -1))[:, 0].numpy()
    assert scores(folder, packed=packed) == pytest.approx(expected, abs=1e-5)


def test_all_kinds_of_modules_in_one_head(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "reranker")
    kinds = ("Transformer", "Pooling", "Dropout", "Normalize", "Dense", "Dense", "Dense")
    write_modules(folder, *kinds)
    write_module(folder, "1_Pooling", pooling_config(pooling_mode="cls"))
    write_module(folder, "2_Dropout", {"dropout": 0.5})
    (folder / "3_Normalize").mkdir()  # older versions write no config.json
    same = dense_config(WIDTH, WIDTH, "activation.PReLU", bias=True, use_residual=True)
    wider = dense_config(WIDTH, 8, "activation.Tanh", bias=True, use_residual=True)
    last = dense_config(8, 1, "linear.Identity", bias=False, last=True)
    tanh = nn.ModuleDict({"linear": nn.Linear(WIDTH, 8), "residual": nn.Linear(WIDTH, 8, False)})
    prelu = nn.ModuleDict({"linear": nn.Linear(WIDTH, WIDTH), "activation_function": nn.PReLU()})
    write_module(folder, "4_Dense", same, prelu)
    write_module(folder, "5_Dense", wider, tanh)
    linear = write_module(folder, "6_Dense", last, nn.Linear(8, 1, False), "linear.")
    edit(folder / "tokenizer_config.json", model_max_length=300)
    with torch.no_grad():
        states = nn.functional.normalize(pooled_states(folder, first), dim=-1)
        states = prelu["activation_function"](prelu["linear"](states)) + states
        states = tanh["linear"](states).tanh() + tanh["residual"](states)
        expected = linear(states)[:, 0].numpy()
    assert scores(folder) == pytest.approx(expected, abs=1e-5)
    # Written and read again, they are the same, and their dropout is replaced with the encoder's.
    load(folder).save_pretrained(tmp_path / "again")
    assert (scores(tmp_path / "again") == scores(folder)).all()
    assert [m.p for m in load(folder).network.head if isinstance(m, nn.Dropout)] == [0.5]
    assert load(folder, dropout=0.1).network.head[0].p == 0.1


def test_a_pair_is_cut_to_the_recorded_number_of_tokens(ettin):
    whole = scores(ettin)
    edit(ettin / "sentence_bert_config.json", max_seq_length=40)
    assert load(ettin).template.max_length == 40
    cut = scores(ettin)
    assert cut[0] == pytest.approx(whole[0], abs=1e-6)
    assert abs(cut[3] - whole[3]) > 1e-3
    load(ettin).save_pretrained(ettin.parent / "again")
    assert scores(ettin.parent / "again") == pytest.approx(cut, abs=1e-6)


def test_a_sequence_classifier_with_its_single_module_is_loaded(tmp_path):
    write_classifier(tmp_path, "bert")
    expected = scores(tmp_path)
    write_modules(tmp_path, "Transformer")
    assert load(tmp_path).layout == "classifier"
    assert (scores(tmp_path) == expected).all()


@pytest.mark.slow
def test_a_reranker_on_the_hub_is_loaded_with_its_modules(process, tmp_path):
    name, commit = "models--o--r", "0" * 40
    shutil.copytree(GOLDEN, tmp_path / name / "snapshots" / commit)
    (tmp_path / name / "refs").mkdir()
    (tmp_path / name / "refs/main").write_text(commit)
    code = (
        "from rankdistillm.model.reranker import Reranker\n"
        "reranker = Reranker.from_pretrained('o/r', device='cpu', precision='fp32')\n"
        "print(reranker.score('why do tides turn', ['The tide', 'The Moon']).tolist())"
    )
    result = process("-c", code, cwd=tmp_path, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    reranker = Reranker.from_pretrained(GOLDEN, device="cpu", precision="fp32")
    expected = reranker.score("why do tides turn", ["The tide", "The Moon"])
    assert json.loads(result.stdout) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("model_type", ["SentenceTransformer", None])
@pytest.mark.parametrize("last", ["Pooling", "Normalize", "Dense"])
def test_an_embedding_model_made_of_modules_is_an_encoder(last, model_type, tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "modular")
    kinds = ("Transformer", "Pooling") if last == "Pooling" else ("Transformer", "Pooling", last)
    write_modules(folder, *kinds, model_type=model_type)
    if model_type is None:
        edit(folder / "config_sentence_transformers.json", model_type="REMOVED")
    if last == "Dense":
        write_module(folder, "2_Dense", dense_config(WIDTH, 8, "activation.Tanh", bias=True))
    model = load(folder)
    assert (model.layout, model.has_head) == ("encoder", False)


# ---- training on, and writing


def test_training_changes_the_head_and_keeps_the_layout(ettin, tmp_path):
    model = load_for_training(ettin)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    packed = pack(model, [(query, doc[:200]) for query, doc in PAIRS])
    losses = []
    for _ in range(3):
        loss = (model(packed) - torch.arange(len(PAIRS)) / 10).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    unchanged = [n for n, weight in model.named_parameters() if torch.equal(weight, before[n])]
    assert not unchanged
    expected = Reranker(model.eval()).score(QUERIES[0], DOCS)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.layout == "sentence_transformers"
    assert Reranker(again).score(QUERIES[0], DOCS) == pytest.approx(expected, abs=1e-6)
    kept = [m["type"].rpartition(".")[2] for m in modules_of(tmp_path / "saved")]
    assert kept == ["Transformer", "Pooling", "Dense", "LayerNorm", "Dense"]


def test_the_command_trains_a_reranker_made_of_modules_and_replaces_it(
    command, tiny_bert, tmp_path
):
    options = (
        "+stage=distill", "output=out", "max_steps=1", "queries_per_step=1", "resume=never",
        "precision=fp32", "data.validation.run=null", "data.test.run=null",
    )  # fmt: skip
    said = command("train", *options, f"model.path={GOLDEN}", "model.doc_length=20")
    assert said.status == 0, said.err
    student = load("out/checkpoint")
    assert isinstance(student.network, ModularNetwork)
    assert (student.query_length, student.doc_length) == (None, 20)
    before = load_file(GOLDEN / "4_Dense/model.safetensors")["linear.weight"]
    assert not torch.equal(student.network.head[-1].linear.weight, before)
    # Another student in its place is not read with its modules.
    said = command("train", *options, f"model.path={tiny_bert}", "model.doc_length=20")
    assert said.status == 0, said.err
    assert isinstance(load("out/checkpoint").network, MonoNetwork)


def modules_of(folder):
    return json.loads((folder / "modules.json").read_text())


def test_packed_and_padded_pairs_give_the_head_the_same_gradient(ettin):
    gradients = []
    for packed in (True, False):
        model = load_for_training(ettin, packed=packed)
        model(pack(model, PAIRS)).square().sum().backward()
        gradients.append(model.network.head[0].linear.weight.grad)
    assert gradients[0].abs().max() > 1
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_scores_of_a_head_are_not_rounded_to_bf16(ettin):
    found = torch.from_numpy(scores(ettin, precision="bf16"))
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any()


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta"])
def test_every_student_is_written_and_read_again(architecture, tiny_models, tmp_path):
    model = load(tiny_models(architecture), query_length=5, doc_length=20)
    model.save_pretrained(tmp_path, layout="sentence_transformers")
    again = load(tmp_path)
    assert isinstance(again.network, MonoNetwork)
    assert (again.query_length, again.doc_length) == (5, 20)
    assert again.template.max_length == model.template.max_length
    assert (scores(tmp_path) == np.concatenate(
        [Reranker(model).score(query, DOCS) for query in QUERIES]
    )).all()  # fmt: skip
    template = model.template
    special = len(template.before) + len(template.between) + len(template.after)
    transformer = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert transformer["max_seq_length"] == 25 + special
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it
    again.save_pretrained(tmp_path / "mono", layout="mono")
    assert scores(tmp_path / "mono") == pytest.approx(scores(tmp_path), abs=1e-6)


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_heads_of_one_linear_layer(outputs, bias, pooling, tiny_bert, tmp_path):
    model = load(tiny_bert)
    torch.manual_seed(2)
    model.network = MonoNetwork(
        model.network.backbone, pooling=pooling, bias=bias, outputs=outputs
    ).eval()
    nn.init.normal_(model.network.linear.weight)
    expected = Reranker(model).score(QUERIES[0], DOCS)
    model.save_pretrained(tmp_path, layout="sentence_transformers")
    assert Reranker(load(tmp_path)).score(QUERIES[0], DOCS) == pytest.approx(expected, abs=1e-5)
    assert load_file(tmp_path / "2_Dense/model.safetensors")["linear.weight"].shape == (1, WIDTH)
    kind = MonoNetwork if outputs == 1 else ModularNetwork
    assert isinstance(load(tmp_path).network, kind)


def test_students_that_the_layout_cannot_hold_are_rejected(tiny_bert, ettin, tmp_path):
    model = load(tiny_bert)
    model.network = MonoNetwork(model.network.backbone, pooling="sum")
    with pytest.raises(InputError, match="no pooling 'sum'; use layout=encoder or mono"):
        model.save_pretrained(tmp_path / "sum", layout="sentence_transformers")
    with pytest.raises(InputError, match="does not fit this student; use sentence_transformers"):
        load(ettin).save_pretrained(tmp_path / "mono", layout="mono")
    write_classifier(tmp_path / "classifier", "bert")
    with pytest.raises(InputError, match="does not fit this student; use classifier"):
        load(tmp_path / "classifier").save_pretrained(
            tmp_path / "other", layout="sentence_transformers"
        )
    assert not [path for path in ("sum", "mono", "other") if (tmp_path / path).exists()]


def test_another_layout_is_not_written_over_modules(ettin, tiny_bert):
    with pytest.raises(InputError, match=r"modules\.json there describes another model"):
        load(tiny_bert).save_pretrained(ettin)


# ---- what cannot be read whole is rejected


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode=.'median'. is not of"),
        ("1_Pooling/config.json", {"pooling_mode": []}, r"pooling_mode=\[\] is not of"),
        ("1_Pooling/config.json", {"embedding_dimension": 8}, "embedding_dimension=8 is not the"),
        ("1_Pooling/config.json", {"odd": 1}, "the setting 'odd' is not known here"),
        ("2_Dense/config.json", {"odd": 1}, "the setting 'odd' is not known here"),
        ("2_Dense/config.json", {"activation_function": "code.Act"}, "'code.Act' is not one of"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Linear"}, "is not one of torch"),
        ("2_Dense/config.json", {"activation_function": "REMOVED"}, "activation_function"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name="),
        ("2_Dense/config.json", {"bias": True}, r"2_Dense/model\.safetensors: .*linear\.bias"),
        ("2_Dense/config.json", {"use_residual": "x"}, "bias and use_residual are true or false"),
        ("2_Dense/config.json", {"in_features": 8}, "it takes 8 numbers, but 16 come in"),
        ("2_Dense/config.json", {"out_features": 10**9}, "size mismatch"),
        ("3_LayerNorm/config.json", {"dimension": 8}, "it takes 8 numbers, but 16 come in"),
        ("4_Dense/config.json", {"module_output_name": None}, "named 'sentence_embedding', not"),
        ("4_Dense/config.json", {"out_features": 2}, "size mismatch"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=True is not"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "modality_config="),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}},
         "processing_kwargs="),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length=x is not a whole"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name"),
        ("config_sentence_transformers.json", {"activation_fn": "code.Act"}, "'code.Act' is not"),
        ("config_sentence_transformers.json",
         {"activation_fn": "torch.nn.modules.activation.Hardshrink", "model_type": "REMOVED"},
         "describes a re-ranker, but config_sentence_transformers"),
    ],
)  # fmt: skip
def test_settings_that_are_not_supported_are_rejected(file, values, said, ettin):
    edit(ettin / file, **values)
    with pytest.raises(InputError, match=rf"^{ettin}: .*{said}") as error:
        CrossEncoder.from_pretrained(ettin)
    assert file.partition("/")[0] in str(error.value)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax")
def test_an_activation_over_all_scores_is_rejected(ettin):
    name = "torch.nn.modules.activation.Softmax"
    edit(ettin / "config_sentence_transformers.json", activation_fn=name)
    with pytest.raises(InputError, match="Softmax does not treat each score alone"):
        CrossEncoder.from_pretrained(ettin)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("modules.json", r"modules\.json, which names the modules of its head, is missing"),
        ("config_sentence_transformers.json", "describes a re-ranker, but config_sentence_trans"),
        ("sentence_bert_config.json", r"sentence_bert_config\.json is missing"),
        ("1_Pooling/config.json", r"1_Pooling/config\.json is missing"),
        ("3_LayerNorm/model.safetensors", r"there is no 3_LayerNorm/model\.safetensors"),
        ("4_Dense/config.json", r"4_Dense/config\.json is missing"),
    ],
)
def test_a_missing_file_is_named(file, said, ettin):
    (ettin / file).unlink()
    with pytest.raises(InputError, match=said):
        CrossEncoder.from_pretrained(ettin)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("Transformer", "CNN", "Pooling", "Dense"), "whose CNN is not known here"),
        (("Pooling", "Transformer", "Dense"), "in an order not known here; give one made of"),
        (("Transformer", "Pooling"), "Transformer . Pooling, in an order not known here"),
        (("Transformer", "Pooling", "Dense", "LayerNorm"), "in an order not known here"),
        (("Transformer", "LogitScore"), "a decoder that scores by its next token.*teacher=yes_no"),
    ],
)
def test_other_modules_are_rejected_by_name(kinds, said, ettin, monkeypatch):
    monkeypatch.setitem(HOMES, "CNN", "sentence_transformer.modules.cnn")
    write_modules(ettin, *kinds)
    with pytest.raises(InputError, match=rf"modules\.json: .*{said}"):
        CrossEncoder.from_pretrained(ettin)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "is not a list of modules"),
        ([], "is not a list of modules"),
        ([{"type": "sentence_transformers.models.Transformer"}], "KeyError: 'path'"),
        ([{"type": "sentence_transformers.models.Dense", "path": "../x"}], "not a folder beside"),
        ([{"type": "code.Transformer", "path": ""}], "whose code.Transformer is not known here"),
    ],
)
def test_a_damaged_list_of_modules_is_rejected(entries, said, ettin):
    (ettin / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=rf"^{ettin}: .*modules\.json: .*{said}"):
        CrossEncoder.from_pretrained(ettin)


@pytest.mark.parametrize("tensor", [torch.full((WIDTH, WIDTH), torch.nan), torch.ones(WIDTH, 1)])
def test_weights_of_a_head_that_do_not_fit_are_rejected(tensor, ettin):
    save_file({"linear.weight": tensor.contiguous()}, ettin / "2_Dense/model.safetensors")
    with pytest.raises(InputError, match=r"2_Dense/model\.safetensors: "):
        CrossEncoder.from_pretrained(ettin)


def test_decoders_are_rejected_as_students_and_named_as_teachers(ettin, tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=3100, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    transformers.Qwen3Model(config).save_pretrained(tmp_path / "decoder")
    tokenizer_for("bert").save_pretrained(tmp_path / "decoder")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "decoder" / name, ettin / name)
    with pytest.raises(InputError, match=r"qwen3 is a decoder, .*teach teacher=yes_no"):
        CrossEncoder.from_pretrained(ettin)
