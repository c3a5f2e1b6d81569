"""Options with unsuitable values, how to quote them, --help, and printed messages."""

import logging
import re
import shlex
from copy import deepcopy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rankdistillm.cli import CONFIGS, GROUPS, LONGEST, OneLine
from rankdistillm.errors import InputError, check_flag
from rankdistillm.options import (
    EVALUATE,
    EXPORT,
    INFO,
    REPORT,
    RERANK,
    RETRIEVE,
    SUMMARIZE,
    TRAIN,
    check_options,
)

CHECKS = {
    "train": TRAIN, "retrieve": RETRIEVE, "rerank": RERANK, "evaluate": EVALUATE, "export": EXPORT,
    "info": INFO, "report": REPORT, "summarize": SUMMARIZE,
}  # fmt: skip
GIVEN = {
    "train": ["+stage=distill", "output=out"],
    "retrieve": ["data.docs=d", "data.queries=q", "output=o"],
    "rerank": ["model.path=m", "run=r", "output=o"],
    "evaluate": ["qrels=q", "runs={a: b}"],
    "report": ["qrels=q", "runs={a: b}", "output=o"],
    "export": ["model.path=m", "format=mono", "output=o"],
    "info": [],
    "summarize": ["folder=f"],
}
# A loss checks its own options; retrieving and re-ranking use only the texts of their data.
ELSEWHERE = {
    "train": "loss.", "retrieve": "data.", "rerank": "data.", "evaluate": "-", "export": "-",
    "info": "-",
    "summarize": "-",
    "report": "data.",
}  # fmt: skip


@cache
def _composed(module):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(module, GIVEN[module])


def composed(module):
    return deepcopy(_composed(module))


def leaves(config, prefix=""):
    for key in config:
        if OmegaConf.is_dict(config._get_node(key)) and config[key]:
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("module", CHECKS)
def test_every_option_is_checked(module):
    checks, config = CHECKS[module], composed(module)
    check_options(config, checks)
    found = {name for name in leaves(config) if not name.startswith(ELSEWHERE[module])}
    known = {name.removesuffix(".a") for name in found}
    assert known == {name for name in checks if not name.startswith(ELSEWHERE[module])}


@pytest.mark.parametrize("value", [[["a"]], {"a": {"b": [1]}}, True, "", "\udcff", "a\0b", "???"])
@pytest.mark.parametrize("module", CHECKS)
def test_an_unsuitable_value_is_rejected_by_name(module, value):
    config = composed(module)
    for name, check in CHECKS[module].items():
        if value is True and check is check_flag:
            continue
        suitable = OmegaConf.select(config, name)
        OmegaConf.update(config, name, value, merge=False, force_add=True)
        with pytest.raises(InputError, match=f"^{name}"):
            check_options(config, CHECKS[module])
        OmegaConf.update(config, name, suitable, merge=False, force_add=True)
    check_options(config, CHECKS[module])


@pytest.mark.parametrize("module", CHECKS)
def test_a_missing_option_and_a_value_instead_of_a_group_are_rejected(module):
    for name in CHECKS[module]:
        config = composed(module)
        OmegaConf.set_struct(config, False)
        group, _, last = name.rpartition(".")
        del (OmegaConf.select(config, group) if group else config)[last]
        with pytest.raises(InputError, match=f"^{name} is missing; remove ~{name}"):
            check_options(config, CHECKS[module])
        if group:
            OmegaConf.update(config, group, "text", merge=False)
            with pytest.raises(InputError, match=f"^{group}=text is not a group of options"):
                check_options(config, CHECKS[module])


def test_numbers_given_for_text_options_become_text():
    config = composed("evaluate")
    config.output, config.runs, config.metrics = 5, {"a": 2024, "b": {"c": 1.5}}, ["ndcg@10", 7]
    check_options(config, EVALUATE)
    assert (config.output, config.metrics) == ("5", ["ndcg@10", "7"])
    assert config.runs == {"a": "2024", "b": {"c": "1.5"}}


@pytest.mark.parametrize(
    "value",
    [
        "Läufe/é.run",
        "runs (1)/a.run",
        "日本",
        "it's",
        'say "x"',
        "a=b",
        "b(1)",
        "(a\\",
        "#1",
        "x,é",
    ],
)
def test_values_that_need_quotes_are_shown_quoted(value, command):
    result = command("rerank", f"run={value}")
    assert result.status != 0
    (line,) = result.err.splitlines()
    *_, argument = shlex.split(line.partition("; write ")[2])
    assert OverridesParser.create().parse_override(argument).value() == value


