"""What the studies share: run the README's commands, and do nothing twice."""

import shlex
import subprocess
import sys
from pathlib import Path


def command(module: str, *arguments: str) -> None:
    """Run ``python -m rankdistillm.MODULE ARGUMENTS`` and print it first."""
    print(shlex.join(["python", "-m", f"rankdistillm.{module}", *arguments]), flush=True)
    subprocess.run([sys.executable, "-m", f"rankdistillm.{module}", *arguments], check=True)


def train(output: Path, *arguments: str) -> Path:
    """Train into ``output`` unless that was done before; returns the student's folder.

    One that was interrupted goes on where it stopped.
    """
    done = output / "done"
    if not done.exists():
        command("train", *arguments, f"output={output}")
        done.touch()
    return output / "checkpoint"


def rerank(output: Path, *arguments: str) -> Path:
    """Re-rank into the run file ``output`` unless it is there."""
    if not output.exists():
        command("rerank", *arguments, f"output={output}")
    return output
