"""Save a GGUF file as a folder that the commands read: full weights and a tokeniser.

    python -m experiments.local_llm.convert MODEL.gguf FOLDER

Needs the packages gguf and accelerate. Rebuilding the tokeniser of a GGUF file takes minutes; the
folder keeps it.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder, name = arguments.file.parent, arguments.file.name
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(arguments.folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # transformers saves no model that it has read from a GGUF file, but a copy.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
