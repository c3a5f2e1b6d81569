"""No command overwrites its inputs or files it did not write; a rejected one leaves nothing."""

import json
import os
import shutil

import pytest
import torch

from rankdistillm import train as train_module
from rankdistillm.model.cross_encoder import CrossEncoder


@pytest.fixture
def world(tiny_bert, tmp_path):
    """Inputs of all commands under several names; returns a function that reads all files."""
    run = "q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\n"
    files = {"docs.tsv": "a\tbread\nb\ttide\n", "queries.tsv": "q1\tbread\n", "first.run": run,
             "qrels.txt": "q1 0 a 1\n", "sub/second.run": run}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "link.run").symlink_to("first.run")
    os.link(tmp_path / "first.run", tmp_path / "hard.run")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "mine/checkpoint").mkdir(parents=True)
    torch.manual_seed(3)
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "mine/checkpoint")
    (tmp_path / "mine/notes.txt").write_text("mine")
    return lambda: (
        {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        | {str(path): b"" for path in tmp_path.rglob("*") if path.is_dir()}
    )


EVALUATE = ["qrels=qrels.txt", "runs={a: first.run, b: sub/second.run}", "metrics=ndcg@10"]
REPORT = [*EVALUATE, "data.docs=docs.tsv"]
RERANK = ["model.path=mine/checkpoint", "data.docs=docs.tsv", "data.queries=queries.tsv"]
RERANK += ["run=first.run"]
RETRIEVE = ["data.docs=docs.tsv", "data.queries=queries.tsv"]
EXPORT = ["model.path=mine/checkpoint", "format=mono"]
TRAIN = ["+stage=distill", "model.path=mine/checkpoint", "data=local", "data.docs=docs.tsv"]
TRAIN += ["data.queries=queries.tsv", "data.train.run=first.run", "data.train.list_size=2"]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("evaluate", [*EVALUATE, "table=qrels.txt"]),
        *(
            ("evaluate", [*EVALUATE, f"{option}={file}"])
            for option in ("per_query", "output")
            for file in ("qrels.txt", "link.run", "hard.run", "sub/../first.run", "here/first.run")
        ),
        ("evaluate", ["qrels=qrels.txt", "runs={a: a.png}", "baseline=a", "plot=here/a.png"]),
        ("evaluate", [*EVALUATE, "table=new.csv", "per_query=new.csv"]),
        ("evaluate", [*EVALUATE, "table=new.csv", "per_query=here/new.csv"]),
        ("evaluate", [*EVALUATE, "table=new.csv", "output=new.csv/x.json"]),
        ("evaluate", ["qrels=qrels.txt", "runs=sub", "output=sub/second.run"]),
        *(
            ("report", [*REPORT, f"output={file}"])
            for file in ("qrels.txt", "hard.run", "here/docs.tsv", "first.run.json")
        ),
        *(
            ("rerank", [*RERANK, f"output={file}"])
            for file in (
                "first.run", "queries.tsv", "docs.tsv", "hard.run", "here/here/queries.tsv",
                "mine/checkpoint/config.json", "mine/checkpoint/model.safetensors",
            )
        ),
        *(("retrieve", [*RETRIEVE, f"output={file}"]) for file in ("docs.tsv", "here/queries.tsv")),
        ("retrieve", [*RETRIEVE, "output=new", "index=here/new"]),
        *(("export", [*EXPORT, f"output={folder}"]) for folder in ("mine", "here/mine/checkpoint")),
        ("train", [*TRAIN, "output=mine"]),
        ("train", [*TRAIN, "output=here/mine"]),
        ("train", [*TRAIN, "output=mine", "resume=never"]),
        ("train", [*TRAIN, "output=other", "data.docs=other/state/docs.tsv"]),
        ("train", [*TRAIN, "output=other", "data.train.qrels=other/config.yaml"]),
        ("train", [*TRAIN, "output=other", "data.test.teacher=other/before.run"]),
    ],
)  # fmt: skip
def test_an_output_must_not_be_an_input_or_another_output(module, arguments, command, world):
    before = world()
    result = command(module, *arguments)
    assert result.status != 0
    (line,) = result.err.splitlines()
    assert "is read; choose" in line or "are one file; choose" in line
    assert world() == before


