"""Weights & Biases and TensorBoard: what they have of a training, read back from their files."""

import importlib.util
import json
import struct
import sys
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from rankdistillm.cli import PACKAGE
from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import RunMetrics, evaluate_run
from rankdistillm.training.dashboards import check_dashboards, read_run_id
from rankdistillm.training.state import Progress
from rankdistillm.training.tracking import Tracker
from rankdistillm.training.validation import Comparison

TEACHER = PACKAGE / "mini/train/teacher.run"
BLOCK = 32_768  # bytes; no header of a part crosses the end of one


@pytest.fixture(autouse=True)
def _own_wandb_folders(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))


# ---- the files, read back


def wandb_records(file):
    """The records of an offline run: LevelDB's log format, each record a protocol buffer."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    assert data[:4] in (b":W&B", b"")
    start, parts = 7, []
    while start + 7 <= len(data):
        if BLOCK - start % BLOCK < 7:
            start += BLOCK - start % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[start : start + 7])
        parts.append(data[start + 7 : start + 7 + size])
        start += 7 + size
        if start > len(data):  # not all of it is written yet
            return
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(b"".join(parts))
            yield record.WhichOneof("record_type"), record
            parts = []


def values(items):
    """Key -> value of the items of a record, nested keys joined by /."""
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def wandb_runs(folder):
    """The offline runs of the training in ``folder``: a namespace of their records for each."""
    found = []
    # W&B's own process may still be writing when `finish` returns.
    end = time.monotonic() + 60
    while not (files := sorted(folder.glob("wandb/offline-run-*/*.wandb"))):
        assert time.monotonic() < end
        time.sleep(0.05)
    for file in files:
        while "exit" not in dict(wandb_records(file)) and time.monotonic() < end:
            time.sleep(0.05)
        read = SimpleNamespace(
            folder=file.parent, history=[], summary={}, best=set(), inputs={}, outputs={}
        )
        for kind, record in wandb_records(file):
            if kind == "run" and not hasattr(read, "id"):
                run = record.run
                read.id, read.project, read.name = run.run_id, run.project, run.display_name
                read.group, read.job_type, read.tags = run.run_group, run.job_type, list(run.tags)
                read.config = values(run.config.update)
            elif kind == "metric" and record.metric.summary.max:
                read.best.add(record.metric.name)
            elif kind == "history":
                read.history.append(values(record.history.item))
            elif kind == "summary":
                read.summary |= values(record.summary.update)
            elif kind == "artifact":
                artifact = record.artifact
                side = read.inputs if artifact.use_after_commit else read.outputs
                side[artifact.name] = artifact
            elif kind == "exit":
                read.exit_code = record.exit.exit_code
        found.append(read)
    return found


def refers(artifact):
    """Whether an artifact has the digests of its files alone, and not their content."""
    return all(c.ref.startswith("file:///") and c.digest for c in artifact.manifest.contents)


def events(folder):
    """Tag -> [(step, value), …] of what TensorBoard shows."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    tags = read.Tags()["scalars"]
    return {tag: [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)] for tag in tags}


# ---- trainings


@pytest.fixture
def config(tmp_path):
    """Tracked by both dashboards; the student before it is one of an earlier training."""
    (tmp_path / "stage1/checkpoint").mkdir(parents=True)
    (tmp_path / "stage1/checkpoint/model.safetensors").write_text("weights")
    (tmp_path / "stage1/wandb_run_id").write_text("stage1id")
    return OmegaConf.create(
        {
            "stage": "distill",
            "resume": "auto",
            "tensorboard": True,
            "model": {"path": str(tmp_path / "stage1/checkpoint")},
            "data": {"train": {"run": str(TEACHER)}},
            "validation": {"metric": "mrr"},
            "wandb": {
                "mode": "offline", "project": "p", "entity": None, "name": None, "group": "g",
                "job_type": "distill", "tags": ["kl", "tiny"], "artifacts": "references",
            },
        }
    )  # fmt: skip


