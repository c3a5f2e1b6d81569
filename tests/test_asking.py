"""What the commands that ask a model share."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rankdistillm import asking
from rankdistillm.asking import Outputs, ask_all, instantiate_group


def test_nested_options_arrive_as_plain_dicts_and_lists():
    nested = {"chat_template_kwargs": {"enable_thinking": False}, "stop": ["a", {"b": 1}]}
    config = OmegaConf.create(
        {"teacher": {"_target_": "builtins.dict", "extra": nested, "model": {
            "_target_": "builtins.dict", "template_options": nested,
        }}}
    )  # fmt: skip
    made = instantiate_group(config, "teacher")
    for found in (made["extra"], made["model"]["template_options"]):
        assert json.dumps(found) == json.dumps(nested)  # DictConfig is no JSON
        assert type(found["stop"]) is list


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_interruption_says_where_the_answers_are(dry_run, tmp_path, monkeypatch, caplog):
    config = OmegaConf.create(
        {"output": str(tmp_path / "t.run"), "store": None, "dry_run": dry_run, "concurrency": 1,
         "answer_tokens": None, "ask": {}, "prices": {"input": None, "output": None},
         "budget": {"requests": None, "tokens": None, "money": None}}
    )  # fmt: skip

    async def interrupted(*_, **__):
        raise KeyboardInterrupt

    class Teacher:
        pass

    with caplog.at_level("INFO", asking.log.name), pytest.raises(KeyboardInterrupt):
        ask_all(config, Outputs(config), Teacher(), interrupted, interrupted)
    said = f"answers so far are kept in {Path(config.output)}.answers.sqlite; the same command"
    assert (said in caplog.text) == (not dry_run)
