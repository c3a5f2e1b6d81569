"""Jobs of two processes (gloo) started by ``torchrun``."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rankdistillm.cli import PACKAGE
from rankdistillm.model.cross_encoder import CrossEncoder

TORCHRUN = ("-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
TRAIN = (
    "rankdistillm.train", "+stage=distill", "model.dropout=0", "precision=fp32", "max_steps=20",
    "queries_per_step=5", "data.test.run=null", "data.validation.depth=5", "optim.warmup=0",
)  # fmt: skip


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_processes_train_as_one(process, command, tiny_bert, tmp_path):
    alone = command("train", *TRAIN[1:], f"model.path={tiny_bert}", "output=one")
    assert alone.status == 0, alone.err
    # Without an output folder the processes must agree on its default name, which holds the time.
    both = process(*TORCHRUN, *TRAIN, f"model.path={tiny_bert}", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert "distill on 2 x cpu" in both.stdout
    (output,) = (tmp_path / "outputs/distill").iterdir()
    assert losses(output) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(output)) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"one", "outputs"}


@pytest.mark.slow
def test_a_process_may_have_no_list_in_a_step(process, command, tiny_bert, tmp_path):
    options = [
        *TRAIN[1:],
        "queries_per_step=1",
        "max_steps=4",
        "precision=fp16",
        f"model.path={tiny_bert}",
    ]
    alone = command("train", *options, "output=one")
    assert alone.status == 0, alone.err
    both = process(*TORCHRUN, TRAIN[0], *options, "output=two", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
def test_sigterm_ends_all_processes_after_the_same_step_and_saves_the_state(tiny_bert, tmp_path):
    options = [*TRAIN, f"model.path={tiny_bert}", "max_steps=100000", "output=out"]
    with subprocess.Popen(
        [sys.executable, *TORCHRUN, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as job:
        file = tmp_path / "out/metrics.jsonl"
        while job.poll() is None and (not file.exists() or not file.read_text()):
            time.sleep(0.05)
        # Like Slurm, signal both torchrun, which passes it on, and its processes.
        os.killpg(job.pid, signal.SIGTERM)
        out, _ = job.communicate(timeout=60)
    (state,) = (tmp_path / "out/state").iterdir()
    assert f"stopped at step {state.stem}: re-run with output=" in out
    assert job.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["long=maxp", "model.doc_length=16"]])
def test_two_processes_rerank_byte_for_byte_like_one(
    options, process, command, tiny_bert, tmp_path
):
    mini = PACKAGE / "mini"
    (tmp_path / "student").mkdir()
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(tmp_path / "student")
    rerank = (
        "model.path=student", "data=mini", f"run={mini}/test/bm25.run",
        f"data.queries={mini}/test/queries.tsv", *options,
    )  # fmt: skip
    alone = command("rerank", *rerank, "output=one.run")
    assert alone.status == 0, alone.err
    two = process(
        *TORCHRUN, "rankdistillm.rerank", *rerank, "output=two.run",
        cwd=tmp_path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert (tmp_path / "one.run").read_bytes() == (tmp_path / "two.run").read_bytes()


@pytest.mark.slow
def test_a_job_that_lost_a_process_resumes(process, tiny_bert, tmp_path):
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import os, sys\n"
        "from rankdistillm.data import batches as data\nfrom rankdistillm import train\n"
        "make = data.TrainingData.batch\n"
        "def batch(self, step):\n"
        "    if step == 7 and os.environ['RANK'] == '1':\n"
        "        os._exit(9)\n"
        "    return make(self, step)\n"
        "data.TrainingData.batch = batch\n"
        "train.main()\n"
    )
    options = [*TRAIN[1:], f"model.path={tiny_bert}", "output=out", "state.every=1"]
    result = process(*TORCHRUN[:-1], dying, *options, cwd=tmp_path)
    assert result.returncode != 0
    assert "exitcode" in result.stderr
    again = process(*TORCHRUN, "rankdistillm.train", *options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "from step" in again.stdout
    assert len(losses(tmp_path / "out")) == 20


@pytest.mark.slow
def test_an_error_in_both_processes_is_printed_once(process, tmp_path):
    result = process(*TORCHRUN, "rankdistillm.train", "+stage=distill", "loss=focal", cwd=tmp_path)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "loss=focal is not one of adr_mse, " in said[0]
