"""Foreign checkpoints score here as in the library that wrote them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.reranker import Reranker
from tests.helpers import config_for, tokenizer_for, write_classifier

# Written by experiments/parity/lightning_ir_checkpoint.py.
GOLDEN = Path(__file__).parents[1] / "golden/lightning_ir"
QUERIES = ["why do tides turn", "how is bread made " * 12, ""]
DOCS = ["The tide follows the Moon.", "", "café 潮汐", "Bread rises because yeast. " * 60]


def scores(path, **options):
    options = {"device": "cpu", "precision": "fp32"} | options
    reranker = Reranker.from_pretrained(path, **options)
    return np.concatenate([reranker.score(query, DOCS) for query in QUERIES])


# ---- lightning-ir


def test_a_checkpoint_of_lightning_ir_scores_as_there():
    record = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))["scores"]
    reranker = Reranker.from_pretrained(GOLDEN, device="cpu", precision="fp32", retokenise=True)
    assert (reranker.model.query_length, reranker.model.doc_length) == (8, 24)
    found = [reranker.score(r["query"], [r["passage"]])[0] for r in record]
    expected = [r["score"] for r in record]
    assert np.std(expected) > 0.05  # otherwise any scores would agree
    assert found == pytest.approx(expected, abs=1e-6, rel=0)


def mono_checkpoint(folder, architecture="electra", *, bias=False, prefix="", **config):
    """Write a random model in lightning-ir's layout; returns its scores by the formula."""
    torch.manual_seed(5)
    tokenizer = tokenizer_for(architecture)
    backbone_config = config_for(architecture, len(tokenizer))
    backbone = transformers.AutoModel.from_config(backbone_config).eval()
    head = torch.nn.Linear(16, config.pop("outputs", 1), bias=bias)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    saved |= {
        "clean_up_tokenization_spaces": True,
        "tokenizer_class": "CrossEncoderTokenizer",
        "backbone_tokenizer_class": f"{type(backbone).__name__.replace('Model', 'TokenizerFast')}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(saved))
    raw = backbone_config.to_dict() | {
        "model_type": "mono",
        "backbone_model_type": architecture,
        "query_length": 8,
        "doc_length": 24,
        "pooling_strategy": "first",
        "linear_bias": False,
    }
    raw = {k: v for k, v in (raw | config).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    weights = {f"{prefix}{n}": t.contiguous() for n, t in backbone.state_dict().items()}
    weights |= {f"linear.{n}": t for n, t in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors")

    @torch.no_grad()
    def expected(pool=lambda states, mask: states[:, 0]):
        def cut(text, length):
            return tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)

        found = []
        for query in QUERIES:
            for doc in DOCS:
                pair = [cut(query, 8)["input_ids"], cut(doc, 24)["input_ids"]]
                # In lists: alone, transformers takes an empty second text for none at all.
                text = [tokenizer.decode(pair[0])], [tokenizer.decode(pair[1])]
                inputs = tokenizer(*text, padding="max_length", max_length=60, return_tensors="pt")
                states = backbone(**inputs).last_hidden_state
                found.append(head(pool(states, inputs["attention_mask"].unsqueeze(-1)))[0])
        return torch.stack(found)

    return expected


POOLINGS = {
    "first": lambda states, mask: states[:, 0],
    "mean": lambda states, mask: (states * mask).sum(1) / mask.sum(1),
    "sum": lambda states, mask: (states * mask).sum(1),
    "max": lambda states, mask: states.masked_fill(mask == 0, -torch.inf).amax(1),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_mono_poolings_and_a_bias_that_only_the_weights_show(pooling, bias, tmp_path):
    expected = mono_checkpoint(tmp_path, bias=bias, pooling_strategy=pooling)
    found = scores(tmp_path, retokenise=True)
    assert found == pytest.approx(expected(POOLINGS[pooling]).squeeze(-1).numpy(), abs=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert"])
def test_mono_over_other_encoders(architecture, tmp_path):
    expected = mono_checkpoint(tmp_path, architecture)
    assert scores(tmp_path, retokenise=True) == pytest.approx(expected()[:, 0].numpy(), abs=1e-5)


@pytest.mark.parametrize("prefix", ["", "electra."])
def test_the_older_format_of_the_released_models(prefix, tmp_path):
    expected = mono_checkpoint(
        tmp_path,
        prefix=prefix,
        model_type="cross-encoder",
        architectures=["CrossEncoderElectraModel"],
        backbone_model_type=None,
        linear_bias=None,
    )
    assert scores(tmp_path, retokenise=True) == pytest.approx(expected()[:, 0].numpy(), abs=1e-5)


def test_two_outputs_score_by_the_probability_of_the_second(tmp_path):
    expected = mono_checkpoint(tmp_path, outputs=2, scoring_strategy="mono")
    found = scores(tmp_path, retokenise=True)
    assert found == pytest.approx(expected().log_softmax(-1)[:, 1].numpy(), abs=1e-5)


def test_retokenising_matters_if_the_decoded_text_differs():
    texts = {"apart": "it does n't turn", "joined": "it doesn't turn", "other": "it turns ."}
    plain, again = (
        CrossEncoder.from_pretrained(GOLDEN, retokenise=retokenise).tokenise_docs(texts)
        for retokenise in (False, True)
    )
    assert plain["apart"].tolist() != plain["joined"].tolist()
    assert again["apart"].tolist() == again["joined"].tolist() == plain["joined"].tolist()
    assert again["other"].tolist() == plain["other"].tolist()


def test_weights_that_do_not_fit_are_rejected(tmp_path):
    mono_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if n.startswith("encoder.layer.1"))
    weights["encoder.layer.9.odd"] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"do not fit electra: missing .*encoder\.layer\.1"):
        scores(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_bert_pool": True}, "BERT's pooler"),
        ({"backbone_model_type": None, "architectures": ["MonoFooModel"]}, "no known encoder"),
        ({"pooling_strategy": "median"}, "pooling 'median' is not one of first"),
    ],
)
def test_unsupported_mono_models_are_rejected(change, said, tmp_path):
    mono_checkpoint(tmp_path, **change)
    with pytest.raises(InputError, match=said):
        scores(tmp_path)


def test_a_student_saved_as_mono_is_loaded_again(tiny_models, tmp_path):
    torch.manual_seed(1)
    model = CrossEncoder.from_pretrained(tiny_models("bert"), precision="fp32")
    expected = Reranker(model).score(QUERIES[0], DOCS)
    model.save_pretrained(tmp_path, layout="mono")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "mono"
    assert config["backbone_model_type"] == "bert"
    assert (config["query_length"], config["doc_length"]) == (32, 256)
    assert "linear.weight" in load_file(tmp_path / "model.safetensors")
    found = Reranker.from_pretrained(tmp_path, precision="fp32").score(QUERIES[0], DOCS)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layout", ["encoder", "mono", "sentence_transformers"])
def test_modernberts_rotary_bases_are_named_for_transformers_4_too(layout, tiny_models, tmp_path):
    """It would take 10,000 for the local one, whatever `rope_parameters` says."""
    model = CrossEncoder.from_pretrained(tiny_models("modernbert"), packed=False)
    model.network.config.rope_parameters["sliding_attention"]["rope_theta"] = 1234.0
    model.save_pretrained(tmp_path, layout=layout)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["global_rope_theta"], config["local_rope_theta"]) == (160000.0, 1234.0)
    again = CrossEncoder.from_pretrained(tmp_path).network.config
    assert again.rope_parameters == model.network.config.rope_parameters


