"""Config groups compose with each other, and every file opens with its launch command."""

import inspect
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rankdistillm.cli import CONFIGS, options_of
from rankdistillm.losses import LOSSES, consumed_by


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def configs():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


@cache
def loss_alone(name):
    return compose("train", [f"loss={name}"]).loss


# Models, data and losses do not refer to each other: each stage is composed with each of them, one
# of each group at a time.
GROUPS = [names(group) for group in ("data", "loss", "model")]
CHOICES = list(islice(zip(*map(cycle, GROUPS), strict=True), max(map(len, GROUPS))))


@pytest.mark.parametrize(("data", "loss", "model"), CHOICES)
@pytest.mark.parametrize("stage", names("stage"))
def test_groups_compose_with_each_other(stage, data, loss, model):
    options = [f"+stage={stage}", f"data={data}", f"loss={loss}", f"model={model}", "output=out"]
    config = compose("train", options)
    assert config.stage == stage
    assert config.model.retokenise is False
    assert config.loss == loss_alone(loss)  # no stage leaks its settings into a loss
    if stage == "distill":  # the other one sets options of data
        for group, choice in {"data": data, "loss": loss, "model": model}.items():
            assert options_of(group, choice) == config[group]


@pytest.mark.parametrize("recipe", names("recipe"))
def test_recipes_compose_and_the_command_line_wins(recipe):
    config = compose(
        "train", [f"+recipe={recipe}", "model=electra_large", "loss=adr_mse", "seed=7"]
    )
    assert config.stage == recipe.rpartition("_")[2]
    assert config.model.path == "google/electra-large-discriminator"
    assert config.seed == 7
    assert config.loss == loss_alone("adr_mse")


def test_recipes_have_the_settings_of_the_paper():
    both = {
        "optim": {
            "learning_rate": 1e-5, "head_learning_rate": None, "weight_decay": 0.01, "decay": "all",
            "schedule": "constant", "warmup": 0, "max_grad_norm": None, "ema": None,
        },
        "queries_per_step": 32, "precision": "bf16", "seed": 42, "model.query_length": 32,
        "model.doc_length": 256, "model.path": "google/electra-base-discriminator",
    }  # fmt: skip
    released = "msmarco-passage/train/rank-distillm"
    own = {
        "prefinetune": {
            "max_steps": 20000, "data.train.run": f"{released}-colbert", "data.train.depth": 200,
            "data.train.sampling": "single_relevant", "data.train.list_size": 8,
            "data.train.targets": "relevance", "data.train.qrels": "msmarco-passage/train",
            "loss._target_": "rankdistillm.losses.info_nce_loss",
        },
        "distill": {
            "epochs": 3, "max_steps": None, "data.train.run": f"{released}-rankzephyr",
            "data.train.depth": 100, "data.train.list_size": 100, "data.train.targets": "rank",
            "data.train.transform": None, "loss._target_": "rankdistillm.losses.ranknet_loss",
        },
    }  # fmt: skip
    for stage, settings in own.items():
        config = compose("train", [f"+recipe=ecir25_{stage}"])
        for name, value in (both | settings).items():
            assert OmegaConf.select(config, name) == value, (stage, name)


def test_stages_choose_a_loss_and_the_command_line_wins():
    for stage, loss in (("prefinetune", "info_nce"), ("distill", "ranknet")):
        target = compose("train", [f"+stage={stage}"]).loss._target_
        assert target == f"rankdistillm.losses.{loss}_loss"
    config = compose("train", ["+stage=prefinetune", "epochs=7", "data.train.list_size=5"])
    assert (config.epochs, config.data.train.list_size) == (7, 5)


MODELS = {
    "deberta_v3_base": "microsoft/deberta-v3-base",
    "electra_base": "google/electra-base-discriminator",
    "electra_large": "google/electra-large-discriminator",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "minilm_l12": "microsoft/MiniLM-L12-H384-uncased",
    "modernbert_base": "answerdotai/ModernBERT-base",
    "monoelectra_base": "webis/monoelectra-base",
    "monoelectra_large": "webis/monoelectra-large",
} | {
    f"ettin{kind}_{size}": f"{name}-{size}{version}"
    for size in ("17m", "32m", "68m", "150m")
    for kind, name, version in (
        ("", "jhu-clsp/ettin-encoder", ""), ("_reranker", "cross-encoder/ettin-reranker", "-v1")
    )
}  # fmt: skip


def test_every_model_has_its_path_and_the_options_of_all():
    assert names("model") == sorted(MODELS)
    for name, path in MODELS.items():
        model = OmegaConf.to_container(compose("train", [f"model={name}"]).model)
        assert model == {
            "path": path,
            "query_length": None,
            "doc_length": None,
            "retokenise": False,
            "packed": True,
            "dropout": 0.0 if name == "minilm" else None,
        }


ASKING = [f"{group}={name}" for group in ("teacher", "ranking") for name in names(group)]


@pytest.mark.parametrize("choice", ASKING)
def test_teachers_and_rankings_compose(choice):
    config = compose("teach", [choice])
    instantiate(config.ranking)([])
    if config.prompt is not None:
        assert (CONFIGS / "prompts" / f"{config.prompt}.jinja").exists()
    group, name = choice.split("=")
    if group == "ranking":  # the teacher does not take it back
        assert config.ranking == compose("teach", [choice, "teacher=local"]).ranking
    elif name in ("yes_no", "query_likelihood", "cross_encoder"):
        assert config.ranking._target_.endswith("pointwise")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_config_with_all_its_settings(name):
    made = instantiate(loss_alone(name))
    assert made.func is LOSSES[name]
    assert consumed_by(made) == consumed_by(LOSSES[name])
    settings = list(inspect.signature(made.func).parameters.values())[2:]
    defaults = {s.name: s.default for s in settings if s.name not in ("mask", "reduction")}
    assert made.keywords == defaults


def test_every_config_of_a_loss_makes_one():
    targets = {name: loss_alone(name)._target_ for name in names("loss")}
    for several in ("weighted_sum", "mixed"):
        assert targets.pop(several) == "rankdistillm.losses.WeightedSum"
    assert set(targets) == set(LOSSES)


CHOSEN = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "common")


@pytest.mark.parametrize("path", CHOSEN, ids=lambda p: p.stem)
def test_every_config_opens_with_its_command(path: Path):
    lines = path.read_text().splitlines()
    assert any(line.startswith("# python -m rankdistillm.") for line in lines[:2])
    if path.parent != CONFIGS and path.parent.name != "loss":
        command = next(line for line in lines[:2] if "python" in line)
        assert f"{path.parent.name}={path.stem}" in command


def test_the_slurm_sweep_of_the_readme_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    readme = (CONFIGS.parent / "README.md").read_text()
    (line,) = (text for text in readme.splitlines() if "hydra/launcher=submitit_slurm" in text)
    overrides = [o for o in line.split()[4:] if not o.startswith(("loss=", "seed="))]
    config = compose("train", overrides, return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.max_num_timeout > 0  # without it, a job that runs out of time is not requeued
    assert "now" not in config.hydra.sweep.dir  # the same command resumes in the same folders
