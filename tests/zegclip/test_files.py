"""Files are there whole or not at all."""

import operator
import os
import signal
import tempfile
import time

import pytest

from zegclip.files import exiting_on_sigterm, new_folder, remove_leftovers, replacing, writing_to


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_leftovers_in_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        if place == tmp_path:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with new_folder(tmp_path / "new") as folder:
        folder.mkdir()
    monkeypatch.undo()
    assert (tmp_path / "new").is_dir()


def test_what_was_there_stays_after_a_failure(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail():
        with replacing(path) as part:
            part.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def killed_in(context):
    """Let a child process be killed within a context, as if the power had gone."""
    process = os.fork()
    if process == 0:
        try:
            with context as folder:
                folder.mkdir(exist_ok=True)
                (folder / "half.txt").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_the_next_new_folder_removes_what_a_killed_one_has_left(tmp_path):
    killed_in(new_folder(tmp_path / "output"))
    [leftover] = tmp_path.iterdir()
    assert list(leftover.rglob("half.txt"))
    with new_folder(tmp_path / "output") as folder:
        folder.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_leftovers_are_removed_but_never_those_of_a_running_process(tmp_path):
    remove_leftovers(tmp_path / "missing")
    killed_in(writing_to(tmp_path))
    [leftover] = tmp_path.iterdir()
    assert [path.name for path in leftover.iterdir()] == ["half.txt"]
    machine, _, _ = leftover.name.rsplit("-", 2)
    of_another_machine = tmp_path / leftover.name.replace(machine, ".zegclip-elsewhere")
    old, of_the_user = tmp_path / ".zegclip-elsewhere-1-abc", tmp_path / "folder"
    for folder in (of_another_machine, old, of_the_user):
        folder.mkdir()
    for folder in (old, of_the_user):
        os.utime(folder, (0, 0))
    with writing_to(tmp_path) as ours:
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {ours, of_another_machine, of_the_user}


@pytest.mark.parametrize(("moment", "left"), [("mkdtemp", []), ("TemporaryDirectory.cleanup", ["file.txt"])])
def test_sigterm_waits_while_a_temporary_folder_is_made_or_removed(tmp_path, monkeypatch, moment, left):
    usual = operator.attrgetter(moment)(tempfile)

    def interrupt(*args, **kwargs):
        if moment == "mkdtemp":
            made = usual(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # Python has time to call a handler.
        return made if moment == "mkdtemp" else usual(*args, **kwargs)

    monkeypatch.setattr(f"tempfile.{moment}", interrupt)
    with pytest.raises(SystemExit) as error, exiting_on_sigterm(), writing_to(tmp_path) as folder:
        (folder / "file.txt").write_text("whole")
    assert error.value.code == 143
    assert [path.name for path in tmp_path.iterdir()] == left


def test_leftovers_of_another_user_are_left_to_him(tmp_path, monkeypatch):
    path = tmp_path / ".zegclip-elsewhere-1-abc"
    path.write_text("")
    os.utime(path, (0, 0))

    def refuse(path):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    remove_leftovers(tmp_path)
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert not path.exists()
