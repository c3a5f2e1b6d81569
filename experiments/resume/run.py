"""Kill a training at random moments; what it ends with must be what an undisturbed one ends with.

    python -m experiments.resume.run WORK [--kills 20] [OVERRIDE ...]

The overrides go to ``python -m rankdistillm.train +stage=distill``.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tqdm import tqdm

SMALL = ["state.every=1", "validation.every=10", "data.test.run=null", "max_steps=60"]


def command(output: Path, overrides: Sequence[str]) -> list[str]:
    """One training of the study."""
    train = [sys.executable, "-W", "ignore", "-m", "rankdistillm.train", "+stage=distill"]
    return [*train, *SMALL, *overrides, f"output={output}"]


def kill_often(output: Path, kills: int, seed: int, overrides: Sequence[str]) -> list[str]:
    """Start the training again and again, SIGKILL it, at last let it end.

    Every other start is killed while a state is being written after a new one, every tenth and
    the last while it is still starting, the rest at a random moment within 0.2 s of a new state.
    Returns where each kill met it: the name of a half-written state, if there was one.
    """
    draw = random.Random(seed)
    met = []
    for kill in tqdm(range(kills), desc="kill", disable=None):
        before = _newest_step(output)
        with subprocess.Popen(
            command(output, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            starting = kill % 10 == 9 or kill == kills - 1
            while not starting and process.poll() is None and _newest_step(output) <= before:
                time.sleep(0.001)
            if starting:
                time.sleep(draw.uniform(0.5, 5))
            elif kill % 2:
                time.sleep(draw.uniform(0, 0.2))
            else:
                while process.poll() is None and not _half_written(output, process.pid):
                    time.sleep(0.0005)
                # Not at its first byte alone: writing takes some milliseconds, or a second.
                time.sleep(draw.choice((0, 0.003, 0.03, 0.1)))
            process.kill()
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"it ended by itself before kill {kill + 1}; raise max_steps")
        met.append(" ".join(_half_written(output, process.pid)) or "no state being written")
    subprocess.run(command(output, overrides), check=True, stdout=subprocess.DEVNULL)
    return met


def same_end(one: Path, other: Path) -> bool:
    """Whether the students and the last states of two trainings are equal bit for bit.

    A state is weights, averages, optimiser, schedule, random generators and the place in the data.
    """
    ends = []
    for folder in (one, other):
        student = load_file(folder / "checkpoint/model.safetensors")
        state = torch.load(folder / f"state/{_newest_step(folder)}.pt", weights_only=True)
        ends.append({"student": student, "state": state})
    return _equal(*ends)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def _newest_step(output: Path) -> int:
    return max((int(file.stem) for file in (output / "state").glob("[0-9]*.pt")), default=0)


def _half_written(output: Path, process: int) -> list[str]:
    """The state that this process, not one killed before it, has begun and not yet renamed."""
    return [path.name for path in (output / "state").glob(f".*.{process}.part")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    whole, cut = arguments.work / "undisturbed", arguments.work / "killed"
    subprocess.run(command(whole, overrides), check=True)
    met = kill_often(cut, arguments.kills, arguments.seed, overrides)
    middle = sum(place.endswith(".part") for place in met)
    print(f"killed {len(met)} times, {middle} of them while a state was being written")
    same = same_end(whole, cut)
    print("the same student and state, bit for bit" if same else "a DIFFERENT student or state")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
