"""Tiny random models with a real tokeniser, pairs, training lists and folders of trainings."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.amp import GradScaler

from rankdistillm.cli import PACKAGE
from rankdistillm.data.batches import TrainingData
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import read_texts
from rankdistillm.evaluation.metrics import RunMetrics
from rankdistillm.evaluation.tables import per_query_csv
from rankdistillm.model.cross_encoder import CrossEncoder
from rankdistillm.model.pairs import PairTemplate
from rankdistillm.model.tokenise import TokenisedTexts
from rankdistillm.teachers.local_model import LanguageModel
from rankdistillm.training.gradients import accumulate_gradients

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
# The sitecustomize of a study's process: its commands are forks of it, so that torch is imported
# once, and not by each of them.
FORKED_COMMANDS = """
import importlib, os, subprocess, sys, traceback

import ranx
import rankdistillm.rerank
import rankdistillm.train

start = subprocess.run


def run(line, **options):
    if line[:2] != [sys.executable, "-m"]:
        return start(line, **options)
    child = os.fork()
    if not child:
        status = 1
        try:
            sys.argv = line[2:]
            importlib.import_module(line[2]).main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
            if isinstance(exit_.code, str):
                print(exit_.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status and options.get("check"):
        raise subprocess.CalledProcessError(status, line)
    return subprocess.CompletedProcess(line, status)


subprocess.run = run
"""
QUERIES = ["why do tides turn", "how is bread made", ""]
DOCS = [
    "The tide follows the Moon.",
    "Bread rises because yeast makes gas in the dough. " * 4,
    "",
    "café 潮汐",
    "Soap. " * 30,
]
PAIRS = [(query, doc) for query in QUERIES for doc in DOCS]
CHAT = (
    "{% for message in messages %}[CLS] {{ message.role }} {{ message.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
LIST_OPTIONS = {"targets": "rank", "transform": None, "sampling": "random", "list_size": 4}


@cache
def collection_words() -> tuple[str, ...]:
    """The first 3,000 distinct words of the embedded collection, in alphabetical order."""
    texts = read_texts(PACKAGE / "mini" / "docs.tsv", "doc")
    words = {word for text in texts.values() for word in text.lower().split()}
    return tuple(sorted(words)[:3000])


def tokenizer_for(architecture: str) -> transformers.PreTrainedTokenizerFast:
    """A tokeniser of the embedded collection's words, with the architecture's special tokens."""
    bos, sep = ("<s>", "</s>") if architecture in ROBERTAS else ("[CLS]", "[SEP]")
    vocabulary = ["[PAD]", "[UNK]", bos, sep, *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary += collection_words()
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
    """Write a random encoder and its tokeniser; ``sizes`` override its configuration."""
    tokenizer = tokenizer_for(architecture)
    config = config_for(architecture, len(tokenizer))
    config.update(sizes)
    torch.manual_seed(7)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_classifier(
    folder: Path, architecture: str, num_labels: int = 1
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]:
    """Write a random sequence classifier and its tokeniser, for pairs of at most 64 tokens."""
    torch.manual_seed(5)
    tokenizer = tokenizer_for(architecture)
    tokenizer.model_max_length = 64
    config = config_for(architecture, len(tokenizer))
    config.num_labels = num_labels
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    # Layer norms start at 1; scaled, they matter. With a factor of 1.5 transformers' own scores in
    # float32 would be 1e-4 from those in float64, too far to compare with.
    for parameter in model.parameters():
        parameter.data.mul_(1.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def write_language_model(folder, kind="causal", *, chat=True, context=256):
    """A random Llama or T5 with the words of the embedded collection."""
    tokenizer = tokenizer_for("bert")
    tokenizer.chat_template = CHAT if chat else None
    tokenizer.eos_token = "[SEP]"
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(7)
    if kind == "causal":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=context, initializer_range=0.5, bos_token_id=2, **shared,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
            initializer_factor=2.0, **shared,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_language_model(folder, **options):
    """Load a teacher's model in float32 on the CPU."""
    return LanguageModel.from_pretrained(folder, device="cpu", precision="fp32", **options)


def next_logprobs(model, ids, **inputs):
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([ids]), **inputs).logits[0].double()
    return logits.log_softmax(-1)


def load(path, **options):
    """Load a student in float32, in evaluation mode; a missing head is always the same."""
    torch.manual_seed(3)
    return CrossEncoder.from_pretrained(path, **{"precision": "fp32", **options}).eval()


def load_for_training(path, **options):
    """Load a student in float32 without dropout, in training mode."""
    torch.manual_seed(3)
    return CrossEncoder.from_pretrained(
        path, **{"precision": "fp32", "dropout": 0.0, **options}
    ).train()


def pack(model, pairs):
    """Tokenise (query, passage) texts and pack them."""
    queries = model.tokenise_queries({q: q for q, _ in pairs})
    docs = model.tokenise_docs({d: d for _, d in pairs})
    return model.template.pack([(queries[q], docs[d]) for q, d in pairs])


