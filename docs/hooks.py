"""Hooks that mkdocs calls while it builds the pages.

A line of a page may ask for text that stands elsewhere, so that nothing is said twice:

- ``<!-- include: FILE#SECTION -->`` becomes that section of a file of the repository, without its
  heading, up to the next heading that is not below it, or to ``<!-- include ends -->``.
- ``<!-- generate: NAME -->`` becomes what the function ``NAME`` makes of ``conf/`` and the losses;
  `GENERATED` has these functions.

A link to a file of the repository becomes a link to the page that includes it, or else to GitHub.
A link to a file that does not exist ends the build.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from rankdistillm.cli import CONFIGS, GROUPS, choices_of, commented, groups_of, sets_options_of_all
from rankdistillm.data.sampling import SINGLE_RELEVANT, STRATEGIES
from rankdistillm.losses import LOSSES, consumed_by

DOCS = Path(__file__).parent
ROOT = DOCS.parent
INCLUDE = re.compile(r"^<!-- include: ([^#\n]+)#(\S+) -->$", re.MULTILINE)
GENERATE = re.compile(r"^<!-- generate: (\w+) -->$", re.MULTILINE)
END = "<!-- include ends -->"
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s]+)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """mkdocs calls this with the Markdown of each page."""
    page_file, source = page.file.src_uri, config.extra["social"][0]["link"]

    def included(found: re.Match[str]) -> str:
        text = section(*found.groups())
        # The page has a heading of level 1; those of the section follow.
        levels = [len(level) for level, _ in HEADING.findall(FENCED.sub("", text))]
        up = min(levels, default=2) - 2
        text = outside_code(text, lambda part: HEADING.sub(lambda h: h[0][up:], part))
        return relinked(text, found[1], page_file, source)

    markdown = relinked(markdown, f"docs/{page_file}", page_file, source)
    markdown = INCLUDE.sub(included, markdown)
    return GENERATE.sub(lambda found: GENERATED[found[1]](), markdown)


# ---- parts of other files


@cache
def read(file: str) -> str:
    return (ROOT / file).read_text("utf-8")


def section(file: str, slug: str) -> str:
    """The text below a heading of a file, given by the heading's anchor."""
    text = read(file)
    # Headings keep their offsets when code, which may contain lines that look like one, is blanked.
    headings = list(HEADING.finditer(FENCED.sub(lambda code: " " * len(code[0]), text)))
    for i, heading in enumerate(headings):
        if slugify(heading[2], "-") == slug:
            below = [h.start() for h in headings[i + 1 :] if len(h[1]) <= len(heading[1])]
            return text[heading.end() : min(below, default=len(text))].partition(END)[0].strip()
    raise PluginError(f"{file}: no heading #{slug}")


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text, changed outside of its fenced code."""
    parts = FENCED.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


@cache
def homes() -> dict[tuple[str, str], tuple[str, str]]:
    """(file, anchor) of each included heading -> the page that has it, and the anchor there."""
    found = {}
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).as_posix()
        for file, slug in INCLUDE.findall(path.read_text("utf-8")):
            found[file, slug] = (page, "")
            for _, heading in HEADING.findall(FENCED.sub("", section(file, slug))):
                anchor = slugify(heading, "-")
                found[file, anchor] = (page, f"#{anchor}")
            if slug == slugify(HEADING.findall(read(file))[0][1], "-") and END not in read(file):
                found[file, ""] = (page, "")  # the whole file
    return found


def relinked(text: str, written_in: str, page_file: str, source: str) -> str:
    """The links of a text that stands in the file ``written_in``, as they must be in the page."""

    def target(found: re.Match[str]) -> str:
        path, _, anchor = found[1].partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(written_in), path))
        if not path:
            file = written_in
        is_program = file.endswith(".py")  # which is no part of the site
        if file.startswith("docs/") and not is_program:
            here = os.path.relpath(file, f"docs/{os.path.dirname(page_file)}")
            return f"{here if path else ''}{'#' if anchor else ''}{anchor}"
        if (file, anchor) in homes():
            page, there = homes()[file, anchor]
            return os.path.relpath(page, os.path.dirname(page_file) or ".") + there
        if not (ROOT / file).exists():
            raise PluginError(f"{written_in}: a link to {found[1]}, which does not exist")
        kind = "tree" if (ROOT / file).is_dir() else "blob"
        return f"{source}/{kind}/main/{file}{'#' if anchor else ''}{anchor}"

    return outside_code(text, lambda part: LINK.sub(target, part))


# ---- conf/


def commands() -> str:
    """All commands: how each is launched, its groups and its options."""
    parts = []
    for file in sorted(CONFIGS.glob("*.yaml")):
        command = file.stem
        launched, said = opening(file.name)
        parts += [f"## {command}", f"```sh\n{launched}\n```", prose(said)]
        if groups := groups_of(command):
            links = (f"[`{g}=`](groups.md#{g.removeprefix('+')})" for g in groups)
            parts.append(f"Groups: {', '.join(links)}")
        parts.append(option_table(options_in(file.name)))
    return "\n\n".join(filter(None, parts))


def groups() -> str:
    """All groups of options: each choice, how it is launched, and what it sets."""
    parts = []
    for group, meaning in GROUPS.items():
        files = {choice: f"{group}/{choice}.yaml" for choice in choices_of(group)}
        shared = {}
        if all("common/" in str(defaults(file)) for file in files.values()):
            (common,) = {str(defaults(file)[0]) for file in files.values()}
            shared = {name: row for name, *row in options_in(f"{group}/{common}.yaml")}
        parts += [f"## {group}", f"{meaning[0].upper()}{meaning[1:]}."]
        if shared:
            parts += ["All of them have these options:"]
            parts += [option_table(((f"{group}.{n}", *row) for n, row in shared.items()))]
        for choice, file in files.items():
            launched, said = opening(file)
            parts += [f"### {group}={choice} {{ #{group}-{choice} }}", f"```sh\n{launched}\n```"]
            parts += [prose(said), chosen(file)]
            prefix = "" if sets_options_of_all(file) else f"{group}."
            own = [
                (f"{prefix}{name}", *row)
                for name, *row in options_in(file)
                if name not in shared or row[0] != shared[name][0]
            ]
            parts.append(option_table(own))
    return "\n\n".join(filter(None, parts))


def prompts() -> str:
    """The prompts that ship with the package."""
    rows = []
    for file in sorted((CONFIGS / "prompts").glob("*.jinja")):
        (said,) = re.findall(r"\A\{# (.*?) #\}", file.read_text("utf-8"))
        rows.append(f"| `{file.stem}` | {escaped(said)} |")
    return "\n".join(["| `prompt=` | |", "|---|---|", *rows])


def defaults(file: str) -> list[Any]:
    return yaml.safe_load((CONFIGS / file).read_text("utf-8")).get("defaults", [])


def head(file: str) -> list[str]:
    """The comment that a config opens with, line by line."""
    text = re.sub(r"\A# @package .*\n", "", (CONFIGS / file).read_text("utf-8"))
    return re.match(r"(#.*\n)*", text)[0].splitlines()


def opening(file: str) -> tuple[str, str]:
    """The launch commands in a config's first comment, and what the comment says after them."""
    comment = [line.removeprefix("#").strip() for line in head(file)]
    launched = [line for line in comment if line.startswith("python -m ")]
    return "\n".join(launched), " ".join(line for line in comment[len(launched) :] if line)


