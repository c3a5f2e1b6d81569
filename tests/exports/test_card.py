"""The model card: what a training leaves, what it says, and that it names no folder."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub.repocard import metadata_load
from omegaconf import OmegaConf

from rankdistillm.exports import card
from rankdistillm.exports.card import card_text, carry_card, read_card, write_card
from rankdistillm.model.formats.files import PACKAGED, locate
from tests.helpers import HOSTILE_NAMES

ROOT = Path(__file__).parents[2]
SUMMARY = {
    "step": 67,
    "trained_on": {"queries": 98, "digest": "0123456789abcdef"},
    "metric": "ndcg@10",
    "best_validation": {"value": 0.7, "step": 67},
    "measured_on": "test",
    "queries": 56,
    "means": {"bm25": 0.5802, "student before": 0.2669, "student after": 0.74441},
    "p_values": {"bm25": 0.00001, "student before": 0.25},
}


@pytest.fixture
def training(tmp_path):
    """Write the folder of a finished training, with every path deep in somebody's home."""
    home = tmp_path / "home/alice/secret"
    home.mkdir(parents=True)
    (home / "teacher.run").touch()
    about = {"method": {"model": f"{home}/llm@abc"}}
    (home / "teacher.run.json").write_text(json.dumps(about))

    def make(name="stage2", *, start="google/electra-base-discriminator", license=None, **summary):
        output = home / name
        (output / "checkpoint").mkdir(parents=True)
        student = {"model_type": "electra", "rankdistillm": {"query_length": 32, "doc_length": 256}}
        (output / "checkpoint/config.json").write_text(json.dumps(student))
        part = {"run": f"{home}/first.run", "qrels": f"{home}/qrels.txt"}
        config = {
            "stage": "distill",
            "seed": 3,
            "queries_per_step": 8,
            "model": {"path": str(start)},
            "card": {"license": license},
            "loss": {"_target_": "rankdistillm.losses.ranknet_loss", "temperature": 0.5},
            "optim": {"learning_rate": 1e-4},
            "data": {
                "docs": f"{home}/docs.tsv",
                "queries": "msmarco-passage/train",
                "train": {
                    "run": f"{home}/teacher.run",
                    "qrels": None,
                    "targets": "rank",
                    "list_size": 16,
                    "sampling": "random",
                },
                "validation": part,
                "test": part,
            },
        }
        OmegaConf.save(config, output / "config.yaml")
        (output / "summary.json").write_text(json.dumps(SUMMARY | summary))
        return output

    return make


def text_of(output):
    return (output / "checkpoint/README.md").read_text("utf-8")


def test_the_card_says_what_the_student_was_distilled_from(training):
    write_card(output := training(license="apache-2.0"))
    text = text_of(output)
    for said in (
        "# electra-base-discriminator, distill\n",
        "| starts from | google/electra-base-discriminator |",
        "| ranked lists | teacher.run |",
        "| digest of the lists | 0123456789abcdef |",
        "| teacher | llm@abc |",
        "| loss | ranknet |",
        "| options of the loss | temperature=0.5 |",
        "| steps | 67 |",
        "| seed | 3 |",
        "| bm25 | 0.5802 | < 0.001 |",
        "| student before | 0.2669 | 0.250 |",
        "| student after | 0.7444 |  |",
        "Over the 56 judged queries of first.run with the judgements qrels.txt.",
        "rankdistillm cuts queries to 32 tokens and passages to 256 tokens.\n",
        "## Licence\n\napache-2.0.",
        "@inproceedings{schlatt2025rankdistillm",
        'Reranker.from_pretrained("FOLDER_OR_HUB_ID")',
        'bm25 >> Reranker("FOLDER_OR_HUB_ID")',
    ):
        assert said in text, said
    for private in ("alice", "secret", "home"):
        assert private not in text


def test_an_export_says_that_it_cuts_pairs_and_that_its_weights_have_8_bits(training, tmp_path):
    write_card(output := training())
    carry_card(output / "checkpoint", tmp_path, layout="onnx", int8=True)
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "Other software cuts the pair as a whole" in text
    assert "The weights have 8 bits here; the results are those of the student before." in text


@pytest.mark.parametrize(
    ("changes", "are_read"),
    [
        ({}, False),
        ({"data.train.targets": "relevance"}, True),
        ({"data.train.sampling": "single_relevant"}, True),
        ({"loss.targets": ["rank", "judged"]}, True),
    ],
)
def test_judgements_are_named_only_if_they_were_learnt_from(changes, are_read, training):
    output = training()
    config = OmegaConf.load(output / "config.yaml")
    for name, value in {"data.train.qrels": "qrels.txt", **changes}.items():
        OmegaConf.update(config, name, value)
    OmegaConf.save(config, output / "config.yaml")
    write_card(output)
    assert ("| relevance judgements | qrels.txt |" in text_of(output)) == are_read


