"""The command ``summarize``: its command line, its files, a real sweep, and damaged files."""

import csv
import json
import random
import shlex
import shutil

import pytest
import yaml

from rankdistillm.cli import CONFIGS
from rankdistillm.data.outputs import locked
from rankdistillm.overrides import points
from tests.helpers import write_training

KL = {"loss._target_": "rankdistillm.losses.kl_loss"}
SMALL = [
    "data.validation.depth=3", "data.test.depth=3", "data.train.num_queries=8", "max_steps=2",
    "queries_per_step=2", "optim.learning_rate=1e-2", "precision=fp32",
]  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    """A sweep over two losses and two seeds."""
    for loss, options in (("ranknet", {}), ("kl", KL)):
        for seed in (1, 2):
            values = tuple(0.3 + 0.1 * seed + i / 100 + (loss == "kl") / 5 for i in range(9))
            write_training(
                tmp_path / f"sweep/loss={loss},seed={seed}", options | {"seed": seed}, values=values
            )
    return tmp_path / "sweep"


def write_multirun(folder, subdir="${varying:${hydra:overrides.task}}", losses="kl,ranknet"):
    """The multirun.yaml that Hydra writes for that sweep; ``subdir`` names its folders."""
    hydra = {
        "sweep": {"subdir": subdir},
        "sweeper": {"_target_": "hydra.BasicSweeper", "params": None},
        "overrides": {"task": [f"loss={losses}", "seed=1,2"]},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))


def test_a_sweep_of_the_training_command_is_summed_up(command, tiny_bert, tmp_path):
    trained = command(
        "train", "-m", "+stage=distill", f"model.path={tiny_bert}", "loss=ranknet,kl", "seed=1,2",
        "hydra.sweep.dir=sweep", *SMALL,
    )  # fmt: skip
    assert "consumes a score" in trained.err  # kl does
    result = command("summarize", "sweep", "table=t.csv")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["options", "test", "ndcg@10", "validation", "ndcg@10", "seeds"]
    assert lines[1].startswith("loss=ranknet ")
    assert "56 judged queries, bm25 0." in result.out
    missing = "not started, or refused at the start: sweep: loss=kl,seed=1 loss=kl,seed=2"
    assert missing in lines
    assert "not finished" not in result.out
    closing = [
        float(line.split()[2]) for line in trained.out.splitlines() if line[:13] == "student after"
    ]
    with open(tmp_path / "t.csv") as file:
        cells = {row["measurement"]: row for row in csv.DictReader(file)}
    assert float(cells["test ndcg@10"]["value"]) == pytest.approx(sum(closing) / 2, abs=1e-4)
    spread = abs(closing[0] - closing[1]) / 2**0.5
    assert float(cells["test ndcg@10"]["sd"]) == pytest.approx(spread, abs=1e-4)


def test_other_names_of_folders_are_not_taken_for_missing_trainings(sweep, command):
    write_multirun(sweep, "${hydra.job.num}")
    assert "not started" not in command("summarize", sweep).out
    shutil.rmtree(sweep / "loss=kl,seed=2")
    assert "not started" not in command("summarize", sweep).out
    write_multirun(sweep)
    out = command("summarize", sweep).out
    assert f"not started, or refused at the start: {sweep}: loss=kl,seed=2\n" in out
    write_multirun(sweep, losses="glob(*)")
    out = command("summarize", sweep).out
    assert f"{sweep}/multirun.yaml: its trainings cannot be listed" in out


def test_every_output_is_written(sweep, command, tmp_path):
    for table, plot in (("t.tex", "p.png"), ("t.txt", "p.svg")):
        options = ["baseline=loss=ranknet", f"table={table}", f"plot={plot}"]
        result = command("summarize", sweep, *options)
        assert result.status == 0, result.err
        assert "*" in result.out.splitlines()[1]
        assert f"wrote {plot}" in result.out
        assert (tmp_path / plot).stat().st_size > 5000
    assert result.out.startswith((tmp_path / "t.txt").read_text())
    assert r"\textbf{0.6900}\textsuperscript{*} $\pm$ 0.0707" in (tmp_path / "t.tex").read_text()
    assert {path.name for path in sweep.iterdir()} == {
        f"loss={loss},seed={seed}" for loss in ("kl", "ranknet") for seed in (1, 2)
    }


