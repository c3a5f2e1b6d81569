"""Tiny random models with a real tokeniser, made on the spot; the commands run in this process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes of pytest -n share the cores
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from rankdistillm.cli import PACKAGE
from rankdistillm.texts import read_texts

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 320,
}
ROBERTAS = {
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "camembert": transformers.CamembertConfig,
}
ARCHITECTURES = ("bert", "electra", *ROBERTAS, "modernbert", "deberta")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process works on it when the others are done."""
    marks = {item: item.get_closest_marker("slow") for item in items}
    items.sort(key=lambda item: not (marks[item] and marks[item].kwargs.get("first")))


def words() -> list[str]:
    texts = read_texts(PACKAGE / "mini" / "docs.tsv", "doc")
    return sorted({word for text in texts.values() for word in text.lower().split()})[:3000]


def tokenizer_for(architecture: str) -> transformers.PreTrainedTokenizerFast:
    """Words of the embedded collection; special tokens as the architecture has them."""
    bos, sep = ("<s>", "</s>") if architecture in ROBERTAS else ("[CLS]", "[SEP]")
    vocabulary = ["[PAD]", "[UNK]", bos, sep, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + words()
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    middle = f"{sep} {sep}" if architecture in ROBERTAS else sep
    second = ":0" if architecture in (*ROBERTAS, "modernbert") else ":1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {sep}",
        pair=f"{bos} $A {middle} $B{second} {sep}{second}",
        special_tokens=[(bos, ids[bos]), (sep, ids[sep])],
    )
    inputs = ["input_ids", "attention_mask"]
    if architecture in ("bert", "electra", "deberta"):
        inputs.insert(1, "token_type_ids")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=bos,
        sep_token=sep,
        model_input_names=inputs,
    )


def config_for(architecture: str, vocab_size: int) -> transformers.PretrainedConfig:
    # A wide spread, so that different texts get clearly different scores.
    sizes = dict(SIZES, vocab_size=vocab_size, pad_token_id=0, initializer_range=0.3)
    if architecture == "bert":
        return transformers.BertConfig(**sizes)
    if architecture == "electra":
        return transformers.ElectraConfig(**sizes, embedding_size=8)
    if architecture in ROBERTAS:
        return ROBERTAS[architecture](**sizes, type_vocab_size=1)
    if architecture == "modernbert":
        return transformers.ModernBertConfig(
            **sizes, local_attention=32, global_attn_every_n_layers=2
        )
    return transformers.DebertaV2Config(
        **sizes,
        relative_attention=True,
        position_buckets=32,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    )


def write_encoder(folder: Path, architecture: str, **sizes: int) -> None:
    """A random encoder and its tokeniser; ``sizes`` instead of those of its configuration."""
    tokenizer = tokenizer_for(architecture)
    config = config_for(architecture, len(tokenizer))
    config.update(sizes)
    torch.manual_seed(7)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RANKDISTILLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random encoder of that architecture."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp(architecture)
            write_encoder(made[architecture], architecture)
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def tiny_bert(tiny_models: Callable[[str], Path]) -> Path:
    return tiny_models("bert")


class Command:
    """What a command printed and how it ended."""

    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Command]:
    """Run ``python -m rankdistillm.MODULE ARGUMENTS`` in this process, in an empty folder.

    `process` runs the same in a process of its own.
    """
    monkeypatch.chdir(tmp_path)

    def run(module: str, *arguments: object) -> Command:
        main = __import__(f"rankdistillm.{module}", fromlist=["main"]).main
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capfd.readouterr()
        status: object = 0
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code
            if isinstance(status, str):  # what the interpreter would print
                print(status, file=sys.stderr)
        finally:
            monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        return Command(status, *capfd.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python ARGUMENTS`` in a process of its own, with this package first on its path."""

    def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        # Commands in this process have set HYDRA_FULL_ERROR.
        inherited = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env={**inherited, "PYTHONPATH": str(PACKAGE.parent), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def calls_of(monkeypatch):
    """``calls_of(kind)``: a list that the objects of that class which are called go into."""

    def watch(kind):
        called = []
        compute = kind.__call__

        def spy(called_one, *inputs):
            called.append(called_one)
            return compute(called_one, *inputs)

        monkeypatch.setattr(kind, "__call__", spy)
        return called

    return watch
