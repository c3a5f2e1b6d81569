"""What the studies share: run the README's commands, and do nothing twice."""

import shlex
import subprocess
import sys
from pathlib import Path


def command(module: str, *arguments: str) -> None:
    """Run ``python -m rankdistillm.MODULE ARGUMENTS`` and print it first."""
    print(shlex.join(["python", "-m", f"rankdistillm.{module}", *arguments]), flush=True)
    subprocess.run([sys.executable, "-m", f"rankdistillm.{module}", *arguments], check=True)


def local(collection: Path) -> tuple[str, ...]:
    """The options for the texts in a folder: docs.tsv and queries.tsv."""
    docs, queries = collection / "docs.tsv", collection / "queries.tsv"
    return "data=local", f"data.docs={docs}", f"data.queries={queries}"


def train(output: Path, *arguments: str) -> Path:
    """Train into ``output`` unless that was done before; returns the student's folder.

    Resumes an interrupted training.
    """
    done = output / "done"
    if not done.exists():
        command("train", *arguments, f"output={output}")
        done.touch()
    return output / "checkpoint"


def retrieve(output: Path, *arguments: str) -> Path:
    """Retrieve into the run file ``output`` unless it is there."""
    if not output.exists():
        command("retrieve", *arguments, f"output={output}")
    return output


def rerank(output: Path, *arguments: str) -> Path:
    """Re-rank into the run file ``output`` unless it is there."""
    if not output.exists():
        command("rerank", *arguments, f"output={output}")
    return output


def generate_queries(output: Path, *arguments: str) -> Path:
    """Write queries into the file ``output`` unless it is there."""
    if not output.exists():
        command("generate_queries", *arguments, f"output={output}")
    return output


def teach(output: Path, *arguments: str) -> Path:
    """Let a teacher write the run file ``output`` unless it is there; asks nothing twice."""
    if not output.exists():
        command("teach", *arguments, f"output={output}")
    return output
