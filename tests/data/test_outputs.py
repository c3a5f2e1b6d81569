"""Outputs are written safely and never over an input."""

import errno
import os

import filelock
import pytest

from rankdistillm.data.outputs import (
    check_output,
    keep_apart,
    locked,
    replacing_folder,
    restore_folder,
    unwritable,
    writable_folder,
)
from rankdistillm.errors import InputError


def test_outputs_beside_inputs_and_ids_of_inputs_are_accepted(tmp_path):
    (tmp_path / "model").mkdir()
    read = [("model.path", tmp_path / "model"), ("docs", "msmarco-passage"), ("run", "x" * 5000)]
    keep_apart([("output", tmp_path / "model/out.run"), ("table", tmp_path / "t.md")], read)
    (tmp_path / "loop").symlink_to("loop")
    keep_apart([("output", tmp_path / "loop/x")], read)


def test_a_created_folder_stays_only_if_it_is_used(tmp_path):
    with writable_folder(tmp_path / "a/b", "a/b"):
        pass
    assert not (tmp_path / "a").exists()
    with writable_folder(tmp_path / "a/b", "a/b") as folder:
        (folder / "file").touch()
    assert (tmp_path / "a/b/file").exists()
    with pytest.raises(InputError, match="cannot be written"):
        check_output(tmp_path / "a/b/file/x", "x")


def test_a_folder_is_locked_where_there_are_locks(tmp_path, monkeypatch):
    refused = pytest.raises(InputError, match="another process writes there")
    with locked(tmp_path), refused, locked(tmp_path):
        pass

    def acquire(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with locked(tmp_path), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_as_the_cause(number):
    said = f"{os.strerror(number)} (os error {number})"  # as in safetensors and tokenizers
    for error in (OSError(number, os.strerror(number)), OSError(said)):
        message = str(unwritable("out", error))
        assert message.startswith("out: the disk is full")
        assert "free some space" in message
    assert "choose another place" in str(unwritable("out", OSError(errno.EACCES, "no")))


def test_a_replaced_folder_keeps_what_it_is_told_to(tmp_path):
    def write(texts, **options):
        with replacing_folder(tmp_path / "folder", **options) as beside:
            for name, text in texts.items():
                (beside / name).parent.mkdir(exist_ok=True)
                (beside / name).write_text(text)
        found = (tmp_path / "folder").rglob("*")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        return {
            str(p.relative_to(tmp_path / "folder")): p.read_text() for p in found if p.is_file()
        }

    old = {"a": "old", "sub/b": "mine", "c": "stale"}
    assert write(old) == old
    assert write({"a": "new"}, keep=lambda path: path.name != "c") == {"a": "new", "sub/b": "mine"}
    assert write({"a": "newer"}) == {"a": "newer"}


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
