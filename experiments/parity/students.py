"""Random students of several encoders, each with a tokeniser as that family has it."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from experiments.parity import ours
from rankdistillm.data.texts import read_texts
from rankdistillm.model.cross_encoder import CrossEncoder

ARCHITECTURES = ("electra", "bert", "roberta", "modernbert")
VOCABULARY = 3000
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def random_student(folder: Path, architecture: str) -> CrossEncoder:
    """Write a random encoder, and load it with a random head, so that scores spread over units."""
    words = tokenizer(architecture)
    config = config_for(architecture, len(words))
    torch.manual_seed(11)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    model = CrossEncoder.from_pretrained(str(folder), packed=False, precision="fp32")
    model.network.linear.weight.data.mul_(20)
    return model


def config_for(architecture: str, words: int) -> Any:
    sizes = {**SIZES, "vocab_size": words}
    match architecture:
        case "electra":
            return transformers.ElectraConfig(**sizes, embedding_size=SIZES["hidden_size"])
        case "bert":
            return transformers.BertConfig(**sizes)
        case "roberta":  # positions start after the padding token's id, which is 1
            return transformers.RobertaConfig(
                **sizes, type_vocab_size=1, max_position_embeddings=514
            )
        case _:  # Ettin's rotary bases, which are not the default
            rope = {"rope_type": "default", "rope_theta": 160000.0}
            return transformers.ModernBertConfig(
                **sizes, max_position_embeddings=512, local_attention=32,
                global_attn_every_n_layers=2, pad_token_id=3, bos_token_id=1, eos_token_id=2,
                cls_token_id=1, sep_token_id=2,
                rope_parameters={"full_attention": rope, "sliding_attention": rope},
            )  # fmt: skip


def tokenizer(architecture: str) -> Any:
    """BERT's word pieces, or byte-level BPE learnt from the embedded collection."""
    if architecture in ("electra", "bert"):
        return ours.tokenizer()
    if architecture == "roberta":
        learnt = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        model = json.loads(learnt.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        return transformers.RobertaTokenizer(
            vocab=model["vocab"], merges=merges, model_max_length=512
        )
    learnt = byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    learnt.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def byte_level(special: list[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learnt.train_from_iterator(read_texts(ours.MINI / "docs.tsv", "doc").values(), trainer)
    return learnt
