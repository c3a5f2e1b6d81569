"""The commands in processes of their own, from the checkout and from an installed wheel."""

import json
import signal
import zipfile

import pytest

from rankdistillm.cli import CONFIGS, PACKAGE

QUICK = ["data.test.run=null", "data.validation.depth=5", "data.train.num_queries=8", "max_steps=2"]
TRAIN = ("-W", "ignore", "-m", "rankdistillm.train")


def test_train_in_a_process_of_its_own(process, tiny_bert, tmp_path):
    result = process(*TRAIN, "+stage=distill", f"model.path={tiny_bert}", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (output,) = (tmp_path / "outputs/distill").iterdir()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 2]  # validation, then the summary
    assert (output / "checkpoint/model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}  # no litter


def test_an_error_is_one_line_and_a_status(process, tmp_path):
    result = process(*TRAIN, "+stage=distill", "loss=focal", cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Could not find 'loss/focal'" in line
    assert "adr_mse" in line
    full = process(*TRAIN, "loss=focal", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert "Traceback" in full.stderr


def test_ctrl_c_is_no_traceback(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rankdistillm.evaluate.find_runs", interrupted)
    result = command("evaluate", "runs=here")
    assert (result.status, result.err) == (128 + signal.SIGINT, "interrupted\n")


def test_the_collector_leaves_what_the_imports_made_alone(process, tmp_path):
    job = "lambda config: print(gc.get_freeze_count() > len(gc.get_objects()))"
    code = f"import gc; from rankdistillm.cli import run_command; run_command({job}, 'train')"
    result = process("-c", code, cwd=tmp_path)
    assert result.stdout == "True\n", result.stderr


@pytest.mark.slow
def test_a_launcher_names_folders_as_the_sweep_does(process, tiny_bert, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    options = ("hydra/launcher=submitit_local", "loss=ranknet,adr_mse", f"model.path={tiny_bert}")
    result = process(*TRAIN, "-m", "+stage=distill", *options, *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    students = tmp_path.glob("outputs/distill/sweep_*/*/checkpoint/model.safetensors")
    assert {path.parent.parent.name for path in students} == {"loss=ranknet", "loss=adr_mse"}
    wrong = process(*TRAIN, "-m", "+stage=distill", *options, "epochs=0", *QUICK, cwd=tmp_path)
    assert wrong.returncode == 1
    assert "error: epochs=0 is not a number above 0" in wrong.stderr


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder(process, tiny_bert, tmp_path):
    checkout = PACKAGE.parent
    if CONFIGS.parent == PACKAGE:
        pytest.skip("this is an installed package, there is no checkout to build from")
    built = process("-m", "build", "--wheel", "--outdir", tmp_path, checkout, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("tests/")]
        archive.extractall(installed)
    arguments = ("+stage=distill", f"model.path={tiny_bert}", *QUICK)
    result = process(*TRAIN, *arguments, cwd=empty, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    (config,) = (empty / "outputs/distill").glob("*/config.yaml")
    assert str(installed / "rankdistillm/mini") in config.read_text()
