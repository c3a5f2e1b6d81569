"""Outputs are written safely and never over an input."""

import errno
import os

import filelock
import pytest

from rankdistillm.data.outputs import check_output, keep_apart, locked, unwritable, writable_folder
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