def test_quoting_inside_a_group_keeps_it_a_group(command):
    result = command("evaluate", "runs={bm25: é.run, b: [ö, (1).run, 5]}")
    *_, argument = shlex.split(result.err.partition("; write ")[2])
    value = OverridesParser.create().parse_override(argument).value()
    assert value == {"bm25": "é.run", "b": ["ö", "(1).run", 5]}


def test_a_comma_needs_quotes_or_a_sweep(command):
    result = command("rerank", "run=a,b.run")
    assert "run=a,b.run: several values are a sweep, which needs -m" in result.err
    assert """write "run='a,b.run'\"""" in result.err


def test_a_path_with_a_comma_is_quoted_inside_a_group(command):
    given = "runs={bm25: test.run, adr: sweep/loss=adr_mse,seed=1/after.run}"
    result = command("evaluate", "qrels=q", given)
    *_, argument = shlex.split(result.err.partition("; write ")[2])
    value = OverridesParser.create().parse_override(argument).value()
    assert value == {"bm25": "test.run", "adr": "sweep/loss=adr_mse,seed=1/after.run"}
    result = command("evaluate", "qrels=q", "runs={bm25:", "test.run}")
    assert "put quotes around the whole option, or the shell splits it at spaces" in result.err


def test_an_argument_that_is_not_an_option_is_rejected(command):
    assert "error: first.run: not an option; write NAME=VALUE" in command("rerank", "first.run").err


@pytest.mark.parametrize("module", CHECKS)
def test_help_shows_only_the_options_of_the_command_with_their_comments(module, command):
    result = command(module, "--help")
    assert result.status == 0
    groups = {"train": {"model", "data", "loss", "+stage", "+recipe"}}
    groups |= {"retrieve": {"data"}, "rerank": {"data"}, "report": {"data"}}
    _, _, rest = result.out.partition("Groups of options, [chosen]:\n")
    listed = re.findall(r"(?m)^  (\S+)= +(\S.*)\n {4}", rest.partition("\n\n")[0])
    assert {group for group, _ in listed} == groups.get(module, set())
    assert all(line == GROUPS[group.lstrip("+")] for group, line in listed)
    for line in (CONFIGS / f"{module}.yaml").read_text().partition("\nhydra:")[0].splitlines():
        if ": " in line and "override" not in line and not line.startswith("  - "):
            assert line in result.out
    assert "hydra:\n" not in result.out


def test_help_shows_the_chosen_groups(command):
    out = command("train", "--help", "loss=hinge", "+stage=prefinetune").out
    assert "loss: # loss=hinge" in out
    assert re.search(r"\+stage= .*\n +distill \| \[prefinetune\]\n", out)
    assert "| [hinge] |" in out
    assert "  margin: 1.0" in out
    assert "# Learn to tell one judged positive" in out


def test_help_shows_the_options_that_models_share(command):
    out = command("train", "--help").out
    assert "  path: sentence-transformers/all-MiniLM-L6-v2\n  dropout: 0.0\n" in out
    assert "  query_length: null # tokens; null: from the checkpoint, else 32 and 256\n" in out
    assert out.count("  dropout: ") == 1
    out = command("train", "--help", "+recipe=ecir25_distill", "model=ettin_17m").out
    assert "  dropout: null # null: from the checkpoint\n" in out
    assert "\n  weight_decay: 0.01\n  decay: all\n" in out


def test_messages_are_short_and_free_of_control_characters(command):
    result = command("evaluate", "qrels=q", "runs={a: b}", "test='\x1b[31mred\a'")
    assert r"test=\x1b[31mred\x07 is not one of" in result.err
    result = command("evaluate", "qrels=q", "runs={a: b}", f"test='{'x' * 100_000}'")
    assert len(result.err) <= LONGEST + 10
    assert result.err.endswith("is not one of t, randomisation\n")  # with the remedy
    record = logging.LogRecord("", logging.INFO, "", 0, "%s: left\nout", ("\x1b]0;title\a",), None)
    assert OneLine("%(message)s").format(record) == r"\x1b]0;title\x07: left\nout"
