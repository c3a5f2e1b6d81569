"""A re-ranker as the teacher gives its own scores, and is told apart from one trained later."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankdistillm.model.reranker import Reranker
from rankdistillm.teachers.backends import Backend, ScoringBackend
from rankdistillm.teachers.cross_encoder import CrossEncoderTeacher
from tests.helpers import DOCS, QUERIES, write_classifier


def test_scores_are_those_of_the_reranker(tmp_path):
    write_classifier(tmp_path / "model", "bert")
    teacher = CrossEncoderTeacher.from_pretrained(tmp_path / "model", precision="fp32")
    assert isinstance(teacher, ScoringBackend)
    assert not isinstance(teacher, Backend)
    expected = Reranker.from_pretrained(tmp_path / "model", precision="fp32").score(
        QUERIES[0], DOCS
    )
    assert teacher.cuts_passages  # by tokens, as `rerank` does
    assert teacher.score(QUERIES[0], DOCS) == pytest.approx(expected.tolist())


def test_identity_and_options_change_with_all_that_changes_scores(tmp_path):
    write_classifier(tmp_path / "model", "bert")

    def load(precision="fp32", **options):
        folder = tmp_path / "model"
        return CrossEncoderTeacher.from_pretrained(folder, precision=precision, **options)

    first = load()
    assert (load().identity, load().options) == (first.identity, first.options)
    assert load(doc_length=5).options != first.options
    assert load(precision="bf16").options != first.options
    windows = [load(long="maxp", doc_length=5, stride=stride).options for stride in (None, 2)]
    assert windows[0] != windows[1] != load(doc_length=5).options
    weights = load_file(tmp_path / "model" / "model.safetensors")
    trained = {name: weight + 1e-3 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(trained, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    trained = load()
    assert trained.identity != first.identity
    assert trained.name == f"model@{trained.identity}"
    shutil.move(tmp_path / "model", tmp_path / "moved")
    moved = CrossEncoderTeacher.from_pretrained(tmp_path / "moved", precision="fp32")
    assert (moved.identity, moved.options) == (trained.identity, trained.options)
