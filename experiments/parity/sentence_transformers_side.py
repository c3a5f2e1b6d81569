"""The sentence-transformers side: save a CrossEncoder and score. Runs in its environment.

    python sentence_transformers_side.py FOLDER

FOLDER holds encoder/ (a tiny random encoder) and pairs.json.
"""

import json
import sys
from pathlib import Path

import sentence_transformers
import torch
from sentence_transformers import CrossEncoder


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(13)
    scores = {}
    pairs = json.loads((folder / "pairs.json").read_text())
    flat = [(query, doc) for query, docs in pairs for doc in docs]
    for name, activation in (("sigmoid", None), ("identity", torch.nn.Identity())):
        model = CrossEncoder(
            str(folder / "encoder"), num_labels=1, max_length=64, activation_fn=activation
        )
        model.save_pretrained(str(folder / name))
        again = CrossEncoder(str(folder / name))
        scores[name] = again.predict(flat, show_progress_bar=False).tolist()
    version = f"sentence-transformers {sentence_transformers.__version__}"
    record = json.dumps({"version": version, "scores": scores})
    (folder / "sentence_transformers.json").write_text(record)


if __name__ == "__main__":
    main()
