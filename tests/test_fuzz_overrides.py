"""Random command lines: each succeeds or ends in one line, and no file of the user's is lost.

More lines: ``FUZZ_LINES=1000 FUZZ_SEED=7 pytest -m slow tests/test_fuzz_overrides.py``.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rankdistillm import rerank as rerank_module
from rankdistillm import train as train_module
from rankdistillm.cli import CONFIGS, PACKAGE
from rankdistillm.model.cross_encoder import CrossEncoder

COMMANDS = ("train", "retrieve", "rerank", "evaluate", "report")
SEED = int(os.environ.get("FUZZ_SEED", "20261128"))
LINES = int(os.environ.get("FUZZ_LINES", "50"))  # for each command
SECONDS = 6 * LINES  # a line takes a tenth of a second or two

WORLD = {
    "docs.tsv": "a\tBread rises because yeast makes gas.\nb\tThe tide follows the Moon.\n"
    "c\tOwls fly without noise.\n",
    "queries.tsv": "q1\twhy do tides turn\nq2\thow is bread made\n",
    "first.run": "".join(
        f"{q} Q0 {d} {r} {-r} bm25\n" for q in ("q1", "q2") for r, d in enumerate("abc", 1)
    ),
    "teacher.run": "".join(
        f"{q} Q0 {d} {r} {-r} llm\n" for q in ("q1", "q2") for r, d in enumerate("cba", 1)
    ),
    "qrels.txt": "q1 0 b 1\nq1 0 a 0\nq2 0 a 2\nq2 0 c 0\n",
    "runs/one.run": "q1 Q0 b 1 1 one\nq2 Q0 c 1 1 one\n",
    "runs/two.run": "q1 Q0 a 1 1 two\nq2 Q0 a 1 1 two\n",
    "mymodel/notes.txt": "mine\n",
    "foreign/config.yaml": "services: {web: {image: nginx}}\n",
    "foreign/metrics.jsonl": '{"mine": 1}\n',
    "foreign/checkpoint/weights.bin": "mine",
    "foreign/state/².pt": "mine",
    "foreign/state/1.pt": "mine",
}
FILES = ["docs.tsv", "queries.tsv", "first.run", "teacher.run", "qrels.txt", "runs/one.run"]
OTHER_NAMES = ["link.run", "hard.run", "here/first.run", "../{w}/qrels.txt", "./docs.tsv"]
FOLDERS = ["runs", "mymodel", "mymodel/checkpoint", "foreign", "foreign/checkpoint", ".", "here"]
FOLDERS += ["student", "student/config.json", "student/model.safetensors"]
NEW = ["new.run", "new/deep/out.jsonl", "out.md", "out.csv", "out.png", "out.json", "out"]
VALUES = [
    "null", "true", "false", "''", '""', "nan", "inf", "-inf", "-1", "0", "1", "2", "0.5", "1e400",
    "1e30", str(10**30), "[a,b]", "[]", "[[]]", "[1,null]", "{}", "{a: 1}", "{a: {b: null}}",
    "{a: first.run, b: qrels.txt}", "a b", "'a b'", '"quo\'te"', "'", '"', "é", "'é'", "naïve(1)",
    "x,y", "(", "²", "'²'", "日本", "${seed}", "${nope}", "${", "$$", "${oc.env:HOME}", "???",
    "a=b", "\\", "=", "'\x1b[31mred'", "\x1b[2J", "'" + "x" * 300 + "'", f"'{'y' * 100_000}'",
    "/dev/null", "/dev/null/x", "cpu", "cuda", "cuda:99", "meta", "auto", "fp32", "int8", "ndcg@10",
    "[ndcg@10,foo]", "ndcg@0", "mrr@10", "a/b", "one", "[one,one]", "t", "online", "disabled",
    "rank", "score", "relevance", "random", "1_000", "0x10", "2026-01-01", "!", "*", "#", "%s",
    "{", "glob(*)", "range(1,3)", "choice(a,b)", "int(5)", "str(5)", "json_str({})", "\udcff",
    "'\udcff'",
]  # fmt: skip
FIXED = {
    "train": [
        "+stage=distill", "model.path=student", "data=local", "data.docs=docs.tsv",
        "data.queries=queries.tsv", "data.train.run=teacher.run", "data.train.list_size=2",
        "output=out", "max_steps=1",
    ],
    "retrieve": ["data.docs=docs.tsv", "data.queries=queries.tsv", "output=out.run"],
    "rerank": [
        "model.path=student", "data.docs=docs.tsv", "data.queries=queries.tsv", "run=first.run",
        "output=out.run",
    ],
    "evaluate": ["qrels=qrels.txt", "runs={a: first.run, b: teacher.run}", "metrics=ndcg@10"],
    "report": [
        "qrels=qrels.txt", "runs={a: first.run, b: teacher.run}", "metrics=ndcg@10",
        "data.docs=docs.tsv", "data.queries=queries.tsv", "output=out.html",
    ],
}  # fmt: skip
SWAPPED = {
    "train": ["output", "model.path", "data.docs", "data.train.run", "data.train.qrels"],
    "retrieve": ["output", "index", "data.queries", "data.docs", "language"],
    "rerank": ["output", "run", "data.queries", "data.docs", "model.path"],
    "evaluate": ["output", "table", "per_query", "plot", "qrels", "runs"],
    "report": ["output", "qrels", "runs", "baseline", "data.docs", "num_queries", "depth"],
}
FILES_MADE = ("table", "per_query", "plot", "output")


class StartedTraining(BaseException):
    """All checks have passed; the loop would follow."""


def options_of(module: str) -> list[str]:
    """All options and groups of options of a command, dotted."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(module)
    names = []

    def walk(node, prefix):
        for key in node:
            names.append(f"{prefix}{key}")
            if OmegaConf.is_dict(node._get_node(key)):
                walk(node[key], f"{prefix}{key}.")

    walk(config, "")
    return names