@pytest.mark.parametrize("form", ["{0}", "folder={0}", "folder=[{0}]", "{0}/loss=kl,seed=1 {0}"])
def test_the_folder_may_stand_alone(form, sweep, command):
    given = form.format("sweep").split(" ")
    result = command("summarize", *given)
    assert result.status == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()[1:3]] == [
        "loss=kl", "loss=ranknet",
    ]  # fmt: skip


def test_it_works_while_the_sweep_is_running(sweep, command):
    folder = sweep / "loss=kl,seed=2"
    (folder / "summary.json").unlink()
    (folder / ".summary.json.17.part").write_text('{"ste')
    with locked(folder):
        before = sorted(folder.iterdir())
        result = command("summarize", sweep)
        assert sorted(folder.iterdir()) == before
    assert f"not finished: {folder}: step 67 of 67, still running" in result.out
    assert result.out.splitlines()[1].split()[-1] == "1"  # seed of kl


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no folder; give that of a sweep"),
        (["nowhere"], "nowhere: not a folder; give that of a sweep"),
        (["empty"], "empty: no training in it; give the folder of a sweep"),
        (["sweep", "baseline=loss=k"], "baseline=loss=k is not one of: loss=kl; loss=ranknet"),
        (["sweep", "over=[sead]"], "over=sead is not an option of these trainings; did you mean"),
        (["sweep", "metric=map"], "metric=map is not one that was measured: ndcg@10"),
        (["sweep", "test=z"], "test=z is not one of t, randomisation"),
        (["sweep", "table=t.xls"], "t.xls: the suffix is not one of .txt, .md"),
        (["sweep", "plot=p.gif"], "p.gif: the suffix is not one of .png, .pdf, .svg"),
        (["sweep", "table=sweep/loss=kl,seed=1/per_query.csv"], "which is read; choose another"),
        (["sweep", ""], "'': not an option; write NAME=VALUE"),
    ],
)
def test_bad_input_is_one_line(arguments, said, sweep, command, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = [
        a.replace("table=sweep/loss=kl,seed=1", "table='sweep/loss=kl,seed=1") for a in arguments
    ]
    arguments = [a + "'" if a.startswith("table='") else a for a in arguments]
    result = command("summarize", *arguments)
    assert result.status not in (0, None)
    (line,) = result.err.splitlines()
    assert said in line


def test_nothing_to_draw_is_said(tmp_path, command):
    write_training(tmp_path / "sweep/a", finished=False)
    result = command("summarize", "sweep", "plot=p.svg")
    assert "p.svg: nothing to draw yet" in result.err
    assert "not finished: sweep/a: step 67" in result.out


def test_the_points_of_a_sweep_are_its_folders():
    overrides = ["+stage=distill", "loss=kl,ranknet", "model.path=a/b", "seed=range(1,3)"]
    assert points(overrides) == [
        f"loss={loss},seed={seed}" for loss in ("kl", "ranknet") for seed in (1, 2)
    ]
    assert points(["+stage=distill"]) == []
    assert points(["model.path=a/x,a/y"]) == ["model.path=a_x", "model.path=a_y"]


# ---- damaged files

SEED = 20261129
FILES = ("config.yaml", "summary.json", "metrics.jsonl", "per_query.csv")


def damage(path, rng):
    """Damage a file in one of the ways that disks, editors and half-done copies do."""
    content = path.read_bytes()
    cut = rng.randrange(len(content)) if content else 0
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(content[:cut])
    elif kind == 1:
        path.write_bytes(
            content[:cut] + bytes(rng.randrange(256) for _ in range(9)) + content[cut:]
        )
    elif kind == 2:
        path.unlink()
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4:
        path.write_bytes(rng.choice([b"", b"null", b"[]", b"{}", b"\0" * 50, b"5", b'"x"', b"- a"]))
    elif kind == 5:
        path.write_bytes(content.replace(b"0.", rng.choice([b"-", b"1e999", b"nan ", b"'"])))
    elif kind == 6:
        lines = content.splitlines(keepends=True)
        rng.shuffle(lines)
        path.write_bytes(b"".join(lines))
    else:
        path.write_bytes(content.replace(b"student after", b"gone").replace(b"seed", b"sead"))


def test_damaged_files_are_named_and_the_rest_is_summed_up(sweep, command):
    from rankdistillm.evaluation import sweeps, tables, trainings

    rng = random.Random(SEED)
    write_multirun(sweep)
    pristine = sweep.with_name("pristine")
    shutil.copytree(sweep, pristine)
    folders = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    named = 0
    for _ in range(40):
        shutil.rmtree(sweep)
        shutil.copytree(pristine, sweep)
        for _ in range(rng.choice([1, 1, 2, 5])):
            file = sweep / rng.choice(folders) / rng.choice(FILES)
            if file.is_file():
                damage(file, rng)
        found, problems = trainings.find_trainings([sweep])
        arranged = sweeps.arrange(found)
        baseline = list(arranged.rows)[:1]
        table = sweeps.sweep_table(arranged, baseline)
        for text in (tables.as_text, tables.as_markdown, tables.as_latex, tables.as_csv):
            assert text(table)
        assert len(found) + sum("left out" in problem for problem in problems) <= 4
        assert all(problem.startswith(str(sweep)) for problem in problems)
        named += len(problems)
    assert named > 12
    shutil.rmtree(sweep)
    shutil.copytree(pristine, sweep)
    for name, content in (("config.yaml", "a: ["), ("summary.json", "{"), ("per_query.csv", "x")):
        (sweep / folders.pop() / name).write_text(content)
    (sweep / "multirun.yaml").write_text("hydra: 5\n")
    result = command("summarize", sweep, "baseline=loss=kl")
    assert result.status == 0, result.err
    for name in ("config.yaml", "summary.json", "per_query.csv", "multirun.yaml"):
        assert sum(f"/{name}: " in line for line in result.out.splitlines()) == 1, name


def test_numbers_that_nothing_measures_are_damage(sweep, command):
    file = sweep / "loss=kl,seed=1/summary.json"
    summary = json.loads(file.read_text())
    means = {"student after": 10**400}
    for damaged in ({"step": 10**400}, {"means": means}, {"means": {"student after": 1e308}}):
        file.write_text(json.dumps(summary | damaged))
        result = command("summarize", sweep, "baseline=loss=ranknet")
        assert result.status == 0, result.err
        assert f"{file}: damaged (" in result.out
    file.write_text(json.dumps(summary))
    values = file.with_name("per_query.csv")
    head, *lines = values.read_text().splitlines()
    lines = [f"{line.rpartition(',')[0]},1e308" for line in lines]
    values.write_text("\n".join([head, *lines]))
    result = command("summarize", sweep, "baseline=loss=ranknet")
    assert result.status == 0, result.err
    assert f"{values}: damaged (1e+308 is not a number)" in result.out


def test_trainings_whose_names_are_too_long_for_a_folder_have_not_started(sweep, command):
    hydra = {
        "sweeper": {"_target_": "hydra.BasicSweeper", "params": None},
        "sweep": {"subdir": "${varying:${hydra:overrides.task}}"},
        "overrides": {"task": [f"wandb.name={'x' * 300},b"]},
    }
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    result = command("summarize", sweep)
    assert result.status == 0, result.err
    assert "not started, or refused at the start: " in result.out


# ---- Optuna


@pytest.mark.slow
def test_optuna_optimises_the_validation_metric(process, tiny_bert, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    page = CONFIGS.parent / "docs/sweeps.md"
    (line,) = (line for line in page.read_text().splitlines() if "hydra/sweeper=optuna" in line)
    options = (
        "hydra.sweeper.sampler.seed=1", "hydra.sweep.dir=sweep", f"model.path={tiny_bert}",
        *SMALL[:-2], "data.test.run=null",
    )  # fmt: skip

    def search(num_trials):
        started = shlex.split(line.replace("n_trials=20", f"n_trials={num_trials}"))[1:]
        result = process(*started, *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        weights = (tmp_path / "sweep").glob("*/checkpoint/model.safetensors")
        return {file.parent.parent.name: file.stat().st_mtime_ns for file in weights}

    first = search(2)
    best = yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())
    assert len(first) == 2
    assert f"optim.learning_rate={best['best_params']['optim.learning_rate']}" in first
    assert search(3).items() > first.items()  # the seed draws them again, and none is trained twice
    summed_up = process("-m", "rankdistillm.summarize", "sweep", "table=t.csv", cwd=tmp_path)
    assert summed_up.returncode == 0, summed_up.stderr
    with open(tmp_path / "t.csv") as file:
        cells = [r for r in csv.DictReader(file) if r["measurement"] == "validation ndcg@10"]
    assert len(cells) == 3
    assert max(float(cell["value"]) for cell in cells) >= best["best_value"] - 1e-6
