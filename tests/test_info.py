"""`rankdistillm.info` describes this machine, and prints no secret and no home folder."""

import platform
import re
from importlib import metadata

import pytest
import torch

from rankdistillm import __version__
from rankdistillm.devices import autocast_dtype_of
from rankdistillm.encoder import scoring_layers


@pytest.fixture
def told(command):
    """Run the command; returns topic -> text, its lines joined."""

    def run(*arguments):
        result = command("info", *arguments)
        assert result.status == 0, result.err
        return {
            topic: " ".join(text.split())
            for topic, text in re.findall(r"(?m)^(\S+(?: \S+)?) {2,}(.*(?:\n {15}.*)*)", result.out)
        }

    return run


def test_it_names_versions_device_and_the_precision_of_auto(told):
    found = told("device=cpu")
    assert found["version"] == f"rankdistillm {__version__}, Python {platform.python_version()}"
    for package in ("torch", "transformers", "hydra-core", "ranx"):
        assert f"{package} {metadata.version(package)}" in found["packages"]
    assert "matplotlib" in found["[plots]"]
    assert "tensorboard" in found["[tensorboard]"]  # the longest topic
    assert found["device"].startswith("cpu: ")
    dtype = str(autocast_dtype_of("auto", torch.device("cpu"))).removeprefix("torch.")
    assert re.match(
        rf"{dtype}, since this CPU (computes|does not compute) bf16", found["precision"]
    )


def test_it_says_which_layers_score_and_why_no_faster_ones(told):
    found = told("device=cpu", "precision=fp32")
    assert found["precision"] == "float32, as given"
    assert found["scoring"] == "plain torch layers: the faster ones need half precision"
    assert "oneDNN" in scoring_layers(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("bert", "layout encoder, no scoring head; runs packed, and scores by its own layers"),
        ("deberta", "runs padded: deberta-v2 is not among the encoders of the fast path"),
    ],
)
def test_it_loads_a_model_and_says_whether_it_takes_the_fast_path(
    architecture, said, told, tiny_models
):
    path = tiny_models(architecture)
    found = told(f"model.path={path}", "precision=fp32")
    assert found["model"].endswith(said)


def test_caches_have_sizes_and_neither_the_home_folder_nor_a_key_is_shown(
    command, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RANKDISTILLM_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "mine/tokens").mkdir(parents=True)
    (tmp_path / "mine/tokens/a").write_bytes(b"0" * 3 * 2**20)
    (tmp_path / "mine/tokens/b").symlink_to("a")
    out = command("info", "device=cpu").out
    assert "rankdistillm: ~/mine, 3.0 MiB\n" in out
    assert "RANKDISTILLM_CACHE=~/mine" in out
    assert "sk-secret" not in out
    assert str(tmp_path) not in out


def test_a_model_below_the_home_folder_is_shown_from_there_on(told, monkeypatch, tiny_bert):
    monkeypatch.setenv("HOME", str(tiny_bert.parent))
    found = told(f"model.path={tiny_bert}", "device=cpu", "precision=fp32")
    assert found["model"].startswith(f"~/{tiny_bert.name}: layout encoder")


def test_folders_are_shown_whole(told, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    long = "/" + "numba-cache/" * 12
    monkeypatch.setenv("NUMBA_CACHE_DIR", long)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}-of-another/cache")
    variables = told("device=cpu")["variables"].split()
    assert f"NUMBA_CACHE_DIR={long}" in variables
    assert f"XDG_CACHE_HOME={tmp_path}-of-another/cache" in variables


def test_bad_options_end_in_one_line(command):
    assert "error: unknown device 'gpu'; use auto" in command("info", "device=gpu").err
    assert "error: precision=fp8 is not one of auto" in command("info", "precision=fp8").err
