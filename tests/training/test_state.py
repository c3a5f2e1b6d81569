"""The state of a training: saved, loaded, damaged, of a different training."""

import os

import pytest
import torch

from rankdistillm.errors import InputError
from rankdistillm.training.state import Progress, TrainingState


@pytest.fixture
def layer():
    return torch.nn.Linear(3, 2)


def test_a_loaded_state_restores_parts_progress_and_random_numbers(layer, tmp_path):
    state = TrainingState(tmp_path, {"seed": 1}, part=layer)
    assert state.load() is None
    progress = Progress({"metric": "ndcg@10"}, step=3, best=0.5, best_step=2)
    state.save(progress)
    expected = torch.rand(2)
    saved = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    assert state.load() == progress
    assert torch.equal(layer.weight, saved)
    assert torch.equal(torch.rand(2), expected)


def test_the_two_newest_states_are_kept_and_the_damaged_newest_is_skipped(layer, tmp_path):
    state = TrainingState(tmp_path, {}, part=layer)
    for step in (8, 9, 10):
        state.save(Progress({}, step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.pt", "9.pt"]
    torch.save({"part": {}, "settings": {}, "random": [], "progress": {}}, tmp_path / "10.pt")
    assert state.load() == Progress({}, step=9)
    (tmp_path / "9.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"10\.pt: cannot be read .*; remove "):
        state.load()


def test_a_state_with_other_settings_is_rejected_by_the_setting_that_differs(layer, tmp_path):
    settings = {"optim": {"learning_rate": 1.0, "decay": "all"}}
    TrainingState(tmp_path / "state", settings, part=layer).save(Progress({}, step=1))
    other = TrainingState(tmp_path / "state", {"optim": {"learning_rate": 2.0, "decay": "all"}})
    with pytest.raises(InputError, match=r"a training with optim\.learning_rate=1\.0, not 2\.0;"):
        other.load()


def test_progress_counts_validations_since_the_best():
    progress = Progress({})
    found = []
    for progress.step, value in enumerate((0.3, 0.5, 0.5, 0.4), 1):
        is_best = progress.note_validation(value)
        found.append((is_best, progress.best_step, progress.validations_since_best))
    assert found == [(True, 1, 0), (True, 2, 0), (False, 2, 1), (False, 2, 2)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_and_leaves_no_state(tmp_path):
    state = TrainingState(tmp_path, {}, part=torch.nn.Linear(300, 300))
    (tmp_path / f".5.pt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"5\.pt: the disk is full"):
        state.save(Progress({}, step=5))
    assert not list(tmp_path.iterdir())
