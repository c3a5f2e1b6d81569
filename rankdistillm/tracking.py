"""Where the figures of a training go: metrics.jsonl always, Weights & Biases when wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rankdistillm.errors import InputError

MODES = ("disabled", "offline", "online")


class Tracker:
    """Writes one JSON object a line to ``metrics.jsonl``, each with its ``step``.

    When a run is resumed at ``step``, the lines of later steps are dropped first, so that the file
    has neither gaps nor repeats.
    """

    def __init__(self, folder: Path, config: DictConfig, *, step: int = 0) -> None:
        if config.wandb.mode not in MODES:
            raise InputError(f"wandb.mode={config.wandb.mode} is not one of {', '.join(MODES)}")
        path = folder / "metrics.jsonl"
        kept = []
        if step and path.exists():
            kept = [ln for ln in path.read_text().splitlines() if json.loads(ln)["step"] <= step]
        self._file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._file.writelines(line + "\n" for line in kept)
        self._wandb = None
        if config.wandb.mode != "disabled":
            resolved: Any = OmegaConf.to_container(config, resolve=True)
            import wandb  # late: it takes seconds, and most runs do without

            self._wandb = wandb.init(
                mode=config.wandb.mode,
                project=config.wandb.project,
                entity=config.wandb.entity,
                name=config.wandb.name or folder.name,
                dir=str(folder),
                config=resolved,
            )

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Note figures of one step (counted from 1; 0 is before training)."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def close(self) -> None:
        """Flush and end; call it also when training failed."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
