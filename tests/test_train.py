"""The training command on a tiny random model and the embedded collection."""

import csv
import json
import math
import re
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rankdistillm import train as train_module
from rankdistillm.cli import PACKAGE
from rankdistillm.data import batches as data_module
from rankdistillm.data.outputs import locked
from rankdistillm.data.runs import Run
from rankdistillm.training.validation import JudgedRun

# The losses of the first five steps, of 8 lists of 10 and of 8 passages; seed 1, float32. A change
# that should not change numbers keeps them.
GOLDEN_LISTS = {
    "distill": ["queries_per_step=8", "data.train.list_size=10", "data.validation.run=null"],
    "prefinetune": ["queries_per_step=8", "data.validation.run=null"],
}
GOLDEN_LISTS["mixed"] = ["loss=mixed", *GOLDEN_LISTS["distill"]]
GOLDEN = {
    "distill": [0.69242316, 0.69324851, 0.69373327, 0.69450897, 0.69418192],
    "mixed": [1.63803208, 1.79248703, 1.82439899, 1.79109097, 1.81259143],
    "prefinetune": [2.07937264, 2.08135009, 2.08052015, 2.08391023, 2.08226562],
}


@pytest.fixture
def train(command, tiny_bert, tmp_path):
    def run(*arguments, stage="distill", sweep=False):
        small = ["model.dropout=0", "precision=fp32", "max_steps=5", "queries_per_step=2"]
        small.append("optim.learning_rate=1e-3")
        if not any(argument.startswith("data=") for argument in arguments):
            small += ["data.test.run=null", "data.validation.depth=3"]
        return command(
            "train",
            *(["-m"] if sweep else []),
            *([f"+stage={stage}"] if stage else []),
            f"model.path={tiny_bert}",
            "output=out",
            *small,
            *arguments,
        )

    return run


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


@pytest.mark.parametrize(
    ("stage", "budget"),  # part of a list, some lists, all lists
    [("distill", 500), ("distill", 2000), ("distill", 100_000), ("mixed", 500),
     ("prefinetune", 2000)],
)  # fmt: skip
def test_golden_trajectory_for_every_split_into_micro_batches(stage, budget, train, tmp_path):
    added = "distill" if stage == "mixed" else stage
    assert train(f"token_budget={budget}", *GOLDEN_LISTS[stage], stage=added).status == 0
    assert losses(tmp_path / "out") == pytest.approx(GOLDEN[stage], rel=1e-5)


