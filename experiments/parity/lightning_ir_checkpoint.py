"""Save a tiny random checkpoint with lightning-ir, together with the scores that it gives.

    python experiments/parity/lightning_ir_checkpoint.py tests/golden/lightning_ir

Runs in an environment with lightning-ir (README.md). `tests/model/test_formats.py` loads the folder
and compares the scores.
"""

import json
import string
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from lightning_ir import CrossEncoderModule
from lightning_ir.data import RankBatch
from lightning_ir.models import MonoConfig

WORDS = [
    "a", "and", "are", "as", "at", "be", "because", "bread", "by", "does", "dough", "earth",
    "fast", "follow", "follows", "for", "from", "gas", "gravity", "high", "how", "in", "is",
    "it", "its", "itself", "long", "low", "made", "makes", "moon", "night", "no", "not", "of",
    "on", "or", "owl", "owls", "rise", "rises", "sea", "slow", "so", "soft", "sun", "that",
    "the", "they", "tide", "tides", "time", "to", "turn", "turns", "twice", "water", "what",
    "when", "which", "why", "with", "yeast",
]  # fmt: skip
SUFFIXES = ["##ed", "##ing", "##er", "##ly", "##ion", "##th", "##es"]
QUERIES = [
    "why do tides turn",
    "how is bread made with yeast and so on and so on",
    "it does n't",
    "",
]
DOCS = [
    "The tide follows the Moon, and turns twice a day.",
    "Bread rises because yeast makes gas in the dough. " * 4,
    "it doesn't matter",
    "Owls' wings: soft, slow & silent!",
    "naïve café 東京",
    "",
]


def vocabulary() -> list[str]:
    """Special tokens, single characters and a few words."""
    characters = string.ascii_lowercase + string.digits
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    continued = [f"##{character}" for character in characters]
    words = [word for word in WORDS if len(word) > 1]
    return [*special, *string.punctuation, *characters, *continued, *words, *SUFFIXES]


def write_encoder(folder: Path) -> None:
    """Write a random ELECTRA; its wide spread gives different texts clearly different scores."""
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    tokenizer = transformers.ElectraTokenizerFast(str(folder / "vocab.txt"))
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    transformers.ElectraModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(17)
    with TemporaryDirectory() as encoder:
        write_encoder(Path(encoder))
        module = CrossEncoderModule(encoder, config=MonoConfig(query_length=8, doc_length=24))
    torch.nn.init.normal_(module.model.linear.weight, std=0.2)
    module.save_pretrained(folder)
    module = CrossEncoderModule(str(folder)).eval()
    scores = []
    with torch.no_grad():
        for query in QUERIES:
            batch = RankBatch([query], [DOCS], ["q"], [[str(i) for i in range(len(DOCS))]])
            for doc, score in zip(DOCS, module(batch).scores.tolist(), strict=True):
                scores.append({"query": query, "passage": doc, "score": score})
    source = f"lightning-ir 0.0.6, transformers {transformers.__version__}, float32"
    record = json.dumps({"source": source, "scores": scores}, indent=1)
    (folder / "scores.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