# ---- transformers' classifiers, sentence-transformers


def classifier_checkpoint(folder, architecture):
    """Write a random classifier; returns a function of its scores in transformers."""
    model, tokenizer = write_classifier(folder, architecture)

    @torch.no_grad()
    def expected():
        pairs = [(query, doc) for query in QUERIES for doc in DOCS]
        inputs = tokenizer(
            *map(list, zip(*pairs, strict=True)),
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        return model(**inputs).logits[:, 0].numpy()

    return expected


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta"])
def test_classifiers_score_as_in_transformers(architecture, tmp_path):
    expected = classifier_checkpoint(tmp_path, architecture)()
    assert np.ptp(expected) > 0.1
    assert scores(tmp_path) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta"])
def test_scores_of_classifiers_are_not_rounded_to_bf16(architecture, tmp_path):
    expected = classifier_checkpoint(tmp_path, architecture)()
    found = torch.from_numpy(scores(tmp_path, precision="bf16"))
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any()
    assert found.numpy() == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(
    ("file", "content", "function"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "{}.Sigmoid"}, torch.sigmoid),
        ("config.json", {"sentence_transformers": {"activation_fn": "{}.Sigmoid"}}, torch.sigmoid),
        ("config.json", {"sbert_ce_default_activation_function": "{}.Sigmoid"}, torch.sigmoid),
        ("config.json", {"sentence_transformers": {"activation_fn": "{}.Identity"}}, torch.clone),
    ],
)
def test_the_activation_that_sentence_transformers_recorded(file, content, function, tmp_path):
    expected = torch.from_numpy(classifier_checkpoint(tmp_path, "bert")())
    file = tmp_path / file
    before = json.loads(file.read_text()) if file.exists() else {}
    text = json.dumps(before | content).replace("{}", "torch.nn.modules.activation")
    file.write_text(text)
    assert scores(tmp_path) == pytest.approx(function(expected).numpy(), abs=1e-5)


