"""Re-rank a run file: ``python -m rankdistillm.rerank``."""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig

from rankdistillm import distributed
from rankdistillm.cli import run_command
from rankdistillm.data.outputs import check_output, keep_apart
from rankdistillm.data.runs import Run
from rankdistillm.data.texts import texts_of_run
from rankdistillm.devices import device_of, keep_freed_memory
from rankdistillm.errors import InputError
from rankdistillm.model.reranker import Reranker
from rankdistillm.options import READ, RERANK, check_options, files_read

log = logging.getLogger(__name__)


def rerank(config: DictConfig) -> None:
    """Re-rank the run ``config.run`` and write it to ``config.output``; see conf/rerank.yaml."""
    for name in ("run", "output"):
        if config.get(name, "") is None:
            raise InputError(f"{name} is not set; add {name}=FILE to the command line")
    check_options(config, RERANK)
    device = device_of(config.device)
    keep_freed_memory(device)
    with distributed.process_group(device):
        _rerank(config, device)


def _rerank(config: DictConfig, device: torch.device) -> None:
    output = Path(config.output)
    if distributed.is_first():
        check_output(output, f"output={output}")
        keep_apart([(f"output={output}", output)], files_read(config, READ))
    run = Run.read(config.run).truncate(config.depth)
    run.check_writable(output)
    queries, docs = texts_of_run(run, config.data.queries, config.data.docs)
    reranker = Reranker.from_pretrained(
        config.model.path,
        device=device,
        precision=config.precision,
        query_length=config.model.query_length,
        doc_length=config.model.doc_length,
        retokenise=config.model.retokenise,
        packed=config.model.packed,
        long=config.long,
        stride=config.stride,
        token_budget=config.token_budget,
    )
    log.info("%s: re-ranking %d queries with %s", config.run, len(run), config.model.path)
    reranked = reranker.rerank(run, queries, docs)
    if distributed.is_first():
        reranked.write(output)
        log.info("wrote %s", output)


def main() -> None:
    """Entry point of ``python -m rankdistillm.rerank``."""
    run_command(rerank, "rerank")


if __name__ == "__main__":
    main()
