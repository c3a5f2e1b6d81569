"""Save a random re-ranker made of modules with sentence-transformers, and the scores it gives.

    python sentence_transformers_modules.py FOLDER TOKENISER

Runs in its environment. The re-ranker is built like cross-encoder/ettin-reranker-*, over a tiny
ModernBERT with the tokeniser of the folder TOKENISER. `tests/model/test_sentence_transformers.py`
loads such a folder and compares the scores.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import sentence_transformers
import torch
import transformers
from sentence_transformers import CrossEncoder

QUERIES = ["why do tides turn", "how is bread made with yeast and so on and so on", ""]
DOCS = [
    "The tide follows the Moon, and turns twice a day.",
    "Bread rises because yeast makes gas in the dough. " * 8,
    "Owls' wings: soft, slow & silent!",
    "naïve café 東京",
    "",
]


def write_encoder(folder: Path, tokeniser: str) -> None:
    """Write a random ModernBERT; its wide spread gives different texts clearly different scores."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{tokeniser}/tokenizer.json",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        **{"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"},
    )
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")
    }
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        local_attention=16,
        global_attn_every_n_layers=2,
        initializer_range=0.3,
        bos_token_id=special["cls_token_id"],
        eos_token_id=special["sep_token_id"],
        **special,
    )
    transformers.ModernBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(folder: Path, tokeniser: str) -> None:
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(17)
    with TemporaryDirectory() as encoder:
        write_encoder(Path(encoder), tokeniser)
        transformer = Transformer(encoder)
    width = transformer.get_embedding_dimension()
    hidden = Dense(width, width, bias=False, activation_function=torch.nn.GELU())
    score = Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [transformer, Pooling(width, pooling_mode="cls"), hidden, LayerNorm(width), score]
    model = CrossEncoder(modules=modules, device="cpu", activation_fn=torch.nn.Sigmoid())
    for parameter in model[3].parameters():  # a fresh one changes nothing
        torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder), create_model_card=False)
    model = CrossEncoder(str(folder), device="cpu")
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    scores = [
        {"query": query, "passage": doc, "score": float(score)}
        for (query, doc), score in zip(pairs, model.predict(pairs), strict=True)
    ]
    source = (
        f"sentence-transformers {sentence_transformers.__version__}, "
        f"transformers {transformers.__version__}, float32"
    )
    record = json.dumps({"source": source, "scores": scores}, indent=1)
    (folder / "scores.json").write_text(record + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
