"""The output folder of a training."""

import pytest

from rankdistillm.data.outputs import locked
from rankdistillm.errors import InputError
from rankdistillm.training.output import (
    check_ours,
    replacing_folder,
    restore_folder,
    training_folder,
)


def test_a_replaced_folder_keeps_other_files_but_not_those_of_a_tokeniser(tmp_path):
    folder = tmp_path / "checkpoint"
    for texts in ({"vocab.txt": "old", "a": "old", "sub/b": "mine"}, {"a": "new"}):
        with replacing_folder(folder) as beside:
            for name, text in texts.items():
                (beside / name).parent.mkdir(exist_ok=True)
                (beside / name).write_text(text)
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == {"a": "new", "sub/b": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "a").write_text("old")

    def fail():
        with replacing_folder(folder) as beside:
            (beside / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_left_under_its_temporary_name_is_restored(tmp_path):
    (tmp_path / ".checkpoint.old").mkdir()
    restore_folder(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_missing_folder_and_one_with_unrelated_files_are_accepted(tmp_path):
    check_ours(tmp_path / "nowhere")
    (tmp_path / "docs.tsv").write_text("a\tb\n")
    check_ours(tmp_path)


def test_the_folder_of_a_training_is_locked_and_removed_if_empty(tmp_path):
    with training_folder(tmp_path / "out", []) as folder:
        second = locked(folder)
        with pytest.raises(InputError, match="another process writes there"):
            second.__enter__()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="would overwrite docs, which is read"):
        training_folder(tmp_path, [("docs", tmp_path / "state/docs.tsv")]).__enter__()