FOREIGN = {
    "config.yaml": "services: {web: {image: nginx}}\n", "metrics.jsonl": '{"step": 1}\n',
    "checkpoint/weights.bin": "mine", "state/1.pt": "mine", "before.run": "mine",
    "after.run": "mine", "validation.run": "mine", "wandb_run_id": "mine", "summary.json": "{}",
    "per_query.csv": "mine", "tensorboard/events": "mine",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_that_no_training_wrote_is_rejected(name, resume, command, world, tmp_path):
    (tmp_path / "other" / name).parent.mkdir(parents=True)
    (tmp_path / "other" / name).write_text(FOREIGN[name])
    before = world()
    result = command("train", *TRAIN, "output=other", f"resume={resume}")
    (line,) = result.err.splitlines()
    assert line.startswith(f"error: other/{name.split('/')[0]}: not written by a training")
    assert "choose another output folder, or move it" in line
    assert world() == before


@pytest.fixture
def trained(command, world, tmp_path):
    options = [*TRAIN, "output=out", "max_steps=2", "state.every=1", "precision=fp32"]
    assert command("train", *options).status == 0
    return lambda *more: command("train", *options, *more)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint", "not a student that a training wrote"),
        ("metrics.jsonl", "not a file, so no training wrote it"),
        ("state", "not a folder, so no training wrote it"),
    ],
)
def test_other_files_under_the_names_of_a_training_stay(name, said, trained, world, tmp_path):
    path = tmp_path / "out" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if name == "state":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "bert"}')
    before = world()
    for resume in ("auto", "never"):
        assert said in trained(f"resume={resume}").err
    assert world() == before


def test_starting_over_names_what_it_replaces_and_keeps_other_files(trained, tmp_path):
    out = tmp_path / "out"
    (out / "state/notes.txt").write_text("mine")
    (out / "state/².pt").write_text("mine")
    (out / "state/007.pt").write_text("mine")
    (out / "state/8.pt").mkdir()
    (out / "checkpoint/README.md").write_text("mine")
    assert "from step 2" in trained().out
    result = trained("resume=never", "max_steps=1")
    assert result.status == 0, result.err
    assert "out: deleting the state of step 2" in result.out
    assert (out / "checkpoint/README.md").read_text() == "mine"
    assert {path.name for path in (out / "state").iterdir()} == {
        "1.pt", "notes.txt", "².pt", "007.pt", "8.pt",
    }  # fmt: skip
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1


@pytest.mark.parametrize(
    "wrong",
    ["epochs=0", "data.train.run=nowhere", "precision=int8", "device=gpu", "optim.decay=some",
     "data.train.list_size=9", "wandb.mode=on", "model.path=nowhere"],
)  # fmt: skip
@pytest.mark.parametrize("output", ["output=new/deep/er", "max_steps=1"])
def test_a_rejected_training_leaves_no_folder(wrong, output, command, world):
    before = world()
    result = command("train", *TRAIN, output, wrong)
    assert len(result.err.splitlines()) == 1
    assert world() == before


def test_other_rejected_commands_leave_no_folder(command, world):
    before = world()
    assert command("rerank", *RERANK, "output=new/o.run", "run=nowhere").status != 0
    assert command("retrieve", *RETRIEVE, "output=new/o.run", "index=new/index", "b=2").status != 0
    assert command("evaluate", *EVALUATE, "table=new/t.md", "baseline=c").status != 0
    assert world() == before


def test_lists_of_one_passage_are_rejected_with_the_reason(command, world, tmp_path):
    (tmp_path / "one.run").write_text("q1 Q0 a 1 2 x\n")
    for size in (1, 2):
        result = command(
            "train", *TRAIN, "output=o", "data.train.run=one.run", f"data.train.list_size={size}"
        )
        assert "only one passage" in result.err
        assert "lower it" not in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["wandb.mode=online"], "wandb: the mode online needs an account"),
        (["wandb.mode=offline", "wandb.project=a/b"], "wandb: Invalid project name"),
        (["wandb.mode=online", "wandb.project=a:b"], "wandb: Invalid project name"),
    ],
)
def test_options_that_wandb_rejects_are_reported_before_anything_is_read(
    options, said, command, world, monkeypatch, tmp_path
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(train_module, "read_training_run", None)  # must not be called
    before = world()
    result = command("train", *TRAIN, "output=o", *options)
    assert said in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert world() == before