def test_the_metadata_are_what_a_hub_expects(training):
    write_card(output := training(license="apache-2.0"))
    found = metadata_load(output / "checkpoint/README.md")
    assert found["license"] == "apache-2.0"
    assert found["pipeline_tag"] == "text-ranking"
    assert found["library_name"] == "rankdistillm"
    assert found["base_model"] == "google/electra-base-discriminator"
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "ndcg@10", "value": 0.7444}]
    assert result["dataset"]["name"] == "qrels.txt"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt-4o", "gpt-4o"),
        ("Qwen/Qwen3-8B@0123", "Qwen/Qwen3-8B@0123"),
        ("rrf of {home}/a.run, {home}/b.run", "rrf of a.run, b.run"),
        (["x"], "not recorded"),
    ],
)
def test_the_teacher_comes_from_the_file_beside_its_run(model, said, training):
    output = training()
    home = output.parent
    model = model.format(home=home) if isinstance(model, str) else model
    (home / "teacher.run.json").write_text(json.dumps({"method": {"model": model}}))
    write_card(output)
    assert f"| teacher | {said} |" in text_of(output)


def test_without_a_licence_the_card_claims_none(training):
    write_card(output := training())
    assert "license" not in metadata_load(output / "checkpoint/README.md")
    assert "None was chosen for these weights. The licence of google/electra" in text_of(output)


def test_the_stage_before_comes_from_its_card(training):
    write_card(first := training("stage1"))
    (first / "config.yaml").unlink()
    write_card(second := training(start=first / "checkpoint"))
    text = text_of(second)
    assert "| stage | 1. distill | 2. distill |" in text
    assert "| google/electra-base-discriminator | the student of the stage before |" in text
    found = metadata_load(second / "checkpoint/README.md")
    assert found["base_model"] == "google/electra-base-discriminator"


def test_the_stage_before_comes_from_its_config_if_it_has_no_card(training):
    first = training("stage1")
    write_card(second := training(start=first / "checkpoint"))
    assert "| stage | 1. distill | 2. distill |" in text_of(second)
    (first / "config.yaml").write_text("stage: [")  # something else lies there
    write_card(second)
    assert "| stage | 1. distill |\n" in text_of(second)
    assert "| starts from | checkpoint |" in text_of(second)


def test_a_training_that_names_its_own_student_as_its_start_ends(training):
    output = training()
    config = OmegaConf.load(output / "config.yaml")
    config.model.path = str(output / "checkpoint")
    OmegaConf.save(config, output / "config.yaml")
    write_card(output)
    assert len(read_card(output / "checkpoint")["stages"]) <= card.MOST_STAGES


def test_the_card_is_the_same_each_time(training):
    write_card(output := training())
    before = text_of(output)
    write_card(output)
    assert text_of(output) == before


def test_the_card_of_the_user_is_kept(training, caplog):
    caplog.set_level("INFO")
    write_card(output := training())
    file = output / "checkpoint/README.md"
    mine = file.read_text("utf-8").replace(card.NOTE, "") + "mine"
    file.write_text(mine, "utf-8")
    write_card(output)
    assert file.read_text("utf-8") == mine
    assert "kept; it was not written by rankdistillm" in caplog.text


def test_measured_on_validation_is_said(training):
    write_card(output := training(measured_on="validation"))
    assert "also chose the step at which the student was saved" in text_of(output)


def test_held_out_training_queries_are_named_as_such(training):
    output = training(measured_on="validation")
    config = OmegaConf.load(output / "config.yaml")
    config.data.validation = {"run": None, "qrels": None}
    OmegaConf.save(config, output / "config.yaml")
    write_card(output)
    assert "Over the 56 training queries that were held out, by the judgements" in text_of(output)
    (result,) = metadata_load(output / "checkpoint/README.md")["model-index"][0]["results"]
    assert result["dataset"]["name"] == "validation"


def test_a_training_that_measured_nothing_has_no_results(training):
    output = training()
    (output / "summary.json").write_text(json.dumps({"step": 5, "metric": "ndcg@10"}))
    write_card(output)
    assert "## Results" not in text_of(output)
    assert "model-index" not in metadata_load(output / "checkpoint/README.md")


