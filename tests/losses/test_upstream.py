"""Twenty training steps against those of lightning-ir.

experiments/parity/run.py wrote its losses and the first values of each weight to the golden file.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/upstream_trajectory.json").read_text())


@pytest.fixture(scope="module")
def ours():
    file = ROOT / "experiments/parity/ours.py"
    spec = importlib.util.spec_from_file_location("ours", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", ["prefinetune", "distill"])
def test_losses_and_weights_of_twenty_steps_equal_upstreams(stage, ours, tmp_path):
    student = ours.make_student(tmp_path / "student", ours.make_encoder(tmp_path / "encoder"))
    losses, weights = ours.train(stage, student)
    golden = GOLDEN[stage]
    assert losses == pytest.approx(golden["losses"], rel=1e-5)
    assert len(golden["weights"]) > 30
    for name, values in golden["weights"].items():
        torch.testing.assert_close(
            weights[name].flatten()[:8], torch.tensor(values), rtol=0, atol=1e-5
        )