@pytest.fixture
def out(tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint/model.safetensors").write_text("weights")
    (out / "checkpoint/README.md").write_text("the card")
    (out / "before.run").write_text("q1 Q0 a 1 1 x\n")
    return out


def comparison():
    """A student that moves the relevant passage from rank 3 to 1, and one query that it spoils."""
    first = {"q1": {"a": 3, "b": 2, "c": 1}, "q2": {"a": 2, "b": 1}}
    after = {"q1": {"c": 3, "a": 2, "b": 1}, "q2": {"b": 2, "a": 1}}
    runs = {"bm25": Run.from_scores(first), "student after": Run.from_scores(after)}
    judged = SimpleNamespace(
        qrels={"q1": {"c": 2, "b": 0}, "q2": {"a": 1}}, queries={"q1": "why", "q2": "how"}
    )
    reciprocal_ranks = {"bm25": {"q1": 1 / 3, "q2": 1.0}, "student after": {"q1": 1.0, "q2": 0.5}}
    measured = {name: RunMetrics({"mrr": found}) for name, found in reciprocal_ranks.items()}
    return Comparison(judged, "mrr", runs, measured)


def sum_up(tracker, step):
    progress = Progress({}, step=step, best=0.75, best_step=2)  # the last value was 0.5
    trained_on = {"queries": 2, "digest": "d"}
    tracker.sum_up(
        progress, "mrr", trained_on=trained_on, comparison=comparison(), measured_on="test"
    )
    tracker.close()


def test_gains_name_the_passages_that_moved_most():
    assert comparison().gains() == [
        {
            "query_id": "q1", "query": "why", "first stage": pytest.approx(1 / 3),
            "student after": 1.0, "gain": pytest.approx(2 / 3),
            "moved": "c: 3 → 1 (relevance 2); a: 1 → 2 (unjudged); b: 2 → 3 (relevance 0)",
        },
        {
            "query_id": "q2", "query": "how", "first stage": 1.0, "student after": 0.5,
            "gain": -0.5, "moved": "b: 2 → 1 (unjudged); a: 1 → 2 (relevance 1)",
        },
    ]  # fmt: skip


def test_passages_with_equal_scores_have_the_ranks_of_the_metrics():
    first, after = {"q1": {"a": 1, "b": 1}}, {"q1": {"a": 2, "b": 1}}
    runs = {"bm25": Run.from_scores(first), "student after": Run.from_scores(after)}
    judged = SimpleNamespace(qrels={"q1": {"b": 1}}, queries={"q1": "why"})
    measured = {name: evaluate_run(run, judged.qrels, ["mrr"]) for name, run in runs.items()}
    (row,) = Comparison(judged, "mrr", runs, measured).gains()
    assert row["gain"] == -0.5
    assert row["moved"] == "a: 2 → 1 (unjudged); b: 1 → 2 (relevance 1)"


def test_a_resumed_training_continues_its_run_without_repeated_steps(config, out):
    tracker = Tracker(out, config)
    for step in range(1, 5):
        tracker.log(step, {"loss": step / 10})
    tracker.log(4, {"validation/mrr": 0.5})
    tracker.close()  # stopped; the last state is that of step 2
    tracker = Tracker(out, config, step=2)
    for step in range(3, 7):
        tracker.log(step, {"loss": step / 10})
        tracker.log(step, {"validation/mrr": 0.5})
    sum_up(tracker, 6)

    stopped, resumed = wandb_runs(out)
    assert stopped.id == resumed.id == (out / "wandb_run_id").read_text()
    assert (stopped.exit_code, resumed.exit_code) == (1, 0)
    rows = [*stopped.history, *resumed.history]
    names = ("loss", "validation/mrr")
    logged = [(row["_step"], name) for row in rows for name in names if name in row]
    assert sorted(logged) == [
        *((step, "loss") for step in (1, 2)),
        *((step, name) for step in (3, 4, 5, 6) for name in names),
    ]
    assert (stopped.best, resumed.best) == ({"validation/mrr"}, {"validation/mrr"})
    assert resumed.summary["validation/mrr"] == {"max": 0.75}  # measured before it was stopped

    shown = events(out)
    assert shown["loss"] == [(step, step / 10) for step in range(1, 7)]
    assert [step for step, _ in shown["validation/mrr"]] == [3, 4, 5, 6]
    assert shown["test/mrr/student after"] == [(6, 0.75)]
    assert shown["objective"] == [(6, 0.75)]


def test_each_dashboard_is_opened_once(config, out):
    Tracker(out, config).close()
    assert len(wandb_runs(out)) == 1
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_starting_over_makes_another_run_and_hides_old_events(config, out):
    config.resume = "never"
    for loss in (0.5, 0.25):
        tracker = Tracker(out, config)
        tracker.log(1, {"loss": loss})
        tracker.close()
    runs = wandb_runs(out)
    assert len({run.id for run in runs}) == 2
    assert sorted(run.history[0]["loss"] for run in runs) == [0.25, 0.5]
    assert events(out)["loss"] == [(1, 0.25)]


@pytest.mark.parametrize("artifacts", ["references", "upload", "none"])
def test_inputs_and_outputs_are_artifacts(artifacts, config, out):
    config.tensorboard = False
    config.wandb.artifacts = artifacts
    sum_up(Tracker(out, config), 2)
    (run,) = wandb_runs(out)
    outputs = {name: artifact for name, artifact in run.outputs.items() if "gains" not in name}
    if artifacts == "none":
        assert not run.inputs
        assert not outputs
        return
    assert {name: artifact.type for name, artifact in run.inputs.items()} == {
        "teacher.run": "run", "student-stage1id": "model",
    }  # fmt: skip
    assert {name: artifact.type for name, artifact in outputs.items()} == {
        f"student-{run.id}": "model", f"rankings-{run.id}": "run",
    }  # fmt: skip
    student, rankings = outputs.values()
    assert [content.path for content in student.manifest.contents] == ["model.safetensors"]
    assert [content.path for content in rankings.manifest.contents] == [
        "before.run", "per_query.csv",
    ]  # fmt: skip
    # Equal files are the same version, uploaded or not, whatever folder they are in.
    assert student.digest == run.inputs["student-stage1id"].digest
    assert all(map(refers, run.inputs.values()))
    assert [refers(artifact) for artifact in outputs.values()] == [artifacts == "references"] * 2
    metadata = json.loads(student.metadata)
    assert metadata["means"]["student after"] == 0.75


def test_the_run_of_an_ir_datasets_id_is_an_artifact_by_its_id(config, out):
    config.tensorboard, config.data.train.run = False, "some/collection/train"
    Tracker(out, config).close()
    (run,) = wandb_runs(out)
    (content,) = run.inputs["some-collection-train"].manifest.contents
    assert content.ref == content.digest == "ir-datasets:some/collection/train"


def test_a_missing_package_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"^tensorboard=true needs the extra .*: pip install"):
        check_dashboards(config)


