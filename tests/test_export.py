"""The export command: every format end to end, and its refusals."""

import dataclasses
import importlib.metadata
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from rankdistillm.export import FORMATS
from rankdistillm.exports import check
from rankdistillm.exports.card import card_text
from rankdistillm.model.formats import LAYOUTS
from rankdistillm.model.reranker import Reranker
from tests.helpers import DOCS, QUERIES, load, pack


@pytest.fixture(scope="module")
def student(tiny_models, tmp_path_factory):
    """A student over ELECTRA, with scores of some units."""
    folder = tmp_path_factory.mktemp("student")
    model = load(tiny_models("electra"))
    model.network.linear.weight.data.mul_(50)
    model.save_pretrained(folder)
    return folder


def scores(folder):
    reranker = Reranker.from_pretrained(folder, device="cpu", precision="fp32")
    return np.concatenate([reranker.score(query, DOCS) for query in QUERIES])


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the exporter's packages are not installed")


# What each format's software is called in the lines about it.
SAID = {
    "classifier": "transformers",
    "onnx": "onnxruntime",
    "sentence_transformers": "sentence-transformers",
    "mono": "rankdistillm",
    "encoder": "rankdistillm",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "onnx" else []) for name in SAID],
)
def test_each_format_is_written_loaded_again_and_compared(name, command, student, tmp_path):
    if name == "onnx":
        needs_onnx()
    result = command("export", f"model.path={student}", f"format={name}", "output=out/new")
    assert result.status == 0, result.err
    assert "wrote out/new" in result.out
    line = next(line for line in result.out.splitlines() if line.startswith(SAID[name]))
    if "not installed" in line:
        pytest.skip(line)
    largest = re.search(r"\d\d pairs differ by at most (\S+?); \d+ longer ones", line)
    assert float(largest[1]) <= 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"new"}  # no .part
    assert (tmp_path / "out/new/tokenizer.json").exists()
    if name != "onnx":
        assert scores(tmp_path / "out/new") == pytest.approx(scores(student), abs=1e-5)


def test_the_format_for_tei(command, tiny_bert, tmp_path):
    load(tiny_bert).save_pretrained(tmp_path / "student")
    result = command("export", "model.path=student", "format=tei", "output=new")
    assert result.status == 0, result.err
    assert re.search(r"transformers \S+: \d\d pairs differ by at most \S+e-0[789];", result.out)
    assert (tmp_path / "new/FOR_TEI_ONLY.md").exists()


@pytest.mark.slow
def test_int8_says_how_far_off_it_is(command, student, tmp_path):
    needs_onnx()
    result = command("export", f"model.path={student}", "format=onnx", "int8=true", "output=new")
    assert result.status == 0, result.err
    found = re.search(r"differ by at most (\S+) \(int8; .* deviation is (\S+)\)", result.out)
    assert 1e-5 < float(found[1]) < float(found[2])
    assert {path.name for path in (tmp_path / "new/onnx").iterdir()} == {"model.onnx"}


def test_the_formats_are_the_layouts_and_onnx():
    assert {*FORMATS} == {*LAYOUTS, "onnx"}
    assert {*check.SOFTWARE} >= {*FORMATS}


def test_absent_software_is_said(command, student, monkeypatch):
    def version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = command("export", f"model.path={student}", "format=classifier", "output=new")
    assert result.status == 0, result.err
    assert "sentence-transformers is not installed: not compared with it" in result.out


