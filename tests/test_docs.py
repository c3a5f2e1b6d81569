"""The documentation builds without warnings, names what there is, and its commands run."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

import rankdistillm
from rankdistillm.cli import CONFIGS, PACKAGE, leaves, sets_options_of_all
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.losses import LOSSES
from tests.endpoint import completion, serving

DOCS = PACKAGE.parent / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="installed without its documentation")


class Links(HTMLParser):
    """The ids of a page, what it links to, and what a browser loads with it."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        target = found.get("href") or found.get("src")
        if target and tag in ("a", "area"):
            self.links.add(target)
        elif target and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(target)


def is_elsewhere(target):
    return bool(re.match(r"\w+:|//", target))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The documentation, built strictly, once for all processes of pytest."""
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the extra docs")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "site.lock"):
        if not (shared / "site").exists():
            build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
            built = subprocess.run(
                [*build, shared / "building"],
                cwd=DOCS.parent, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert built.returncode == 0, built.stderr
            (shared / "building").rename(shared / "site")
    return shared / "site"


@pytest.fixture(scope="session")
def pages(site):
    return {page: Links(page) for page in site.rglob("*.html")}


@pytest.mark.slow
def test_no_link_is_dead(pages, site):
    assert len(pages) > 20
    for page, found in pages.items():
        for target in filter(lambda t: not is_elsewhere(t), found.links | found.loaded):
            path, anchor = map(unquote, urldefrag(target))
            file = (page.parent / path).resolve() if path else page
            if page.name == "404.html":  # served at any address, so its links begin at the root
                file = site / path.lstrip("/")
            if file.is_dir():
                file /= "index.html"
            assert file.exists(), (page, target)
            if anchor and file.suffix == ".html":
                assert anchor in pages[file].ids, (page, target)


@pytest.mark.slow
def test_reading_needs_no_network_and_links_to_the_repository_lead_to_files(pages):
    for page, found in pages.items():
        assert not [target for target in found.loaded if is_elsewhere(target)], page
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    source = re.compile(re.escape(project["urls"]["Source"]) + r"/(?:blob|tree)/main/([^#]+)")
    linked = {
        match[1] for found in pages.values() for t in found.links if (match := source.match(t))
    }
    assert "experiments/antique/README.md" in linked
    for file in linked:
        assert (DOCS.parent / file).exists(), file


def options_in(page):
    """The names of options that a page sets as code, with or without a value."""
    return set(re.findall(r"<code>([^<=]*)(?:=[^<]*)?</code>", page.read_text()))


@pytest.mark.slow
def test_the_options_pages_name_every_option(site):
    commands, groups = (
        options_in(site / f"options/{name}.html") for name in ("commands", "groups")
    )
    for file in CONFIGS.rglob("*.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(file))
        for name in ("defaults", "hydra"):
            config.pop(name, None)
        group = file.relative_to(CONFIGS).parts[0]
        for name, _ in leaves(config):
            if re.search(r"(^|\.)_", name):  # Hydra's own
                continue
            if file.parent == CONFIGS:
                assert name in commands, (file, name)
            elif sets_options_of_all(str(file)):
                assert name in groups, (file, name)
            else:
                parts = name.split(".")
                named = [".".join([group, *parts[:i]]) for i in range(1, len(parts) + 1)]
                assert not groups.isdisjoint(named), (file, name)
    (row,) = re.findall(
        r"<tr>\s*<td><code>queries_per_step.*?</tr>",
        (site / "options/commands.html").read_text(),
        re.S,
    )
    assert re.sub(r"<[^>]+>|\n", "", row) == "queries_per_step8lists per optimiser step"


@pytest.mark.slow
def test_the_page_of_losses_has_each_with_its_formula_and_paper(site):
    page = (site / "losses.html").read_text()
    table = page[page.index("<table") : page.index("</table")]
    for name, function in LOSSES.items():
        assert f'href="#{name}"' in table
        part = page[page.index(f'<h2 id="{name}"') :]
        part = part[: part.find("<h2", 4)]
        sentence = function.__doc__.splitlines()[0].split("`")[0]
        assert sentence in re.sub(r"<[^>]+>", "", part).replace("&#39;", "'")
        formula = re.search(r"\n\n {4,}(.+)\n", function.__doc__)[1].strip()[:20]
        plain = re.sub(r"<[^>]+>", "", part).replace("&gt;", ">").replace("&lt;", "<")
        assert formula in plain
        assert re.search(r"\b(1[89]|20)\d\d\b", plain), name  # of the paper
        assert ">>> " in plain  # the doctest is code, not a quotation
    assert "<blockquote" not in page
    for name in ("mixed", "weighted_sum"):
        assert f'<h2 id="{name}"' in page


@pytest.mark.slow
def test_the_api_has_the_public_names(site):
    documented = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    for name in set(rankdistillm.__all__) - {"__version__"}:
        home = getattr(rankdistillm, name)
        assert f'id="{home.__module__}.{home.__qualname__}"' in documented, name
    assert 'id="rankdistillm.evaluation.metrics.evaluate_run"' in documented


def test_every_page_is_in_the_menu_and_every_file_it_links_to_exists():
    menu = re.findall(r"(?m)^ +- (?:.*: )?(\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text())
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(menu) == pages
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (DOCS / page).read_text()):
            assert ((DOCS / page).parent / target).exists(), (page, target)


# ---- troubleshooting


def messages():
    """The texts of the package on one line each, with a NUL for each value that is filled in."""
    for file in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and node not in docstrings:
                yield re.sub(r"%[-+.\d]*[a-z]", "\0", node.value)
            elif isinstance(node, ast.JoinedStr):
                values = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                yield "".join(values)


def has_in_order(text, parts):
    end = 0
    for part in parts:
        found = text.find(part, end)
        if found < 0:
            return False
        end = found + len(part)
    return True


def test_every_message_in_troubleshooting_is_one_of_the_package():
    known = list(messages())
    rows = re.findall(r"^\| (`.*?`) \| ", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    for quoted in re.findall(r"`([^`]+)`", " ".join(rows)):
        assert any(has_in_order(text, quoted.split("…")) for text in known), quoted


# ---- tab completion


def test_tab_completes_options_and_choices():
    (function,) = re.findall(
        r"```bash\n(.*?)```", (DOCS / "options/completion.md").read_text(), re.S
    )
    for line, offered in (
        ("python -m rankdistillm.train loss=ra", {"loss=ranknet"}),
        ("python -m rankdistillm.train +stage=", {"+stage=distill", "+stage=prefinetune"}),
        ("python -m rankdistillm.evaluate alp", {"alpha="}),
        ("python script.py alp", set()),
    ):
        words = " ".join(f"'{word}'" for word in line.split())
        asked = f"COMP_WORDS=({words}) COMP_LINE='{line}'; _rankdistillm; echo ${{COMPREPLY[@]}}"
        python = f'python() {{ {sys.executable} "$@"; }}'
        shell = subprocess.run(
            ["bash", "-c", f"{python}\n{function}\n{asked}"],
            cwd=PACKAGE.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert set(shell.stdout.split()) == offered, (line, shell.stderr)


# ---- the tutorial


def blocks():
    """The code of the tutorial, in order: language and text."""
    text = (DOCS / "tutorial.md").read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def recorded_teacher():
    """A server that gives the answers of the embedded teacher run, in place of a language model."""
    mini = PACKAGE / "mini"
    teacher = Run.read(mini / "train/teacher.run")
    queries = {text: i for i, text in read_texts(mini / "train/queries.tsv", "query").items()}
    docs = {text: i for i, text in read_texts(mini / "docs.tsv", "doc").items()}

    def answer(prompt, _):
        query = re.search(r"^Search Query: (.*)\.$", prompt, re.MULTILINE)[1]
        ranks = {doc_id: rank for rank, doc_id in enumerate(teacher[queries[query]].doc_ids)}
        shown = re.findall(r"^\[(\d+)\] (.*)$", prompt, re.MULTILINE)
        shown.sort(key=lambda passage: ranks.get(docs[passage[1]], len(ranks)))
        return completion(" > ".join(f"[{number}]" for number, _ in shown))

    return answer


def without_numbers(line):
    return " ".join(re.sub(r"[-+]?[\d.,]*\d\*?", "#", line.replace("bfloat", "float")).split())


def assert_shows(expected, actual):
    """The lines of the tutorial stand in the output, in order; numbers may differ."""
    found = iter([without_numbers(line) for line in actual.splitlines()])
    for line in expected.splitlines():
        assert without_numbers(line) in found, (line, actual)


@pytest.mark.slow(first=True)
def test_the_tutorial_line_by_line(command, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shown = {}
    with serving(recorded_teacher()) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        for language, text in blocks():
            if language == "sh":
                code, output = text, "".join(typed(text, command, tmp_path))
            elif language == "python":
                capfd.readouterr()
                exec(text, {})
                code, output = text, capfd.readouterr().out
                assert "owl" in output
            elif language == "text":
                shown[code] = text
                if code.startswith("from "):  # which passages are best may depend on the machine
                    text, output = (re.sub("  .*", "", given) for given in (text, output))
                assert_shows(text, output)
                if "rankdistillm.evaluate" in code:
                    means = dict(re.findall(r"^(bm25|student) +(0\.\d+)", output, re.MULTILINE))
    assert len(shown) == sum(language in ("sh", "python") for language, _ in blocks())
    assert sum(endpoint.answered.values()) == 133
    assert float(means["student"]) > float(means["bm25"]) + 0.03


def typed(text, command, folder):
    """The output of each line; the package's commands run in this process, which starts faster."""
    script = []
    for line in text.replace("\\\n", "").splitlines():
        if not line.startswith("python -m rankdistillm."):
            script.append(line)
            continue
        yield shell(script, folder)
        script = []
        _, _, module, *arguments = shlex.split(line)
        result = command(module.removeprefix("rankdistillm."), *arguments)
        assert result.status == 0, (line, result.err)
        yield result.out
    yield shell(script, folder)


def shell(lines, folder):
    run = ["bash", "-euc", "\n".join(lines)]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True).stdout