def make_world(folder: Path, student: Path) -> None:
    for name, text in WORLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("student", "mymodel/checkpoint"):
        shutil.copytree(student, folder / name)
    (folder / "link.run").symlink_to("first.run")
    os.link(folder / "first.run", folder / "hard.run")
    (folder / "here").symlink_to(".")


def snapshot(folder: Path) -> dict[str, object]:
    """Path -> content, of all that lies in the folder."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def command_line(module: str, options: list[str], rng: random.Random, world: str) -> list[str]:
    def name() -> str:
        return rng.choice(SWAPPED[module]) if rng.random() < 0.35 else rng.choice(options)

    def value() -> str:
        kind = rng.random()
        paths = rng.choice([FILES, OTHER_NAMES, FOLDERS, NEW])
        return rng.choice(paths if kind < 0.4 else VALUES).replace("{w}", world)

    line = list(FIXED[module])
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        how = rng.random()
        if how < 0.7:
            line.append(f"{name()}={value()}")
        elif how < 0.78:
            line.append(f"~{name()}")
        elif how < 0.82:
            line.append(f"~{name()}={value()}")
        elif how < 0.92:
            line.append(f"++{name()}={value()}")
        elif how < 0.96:
            line.append(f"+{name()}.extra={value()}")
        else:
            line.append(rng.choice(VALUES))
    if module == "train" and rng.random() < 0.2:
        line.append("resume=never")
    return line


def judge(status: object, err: str) -> str | None:
    """Return a fault in how a command ended, or None."""
    if status == 0:
        return None
    lines = err.strip("\n").split("\n")
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines: {err[:300]!r}"
    if len(lines[0]) > 2000 or not lines[0].isprintable():
        return f"{len(lines[0])} characters, or escape codes: {lines[0][:300]!r}"
    if re.search(r"Traceback|Exception\b", lines[0]):
        return f"a message for programmers: {lines[0][:300]!r}"
    return None


def lost(before: dict[str, object], folder: Path, line: list[str]) -> list[str]:
    """Files that are no longer what they were, but for an output that names one nobody reads."""
    after = snapshot(folder)
    changed = [name for name in before if after.get(name, "gone") != before[name]]
    outputs = [option.lstrip("+").partition("=")[::2] for option in line]
    written = {
        (folder / value).parent.resolve() / Path(value).name
        for option, value in outputs
        if option in FILES_MADE
    }
    return [
        name
        for name in changed
        if sum(name in part for part in line) > 1 or folder.resolve() / name not in written
    ]


def leftovers(before: dict[str, object], folder: Path) -> list[str]:
    """Empty or half-written things that a refused command left."""
    return [
        name
        for name, content in snapshot(folder).items()
        if name not in before and (content in (None, b"") or name.endswith(".part"))
    ]


@pytest.fixture
def student(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(3)
    CrossEncoder.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture
def stubbed(monkeypatch):
    """The work that follows the last check: of a training the loop, of a re-ranking the scores."""

    def started(*_, **__):
        raise StartedTraining

    monkeypatch.setattr(train_module, "prepare_metrics", lambda _: None)
    monkeypatch.setattr(train_module, "Tracker", started)
    monkeypatch.setattr(rerank_module.Reranker, "rerank", lambda self, run, *_: run)


def refuse(problems: list[tuple[str, list[str]]]) -> None:
    said = [f"{what}\n    {' '.join(line)[:300]!r}" for what, line in problems]
    assert not problems, f"{len(problems)} of them:\n" + "\n".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_random_options_end_well_and_lose_nothing(module, command, stubbed, student, tmp_path):
    rng = random.Random(f"{SEED} {module}")
    options = options_of(module)
    problems, until, world = [], time.monotonic() + SECONDS, tmp_path / "w"
    for i in range(LINES):
        assert time.monotonic() < until, f"only {i} lines in {SECONDS} s"
        if not world.exists():
            world.mkdir()
            make_world(world, student)
            before = snapshot(world)
        os.chdir(world)
        line = command_line(module, options, rng, world.name)
        status: object
        try:
            result = command(module, *line)
            status, err = result.status, result.err
        except StartedTraining:
            status, err = 0, ""
        except Exception as error:
            status, err = 1, f"error: Traceback {error!r}"
        os.chdir(tmp_path)
        if what := judge(status, err):
            problems.append((what, line))
        if gone := lost(before, world, line):
            problems.append((f"lost: {gone}", line))
        if status != 0 and (left := leftovers(before, world)):
            problems.append((f"left behind: {left}", line))
        if snapshot(world) != before:
            shutil.rmtree(world)
    refuse(problems)


@pytest.mark.slow
def test_random_options_in_processes_of_their_own(student, tmp_path):
    rng = random.Random(SEED)
    problems = []
    make_world(tmp_path, student)
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE.parent))
    environment.pop("HYDRA_FULL_ERROR", None)
    for module in COMMANDS:
        before = snapshot(tmp_path)
        line = command_line(module, options_of(module), rng, tmp_path.name)
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"rankdistillm.{module}", *line],
            cwd=tmp_path, env=environment, capture_output=True, check=False,
        )  # fmt: skip
        if what := judge(ended.returncode, ended.stderr.decode()):
            problems.append((what, line))
        if gone := lost(before, tmp_path, line):
            problems.append((f"lost: {gone}", line))
    refuse(problems)