def test_an_export_with_other_scores_does_not_get_its_name(command, student, tmp_path, monkeypatch):
    def damaged(network, folder, settings, write=LAYOUTS["classifier"].write):
        write(network, folder, settings)
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.out_proj.bias"] += 1e-2
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LAYOUTS["classifier"], "write", damaged)
    result = command("export", f"model.path={student}", "format=classifier", "output=new")
    assert result.status != 0
    assert re.search(
        r"error: transformers \S+ scores 1\.0e-02 from the student, .* nothing was", result.err
    )
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["format=null"], "format is not set; add format=NAME, one of encoder, mono, "),
        (["format=clasifier"], "onnx; did you mean classifier?"),
        (["format=gguf"], "format=gguf is not one of encoder, mono, "),
        (["output=null"], "output is not set; add output=…"),
        (["int8=maybe"], "int8=maybe is neither true nor false"),
        (["int8=true"], "int8=true goes with format=onnx, not with format=mono"),
        (["output=full"], "output=full: not empty; give the name of a new folder"),
        (["output=full/notes.txt"], "output=full/notes.txt: a file; give the name of a new"),
        (["output=/dev/null/new"], "output=/dev/null/new: cannot be written"),
        (["output=student"], "output=student would overwrite model.path=student"),
        (["output=."], "output=.: not empty; give the name of a new folder"),
        (["model.path=nowhere"], "nowhere: no model could be loaded"),
        (["model.path=bare"], "model.path=bare: an encoder without a head (linear.weight)"),
        (["format=tei"], "this electra are not BERT's; write it as onnx"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said, command, student, tiny_models, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "student").symlink_to(student)
    (tmp_path / "bare").symlink_to(tiny_models("electra"))
    before = sorted(student.rglob("*"))
    result = command("export", "model.path=student", "format=mono", "output=new", *arguments)
    assert result.status != 0
    assert result.err.strip().splitlines()[-1].startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"full", "student", "bare"}
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    assert sorted(student.rglob("*")) == before


def test_modernbert_is_refused_as_classifier_with_the_remedy(command, tiny_models, tmp_path):
    load(tiny_models("modernbert")).save_pretrained(tmp_path / "student")
    result = command("export", "model.path=student", "format=classifier", "output=new")
    assert "error: transformers' modernbert classifier" in result.err
    assert "write it as sentence_transformers" in result.err
    assert not (tmp_path / "new").exists()


def test_the_card_goes_with_the_student(command, student, tmp_path):
    shutil.copytree(student, tmp_path / "student")
    record = {"license": None, "layout": "encoder", "stages": [{"stage": "distill"}]}
    (tmp_path / "student/README.md").write_text(card_text(record))
    options = ["model.path=student", "format=mono", "output=new", "card.license=mit"]
    assert command("export", *options).status == 0
    text = (tmp_path / "new/README.md").read_text()
    assert "With lightning-ir:" in text
    assert "license: mit" in text


def test_a_push_is_checked_before_anything_is_written(command, student, tmp_path, monkeypatch):
    options = [f"model.path={student}", "format=mono", "output=new", "push=true"]
    assert "push=true needs a repository; add repo=USER/NAME" in command("export", *options).err
    assert "repo=me is not a repository" in command("export", *options, "repo=me").err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "no token for the hub" in command("export", *options, "repo=me/it").err
    assert not (tmp_path / "new").exists()


def test_an_export_is_pushed_with_its_name(command, student, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    pushed = []

    def push(folder, repo, *, private):
        pushed.append((sorted(path.name for path in folder.iterdir()), repo, private))
        return "https://hub/me/it"

    monkeypatch.setattr("rankdistillm.export.push", push)
    options = ["push=true", "repo=me/it", "private=true"]
    result = command("export", f"model.path={student}", "format=mono", "output=new", *options)
    assert result.status == 0, result.err
    assert "pushed to https://hub/me/it" in result.out
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert pushed == [(names, "me/it", True)]


def test_an_empty_folder_may_be_there_already(command, student, tmp_path):
    (tmp_path / "new").mkdir()
    result = command("export", f"model.path={student}", "format=mono", "output=new")
    assert result.status == 0, result.err
    assert json.loads((tmp_path / "new/config.json").read_text())["model_type"] == "mono"


def test_a_pair_counts_as_cut_if_the_student_does_not_read_all_of_it(student):
    model = load(student)
    pairs = check.sample_pairs()
    cut = [check.is_cut(model, pair) for pair in pairs]
    assert 20 < cut.count(False) < len(cut)
    uncut = load(student, query_length=10_000, doc_length=10_000)
    uncut.template = dataclasses.replace(uncut.template, max_length=None)
    assert cut == list(pack(model, pairs).lengths < pack(uncut, pairs).lengths)
