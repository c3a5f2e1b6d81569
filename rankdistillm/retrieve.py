"""Retrieve a first-stage run: ``python -m rankdistillm.retrieve``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from rankdistillm.cli import run_command
from rankdistillm.data.formats import check_ids
from rankdistillm.data.outputs import check_output, keep_apart
from rankdistillm.data.texts import read_texts
from rankdistillm.options import RETRIEVE, SEARCHED, check_options, files_read
from rankdistillm.retrieval.bm25 import Bm25

log = logging.getLogger(__name__)


def retrieve(config: DictConfig) -> None:
    """Search ``config.data.docs`` for each query of ``config.data.queries`` by BM25.

    Writes the run to ``config.output``; see conf/retrieve.yaml.
    """
    check_options(config, RETRIEVE)
    output = Path(config.output)
    check_output(output, f"output={output}")
    keep_apart([(f"output={output}", output)], files_read(config, SEARCHED))
    queries = read_texts(config.data.queries, "query")
    check_ids(output, queries)
    bm25 = Bm25(
        config.data.docs, k1=config.k1, b=config.b, language=config.language, index=config.index
    )
    run = bm25.search(queries, config.depth)
    run.write(output, tag="bm25")
    log.info("wrote %s: %d queries, %d passages", output, len(run), run.lengths.sum())


def main() -> None:
    """Entry point of ``python -m rankdistillm.retrieve``."""
    run_command(retrieve, "retrieve")


if __name__ == "__main__":
    main()
