"""The commands in their own processes, from the checkout and from an installed wheel."""

import json
import logging
import os
import signal
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

from rankdistillm.cli import CONFIGS, PACKAGE, run_command
from rankdistillm.errors import InputError
from rankdistillm.progress import progress_bar

QUICK = ["data.test.run=null", "data.validation.depth=5", "data.train.num_queries=8", "max_steps=2"]
TRAIN = ("-W", "ignore", "-m", "rankdistillm.train")


@pytest.mark.slow
def test_a_training_writes_its_output_folder_and_nothing_else(process, tiny_bert, tmp_path):
    result = process(*TRAIN, "+stage=distill", f"model.path={tiny_bert}", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (output,) = (tmp_path / "outputs/distill").iterdir()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 2]  # validation, then the summary
    assert (output / "checkpoint/model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


@pytest.mark.parametrize(
    ("command_name", "given", "said"),
    [
        ("train", "loss=ranket", "weighted_sum; did you mean ranknet?"),
        ("train", "epoch=1", "no option epoch; did you mean epochs? (--help lists all)"),
        ("train", "optim.lerning_rate=1", "did you mean optim.learning_rate? (--help"),
        ("train", "model.pth=x", "did you mean model.path? (--help"),
        ("train", "data.train.list_sise=3", "did you mean data.train.list_size? (--help"),
        ("train", "xyzzy=1", "error: no option xyzzy (--help lists all)"),
        ("export", "path=x", "no option path; did you mean model.path? (--help"),
        ("generate_queries", "num_pasages=3", "did you mean num_passages? (--help"),
        ("generate_queries", "ask.maxtokens=3", "did you mean ask.max_tokens? (--help"),
        ("generate_queries", "teacher=query_likelihood", "teacher=query_likelihood sets ranking,"),
        ("rerank", "datta=local", "no option datta; did you mean data? (--help"),
    ],
)
def test_a_misspelt_option_or_choice_is_named_with_the_one_that_was_meant(
    command_name, given, said, command
):
    options = ["+stage=distill"] if command_name == "train" else []
    result = command(command_name, *options, given)
    assert result.status != 0
    assert said in result.err
    assert "To append" not in result.err


def test_an_error_is_one_line_and_exit_status_1(process, tmp_path):
    result = process(*TRAIN, "+stage=distill", "loss=focal", cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "loss=focal is not one of adr_mse, approx_mrr, " in line


def test_hydra_full_error_keeps_the_traceback(job, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException, match="focal"):
        job(print, "data=focal")


def test_ctrl_c_exits_without_a_traceback(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rankdistillm.evaluate.find_runs", interrupted)
    result = command("evaluate", "runs=here")
    assert (result.status, result.err) == (128 + signal.SIGINT, "interrupted\n")


def test_the_garbage_collector_skips_imported_modules(process, tmp_path):
    job = "lambda config: print(gc.get_freeze_count() > len(gc.get_objects()))"
    code = f"import gc; from rankdistillm.cli import run_command; run_command({job}, 'train')"
    result = process("-c", code, cwd=tmp_path)
    assert result.stdout == "True\n", result.stderr


def test_a_message_of_the_hub_is_shown_once(process, tmp_path):
    job = "lambda _: logging.getLogger('huggingface_hub.x').warning('slow')"
    imports = "import logging, huggingface_hub.utils; from rankdistillm.cli import run_command"
    code = f"{imports}; run_command({job}, 'train')"
    result = process("-c", code, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("", "slow\n")


@pytest.fixture
def job(monkeypatch):
    """Runs a function of the config as the command ``rerank``, which makes no folders."""

    def run(function, *arguments):
        monkeypatch.setattr(sys, "argv", ["rerank", *arguments])
        # As in a new process: an earlier command leaves its config behind.
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
        run_command(function, "rerank")

    return run


def test_a_sweep_reports_each_failed_job_and_runs_the_others(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = []

    def fail_at_2(config):
        ran.append(config.depth)
        if config.depth == 2:
            raise InputError("2 is too deep; take 1")

    with pytest.raises(SystemExit) as end:
        job(fail_at_2, "-m", "depth=1,2,3", "hydra.sweep.dir=sweep")
    assert ran == [1, 2, 3]
    assert end.value.code == "error: depth=2: 2 is too deep; take 1"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_command_goes_on_when_nobody_reads_its_output(name, job, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    done = []

    def prints(config):
        for size in (1, 100_000):  # less and more than what a stream keeps in memory
            print("x" * size, file=getattr(sys, name))
            logging.getLogger("rankdistillm").warning("y" * size)
        done.append(config.depth)

    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        job(prints, "depth=3")
    assert done == [3]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_command_runs_with_a_stream_closed(name, job, monkeypatch):
    monkeypatch.setattr(sys, name, None)  # as Python starts with >&- or 2>&-
    done = []

    def prints(config):
        print("x", file=getattr(sys, name))
        for _ in progress_bar(range(2)):
            logging.getLogger("rankdistillm").warning("y")
        done.append(config.depth)

    job(prints, "depth=3")
    assert done == [3]


@pytest.mark.parametrize(
    ("made_before", "folder", "left"),
    [
        (None, "a/b/c", None),
        ("a", "a/b/c", "a"),
        ("a/b/c", "a/b/c", "a/b/c"),
        ("a/b", "a/b/c/${hydra:job.name}", "a/b/c/cli"),  # a name that only the job knows
        (None, "${hydra:job.name}", "cli"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_of_unused_folders_only_those_that_the_command_made_are_removed(
    made_before, folder, left, fails, job, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    if made_before:
        (tmp_path / made_before).mkdir(parents=True)

    def do(config):
        if fails:
            raise InputError("no")

    with pytest.raises(SystemExit) if fails else nullcontext():
        job(do, f"hydra.run.dir={folder}")
    parts = [*Path(left).parents, Path(left)] if left else [Path()]
    assert set(tmp_path.rglob("*")) == {tmp_path / part for part in parts} - {tmp_path}


def test_jobs_of_a_sweep_leave_no_unused_folders(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        job(lambda config: None, "-m", "depth=1,2", "hydra.sweep.dir=a/b")
        (tmp_path / "a/b/multirun.yaml").unlink()
        assert not list(tmp_path.glob("a/b/*"))
        (tmp_path / "a/b").rmdir()


def test_a_folder_that_a_job_writes_into_stays(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def write(config):
        Path("a/b/c").mkdir(parents=True)
        Path("a/b/c/file").touch()

    job(write, "hydra.run.dir=a/b/c")
    assert (tmp_path / "a/b/c/file").exists()


def test_the_environment_is_the_same_after_a_command(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in ("0", None):
        if value is None:
            monkeypatch.delenv("HYDRA_FULL_ERROR")
        else:
            monkeypatch.setenv("HYDRA_FULL_ERROR", value)
        job(lambda config: None)
        assert os.environ.get("HYDRA_FULL_ERROR") == value


def test_a_programming_error_keeps_its_traceback(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        job(lambda config: 1 / 0)


@pytest.mark.slow
def test_jobs_of_a_launcher_name_their_folders_after_the_sweep(process, tiny_bert, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    options = ("-m", "+stage=distill", "hydra/launcher=submitit_local", f"model.path={tiny_bert}")
    result = process(*TRAIN, *options, "loss=ranknet,adr_mse", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    students = tmp_path.glob("outputs/distill/sweep_*/*/checkpoint/model.safetensors")
    folders = {path.parent.parent for path in students}
    assert {folder.name for folder in folders} == {"loss=ranknet", "loss=adr_mse"}
    for folder in folders:
        tracked = OmegaConf.load(folder / "config.yaml").wandb
        assert tracked.group == folder.parent.name
        assert tracked.tags == [folder.name.removeprefix("loss="), "minilm", "mini"]
    wrong = process(*TRAIN, *options, "loss=ranknet", "epochs=0", *QUICK, cwd=tmp_path)
    assert wrong.returncode == 1
    assert "error: epochs=0 is not a number above 0" in wrong.stderr


@pytest.mark.slow
def test_an_installed_wheel_runs_in_an_empty_folder(process, tiny_bert, tmp_path):
    checkout = PACKAGE.parent
    if CONFIGS.parent == PACKAGE:
        pytest.skip("there is no checkout to build a wheel from")
    built = process("-m", "build", "--wheel", "--outdir", tmp_path, checkout, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("tests/")]
        page = {name for name in archive.namelist() if "/report_page/" in name}
        assert {Path(name).suffix for name in page} == {".py", ".html", ".css", ".js"}
        archive.extractall(installed)
    arguments = ("+stage=distill", f"model.path={tiny_bert}", *QUICK)
    result = process(*TRAIN, *arguments, cwd=empty, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    (config,) = (empty / "outputs/distill").glob("*/config.yaml")
    assert str(installed / "rankdistillm/mini") in config.read_text()


HALF = """
import time
from pathlib import Path
from rankdistillm.cli import run_command
from rankdistillm.data.outputs import replacing

def job(config):
    with replacing(Path("out")) as beside:
        beside.write_text("half")
        print("ready", flush=True)
        time.sleep(60)

run_command(job, "evaluate")
"""


def test_a_command_that_is_terminated_leaves_no_temporary_files(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HALF], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_group_without_a_default_is_named_with_its_plus(command):
    assert "no option stage; did you mean +stage?" in command("train", "stage=distill").err