def chosen(file: str) -> str:
    """Say in words which other configs a config builds on."""
    said = []
    for entry in defaults(file):
        if isinstance(entry, dict):
            for name, choice in entry.items():
                group = name.removeprefix("override /")
                said.append(f"Chooses [`{group}={choice}`](#{group}-{choice}).")
        elif "/" not in entry and entry != "_self_":
            group = file.partition("/")[0]
            said.append(f"Its other options are those of [`{group}={entry}`](#{group}-{entry}).")
    return " ".join(said)


def options_in(file: str) -> Iterator[tuple[str, str, str]]:
    """The options of a config: dotted name, default as the file writes it, and comment."""
    text, num_opening = commented(file), len(head(file))
    lines = text.splitlines()

    def comment_of(key: Any) -> str:
        start = line = key.start_mark.line
        while line > num_opening and re.match(f" {{{key.start_mark.column}}}#", lines[line - 1]):
            line -= 1
        above = [text.strip(" #") for text in lines[line:start]]
        behind = re.findall(r" # (.*)", lines[start])
        # A line for each of several values stays one.
        is_list = len(above) > 1 and all(re.match(r"\w+: ", line) for line in above)
        return ("<br>" if is_list else " ").join([*above, *behind])

    def walk(mapping: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
        for key, value in mapping.value:
            name = f"{prefix}{key.value}"
            if key.value.startswith("_"):
                continue  # Hydra's own, such as _target_
            if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
                if comment := comment_of(key):
                    yield name, "", comment
                yield from walk(value, f"{name}.")
            else:
                yield name, written(value, text), comment_of(key)

    if root := yaml.compose(text):
        yield from walk(root, "")


def written(value: Any, text: str) -> str:
    """The default, on one line."""
    if isinstance(value, yaml.CollectionNode) and not value.flow_style:
        made = yaml.safe_load(yaml.serialize(value))
        return yaml.safe_dump(made, default_flow_style=True, width=float("inf")).strip()
    return text[value.start_mark.index : value.end_mark.index]


def option_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A table of options; a line of text for a few that need no comment."""
    rows = list(rows)
    if len(rows) <= 5 and not any(comment for _, _, comment in rows):
        return ", ".join(f"`{name}={default}`" for name, default, _ in rows)
    lines = [
        f"| `{name}` | {default_cell(default)} | {escaped(comment)} |"
        for name, default, comment in rows
    ]
    return "\n".join(["| option | default | |", "|---|---|---|", *lines])


def default_cell(default: str) -> str:
    if default == "???":
        return "*required*"
    return f"`{default}`" if default else ""


def prose(comment: str) -> str:
    return escaped(comment).replace("\\|", "|")


def escaped(comment: str) -> str:
    """A comment as Markdown shows it, in a table."""
    parts = comment.split("`")
    plain = (
        re.sub(r"<(?!br>)", "&lt;", re.sub(r"([\\*_|\[\]])", r"\\\1", part)) for part in parts[::2]
    )
    code = (f"`{part}`" for part in parts[1::2])
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


# ---- losses

# Kind of targets that a loss consumes -> the data it needs, the best sampling, the options to set.
DATA = {
    "order": (
        "an LLM's ranking, or any other teacher run",
        "`random`, as the recipes for small students; `top_and_random` where the teacher ordered "
        "only the upper ranks; `top` with `list_size` = `depth` for whole lists, as in the paper",
        "`rank`",
    ),
    "score": (
        "a teacher run with meaningful scores, such as another re-ranker's; or a ranking whose "
        "ranks a transform turns into scores",
        "`stratified_scores`, which covers the range of the scores; else as above",
        "`score`, or `rank` with `data.train.transform=log2_rank`",
    ),
    "gain": (
        "relevance judgements, or clicks written as judgements",
        "`single_relevant` for `info_nce`: one positive against hard negatives of the first stage; "
        "`top` or `random` for the others",
        "`relevance`",
    ),
}
SUMS = ("mixed", "weighted_sum")


@cache
def losses() -> dict[str, tuple[set[str], Any]]:
    """Each ``loss=`` -> what it consumes, and the function; None for a sum of several."""
    found = {}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in choices_of("loss"):
            made = instantiate(compose("train", [f"loss={name}"]).loss)
            found[name] = (set(consumed_by(made)), LOSSES.get(name))
    return found


def loss_choice() -> str:
    """The table from the data at hand to sampling, targets and losses."""
    rows = []
    for kind, (have, sampling, targets) in DATA.items():
        named = re.findall(r"`(\w+)`", sampling)
        known = {*STRATEGIES, SINGLE_RELEVANT, *losses(), "list_size", "depth"}
        if unknown := set(named) - known:
            raise PluginError(f"unknown sampling: {unknown}")
        fit = [n for n, (consumed, _) in losses().items() if consumed == {kind} and n not in SUMS]
        links = ", ".join(f"[`{name}`](#{name})" for name in fit)
        rows.append(f"| {have} | {sampling} | {targets} | {links} |")
    rows.append(
        "| an LLM's ranking *and* judgements of the same queries | as for the ranking | none: the "
        "loss names its own, `'loss.targets=[rank,relevance]'` | [`mixed`](#mixed) |"
    )
    head = "| what you have | sampling | targets | loss |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def loss_catalogue() -> str:
    """A section for each loss: the launch command, and its docstring."""
    parts = []
    for name, (_, function) in losses().items():
        launched, said = opening(f"loss/{name}.yaml")
        parts += [f"## {name}", f"```sh\n{launched}\n```", prose(said)]
        if function is not None:
            parts.append(f"::: {function.__module__}.{function.__name__}\n    options: {BARE}")
        else:
            parts.append(
                "It is a [`WeightedSum`](api/training.md#rankdistillm.losses.modules.WeightedSum)."
            )
    return "\n\n".join(filter(None, parts))


BARE = "{show_root_heading: false, show_root_toc_entry: false}"
GENERATED = {f.__name__: f for f in (commands, groups, prompts, loss_choice, loss_catalogue)}


# ---- docstrings


class Doctests(griffe.Extension):
    """Doctests without a heading become code; Markdown would read ``>>>`` as quotes."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            code = r"(?m)^( *)>>> (?:.+\n?)+"
            obj.docstring.value = re.sub(code, _as_code, obj.docstring.value)


def _as_code(found: re.Match[str]) -> str:
    indent = found[1]
    return f"{indent}```pycon\n{found[0].rstrip()}\n{indent}```\n"
