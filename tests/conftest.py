"""Tiny random models with a real tokeniser, made on the spot; the commands run in this process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# ir_datasets asks for the room of the real MS MARCO before it reads the few passages of a test.
os.environ.setdefault("IR_DATASETS_SKIP_DISK_FREE", "true")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes of pytest -n share the cores
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra

from rankdistillm.cli import PACKAGE


def pytest_collectstart() -> None:
    """Before transformers imports Triton; the process that hands out the tests needs no torch."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker is left with one at the end."""
    marks = {item: item.get_closest_marker("slow") for item in items}
    items.sort(key=lambda item: not (marks[item] and marks[item].kwargs.get("first")))


@pytest.fixture(scope="session", autouse=True)
def _own_token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RANKDISTILLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random encoder of that architecture."""
    from tests.helpers import write_encoder

    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(architecture)
            write_encoder(made[architecture], architecture)
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def tiny_bert(tiny_models: Callable[[str], Path]) -> Path:
    return tiny_models("bert")


class Command:
    """The exit status and the output of a command."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Command]:
    """Run ``python -m rankdistillm.MODULE ARGUMENTS`` in this process, in an empty folder.

    `process` runs the same in a process of its own.
    """
    monkeypatch.chdir(tmp_path)
    # Hydra composes each config twice, the first time for hydra.mode alone, which no config sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def run(module: str, *arguments: object) -> Command:
        main = __import__(f"rankdistillm.{module}", fromlist=["main"]).main
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capfd.readouterr()
        status: object = 0
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code
            if isinstance(status, str):  # what the interpreter would print
                print(status, file=sys.stderr)
        finally:
            monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        return Command(status, *capfd.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python ARGUMENTS`` in a process of its own, with this package first on its path."""

    def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        # Commands in this process have set these; W&B's would lead to the service of this process.
        own = ("HYDRA_FULL_ERROR", "WANDB_SERVICE")
        inherited = {k: v for k, v in os.environ.items() if k not in own}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env={**inherited, "PYTHONPATH": str(PACKAGE.parent), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def calls_of(monkeypatch):
    """``calls_of(kind)`` returns a list that collects objects of this class when called."""

    def watch(kind):
        called = []
        compute = kind.__call__

        def spy(called_one, *inputs):
            called.append(called_one)
            return compute(called_one, *inputs)

        monkeypatch.setattr(kind, "__call__", spy)
        return called

    return watch
