"""The model card of a student: README.md in its folder, as model hubs show it.

All that a card says about the training is also in its metadata, under ``rankdistillm``. A later
stage reads it from there, and an export writes it again for another library. A card names files and
models, and never the folders that they are in.
"""

import json
import logging
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import rankdistillm
from rankdistillm.data.outputs import replacing
from rankdistillm.evaluation.names import shown
from rankdistillm.model.formats import layout_of
from rankdistillm.model.formats.files import find_file, locate

log = logging.getLogger(__name__)

CARD = "README.md"
NOTE = (
    "<!-- rankdistillm rewrites this file whenever it rewrites the student. Delete this line to "
    "keep your own edits. -->"
)
SOURCE = "https://github.com/rankdistillm/rankdistillm"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MOST_STAGES = 10
# The errors that reading a file of somebody else may raise.
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, YAMLError,
    OmegaConfBaseException,
)  # fmt: skip

TRANSFORMERS = """
    # pip install transformers torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")
    model = AutoModelForSequenceClassification.from_pretrained("FOLDER_OR_HUB_ID").eval()
    pair = tokenizer("why do tides turn", "The tide follows the Moon.", return_tensors="pt")
    model(**pair).logits
    """
SENTENCE_TRANSFORMERS = """
    # pip install 'sentence-transformers>=5.5'
    from sentence_transformers import CrossEncoder

    model = CrossEncoder("FOLDER_OR_HUB_ID")
    model.rank("why do tides turn", ["The tide follows the Moon.", "Bread rises by yeast."])
    """
ONNX = """
    # pip install 'sentence-transformers[onnx]>=5.1,<6'
    from sentence_transformers import CrossEncoder

    model = CrossEncoder("FOLDER_OR_HUB_ID", backend="onnx")
    model.rank("why do tides turn", ["The tide follows the Moon.", "Bread rises by yeast."])
    """
LIGHTNING_IR = """
    # pip install lightning-ir==0.0.6 'transformers<5'
    from lightning_ir import CrossEncoderModule

    model = CrossEncoderModule("FOLDER_OR_HUB_ID")
    model.score("why do tides turn", ["The tide follows the Moon.", "Bread rises by yeast."])
    """
RANKDISTILLM = """
    # pip install git+https://github.com/rankdistillm/rankdistillm
    from rankdistillm import Reranker

    reranker = Reranker.from_pretrained("FOLDER_OR_HUB_ID")
    reranker.rank("why do tides turn", ["The tide follows the Moon.", "Bread rises by yeast."])
    """
PYTERRIER = """
    # pip install 'rankdistillm[pyterrier] @ git+https://github.com/rankdistillm/rankdistillm'
    from rankdistillm.pyterrier import Reranker

    pipeline = bm25 >> Reranker("FOLDER_OR_HUB_ID")  # bm25: any retriever whose results have texts
    """

OURS = {"rankdistillm": RANKDISTILLM, "PyTerrier": PYTERRIER}
# Format of the folder -> the libraries that load it: name -> code.
USES: dict[str, dict[str, str]] = {
    "encoder": OURS,
    "mono": OURS | {"lightning-ir": LIGHTNING_IR},
    "classifier": OURS
    | {"sentence-transformers": SENTENCE_TRANSFORMERS, "transformers": TRANSFORMERS},
    "sentence_transformers": OURS | {"sentence-transformers": SENTENCE_TRANSFORMERS},
    "onnx": {"sentence-transformers": ONNX},
    "tei": {},
}

# The layouts whose other software knows one length for query and passage together.
CUT_AS_PAIRS = ("classifier", "sentence_transformers", "onnx", "tei")

CITATION = """\
@inproceedings{schlatt2025rankdistillm,
  title = {Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and LLMs for Passage Re-Ranking},
  author = {Schlatt, Ferdinand and Fröbe, Maik and Scells, Harrisen and Zhuang, Shengyao and Koopman, Bevan and Zuccon, Guido and Stein, Benno and Potthast, Martin and Hagen, Matthias},
  booktitle = {Advances in Information Retrieval, 47th European Conference on Information Retrieval (ECIR 2025)},
  publisher = {Springer},
  year = {2025},
  pages = {323--334},
  doi = {10.1007/978-3-031-88714-7_31},
  url = {https://arxiv.org/abs/2405.07920}
}"""  # noqa: E501