def test_a_training_writes_its_output_folder_and_prints_the_closing_table(train, tmp_path):
    bm25 = PACKAGE / "mini/test/bm25.run"
    result = train(f"data.test.run={bm25}", "data.test.depth=3")
    assert result.status == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoint", "state",
        "validation.run", "before.run", "after.run", "summary.json", "per_query.csv",
    }  # fmt: skip
    *lines, last = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5]
    assert lines[0].keys() == {
        "step", "loss", "learning_rate", "grad_norm", "pairs_per_second", "padding", "memory_mib",
    }  # fmt: skip
    assert 0 < lines[-1]["validation/ndcg@10"] < 1
    summary = json.loads((out / "summary.json").read_text())
    assert last == {"step": 5, "summary": summary}
    best = {"value": lines[-1]["validation/ndcg@10"], "step": 5}
    assert summary["best_validation"] == best
    assert (summary["metric"], summary["measured_on"], summary["queries"]) == (
        "ndcg@10",
        "test",
        56,
    )
    assert list(summary["p_values"]) == ["bm25", "teacher", "student before"]
    assert all(0 <= p <= 1 for p in summary["p_values"].values())
    for name, value in summary["means"].items():
        assert re.search(rf"^{name} +{value:.4f}$", result.out, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    rows = [line.rsplit(None, 1)[0].strip() for line in result.out.splitlines() if "0." in line]
    assert rows[-4:] == ["bm25", "teacher", "student before", "student after"]
    assert list(summary["means"]) == rows[-4:]
    with open(out / "per_query.csv", newline="") as file:
        per_query = list(csv.DictReader(file))
    assert {(row["collection"], row["metric"]) for row in per_query} == {("test", "ndcg@10")}
    for name, mean in summary["means"].items():
        values = [float(row["value"]) for row in per_query if row["run"] == name]
        assert (len(values), sum(values) / 56) == (56, pytest.approx(mean))
    assert len(Run.read(out / "after.run")) == len(Run.read(out / "before.run")) == 56


def test_every_student_has_a_card_which_resuming_does_not_change(train, tmp_path):
    card = tmp_path / "out/checkpoint/README.md"
    options = (
        "card.license=mit", "data.validation.run=null", "data.test.depth=3",
        f"data.test.run={PACKAGE}/mini/test/bm25.run", "optim.schedule=constant", "optim.warmup=0",
    )  # fmt: skip
    assert train(*options).status == 0
    text = card.read_text("utf-8")
    assert "license: mit\n" in text
    assert "| rankdistillm's embedded collection: train/teacher.run |" in text
    assert "| teacher | a large language model |" in text
    assert "| student after |" in text
    assert str(tmp_path) not in text
    shutil.rmtree(tmp_path / "out")
    assert train(*options, "max_steps=4").status == 0
    assert card.read_text("utf-8") != text
    assert train(*options).status == 0  # one step more
    assert card.read_text("utf-8") == text


def test_a_new_student_does_not_keep_the_card_of_the_old_one(train, tmp_path):
    assert train().status == 0
    assert (
        train(
            "max_steps=9",
            "optim.learning_rate=1e30",
            "resume=never",
            "validation.every=1",
            "optim.schedule=constant",
        ).status
        != 0
    )  # saves a student, then diverges
    assert not (tmp_path / "out/checkpoint/README.md").exists()


def test_the_summary_has_the_best_validation_not_the_last(train, tmp_path, monkeypatch):
    values = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(JudgedRun, "measure", lambda *_: next(values))
    assert train("validation.every=2").status == 0  # after the steps 2, 4 and 5
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["best_validation"] == {"value": 0.9, "step": 4}
    assert summary["measured_on"] == "validation"


def test_a_resumed_training_leaves_one_summary(train, tmp_path):
    for _ in range(2):
        assert train().status == 0
        assert [line["step"] for line in metrics(tmp_path / "out") if "summary" in line] == [5]
    assert train("max_steps=6").status == 0
    assert [line["step"] for line in metrics(tmp_path / "out") if "summary" in line] == [6]
    assert train("max_steps=9", "optim.learning_rate=1e30", "resume=never").status != 0  # diverges
    assert not (tmp_path / "out/summary.json").exists()


def test_a_finished_training_keeps_its_summary_until_a_step_follows(train, tmp_path, monkeypatch):
    files = [tmp_path / "out" / name for name in ("summary.json", "per_query.csv")]
    assert train().status == 0
    before = [file.read_bytes() for file in files]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rankdistillm.train.print_comparison", interrupted)
        assert train().status == 130
        assert [file.read_bytes() for file in files] == before
        assert train("max_steps=6").status == 130
        assert not any(file.exists() for file in files)


def test_a_training_without_validation_has_a_summary(train, tmp_path):
    assert train("data.validation.run=null").status == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary.keys() == {"step", "trained_on", "metric"}
    assert summary["trained_on"]["digest"] in (tmp_path / "out/checkpoint/README.md").read_text()


def test_judged_queries_outside_the_run_do_not_change_the_metric(train, tmp_path):
    mini = PACKAGE / "mini/validation"
    assert train("output=few").status == 0
    more = "".join(f"other{i} 0 d1 1\n" for i in range(500))
    (tmp_path / "more.txt").write_text((mini / "qrels.txt").read_text() + more)
    result = train("output=more", "data.validation.qrels=more.txt")
    few, many = (
        json.loads((tmp_path / f"{name}/summary.json").read_text()) for name in ("few", "more")
    )
    assert few == many
    said = [line for line in result.out.splitlines() if "left out" in line]
    assert len(said) == 1
    assert "validation: metrics are over the 21 judged queries of" in said[0]
    assert said[0].endswith("0 queries without judgements, 500 judged queries without results")


def test_a_run_named_like_a_row_of_the_closing_table_is_called_first_stage(train, tmp_path):
    mini = PACKAGE / "mini/test"
    for name in ("teacher", "student after"):
        (tmp_path / f"{name}.run").write_text((mini / "bm25.run").read_text())
        options = (f"data.test.run='{name}.run'", "data.test.depth=3", f"output={name[0]}")
        assert train(*options).status == 0
        means = json.loads((tmp_path / name[0] / "summary.json").read_text())["means"]
        assert list(means) == ["first stage", "teacher", "student before", "student after"]


def test_the_second_stage_starts_from_the_first(train, tmp_path):
    assert train("output=one", stage="prefinetune").status == 0
    checkpoint = tmp_path / "one/checkpoint"
    assert train("output=two", f"model.path={checkpoint}", "max_steps=1").status == 0
    after, before = Run.read("one/after.run"), Run.read("two/before.run")
    for query_id in after:
        assert before[query_id].scores == pytest.approx(after[query_id].scores, abs=1e-5)


def test_training_learns(train, tmp_path):
    options = ["data.train.num_queries=4", "data.train.list_size=5", "optim.learning_rate=1e-2"]
    assert train("max_steps=60", *options).status == 0
    found = losses(tmp_path / "out")
    assert sum(found[-10:]) < 0.5 * sum(found[:10])


@pytest.mark.parametrize("supervision", ["loss=ranknet", "loss=mixed"])
def test_an_interrupted_training_resumes_bit_for_bit(supervision, train, tmp_path, monkeypatch):
    options = ("state.every=2", "validation.every=3", "max_steps=7", "model.dropout=0.2")
    options += ("optim.ema=0.9", supervision)
    assert train("output=straight", *options).status == 0

    original = data_module.TrainingData.batch

    def interrupting(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(data_module.TrainingData, "batch", interrupting)
    assert train("output=interrupted", *options).status == 130
    monkeypatch.setattr(data_module.TrainingData, "batch", original)
    result = train("output=interrupted", *options)
    assert "from step 4" in result.out
    straight, interrupted = (
        load_file(tmp_path / f"{n}/checkpoint/model.safetensors")
        for n in ("straight", "interrupted")
    )
    assert all(torch.equal(straight[name], interrupted[name]) for name in straight)
    without_times = [
        [
            {k: v for k, v in line.items() if k not in ("pairs_per_second", "memory_mib")}
            for line in metrics(tmp_path / n)
        ]
        for n in ("straight", "interrupted")
    ]
    assert without_times[0] == without_times[1]


def test_the_old_name_of_state_every_still_works_with_a_warning(train, tmp_path):
    deprecated = "checkpoint.every is deprecated: it is now called state.every"
    result = train("checkpoint.every=3", "max_steps=7")
    assert deprecated in result.out
    assert sorted(path.name for path in (tmp_path / "out/state").iterdir()) == ["6.pt", "7.pt"]
    config = OmegaConf.load(tmp_path / "out/config.yaml")
    assert (config.state.every, "checkpoint" in config) == (3, False)
    assert deprecated in train("checkpoint.every=null", "output=end").out
    assert OmegaConf.load(tmp_path / "end/config.yaml").state.every is None
    assert deprecated not in train("output=new").out
    assert OmegaConf.load(tmp_path / "new/config.yaml").state.every == 500


def test_a_damaged_state_falls_back_to_the_one_before(train, tmp_path):
    assert train("state.every=2").status == 0
    newest = tmp_path / "out/state/5.pt"
    assert sorted(path.name for path in newest.parent.iterdir()) == ["4.pt", "5.pt"]
    newest.write_bytes(newest.read_bytes()[:1000])
    result = train("state.every=2")
    assert "5.pt: cannot be read" in result.out
    assert "from step 4" in result.out
    newest.write_bytes(bytes(5000))  # as after a power failure
    assert "from step 4" in train("state.every=2").out
    content = bytearray(newest.with_name("4.pt").read_bytes())
    content[len(content) // 2] ^= 1  # in a weight
    for damaged in (bytes(content), b""):
        newest.write_bytes(damaged)
        assert "from step 4" in train("state.every=2").out
    torch.save({"weights": torch.zeros(2)}, newest)  # a file of other origin
    assert "5.pt: cannot be read (not the state of a training)" in train("state.every=2").out
    for file in newest.parent.iterdir():
        file.write_bytes(b"")
    result = train("state.every=2")
    assert "cannot be read" in result.err
    assert "remove out/state, or start over with resume=never" in result.err


def test_a_different_training_in_the_same_folder_is_rejected(train, tmp_path):
    assert train().status == 0
    before = (tmp_path / "out/config.yaml").read_text()
    result = train("optim.learning_rate=2e-3")
    assert result.status != 0
    assert "holds a training with optim.learning_rate=0.001, not 0.002; choose" in result.err
    assert "choose another output folder, or start over with resume=never" in result.err
    assert "holds a training with precision=torch.float32" in train("precision=bf16").err
    assert (tmp_path / "out/config.yaml").read_text() == before
    assert train("max_steps=6").status == 0  # the same training, longer
    assert train("optim.learning_rate=2e-3", "resume=never").status == 0


def test_a_shorter_training_is_rejected(train):
    assert train().status == 0
    assert "out: holds a training of 5 steps, more than the 2" in train("max_steps=2").err


def test_other_lists_in_a_file_of_the_same_name_are_a_different_training(train, tmp_path):
    teacher = PACKAGE / "mini/train/teacher.run"
    (tmp_path / "t.run").write_text(teacher.read_text())
    options = ["data.train.run=t.run"]
    assert train(*options).status == 0
    assert "from step 5" in train(*options).out
    Run.read(teacher).truncate(15).write("t.run")
    assert "holds a training with data.train.run's lists" in train(*options).err


@pytest.mark.parametrize(
    ("options", "is_different"),
    [
        ([], False),
        (["data.train.targets=score", "loss=kl"], True),
        (["data.train.sampling=stratified_scores"], True),
    ],
)
def test_other_scores_are_a_different_training_if_they_count(options, is_different, train):
    teacher = Run.read(PACKAGE / "mini/train/teacher.run")
    teacher.write("t.run")
    options = ["max_steps=1", "data.train.run=t.run", *options]
    assert train(*options).status == 0
    Run.from_scores(
        {q: dict(zip(of.doc_ids, of.scores * 2, strict=True)) for q, of in teacher.items()}
    ).write("t.run")
    result = train(*options)
    assert ("holds a training with data.train.run's lists" in result.err) == is_different
    assert (result.status != 0) == is_different


def test_other_judgements_are_a_different_training(train):
    judged = next((PACKAGE / "mini/train").glob("qrels*"))
    Path("q.txt").write_text(judged.read_text())
    options = ["max_steps=1", "data.train.qrels=q.txt", "loss=mixed"]
    assert train(*options).status == 0
    assert train(*options).status == 0
    lines = Path("q.txt").read_text().splitlines()
    Path("q.txt").write_text("\n".join(lines[::-1]) + "\n")
    assert train(*options).status == 0
    Path("q.txt").write_text("\n".join(lines[1:]) + "\n")
    assert "holds a training with data.train.qrels' judgements" in train(*options).err


def test_the_student_of_a_different_training_is_not_replaced(train, tmp_path):
    assert train().status == 0
    shutil.rmtree(tmp_path / "out/state")
    result = train("optim.learning_rate=3e-3")
    assert "holds a training with optim.learning_rate=0.001, not 0.003" in result.err
    assert train().status == 0  # the same training, started over


def test_a_missing_best_student_is_reported_before_training_resumes(train, tmp_path):
    assert train().status == 0
    shutil.rmtree(tmp_path / "out/checkpoint")
    assert "out/checkpoint: the best student is missing" in train("max_steps=6").err


def test_a_second_training_in_a_folder_in_use_is_rejected(train, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert "out: another process writes there" in train().err
    assert train().status == 0


def test_resume_never_deletes_nothing_before_the_config_is_valid(train, tmp_path):
    assert train().status == 0
    for wrong in ("wandb.mode=on", "loss.temperature=0"):
        assert train("resume=never", wrong).status != 0
        assert (tmp_path / "out/state/5.pt").exists()


def test_damaged_lines_of_the_metrics_are_dropped(train, tmp_path):
    assert train("state.every=2", "max_steps=4").status == 0
    with open(tmp_path / "out/metrics.jsonl", "ab") as file:
        file.write(b"\0\0\0\n\xff\n{}\n[1]\n")
    result = train("state.every=2", "max_steps=6")
    assert result.status == 0
    assert "metrics.jsonl, line 7: damaged, dropped" in result.out
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 4, 5, 6, 6, 6]


def test_a_teacher_run_of_other_queries_is_rejected_before_training(train, tmp_path):
    bm25, teacher = PACKAGE / "mini/test/bm25.run", PACKAGE / "mini/train/teacher.run"
    result = train(f"data.test.run={bm25}", f"data.test.teacher={teacher}")
    assert "teacher.run: none of its" in result.err
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_ids_that_no_run_file_can_hold_are_rejected_before_training(train, tmp_path):
    mini = PACKAGE / "mini/test"
    run = Run.read(mini / "bm25.run").truncate(3)
    text = "\n".join(
        json.dumps({"query_id": q, "doc_id": f"Page {d}", "rank": r, "text": "of a page"})
        for q, ranked in run.items()
        for r, d in enumerate(ranked.doc_ids, 1)
    )
    (tmp_path / "pages.jsonl").write_text(text)
    result = train("data.test.run=pages.jsonl", "data.test.docs=null")
    assert "cannot be written to a TREC run" in result.err
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_the_output_folder_may_be_named_by_a_number(train, tmp_path):
    assert train("output=2026").status == 0
    assert (tmp_path / "2026/checkpoint").is_dir()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seed=-1", "seed=-1 is not a whole number from 0 to 2^63 - 1"),
        ("seed=abc", "seed=abc is not a whole number"),
        ("epochs=inf", "epochs=inf is not a number above 0"),
        ("loss.temperature=0", "loss: temperature must be positive"),
        ("+loss.foo=1", "loss: "),
        ("model.query_length=-1", "model.query_length=-1 is not a whole number above 0"),
        ("model.dropout=abc", "model.dropout=abc is not a number of at least 0"),
        ("optim.learning_rate=-1", "optim.learning_rate=-1 is not a number of at least 0"),
        ("optim.weight_decay=-1", "optim.weight_decay=-1 is not a number of at least 0"),
        ("optim.max_grad_norm=abc", "optim.max_grad_norm=abc is not a number above 0"),
        ("validation.metric=5", "unknown metric '5'"),
        ("model.retokenise=maybe", "model.retokenise=maybe is neither true nor false"),
        ("state=null", "state=None is not a group of options"),
        ("output=null", "output is not set"),
    ],
)
def test_unsuitable_options_end_in_one_line(option, said, train, tmp_path):
    result = train(option)
    assert result.status != 0
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_lengthened_training_continues_at_the_rate_of_its_new_schedule(train, tmp_path):
    assert train("optim.warmup=0").status == 0
    assert train("optim.warmup=0", "max_steps=10").status == 0
    rates = [line["learning_rate"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert rates[:5] == pytest.approx([1e-3 * (1 - n / 5) for n in range(5)])
    assert rates[5:] == pytest.approx([1e-3 * (1 - n / 10) for n in range(5, 10)])


def test_changing_the_validation_forgets_the_best_student(train, tmp_path):
    assert train().status == 0
    best = metrics(tmp_path / "out")[-2]["validation/ndcg@10"]
    result = train("validation.metric=recall@1", "max_steps=6")
    assert "the validation has changed" in result.out
    value = metrics(tmp_path / "out")[-2]["validation/recall@1"]
    assert value < best
    assert f"step 6: validation recall@1 {value:.4f} (best {value:.4f})" in result.out
    state = torch.load(tmp_path / "out/state/6.pt", weights_only=True)
    assert state["progress"]["best"] == value


@pytest.mark.parametrize("room", [50_000, 500_000])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_written(room, train, tmp_path):
    """The first room is too small for a student, the second for a state."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        result = train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "cannot be written" in last
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.rglob("*") if "part" in path.name] == []
    assert not list((tmp_path / "out").glob("state/*.pt"))
    assert (tmp_path / "out/checkpoint").exists() == (room > 100_000)


def test_a_student_left_under_its_temporary_name_by_a_kill_is_restored(train, tmp_path):
    assert train().status == 0
    (tmp_path / "out/checkpoint").rename(tmp_path / "out/.checkpoint.old")
    assert train().status == 0
    assert (tmp_path / "out/checkpoint/config.json").exists()


def test_test_queries_may_be_added_when_resuming(train):
    assert train().status == 0
    mini = PACKAGE / "mini/test"
    added = [f"data.test.run={mini}/bm25.run", f"data.test.qrels={mini}/qrels.txt",
             f"data.test.queries={mini}/queries.tsv", "data.test.depth=3"]  # fmt: skip
    result = train(*added, "max_steps=6")
    assert result.status == 0, result.err
    assert "student after" in result.out
    assert "student before" not in result.out


def test_a_share_of_the_training_queries_chooses_the_checkpoint(train, tmp_path):
    held_out = ("data.validation.run=null", "data.validation.depth=5", "validation.every=2")
    share = "validation.from_train=0.2"
    result = train(*held_out, share)
    assert "27 of 133 queries are held out, measured by agreement with the teacher" in result.out
    validated = Run.read(tmp_path / "out/validation.run")
    trained = Run.read(PACKAGE / "mini/train/teacher.run")
    assert set(validated) < set(trained)
    # The teacher agrees with itself.
    assert re.search(r"^teacher +1\.0000$", result.out, re.MULTILINE)
    best = json.loads((tmp_path / "out/summary.json").read_text())["best_validation"]
    assert best["value"] == max(m.get("validation/ndcg@10", 0) for m in metrics(tmp_path / "out"))
    assert "from step 5" in train(*held_out, share, "max_steps=6").out
    by_judgements = train(*held_out, share, "output=judged", stage="prefinetune")
    assert "measured by judgements" in by_judgements.out
    # A validation run that is given is used.
    result = train(share, "output=given")
    assert "validation.from_train is ignored: data.validation.run is set" in result.out
    assert "held out" not in result.out
    assert "from step 5" in train("output=given", "max_steps=6").out
    changed = train(*held_out, "validation.from_train=0.4", "max_steps=7")
    assert "holds a training with validation.from_train=0.2, not 0.4" in changed.err


def test_a_share_that_holds_out_no_query_is_refused(train):
    result = train("data.validation.run=null", "validation.from_train=0.001")
    assert "is 0; choose a share that leaves queries on both sides" in result.err
    assert "is not below 1" in train("validation.from_train=1").err


def test_resume_never_starts_over(train, tmp_path):
    assert train("state.every=2").status == 0
    assert "from step 5" in train().out
    assert "from step" not in train("resume=never").out


def test_patience_ends_the_training(train, tmp_path):
    result = train(
        "validation.every=1", "validation.patience=2", "max_steps=40", "optim.learning_rate=3"
    )
    assert result.status == 0, result.err
    values = [
        line["validation/ndcg@10"]
        for line in metrics(tmp_path / "out")
        if "validation/ndcg@10" in line
    ]
    assert len(values) < 40
    assert len(values) - 1 - values.index(max(values)) == 2
    assert "no improvement in 2 validations" in result.out


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules(schedule, train, tmp_path):
    train(f"optim.schedule={schedule}", "optim.warmup=0.4", "max_steps=10")
    rates = [line["learning_rate"] for line in metrics(tmp_path / "out") if "loss" in line]
    assert rates[:4] == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3])
    after = [n / 6 for n in range(6)]  # progress after the warm-up
    expected = {
        "constant": [1e-3] * 6,
        "linear": [1e-3 * (1 - x) for x in after],
        "cosine": [0.5e-3 * (1 + math.cos(math.pi * x)) for x in after],
    }[schedule]
    assert rates[4:] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_on_the_cpu(precision, train, tmp_path):
    assert train(f"precision={precision}", *GOLDEN_LISTS["distill"]).status == 0
    assert losses(tmp_path / "out") == pytest.approx(GOLDEN["distill"], rel=2e-2)


def test_a_sweep_names_folders_by_what_varies_and_rejects_unsuitable_losses(train, tmp_path):
    options = ["max_steps=1", "output=${hydra:runtime.output_dir}"]
    result = train("loss=ranknet,kl,adr_mse,listnet", *options, sweep=True)
    assert "loss=kl" in result.err
    assert "consumes a score, but data.train.targets=rank" in result.err
    assert "Traceback" not in result.err
    assert result.status != 0
    (sweep,) = (tmp_path / "outputs/distill").iterdir()
    finished = {path.parent.parent.name for path in sweep.glob("*/checkpoint/config.json")}
    tracked = OmegaConf.load(sweep / "loss=adr_mse/config.yaml").wandb
    assert (tracked.group, tracked.job_type) == (sweep.name, "distill")
    assert tracked.tags == ["adr_mse", "minilm", "mini"]
    assert finished == {"loss=ranknet", "loss=adr_mse", "loss=listnet"}


def test_train_returns_the_validation_metric(train, tmp_path, monkeypatch):
    returned = []
    original = train_module.train
    monkeypatch.setattr(
        train_module, "train", lambda c: returned.append(original(c)) or returned[0]
    )
    train()
    assert returned == [metrics(tmp_path / "out")[-2]["validation/ndcg@10"]]


@pytest.mark.parametrize(("validated", "num_steps"), [(True, 1), (False, 3)])
def test_the_student_is_the_average_of_the_weights(validated, num_steps, train, tmp_path):
    options = ["state.every=1", "optim.ema=0.3", "data.test.run=null"]
    if not validated:
        options.append("data.validation.run=null")
    assert train("output=start", "max_steps=1", "optim.learning_rate=0", *options).status == 0
    average = load_file(tmp_path / "start/checkpoint/model.safetensors")["linear.weight"]
    for step in range(1, num_steps + 1):
        assert train(f"max_steps={step}", "optim.schedule=constant", *options).status == 0
        state = torch.load(tmp_path / f"out/state/{step}.pt", weights_only=True)
        last = state["model"]["network.linear.weight"]
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * last
    student = load_file(tmp_path / "out/checkpoint/model.safetensors")["linear.weight"]
    torch.testing.assert_close(student, average)
    assert not torch.equal(student, last)


def test_without_validation_the_last_student_is_kept(train, tmp_path):
    assert train("data.validation.run=null", "data.test.run=null").status == 0
    assert (tmp_path / "out/checkpoint/model.safetensors").exists()
    assert not (tmp_path / "out/validation.run").exists()


@pytest.mark.parametrize(
    "loss",
    [
        "loss=weighted_sum",
        "loss=kl data.train.transform=log2_rank",
        "loss=lambda data.train.targets=relevance",
    ],
)
def test_losses_with_other_targets_and_a_sum_of_losses_train(loss, train, tmp_path):
    assert train(*loss.split(), "max_steps=1").status == 0
    assert losses(tmp_path / "out")[0] > 0


@pytest.mark.slow
def test_wandb_offline_needs_no_account(train, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert train("wandb.mode=offline").status == 0
    assert train("wandb.mode=offline", "max_steps=6").status == 0
    runs = list((tmp_path / "out/wandb").glob("offline-run-*"))
    known = (tmp_path / "out/wandb_run_id").read_text()
    # Resumed: the same run. Within a second, W&B adds a number to the name of its folder.
    assert {path.name.split("-")[3] for path in runs} == {known}
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    said = {json.dumps(value) for value in summary["means"].values()}
    rows = ("first stage" if name == "bm25" else name for name in summary["means"])
    said |= {f"validation/ndcg@10/{row}" for row in rows}
    end = time.monotonic() + 60  # W&B's own process may still be writing
    written = b""
    while not all(text.encode() in written for text in said) and time.monotonic() < end:
        time.sleep(0.05)
        written = b"".join(file.read_bytes() for run in runs for file in run.glob("*.wandb"))
    assert {text for text in said if text.encode() not in written} == set()
    shutil.rmtree(tmp_path / "out/state")  # as if stopped before the first state was saved
    assert train("wandb.mode=offline").status == 0
    assert (tmp_path / "out/wandb_run_id").read_text() == known
    assert train("wandb.mode=offline", "resume=never").status == 0
    assert (tmp_path / "out/wandb_run_id").read_text() != known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loss=focal"], "loss=focal is not one of adr_mse, "),
        (["data.train.targets=ranks"], "targets=ranks is not one of rank, score, relevance"),
        (["data.train.list_size=21"], "list_size=21 is above the longest ranked list"),
        (["data.train.sampling=best"], "sampling=best is not one of"),
        (["optim.schedule=steps"], "schedule=steps is not one of constant, linear, cosine"),
        (["optim.ema=1"], "optim.ema=1 is not below 1"),
        (["precision=int8"], "precision=int8 is not one of"),
        (["wandb.mode=on"], "wandb.mode=on is not one of disabled, offline, online"),
        (["resume=maybe"], "resume=maybe is not one of auto, never"),
        (["model.path=nowhere/checkpoint"], "nowhere/checkpoint: no model"),
        (["output=/dev/null/x"], "the output folder /dev/null/x: cannot be written"),
        (["data.train.run=nowhere.run"], "nowhere.run: neither a file nor an ir_datasets id"),
        (["epoch=3"], "epoch"),
        (["optim.learning_rate=1e30", "optim.warmup=0"], "diverged; lower the learning rate"),
        (["data=local"], "data.train.run"),
        (["device=gpu"], "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
        (["device=cuda:99"], "device cuda:99: torch sees"),
        (["token_budget=much"], "token_budget=much is not a whole number above 0"),
        (["queries_per_step=0"], "queries_per_step=0 is not a whole number above 0"),
        (["max_steps=0"], "max_steps=0 is not a whole number"),
        (["epochs=0"], "epochs=0 is not a number above 0"),
        (["epochs=0.0001", "max_steps=null"], "are less than one list; raise epochs"),
        (["validation.metric=foo"], "unknown metric 'foo'"),
        (["wandb.artifacts=all"], "wandb.artifacts=all is not one of none, references, upload"),
        (["wandb.tags=[a,[b]]"], "wandb.tags[1]=['b'] is not text"),
        (["tensorboard=yes please"], "tensorboard=yes please is neither true nor false"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, said, train):
    result = train(*arguments)
    assert result.status != 0
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in result.err


def test_no_stage_names_the_choices(train):
    result = train(stage=None)
    assert result.status == "error: no stage: add +stage=prefinetune or +stage=distill"
