"""Score pairs by lightning-ir. Runs in its environment.

    python lightning_ir_scores.py WORK FOLDER [FOLDER ...]

Scores WORK/pairs.json by each student saved as `mono`, and writes WORK/scores.json.
"""

import json
import sys
from pathlib import Path

import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.data import RankBatch


def main() -> None:
    work, folders = Path(sys.argv[1]), sys.argv[2:]
    pairs = json.loads((work / "pairs.json").read_text())
    scores = {}
    with torch.no_grad():
        for folder in folders:
            module = CrossEncoderModule(model_name_or_path=folder).eval()
            scores[folder] = [
                float(module(RankBatch([query], [[doc]], ["q"], [["d"]])).scores[0])
                for query, doc in pairs
            ]
    (work / "scores.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