def write_card(output: Path) -> None:
    """Write the card of ``output/checkpoint``, the student of a finished training.

    It is made of the training's config.yaml and summary.json, and of the card or config of the
    stage before. A README.md that was written, or claimed, by the user is kept.
    """
    record = _record_of(output, depth=0)
    if record is not None:
        _write(output / "checkpoint", record)


def carry_card(
    source: str | Path,
    folder: Path,
    *,
    layout: str,
    int8: bool = False,
    license: str | None = None,
) -> bool:
    """Write the card of the student in the folder ``source`` for its export in ``folder``.

    ``layout`` is the format of the export, a key of `USES`; ``int8`` says that its weights have 8
    bits. ``license`` replaces that of the card.
    Returns False if ``source`` has no card of rankdistillm.
    """
    record = read_card(source)
    if record is None:
        return False
    record |= {"layout": layout, **({"int8": True} if int8 else {})}
    record |= {"license": license} if license else {}
    return _write(Path(folder), record)


def read_card(source: str | Path) -> dict[str, Any] | None:
    """Read the record of the training from the card of a folder or hub id; None if not ours."""
    from huggingface_hub.repocard import metadata_load

    try:
        file = find_file(locate(str(source)), CARD)
        record = (metadata_load(file) or {}).get("rankdistillm") if file else None
    except UNREADABLE:
        return None
    stages = record.get("stages") if isinstance(record, dict) else None
    if not isinstance(stages, list) or not 0 < len(stages) <= MOST_STAGES:
        return None
    return record if all(isinstance(stage, dict) for stage in stages) else None


def is_written(file: Path) -> bool:
    """Whether the file is a card that `write_card` may replace."""
    try:
        return file.name == CARD and NOTE in file.read_text("utf-8")
    except (OSError, ValueError):
        return False


def _write(folder: Path, record: Mapping[str, Any]) -> bool:
    file = folder / CARD
    if file.exists() and not is_written(file):
        log.info("%s: kept; it was not written by rankdistillm", file)
        return False
    with replacing(file) as beside:
        beside.write_text(card_text(record), "utf-8")
    return True


# ---- what is known about a training