def test_wrong_settings_are_named(config):
    config.tensorboard, config.wandb.project = False, "a/b"
    with pytest.raises(InputError, match=r"^wandb: .*project.*; correct the project, entity, name"):
        check_dashboards(config)


def test_a_dashboard_that_cannot_start_leaves_the_summary_of_a_finished_training(config, out):
    config.tensorboard, config.wandb.project = False, "a/b"
    for name in ("summary.json", "per_query.csv"):
        (out / name).write_text("finished")
    with pytest.raises(InputError, match=r"^wandb: mode offline: .*project"):
        Tracker(out, config)
    assert [(out / name).read_text() for name in ("summary.json", "per_query.csv")] == [
        "finished", "finished",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_offline_runs_of_a_sweep_and_of_the_stage_after_it(process, tiny_bert, tmp_path):
    def train(*options, sweep=()):
        tiny = [f"model.path={tiny_bert}", "model.dropout=0", "precision=fp32", "max_steps=2"]
        tiny += ["queries_per_step=2", "data.validation.depth=4", "data.test.depth=4"]
        tiny += [f"data.test.run={PACKAGE}/mini/test/bm25.run", "wandb.mode=offline"]
        command = ["-m", "rankdistillm.train", *sweep, "+stage=distill", *tiny, *options]
        result = process(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr

    sweep = tmp_path / "compared"
    train(f"hydra.sweep.dir={sweep}", "loss=ranknet,adr_mse", "seed=1,2,3", sweep=["-m"])
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == [
        f"loss={loss},seed={seed}" for loss in ("adr_mse", "ranknet") for seed in (1, 2, 3)
    ]
    ids, teachers = set(), set()
    for folder in folders:
        (run,) = wandb_runs(folder)
        loss, seed = (part.split("=")[1] for part in folder.name.split(","))
        saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

        assert (run.project, run.name) == ("rankdistillm", folder.name)
        assert (run.group, run.job_type) == ("compared", "distill")
        assert set(run.tags) == {loss, "minilm", "mini"}
        assert saved["wandb"]["group"] == "compared"
        assert {**run.config, "_wandb": None} == {**saved, "_wandb": None}
        assert run.config["seed"] == int(seed)

        # Metrics of a step are one row, whether it was validated or not.
        by_step = {}
        for line in lines[:-1]:
            by_step.setdefault(line.pop("step"), {}).update(line)
        own = [{name: row.get(name) for name in by_step[row["_step"]]} for row in run.history]
        assert own == list(by_step.values())
        assert {"padding", "memory_mib", "pairs_per_second", "grad_norm"} <= own[0].keys()

        assert run.best == {"validation/ndcg@10"}
        best = summary["best_validation"]["value"]
        assert run.summary["validation/ndcg@10"] == {"max": best}
        assert run.summary["objective"] == best
        closing = dict(zip(["first stage", *list(summary["means"])[1:]], summary["means"].values(),
                           strict=True))  # fmt: skip
        assert list(closing) == ["first stage", "teacher", "student before", "student after"]
        for row, mean in closing.items():
            assert run.summary[f"test/ndcg@10/{row}"] == mean

        table = json.loads((run.folder / "files" / run.summary["gains/path"]).read_text())
        assert table["columns"] == ["query_id", "query", *closing, "gain", "moved"]
        assert len(table["data"]) == summary["queries"]
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        for row, mean in closing.items():
            assert sum(r[row] for r in rows) / len(rows) == pytest.approx(mean)
        gains = [row["gain"] for row in rows]
        assert gains == sorted(gains, reverse=True)
        assert any("→" in row["moved"] for row in rows)

        (teacher,) = run.inputs.values()
        assert (teacher.name, teacher.type) == ("teacher.run", "run")
        assert json.loads(teacher.metadata)["source"] == str(TEACHER)
        assert refers(teacher)
        assert {name: artifact.type for name, artifact in run.outputs.items()} == {
            f"run-{run.id}-gains": "run_table", f"student-{run.id}": "model",
            f"rankings-{run.id}": "run",
        }  # fmt: skip
        assert run.exit_code == 0
        ids.add(run.id)
        teachers.add(teacher.digest)
    assert len(ids) == len(folders)
    assert len(teachers) == 1  # the same version of the artifact

    # The next stage starts from one of them: teacher run -> student -> student.
    train(f"model.path='{folder}/checkpoint'", "output=stage2")
    (second,) = wandb_runs(tmp_path / "stage2")
    assert second.group == ""
    assert second.inputs.keys() == {"teacher.run", f"student-{run.id}"}
    assert second.inputs[f"student-{run.id}"].digest == run.outputs[f"student-{run.id}"].digest
    assert second.inputs["teacher.run"].digest in teachers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces itself
def test_the_workspace_of_the_docs_shows_what_a_training_logs():
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces")
    script = PACKAGE.parent / "docs/wandb_workspace.py"
    specification = importlib.util.spec_from_file_location("wandb_workspace", script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    made = module.workspace("entity", "project", "mrr@10")
    panels = [panel for section in made.sections for panel in section.panels]
    text = made._to_model().model_dump_json()
    for name in (
        "loss", "grad_norm", "learning_rate", "pairs_per_second", "padding", "memory_mib", "gains",
        "validation/mrr@10", *(f"test/mrr@10/{row}" for row in module.ROWS),
    ):  # fmt: skip
        assert f'"{name}"' in text
    assert len(panels) > 8


@pytest.mark.parametrize("content", [b"", b"\xff", b"a/b:c", b"abc\n", b"x" * 65])
def test_a_damaged_run_id_is_named_before_anything_of_the_training_changes(content, tmp_path):
    (tmp_path / "wandb_run_id").write_bytes(content)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="wandb_run_id: not the id of a W&B run; remove it"):
        read_run_id(tmp_path / "wandb_run_id")
    config = OmegaConf.create(
        {"wandb": {"mode": "offline", "artifacts": "none"}, "resume": "auto", "tensorboard": False}
    )
    with pytest.raises(InputError, match="not the id of a W&B run"):
        Tracker(tmp_path, config)
    assert (tmp_path / "summary.json").exists()
