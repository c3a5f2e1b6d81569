"""Damaged checkpoints load or end in one line; hostile ones run no code.

More damages: ``FUZZ_DAMAGES=1000 FUZZ_SEED=7 pytest -m slow tests/model/test_fuzz_checkpoints.py``.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rankdistillm.cli import PACKAGE
from rankdistillm.errors import InputError
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.heads import Dense, ModularNetwork
from rankdistillm.model.reranker import Reranker
from rankdistillm.training.state import TrainingState
from tests.helpers import config_for, tokenizer_for

SEED = int(os.environ.get("FUZZ_SEED", "20260"))
DAMAGES = int(os.environ.get("FUZZ_DAMAGES", "25"))  # of each checkpoint
QUERY, DOCS = "why do tides turn", ["The tide follows the Moon.", "Bread rises. " * 20]
LAYOUTS = (
    "encoder-bert", "encoder-electra", "encoder-modernbert", "mono-electra", "mono-bert",
    "classifier-bert", "classifier-electra", "sentence_transformers-bert",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tiny_models, tmp_path_factory):
    """An intact checkpoint of each layout."""
    made = {}
    for name in LAYOUTS:
        kind, _, architecture = name.partition("-")
        made[name] = folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(3)
        if kind == "classifier":
            tokenizer = tokenizer_for(architecture)
            config = config_for(architecture, len(tokenizer))
            config.num_labels = 1
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            recorded = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
            (folder / "config_sentence_transformers.json").write_text(json.dumps(recorded))
        else:
            # Lengths and a pooling that are not the defaults.
            model = CrossEncoder.from_pretrained(
                tiny_models(architecture), query_length=3, doc_length=17
            )
            model.network.pooling = "mean" if architecture == "modernbert" else "first"
            if kind == "sentence_transformers":
                model.network = made_of_modules(model.network.backbone)
            model.save_pretrained(folder, layout=kind)
    return made


def made_of_modules(backbone):
    head = torch.nn.Sequential(
        Dense(16, 16, torch.nn.GELU(), bias=False, residual=True),
        torch.nn.LayerNorm(16),
        Dense(16, 1, torch.nn.Identity(), bias=True, residual=False),
    )
    return ModularNetwork(backbone, ["first"], head, torch.nn.Tanh())


# Changes that make another valid checkpoint: values that other tokenisers have too. The same goes
# for a byte flipped inside a text or a number, and for a file that transformers does not write.
LEGITIMATE = {
    ("tokenizer.json", "model.continuing_subword_prefix"),
    ("tokenizer.json", "model.unk_token"),
    ("tokenizer.json", "normalizer"),
    ("tokenizer.json", "pre_tokenizer"),
}


def is_legitimate(file, where, how):
    return (
        (file, where) in LEGITIMATE
        or (how == "flipped")
        or (file == "config_sentence_transformers.json" and how in ("removed", "a folder"))
        or (file == "tokenizer_config.json" and how == "removed")
    )


def scores(folder):
    return Reranker.from_pretrained(folder, precision="fp32", device="cpu").score(QUERY, DOCS)


# ---- damages: each changes one file of a folder and returns what it did


WRONG = (None, "x", "", -1, 0, 1.5, True, [], {}, [[1]], {"a": 1}, 10**30, "é" * 300, float("inf"))


def change_json(folder, random):
    file = random.choice(sorted(folder.rglob("*.json")))
    content = json.loads(file.read_text())
    inner, keys = content, []
    while isinstance(inner, dict | list) and inner and (not keys or random.random() < 0.7):
        choices = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = choices[random.integers(len(choices))]
        outer, inner = inner, inner[key]
        keys.append(key)
    if random.random() < 0.25:
        del outer[key]
        done = "removed"
    else:
        value = WRONG[random.integers(len(WRONG))]
        outer[key], done = value, f"= {value!r:.20}"
    file.write_text(json.dumps(content))
    return str(file.relative_to(folder)), ".".join(map(str, keys)), done


def change_bytes(folder, random):
    file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    # Weights are most of the bytes; their description comes first.
    size = len(content) if random.random() < 0.5 else min(len(content), 2000)
    index = int(random.integers(size))
    kinds = ("flipped", "cut", "emptied", "removed", "a folder")
    how = kinds[random.choice(5, p=[0.5, 0.2, 0.1, 0.1, 0.1])]
    if how == "flipped":
        content[index] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[:index])
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
        if how == "a folder":
            file.mkdir()
    return str(file.relative_to(folder)), f"byte {index}", how


def change_tensors(folder, random):
    file = random.choice(sorted(folder.rglob("model.safetensors")))
    tensors = load_file(file)
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    how = random.choice(("dropped", "renamed", "shorter", "deeper", "whole numbers", "nan", "two"))
    if how == "dropped":
        del tensors[name]
    elif how == "renamed":
        tensors[f"{name}.odd"] = tensors.pop(name)
    elif how == "shorter":
        tensors[name] = tensor[:-1].contiguous()
    elif how == "deeper":
        tensors[name] = tensor.unsqueeze(0).contiguous()
    elif how == "whole numbers":
        tensors[name] = tensor.to(torch.int64)
    elif how == "nan":
        tensors[name] = torch.full_like(tensor, torch.nan)
    else:
        tensors[name] = torch.cat([tensor, tensor])
    save_file(tensors, file, metadata={"format": "pt"})
    return str(file.relative_to(folder)), name, how


def outcome(folder, expected):
    """Return "same", "other scores", "refused: …", or how loading ended wrongly."""
    try:
        found = scores(folder)
    except InputError as error:
        if "\n" in str(error) or str(folder) not in str(error):
            return f"says {error}"
        return f"refused: {error}"
    except BaseException as error:
        return f"raises {error!r:.300}"
    return "same" if np.allclose(found, expected, atol=1e-5) else "other scores"


def damaged(folder, copy, random):
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change = (change_json, change_bytes, change_tensors)[random.choice(3, p=[0.5, 0.25, 0.25])]
    return change(copy, random)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_damage_is_reported_in_one_line_or_changes_nothing(name, checkpoints, tmp_path):
    random = np.random.default_rng([SEED, LAYOUTS.index(name)])
    expected = scores(checkpoints[name])
    ends = []
    for i in range(DAMAGES):
        copy = tmp_path / str(i)
        damage = damaged(checkpoints[name], copy, random)
        end = outcome(copy, expected)
        if end == "other scores" and is_legitimate(*damage):
            end = "same"
        assert end == "same" or end.startswith("refused: "), (damage, end)
        ends.append(end)
        shutil.rmtree(copy)
    assert (
        0.3 < np.mean([end != "same" for end in ends]) < 0.95
    )  # otherwise the damages test little


# ---- hostile checkpoints: their code would create a file in the current folder

CODE = """
open("ran", "w").close()
from transformers import BertConfig, BertModel, BertForSequenceClassification, BertTokenizerFast
class Config(BertConfig):
    model_type = "hostile"
