"""Score pairs by another library. Runs in its environment.

    python peer_scores.py LIBRARY WORK FOLDER [FOLDER ...]

Scores WORK/pairs.json by each folder, and writes WORK/scores.json: the versions, and each folder's
scores. LIBRARY is one of the functions below.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

Pairs = list[tuple[str, str]]  # query, passage


def lightning_ir(folder: str, pairs: Pairs) -> list[float]:
    import torch
    from lightning_ir import CrossEncoderModule
    from lightning_ir.data import RankBatch

    module = CrossEncoderModule(model_name_or_path=folder).eval()
    with torch.no_grad():
        return [
            float(module(RankBatch([query], [[doc]], ["q"], [["d"]])).scores[0])
            for query, doc in pairs
        ]


def sentence_transformers(folder: str, pairs: Pairs, **options: str) -> list[float]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(folder, device="cpu", **options)
    return model.predict(pairs, show_progress_bar=False).tolist()


def sentence_transformers_onnx(folder: str, pairs: Pairs) -> list[float]:
    return sentence_transformers(folder, pairs, backend="onnx")


def main() -> None:
    library, work, folders = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    functions = (lightning_ir, sentence_transformers, sentence_transformers_onnx)
    score = {function.__name__: function for function in functions}[library]
    pairs = [tuple(pair) for pair in json.loads((work / "pairs.json").read_text())]
    scores = {folder: score(folder, pairs) for folder in folders}
    packages = (library.removesuffix("_onnx").replace("_", "-"), "transformers")
    versions = {package: importlib.metadata.version(package) for package in packages}
    record = json.dumps({"versions": versions, "scores": scores})
    (work / "scores.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
