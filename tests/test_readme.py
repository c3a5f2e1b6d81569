"""Every command and every snippet of the README runs."""

import re
import shlex
import tomllib

import pytest
import yaml

from rankdistillm import __version__
from rankdistillm.cli import PACKAGE
from rankdistillm.data.qrels import read_qrels
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from tests.endpoint import completion, serving

README = PACKAGE.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="installed without its README")

DEMO = "python -m rankdistillm.train +stage=distill"

# Where a command trains in full, one step shows that it runs.
ONE_STEP = " max_steps=1 queries_per_step=2 data.test.run=null data.validation.depth=2"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines()]


def arguments(command):
    python, *rest = shlex.split(command)
    assert python == "python"
    return rest


def test_the_two_set_up_commands_are_what_ci_runs():
    install_demo, install_test = (line for line in commands() if line.startswith("pip"))
    assert install_demo == f"pip install -c constraints.txt -e '.[demo]' && {DEMO}"
    assert install_test == "pip install -c constraints.txt -e '.[demo,test]' && pytest"
    ci = (README.parent / ".ci/run").read_text()
    assert "-c constraints.txt -e '.[demo,test]'" in ci


def test_the_tree_names_every_file():
    tree = README.read_text().split("Read the package in this order:")[1].split("```")[1]
    named, folders = set(), []
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        if name.endswith("/"):
            folders.append(name)
        elif folders[:1] == ["rankdistillm/"] and name.endswith(".py"):
            named.add("".join([*folders[1:], name]))
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    described = {file for file in files if not re.search(r"__init__|losses/|kernels/", file)}
    assert named == described


def test_the_documents_agree_on_the_repository():
    (clone,) = (line for line in commands() if line.startswith("git clone "))
    url = clone.split()[2]
    citation = yaml.safe_load((README.parent / "CITATION.cff").read_text())
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    assert citation["repository-code"] == project["urls"]["Source"] == url
    assert citation["version"] == __version__


DOCUMENTS = [
    *sorted(README.parent.glob("*.md")),
    *sorted((README.parent / "experiments").rglob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_links_lead_to_files(document):
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def test_files_that_the_documents_name_exist():
    drawings = sorted((README.parent / "docs").glob("*.svg"))
    assert drawings
    for document in (README.parent / "CONTRIBUTING.md", *drawings):
        marked = re.findall(r'`([^`\n]+)`|class="code"[^>]*>([^<]+)<', document.read_text())
        names = re.findall(r"[\w/]+(?:/|\.py)(?![\w/.])", " ".join(map(" ".join, marked)))
        assert names
        for name in set(names):
            assert (PACKAGE / name).exists() or (README.parent / name).exists(), name


@pytest.mark.slow(first=True)
def test_the_demo_gains_and_the_snippets_run(process, tmp_path, monkeypatch, capsys):
    result = process(*arguments(DEMO), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = dict(
        re.findall(r"^(bm25|teacher|student before|student after) +(0\.\d+)", result.stdout, re.M)
    )
    before, after = float(metrics["student before"]), float(metrics["student after"])
    assert after > before + 0.15
    assert after > float(metrics["bm25"]) + 0.03
    (student,) = (tmp_path / "outputs/distill").glob("*/checkpoint")
    student.rename(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python")
    exec(first, {})
    best = capsys.readouterr().out.splitlines()[0]
    assert best.startswith("1. ")
    assert "Yeast that is too cold" in best
    exec(second, {})


def write_own_data(folder):
    mini = PACKAGE / "mini"
    queries = sorted(Run.read(mini / "train/bm25.run"))[:4]
    (folder / "docs.tsv").write_text((mini / "docs.tsv").read_text())
    texts = read_texts(mini / "train/queries.tsv", "query")
    (folder / "queries.tsv").write_text("".join(f"{q}\t{texts[q]}\n" for q in queries))
    Run.read(mini / "train/bm25.run").select(queries).write(folder / "first.run")
    Run.read(mini / "train/teacher.run").select(queries).write(folder / "teacher.run")
    judged = read_qrels(mini / "train/qrels.txt")
    lines = [f"{q} 0 {d} {r}\n" for q in queries for d, r in judged[q].items()]
    for name in ("qrels.txt", "train.qrels"):
        (folder / name).write_text("".join(lines))


def answer(text, _):
    """A model that writes the beginning of the passage, and finds every order right."""
    if text.endswith("Query:"):
        passage = re.findall(r"^Passage: (.*)", text, re.MULTILINE)[-1]
        return completion(" ".join(passage.split()[:8]))
    return completion(" > ".join(f"[{i}]" for i in range(1, text.count("\n[") + 1)))


@pytest.mark.slow
def test_your_own_data_from_documents_on(command, tmp_path, monkeypatch):
    write_own_data(tmp_path)
    for made in ("queries.tsv", "first.run", "teacher.run"):
        (tmp_path / made).unlink()
    own = [line for line in commands() if line.startswith("python")]
    assert len(own) == 10
    with serving(answer) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        for line in own:
            if line.startswith("python -m rankdistillm.train -m "):
                line += ONE_STEP
            if " rankdistillm.generate_queries " in line:
                line += " num_passages=4 filter.depth=20"
            if " rankdistillm.evaluate " in line:
                (tmp_path / "qrels.txt").write_text((tmp_path / "queries.qrels").read_text())
            _, module, *given = arguments(line)
            result = command(module.removeprefix("rankdistillm."), *given)
            assert result.status == 0, (line, result.err)
    assert 0 < len(Run.read(tmp_path / "teacher.run")) <= 4
    assert len(Run.read(tmp_path / "reranked.run")) == len(Run.read(tmp_path / "teacher.run"))
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "exported/modules.json").exists()
    sweep = {p.name for p in (tmp_path / "outputs/distill").glob("sweep_*/*") if p.is_dir()}
    assert sweep == {f"loss={loss},seed={s}" for loss in ("adr_mse", "ranknet") for s in (1, 2, 3)}


@pytest.mark.slow
def test_on_several_devices(process, tmp_path):
    write_own_data(tmp_path)
    train, rerank = (line for line in commands() if line.startswith("torchrun "))
    for line in (train + ONE_STEP, rerank):  # by two processes on a CPU
        torchrun, _, _, *rest = shlex.split(line)
        assert torchrun == "torchrun"
        started = ("-m", "torch.distributed.run", "--nproc-per-node", "2", *rest)
        result = process(*started, cwd=tmp_path, OMP_NUM_THREADS="1")
        assert result.returncode == 0, (line, result.stderr)
    assert len(Run.read(tmp_path / "reranked.run")) == 4