def training_data(
    sizes=(6, 6, 6, 6, 6), qrels=None, *, per_step=2, epochs=3, max_steps=None, seed=1,
    targets="rank", **config,
):  # fmt: skip
    """Training data of one ranked list per size; ``config`` overrides `LIST_OPTIONS`."""
    run = Run.from_scores(
        {f"q{i}": {f"d{i}_{j}": -j for j in range(size)} for i, size in enumerate(sizes)}
    )
    tokenizer = tokenizer_for("bert")
    queries = {q: f"query {q}" for q in run}
    docs = {d: f"tide {d}" for ranked in run.values() for d in ranked.doc_ids}
    return TrainingData(
        run,
        qrels or {},
        TokenisedTexts(queries, tokenizer, 8, description=""),
        TokenisedTexts(docs, tokenizer, 8, description=""),
        PairTemplate.from_tokenizer(tokenizer),
        LIST_OPTIONS | config,
        queries_per_step=per_step,
        epochs=epochs,
        max_steps=max_steps,
        seed=seed,
        targets=targets,
    )


def compute_gradients(model, loss, batch, budget, scaler=None):
    """The loss of a batch, the gradient of each parameter, and the random state afterwards."""
    model.zero_grad()
    torch.manual_seed(11)
    value = accumulate_gradients(
        model, loss, batch, token_budget=budget, scaler=scaler or GradScaler("cpu", enabled=False)
    )
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return value, found, torch.get_rng_state()


def relative_distance(found, expected):
    """The distance between two sets of named tensors, relative to the norm of the second."""
    assert found.keys() == expected.keys()
    difference = sum((found[n].double() - expected[n].double()).square().sum() for n in expected)
    return float((difference / sum(g.double().square().sum() for g in expected.values())).sqrt())


def write_parquet(path, rows):
    """Write ``(query_id, doc_id, rank, score)`` rows as a Parquet run."""
    names = ("query_id", "doc_id", "rank", "score")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


# The resolved config of a training, shortened.
TRAINING = {
    "model": {"path": "sentence-transformers/all-MiniLM-L6-v2", "dropout": 0.0},
    "data": {
        "docs": "docs.tsv",
        "train": {"run": "teacher.run", "list_size": 6, "transform": None},
        "validation": {"run": "v.run", "qrels": "v.txt", "docs": "docs.tsv", "depth": 20},
        "test": {"run": "t.run", "qrels": "t.txt", "docs": "docs.tsv", "depth": 20},
    },
    "loss": {"_target_": "rankdistillm.losses.ranknet_loss", "_partial_": True, "temperature": 1.0},
    "stage": "distill", "seed": 1, "device": "auto", "queries_per_step": 8, "epochs": 4,
    "max_steps": None, "optim": {"learning_rate": 1e-4},
    "validation": {"from_train": None, "every": None, "metric": "ndcg@10"},
    "output": "out", "wandb": {"mode": "disabled"},
}  # fmt: skip


def write_training(
    folder, options=None, *, values=(0.5, 0.75), best=0.6, step=67, measured_on="test",
    finished=True, per_query=True, first_stage=0.4,
):  # fmt: skip
    """Write what a training leaves; ``options`` are dotted, ``values`` those of its queries."""
    config = deepcopy(TRAINING) | {"output": str(folder)}
    for name, value in (options or {}).items():
        *groups, last = name.split(".")
        group = config
        for key in groups:
            group = group[key]
        group[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i + 1}}}\n' for i in range(step)))
    if not finished:
        return
    metric = config["validation"]["metric"]
    means = {"bm25": first_stage, "student before": 0.1, "student after": float(np.mean(values))}
    summary = {
        "step": step, "metric": metric, "best_validation": {"value": best, "step": step},
        "measured_on": measured_on, "queries": len(values), "means": means,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    if per_query:
        measured = {f"q{i}": value for i, value in enumerate(values)}
        runs = {"student after": RunMetrics({metric: measured})}
        (folder / "per_query.csv").write_text(per_query_csv({measured_on: runs}) + "\n")


# Names of runs that some terminal, spreadsheet or typesetter would misread.
HOSTILE_NAMES = (
    r"cost$\foo$", "$x$", "a|b", r"a\|b", "two\nlines", "two\r\nlines", "a\rb", "tab\there",
    "\x1b[31mred\x1b[0m", "\x07\x00", "\u202eright to left", "line\u2028separator", "\udc80half",
    "=1+1", "+1", "-cmd", "-5", "@SUM(A1)", "'quoted", "''", "=HYPERLINK(\"http://x\",\"y\")",
    "\uff1dwide", "a,b;c\"d", "**bold**", "_it_", "a_b", "__a__", "`code`", "[link](x)",
    "<b>html</b>", "<!-- c -->", "&amp;", "~~gone~~", "# head", "- item", "1. one", "2) two", "",
    "+ plus", "=", "---", "\\", "\\\\", "{", "}", "%comment", "a&b", "[opt]", "*star", "#", "x^2",
    "~", "a--b---c", "中文运行", "日本語 モデル", "한국어", "😀👩‍🔬", "e\u0301", "مرحبا", "x" * 300,
    "中" * 200, "a b  c", '"', "\\n", "run & $y$ | *z* \x1b]0;t\x07",
)  # fmt: skip
ALPHABET = "ab1 |\\*_`[]<>&$%#{}~^-+=@'\",;.!:()\n\r\t\x1b\u202e\u2028中😀é\u0301"


def random_names(number, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        yield "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), rng.integers(1, 12)))
