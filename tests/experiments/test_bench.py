"""What the benchmarks compute and print; their measurements are made by hand."""

import argparse
import json
import sys

import numpy as np
import pytest

from experiments.bench import backends, device_rate, peers, retrieve, startup
from experiments.bench.generated import collection
from rankdistillm.data.texts import read_texts
from rankdistillm.model.formats.files import PACKAGED, locate


def test_operations_of_a_token_by_hand():
    # One whole layer of hidden size 2 and feed-forward 4: 4 · 2 · 2 attention weights and
    # 2 · 2 · 4 others, two operations each, and 4 · 5 · 2 for the attention of a pair of 5 tokens.
    matrices = 2 * (16 + 16)
    # A query of each of 3 heads meets each state of 2 numbers twice, two operations each.
    last = 2 * 2 * 3 * 2 + matrices / 5
    assert device_rate.flop_per_token(1, 2, 3, 4, 5) == pytest.approx(last)
    whole = matrices + 40
    assert device_rate.flop_per_token(3, 2, 3, 4, 5) == pytest.approx(2 * whole + last)


def test_the_tables_compare_round_by_round():
    same = {"rankdistillm": [8.0, 30.0, 12.0], "peer": [4.0, 5.0, 6.0]}
    with_dropout = {"rankdistillm": [2.0, 3.0, 4.0], "peer": [1.0, 2.0, 4.0]}
    assert peers.tables("rerank", {0.0: same}).count("| rankdistillm |") == 1
    first, second, own = peers.tables("train", {0.0: same, 0.1: with_dropout}).split("\n\n")
    assert "| rankdistillm | 12.0 | 8.0-30.0 |  |" in first
    assert "| peer | 5.0 | 4.0-6.0 | **2.00x** (2.00-6.00) |" in first
    assert "| peer | 2.0 | 1.0-4.0 | **1.50x** (1.00-2.00) |" in second
    assert "| rankdistillm | 12.0 | 8.0-30.0 |  |" in own
    assert "| peer | 2.0 | 1.0-4.0 | **8.00x** (3.00-15.00) |" in own


SIDE = """
import sys
sys.path.insert(0, {bench!r})
from lists import answer, one_by_one
print("a line of a library's own")
batches = [[("q", "query", [("d", "text")] * 3)]] * 3
steps = []
def work_of(what, dropout):
    if what == "rerank":
        sys.exit("it cannot re-rank")
    return one_by_one(steps.append)
answer(batches, work_of)
"""


def test_sides_are_asked_in_turn_and_a_peer_that_fails_is_left_out(tmp_path, capsys):
    script = tmp_path / "side.py"
    script.write_text(SIDE.format(bench=str(peers.HERE)))
    able = tmp_path / "able.py"
    able.write_text(SIDE.format(bench=str(peers.HERE)).replace('what == "rerank"', "False"))
    sides = {
        peers.OURS: peers.Side(sys.executable, able, {}),
        "peer": peers.Side(sys.executable, script, {}),
    }
    arguments = argparse.Namespace(
        what=["train", "rerank"], dropout=[0.0, 0.1], rounds=2, work=tmp_path
    )
    peers.compare(sides, arguments)
    out, err = capsys.readouterr()
    assert "it cannot re-rank" in err
    assert "left out" in err
    rates = json.loads((tmp_path / "peers-train.json").read_text())
    assert [len(rates["0.1"][name]) for name in (peers.OURS, "peer")] == [2, 2]
    assert out.count("| peer | ") == 3  # the two tables of dropout, and ours beside the peer's
    assert list(json.loads((tmp_path / "peers-rerank.json").read_text())["0.0"]) == [peers.OURS]


def test_the_backends_are_compared_with_ours_round_by_round():
    rates = {
        ("rankdistillm", "fp32"): [8.0, 30.0, 12.0],
        ("rankdistillm", "bf16"): [16.0, 30.0, 48.0],
        ("OpenVINO", "fp32"): [4.0, 5.0, 6.0],
    }
    exact = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    scores = np.array([[3.5, 2.0, 1.0], [3.0, 1.0, 2.0]])  # a third of the second list's pairs
    same = backends.agreement(exact, exact)
    assert same == "0 | 1.000"
    agreements = dict.fromkeys(rates, same)
    agreements["OpenVINO", "fp32"] = backends.agreement(scores, exact)
    *_, bf16, peer = backends.table(rates, agreements).splitlines()
    ratios = "0.50x (0.25-1.00) | 1.00x (1.00-1.00)"
    assert bf16 == f"| rankdistillm, bf16 | 30.0 | 16.0-48.0 | {ratios} | 0 | 1.000 |"
    ratios = "2.00x (2.00-6.00) | 6.00x (4.00-8.00)"
    assert peer == f"| OpenVINO, fp32 | 5.0 | 4.0-6.0 | {ratios} | 1 | 0.667 |"


def test_generated_passages_have_the_lengths_of_ms_marco():
    run, queries, docs = collection(3, 200)
    assert [len(run[query_id]) for query_id in queries] == [200] * 3
    assert len(docs) == 600
    lengths = sorted(len(text.split()) for text in docs.values())
    assert lengths[300] == pytest.approx(56, rel=0.1)
    assert collection(3, 200)[2] == docs


def test_bm25_is_measured_on_texts_with_the_lengths_of_ms_marco(tmp_path):
    files = tmp_path / "docs.tsv", tmp_path / "queries.tsv"
    retrieve.write_texts(*files, 2000, 5)
    docs, queries = (read_texts(file, "doc") for file in files)
    lengths = [len(text.split()) for text in docs.values()]
    assert sum(lengths) / 2000 == pytest.approx(55, rel=0.05)
    assert len(queries) == 5
    for doc_id, query in queries.items():
        assert len(query.split()) == 6
        assert set(query.split()) <= set(docs[doc_id].split())
    first, second = (retrieve.open_once(*files, tmp_path / "index") for _ in range(2))
    assert min(*first.values(), *second.values()) > 0
    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) == 1


@pytest.mark.slow
def test_the_start_up_of_each_command_is_measured(capsys, monkeypatch):
    (name,) = PACKAGED
    if locate(name) == name:
        pytest.skip("needs the model of the extra demo")
    monkeypatch.setattr(sys, "argv", ["startup", "--rounds", "1"])
    startup.main()
    out = capsys.readouterr().out
    assert all(f"| {command} | " in out for command in ("train", "rerank", "evaluate"))


def test_the_device_rate_is_measured(capsys, monkeypatch):
    (name,) = PACKAGED
    if locate(name) == name:
        pytest.skip("needs the tokeniser of the extra demo")
    arguments = ["--model", "tiny", "--steps", "1", "--lists", "2", "--list-size", "3"]
    arguments += ["--profile", "2"]
    monkeypatch.setattr(sys, "argv", ["device_rate", *arguments])
    device_rate.main()
    out = capsys.readouterr().out
    assert "| training, dropout 0.0 | " in out
    assert "re-ranking: " in out
    assert "| re-ranking | " in out