def _record_of(output: Path, *, depth: int) -> dict[str, Any] | None:
    """The record of a training from the files in its folder; None if they are no training's."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(output / "config.yaml"), resolve=True)
        student = json.loads((output / "checkpoint/config.json").read_bytes())
        layout = layout_of(str(output / "checkpoint"))
        file = output / "summary.json"
        summary = json.loads(file.read_bytes()) if file.exists() else {}
        return _record(config, summary, student, layout, depth)
    except UNREADABLE:
        if depth:  # the folder of the start model may be anything
            return None
        raise


def _record(config: Any, summary: Any, student: Any, layout: str, depth: int) -> dict[str, Any]:
    before = _before(config["model"]["path"], depth)
    stages = before["stages"] if before else []
    lengths = student.get("rankdistillm", student)
    data, measured_on = config["data"], summary.get("measured_on")
    record: dict[str, Any] = {
        "version": rankdistillm.__version__,
        "layout": layout,
        "license": config.get("card", {}).get("license"),
        "query_length": lengths.get("query_length"),
        "doc_length": lengths.get("doc_length"),
        "stages": [*stages, _stage(config, summary, follows=bool(stages))][-MOST_STAGES:],
    }
    if measured_on:
        names = ("metric", "measured_on", "queries", "means", "p_values")
        results = {name: summary[name] for name in names if name in summary}
        results |= {name: _name(data[measured_on][name]) for name in ("run", "qrels")}
        record["results"] = results
    return record


def _before(path: str, depth: int) -> dict[str, Any] | None:
    """The record of the student that a training started from, if that is one of ours."""
    if depth >= MOST_STAGES:
        return None
    if not Path(path).is_dir():
        return read_card(path)
    return read_card(path) or _record_of(Path(path).resolve().parent, depth=depth + 1)


def _stage(config: Any, summary: Any, *, follows: bool) -> dict[str, Any]:
    train, loss = config["data"]["train"], dict(config["loss"])
    loss_name = loss.pop("_target_").rpartition(".")[2].removesuffix("_loss")
    loss.pop("_partial_", None)
    found = {
        "stage": config["stage"],
        "start": None if follows else _name(config["model"]["path"]),
        "lists": _name(train["run"]),
        **{f"lists_{name}": value for name, value in summary.get("trained_on", {}).items()},
        "teacher": _teacher(train["run"]),
        "judgements": _name(train["qrels"]) if _reads_judgements(config) else None,
        "passages": _name(config["data"]["docs"]),
        "loss": loss_name,
        "loss_options": ", ".join(f"{name}={value}" for name, value in loss.items()) or None,
        "targets": train["targets"],
        "list_size": train["list_size"],
        "sampling": train["sampling"],
        "queries_per_step": config["queries_per_step"],
        "steps": summary.get("step"),
        "learning_rate": config["optim"]["learning_rate"],
        "seed": config["seed"],
    }
    return {name: value for name, value in found.items() if value is not None}


def _reads_judgements(config: Any) -> bool:
    """Whether judgements decide what is learnt: as targets, or as the positives of the lists."""
    train = config["data"]["train"]
    targets = config["loss"].get("targets") or [train["targets"]]
    return bool({"relevance", "judged"} & {*targets}) or train["sampling"] == "single_relevant"


def _teacher(run: str | None) -> str | None:
    """The model that `rankdistillm.teach` asked for the run, if the file beside the run says so."""
    try:
        model = json.loads(Path(f"{run}.json").read_bytes())["method"]["model"]
        # A path or hub id and a digest of its weights, several runs in words, or a bare name.
        words = [word.partition("@") for word in model.split()]
    except UNREADABLE:
        return None
    return " ".join(f"{_name(path)}{at}{digest}" for path, at, digest in words)


def _name(value: str | None) -> str | None:
    """A file, a folder or an id, without the folders that a file or folder is in."""
    if value is None:
        return None
    path = Path(value)
    package = Path(rankdistillm.__file__).parent
    if path.is_relative_to(package / "mini"):
        return (
            f"rankdistillm's embedded collection: {path.relative_to(package / 'mini').as_posix()}"
        )
    is_id = HUB_ID.fullmatch(value.replace("/", "-")) and not path.exists() and not path.suffix
    return value if is_id else re.split(r"[/\\]", value.rstrip("/\\"))[-1]


# ---- the text


def card_text(record: Mapping[str, Any]) -> str:
    """The card as Markdown after its metadata; the same record gives the same text."""
    stages = record["stages"]
    start = str(stages[0].get("start") or "an unknown model")
    name = f"{start.rpartition('/')[2]}, {' and '.join(str(s.get('stage')) for s in stages)}"
    layout = str(record.get("layout"))
    uses = USES.get(layout, {})
    parts = [
        f"---\n{_metadata(record, name, start, uses)}\n---",
        NOTE,
        f"# {shown(name, 'markdown')}",
        "This cross-encoder re-ranks passages: it reads a query and a passage together and gives "
        "one score, higher is better. It was trained with "
        f"[rankdistillm]({SOURCE}), which distils the rankings of large language models.",
        "## Use",
        *(_use(library, code) for library, code in uses.items()),
        *(["With text-embeddings-inference: see FOR_TEI_ONLY.md."] if layout == "tei" else []),
        "`python -m rankdistillm.export` writes it for other libraries.",
        "## Training",
        _stages_table(stages),
        *_results(record.get("results")),
        "## Limits",
        _limits(record, start),
        "## Licence",
        _licence(record, start),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(record: Mapping[str, Any], name: str, start: str, uses: Mapping[str, str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results, evaluated = record.get("results"), None
    if isinstance(results, dict) and isinstance(results.get("means"), dict):
        judgements = str(results.get("qrels") or results.get("measured_on"))
        evaluated = [
            EvalResult(
                task_type="text-ranking",
                dataset_type=judgements,
                dataset_name=judgements,
                metric_type=str(results.get("metric")),
                metric_value=_value(results["means"].get("student after")),
            )
        ]
    has_own_library = "sentence-transformers" in uses
    data = ModelCardData(
        license=record.get("license"),
        library_name="sentence-transformers" if has_own_library else "rankdistillm",
        pipeline_tag="text-ranking",
        tags=["cross-encoder", "reranker", "knowledge-distillation", "rankdistillm"],
        base_model=start if HUB_ID.fullmatch(start) and "/" in start else None,
        model_name=name,
        eval_results=evaluated,
        rankdistillm=dict(record),
    )
    return data.to_yaml()


def _use(library: str, code: str) -> str:
    return f"With {library}:\n\n```python\n{textwrap.dedent(code).strip()}\n```"


ROWS = {
    "start": "starts from",
    "lists": "ranked lists",
    "lists_queries": "queries with a list",
    "lists_digest": "digest of the lists",
    "teacher": "teacher",
    "judgements": "relevance judgements",
    "passages": "passages",
    "loss": "loss",
    "loss_options": "options of the loss",
    "targets": "learns from",
    "list_size": "passages per list",
    "sampling": "sampling",
    "queries_per_step": "lists per step",
    "steps": "steps",
    "learning_rate": "learning rate",
    "seed": "seed",
}


def _stages_table(stages: Sequence[Mapping[str, Any]]) -> str:
    columns = [f"{i}. {_text(stage.get('stage'))}" for i, stage in enumerate(stages, 1)]
    rows = [["stage", *columns], ["---"] * (len(stages) + 1)]
    for name, title in ROWS.items():
        values = [_text(stage[name]) if name in stage else "" for stage in stages]
        if name == "start":
            values[1:] = ["the student of the stage before"] * (len(stages) - 1)
        if name == "teacher" and not any(values):
            values = ["not recorded"] * len(stages)
        if any(values):
            rows.append([title, *values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _results(results: Any) -> list[str]:
    if not isinstance(results, dict) or not isinstance(results.get("means"), dict):
        return []
    p_values = results.get("p_values")
    rows = [f"| run | {_text(results.get('metric'))} | p |", "|---|---|---|"]
    for name, mean in results["means"].items():
        p = p_values.get(name) if isinstance(p_values, dict) else None
        value = f"{mean:.4f}" if isinstance(mean, float) else _text(mean)
        rows.append(f"| {_text(name)} | {value} | {_p_value(p)} |")
    data = (
        f"judged queries of {_text(results['run'])} with the judgements "
        f"{_text(results.get('qrels'))}"
        if results.get("run")
        else "training queries that were held out, by the judgements that the loss learns from or "
        "else by agreement with the teacher"
    )
    said = (
        f"Over the {_text(results.get('queries'))} {data}. p: two-sided paired t-test against the "
        "student after training, with Holm's correction."
    )
    if results.get("measured_on") == "validation":
        said += " These queries also chose the step at which the student was saved."
    return ["## Results", "\n".join(rows), said]


def _limits(record: Mapping[str, Any], start: str) -> str:
    lengths = [
        f"{kind} to {_text(record[name])} tokens"
        for kind, name in (("queries", "query_length"), ("passages", "doc_length"))
        if record.get(name) is not None
    ]
    cut = [f"rankdistillm cuts {' and '.join(lengths)}."] if lengths else []
    if cut and record.get("layout") in CUT_AS_PAIRS:
        cut.append("Other software cuts the pair as a whole: longer texts score differently there.")
    if record.get("int8"):
        cut.append("The weights have 8 bits here; the results are those of the student before.")
    limits = [
        *([" ".join(cut)] if cut else []),
        f"The languages of {_text(start)} and of the training data are those it may know; none was "
        "tested by itself.",
        "What the texts of the training data contain was not examined. The student repeats the "
        "preferences of its teacher, mistakes included.",
        "Scores order the passages of one query. They are not probabilities, and not comparable "
        "between queries.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _licence(record: Mapping[str, Any], start: str) -> str:
    if record.get("license"):
        return f"{_text(record['license'])}."
    return (
        f"None was chosen for these weights. The licence of {_text(start)}, from which they were "
        "trained, and the terms of the training data and of the teacher apply."
    )


def _text(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else shown(str(value), "markdown")


def _value(mean: Any) -> Any:
    return round(mean, 4) if isinstance(mean, float) else mean


def _p_value(p: Any) -> str:
    if not isinstance(p, float | int):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
