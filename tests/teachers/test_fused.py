"""Several runs as one teacher: what is refused before ranx is loaded, and, slowly, the fusion."""

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.errors import InputError
from rankdistillm.evaluation.metrics import fuse
from rankdistillm.teachers.fused import fused_teacher

FIRST = Run.from_scores({"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q 2": {"é": 1.0, "x": 1.0}})
SECOND = Run.from_scores({"q 2": {"x": 5.0}, "q1": {"c": 9.0, "b": 2.0, "d": 1.0}})


def test_what_cannot_be_fused():
    with pytest.raises(InputError, match="1 runs to fuse"):
        fuse([FIRST])
    with pytest.raises(InputError, match="unknown fusion 'bayesfuse'; take one of rrf"):
        fuse([FIRST, SECOND], method="bayesfuse")
    with pytest.raises(InputError, match="unknown norm 'softmax'"):
        fuse([FIRST, SECOND], norm="softmax")
    for weights in ([1.0], [0.2, 0.3, 0.5]):
        with pytest.raises(InputError, match=f"{len(weights)} weights for 2 runs to fuse"):
            fuse([FIRST, SECOND], method="wsum", params={"weights": weights})
    with pytest.raises(InputError, match="query q 2 of run is missing"):
        fuse([FIRST, FIRST.select(["q1"])])
    with pytest.raises(InputError, match="query q 2 of run is missing"):
        fuse([FIRST.select(["q1"]), FIRST])
    assert len(fuse([Run({}), Run({})])) == 0


@pytest.mark.slow
def test_fusion_by_hand(tmp_path, caplog):
    """Slow: ranx compiles for a minute."""
    fused = fuse([FIRST, SECOND])
    by_hand = {
        "q1": {"a": 1 / 61, "b": 2 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 63},
        # Equal scores rank by descending doc_id, as in trec_eval.
        "q 2": {"é": 1 / 61, "x": 1 / 62 + 1 / 61},
    }
    for query_id, scores in by_hand.items():
        found = dict(zip(fused[query_id].doc_ids, fused[query_id].scores, strict=True))
        assert found == pytest.approx(scores)
    weighted = fuse([FIRST, SECOND], method="wsum", params={"weights": [0.25, 0.75]})
    scores = dict(zip(weighted["q1"].doc_ids, weighted["q1"].scores, strict=True))
    assert scores == pytest.approx({"a": 0.25, "b": 0.125 + 0.75 / 8, "c": 0.75, "d": 0.0})
    with pytest.raises(InputError, match="fusion rbc: ranx takes other params"):
        fuse([FIRST, SECOND], method="rbc")

    for name, run in (("first", FIRST), ("second", SECOND)):
        run.write(tmp_path / f"{name}.jsonl")
    candidates = Run.from_scores({"q1": {"c": 2.0, "a": 1.0, "z": 0.5}})
    teacher = fused_teacher(candidates, [tmp_path / "first.jsonl", tmp_path / "second.jsonl"])
    assert {q: teacher[q].doc_ids for q in teacher} == {"q1": ("c", "a")}
    assert "1 of 3 candidates are in none of the runs and are left out" in caplog.text