class Model(BertModel):
    config_class = Config
class Classifier(BertForSequenceClassification):
    config_class = Config
class Tokenizer(BertTokenizerFast):
    pass
"""
LOAD = """
import sys
from rankdistillm.errors import InputError
from rankdistillm.model.reranker import Reranker
for folder in sys.argv[1:]:
    try:
        scores = Reranker.from_pretrained(folder, device="cpu").score("a", ["b"])
        print("RESULT scored", scores)
    except InputError as error:
        print("RESULT refused:", error)
"""


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


def edit(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def code_of_config(folder):
    names = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    edit(folder / "config.json", model_type="hostile", auto_map=names)


def code_of_classifier(folder):
    names = {
        "AutoConfig": "code.Config",
        "AutoModelForSequenceClassification": "code.Classifier",
    }
    edit(
        folder / "config.json",
        model_type="hostile",
        architectures=["HostileForSequenceClassification"],
        auto_map=names,
    )


def code_of_model(folder):
    names = {"AutoModel": "code.Model", "AutoModelForSequenceClassification": "code.Classifier"}
    edit(folder / "config.json", auto_map=names)


def code_of_tokenizer(folder):
    names = {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=names, tokenizer_class="Tokenizer")


def code_of_an_odd_tokenizer_class(folder):
    edit(folder / "tokenizer_config.json", tokenizer_class="code.Tokenizer")


def code_of_another_repository(folder):
    edit(folder / "config.json", model_type="hostile", auto_map={"AutoConfig": "o/r--code.Config"})


def code_in_a_chat_template(folder):
    template = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
    edit(folder / "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template)


def code_in_an_attention(folder):
    edit(folder / "config.json", attn_implementation="o/r", _attn_implementation="o/r")


def code_in_an_activation(folder):
    edit(folder / "config.json", sentence_transformers={"activation_fn": "code.Config"})


def pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"linear.weight": Payload()}, file)


def weights_of_torch_with_an_object(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"payload": Payload()}, folder / "pytorch_model.bin")


def weights_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    weight_map = {"linear.weight": str(folder.parent / "elsewhere.safetensors")}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HOSTILE = {
    # the change, and whether the checkpoint is refused (None: either)
    code_of_config: True,
    code_of_classifier: True,
    code_of_model: False,
    code_of_tokenizer: None,
    code_of_an_odd_tokenizer_class: None,
    code_of_another_repository: True,
    code_in_a_chat_template: False,
    code_in_an_attention: False,
    code_in_an_activation: None,
    pickled_weights: True,
    weights_of_torch_with_an_object: True,
    weights_elsewhere: True,
}


@pytest.mark.slow
def test_no_code_of_a_checkpoint_runs(checkpoints, tmp_path):
    hostile = list(product(("encoder-bert", "classifier-bert"), HOSTILE))
    folders = [tmp_path / f"{i}" / "hostile" for i in range(len(hostile))]
    for folder, (name, change) in zip(folders, hostile, strict=True):
        shutil.copytree(checkpoints[name], folder)
        (folder / "code.py").write_text(CODE)
        change(folder)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    # transformers asks on standard input whether it may run the code of a checkpoint.
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *folders],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HF_MODULES_CACHE": str(cwd / "m")},
        input="y\n" * 99,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "custom code" not in result.stdout
    assert not list(cwd.rglob("ran")) + list(cwd.rglob("code.py"))
    said = re.findall(r"RESULT (.*)", result.stdout)
    for (name, change), line in zip(hostile, said, strict=True):
        if HOSTILE[change] is not None:
            refused = line.startswith("refused: ")
            assert refused == HOSTILE[change], (name, change.__name__, line)
        if change is code_of_config:
            assert "needs code that comes with the checkpoint (auto_map), which is never" in line


def test_a_training_state_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": Payload(), "progress": {}, "random": []}, tmp_path / "5.pt")
    with pytest.raises(InputError, match=r"5\.pt: cannot be read"):
        TrainingState(tmp_path, {}).load()
    assert not (tmp_path / "ran").exists()
