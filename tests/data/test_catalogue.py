"""The release's data sets by id, from a local server that answers as the Hugging Face hub does."""

import gzip
import json

import pytest

from rankdistillm.data import catalogue
from rankdistillm.data.catalogue import collection_of
from rankdistillm.errors import InputError
from tests.helpers import write_parquet
from tests.hub import Hub, serving, with_checksums

IDS = [f"msmarco-passage/train/{name}" for name in catalogue.RELEASED]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with all four files; their checksums stand in the place of the published ones."""
    files = {}
    names = dict.fromkeys(file.name for file in catalogue.RELEASED.values())
    for number, name in enumerate(names):
        path = tmp_path / "made.parquet"
        rows = [
            (query, doc, rank, 10.0 - rank - number)
            for query in ("q1", "q2")
            for rank, doc in enumerate(("d1", "d2", "d3"), 1)
        ]
        write_parquet(path, rows)
        files[name] = path.read_bytes()
    with serving(files, tmp_path / "home") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Hub.published = with_checksums(files)
        yield Hub


# In a process of its own: huggingface_hub reads its environment when it is imported.
FETCH = """
import json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 50  # what arrives is kept in such pieces
from rankdistillm.data import catalogue
from rankdistillm.errors import InputError
published = json.loads(sys.argv[1])
for name, file in published.items():
    catalogue.RELEASED[name] = catalogue.ReleasedFile(*file)
from rankdistillm.data.runs import Run
try:
    for name in sys.argv[2:]:
        run = Run.read("msmarco-passage/train/" + name)
        print(json.dumps({q: [r.doc_ids, r.scores.tolist()] for q, r in run.items()}))
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def fetch(hub, process, tmp_path):
    def run(*names):
        return process("-c", FETCH, json.dumps(hub.published), *names, cwd=tmp_path)

    return run


def test_every_id_gives_its_run(hub, fetch):
    result = fetch(*catalogue.RELEASED)
    assert result.returncode == 0, result.stderr
    runs = result.stdout.splitlines()
    for file, run in zip(catalogue.RELEASED.values(), runs, strict=True):
        number = list(hub.files).index(file.name)
        scores = [9.0 - number, 8.0 - number, 7.0 - number]
        assert json.loads(run) == {q: [["d1", "d2", "d3"], scores] for q in ("q1", "q2")}


def test_a_second_call_reuses_the_file(hub, fetch):
    assert fetch("rank-distillm-colbert").returncode == 0
    hub.requests.clear()
    assert fetch("rank-distillm-colbert").returncode == 0
    assert not hub.requests


def test_a_wrong_checksum_is_reported_and_the_file_removed(hub, fetch, tmp_path):
    right = hub.published["rank-distillm-colbert"]
    hub.published["rank-distillm-colbert"] = catalogue.ReleasedFile(right.name, "0" * 32)
    result = fetch("rank-distillm-colbert")
    assert result.returncode != 0
    assert f"has md5 {right.md5}, not {'0' * 32}" in result.stderr
    assert not list((tmp_path / "home").rglob("*.parquet"))
    hub.published["rank-distillm-colbert"] = right
    assert fetch("rank-distillm-colbert").returncode == 0


@pytest.mark.slow  # huggingface_hub tries a broken connection five times, with pauses
def test_a_broken_download_is_reported_and_resumes(hub, fetch, tmp_path):
    hub.cut_after = 100
    result = fetch("rank-distillm-rankzephyr")
    assert result.returncode != 0
    assert "could not be fetched" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "home").rglob("*.parquet"))
    hub.cut_after = None
    hub.requests.clear()
    assert fetch("rank-distillm-rankzephyr").returncode == 0
    ranges = [asked for method, asked in hub.requests if method == "GET"]
    assert ranges == ["bytes=100-"]


