"""Write queries for a collection that has none: ``python -m rankdistillm.generate_queries``."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rankdistillm.asking import (
    Outputs,
    ask_all,
    budget_of,
    check_teacher,
    files_of_teacher,
    instantiate_group,
    prompt_file,
    say_missing,
)
from rankdistillm.cli import CONFIGS, run_command
from rankdistillm.data.files import suffix_of
from rankdistillm.data.formats import check_ids
from rankdistillm.data.outputs import replacing
from rankdistillm.data.texts import iterate_texts, read_texts
from rankdistillm.errors import InputError
from rankdistillm.options import GENERATE, WRITTEN_FOR, check_options, files_read
from rankdistillm.retrieval.bm25 import Bm25
from rankdistillm.teachers.backends import Backend
from rankdistillm.teachers.prompts import Prompt
from rankdistillm.teachers.provenance import provenance_of, write_provenance
from rankdistillm.teachers.queries import (
    read_examples,
    rehearse_queries,
    sample_passages,
    without_duplicates,
    write_queries,
)
from rankdistillm.teachers.summary import rehearsal, summary
from rankdistillm.teachers.tally import Tally

log = logging.getLogger(__name__)

Filter = Callable[[dict[str, str]], dict[str, str]]


def generate_queries(config: DictConfig) -> None:
    """Let a model write queries for a sample of ``config.data.docs``.

    The options are those of conf/generate_queries.yaml. Writes the queries and judgements of their
    passages. Raises `InputError` if the model could not be asked about some passages; the other
    queries are then in files whose names say so.
    """
    if config.get("output", "") is None:
        raise InputError("output is not set; add output=FILE to the command line")
    check_options(config, GENERATE)
    check_teacher(config)
    budget_of(config)
    outputs = Outputs(config)
    if suffix_of(outputs.file) != ".tsv" or outputs.file.suffix == ".gz":
        raise InputError(f"{outputs.given}: queries are written as TSV; give a name in .tsv")
    read = [*files_read(config, WRITTEN_FOR), *files_of_teacher(config)]
    outputs.check(iter(read), qrels_of(outputs.file), qrels_of(outputs.partial))
    prompt = _prompt(config)

    passages = sample_passages(
        iterate_texts(config.data.docs, "doc"), config.num_passages, config.seed
    )
    if not passages:
        raise InputError(f"{config.data.docs}: no passage has a text; give at least one")
    check_ids(qrels_of(outputs.file), passages)
    find = _filter(config)
    teacher = instantiate_group(config, "teacher")
    if not isinstance(teacher, Backend):
        raise InputError(f"teacher: {config.teacher._target_} cannot write; choose openai or local")
    log.info("%s: %d passages; %s writes", config.data.docs, len(passages), teacher.name)
    written, tally = _write(config, teacher, prompt, outputs, passages)
    if written is None:
        print(rehearsal(tally))
        return
    distinct = without_duplicates(written)
    kept = find(distinct) if distinct else {}
    counts = {
        "passages": len(passages), "queries written": len(written), "distinct": len(distinct),
        "find their passage": len(kept),
    }  # fmt: skip
    if unusable := len(passages) - len(written) - len(tally.failed):
        counts["answers without a query"] = unusable
    file = outputs.partial if tally.failed else outputs.file
    if kept:
        _write_files(config, file, prompt, teacher.name, kept, counts, tally)
    print(summary(tally, counts=counts))
    if tally.failed:
        lacking = say_missing(tally, len(passages), "passages have no query")
        rest = f"the other queries are in {file}; " if kept else ""
        raise InputError(
            f"{lacking}; {rest}run the same "
            "command again for the missing ones: no answer is asked for twice"
        )
    if not written:
        repairs = ", ".join(f"{kind} {n}" for kind, n in tally.repairs.most_common())
        raise InputError(
            f"none of {len(passages)} answers holds a query ({repairs}); choose another prompt or "
            "model, or allow longer answers with ask.max_tokens"
        )
    if not kept:
        raise InputError(
            f"none of {len(written)} queries finds its passage; look at the answers with another "
            "prompt or model, or set filter.depth=null"
        )
    outputs.remove_partial()
    qrels_of(outputs.partial).unlink(missing_ok=True)


def qrels_of(queries: Path) -> Path:
    """Where the judgements of a file of queries are."""
    return queries.with_suffix(".qrels")


def _prompt(config: DictConfig) -> Prompt:
    file = prompt_file(config)
    if file is None:
        raise InputError("prompt is not set; add prompt=NAME to the command line")
    prompt = Prompt.load(file)
    if prompt.answer != "query":
        raise InputError(f"{file}: asks for {prompt.answer}, not for a query; choose another one")
    if config.examples is None:
        return prompt
    default = config.examples == "default"
    path = CONFIGS / "prompts" / "examples.tsv" if default else config.examples
    return replace(prompt, examples=read_examples(path))


def _write(
    config: DictConfig,
    teacher: Backend,
    prompt: Prompt,
    outputs: Outputs,
    passages: Mapping[str, str],
) -> tuple[dict[str, str] | None, Tally]:
    """The queries and a tally; no queries for a dry run."""
    given = (passages, prompt, teacher)
    return ask_all(config, outputs, teacher, write_queries, rehearse_queries, *given)


def _filter(config: DictConfig) -> Filter:
    """Make the filter that keeps the queries (by doc_id) whose search finds their passage.

    All that can fail is loaded at once, before anything is asked.
    """
    search = config.filter
    if search.depth is None or config.dry_run:
        return lambda queries: queries
    bm25 = Bm25(config.data.docs, language=search.language, index=search.index)
    reranker = None
    if search.reranker is not None:
        from rankdistillm.model.reranker import Reranker  # imported late: with torch

        reranker = Reranker.from_pretrained(search.reranker, device="auto")

    def find(queries: dict[str, str]) -> dict[str, str]:
        run = bm25.search(queries, search.depth if reranker is None else search.candidates)
        if reranker is not None:
            docs = read_texts(config.data.docs, "doc", wanted=set(run.doc_ids()))
            run = reranker.rerank(run, queries, docs).truncate(search.depth)
        return {
            doc_id: query
            for doc_id, query in queries.items()
            if doc_id in run and doc_id in run[doc_id].doc_ids
        }

    return find


def _write_files(
    config: DictConfig,
    file: Path,
    prompt: Prompt,
    model: str,
    queries: Mapping[str, str],
    counts: Mapping[str, int],
    tally: Tally,
) -> None:
    # The judgements first: queries without them could be taken for complete.
    for path, lines in (
        (qrels_of(file), (f"q_{doc_id} 0 {doc_id} 1\n" for doc_id in queries)),
        (file, (f"q_{doc_id}\t{query}\n" for doc_id, query in queries.items())),
    ):
        with replacing(path) as beside, open(beside, "w", encoding="utf-8", newline="") as out:
            out.writelines(lines)
        log.info("wrote %s", path)
    method = {
        "teacher": OmegaConf.to_container(config.teacher, resolve=True),
        "model": model,
        "prompt": {"file": str(prompt.path), "sha256": prompt.digest()},
        "examples": [vars(example) for example in prompt.examples],
        "ask": OmegaConf.to_container(config.ask),
        "filter": OmegaConf.to_container(config.filter),
    }
    data = {"docs": config.data.docs, "seed": config.seed, **counts}
    write_provenance(provenance_of(file), method=method, data=data, tally=tally)


def main() -> None:
    """Entry point of ``python -m rankdistillm.generate_queries``."""
    run_command(generate_queries, "generate_queries")


if __name__ == "__main__":
    main()