def test_a_classifier_of_sentence_transformers_is_saved_with_its_activation(tmp_path):
    classifier_checkpoint(tmp_path, "bert")
    recorded = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(recorded))
    again = tmp_path / "again"
    again.mkdir()
    CrossEncoder.from_pretrained(tmp_path, precision="fp32").save_pretrained(again)
    assert json.loads((again / "config.json").read_text())["sentence_transformers"] == recorded
    assert scores(again) == pytest.approx(scores(tmp_path), abs=1e-6)
    # It takes the sigmoid where it recorded none.
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    assert scores(again) == pytest.approx(scores(tmp_path), abs=1e-6)


def without(folder, name):
    """Take one weight out of the checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    (full,) = [n for n in tensors if n.endswith(name)]
    del tensors[full]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_classifier_without_its_head_is_rejected(tmp_path):
    classifier_checkpoint(tmp_path, "electra")
    without(tmp_path, "classifier.out_proj.weight")
    with pytest.raises(InputError, match=r"1 weights are missing, such as classifier\.out_proj"):
        scores(tmp_path)


def test_an_encoder_with_a_missing_layer_is_rejected(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models("bert"), tmp_path / "bert")
    without(folder, "layer.2.output.dense.weight")
    with pytest.raises(InputError, match=r"1 weights are missing, such as encoder\.layer\.2"):
        CrossEncoder.from_pretrained(folder)


def test_a_mono_model_without_its_head_is_rejected(tmp_path):
    mono_checkpoint(tmp_path)
    without(tmp_path, "linear.weight")
    with pytest.raises(InputError, match=r"linear\.weight is missing"):
        scores(tmp_path)


def test_the_output_folder_of_a_training_points_to_its_checkpoint(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    mono_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(
        InputError, match=rf"no config\.json; the student is in {tmp_path}/checkpoint"
    ):
        scores(tmp_path)


def test_no_file_of_a_saved_student_names_the_folder_that_it_was_loaded_from(tiny_bert, tmp_path):
    student = CrossEncoder.from_pretrained(tiny_bert)
    for layout in ("encoder", "mono", "sentence_transformers", "classifier", "tei"):
        student.save_pretrained(tmp_path / layout, layout=layout)
        for file in (tmp_path / layout).rglob("*.json"):
            assert str(Path(tiny_bert).parent) not in file.read_text("utf-8"), file


def test_all_files_of_a_saved_student_have_the_same_permissions(tiny_bert, tmp_path):
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "saved")
    modes = {file.stat().st_mode for file in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1


def test_a_damaged_torch_file_raises_an_input_error(tmp_path):
    mono_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"no file of torch")
    with pytest.raises(InputError, match="no model could be loaded"):
        scores(tmp_path)


def test_a_classifier_with_two_labels_is_rejected(tmp_path):
    write_classifier(tmp_path, "bert", num_labels=2)
    with pytest.raises(InputError, match="a classifier with 2 labels"):
        scores(tmp_path)


def test_a_classifier_keeps_its_format_when_saved(tmp_path):
    classifier_checkpoint(tmp_path, "electra")
    again = tmp_path / "again"
    again.mkdir()
    model = CrossEncoder.from_pretrained(tmp_path, precision="fp32")
    model.save_pretrained(again)
    assert scores(again) == pytest.approx(scores(tmp_path), abs=1e-6)
    kind = transformers.AutoModelForSequenceClassification
    assert isinstance(kind.from_pretrained(again), transformers.ElectraForSequenceClassification)
    with pytest.raises(InputError, match="layout=mono does not fit this student; use classifier"):
        model.save_pretrained(again, layout="mono")


# ---- checkpoints that must be rejected

TINY = {"vocab_size": 3100, "hidden_size": 16, "intermediate_size": 32}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2}
DECODERS = {
    "gpt2": transformers.GPT2Config(vocab_size=3100, n_embd=16, n_layer=2, n_head=2),
    "qwen3": transformers.Qwen3Config(**TINY, **HEADS, num_key_value_heads=2, head_dim=8),
    "llama": transformers.LlamaConfig(**TINY, **HEADS),
    "bert": transformers.BertConfig(**TINY, **HEADS, is_decoder=True),
}
ENCODER_DECODERS = {
    "t5": transformers.T5Config(vocab_size=3100, d_model=16, d_kv=8, d_ff=32, num_layers=2,
                                num_heads=2),
    "bart": transformers.BartConfig(vocab_size=3100, d_model=16, encoder_layers=1,
                                    decoder_layers=1, encoder_attention_heads=2,
                                    decoder_attention_heads=2, encoder_ffn_dim=32,
                                    decoder_ffn_dim=32),
}  # fmt: skip


def write_model(folder, config, kind=transformers.AutoModel):
    torch.manual_seed(5)
    config.num_labels, config.pad_token_id = 1, 0
    kind.from_config(config).save_pretrained(folder)
    tokenizer_for("bert").save_pretrained(folder)


@pytest.mark.parametrize(
    "kind", ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"]
)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_rejected(name, kind, tmp_path):
    if name == "bert" and kind == "AutoModelForSequenceClassification":
        pytest.skip("transformers makes an encoder of it")
    write_model(tmp_path, DECODERS[name], getattr(transformers, kind))
    said = f"{tmp_path}: config.json: {name} is a decoder, whose first token does not"
    with pytest.raises(InputError, match=said):
        CrossEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_are_rejected(name, tmp_path):
    write_model(tmp_path, ENCODER_DECODERS[name])
    with pytest.raises(InputError, match=f"config.json: {name} is an encoder-decoder"):
        CrossEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("std", [0.02, 1e-3, 1.0])
@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta"])
def test_encoders_are_not_mistaken_for_decoders(architecture, std, tmp_path):
    config = config_for(architecture, len(tokenizer_for(architecture)))
    config.initializer_range = std
    torch.manual_seed(5)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer_for(architecture).save_pretrained(tmp_path)
    assert not CrossEncoder.from_pretrained(tmp_path).has_head


def edit(file, **values):
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def student(tiny_bert, tmp_path):
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


OURS = {"query_length": 32, "doc_length": 256, "pooling": "first"}


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"rankdistillm": True}, "config.json: rankdistillm=True lacks"),
        ("config.json", {"rankdistillm": {"pooling": "first"}}, "lacks query_length, doc_length"),
        ("config.json", {"rankdistillm": OURS | {"doc_length": "x"}}, "doc_length=x is not"),
        ("config.json", {"rankdistillm": OURS | {"doc_length": 0}}, "doc_length=0 is not"),
        ("config.json", {"rankdistillm": OURS | {"pooling": []}}, r"pooling \[\] is not one of"),
        ("config.json", {"rankdistillm": None}, "rankdistillm in config.json is missing"),
        ("config.json", {"num_hidden_layers": 2}, r"encoder\.layer\.2.* does not belong"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is too large"),
        ("config.json", {"architectures": "Bert"}, "architectures='Bert' is not a list of names"),
        ("config.json", {"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ("tokenizer_config.json", {"model_max_length": 3}, r"leaves no room for text"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length=x is not a whole"),
    ],
)  # fmt: skip
def test_impossible_settings_are_rejected(file, values, said, student):
    edit(student / file, **values)
    with pytest.raises(InputError, match=rf"{student}: .*{said}"):
        CrossEncoder.from_pretrained(student)


def change_tokenizer(folder, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(post_processor=None), r"\[CLS\] is not added to a pair"),
        (lambda t: t["model"]["vocab"].update(odd=10**6), "token 1000000 is outside the"),
        (lambda t: t["model"].update(unk_token="[NONE]"), "Missing"),
        (lambda t: t.pop("model"), "Model missing"),
    ],
)
def test_a_tokeniser_that_does_not_fit_is_rejected(change, said, student):
    change_tokenizer(student, change)
    with pytest.raises(InputError, match=rf"{student}: .*tokenizer\.json: .*{said}"):
        CrossEncoder.from_pretrained(student)


def test_a_missing_vocabulary_is_rejected(student):
    (student / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"^.*student: "):
        CrossEncoder.from_pretrained(student)


def test_a_student_without_its_head_is_rejected(student):
    without(student, "linear.weight")
    with pytest.raises(InputError, match=r"the head's linear\.\* weights are missing"):
        CrossEncoder.from_pretrained(student)


def test_the_head_of_another_kind_of_model_is_rejected(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "colbert")
    tensors = load_file(folder / "model.safetensors")
    tensors["linear.weight"] = torch.ones(8, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"rankdistillm in config\.json is missing"):
        CrossEncoder.from_pretrained(folder)


def test_a_sharded_checkpoint_is_loaded_whole(student, tmp_path):
    expected = scores(student)
    tensors = load_file(student / "model.safetensors")
    (student / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({n: tensors[n] for n in own}, student / part, metadata={"format": "pt"})
    weight_map = {n: part for part, own in parts.items() for n in own}
    index = student / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert (scores(student) == expected).all()
    (student / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json: b\.safetensors is missing"):
        scores(student)


def test_an_adapter_is_rejected(student):
    (student / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="an adapter beside the weights; merge it"):
        CrossEncoder.from_pretrained(student)