@pytest.mark.slow
def test_a_missing_connection_is_reported(hub, fetch, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = fetch("rank-distillm-rankzephyr")
    assert result.returncode != 0
    assert "could not be fetched" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_release_is_registered_with_ir_datasets():
    import ir_datasets

    catalogue.register()
    catalogue.register()
    for identifier in IDS:
        dataset = ir_datasets.load(identifier)
        assert dataset.has_docs()
        assert dataset.has_queries()
        assert dataset.has_qrels()
        assert dataset.has_scoreddocs()


def test_their_scoreddocs_are_the_rows_of_the_file(monkeypatch, tmp_path):
    import ir_datasets

    catalogue.register()
    rows = [("q2", "d1", 1, 2.5), ("q1", "d3", 1, 0.5), ("q1", "d1", 2, 0.25)]
    write_parquet(tmp_path / "rows.parquet", rows)
    monkeypatch.setattr(catalogue, "fetch", lambda file: tmp_path / "rows.parquet")
    found = ir_datasets.load(IDS[0]).scoreddocs_iter()
    assert [tuple(row) for row in found] == [(q, d, score) for q, d, _, score in rows]


@pytest.mark.parametrize(
    ("name", "collection"),
    [
        ("__bm25__cranfield.run", "cranfield"),
        ("x__rankgpt__msmarco-passage-trec-dl-2019-judged.run.gz",
         "msmarco-passage/trec-dl-2019/judged"),
        ("__colbert__beir-nfcorpus-test.parquet", "beir/nfcorpus/test"),
        ("__bm25__no-such-collection.run", None),
        ("cranfield.run", None),
        (IDS[0], IDS[0]),
        ("re-ranked bm25.run", None),
    ],
)  # fmt: skip
def test_the_collection_that_a_run_names(name, collection, tmp_path):
    assert collection_of(name if name in IDS else tmp_path / name) == collection


def test_texts_come_from_the_collection_that_the_file_name_tells(tmp_path, monkeypatch):
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import BaseDocs, BaseQueries, GenericDoc, GenericQuery

    class Docs(BaseDocs):
        def docs_iter(self):
            yield GenericDoc("d1", "one")

        def docs_store(self):
            class Store:
                def get_many(self, ids):
                    return {i: GenericDoc(i, "one") for i in ids}

            return Store()

    class Queries(BaseQueries):
        def queries_iter(self):
            yield GenericQuery("q1", "first?")

    registered = dict(ir_datasets.registry._registered)
    monkeypatch.setattr(ir_datasets.registry, "_registered", registered)
    ir_datasets.registry.register("tiny/one", Dataset(Docs(), Queries()))
    from rankdistillm.data.runs import Run
    from rankdistillm.data.texts import texts_of_run

    path = tmp_path / "__bm25__tiny-one.run.gz"
    with gzip.open(path, "wt") as file:
        file.write("q1 Q0 d1 1 2.0 bm25\n")
    assert texts_of_run(Run.read(path), None, None) == ({"q1": "first?"}, {"d1": "one"})


def test_a_full_disk_is_reported_and_nothing_is_kept(hub, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: Metadata())
    with pytest.raises(InputError, match="No space left on device"):
        catalogue.fetch(hub.published["rank-distillm-colbert"])
    assert not list((tmp_path / "home").rglob("*.parquet"))

    def there_is_room_for_a_part(location, content, **_):
        content.write(whole[:40])
        full()

    whole = hub.files[hub.published["rank-distillm-colbert"].name]
    monkeypatch.setattr("huggingface_hub.file_download.http_get", there_is_room_for_a_part)
    with pytest.raises(InputError, match="run again to resume the download"):
        catalogue.fetch(hub.published["rank-distillm-colbert"])

    def the_rest(location, content, *, resume_size, **_):
        assert resume_size == 40
        content.write(whole[resume_size:])

    monkeypatch.setattr("huggingface_hub.file_download.http_get", the_rest)
    assert catalogue.fetch(hub.published["rank-distillm-colbert"]).read_bytes() == whole


class Metadata:
    location, size = "http://127.0.0.1:9", 10
