"""The folders of trainings: which are found, and what damaged files lead to."""

import json

import pytest

from rankdistillm.data.outputs import LOCK, locked
from rankdistillm.evaluation.trainings import find_trainings, read_per_query
from tests.helpers import write_training


def test_trainings_are_found_at_any_depth_and_through_links_once(tmp_path):
    for name in ("a", "sub/deep/b", "c,seed=1"):
        write_training(tmp_path / "runs" / name)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/again").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs/a/checkpoint").mkdir()
    (tmp_path / "runs/a/checkpoint/config.yaml").write_text("model: 1\n")
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/config.yaml").write_text("services: {web: {image: nginx}}\n")
    found, problems = find_trainings([tmp_path / "linked", tmp_path / "runs"])
    assert sorted(t.folder.name for t in found) == ["a", "b", "c,seed=1"]
    assert problems == []


def test_a_training_is_read(tmp_path):
    write_training(tmp_path / "a", {"seed": 5}, values=(0.25, 0.5), best=0.75, step=9)
    (training,) = find_trainings([tmp_path])[0]
    assert training.options["seed"] == 5
    assert training.options["loss._target_"] == "rankdistillm.losses.ranknet_loss"
    summary = training.summary
    assert (summary.step, summary.best, summary.queries) == (9, 0.75, 2)
    assert summary.means["student after"] == 0.375
    assert read_per_query(training, "ndcg@10") == {"q0": 0.25, "q1": 0.5}


def test_a_training_that_holds_its_lock_is_running(tmp_path):
    write_training(tmp_path / "a", finished=False, step=3)
    with locked(tmp_path / "a"):
        (training,) = find_trainings([tmp_path])[0]
        assert (training.is_running, training.step) == (True, 3)
    (tmp_path / "a" / LOCK).touch()  # left by a process that was killed
    assert not find_trainings([tmp_path])[0][0].is_running
    with locked(tmp_path / "a"):  # and looking has not kept it locked
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "damaged (Expecting property name"),
        (b"[]", "damaged ("),
        (b"{}", "damaged (no 'step')"),
        (b"\xff", "damaged ("),
        (b'{"step": -1, "metric": "mrr"}', "damaged (-1 is not a count)"),
        (b'{"step": 1, "metric": 5}', "damaged (5 is not text)"),
        (b'{"step": 1, "metric": "m", "best_validation": {"value": NaN}}', "nan is not a number"),
        (b'{"step": 1, "metric": "m", "means": {"bm25": 1}}', "without means of the student after"),
    ],
)
def test_a_damaged_summary_is_named_and_its_training_is_not_finished(content, said, tmp_path):
    write_training(tmp_path / "a")
    (tmp_path / "a/summary.json").write_bytes(content)
    (training,), (problem,) = find_trainings([tmp_path])
    assert training.summary is None
    assert problem.startswith(f"{tmp_path}/a/summary.json: ")
    assert said in problem


@pytest.mark.parametrize("content", ["{", "a: [", "stage: 1\n", "\0", "- 1\n", "x: ${"])
def test_a_damaged_config_is_named_and_its_training_left_out(content, tmp_path):
    write_training(tmp_path / "a")
    (tmp_path / "a/config.yaml").write_text(content)
    found, (problem,) = find_trainings([tmp_path])
    assert found == []
    assert problem.startswith(f"{tmp_path}/a/config.yaml: damaged (")
    assert problem.endswith("; the training is left out")


def test_a_config_that_was_cut_off_is_damaged(tmp_path):
    write_training(tmp_path / "a")
    file = tmp_path / "a/config.yaml"
    file.write_text(file.read_text().partition("optim:")[0])
    assert "without optim, output, validation" in find_trainings([tmp_path])[1][0]


def test_the_step_is_that_of_the_last_whole_line(tmp_path):
    write_training(tmp_path / "a", finished=False)
    file = tmp_path / "a/metrics.jsonl"
    for text, step in (
        ('{"step": 4}\n{"step": 5}\n{"st', 4 + 1), ('{"step": 4}\nnull\n', 4), ("", 0), ("x\n", 0),
        ("x" * 70_000 + '\n{"step": 6}\n', 6),
    ):  # fmt: skip
        file.write_text(text)
        assert find_trainings([tmp_path])[0][0].step == step
    file.unlink()
    assert find_trainings([tmp_path])[0][0].step == 0


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "collection,query_id,metric,run,value\ntest,q0,ndcg@10,student after,x\n"],
)
def test_values_of_queries_that_do_not_fit_the_summary_are_refused(text, tmp_path):
    write_training(tmp_path / "a")
    (training,) = find_trainings([tmp_path])[0]
    (tmp_path / "a/per_query.csv").write_text(text)
    with pytest.raises(ValueError, match=r"^/.*/a/per_query\.csv: "):
        read_per_query(training, "ndcg@10")


def test_ids_that_a_spreadsheet_would_compute_are_read_back(tmp_path):
    write_training(tmp_path / "a", per_query=False)
    lines = ["collection,query_id,metric,run,value"]
    lines += [f"test,'{q},ndcg@10,student after,{v}" for q, v in (("=1", 0.5), ("'x", 0.75))]
    (tmp_path / "a/per_query.csv").write_text("\n".join(lines))
    (training,) = find_trainings([tmp_path])[0]
    assert read_per_query(training, "ndcg@10") == {"=1": 0.5, "'x": 0.75}


def test_a_file_that_vanishes_between_listing_and_reading_is_no_error(tmp_path, monkeypatch):
    for name in "abc":
        write_training(tmp_path / name)
    from rankdistillm.evaluation import trainings

    read = trainings._read_options

    def vanish(folder):
        if folder.name == "b":
            (folder / "config.yaml").unlink()
        (folder / "summary.json").unlink()
        return read(folder)

    monkeypatch.setattr(trainings, "_read_options", vanish)
    found, problems = find_trainings([tmp_path])
    assert [t.folder.name for t in found] == ["a", "c"]
    assert problems == []
    assert json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[-1])["step"] == 67
