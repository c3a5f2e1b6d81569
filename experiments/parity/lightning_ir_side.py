"""The lightning-ir side: train the same steps and score our student. Runs in its environment.

    python lightning_ir_side.py FOLDER

FOLDER holds student/ (a checkpoint that we saved), STAGE.json (the steps) and pairs.json.
"""

import json
import sys
from pathlib import Path

import torch
from lightning_ir import CrossEncoderModule
from lightning_ir.data import RankBatch, TrainBatch
from lightning_ir.loss import InfoNCE, RankNet
from safetensors.torch import save_file

LOSSES = {"prefinetune": InfoNCE, "distill": RankNet}


def module(folder: Path, losses: list) -> CrossEncoderModule:
    found = CrossEncoderModule(model_name_or_path=str(folder), loss_functions=losses)
    found.log = lambda *_, **__: None
    for part in found.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    result = {"losses": {}}
    for stage, loss in LOSSES.items():
        steps = json.loads((folder / f"{stage}.json").read_text())
        model = module(folder / "student", [loss()]).train()
        rate = json.loads((folder / "settings.json").read_text())["learning_rate"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        losses = []
        for step in steps:
            batch = TrainBatch(
                step["queries"],
                step["docs"],
                step["query_ids"],
                step["doc_ids"],
                targets=torch.tensor(step["targets"]).view(-1, 1),
            )
            value = model.training_step(batch, 0)["loss"]
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(value))
        result["losses"][stage] = losses
        weights = {n: t.detach().contiguous() for n, t in model.model.state_dict().items()}
        save_file(weights, folder / f"{stage}.safetensors")
    scorer = module(folder / "student", []).eval()
    scores = []
    with torch.no_grad():
        for query, docs in json.loads((folder / "pairs.json").read_text()):
            batch = RankBatch([query], [docs], ["q"], [[str(i) for i in range(len(docs))]])
            scores += scorer(batch).scores.tolist()
    result["scores"] = scores
    (folder / "lightning_ir.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
