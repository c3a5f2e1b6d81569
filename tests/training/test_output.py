"""The output folder of a training."""

import pytest

from rankdistillm.data.outputs import locked
from rankdistillm.errors import InputError
from rankdistillm.training.output import check_ours, save_student, training_folder


class Student:
    """It writes the files that it is made of."""

    def __init__(self, **texts):
        self.texts = texts

    def save_pretrained(self, folder):
        for name, text in self.texts.items():
            (folder / f"{name}.txt").write_text(text)


def test_a_new_student_leaves_files_of_others_but_not_the_old_tokeniser(tmp_path):
    folder = tmp_path / "checkpoint"
    save_student(Student(vocab="old", weights="old"), folder)
    (folder / "notes").mkdir()
    (folder / "README.md").write_text("my own")
    save_student(Student(weights="new"), folder)
    assert {path.name for path in folder.iterdir()} == {"weights.txt", "notes", "README.md"}
    assert (folder / "weights.txt").read_text() == "new"


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
