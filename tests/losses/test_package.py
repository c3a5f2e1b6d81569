"""One function and one config make a loss: the package, its docs and the command line find it."""

import doctest
import importlib
import json
import pkgutil
import re
import shutil

import pytest

import rankdistillm.losses
from rankdistillm.cli import CONFIGS, PACKAGE
from rankdistillm.losses import LOSSES, ranknet_loss

README = PACKAGE.parent / "README.md"
MODULES = [
    module.name
    for module in pkgutil.iter_modules(rankdistillm.losses.__path__, "rankdistillm.losses.")
]
NEW_LOSS = """
from .consumption import consumes
from .lists import average, prepare, reduce_lists


@consumes("score")
def power_loss(scores, targets, *, mask=None, power=2.0, reduction="mean"):
    lists = prepare(scores, targets, mask)
    costs = (lists.scores - lists.targets).abs().pow(power)
    return reduce_lists(average(costs, lists.mask), lists.targets, reduction)
"""
NEW_CONFIG = """
_target_: rankdistillm.losses.power_loss
_partial_: true
power: 2.0
"""


def test_the_package_finds_its_losses_and_nothing_else():
    assert LOSSES["ranknet"] is ranknet_loss
    assert len(LOSSES) >= 17
    for name, function in LOSSES.items():
        assert function.__name__ == f"{name}_loss"
        assert function is getattr(rankdistillm.losses, f"{name}_loss")


@pytest.mark.skipif(not README.exists(), reason="installed without its README")
def test_the_readme_lists_every_loss():
    blocks = README.read_text().split("\n\n")
    (listed,) = (block for block in blocks if "`p_listmle`" in block)
    assert set(re.findall("`([a-z_]+)`", listed)) == set(LOSSES)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_an_example(name):
    function = LOSSES[name]
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
    assert any(f"{function.__name__}(" in example.source for example in found.examples)


@pytest.mark.slow
def test_a_new_loss_takes_one_function_and_one_config(process, tiny_bert, tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "rankdistillm", ignore=shutil.ignore_patterns("__pycache__")
    )
    if CONFIGS.parent != PACKAGE:
        shutil.copytree(CONFIGS, tmp_path / "conf")
    configs = tmp_path / CONFIGS.relative_to(PACKAGE.parent)
    (tmp_path / "rankdistillm/losses/powers.py").write_text(NEW_LOSS)
    (configs / "loss/power.yaml").write_text(NEW_CONFIG)

    trained = process(
        *("-W", "ignore", "-m", "rankdistillm.train", "-m", "+stage=distill", "max_steps=1"),
        *(f"model.path={tiny_bert}", "data.train.num_queries=8", "data.validation.run=null"),
        *("data.test.run=null", "loss=power", "data.train.transform=log2_rank,null"),
        "hydra.sweep.dir=out",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    (student,) = (tmp_path / "out").glob("*/metrics.jsonl")
    assert student.parent.name == "data.train.transform=log2_rank"
    first, *_ = student.read_text().splitlines()
    assert json.loads(first)["loss"] > 0
    refused = "data.train.transform=null: this loss consumes a score, but data.train.targets=rank"
    assert trained.stderr.startswith(f"error: {refused}")