def test_a_student_of_a_hub_passes_its_training_on(training, tmp_path, monkeypatch):
    write_card(first := training("stage1"))
    repository = tmp_path / "hub/models--alice--student"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    shutil.copytree(first / "checkpoint", repository / "snapshots/abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    write_card(second := training("stage2", start="alice/student"))
    stages = read_card(second / "checkpoint")["stages"]
    assert stages[0] == read_card(first / "checkpoint")["stages"][0]
    assert len(stages) == 2


def test_the_card_of_a_packaged_model_is_not_sought_on_the_hub(training, monkeypatch):
    (name,) = PACKAGED
    if locate(name) == name:
        pytest.skip("without the package of the weights")
    monkeypatch.setattr(card, "find_file", lambda source, _: read.append(source))
    read = []
    write_card(training(start=name))
    assert read == [locate(name)]


@pytest.mark.parametrize(
    ("golden", "layout"),
    [("lightning_ir", "mono"), ("sentence_transformers", "sentence_transformers")],
)
def test_a_student_that_keeps_its_layout_is_for_the_library_it_came_from(golden, layout, training):
    output = training()
    shutil.copytree(
        ROOT / "tests/golden" / golden, output / "checkpoint", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("README.md"),
    )  # fmt: skip
    write_card(output)
    assert read_card(output / "checkpoint")["layout"] == layout
    assert all(f"With {name}:" in text_of(output) for name in card.USES[layout])


@pytest.mark.parametrize("layout", card.USES)
def test_an_export_carries_the_card_and_says_who_loads_it(layout, training, tmp_path):
    write_card(output := training(license="mit"))
    folder = tmp_path / layout
    folder.mkdir()
    assert carry_card(output / "checkpoint", folder, layout=layout)
    text = (folder / "README.md").read_text("utf-8")
    for name in {name for uses in card.USES.values() for name in uses}:
        assert (f"With {name}:" in text) == (name in card.USES[layout])
    assert ("see FOR_TEI_ONLY.md" in text) == (layout == "tei")
    assert "apache" not in text
    found = metadata_load(folder / "README.md")
    is_st = "sentence-transformers" in card.USES[layout]
    assert found["library_name"] == ("sentence-transformers" if is_st else "rankdistillm")
    assert read_card(folder)["stages"] == read_card(output / "checkpoint")["stages"]
    assert not carry_card(tmp_path, folder, layout=layout)


# Options and files with half a character in their names are refused before a training starts.
@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if "\udc80" not in name])
def test_hostile_names_break_neither_the_metadata_nor_the_table(name):
    stage = {"stage": "distill", "start": name, "lists": name, "teacher": name, "seed": 1}
    results = {"metric": "ndcg@10", "queries": 2, "run": name, "qrels": name,
               "means": {name: 0.5, "student after": 0.6}, "p_values": {name: 0.5}}  # fmt: skip
    record = {"license": None, "stages": [stage], "results": results}
    _, metadata, body = card_text(record).split("---\n", 2)
    assert yaml.safe_load(metadata)["rankdistillm"]["stages"][0]["lists"] == name
    rows = [line for line in body.splitlines() if line.startswith("|")]
    unescaped = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in rows]
    assert set(unescaped) <= {3, 4}


@pytest.mark.parametrize(
    "text",
    [
        "", "# mine", "---\n: [\n---\n", "---\n- a\n---\n", "---\nrankdistillm: 5\n---\n",
        "---\nrankdistillm: {stages: []}\n---\n", "---\nrankdistillm: {stages: [1]}\n---\n",
        f"---\nrankdistillm: {{stages: [{', '.join(['{}'] * 50)}]}}\n---\n", "\udcff",
    ],
)  # fmt: skip
def test_other_cards_are_not_taken_for_ours(text, tmp_path):
    (tmp_path / "README.md").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_card(tmp_path) is None


@pytest.mark.parametrize("value", [None, 5, [1], {"a": 1}, "x", True, -1.5])
def test_any_record_in_a_card_of_ours_can_be_written_again(value, tmp_path):
    names = ("layout", "license", "query_length", "results", "version")
    for record in (dict.fromkeys(names, value), {"results": {"means": value}}):
        stages = [dict.fromkeys((*card.ROWS, "stage"), value), {}]
        assert card_text(record | {"stages": stages}).startswith("---\n")
    assert card_text({"stages": [{}], "results": {"means": {"student after": value}}})


def test_the_citation_is_that_of_the_project():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["references"][0]
    for name in ("title", "doi", "url", "collection-title", "year"):
        assert f"{{{cited[name]}}}" in card.CITATION
    authors = [f"{a['family-names']}, {a['given-names']}" for a in cited["authors"]]
    assert f"author = {{{' and '.join(authors)}}}" in card.CITATION
    assert f"{{{cited['start']}--{cited['end']}}}" in card.CITATION
