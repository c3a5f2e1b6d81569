"""Trainings that are interrupted or killed, in processes of their own."""

import json
import signal
import subprocess
import time

import pytest

from experiments.resume.run import command, kill_often, same_end

QUICK = [
    "precision=fp32",
    "data.validation.depth=5",
    "data.train.num_queries=8",
    "queries_per_step=2",
    "wandb.mode=disabled",
]


@pytest.fixture
def overrides(tiny_bert):
    return [f"model.path={tiny_bert}", *QUICK]


def steps(folder):
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_the_training_after_its_step_and_saves_the_state(number, overrides, tmp_path):
    options = [*overrides, "state.every=1000000", "max_steps=100000"]
    with subprocess.Popen(
        command(tmp_path / "out", options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        metrics = tmp_path / "out/metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or not metrics.read_text()):
            time.sleep(0.05)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out
    (state,) = (tmp_path / "out/state").iterdir()
    assert f"stopped at step {state.stem}: re-run with output=" in out
    assert "Traceback" not in out
    assert steps(tmp_path / "out")[-1] == int(state.stem)


@pytest.mark.slow(first=True)
def test_a_training_killed_at_random_moments_ends_with_the_same_state(overrides, tmp_path):
    """experiments/resume kills more often."""
    overrides = [*overrides, "model.dropout=0.1", "optim.ema=0.9", "max_steps=150"]
    subprocess.run(command(tmp_path / "uninterrupted", overrides), check=True)
    met = kill_often(tmp_path / "killed", 6, seed=1, overrides=overrides)
    assert len(met) == 6
    assert any(".part" in moment for moment in met)  # some while a state was being written
    assert same_end(tmp_path / "uninterrupted", tmp_path / "killed")
    assert steps(tmp_path / "killed") == steps(tmp_path / "uninterrupted")
    leftovers = [path for path in (tmp_path / "killed/state").iterdir() if path.suffix != ".pt"]
    assert not leftovers
